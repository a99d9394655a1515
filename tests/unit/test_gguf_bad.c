/* Model files that are refused: quickly, for the right reason, and never by reading outside them.
 */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/text/tokenizer.h"
#include "tests/unit/gguf_make.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

static void expect_refused(const void *data, size_t len, int code, const char *says)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_weights *w = NULL;
    struct gm_path f;
    gm_path_open(&f, data, len);
    int64_t start = sl_boot_us();
    int rc = sl_weights_open(f.path, &w, &err);
    if (sl_boot_us() - start > 500000)
        fail_msg("refusing '%s' took %.2f s", says, (double)(sl_boot_us() - start) * 1e-6);
    if (rc == 0)
        fail_msg("opened, though '%s' was expected", says);
    if (!strstr(err.msg, says) || !strstr(err.msg, f.path))
        fail_msg("'%s' does not say '%s' and the file", err.msg, says);
    if (code)
        assert_int_equal(rc, code);
    assert_null(w);
    gm_path_close(&f);
}

static void expect_llama_refused(const struct gm_change *c, int code, const char *says)
{
    struct sl_buf file;
    gm_llama(c, &file);
    expect_refused(file.p, file.len, code, says);
    sl_buf_release(&file);
}

static void test_truncated(void **state)
{
    struct sl_buf file;
    char says[128];
    (void)state;
    gm_llama(&(struct gm_change){0}, &file);
    for (size_t len = 4; len < file.len; len += len < 4096 ? 1 : 997)
        expect_refused(file.p, len, SL_DATA, "truncated");
    snprintf(says, sizeof says, "expected %zu bytes, found %zu", file.len, file.len - 1000);
    expect_refused(file.p, file.len - 1000, SL_DATA, says);
    expect_refused(file.p, 0, SL_DATA, "empty");
    expect_refused(file.p, 3, SL_DATA, "no model format that is known");
    sl_buf_release(&file);
}

static void experts(struct gm *m)
{
    gm_key_u32(m, "llama.expert_count", 8);
}
static void window(struct gm *m)
{
    gm_key_u32(m, "llama.attention.sliding_window", 8);
}
static void yarn(struct gm *m)
{
    gm_key_str(m, "llama.rope.scaling.type", "yarn");
}
static void value_length(struct gm *m)
{
    gm_key_u32(m, "llama.attention.value_length", 16);
}
static void vocab_size(struct gm *m)
{
    gm_key_u32(m, "llama.vocab_size", VOCAB + 1);
}
static void same_key(struct gm *m)
{
    gm_key_u32(m, "llama.block_count", 3);
}
static void key_length(struct gm *m)
{
    gm_key_u32(m, "llama.attention.key_length", 7);
}
static void no_alignment(struct gm *m)
{
    gm_key_u32(m, "general.alignment", 0);
}
static void odd_alignment(struct gm *m)
{
    gm_key_u32(m, "general.alignment", 48);
}
static void wide_alignment(struct gm *m)
{
    gm_key_u32(m, "general.alignment", 1u << 30);
}
static void text_alignment(struct gm *m)
{
    gm_key_str(m, "general.alignment", "32");
}
static void nan_scaling(struct gm *m)
{
    gm_key_f32(m, "llama.rope.dimension_count", NAN);
}

static void long_key(struct gm *m)
{
    gm_key(m, "k", GM_STRING);
    gm_u64(&m->keys, UINT64_MAX);
}

static void long_name(struct gm *m)
{
    m->n_keys++;
    gm_u64(&m->keys, UINT64_MAX - 7);
}

static void long_array(struct gm *m)
{
    gm_key_array(m, "k", GM_U32, UINT64_MAX / 2);
}
static void wide_array(struct gm *m)
{
    gm_key_array(m, "k", GM_U64, SL_MAX_VOCAB);
}
static void many_strings(struct gm *m)
{
    gm_key_array(m, "k", GM_STRING, 1 << 24);
}
static void nested(struct gm *m)
{
    gm_key_array(m, "k", GM_ARRAY, 1);
}
static void strange_type(struct gm *m)
{
    gm_key(m, "k\x1b[31m", 77);
}
static void strange_array(struct gm *m)
{
    gm_key_array(m, "k", 13, 1);
}

