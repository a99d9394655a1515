/* The steps of several trials: how their rows are cut into passes, and what a backend that replays captured work is
 * told of their encoders. */
#include "engine/cpu/coretype.h"
#include "tests/unit/trials.h"

/* Losses and gradients of the first step when a pass is at most so long, or memory so short; returns what the plan
 * says that the run takes. */
static int64_t first_step(int64_t pass_positions, int64_t memory_bytes, double *loss, float **ret_grad,
                          size_t *ret_n)
{
    struct sl_trainer_options options = {.threads = 1, .memory_bytes = memory_bytes};
    int64_t total;
    struct sl_trial_sum sum[MAX_TRIALS];
    struct sl_err err = SL_ERR_INIT;
    struct sl_emitter report;
    struct sl_run run = {0};
    struct sl_trainer t;
    int rows[MAX_TRIALS * 8];
    char dir[SL_PATH_MAX];

    trials_dir(dir, various, N_VARIOUS, NULL);
    sl_emit_init(&report, open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (sl_run_open(dir, &run, &err) || sl_trainer_init(&t, &run, &options, &report, NULL, &err))
        fail_msg("%s", err.msg);
    if (pass_positions)
        t.pass_positions = pass_positions;
    total = t.plan.total;
    if (memory_bytes) { /* short of it: shorter passes, no layer computed again */
        assert_true(total <= memory_bytes && t.pass_positions < SL_PASS_POSITIONS_CPU);
        assert_int_equal(t.plan.recompute, 0);
    }
    for (int i = 0; i < N_VARIOUS * 8; i++)
        rows[i] = i % 8;
    assert_int_equal(sl_trainer_loss(&t, rows, 8, true, sum, &err), 0);
    *ret_grad = NULL;
    *ret_n = 0;
    for (int k = 0; k < N_VARIOUS; k++) {
        loss[k] = sum[k].loss / (double)sum[k].counted;
        for (int i = 0; i < t.trial[k].n_params; i++) {
            const struct sl_param *p = &t.trial[k].params[i];
            size_t n = (size_t)p->rows * (size_t)p->cols;

            *ret_grad = realloc(*ret_grad, (*ret_n + n) * sizeof **ret_grad);
            assert_non_null(*ret_grad);
            assert_int_equal(
                t.ops->download(t.be, *ret_grad + *ret_n, p->grad, n * sizeof **ret_grad, &err), 0);
            *ret_n += n;
        }
    }
    sl_trainer_release(&t);
    sl_run_release(&run);
    close(report.events_fd);
    sl_rmtree(dir, NULL);
    return total;
}

static void test_the_length_of_a_pass_does_not_matter(void **state)
{
    static const int64_t lengths[] = {1, 300, 700, 0}; /* 0: as memory allows */
    int64_t total;
    double whole[MAX_TRIALS], parts[MAX_TRIALS];
    float *want, *grad;
    size_t n, k;

    (void)state;
    total = first_step(0, 0, whole, &want, &n);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        first_step(lengths[i], lengths[i] ? 0 : total - 10000, parts, &grad, &k);
        assert_int_equal(k, n);
        for (int t = 0; t < N_VARIOUS; t++)
            assert_true(fabs(parts[t] / whole[t] - 1) < 1e-6);
        assert_true(golden_distance(grad, want, (int64_t)n) < 1e-5);
        free(grad);
    }
    free(want);
}

/* ---- what a backend that replays captured work is told ---- */

static uint64_t buckets[8];
static int n_buckets;
static bool inside;

static bool never_replays(struct sl_backend *be, uint64_t bucket)
{
    (void)be;
    assert_true(bucket != 0 && !inside);
    return false;
}

static void notes_begin(struct sl_backend *be, uint64_t bucket)
{
    (void)be;
    assert_false(inside);
    inside = true;
    if (n_buckets < 8)
        buckets[n_buckets++] = bucket;
}

static int notes_end(struct sl_backend *be, struct sl_err *err)
{
    (void)be, (void)err;
    assert_true(inside);
    inside = false;
    return 0;
}

/* Two steps of trials, between which one may diverge: the buckets of their encoders. */
static void note_buckets(const struct trial *trials, int n, bool diverges)
{
    struct sl_trainer_options options = {.threads = 1};
    struct sl_trial_sum sum[MAX_TRIALS];
    struct sl_err err = SL_ERR_INIT;
    struct sl_emitter report;
    struct sl_run run = {0};
    struct sl_trainer t;
    struct sl_ops ops;
    int rows[MAX_TRIALS * 8] = {0};
    char dir[SL_PATH_MAX];

    trials_dir(dir, trials, n, NULL);
    sl_emit_init(&report, open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (sl_run_open(dir, &run, &err) || sl_trainer_init(&t, &run, &options, &report, NULL, &err))
        fail_msg("%s", err.msg);
    ops = *t.ops;
    ops.step_replay = never_replays, ops.step_begin = notes_begin, ops.step_end = notes_end;
    t.ops = &ops;
    n_buckets = 0;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(sl_trainer_loss(&t, rows, 8, true, sum, &err), 0);
        if (diverges && i == 0) {
            sl_err_set(&err, SL_DATA, "lost");
            assert_int_equal(sl_trial_diverged(&t, &t.trial[0], &err), 0);
        }
    }
    t.ops = &sl_cpu_ops;
    sl_trainer_release(&t);
    sl_run_release(&run);
    close(report.events_fd);
    sl_rmtree(dir, NULL);
}

static void test_equal_work_of_encoders_has_equal_buckets(void **state)
{
    (void)state;
    note_buckets(various, 2, false);
    assert_int_equal(n_buckets, 4); /* forward and backward, twice */
    assert_true(buckets[0] && buckets[1] && buckets[0] != buckets[1]);
    assert_true(buckets[2] == buckets[0] && buckets[3] == buckets[1]);
    note_buckets(various, 2, true);
    assert_int_equal(n_buckets, 4);
    assert_true(buckets[2] != buckets[0] && buckets[3] != buckets[1]);
    note_buckets(various, 3, false); /* an LSTM with dropout: another mask in every step */
    assert_int_equal(n_buckets, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_length_of_a_pass_does_not_matter),
        cmocka_unit_test(test_equal_work_of_encoders_has_equal_buckets),
    };
    (void)argc;
    if (sl_cpu_reexec(argv)) /* as the worker does: threads that wait passively */
        return 2;
    return cmocka_run_group_tests_name("passes of trials", tests, NULL, NULL);
}
