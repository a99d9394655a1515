/* RMSNorm and LayerNorm, forward and backward to the input. */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

SL_CLONES static void norm_row(const float *x, int n, const float *w, const float *b, float eps,
                               bool rms, float *y, float *mean, float *rstd)
{
    float m = 0.0f, s = 0.0f;
    if (!rms) {
#pragma omp simd reduction(+ : m)
        for (int i = 0; i < n; i++)
            m += x[i];
        m /= (float)n;
        *mean = m;
    }
#pragma omp simd reduction(+ : s)
    for (int i = 0; i < n; i++)
        s += (x[i] - m) * (x[i] - m);
    float r = 1.0f / sqrtf(s / (float)n + eps);
    *rstd = r;
    if (b) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            y[i] = (x[i] - m) * r * w[i] + b[i];
    } else {
#pragma omp simd
        for (int i = 0; i < n; i++)
            y[i] = (x[i] - m) * r * w[i];
    }
}

/* With xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)); RMSNorm
 * has no mean(g). */
SL_CLONES static void back_row(const float *dy, const float *x, float m, float r, int n,
                               const float *w, bool rms, bool accumulate, float *dx)
{
    float sg = 0.0f, sgx = 0.0f;
#pragma omp simd reduction(+ : sg, sgx)
    for (int i = 0; i < n; i++) {
        float g = dy[i] * w[i];
        sg += g;
        sgx += g * ((x[i] - m) * r);
    }
    sg = rms ? 0.0f : sg / (float)n;
    sgx /= (float)n;
    if (accumulate) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            dx[i] += r * (dy[i] * w[i] - sg - (x[i] - m) * r * sgx);
    } else {
#pragma omp simd
        for (int i = 0; i < n; i++)
            dx[i] = r * (dy[i] * w[i] - sg - (x[i] - m) * r * sgx);
    }
}

void sl_cpu_norm(struct sl_backend *be, const sl_act *x, int64_t rows, int cols,
                 const struct sl_weight *w, const struct sl_weight *b, float eps, bool rms,
                 sl_act *y, float *mean, float *rstd)
{
    const float *in = x;
    float *out = y;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (rows * cols > SL_CPU_SMALL)
    for (int64_t r = 0; r < rows; r++)
        norm_row(in + r * cols, cols, w->data, b && !rms ? b->data : NULL, eps, rms, out + r * cols,
                 rms ? NULL : mean + r, rstd + r);
}

void sl_cpu_norm_back(struct sl_backend *be, const sl_act *dy, const sl_act *x, const float *mean,
                      const float *rstd, int64_t rows, int cols, const struct sl_weight *w,
                      bool rms, bool accumulate, sl_act *dx)
{
    const float *d = dy, *in = x;
    float *out = dx;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (rows * cols > SL_CPU_SMALL)
    for (int64_t r = 0; r < rows; r++)
        back_row(d + r * cols, in + r * cols, rms ? 0.0f : mean[r], rstd[r], cols, w->data, rms,
                 accumulate, out + r * cols);
}

void sl_cpu_head_norm(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, int heads,
                      int head_dim, const struct sl_weight *w, float eps, sl_act *y, int64_t ldy,
                      float *rstd)
{
    const float *in = x;
    float *out = y;
    int64_t n = rows * heads;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n * head_dim > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i++) {
        int64_t r = i / heads, at = i % heads * head_dim;
        norm_row(in + r * ldx + at, head_dim, w->data, NULL, eps, true, out + r * ldy + at, NULL,
                 rstd + i);
    }
}

void sl_cpu_head_norm_back(struct sl_backend *be, const sl_act *dy, int64_t lddy, const sl_act *x,
                           int64_t ldx, const float *rstd, int64_t rows, int heads, int head_dim,
                           const struct sl_weight *w, sl_act *dx, int64_t lddx)
{
    const float *d = dy, *in = x;
    float *out = dx;
    int64_t n = rows * heads;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n * head_dim > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i++) {
        int64_t r = i / heads, at = i % heads * head_dim;
        back_row(d + r * lddy + at, in + r * ldx + at, 0.0f, rstd[i], head_dim, w->data, true,
                 false, out + r * lddx + at);
    }
}
