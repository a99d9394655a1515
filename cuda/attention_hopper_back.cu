/* Attention backward on Hopper's warpgroup products, cut as in attention_back.cu: dq by 64 query rows; dk and dv by 64
 * keys, with scores turned (keys x rows). Either way probabilities and dS go from one product's sums straight into the
 * next one's left factors, in registers. A block is one warpgroup; several on a multiprocessor fill each other's
 * waits for softmax and copies. */
#include "cuda/attention.cuh"
#include "cuda/wgmma.cuh"

static __device__ __forceinline__ float dot_pair(uint32_t x, uint32_t y)
{
    float2 a = __bfloat1622float2(*(const __nv_bfloat162 *)&x), b = __bfloat1622float2(*(const __nv_bfloat162 *)&y);
    return a.x * b.x + a.y * b.y;
}

/* dq, and delta for backward_kv. */
template <int D>
static __global__ void __launch_bounds__(WARPGROUP, D == 64 ? 4 : 2)
    backward_q(struct att a, const struct att_tile *tiles, struct att_in<bf16> in, const bf16 *o, int64_t ldo,
               struct att_grad<bf16> g)
{
    extern __shared__ __align__(1024) bf16 shared[];
    constexpr int size = swizzled_elements<D>;
    /* Rows of q and dO stay in registers, so that products read half as much of shared memory. Not with D of 64: there ptxas
     * 13.0 gave q's registers to ds, and more blocks on a multiprocessor do as well. */
    constexpr bool in_registers = D > 64;
    bf16 *tile_q = shared, *tile_g = tile_q + size, *tile_k = tile_g + size, *tile_v = tile_k + 2 * size;
    const struct att_tile s = tiles[blockIdx.x];
    if (!s.q_len)
        return;
    int kv_head = (int)blockIdx.y, rows = s.q_len * a.group, lane = (int)threadIdx.x % SL_WARP;
    int r_lane = s.r0 + (int)threadIdx.x / SL_WARP * 16 + lane / 4;
    const bf16 *k = in.k + (int64_t)kv_head * D, *v = in.v + (int64_t)kv_head * D;
    const int n = s.n, full = s.full;
    float scale = a.scale * LOG2E, lse[2], delta[2], acc[D / 8][4] = {}, p[8][4], ds[8][4];
    uint32_t factors[4][4];
    int seen[2];
    load_rows<D>(a, kv_head, s.q_start, s.r0, rows, in.q, in.ldq, tile_q);
    load_rows<D>(a, kv_head, s.q_start, s.r0, rows, g.d_o, g.ldd, tile_g);
    load_keys<D>(s, 0, n, k, in.ldk, tile_k);
    load_keys<D>(s, 0, n, v, in.ldv, tile_v);
    copy_commit();
    uint32_t q[D / 16][4], d_o[D / 16][4], out[2][D / 16][2];
    for (int h = 0; h < 2; h++) {
        int r = r_lane + 8 * h, query = s.q_start + row_pos(a, r), head = kv_head * a.group + row_head(a, r);
        const bf16 *from = o + (int64_t)query * ldo + (int64_t)head * D + lane % 4 * 2;
        seen[h] = r < rows ? s.prefix_len + a.visible[query] : 0;
        lse[h] = r < rows ? g.lse[(int64_t)head * a.n_queries + query] * LOG2E : INFINITY;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            out[h][i / 2][i % 2] = r < rows ? *(const uint32_t *)(from + i * 8) : 0;
    }
    await();
    if (in_registers)
        rows_of<D>(q, tile_q);
    rows_of<D>(d_o, tile_g);
    for (int h = 0; h < 2; h++) {
        int r = r_lane + 8 * h;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            sum += dot_pair(d_o[i / 2][i % 2 * 2 + h], out[h][i / 2][i % 2]);
        sum += __shfl_xor_sync(SL_ALL_LANES, sum, 1);
        delta[h] = sum + __shfl_xor_sync(SL_ALL_LANES, sum, 2);
        if (r < rows && lane % 4 == 0)
            g.delta[(int64_t)(kv_head * a.group + row_head(a, r)) * a.n_queries + s.q_start + row_pos(a, r)] = delta[h];
    }
    for (int j0 = 0, at = 0; j0 < n; j0 += TILE, at ^= 1) {
        wgmma_begin();
        if constexpr (in_registers)
            scores<D>(p, q, tile_k + at * size);
        else
            scores<D>(p, tile_q, tile_k + at * size);
        wgmma_commit();
        if constexpr (in_registers)
            scores<D>(ds, d_o, tile_v + at * size);
        else
            scores<D>(ds, tile_g, tile_v + at * size);
        wgmma_commit();
        if (j0 + TILE < n) {
            load_keys<D>(s, j0 + TILE, n, k, in.ldk, tile_k + (at ^ 1) * size);
            load_keys<D>(s, j0 + TILE, n, v, in.ldv, tile_v + (at ^ 1) * size);
        }
        copy_commit();
        wgmma_wait<1>();
        pin(p);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                p[i][c] = exp2_fast(p[i][c] * scale - lse[c / 2]);
        wgmma_wait<0>();
        pin(ds);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                ds[i][c] = p[i][c] * (ds[i][c] - delta[c / 2]);
        if (j0 + TILE > full)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (j0 + i * 8 + lane % 4 * 2 + c % 2 >= seen[c / 2])
                        ds[i][c] = 0;
        as_factors(factors, ds);
        pin(acc);
        wgmma_begin();
        times<D>(acc, factors, tile_k + at * size);
        wgmma_commit();
        wgmma_wait<0>();
        pin(acc);
        await();
    }
    const float by[2] = {a.scale, a.scale};
    store_rows<D>(acc, by, a, kv_head, s.q_start, s.r0, rows, tile_q, g.dq, g.lddq);
}

