/* Rotary position embedding, half-split order (Su et al. 2021, as Hugging Face's rotate_half). */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

SL_CLONES static void rope_row(float *x, int heads, int head_dim, int half, const float *cs,
                               float sign)
{
    for (int h = 0; h < heads; h++, x += head_dim) {
#pragma omp simd
        for (int i = 0; i < half; i++) {
            float c = cs[2 * i], s = sign * cs[2 * i + 1], a = x[i], b = x[i + half];
            x[i] = a * c - b * s;
            x[i + half] = b * c + a * s;
        }
    }
}

void sl_cpu_rope(struct sl_backend *be, sl_act *x, int64_t ld, int64_t rows, int heads,
                 int head_dim, int rope_dims, const int32_t *pos, const float *table, bool inverse)
{
    float *p = x;
    int64_t work = rows * heads * rope_dims;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (work > SL_CPU_SMALL)
    for (int64_t r = 0; r < rows; r++)
        rope_row(p + r * ld, heads, head_dim, rope_dims / 2, table + (int64_t)pos[r] * rope_dims,
                 inverse ? -1.0f : 1.0f);
}
