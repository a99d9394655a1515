/* A trial's tables in all their forms. */
#include "base/json.h"
#include "engine/finish.h"
#include "engine/format/export.h"
#include "engine/format/table_forms.h"
#include <stdlib.h>
#include <string.h>

#define WRITERS 8 /* trials whose files are written at a time: they wait for the disk, not for a core */

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

/* rows: host [n_prompts, hidden] of the trial. */
static int gather_tables(const struct sl_trainer *t, const struct sl_trial *trial,
                         const json_t *config, const float *rows, struct sl_tables *ret,
                         struct sl_err *err)
{
    const struct sl_config *c = trial->config;
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
        int slot = trial->first_slot + i, first = t->slot_first[slot] - trial->first_prompt;
        size_t n = (size_t)t->slot_v[slot] * hidden;

        table->task = strdup(c->task[i].name);
        table->virtual_tokens = t->slot_v[slot];
        table->hidden = t->hidden;
        table->config = template_of(config, c->task[i].name);
        table->rows = malloc(n * sizeof *table->rows);
        if (!table->task || !table->rows || !table->config)
            rc = sl_err_set(err, SL_NOMEM, "no memory for the table of '%s'", c->task[i].name);
        else
            memcpy(table->rows, rows + (size_t)first * hidden, n * sizeof *table->rows);
    }
    return rc;
}

static int export_peft(struct sl_trainer *t, const struct sl_trial *trial,
                       const struct sl_tables *tables, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    const struct sl_arch *arch = sl_model_arch(t->model);
    struct sl_peft how = {.base_model = arch->name,
                          .heads = arch->heads,
                          .layers = arch->layers,
                          .encoder_hidden = c->p_tuning.encoder_hidden,
                          .encoder_layers = c->p_tuning.num_layers,
                          .dropout = c->p_tuning.dropout};
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/peft", trial->run->out);

    for (int i = 0; i < c->n_tasks && !rc; i++) {
        struct sl_err why = SL_ERR_INIT;

        how.type =
            c->task[i].style == SL_STYLE_PROMPT_TUNING ? SL_ENC_TABLE : c->p_tuning.encoder_type;
        if (sl_peft_check(c->task[i].name, c->task[i].prompt_template, c->data.add_bos, &why))
#pragma omp critical(finish)
            sl_trial_log(t, trial, SL_WARN, "no PEFT adapter for task '%s': %s", c->task[i].name,
                        why.msg);
        else
            rc = sl_export_peft(dir, &tables->table[i], &how, c->data.add_bos, err);
    }
    return rc;
}

/* TensorRT-LLM's and NeMo's forms, beside ours; NeMo's under the name of model.nemo_path. */
static int export_others(struct sl_trainer *t, const struct sl_trial *trial,
                       const struct sl_tables *tables, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    const char *slash = c->nemo_path ? strrchr(c->nemo_path, '/') : NULL;
    const char *name = !c->nemo_path ? SL_NEMO_FILE : slash ? slash + 1 : c->nemo_path;
    size_t n = strlen(name);
    struct sl_err why = SL_ERR_INIT;
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/" SL_NPY_FILE, trial->run->out);

    if (!rc)
        rc = sl_export_npy(path, tables, err);
    if (!rc)
        rc = sl_path(path, err, "%s/%s%s", trial->run->out, name,
                     n > 5 && !strcmp(name + n - 5, ".nemo") ? "" : ".nemo");
    if (rc)
        return rc;
    rc = sl_export_nemo(path, tables, c->language_model_path, &why);
    if (rc == SL_SPEC) { /* a task's name that NeMo cannot hold */
#pragma omp critical(finish)
        sl_trial_log(t, trial, SL_WARN, "no .nemo of the prompt tables: %s", why.msg);
        return 0;
    }
    return rc ? sl_err_set(err, rc, "%s", why.msg) : 0;
}

/* One file of tables from host rows; for_all (may be NULL) gets what was written. */
static int export_rows(const struct sl_trainer *t, const struct sl_trial *trial,
                       const json_t *config, const float *rows, const char *path,
                       struct sl_tables *for_all, struct sl_err *err)
{
    struct sl_tables tables = {0};
    int rc = gather_tables(t, trial, config, rows, &tables, err);

    if (!rc)
        rc = sl_export_tables(path, &tables, err);
    if (rc || !for_all)
        sl_tables_release(&tables);
    else
        *for_all = tables;
    return rc;
}

/* The tables of the save_top_k best validations, each beside the result. */
static int export_top_k(const struct sl_trainer *t, const struct sl_trial *trial,
                        const json_t *config, struct sl_err *err)
{
    size_t block = (size_t)trial->n_prompts * (size_t)t->hidden;
    int n = trial->state.n_best, keep = trial->config->exp.save_top_k;
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/" SL_TOP_K_DIR, trial->run->out);

    if (!rc) /* of an earlier attempt */
        rc = sl_rmtree(path, err);
    if (!rc && n && keep)
        rc = sl_mkdirs(path, err);
    for (int i = 0; i < n && i < keep && !rc; i++) {
        rc = sl_path(path, err, "%s/" SL_TOP_K_DIR "/step-%lld.safetensors", trial->run->out,
                     (long long)trial->state.best[i].step);
        if (!rc)
            rc = export_rows(t, trial, config, trial->best + (size_t)i * block, path, NULL, err);
    }
    return rc;
}

/* All files of a trial; rows: its host tables. */
static int export_trial(struct sl_trainer *t, const struct sl_trial *trial, const float *rows,
                        struct sl_err *err)
{
    struct sl_tables tables = {0};
    char path[SL_PATH_MAX];
    json_t *config = NULL;
    int rc = sl_spec_config_with_defaults(trial->run->json, &config, err);

    if (!rc)
        rc = sl_path(path, err, "%s/peft", trial->run->out);
    if (!rc)
        rc = sl_mkdirs(path, err);
    if (!rc)
        rc = sl_path(path, err, "%s/%s", trial->run->out, SL_TABLES_FILE);
    if (!rc)
        rc = export_rows(t, trial, config, rows, path, &tables, err);
    if (!rc)
        rc = export_peft(t, trial, &tables, err);
    if (!rc)
        rc = export_others(t, trial, &tables, err);
    if (!rc)
        rc = export_top_k(t, trial, config, err);
    sl_tables_release(&tables);
    json_decref(config);
    return rc;
}

/* Trials side by side: most of the time is waiting for the disk. */
int sl_finish_tables(struct sl_trainer *t, struct sl_err *err)
{
    size_t hidden = (size_t)t->hidden, bytes = (size_t)t->n_prompts * hidden * sizeof(float);
    float *rows = malloc(bytes);
    int rc = rows ? t->ops->download(t->be, rows, t->prompts, bytes, err)
                  : sl_err_set(err, SL_NOMEM, "no memory for %d rows of tables", t->n_prompts);

#pragma omp parallel for num_threads(WRITERS) schedule(dynamic) if (t->n_trials > 1)
    for (int k = 0; k < t->n_trials; k++) {
        const struct sl_trial *trial = &t->trial[k];
        struct sl_err own = SL_ERR_INIT;

        if (rc || trial->state.ended == SL_TRIAL_DIVERGED)
            continue;
        if (export_trial(t, trial, rows + (size_t)trial->first_prompt * hidden, &own)) {
#pragma omp critical(finish)
            if (!rc)
                rc = sl_err_set(err, own.code, "%s", own.msg);
        }
    }
    free(rows);
    return rc;
}
