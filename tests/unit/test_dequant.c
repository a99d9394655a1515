/* Stored tensor types against the gguf package's values, bit for bit
 * (tests/golden/make_dequant.py). */
#include "engine/format/dequant.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void test_recorded_values(void **state)
{
    struct golden g;
    (void)state;
    golden_open(&g, "dequant.safetensors");
    for (int t = 0; t < SL_N_DTYPES; t++) {
        const struct sl_dtype_info *info = sl_dtype_info((enum sl_dtype)t);
        char name[64];
        int64_t n_words, n;
        snprintf(name, sizeof name, "%s.blocks", info->name);
        const int32_t *blocks = golden_i32(&g, name, &n_words);
        snprintf(name, sizeof name, "%s.values", info->name);
        const float *want = golden_f32(&g, name, &n);
        assert_int_equal(n / info->block * info->block_bytes, n_words * 4);
        /* Off by one byte: rows of a file are aligned to nothing. */
        unsigned char *raw = malloc((size_t)n_words * 4 + 1);
        float *got = malloc((size_t)(n + 1) * sizeof *got);
        memcpy(raw + 1, blocks, (size_t)n_words * 4);
        got[n] = 12345.0f;
        sl_dequant_row((enum sl_dtype)t, raw + 1, n, got);
        for (int64_t i = 0; i < n; i++)
            if (bits(got[i]) != bits(want[i]) && !(got[i] == 0 && want[i] == 0))
                fail_msg("%s element %d: %.9g, expected %.9g", info->name, (int)i, (double)got[i],
                         (double)want[i]);
        assert_true(got[n] == 12345.0f);
        /* Any whole number of blocks, from any block on. */
        float one[256];
        int64_t from = n / info->block / 2;
        sl_dequant_row((enum sl_dtype)t, raw + 1 + from * info->block_bytes, info->block, one);
        assert_memory_equal(one, got + from * info->block, (size_t)info->block * sizeof *one);
        free(raw);
        free(got);
    }
    golden_close(&g);
}

/* Every half-precision number against its definition. */
static void test_every_half(void **state)
{
    uint16_t *h = malloc(65536 * sizeof *h);
    float *got = malloc(65536 * sizeof *got);
    (void)state;
    for (int i = 0; i < 65536; i++)
        h[i] = (uint16_t)i;
    sl_dequant_row(SL_DT_F16, h, 65536, got);
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, fraction = i & 1023;
        double want = exponent == 31 ? INFINITY
                      : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                     : ldexp(fraction, -24);
        if (exponent == 31 && fraction) {
            assert_true(isnan(got[i]));
            continue;
        }
        if ((double)got[i] != (i & 0x8000 ? -want : want) || !signbit(got[i]) != !(i & 0x8000))
            fail_msg("half %04x: %.9g, expected %.9g", (unsigned)i, (double)got[i], want);
    }
    free(h);
    free(got);
}

static void test_every_bfloat(void **state)
{
    uint16_t *b = malloc(65536 * sizeof *b);
    float *got = malloc(65536 * sizeof *got);
    (void)state;
    for (int i = 0; i < 65536; i++)
        b[i] = (uint16_t)i;
    sl_dequant_row(SL_DT_BF16, b, 65536, got);
    for (int i = 0; i < 65536; i++)
        assert_int_equal(bits(got[i]), (uint32_t)i << 16);
    free(b);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorded_values),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_every_bfloat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
