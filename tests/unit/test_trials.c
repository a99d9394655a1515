/* Trials that train together: each as it would alone, to the same bits across a stop, and none touched by what
 * becomes of another. */
#include "engine/cpu/coretype.h"
#include "tests/unit/trials.h"

static const struct fate undisturbed;

/* One process on dir; all: an outcome a trial, except of a killed one. Returns how it ended. */
static int run_trials(const char *dir, const struct trial *t, int n, struct fate what,
                      struct outcome *all)
{
    struct outcome o;
    int rc;

    train_in(dir, what, &o);
    rc = o.rc;
    outcome_release(&o);
    for (int i = 0; i < n && all; i++)
        read_outcome(dir, i, t[i].name, &all[i]);
    return rc;
}

static void undisturbed_run(const struct trial *t, int n, const char *const *more, struct outcome *all)
{
    char dir[SL_PATH_MAX];

    trials_dir(dir, t, n, more);
    assert_int_equal(run_trials(dir, t, n, undisturbed, all), 0);
    sl_rmtree(dir, NULL);
}

static void release_all(struct outcome *o, int n)
{
    for (int i = 0; i < n; i++)
        outcome_release(&o[i]);
}

/* Leaves the rows of one task in a data file. */
static void keep_rows(const char *dir, const char *name, const char *task)
{
    char path[SL_PATH_MAX], copy[SL_PATH_MAX], line[512], want[64];
    FILE *in, *out;

    assert_int_equal(sl_path(path, NULL, "%s/%s", dir, name), 0);
    assert_int_equal(sl_path(copy, NULL, "%s/%s.new", dir, name), 0);
    snprintf(want, sizeof want, "\"taskname\": \"%s\"", task);
    in = fopen(path, "r"), out = fopen(copy, "w");
    assert_true(in && out);
    while (fgets(line, sizeof line, in))
        if (strstr(line, want))
            fputs(line, out);
    fclose(in), fclose(out);
    assert_int_equal(rename(copy, path), 0);
}

/* The run that a trial is: its keys in the config itself, its tasks' templates and rows alone. */
static void run_alone(const struct trial *t, const char *const *more, struct outcome *ret)
{
    const char *overrides[2 * MAX_KEYS] = {NULL};
    char dir[SL_PATH_MAX];
    int at = 0;

    for (const char *const *k = t->keys; *k; k++)
        overrides[at++] = *k;
    for (; more && *more; more++)
        overrides[at++] = *more;
    if (t->tasks)
        overrides[at++] = "~model.task_templates.0"; /* "one" */
    train_dir(dir, overrides);
    if (t->tasks) {
        keep_rows(dir, "train.jsonl", "two");
        keep_rows(dir, "validation.jsonl", "two");
    }
    train_in(dir, undisturbed, ret);
    if (ret->rc)
        fail_msg("%s alone: %s", t->name, ret->msg);
    sl_rmtree(dir, NULL);
}

/* Every number of the metrics and the tables, relative to 1e-5. */
static void about_equal(const char *name, const struct outcome *a, const struct outcome *b)
{
    const char *key, *field;
    json_t *event, *value;

    assert_int_equal(json_object_size(a->metrics), json_object_size(b->metrics));
    json_object_foreach(a->metrics, key, event)
        json_object_foreach(event, field, value) {
            double x = json_number_value(value),
                   y = json_number_value(json_object_get(json_object_get(b->metrics, key), field));

            if (fabs(x - y) > 1e-5 * fabs(x))
                fail_msg("trial %s, step %s: %s is %.9g alone, %.9g together", name, key, field, x, y);
        }
    assert_int_equal(sl_json_int(a->state, "best_step", -2), sl_json_int(b->state, "best_step", -3));
    assert_int_equal(a->n_tables, b->n_tables);
    assert_true(golden_distance(a->tables, b->tables, a->n_tables) < 1e-5);
    assert_true(golden_distance(a->encoded, b->encoded, a->n_encoded) < 1e-5);
}

static void test_each_is_what_it_is_alone(void **state)
{
    struct outcome all[MAX_TRIALS], alone;

    (void)state;
    undisturbed_run(various, N_VARIOUS, NULL, all);
    for (int i = 0; i < N_VARIOUS; i++) {
        run_alone(&various[i], NULL, &alone);
        about_equal(various[i].name, &alone, &all[i]);
        outcome_release(&alone);
    }
    /* the measure tells trials apart */
    assert_true(golden_distance(all[0].tables, all[1].tables, all[0].n_tables) > 0.1);
    release_all(all, N_VARIOUS);
}

