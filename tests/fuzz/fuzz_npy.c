/* TensorRT-LLM's prompt tables, .npy: the input is what follows the magic bytes. */
#include "engine/format/table_forms.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

static const char magic[] = "\x93NUMPY";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *npy = malloc(size + sizeof magic - 1);
    struct sl_err err = SL_ERR_INIT;
    struct sl_tables tables = {0};

    fuzz_check(npy);
    memcpy(npy, magic, sizeof magic - 1);
    if (size)
        memcpy(npy + sizeof magic - 1, data, size);
    int rc = sl_tables_import(fuzz_file(npy, size + sizeof magic - 1), NULL, 0, &tables, &err);
    if (rc == 0) {
        size_t bytes = 0;
        fuzz_check(tables.n > 0);
        for (int i = 0; i < tables.n; i++) {
            const struct sl_table *t = &tables.table[i];
            bytes += (size_t)t->virtual_tokens * (size_t)t->hidden * sizeof *t->rows;
            fuzz_check(t->task && t->rows && t->virtual_tokens > 0);
        }
        fuzz_check(bytes <= size);
        sl_tables_release(&tables);
    } else {
        fuzz_check_error(rc, err);
    }
    free(npy);
    return 0;
}
