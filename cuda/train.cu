/* What training needs besides the model: dropout, norms of gradients, AdamW. All fp32. */
#include "cuda/cuda.cuh"
#include <math.h>

#define THREADS 256
#define SUM_LOADS 4
#define SUM_BLOCKS 264 /* partial sums of sumsq; fixed, so that the order of summation is */

/* splitmix64 (Steele et al. 2014) of seed and index; the top 24 bits are the uniform number. */
static __global__ void dropout(int64_t n, const float *x, float p, float keep, uint64_t seed, float *y)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    uint64_t z = seed + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    float u = (float)(int32_t)(z >> 40) * 0x1p-24f;
    y[i] = u < p ? 0.0f : x[i] * keep;
}

void sl_cuda_dropout_f32(struct sl_backend *be, int64_t n, const float *x, float p, uint64_t seed, float *y)
{
    if (n <= 0)
        return;
    float keep = p < 1.0f ? 1.0f / (1.0f - p) : 0.0f;
    dropout<<<sl_blocks(n, THREADS), THREADS, 0, be->stream>>>(n, x, p, keep, seed, y);
    sl_cuda_launched(be, "dropout_f32");
}

/* Sum over the block, in thread 0. */
static __device__ double block_sum(double x)
{
    __shared__ double shared[THREADS];
    shared[threadIdx.x] = x;
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half)
            shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    return shared[0];
}

static __global__ void sumsq_parts(int64_t n, const float *x, double *part)
{
    constexpr int64_t stride = (int64_t)SUM_BLOCKS * THREADS;
    double sum[SUM_LOADS] = {}; /* loads that do not wait for each other */
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += SUM_LOADS * stride)
        for (int k = 0; k < SUM_LOADS; k++) {
            double v = i + k * stride < n ? (double)x[i + k * stride] : 0;
            sum[k] += v * v;
        }
    for (int k = 1; k < SUM_LOADS; k++)
        sum[0] += sum[k];
    sum[0] = block_sum(sum[0]);
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum[0];
}

static __global__ void sumsq_end(const double *part, bool accumulate, float *out)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < SUM_BLOCKS; i += THREADS)
        sum += part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *out = (float)(sum + (accumulate ? (double)*out : 0.0));
}

void sl_cuda_sumsq_f32(struct sl_backend *be, int64_t n, const float *x, bool accumulate, float *out)
{
    double *part = (double *)sl_cuda_scratch(be, SL_SCRATCH_OP, SUM_BLOCKS * sizeof *part);
    if (!part)
        return;
    sumsq_parts<<<SUM_BLOCKS, THREADS, 0, be->stream>>>(n, x, part);
    sumsq_end<<<1, THREADS, 0, be->stream>>>(part, accumulate, out);
    sl_cuda_launched(be, "sumsq_f32");
}

static __global__ void clip(const float *sumsq, float max_norm, float *ret_scale)
{
    float norm = sqrtf(*sumsq);
    *ret_scale = !isfinite(*sumsq) ? NAN : max_norm > 0.0f && norm > max_norm ? max_norm / norm : 1.0f;
}

void sl_cuda_clip_scale(struct sl_backend *be, const float *sumsq, float max_norm, float *ret_scale)
{
    clip<<<1, 1, 0, be->stream>>>(sumsq, max_norm, ret_scale);
    sl_cuda_launched(be, "clip_scale");
}

struct adamw_step {
    float b1, b2, eps, decay, lr, root;
};

static __global__ void adamw(int64_t n, float *p, const float *g, float *m, float *v, struct adamw_step k,
                             const float *scale)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float by = scale ? *scale : 1.0f;
    if (i >= n || !isfinite(by))
        return;
    float gi = g[i] * by;
    float mi = k.b1 * m[i] + (1.0f - k.b1) * gi;
    float vi = k.b2 * v[i] + (1.0f - k.b2) * gi * gi;
    m[i] = mi;
    v[i] = vi;
    p[i] = p[i] - k.decay * p[i] - k.lr * mi / (sqrtf(vi) * k.root + k.eps);
}

void sl_cuda_adamw(struct sl_backend *be, int64_t n, float *p, const float *g, float *m, float *v,
                   const struct sl_adamw *hp, const float *scale)
{
    if (n <= 0)
        return;
    double bias1 = 1.0 - pow((double)hp->beta1, hp->step), bias2 = 1.0 - pow((double)hp->beta2, hp->step);
    struct adamw_step k = {hp->beta1,
                           hp->beta2,
                           hp->eps,
                           hp->lr * hp->weight_decay,
                           (float)((double)hp->lr / bias1),
                           (float)(1.0 / sqrt(bias2))};
    adamw<<<sl_blocks(n, THREADS), THREADS, 0, be->stream>>>(n, p, g, m, v, k, scale);
    sl_cuda_launched(be, "adamw");
}
