#include "engine/finish.h"
#include "base/json.h"
#include "engine/generate.h"
#include "engine/data/metrics.h"
#include <stdlib.h>
#include <string.h>

#define LIVE_PREDICTIONS 15 /* rows sent as prediction events */

/* ---- the test split ---- */

/* What the model answers to the test rows without prompts, which it does once for all trials that have the
 * same tasks. */
struct plain {
    const struct sl_config *of; /* NULL: nothing yet */
    char **text;
    const char **choice; /* labels of of's; NULL: no task has choices */
    int n;
};

static void plain_release(struct plain *p)
{
    sl_texts_free(p->text, p->n);
    free(p->choice);
    *p = (struct plain){0};
}

static bool same_tasks(const struct sl_config *a, const struct sl_config *b)
{
    bool same = a && a->n_tasks == b->n_tasks;

    for (int i = 0; same && i < a->n_tasks; i++)
        same = !strcmp(a->task[i].name, b->task[i].name);
    return same;
}

/* untuned, untuned_choice: NULL with no-prompts, where tuned and choice are the untuned model's; borrowed
 * from a struct plain. */
struct tested {
    struct sl_dataset *ds;
    char **tuned, **untuned;
    const char **choice, **untuned_choice; /* NULL: no task has choices */
    char **answer;
};

static void tested_release(struct tested *t)
{
    int n = t->ds ? sl_dataset_rows(t->ds) : 0;

    sl_texts_free(t->tuned, n);
    sl_texts_free(t->answer, n);
    free(t->choice);
    sl_dataset_free(t->ds);
}

/* The same rows without virtual tokens, answered by the model as it is. */
static int answer_untuned(struct sl_generator *g, struct sl_trainer *t,
                          struct sl_dataset_options how, struct plain *p, struct sl_err *err)
{
    struct sl_dataset *ds = NULL;
    struct plain got = {.of = g->config};
    int rc;

    how.no_virtual = true;
    rc = sl_dataset_open((const char *const *)t->run->test.s, t->run->test.n, g->config, t->tok, &how,
                         &ds, err);
    g->tuned = false;
    g->phase = "answering without the prompts";
    if (!rc) {
        got.n = sl_dataset_rows(ds);
        rc = sl_generate(g, ds, &got.text, err);
    }
    g->phase = "scoring labels without the prompts";
    if (!rc && sl_any_choices(g->config))
        rc = sl_choose(g, ds, &got.choice, err);
    sl_dataset_free(ds);
    if (rc) {
        plain_release(&got);
    } else {
        plain_release(p);
        *p = got;
    }
    return rc;
}

static int borrow_untuned(const struct plain *p, struct tested *test, struct sl_err *err)
{
    if (p->n != sl_dataset_rows(test->ds))
        return sl_err_set(
            err, SL_SPEC,
            "some test rows fit only without virtual tokens; raise max_seq_length or name "
            "a truncate_field");
    test->untuned = p->text;
    test->untuned_choice = p->choice;
    return 0;
}

static int answer_all(struct sl_trainer *t, const struct sl_trial *trial, struct plain *p,
                      struct tested *test, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    struct sl_generator g = {.model = t->model,
                             .tok = t->tok,
                             .config = c,
                             .tuned = trial->n_prompts > 0,
                             .prompts = trial->prompts,
                             .control = t->control,
                             .report = t->report,
                             .cache_bytes = sl_plan_cache_bytes(&t->plan, SL_GENERATE_CACHE_BYTES),
                             .phase = "answering the test rows"};
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE, .others = &t->run->tasks};
    int64_t left_out;
    bool tuned = g.tuned;
    int rc =
        sl_prompt_positions(c, sl_model_arch(t->model)->max_positions, &how.max_positions, err);

    if (!rc)
        rc = sl_dataset_open((const char *const *)t->run->test.s, t->run->test.n, c, t->tok, &how,
                             &test->ds, err);
    if (rc)
        return rc;
    left_out = sl_dataset_counts(test->ds).read - sl_dataset_rows(test->ds);
    if (left_out)
        sl_trial_log(
            t, trial, SL_WARN,
            "%lld of %lld test rows do not fit beside inference.tokens_to_generate %d: they are "
            "neither answered nor scored",
            (long long)left_out, (long long)sl_dataset_counts(test->ds).read,
            c->inference.tokens_to_generate);
    rc = sl_row_answers(test->ds, &test->answer, err);
    if (!rc)
        rc = sl_generate(&g, test->ds, &test->tuned, err);
    g.phase = "scoring labels";
    if (!rc && sl_any_choices(c))
        rc = sl_choose(&g, test->ds, &test->choice, err);
    if (!rc && tuned && !same_tasks(p->of, c))
        rc = answer_untuned(&g, t, how, p, err);
    if (!rc && tuned)
        rc = borrow_untuned(p, test, err);
    return rc;
}

