/* What a trial trains: its new tasks by style, with their encoders and initial values. */
#include "engine/trainer.h"
#include <stdlib.h>
#include <string.h>

/* Rows of the vocabulary for a text: tokenised without BOS; at most max rows. Caller frees
 * *ret_rows. */
static int text_rows(struct sl_trainer *t, const char *text, int max, float **ret_rows, int *ret_n,
                     struct sl_err *err)
{
    struct sl_ids ids = {0};
    float *rows = NULL;
    int rc = sl_tokenize(t->tok, text, strlen(text), false, &ids, err);

    if (ids.n > max)
        ids.n = max;
    if (!rc && ids.n) {
        rows = malloc((size_t)ids.n * (size_t)t->hidden * sizeof *rows);
        rc = rows ? sl_model_embedding(t->model, ids.id, ids.n, rows, err)
                  : sl_err_set(err, SL_NOMEM, "no memory for %d embeddings", ids.n);
    }
    if (rc) {
        free(rows);
    } else {
        *ret_rows = rows;
        *ret_n = ids.n;
    }
    sl_ids_release(&ids);
    return rc;
}

static int table_from_text(struct sl_trainer *t, const struct sl_trial *trial,
                           struct sl_trainer_group *g, int at, struct sl_err *err)
{
    const struct sl_task *task = &trial->config->task[g->task[at]];
    int v = task->total_virtual_tokens, n = 0, rc;
    size_t row = (size_t)t->hidden;
    float *rows = NULL, *tiled;

    rc = text_rows(t, task->init_text, v, &rows, &n, err);
    if (rc)
        return rc;
    if (!n)
        return sl_err_set(err, SL_SPEC, "new_prompt_init_text of task '%s' has no tokens",
                          task->name);
    tiled = malloc((size_t)v * row * sizeof *tiled);
    for (int i = 0; tiled && i < v; i++)
        memcpy(tiled + (size_t)i * row, rows + (size_t)(i % n) * row, row * sizeof *tiled);
    rc = tiled ? sl_encoder_set_table(g->encoder, at, tiled, err)
               : sl_err_set(err, SL_NOMEM, "no memory for a table of %d rows", v);
    free(rows);
    free(tiled);
    return rc;
}

static int fix_name_rows(struct sl_trainer *t, const struct sl_trial *trial,
                         struct sl_trainer_group *g, int at, struct sl_err *err)
{
    const struct sl_task *task = &trial->config->task[g->task[at]];
    float *rows = NULL;
    int n = 0, rc = text_rows(t, task->name, task->total_virtual_tokens, &rows, &n, err);

    if (!rc && n)
        rc = sl_encoder_fix_rows(g->encoder, at, rows, n, err);
    free(rows);
    return rc;
}

static int make_encoder(struct sl_trainer *t, const struct sl_trial *trial,
                        struct sl_trainer_group *g, enum sl_style style, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    struct sl_encoder_config e = {
        .type = style == SL_STYLE_PROMPT_TUNING ? SL_ENC_TABLE : c->p_tuning.encoder_type,
        .n_tasks = g->n_tasks,
        .virtual_tokens = c->new_virtual_tokens,
        .hidden = t->hidden,
        .encoder_hidden = c->p_tuning.encoder_hidden,
        .layers = c->p_tuning.num_layers,
        .dropout = (float)c->p_tuning.dropout,
        .init_std = (float)c->p_tuning.init_std,
        .seed = c->seed};
    bool name_rows = c->p_tuning.taskname_rows == SL_TASKNAME_ROWS_ON ||
                     (c->p_tuning.taskname_rows == SL_TASKNAME_ROWS_AUTO && g->n_tasks > 1);
    int rc = sl_encoder_new(&e, t->ops, t->be, &g->encoder, err);

    for (int i = 0; i < g->n_tasks && !rc; i++) {
        if (e.type != SL_ENC_TABLE && name_rows)
            rc = fix_name_rows(t, trial, g, i, err);
        if (e.type == SL_ENC_TABLE && c->task[g->task[i]].init_method == SL_INIT_TEXT)
            rc = table_from_text(t, trial, g, i, err);
    }
    return rc;
}

static int make_group(struct sl_trainer *t, struct sl_trial *trial, enum sl_style style,
                      struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    struct sl_trainer_group *g = &trial->group[trial->n_groups];
    size_t bytes;
    void *p = NULL;
    int rc;

    g->task = calloc((size_t)c->n_tasks, sizeof *g->task);
    if (!g->task)
        return sl_err_set(err, SL_NOMEM, "no memory for %d tasks", c->n_tasks);
    for (int i = 0; i < c->n_tasks; i++)
        if (c->task[i].is_new && c->task[i].style == style)
            g->task[g->n_tasks++] = i;
    if (!g->n_tasks) {
        free(g->task);
        g->task = NULL;
        return 0;
    }
    trial->n_groups++;
    bytes = (size_t)g->n_tasks * (size_t)c->new_virtual_tokens * (size_t)t->hidden * sizeof(float);
    rc = make_encoder(t, trial, g, style, err);
    if (!rc && !(rc = t->ops->alloc(t->be, bytes, &p, err)))
        g->tables = p;
    if (!rc && !(rc = t->ops->alloc(t->be, bytes, &p, err)))
        g->dtables = p;
    return rc;
}

/* A config without a learning rate gives each style its own default; the trial's schedule has that of
 * model's style. */
static float lr_ratio(const struct sl_trial *trial, const struct sl_trainer_group *g)
{
    const struct sl_config *c = trial->config;

    return c->optim.lr_is_default
               ? (float)(sl_default_lr(c->task[g->task[0]].style) / sl_default_lr(c->style))
               : 1;
}

int sl_trial_make_groups(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    int rc = make_group(t, trial, SL_STYLE_P_TUNING, err), n;

    if (!rc)
        rc = make_group(t, trial, SL_STYLE_PROMPT_TUNING, err);
    for (int i = 0; i < trial->n_groups && !rc; i++) {
        struct sl_trainer_group *g = &trial->group[i];
        struct sl_param *mine = sl_encoder_params(g->encoder, &n), *all;

        all = realloc(trial->params, (size_t)(trial->n_params + n) * sizeof *all);
        if (!all)
            return sl_err_set(err, SL_NOMEM, "no memory for %d parameters", trial->n_params + n);
        trial->params = all;
        memcpy(all + trial->n_params, mine, (size_t)n * sizeof *all);
        trial->n_params += n;
        g->whole = sl_encoder_whole(g->encoder);
        g->whole.lr_ratio = lr_ratio(trial, g);
    }
    return rc;
}

void sl_trial_free_groups(struct sl_trainer *t, struct sl_trial *trial)
{
    for (int i = 0; i < trial->n_groups; i++) {
        sl_encoder_free(trial->group[i].encoder);
        t->ops->free(t->be, trial->group[i].tables);
        t->ops->free(t->be, trial->group[i].dtables);
        free(trial->group[i].task);
        trial->group[i] = (struct sl_trainer_group){0};
    }
    free(trial->params);
    trial->params = NULL;
    trial->n_groups = trial->n_params = 0;
}
