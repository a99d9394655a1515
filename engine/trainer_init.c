/* Loading: everything a trainer holds, in the order in which it can go wrong for the user: configuration and data
 * first, weights last. */
#include "engine/export.h"
#include "engine/trainer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int open_data(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_dataset_options how = {.answer = SL_ANSWER_ROW,
                                     .max_positions = sl_weights_arch(t->weights)->max_positions};
    struct sl_dataset_counts n;
    int rc;

    if (c->data.max_seq_length && c->data.max_seq_length < how.max_positions)
        how.max_positions = c->data.max_seq_length;
    if (!t->run->train.n)
        return sl_err_set(err, SL_SPEC, "datasets.train names no file: there is nothing to train on");
    rc = sl_dataset_open((const char *const *)t->run->train.s, t->run->train.n, c, t->tok, &how,
                         &t->train, err);
    if (!rc && t->run->validation.n)
        rc = sl_dataset_open((const char *const *)t->run->validation.s, t->run->validation.n, c, t->tok,
                             &how, &t->validation, err);
    if (rc)
        return rc;
    n = sl_dataset_counts(t->train);
    sl_emit_log(t->report, SL_INFO,
                  "training rows: %lld of %lld, %lld truncated, %lld too long and %lld too short left "
                  "out; %.1f positions and %.1f counted tokens a row",
                  (long long)n.rows, (long long)n.read, (long long)n.truncated, (long long)n.too_long,
                  (long long)n.too_short, (double)n.positions / (double)(n.rows ? n.rows : 1),
                  (double)n.targets / (double)(n.rows ? n.rows : 1));
    if (sl_dataset_mostly_skipped(t->train))
        sl_emit_log(t->report, SL_WARN,
                      "more than half of the training rows do not fit and are left out: raise "
                      "model.data.max_seq_length or name a truncate_field");
    return 0;
}

static int plan_steps(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    int rows = sl_dataset_rows(t->train);
    int64_t by_epochs;

    t->rows_per_step = c->global_batch * c->trainer.accumulate_grad_batches;
    t->steps_per_epoch = rows / t->rows_per_step;
    if (!t->steps_per_epoch)
        return sl_err_set(err, SL_SPEC,
                          "%d training rows do not fill one step of %d (model.global_batch_size %d x "
                          "trainer.accumulate_grad_batches %d); lower one of them",
                          rows, t->rows_per_step, c->global_batch, c->trainer.accumulate_grad_batches);
    by_epochs = c->trainer.max_epochs < 0 ? INT64_MAX
                                          : (int64_t)c->trainer.max_epochs * t->steps_per_epoch;
    t->steps = c->trainer.max_steps >= 0 && c->trainer.max_steps < by_epochs ? c->trainer.max_steps
                                                                            : by_epochs;
    if (c->trainer.max_steps >= 0 && by_epochs < c->trainer.max_steps)
        sl_emit_log(t->report, SL_WARN,
                      "trainer.max_epochs %d ends the run after %lld steps, before trainer.max_steps %d",
                      c->trainer.max_epochs, (long long)by_epochs, c->trainer.max_steps);
    t->validate_every = c->trainer.val_check_steps;
    if (!t->validate_every)
        t->validate_every = (int64_t)floor(c->trainer.val_check_fraction * t->steps_per_epoch);
    if (t->validate_every < 1)
        t->validate_every = 1;
    t->schedule = (struct sl_schedule){.lr = c->optim.lr,
                                       .min_lr = c->optim.min_lr,
                                       .warmup_steps = c->optim.warmup_steps,
                                       .constant_steps = c->optim.constant_steps,
                                       .max_steps = t->steps};
    return 0;
}

static int lay_out_slots(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    size_t n = (size_t)c->n_tasks + 1;

    t->slot_v = calloc(n, sizeof *t->slot_v);
    t->slot_first = calloc(n, sizeof *t->slot_first);
    t->new_slot = calloc(n, sizeof *t->new_slot);
    if (!t->slot_v || !t->slot_first || !t->new_slot)
        return sl_err_set(err, SL_NOMEM, "no memory for %d tasks", c->n_tasks);
    for (int i = 0; i < c->n_tasks; i++) {
        t->slot_v[i] = c->task[i].total_virtual_tokens;
        t->slot_first[i] = t->n_prompts;
        t->n_prompts += t->slot_v[i];
        if (c->task[i].is_new)
            t->new_slot[t->n_new++] = i;
    }
    if (!t->n_new)
        return sl_err_set(err, SL_SPEC,
                          "there is nothing to train: model.new_tasks is empty or the style is "
                          "no-prompts");
    return 0;
}

