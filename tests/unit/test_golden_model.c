/* Logits, greedy continuations and a training step of the real GGUF model against transformers on
 * the dequantised weights, fp32.
 *
 * SL_MODEL names the file; without it this prints "not run" and exits 77. SL_DUMP_LOGITS=FILE also
 * writes all logits, for tests/golden/check_logits.py, which compares the whole vocabulary. */
#include "base/digest.h"
#include "engine/decode.h"
#include "engine/model.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

#define SAMPLE 1024
#define TOP 64
#define MAX_PROMPTS 64
#define NEW 32
#define STEP_ROWS 8    /* the first prompts, each behind the recorded table */
#define STEP_TARGETS 4 /* last ids of each */
#define STEP_MAX 64
#define STEP_TOLERANCE 1e-4 /* nats; relative L2. The reference is itself 4e-5 from fp64 */

#define LEAST_COSINE 0.9999
#define LEAST_EQUAL 19 /* of 20 continuations */
#define NEAR_TIE                                                                                   \
    1e-2 /* a continuation may part only where the reference's first two are this close */
#define LOGIT_TOLERANCE                                                                            \
    2e-3 /* of the largest logits, log-sum-exp and mean; they reach about 30                       \
          */

static struct sl_err err;
static const struct sl_ops *ops = &sl_cpu_ops;
static struct sl_backend *be;
static struct sl_model *model;
static struct golden g;
static int n_prompts, n_positions;
static const int32_t *length;

static void ok(int rc, const struct sl_err *e)
{
    if (rc)
        fail_msg("%s", e->msg);
}

static int setup(void **state)
{
    (void)state;
    char hex[SL_SHA256_HEX + 1];
    int64_t n;
    struct sl_weights *w;
    const char *path = getenv("SL_MODEL");
    golden_open(&g, "smollm2_logits.safetensors");
    length = golden_i32(&g, "prompt.length", &n);
    n_prompts = (int)n;
    assert_in_range(n_prompts, 20, MAX_PROMPTS);
    golden_i32(&g, "prompt.ids", &n);
    n_positions = (int)n;
    ok(sl_sha256_file(path, hex, NULL, &err), &err);
    if (strcmp(hex, golden_meta(&g, "model_sha256")))
        fail_msg("SL_MODEL=%s is not the recorded model", path);
    ok(ops->open(&(struct sl_backend_opts){.threads = 2}, &be, &err), &err);
    ok(sl_weights_open(path, &w, &err), &err);
    ok(sl_model_new(w, ops, be, &model, &err), &err);
    sl_weights_close(w);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_model_free(model);
    ops->close(be);
    golden_close(&g);
    return 0;
}

/* All logits of all prompts, packed as one batch: [n_positions, vocab]; the caller frees. */
static float *all_logits(void)
{
    const struct sl_arch *a = sl_model_arch(model);
    struct sl_row rows[MAX_PROMPTS];
    struct sl_batch b;
    const int32_t *ids = golden_i32(&g, "prompt.ids", NULL);
    /* a token more in each row, so that the last position has something to predict */
    int32_t *id = calloc((size_t)(n_positions + n_prompts), sizeof *id), *to = id;
    unsigned char *target = malloc((size_t)(n_positions + n_prompts));
    assert_non_null(id);
    assert_non_null(target);
    memset(target, 1, (size_t)(n_positions + n_prompts));
    for (int p = 0; p < n_prompts; p++) {
        unsigned char *row_target = target + (to - id);
        row_target[0] = 0;
        rows[p] = (struct sl_row){0, length[p] + 1, to, row_target};
        memcpy(to, ids, (size_t)length[p] * sizeof *to);
        ids += length[p];
        to += length[p] + 1;
    }
    ok(sl_batch_pack(rows, n_prompts, (const int[]){0}, 1, a->vocab, a->max_positions, false, 0, &b,
                     &err),
       &err);
    assert_int_equal(b.n_out, n_positions);
    float *logits = malloc((size_t)n_positions * (size_t)a->vocab * sizeof *logits);
    assert_non_null(logits);
    ok(sl_model_logits(model, &b, NULL, logits, &err), &err);
    sl_batch_release(&b);
    free(id);
    free(target);
    return logits;
}

