/* The suite of operation tests, for one backend after the other; each program that includes it names its own.
 *
 * Every operation against plain double precision and finite differences. The table names each operation's
 * tolerance: the largest |got - want| / (|want| + rms) over all elements. SL_OPS_CASE=TEXT in the environment runs only
 * the cases with it in their name. */
#ifndef TESTS_OPS_SUITE_H
#define TESTS_OPS_SUITE_H
#include "engine/cpu/coretype.h"
#include "engine/cpu/cpu.h"
#include "tests/ops/cases_attention.h"
#include "tests/ops/cases_linear.h"
#include "tests/ops/cases_matrix.h"
#include "tests/ops/cases_model.h"
#include "tests/ops/cases_train.h"

#define ROUNDS 8    /* random shapes of most cases */
#define BIT_RUNS 20 /* runs that must agree to the bit; SL_OPS_BIT_RUNS: another number, under slow checkers */
#define PLANTED 1.1 /* the fault every case must notice */
#define LINEAR_FIRST "linear"

static const struct op_case {
    const char *name;
    case_fn *run;
    double tolerance, tolerance_bf16; /* with activations of that type */
    uint64_t rounds;                  /* random shapes */
} cases[] = {
    {"copy, zero", case_copy, 1e-7, 1e-7, ROUNDS},
    {"matmul", case_matmul, 2e-6, 5e-3, ROUNDS},
    {"matmul_back", case_matmul_back, 2e-6, 5e-3, ROUNDS},
    {"gemm_f32", case_gemm_f32, 2e-6, 2e-6, ROUNDS},
    {"embed", case_embed, 1e-7, 4e-3, ROUNDS},
    {"embed_back", case_embed_back, 1e-6, 1e-6, ROUNDS},
    {"gather", case_gather, 1e-7, 1e-7, ROUNDS},
    {"scatter", case_scatter, 1e-7, 4e-3, ROUNDS},
    {"norm", case_norm, 1e-6, 4e-3, ROUNDS},
    {"norm_back", case_norm_back, 2e-6, 6e-3, ROUNDS},
    {"head_norm", case_head_norm, 1e-6, 4e-3, ROUNDS},
    {"head_norm_back", case_head_norm_back, 2e-6, 4e-3, ROUNDS},
    {"rope", case_rope, 5e-7, 4e-3, ROUNDS},
    {"attention", case_attention, 6e-6, 1e-2, ROUNDS},
    {"attention_back", case_attention_back, 8e-6, 3e-2, ROUNDS},
    {"activation", case_activation, 1e-6, 4e-3, ROUNDS},
    {"activation_back", case_activation_back, 2e-6, 4e-3, ROUNDS},
    {"cross_entropy", case_cross_entropy, 3e-6, 4e-3, ROUNDS},
    {"bias_act_f32", case_bias_act, 1e-6, 1e-6, ROUNDS},
    {"bias_act_back_f32", case_bias_act_back, 2e-6, 2e-6, ROUNDS},
    {"lstm, lstm_back", case_lstm, 5e-6, 5e-6, ROUNDS},
    {"dropout_f32", case_dropout, 2e-7, 2e-7, ROUNDS},
    {"sumsq_f32", case_sumsq, 1e-6, 1e-6, ROUNDS},
    {"clip_scale", case_clip, 1e-7, 1e-7, ROUNDS},
    {"adamw", case_adamw, 1e-6, 1e-6, ROUNDS},
    {"wide attention", case_wide_attention, 6e-6, 1e-2, ROUNDS},
    {"wide attention_back", case_wide_attention_back, 1e-5, 3e-2, 2},
    {"ragged attention", case_ragged_attention, 6e-5, 6e-2, 4},
    {"model matmul", case_model_matmul, 4e-6, 5e-3, 2},
    {"odd matmul", case_odd_matmul, 4e-6, 6e-3, 2},
    {"model attention", case_model_attention, 1e-5, 3e-2, 2},
    {"model cross_entropy", case_model_cross_entropy, 5e-6, 4e-3, 2},
    {"wide lstm", case_wide_lstm, 2e-5, 2e-5, 2},
    {"weight_raw", case_weight_raw, 1e-9, 1e-9, ROUNDS},
    {LINEAR_FIRST, case_linear, 2e-6, 6e-3, ROUNDS},
    {"linear_back", case_linear_back, 2e-6, 6e-3, ROUNDS},
    {"linear mlp_back", case_mlp_back, 4e-6, 6e-2, ROUNDS},
    {"long linear", case_long_linear, 4e-6, 6e-3, 2},
};
#define N_CASES (sizeof cases / sizeof *cases)
static size_t first_case; /* 0, or the first of the linear layers: the others do not depend on their precision */

