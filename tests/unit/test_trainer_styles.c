/* The trainer: styles side by side, a run without prompts, one backward pass of an encoder a step,
 * the best tables, where validations fall, and what a stop or a loss that is no number in the
 * middle of one leaves. */
#include "engine/cpu/coretype.h"
#include "tests/unit/train_run.h"

static const struct fate undisturbed;

/* Task two is prompt-tuned, task one p-tuned. */
#define MIXED "model.task_templates.1.virtual_prompt_style=prompt-tuning"

static void run_once(const char *const *overrides, struct outcome *ret)
{
    char dir[SL_PATH_MAX];

    train_dir(dir, overrides);
    train_in(dir, undisturbed, ret);
    sl_rmtree(dir, NULL);
}

/* The run is the same when it is stopped as `what` says and goes on. */
static void same_after(const char *const *overrides, struct fate what)
{
    struct outcome straight, first, second;
    const char *differs;
    char dir[SL_PATH_MAX];

    run_once(overrides, &straight);
    train_dir(dir, overrides);
    train_in(dir, what, &first);
    assert_int_not_equal(first.rc, 0);
    train_in(dir, undisturbed, &second);
    assert_non_null(event_like(&second, "log", "resumed at step"));
    differs = outcomes_differ(&straight, &second);
    if (differs)
        fail_msg("%s", differs);
    outcome_release(&straight);
    outcome_release(&first);
    outcome_release(&second);
    sl_rmtree(dir, NULL);
}

/* Row k of task's table (V = 5 for both). */
static const float *rows_of(const struct outcome *o, int task)
{
    return o->tables + (size_t)o->n_tables / 2 * (size_t)task;
}

/* How far a task's table has moved between two outcomes: the mean of absolute differences. */
static double moved(const struct outcome *a, const struct outcome *b, int task)
{
    double sum = 0;
    int n = a->n_tables / 2;

    assert_int_equal(a->n_tables, b->n_tables);
    for (int i = 0; i < n; i++)
        sum += fabs((double)rows_of(a, task)[i] - (double)rows_of(b, task)[i]);
    return sum / n;
}

static void test_mixed_styles_resume_to_the_same_bits(void **state)
{
    static const char *const mixed[] = {
        MIXED, "model.p_tuning.encoder_type=lstm", "model.p_tuning.dropout=0.2",
        "model.prompt_tuning={\"new_prompt_init_methods\": [\"random\", \"text\"],"
        " \"new_prompt_init_text\": [null, \"is it so\"]}",
        NULL};

    (void)state;
    same_after(mixed, (struct fate){.what = PREEMPTED, .step = 7});
    same_after(mixed, (struct fate){.what = KILLED, .step = 11});
}

/* Rows of one task only move that task's table; each style learns at its own default rate, or at
 * the named one. AdamW's first step moves every number by the learning rate. */
static void test_each_style_has_its_own_default_rate(void **state)
{
#define ONE_STEP                                                                                   \
    MIXED, "trainer.max_steps=1", "model.optim.weight_decay=0",                                    \
        "model.optim.sched.warmup_steps=0",                                                        \
        "exp_manager.checkpoint_callback_params.save_best_model=false",                            \
        "model.p_tuning.encoder_type=embedding"
    static const char *const by_default[] = {
        ONE_STEP, "model.optim={\"weight_decay\": 0, \"sched\": {\"warmup_steps\": 0}}", NULL};
    static const char *const named[] = {ONE_STEP, "model.optim.lr=0.002", NULL};
    static const char *const still[] = {ONE_STEP, "model.optim.lr=1e-12", NULL};
    struct outcome a, b, none;

    (void)state;
    run_once(still, &none);
    run_once(by_default, &a);
    run_once(named, &b);
    assert_int_equal(none.rc | a.rc | b.rc, 0);
    assert_true(fabs(moved(&a, &none, 0) / SL_DEFAULT_LR_P_TUNING - 1) < 0.02);
    assert_true(fabs(moved(&a, &none, 1) / SL_DEFAULT_LR_PROMPT_TUNING - 1) < 0.02);
    assert_true(fabs(moved(&b, &none, 0) / 0.002 - 1) < 0.02);
    assert_true(fabs(moved(&b, &none, 1) / 0.002 - 1) < 0.02);
    outcome_release(&a);
    outcome_release(&b);
    outcome_release(&none);
}

