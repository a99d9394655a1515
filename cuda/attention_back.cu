/* Attention backward on tensor cores: dq by query rows as in the forward pass; dk and dv by keys, where a block has 64
 * keys and walks through the query rows that see them. There scores are computed turned (keys x rows), so that
 * probabilities and dS go straight from one product's sums into the next product's left factor. */
#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

/* Blocks of 16 rows that a warp has; see attention_forward.cu. */
template <int D> static constexpr int q_blocks = 1;
template <int D> static constexpr int kv_blocks = 1;

template <int D, int THREADS>
static __device__ __forceinline__ void load_keys(const struct att_tile &s, int j0, int n, const bf16 *x, int64_t ld,
                                                 bf16 *tile)
{
    tile_load<D, THREADS>(tile, x,
                          [&](int row) { return j0 + row < n ? x + key_row(s, j0 + row) * ld : (const bf16 *)NULL; });
}

/* Rows r0.. of those that q0 and end (in rows) bound, of a matrix shaped like q. */
template <int D, int THREADS>
static __device__ __forceinline__ void load_rows(const struct att &a, int kv_head, int q0, int r0, int end,
                                                 const bf16 *x, int64_t ld, bf16 *tile)
{
    tile_load<D, THREADS>(tile, x, [&](int row) {
        int r = r0 + row;
        return r < end ? x + (int64_t)(q0 + row_pos(a, r)) * ld + (int64_t)(kv_head * a.group + row_head(a, r)) * D
                       : (const bf16 *)NULL;
    });
}

