/* The whole model against the same model in double precision (tests/unit/reference.c): losses,
 * logits, and the gradient of the prompts against central differences of the reference. Then what
 * must not matter: sharing of prefixes, the micro-batch, the logit chunk, repetition. */
#include "base/rng.h"
#include "engine/model_parts.h"
#include "tests/unit/tiny_model.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_N 20
#define N_ROWS 10
#define N_SLOTS 2
#define N_PROMPTS (6 + 3)

static const struct tiny llama = {.layers = 3,
                                  .hidden = 32,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .ffn = 48,
                                  .vocab = 40,
                                  .positions = 32,
                                  .seed = 1};
static const struct tiny llama_untied = {.layers = 2,
                                         .hidden = 32,
                                         .heads = 4,
                                         .kv_heads = 1,
                                         .ffn = 40,
                                         .vocab = 37,
                                         .positions = 32,
                                         .untied = true,
                                         .qkv_bias = true,
                                         .rope_scaling = "linear",
                                         .seed = 2};
static const struct tiny llama_one_layer = {.layers = 1,
                                            .hidden = 32,
                                            .heads = 2,
                                            .kv_heads = 2,
                                            .ffn = 48,
                                            .vocab = 40,
                                            .positions = 32,
                                            .seed = 3};
static const struct tiny gpt2 = {.gpt2 = true,
                                 .layers = 3,
                                 .hidden = 32,
                                 .heads = 4,
                                 .kv_heads = 4,
                                 .ffn = 64,
                                 .vocab = 40,
                                 .positions = 24,
                                 .seed = 4};
static const struct tiny gpt2_one_layer = {.gpt2 = true,
                                           .layers = 1,
                                           .hidden = 32,
                                           .heads = 4,
                                           .kv_heads = 4,
                                           .ffn = 64,
                                           .vocab = 40,
                                           .positions = 24,
                                           .seed = 5};

/* Two tasks: slot 0 has V = 6 in two splits (4 behind BOS, 2 in the middle, behind text of varying
 * length), slot 1 has V = 3 at the head, one of its rows repeats another. */
struct data {
    struct sl_row row[N_ROWS];
    int32_t id[N_ROWS][MAX_N];
    unsigned char target[N_ROWS][MAX_N];
    double prompts[N_PROMPTS * 32];
    float prompts_f32[N_PROMPTS * 32];
};
static const int slot_v[N_SLOTS] = {6, 3};
static const int slot_prompts[N_SLOTS + 1] = {0, 6, 9};

static void add_id(struct data *d, int r, int32_t id, bool target)
{
    struct sl_row *row = &d->row[r];
    d->id[r][row->n] = id;
    d->target[r][row->n++] = target;
}

static void make_data(struct data *d)
{
    struct sl_rng rng = sl_rng_new(99, 0);
    memset(d, 0, sizeof *d);
    for (int r = 0; r < N_ROWS; r++) {
        d->row[r] = (struct sl_row){r % 3 == 2, 0, d->id[r], d->target[r]};
        bool one = d->row[r].slot == 1;
        if (!one)
            add_id(d, r, 0, false);
        for (int v = 0; v < (one ? 3 : 4); v++)
            add_id(d, r, -1 - v, false);
        add_id(d, r, 7, false); /* text that all rows share */
        add_id(d, r, 8, true);
        for (int k = (int)sl_rng_below(&rng, 6); k >= 0; k--)
            add_id(d, r, (int32_t)sl_rng_below(&rng, 37), false);
        for (int v = 4; v < 6 && !one; v++)
            add_id(d, r, -1 - v, false);
        add_id(d, r, 9, false);
        for (int k = (int)sl_rng_below(&rng, 3); k >= 0; k--)
            add_id(d, r, (int32_t)sl_rng_below(&rng, 37), true);
    }
    memcpy(d->id[8], d->id[5], sizeof d->id[5]);
    memcpy(d->target[8], d->target[5], sizeof d->target[5]);
    d->row[8].n = d->row[5].n;
    for (int i = 0; i < N_PROMPTS * 32; i++)
        d->prompts[i] = d->prompts_f32[i] = (float)(0.5 * sl_rng_normal(&rng));
}

/* A step over rows; losses in the order of counted tokens, may be NULL. Returns the weighted loss.
 */
