/* Tensor-core pieces for attention: 16-byte asynchronous copies, ldmatrix, mma.sync m16n8k16 with bf16 factors and
 * fp32 sums (PTX ISA 9.7.14), and tiles of 64 rows in shared memory.
 *
 * Rows of a tile are D + 8 elements apart, an odd number of 16-byte units for every D used, so that eight rows of
 * ldmatrix lie in different banks. In what follows g = lane / 4 and t = lane % 4: a lane holds of a sum
 * c[0], c[1] at row g and c[2], c[3] at row g + 8, columns 2t and 2t + 1. */
#ifndef SL_CUDA_MMA_CUH
#define SL_CUDA_MMA_CUH
#include "cuda/cuda.cuh"

#define TILE 64 /* rows of a tile */

/* Threads of a block whose warps have M blocks of 16 rows of a tile each. With M = 2 what a warp reads of the other
 * tile serves twice as many products; whether the sums fit into registers depends on D. */
template <int M> static constexpr int tile_threads = TILE / (16 * M) * SL_WARP;

template <int D> static constexpr int tile_ld = D + 8;
template <int D> static constexpr int tile_elements = TILE * (D + 8);

static __device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes; zeros when !valid, and then from is not read. */
static __device__ __forceinline__ void copy_async(void *to, const void *from, bool valid)
{
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_at(to)), "l"(from), "r"(bytes));
}
static __device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;");
}
template <int LEFT> static __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT));
}

static __device__ __forceinline__ void load4(uint32_t r[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_at(p)));
}
static __device__ __forceinline__ void load4_turned(uint32_t r[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_at(p)));
}
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ uint32_t pair(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    return bits;
}
static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Starts copying a tile; from(row) is the address of its first element, NULL for a row of zeros. */
template <int D, int THREADS, typename F>
static __device__ __forceinline__ void tile_load(bf16 *tile, const bf16 *any, F from)
{
    constexpr int units = D / 8;
    for (int i = (int)threadIdx.x; i < TILE * units; i += THREADS) {
        int row = i / units, unit = i % units;
        const bf16 *p = from(row);
        copy_async(tile + row * tile_ld<D> + unit * 8, p ? p + unit * 8 : any, p != NULL);
    }
}

/* Left factors: of M blocks of 16 rows from r0 on, columns k*16..k*16+15 of a tile. */
template <int D, int M> static __device__ __forceinline__ void left(uint32_t (&a)[M][4], const bf16 *tile, int r0, int k)
{
    int lane = (int)threadIdx.x % SL_WARP;
#pragma unroll
    for (int m = 0; m < M; m++)
        load4(a[m], tile + (r0 + m * 16 + lane % 16) * tile_ld<D> + k * 16 + lane / 16 * 8);
}

/* c[N*8 columns] += left rows x (tile rows)^T, for one k of D/16: columns of c are the tile's rows from r0 on. */
template <int D, int M, int N>
static __device__ __forceinline__ void times_rows(float (&c)[M][N][4], const uint32_t (&a)[M][4], const bf16 *tile,
                                                  int r0, int k)
{
    int lane = (int)threadIdx.x % SL_WARP, row = r0 + lane % 8 + lane / 16 * 8, col = k * 16 + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
        uint32_t b[4];
        load4(b, tile + (n * 16 + row) * tile_ld<D> + col);
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma(c[m][2 * n], a[m], b[0], b[1]);
            mma(c[m][2 * n + 1], a[m], b[2], b[3]);
        }
    }
}

/* c[D columns] += p[N*8 columns] x tile: p's columns are the tile's rows from r0 on. p in bf16. */
template <int D, int M, int N>
static __device__ __forceinline__ void times_tile(float (&c)[M][D / 8][4], const float (&p)[M][N][4], const bf16 *tile,
                                                  int r0)
{
    int lane = (int)threadIdx.x % SL_WARP, row = r0 + lane % 8 + lane / 8 % 2 * 8, col = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = pair(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            load4_turned(b, tile + (k * 16 + row) * tile_ld<D> + n * 16 + col);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][2 * n], a[m], b[0], b[1]);
                mma(c[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* GO(D) for the head size. */
#define SL_BY_DIM(dim, GO)                                                                                           \
    switch (dim) {                                                                                                   \
    case 64: GO(64); break;                                                                                          \
    case 80: GO(80); break;                                                                                          \
    case 96: GO(96); break;                                                                                          \
    case 128: GO(128); break;                                                                                        \
    }

#endif
