/* What a pickle of torch.save may import and call. */
#include "engine/format/pickle_reader.h"
#include <string.h>

#define IMPORT_MAX 256 /* bytes of a line that names an import */
#define SHOWN 64       /* bytes of it in messages */

enum import { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, TORCH_SIZE, STORAGE };

static const struct sl_storage_info storages[SL_N_STORAGES] = {
    {"FloatStorage", 4}, {"HalfStorage", 2}, {"BFloat16Storage", 2}, {"DoubleStorage", 8},
    {"LongStorage", 8},  {"IntStorage", 4},  {"ShortStorage", 2},    {"CharStorage", 1},
    {"ByteStorage", 1},  {"BoolStorage", 1},
};

const struct sl_storage_info *sl_storage_info(enum sl_storage_type t)
{
    return &storages[t];
}

static const char *shown(const void *text, size_t len, char ret_text[SHOWN])
{
    size_t n = len < SHOWN ? len : SHOWN - 1;

    for (size_t i = 0; i < n; i++) {
        char c = ((const char *)text)[i];

        ret_text[i] = c >= 32 && c < 127 ? c : '?';
    }
    ret_text[n] = '\0';
    return ret_text;
}

static bool same(const void *text, size_t len, const char *word)
{
    return len == strlen(word) && !memcmp(text, word, len);
}

static int push_import(struct sl_pickle_reader *r, const void *module, size_t module_len,
                       const void *name, size_t name_len)
{
    static const struct {
        const char *module, *name;
        enum import import;
    } known[] = {{"collections", "OrderedDict", ORDERED_DICT},
                 {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR},
                 {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER},
                 {"torch", "Size", TORCH_SIZE}};
    char shown_module[SHOWN], shown_name[SHOWN];
    struct sl_pickle *v = NULL;
    int import = -1, rc;

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (same(module, module_len, known[i].module) && same(name, name_len, known[i].name))
            import = (int)known[i].import;
    for (int i = 0; import < 0 && i < SL_N_STORAGES && same(module, module_len, "torch"); i++)
        if (same(name, name_len, storages[i].name))
            import = (int)STORAGE + i;
    if (import < 0)
        return sl_err_set(r->err, SL_SPEC,
                          "the pickle imports '%s.%s', which is refused: only tensors, numbers, "
                          "strings, lists and dicts are read, and nothing is run",
                          shown(module, module_len, shown_module),
                          shown(name, name_len, shown_name));
    rc = sl_pickle_make(r, SL_PK_IMPORT, &v);
    if (rc)
        return rc;
    v->u.import = import;
    return sl_pickle_push(r, v);
}

/* GLOBAL: two lines. */
int sl_pickle_global(struct sl_pickle_reader *r)
{
    const unsigned char *line[2];
    size_t n[2];

    for (int i = 0; i < 2; i++) {
        size_t most = r->len - r->at < IMPORT_MAX ? r->len - r->at : IMPORT_MAX;
        const unsigned char *end = memchr(r->text + r->at, '\n', most);

        if (!end)
            return sl_pickle_bad(r, "an import's name does not end within %d bytes", IMPORT_MAX);
        line[i] = r->text + r->at;
        n[i] = (size_t)(end - line[i]);
        r->at += n[i] + 1;
    }
    return push_import(r, line[0], n[0], line[1], n[1]);
}

int sl_pickle_stack_global(struct sl_pickle_reader *r)
{
    const struct sl_pickle *module, *name;
    int rc = sl_pickle_need(r, 2);

    if (rc)
        return rc;
    name = r->stack[--r->n_stack];
    module = r->stack[--r->n_stack];
    if (module->type != SL_PK_STRING || name->type != SL_PK_STRING)
        return sl_pickle_bad(r, "an import's name is no string");
    return push_import(r, module->u.text, module->n, name->u.text, name->n);
}

/* A tuple or list of numbers >= 0. */
static int numbers(struct sl_pickle_reader *r, const struct sl_pickle *v, int64_t *out, int *ret_n)
{
    if ((v->type != SL_PK_TUPLE && v->type != SL_PK_LIST) || v->n > SL_PICKLE_MAX_DIMS)
        return sl_pickle_bad(r, "a tensor's shape is no tuple of at most %d", SL_PICKLE_MAX_DIMS);
    for (uint32_t i = 0; i < v->n; i++) {
        const struct sl_pickle *item = v->u.item[i];

        if (item->type != SL_PK_INT || item->u.integer < 0)
            return sl_pickle_bad(r, "a tensor's shape holds what is no size");
        out[i] = item->u.integer;
    }
    *ret_n = (int)v->n;
    return 0;
}

