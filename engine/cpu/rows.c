/* Embeddings, gather and scatter: rows moved by index. */
#include "engine/cpu/cpu.h"
#include <string.h>

static void add_to(float *y, const float *x, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] += x[i];
}

void sl_cpu_embed(struct sl_backend *be, const struct sl_weight *embed,
                  const struct sl_weight *pos_embed, const float *prompts, const int32_t *src,
                  const int32_t *pos, int64_t rows, int hidden, sl_act *x)
{
    float *out = x;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (rows * hidden > SL_CPU_SMALL)
    for (int64_t t = 0; t < rows; t++) {
        const float *from = src[t] >= 0 ? embed->data + (int64_t)src[t] * hidden
                                        : prompts + -((int64_t)src[t] + 1) * hidden;
        memcpy(out + t * hidden, from, (size_t)hidden * sizeof *out);
        if (pos_embed)
            add_to(out + t * hidden, pos_embed->data + (int64_t)pos[t] * hidden, hidden);
    }
}

void sl_cpu_embed_back(struct sl_backend *be, const sl_act *dx, int hidden, const int32_t *ptr,
                       const int32_t *list, int n_prompts, float *dprompts)
{
    const float *d = dx;
    bool many = n_prompts > 0 && (int64_t)ptr[n_prompts] * hidden > SL_CPU_SMALL;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (many)
    for (int p = 0; p < n_prompts; p++)
        for (int32_t i = ptr[p]; i < ptr[p + 1]; i++)
            add_to(dprompts + (int64_t)p * hidden, d + (int64_t)list[i] * hidden, hidden);
}

void sl_cpu_gather(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index,
                   int64_t n, int cols, sl_act *y, int64_t ldy)
{
    const float *in = x;
    float *out = y;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n * cols > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * ldy, in + index[i] * ldx, (size_t)cols * sizeof *out);
}

void sl_cpu_scatter(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index,
                    int64_t n, int cols, bool add, sl_act *y, int64_t ldy)
{
    const float *in = x;
    float *out = y;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n * cols > SL_CPU_SMALL)
    for (int64_t i = 0; i < n; i++) {
        if (add)
            add_to(out + index[i] * ldy, in + i * ldx, cols);
        else
            memcpy(out + index[i] * ldy, in + i * ldx, (size_t)cols * sizeof *out);
    }
}