static double step(struct tiny_model *t, const struct sl_row *rows, int n, const float *prompts,
                   bool share, int total, float *dprompts, float *losses)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_batch b;
    const struct sl_arch *a = sl_model_arch(t->model);
    int64_t totals[N_SLOTS];
    for (int s = 0; s < N_SLOTS; s++)
        totals[s] = total;
    if (sl_batch_pack(rows, n, slot_v, N_SLOTS, a->vocab, a->max_positions, share, total ? totals : NULL, &b, &err))
        fail_msg("%s", err.msg);
    float *loss = malloc(sizeof *loss * ((size_t)b.n_entries + 1));
    if (sl_model_step(t->model, &b, prompts, dprompts, loss, &err))
        fail_msg("%s", err.msg);
    double sum = 0;
    for (int e = 0; e < b.n_entries; e++)
        sum += (double)b.entry_weight[e] * loss[e];
    for (int i = 0; losses && i < b.n_counted; i++)
        losses[i] = loss[b.row_entry[i]];
    free(loss);
    sl_batch_release(&b);
    return sum;
}

static int count(const struct data *d)
{
    int n = 0;
    for (int r = 0; r < N_ROWS; r++)
        for (int i = 0; i < d->row[r].n; i++)
            n += d->target[r][i];
    return n;
}

static double norm(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

static double distance(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum);
}

/* Derivative of the reference's mean loss along u. Two step widths, so that the error is of fourth
 * order. */
static double derivative(const struct reference *ref, const struct data *d, const double *u,
                         double counted)
{
    double at[N_PROMPTS * 32], fd[2];
    for (int k = 0; k < 2; k++) {
        double h = k ? 1e-3 : 2e-3, sum = 0;
        for (int sign = -1; sign <= 1; sign += 2) {
            for (int i = 0; i < N_PROMPTS * 32; i++)
                at[i] = d->prompts[i] + sign * h * u[i];
            sum += sign * reference_loss(ref, d->row, N_ROWS, slot_prompts, at, NULL);
        }
        fd[k] = sum / (2 * h * counted);
    }
    return (4 * fd[1] - fd[0]) / 3;
}

/* fp32 against double: losses to 1e-5, gradients to 1e-4 of their size. The gradient is compared
 * along itself, along the part of it in each virtual token, and along single coordinates, each with
 * the size of that part in view. */
static void check_against_reference(const struct tiny *config)
{
    static struct data d;
    struct tiny_model t;
    tiny_open(config, &t);
    struct reference *ref = reference_new(t.weights);
    make_data(&d);
    int n = count(&d), dims = N_PROMPTS * 32;
    double expected[N_ROWS * MAX_N], u[N_PROMPTS * 32];
    float losses[N_ROWS * MAX_N], grad[N_PROMPTS * 32];
    double sum = reference_loss(ref, d.row, N_ROWS, slot_prompts, d.prompts, expected);
    double loss = step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, grad, losses);
    assert_float_equal(loss, sum / n, 1e-5 * sum / n);
    for (int i = 0; i < n; i++)
        assert_float_equal(losses[i], expected[i], 2e-5 * (1 + expected[i]));

    double size = norm(grad, dims);
    assert_true(size > 1e-2);
    for (int p = -1; p < N_PROMPTS; p++) { /* -1: all */
        double part = p < 0 ? size : norm(grad + p * 32, 32);
        assert_true(part > 0);
        for (int i = 0; i < dims; i++)
            u[i] = p < 0 || i / 32 == p ? grad[i] / part : 0;
        double is = derivative(ref, &d, u, n);
        if (fabs(is - part) > 1e-4 * part + 1e-6 * size)
            fail_msg("virtual token %d: gradient %g, by differences %g", p, part, is);
    }
    struct sl_rng rng = sl_rng_new(5, 0);
    for (int k = 0; k < 16; k++) {
        int i = (int)sl_rng_below(&rng, (uint64_t)dims);
        memset(u, 0, sizeof u);
        u[i] = 1;
        double is = derivative(ref, &d, u, n), tolerance = 1e-4 * norm(grad + i / 32 * 32, 32);
        if (fabs(is - grad[i]) > tolerance + 1e-6 * size)
            fail_msg("coordinate %d: gradient %g, by differences %g", i, grad[i], is);
    }
    reference_free(ref);
    tiny_close(&t);
}

static void test_llama(void **state)
{
    (void)state;
    check_against_reference(&llama);
}

static void test_llama_untied_biases_linear_rope(void **state)
{
    (void)state;
    check_against_reference(&llama_untied);
}

static void test_llama_one_layer(void **state)
{
    (void)state;
    check_against_reference(&llama_one_layer);
}

static void test_gpt2(void **state)
{
    (void)state;
    check_against_reference(&gpt2);
}

static void test_gpt2_one_layer(void **state)
{
    (void)state;
    check_against_reference(&gpt2_one_layer);
}