/* Share of the rows of a task that the commonest answer makes up. */
static double majority(const struct tested *test, int task, int64_t rows)
{
    int n = sl_dataset_rows(test->ds);
    int64_t best = 0;

    for (int i = 0; i < n; i++) {
        int64_t same = 0;

        if (sl_dataset_row(test->ds, i).slot != task)
            continue;
        for (int k = i; k < n; k++)
            same += sl_dataset_row(test->ds, k).slot == task &&
                    !strcmp(test->answer[i], test->answer[k]);
        if (same > best)
            best = same;
    }
    return rows ? (double)best / (double)rows : 0;
}

/* Against the answer of a test row, or the list of its right answers. */
static int score_row(const struct tested *test, int i, const char *prediction,
                     struct sl_score *ret, struct sl_err *err)
{
    const char *const ref = test->answer[i];
    const json_t *answer;
    json_t *row = NULL;
    int rc = sl_dataset_json(test->ds, i, &row, err);

    if (rc)
        return rc;
    answer = json_object_get(row, sl_dataset_answer_field(test->ds, i));
    rc = json_is_array(answer) ? sl_score_answers(prediction, answer, ret, err)
                               : sl_score_answer(prediction, &ref, 1, ret, err);
    json_decref(row);
    return rc;
}

/* Exact match and F1 of a column over a task's rows; NULL in a row: an empty text. */
static int score_column(const struct tested *test, const char *const *text, int task,
                        struct sl_scores *ret, struct sl_err *err)
{
    struct sl_scores sum = {0};

    for (int i = 0; i < sl_dataset_rows(test->ds); i++) {
        struct sl_score s;
        int rc;

        if (sl_dataset_row(test->ds, i).slot != task)
            continue;
        rc = score_row(test, i, text[i] ? text[i] : "", &s, err);
        if (rc)
            return rc;
        sl_scores_add(&sum, &s);
    }
    *ret = sum;
    return 0;
}

/* validation_metric over a task's rows. */
static int score_metric(const struct tested *test, enum sl_metric metric, int task, double *ret,
                        struct sl_err *err)
{
    int n = sl_dataset_rows(test->ds), kept = 0, rc;
    const char **text = calloc((size_t)n + 1, sizeof *text),
               **ref = calloc((size_t)n + 1, sizeof *ref);

    for (int i = 0; text && ref && i < n; i++)
        if (sl_dataset_row(test->ds, i).slot == task) {
            text[kept] = test->tuned[i];
            ref[kept++] = test->answer[i];
        }
    rc = text && ref ? sl_metric_corpus(metric, text, ref, kept, ret, err)
                     : sl_err_set(err, SL_NOMEM, "no memory for scores");
    free(text);
    free(ref);
    return rc;
}

static int score_task(const struct sl_config *c, const struct tested *test, int task, json_t *list,
                      struct sl_err *err)
{
    const char *const *tuned = (const char *const *)test->tuned, *const * untuned;
    struct sl_scores s;
    double metric = 0;
    json_t *o;
    int rc = score_column(test, tuned, task, &s, err);

