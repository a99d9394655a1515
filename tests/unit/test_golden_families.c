/* Tiny models of each family, read from Hugging Face directories, against what transformers and
 * PEFT computed with them (tests/golden/make_families.py): logits, one training run, decoding.
 * llama3 lies in several files, qwen2 in BF16, mistral in F16. The same comparisons must fail for
 * each planted fault. */
#include "base/json.h"
#include "engine/decode.h"
#include "tests/golden/golden_train.h"
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

#define LOGIT_TOLERANCE 1e-4 /* largest difference */
#define MAX_PROMPTS 8
#define MAX_IDS 64

static const char *const families[] = {"gpt2", "llama3", "qwen2", "qwen3", "mistral"};
#define N_FAMILIES (sizeof families / sizeof *families)

static struct sl_err err;

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static void family_path(char ret_path[SL_PATH_MAX], const char *family)
{
    char name[64];
    snprintf(name, sizeof name, "families/%s", family);
    golden_path(ret_path, name);
}

static void open_family(struct golden_model *gm, const char *family)
{
    char path[SL_PATH_MAX];
    family_path(path, family);
    golden_model_open(gm, path);
}

static void open_record(struct golden *g, const char *family)
{
    char name[64];
    snprintf(name, sizeof name, "families/%s/train.safetensors", family);
    golden_open(g, name);
}

static double largest_difference(const float *a, const float *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++)
        worst = golden_worst(fabs((double)a[i] - b[i]), worst);
    return worst;
}

/* How far the logits after every id of the recorded prompts are, all prompts packed together. */
static double logits_apart(const struct golden_model *gm, const char *family)
{
    struct golden g;
    struct sl_row rows[MAX_PROMPTS];
    struct sl_batch b;
    int32_t id[MAX_IDS];
    unsigned char target[MAX_IDS];
    const struct sl_arch *a = sl_model_arch(gm->model);
    int64_t n_prompts, n, n_values;
    open_record(&g, family);
    const int32_t *length = golden_i32(&g, "plain.length", &n_prompts);
    const int32_t *ids = golden_i32(&g, "plain.ids", &n);
    const float *want = golden_f32(&g, "plain.logits", &n_values);
    assert_true(n_prompts <= MAX_PROMPTS && n + n_prompts <= MAX_IDS);
    assert_int_equal(n_values, n * a->vocab);
    memset(target, 1, sizeof target);
    int32_t *to = id;
    for (int p = 0; p < n_prompts; p++) { /* and a token more, for the last position to predict */
        memcpy(to, ids, (size_t)length[p] * sizeof *to);
        to[length[p]] = 0;
        target[to - id] = 0;
        rows[p] = (struct sl_row){0, length[p] + 1, to, target + (to - id)};
        ids += length[p];
        to += length[p] + 1;
    }
    ok(sl_batch_pack(rows, (int)n_prompts, (const int[]){0}, 1, a->vocab, a->max_positions, false,
                     0, &b, &err));
    assert_int_equal(b.n_out, n);
    float *logits = malloc((size_t)n_values * sizeof *logits);
    assert_non_null(logits);
    ok(sl_model_logits(gm->model, &b, NULL, logits, &err));
    double apart = largest_difference(logits, want, n_values);
    free(logits);
    sl_batch_release(&b);
    golden_close(&g);
    return apart;
}

static void test_logits(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        struct golden_model gm;
        open_family(&gm, families[i]);
        double apart = logits_apart(&gm, families[i]);
        print_message("%s: logits differ by at most %.1e\n", families[i], apart);
        assert_true(apart <= LOGIT_TOLERANCE);
        golden_model_close(&gm);
    }
}