static void extra_tensor(struct gm *m)
{
    float v[4] = {0};
    gm_tensor(m, "blk.0.attn_sub_norm.weight", GM_T_F32, 4, 0, v, sizeof v);
}

static void same_tensor(struct gm *m)
{
    float v[H] = {0};
    gm_tensor(m, "output_norm.weight", GM_T_F32, H, 0, v, sizeof v);
}

static void third_layer(struct gm *m)
{
    float v[H] = {0};
    gm_tensor(m, "blk.2.attn_norm.weight", GM_T_F32, H, 0, v, sizeof v);
}

static void iq4(struct gm *m)
{
    gm_tensor(m, "x", 23, 256, 0, "", 0);
}
static void unknown_tensor_type(struct gm *m)
{
    gm_tensor(m, "x", 4, 256, 0, "", 0);
}
static void part_block(struct gm *m)
{
    gm_tensor(m, "x", GM_T_Q8_0, 33, 0, "", 0);
}
static void no_elements(struct gm *m)
{
    gm_tensor(m, "x", GM_T_F32, 0, 0, "", 0);
}
static void too_large(struct gm *m)
{
    gm_tensor(m, "x", GM_T_F32, 1 << 30, 1 << 30, "", 0);
}
static void negative(struct gm *m)
{
    gm_tensor(m, "x", GM_T_F32, -1, 0, "", 0);
}

static void five_dims(struct gm *m)
{
    m->n_tensors++;
    gm_str(&m->infos, "x");
    gm_u32(&m->infos, 5);
}

static void offset_tensor(struct gm *m, uint64_t offset)
{
    m->n_tensors++;
    gm_str(&m->infos, "x");
    gm_u32(&m->infos, 1);
    gm_u64(&m->infos, 4);
    gm_u32(&m->infos, GM_T_F32);
    gm_u64(&m->infos, offset);
}

static void odd_offset(struct gm *m)
{
    offset_tensor(m, 1);
}
static void far_offset(struct gm *m)
{
    offset_tensor(m, UINT64_MAX - 31);
}
static void late_offset(struct gm *m)
{
    offset_tensor(m, 1 << 20);
}
static void many_keys(struct gm *m)
{
    m->n_keys += UINT64_MAX / 2;
}
static void more_keys(struct gm *m)
{
    m->n_keys += 3000;
}
static void many_tensors(struct gm *m)
{
    m->n_tensors += UINT64_MAX / 2;
}
static void more_tensors(struct gm *m)
{
    m->n_tensors += 60000;
}
static void version1(struct gm *m)
{
    m->version = 1;
}
static void version4(struct gm *m)
{
    m->version = 4;
}
static void big_endian(struct gm *m)
{
    m->version = 3u << 24;
}

static void wrong_freqs(struct gm *m)
{
    float f[D / 2] = {1, 2, 3, 4};
    gm_tensor(m, "rope_freqs.weight", GM_T_F32, D / 2, 0, f, sizeof f);
}

