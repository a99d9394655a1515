/* safetensors files: the strict reader of tables, the reader of base models, and prompt tables (sealed). */
#include "base/digest.h"
#include "engine/format/export.h"
#include "engine/format/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

enum { SHOWN = 1 << 16 };

static void use(const struct sl_safetensors *st, bool model, size_t size)
{
    static float numbers[SHOWN];

    for (int i = 0; i < sl_safetensors_count(st); i++) {
        const struct sl_st_tensor *t = sl_safetensors_at(st, i);
        int64_t n = sl_st_elements(t);
        fuzz_check(t->n_dims >= !model && t->n_dims <= SL_ST_MAX_DIMS && n >= 0 && n <= SL_ST_MAX_ELEMENTS);
        fuzz_check(sl_safetensors_find(st, t->name) == i);
        if (!strcmp(t->type, "F32")) {
            fuzz_check((uint64_t)n * 4 <= size);
            if (n <= SHOWN) {
                sl_safetensors_read(st, i, numbers);
                fuzz_check(!memcmp(numbers, sl_safetensors_bytes(st, i), (size_t)n * 4));
            }
        }
        fuzz_check(model || !strcmp(t->type, "F32"));
    }
    fuzz_check(json_is_object(sl_safetensors_metadata(st)));
    sl_safetensors_verify(st, NULL);
}

/* A seal that is right again after mutation. */
static void reseal(uint8_t *data, size_t size)
{
    static const char key[] = "\"seal\":\"";
    uint8_t *at = memmem(data, size, key, sizeof key - 1);
    char hex[SL_SHA256_HEX + 1];

    if (!at || (size_t)(data + size - at) < sizeof key - 1 + SL_SHA256_HEX)
        return;
    at += sizeof key - 1;
    memset(at, '0', SL_SHA256_HEX);
    fuzz_check(sl_sha256_data(data, size, hex, NULL) == 0);
    memcpy(at, hex, SL_SHA256_HEX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *sealed = (uint8_t *)fuzz_text(data, size);
    struct sl_tables tables;

    for (int model = 0; model < 2; model++) {
        struct sl_err err = SL_ERR_INIT;
        struct sl_safetensors *st = NULL;
        const char *path = fuzz_file(data, size);
        int rc = model ? sl_safetensors_open_model(path, &st, &err) : sl_safetensors_open(path, &st, &err);
        if (rc == 0)
            use(st, model, size);
        else
            fuzz_check_error(rc, err);
        sl_safetensors_close(st);
    }
    reseal(sealed, size);
    if (sl_tables_read(fuzz_file(sealed, size), &tables, NULL) == 0)
        sl_tables_release(&tables);
    free(sealed);
    return 0;
}
