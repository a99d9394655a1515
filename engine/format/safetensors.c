#include "base/digest.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/format/safetensors_seal.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sl_safetensors {
    char *path;
    struct sl_map map;
    size_t header_len, data_at; /* bytes; data_at: where the tensors begin in the file */
    bool any_type;
    json_t *metadata;
    int n;
    struct sl_st_tensor *tensor; /* in the order of the data, as are: */
    uint64_t *begin;             /* bytes from data_at */
};

static const struct type {
    const char *name;
    int bytes;
} types[] = {{"F32", 4}, {"BF16", 2}, {"F16", 2},     {"F64", 8},     {"I64", 8},
             {"I32", 4}, {"I16", 2},  {"I8", 1},      {"U64", 8},     {"U32", 4},
             {"U16", 2}, {"U8", 1},   {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"BOOL", 1}};

static const struct type *find_type(const char *name)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, name))
            return &types[i];
    return NULL;
}

static uint64_t bytes_of(const struct sl_st_tensor *t)
{
    const struct type *type = t->type ? find_type(t->type) : NULL;

    return (uint64_t)sl_st_elements(t) * (uint64_t)(type ? type->bytes : types[0].bytes);
}

int64_t sl_st_elements(const struct sl_st_tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i < t->n_dims; i++)
        n *= t->dim[i];
    return n;
}

static uint64_t get_length(const unsigned char *p)
{
    uint64_t n = 0;

    for (int i = SL_ST_LENGTH_BYTES - 1; i >= 0; i--)
        n = n << 8 | p[i];
    return n;
}

__attribute__((format(printf, 3, 4))) static int bad(const struct sl_safetensors *st,
                                                     struct sl_err *err, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return sl_err_set(err, SL_DATA, "%s is no safetensors file we can read: %s", st->path, text);
}

static int read_shape(struct sl_safetensors *st, struct sl_st_tensor *t, const json_t *shape,
                      struct sl_err *err)
{
    int64_t n = 1;

    size_t n_dims = json_array_size(shape), least = st->any_type ? 0 : 1;

    if (!json_is_array(shape) || n_dims < least || n_dims > SL_ST_MAX_DIMS)
        return bad(st, err, "tensor %s: its shape is no list of %zu to %d sizes", t->name, least,
                   SL_ST_MAX_DIMS);
    t->n_dims = (int)n_dims;
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *v = json_array_get(shape, (size_t)i);

        t->dim[i] = json_integer_value(v);
        if (!json_is_integer(v) || t->dim[i] < 1 || t->dim[i] > SL_ST_MAX_ELEMENTS / n)
            return bad(st, err, "tensor %s: size of dimension %d is no number in range", t->name,
                       i);
        n *= t->dim[i];
    }
    return 0;
}

static int read_tensor(struct sl_safetensors *st, const char *name, const json_t *v,
                       struct sl_err *err)
{
    struct sl_st_tensor *t = &st->tensor[st->n];
    const json_t *offsets = json_object_get(v, "data_offsets"), *b = json_array_get(offsets, 0),
                 *e = json_array_get(offsets, 1);
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    const struct type *type = dtype ? find_type(dtype) : NULL;
    int64_t end = json_integer_value(e), begin = json_integer_value(b), bytes;
    int rc;

    if (!name[0] || strlen(name) >= sizeof t->name)
        return bad(st, err, "a tensor's name is empty or over %d bytes: %.80s", SL_ST_NAME_MAX - 1,
                   name);
    memcpy(t->name, name, strlen(name) + 1);
    if (!json_is_object(v) || json_object_size(v) != 3 || !dtype)
        return bad(st, err, "tensor %s: not exactly dtype, shape and data_offsets", name);
    if (!st->any_type && strcmp(dtype, "F32") != 0)
        return bad(st, err, "tensor %s has type %.32s; only F32 is read", name, dtype);
    if (!type)
        return bad(st, err, "tensor %s has type %.32s, which is unknown", name, dtype);
    t->type = type->name;
    rc = read_shape(st, t, json_object_get(v, "shape"), err);
    if (rc)
        return rc;
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return bad(st, err, "tensor %s: data_offsets are not two numbers", name);
    if (begin < 0 || end < begin || (uint64_t)end > st->map.len - st->data_at)
        return bad(st, err,
                   "tensor %s lies at bytes %lld to %lld of %zu: the file is truncated or damaged",
                   name, (long long)begin, (long long)end, st->map.len - st->data_at);
    bytes = sl_st_elements(t) * type->bytes;
    if (end - begin != bytes)
        return bad(st, err, "tensor %s: %lld bytes, but its shape needs %lld", name,
                   (long long)(end - begin), (long long)bytes);
    st->begin[st->n++] = (uint64_t)begin;
    return 0;
}

