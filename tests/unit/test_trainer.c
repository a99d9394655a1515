/* The trainer: the same bits after a stop, a kill or a resume; batches, validation, early stopping,
 * the best table. */
#include "engine/cpu/coretype.h"
#include "tests/unit/train_run.h"

static const struct fate undisturbed;

/* Validation rows with answers that are never trained: their loss soon rises. */
#define LEARNS_OTHERWISE                                                                           \
    "datasets.validation.0=other.jsonl", "trainer.val_check_interval=1", "trainer.max_steps=8",    \
        "model.task_templates.0.answer_field=answer",                                              \
        "model.task_templates.0.answer_only_loss=true",                                            \
        "model.virtual_prompt_style=prompt-tuning", "model.optim.lr=0.5"

static void run_once(const char *const *overrides, struct outcome *ret)
{
    char dir[SL_PATH_MAX];

    train_dir(dir, overrides);
    train_in(dir, undisturbed, ret);
    sl_rmtree(dir, NULL);
}

/* ---- resuming
 * ---------------------------------------------------------------------------------------------- */

static const char *const tpmlp[] = {NULL};
static const char *const mlp[] = {"model.p_tuning.encoder_type=mlp", "model.p_tuning.num_layers=3",
                                  NULL};
static const char *const lstm[] = {"model.p_tuning.encoder_type=lstm", "model.p_tuning.dropout=0.3",
                                   NULL};
static const char *const embedding[] = {"model.p_tuning.encoder_type=embedding", NULL};
static const char *const random_prompt[] = {"model.virtual_prompt_style=prompt-tuning", NULL};
static const char *const text_prompt[] = {
    "model.virtual_prompt_style=prompt-tuning",
    "model.prompt_tuning={\"new_prompt_init_methods\": [\"text\", \"random\"],"
    " \"new_prompt_init_text\": [\"is it so\", null]}",
    NULL};

/* Resumes after first happened (and then perhaps second), and names the first difference from
 * straight. */
static const char *resumed(const char *const *overrides, const struct outcome *straight,
                           struct fate first, struct fate second)
{
    struct outcome o;
    const char *differs;
    char dir[SL_PATH_MAX];

    train_dir(dir, overrides);
    train_in(dir, first, &o);
    if (first.what == PREEMPTED) {
        assert_int_equal(o.rc, SL_CANCELLED);
        assert_int_equal(sl_json_int(o.state, "step", -1), first.step);
        assert_int_equal(sl_json_int(event_like(&o, "checkpoint", NULL), "step", -1), first.step);
    }
    outcome_release(&o);
    train_in(dir, second, &o);
    if (o.rc == 1) {
        outcome_release(&o);
        train_in(dir, undisturbed, &o);
    }
    assert_non_null(event_like(&o, "log", "resumed at step"));
    assert_true(sl_json_bool(event_like(&o, "start", NULL), "resumed", false));
    differs = outcomes_differ(straight, &o);
    outcome_release(&o);
    sl_rmtree(dir, NULL);
    return differs;
}

static void same_bits(const char *const *overrides)
{
    static const struct {
        struct fate first, second;
    } stories[] = {
        {{.what = PREEMPTED, .step = 7}, {.what = RUNS_ON}},
        {{.what = KILLED, .step = 11},
         {.what = RUNS_ON}}, /* three steps after the last checkpoint */
        {{.what = KILLED_WRITING, .step = 8},
         {.what = RUNS_ON}}, /* goes on from the one of step 4 */
        {{.what = PREEMPTED, .step = 3}, {.what = KILLED, .step = 10}},
    };
    struct outcome straight;

    run_once(overrides, &straight);
    assert_int_equal(straight.rc, 0);
    assert_int_equal(sl_json_int(straight.state, "step", 0), STEPS);
    assert_int_equal(json_object_size(straight.metrics), STEPS + 4); /* validated at 0, 4, 8, 12 */
    for (size_t i = 0; i < sizeof stories / sizeof *stories; i++) {
        const char *differs = resumed(overrides, &straight, stories[i].first, stories[i].second);

        if (differs)
            fail_msg("story %zu: %s", i, differs);
    }
    outcome_release(&straight);
}