/* Every product is checked before it is taken. */
static int check_extent(struct sl_pickle_reader *r, const struct sl_pickle_tensor *t)
{
    int64_t have = t->storage->u.storage.elements, count = 1, last = t->offset;
    bool empty = false;

    for (int i = 0; i < t->n_dims; i++)
        empty |= t->dim[i] == 0;
    for (int i = 0; i < t->n_dims && !empty; i++) {
        int64_t steps = t->dim[i] - 1;

        if (t->dim[i] > SL_PICKLE_MAX_ELEMENTS / count)
            return sl_pickle_bad(r, "a tensor of more than %lld elements",
                                 (long long)SL_PICKLE_MAX_ELEMENTS);
        count *= t->dim[i];
        if (steps && t->stride[i] > (INT64_MAX - last) / steps)
            return sl_pickle_bad(r, "a tensor reaches beyond its storage");
        last += steps * t->stride[i];
    }
    if (empty ? t->offset > have : last >= have)
        return sl_pickle_bad(r, "a tensor reaches beyond its storage (element %lld of %lld)",
                             (long long)last, (long long)have);
    return 0;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static int rebuild_tensor(struct sl_pickle_reader *r, const struct sl_pickle *args,
                          struct sl_pickle **ret_v)
{
    struct sl_pickle_tensor *t;
    int n_strides = 0, rc;
    void *p = NULL;

    if (args->n < 4 || args->u.item[0]->type != SL_PK_STORAGE ||
        args->u.item[1]->type != SL_PK_INT || args->u.item[1]->u.integer < 0)
        return sl_pickle_bad(r, "a tensor is not made of a storage, an offset, a size and strides");
    rc = sl_pickle_arena(r, sizeof *t, &p);
    if (rc)
        return rc;
    t = memset(p, 0, sizeof *t);
    t->storage = args->u.item[0];
    t->offset = args->u.item[1]->u.integer;
    rc = numbers(r, args->u.item[2], t->dim, &t->n_dims);
    if (!rc)
        rc = numbers(r, args->u.item[3], t->stride, &n_strides);
    if (!rc && n_strides != t->n_dims)
        rc = sl_pickle_bad(r, "a tensor has %d sizes and %d strides", t->n_dims, n_strides);
    if (!rc)
        rc = check_extent(r, t);
    if (!rc)
        rc = sl_pickle_make(r, SL_PK_TENSOR, ret_v);
    if (!rc)
        (*ret_v)->u.tensor = t;
    return rc;
}

/* OrderedDict() or OrderedDict([(key, value), ...]) */
static int ordered_dict(struct sl_pickle_reader *r, const struct sl_pickle *args,
                        struct sl_pickle **ret_v)
{
    const struct sl_pickle *list = args->n ? args->u.item[0] : NULL;
    int rc = sl_pickle_make(r, SL_PK_DICT, ret_v);

    if (!rc && (args->n > 1 || (list && list->type != SL_PK_LIST)))
        rc = sl_pickle_bad(r, "an OrderedDict is made of something else than a list of pairs");
    for (uint32_t i = 0; list && !rc && i < list->n; i++) {
        const struct sl_pickle *pair = list->u.item[i];

        if ((pair->type != SL_PK_TUPLE && pair->type != SL_PK_LIST) || pair->n != 2)
            return sl_pickle_bad(r,
                                 "an OrderedDict is made of something else than a list of pairs");
        rc = sl_pickle_add_items(r, *ret_v, pair->u.item, 2);
    }
    return rc;
}

int sl_pickle_reduce(struct sl_pickle_reader *r)
{
    struct sl_pickle *args, *callee, *v = NULL;
    int rc = sl_pickle_need(r, 2);

    if (rc)
        return rc;
    args = r->stack[--r->n_stack];
    callee = r->stack[--r->n_stack];
    if (callee->type != SL_PK_IMPORT || args->type != SL_PK_TUPLE ||
        callee->u.import >= (int)STORAGE)
        return sl_pickle_bad(r, "it calls what is no function");
    if (callee->u.import == (int)ORDERED_DICT)
        rc = ordered_dict(r, args, &v);
    else if (callee->u.import == (int)REBUILD_TENSOR)
        rc = rebuild_tensor(r, args, &v);
    else if (!args->n)
        rc = sl_pickle_bad(r, "it calls a function without its arguments");
    else
        v = args->u.item[0]; /* a parameter is its tensor, a torch.Size its tuple */
    return rc ? rc : sl_pickle_push(r, v);
}

/* ('storage', type, key, location, elements): torch's persistent ids. */
int sl_pickle_storage(struct sl_pickle_reader *r)
{
    struct sl_pickle *id, *v, *const *item;
    int rc = sl_pickle_need(r, 1);

    if (rc)
        return rc;
    id = r->stack[--r->n_stack];
    item = id->u.item;
    if (id->type != SL_PK_TUPLE || id->n < 5 || item[0]->type != SL_PK_STRING ||
        !same(item[0]->u.text, item[0]->n, "storage") || item[1]->type != SL_PK_IMPORT ||
        item[1]->u.import < (int)STORAGE || item[2]->type != SL_PK_STRING || !item[2]->n ||
        item[4]->type != SL_PK_INT || item[4]->u.integer < 0 ||
        item[4]->u.integer > SL_PICKLE_MAX_ELEMENTS)
        return sl_pickle_bad(r, "a persistent id that is no torch storage");
    rc = sl_pickle_make(r, SL_PK_STORAGE, &v);
    if (rc)
        return rc;
    v->u.storage.type = (enum sl_storage_type)(item[1]->u.import - (int)STORAGE);
    v->u.storage.key = item[2]->u.text;
    v->u.storage.key_len = item[2]->n;
    v->u.storage.elements = item[4]->u.integer;
    return sl_pickle_push(r, v);
}