static void test_refused(void **state)
{
    static const struct {
        struct gm_change change;
        int code;
        const char *says;
    } cases[] = {
        {{.arch = "falcon"},
         SL_SPEC,
         "architecture 'falcon' is not supported (supported in GGUF: llama, gpt2)"},
        {{.without_key = "llama.block_count"}, SL_DATA, "key 'llama.block_count' is missing"},
        {{.without_tensor = "blk.1.ffn_up.weight"}, SL_DATA, "weight 'layers.1.up' is missing"},
        {{.without_tensor = "token_embd.weight"}, SL_DATA, "'token_embd.weight' is missing"},
        {{.without_tensor = "output_norm.weight"}, SL_DATA, "weight 'norm.weight' is missing"},
        {{.more = extra_tensor}, SL_SPEC, "tensor 'blk.0.attn_sub_norm.weight' belongs to no"},
        {{.more = same_tensor}, SL_DATA, "tensor 'output_norm.weight' comes twice"},
        {{.more = third_layer},
         SL_SPEC,
         "weight 'layers.2.norm1.weight' does not belong to a model of 2 layers"},
        {{.more = experts}, SL_SPEC, "mixture of experts is not supported"},
        {{.more = window}, SL_SPEC, "sliding window is not supported"},
        {{.more = yarn}, SL_SPEC, "rope scaling 'yarn' is not supported"},
        {{.more = value_length}, SL_SPEC, "'llama.attention.value_length'"},
        {{.more = vocab_size}, SL_DATA, "'llama.vocab_size' is not the embedding's 12"},
        {{.more = same_key}, SL_DATA, "key 'llama.block_count' comes twice"},
        {{.more = key_length}, SL_DATA, "rotary embedding over 7 of 7"},
        {{.more = no_alignment}, SL_DATA, "general.alignment is 0"},
        {{.more = odd_alignment}, SL_DATA, "general.alignment is 48"},
        {{.more = wide_alignment}, SL_DATA, "general.alignment is 1073741824"},
        {{.more = text_alignment}, SL_DATA, "'general.alignment' is not a whole number"},
        {{.more = nan_scaling}, SL_DATA, "'llama.rope.dimension_count' is not a whole number"},
        {{.more = long_key}, SL_DATA, "a key's string has 18446744073709551615 bytes"},
        {{.more = long_name}, SL_DATA, "a key has 18446744073709551608 bytes"},
        {{.more = long_array}, SL_DATA, "at most 16777216 are allowed"},
        {{.more = wide_array}, SL_DATA, "truncated: a key's value"},
        {{.more = many_strings}, SL_DATA, "at byte"},
        {{.more = nested}, SL_DATA, "array of type 9, which is not supported"},
        {{.more = strange_type}, SL_DATA, "key 'k?[31m' has the unknown type 77"},
        {{.more = strange_array}, SL_DATA, "array of type 13"},
        {{.more = iq4}, SL_SPEC, "tensor 'x' has type IQ4_XS, which is not supported"},
        {{.more = unknown_tensor_type}, SL_DATA, "tensor 'x' has the unknown type 4"},
        {{.more = part_block}, SL_DATA, "rows of 33 elements, not a multiple of Q8_0's 32"},
        {{.more = no_elements}, SL_DATA, "impossible dimension 0"},
        {{.more = too_large}, SL_DATA, "impossible dimension 1073741824"},
        {{.more = negative}, SL_DATA, "impossible dimension 18446744073709551615"},
        {{.more = five_dims}, SL_DATA, "5 dimensions"},
        {{.more = odd_offset}, SL_DATA, "offset 1, not a multiple of 32"},
        {{.more = far_offset}, SL_DATA, "impossible offset"},
        {{.more = late_offset}, SL_DATA, "truncated: its tensors end"},
        {{.more = many_keys}, SL_DATA, "keys; at most 4096"},
        {{.more = more_keys}, SL_DATA, "at byte"},
        {{.more = many_tensors}, SL_DATA, "tensors; at most 65536"},
        {{.more = more_tensors}, SL_DATA, "truncated: no room for 600"},
        {{.more = version1}, SL_SPEC, "GGUF version 1 is not supported (supported: 2 and 3)"},
        {{.more = version4}, SL_SPEC, "GGUF version 4 is not supported"},
        {{.more = big_endian}, SL_SPEC, "big-endian"},
        {{.more = wrong_freqs}, SL_SPEC, "not the rope scaling of Llama 3"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_llama_refused(&cases[i].change, cases[i].code, cases[i].says);
}

static void test_other_formats(void **state)
{
    static const struct {
        size_t at;
        const char *magic, *says;
    } cases[] = {
        {8, "{\"__metadata__\":", "a safetensors file without its config.json"},
        {0, "PK\3\4", "zip archive"},
        {0, "lmgg", "from before GGUF"},
        {0, "Hello", "no model format that is known"},
    };
    struct sl_err err = SL_ERR_INIT;
    struct sl_weights *w = NULL;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char data[300] = "";
        memcpy(data + cases[i].at, cases[i].magic, strlen(cases[i].magic));
        expect_refused(data, sizeof data, 0, cases[i].says);
    }
    assert_int_equal(sl_weights_open("/nonexistent/model.gguf", &w, &err), SL_NOTFOUND);
    assert_non_null(strstr(err.msg, "/nonexistent/model.gguf"));
    sl_err_clear(&err);
    assert_int_equal(sl_weights_open("/", &w, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "directory"));
    sl_err_clear(&err);
    assert_int_equal(sl_weights_open("/dev/null", &w, &err), SL_SPEC);
    assert_null(w);
    sl_weights_close(NULL);
}

static void expect_no_tokenizer(const struct gm_change *c, int code, const char *says)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    struct sl_weights *w = gm_open_llama(c);
    assert_int_equal(sl_weights_tokenizer(w, &t, &err), code);
    if (!strstr(err.msg, says))
        fail_msg("'%s' does not say '%s'", err.msg, says);
    assert_null(t);
    sl_weights_close(w);
}

