/* Prompt tables of other tools: NeMo's .nemo (checksums put right); or, when the input begins with a brace, a PEFT
 * adapter: adapter_config.json, a NUL, and adapter_model.safetensors or (a zip archive) adapter_model.bin. */
#include "base/file.h"
#include "engine/format/table_forms.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <unistd.h>

static void put(const char *name, const uint8_t *data, size_t size, char ret_path[SL_PATH_MAX])
{
    fuzz_check(sl_path(ret_path, NULL, "%s/%s", fuzz_dir(), name) == 0);
    FILE *f = fopen(ret_path, "we");
    fuzz_check(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

static int import(const char *path)
{
    static const char *const tasks[] = {"given"};
    struct sl_err err = SL_ERR_INIT;
    struct sl_tables tables = {0};
    int rc = sl_tables_import(path, tasks, 1, &tables, &err);

    if (rc == 0) {
        for (int i = 0; i < tables.n; i++)
            fuzz_check(tables.table[i].task && tables.table[i].rows && tables.table[i].virtual_tokens > 0 &&
                       tables.table[i].hidden > 0 && json_is_object(tables.table[i].config));
        sl_tables_release(&tables);
    } else {
        fuzz_check_error(rc, err);
    }
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char config[SL_PATH_MAX], weights[SL_PATH_MAX];
    uint8_t *bytes = (uint8_t *)fuzz_text(data, size);

    if (size && bytes[0] == '{') {
        size_t len = strlen((char *)bytes), from = len < size ? len + 1 : len;
        bool zip = size - from > 2 && bytes[from] == 'P' && bytes[from + 1] == 'K';
        put("adapter_config.json", bytes, len, config);
        put(zip ? "adapter_model.bin" : "adapter_model.safetensors", bytes + from, size - from, weights);
        import(fuzz_dir());
        unlink(config);
        unlink(weights);
    } else {
        if (size > 2 && bytes[0] != 0x1f) /* gzip */
            fuzz_fix_tar(bytes, size);
        import(fuzz_file(bytes, size));
    }
    free(bytes);
    return 0;
}