struct place {
    uint64_t begin;
    int index;
};

static int by_begin(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* Puts the tensors in the order of their data, and checks that they cover it. */
static int order(struct sl_safetensors *st, struct sl_err *err)
{
    size_t n = (size_t)st->n;
    struct place *place = calloc(n + 1, sizeof *place);
    struct sl_st_tensor *sorted = calloc(n + 1, sizeof *sorted);
    uint64_t at = 0;
    int rc = 0;

    if (!place || !sorted) {
        free(place);
        free(sorted);
        return sl_err_set(err, SL_NOMEM, "reading %s: out of memory", st->path);
    }
    for (int i = 0; i < st->n; i++)
        place[i] = (struct place){st->begin[i], i};
    qsort(place, n, sizeof *place, by_begin);
    for (int i = 0; i < st->n; i++) {
        sorted[i] = st->tensor[place[i].index];
        st->begin[i] = place[i].begin;
        if (!rc && st->begin[i] != at)
            rc = bad(st, err, "tensor %s begins at byte %llu, %s the one before it ends at %llu",
                     sorted[i].name, (unsigned long long)st->begin[i],
                     st->begin[i] < at ? "but" : "with a gap:", (unsigned long long)at);
        at = st->begin[i] + bytes_of(&sorted[i]);
    }
    if (!rc && at != st->map.len - st->data_at)
        rc = bad(st, err, "%llu bytes of data behind the last tensor",
                 (unsigned long long)(st->map.len - st->data_at - at));
    free(place);
    free(st->tensor);
    st->tensor = sorted;
    return rc;
}

static int read_header(struct sl_safetensors *st, json_t *root, struct sl_err *err)
{
    const char *key;
    json_t *v;
    int rc = 0;

    if (!json_is_object(root))
        return bad(st, err, "its header is no JSON object");
    if (json_object_size(root) > SL_ST_MAX_TENSORS + 1)
        return bad(st, err, "%zu tensors; the limit is %d", json_object_size(root),
                   SL_ST_MAX_TENSORS);
    st->tensor = calloc(json_object_size(root) + 1, sizeof *st->tensor);
    st->begin = calloc(json_object_size(root) + 1, sizeof *st->begin);
    if (!st->tensor || !st->begin)
        return sl_err_set(err, SL_NOMEM, "reading %s: out of memory", st->path);
    json_object_foreach(root, key, v) {
        if (strcmp(key, "__metadata__") != 0)
            rc = read_tensor(st, key, v, err);
        else if (json_is_object(v))
            st->metadata = json_incref(v);
        else
            rc = bad(st, err, "__metadata__ is no object");
        if (rc)
            return rc;
    }
    if (!st->metadata)
        st->metadata = json_object();
    json_object_foreach(st->metadata, key, v)
        if (!json_is_string(v))
            return bad(st, err, "metadata %.80s is no string", key);
    return order(st, err);
}

static int read_file(struct sl_safetensors *st, struct sl_err *err)
{
    struct sl_err why = SL_ERR_INIT;
    json_t *root = NULL;
    uint64_t len;
    int rc;

    if (st->map.len < SL_ST_LENGTH_BYTES)
        return bad(st, err, "%zu bytes are too few", st->map.len);
    len = get_length(st->map.data);
    if (len > SL_ST_HEADER_MAX)
        return bad(st, err, "a header of %llu bytes is over the limit of %u",
                   (unsigned long long)len, SL_ST_HEADER_MAX);
    if (len > st->map.len - SL_ST_LENGTH_BYTES)
        return bad(st, err, "a header of %llu bytes in a file of %zu: truncated",
                   (unsigned long long)len, st->map.len);
    st->header_len = (size_t)len;
    st->data_at = SL_ST_LENGTH_BYTES + st->header_len;
    if (!len || st->map.data[SL_ST_LENGTH_BYTES] != '{')
        return bad(st, err, "its header does not begin with {");
    rc = sl_json_parse((const char *)st->map.data + SL_ST_LENGTH_BYTES, st->header_len,
                       "its header", &root, &why);
    if (rc)
        return bad(st, err, "%.400s", why.msg);
    rc = read_header(st, root, err);
    json_decref(root);
    return rc;
}

static int open_file(const char *path, bool any_type, struct sl_safetensors **ret_st,
                     struct sl_err *err)
{
    struct sl_safetensors *st = calloc(1, sizeof *st);
    int rc;

    if (st)
        st->path = strdup(path);
    if (!st || !st->path) {
        free(st);
        return sl_err_set(err, SL_NOMEM, "opening %s: out of memory", path);
    }
    st->any_type = any_type;
    rc = sl_map_open(path, &st->map, err);
    if (!rc)
        rc = read_file(st, err);
    if (rc) {
        sl_safetensors_close(st);
        return rc;
    }
    *ret_st = st;
    return 0;
}

int sl_safetensors_open(const char *path, struct sl_safetensors **ret_st, struct sl_err *err)
{
    return open_file(path, false, ret_st, err);
}

int sl_safetensors_open_model(const char *path, struct sl_safetensors **ret_st, struct sl_err *err)
{
    return open_file(path, true, ret_st, err);
}

void sl_safetensors_close(struct sl_safetensors *st)
{
    if (!st)
        return;
    json_decref(st->metadata);
    sl_map_close(&st->map);
    free(st->tensor);
    free(st->begin);
    free(st->path);
    free(st);
}

int sl_safetensors_count(const struct sl_safetensors *st)
{
    return st->n;
}

const struct sl_st_tensor *sl_safetensors_at(const struct sl_safetensors *st, int index)
{
    return &st->tensor[index];
}

int sl_safetensors_find(const struct sl_safetensors *st, const char *name)
{
    for (int i = 0; i < st->n; i++)
        if (!strcmp(st->tensor[i].name, name))
            return i;
    return -1;
}

const json_t *sl_safetensors_metadata(const struct sl_safetensors *st)
{
    return st->metadata;
}

void sl_safetensors_read(const struct sl_safetensors *st, int index, float *out)
{
    memcpy(out, sl_safetensors_bytes(st, index),
           (size_t)sl_st_elements(&st->tensor[index]) * sizeof *out);
}

const unsigned char *sl_safetensors_bytes(const struct sl_safetensors *st, int index)
{
    return st->map.data + st->data_at + st->begin[index];
}

void sl_safetensors_forget(const struct sl_safetensors *st)
{
    sl_map_forget(&st->map);
}

int sl_safetensors_verify(const struct sl_safetensors *st, struct sl_err *err)
{
    const char *seal = json_string_value(json_object_get(st->metadata, "seal"));
    const unsigned char *at = memmem(st->map.data + SL_ST_LENGTH_BYTES, st->header_len,
                                     SL_ST_SEAL_KEY, strlen(SL_ST_SEAL_KEY));
    struct sl_sha256 sha;
    char hex[SL_SHA256_HEX + 1];
    int rc;

    if (!seal || !at || !sl_sha256_valid(seal))
        return sl_err_set(err, SL_DATA, "%s carries no seal: it was not written by softlaunch",
                          st->path);
    at += strlen(SL_ST_SEAL_KEY);
    if ((size_t)(st->map.data + st->data_at - at) < SL_SHA256_HEX ||
        memcmp(at, seal, SL_SHA256_HEX) != 0)
        return sl_err_set(err, SL_DATA, "%s is damaged: its seal is not where we write it",
                          st->path);
    rc = sl_sha256_init(&sha, err);
    if (rc)
        return rc;
    sl_sha256_update(&sha, st->map.data, (size_t)(at - st->map.data));
    sl_sha256_update(&sha, SL_ST_NO_SEAL, SL_SHA256_HEX);
    at += SL_SHA256_HEX;
    sl_sha256_update(&sha, at, st->map.len - (size_t)(at - st->map.data));
    sl_sha256_hex(&sha, hex);
    if (strcmp(hex, seal) != 0)
        return sl_err_set(err, SL_DATA, "%s is damaged: its sha256 is %s, its seal says %s",
                          st->path, hex, seal);
    return 0;
}
