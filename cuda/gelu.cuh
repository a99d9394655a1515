/* Activation functions and their slopes, of one number. The fp32 mode uses CUDA's accurate functions; bf16
 * uses the hardware's exponential, whose error (about 1e-6) is far below what bf16 keeps. */
#ifndef SL_CUDA_GELU_CUH
#define SL_CUDA_GELU_CUH
#include "cuda/cuda.cuh"

#define GELU_C 0.7978845608028654f /* sqrt(2/pi) */
#define GELU_A 0.044715f
#define SQRT_HALF 0.7071067811865476f
#define INV_SQRT_2PI 0.3989422804014327f

template <typename T> static __device__ __forceinline__ float exponential(float x)
{
    return sizeof(T) == 2 ? __expf(x) : expf(x);
}

template <typename T> static __device__ __forceinline__ float sigmoid(float x)
{
    return sizeof(T) == 2 ? __fdividef(1.0f, 1.0f + __expf(-x)) : 1.0f / (1.0f + expf(-x));
}

/* __fdividef gives 0 for divisors above 2^126, which is the limit wanted here. */
template <typename T> static __device__ __forceinline__ float tangent_h(float x)
{
    return sizeof(T) == 2 ? 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x)) : tanhf(x);
}

template <typename T> static __device__ __forceinline__ float act(enum sl_act_kind kind, float x)
{
    switch (kind) {
    case SL_ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    case SL_ACT_GELU_TANH:
        return 0.5f * x * (1.0f + tangent_h<T>(GELU_C * (x + GELU_A * x * x * x)));
    case SL_ACT_GELU_ERF:
        return 0.5f * x * (1.0f + erff(SQRT_HALF * x));
    default:
        return x;
    }
}

template <typename T> static __device__ __forceinline__ float act_slope(enum sl_act_kind kind, float x)
{
    switch (kind) {
    case SL_ACT_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    case SL_ACT_GELU_TANH: {
        float t = tangent_h<T>(GELU_C * (x + GELU_A * x * x * x)), inner = GELU_C * (1.0f + 3.0f * GELU_A * x * x);
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
    }
    case SL_ACT_GELU_ERF:
        return 0.5f * (1.0f + erff(SQRT_HALF * x)) + x * INV_SQRT_2PI * exponential<T>(-0.5f * x * x);
    default:
        return 1.0f;
    }
}

#endif
