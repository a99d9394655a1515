/* The operations that multiply: each as one product in the columns' view, see product.cu. */
#include "cuda/product.cuh"

#define FILLS 8    /* bf16 elements in 16 bytes */
#define LARGE 4096 /* rows of a weight from which on cutting it in two pays */

/* cublasLt's fast kernels want sizes that fill 16 bytes. A large bf16 matrix that does not (a vocabulary of 50,257) is
 * cut into rows that do and a few that remain. Returns how many rows the first part has. */
static int64_t even_rows(const struct sl_weight *w, cudaDataType_t type)
{
    return type == CUDA_R_16BF && w->rows > LARGE && w->rows % FILLS ? w->rows / FILLS * FILLS : w->rows;
}

template <typename T> static constexpr cudaDataType_t type_of = sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F;

template <typename T>
void sl_cuda_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, const struct sl_weight *w,
                    const struct sl_weight *bias, const sl_act *add, int64_t ld_add, sl_act *y, int64_t ldy)
{
    const T *values = sl_cuda_values<T>(be, w);
    struct sl_product p = {};
    if (!values)
        return;
    p.ta = true;
    p.m = w->rows;
    p.n = rows;
    p.k = w->cols;
    p.type = type_of<T>;
    p.alpha = 1;
    p.beta = add ? 1.0f : 0.0f;
    p.a = values;
    p.lda = w->cols;
    p.b = x;
    p.ldb = ldx;
    p.c = add ? add : y;
    p.ldc = add ? ld_add : ldy;
    p.d = y;
    p.ldd = ldy;
    p.bias = bias ? bias->data : NULL;
    int64_t even = even_rows(w, p.type);
    p.m = even;
    sl_cuda_multiply(be, &p);
    if (even == w->rows)
        return;
    p.m = w->rows - even;
    p.a = values + even * w->cols;
    p.c = (const T *)p.c + even;
    p.d = (T *)y + even;
    p.bias = bias ? (const T *)bias->data + even : NULL;
    sl_cuda_multiply(be, &p);
}

bool sl_cuda_matmul_back_gelu(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                              const struct sl_weight *down, const sl_act *x, sl_act *dx)
{
    struct sl_product p = {};
    if (!down->data || down->qt || down->cols % FILLS || !sl_aligned(x, down->cols, sizeof(bf16)) ||
        !sl_aligned(dx, down->cols, sizeof(bf16)))
        return false;
    p.m = down->cols;
    p.n = rows;
    p.k = down->rows;
    p.type = CUDA_R_16BF;
    p.alpha = 1;
    p.a = down->data;
    p.lda = down->cols;
    p.b = dy;
    p.ldb = ldy;
    p.c = p.d = dx;
    p.ldc = p.ldd = down->cols;
    p.gelu_at = x;
    return sl_cuda_multiply_if(be, &p);
}

template <typename T>
void sl_cuda_matmul_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                         const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    if (w->qt) {
        struct sl_fp8_rows q;
        if (sl_fp8_take(be, (const bf16 *)dy, ldy, rows, w->rows, &q))
            sl_fp8_matmul_back(be, &q, rows, w, accumulate, dx, ldx);
        return;
    }
    const T *values = sl_cuda_values<T>(be, w);
    struct sl_product p = {};
    if (!values)
        return;
    p.m = w->cols;
    p.n = rows;
    p.k = w->rows;
    p.type = type_of<T>;
    p.alpha = 1;
    p.beta = accumulate ? 1.0f : 0.0f;
    p.a = values;
    p.lda = w->cols;
    p.b = dy;
    p.ldb = ldy;
    p.c = p.d = dx;
    p.ldc = p.ldd = ldx;
    int64_t even = even_rows(w, p.type);
    p.k = even;
    sl_cuda_multiply(be, &p);
    if (even == w->rows)
        return;
    p.k = w->rows - even;
    p.a = values + even * w->cols;
    p.b = (const T *)dy + even;
    p.beta = 1;
    sl_cuda_multiply(be, &p);
}

/* dx = dy (W^T)^T: both sum along their rows, which is the one form that fp8 has. */
void sl_fp8_matmul_back(struct sl_backend *be, const struct sl_fp8_rows *dy, int64_t rows,
                        const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    struct sl_product p = {};
    p.ta = true;
    p.m = w->cols;
    p.n = rows;
    p.k = w->rows;
    p.type = CUDA_R_8F_E4M3;
    p.fast = true;
    p.alpha = 1;
    p.beta = accumulate ? 1.0f : 0.0f;
    p.a = w->qt;
    p.b = dy->q;
    p.lda = p.ldb = w->rows;
    p.scale_a = w->scale_t;
    p.scale_b = dy->scale;
    p.c = p.d = dx;
    p.ldc = p.ldd = ldx;
    sl_cuda_multiply(be, &p);
}

void sl_cuda_gemm_f32(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc)
{
    struct sl_product p = {};
    p.ta = tb; /* row-major C[m, n] is D[n, m]: the factors change places */
    p.tb = ta;
    p.m = n;
    p.n = m;
    p.k = k;
    p.type = CUDA_R_32F;
    p.alpha = alpha;
    p.beta = beta;
    p.a = b;
    p.lda = ldb;
    p.b = a;
    p.ldb = lda;
    p.c = p.d = c;
    p.ldc = p.ldd = ldc;
    sl_cuda_multiply(be, &p);
}

#define EACH(T)                                                                                                      \
    template void sl_cuda_matmul<T>(struct sl_backend *, const sl_act *, int64_t, int64_t, const struct sl_weight *, \
                                    const struct sl_weight *, const sl_act *, int64_t, sl_act *, int64_t);           \
    template void sl_cuda_matmul_back<T>(struct sl_backend *, const sl_act *, int64_t, int64_t,                      \
                                         const struct sl_weight *, bool, sl_act *, int64_t);
EACH(float)
EACH(bf16)
