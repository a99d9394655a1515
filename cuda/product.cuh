/* One product by cublasLt, as its algorithm is chosen and kept. */
#ifndef SL_CUDA_PRODUCT_CUH
#define SL_CUDA_PRODUCT_CUH
#include "cuda/fp8.cuh"
#include <cublasLt.h>

/* D[m, n] = alpha op(A) op(B) + beta C (+ bias down the columns), all column-major. type is that of A and B;
 * C, D and bias have it too, but for fp8: there they are bf16, and row i of op(A) counts scale_a[i] times, column j
 * of op(B) scale_b[j] times. fast: sums of fp8 may stay in the tensor cores' narrower registers, where cublasLt has
 * that: 0.2 % of a sum of 8192, a tenth of what rounding its terms costs. */
struct sl_product {
    bool ta, tb;
    int64_t m, n, k;
    cudaDataType_t type;
    float alpha, beta;
    const void *a, *b, *c, *bias;
    const float *scale_a, *scale_b;
    bool fast;
    const void *gelu_at; /* D is multiplied by GELU's slope at this matrix, which has C's shape */
    int64_t lda, ldb, ldc, ldd;
    void *d;
};

/* On the backend's stream; a failure is kept. */
void sl_cuda_multiply(struct sl_backend *be, const struct sl_product *p);
/* False when cublasLt cannot do it; nothing was done then. */
bool sl_cuda_multiply_if(struct sl_backend *be, const struct sl_product *p);

#endif
