/* Matrices: OpenBLAS sgemm in one thread each, on a fixed grid of blocks of the result.
 *
 * OpenBLAS's own threads wait for each other in the middle of a product; ours meet once, at its
 * end, which is faster and loses less when the machine has other work. Bias and residual are the
 * block's starting value. */
#include "engine/cpu/cpu.h"
#include <cblas.h>
#include <string.h>

#define SMALL_PRODUCT                                                                              \
    262144           /* multiply-adds below which one thread does it, in OpenBLAS's opinion too */
#define BLOCK_ROWS 4 /* blocks are multiples of sgemm's register tile */
#define BLOCK_COLS 64
#define PACK_COST                                                                                  \
    16 /* multiply-adds that packing one element is worth; only the grid depends on it */

struct product {
    bool ta, tb;
    int m, n, k;
    float alpha, beta;
    const float *a, *b;
    int64_t lda, ldb, ldc;
    const float *bias, *add; /* the starting value instead of beta c, when one is given */
    int64_t ld_add;
    float *c;
};

static int ceil_to(int n, int parts, int unit)
{
    int per = (n + parts - 1) / parts;
    return (per + unit - 1) / unit * unit;
}

/* Rows and columns of a block, so that threads blocks cover the result with the least work in each.
 */
static void grid(const struct product *p, int threads, int *ret_rows, int *ret_cols)
{
    double least = -1;
    for (int down = 1; down <= threads; down++) {
        int rows = ceil_to(p->m, down, BLOCK_ROWS),
            cols = ceil_to(p->n, threads / down, BLOCK_COLS);
        double cost = (double)rows * cols + PACK_COST * ((double)rows + cols);
        if (least < 0 || cost < least) {
            least = cost;
            *ret_rows = rows;
            *ret_cols = cols;
        }
    }
}

static void start_value(const struct product *p, int i0, int m, int j0, int n)
{
    for (int i = i0; i < i0 + m; i++) {
        float *c = p->c + i * p->ldc + j0;
        const float *add = p->add ? p->add + i * p->ld_add + j0 : NULL;
        const float *bias = p->bias ? p->bias + j0 : NULL;
        if (!bias) {
            if (add && add != c)
                memcpy(c, add, (size_t)n * sizeof *c);
        } else if (!add) {
            memcpy(c, bias, (size_t)n * sizeof *c);
        } else {
            for (int j = 0; j < n; j++)
                c[j] = add[j] + bias[j];
        }
    }
}

static void block(const struct product *p, int i0, int m, int j0, int n)
{
    const float *a = p->a + (p->ta ? i0 : i0 * p->lda), *b = p->b + (p->tb ? j0 * p->ldb : j0);
    float *c = p->c + i0 * p->ldc + j0, beta = p->beta;
    if (p->bias || p->add) {
        start_value(p, i0, m, j0, n);
        beta = 1.0f;
    }
    if (m == 1 && !p->ta) /* sgemm would copy all of b for one row */
        cblas_sgemv(CblasRowMajor, p->tb ? CblasNoTrans : CblasTrans, p->tb ? n : p->k,
                    p->tb ? p->k : n, p->alpha, b, (int)p->ldb, a, 1, beta, c, 1);
    else
        cblas_sgemm(CblasRowMajor, p->ta ? CblasTrans : CblasNoTrans,
                    p->tb ? CblasTrans : CblasNoTrans, m, n, p->k, p->alpha, a, (int)p->lda, b,
                    (int)p->ldb, beta, c, (int)p->ldc);
}

static void multiply(struct sl_backend *be, const struct product *p)
{
    if (p->m <= 0 || p->n <= 0)
        return;
    int rows = p->m, cols = p->n;
    if ((double)p->m * p->n * p->k > SMALL_PRODUCT)
        grid(p, be->threads, &rows, &cols);
    int down = (p->m + rows - 1) / rows, across = (p->n + cols - 1) / cols;
#pragma omp parallel for num_threads(be->threads) schedule(static, 1) if (down * across > 1)
    for (int t = 0; t < down * across; t++) {
        int i0 = t / across * rows, j0 = t % across * cols;
        block(p, i0, p->m - i0 < rows ? p->m - i0 : rows, j0, p->n - j0 < cols ? p->n - j0 : cols);
    }
}

void sl_cpu_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows,
                   const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                   int64_t ld_add, sl_act *y, int64_t ldy)
{
    const float *values = sl_cpu_values(be, w);
    if (!values)
        return;
    multiply(be, &(struct product){.tb = true,
                                   .m = (int)rows,
                                   .n = (int)w->rows,
                                   .k = (int)w->cols,
                                   .alpha = 1.0f,
                                   .a = x,
                                   .lda = ldx,
                                   .b = values,
                                   .ldb = w->cols,
                                   .bias = bias ? bias->data : NULL,
                                   .add = add,
                                   .ld_add = ld_add,
                                   .c = y,
                                   .ldc = ldy});
}

void sl_cpu_matmul_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                        const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    const float *values = sl_cpu_values(be, w);
    if (!values)
        return;
    multiply(be, &(struct product){.m = (int)rows,
                                   .n = (int)w->cols,
                                   .k = (int)w->rows,
                                   .alpha = 1.0f,
                                   .beta = accumulate ? 1.0f : 0.0f,
                                   .a = dy,
                                   .lda = ldy,
                                   .b = values,
                                   .ldb = w->cols,
                                   .c = dx,
                                   .ldc = ldx});
}

void sl_cpu_gemm_f32(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                     int ldc)
{
    multiply(be, &(struct product){.ta = ta,
                                   .tb = tb,
                                   .m = m,
                                   .n = n,
                                   .k = k,
                                   .alpha = alpha,
                                   .beta = beta,
                                   .a = a,
                                   .lda = lda,
                                   .b = b,
                                   .ldb = ldb,
                                   .c = c,
                                   .ldc = ldc});
}
