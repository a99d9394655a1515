#include "engine/finish.h"
#include "base/json.h"
#include "engine/format/export.h"
#include "engine/generate.h"
#include "engine/data/metrics.h"
#include "engine/format/table_forms.h"
#include <stdlib.h>
#include <string.h>

#define LIVE_PREDICTIONS 15 /* rows sent as prediction events */

/* ---- tables ---- */

static json_t *template_of(const json_t *config, const char *task)
{
    json_t *list = json_object_get(json_object_get(config, "model"), "task_templates"), *entry;
    size_t i;

    json_array_foreach(list, i, entry)
        if (!strcmp(sl_json_str(entry, "taskname", ""), task)) {
            return json_incref(entry);
        }
    return json_object();
}

/* rows: host [n_prompts, hidden]. */
static int gather_tables(struct sl_trainer *t, const json_t *config, const float *rows,
                         struct sl_tables *ret, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    size_t hidden = (size_t)t->hidden;
    int rc = 0;

    *ret = (struct sl_tables){
        .data = json_incref(json_object_get(json_object_get(config, "model"), "data"))};
    memcpy(ret->model_digest, t->model_digest, sizeof ret->model_digest);
    snprintf(ret->tokenizer_digest, sizeof ret->tokenizer_digest, "%s",
             sl_tokenizer_digest(t->tok));
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
            memcpy(table->rows, rows + (size_t)t->slot_first[i] * hidden, n * sizeof *table->rows);
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
                          .encoder_hidden = c->p_tuning.encoder_hidden,
                          .encoder_layers = c->p_tuning.num_layers,
                          .dropout = c->p_tuning.dropout};
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/out/peft", t->run->dir);

    for (int i = 0; i < c->n_tasks && !rc; i++) {
        struct sl_err why = SL_ERR_INIT;

        how.type =
            c->task[i].style == SL_STYLE_PROMPT_TUNING ? SL_ENC_TABLE : c->p_tuning.encoder_type;
        if (sl_peft_check(c->task[i].name, c->task[i].prompt_template, c->data.add_bos, &why))
            sl_emit_log(t->report, SL_WARN, "no PEFT adapter for task '%s': %s", c->task[i].name,
                        why.msg);
        else
            rc = sl_export_peft(dir, &tables->table[i], &how, c->data.add_bos, err);
    }
    return rc;
}

/* TensorRT-LLM's and NeMo's forms, beside ours; NeMo's under the name of model.nemo_path. */
static int export_others(struct sl_trainer *t, const struct sl_tables *tables, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    const char *slash = c->nemo_path ? strrchr(c->nemo_path, '/') : NULL;
    const char *name = !c->nemo_path ? SL_NEMO_FILE : slash ? slash + 1 : c->nemo_path;
    size_t n = strlen(name);
    struct sl_err why = SL_ERR_INIT;
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/out/" SL_NPY_FILE, t->run->dir);

    if (!rc)
        rc = sl_export_npy(path, tables, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/%s%s", t->run->dir, name,
                     n > 5 && !strcmp(name + n - 5, ".nemo") ? "" : ".nemo");
    if (rc)
        return rc;
    rc = sl_export_nemo(path, tables, c->language_model_path, &why);
    if (rc == SL_SPEC) { /* a task's name that NeMo cannot hold */
        sl_emit_log(t->report, SL_WARN, "no .nemo of the prompt tables: %s", why.msg);
        return 0;
    }
    return rc ? sl_err_set(err, rc, "%s", why.msg) : 0;
}

/* One file of tables from host rows; for_all (may be NULL) gets what was written. */
static int export_rows(struct sl_trainer *t, const json_t *config, const float *rows,
                       const char *path, struct sl_tables *for_all, struct sl_err *err)
{
    struct sl_tables tables = {0};
    int rc = gather_tables(t, config, rows, &tables, err);

    if (!rc)
        rc = sl_export_tables(path, &tables, err);
    if (rc || !for_all)
        sl_tables_release(&tables);
    else
        *for_all = tables;
    return rc;
}

/* The tables of the save_top_k best validations, each beside the result. */
static int export_top_k(struct sl_trainer *t, const json_t *config, struct sl_err *err)
{
    size_t block = (size_t)t->n_prompts * (size_t)t->hidden;
    int n = t->state.n_best, keep = t->run->config.exp.save_top_k;
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/out/" SL_TOP_K_DIR, t->run->dir);

    if (!rc) /* of an earlier attempt */
        rc = sl_rmtree(path, err);
    if (!rc && n && keep)
        rc = sl_mkdirs(path, err);
    for (int i = 0; i < n && i < keep && !rc; i++) {
        rc = sl_path(path, err, "%s/out/" SL_TOP_K_DIR "/step-%lld.safetensors", t->run->dir,
                     (long long)t->state.best[i].step);
        if (!rc)
            rc = export_rows(t, config, t->best + (size_t)i * block, path, NULL, err);
    }
    return rc;
}

