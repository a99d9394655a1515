/* Attention forward on Hopper's warpgroup products (FlashAttention-3, Shah 2024): a warpgroup has 64 query rows and
 * walks through the keys, 64 at a time. While the scores of the next keys are computed, so are the sums of the values
 * before: they only meet in the softmax. Keys behind the last one that any row sees are zeros. */
#include "cuda/attention.cuh"
#include "cuda/wgmma.cuh"

bool att_hopper_fits(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in)
{
    int major = 0, minor = 0;
    if ((a->dim != 64 && a->dim != 128) || !att_mma_fits(a, in))
        return false;
    return !sl_cuda_failed(be, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, be->device), "asking it") &&
           !sl_cuda_failed(be, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, be->device), "asking it") &&
           major == 9 && minor == 0;
}

/* A row's maximum follows its scores only when they are 2^SLACK above it: sums of values are then seldom scaled again,
 * and the exponentials, in bf16, lose nothing by being larger. */
#define SLACK 8.0f

/* Scores become exp2(score scale - base); sum follows the new maximum, and so must the values by old. */
static __device__ __forceinline__ void softmax(float (&p)[8][4], int j0, bool edge, const int seen[2], float scale,
                                               float m[2], float sum[2], float old[2])
{
    int lane = (int)threadIdx.x % SL_WARP;
    if (edge)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (j0 + i * 8 + lane % 4 * 2 + c % 2 >= seen[c / 2])
                    p[i][c] = -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = m[h];
#pragma unroll
        for (int i = 0; i < 8; i++)
            top = fmaxf(top, fmaxf(p[i][2 * h], p[i][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(SL_ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(SL_ALL_LANES, top, 2));
        bool grows = (top - m[h]) * scale > SLACK;
        top = grows ? top : m[h];
        float base = top == -INFINITY ? 0.0f : top * scale;
        old[h] = grows ? exp2_fast(m[h] * scale - base) : 1.0f;
        m[h] = top;
        sum[h] *= old[h];
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int c = 2 * h; c < 2 * h + 2; c++) {
                float x = exp2_fast(p[i][c] * scale - base);
                p[i][c] = x;
                sum[h] += x;
            }
    }
}

template <int D>
static __global__ void __launch_bounds__(WARPGROUP, D == 64 ? 4 : 2)
    forward(struct att a, const struct att_tile *tiles, struct att_in<bf16> in, bf16 *o, int64_t ldo, float *lse)
{
    extern __shared__ __align__(1024) bf16 shared[];
    constexpr int size = swizzled_elements<D>;
    const int lane = (int)threadIdx.x % SL_WARP;
    bf16 *tile_q = shared, *tile_k = tile_q + size, *tile_v = tile_k + 2 * size;
    const struct att_tile s = tiles[blockIdx.x];
    if (!s.q_len)
        return;
    const int kv_head = (int)blockIdx.y, rows = s.q_len * a.group, n = s.n, full = s.full;
    const bf16 *k = in.k + (int64_t)kv_head * D, *v = in.v + (int64_t)kv_head * D;
    float scale = a.scale * LOG2E, top[2], sum[2] = {}, old[2], acc[D / 8][4] = {}, p[8][4];
    uint32_t q[D / 16][4], factors[4][4];
    int seen[2], r_lane = s.r0 + (int)threadIdx.x / SL_WARP * 16 + lane / 4;
    load_rows<D>(a, kv_head, s.q_start, s.r0, rows, in.q, in.ldq, tile_q);
    load_keys<D>(s, 0, n, k, in.ldk, tile_k);
    copy_commit();
    for (int h = 0; h < 2; h++) {
        int r = r_lane + 8 * h;
        seen[h] = r < rows ? s.prefix_len + a.visible[s.q_start + row_pos(a, r)] : 0;
        top[h] = -INFINITY;
    }
    await();
    load_keys<D>(s, 0, n, v, in.ldv, tile_v);
    if (TILE < n)
        load_keys<D>(s, TILE, n, k, in.ldk, tile_k + size);
    copy_commit();
    rows_of<D>(q, tile_q); /* in registers, so that products read half as much of shared memory */
    wgmma_begin();
    scores<D>(p, q, tile_k); /* of the first keys, with nothing to do beside */
    wgmma_commit();
    wgmma_wait<0>();
    pin(p);
    softmax(p, 0, TILE > full, seen, scale, top, sum, old);
    as_factors(factors, p);
    int at = 0;
    for (int j0 = TILE; j0 < n; j0 += TILE) {
        at ^= 1;
        await();
        pin(acc);
        wgmma_begin();
        scores<D>(p, q, tile_k + at * size);
        wgmma_commit();
        times<D>(acc, factors, tile_v + (at ^ 1) * size);
        wgmma_commit();
        load_keys<D>(s, j0, n, v, in.ldv, tile_v + at * size);
        if (j0 + TILE < n)
            load_keys<D>(s, j0 + TILE, n, k, in.ldk, tile_k + (at ^ 1) * size);
        copy_commit();
        wgmma_wait<1>();
        pin(p);
        softmax(p, j0, j0 + TILE > full, seen, scale, top, sum, old);
        wgmma_wait<0>();
        pin(acc);
        if (__any_sync(SL_ALL_LANES, old[0] != 1.0f || old[1] != 1.0f))
#pragma unroll
            for (int i = 0; i < D / 8; i++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    acc[i][c] *= old[c / 2];
        as_factors(factors, p);
    }
    await();
    pin(acc);
    wgmma_begin();
    times<D>(acc, factors, tile_v + at * size);
    wgmma_commit();
    wgmma_wait<0>();
    pin(acc);
    float by[2];
    for (int h = 0; h < 2; h++) {
        int r = r_lane + 8 * h, head = kv_head * a.group + row_head(a, r);
        float all = sum[h];
        all += __shfl_xor_sync(SL_ALL_LANES, all, 1);
        all += __shfl_xor_sync(SL_ALL_LANES, all, 2);
        by[h] = all > 0 ? 1.0f / all : all == all ? 0.0f : all;
        if (r < rows && lane % 4 == 0)
            lse[(int64_t)head * a.n_queries + s.q_start + row_pos(a, r)] =
                seen[h] ? top[h] * a.scale + LN2 * log2f(all) : -INFINITY;
    }
    store_rows<D>(acc, by, a, kv_head, s.q_start, s.r0, rows, tile_q, o, ldo);
}

template <int D>
static void launch(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                   const struct att_tile *tiles, int n_tiles, bf16 *o, int64_t ldo, float *lse)
{
    const size_t bytes = 5 * swizzled_elements<D> * sizeof(bf16);
    sl_cuda_failed(be, cudaFuncSetAttribute(forward<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                   "shared memory for attention");
    forward<D><<<dim3((unsigned)n_tiles, (unsigned)a->kv_heads), WARPGROUP, bytes, be->stream>>>(*a, tiles, *in, o, ldo, lse);
}

void att_hopper_forward(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                        const struct att_tile *tiles, int n_tiles, bf16 *o, int64_t ldo, float *lse)
{
    (a->dim == 64 ? launch<64> : launch<128>)(be, a, in, tiles, n_tiles, o, ldo, lse);
    sl_cuda_launched(be, "attention");
}
