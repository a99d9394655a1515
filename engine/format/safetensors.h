/* The safetensors file format (Hugging Face): prompt tables, adapters and checkpoints, which are
 * fp32 only, and the files of base models.
 *
 * A file is 8 bytes of little-endian header length, a JSON header padded with spaces to 8 bytes,
 * and the tensors' data. Reading is strict: every length, offset and shape is checked against the
 * file before use, tensors must cover the data without gap or overlap, and a dtype other than F32
 * is refused by name (SL_DATA) unless the file is opened as a base model's.
 *
 * A sealed file carries the metadata entry "seal": sha256 of the whole file, taken with those 64
 * digits as zeros. A flipped bit anywhere is found by sl_safetensors_verify. Everything here
 * blocks. */
#ifndef SL_ENGINE_SAFETENSORS_H
#define SL_ENGINE_SAFETENSORS_H
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Bytes; 3,000 tensors. Parsed JSON takes up to 80 times its text, and a hostile header must not
 * take the machine's memory. */
#define SL_ST_HEADER_MAX (512u << 10)
#define SL_ST_MAX_TENSORS 8192
#define SL_ST_NAME_MAX 256 /* bytes, NUL included */
#define SL_ST_MAX_DIMS 4
#define SL_ST_MAX_ELEMENTS (1ll << 40) /* of one tensor */

struct sl_st_tensor {
    char name[SL_ST_NAME_MAX];
    int n_dims; /* 1 to SL_ST_MAX_DIMS; 0: a scalar, in base models only */
    int64_t dim[SL_ST_MAX_DIMS];
    const char *type; /* "F32", "BF16", ...: a constant, set by reading; what is written is F32 */
};
int64_t sl_st_elements(const struct sl_st_tensor *t);

/* Puts tensor `index` into out (its elements, row-major). */
typedef int sl_st_fetch_fn(void *ctx, int index, float *out, struct sl_err *err);

/* Writes path by way of path.tmp: fsync, rename, fsync of the folder; never half a file, one writer
 * a path (a leftover .tmp is overwritten). Tensors are fetched one by one, in order. metadata: an
 * object of strings, borrowed, may be NULL. */
int sl_safetensors_write(const char *path, const struct sl_st_tensor *tensors, int n_tensors,
                         const json_t *metadata, bool seal, sl_st_fetch_fn *fetch, void *ctx,
                         struct sl_err *err);

struct sl_safetensors;
/* Maps the file. SL_NOTFOUND, SL_IO, SL_DATA (names the file and what is wrong), SL_NOMEM. */
int sl_safetensors_open(const char *path, struct sl_safetensors **ret_st, struct sl_err *err);
/* The same with tensors of every type that the format knows, for base models. */
int sl_safetensors_open_model(const char *path, struct sl_safetensors **ret_st, struct sl_err *err);
void sl_safetensors_close(struct sl_safetensors *st); /* NULL-safe */
int sl_safetensors_count(const struct sl_safetensors *st);
/* In the order of the data; valid until close, as is what sl_safetensors_metadata returns. */
const struct sl_st_tensor *sl_safetensors_at(const struct sl_safetensors *st, int index);
int sl_safetensors_find(const struct sl_safetensors *st, const char *name); /* index, or -1 */
const json_t *
sl_safetensors_metadata(const struct sl_safetensors *st); /* object of strings, never NULL */
/* An F32 tensor's elements. */
void sl_safetensors_read(const struct sl_safetensors *st, int index, float *out);
/* A tensor's bytes, row-major, without alignment; valid until close. */
const unsigned char *sl_safetensors_bytes(const struct sl_safetensors *st, int index);
void sl_safetensors_forget(const struct sl_safetensors *st); /* see sl_map_forget */
/* Reads everything and checks the seal; SL_DATA also when there is none. */
int sl_safetensors_verify(const struct sl_safetensors *st, struct sl_err *err);

#endif
