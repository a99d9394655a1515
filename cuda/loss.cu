/* Softmax cross-entropy on chosen rows, replaced in place by its gradient. A block of threads a row. */
#include "cuda/cuda.cuh"

#define THREADS 512
#define WARPS (THREADS / SL_WARP)

static __device__ float block_reduce(float x, bool max, float *shared)
{
    x = max ? warp_max(x) : warp_sum(x);
    __syncthreads();
    if (threadIdx.x % SL_WARP == 0)
        shared[threadIdx.x / SL_WARP] = x;
    __syncthreads();
    float y = shared[0];
    for (int i = 1; i < WARPS; i++)
        y = max ? fmaxf(y, shared[i]) : y + shared[i];
    return y;
}

/* row[] ascends: the first entry of row r or a later one. */
static __device__ int64_t first_entry(const int32_t *row, int64_t n, int64_t r)
{
    int64_t lo = 0, hi = n;
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        if (row[mid] < r)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Calls f(value, index) for the row's elements of this thread, N at a time where x allows. */
template <typename T, typename F> static __device__ void each(const T *x, int vocab, F f)
{
    constexpr int N = sl_wide<T>;
    int head = (int)((16 - (uintptr_t)x % 16) % 16 / sizeof(T)); /* elements before the first aligned one */
    head = head < vocab ? head : vocab;
    int packs = (vocab - head) / N;
    if ((int)threadIdx.x < head)
        f(to_f(x[threadIdx.x]), (int)threadIdx.x);
    for (int p = (int)threadIdx.x; p < packs; p += THREADS) {
        sl_pack<T, N> v = *(const sl_pack<T, N> *)(x + head + p * N);
        for (int j = 0; j < N; j++)
            f(to_f(v.v[j]), head + p * N + j);
    }
    for (int i = head + packs * N + (int)threadIdx.x; i < vocab; i += THREADS)
        f(to_f(x[i]), i);
}

/* The gradient total * softmax goes over the logits; at a target it is total p - W, W its weights' sum, computed
 * from 1 - p = -expm1(-loss), since p - 1 would lose all digits where the model is sure. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    loss_rows(T *logits, int vocab, int64_t n_entries, const int32_t *row, const int32_t *target, const float *weight,
              bool gradient, float *loss)
{
    __shared__ float shared[WARPS];
    int64_t r = blockIdx.x, e0 = first_entry(row, n_entries, r), e1 = first_entry(row, n_entries, r + 1);
    T *x = logits + r * vocab;
    if (e0 == e1) {
        for (int i = (int)threadIdx.x; i < vocab && gradient; i += THREADS)
            x[i] = from_f<T>(0.0f);
        return;
    }
    float m = -INFINITY, sum = 0;
    each(x, vocab, [&](float v, int) { m = v > m || v != v ? v : m; });
    m = block_reduce(m, true, shared);
    each(x, vocab, [&](float v, int) { sum += expf(v - m); });
    sum = block_reduce(sum, false, shared);
    float log_sum = logf(sum), total = 0;
    for (int64_t e = e0 + threadIdx.x; e < e1; e += THREADS)
        loss[e] = m - to_f(x[target[e]]) + log_sum;
    if (!gradient)
        return;
    for (int64_t e = e0; e < e1; e++)
        total += weight[e];
    float f = total / sum;
    __syncthreads(); /* the targets have been read */
    each(x, vocab, [&](float v, int i) { x[i] = from_f<T>(expf(v - m) * f); });
    __syncthreads();
    for (int64_t e = e0 + threadIdx.x; e < e1; e += THREADS) {
        float same = 0, p = expf(-loss[e]);
        for (int64_t k = e0; k < e1; k++)
            same += target[k] == target[e] ? weight[k] : 0.0f;
        x[target[e]] = from_f<T>((total - same) * p + same * expm1f(-loss[e]));
    }
}

template <typename T>
void sl_cuda_cross_entropy(struct sl_backend *be, sl_act *logits, int64_t rows, int vocab, int64_t n_entries,
                           const int32_t *row, const int32_t *target, const float *weight, bool gradient, float *loss)
{
    if (rows <= 0)
        return;
    loss_rows<T><<<(unsigned)rows, THREADS, 0, be->stream>>>((T *)logits, vocab, n_entries, row, target, weight,
                                                             gradient, loss);
    sl_cuda_launched(be, "cross_entropy");
}

template void sl_cuda_cross_entropy<float>(struct sl_backend *, sl_act *, int64_t, int, int64_t, const int32_t *,
                                           const int32_t *, const float *, bool, float *);
template void sl_cuda_cross_entropy<bf16>(struct sl_backend *, sl_act *, int64_t, int, int64_t, const int32_t *,
                                          const int32_t *, const float *, bool, float *);
