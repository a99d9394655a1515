#include "engine/finish.h"
#include "base/json.h"
#include "engine/export.h"
#include "engine/generate.h"
#include "engine/metrics.h"
#include <stdlib.h>
#include <string.h>

#define LIVE_PREDICTIONS 15 /* rows sent as prediction events */

/* ---- tables ---- */

static json_t *template_of(const json_t *config, const char *task)
{
    json_t *list = json_object_get(json_object_get(config, "model"), "task_templates"), *entry;
    size_t i;

    json_array_foreach(list, i, entry) if (!strcmp(sl_json_str(entry, "taskname", ""), task))
    {
        return json_incref(entry);
    }
    return json_object();
}

static int gather_tables(struct sl_trainer *t, const json_t *config, struct sl_tables *ret,
                         struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    size_t hidden = (size_t)t->hidden;
    int rc = 0;

    *ret = (struct sl_tables){.data = json_incref(json_object_get(
                                  json_object_get(config, "model"), "data"))};
    memcpy(ret->model_digest, t->model_digest, sizeof ret->model_digest);
    snprintf(ret->tokenizer_digest, sizeof ret->tokenizer_digest, "%s", sl_tokenizer_digest(t->tok));
    ret->table = calloc((size_t)c->n_tasks, sizeof *ret->table);
    if (!ret->table)
        return sl_err_set(err, SL_NOMEM, "no memory for %d tables", c->n_tasks);
    for (int i = 0; i < c->n_tasks && !rc; i++) {
        struct sl_table *table = &ret->table[ret->n++];
        size_t n = (size_t)t->slot_v[i] * hidden;

        table->task = strdup(c->task[i].name);
        table->virtual_tokens = t->slot_v[i];
        table->hidden = t->hidden;
        table->config = template_of(config, c->task[i].name);
        table->rows = malloc(n * sizeof *table->rows);
        if (!table->task || !table->rows || !table->config)
            rc = sl_err_set(err, SL_NOMEM, "no memory for the table of '%s'", c->task[i].name);
        else
            rc = t->ops->download(t->be, table->rows, t->prompts + (size_t)t->slot_first[i] * hidden,
                                  n * sizeof *table->rows, err);
    }
    return rc;
}

static int export_peft(struct sl_trainer *t, const struct sl_tables *tables, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    const struct sl_arch *arch = sl_model_arch(t->model);
    struct sl_peft how = {.base_model = arch->name,
                          .heads = arch->heads,
                          .layers = arch->layers,
                          .type = c->style == SL_STYLE_PROMPT_TUNING
                                      ? SL_ENC_TABLE
                                      : c->p_tuning.encoder_type,
                          .encoder_hidden = c->p_tuning.encoder_hidden,
                          .encoder_layers = c->p_tuning.num_layers,
                          .dropout = c->p_tuning.dropout};
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/out/peft", t->run->dir);

    for (int i = 0; i < c->n_tasks && !rc; i++) {
        struct sl_err why = SL_ERR_INIT;

        if (sl_peft_check(c->task[i].name, c->task[i].prompt_template, c->data.add_bos, &why))
            sl_emit_log(t->report, SL_WARN, "no PEFT adapter for task '%s': %s", c->task[i].name,
                          why.msg);
        else
            rc = sl_export_peft(dir, &tables->table[i], &how, c->data.add_bos, err);
    }
    return rc;
}

