/* The pickle reader: what it makes is walked as its readers walk it. */
#include "engine/format/pickle.h"
#include "tests/fuzz/fuzz.h"

enum { DEPTH_MAX = 32, STEPS_MAX = 100000 };

/* Bounded, since a list may hold itself. */
static void walk(const struct sl_pickle *v, int depth, int *steps, const uint8_t *data, size_t size)
{
    if (depth > DEPTH_MAX || ++*steps > STEPS_MAX)
        return;
    switch (v->type) {
    case SL_PK_STRING:
    case SL_PK_BYTES:
        fuzz_check(v->n == 0 || ((const uint8_t *)v->u.text >= data && (const uint8_t *)v->u.text + v->n <= data + size));
        break;
    case SL_PK_DICT:
        fuzz_check(v->n % 2 == 0);
        /* fall through */
    case SL_PK_LIST:
    case SL_PK_TUPLE:
        for (uint32_t i = 0; i < v->n; i++)
            walk(v->u.item[i], depth + 1, steps, data, size);
        break;
    case SL_PK_TENSOR: {
        const struct sl_pickle_tensor *t = v->u.tensor;
        int64_t last = t->offset, elements = 1;
        fuzz_check(t->storage->type == SL_PK_STORAGE && t->n_dims >= 0 && t->n_dims <= SL_PICKLE_MAX_DIMS);
        for (int i = 0; i < t->n_dims; i++) {
            fuzz_check(t->dim[i] >= 0 && t->stride[i] >= 0);
            elements *= t->dim[i];
        }
        fuzz_check(t->offset >= 0 && elements <= SL_PICKLE_MAX_ELEMENTS);
        for (int i = 0; i < t->n_dims && elements > 0; i++)
            last += (t->dim[i] - 1) * t->stride[i];
        fuzz_check(elements == 0 || last < t->storage->u.storage.elements);
        break;
    }
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_pickle_doc *doc = NULL;
    int steps = 0, rc = sl_pickle_read(data, size, &doc, &err);

    if (rc < 0) {
        fuzz_check_error(rc, err);
        return 0;
    }
    walk(sl_pickle_root(doc), 0, &steps, data, size);
    sl_pickle_free(doc);
    return 0;
}