static void check_sharing(const struct tiny *config)
{
    static struct data d;
    struct tiny_model t;
    float shared[N_PROMPTS * 32], plain[N_PROMPTS * 32], faulty[N_PROMPTS * 32];
    float loss_shared[N_ROWS * MAX_N], loss_plain[N_ROWS * MAX_N], loss_faulty[N_ROWS * MAX_N];
    int dims = N_PROMPTS * 32;
    tiny_open(config, &t);
    make_data(&d);
    int n = count(&d);
    step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, shared, loss_shared);
    step(&t, d.row, N_ROWS, d.prompts_f32, false, 0, plain, loss_plain);
    assert_true(distance(loss_shared, loss_plain, n) <= 1e-5 * norm(loss_plain, n));
    for (int p = 0; p < N_PROMPTS; p++)
        if (distance(shared + p * 32, plain + p * 32, 32) > 1e-5 * norm(plain + p * 32, 32))
            fail_msg("virtual token %d: %g of %g", p, distance(shared + p * 32, plain + p * 32, 32),
                     norm(plain + p * 32, 32));

    /* the planted fault is seen, and only in the gradient of shared prefixes */
    sl_model_plant(t.model, SL_FAULT_NO_PREFIX_DKV);
    step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, faulty, loss_faulty);
    assert_memory_equal(loss_faulty, loss_shared, sizeof *loss_shared * (size_t)n);
    assert_true(distance(faulty, plain, dims) > 0.05 * norm(plain, dims));
    step(&t, d.row, N_ROWS, d.prompts_f32, false, 0, faulty, NULL);
    assert_memory_equal(faulty, plain, sizeof plain);
    tiny_close(&t);
}

static void test_sharing_changes_nothing(void **state)
{
    (void)state;
    check_sharing(&llama);
    check_sharing(&gpt2);
    check_sharing(&llama_one_layer);
}

static void test_micro_batches_add_up(void **state)
{
    (void)state;
    static struct data d;
    struct tiny_model t;
    float whole[N_PROMPTS * 32], first[N_PROMPTS * 32], second[N_PROMPTS * 32];
    tiny_open(&llama, &t);
    make_data(&d);
    int n = count(&d), dims = N_PROMPTS * 32;
    double loss = step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, whole, NULL);
    double parts = step(&t, d.row, 4, d.prompts_f32, true, n, first, NULL);
    parts += step(&t, d.row + 4, N_ROWS - 4, d.prompts_f32, true, n, second, NULL);
    for (int i = 0; i < dims; i++)
        first[i] += second[i];
    assert_float_equal(parts, loss, 1e-5 * loss);
    assert_true(distance(first, whole, dims) <= 1e-5 * norm(whole, dims));
    tiny_close(&t);
}

static void test_logit_chunks_and_repetition_give_the_same(void **state)
{
    (void)state;
    static struct data d;
    struct tiny_model t;
    float whole[N_PROMPTS * 32], other[N_PROMPTS * 32];
    float losses[N_ROWS * MAX_N], other_losses[N_ROWS * MAX_N];
    tiny_open(&llama, &t);
    make_data(&d);
    int n = count(&d), dims = N_PROMPTS * 32;
    step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, whole, losses);
    for (int k = 0; k < 3; k++) {
        step(&t, d.row, 3, d.prompts_f32, true, 0, other, NULL); /* another shape between */
        step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, other, other_losses);
        assert_memory_equal(other, whole, sizeof whole);
        assert_memory_equal(other_losses, losses, sizeof *losses * (size_t)n);
    }
    step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, NULL, other_losses); /* forward only */
    assert_memory_equal(other_losses, losses, sizeof *losses * (size_t)n);
    for (int rows = 1; rows < 6; rows++) {
        t.model->logit_rows = rows;
        step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, other, other_losses);
        assert_true(distance(other, whole, dims) <= 1e-6 * norm(whole, dims));
        assert_true(distance(other_losses, losses, n) <= 1e-6 * norm(losses, n));
    }
    tiny_close(&t);
}

