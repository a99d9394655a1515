/* The small matrix product of attention: tiles of 4 rows by 2 vectors, accumulators in registers.
 * One body, compiled for three vector lengths. */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

#define TILE 4

/* Rows i..i+TILE (the last one repeated when fewer are left), columns j..j+NV*VL, products 0..k. */
#define TILE_BODY(V, U, VL, NV)                                                                    \
    do {                                                                                           \
        V s0[NV], s1[NV], s2[NV], s3[NV];                                                          \
        for (int u = 0; u < (NV); u++)                                                             \
            s0[u] = s1[u] = s2[u] = s3[u] = (V){0};                                                \
        for (int l = 0; l < k_tile; l++) {                                                         \
            const float *bl = b + (int64_t)l * ldb + j;                                            \
            int64_t al = (int64_t)l * sa;                                                          \
            float f0 = a0[al], f1 = a1[al], f2 = a2[al], f3 = a3[al];                              \
            for (int u = 0; u < (NV); u++) {                                                       \
                V bv = *(const U *)(bl + u * (VL));                                                \
                s0[u] += f0 * bv;                                                                  \
                s1[u] += f1 * bv;                                                                  \
                s2[u] += f2 * bv;                                                                  \
                s3[u] += f3 * bv;                                                                  \
            }                                                                                      \
        }                                                                                          \
        for (int u = 0; u < (NV); u++) {                                                           \
            int at = j + u * (VL);                                                                 \
            U *c0 = (U *)(ci + at), *c1 = (U *)(ci + ldc + at);                                    \
            U *c2 = (U *)(ci + 2 * (int64_t)ldc + at), *c3 = (U *)(ci + 3 * (int64_t)ldc + at);    \
            if (add) {                                                                             \
                s0[u] += *c0;                                                                      \
                if (left > 1)                                                                      \
                    s1[u] += *c1;                                                                  \
                if (left > 2)                                                                      \
                    s2[u] += *c2;                                                                  \
                if (left > 3)                                                                      \
                    s3[u] += *c3;                                                                  \
            }                                                                                      \
            *c0 = s0[u];                                                                           \
            if (left > 1)                                                                          \
                *c1 = s1[u];                                                                       \
            if (left > 2)                                                                          \
                *c2 = s2[u];                                                                       \
            if (left > 3)                                                                          \
                *c3 = s3[u];                                                                       \
        }                                                                                          \
    } while (0)

#define MINI_GEMM(NAME, TARGET, VL)                                                                \
    typedef float NAME##_v __attribute__((vector_size(4 * (VL)), may_alias));                      \
    typedef float NAME##_u __attribute__((vector_size(4 * (VL)), may_alias, aligned(4)));          \
    TARGET static void NAME(int m, int n, int k, const int *klen, const float *a, int lda, int sa, \
                            const float *b, int ldb, bool add, float *c, int ldc)                  \
    {                                                                                              \
        for (int i = 0; i < m; i += TILE) {                                                        \
            int left = m - i < TILE ? m - i : TILE, k_tile = k;                                    \
            for (int r = 0; klen && r < left; r++)                                                 \
                k_tile = klen[i + r] < k_tile ? klen[i + r] : k_tile;                              \
            const float *a0 = a + (int64_t)i * lda, *a1 = left > 1 ? a0 + lda : a0;                \
            const float *a2 = left > 2 ? a1 + lda : a1, *a3 = left > 3 ? a2 + lda : a2;            \
            float *ci = c + (int64_t)i * ldc;                                                      \
            int j = 0;                                                                             \
            for (; j + 2 * (VL) <= n; j += 2 * (VL))                                               \
                TILE_BODY(NAME##_v, NAME##_u, VL, 2);                                              \
            for (; j < n; j += (VL))                                                               \
                TILE_BODY(NAME##_v, NAME##_u, VL, 1);                                              \
            for (int r = 0; klen && r < left; r++)                                                 \
                for (int l = k_tile; l < klen[i + r]; l++) {                                       \
                    float f = a[(int64_t)(i + r) * lda + (int64_t)l * sa];                         \
                    for (j = 0; j < n; j += (VL))                                                  \
                        *(NAME##_u *)(ci + (int64_t)r * ldc + j) +=                                \
                            f * *(const NAME##_u *)(b + (int64_t)l * ldb + j);                     \
                }                                                                                  \
        }                                                                                          \
    }

#if SL_HAVE_CLONES
MINI_GEMM(mini_v4, __attribute__((target("arch=x86-64-v4"))), 16)
MINI_GEMM(mini_v3, __attribute__((target("arch=x86-64-v3"))), 8)
#endif
MINI_GEMM(mini_any, , 4)

typedef void mini_fn(int, int, int, const int *, const float *, int, int, const float *, int, bool,
                     float *, int);

void sl_cpu_mini_gemm(int m, int n, int k, const int *klen, const float *a, int lda, int sa,
                      const float *b, int ldb, bool add, float *c, int ldc)
{
    mini_fn *fn = mini_any;
#if SL_HAVE_CLONES
    const char *level = sl_cpu_level();
    if (level[0] == 'x')
        fn = level[8] == '4' ? mini_v4 : mini_v3;
#endif
    fn(m, n, k, klen, a, lda, sa, b, ldb, add, c, ldc);
}
