/* Checkpoints of torch.save (PyTorch 1.6 and later): a zip archive of stored entries, NAME/data.pkl
 * with the objects and NAME/data/KEY with the bytes of each storage.
 *
 * Reading: nothing is copied and nothing is run (engine/format/pickle.h); what is found points into the
 * given bytes. Every header, offset and size is checked against them; entries that overlap, are
 * compressed or encrypted, or belong to an archive of several parts are refused, so a small file
 * cannot say it holds much. Writing: the same form, to be read by torch.load with weights_only.
 * Messages do not name the file: the caller does. */
#ifndef SL_ENGINE_TORCH_ZIP_H
#define SL_ENGINE_TORCH_ZIP_H
#include "base/buf.h"
#include "engine/format/pickle.h"
#include <stdbool.h>

#define SL_TORCH_MAX_ENTRIES 65536
#define SL_TORCH_MAX_TENSORS 65536
#define SL_TORCH_MAX_DEPTH 8  /* dicts in dicts */
#define SL_TORCH_NAME_MAX 320 /* bytes of a tensor's name, NUL included */

struct sl_torch_tensor {
    const char *name; /* the keys on the way to it, joined by '.': "model.language_model..." */
    enum sl_storage_type type;
    int n_dims;
    int64_t dim[SL_PICKLE_MAX_DIMS], stride[SL_PICKLE_MAX_DIMS]; /* elements */
    bool contiguous;           /* row-major without gaps: the elements lie one after another */
    const unsigned char *data; /* its first element, at any alignment */
};
int64_t sl_torch_elements(const struct sl_torch_tensor *t);
/* Row-major copy of a tensor of any strides; out holds its elements. */
void sl_torch_gather(const struct sl_torch_tensor *t, unsigned char *out);
/* Elements as fp32, row-major; SL_SPEC for a type that holds no floating point numbers. */
int sl_torch_floats(const struct sl_torch_tensor *t, float *out, struct sl_err *err);

struct sl_torch;
/* Tensors in dicts with string keys, at any depth up to the limit; other values are passed over.
 * data must outlive it. SL_DATA, SL_SPEC (as pickle.h; and archives from before PyTorch 1.6),
 * SL_NOMEM. */
int sl_torch_open(const void *data, size_t len, struct sl_torch **ret_torch, struct sl_err *err);
void sl_torch_close(struct sl_torch *t); /* NULL-safe */
int sl_torch_count(const struct sl_torch *t);
const struct sl_torch_tensor *sl_torch_at(const struct sl_torch *t, int index); /* sorted by name */
const struct sl_torch_tensor *sl_torch_find(const struct sl_torch *t, const char *name);

/* What sl_torch_write puts into a dict: tensors of fp32 or int64, row-major. */
struct sl_torch_item {
    const char *name;          /* UTF-8 */
    enum sl_storage_type type; /* SL_STORAGE_F32 or SL_STORAGE_I64 */
    int n_dims;                /* 1 or 2 */
    int64_t dim[2];
    const void *data;
};
/* Appends to out the archive of {dict_name: OrderedDict(name: tensor, ...)}. SL_NOMEM (out's max
 * too), SL_SPEC for more than SL_TORCH_MAX_ITEMS. */
#define SL_TORCH_MAX_ITEMS 8192
int sl_torch_write(const char *dict_name, const struct sl_torch_item *items, int n,
                   struct sl_buf *out, struct sl_err *err);

#endif
