#include "engine/format/gguf.h"
#include "engine/format/weights_format.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Smallest that a key and a tensor can be, for judging counts before memory is taken. */
#define KEY_BYTES_MIN (8 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 4 + 8 + 4 + 8)

static const unsigned char type_bytes[SL_GGUF_N_TYPES] = {
    [SL_GGUF_U8] = 1,  [SL_GGUF_I8] = 1,  [SL_GGUF_U16] = 2, [SL_GGUF_I16] = 2,
    [SL_GGUF_U32] = 4, [SL_GGUF_I32] = 4, [SL_GGUF_F32] = 4, [SL_GGUF_BOOL] = 1,
    [SL_GGUF_U64] = 8, [SL_GGUF_I64] = 8, [SL_GGUF_F64] = 8,
};

/* ggml's numbers for tensor types; those that we cannot read have a name only. */
static const struct tensor_type {
    const char *name;
    int dtype; /* -1: not supported */
} tensor_types[] = {
    [0] = {"F32", SL_DT_F32},    [1] = {"F16", SL_DT_F16},    [2] = {"Q4_0", SL_DT_Q4_0},
    [3] = {"Q4_1", SL_DT_Q4_1},  [6] = {"Q5_0", SL_DT_Q5_0},  [7] = {"Q5_1", SL_DT_Q5_1},
    [8] = {"Q8_0", SL_DT_Q8_0},  [9] = {"Q8_1", -1},          [10] = {"Q2_K", -1},
    [11] = {"Q3_K", -1},         [12] = {"Q4_K", SL_DT_Q4_K}, [13] = {"Q5_K", SL_DT_Q5_K},
    [14] = {"Q6_K", SL_DT_Q6_K}, [15] = {"Q8_K", -1},         [16] = {"IQ2_XXS", -1},
    [17] = {"IQ2_XS", -1},       [18] = {"IQ3_XXS", -1},      [19] = {"IQ1_S", -1},
    [20] = {"IQ4_NL", -1},       [21] = {"IQ3_S", -1},        [22] = {"IQ2_S", -1},
    [23] = {"IQ4_XS", -1},       [24] = {"I8", -1},           [25] = {"I16", -1},
    [26] = {"I32", -1},          [27] = {"I64", -1},          [28] = {"F64", -1},
    [29] = {"IQ1_M", -1},        [30] = {"BF16", SL_DT_BF16}, [34] = {"TQ1_0", -1},
    [35] = {"TQ2_0", -1},        [39] = {"MXFP4", -1},
};
#define N_TENSOR_TYPES (sizeof tensor_types / sizeof tensor_types[0])

struct cursor {
    const unsigned char *p;
    size_t len, at;
    struct sl_err *err;
};

static int bad(struct cursor *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int bad(struct cursor *c, const char *fmt, ...)
{
    char msg[SL_ERR_MSG_MAX / 2];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return sl_err_set(c->err, SL_DATA, "%s (at byte %zu)", msg, c->at);
}

/* Where the next n bytes are; NULL when the file ends before. */
static const unsigned char *take(struct cursor *c, uint64_t n, const char *what)
{
    if (n > c->len - c->at) {
        sl_err_set(
            c->err, SL_DATA,
            "truncated: %s at byte %zu takes %llu bytes, expected at least %llu bytes, found %zu",
            what, c->at, (unsigned long long)n,
            (unsigned long long)(n > UINT64_MAX - c->at ? UINT64_MAX : c->at + n), c->len);
        return NULL;
    }
    const unsigned char *p = c->p + c->at;
    c->at += (size_t)n;
    return p;
}

static uint32_t load_u32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t load_u64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static int get_u32(struct cursor *c, const char *what, uint32_t *ret)
{
    const unsigned char *p = take(c, 4, what);
    if (!p)
        return SL_DATA;
    *ret = load_u32(p);
    return 0;
}

static int get_u64(struct cursor *c, const char *what, uint64_t *ret)
{
    const unsigned char *p = take(c, 8, what);
    if (!p)
        return SL_DATA;
    *ret = load_u64(p);
    return 0;
}

static int get_str(struct cursor *c, const char *what, uint64_t max, struct sl_gguf_str *ret)
{
    uint64_t len;
    if (get_u64(c, what, &len) < 0)
        return SL_DATA;
    if (len > max)
        return bad(c, "%s has %llu bytes; at most %llu are allowed", what, (unsigned long long)len,
                   (unsigned long long)max);
    const unsigned char *p = take(c, len, what);
    if (!p)
        return SL_DATA;
    *ret = (struct sl_gguf_str){(const char *)p, (size_t)len};
    return 0;
}

struct sl_gguf_str sl_gguf_next_str(const unsigned char **p)
{
    struct sl_gguf_str s = {(const char *)*p + 8, (size_t)load_u64(*p)};
    *p += 8 + s.len;
    return s;
}

static bool same(struct sl_gguf_str a, struct sl_gguf_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.p, b.p, a.len) == 0);
}

