/* .nemo archives: every layout of the same GPT-2 (tests/golden/make_nemo.py) gives the logits that
 * transformers gives, to 1e-4; what is not supported, damaged or hostile is refused in words. */
#include "base/digest.h"
#include "engine/batch.h"
#include "engine/model.h"
#include "engine/format/tar.h"
#include "engine/text/tokenizer.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

#define TOLERANCE 1e-4
#define MAX_IDS 64

static struct golden g;
static struct sl_err err;

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static struct sl_weights *open_golden(const char *name)
{
    char path[SL_PATH_MAX];
    struct sl_weights *w = NULL;

    golden_path(path, name);
    sl_err_clear(&err);
    ok(sl_weights_open(path, &w, &err));
    return w;
}

/* The distance of our logits from the recorded ones; every position is an out row. */
static double logits_distance(const struct sl_weights *w, const char *reference)
{
    const struct sl_arch *a = sl_weights_arch(w);
    int64_t n = 0, n_want = 0;
    const int32_t *ids = golden_i32(&g, "ids", &n);
    const float *want = golden_f32(&g, reference, &n_want);
    unsigned char target[MAX_IDS] = {0};
    int32_t padded[MAX_IDS];
    struct sl_backend *be = NULL;
    struct sl_model *model = NULL;
    struct sl_batch batch;
    double distance;
    float *got;

    assert_true(n + 1 <= MAX_IDS && n_want == n * a->vocab);
    memcpy(padded, ids, (size_t)n * sizeof *ids);
    padded[n] = 0; /* one more, so that the last recorded position predicts something */
    memset(target + 1, 1, (size_t)n);
    ok(sl_cpu_ops.open(&(struct sl_backend_opts){.threads = 1}, &be, &err));
    ok(sl_model_new(w, &sl_cpu_ops, be, &model, &err));
    ok(sl_batch_pack(&(struct sl_row){.n = (int)n + 1, .id = padded, .target = target}, 1,
                     &(int){0}, 1, a->vocab, a->max_positions, true, 0, &batch, &err));
    assert_int_equal(batch.n_out, n);
    got = malloc((size_t)n_want * sizeof *got);
    assert_non_null(got);
    ok(sl_model_logits(model, &batch, NULL, got, &err));
    distance = golden_distance(got, want, n_want);
    free(got);
    sl_batch_release(&batch);
    sl_model_free(model);
    sl_cpu_ops.close(be);
    return distance;
}