/* The longest prompt, first id by first pass, the others one by one. */
static void test_decoding(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        struct golden_model gm;
        struct golden g;
        struct sl_decode *d;
        int64_t n_prompts, n;
        open_family(&gm, families[i]);
        open_record(&g, families[i]);
        int vocab = sl_model_arch(gm.model)->vocab;
        const int32_t *length = golden_i32(&g, "plain.length", &n_prompts);
        const int32_t *ids = golden_i32(&g, "plain.ids", &n);
        const float *want = golden_f32(&g, "plain.logits", NULL);
        int last = length[n_prompts - 1], begin = (int)n - last;
        float *logits = malloc((size_t)vocab * sizeof *logits);
        assert_non_null(logits);
        struct sl_row row = {0, 1, ids + begin, NULL};
        ok(sl_decode_new(gm.model, &row, 1, (const int[]){0}, 1, NULL, last - 1, logits, &d, &err));
        double apart = 0;
        for (int k = 0; k < last; k++) {
            if (k > 0)
                ok(sl_decode_step(d, (const int[]){0}, ids + begin + k, 1, logits, &err));
            apart = golden_worst(
                largest_difference(logits, want + (int64_t)(begin + k) * vocab, vocab), apart);
        }
        print_message("%s: logits of decoding differ by at most %.1e\n", families[i], apart);
        assert_true(apart <= LOGIT_TOLERANCE);
        sl_decode_free(d);
        free(logits);
        golden_close(&g);
        golden_model_close(&gm);
    }
}

static struct golden_verdict train(const char *family, bool share, enum golden_fault fault)
{
    struct golden_model gm;
    char file[64];
    snprintf(file, sizeof file, "families/%s/train.safetensors", family);
    open_family(&gm, family);
    struct golden_verdict v = golden_train(&gm, file, share, fault);
    golden_model_close(&gm);
    return v;
}

static void test_training(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        struct golden_verdict shared = train(families[i], true, GOLDEN_NO_FAULT);
        struct golden_verdict plain = train(families[i], false, GOLDEN_NO_FAULT);
        assert_true(golden_passes(&shared));
        assert_true(golden_passes(&plain));
    }
}

static void test_faults_of_training_are_caught(void **state)
{
    (void)state;
    static const enum golden_fault faults[] = {GOLDEN_GRADIENT_TENTH_MORE, GOLDEN_LABEL_SHIFTED,
                                               GOLDEN_PREFIX_DK_LEFT_OUT};
    for (size_t i = 0; i < N_FAMILIES; i++)
        for (size_t f = 0; f < sizeof faults / sizeof *faults; f++) {
            struct golden_verdict v = train(families[i], true, faults[f]);
            assert_false(golden_passes(&v));
            assert_true(v.prompt_grad > 100 * GOLDEN_GRAD_TOLERANCE);
        }
    struct golden_verdict v = train("qwen3", true, GOLDEN_HEAD_NORM_BACK_LEFT_OUT);
    assert_false(golden_passes(&v));
    assert_true(v.prompt_grad > 100 * GOLDEN_GRAD_TOLERANCE);
    /* Norms of heads are nowhere else. */
    v = train("qwen2", true, GOLDEN_HEAD_NORM_BACK_LEFT_OUT);
    assert_true(golden_passes(&v));
}

static void test_missing_bias_is_caught(void **state)
{
    (void)state;
    static const char *const with[] = {"gpt2", "qwen2"};
    for (int i = 0; i < 2; i++) {
        struct golden_model gm;
        open_family(&gm, with[i]);
        golden_plant(GOLDEN_BIAS_LEFT_OUT);
        double apart = logits_apart(&gm, with[i]);
        golden_plant(GOLDEN_NO_FAULT);
        golden_model_close(&gm);
        print_message("%s without biases: logits differ by %.1e\n", with[i], apart);
        assert_true(apart > 100 * LOGIT_TOLERANCE);
    }
}

/* The family's files beside a config.json in which `key` has another value; removed by the caller.
 */