static bool is(struct sl_gguf_str s, const char *name)
{
    return same(s, (struct sl_gguf_str){name, strlen(name)});
}

static int parse_value(struct cursor *c, struct sl_gguf_key *key, const char *shown)
{
    uint32_t type;
    if (get_u32(c, "a key's type", &type) < 0)
        return SL_DATA;
    if (type >= SL_GGUF_N_TYPES)
        return bad(c, "key '%s' has the unknown type %u", shown, type);
    key->type = key->element = (enum sl_gguf_type)type;
    key->count = 1;
    if (key->type == SL_GGUF_ARRAY) {
        if (get_u32(c, "an array's type", &type) < 0 ||
            get_u64(c, "an array's length", &key->count) < 0)
            return SL_DATA;
        if (type >= SL_GGUF_N_TYPES || type == SL_GGUF_ARRAY)
            return bad(c, "key '%s' is an array of type %u, which is not supported", shown, type);
        if (key->count > SL_GGUF_ARRAY_MAX)
            return bad(c, "key '%s' is an array of %llu elements; at most %u are allowed", shown,
                       (unsigned long long)key->count, SL_GGUF_ARRAY_MAX);
        key->element = (enum sl_gguf_type)type;
    }
    key->value = c->p + c->at;
    if (key->element != SL_GGUF_STRING)
        return take(c, key->count * type_bytes[key->element], "a key's value") ? 0 : SL_DATA;
    for (uint64_t i = 0; i < key->count; i++) {
        struct sl_gguf_str s;
        if (get_str(c, "a key's string", SL_GGUF_STRING_MAX, &s) < 0)
            return SL_DATA;
    }
    return 0;
}

static int parse_keys(struct cursor *c, struct sl_gguf *g, uint64_t n)
{
    if (n > SL_GGUF_MAX_KEYS)
        return bad(c, "%llu keys; at most %d are allowed", (unsigned long long)n, SL_GGUF_MAX_KEYS);
    if (n * KEY_BYTES_MIN > c->len - c->at)
        return bad(c, "truncated: no room for %llu keys in a file of %zu bytes",
                   (unsigned long long)n, c->len);
    g->keys = calloc(n + 1, sizeof *g->keys);
    if (!g->keys)
        return sl_err_set(c->err, SL_NOMEM, "out of memory for %llu keys", (unsigned long long)n);
    for (; (uint64_t)g->n_keys < n; g->n_keys++) {
        struct sl_gguf_key *key = &g->keys[g->n_keys];
        char shown[SL_SHOWN_MAX];
        if (get_str(c, "a key", SL_GGUF_NAME_MAX, &key->name) < 0)
            return SL_DATA;
        sl_shown(key->name.p, key->name.len, shown);
        for (int i = 0; i < g->n_keys; i++)
            if (same(g->keys[i].name, key->name))
                return bad(c, "key '%s' comes twice", shown);
        if (parse_value(c, key, shown) < 0)
            return SL_DATA;
    }
    return 0;
}

