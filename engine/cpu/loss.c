/* Softmax cross-entropy on chosen rows, replaced in place by its gradient. */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

#define SUM_BLOCK 4096 /* exponentials summed in fp32 before they join the fp64 sum */

SL_CLONES static float row_max(const float *x, int n)
{
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int i = 0; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

/* Sum of exp(x - m); with keep, x becomes the exponentials. */
SL_CLONES static double row_exp(float *x, int n, float m, bool keep)
{
    double sum = 0.0;
    for (int i0 = 0; i0 < n; i0 += SUM_BLOCK) {
        int i1 = i0 + SUM_BLOCK < n ? i0 + SUM_BLOCK : n;
        float s = 0.0f;
        if (keep) {
#pragma omp simd reduction(+ : s)
            for (int i = i0; i < i1; i++) {
                x[i] = sl_expf(x[i] - m);
                s += x[i];
            }
        } else {
#pragma omp simd reduction(+ : s)
            for (int i = i0; i < i1; i++)
                s += sl_expf(x[i] - m);
        }
        sum += (double)s;
    }
    return sum;
}

SL_CLONES static void row_scale(float *x, int n, float f)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] *= f;
}

/* Entries [e0, e1) all name this row. */
static void loss_row(float *x, int vocab, int64_t e0, int64_t e1, const int32_t *target,
                     const float *weight, bool gradient, float *loss)
{
    if (e0 == e1) {
        if (gradient)
            memset(x, 0, (size_t)vocab * sizeof *x);
        return;
    }
    float m = row_max(x, vocab), total = 0.0f;
    for (int64_t e = e0; e < e1; e++) {
        loss[e] = m - x[target[e]];
        total += gradient ? weight[e] : 0.0f;
    }
    double sum = row_exp(x, vocab, m, gradient);
    for (int64_t e = e0; e < e1; e++)
        loss[e] += (float)log(sum);
    if (!gradient)
        return;
    row_scale(x, vocab, (float)(total / sum));
    for (int64_t e = e0; e < e1; e++)
        x[target[e]] -= weight[e];
}

void sl_cpu_cross_entropy(struct sl_backend *be, sl_act *logits, int64_t ld, int64_t rows, int vocab,
                          int64_t n_entries, const int32_t *row, const int32_t *target,
                          const float *weight, bool gradient, float *loss)
{
    float *x = logits;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        /* row[] ascends: the first entry of this row and of the next, by bisection. */
        int64_t bound[2];
        for (int b = 0; b < 2; b++) {
            int64_t lo = 0, hi = n_entries;
            while (lo < hi) {
                int64_t mid = lo + (hi - lo) / 2;
                if (row[mid] < r + b)
                    lo = mid + 1;
                else
                    hi = mid;
            }
            bound[b] = lo;
        }
        loss_row(x + r * ld, vocab, bound[0], bound[1], target, weight, gradient, loss);
    }
}