static int export_all(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_tables tables = {0};
    size_t bytes = (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float);
    char path[SL_PATH_MAX];
    json_t *run_json = NULL, *config = NULL;
    float *rows = malloc(bytes);
    int rc = sl_path(path, err, "%s/run.json", t->run->dir);

    if (!rc && !rows)
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d rows of tables", t->n_prompts);
    if (!rc)
        rc = t->ops->download(t->be, rows, t->prompts, bytes, err);
    if (!rc)
        rc = sl_json_read(path, SL_JSON_FILE_MAX, &run_json, err);
    if (!rc)
        rc = sl_spec_config_with_defaults(json_object_get(run_json, "config"), &config, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/peft", t->run->dir);
    if (!rc)
        rc = sl_mkdirs(path, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/%s", t->run->dir, SL_TABLES_FILE);
    if (!rc)
        rc = export_rows(t, config, rows, path, &tables, err);
    if (!rc)
        rc = export_peft(t, &tables, err);
    if (!rc)
        rc = export_others(t, &tables, err);
    if (!rc)
        rc = export_top_k(t, config, err);
    free(rows);
    sl_tables_release(&tables);
    json_decref(run_json);
    json_decref(config);
    return rc;
}

/* ---- the test split ---- */

/* untuned, untuned_choice: NULL with no-prompts, where tuned and choice are the untuned model's. */
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
    sl_texts_free(t->untuned, n);
    sl_texts_free(t->answer, n);
    free(t->choice);
    free(t->untuned_choice);
    sl_dataset_free(t->ds);
}

/* The same rows without virtual tokens, answered by the model as it is. */
static int answer_untuned(struct sl_generator *g, struct sl_trainer *t,
                          struct sl_dataset_options how, struct tested *test, struct sl_err *err)
{
    struct sl_dataset *plain = NULL;
    int rc;

    how.no_virtual = true;
    rc = sl_dataset_open((const char *const *)t->run->test.s, t->run->test.n, &t->run->config,
                         t->tok, &how, &plain, err);
    if (!rc && sl_dataset_rows(plain) != sl_dataset_rows(test->ds))
        rc = sl_err_set(
            err, SL_SPEC,
            "some test rows fit only without virtual tokens; raise max_seq_length or name "
            "a truncate_field");
    g->tuned = false;
    g->phase = "answering without the prompts";
    if (!rc)
        rc = sl_generate(g, plain, &test->untuned, err);
    g->phase = "scoring labels without the prompts";
    if (!rc && sl_any_choices(&t->run->config))
        rc = sl_choose(g, plain, &test->untuned_choice, err);
    sl_dataset_free(plain);
    return rc;
}

static int answer_all(struct sl_trainer *t, struct tested *test, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_generator g = {.model = t->model,
                             .tok = t->tok,
                             .config = c,
                             .tuned = t->n_prompts > 0,
                             .prompts = t->prompts,
                             .control = t->control,
                             .report = t->report,
                             .phase = "answering the test rows"};
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE};
    int64_t left_out;
    int rc =
        sl_prompt_positions(c, sl_model_arch(t->model)->max_positions, &how.max_positions, err);

    if (!rc)
        rc = sl_dataset_open((const char *const *)t->run->test.s, t->run->test.n, c, t->tok, &how,
                             &test->ds, err);
    if (rc)
        return rc;
    left_out = sl_dataset_counts(test->ds).read - sl_dataset_rows(test->ds);
    if (left_out)
        sl_emit_log(
            t->report, SL_WARN,
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
    if (!rc && g.tuned)
        rc = answer_untuned(&g, t, how, test, err);
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

static int score_task(struct sl_trainer *t, const struct tested *test, int task, json_t *list,
                      struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
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
static void send_scores(struct sl_trainer *t, const json_t *list)
{
    json_t *event = json_pack("{s:s, s:I}", "ev", "metric", "step", (json_int_t)t->state.step),
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
    sl_emit(t->report, event);
}

static void send_predictions(struct sl_trainer *t, const struct tested *test)
{
    for (int i = 0; i < sl_dataset_rows(test->ds) && i < LIVE_PREDICTIONS; i++) {
        json_t *row = NULL;

        if (sl_dataset_json(test->ds, i, &row, NULL))
            return;
        sl_emit(t->report,
                json_pack("{s:s, s:s, s:O?, s:O?, s:s, s:s, s:s*}", "ev", "prediction", "task",
                          t->run->config.task[sl_dataset_row(test->ds, i).slot].name, "context",
                          json_object_get(row, "context"), "question",
                          json_object_get(row, "question"), "answer", test->answer[i], "prediction",
                          test->tuned[i], "untuned", test->untuned ? test->untuned[i] : NULL));
        json_decref(row);
    }
}

static int run_test(struct sl_trainer *t, json_t *metrics, struct sl_err *err)
{
    struct tested test = {0};
    struct sl_predictions table;
    json_t *list = json_array();
    char path[SL_PATH_MAX];
    int rc = answer_all(t, &test, err);

    table = (struct sl_predictions){test.ds, test.tuned, test.untuned, test.choice};
    for (int i = 0; i < t->run->config.n_tasks && !rc; i++)
        rc = score_task(t, &test, i, list, err);
    if (!rc)
        rc = sl_path(path, err, "%s/out/predictions.jsonl", t->run->dir);
    if (!rc)
        rc = sl_write_predictions(path, &table, err);
    if (!rc) {
        send_scores(t, list);
        send_predictions(t, &test);
        if (t->report->events_fd < 0)
            sl_print_predictions(&table);
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
    int rc = sl_path(path, err, "%s/out", t->run->dir);

    if (!rc)
        rc = sl_mkdirs(path, err);
    if (!rc && t->n_prompts)
        rc = export_all(t, err);
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
