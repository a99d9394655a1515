/* Products of fp8: rows of gradients as e4m3 with a scale of their own, by the transposed copy of a frozen weight.
 *
 * Only gradients are rounded so far. In the forward pass e4m3 weights are another model: they moved the loss of
 * SmolLM2-135M by a tenth, and the gradient of its prompts by half.
 *
 * A row's scale is its largest magnitude over 448 (at least SL_FP8_LEAST over 448), so that no row touches another;
 * a value is rounded to nearest after the division, exactly as tests/ops/cases_linear.h says. A row that is not
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
/* x [rows, cols], 16 bytes at a time, to rows that have room. */
void sl_fp8_rows_of(struct sl_backend *be, const bf16 *x, int64_t ldx, int64_t rows, int64_t cols,
                    const struct sl_fp8_rows *to);
/* Any x [rows, cols] in that scratch. */
bool sl_fp8_take(struct sl_backend *be, const bf16 *x, int64_t ldx, int64_t rows, int64_t cols,
                 struct sl_fp8_rows *ret_rows);
/* Both factors of a product, [m, k] and [n, k], multiplied out to bf16 in scratch. False: kept. */
bool sl_fp8_values(struct sl_backend *be, const unsigned char *a, const float *scale_a, int64_t m,
                   const unsigned char *b, const float *scale_b, int64_t n, int64_t k, const void **ret_a,
                   const void **ret_b);
/* matmul.cu: matmul_back of what fp8.cu has made. */
void sl_fp8_matmul_back(struct sl_backend *be, const struct sl_fp8_rows *dy, int64_t rows, const struct sl_weight *w,
                        bool accumulate, sl_act *dx, int64_t ldx);

/* ---- device code */
/* Over all threads of a block; every one gets it. NaN wins. */
static __device__ float block_max(float x, float *shared)
{
    for (int d = SL_WARP / 2; d; d /= 2) {
        float y = __shfl_xor_sync(SL_ALL_LANES, x, d);
        x = y > x || y != y ? y : x;
    }
    int warps = (int)(blockDim.x / SL_WARP);
    __syncthreads();
    if (threadIdx.x % SL_WARP == 0)
        shared[threadIdx.x / SL_WARP] = x;
    __syncthreads();
    for (int i = 0; i < warps; i++)
        x = shared[i] > x || shared[i] != shared[i] ? shared[i] : x;
    return x;
}

#endif
