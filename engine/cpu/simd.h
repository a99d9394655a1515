/* Vectorised arithmetic of the CPU backend.
 *
 * SL_CLONES builds a function for AVX-512, for AVX2 and for any x86-64, and picks at load time.
 * OpenMP regions are outlined and would lose the clone, so loops over threads and cloned kernels
 * are always different functions. The functions below are written so that gcc vectorises the loop
 * around them; tests/ops/test_math.c measures their errors: at most 2 ulp for sl_expf and sl_tanhf,
 * 3 ulp for sl_erff and sl_sigmoidf. NaN gives NaN. */
#ifndef SL_ENGINE_CPU_SIMD_H
#define SL_ENGINE_CPU_SIMD_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SL_HAVE_CLONES 1
#define SL_CLONES                                                                                  \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define SL_HAVE_CLONES 0
#define SL_CLONES __attribute__((noinline))
#endif
#define SL_INLINE static inline __attribute__((always_inline))

#define SL_EXP_LOW (-86.9f)  /* below: 0, before the result becomes subnormal */
#define SL_EXP_HIGH 88.7228f /* above: infinity */

/* Cephes expf: x = n ln2 + r, a polynomial in r, times 2^n. */
SL_INLINE float sl_expf(float x)
{
    const float round_magic =
        12582912.0f; /* 1.5 * 2^23: a sum's low bits are the rounded integer */
    float c = x < SL_EXP_LOW ? SL_EXP_LOW : x;
    c = c > SL_EXP_HIGH ? SL_EXP_HIGH : c;
    float t = c * 1.44269504088896341f + round_magic;
    float n = t - round_magic;
    float r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    bits = (bits << 23) + (126u << 23); /* 2^(n-1): n = 128 occurs */
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    p = p * scale * 2.0f;
    p = x < SL_EXP_LOW ? 0.0f : p;
    return x > SL_EXP_HIGH ? INFINITY : p;
}

SL_INLINE float sl_sigmoidf(float x)
{
    return 1.0f / (1.0f + sl_expf(-x));
}

/* Cephes tanhf: an odd polynomial below 0.625, by exp above. */
SL_INLINE float sl_tanhf(float x)
{
    float a = fabsf(x), z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float small = p * z * x + x;
    float big = copysignf(1.0f - 2.0f / (sl_expf(2.0f * a) + 1.0f), x);
    return a < 0.625f ? small : big;
}

/* Cephes erff and erfcf. */
SL_INLINE float sl_erff(float x)
{
    float a = fabsf(x), z = x * x;
    float t = 7.853861353153693e-5f;
    t = t * z - 8.010193625184903e-4f;
    t = t * z + 5.188327685732524e-3f;
    t = t * z - 2.685381193529856e-2f;
    t = t * z + 1.128358514861418e-1f;
    t = t * z - 3.761262582423300e-1f;
    t = t * z + 1.128379165726710f;
    float inv = 1.0f / (a < 1.0f ? 1.0f : a), w = inv * inv;
    float p = 2.326819970068386e-2f;
    p = p * w - 1.387039388740657e-1f;
    p = p * w + 3.687424674597105e-1f;
    p = p * w - 5.824733027278666e-1f;
    p = p * w + 6.210004621745983e-1f;
    p = p * w - 4.944515323274145e-1f;
    p = p * w + 3.404879937665872e-1f;
    p = p * w - 2.741127028184656e-1f;
    p = p * w + 5.638259427386472e-1f;
    float q = -1.047766399936249e+1f;
    q = q * w + 1.297719955372516e+1f;
    q = q * w - 7.495518717768503f;
    q = q * w + 2.921019019210786f;
    q = q * w - 1.015265279202700f;
    q = q * w + 4.218463358204948e-1f;
    q = q * w - 2.820767439740514e-1f;
    q = q * w + 5.641895067754075e-1f;
    float tail = copysignf(1.0f - sl_expf(-z) * inv * (a < 2.0f ? p : q), x);
    return a < 1.0f ? x * t : tail;
}

#endif