static int export_all(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_tables tables = {0};
    char path[SL_PATH_MAX];
    json_t *run_json = NULL, *config = NULL;
    int rc = sl_path(path, err, "%s/run.json", t->run->dir);

    if (!rc)
        rc = sl_json_read(path, SL_JSON_FILE_MAX, &run_json, err);
    if (!rc)
        rc = sl_spec_config_with_defaults(json_object_get(run_json, "config"), &config, err);
    if (!rc)
        rc = gather_tables(t, config, &tables, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/peft", t->run->dir);
    if (!rc)
        rc = sl_mkdirs(path, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/%s", t->run->dir, SL_TABLES_FILE);
    if (!rc)
        rc = sl_export_tables(path, &tables, err);
    if (!rc)
        rc = export_peft(t, &tables, err);
    sl_tables_release(&tables);
    json_decref(run_json);
    json_decref(config);
    return rc;
}

/* ---- the test split ---- */

struct tested {
    struct sl_dataset *ds;
    char **tuned, **untuned;
    const char **choice;
    char **answer; /* [rows] heap */
};

static void tested_release(struct tested *t)
{
    int n = t->ds ? sl_dataset_rows(t->ds) : 0;

    sl_texts_free(t->tuned, n);
    sl_texts_free(t->untuned, n);
    sl_texts_free(t->answer, n);
    free(t->choice);
    sl_dataset_free(t->ds);
}

static int answers(const struct sl_trainer *t, struct tested *test, struct sl_err *err)
{
    int n = sl_dataset_rows(test->ds), rc = 0;

    test->answer = calloc((size_t)n + 1, sizeof *test->answer);
    for (int i = 0; test->answer && i < n && !rc; i++) {
        const struct sl_task *task = &t->run->config.task[sl_dataset_row(test->ds, i).slot];
        const char *field = task->answer_field ? task->answer_field : "answer", *text;
        json_t *row = NULL;

        rc = sl_dataset_json(test->ds, i, &row, err);
        text = json_string_value(json_object_get(row, field));
        test->answer[i] = strdup(text ? text : "");
        json_decref(row);
        if (!rc && !test->answer[i])
            rc = sl_err_set(err, SL_NOMEM, "no memory for the answers");
    }
    return test->answer ? rc : sl_err_set(err, SL_NOMEM, "no memory for the answers");
}

static int answer_all(struct sl_trainer *t, struct tested *test, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_generator g = {.model = t->model,
                             .tok = t->tok,
                             .config = c,
                             .tuned = true,
                             .prompts = t->prompts,
                             .control = t->control,
                             .report = t->report,
                             .phase = "answering the test rows"};
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE,
                                     .max_positions = sl_model_arch(t->model)->max_positions -
                                                      c->inference.tokens_to_generate};
    const char *const *files = (const char *const *)t->run->test.s;
    struct sl_dataset *plain = NULL;
    int rc;

    if (c->data.max_seq_length && c->data.max_seq_length - c->inference.tokens_to_generate < how.max_positions)
        how.max_positions = c->data.max_seq_length - c->inference.tokens_to_generate;
    rc = sl_dataset_open(files, t->run->test.n, c, t->tok, &how, &test->ds, err);
    how.no_virtual = true;
    if (!rc)
        rc = sl_dataset_open(files, t->run->test.n, c, t->tok, &how, &plain, err);
    if (!rc && sl_dataset_rows(plain) != sl_dataset_rows(test->ds))
        rc = sl_err_set(err, SL_SPEC,
                        "some test rows fit only without virtual tokens; raise max_seq_length or name "
                        "a truncate_field");
    if (!rc)
        rc = answers(t, test, err);
    if (!rc)
        rc = sl_generate(&g, test->ds, &test->tuned, err);
    g.tuned = false;
    g.phase = "answering without the prompts";
    if (!rc)
        rc = sl_generate(&g, plain, &test->untuned, err);
    g.phase = "scoring labels without the prompts";
    if (!rc)
        rc = sl_choose(&g, plain, &test->choice, err);
    sl_dataset_free(plain);
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
            same += sl_dataset_row(test->ds, k).slot == task && !strcmp(test->answer[i], test->answer[k]);
        if (same > best)
            best = same;
    }
    return rows ? (double)best / (double)rows : 0;
}

static int score_task(struct sl_trainer *t, const struct tested *test, int task, json_t *list,
                      struct sl_err *err)
{
    struct sl_scores tuned = {0}, untuned = {0}, choice = {0};
    bool choices = t->run->config.task[task].n_choices > 0;
    json_t *o;
    int rc = 0;

