/* Hopper's warpgroup products for attention: wgmma m64nNk16 with bf16 factors and fp32 sums (PTX ISA 9.7.15), and
 * tiles of 64 rows in shared memory as it reads them.
 *
 * A tile is D/64 panels of 64 rows x 64 columns, rows 128 bytes apart, panels 8 KiB apart, its start aligned to 1024
 * bytes. The 16-byte unit u of row r lies at unit u ^ (r % 8): the 128-byte swizzle, in which a product may sum along
 * columns (K-major) or along rows (MN-major), and neither copies nor products meet in one bank.
 *
 * A warpgroup is 128 threads. In what follows g = lane / 4 and t = lane % 4: a lane of warp w holds of a sum c[i][0], c[i][1] at
 * row 16w + g and c[i][2], c[i][3] at row 16w + g + 8, columns 8i + 2t and 8i + 2t + 1. */
#ifndef SL_CUDA_WGMMA_CUH
#define SL_CUDA_WGMMA_CUH
#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

#define WARPGROUP 128
#define PANEL (TILE * 64) /* elements */

template <int D> static constexpr int swizzled_elements = TILE * D;

/* Between writes by threads or cp.async and reads by wgmma; then a barrier. */
static __device__ __forceinline__ void wgmma_sees_writes()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
/* The compiler may not move what it does with c across this place. */
template <int N> static __device__ __forceinline__ void pin(float (&c)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            asm volatile("" : "+f"(c[i][j])::"memory");
}
/* Starts copying rows first, first + 1... of x to a tile; zeros from the count-th on. */
template <int D>
static __device__ __forceinline__ void swizzled_run(bf16 *tile, const bf16 *x, int64_t ld, int64_t first, int count)
{
    constexpr int units = D / 8, step = WARPGROUP / units;
    int row = (int)threadIdx.x / units, unit = (int)threadIdx.x % units;
    const bf16 *from = x + (first + row) * ld + unit * 8;
    bf16 *to = tile + unit / 8 * PANEL + row * 64 + (unit % 8 ^ row % 8) * 8; /* step is a multiple of 8 rows */
#pragma unroll
    for (int i = 0; i < TILE / step; i++)
        copy_async(to + i * step * 64, from + i * step * ld, row + i * step < count);
}

/* Starts copying a tile; from(row) is the address of its first element, NULL for a row of zeros. */
template <int D, typename F>
static __device__ __forceinline__ void swizzled_load(bf16 *tile, const bf16 *any, F from)
{
    constexpr int units = D / 8;
#pragma unroll
    for (int i = 0; i < TILE * units / WARPGROUP; i++) {
        int row = ((int)threadIdx.x + i * WARPGROUP) / units, unit = (int)threadIdx.x % units;
        const bf16 *p = from(row);
        bf16 *to = tile + unit / 8 * PANEL + row * 64 + (unit % 8 ^ row % 8) * 8;
        copy_async(to, p ? p + unit * 8 : any, p != NULL);
    }
}

/* A matrix in shared memory as wgmma wants it described. Of the 64 bits only the lower half differs from step to step,
 * by a constant: one addition between products, where more would hold them up. */
#define MATRIX_UPPER (1024u >> 4 | 1u << 30) /* bytes from 8 rows to the next 8, in units; 128-byte swizzle */
static __device__ __forceinline__ uint32_t matrix_at(const bf16 *tile)
{
    return shared_at(tile) >> 4;
}
/* Columns 16k..16k+15 of all rows, summed along columns. */
static __device__ __forceinline__ uint32_t by_columns(uint32_t matrix, int k)
{
    return matrix + (1u << 16 | (uint32_t)(k / 4 * PANEL + k % 4 * 16) * sizeof(bf16) / 16);
}
/* Rows 16k..16k+15 of all columns, summed along rows; panels are PANEL apart. */
static __device__ __forceinline__ uint32_t by_rows(uint32_t matrix, int k)
{
    return matrix + (PANEL * sizeof(bf16) / 16 << 16 | (uint32_t)(k * 16 * 64) * sizeof(bf16) / 16);
}