template <int D, int M>
static __global__ void __launch_bounds__(tile_threads<M>, D == 64 ? 3 : 2)
    backward_q(struct att a, const struct att_tile *tiles, struct att_in<bf16> in, struct att_grad<bf16> g)
{
    extern __shared__ __align__(16) bf16 shared[];
    constexpr int threads = tile_threads<M>;
    bf16 *tile_q = shared, *tile_g = tile_q + tile_elements<D>, *tile_k = tile_g + tile_elements<D>,
         *tile_v = tile_k + 2 * tile_elements<D>;
    const struct att_tile s = tiles[blockIdx.x];
    if (!s.q_len)
        return;
    int kv_head = (int)blockIdx.y, rows = s.q_len * a.group, lane = (int)threadIdx.x % SL_WARP;
    int r_warp = (int)threadIdx.x / SL_WARP * 16 * M;
    const bf16 *k = in.k + (int64_t)kv_head * D, *v = in.v + (int64_t)kv_head * D;
    const int n = s.n, full = s.full;
    float scale = a.scale * LOG2E, lse[M][2], delta[M][2], acc[M][D / 8][4] = {};
    int seen[M][2];
    for (int m = 0; m < M; m++)
        for (int h = 0; h < 2; h++) {
            int r = s.r0 + r_warp + m * 16 + lane / 4 + 8 * h, query = s.q_start + row_pos(a, r);
            int64_t stat = (int64_t)(kv_head * a.group + row_head(a, r)) * a.n_queries + query;
            seen[m][h] = r < rows ? s.prefix_len + a.visible[query] : 0;
            lse[m][h] = r < rows ? g.lse[stat] * LOG2E : INFINITY;
            delta[m][h] = r < rows ? g.delta[stat] : 0.0f;
        }
    load_rows<D, threads>(a, kv_head, s.q_start, s.r0, rows, in.q, in.ldq, tile_q);
    load_rows<D, threads>(a, kv_head, s.q_start, s.r0, rows, g.d_o, g.ldd, tile_g);
    load_keys<D, threads>(s, 0, n, k, in.ldk, tile_k);
    load_keys<D, threads>(s, 0, n, v, in.ldv, tile_v);
    copy_commit();
    for (int j0 = 0, at = 0; j0 < n; j0 += TILE, at ^= 1) {
        constexpr int N = TILE / 8 / M; /* columns in as many turns as there are blocks of rows */
        if (j0 + TILE < n) {
            load_keys<D, threads>(s, j0 + TILE, n, k, in.ldk, tile_k + (at ^ 1) * tile_elements<D>);
            load_keys<D, threads>(s, j0 + TILE, n, v, in.ldv, tile_v + (at ^ 1) * tile_elements<D>);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        bool edge = j0 + TILE > full;
#pragma unroll
        for (int turn = 0; turn < M; turn++) {
            float p[M][N][4] = {}, ds[M][N][4] = {};
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                uint32_t f[M][4];
                left<D, M>(f, tile_q, r_warp, i);
                times_rows<D, M, N>(p, f, tile_k + at * tile_elements<D>, turn * N * 8, i);
                left<D, M>(f, tile_g, r_warp, i);
                times_rows<D, M, N>(ds, f, tile_v + at * tile_elements<D>, turn * N * 8, i);
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < N; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        int j = j0 + turn * N * 8 + i * 8 + lane % 4 * 2 + c % 2;
                        float x = exp2_fast(p[m][i][c] * scale - lse[m][c / 2]) * (ds[m][i][c] - delta[m][c / 2]);
                        ds[m][i][c] = edge && j >= seen[m][c / 2] ? 0.0f : x;
                    }
            times_tile<D, M, N>(acc, ds, tile_k + at * tile_elements<D>, turn * N * 8);
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = s.r0 + r_warp + m * 16 + lane / 4 + 8 * h;
            if (r >= rows)
                continue;
            bf16 *to = g.dq + (int64_t)(s.q_start + row_pos(a, r)) * g.lddq +
                       (int64_t)(kv_head * a.group + row_head(a, r)) * D + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *(uint32_t *)(to + i * 8) = pair(acc[m][i][2 * h] * a.scale, acc[m][i][2 * h + 1] * a.scale);
        }
}

/* What a row of scores needs besides q and dO. */
struct row_stats {
    float lse[TILE], delta[TILE]; /* lse times log2(e); infinite for rows that are not there: P = 0 */
    int visible[TILE];
};

static __device__ __forceinline__ void load_stats(const struct att &a, const struct att_grad<bf16> &g, int kv_head,
                                                  int q0, int r0, int end, struct row_stats *st)
{
    int i = (int)threadIdx.x, r = r0 + i;
    if (i >= TILE) /* there are at least as many threads */
        return;
    int at = q0 + row_pos(a, r);
    int64_t stat = (int64_t)(kv_head * a.group + row_head(a, r)) * a.n_queries + at;
    st->lse[i] = r < end ? g.lse[stat] * LOG2E : INFINITY;
    st->delta[i] = r < end ? g.delta[stat] : 0.0f;
    st->visible[i] = r < end ? a.visible[at] : 0;
}

static __device__ __forceinline__ void put_pair(bf16 *to, float x, float y, bool add)
{
    __nv_bfloat162 old = add ? *(__nv_bfloat162 *)to : __nv_bfloat162(0, 0);
    *(uint32_t *)to = pair(__bfloat162float(old.x) + x, __bfloat162float(old.y) + y);
}

template <int D, int M>
static __global__ void __launch_bounds__(tile_threads<M>, D == 64 ? 3 : 2)
    backward_kv(struct att a, const struct att_keys *table, struct att_in<bf16> in, struct att_grad<bf16> g)
{
    extern __shared__ __align__(16) bf16 shared[];
    constexpr int threads = tile_threads<M>;
    bf16 *tile_k = shared, *tile_v = tile_k + tile_elements<D>, *tile_q = tile_v + tile_elements<D>,
         *tile_g = tile_q + 2 * tile_elements<D>;
    struct row_stats *stats = (struct row_stats *)(tile_g + 2 * tile_elements<D>);
    const struct att_keys t = table[blockIdx.x];
    int kv_head = (int)blockIdx.y, lane = (int)threadIdx.x % SL_WARP, r_warp = (int)threadIdx.x / SL_WARP * 16 * M;
    int end = t.n_q * a.group, begin = t.begin * a.group;
    float scale = a.scale * LOG2E, dk[M][D / 8][4] = {}, dv[M][D / 8][4] = {};
    if (!t.n_keys || (begin >= end && (t.j0 < 0 || !a.set_keys)))
        return;
    tile_load<D, threads>(tile_k, in.k, [&](int row) {
        return row < t.n_keys ? in.k + (int64_t)(t.key0 + row) * in.ldk + (int64_t)kv_head * D : (const bf16 *)NULL;
    });
    tile_load<D, threads>(tile_v, in.v, [&](int row) {
        return row < t.n_keys ? in.v + (int64_t)(t.key0 + row) * in.ldv + (int64_t)kv_head * D : (const bf16 *)NULL;
    });
    load_rows<D, threads>(a, kv_head, t.q0, begin, end, in.q, in.ldq, tile_q);
    load_rows<D, threads>(a, kv_head, t.q0, begin, end, g.d_o, g.ldd, tile_g);
    load_stats(a, g, kv_head, t.q0, begin, end, &stats[0]);
    copy_commit();
    for (int r0 = begin, at = 0; r0 < end; r0 += TILE, at ^= 1) {
        constexpr int N = TILE / 8 / M;
        if (r0 + TILE < end) {
            load_rows<D, threads>(a, kv_head, t.q0, r0 + TILE, end, in.q, in.ldq, tile_q + (at ^ 1) * tile_elements<D>);
            load_rows<D, threads>(a, kv_head, t.q0, r0 + TILE, end, g.d_o, g.ldd, tile_g + (at ^ 1) * tile_elements<D>);
            load_stats(a, g, kv_head, t.q0, r0 + TILE, end, &stats[at ^ 1]);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const struct row_stats *st = &stats[at];
        const bf16 *q = tile_q + at * tile_elements<D>, *d_o = tile_g + at * tile_elements<D>;
#pragma unroll
        for (int turn = 0; turn < M; turn++) {
            float p[M][N][4] = {}, ds[M][N][4] = {};
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                uint32_t f[M][4];
                left<D, M>(f, tile_k, r_warp, i);
                times_rows<D, M, N>(p, f, q, turn * N * 8, i);
                left<D, M>(f, tile_v, r_warp, i);
                times_rows<D, M, N>(ds, f, d_o, turn * N * 8, i);
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < N; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        int r = turn * N * 8 + i * 8 + lane % 4 * 2 + c % 2, j = t.j0 + r_warp + m * 16 + lane / 4 + c / 2 * 8;
                        bool blind = t.j0 >= 0 && st->visible[r] <= j;
                        float x = exp2_fast(p[m][i][c] * scale - st->lse[r]), d = x * (ds[m][i][c] - st->delta[r]);
                        p[m][i][c] = blind ? 0.0f : x;
                        ds[m][i][c] = blind ? 0.0f : d;
                    }
            times_tile<D, M, N>(dv, p, d_o, turn * N * 8);
            times_tile<D, M, N>(dk, ds, q, turn * N * 8);
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int key = r_warp + m * 16 + lane / 4 + 8 * h;
            int64_t col = (int64_t)kv_head * D + lane % 4 * 2, cols = (int64_t)a.kv_heads * D;
            if (key >= t.n_keys)
                continue;
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                float k0 = dk[m][i][2 * h] * a.scale, k1 = dk[m][i][2 * h + 1] * a.scale;
                float v0 = dv[m][i][2 * h], v1 = dv[m][i][2 * h + 1];
                if (t.j0 < 0) {
                    float *to = g.partials + (int64_t)(t.partial + key) * 2 * cols + col + i * 8;
                    *(float2 *)to = make_float2(k0, k1);
                    *(float2 *)(to + cols) = make_float2(v0, v1);
                } else {
                    put_pair(g.dk + (int64_t)(t.key0 + key) * g.lddk + col + i * 8, k0, k1, !a.set_keys);
                    put_pair(g.dv + (int64_t)(t.key0 + key) * g.lddv + col + i * 8, v0, v1, !a.set_keys);
                }
            }
        }
}

void att_mma_dq(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                const struct att_grad<bf16> *g, const struct att_tile *tiles, int n_tiles)
{
    dim3 grid((unsigned)n_tiles, (unsigned)a->kv_heads);
#define GO(D)                                                                                                         \
    {                                                                                                                 \
        const size_t bytes = 6 * tile_elements<D> * sizeof(bf16);                                                     \
        sl_cuda_failed(be,                                                                                            \
                       cudaFuncSetAttribute(backward_q<D, q_blocks<D>>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),  \
                       "shared memory for attention");                                                                \
        backward_q<D, q_blocks<D>><<<grid, tile_threads<q_blocks<D>>, bytes, be->stream>>>(*a, tiles, *in, *g);                                 \
    }
    SL_BY_DIM(a->dim, GO)
#undef GO
}

void att_mma_dkv(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                 const struct att_grad<bf16> *g, const struct att_keys *keys, int n_keys)
{
    dim3 grid((unsigned)n_keys, (unsigned)a->kv_heads);
    if (!n_keys)
        return;
#define GO(D)                                                                                                         \
    {                                                                                                                 \
        const size_t bytes = 6 * tile_elements<D> * sizeof(bf16) + 2 * sizeof(struct row_stats);                      \
        sl_cuda_failed(be,                                                                                            \
                       cudaFuncSetAttribute(backward_kv<D, kv_blocks<D>>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), \
                       "shared memory for attention");                                                                \
        backward_kv<D, kv_blocks<D>><<<grid, tile_threads<kv_blocks<D>>, bytes, be->stream>>>(*a, keys, *in, *g);                                 \
    }
    SL_BY_DIM(a->dim, GO)
#undef GO
}
