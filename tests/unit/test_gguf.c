/* What is read from model files: every weight in its place, the architecture, digest and tokenizer.
 */
#include "engine/text/tokenizer.h"
#include "tests/unit/gguf_make.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>
#include <sched.h>

/* Every range of rows of the weight is what gm_element() says. row_at: the first row in the made
 * matrix. */
static void expect_matrix(const struct sl_weights *w, const char *name, int seed, int row_at,
                          int rows, int cols)
{
    struct sl_err err = SL_ERR_INIT;
    int64_t got_rows = 0, got_cols = 0;
    static float out[3 * FFN * FFN];
    if (sl_weights_shape(w, name, &got_rows, &got_cols, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(got_rows, rows);
    assert_int_equal(got_cols, cols);
    for (int from = 0; from < rows; from += from < 3 ? 1 : rows / 3) {
        for (int n = 0; n <= rows - from; n += n < 2 ? 1 : rows - from - n + 1) {
            out[n * cols] = -1;
            assert_int_equal(sl_weights_read_f32(w, name, from, n, out, &err), 0);
            for (int i = 0; i < n * cols; i++)
                if (out[i] != gm_element(seed, row_at + from + i / cols, i % cols))
                    fail_msg("%s rows %d+%d: element %d is %g", name, from, n, i, (double)out[i]);
            assert_true(out[n * cols] == -1);
        }
    }
}

/* A vector, as put_vector makes it from element at_first on. */
static void expect_vector(const struct sl_weights *w, const char *name, int seed, int at_first,
                          int n)
{
    struct sl_err err = SL_ERR_INIT;
    float out[3 * FFN];
    int64_t rows = 0, cols = 0;
    if (sl_weights_shape(w, name, &rows, &cols, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(rows, 1);
    assert_int_equal(cols, n);
    assert_int_equal(sl_weights_read_f32(w, name, 0, 1, out, &err), 0);
    for (int i = 0; i < n; i++)
        if (out[i] != gm_element(seed, at_first + i, 0))
            fail_msg("%s: element %d is %g", name, i, (double)out[i]);
}

static void expect_llama(const struct sl_weights *w, bool bias)
{
    expect_matrix(w, "embed", 1, 0, VOCAB, H);
    expect_matrix(w, "layers.1.q", 11, 0, HEADS * D, H);
    expect_matrix(w, "layers.0.k", 20, 0, KV * D, H);
    expect_matrix(w, "layers.1.v", 31, 0, KV * D, H);
    expect_matrix(w, "layers.0.o", 40, 0, H, HEADS * D);
    expect_matrix(w, "layers.1.gate", 51, 0, FFN, H);
    expect_matrix(w, "layers.0.up", 60, 0, FFN, H);
    expect_matrix(w, "layers.1.down", 71, 0, H, FFN);
    expect_vector(w, "layers.1.norm1.weight", 81, 0, H);
    expect_vector(w, "layers.0.norm2.weight", 90, 0, H);
    expect_vector(w, "norm.weight", 2, 0, H);
    if (bias) {
        expect_vector(w, "layers.0.q.bias", 11, 0, HEADS * D);
        expect_vector(w, "layers.1.k.bias", 22, 0, KV * D);
        expect_vector(w, "layers.1.v.bias", 32, 0, KV * D);
    }
}

static void test_llama(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    int64_t rows = -1, cols = -1;
    float out[H];
    (void)state;
    struct sl_weights *w = gm_open_llama(&(struct gm_change){.head = true, .bias = true});
    const struct sl_arch *a = sl_weights_arch(w);
    assert_int_equal(a->family, SL_LLAMA);
    assert_int_equal(a->activation, SL_SWIGLU);
    assert_true(a->rms_norm && !a->learned_pos && !a->tied);
    assert_int_equal(a->layers, LAYERS);
    assert_int_equal(a->hidden, H);
    assert_int_equal(a->heads, HEADS);
    assert_int_equal(a->kv_heads, KV);
    assert_int_equal(a->head_dim, D);
    assert_int_equal(a->rope_dims, D);
    assert_int_equal(a->ffn, FFN);
    assert_int_equal(a->vocab, VOCAB);
    assert_int_equal(a->max_positions, POSITIONS);
    assert_true(a->norm_eps == 1e-5f && a->rope_base == 10000.0f);
    assert_int_equal(a->rope_scaling, SL_ROPE_PLAIN);
    assert_string_equal(a->name, "Tiny");
    expect_llama(w, true);
    expect_matrix(w, "head", 3, 0, VOCAB, H);
    assert_int_equal(sl_weights_shape(w, "layers.0.norm1.bias", &rows, &cols, &err), SL_NOTFOUND);
    assert_non_null(strstr(err.msg, "no weight 'layers.0.norm1.bias'"));
    assert_int_equal(rows, -1);
    sl_err_clear(&err);
    assert_int_equal(sl_weights_read_f32(w, "embed", VOCAB, 1, out, &err), SL_SPEC);
    assert_int_equal(sl_weights_read_f32(w, "embed", -1, 1, out, NULL), SL_SPEC);
    assert_int_equal(sl_weights_read_f32(w, "embed", 1, INT64_MAX, out, NULL), SL_SPEC);
    sl_weights_close(w);
    w = gm_open_llama(&(struct gm_change){.q8 = true});
    assert_true(sl_weights_arch(w)->tied);
    assert_int_equal(sl_weights_shape(w, "head", &rows, &cols, NULL), SL_NOTFOUND);
    expect_llama(w, false);
    sl_weights_close(w);
}

static void test_gpt2(void **state)
{
    struct sl_buf file;
    (void)state;
    for (int q8 = 0; q8 < 2; q8++) {
        gm_gpt2(&(struct gm_change){.q8 = q8}, &file);
        struct sl_weights *w = gm_open(file.p, file.len);
        const struct sl_arch *a = sl_weights_arch(w);
        assert_int_equal(a->family, SL_GPT2);
        assert_int_equal(a->activation, SL_GELU_TANH);
        assert_true(!a->rms_norm && a->learned_pos && a->tied);
        assert_int_equal(a->kv_heads, HEADS);
        assert_int_equal(a->head_dim, D);
        expect_matrix(w, "embed", 1, 0, VOCAB, H);
        expect_matrix(w, "pos_embed", 4, 0, POSITIONS, H);
        for (int i = 0; i < LAYERS; i++) {
            char name[64];
#define OURS(s) (snprintf(name, sizeof name, "layers.%d.%s", i, s), name)
            expect_matrix(w, OURS("q"), 10 + i, 0, H, H);
            expect_matrix(w, OURS("k"), 10 + i, H, H, H);
            expect_matrix(w, OURS("v"), 10 + i, 2 * H, H, H);
            expect_vector(w, OURS("q.bias"), 20 + i, 0, H);
            expect_vector(w, OURS("k.bias"), 20 + i, H, H);
            expect_vector(w, OURS("v.bias"), 20 + i, 2 * H, H);
            expect_vector(w, OURS("up.bias"), 60 + i, 0, FFN);
            expect_vector(w, OURS("norm2.bias"), 93 + i, 0, H);
        }
        expect_vector(w, "norm.bias", 3, 0, H);
        sl_weights_close(w);
        sl_buf_release(&file);
    }
}

static void llama3_freqs(struct gm *m)
{
    /* Base 500000 over 8 dimensions: wavelengths 6.3, 167, 4443, 118000; the third is in the smooth
     * part. */
    double smooth = (8192.0 / (2 * M_PI * sqrt(500000)) - 1) / 3;
    float f[D / 2] = {1, 1, (float)(1 / ((1 - smooth) / 32 + smooth)), 32};
    gm_tensor(m, "rope_freqs.weight", GM_T_F32, D / 2, 0, f, sizeof f);
}

static void linear_scaling(struct gm *m)
{
    gm_key_str(m, "llama.rope.scaling.type", "linear");
    gm_key_f32(m, "llama.rope.scaling.factor", 4);
}

static void old_linear_scaling(struct gm *m)
{
    gm_key_f32(m, "llama.rope.scale_linear", 4);
}

static void test_rope_scaling(void **state)
{
    (void)state;
    void (*const linear[])(struct gm *) = {linear_scaling, old_linear_scaling};
    for (int i = 0; i < 2; i++) {
        struct sl_weights *w = gm_open_llama(&(struct gm_change){.more = linear[i]});
        assert_int_equal(sl_weights_arch(w)->rope_scaling, SL_ROPE_LINEAR);
        assert_true(sl_weights_arch(w)->rope_factor == 4);
        sl_weights_close(w);
    }
    struct sl_weights *w =
        gm_open_llama(&(struct gm_change){.more = llama3_freqs, .rope_base = 500000});
    const struct sl_arch *a = sl_weights_arch(w);
    assert_int_equal(a->rope_scaling, SL_ROPE_LLAMA3);
    assert_true(a->rope_factor == 32 && a->rope_low_freq == 1 && a->rope_high_freq == 4);
    assert_int_equal(a->rope_original_positions, 8192);
    sl_weights_close(w);
}

static void other_key(struct gm *m)
{
    gm_key_u32(m, "general.something", 1);
}

static void test_digest(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    char first[SL_SHA256_HEX + 1], hex[SL_SHA256_HEX + 1];
    struct sl_buf file;
    (void)state;
    struct sl_weights *w = gm_open_llama(&(struct gm_change){0});
    assert_int_equal(sl_weights_digest(w, first, &err), 0);
    assert_true(sl_sha256_valid(first));
    assert_int_equal(sl_weights_digest(w, hex, &err), 0);
    assert_string_equal(hex, first);
    sl_weights_close(w);
    /* Keys are not part of it, the type of the tensors and every byte of them are. */
    w = gm_open_llama(&(struct gm_change){.more = other_key, .no_tokenizer = true});
    assert_int_equal(sl_weights_digest(w, hex, &err), 0);
    assert_string_equal(hex, first);
    sl_weights_close(w);
    /* On a thread of its own it is the same; a file may be closed meanwhile. */
    w = gm_open_llama(&(struct gm_change){0});
    sl_weights_digest_begin(w);
    sl_weights_digest_begin(w);
    assert_int_equal(sl_weights_digest(w, hex, &err), 0);
    assert_string_equal(hex, first);
    sl_weights_close(w);
    w = gm_open_llama(&(struct gm_change){0});
    sl_weights_digest_begin(w);
    sl_weights_close(w);
    /* As on any number of processors. */
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    w = gm_open_llama(&(struct gm_change){0});
    assert_int_equal(sl_weights_digest(w, hex, &err), 0);
    assert_string_equal(hex, first);
    sl_weights_close(w);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
    w = gm_open_llama(&(struct gm_change){.q8 = true});
    assert_int_equal(sl_weights_digest(w, hex, &err), 0);
    assert_string_not_equal(hex, first);
    sl_weights_close(w);
    gm_llama(&(struct gm_change){0}, &file);
    for (size_t back = 1; back < 4000; back += 777) {
        file.p[file.len - back] ^= 1;
        w = gm_open(file.p, file.len);
        assert_int_equal(sl_weights_digest(w, hex, &err), 0);
        assert_string_not_equal(hex, first);
        sl_weights_close(w);
        file.p[file.len - back] ^= 1;
    }
    sl_buf_release(&file);
}

static void test_tokenizer(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    struct sl_ids ids = {0};
    (void)state;
    struct sl_weights *w = gm_open_llama(&(struct gm_change){0});
    if (sl_weights_tokenizer(w, &t, &err) < 0)
        fail_msg("%s", err.msg);
    sl_weights_close(w); /* the tokenizer stands on its own */
    assert_int_equal(sl_tokenizer_vocab(t), VOCAB);
    assert_int_equal(sl_tokenizer_eos(t), 7);
    assert_int_equal(sl_tokenizer_bos(t), -1);
    assert_int_equal(sl_tokenize(t, "abc a<e>", 8, true, &ids, &err), 0);
    const int32_t want[] = {3, 6, 5, 7};
    assert_int_equal(ids.n, 4);
    assert_memory_equal(ids.id, want, sizeof want);
    sl_ids_release(&ids);
    sl_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_rope_scaling), cmocka_unit_test(test_digest),
        cmocka_unit_test(test_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