#define SL_F4(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define SL_F32(c, i)                                                                                                 \
    SL_F4(c[i]), SL_F4(c[i + 1]), SL_F4(c[i + 2]), SL_F4(c[i + 3]), SL_F4(c[i + 4]), SL_F4(c[i + 5]), SL_F4(c[i + 6]), \
        SL_F4(c[i + 7])
#define SL_C32                                                                                                       \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31}"
#define SL_C64                                                                                                       \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"  \
    "%58,%59,%60,%61,%62,%63}"

/* c = a b^T or += it, both K-major in shared memory: 64 x 64, one step of 16. */
static __device__ __forceinline__ void wgmma_step(float (&c)[8][4], uint32_t a, uint32_t b, bool add)
{
    asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %34, 0;\nmov.b64 a, {%32, %35};\nmov.b64 b, {%33, %35};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SL_C32 ", a, b, p, 1, 1, 0, 0;\n}"
                 : SL_F32(c, 0)
                 : "r"(a), "r"(b), "r"((int)add), "r"(MATRIX_UPPER)
                 : "memory");
}
/* The same with a in registers. */
static __device__ __forceinline__ void wgmma_step(float (&c)[8][4], const uint32_t (&a)[4], uint32_t b, bool add)
{
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %37, 0;\nmov.b64 b, {%36, %38};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SL_C32 ", {%32,%33,%34,%35}, b, p, 1, 1, 0;\n}"
                 : SL_F32(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"((int)add), "r"(MATRIX_UPPER)
                 : "memory");
}
/* c += a b: a in registers, b MN-major. */
static __device__ __forceinline__ void wgmma_step(float (&c)[8][4], const uint32_t (&a)[4], uint32_t b)
{
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.eq.b32 p, 0, 0;\nmov.b64 b, {%36, %37};\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SL_C32 ", {%32,%33,%34,%35}, b, p, 1, 1, 1;\n}"
                 : SL_F32(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(MATRIX_UPPER)
                 : "memory");
}
static __device__ __forceinline__ void wgmma_step(float (&c)[16][4], const uint32_t (&a)[4], uint32_t b)
{
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.eq.b32 p, 0, 0;\nmov.b64 b, {%68, %69};\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " SL_C64 ", {%64,%65,%66,%67}, b, p, 1, 1, 1;\n}"
                 : SL_F32(c, 0), SL_F32(c, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(MATRIX_UPPER)
                 : "memory");
}

/* Starts c = a b^T of two tiles. */
template <int D> static __device__ __forceinline__ void scores(float (&c)[8][4], const bf16 *a, const bf16 *b)
{
    uint32_t a0 = matrix_at(a), b0 = matrix_at(b);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma_step(c, by_columns(a0, k), by_columns(b0, k), k > 0);
}
/* The same with the left tile's rows in registers. */
template <int D>
static __device__ __forceinline__ void scores(float (&c)[8][4], const uint32_t (&a)[D / 16][4], const bf16 *b)
{
    uint32_t b0 = matrix_at(b);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma_step(c, a[k], by_columns(b0, k), k > 0);
}
/* This warp's 16 rows of a tile, as left factors. */
template <int D> static __device__ __forceinline__ void rows_of(uint32_t (&a)[D / 16][4], const bf16 *tile)
{
    int row = (int)threadIdx.x % WARPGROUP / SL_WARP * 16 + (int)threadIdx.x % 16;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        int unit = k * 2 + (int)threadIdx.x % SL_WARP / 16;
        load4(a[k], tile + unit / 8 * PANEL + row * 64 + (unit % 8 ^ row % 8) * 8);
    }
}
/* Starts c += p tile: p's columns are the tile's rows. p must stay until the products are done. */
template <int D> static __device__ __forceinline__ void times(float (&c)[D / 8][4], const uint32_t (&p)[4][4], const bf16 *tile)
{
    uint32_t b0 = matrix_at(tile);
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_step(c, p[k], by_rows(b0, k));
}
/* Sums of 64 columns as left factors in bf16. */
static __device__ __forceinline__ void as_factors(uint32_t (&a)[4][4], const float (&p)[8][4])
{
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[k][i] = pair(p[2 * k + i / 2][i % 2 * 2], p[2 * k + i / 2][i % 2 * 2 + 1]);
}

