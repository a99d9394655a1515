/* torch.save's zip archives: every tensor found is read whole. */
#include "engine/format/torch_zip.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

enum { ELEMENTS_MAX = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float floats[ELEMENTS_MAX];
    static unsigned char bytes[ELEMENTS_MAX * 8];
    struct sl_err err = SL_ERR_INIT;
    struct sl_torch *t = NULL;
    int rc = sl_torch_open(data, size, &t, &err);

    if (rc < 0) {
        fuzz_check_error(rc, err);
        return 0;
    }
    for (int i = 0; i < sl_torch_count(t); i++) {
        const struct sl_torch_tensor *x = sl_torch_at(t, i);
        int64_t n = sl_torch_elements(x);
        int width = sl_storage_info(x->type)->bytes;

        fuzz_check(sl_torch_find(t, x->name) != NULL && n >= 0);
        if (x->contiguous && n > 0)
            fuzz_check(x->data >= data && x->data + n * width <= data + size);
        if (n > ELEMENTS_MAX)
            continue;
        sl_torch_gather(x, bytes);
        if (x->contiguous && n > 0)
            fuzz_check(!memcmp(bytes, x->data, (size_t)(n * width)));
        sl_torch_floats(x, floats, NULL);
    }
    sl_torch_close(t);
    return 0;
}