static void gives_the_logits_of_transformers(void **state)
{
    static const struct {
        const char *file, *reference;
    } cases[] = {
        {"nemo_tp1.nemo", "logits"},    {"nemo_tp2.nemo", "logits"},
        {"nemo_pp2.nemo", "logits"},    {"nemo_tp2_pp2.nemo", "logits"},
        {"nemo_legacy.nemo", "logits"}, {"nemo_ln1p.nemo", "logits"},
        {"nemo_gz.nemo", "logits"},     {"nemo_erf.nemo", "logits_erf"},
        {"nemo_spm.nemo", "logits"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_weights *w = open_golden(cases[i].file);
        double d = logits_distance(w, cases[i].reference);

        print_message("# %s: logits to %.2g of transformers\n", cases[i].file, d);
        if (!(d <= TOLERANCE))
            fail_msg("%s: logits differ by %g", cases[i].file, d);
        sl_weights_close(w);
    }
}

/* The comparison can fail: the tanh form of GELU is not the exact one, nor a tied head its own. */
static void tells_models_apart(void **state)
{
    struct sl_weights *w = open_golden("nemo_erf.nemo");

    (void)state;
    assert_int_equal(sl_weights_arch(w)->activation, SL_GELU_ERF);
    assert_false(sl_weights_arch(w)->tied);
    assert_true(logits_distance(w, "logits") > 0.01);
    sl_weights_close(w);
}

static void leaves_padding_out(void **state)
{
    struct sl_weights *w = open_golden("nemo_tp2.nemo");
    int64_t rows, cols;

    (void)state;
    assert_int_equal(sl_weights_arch(w)->vocab, 267);
    assert_int_equal(sl_weights_arch(w)->padding_rows, 512 - 267);
    ok(sl_weights_shape(w, "embed", &rows, &cols, &err));
    assert_int_equal(rows, 267);
    sl_weights_close(w);
}

/* One model, however its weights are cut: the same digest, so that a prompt table fits all forms of
 * a type. */
static void shards_have_one_digest(void **state)
{
    char a[SL_SHA256_HEX + 1], b[SL_SHA256_HEX + 1];
    struct sl_weights *w = open_golden("nemo_tp2.nemo");

    (void)state;
    ok(sl_weights_digest(w, a, &err));
    sl_weights_close(w);
    w = open_golden("nemo_tp2_pp2.nemo");
    ok(sl_weights_digest(w, b, &err));
    sl_weights_close(w);
    assert_string_equal(a, b);
    w = open_golden("nemo_pp2.nemo");
    ok(sl_weights_digest(w, a, &err));
    sl_weights_close(w);
    w = open_golden("nemo_gz.nemo");
    ok(sl_weights_digest(w, b, &err));
    sl_weights_close(w);
    assert_string_equal(a, b);
    w = open_golden("nemo_ln1p.nemo"); /* other bytes */
    ok(sl_weights_digest(w, b, &err));
    sl_weights_close(w);
    assert_string_not_equal(a, b);
}

static void has_its_tokenizer(void **state)
{
    struct sl_weights *w = open_golden("nemo_gz.nemo");
    struct sl_tokenizer *tok = NULL;
    struct sl_ids ids = {0};
    struct sl_buf text;
    const char *sample = "the man in a wood \xc3\xa9";

    (void)state;
    ok(sl_weights_tokenizer(w, &tok, &err));
    ok(sl_tokenize(tok, sample, strlen(sample), false, &ids, &err));
    assert_true(ids.n > 0 && ids.n < (int)strlen(sample));
    assert_int_equal(ids.id[0], 257); /* "the", the second merge */
    sl_buf_init(&text, 1000);
    ok(sl_detokenize(tok, ids.id, ids.n, false, &text, &err));
    assert_string_equal(text.p, sample);
    assert_int_equal(sl_tokenizer_eos(tok), 266);
    sl_buf_release(&text);
    sl_ids_release(&ids);
    sl_tokenizer_free(tok);
    sl_weights_close(w);
}

static void has_its_sentencepiece_model(void **state)
{
    struct sl_weights *w = open_golden("nemo_spm.nemo");
    struct sl_tokenizer *tok = NULL;
    struct sl_ids ids = {0};
    int64_t n = 0;
    const int32_t *want = golden_i32(&g, "spm_ids", &n);

    (void)state;
    ok(sl_weights_tokenizer(w, &tok, &err));
    ok(sl_tokenize(tok, "ab abc b", 8, false, &ids, &err));
    assert_int_equal(ids.n, n);
    assert_memory_equal(ids.id, want, (size_t)n * sizeof *want);
    sl_ids_release(&ids);
    sl_tokenizer_free(tok);
    sl_weights_close(w);
}

/* ---- refusals ---- */

static char path[SL_PATH_MAX];

static void write_members(const struct sl_tar_member *m, int n)
{
    snprintf(path, sizeof path, "/tmp/sl-nemo-%d.nemo", (int)getpid());
    ok(sl_tar_write(path, m, n, &err));
}

static void assert_refused(int code, const char *words)
{
    struct sl_weights *w = NULL;
    int rc;

    sl_err_clear(&err);
    rc = sl_weights_open(path, &w, &err);
    if (rc != code || !strstr(err.msg, words))
        fail_msg("code %d (expected %d), message \"%s\" (expected \"%s\")", rc, code, err.msg,
                 words);
    assert_null(w);
}

/* nemo_tp1 with a line of its configuration replaced, or a member left out. */
static void change(const char *line, const char *by, const char *without)
{
    struct sl_tar tar;
    struct sl_tar_member m[8];
    char file[SL_PATH_MAX], config[8192];
    int n = 0;

    golden_path(file, "nemo_tp1.nemo");
    sl_err_clear(&err);
    ok(sl_tar_open(file, &tar, &err));
    for (int i = 0; i < tar.n; i++) {
        if (without && strstr(tar.member[i].name, without))
            continue;
        m[n] = tar.member[i];
        if (line && !strcmp(m[n].name, "model_config.yaml")) {
            char *at;

            snprintf(config, sizeof config, "%.*s", (int)m[n].len, (const char *)m[n].data);
            at = strstr(config, line);
            if (!at)
                fail_msg("the configuration has no line '%s'", line);
            char tail[8192];

            snprintf(tail, sizeof tail, "%s", at + strlen(line));
            snprintf(at, sizeof config - (size_t)(at - config), "%s%s", by, tail);
            m[n].data = (unsigned char *)config;
            m[n].len = strlen(config);
        }
        n++;
    }
    write_members(m, n);
    sl_tar_close(&tar);
}

static void refuses_by_key(void **state)
{
    static const struct {
        const char *line, *by;
        int code;
        const char *words;
    } cases[] = {
        {"activation: gelu", "activation: swiglu", SL_SPEC, "activation: swiglu is not supported"},
        {"position_embedding_type: learned_absolute", "position_embedding_type: rope", SL_SPEC,
         "position_embedding_type: rope is not supported"},
        {"normalization: layernorm", "normalization: rmsnorm", SL_SPEC,
         "normalization: rmsnorm is not supported"},
        {"bias: true", "bias: false", SL_SPEC, "bias: false is not supported"},
        {"transformer_block_type: pre_ln", "transformer_block_type: post_ln", SL_SPEC,
         "transformer_block_type: post_ln is not supported"},
        {"headscale: false", "headscale: true", SL_SPEC, "headscale: true is not supported"},
        {"normalize_attention_scores: true", "normalize_attention_scores: false", SL_SPEC,
         "normalize_attention_scores: false"},
        {"onnx_safe: false", "mcore_gpt: true", SL_SPEC, "mcore_gpt: true is not supported"},
        {"onnx_safe: false", "num_query_groups: 2", SL_SPEC, "num_query_groups"},
        {"onnx_safe: false", "num_moe_experts: 8", SL_SPEC, "num_moe_experts"},
        {"megatron_gpt_model.MegatronGPTModel", "x.MegatronT5Model", SL_SPEC, "MegatronT5Model"},
        {"megatron_gpt_model.MegatronGPTModel", "x.MegatronGPTPromptLearningModel", SL_SPEC,
         "prompt tables"},
        {"num_layers: 2", "num_layers: 3", SL_DATA, "2 layers in the weights, num_layers is 3"},
        {"num_layers: 2", "num_layers: [2]", SL_DATA, "'num_layers' is no number"},
        {"num_layers: 2", "num_layer: 2", SL_DATA, "'num_layers' is missing"},
        {"num_attention_heads: 4", "num_attention_heads: 0", SL_DATA, "num_attention_heads 0"},
        {"num_attention_heads: 4", "num_attention_heads: 5", SL_DATA, "not of 3 x 5 heads"},
        {"hidden_size: 16", "hidden_size: 2000000000", SL_DATA, "hidden_size 2000000000"},
        {"tensor_model_parallel_size: 1", "tensor_model_parallel_size: 2", SL_DATA,
         "some are missing"},
        {"share_embeddings_and_output_weights: true", "share_embeddings_and_output_weights: false",
         SL_DATA, "output_layer.weight"},
        {"num_layers: 2", "num_layers: {", SL_DATA, "model_config.yaml:"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        change(cases[i].line, cases[i].by, NULL);
        assert_refused(cases[i].code, cases[i].words);
    }
    change(NULL, NULL, "config.yaml");
    assert_refused(SL_DATA, "no model_config.yaml");
    change(NULL, NULL, "model_weights");
    assert_refused(SL_DATA, "no model_weights.ckpt");
    unlink(path);
}

/* Without its tokenizer a model opens with the rows as they are stored, and says what is missing
 * when the tokenizer is asked for. */
static void names_a_missing_tokenizer(void **state)
{
    struct sl_weights *w = NULL;
    struct sl_tokenizer *tok = NULL;

    (void)state;
    change(NULL, NULL, "merges.txt");
    ok(sl_weights_open(path, &w, &err));
    assert_int_equal(sl_weights_arch(w)->vocab, 384);
    assert_int_equal(sl_weights_tokenizer(w, &tok, &err), SL_NOTFOUND);
    assert_non_null(strstr(err.msg, "merge_file"));
    assert_non_null(strstr(err.msg, "not in the archive"));
    sl_weights_close(w);
    unlink(path);
}

static void refuses_prompt_tables(void **state)
{
    (void)state;
    golden_path(path, "nemo_prompts.nemo");
    assert_refused(SL_SPEC, "model.restore_path");
}

/* Every cut of a plain and of a gzip'd archive, and flipped bytes all over: an error or a model,
 * never a fault. */
static void survives_damage(void **state)
{
    static const char *const files[] = {"nemo_tp2_pp2.nemo", "nemo_gz.nemo"};

    (void)state;
    for (size_t f = 0; f < 2; f++) {
        char from[SL_PATH_MAX];
        struct sl_buf b;
        struct sl_weights *w = NULL;
        size_t len;

        golden_path(from, files[f]);
        sl_buf_init(&b, 1u << 20);
        ok(sl_file_read(from, &b, &err));
        len = b.len;
        snprintf(path, sizeof path, "/tmp/sl-nemo-%d.nemo", (int)getpid());
        for (size_t cut = 0; cut + 10240 < len; cut += 511) { /* the end is tar's padding */
            FILE *out = fopen(path, "w");

            assert_non_null(out);
            assert_int_equal(fwrite(b.p, 1, cut, out), cut);
            fclose(out);
            sl_err_clear(&err);
            assert_true(sl_weights_open(path, &w, &err) < 0);
            assert_non_null(strstr(err.msg, path));
        }
        for (size_t at = 3; at < len; at += 997) {
            FILE *out = fopen(path, "w");

            b.p[at] ^= 0x55;
            assert_non_null(out);
            assert_int_equal(fwrite(b.p, 1, len, out), len);
            fclose(out);
            b.p[at] ^= 0x55;
            sl_err_clear(&err);
            if (!sl_weights_open(path, &w, &err))
                sl_weights_close(w);
        }
        sl_buf_release(&b);
    }
    unlink(path);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_logits_of_transformers),
        cmocka_unit_test(tells_models_apart),
        cmocka_unit_test(leaves_padding_out),
        cmocka_unit_test(shards_have_one_digest),
        cmocka_unit_test(has_its_tokenizer),
        cmocka_unit_test(has_its_sentencepiece_model),
        cmocka_unit_test(refuses_by_key),
        cmocka_unit_test(names_a_missing_tokenizer),
        cmocka_unit_test(refuses_prompt_tables),
        cmocka_unit_test(survives_damage),
    };
    int failed;

    golden_open(&g, "nemo.safetensors");
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    golden_close(&g);
    return failed;
}
