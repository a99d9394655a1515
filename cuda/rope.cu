/* Rotary position embedding, half-split order (Su et al. 2021, as Hugging Face's rotate_half), in place. */
#include "cuda/cuda.cuh"

#define THREADS 128

/* A block a row; a thread turns N neighbouring pairs (i, i + half) at a time. */
template <typename T, int N>
static __global__ void rope_rows(T *x, int64_t ld, int heads, int head_dim, int half, const int32_t *pos,
                                 const float *table, float sign)
{
    T *row = x + (int64_t)blockIdx.x * ld;
    const float *turn = table + (int64_t)pos[blockIdx.x] * 2 * half;
    int per = half / N;
    for (int t = (int)threadIdx.x; t < heads * per; t += THREADS) {
        int i = t % per * N;
        T *lo = row + t / per * head_dim + i, *hi = lo + half;
        sl_pack<T, N> a = *(sl_pack<T, N> *)lo, b = *(sl_pack<T, N> *)hi;
        for (int j = 0; j < N; j++) {
            float c = turn[2 * (i + j)], s = sign * turn[2 * (i + j) + 1], u = to_f(a.v[j]), v = to_f(b.v[j]);
            a.v[j] = from_f<T>(u * c - v * s);
            b.v[j] = from_f<T>(v * c + u * s);
        }
        *(sl_pack<T, N> *)lo = a;
        *(sl_pack<T, N> *)hi = b;
    }
}

template <typename T>
void sl_cuda_rope(struct sl_backend *be, sl_act *x, int64_t ld, int64_t rows, int heads, int head_dim, int rope_dims,
                  const int32_t *pos, const float *table, bool inverse)
{
    const int n = sl_wide<T>;
    int half = rope_dims / 2;
    float sign = inverse ? -1.0f : 1.0f;
    if (rows <= 0)
        return;
    if (half % n == 0 && head_dim % n == 0 && sl_aligned(x, ld, sizeof(T)))
        rope_rows<T, n><<<(unsigned)rows, THREADS, 0, be->stream>>>((T *)x, ld, heads, head_dim, half, pos, table,
                                                                    sign);
    else
        rope_rows<T, 1><<<(unsigned)rows, THREADS, 0, be->stream>>>((T *)x, ld, heads, head_dim, half, pos, table,
                                                                    sign);
    sl_cuda_launched(be, "rope");
}

template void sl_cuda_rope<float>(struct sl_backend *, sl_act *, int64_t, int64_t, int, int, int, const int32_t *,
                                  const float *, bool);
template void sl_cuda_rope<bf16>(struct sl_backend *, sl_act *, int64_t, int64_t, int, int, int, const int32_t *,
                                 const float *, bool);