/* What this thread copied is there; then everybody's is, and what comes next may be loaded over what was read before. */
static __device__ __forceinline__ void await()
{
    copy_wait<0>();
    wgmma_sees_writes();
    __syncthreads();
}

/* Keys from j0 on of the n that are seen. Most tiles lie in the prefix or behind it. */
template <int D>
static __device__ __forceinline__ void load_keys(const struct att_tile &s, int j0, int n, const bf16 *x, int64_t ld,
                                                 bf16 *tile)
{
    if (j0 >= s.prefix_len || j0 + TILE <= s.prefix_len)
        swizzled_run<D>(tile, x, ld, key_row(s, j0), n - j0);
    else
        swizzled_load<D>(tile, x, [&](int row) {
            return j0 + row < n ? x + key_row(s, j0 + row) * ld : (const bf16 *)NULL;
        });
}

/* Rows r0.. of those that q0 and end (in rows) bound, of a matrix shaped like q. */
template <int D>
static __device__ __forceinline__ void load_rows(const struct att &a, int kv_head, int q0, int r0, int end,
                                                 const bf16 *x, int64_t ld, bf16 *tile)
{
    if (!a.magic)
        swizzled_run<D>(tile, x + (int64_t)kv_head * D, ld, q0 + r0, end - r0);
    else
        swizzled_load<D>(tile, x, [&](int row) {
            int r = r0 + row, pos = row_pos(a, r);
            return r < end ? x + (int64_t)(q0 + pos) * ld + (int64_t)(kv_head * a.group + r - pos * a.group) * D
                           : (const bf16 *)NULL;
        });
}

/* Sums times by[0], by[1] (rows g and g + 8) as bf16 to this warp's rows of a tile that no product reads any more. */
template <int D>
static __device__ __forceinline__ void to_tile(const float (&c)[D / 8][4], const float by[2], bf16 *tile)
{
    int lane = (int)threadIdx.x % SL_WARP;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = (int)threadIdx.x / SL_WARP * 16 + lane / 4 + 8 * h;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            *(uint32_t *)(tile + i / 8 * PANEL + row * 64 + (i % 8 ^ row % 8) * 8 + lane % 4 * 2) =
                pair(c[i][2 * h] * by[h], c[i][2 * h + 1] * by[h]);
    }
    __syncwarp();
}
/* This warp's rows of a tile to memory, whole lines at a time: to(row) is where a row goes, NULL for nowhere. */
template <int D, typename F> static __device__ __forceinline__ void from_tile(const bf16 *tile, bool add, F to)
{
    constexpr int units = D / 8, per = SL_WARP / units;
    int lane = (int)threadIdx.x % SL_WARP, unit = lane % units;
#pragma unroll
    for (int i = 0; i < 16 / per; i++) {
        int row = (int)threadIdx.x / SL_WARP * 16 + i * per + lane / units;
        sl_pack<bf16, 8> x = *(const sl_pack<bf16, 8> *)(tile + unit / 8 * PANEL + row * 64 + (unit % 8 ^ row % 8) * 8);
        bf16 *p = to(row);
        if (!p)
            continue;
        sl_pack<bf16, 8> *at = (sl_pack<bf16, 8> *)(p + unit * 8);
        if (add) {
            sl_pack<bf16, 8> old = *at;
#pragma unroll
            for (int j = 0; j < 8; j++)
                x.v[j] = from_f<bf16>(to_f(old.v[j]) + to_f(x.v[j]));
        }
        *at = x;
    }
}
/* Rows r0.. of a matrix shaped like q. */
template <int D>
static __device__ __forceinline__ void store_rows(const float (&c)[D / 8][4], const float by[2], const struct att &a,
                                                  int kv_head, int q0, int r0, int end, bf16 *tile, bf16 *y, int64_t ld)
{
    to_tile<D>(c, by, tile);
    from_tile<D>(tile, false, [&](int row) {
        int r = r0 + row, pos = row_pos(a, r);
        return r < end ? y + (int64_t)(q0 + pos) * ld + (int64_t)(kv_head * a.group + r - pos * a.group) * D : (bf16 *)NULL;
    });
}

#endif