static int alloc_tables(struct sl_trainer *t, struct sl_err *err)
{
    size_t all = (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float);
    size_t mine = (size_t)t->n_new * (size_t)t->run->config.new_virtual_tokens * (size_t)t->hidden *
                  sizeof(float);
    void *p[4] = {0};
    size_t bytes[4] = {all, all, mine, mine};
    int rc = 0;

    for (int i = 0; i < 4 && !rc; i++)
        rc = t->ops->alloc(t->be, bytes[i], &p[i], err);
    t->prompts = p[0], t->dprompts = p[1], t->tables = p[2], t->dtables = p[3];
    if (rc)
        return rc;
    t->best = malloc(all);
    if (!t->best)
        return sl_err_set(err, SL_NOMEM, "no memory for the best tables");
    t->ops->zero(t->be, t->prompts, all);
    return 0;
}

/* Rows of the vocabulary for a text: tokenised without BOS; at most max rows. Caller frees *ret_rows. */
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

static int init_table_from_text(struct sl_trainer *t, int task, const char *text, struct sl_err *err)
{
    int v = t->run->config.new_virtual_tokens, n = 0, rc;
    size_t row = (size_t)t->hidden;
    float *rows = NULL, *tiled;

    rc = text_rows(t, text, v, &rows, &n, err);
    if (rc)
        return rc;
    if (!n)
        return sl_err_set(err, SL_SPEC, "new_prompt_init_text of task '%s' has no tokens",
                          t->run->config.task[t->new_slot[task]].name);
    tiled = malloc((size_t)v * row * sizeof *tiled);
    for (int i = 0; tiled && i < v; i++)
        memcpy(tiled + (size_t)i * row, rows + (size_t)(i % n) * row, row * sizeof *tiled);
    rc = tiled ? sl_encoder_set_table(t->encoder, task, tiled, err)
               : sl_err_set(err, SL_NOMEM, "no memory for a table of %d rows", v);
    free(rows);
    free(tiled);
    return rc;
}

static int make_encoder(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_encoder_config e = {.type = c->style == SL_STYLE_PROMPT_TUNING
                                              ? SL_ENC_TABLE
                                              : c->p_tuning.encoder_type,
                                  .n_tasks = t->n_new,
                                  .virtual_tokens = c->new_virtual_tokens,
                                  .hidden = t->hidden,
                                  .encoder_hidden = c->p_tuning.encoder_hidden,
                                  .layers = c->p_tuning.num_layers,
                                  .dropout = (float)c->p_tuning.dropout,
                                  .init_std = (float)c->p_tuning.init_std,
                                  .seed = c->seed};
    bool name_rows = c->p_tuning.taskname_rows == SL_TASKNAME_ROWS_ON ||
                     (c->p_tuning.taskname_rows == SL_TASKNAME_ROWS_AUTO && t->n_new > 1);
    int rc = sl_encoder_new(&e, t->ops, t->be, &t->encoder, err);

    for (int i = 0; i < t->n_new && !rc; i++) {
        const struct sl_task *task = &c->task[t->new_slot[i]];

        if (e.type == SL_ENC_TABLE) {
            if (task->init_method == SL_INIT_TEXT)
                rc = init_table_from_text(t, i, task->init_text, err);
        } else if (name_rows) {
            float *rows = NULL;
            int n = 0;

            rc = text_rows(t, task->name, c->new_virtual_tokens, &rows, &n, err);
            if (!rc && n)
                rc = sl_encoder_fix_rows(t->encoder, i, rows, n, err);
            free(rows);
        }
    }
    return rc;
}

/* Existing tasks' rows, from restore_path. */
static int restore_tables(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_tables tables = {0};
    int rc;

    if (t->n_new == c->n_tasks)
        return 0;
    if (!c->restore_path)
        return sl_err_set(err, SL_SPEC,
                          "model.existing_tasks needs model.restore_path: the prompt table they are in");
    rc = sl_tables_read(c->restore_path, &tables, err);
    if (rc)
        return rc;
    for (int i = 0; i < c->n_tasks && !rc; i++) {
        int at = sl_tables_find(&tables, c->task[i].name);

        if (c->task[i].is_new)
            continue;
        if (at < 0)
            rc = sl_err_set(err, SL_SPEC, "%s has no table for the existing task '%s'", c->restore_path,
                            c->task[i].name);
        else if (tables.table[at].virtual_tokens != t->slot_v[i] || tables.table[at].hidden != t->hidden)
            rc = sl_err_set(err, SL_SPEC,
                            "%s: the table of '%s' is [%d, %d], its template and the model say [%d, %d]",
                            c->restore_path, c->task[i].name, tables.table[at].virtual_tokens,
                            tables.table[at].hidden, t->slot_v[i], t->hidden);
        else
            rc = t->ops->upload(t->be, t->prompts + (size_t)t->slot_first[i] * (size_t)t->hidden,
                                tables.table[at].rows,
                                (size_t)t->slot_v[i] * (size_t)t->hidden * sizeof(float), err);
    }
    sl_tables_release(&tables);
    return rc;
}