/* Cosine of a and b with their means taken off or not. Not finite: NaN. */
static double cosine(const float *a, const float *b, int n, bool centred)
{
    double ma = 0, mb = 0, ab = 0, aa = 0, bb = 0;
    for (int i = 0; centred && i < n; i++) {
        ma += a[i] / (double)n;
        mb += b[i] / (double)n;
    }
    for (int i = 0; i < n; i++) {
        ab += (a[i] - ma) * (b[i] - mb);
        aa += (a[i] - ma) * (a[i] - ma);
        bb += (b[i] - mb) * (b[i] - mb);
    }
    return ab / sqrt(aa * bb);
}

static double log_sum_exp(const float *x, int n)
{
    double top = x[0], sum = 0;
    for (int i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

static void test_logits(void **state)
{
    (void)state;
    int vocab = sl_model_arch(model)->vocab;
    const int32_t *sample = golden_i32(&g, "sample.ids", NULL),
                  *top = golden_i32(&g, "top.ids", NULL);
    const float *want_sample = golden_f32(&g, "sample.logits", NULL);
    const float *want_top = golden_f32(&g, "top.logits", NULL);
    const float *want_lse = golden_f32(&g, "logsumexp", NULL),
                *want_mean = golden_f32(&g, "mean", NULL);
    const float *want_norm = golden_f32(&g, "norm", NULL);
    float *logits = all_logits();
    double angle = 0, centred = 0, top_apart = 0, lse_apart = 0, mean_apart = 0, norm_apart = 0;
    int other_best = 0;
    for (int p = 0; p < n_positions; p++) {
        const float *ours = logits + (size_t)p * (size_t)vocab;
        float at_sample[SAMPLE];
        double mean = 0, norm = 0;
        int best = 0;
        for (int i = 0; i < SAMPLE; i++)
            at_sample[i] = ours[sample[i]];
        angle = golden_worst(angle, 1 - cosine(at_sample, want_sample + p * SAMPLE, SAMPLE, false));
        centred =
            golden_worst(centred, 1 - cosine(at_sample, want_sample + p * SAMPLE, SAMPLE, true));
        for (int i = 0; i < TOP; i++)
            top_apart = golden_worst(top_apart,
                                     fabs((double)ours[top[p * TOP + i]] - want_top[p * TOP + i]));
        for (int i = 0; i < vocab; i++) {
            mean += ours[i] / (double)vocab;
            norm += (double)ours[i] * ours[i];
            if (ours[i] > ours[best])
                best = i;
        }
        lse_apart = golden_worst(lse_apart, fabs(log_sum_exp(ours, vocab) - want_lse[p]));
        mean_apart = golden_worst(mean_apart, fabs(mean - want_mean[p]));
        norm_apart = golden_worst(norm_apart, fabs(sqrt(norm) / want_norm[p] - 1));
        other_best += best != top[p * TOP] && want_top[p * TOP] - want_top[p * TOP + 1] > NEAR_TIE;
    }
    print_message("%d positions of %d prompts: cosines at least 1 - %.1e, centred 1 - %.1e; "
                  "largest difference of the top %d "
                  "%.1e, of log-sum-exp %.1e, of the mean %.1e, of the norm %.1e relative\n",
                  n_positions, n_prompts, angle, centred, TOP, top_apart, lse_apart, mean_apart,
                  norm_apart);
    const char *dump = getenv("SL_DUMP_LOGITS");
    if (dump)
        ok(sl_file_write(dump, logits, (size_t)n_positions * (size_t)vocab * sizeof *logits, &err),
           &err);
    free(logits);
    assert_true(1 - angle > LEAST_COSINE);
    assert_true(1 - centred > LEAST_COSINE);
    assert_true(top_apart < LOGIT_TOLERANCE && lse_apart < LOGIT_TOLERANCE &&
                mean_apart < LOGIT_TOLERANCE);
    assert_true(norm_apart < LOGIT_TOLERANCE);
    assert_int_equal(other_best, 0);
}

static int32_t best_of(const float *logits, int vocab)
{
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static void test_greedy(void **state)
{
    (void)state;
    int vocab = sl_model_arch(model)->vocab, equal = 0;
    const int32_t *ids = golden_i32(&g, "prompt.ids", NULL),
                  *want = golden_i32(&g, "greedy.ids", NULL);
    const float *gap = golden_f32(&g, "greedy.gap", NULL);
    float *logits = malloc((size_t)n_prompts * (size_t)vocab * sizeof *logits);
    assert_non_null(logits);
    struct sl_row rows[MAX_PROMPTS];
    int row[MAX_PROMPTS];
    int32_t token[MAX_PROMPTS], ours[MAX_PROMPTS][NEW];
    for (int p = 0; p < n_prompts; p++) {
        row[p] = p;
        rows[p] = (struct sl_row){0, length[p], ids, NULL};
        ids += length[p];
    }
    struct sl_decode *d;
    ok(sl_decode_new(model, rows, n_prompts, (const int[]){0}, 1, NULL, NEW, logits, &d, &err),
       &err);
    for (int step = 0; step < NEW; step++) {
        for (int p = 0; p < n_prompts; p++)
            token[p] = ours[p][step] = best_of(logits + (size_t)p * (size_t)vocab, vocab);
        if (step + 1 < NEW)
            ok(sl_decode_step(d, row, token, n_prompts, logits, &err), &err);
    }
    sl_decode_free(d);
    free(logits);
    for (int p = 0; p < n_prompts; p++) {
        int same = 0;
        while (same < NEW && ours[p][same] == want[p * NEW + same])
            same++;
        equal += same == NEW;
        if (same == NEW)
            continue;
        print_message(
            "prompt %d parts at token %d, where the reference's first two are %.1e apart\n", p,
            same, gap[p * NEW + same]);
        assert_true(gap[p * NEW + same] < NEAR_TIE);
    }
    print_message("%d of %d greedy continuations of %d tokens are the same\n", equal, n_prompts,
                  NEW);
    assert_true(equal >= LEAST_EQUAL);
}

/* The backward pass in the real shape: 30 layers, grouped heads, a tied output matrix. */
static void test_training_step(void **state)
{
    (void)state;
    const struct sl_arch *a = sl_model_arch(model);
    struct sl_row rows[STEP_ROWS];
    unsigned char target[STEP_ROWS][STEP_MAX] = {0};
    int32_t id[STEP_ROWS][STEP_MAX];
    int64_t n;
    const int32_t *ids = golden_i32(&g, "prompt.ids", NULL);
    const float *prompts = golden_f32(&g, "step.prompts", &n);
    const float *want = golden_f32(&g, "step.grad", NULL);
    float want_loss = *golden_f32(&g, "step.loss", NULL);
    int v = (int)(n / a->hidden);
    for (int r = 0; r < STEP_ROWS; r++) {
        int len = v + length[r];
        assert_true(len <= STEP_MAX);
        for (int i = 0; i < len; i++) {
            id[r][i] = i < v ? -(i + 1) : *ids++;
            target[r][i] = i >= len - STEP_TARGETS;
        }
        rows[r] = (struct sl_row){0, len, id[r], target[r]};
    }
    size_t bytes = (size_t)n * sizeof(float);
    float *table, *grad, *host = malloc(bytes);
    assert_non_null(host);
    ok(ops->alloc(be, bytes, (void **)&table, &err), &err);
    ok(ops->alloc(be, bytes, (void **)&grad, &err), &err);
    ok(ops->upload(be, table, prompts, bytes, &err), &err);
    for (int share = 1; share >= 0; share--) {
        struct sl_batch b;
        ok(sl_batch_pack(rows, STEP_ROWS, &v, 1, a->vocab, a->max_positions, share, 0, &b, &err),
           &err);
        float *loss = calloc((size_t)b.n_entries, sizeof *loss);
        assert_non_null(loss);
        ok(sl_model_step(model, &b, table, grad, loss, &err), &err);
        ok(ops->download(be, host, grad, bytes, &err), &err);
        double sum = 0, apart = golden_distance(host, want, n);
        for (int e = 0; e < b.n_entries; e++)
            sum += (double)b.entry_weight[e] * loss[e];
        print_message("training step%s: loss %.6f, %.1e from the reference; gradient %.1e\n",
                      share ? "" : ", not shared", sum, fabs(sum - want_loss), apart);
        assert_true(fabs(sum - want_loss) < STEP_TOLERANCE);
        assert_true(apart < STEP_TOLERANCE);
        free(loss);
        sl_batch_release(&b);
    }
    ops->free(be, table);
    ops->free(be, grad);
    free(host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_training_step),
    };
    if (!getenv("SL_MODEL")) {
        printf("not run: SL_MODEL names no model file\n");
        return 77;
    }
    return cmocka_run_group_tests_name("golden logits", tests, setup, teardown);
}
