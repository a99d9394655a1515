/* Every operation of a backend against plain double precision and finite differences.
 *
 * The table names each operation's tolerance: the largest |got - want| / (|want| + rms) over all
 * elements. To test another backend, give main its table: each case then also runs on the CPU with
 * the same inputs, within act_tolerance. */
#include "engine/cpu/coretype.h"
#include "engine/cpu/cpu.h"
#include "tests/ops/cases_attention.h"
#include "tests/ops/cases_matrix.h"
#include "tests/ops/cases_train.h"

#define ROUNDS 8    /* random shapes a case */
#define BIT_RUNS 20 /* runs that must agree to the bit */
#define PLANTED 1.1 /* the fault every case must notice */

static const struct op_case {
    const char *name;
    case_fn *run;
    double tolerance;
} cases[] = {
    {"matmul", case_matmul, 2e-6},
    {"matmul_back", case_matmul_back, 2e-6},
    {"gemm_f32", case_gemm_f32, 2e-6},
    {"embed", case_embed, 1e-7},
    {"embed_back", case_embed_back, 1e-6},
    {"gather", case_gather, 1e-7},
    {"scatter", case_scatter, 1e-7},
    {"norm", case_norm, 1e-6},
    {"norm_back", case_norm_back, 2e-6},
    {"rope", case_rope, 5e-7},
    {"attention", case_attention, 6e-6},
    {"attention_back", case_attention_back, 8e-6},
    {"activation", case_activation, 1e-6},
    {"activation_back", case_activation_back, 2e-6},
    {"cross_entropy", case_cross_entropy, 3e-6},
    {"bias_act_f32", case_bias_act, 1e-6},
    {"bias_act_back_f32", case_bias_act_back, 2e-6},
    {"lstm, lstm_back", case_lstm, 5e-6},
    {"dropout_f32", case_dropout, 2e-7},
    {"sumsq_f32", case_sumsq, 1e-6},
    {"clip_scale", case_clip, 1e-7},
    {"adamw", case_adamw, 1e-6},
};
#define N_CASES (sizeof cases / sizeof *cases)

static struct dev under_test = {.ops = &sl_cpu_ops};

static int setup(void **state)
{
    (void)state;
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend_opts opts = {.threads = 2};
    return under_test.ops->open(&opts, &under_test.be, &err);
}

static int teardown(void **state)
{
    (void)state;
    under_test.ops->close(under_test.be);
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
    for (size_t i = 0; i < N_CASES; i++) {
        double worst = 0;
        for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
            struct vec got, want;
            run_case(&under_test, &cases[i], seed, &got, &want);
            for (int s = 0; s < got.n_segs; s++) {
                double e = segment_error(&got, &want, s);
                worst = e > worst ? e : worst;
                if (e > cases[i].tolerance) {
                    print_error("%s %s, seed %d: error %.2e, allowed %.1e\n", cases[i].name,
                                got.seg[s].name, (int)seed, e, cases[i].tolerance);
                    failed++;
                }
            }
            vec_free(&got);
            vec_free(&want);
        }
        print_message("    %-18s worst %.1e of %.0e\n", cases[i].name, worst, cases[i].tolerance);
    }
    assert_int_equal(failed, 0);
}

/* A result off by a tenth fails, in every segment of every case: the comparison above has teeth. */
static void test_planted_fault(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct vec got, want;
        run_case(&under_test, &cases[i], 1, &got, &want);
        for (int s = 0; s < got.n_segs; s++) {
            size_t end = s + 1 < got.n_segs ? got.seg[s + 1].start : got.n;
            for (size_t j = got.seg[s].start; j < end; j++)
                got.v[j] *= PLANTED;
            if (segment_error(&got, &want, s) <= cases[i].tolerance)
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
    under_test.bits_only = true;
    for (size_t i = 0; i < N_CASES; i++) {
        struct vec first, got, want;
        run_case(&under_test, &cases[i], 3, &first, &want);
        vec_free(&want);
        for (int run = 1; run < BIT_RUNS; run++) {
            run_case(&under_test, &cases[i], 3, &got, &want);
            assert_int_equal(got.n, first.n);
            if (memcmp(got.v, first.v, got.n * sizeof *got.v))
                fail_msg("%s: run %d of %d gave other bits", cases[i].name, run + 1, BIT_RUNS);
            vec_free(&got);
            vec_free(&want);
        }
        vec_free(&first);
    }
    under_test.bits_only = false;
}

int main(int argc, char **argv)
{
    (void)argc;
    if (sl_cpu_reexec(argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_planted_fault),
        cmocka_unit_test(test_same_bits),
    };
    return cmocka_run_group_tests_name("operations", tests, setup, teardown);
}