static int get_dtype(struct cursor *c, const char *shown, enum sl_dtype *ret)
{
    uint32_t type;
    if (get_u32(c, "a tensor's type", &type) < 0)
        return SL_DATA;
    if (type >= N_TENSOR_TYPES || !tensor_types[type].name)
        return bad(c, "tensor '%s' has the unknown type %u", shown, type);
    if (tensor_types[type].dtype < 0)
        return sl_err_set(c->err, SL_SPEC,
                          "tensor '%s' has type %s, which is not supported (supported: F32, F16, "
                          "BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K)",
                          shown, tensor_types[type].name);
    *ret = (enum sl_dtype)tensor_types[type].dtype;
    return 0;
}

/* Reads a tensor's entry; data still counts from the start of the data. */
static int parse_tensor(struct cursor *c, struct sl_gguf_tensor *t, uint64_t *ret_offset,
                        uint64_t *ret_bytes)
{
    char shown[SL_SHOWN_MAX];
    uint32_t n_dims;
    uint64_t elements = 1;
    if (get_str(c, "a tensor's name", SL_GGUF_NAME_MAX, &t->name) < 0 ||
        get_u32(c, "a tensor's dimensions", &n_dims) < 0)
        return SL_DATA;
    sl_shown(t->name.p, t->name.len, shown);
    if (n_dims < 1 || n_dims > SL_GGUF_MAX_DIMS)
        return bad(c, "tensor '%s' has %u dimensions; 1 to %d are allowed", shown, n_dims,
                   SL_GGUF_MAX_DIMS);
    t->n_dims = (int)n_dims;
    for (int i = 0; i < SL_GGUF_MAX_DIMS; i++) {
        uint64_t dim = 1;
        if (i < t->n_dims && get_u64(c, "a tensor's dimensions", &dim) < 0)
            return SL_DATA;
        if (dim < 1 || dim > (uint64_t)SL_GGUF_MAX_DIM ||
            elements > (uint64_t)SL_GGUF_MAX_DIM / dim)
            return bad(c, "tensor '%s' has an impossible dimension %llu", shown,
                       (unsigned long long)dim);
        t->dim[i] = (int64_t)dim;
        elements *= dim;
    }
    int rc = get_dtype(c, shown, &t->dtype);
    if (rc < 0)
        return rc;
    if (get_u64(c, "a tensor's offset", ret_offset) < 0)
        return SL_DATA;
    const struct sl_dtype_info *info = sl_dtype_info(t->dtype);
    if (t->dim[0] % info->block)
        return bad(c, "tensor '%s' has rows of %lld elements, not a multiple of %s's %d", shown,
                   (long long)t->dim[0], info->name, info->block);
    *ret_bytes = elements / (uint64_t)info->block * (uint64_t)info->block_bytes;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct sl_gguf_tensor *x = a, *y = b;
    size_t n = x->name.len < y->name.len ? x->name.len : y->name.len;
    int c = memcmp(x->name.p, y->name.p, n);
    return c ? c : (x->name.len > y->name.len) - (x->name.len < y->name.len);
}