static bool chosen(const struct op_case *c)
{
    const char *only = getenv("SL_OPS_CASE");
    return !only || strstr(c->name, only);
}

static struct dev under_test;
/* What it is compared to: the CPU, with a number of threads of its own. */
static struct dev other = {.ops = &sl_cpu_ops, .bits_only = true, .bf16_inputs = true};

/* Activations that are not fp32: their tolerances, and inputs that they hold exactly. */
static bool narrow(void)
{
    return under_test.ops->act_bytes != sizeof(float);
}

static double tolerance_of(const struct op_case *c)
{
    return narrow() ? c->tolerance_bf16 : c->tolerance;
}

static int suite_open(const struct sl_ops *ops, enum sl_precision precision)
{
    struct sl_err err = SL_ERR_INIT;
    /* The CPU has no fp8: there the other one says nothing. */
    enum sl_precision others = precision == SL_PRECISION_FP8 ? SL_PRECISION_FP32 : precision;
    under_test = (struct dev){.ops = ops, .precision = precision};
    under_test.bf16_inputs = narrow();
    other.precision = others;
    first_case = 0;
    while (precision > SL_PRECISION_BF16 && strcmp(cases[first_case].name, LINEAR_FIRST))
        first_case++;
    if (other.ops->open(&(struct sl_backend_opts){.threads = 5, .precision = others}, &other.be, &err) ||
        ops->open(&(struct sl_backend_opts){.threads = 2, .precision = precision}, &under_test.be, &err)) {
        print_error("%s\n", err.msg);
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    under_test.ops->close(under_test.be);
    other.ops->close(other.be);
    return 0;
}

static void run_case(struct dev *d, const struct op_case *c, uint64_t seed, struct vec *got,
                     struct vec *want)
{
    *got = *want = (struct vec){0};
    d->rng = seed * 1000003 + (uint64_t)(c - cases);
    c->run(d, got, want);
    assert_true(got->n == want->n && got->n > 0 && got->n_segs == want->n_segs);
    for (int s = 0; s < got->n_segs; s++)
        assert_true(got->seg[s].start == want->seg[s].start);
    dev_reset(d);
}

static void test_reference(void **state)
{
    (void)state;
    int failed = 0;
    for (size_t i = first_case; i < N_CASES; i++) {
        if (!chosen(&cases[i]))
            continue;
        double worst = 0;
        for (uint64_t seed = 1; seed <= cases[i].rounds; seed++) {
            struct vec got, want;
            run_case(&under_test, &cases[i], seed, &got, &want);
            for (int s = 0; s < got.n_segs; s++) {
                double e = segment_error(&got, &want, s);
                worst = e > worst ? e : worst;
                if (e > tolerance_of(&cases[i])) {
                    print_error("%s %s, seed %d: error %.2e, allowed %.1e\n", cases[i].name,
                                got.seg[s].name, (int)seed, e, tolerance_of(&cases[i]));
                    failed++;
                }
            }
            vec_free(&got);
            vec_free(&want);
        }
        print_message("    %-18s worst %.1e of %.0e\n", cases[i].name, worst, tolerance_of(&cases[i]));
    }
    assert_int_equal(failed, 0);
}

/* A result off by a tenth fails, in every segment of every case: the comparison above has teeth. */
static void test_planted_fault(void **state)
{
    (void)state;
    for (size_t i = first_case; i < N_CASES; i++) {
        if (!chosen(&cases[i]))
            continue;
        struct vec got, want;
        run_case(&under_test, &cases[i], 1, &got, &want);
        for (int s = 0; s < got.n_segs; s++) {
            size_t end = s + 1 < got.n_segs ? got.seg[s + 1].start : got.n;
            for (size_t j = got.seg[s].start; j < end; j++)
                got.v[j] *= PLANTED;
            if (segment_error(&got, &want, s) <= tolerance_of(&cases[i]))
                fail_msg("%s %s: scaled by %g, not noticed", cases[i].name, got.seg[s].name,
                         PLANTED);
        }
        vec_free(&got);
        vec_free(&want);
    }
}

/* Same inputs, same thread count: same bits, every time. */
static void test_same_bits(void **state)
{
    (void)state;
    const char *asked = getenv("SL_OPS_BIT_RUNS");
    int bit_runs = asked ? atoi(asked) : BIT_RUNS;
    under_test.bits_only = true;
    for (size_t i = first_case; i < N_CASES; i++) {
        if (!chosen(&cases[i]))
            continue;
        struct vec first, got, want;
        run_case(&under_test, &cases[i], 3, &first, &want);
        vec_free(&want);
        for (int run = 1; run < bit_runs; run++) {
            run_case(&under_test, &cases[i], 3, &got, &want);
            assert_int_equal(got.n, first.n);
            if (memcmp(got.v, first.v, got.n * sizeof *got.v))
                fail_msg("%s: run %d of %d gave other bits", cases[i].name, run + 1, bit_runs);
            vec_free(&got);
            vec_free(&want);
        }
        vec_free(&first);
    }
    under_test.bits_only = false;
}

/* Two backends agree within the operation's tolerance (twice: each may be off by it). */
static void test_other_backend(void **state)
{
    (void)state;
    int failed = 0;
    under_test.bits_only = under_test.bf16_inputs = true;
    for (size_t i = first_case; i < N_CASES; i++)
        for (uint64_t seed = 1; chosen(&cases[i]) && seed <= cases[i].rounds; seed++) {
            struct vec a, b, want;
            run_case(&under_test, &cases[i], seed, &a, &want);
            vec_free(&want);
            run_case(&other, &cases[i], seed, &b, &want);
            vec_free(&want);
            for (int s = 0; s < a.n_segs; s++) {
                double e = segment_error(&a, &b, s);
                if (e > 2 * tolerance_of(&cases[i])) {
                    print_error("%s %s, seed %d: backends differ by %.2e\n", cases[i].name,
                                a.seg[s].name, (int)seed, e);
                    failed++;
                }
            }
            vec_free(&a);
            vec_free(&b);
        }
    under_test.bits_only = false;
    under_test.bf16_inputs = narrow();
    assert_int_equal(failed, 0);
}

/* Where a buffer lies does not change its sums: an arena laid out otherwise after a resume gives
 * the same bits. Addresses differ by multiples of `step` floats; for fp32 activations. */
static void any_address(int step)
{
    enum { N = 601, ROWS = 7, SHIFTS = 16 };
    size_t room = (size_t)(SHIFTS * step);
    struct dev *d = &under_test;
    d->rng = 5;
    double *x = host_random(d, ROWS * N, 1);
    const float *a = dev_f32(d, x, ROWS * N);
    float *b = dev_bytes(d, NULL, (ROWS * N + room) * sizeof *b);
    float *out = dev_bytes(d, NULL, (4 * ROWS * N + room) * sizeof *out);
    const int32_t rows[] = {0, 1, 2, 3, 4, 5, 6, 7};
    const int32_t *row = dev_bytes(d, rows, sizeof rows), *target = row + 1;
    struct sl_weight *w = dev_weight(d, x, 1, N), *square = dev_weight(d, x, ROWS, N);
    struct vec first = {0};
    for (int shift = 0; shift < SHIFTS; shift++) {
        float *in = b + shift * step, *y = out + shift * step;
        struct vec got = {0};
        d->ops->copy(d->be, in, a, ROWS * N * sizeof *in);
        d->ops->sumsq_f32(d->be, ROWS * N, in, false, y);
        d->ops->norm(d->be, in, ROWS, N, w, NULL, 1e-5f, false, y + N, y + 1, y + 1 + ROWS);
        d->ops->matmul(d->be, in, N, 1, square, NULL, NULL, 0, y + 1 + 2 * ROWS, ROWS);
        d->ops->matmul(d->be, in, N, ROWS, square, NULL, NULL, 0, y + N + ROWS * N, ROWS);
        d->ops->cross_entropy(d->be, in, N, ROWS, N, ROWS, row, target, a, true, y + 1 + 3 * ROWS);
        get_f32(d, y, 1 + 4 * ROWS, &got);
        get_f32(d, y + N, ROWS * N + ROWS * ROWS, &got);
        get_f32(d, in, ROWS * N, &got);
        if (!shift)
            first = got;
        else if (memcmp(first.v, got.v, got.n * sizeof *got.v))
            fail_msg("moved by %d floats: other bits", shift * step);
        if (shift)
            vec_free(&got);
    }
    vec_free(&first);
    dev_reset(d);
}

/* A row is nobody else's business: one that is huge, or not a number, leaves the others' bits as they were. */
static void test_rows_apart(void **state)
{
    (void)state;
    enum { ROWS = 9, IN = 64, OUT = 32, ODD = 4 };
    const double odd[] = {1e4, (double)NAN, (double)INFINITY};
    struct dev *d = &under_test;
    struct vec y[4] = {0}, dx[4] = {0};
    for (size_t run = 0; run < 4; run++) {
        d->rng = 11;
        double *x = host_random(d, ROWS * IN, 1), *dy = host_random(d, ROWS * OUT, 1), *w = host_random(d, OUT * IN, 1);
        for (size_t i = 0; run && i < IN; i += 3)
            x[ODD * IN + i] = dy[ODD * OUT + i % OUT] = odd[run - 1];
        struct sl_weight *dev_w = dev_linear(d, w, OUT, IN);
        sl_act *dev_y = dev_act(d, dy, ROWS, OUT, OUT), *dev_dx = dev_act(d, x, ROWS, IN, IN);
        d->ops->matmul_back(d->be, dev_y, OUT, ROWS, dev_w, false, dev_dx, IN);
        get_act(d, dev_dx, ROWS, IN, IN, &dx[run]);
        d->ops->matmul(d->be, dev_act(d, x, ROWS, IN, IN), IN, ROWS, dev_w, NULL, NULL, 0, dev_y, OUT);
        get_act(d, dev_y, ROWS, OUT, OUT, &y[run]);
        dev_reset(d);
    }
    for (size_t run = 1; run < 4; run++)
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < IN; i++) {
                if (r != ODD)
                    assert_true(dx[run].v[r * IN + i] == dx[0].v[r * IN + i] &&
                                (i >= OUT || y[run].v[r * OUT + i] == y[0].v[r * OUT + i]));
                else if (run > 1)
                    assert_false(isfinite(dx[run].v[r * IN + i]) || (i < OUT && isfinite(y[run].v[r * OUT + i])));
            }
    for (size_t run = 0; run < 4; run++) {
        vec_free(&y[run]);
        vec_free(&dx[run]);
    }
}

static int read_fails(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err)
{
    (void)ctx;
    (void)row0;
    (void)n;
    (void)out;
    return sl_err_set(err, SL_DATA, "file ends early");
}

/* Errors leave outputs as they were, come back once, and say what the caller asked for. */
static void check_errors(void)
{
    const struct sl_ops *ops = under_test.ops;
    struct sl_err err = SL_ERR_INIT;
    struct sl_weight *w = (struct sl_weight *)&err, *before = w;
    assert_int_equal(ops->weight_new(under_test.be, 3, 3, read_fails, NULL, &w, &err), SL_DATA);
    assert_ptr_equal(w, before);
    assert_string_equal(err.msg, "file ends early");
    sl_err_clear(&err);
    assert_int_equal(ops->weight_new(under_test.be, 0, 3, read_fails, NULL, &w, &err), SL_SPEC);
    sl_err_clear(&err);
    struct sl_backend *be = NULL;
    assert_int_equal(ops->open(&(struct sl_backend_opts){.threads = -1}, &be, &err), SL_SPEC);
    assert_null(be);
    ops->close(NULL);
    ops->weight_free(under_test.be, NULL);
    ops->free(under_test.be, NULL);
}

#endif
