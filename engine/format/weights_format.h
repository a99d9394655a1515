/* What a format of model files gives to weights.c. Internal to the loaders: one file per format.
 *
 * A format's open fills w->arch and adds every tensor under its canonical name (weights.h) as a
 * view of mapped bytes that it has checked to be there; weights.c then checks the whole against the
 * architecture. */
#ifndef SL_ENGINE_WEIGHTS_FORMAT_H
#define SL_ENGINE_WEIGHTS_FORMAT_H
#include "engine/format/dequant.h"
#include "engine/weights.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#define SL_TENSOR_NAME_MAX 64
#define SL_SHOWN_MAX 64 /* bytes of a name from a file in messages */

/* Where the rows of a tensor lie when they are not one run: pieces of several files (tensor
 * parallelism), and rows that are stored interleaved with others. Unquantised types only. */
enum sl_split {
    SL_SPLIT_ROWS,    /* part p holds rows [p * part_rows, (p + 1) * part_rows) */
    SL_SPLIT_COLS,    /* part p holds columns [p * cols / n_parts, ...) of every row */
    SL_SPLIT_ELEMENTS /* of a vector (rows 1): as SL_SPLIT_ROWS, a row being one element */
};
struct sl_layout {
    enum sl_split split;
    float plus; /* added to every element (layernorm1p) */
    int n_parts;
    const unsigned char *const *part; /* n_parts pointers, owned by the format */
    /* Of a part's rows, block_rows follow one another every block_step rows; SL_SPLIT_COLS: 0. */
    int64_t part_rows, block_rows, block_step;
};

struct sl_tensor {
    char name[SL_TENSOR_NAME_MAX];
    enum sl_dtype dtype;
    int64_t rows, cols;
    const unsigned char *data;      /* rows one after another; NULL with a layout */
    const struct sl_layout *layout; /* owned by the format; NULL: none */
    size_t column_bytes; /* > 0: stored by columns (GPT-2's Conv1D), this far from one to the next;
                            of a type with blocks of one element */
    int rotary_heads; /* > 0: rows lie in the adjacent-pair rotary order of this many heads (ggml's
                         Llama) */
    bool expected;    /* set by weights.c: it has its place in the architecture */
};

struct sl_format {
    const char *name;
    bool (*probe)(const unsigned char *head,
                  size_t len); /* the file's first bytes; NULL: a directory */
    /* Fills w->impl, which close frees, also when it fails half-way. Messages need not name the
     * file. */
    int (*open)(struct sl_weights *w, const char *path, struct sl_err *err);
    void (*close)(void *impl); /* NULL-safe */
    int (*tokenizer)(const void *impl, struct sl_tokenizer **ret_tok, struct sl_err *err);
    void (*forget)(const void *impl); /* see sl_map_forget, of all its maps */
};

struct sl_weights {
    const struct sl_format *format;
    void *impl;
    char *path;
    struct sl_arch arch;
    struct sl_tensor *tensors; /* sorted by name once open */
    int n_tensors, cap_tensors;
    char digest[SL_SHA256_HEX + 1]; /* "" until computed */
    pthread_t hasher;               /* computes it, when hashing is set */
    bool hashing;
    atomic_bool give_up;
};

/* Copies the tensor into w. */
int sl_weights_add(struct sl_weights *w, const struct sl_tensor *tensor, struct sl_err *err);
/* NULL: none of that name. Once the tensors are sorted. */
struct sl_tensor *sl_weights_find(const struct sl_weights *w, const char *name);
size_t sl_tensor_row_bytes(const struct sl_tensor *t);

/* Text from a file made fit for a message: cut, and anything that is not plain ASCII shown as '?'.
 */
const char *sl_shown(const char *text, size_t len, char ret_text[SL_SHOWN_MAX]);

extern const struct sl_format sl_format_gguf, sl_format_hf;
extern const struct sl_format sl_format_nemo;

#endif