    for (int i = 0; i < sl_dataset_rows(test->ds) && !rc; i++) {
        const char *const ref = test->answer[i];
        struct sl_score s;

        if (sl_dataset_row(test->ds, i).slot != task)
            continue;
        rc = sl_score_answer(test->tuned[i], &ref, 1, &s, err);
        if (!rc) {
            sl_scores_add(&tuned, &s);
            rc = sl_score_answer(test->untuned[i], &ref, 1, &s, err);
        }
        if (!rc) {
            sl_scores_add(&untuned, &s);
            rc = sl_score_answer(test->choice[i] ? test->choice[i] : "", &ref, 1, &s, err);
        }
        if (!rc)
            sl_scores_add(&choice, &s);
    }
    if (rc)
        return rc;
    o = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f}", "name", t->run->config.task[task].name, "rows",
                  (json_int_t)tuned.rows, "exact_match", sl_scores_exact(&tuned), "f1",
                  sl_scores_f1(&tuned), "untuned_exact_match", sl_scores_exact(&untuned), "untuned_f1",
                  sl_scores_f1(&untuned), "majority", majority(test, task, tuned.rows));
    if (choices)
        json_object_set_new(o, "untuned_choice", json_real(sl_scores_exact(&choice)));
    return json_array_append_new(list, o) ? sl_err_set(err, SL_NOMEM, "no memory for scores") : 0;
}

/* As named numbers, so that runs can be listed and compared by them: "test/TASK/exact_match". */
static void send_scores(struct sl_trainer *t, const json_t *list)
{
    json_t *event = json_pack("{s:s, s:I}", "ev", "metric", "step", (json_int_t)t->state.step), *task, *value;
    const char *key;
    char name[256];
    size_t i;

    json_array_foreach(list, i, task) json_object_foreach(task, key, value)
    {
        snprintf(name, sizeof name, "test/%s/%s", sl_json_str(task, "name", ""), key);
        if (json_is_real(value))
            json_object_set(event, name, value);
    }
    sl_emit(t->report, event);
}

static void send_predictions(struct sl_trainer *t, const struct tested *test)
{
    for (int i = 0; i < sl_dataset_rows(test->ds) && i < LIVE_PREDICTIONS; i++) {
        json_t *row = NULL;

        if (sl_dataset_json(test->ds, i, &row, NULL))
            return;
        sl_emit(t->report,
                        json_pack("{s:s, s:s, s:O?, s:O?, s:s, s:s, s:s}", "ev", "prediction", "task",
                                  t->run->config.task[sl_dataset_row(test->ds, i).slot].name, "context",
                                  json_object_get(row, "context"), "question",
                                  json_object_get(row, "question"), "answer", test->answer[i],
                                  "prediction", test->tuned[i], "untuned", test->untuned[i]));
        json_decref(row);
    }
}

static int run_test(struct sl_trainer *t, json_t *metrics, struct sl_err *err)
{
    struct tested test = {0};
    json_t *list = json_array();
    char path[SL_PATH_MAX];
    int rc = answer_all(t, &test, err);

    for (int i = 0; i < t->run->config.n_tasks && !rc; i++)
        rc = score_task(t, &test, i, list, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/predictions.jsonl", t->run->dir);
    if (!rc)
        rc = sl_write_predictions(path, test.ds, test.tuned, test.untuned, err);
    if (!rc) {
        send_scores(t, list);
        send_predictions(t, &test);
        if (t->report->events_fd < 0)
            sl_print_predictions(test.ds, test.tuned, test.untuned);
        json_object_set(metrics, "tasks", list);
    }
    json_decref(list);
    tested_release(&test);
    return rc ? sl_err_wrap(err, rc, "testing") : 0;
}

int sl_finish(struct sl_trainer *t, json_t **ret_metrics, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *metrics = json_pack("{s:I, s:I}", "steps", (json_int_t)t->state.step, "tokens",
                                (json_int_t)t->state.tokens);
    int rc = export_all(t, err);

    if (t->state.best_step >= 0) {
        json_object_set_new(metrics, "val_loss", json_real(t->state.best_val_loss));
        json_object_set_new(metrics, "val_loss_step", json_integer(t->state.best_step));
        json_object_set_new(metrics, "val_loss_step_0", json_real(t->state.first_val_loss));
    }
    if (!rc && t->run->test.n)
        rc = run_test(t, metrics, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/metrics.json", t->run->dir);
    if (!rc)
        rc = sl_json_write(path, metrics, err);
    if (rc)
        json_decref(metrics);
    else
        *ret_metrics = metrics;
    return rc;
}