static void check_logits(const struct tiny *config, int logit_rows)
{
    static struct data d;
    struct tiny_model t;
    struct sl_err err = SL_ERR_INIT;
    struct sl_batch b;
    tiny_open(config, &t);
    struct reference *ref = reference_new(t.weights);
    make_data(&d);
    const struct sl_arch *a = sl_model_arch(t.model);
    if (logit_rows)
        t.model->logit_rows = logit_rows;
    for (int r = 0; r < N_ROWS; r++)
        d.row[r].target = NULL;
    assert_int_equal(sl_batch_pack(d.row, N_ROWS, slot_v, N_SLOTS, a->vocab, a->max_positions, true,
                                   0, &b, &err),
                     0);
    assert_int_equal(b.n_out, N_ROWS);
    float *logits = malloc(sizeof *logits * (size_t)(b.n_out * a->vocab));
    double *expected = malloc(sizeof *expected * (size_t)a->vocab);
    assert_int_equal(sl_model_logits(t.model, &b, d.prompts_f32, logits, &err), 0);
    for (int r = 0; r < N_ROWS; r++) {
        reference_logits(ref, &d.row[r], slot_prompts, d.prompts, expected);
        for (int c = 0; c < a->vocab; c++)
            assert_float_equal(logits[b.row_out[r] * a->vocab + c], expected[c],
                               5e-5 * (1 + fabs(expected[c])));
    }
    free(logits);
    free(expected);
    sl_batch_release(&b);
    reference_free(ref);
    tiny_close(&t);
}

static void test_logits(void **state)
{
    (void)state;
    check_logits(&llama, 0);
    check_logits(&llama_untied, 3);
    check_logits(&gpt2, 0);
}

static void test_nothing_to_learn_from(void **state)
{
    (void)state;
    struct tiny_model t;
    struct sl_err err = SL_ERR_INIT;
    const int32_t id[] = {1, -1, 2}, text[] = {1, 2, 3};
    const unsigned char none[3] = {0}, last[3] = {0, 0, 1};
    const int v[] = {2};
    struct sl_row row = {0, 3, id, none};
    struct sl_batch b;
    float prompts[2 * 32] = {1}, grad[2 * 32], loss[1];
    tiny_open(&llama, &t);
    for (int k = 0; k < 2; k++) { /* no counted token; no virtual token in the row */
        assert_int_equal(sl_batch_pack(&row, 1, v, 1, 40, 32, true, 0, &b, &err), 0);
        memset(grad, 1, sizeof grad);
        assert_int_equal(sl_model_step(t.model, &b, prompts, grad, loss, &err), 0);
        for (int i = 0; i < 2 * 32; i++)
            assert_float_equal(grad[i], 0, 0);
        sl_batch_release(&b);
        row = (struct sl_row){0, 3, text, last};
    }
    assert_true(isfinite(loss[0]) && loss[0] > 0);
    tiny_close(&t);
}

static uint64_t buckets[2];
static int n_buckets;

static bool note_bucket(struct sl_backend *be, uint64_t bucket)
{
    (void)be;
    assert_in_range(n_buckets, 0, 1);
    buckets[n_buckets++] = bucket;
    return false;
}

/* A backend that captures steps gets rounded shapes: the same losses and gradients come out, and rows that differ in
 * their text alone share a bucket. */
static void test_padding_changes_nothing(void **state)
{
    static const struct tiny *const all[] = {&llama, &llama_untied, &llama_one_layer, &gpt2, &gpt2_one_layer};
    static struct data d;
    (void)state;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        struct sl_ops ops = sl_cpu_ops;
        struct tiny_model t;
        float plain[N_ROWS * MAX_N], padded[N_ROWS * MAX_N], g[N_PROMPTS * 32], h[N_PROMPTS * 32];
        tiny_open(all[k], &t);
        make_data(&d);
        int n = count(&d);
        step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, g, plain);
        ops.step_replay = note_bucket;
        t.model->ops = &ops;
        n_buckets = 0;
        step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, h, padded);
        for (int i = 0; i < n; i++)
            assert_float_equal(padded[i], plain[i], 1e-5);
        assert_true(distance(g, h, N_PROMPTS * 32) < 1e-5 * norm(g, N_PROMPTS * 32));
        d.id[3][9] = (d.id[3][9] + 1) % 37; /* behind what rows share, and not counted */
        step(&t, d.row, N_ROWS, d.prompts_f32, true, 0, h, NULL);
        assert_int_equal(n_buckets, 2);
        assert_true(buckets[0] && buckets[0] == buckets[1]);
        t.model->ops = &sl_cpu_ops;
        tiny_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_llama_untied_biases_linear_rope),
        cmocka_unit_test(test_llama_one_layer),
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_gpt2_one_layer),
        cmocka_unit_test(test_sharing_changes_nothing),
        cmocka_unit_test(test_micro_batches_add_up),
        cmocka_unit_test(test_logit_chunks_and_repetition_give_the_same),
        cmocka_unit_test(test_padding_changes_nothing),
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_nothing_to_learn_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