static void test_a_run_without_prompts_validates_and_ends(void **state)
{
    static const char *const overrides[] = {
        "model.virtual_prompt_style=no-prompts",
        "datasets={\"validation\": [\"validation.jsonl\"]}",
        "model.task_templates=[{\"taskname\": \"one\", \"prompt_template\": \"{text} = {answer}\","
        " \"total_virtual_tokens\": 0}, {\"taskname\": \"two\", \"prompt_template\": \"say {text}: "
        "{answer}\","
        " \"total_virtual_tokens\": 0}]",
        NULL};
    struct outcome o;

    (void)state;
    run_once(overrides, &o);
    if (o.rc)
        fail_msg("%s", o.msg);
    assert_int_equal(sl_json_int(o.state, "step", -1), 0);
    assert_true(sl_json_num(o.state, "first_val_loss", 0) > 1);
    assert_int_equal(json_object_size(o.metrics), 1);
    assert_null(event_like(&o, "checkpoint", NULL));
    outcome_release(&o);
}

/* ---- one step ---- */

static int copies; /* into the gradients that go to the encoders */
static struct sl_trainer *counted;
static struct sl_ops counting_ops;

static void counting_copy(struct sl_backend *be, void *dst, const void *src, size_t bytes)
{
    for (int i = 0; i < counted->trial[0].n_groups; i++) {
        const struct sl_trainer_group *g = &counted->trial[0].group[i];
        const float *at = dst, *end = g->dtables + (size_t)g->n_tasks * 5 * (size_t)counted->hidden;

        copies += at >= g->dtables && at < end;
    }
    sl_cpu_ops.copy(be, dst, src, bytes);
}

