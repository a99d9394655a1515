/* Activations of the frozen model (activation, activation_back) and of the encoders (bias_act). */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

#define GELU_C 0.7978845608028654f /* sqrt(2/pi) */
#define GELU_A 0.044715f
#define SQRT_HALF 0.7071067811865476f
#define INV_SQRT_2PI 0.3989422804014327f
#define COLUMN_BLOCK 256 /* columns one thread sums at a time */
#define PIECE 4096       /* elements one thread takes at a time */

SL_CLONES static void act_span(enum sl_act_kind kind, const float *x, int64_t n, float *y)
{
    switch (kind) {
    case SL_ACT_RELU:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] < 0.0f ? 0.0f : x[i];
        break;
    case SL_ACT_GELU_TANH:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float t = sl_tanhf(GELU_C * (x[i] + GELU_A * x[i] * x[i] * x[i]));
            y[i] = 0.5f * x[i] * (1.0f + t);
        }
        break;
    case SL_ACT_GELU_ERF:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            y[i] = 0.5f * x[i] * (1.0f + sl_erff(SQRT_HALF * x[i]));
        break;
    default:
        if (y != x)
            memcpy(y, x, (size_t)n * sizeof *y);
    }
}

/* dx = dy act'(x); dx may be x or dy. */
SL_CLONES static void act_back_span(enum sl_act_kind kind, const float *dy, const float *x,
                                    int64_t n, float *dx)
{
    switch (kind) {
    case SL_ACT_RELU:
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;
        break;
    case SL_ACT_GELU_TANH:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float v = x[i], t = sl_tanhf(GELU_C * (v + GELU_A * v * v * v));
            float inner = GELU_C * (1.0f + 3.0f * GELU_A * v * v);
            dx[i] = dy[i] * (0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * inner);
        }
        break;
    case SL_ACT_GELU_ERF:
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float v = x[i];
            float cdf = 0.5f * (1.0f + sl_erff(SQRT_HALF * v));
            dx[i] = dy[i] * (cdf + v * INV_SQRT_2PI * sl_expf(-0.5f * v * v));
        }
        break;
    default:
        if (dx != dy)
            memcpy(dx, dy, (size_t)n * sizeof *dx);
    }
}

SL_CLONES static void swiglu_row(const float *gate, const float *up, int n, float *y)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] = gate[i] * sl_sigmoidf(gate[i]) * up[i];
}

SL_CLONES static void swiglu_back_row(const float *dy, const float *gate, const float *up, int n,
                                      float *dgate, float *dup)
{
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float g = gate[i], u = up[i], s = sl_sigmoidf(g), d = dy[i];
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
        dup[i] = d * g * s;
    }
}

void sl_cpu_activation(struct sl_backend *be, enum sl_act_kind kind, const sl_act *x, int64_t rows,
                       int cols, sl_act *y)
{
    const float *in = x;
    float *out = y;
    if (kind == SL_ACT_SWIGLU) {
#pragma omp parallel for num_threads(be->threads) schedule(static) if (rows * cols > SL_CPU_SMALL)
        for (int64_t r = 0; r < rows; r++)
            swiglu_row(in + r * 2 * cols, in + r * 2 * cols + cols, cols, out + r * cols);
        return;
    }
    int64_t n = rows * cols;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i += PIECE)
        act_span(kind, in + i, n - i < PIECE ? n - i : PIECE, out + i);
}

void sl_cpu_activation_back(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy,
                            const sl_act *x, int64_t rows, int cols, sl_act *dx)
{
    const float *d = dy, *in = x;
    float *out = dx;
    if (kind == SL_ACT_SWIGLU) {
#pragma omp parallel for num_threads(be->threads) schedule(static) if (rows * cols > SL_CPU_SMALL)
        for (int64_t r = 0; r < rows; r++)
            swiglu_back_row(d + r * cols, in + r * 2 * cols, in + r * 2 * cols + cols, cols,
                            out + r * 2 * cols, out + r * 2 * cols + cols);
        return;
    }
    int64_t n = rows * cols;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i += PIECE)
        act_back_span(kind, d + i, in + i, n - i < PIECE ? n - i : PIECE, out + i);
}

SL_CLONES static void add_bias(float *x, const float *bias, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] += bias[i];
}

void sl_cpu_bias_act_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols, float *x,
                         const float *bias, float *y)
{
    int64_t work = (int64_t)rows * cols;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (work > SL_CPU_SMALL)
    for (int r = 0; r < rows; r++) {
        float *xr = x + (int64_t)r * cols;
        add_bias(xr, bias, cols);
        if (y)
            act_span(kind, xr, cols, y + (int64_t)r * cols);
    }
}

/* Columns [c0, c1): a column's sum runs down its rows, whatever the thread. */
static void bias_act_back_columns(enum sl_act_kind kind, int rows, int cols, int c0, int c1,
                                  const float *dy, const float *pre, float *dx, float *bias_grad)
{
    for (int r = 0; r < rows; r++) {
        int64_t at = (int64_t)r * cols + c0;
        act_back_span(kind, dy + at, pre + at, c1 - c0, dx + at);
        add_bias(bias_grad + c0, dx + at, c1 - c0);
    }
}

void sl_cpu_bias_act_back_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols,
                              const float *dy, const float *pre, float *dx, float *bias_grad)
{
    int64_t work = (int64_t)rows * cols;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (work > SL_CPU_SMALL)
    for (int c = 0; c < cols; c += COLUMN_BLOCK)
        bias_act_back_columns(kind, rows, cols, c,
                              c + COLUMN_BLOCK < cols ? c + COLUMN_BLOCK : cols, dy, pre, dx,
                              bias_grad);
}