static void test_resume_tpmlp(void **state)
{
    (void)state;
    same_bits(tpmlp);
}

static void test_resume_mlp(void **state)
{
    (void)state;
    same_bits(mlp);
}

static void test_resume_lstm_with_dropout(void **state)
{
    (void)state;
    same_bits(lstm);
}

static void test_resume_without_a_network(void **state)
{
    (void)state;
    same_bits(embedding);
    same_bits(random_prompt);
    same_bits(text_prompt);
}

static void test_resume_on_two_threads(void **state)
{
    (void)state;
    train_threads = 2;
    same_bits(tpmlp);
    same_bits(lstm);
    train_threads = 1;
}

static void test_resume_elsewhere_warns(void **state)
{
    struct outcome o;
    char dir[SL_PATH_MAX];

    (void)state;
    train_dir(dir, NULL);
    train_in(dir, (struct fate){.what = PREEMPTED, .step = 5}, &o);
    outcome_release(&o);
    train_threads = 2;
    train_in(dir, undisturbed, &o);
    train_threads = 1;
    assert_int_equal(o.rc, 0);
    assert_non_null(event_like(&o, "log", "threads"));
    assert_string_equal(sl_json_str(event_like(&o, "log", "threads"), "level", ""), "warn");
    outcome_release(&o);
    sl_rmtree(dir, NULL);
}

/* The comparison above can fail: it finds a resume that forgets a part of the state. */
static void test_forgetful_resumes_are_caught(void **state)
{
    static const char *const best_first[] = {LEARNS_OTHERWISE, NULL};
    const struct fate stop = {.what = PREEMPTED, .step = 7};
    struct outcome straight;
    const char *const *const all[] = {tpmlp, mlp, lstm, embedding, random_prompt};

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        run_once(all[i], &straight);
        assert_null(resumed(all[i], &straight, stop, undisturbed));
        assert_string_equal(
            resumed(all[i], &straight, stop, (struct fate){.forgets = FORGETS_MOMENTS}),
            "metrics of step 8 val"); /* what follows the first update */
        outcome_release(&straight);
    }
    run_once(best_first, &straight); /* the best table is an early one */
    assert_true(sl_json_int(straight.state, "best_step", 99) < 7);
    assert_null(resumed(best_first, &straight, stop, undisturbed));
    assert_string_equal(
        resumed(best_first, &straight, stop, (struct fate){.forgets = FORGETS_BEST}),
        "the tables to keep");
    outcome_release(&straight);
    run_once(lstm, &straight);
    assert_non_null(resumed(lstm, &straight, stop, (struct fate){.forgets = FORGETS_STEP}));
    outcome_release(&straight);
}

static void set_config(const char *dir, const char *key_value)
{
    struct sl_err err = SL_ERR_INIT;
    char path[SL_PATH_MAX];
    json_t *json;

    assert_int_equal(sl_path(path, &err, "%s/run.json", dir), 0);
    assert_int_equal(sl_json_read(path, SL_JSON_FILE_MAX, &json, &err), 0);
    assert_int_equal(sl_spec_apply_override(json, key_value, &err), 0);
    assert_int_equal(sl_json_write(path, json, &err), 0);
    json_decref(json);
}

static void test_checkpoint_of_another_config_is_refused(void **state)
{
    struct outcome o;
    char dir[SL_PATH_MAX];

    (void)state;
    train_dir(dir, NULL);
    train_in(dir, (struct fate){.what = PREEMPTED, .step = 5}, &o);
    outcome_release(&o);
    set_config(dir, "model.optim.lr=0.03");
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, SL_CONFLICT);
    assert_non_null(strstr(o.msg, "resuming"));
    assert_non_null(strstr(o.msg, "config"));
    assert_non_null(strstr(o.msg, dir)); /* where it lies */
    outcome_release(&o);
    set_config(dir, "exp_manager.resume_if_exists=false"); /* or begins anew when told so */
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(sl_json_int(event_like(&o, "start", NULL), "step", -1), 0);
    outcome_release(&o);
    sl_rmtree(dir, NULL);
}

