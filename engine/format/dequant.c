#include "engine/format/dequant.h"
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "model files are read as little-endian");

static const struct sl_dtype_info infos[SL_N_DTYPES] = {
    [SL_DT_F32] = {"F32", 1, 4},       [SL_DT_F16] = {"F16", 1, 2},
    [SL_DT_BF16] = {"BF16", 1, 2},     [SL_DT_Q8_0] = {"Q8_0", 32, 34},
    [SL_DT_Q4_0] = {"Q4_0", 32, 18},   [SL_DT_Q4_1] = {"Q4_1", 32, 20},
    [SL_DT_Q5_0] = {"Q5_0", 32, 22},   [SL_DT_Q5_1] = {"Q5_1", 32, 24},
    [SL_DT_Q4_K] = {"Q4_K", 256, 144}, [SL_DT_Q5_K] = {"Q5_K", 256, 176},
    [SL_DT_Q6_K] = {"Q6_K", 256, 210},
};

const struct sl_dtype_info *sl_dtype_info(enum sl_dtype t)
{
    return &infos[t];
}

static inline float bits_to_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t float_to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* Branch-free, so that loops over it vectorise; exact for zeros, subnormals, infinities and NaN. */
static inline float half_to_float(uint16_t h)
{
    uint32_t w = (uint32_t)h << 16, sign = w & 0x80000000u, two_w = w + w;
    float normal = bits_to_float((two_w >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    float subnormal = bits_to_float((two_w >> 17) | (126u << 23)) - 0.5f;
    uint32_t small = -(uint32_t)(two_w < (1u << 27));
    return bits_to_float(sign | (float_to_bits(subnormal) & small) |
                         (float_to_bits(normal) & ~small));
}

static inline uint16_t load16(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t load32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float load_half(const unsigned char *p)
{
    return half_to_float(load16(p));
}

static void row_f16(const unsigned char *s, int64_t n, float *restrict out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = load_half(s + 2 * i);
}

static void row_bf16(const unsigned char *s, int64_t n, float *restrict out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = bits_to_float((uint32_t)load16(s + 2 * i) << 16);
}

static void block_q8_0(const unsigned char *s, float *restrict out)
{
    float d = load_half(s);
    const signed char *q = (const signed char *)s + 2;
    for (int i = 0; i < 32; i++)
        out[i] = d * (float)q[i];
}

/* The 4-bit formats hold element i in the low and element i+16 in the high half of byte i. */
static void block_q4_0(const unsigned char *s, float *restrict out)
{
    float d = load_half(s);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((s[2 + i] & 15) - 8);
        out[i + 16] = d * (float)((s[2 + i] >> 4) - 8);
    }
}

static void block_q4_1(const unsigned char *s, float *restrict out)
{
    float d = load_half(s), m = load_half(s + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(s[4 + i] & 15) + m;
        out[i + 16] = d * (float)(s[4 + i] >> 4) + m;
    }
}

/* Q5: the fifth bit of element i is bit i of a 32-bit word. */
static void block_q5_0(const unsigned char *s, float *restrict out)
{
    float d = load_half(s);
    uint32_t high = load32(s + 2);
    const unsigned char *q = s + 6;
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((int)((q[i] & 15) | ((high >> i & 1) << 4)) - 16);
        out[i + 16] = d * (float)((int)((q[i] >> 4) | ((high >> (i + 16) & 1) << 4)) - 16);
    }
}

static void block_q5_1(const unsigned char *s, float *restrict out)
{
    float d = load_half(s), m = load_half(s + 2);
    uint32_t high = load32(s + 4);
    const unsigned char *q = s + 8;
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(int)((q[i] & 15) | ((high >> i & 1) << 4)) + m;
        out[i + 16] = d * (float)(int)((q[i] >> 4) | ((high >> (i + 16) & 1) << 4)) + m;
    }
}

