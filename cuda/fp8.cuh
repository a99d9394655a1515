/* Products of fp8: rows of activations or gradients as e4m3 with a scale of their own, by a frozen e4m3 weight.
 *
 * A row's scale is its largest magnitude over 448 (at least SL_FP8_LEAST over 448), so that no row touches another;
 * a value is rounded to nearest after the division, exactly as tests/ops/cases_precision.h says. A row that is not
 * finite gives a row that is not finite. */
#ifndef SL_CUDA_FP8_CUH
#define SL_CUDA_FP8_CUH
#include "cuda/cuda.cuh"

#define SL_FP8_LARGEST 448.0f /* of e4m3 */
#define SL_FP8_LEAST 1e-30f   /* smaller rows are as good as zero; their scale would not be a number */

struct sl_fp8_rows {
    void *q;      /* [rows, cols] */
    float *scale; /* [rows] */
};

/* Room in the scratch, good until the next call. False: kept. */
bool sl_fp8_room(struct sl_backend *be, int64_t rows, int64_t cols, struct sl_fp8_rows *ret_rows);
/* x [rows, cols] in that room. */
bool sl_fp8_take(struct sl_backend *be, const bf16 *x, int64_t ldx, int64_t rows, int64_t cols,
                 struct sl_fp8_rows *ret_rows);
/* Both factors of a product, [m, k] and [n, k], multiplied out to bf16 in scratch. False: kept. */
bool sl_fp8_values(struct sl_backend *be, const unsigned char *a, const float *scale_a, int64_t m,
                   const unsigned char *b, const float *scale_b, int64_t n, int64_t k, const void **ret_a,
                   const void **ret_b);
/* matmul.cu: matmul and matmul_back of what fp8.cu has made. */
void sl_fp8_matmul(struct sl_backend *be, const struct sl_fp8_rows *x, int64_t rows, const struct sl_weight *w,
                   const struct sl_weight *bias, const sl_act *add, int64_t ld_add, sl_act *y, int64_t ldy);
void sl_fp8_matmul_back(struct sl_backend *be, const struct sl_fp8_rows *dy, int64_t rows, const struct sl_weight *w,
                        bool accumulate, sl_act *dx, int64_t ldx);

#endif