static int get_alignment(struct cursor *c, const struct sl_gguf *g, uint64_t *ret)
{
    int64_t alignment = 32;
    if (sl_gguf_int(g, "general.alignment", &alignment, c->err) < 0)
        return SL_DATA;
    if (alignment < 1 || alignment > SL_GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return bad(c, "general.alignment is %lld; a power of two up to %u is expected",
                   (long long)alignment, SL_GGUF_ALIGNMENT_MAX);
    *ret = (uint64_t)alignment;
    return 0;
}

static int parse_tensors(struct cursor *c, struct sl_gguf *g, uint64_t n)
{
    uint64_t alignment = 32, furthest = 0;
    uint64_t *offset, *bytes;
    int rc = get_alignment(c, g, &alignment);
    if (rc < 0)
        return rc;
    if (n > SL_MAX_TENSORS)
        return bad(c, "%llu tensors; at most %d are allowed", (unsigned long long)n,
                   SL_MAX_TENSORS);
    if (n * TENSOR_BYTES_MIN > c->len - c->at)
        return bad(c, "truncated: no room for %llu tensors in a file of %zu bytes",
                   (unsigned long long)n, c->len);
    g->tensors = calloc(n + 1, sizeof *g->tensors);
    offset = calloc(2 * n + 1, sizeof *offset);
    if (!g->tensors || !offset) {
        free(offset);
        return sl_err_set(c->err, SL_NOMEM, "out of memory for %llu tensors",
                          (unsigned long long)n);
    }
    bytes = offset + n;
    for (uint64_t i = 0; rc == 0 && i < n; i++)
        rc = parse_tensor(c, &g->tensors[i], &offset[i], &bytes[i]);
    size_t data = c->at + (size_t)(-c->at & (alignment - 1));
    for (uint64_t i = 0; rc == 0 && i < n; i++) {
        char shown[SL_SHOWN_MAX];
        sl_shown(g->tensors[i].name.p, g->tensors[i].name.len, shown);
        if (offset[i] % alignment)
            rc = bad(c, "tensor '%s' has offset %llu, not a multiple of %llu", shown,
                     (unsigned long long)offset[i], (unsigned long long)alignment);
        else if (offset[i] > (uint64_t)INT64_MAX / 2)
            rc = bad(c, "tensor '%s' has the impossible offset %llu", shown,
                     (unsigned long long)offset[i]);
        else if (offset[i] + bytes[i] > furthest)
            furthest = offset[i] + bytes[i];
    }
    if (rc == 0 && n > 0 && (data > c->len || furthest > c->len - data))
        rc = sl_err_set(c->err, SL_DATA,
                        "truncated: its tensors end at byte %llu, the file at byte %zu (expected "
                        "%llu bytes, found %zu); copy it again",
                        (unsigned long long)(data + furthest), c->len,
                        (unsigned long long)(data + furthest), c->len);
    for (uint64_t i = 0; rc == 0 && i < n; i++)
        g->tensors[i].data = c->p + data + offset[i];
    free(offset);
    if (rc < 0)
        return rc;
    g->n_tensors = (int)n;
    qsort(g->tensors, n, sizeof *g->tensors, by_name);
    for (int i = 1; i < g->n_tensors; i++) {
        char shown[SL_SHOWN_MAX];
        if (same(g->tensors[i - 1].name, g->tensors[i].name))
            return bad(c, "tensor '%s' comes twice",
                       sl_shown(g->tensors[i].name.p, g->tensors[i].name.len, shown));
    }
    return 0;
}

static int parse(struct cursor *c, struct sl_gguf *g)
{
    uint32_t version;
    uint64_t n_tensors, n_keys;
    const unsigned char *magic = take(c, 4, "the magic number");
    if (!magic)
        return SL_DATA;
    if (memcmp(magic, "GGUF", 4) != 0)
        return sl_err_set(c->err, SL_DATA, "not a GGUF file");
    if (get_u32(c, "the version", &version) < 0)
        return SL_DATA;
    if (version >= 1u << 24)
        return sl_err_set(c->err, SL_SPEC,
                          "a big-endian GGUF file, which is not supported (supported: "
                          "little-endian)");
    if (version != 2 && version != 3)
        return sl_err_set(c->err, SL_SPEC, "GGUF version %u is not supported (supported: 2 and 3)",
                          version);
    g->version = (int)version;
    if (get_u64(c, "the number of tensors", &n_tensors) < 0 ||
        get_u64(c, "the number of keys", &n_keys) < 0)
        return SL_DATA;
    int rc = parse_keys(c, g, n_keys);
    return rc < 0 ? rc : parse_tensors(c, g, n_tensors);
}

int sl_gguf_open(const char *path, struct sl_gguf **ret_gguf, struct sl_err *err)
{
    struct sl_gguf *g = calloc(1, sizeof *g);
    if (!g)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    int rc = sl_map_open(path, &g->map, err);
    if (rc == 0) {
        struct cursor c = {g->map.data, g->map.len, 0, err};
        rc = parse(&c, g);
    }
    if (rc < 0) {
        sl_gguf_close(g);
        return rc;
    }
    *ret_gguf = g;
    return 0;
}

void sl_gguf_close(struct sl_gguf *g)
{
    if (!g)
        return;
    free(g->keys);
    free(g->tensors);
    sl_map_close(&g->map);
    free(g);
}

const struct sl_gguf_key *sl_gguf_find(const struct sl_gguf *g, const char *name)
{
    for (int i = 0; i < g->n_keys; i++)
        if (is(g->keys[i].name, name))
            return &g->keys[i];
    return NULL;
}

const struct sl_gguf_tensor *sl_gguf_tensor(const struct sl_gguf *g, const char *name)
{
    struct sl_gguf_tensor want = {.name = {name, strlen(name)}};
    if (g->n_tensors == 0)
        return NULL;
    return bsearch(&want, g->tensors, (size_t)g->n_tensors, sizeof want, by_name);
}

int sl_gguf_int(const struct sl_gguf *g, const char *name, int64_t *ret_value, struct sl_err *err)
{
    const struct sl_gguf_key *key = sl_gguf_find(g, name);
    uint64_t v = 0;
    if (!key)
        return 1;
    if (key->type == SL_GGUF_ARRAY || key->type == SL_GGUF_STRING || key->type == SL_GGUF_F32 ||
        key->type == SL_GGUF_F64)
        return sl_err_set(err, SL_DATA, "key '%s' is not a whole number", name);
    memcpy(&v, key->value, type_bytes[key->type]);
    if (key->type == SL_GGUF_I8)
        v = (uint64_t)(int8_t)v;
    else if (key->type == SL_GGUF_I16)
        v = (uint64_t)(int16_t)v;
    else if (key->type == SL_GGUF_I32)
        v = (uint64_t)(int32_t)v;
    else if (key->type == SL_GGUF_U64 && v > INT64_MAX)
        return sl_err_set(err, SL_DATA, "key '%s' is out of range", name);
    *ret_value = (int64_t)v;
    return 0;
}

int sl_gguf_num(const struct sl_gguf *g, const char *name, double *ret_value, struct sl_err *err)
{
    const struct sl_gguf_key *key = sl_gguf_find(g, name);
    float f;
    int64_t i;
    double value;
    if (!key)
        return 1;
    if (key->type == SL_GGUF_F32) {
        memcpy(&f, key->value, sizeof f);
        value = (double)f;
    } else if (key->type == SL_GGUF_F64) {
        memcpy(&value, key->value, sizeof value);
    } else {
        int rc = sl_gguf_int(g, name, &i, err);
        if (rc)
            return rc;
        value = (double)i;
    }
    if (!isfinite(value))
        return sl_err_set(err, SL_DATA, "key '%s' is not a finite number", name);
    *ret_value = value;
    return 0;
}

int sl_gguf_text(const struct sl_gguf *g, const char *name, struct sl_gguf_str *ret_value,
                 struct sl_err *err)
{
    const struct sl_gguf_key *key = sl_gguf_find(g, name);
    if (!key)
        return 1;
    if (key->type != SL_GGUF_STRING)
        return sl_err_set(err, SL_DATA, "key '%s' is not a string", name);
    const unsigned char *p = key->value;
    *ret_value = sl_gguf_next_str(&p);
    return 0;
}
