/* Softmax cross-entropy on chosen rows, replaced in place by its gradient. A block of threads a row. */
#include "cuda/cuda.cuh"

#define THREADS 512
#define WARPS (THREADS / SL_WARP)

/* Maximum and sum of exp(x - maximum) of numbers seen so far. */
struct soft {
    float m, sum;
};

static __device__ __forceinline__ struct soft join(struct soft a, struct soft b)
{
    float m = fmaxf(a.m, b.m);
    if (m == -INFINITY)
        return {m, a.sum + b.sum};
    return {m, a.sum * expf(a.m - m) + b.sum * expf(b.m - m)};
}

static __device__ struct soft block_join(struct soft x)
{
    __shared__ struct soft shared[WARPS];
    for (int d = SL_WARP / 2; d; d /= 2)
        x = join(x, {__shfl_xor_sync(SL_ALL_LANES, x.m, d), __shfl_xor_sync(SL_ALL_LANES, x.sum, d)});
    if (threadIdx.x % SL_WARP == 0)
        shared[threadIdx.x / SL_WARP] = x;
    __syncthreads();
    struct soft y = shared[0];
    for (int i = 1; i < WARPS; i++)
        y = join(y, shared[i]);
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

/* The row's elements of this thread, N at a time where x allows: f(values, their number, index of the first) may
 * change them, and they are stored when STORE. */
template <bool STORE, typename T, typename F> static __device__ __forceinline__ void each(T *x, int vocab, F f)
{
    constexpr int N = sl_wide<T>;
    int head = (int)((16 - (uintptr_t)x % 16) % 16 / sizeof(T)); /* elements before the first aligned one */
    head = head < vocab ? head : vocab;
    int packs = (vocab - head) / N, tail = head + packs * N;
    for (int p = (int)threadIdx.x; p < packs; p += THREADS) {
        sl_pack<T, N> v = *(const sl_pack<T, N> *)(x + head + p * N);
        f(v.v, N);
        if (STORE)
            *(sl_pack<T, N> *)(x + head + p * N) = v;
    }
    for (int i = (int)threadIdx.x; i < head + vocab - tail; i += THREADS) {
        T *one = x + (i < head ? i : i - head + tail);
        f(one, 1);
    }
}

/* The gradient total * softmax goes over the logits; at a target it is total p - W, W its weights' sum, computed
 * from 1 - p = -expm1(-loss), since p - 1 would lose all digits where the model is sure. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    loss_rows(T *logits, int64_t ld, int vocab, int64_t n_entries, const int32_t *row, const int32_t *target, const float *weight,
              bool gradient, float *loss)
{
    int64_t r = blockIdx.x, e0 = first_entry(row, n_entries, r), e1 = first_entry(row, n_entries, r + 1);
    T *x = logits + r * ld;
    if (e0 == e1) {
        for (int i = (int)threadIdx.x; i < vocab && gradient; i += THREADS)
            x[i] = from_f<T>(0.0f);
        return;
    }
    struct soft mine = {-INFINITY, 0};
    each<false>(x, vocab, [&](const T *v, int n) {
        float top = mine.m;
        for (int j = 0; j < n; j++)
            top = fmaxf(top, to_f(v[j]));
        if (top > mine.m) {
            mine.sum *= expf(mine.m - top);
            mine.m = top;
        }
        for (int j = 0; j < n; j++)
            mine.sum += expf(to_f(v[j]) - mine.m);
    });
    struct soft all = block_join(mine);
    float m = all.m, sum = all.sum;
    float log_sum = logf(sum), total = 0;
    for (int64_t e = e0 + threadIdx.x; e < e1; e += THREADS)
        loss[e] = m - to_f(x[target[e]]) + log_sum;
    if (!gradient)
        return;
    for (int64_t e = e0; e < e1; e++)
        total += weight[e];
    float f = total / sum;
    __syncthreads(); /* the targets have been read */
    each<true>(x, vocab, [&](T *v, int n) {
        for (int j = 0; j < n; j++)
            v[j] = from_f<T>(expf(to_f(v[j]) - m) * f);
    });
    __syncthreads();
    for (int64_t e = e0 + threadIdx.x; e < e1; e += THREADS) {
        float same = 0, p = expf(-loss[e]);
        for (int64_t k = e0; k < e1; k++)
            same += target[k] == target[e] ? weight[k] : 0.0f;
        x[target[e]] = from_f<T>((total - same) * p + same * expm1f(-loss[e]));
    }
}

template <typename T>
void sl_cuda_cross_entropy(struct sl_backend *be, sl_act *logits, int64_t ld, int64_t rows, int vocab,
                           int64_t n_entries, const int32_t *row, const int32_t *target, const float *weight,
                           bool gradient, float *loss)
{
    if (rows <= 0)
        return;
    loss_rows<T><<<(unsigned)rows, THREADS, 0, be->stream>>>((T *)logits, ld, vocab, n_entries, row, target, weight,
                                                             gradient, loss);
    sl_cuda_launched(be, "cross_entropy");
}

template void sl_cuda_cross_entropy<float>(struct sl_backend *, sl_act *, int64_t, int64_t, int, int64_t, const int32_t *,
                                           const int32_t *, const float *, bool, float *);
template void sl_cuda_cross_entropy<bf16>(struct sl_backend *, sl_act *, int64_t, int64_t, int, int64_t, const int32_t *,
                                          const int32_t *, const float *, bool, float *);