    if (!rc)
        rc = score_metric(test, c->validation_metric, task, &metric, err);
    if (rc)
        return rc;
    o = json_pack("{s:s, s:I, s:f, s:f, s:f}", "name", c->task[task].name, "rows",
                  (json_int_t)s.rows, "exact_match", sl_scores_exact(&s), "f1", sl_scores_f1(&s),
                  "majority", majority(test, task, s.rows));
    if (c->report_validation_metric)
        json_object_set_new(o, sl_metric_name(c->validation_metric), json_real(metric));
    untuned = (const char *const *)test->untuned;
    if (untuned && !(rc = score_column(test, untuned, task, &s, err))) {
        json_object_set_new(o, "untuned_exact_match", json_real(sl_scores_exact(&s)));
        json_object_set_new(o, "untuned_f1", json_real(sl_scores_f1(&s)));
    }
    if (!rc && c->task[task].n_choices) {
        rc = score_column(test, test->choice, task, &s, err);
        json_object_set_new(o, "choice", json_real(sl_scores_exact(&s)));
        if (!rc && test->untuned_choice)
            rc = score_column(test, test->untuned_choice, task, &s, err);
        if (!rc && test->untuned_choice)
            json_object_set_new(o, "untuned_choice", json_real(sl_scores_exact(&s)));
    }
    if (rc) {
        json_decref(o);
        return rc;
    }
    return json_array_append_new(list, o) ? sl_err_set(err, SL_NOMEM, "no memory for scores") : 0;
}

/* As named numbers, so that runs can be listed and compared by them: "test/TASK/exact_match". */
static void send_scores(struct sl_trainer *t, const struct sl_trial *trial, const json_t *list)
{
    json_t *event = json_pack("{s:s, s:I}", "ev", "metric", "step", (json_int_t)trial->state.step),
           *task, *value;
    const char *key;
    char name[256];
    size_t i;

    json_array_foreach(list, i, task)
        json_object_foreach(task, key, value) {
            snprintf(name, sizeof name, "test/%s/%s", sl_json_str(task, "name", ""), key);
            if (json_is_real(value))
                json_object_set(event, name, value);
        }
    sl_trial_emit(t, trial, event);
}

static void send_predictions(struct sl_trainer *t, const struct sl_trial *trial,
                             const struct tested *test)
{
    for (int i = 0; i < sl_dataset_rows(test->ds) && i < LIVE_PREDICTIONS; i++) {
        json_t *row = NULL;

        if (sl_dataset_json(test->ds, i, &row, NULL))
            return;
        sl_trial_emit(
            t, trial,
                json_pack("{s:s, s:s, s:O?, s:O?, s:s, s:s, s:s*}", "ev", "prediction", "task",
                          trial->config->task[sl_dataset_row(test->ds, i).slot].name, "context",
                          json_object_get(row, "context"), "question",
                          json_object_get(row, "question"), "answer", test->answer[i], "prediction",
                          test->tuned[i], "untuned", test->untuned ? test->untuned[i] : NULL));
        json_decref(row);
    }
}

static int run_test(struct sl_trainer *t, const struct sl_trial *trial, struct plain *p,
                    json_t *metrics, struct sl_err *err)
{
    struct tested test = {0};
    struct sl_predictions table;
    json_t *list = json_array();
    char path[SL_PATH_MAX];
    int rc = answer_all(t, trial, p, &test, err);

    table = (struct sl_predictions){test.ds, test.tuned, test.untuned, test.choice};
    for (int i = 0; i < trial->config->n_tasks && !rc; i++)
        rc = score_task(trial->config, &test, i, list, err);
    if (!rc)
        rc = sl_path(path, err, "%s/predictions.jsonl", trial->run->out);
    if (!rc)
        rc = sl_write_predictions(path, &table, err);
    if (!rc) {
        send_scores(t, trial, list);
        send_predictions(t, trial, &test);
        if (t->report->events_fd < 0)
            sl_print_predictions(&table);
        json_object_set(metrics, "tasks", list);
    }
    json_decref(list);
    tested_release(&test);
    return rc ? sl_err_wrap(err, rc, "testing") : 0;
}