/* Trials whose epochs have different numbers of steps end and validate at different times. */
static void test_each_has_its_own_epochs(void **state)
{
    static const char *const epochs[] = {"trainer.max_steps=-1", "trainer.max_epochs=2",
                                         "trainer.val_check_interval=0.5", "model.global_batch_size=4",
                                         NULL};
    static const struct trial two[] = {{"all", NULL, {"model.seed=5"}},
                                       {"one-task", "[\"two\"]", {"model.seed=9"}}};
    struct outcome all[2], alone;

    (void)state;
    undisturbed_run(two, 2, epochs, all);
    assert_int_equal(sl_json_int(all[0].state, "step", 0), 2 * (TRAIN_ROWS / 4));
    assert_int_equal(sl_json_int(all[1].state, "step", 0), 2 * (15 / 4)); /* every third row */
    for (int i = 0; i < 2; i++) {
        run_alone(&two[i], epochs, &alone);
        about_equal(two[i].name, &alone, &all[i]);
        outcome_release(&alone);
    }
    release_all(all, 2);
}

static void same_bits_after(const struct outcome *straight, struct fate what)
{
    struct outcome all[MAX_TRIALS];
    char dir[SL_PATH_MAX];

    trials_dir(dir, various, N_VARIOUS, NULL);
    assert_int_not_equal(run_trials(dir, various, N_VARIOUS, what, NULL), 0);
    assert_int_equal(run_trials(dir, various, N_VARIOUS, undisturbed, all), 0);
    assert_non_null(event_like(&all[0], "log", "resumed at step"));
    for (int i = 0; i < N_VARIOUS; i++) {
        const char *differs = outcomes_differ(&straight[i], &all[i]);

        if (differs)
            fail_msg("trial %s: %s", various[i].name, differs);
    }
    release_all(all, N_VARIOUS);
    sl_rmtree(dir, NULL);
}

static void test_they_resume_to_the_same_bits(void **state)
{
    struct outcome straight[MAX_TRIALS];

    (void)state;
    undisturbed_run(various, N_VARIOUS, NULL, straight);
    same_bits_after(straight, (struct fate){.what = PREEMPTED, .step = 7});
    same_bits_after(straight, (struct fate){.what = KILLED, .step = 11, .trial = 2});
    same_bits_after(straight, (struct fate){.what = KILLED_WRITING, .step = 8, .trial = 1});
    same_bits_after(straight, (struct fate){.what = PREEMPTED_VALIDATING, .step = 8, .trial = 3});
    release_all(straight, N_VARIOUS);
}

static void others_keep_their_bits(const struct outcome *a, const struct outcome *b, int but)
{
    for (int i = 0; i < N_VARIOUS; i++) {
        const char *differs = i == but ? NULL : outcomes_differ(&a[i], &b[i]);

        if (differs)
            fail_msg("trial %s: %s", various[i].name, differs);
    }
}

/* A parameter of one trial becomes NaN: in a step, or before a validation. It ends; the others do not notice, nor
 * when they are stopped and go on. */
static void test_one_that_diverges_touches_no_other(void **state)
{
    static const int steps[] = {5, 8};
    struct outcome straight[MAX_TRIALS], all[MAX_TRIALS];
    char dir[SL_PATH_MAX];

    (void)state;
    undisturbed_run(various, N_VARIOUS, NULL, straight);
    for (int i = 0; i < 2; i++) {
        struct fate poisoned = {.what = POISONED, .step = steps[i], .trial = 1};

        trials_dir(dir, various, N_VARIOUS, NULL);
        assert_int_equal(run_trials(dir, various, N_VARIOUS, poisoned, all), 0);
        assert_int_equal(sl_json_int(all[1].state, "ended", 0), SL_TRIAL_DIVERGED);
        assert_int_equal(sl_json_int(all[1].state, "step", 0), steps[i]);
        assert_non_null(event_like(&all[0], "log", "trial b: diverged"));
        assert_non_null(event_like(&all[0], "log", "not a finite number"));
        others_keep_their_bits(straight, all, 1);
        release_all(all, N_VARIOUS);
        /* and what was written is as good as what went on */
        assert_int_equal(run_trials(dir, various, N_VARIOUS, undisturbed, all), 0);
        assert_int_equal(sl_json_int(all[1].state, "ended", 0), SL_TRIAL_DIVERGED);
        others_keep_their_bits(straight, all, 1);
        release_all(all, N_VARIOUS);
        sl_rmtree(dir, NULL);
    }
    release_all(straight, N_VARIOUS);
}