/* Q4_K and Q5_K: eight 6-bit scales and minima packed in 12 bytes. */
static void scale_min(const unsigned char *q, int j, float d, float dmin, float *scale, float *min)
{
    int s, m;
    if (j < 4) {
        s = q[j] & 63;
        m = q[j + 4] & 63;
    } else {
        s = (q[j + 4] & 15) | (q[j - 4] >> 6 << 4);
        m = (q[j + 4] >> 4) | (q[j] >> 6 << 4);
    }
    *scale = d * (float)s;
    *min = dmin * (float)m;
}

static void block_q4_k(const unsigned char *s, float *restrict out)
{
    float d = load_half(s), dmin = load_half(s + 2);
    for (int j = 0; j < 4; j++) {
        const unsigned char *q = s + 16 + 32 * j;
        float d1, m1, d2, m2;
        scale_min(s + 4, 2 * j, d, dmin, &d1, &m1);
        scale_min(s + 4, 2 * j + 1, d, dmin, &d2, &m2);
        for (int i = 0; i < 32; i++) {
            out[64 * j + i] = d1 * (float)(q[i] & 15) - m1;
            out[64 * j + 32 + i] = d2 * (float)(q[i] >> 4) - m2;
        }
    }
}

static void block_q5_k(const unsigned char *s, float *restrict out)
{
    float d = load_half(s), dmin = load_half(s + 2);
    const unsigned char *high = s + 16;
    for (int j = 0; j < 4; j++) {
        const unsigned char *q = s + 48 + 32 * j;
        float d1, m1, d2, m2;
        scale_min(s + 4, 2 * j, d, dmin, &d1, &m1);
        scale_min(s + 4, 2 * j + 1, d, dmin, &d2, &m2);
        for (int i = 0; i < 32; i++) {
            out[64 * j + i] = d1 * (float)((q[i] & 15) | (high[i] >> (2 * j) & 1) << 4) - m1;
            out[64 * j + 32 + i] =
                d2 * (float)((q[i] >> 4) | (high[i] >> (2 * j + 1) & 1) << 4) - m2;
        }
    }
}

static void block_q6_k(const unsigned char *s, float *restrict out)
{
    float d = load_half(s + 208);
    for (int half = 0; half < 2; half++) {
        const unsigned char *low = s + 64 * half, *high = s + 128 + 32 * half;
        const signed char *scale = (const signed char *)s + 192 + 8 * half;
        float *y = out + 128 * half;
        for (int i = 0; i < 32; i++) {
            int k = i / 16, h = high[i];
            y[i] = d * (float)scale[k] * (float)(((low[i] & 15) | (h & 3) << 4) - 32);
            y[i + 32] =
                d * (float)scale[k + 2] * (float)(((low[i + 32] & 15) | (h >> 2 & 3) << 4) - 32);
            y[i + 64] = d * (float)scale[k + 4] * (float)((low[i] >> 4 | (h >> 4 & 3) << 4) - 32);
            y[i + 96] = d * (float)scale[k + 6] * (float)((low[i + 32] >> 4 | (h >> 6) << 4) - 32);
        }
    }
}

void sl_dequant_row(enum sl_dtype t, const void *src, int64_t n, float *out)
{
    static void (*const block_fn[SL_N_DTYPES])(const unsigned char *, float *restrict) = {
        [SL_DT_Q8_0] = block_q8_0, [SL_DT_Q4_0] = block_q4_0, [SL_DT_Q4_1] = block_q4_1,
        [SL_DT_Q5_0] = block_q5_0, [SL_DT_Q5_1] = block_q5_1, [SL_DT_Q4_K] = block_q4_k,
        [SL_DT_Q5_K] = block_q5_k, [SL_DT_Q6_K] = block_q6_k,
    };
    const unsigned char *s = src;
    if (t == SL_DT_F32) {
        memcpy(out, src, (size_t)n * sizeof *out);
    } else if (t == SL_DT_F16) {
        row_f16(s, n, out);
    } else if (t == SL_DT_BF16) {
        row_bf16(s, n, out);
    } else {
        int step = infos[t].block, step_bytes = infos[t].block_bytes;
        for (int64_t i = 0; i + step <= n; i += step, s += step_bytes)
            block_fn[t](s, out + i);
    }
}
