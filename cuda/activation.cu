/* Activations of the frozen model, and bias with activation of the encoders. */
#include "cuda/cuda.cuh"
#include "cuda/gelu.cuh"

#define THREADS 256
#define SUM_COLS 32 /* columns and groups of rows that a block of bias_act_back sums */
#define SUM_ROWS 8

/* ---- the frozen model */
template <typename T, int N>
static __global__ void act_all(enum sl_act_kind kind, const T *x, int64_t rows, int cols, T *y)
{
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= rows * cols)
        return;
    sl_pack<T, N> a, b, out;
    if (kind == SL_ACT_SWIGLU) {
        int64_t from = at / cols * 2 * cols + at % cols;
        a = *(const sl_pack<T, N> *)(x + from);
        b = *(const sl_pack<T, N> *)(x + from + cols);
        for (int j = 0; j < N; j++) {
            float g = to_f(a.v[j]);
            out.v[j] = from_f<T>(g * sigmoid<T>(g) * to_f(b.v[j]));
        }
    } else {
        a = *(const sl_pack<T, N> *)(x + at);
        for (int j = 0; j < N; j++)
            out.v[j] = from_f<T>(act<T>(kind, to_f(a.v[j])));
    }
    *(sl_pack<T, N> *)(y + at) = out;
}

/* dx may be x: an element's gate and up are read before they are written. */
template <typename T, int N>
static __global__ void act_back_all(enum sl_act_kind kind, const T *dy, const T *x, int64_t rows, int cols, T *dx)
{
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (at >= rows * cols)
        return;
    sl_pack<T, N> d = *(const sl_pack<T, N> *)(dy + at), a, b;
    if (kind == SL_ACT_SWIGLU) {
        int64_t from = at / cols * 2 * cols + at % cols;
        a = *(const sl_pack<T, N> *)(x + from);
        b = *(const sl_pack<T, N> *)(x + from + cols);
        for (int j = 0; j < N; j++) {
            float g = to_f(a.v[j]), u = to_f(b.v[j]), s = sigmoid<T>(g), v = to_f(d.v[j]);
            a.v[j] = from_f<T>(v * u * s * (1.0f + g * (1.0f - s)));
            b.v[j] = from_f<T>(v * g * s);
        }
        *(sl_pack<T, N> *)(dx + from) = a;
        *(sl_pack<T, N> *)(dx + from + cols) = b;
        return;
    }
    a = *(const sl_pack<T, N> *)(x + at);
    for (int j = 0; j < N; j++)
        a.v[j] = from_f<T>(to_f(d.v[j]) * act_slope<T>(kind, to_f(a.v[j])));
    *(sl_pack<T, N> *)(dx + at) = a;
}

template <typename T>
void sl_cuda_activation(struct sl_backend *be, enum sl_act_kind kind, const sl_act *x, int64_t rows, int cols,
                        sl_act *y)
{
    const int n = sl_wide<T>;
    int64_t all = rows * cols;
    if (all <= 0)
        return;
    if (cols % n == 0 && sl_aligned(x, cols, sizeof(T)) && sl_aligned(y, cols, sizeof(T)))
        act_all<T, n><<<sl_blocks(all, THREADS * n), THREADS, 0, be->stream>>>(kind, (const T *)x, rows, cols, (T *)y);
    else
        act_all<T, 1><<<sl_blocks(all, THREADS), THREADS, 0, be->stream>>>(kind, (const T *)x, rows, cols, (T *)y);
    sl_cuda_launched(be, "activation");
}

template <typename T>
void sl_cuda_activation_back(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy, const sl_act *x,
                             int64_t rows, int cols, sl_act *dx)
{
    const int n = sl_wide<T>;
    int64_t all = rows * cols;
    if (all <= 0)
        return;
    if (cols % n == 0 && sl_aligned(x, cols, sizeof(T)) && sl_aligned(dy, cols, sizeof(T)) &&
        sl_aligned(dx, cols, sizeof(T)))
        act_back_all<T, n><<<sl_blocks(all, THREADS * n), THREADS, 0, be->stream>>>(kind, (const T *)dy, (const T *)x,
                                                                                    rows, cols, (T *)dx);
    else
        act_back_all<T, 1><<<sl_blocks(all, THREADS), THREADS, 0, be->stream>>>(kind, (const T *)dy, (const T *)x,
                                                                                rows, cols, (T *)dx);
    sl_cuda_launched(be, "activation_back");
}

#define EACH(T)                                                                                                     \
    template void sl_cuda_activation<T>(struct sl_backend *, enum sl_act_kind, const sl_act *, int64_t, int,        \
                                        sl_act *);                                                                  \
    template void sl_cuda_activation_back<T>(struct sl_backend *, enum sl_act_kind, const sl_act *, const sl_act *, \
                                             int64_t, int, sl_act *);
EACH(float)
EACH(bf16)

/* ---- encoders */
static __global__ void bias_act(enum sl_act_kind kind, int64_t n, int cols, float *x, const float *bias, float *y)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    float v = x[i] + bias[i % cols];
    x[i] = v;
    if (y)
        y[i] = act<float>(kind, v);
}

void sl_cuda_bias_act_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols, float *x,
                          const float *bias, float *y)
{
    int64_t n = (int64_t)rows * cols;
    if (n <= 0)
        return;
    bias_act<<<sl_blocks(n, THREADS), THREADS, 0, be->stream>>>(kind, n, cols, x, bias, y);
    sl_cuda_launched(be, "bias_act_f32");
}

/* SUM_ROWS groups of rows down SUM_COLS columns; their sums are added in order. */
static __global__ void bias_act_back(enum sl_act_kind kind, int rows, int cols, const float *dy, const float *pre,
                                     float *dx, float *bias_grad)
{
    __shared__ float part[SUM_ROWS][SUM_COLS];
    int c = (int)(blockIdx.x * SUM_COLS + threadIdx.x);
    float sum = 0;
    if (c < cols)
        for (int r = (int)threadIdx.y; r < rows; r += SUM_ROWS) {
            int64_t at = (int64_t)r * cols + c;
            float d = kind == SL_ACT_NONE ? dy[at] : dy[at] * act_slope<float>(kind, pre[at]);
            dx[at] = d;
            sum += d;
        }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < cols) {
        float all = bias_grad[c];
        for (int i = 0; i < SUM_ROWS; i++)
            all += part[i][threadIdx.x];
        bias_grad[c] = all;
    }
}

void sl_cuda_bias_act_back_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols, const float *dy,
                               const float *pre, float *dx, float *bias_grad)
{
    if (rows <= 0 || cols <= 0)
        return;
    dim3 threads(SUM_COLS, SUM_ROWS);
    bias_act_back<<<sl_blocks(cols, SUM_COLS), threads, 0, be->stream>>>(kind, rows, cols, dy, pre, dx, bias_grad);
    sl_cuda_launched(be, "bias_act_back_f32");
}