/* What a row of scores needs besides q and dO; zeros for rows that are not there. */
struct row_stats {
    float lse[TILE], delta[TILE];
    int visible[TILE];
};

static __device__ __forceinline__ void copy_word(void *to, const void *from, bool valid)
{
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_at(to)), "l"(from), "r"(bytes));
}

static __device__ __forceinline__ void load_stats(const struct att &a, const struct att_grad<bf16> &g, int kv_head,
                                                  int q0, int r0, int end, struct row_stats *st)
{
    int i = (int)threadIdx.x % TILE, r = r0 + i;
    bool there = r < end;
    int at = there ? q0 + row_pos(a, r) : 0;
    int64_t stat = there ? (int64_t)(kv_head * a.group + row_head(a, r)) * a.n_queries + at : 0;
    if ((int)threadIdx.x < TILE) {
        copy_word(&st->lse[i], g.lse + stat, there);
        copy_word(&st->delta[i], g.delta + stat, there);
    } else {
        copy_word(&st->visible[i], a.visible + at, there);
    }
}

template <int D>
static __global__ void __launch_bounds__(WARPGROUP, D == 64 ? 3 : 2)
    backward_kv(struct att a, const struct att_keys *table, struct att_in<bf16> in, struct att_grad<bf16> g)
{
    extern __shared__ __align__(1024) bf16 shared[];
    constexpr int size = swizzled_elements<D>;
    bf16 *tile_k = shared, *tile_v = tile_k + size, *tile_q = tile_v + size, *tile_g = tile_q + 2 * size;
    struct row_stats *stats = (struct row_stats *)(tile_g + 2 * size);
    const struct att_keys t = table[blockIdx.x];
    int kv_head = (int)blockIdx.y, lane = (int)threadIdx.x % SL_WARP;
    int key_lane = (int)threadIdx.x / SL_WARP * 16 + lane / 4;
    int end = t.n_q * a.group, begin = t.begin * a.group;
    float scale = a.scale * LOG2E, dk[D / 8][4] = {}, dv[D / 8][4] = {}, p[8][4], ds[8][4];
    uint32_t factors_p[4][4], factors_ds[4][4];
    if (!t.n_keys || (begin >= end && (t.j0 < 0 || !a.set_keys)))
        return;
    swizzled_run<D>(tile_k, in.k + (int64_t)kv_head * D, in.ldk, t.key0, t.n_keys);
    swizzled_run<D>(tile_v, in.v + (int64_t)kv_head * D, in.ldv, t.key0, t.n_keys);
    load_rows<D>(a, kv_head, t.q0, begin, end, in.q, in.ldq, tile_q);
    load_rows<D>(a, kv_head, t.q0, begin, end, g.d_o, g.ldd, tile_g);
    load_stats(a, g, kv_head, t.q0, begin, end, &stats[0]);
    copy_commit();
    for (int r0 = begin, at = 0; r0 < end; r0 += TILE, at ^= 1) {
        await();
        const struct row_stats *st = &stats[at];
        wgmma_begin();
        scores<D>(p, tile_k, tile_q + at * size);
        wgmma_commit();
        scores<D>(ds, tile_v, tile_g + at * size);
        wgmma_commit();
        if (r0 + TILE < end) {
            load_rows<D>(a, kv_head, t.q0, r0 + TILE, end, in.q, in.ldq, tile_q + (at ^ 1) * size);
            load_rows<D>(a, kv_head, t.q0, r0 + TILE, end, g.d_o, g.ldd, tile_g + (at ^ 1) * size);
            load_stats(a, g, kv_head, t.q0, r0 + TILE, end, &stats[at ^ 1]);
        }
        copy_commit();
        bool edge = r0 + TILE > end || (t.j0 >= 0 && st->visible[0] < t.j0 + TILE);
        wgmma_wait<1>();
        pin(p);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float2 lse = *(const float2 *)&st->lse[i * 8 + lane % 4 * 2];
#pragma unroll
            for (int c = 0; c < 4; c++)
                p[i][c] = exp2_fast(p[i][c] * scale - (c % 2 ? lse.y : lse.x) * LOG2E);
        }
        wgmma_wait<0>();
        pin(ds);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float2 delta = *(const float2 *)&st->delta[i * 8 + lane % 4 * 2];
#pragma unroll
            for (int c = 0; c < 4; c++)
                ds[i][c] = p[i][c] * (ds[i][c] - (c % 2 ? delta.y : delta.x));
        }
        if (edge) /* selected, not multiplied: keys that nobody sees may be NaN */
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int r = i * 8 + lane % 4 * 2 + c % 2;
                    bool blind = t.j0 < 0 ? r0 + r >= end : st->visible[r] <= t.j0 + key_lane + c / 2 * 8;
                    p[i][c] = blind ? 0 : p[i][c];
                    ds[i][c] = blind ? 0 : ds[i][c];
                }
        as_factors(factors_p, p);
        as_factors(factors_ds, ds);
        pin(dv);
        pin(dk);
        wgmma_begin();
        times<D>(dv, factors_p, tile_g + at * size);
        times<D>(dk, factors_ds, tile_q + at * size);
        wgmma_commit();
        wgmma_wait<0>();
        pin(dv);
        pin(dk);
    }
    if (t.j0 >= 0) {
        const float by_scale[2] = {a.scale, a.scale}, by_one[2] = {1, 1};
        __syncthreads(); /* no product reads the tiles any more */
        to_tile<D>(dk, by_scale, tile_k);
        to_tile<D>(dv, by_one, tile_v);
        auto to = [&](bf16 *y, int64_t ld, int row) {
            return row < t.n_keys ? y + (int64_t)(t.key0 + row) * ld + (int64_t)kv_head * D : (bf16 *)NULL;
        };
        from_tile<D>(tile_k, !a.set_keys, [&](int row) { return to(g.dk, g.lddk, row); });
        from_tile<D>(tile_v, !a.set_keys, [&](int row) { return to(g.dv, g.lddv, row); });
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = key_lane + 8 * h;
        const int64_t cols = (int64_t)a.kv_heads * D;
        float *to = g.partials + (int64_t)(t.partial + row) * 2 * cols + (int64_t)kv_head * D + lane % 4 * 2;
        if (row >= t.n_keys)
            continue;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            *(float2 *)(to + i * 8) = make_float2(dk[i][2 * h] * a.scale, dk[i][2 * h + 1] * a.scale);
            *(float2 *)(to + i * 8 + cols) = make_float2(dv[i][2 * h], dv[i][2 * h + 1]);
        }
    }
}

