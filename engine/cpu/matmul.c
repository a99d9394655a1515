/* Matrices: OpenBLAS sgemm, with bias and residual as its starting value. */
#include "engine/cpu/cpu.h"
#include <cblas.h>
#include <string.h>

static void prefill(struct sl_backend *be, int64_t rows, int64_t cols, const float *bias,
                    const float *add, int64_t ld_add, float *y, int64_t ldy)
{
#pragma omp parallel for num_threads(be->threads) schedule(static) if (rows * cols > SL_CPU_SMALL)
    for (int64_t r = 0; r < rows; r++) {
        float *yr = y + r * ldy;
        const float *ar = add ? add + r * ld_add : NULL;
        if (!ar) {
            memcpy(yr, bias, (size_t)cols * sizeof *yr);
        } else if (!bias) {
            memcpy(yr, ar, (size_t)cols * sizeof *yr);
        } else {
            for (int64_t c = 0; c < cols; c++)
                yr[c] = ar[c] + bias[c];
        }
    }
}

void sl_cpu_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows,
                   const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                   int64_t ld_add, sl_act *y, int64_t ldy)
{
    if (rows <= 0)
        return;
    bool in_place = add == y && ld_add == ldy && !bias;
    if ((add || bias) && !in_place)
        prefill(be, rows, w->rows, bias ? bias->data : NULL, add, ld_add, y, ldy);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)w->rows, (int)w->cols,
                1.0f, x, (int)ldx, w->data, (int)w->cols, add || bias ? 1.0f : 0.0f, y, (int)ldy);
}

void sl_cpu_matmul_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                        const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    (void)be;
    if (rows <= 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)w->cols, (int)w->rows,
                1.0f, dy, (int)ldy, w->data, (int)w->cols, accumulate ? 1.0f : 0.0f, dx, (int)ldx);
}

void sl_cpu_gemm_f32(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                     int ldc)
{
    (void)be;
    if (m <= 0 || n <= 0)
        return;
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n,
                k, alpha, a, lda, b, ldb, beta, c, ldc);
}