static int resume(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_checkpoint c = {.ops = t->ops,
                              .be = t->be,
                              .best_tables = t->best,
                              .best_rows = t->n_prompts,
                              .hidden = t->hidden};
    char warning[SL_CHECKPOINT_WARNING_MAX];
    struct sl_fingerprint now;
    struct sl_train_state *s = &t->state;
    int rc;

    *s = (struct sl_train_state){.best_step = -1, .seed = t->run->config.seed};
    memcpy(s->config_digest, t->run->config_digest, sizeof s->config_digest);
    memcpy(s->model_digest, t->model_digest, sizeof s->model_digest);
    if (!t->run->config.exp.resume_if_exists || !sl_checkpoint_exists(t->run->dir))
        return 0;
    c.params = sl_encoder_params(t->encoder, &c.n_params);
    sl_fingerprint_take(t->ops, t->be, &now);
    rc = sl_checkpoint_load(t->run->dir, &c, s->config_digest, s->model_digest, &now, s, warning, err);
    if (rc)
        return sl_err_wrap(err, rc, "resuming");
    if (warning[0])
        sl_emit_log(t->report, SL_WARN, "%s", warning);
    sl_emit_log(t->report, SL_INFO, "resumed at step %lld", (long long)s->step);
    t->finished_early = t->run->config.exp.early_stopping && s->best_step >= 0 && s->step > 0 &&
                        s->stop_waited >= t->run->config.exp.patience;
    return 0;
}

static int init(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_backend_opts opts = {.threads = t->options.threads};
    struct sl_backend_info info;
    int rc;

    t->order_epoch = -1;
    t->ops = &sl_cpu_ops;
    rc = lay_out_slots(t, err);
    if (!rc)
        rc = sl_weights_open(t->run->model, &t->weights, err);
    if (!rc)
        rc = sl_weights_tokenizer(t->weights, &t->tok, err);
    if (!rc)
        rc = open_data(t, err);
    if (!rc)
        rc = plan_steps(t, err);
    if (!rc)
        rc = sl_weights_digest(t->weights, t->model_digest, err);
    if (!rc)
        rc = t->ops->open(&opts, &t->be, err);
    if (!rc)
        rc = sl_model_new(t->weights, t->ops, t->be, &t->model, err);
    if (rc)
        return rc;
    sl_model_plant(t->model, t->options.fault);
    t->hidden = sl_model_arch(t->model)->hidden;
    rc = alloc_tables(t, err);
    if (!rc)
        rc = make_encoder(t, err);
    if (!rc)
        rc = restore_tables(t, err);
    if (!rc)
        rc = sl_optim_init(&t->optim, t->ops, t->be, err);
    if (rc)
        return rc;
    t->optim.beta1 = (float)c->optim.beta1;
    t->optim.beta2 = (float)c->optim.beta2;
    t->optim.eps = (float)c->optim.eps;
    t->optim.weight_decay = (float)c->optim.weight_decay;
    t->optim.clip_norm = (float)c->trainer.gradient_clip;
    rc = resume(t, err);
    if (rc)
        return rc;
    t->ops->info(t->be, &info);
    sl_emit(t->report,
                    json_pack("{s:s, s:I, s:I, s:i, s:i, s:s, s:b, s:f}", "ev", "start", "step",
                              (json_int_t)t->state.step, "steps", (json_int_t)t->steps, "rows",
                              sl_dataset_rows(t->train), "threads", info.threads, "kernel", info.kernel,
                              "resumed", t->state.step > 0, "lr", c->optim.lr));
    return 0;
}

int sl_trainer_init(struct sl_trainer *t, const struct sl_run *run, const struct sl_trainer_options *options,
                    struct sl_emitter *report, struct sl_control *control, struct sl_err *err)
{
    int rc;

    *t = (struct sl_trainer){.run = run, .report = report, .control = control};
    if (options)
        t->options = *options;
    rc = init(t, err);
    if (rc)
        sl_trainer_release(t);
    return rc;
}

void sl_trainer_release(struct sl_trainer *t)
{
    sl_optim_release(&t->optim);
    sl_encoder_free(t->encoder);
    if (t->be) {
        t->ops->free(t->be, t->prompts);
        t->ops->free(t->be, t->dprompts);
        t->ops->free(t->be, t->tables);
        t->ops->free(t->be, t->dtables);
    }
    sl_model_free(t->model);
    if (t->be)
        t->ops->close(t->be);
    sl_dataset_free(t->train);
    sl_dataset_free(t->validation);
    sl_tokenizer_free(t->tok);
    sl_weights_close(t->weights);
    free(t->slot_v);
    free(t->slot_first);
    free(t->new_slot);
    free(t->best);
    free(t->order);
    *t = (struct sl_trainer){0};
}