/* ---- all of it ---- */

static int finish_trial(struct sl_trainer *t, const struct sl_trial *trial, struct plain *p,
                        json_t **ret_metrics, struct sl_err *err)
{
    static const char *const ends[] = {"trained", "stopped", "diverged"};
    const struct sl_train_state *s = &trial->state;
    bool diverged = s->ended == SL_TRIAL_DIVERGED;
    json_t *metrics =
        json_pack("{s:I, s:I}", "steps", (json_int_t)s->step, "tokens", (json_int_t)s->tokens);
    char path[SL_PATH_MAX];
    int rc = 0;

    if (trial->run->name[0])
        json_object_set_new(metrics, "state", json_string(ends[s->ended]));
    if (diverged)
        json_object_set_new(metrics, "msg", json_string(s->failure));
    if (s->best_step >= 0) {
        json_object_set_new(metrics, "val_loss", json_real(s->best_val_loss));
        json_object_set_new(metrics, "val_loss_step", json_integer(s->best_step));
        json_object_set_new(metrics, "val_loss_step_0", json_real(s->first_val_loss));
    }
    if (!rc && t->run->test.n && !diverged)
        rc = run_test(t, trial, p, metrics, err);
    if (!rc)
        rc = sl_path(path, err, "%s/metrics.json", trial->run->out);
    if (!rc)
        rc = sl_json_write(path, metrics, err);
    if (rc)
        json_decref(metrics);
    else
        *ret_metrics = metrics;
    return rc && trial->run->name[0] ? sl_err_wrap(err, rc, "trial %s", trial->run->name) : rc;
}

/* out/metrics.json of several trials: {"trials": {NAME: its metrics}}, and the name of the best one by
 * val_loss. Steals all. */
static int sum_up(struct sl_trainer *t, json_t *all, json_t **ret_metrics, struct sl_err *err)
{
    const struct sl_trial *best = NULL;
    json_t *metrics = json_pack("{s:o}", "trials", all);
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/out/metrics.json", t->run->dir);

    for (int k = 0; k < t->n_trials; k++) {
        const struct sl_train_state *s = &t->trial[k].state;

        if (s->best_step >= 0 && s->ended != SL_TRIAL_DIVERGED &&
            (!best || s->best_val_loss < best->state.best_val_loss))
            best = &t->trial[k];
    }
    if (best) {
        sl_emit_log(t->report, SL_INFO, "best of %d trials: %s, val_loss %.4f", t->n_trials, best->run->name,
                    best->state.best_val_loss);
        json_object_set_new(metrics, "best", json_string(best->run->name));
        json_object_set_new(metrics, "val_loss", json_real(best->state.best_val_loss));
    }
    if (!rc)
        rc = sl_json_write(path, metrics, err);
    if (rc)
        json_decref(metrics);
    else
        *ret_metrics = metrics;
    return rc;
}

int sl_finish(struct sl_trainer *t, json_t **ret_metrics, struct sl_err *err)
{
    struct plain p = {0};
    json_t *all = json_object(), *one = NULL;
    int rc = 0;

    for (int k = 0; k < t->n_trials && !rc; k++)
        rc = sl_mkdirs(t->trial[k].run->out, err);
    if (!rc && t->n_prompts)
        rc = sl_finish_tables(t, err);
    for (int k = 0; k < t->n_trials && !rc; k++) {
        one = NULL;
        rc = finish_trial(t, &t->trial[k], &p, &one, err);
        if (!rc && t->trial[k].run->name[0])
            json_object_set_new(all, t->trial[k].run->name, one);
    }
    plain_release(&p);
    if (!rc && t->trial[0].run->name[0])
        return sum_up(t, all, ret_metrics, err);
    json_decref(all);
    if (!rc)
        *ret_metrics = one;
    return rc;
}