static void test_bad_tokenizers(void **state)
{
    (void)state;
    expect_no_tokenizer(&(struct gm_change){.no_tokenizer = true}, SL_NOTFOUND,
                        "carries no tokenizer");
    expect_no_tokenizer(&(struct gm_change){.pre = "tekken"}, SL_SPEC, "pre-tokenizer 'tekken'");
    expect_no_tokenizer(&(struct gm_change){.pre = ""}, SL_DATA, "'tokenizer.ggml.pre' is missing");
    expect_no_tokenizer(&(struct gm_change){.tokenizer_model = "t5"}, SL_SPEC,
                        "tokenizer model 't5'");
    expect_no_tokenizer(&(struct gm_change){.tokens = VOCAB + 1}, SL_DATA,
                        "13 tokens, the embedding 12 rows");
    expect_no_tokenizer(&(struct gm_change){.tokens = 4}, SL_DATA,
                        "eos token is 7, but there are 4 tokens");
}

/* Random damage: refused or opened, but never a read outside the file (the sanitizers would tell).
 */
static void test_damaged(void **state)
{
    struct sl_buf file;
    struct sl_rng rng = sl_rng_new(5, 0);
    static float out[3 * FFN * FFN];
    int opened = 0;
    (void)state;
    gm_llama(&(struct gm_change){.bias = true}, &file);
    size_t head = file.len;
    for (size_t i = 0; i + 8 < file.len; i++) /* the tensors' data needs little of the damage */
        if (!memcmp(file.p + i, "output_norm.weight", 18))
            head = i + 64;
    char *damaged = malloc(file.len);
    for (int round = 0; round < 40000; round++) {
        struct sl_err err = SL_ERR_INIT;
        struct sl_tokenizer *t = NULL;
        struct sl_weights *w;
        struct gm_path f;
        size_t len = sl_rng_below(&rng, 4) ? file.len : sl_rng_below(&rng, file.len);
        memcpy(damaged, file.p, file.len);
        for (uint64_t n = 1 + sl_rng_below(&rng, 3); n > 0; n--) {
            size_t at = sl_rng_below(&rng, head);
            damaged[at] = sl_rng_below(&rng, 2) ? (char)sl_rng_next(&rng) : (char)(damaged[at] ^ 1);
        }
        gm_path_open(&f, damaged, len);
        int rc = sl_weights_open(f.path, &w, &err);
        assert_true(rc == 0 || err.msg[0]);
        if (rc == 0) {
            int64_t rows, cols;
            char hex[SL_SHA256_HEX + 1];
            const char *const names[] = {"embed", "layers.1.q", "layers.0.k.bias", "norm.weight"};
            opened++;
            for (int i = 0; i < 4; i++)
                if (sl_weights_shape(w, names[i], &rows, &cols, NULL) == 0)
                    assert_int_equal(sl_weights_read_f32(w, names[i], 0, rows, out, NULL), 0);
            assert_int_equal(sl_weights_digest(w, hex, NULL), 0);
            if (sl_weights_tokenizer(w, &t, NULL) == 0) {
                struct sl_ids ids = {0};
                assert_int_equal(sl_tokenize(t, "abc a\xff<e>", 9, true, &ids, NULL), 0);
                sl_ids_release(&ids);
            }
            sl_tokenizer_free(t);
            sl_weights_close(w);
        }
        gm_path_close(&f);
    }
    assert_in_range(opened, 400, 39600); /* both happened */
    free(damaged);
    sl_buf_release(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncated),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_other_formats), cmocka_unit_test(test_bad_tokenizers),
        cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
