/* .nemo archives as base models; headers' checksums are put right in plain ones. */
#include "engine/format/tar.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = (uint8_t *)fuzz_text(data, size);
    struct sl_err err = SL_ERR_INIT;
    struct sl_tar tar;

    if (size > 2 && bytes[0] != 0x1f) /* gzip */
        fuzz_fix_tar(bytes, size);
    const char *path = fuzz_file(bytes, size);
    int rc = sl_tar_open(path, &tar, &err);
    if (rc == 0) {
        for (int i = 0; i < tar.n; i++)
            fuzz_check(sl_tar_find(&tar, tar.member[i].name) == &tar.member[i] &&
                       tar.member[i].data >= tar.map.data &&
                       tar.member[i].data + tar.member[i].len <= tar.map.data + tar.map.len);
        sl_tar_close(&tar);
    } else {
        fuzz_check_error(rc, err);
    }
    fuzz_use_model(path);
    free(bytes);
    return 0;
}
