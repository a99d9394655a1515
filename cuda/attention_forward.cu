/* Attention forward on tensor cores (Dao 2023): a block has 64 query rows of one sequence in registers and walks
 * through the keys, 64 at a time, two tiles of keys and values in flight.
 *
 * Keys behind the last one that any row of the block sees are zeros, whatever memory holds there. */
#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

/* Measured on an H200: more blocks of threads on a multiprocessor beat more rows a warp, which would read less. */
#define FORWARD_BLOCKS 1 /* of 16 rows, a warp */

bool att_mma_fits(const struct att *a, const struct att_in<bf16> *in)
{
    bool size = a->dim == 64 || a->dim == 80 || a->dim == 96 || a->dim == 128;
    return size && sl_aligned(in->q, in->ldq, sizeof(bf16)) && sl_aligned(in->k, in->ldk, sizeof(bf16)) &&
           sl_aligned(in->v, in->ldv, sizeof(bf16));
}

template <int D, int THREADS>
static __device__ __forceinline__ void load_keys(const struct att_tile &s, int j0, int n, const bf16 *x, int64_t ld,
                                                 bf16 *tile)
{
    tile_load<D, THREADS>(tile, x,
                          [&](int row) { return j0 + row < n ? x + key_row(s, j0 + row) * ld : (const bf16 *)NULL; });
}

/* Scores p of the tile's rows and of keys from j0 on become exp2(p scale - base); acc and sum follow the new maximum. */
template <int D>
static __device__ __forceinline__ void softmax(float (&p)[TILE / 8][4], int j0, bool edge, const int seen[2], float scale,
                                               float m[2], float sum[2], float (&acc)[D / 8][4])
{
    int lane = (int)threadIdx.x % SL_WARP;
    if (edge)
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (j0 + i * 8 + lane % 4 * 2 + c % 2 >= seen[c / 2])
                    p[i][c] = -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = m[h];
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
            top = fmaxf(top, fmaxf(p[i][2 * h], p[i][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(SL_ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(SL_ALL_LANES, top, 2));
        float base = top == -INFINITY ? 0.0f : top * scale, old = exp2_fast(m[h] * scale - base);
        m[h] = top;
        sum[h] *= old;
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
#pragma unroll
            for (int c = 2 * h; c < 2 * h + 2; c++) {
                p[i][c] = exp2_fast(p[i][c] * scale - base);
                sum[h] += p[i][c];
            }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            acc[i][2 * h] *= old;
            acc[i][2 * h + 1] *= old;
        }
    }
}

template <int D, int M>
static __global__ void __launch_bounds__(tile_threads<M>, D == 64 ? 4 : 2)
    forward(struct att a, const struct att_tile *tiles, struct att_in<bf16> in, bf16 *o, int64_t ldo, float *lse)
{
    extern __shared__ __align__(16) bf16 shared[];
    constexpr int threads = tile_threads<M>;
    bf16 *tile_q = shared, *tile_k = tile_q + tile_elements<D>, *tile_v = tile_k + 2 * tile_elements<D>;
    const struct att_tile s = tiles[blockIdx.x];
    if (!s.q_len)
        return;
    int kv_head = (int)blockIdx.y, rows = s.q_len * a.group, lane = (int)threadIdx.x % SL_WARP;
    int r_warp = (int)threadIdx.x / SL_WARP * 16 * M;
    const bf16 *k = in.k + (int64_t)kv_head * D, *v = in.v + (int64_t)kv_head * D;
    const int n = s.n, full = s.full;
    float scale = a.scale * LOG2E, top[M][2], sum[M][2] = {}, acc[M][D / 8][4] = {};
    int seen[M][2];
    for (int m = 0; m < M; m++)
        for (int h = 0; h < 2; h++) {
            int r = s.r0 + r_warp + m * 16 + lane / 4 + 8 * h;
            seen[m][h] = r < rows ? s.prefix_len + a.visible[s.q_start + row_pos(a, r)] : 0;
            top[m][h] = -INFINITY;
        }
    tile_load<D, threads>(tile_q, in.q, [&](int row) {
        int r = s.r0 + row;
        return r < rows ? in.q + (int64_t)(s.q_start + row_pos(a, r)) * in.ldq + (int64_t)(kv_head * a.group + row_head(a, r)) * D
                        : (const bf16 *)NULL;
    });
    load_keys<D, threads>(s, 0, n, k, in.ldk, tile_k);
    load_keys<D, threads>(s, 0, n, v, in.ldv, tile_v);
    copy_commit();
    for (int j0 = 0, at = 0; j0 < n; j0 += TILE, at ^= 1) {
        float p[M][TILE / 8][4] = {};
        if (j0 + TILE < n) {
            load_keys<D, threads>(s, j0 + TILE, n, k, in.ldk, tile_k + (at ^ 1) * tile_elements<D>);
            load_keys<D, threads>(s, j0 + TILE, n, v, in.ldv, tile_v + (at ^ 1) * tile_elements<D>);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t q[M][4];
            left<D, M>(q, tile_q, r_warp, i);
            times_rows<D, M, TILE / 8>(p, q, tile_k + at * tile_elements<D>, 0, i);
        }
#pragma unroll
        for (int m = 0; m < M; m++)
            softmax<D>(p[m], j0, j0 + TILE > full, seen[m], scale, top[m], sum[m], acc[m]);
        times_tile<D, M, TILE / 8>(acc, p, tile_v + at * tile_elements<D>, 0);
        __syncthreads(); /* the tile may be overwritten */
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = s.r0 + r_warp + m * 16 + lane / 4 + 8 * h, query = s.q_start + row_pos(a, r);
            int head = kv_head * a.group + row_head(a, r);
            float all = sum[m][h];
            all += __shfl_xor_sync(SL_ALL_LANES, all, 1);
            all += __shfl_xor_sync(SL_ALL_LANES, all, 2);
            if (r >= rows)
                continue;
            float by = all > 0 ? 1.0f / all : all == all ? 0.0f : all;
            bf16 *to = o + (int64_t)query * ldo + (int64_t)head * D + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *(uint32_t *)(to + i * 8) = pair(acc[m][i][2 * h] * by, acc[m][i][2 * h + 1] * by);
            if (lane % 4 == 0)
                lse[(int64_t)head * a.n_queries + query] =
                    seen[m][h] ? top[m][h] * a.scale + LN2 * log2f(all) : -INFINITY;
        }
}

void att_mma_forward(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                     const struct att_tile *tiles, int n_tiles, bf16 *o, int64_t ldo, float *lse)
{
    dim3 grid((unsigned)n_tiles, (unsigned)a->kv_heads);
#define GO(D)                                                                                                          \
    {                                                                                                                  \
        const size_t bytes = 5 * tile_elements<D> * sizeof(bf16);                                                      \
        sl_cuda_failed(be, cudaFuncSetAttribute(forward<D, FORWARD_BLOCKS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),  \
                       "shared memory for attention");                                                                 \
        forward<D, FORWARD_BLOCKS><<<grid, tile_threads<FORWARD_BLOCKS>, bytes, be->stream>>>(*a, tiles, *in, o, ldo, lse);                            \
    }
    SL_BY_DIM(a->dim, GO)
#undef GO
    sl_cuda_launched(be, "attention");
}