/* ---- batches
 * -----------------------------------------------------------------------------------------------
 */

/* Loss and gradients of rows 0..n of a run's training data, in this process; the caller frees. */
static double loss_of(const char *const *overrides, bool no_share, int n, float **ret_grad,
                      size_t *ret_n)
{
    struct sl_trainer_options options = {.threads = 1, .no_share = no_share};
    struct sl_err err = SL_ERR_INIT;
    struct sl_emitter report;
    struct sl_trainer t;
    struct sl_run run = {0};
    struct sl_trial_sum sum = {0};
    int rows[TRAIN_ROWS];
    char dir[SL_PATH_MAX];

    train_dir(dir, overrides);
    sl_emit_init(&report, open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (sl_run_open(dir, &run, &err) || sl_trainer_init(&t, &run, &options, &report, NULL, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < n; i++)
        rows[i] = i;
    sl_trainer_zero_grad(&t);
    assert_int_equal(sl_trainer_loss(&t, rows, n, true, &sum, &err), 0);
    assert_true(sum.counted > 0 && sum.useful > sum.counted);
    *ret_grad = NULL;
    *ret_n = 0;
    for (int i = 0; i < t.trial[0].n_params; i++) {
        const struct sl_param *p = &t.trial[0].params[i];
        size_t k = (size_t)p->rows * (size_t)p->cols;

        *ret_grad = realloc(*ret_grad, (*ret_n + k) * sizeof **ret_grad);
        assert_non_null(*ret_grad);
        assert_int_equal(
            t.ops->download(t.be, *ret_grad + *ret_n, p->grad, k * sizeof **ret_grad, &err), 0);
        *ret_n += k;
    }
    sl_trainer_release(&t);
    sl_run_release(&run);
    close(report.events_fd);
    sl_rmtree(dir, NULL);
    return sum.loss / (double)sum.counted;
}

static void test_micro_batches_do_not_change_the_loss(void **state)
{
    static const char *const sizes[][2] = {{"model.micro_batch_size=1", NULL},
                                           {"model.micro_batch_size=3", NULL},
                                           {"model.micro_batch_size=4", NULL}};
    static const char *const whole[] = {"model.micro_batch_size=16", "model.global_batch_size=16",
                                        NULL};
    float *want, *grad;
    size_t n, k;
    double loss = loss_of(whole, false, 16, &want, &n);

    (void)state;
    for (size_t i = 0; i <= sizeof sizes / sizeof *sizes;
         i++) { /* the last: all rows at once, nothing shared */
        bool last = i == sizeof sizes / sizeof *sizes;
        double other = loss_of(last ? whole : sizes[i], last, 16, &grad, &k);

        assert_int_equal(k, n);
        assert_true(fabs(other / loss - 1) < 1e-6);
        assert_true(golden_distance(grad, want, (int64_t)n) < 1e-5);
        free(grad);
    }
    loss_of(whole, false, 15, &grad, &k); /* the measure sees one row less */
    assert_true(golden_distance(grad, want, (int64_t)n) > 1e-3);
    free(grad);
    free(want);
}

static void test_accumulated_batches_are_one_large_batch(void **state)
{
    static const char *const two[] = {"model.global_batch_size=4",
                                      "trainer.accumulate_grad_batches=2", NULL};
    static const char *const one[] = {"model.global_batch_size=8", NULL};
    static const char *const by_epochs[] = {"model.global_batch_size=4",
                                            "trainer.accumulate_grad_batches=2",
                                            "trainer.max_steps=-1", "trainer.max_epochs=2", NULL};
    static const char *const too_many[] = {"trainer.accumulate_grad_batches=6", NULL};
    struct outcome a, b;

    (void)state;
    run_once(two, &a);
    run_once(one, &b);
    assert_null(outcomes_differ(&a, &b));
    outcome_release(&a);
    outcome_release(&b);
    run_once(by_epochs, &a);
    assert_int_equal(sl_json_int(a.state, "step", -1), 2 * (TRAIN_ROWS / 8));
    outcome_release(&a);
    run_once(too_many, &a);
    assert_int_equal(a.rc, SL_SPEC);
    assert_non_null(strstr(a.msg, "44 training rows do not fill one step of 48"));
    assert_non_null(strstr(a.msg, "accumulate_grad_batches 6"));
    outcome_release(&a);
}

/* ---- validation
 * -------------------------------------------------------------------------------------------- */

static double val_loss(const struct outcome *o, const char *key)
{
    double loss = sl_json_num(json_object_get(o->metrics, key), "val_loss", NAN);

    assert_true(isfinite(loss));
    return loss;
}

static void test_validations_and_their_best(void **state)
{
    static const char *const overrides[] = {"trainer.val_check_interval=2",
                                            "exp_manager.checkpoint_callback_params.save_top_k=3",
                                            NULL};
    struct outcome o;
    double loss[7], best;
    int64_t best_step = -1;
    json_t *kept;

    (void)state;
    run_once(overrides, &o);
    assert_int_equal(o.rc, 0);
    for (int i = 0; i <= 6; i++) {
        char key[16];

        snprintf(key, sizeof key, "%d val", 2 * i);
        loss[i] = val_loss(&o, key);
        best = best_step < 0 || loss[i] < best ? loss[best_step = i] : best;
        /* an event says whether it was the best so far */
        assert_int_equal(sl_json_bool(json_object_get(o.metrics, key), "best", false),
                         best_step == i);
    }
    assert_true(loss[0] == sl_json_num(o.state, "first_val_loss", NAN));
    assert_true(loss[best_step] == sl_json_num(o.state, "best_val_loss", NAN));
    assert_int_equal(sl_json_int(o.state, "best_step", -1), 2 * best_step);
    assert_true(loss[6] < loss[0]); /* it learns */
    kept = json_object_get(o.state, "best");
    assert_int_equal(json_array_size(kept), 3);
    for (size_t i = 0; i < 3; i++) {
        double mine = json_number_value(json_array_get(json_array_get(kept, i), 1));
        int better = 0;

        for (int k = 0; k <= 6; k++)
            better += loss[k] < mine;
        assert_int_equal(better, i); /* the three best, best first */
    }
    outcome_release(&o);
}

/* The tables of a run stopped at a step, computed without what the trainer remembers as best. */
static float *tables_at(const char *const *overrides, int step, int *ret_n)
{
    struct outcome o;
    float *tables;
    char dir[SL_PATH_MAX];

    train_dir(dir, overrides);
    train_in(dir, (struct fate){.what = PREEMPTED, .step = step}, &o);
    assert_int_equal(o.rc, SL_CANCELLED);
    tables = o.encoded;
    *ret_n = o.n_encoded;
    o.encoded = NULL;
    outcome_release(&o);
    sl_rmtree(dir, NULL);
    return tables;
}

static void test_best_table_is_kept(void **state)
{
    static const char *const overrides[] = {LEARNS_OTHERWISE, NULL};
    static const char *const last[] = {
        LEARNS_OTHERWISE, "exp_manager.checkpoint_callback_params.save_best_model=false", NULL};
    struct outcome o;
    float *want;
    int n, step;

    (void)state;
    run_once(overrides, &o);
    step = (int)sl_json_int(o.state, "best_step", -1);
    assert_in_range(step, 1, 7);
    want = tables_at(overrides, step, &n);
    assert_int_equal(n, o.n_tables); /* all tasks are new */
    assert_memory_equal(o.tables, want, (size_t)n * sizeof *want);
    assert_memory_not_equal(o.tables, o.encoded, (size_t)n * sizeof *want);
    free(want);
    outcome_release(&o);
    run_once(last, &o);
    assert_memory_equal(o.tables, o.encoded, (size_t)o.n_tables * sizeof(float));
    outcome_release(&o);
}

static void test_early_stopping(void **state)
{
    static const char *const overrides[] = {"exp_manager.create_early_stopping_callback=true",
                                            "exp_manager.early_stopping_callback_params.patience=2",
                                            "trainer.val_check_interval=2", "model.optim.lr=1e-12",
                                            NULL};
    struct outcome o;
    char dir[SL_PATH_MAX];

    (void)state;
    train_dir(dir, overrides);
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(sl_json_int(o.state, "step", -1), 4); /* validated at 0, 2 and 4 */
    assert_non_null(event_like(&o, "log", "early stopping at step 4"));
    outcome_release(&o);
    train_in(dir, undisturbed, &o); /* started again it has nothing left to do */
    assert_int_equal(o.rc, 0);
    assert_int_equal(sl_json_int(o.state, "step", -1), 4);
    outcome_release(&o);
    set_config(dir, "exp_manager.create_early_stopping_callback=false");
    set_config(dir, "exp_manager.resume_if_exists=false");
    train_in(dir, undisturbed, &o);
    assert_int_equal(sl_json_int(o.state, "step", -1), STEPS);
    outcome_release(&o);
    sl_rmtree(dir, NULL);
}

/* ---- what goes wrong
 * --------------------------------------------------------------------------------------- */

static void failed(const char *const *overrides, struct fate what, const char *where,
                   const char *text)
{
    struct outcome o;
    char dir[SL_PATH_MAX];

    train_dir(dir, overrides);
    train_in(dir, what, &o);
    if (o.rc != SL_DATA || !strstr(o.msg, where) || !strstr(o.msg, text) ||
        !strstr(o.msg, "learning rate"))
        fail_msg("instead of \"%s ... %s\": %s", where, text, o.msg);
    outcome_release(&o);
    sl_rmtree(dir, NULL);
}

static void test_what_is_no_number_is_said(void **state)
{
    static const char *const explodes[] = {"model.optim.lr=100", "model.optim.weight_decay=1",
                                           "model.optim.sched.warmup_steps=0",
                                           "model.optim.sched.min_lr=100", NULL};

    (void)state;
    failed(explodes, undisturbed, "step ", "gradient is not finite");
    failed(NULL, (struct fate){.what = POISONED, .step = 5}, "step 6",
           "the loss is not a finite number");
    failed(NULL, (struct fate){.what = POISONED, .step = 4}, "step 4",
           "val_loss is not a finite number");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_tpmlp),
        cmocka_unit_test(test_resume_mlp),
        cmocka_unit_test(test_resume_lstm_with_dropout),
        cmocka_unit_test(test_resume_without_a_network),
        cmocka_unit_test(test_resume_on_two_threads),
        cmocka_unit_test(test_resume_elsewhere_warns),
        cmocka_unit_test(test_forgetful_resumes_are_caught),
        cmocka_unit_test(test_checkpoint_of_another_config_is_refused),
        cmocka_unit_test(test_accumulated_batches_are_one_large_batch),
        cmocka_unit_test(test_validations_and_their_best),
        cmocka_unit_test(test_best_table_is_kept),
        cmocka_unit_test(test_early_stopping),
        cmocka_unit_test(test_what_is_no_number_is_said),
        cmocka_unit_test(
            test_micro_batches_do_not_change_the_loss), /* the one that computes in this process */
    };
    (void)argc;
    if (sl_cpu_reexec(argv)) /* as the worker does: threads that wait passively */
        return 2;
    return cmocka_run_group_tests_name("trainer", tests, NULL, NULL);
}
