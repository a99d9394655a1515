/* SQuAD's JSON, alone and as train and dev file. The first byte chooses. */
#include "base/file.h"
#include "engine/data/squad.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char out[SL_PATH_MAX];
    int rows[SL_SQUAD_FILES] = {0}, choice = size ? data[0] : 0;
    struct sl_err err = SL_ERR_INIT;

    fuzz_check(sl_path(out, NULL, "%s/out", fuzz_dir()) == 0);
    const char *path = fuzz_file(size ? data + 1 : data, size ? size - 1 : 0);
    struct sl_squad squad = {.train = path, .dev = choice & 1 ? path : NULL, .validation_articles = 1, .test_articles = 1,
                             .out_dir = out, .name = "x", .topic = choice & 2, .subset = choice & 4 ? 2 : 0};
    int rc = sl_squad_write(&squad, rows, &err);
    if (rc == 0)
        fuzz_check(rows[SL_SQUAD_TRAIN] >= 0 && rows[SL_SQUAD_SHORT_TRAIN] <= 2);
    else
        fuzz_check_error(rc, err);
    fuzz_check(sl_rmtree(out, NULL) == 0);
    return 0;
}