static void test_encoders_go_back_once_a_step(void **state)
{
    static const char *const overrides[] = {MIXED, "model.micro_batch_size=2", NULL};
    struct sl_trainer_options options = {.threads = 1};
    struct sl_err err = SL_ERR_INIT;
    struct sl_emitter report;
    struct sl_trainer t;
    struct sl_run run = {0};
    struct sl_trial_sum sum;
    int rows[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    char dir[SL_PATH_MAX];

    (void)state;
    train_dir(dir, overrides);
    sl_emit_init(&report, open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (sl_run_open(dir, &run, &err) || sl_trainer_init(&t, &run, &options, &report, NULL, &err))
        fail_msg("%s", err.msg);
    counted = &t;
    counting_ops = *t.ops;
    counting_ops.copy = counting_copy;
    t.ops = &counting_ops;
    assert_int_equal(t.trial[0].n_groups, 2);
    assert_int_equal(sl_trainer_loss(&t, rows, 8, true, &sum, &err), 0);
    assert_int_equal(copies, 2); /* one a task, for four micro-batches */
    sl_trainer_release(&t);
    sl_run_release(&run);
    close(report.events_fd);
    sl_rmtree(dir, NULL);
}

/* ---- validations ---- */

static bool validated_at(const struct outcome *o, int step)
{
    char key[32];

    snprintf(key, sizeof key, "%d val", step);
    return json_object_get(o->metrics, key);
}

static void validated_exactly_at(const char *interval, const int *steps, int n)
{
    const char *const overrides[] = {interval, "trainer.max_epochs=3", "trainer.max_steps=-1",
                                     NULL};
    struct outcome o;
    int found = 0;

    run_once(overrides, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(sl_json_int(o.state, "step", -1), 3 * (TRAIN_ROWS / 8));
    for (int i = 0; i < n; i++)
        if (!validated_at(&o, steps[i]))
            fail_msg("%s: no validation at step %d", interval, steps[i]);
    for (int i = 0; i <= 15; i++)
        found += validated_at(&o, i);
    assert_int_equal(found, n);
    outcome_release(&o);
}

/* An epoch has five steps. */
static void test_validations_by_steps_and_by_parts_of_an_epoch(void **state)
{
    static const int halves[] = {0, 2, 4, 7, 9, 12, 14, 15}, ends[] = {0, 5, 10, 15},
                     fours[] = {0, 4, 8, 12, 15};
    static const int all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    (void)state;
    validated_exactly_at("trainer.val_check_interval=0.5", halves, 8);
    validated_exactly_at("trainer.val_check_interval=1.0", ends, 4);
    validated_exactly_at("trainer.val_check_interval=null", ends, 4);
    validated_exactly_at("trainer.val_check_interval=4", fours, 5);
    validated_exactly_at("trainer.val_check_interval=0.01", all, 16);
}

#define METRIC                                                                                     \
    "model.report_validation_metric=true", "model.validation_metric=rouge",                        \
        "inference.tokens_to_generate=3"

static void test_the_validation_metric_is_part_of_the_run(void **state)
{
    static const char *const overrides[] = {METRIC, NULL};
    struct outcome o;
    int64_t at[] = {0, 4, 8, 12};

    (void)state;
    run_once(overrides, &o);
    for (size_t i = 0; i < 4; i++) {
        char key[32];
        double score;

        snprintf(key, sizeof key, "%lld val", (long long)at[i]);
        score = sl_json_num(json_object_get(o.metrics, key), "val_rouge", -1);
        assert_true(score >= 0 && score <= 1);
    }
    outcome_release(&o);
    same_after(overrides, (struct fate){.what = PREEMPTED, .step = 6});
}

/* A wish to stop while the validation rows are read: a checkpoint without that validation, which is
 * done anew. */
static void test_a_validation_can_be_interrupted(void **state)
{
    static const char *const overrides[] = {METRIC, NULL};
    struct outcome o;
    char dir[SL_PATH_MAX];

    (void)state;
    train_dir(dir, overrides);
    train_in(dir, (struct fate){.what = PREEMPTED_VALIDATING, .step = 8}, &o);
    assert_int_equal(o.rc, SL_CANCELLED);
    assert_int_equal(sl_json_int(event_like(&o, "checkpoint", NULL), "step", -1), 8);
    assert_false(validated_at(&o, 8));
    outcome_release(&o);
    sl_rmtree(dir, NULL);
    same_after(overrides, (struct fate){.what = PREEMPTED_VALIDATING, .step = 8});
    same_after(overrides, (struct fate){.what = PREEMPTED_VALIDATING, .step = 12});
    same_after(overrides, (struct fate){.what = PREEMPTED_VALIDATING, .step = 0});
}

static void test_the_tables_of_the_best_validations_are_kept(void **state)
{
    static const char *const overrides[] = {"trainer.val_check_interval=2",
                                            "exp_manager.checkpoint_callback_params.save_top_k=3",
                                            MIXED, "datasets.validation.0=other.jsonl", NULL};
    struct outcome o, at;
    char dir[SL_PATH_MAX], again[SL_PATH_MAX];
    float *best;
    int n, block;
    json_t *kept;

    (void)state;
    train_dir(dir, overrides);
    train_in(dir, (struct fate){.what = PREEMPTED, .step = 9}, &o); /* they survive a checkpoint */
    outcome_release(&o);
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, 0);
    best = read_floats(dir, 0, "best.bin", &n);
    block = o.n_tables;
    assert_int_equal(n, 3 * block);
    kept = json_object_get(o.state, "best");
    assert_int_equal(json_array_size(kept), 3);
    for (int i = 0; i < 3; i++) {
        int step = (int)json_integer_value(json_array_get(json_array_get(kept, (size_t)i), 0));

        train_dir(again, overrides);
        train_in(again, (struct fate){.what = PREEMPTED, .step = step ? step : 1}, &at);
        assert_int_equal(at.rc, SL_CANCELLED);
        if (step)
            assert_memory_equal(best + (size_t)i * (size_t)block, at.encoded,
                                (size_t)block * sizeof *best);
        outcome_release(&at);
        sl_rmtree(again, NULL);
    }
    assert_memory_not_equal(best, best + block, (size_t)block * sizeof *best);
    free(best);
    outcome_release(&o);
    sl_rmtree(dir, NULL);
}

/* A val_loss that is no number ends the run; the checkpoint of before is whole, and a run goes on
 * from it. */
static void test_a_broken_validation_leaves_the_checkpoint(void **state)
{
    (void)state;
    same_after(NULL, (struct fate){.what = POISONED, .step = 8});
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed_styles_resume_to_the_same_bits),
        cmocka_unit_test(test_each_style_has_its_own_default_rate),
        cmocka_unit_test(test_a_run_without_prompts_validates_and_ends),
        cmocka_unit_test(test_validations_by_steps_and_by_parts_of_an_epoch),
        cmocka_unit_test(test_the_validation_metric_is_part_of_the_run),
        cmocka_unit_test(test_a_validation_can_be_interrupted),
        cmocka_unit_test(test_the_tables_of_the_best_validations_are_kept),
        cmocka_unit_test(test_a_broken_validation_leaves_the_checkpoint),
        cmocka_unit_test(
            test_encoders_go_back_once_a_step), /* the one that computes in this process */
    };
    (void)argc;
    if (sl_cpu_reexec(argv)) /* as the worker does: threads that wait passively */
        return 2;
    return cmocka_run_group_tests_name("trainer: styles and validation", tests, NULL, NULL);
}
