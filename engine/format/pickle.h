/* A reader of Python pickles that runs nothing: data in, a tree of plain values out.
 *
 * Source: CPython's pickletools.py, the binary opcodes of protocols 2 to 5, and what torch.save
 * puts into a checkpoint's data.pkl. Known are None, booleans, numbers, strings, bytes, lists,
 * tuples, dicts, and of what a pickle may import only: collections.OrderedDict, torch's storage
 * types, torch._utils._rebuild_tensor_v2 and _rebuild_parameter, torch.Size. Any other import is
 * refused by its name (SL_SPEC), also when nothing would come of it.
 *
 * All values lie in one arena and point into the text, which must outlive them. A list or dict may
 * hold itself (pickles can say so): whoever walks the tree bounds depth and steps. Dicts keep the
 * order of their text; a key that comes twice stands twice. Nothing here blocks. */
#ifndef SL_ENGINE_PICKLE_H
#define SL_ENGINE_PICKLE_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>

#define SL_PICKLE_MAX_BYTES (8u << 20) /* of text */
#define SL_PICKLE_MAX_VALUES 200000    /* made, and on the stack at a time */
#define SL_PICKLE_MAX_MARKS 1024 /* open lists, dicts and tuples: about the depth of nesting */
#define SL_PICKLE_MAX_MEMO (1u << 18)
#define SL_PICKLE_MAX_DIMS 8
#define SL_PICKLE_MAX_ELEMENTS (INT64_C(1) << 40) /* of one tensor */

enum sl_pickle_type {
    SL_PK_NONE,
    SL_PK_BOOL,
    SL_PK_INT,
    SL_PK_FLOAT,
    SL_PK_STRING,
    SL_PK_BYTES,
    SL_PK_LIST,
    SL_PK_TUPLE,
    SL_PK_DICT, /* an OrderedDict too */
    SL_PK_STORAGE,
    SL_PK_TENSOR,
    SL_PK_IMPORT /* one of the known names, not yet called */
};

enum sl_storage_type {
    SL_STORAGE_F32,
    SL_STORAGE_F16,
    SL_STORAGE_BF16,
    SL_STORAGE_F64,
    SL_STORAGE_I64,
    SL_STORAGE_I32,
    SL_STORAGE_I16,
    SL_STORAGE_I8,
    SL_STORAGE_U8,
    SL_STORAGE_BOOL,
    SL_N_STORAGES
};
struct sl_storage_info {
    const char *name; /* torch's class, "FloatStorage" */
    int bytes;        /* of an element */
};
const struct sl_storage_info *sl_storage_info(enum sl_storage_type t);

/* A tensor's view of its storage, in elements. Everything is >= 0, the product of dim at most
 * SL_PICKLE_MAX_ELEMENTS, and the last element it names lies below the storage's elements. */
struct sl_pickle_tensor {
    const struct sl_pickle *storage;
    int64_t offset;
    int n_dims;
    int64_t dim[SL_PICKLE_MAX_DIMS], stride[SL_PICKLE_MAX_DIMS];
};

struct sl_pickle {
    enum sl_pickle_type type;
    uint32_t n;   /* bytes of a string; items of a list, tuple or dict */
    uint32_t cap; /* internal, as is u.import */
    union {
        int64_t integer; /* of a boolean too */
        double real;
        const char *text;        /* not NUL-terminated */
        struct sl_pickle **item; /* a dict's: key, value, key, value; n is even */
        struct {
            enum sl_storage_type type;
            uint32_t key_len;
            const char *key; /* the archive's entry data/KEY */
            int64_t elements;
        } storage;
        struct sl_pickle_tensor *tensor;
        int import;
    } u;
};

struct sl_pickle_doc;

/* SL_DATA for what is no pickle or over a limit, SL_SPEC for an import or an opcode that is not
 * supported, SL_NOMEM. Messages name the place in the text, not the file. */
int sl_pickle_read(const void *text, size_t len, struct sl_pickle_doc **ret_doc,
                   struct sl_err *err);
void sl_pickle_free(struct sl_pickle_doc *doc);                          /* NULL-safe */
const struct sl_pickle *sl_pickle_root(const struct sl_pickle_doc *doc); /* valid until free */

#endif
