/* Element types of stored tensors, and their conversion to fp32.
 *
 * Values are those of ggml's block formats (ggml-quants.c, and its Python reference in the package
 * gguf): the same products and sums in the same order, so results agree bit for bit. Pure
 * functions, no allocation. */
#ifndef SL_ENGINE_DEQUANT_H
#define SL_ENGINE_DEQUANT_H
#include <stdint.h>

enum sl_dtype {
    SL_DT_F32,
    SL_DT_F16,
    SL_DT_BF16,
    SL_DT_Q8_0,
    SL_DT_Q4_0,
    SL_DT_Q4_1,
    SL_DT_Q5_0,
    SL_DT_Q5_1,
    SL_DT_Q4_K,
    SL_DT_Q5_K,
    SL_DT_Q6_K,
    SL_N_DTYPES
};

struct sl_dtype_info {
    const char *name;
    int block; /* elements of one block; a row holds whole blocks */
    int block_bytes;
};
const struct sl_dtype_info *sl_dtype_info(enum sl_dtype t);

/* n elements (a multiple of the block) from src, which needs no alignment. */
void sl_dequant_row(enum sl_dtype t, const void *src, int64_t n, float *out);

#endif
