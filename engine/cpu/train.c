/* What training needs besides the model: dropout, norms of gradients, AdamW. */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

#define PIECE                                                                                      \
    4096 /* elements one thread takes at a time; sumsq's order of summation follows it             \
          */

/* splitmix64 (Steele et al. 2014) of seed and index; the top 24 bits are the uniform number. */
SL_CLONES static void dropout_span(int64_t i0, int64_t n, const float *x, float p, float keep,
                                   uint64_t seed, float *y)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint64_t z = seed + (uint64_t)(i0 + i + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        float u = (float)(int32_t)(z >> 40) * 0x1p-24f;
        y[i] = u < p ? 0.0f : x[i] * keep;
    }
}

void sl_cpu_dropout_f32(struct sl_backend *be, int64_t n, const float *x, float p, uint64_t seed,
                        float *y)
{
    float keep = p < 1.0f ? 1.0f / (1.0f - p) : 0.0f;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i += PIECE)
        dropout_span(i, n - i < PIECE ? n - i : PIECE, x + i, p, keep, seed, y + i);
}

SL_CLONES static float sumsq_span(const float *x, int64_t n)
{
    float s = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++)
        s += x[i] * x[i];
    return s;
}

void sl_cpu_sumsq_f32(struct sl_backend *be, int64_t n, const float *x, bool accumulate, float *out)
{
    int64_t pieces = (n + PIECE - 1) / PIECE;
    float *part = sl_cpu_shared(be, (size_t)pieces);
    if (!part)
        return;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SL_CPU_SMALL)
    for (int64_t i = 0; i < pieces; i++)
        part[i] = sumsq_span(x + i * PIECE, n - i * PIECE < PIECE ? n - i * PIECE : PIECE);
    double sum = accumulate ? (double)*out : 0.0;
    for (int64_t i = 0; i < pieces; i++)
        sum += (double)part[i];
    *out = (float)sum;
}

void sl_cpu_clip_scale(struct sl_backend *be, const float *sumsq, float max_norm, float *ret_scale)
{
    (void)be;
    if (!isfinite(*sumsq)) { /* an infinite norm would give scale 0, and 0 x inf in the update */
        *ret_scale = NAN;
        return;
    }
    float norm = sqrtf(*sumsq);
    *ret_scale = max_norm > 0.0f && norm > max_norm ? max_norm / norm : 1.0f;
}

/* k: lr, beta1, beta2, eps, lr*weight_decay, lr/bias1, 1/sqrt(bias2), gradient scale */
SL_CLONES static void adamw_span(int64_t n, float *p, const float *g, float *m, float *v,
                                 const float *k)
{
    float b1 = k[1], b2 = k[2], eps = k[3], decay = k[4], lr = k[5], root = k[6], scale = k[7];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * scale;
        float mi = b1 * m[i] + (1.0f - b1) * gi;
        float vi = b2 * v[i] + (1.0f - b2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] - decay * p[i] - lr * mi / (sqrtf(vi) * root + eps);
    }
}

void sl_cpu_adamw(struct sl_backend *be, int64_t n, float *p, const float *g, float *m, float *v,
                  const struct sl_adamw *hp, const float *scale)
{
    if (scale && !isfinite(*scale))
        return;
    double bias1 = 1.0 - pow((double)hp->beta1, hp->step),
           bias2 = 1.0 - pow((double)hp->beta2, hp->step);
    const float k[8] = {hp->lr,
                        hp->beta1,
                        hp->beta2,
                        hp->eps,
                        hp->lr * hp->weight_decay,
                        (float)((double)hp->lr / bias1),
                        (float)(1.0 / sqrt(bias2)),
                        scale ? *scale : 1.0f};
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i += PIECE)
        adamw_span(n - i < PIECE ? n - i : PIECE, p + i, g + i, m + i, v + i, k);
}