static void test_early_stopping_is_each_ones_own(void **state)
{
    static const char *const stops[] = {"exp_manager.create_early_stopping_callback=true",
                                        "exp_manager.early_stopping_callback_params.patience=2",
                                        "trainer.val_check_interval=2", NULL};
    static const struct trial moves[] = {{"x", NULL, {"model.seed=5"}}, {"y", NULL, {"model.seed=6"}}},
                              rests[] = {{"x", NULL, {"model.seed=5"}},
                                         {"y", NULL, {"model.seed=6", "model.optim.lr=1e-12"}}};
    struct outcome a[2], b[2];

    (void)state;
    undisturbed_run(moves, 2, stops, a);
    undisturbed_run(rests, 2, stops, b);
    assert_int_equal(sl_json_int(a[1].state, "step", 0), STEPS);
    assert_int_equal(sl_json_int(b[1].state, "step", 0), 4);
    assert_int_equal(sl_json_int(b[1].state, "ended", 0), SL_TRIAL_STOPPED);
    assert_non_null(event_like(&b[0], "log", "trial y: early stopping at step 4"));
    assert_null(outcomes_differ(&a[0], &b[0]));
    release_all(a, 2);
    release_all(b, 2);
}

static void test_when_all_diverge_the_run_fails(void **state)
{
#define EXPLODES                                                                                   \
    "model.optim.lr=100", "model.optim.weight_decay=1", "model.optim.sched.warmup_steps=0",        \
        "model.optim.sched.min_lr=100"
    static const struct trial bad[] = {{"x", NULL, {EXPLODES}}, {"y", NULL, {"model.seed=6", EXPLODES}}};
    struct outcome o;
    char dir[SL_PATH_MAX];

    (void)state;
    trials_dir(dir, bad, 2, NULL);
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, SL_DATA);
    assert_non_null(strstr(o.msg, "every trial has diverged"));
    outcome_release(&o);
    sl_rmtree(dir, NULL);
}

static void test_a_checkpoint_of_other_trials_is_refused(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    struct outcome o;
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    json_t *json;

    (void)state;
    trials_dir(dir, various, 2, NULL);
    assert_int_equal(run_trials(dir, various, 2, (struct fate){.what = PREEMPTED, .step = 5}, NULL),
                     SL_CANCELLED);
    assert_int_equal(sl_path(path, &err, "%s/run.json", dir), 0);
    assert_int_equal(sl_json_read(path, SL_JSON_FILE_MAX, &json, &err), 0);
    json_object_set_new(json_array_get(json_object_get(json, "trials"), 1), "name", json_string("z"));
    assert_int_equal(sl_json_write(path, json, &err), 0);
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, SL_CONFLICT);
    assert_non_null(strstr(o.msg, "made with trial \"b\" in place of \"z\""));
    outcome_release(&o);
    json_array_remove(json_object_get(json, "trials"), 1);
    assert_int_equal(sl_json_write(path, json, &err), 0);
    train_in(dir, undisturbed, &o);
    assert_int_equal(o.rc, SL_CONFLICT);
    assert_non_null(strstr(o.msg, "made with 2 trials, the run has 1"));
    outcome_release(&o);
    json_decref(json);
    sl_rmtree(dir, NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_is_what_it_is_alone),
        cmocka_unit_test(test_each_has_its_own_epochs),
        cmocka_unit_test(test_they_resume_to_the_same_bits),
        cmocka_unit_test(test_one_that_diverges_touches_no_other),
        cmocka_unit_test(test_early_stopping_is_each_ones_own),
        cmocka_unit_test(test_when_all_diverge_the_run_fails),
        cmocka_unit_test(test_a_checkpoint_of_other_trials_is_refused),
    };
    (void)argc;
    if (sl_cpu_reexec(argv)) /* as the worker does: threads that wait passively */
        return 2;
    return cmocka_run_group_tests_name("trials", tests, NULL, NULL);
}