template <int D>
static void launch_q(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in, const bf16 *o,
                     int64_t ldo, const struct att_grad<bf16> *g, const struct att_tile *tiles, int n_tiles)
{
    const size_t bytes = 6 * swizzled_elements<D> * sizeof(bf16);
    sl_cuda_failed(be, cudaFuncSetAttribute(backward_q<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                   "shared memory for attention");
    backward_q<D><<<dim3((unsigned)n_tiles, (unsigned)a->kv_heads), WARPGROUP, bytes, be->stream>>>(*a, tiles, *in, o, ldo, *g);
}

void att_hopper_dq(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in, const bf16 *o, int64_t ldo,
                   const struct att_grad<bf16> *g, const struct att_tile *tiles, int n_tiles)
{
    (a->dim == 64 ? launch_q<64> : launch_q<128>)(be, a, in, o, ldo, g, tiles, n_tiles);
}

template <int D>
static void launch_kv(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                      const struct att_grad<bf16> *g, const struct att_keys *keys, int n_keys)
{
    const size_t bytes = 6 * swizzled_elements<D> * sizeof(bf16) + 2 * sizeof(struct row_stats);
    sl_cuda_failed(be, cudaFuncSetAttribute(backward_kv<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                   "shared memory for attention");
    backward_kv<D><<<dim3((unsigned)n_keys, (unsigned)a->kv_heads), WARPGROUP, bytes, be->stream>>>(*a, keys, *in, *g);
}

void att_hopper_dkv(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                    const struct att_grad<bf16> *g, const struct att_keys *keys, int n_keys)
{
    if (n_keys)
        (a->dim == 64 ? launch_kv<64> : launch_kv<128>)(be, a, in, g, keys, n_keys);
}
