/* GGUF files, versions 2 and 3, little-endian: keys with values, and tensors.
 * Source: the GGUF specification of the ggml project (docs/gguf.md).
 *
 * The file is mapped; everything returned points into the map and lives until close. At open every
 * count, length, type, offset and size has been checked against the file, so what is found may be
 * used as it is. Messages do not name the file: the caller does. */
#ifndef SL_ENGINE_GGUF_H
#define SL_ENGINE_GGUF_H
#include "base/err.h"
#include "base/file.h"
#include "engine/format/dequant.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_GGUF_MAX_KEYS 4096
#define SL_GGUF_MAX_DIMS 4
#define SL_GGUF_MAX_DIM (INT64_C(1) << 40)
#define SL_GGUF_NAME_MAX 256           /* bytes of a key or a tensor's name */
#define SL_GGUF_STRING_MAX (16u << 20) /* bytes of a string value */
#define SL_GGUF_ARRAY_MAX (16u << 20)  /* elements of an array; arrays of arrays are refused */
#define SL_GGUF_ALIGNMENT_MAX (1u << 20)

enum sl_gguf_type {
    SL_GGUF_U8,
    SL_GGUF_I8,
    SL_GGUF_U16,
    SL_GGUF_I16,
    SL_GGUF_U32,
    SL_GGUF_I32,
    SL_GGUF_F32,
    SL_GGUF_BOOL,
    SL_GGUF_STRING,
    SL_GGUF_ARRAY,
    SL_GGUF_U64,
    SL_GGUF_I64,
    SL_GGUF_F64,
    SL_GGUF_N_TYPES
};

struct sl_gguf_str {
    const char *p; /* not NUL-terminated */
    size_t len;
};

struct sl_gguf_key {
    struct sl_gguf_str name;
    enum sl_gguf_type type, element; /* element: of an array, else the same as type */
    uint64_t count;                  /* elements of an array, else 1 */
    const unsigned char *value;      /* first element; a string has a 64-bit length in front */
};

struct sl_gguf_tensor {
    struct sl_gguf_str name;
    enum sl_dtype dtype;
    int n_dims;
    int64_t dim[SL_GGUF_MAX_DIMS]; /* fastest first; 1 beyond n_dims */
    const unsigned char *data;
};

struct sl_gguf {
    struct sl_map map;
    int version;
    struct sl_gguf_key *keys; /* in file order, names differ */
    int n_keys;
    struct sl_gguf_tensor *tensors; /* sorted by name, names differ */
    int n_tensors;
};

/* SL_NOTFOUND, SL_IO, SL_NOMEM; SL_DATA for whatever is wrong with the content; SL_SPEC for a
 * version or tensor type that is known and not supported. */
int sl_gguf_open(const char *path, struct sl_gguf **ret_gguf, struct sl_err *err);
void sl_gguf_close(struct sl_gguf *g);

const struct sl_gguf_key *sl_gguf_find(const struct sl_gguf *g, const char *name); /* NULL: none */
const struct sl_gguf_tensor *sl_gguf_tensor(const struct sl_gguf *g, const char *name);
/* A value by key. Without the key they return 1 and leave the output; SL_DATA for another type or a
 * number that does not fit. */
int sl_gguf_int(const struct sl_gguf *g, const char *name, int64_t *ret_value, struct sl_err *err);
int sl_gguf_num(const struct sl_gguf *g, const char *name, double *ret_value, struct sl_err *err);
int sl_gguf_text(const struct sl_gguf *g, const char *name, struct sl_gguf_str *ret_value,
                 struct sl_err *err);
/* Reads the string at *p, which is in a checked array of strings, and moves *p behind it. */
struct sl_gguf_str sl_gguf_next_str(const unsigned char **p);

/* The tokenizer in the keys; SL_NOTFOUND if there is none. */
struct sl_tokenizer;
int sl_gguf_tokenizer(const struct sl_gguf *g, struct sl_tokenizer **ret_tok, struct sl_err *err);

#endif