static void changed_config(const char *family, const char *key, const char *value, char *dir)
{
    char from[SL_PATH_MAX], real[SL_PATH_MAX], path[SL_PATH_MAX];
    json_t *config;
    struct dirent *e;
    family_path(from, family);
    assert_non_null(realpath(from, real));
    assert_non_null(mkdtemp(dir));
    DIR *files = opendir(real);
    assert_non_null(files);
    while ((e = readdir(files)))
        if (strstr(e->d_name, ".safetensors")) {
            char target[SL_PATH_MAX];
            ok(sl_path(target, &err, "%s/%s", real, e->d_name));
            ok(sl_path(path, &err, "%s/%s", dir, e->d_name));
            assert_int_equal(symlink(target, path), 0);
        }
    closedir(files);
    ok(sl_path(path, &err, "%s/config.json", real));
    ok(sl_json_read(path, 1 << 20, &config, &err));
    json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(v);
    assert_int_equal(json_object_set_new(config, key, v), 0);
    ok(sl_path(path, &err, "%s/config.json", dir));
    ok(sl_json_write(path, config, &err));
    json_decref(config);
}

/* What is left out of config.json, or read wrong, shows in the logits. */
static void test_wrong_configs_are_caught(void **state)
{
    (void)state;
    static const struct {
        const char *family, *key, *value;
        bool same;
    } cases[] = {
        {"llama3", "rope_scaling", "null", false},
        {"llama3", "rope_theta", "110.0", false},
        {"llama3", "rope_scaling",
         "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, "
         "\"high_freq_factor\": 3.0, \"original_max_position_embeddings\": 64}",
         false},
        {"llama3", "rope_scaling", "{\"type\": \"linear\", \"factor\": 2.0}", false},
        {"qwen3", "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 10000.0}",
         false},
        {"qwen2", "rms_norm_eps", "1e-4", false},
        {"gpt2", "activation_function", "\"gelu\"", false},
        {"gpt2", "layer_norm_epsilon", "1e-3", false},
        /* and another way to say the same does not */
        {"llama3", "rope_scaling",
         "{\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}",
         true},
        {"mistral", "sliding_window", "null", true},
        {"gpt2", "activation_function", "\"gelu_pytorch_tanh\"", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[] = "/tmp/sl-families-XXXXXX";
        struct golden_model gm;
        changed_config(cases[i].family, cases[i].key, cases[i].value, dir);
        golden_model_open(&gm, dir);
        double apart = logits_apart(&gm, cases[i].family);
        golden_model_close(&gm);
        ok(sl_rmtree(dir, &err));
        print_message("%s with %s %s: logits differ by %.1e\n", cases[i].family, cases[i].key,
                      cases[i].value, apart);
        assert_true(cases[i].same ? apart <= LOGIT_TOLERANCE : apart > 10 * LOGIT_TOLERANCE);
    }
}

/* Beyond its window Mistral would see fewer keys than are there: refused by name. */
static void test_beyond_the_window(void **state)
{
    (void)state;
    struct golden_model gm;
    struct sl_decode *d = NULL;
    float logits[512];
    struct sl_row row = {0, 1, (const int32_t[]){5}, NULL};
    open_family(&gm, "mistral");
    const struct sl_arch *a = sl_model_arch(gm.model);
    assert_int_equal(a->max_positions, 64);
    assert_in_range(a->vocab, 1, 512);
    ok(sl_decode_new(gm.model, &row, 1, (const int[]){0}, 1, NULL, 63, logits, &d, &err));
    sl_decode_free(d);
    struct sl_err why = SL_ERR_INIT;
    assert_int_equal(
        sl_decode_new(gm.model, &row, 1, (const int[]){0}, 1, NULL, 64, logits, &d, &why), SL_SPEC);
    assert_non_null(strstr(why.msg, "sliding window is not supported"));
    golden_model_close(&gm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_decoding),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_faults_of_training_are_caught),
        cmocka_unit_test(test_missing_bias_is_caught),
        cmocka_unit_test(test_wrong_configs_are_caught),
        cmocka_unit_test(test_beyond_the_window),
    };
    return cmocka_run_group_tests_name("golden families", tests, NULL, NULL);
}
