/* Loading: everything a trainer holds, in the order in which it can go wrong for the user:
 * configuration and data first, weights last. */
#include "engine/backend.h"
#include "engine/generate.h"
#include "engine/format/table_forms.h"
#include "engine/trainer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int open_rows(struct sl_trainer *t, const struct sl_strings *files, enum sl_answer answer,
                     int max_positions, struct sl_dataset **ret_ds, struct sl_err *err)
{
    struct sl_dataset_options how = {.answer = answer, .max_positions = max_positions};

    return sl_dataset_open((const char *const *)files->s, files->n, &t->run->config, t->tok, &how,
                           ret_ds, err);
}

static void tell_rows(struct sl_trainer *t, const char *what, const struct sl_dataset *ds)
{
    struct sl_dataset_counts n = sl_dataset_counts(ds);

    sl_emit_log(t->report, SL_INFO,
                "%s rows: %lld of %lld, %lld truncated, %lld too long and %lld too short left "
                "out; %.1f positions and %.1f counted tokens a row",
                what, (long long)n.rows, (long long)n.read, (long long)n.truncated,
                (long long)n.too_long, (long long)n.too_short,
                (double)n.positions / (double)(n.rows ? n.rows : 1),
                (double)n.targets / (double)(n.rows ? n.rows : 1));
    if (sl_dataset_mostly_skipped(ds))
        sl_emit_log(t->report, SL_WARN,
                    "more than half of the %s rows do not fit and are left out: raise "
                    "model.data.max_seq_length or name a truncate_field",
                    what);
    if (n.split_boundary)
        sl_emit_log(
            t->report, SL_WARN,
            "in %lld %s rows a token spans the start of the answer, so that generation starts "
            "from other tokens than training saw",
            (long long)n.split_boundary, what);
}

static int open_data(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    int model_max = sl_weights_arch(t->weights)->max_positions, most = model_max, prompt = 0,
        rc = 0;

    if (c->data.max_seq_length && c->data.max_seq_length < most)
        most = c->data.max_seq_length;
    if (c->style != SL_STYLE_NO_PROMPTS) {
        if (!t->run->train.n)
            return sl_err_set(err, SL_SPEC,
                              "datasets.train names no file: there is nothing to train on");
        rc = open_rows(t, &t->run->train, SL_ANSWER_ROW, most, &t->train, err);
        if (rc)
            return rc;
        tell_rows(t, "training", t->train);
    }
    if (!t->run->validation.n)
        return 0;
    rc = open_rows(t, &t->run->validation, SL_ANSWER_ROW, most, &t->validation, err);
    if (rc)
        return rc;
    tell_rows(t, "validation", t->validation);
    if (!c->report_validation_metric)
        return 0;
    rc = sl_prompt_positions(c, model_max, &prompt, err);
    if (!rc)
        rc = open_rows(t, &t->run->validation, SL_ANSWER_NONE, prompt, &t->asked, err);
    if (!rc)
        rc = sl_row_answers(t->asked, &t->answers, err);
    return rc;
}

static int plan_steps(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    int rows = t->train ? sl_dataset_rows(t->train) : 0;
    int64_t by_epochs;

    t->validate_every = 1;
    if (!t->train)
        return 0;
    t->rows_per_step = c->global_batch * c->trainer.accumulate_grad_batches;
    t->steps_per_epoch = rows / t->rows_per_step;
    if (!t->steps_per_epoch)
        return sl_err_set(
            err, SL_SPEC,
            "%d training rows do not fill one step of %d (model.global_batch_size %d x "
            "trainer.accumulate_grad_batches %d); lower one of them",
            rows, t->rows_per_step, c->global_batch, c->trainer.accumulate_grad_batches);
    by_epochs =
        c->trainer.max_epochs < 0 ? INT64_MAX : (int64_t)c->trainer.max_epochs * t->steps_per_epoch;
    t->steps = c->trainer.max_steps >= 0 && c->trainer.max_steps < by_epochs ? c->trainer.max_steps
                                                                             : by_epochs;
    if (c->trainer.max_steps >= 0 && by_epochs < c->trainer.max_steps)
        sl_emit_log(
            t->report, SL_WARN,
            "trainer.max_epochs %d ends the run after %lld steps, before trainer.max_steps %d",
            c->trainer.max_epochs, (long long)by_epochs, c->trainer.max_steps);
    t->validate_by_epoch = !c->trainer.val_check_steps;
    t->validate_every = t->validate_by_epoch
                            ? (int64_t)floor(c->trainer.val_check_fraction * t->steps_per_epoch)
                            : c->trainer.val_check_steps;
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
    bool trains = false;

    t->slot_v = calloc(n, sizeof *t->slot_v);
    t->slot_first = calloc(n, sizeof *t->slot_first);
    if (!t->slot_v || !t->slot_first)
        return sl_err_set(err, SL_NOMEM, "no memory for %d tasks", c->n_tasks);
    for (int i = 0; i < c->n_tasks; i++) {
        t->slot_v[i] = c->task[i].total_virtual_tokens;
        t->slot_first[i] = t->n_prompts;
        t->n_prompts += t->slot_v[i];
        trains |= c->task[i].is_new;
    }
    if (!trains && c->style != SL_STYLE_NO_PROMPTS)
        return sl_err_set(
            err, SL_SPEC,
            "there is nothing to train: model.new_tasks is empty. `softlaunch generate` "
            "answers with tables that are there; virtual_prompt_style no-prompts without");
    return 0;
}

static int alloc_tables(struct sl_trainer *t, struct sl_err *err)
{
    int keep = t->run->config.exp.save_top_k;
    size_t all = (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float);
    void *p[3] = {0};
    int rc = 0;

    t->n_keep = keep < 1 ? 1 : keep > SL_CHECKPOINT_MAX_BEST ? SL_CHECKPOINT_MAX_BEST : keep;
    if (!all)
        return 0;
    for (int i = 0; i < 3 && !rc; i++)
        rc = t->ops->alloc(t->be, all, &p[i], err);
    t->prompts = p[0], t->dprompts = p[1], t->dmicro = p[2];
    if (rc)
        return rc;
    t->best = calloc((size_t)t->n_keep, all);
    if (!t->best)
        return sl_err_set(err, SL_NOMEM, "no memory for the %d best tables", t->n_keep);
    t->ops->zero(t->be, t->prompts, all);
    return 0;
}

/* Existing tasks' rows, from restore_path. */
static int restore_tables(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_tables tables = {0};
    int rc;

    if (c->n_new_tasks == c->n_tasks || c->style == SL_STYLE_NO_PROMPTS)
        return 0;
    if (!c->restore_path)
        return sl_err_set(
            err, SL_SPEC,
            "model.existing_tasks needs model.restore_path: the prompt table they are in");
    rc = sl_tables_import(c->restore_path, NULL, 0, &tables, err);
    if (rc)
        return rc;
    if (tables.model_digest[0] && strcmp(tables.model_digest, t->model_digest))
        sl_emit_log(
            t->report, SL_WARN,
            "the existing tasks' tables were trained on another model (or another quantisation of "
            "it) than %s",
            t->run->model);
    for (int i = 0; i < c->n_tasks && !rc; i++) {
        int at = sl_tables_find(&tables, c->task[i].name);

        if (c->task[i].is_new)
            continue;
        if (at < 0)
            rc = sl_err_set(err, SL_SPEC, "%s has no table for the existing task '%s'",
                            c->restore_path, c->task[i].name);
        else if (tables.table[at].virtual_tokens != t->slot_v[i] ||
                 tables.table[at].hidden != t->hidden)
            rc = sl_err_set(
                err, SL_SPEC,
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
    struct sl_checkpoint c = {.params = t->params,
                              .n_params = t->n_params,
                              .ops = t->ops,
                              .be = t->be,
                              .best_tables = t->best,
                              .best_rows = t->n_keep * t->n_prompts,
                              .hidden = t->hidden};
    char warning[SL_CHECKPOINT_WARNING_MAX];
    struct sl_fingerprint now;
    struct sl_train_state *s = &t->state;
    int rc;

    *s =
        (struct sl_train_state){.best_step = -1, .validated_step = -1, .seed = t->run->config.seed};
    memcpy(s->config_digest, t->run->config_digest, sizeof s->config_digest);
    memcpy(s->model_digest, t->model_digest, sizeof s->model_digest);
    if (!t->n_groups || !t->run->config.exp.resume_if_exists || !sl_checkpoint_exists(t->run->dir))
        return 0;
    sl_fingerprint_take(t->ops, t->be, &now);
    rc = sl_checkpoint_load(t->run->dir, &c, s->config_digest, s->model_digest, &now, s, warning,
                            err);
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
    struct sl_backend_info info;
    int rc;

    t->order_epoch = -1;
    rc = lay_out_slots(t, err);
    if (!rc)
        rc = sl_weights_open(t->run->model, &t->weights, err);
    if (!rc)
        rc = sl_weights_tokenizer(t->weights, &t->tok, err);
    if (!rc && sl_weights_arch(t->weights)->padding_rows)
        sl_emit_log(t->report, SL_INFO,
                    "%d padding rows of the model's vocabulary are left out of the softmax (NeMo counts "
                    "them)",
                    sl_weights_arch(t->weights)->padding_rows);
    if (!rc)
        rc = open_data(t, err);
    if (!rc)
        rc = plan_steps(t, err);
    if (!rc)
        rc = sl_weights_digest(t->weights, t->model_digest, err);
    if (!rc)
        rc = sl_backend_open(t->options.device, c->trainer.precision, t->options.threads, &t->ops, &t->be, err);
    if (!rc)
        rc = sl_model_new(t->weights, t->ops, t->be, &t->model, err);
    if (rc)
        return rc;
    sl_model_plant(t->model, t->options.fault);
    t->hidden = sl_model_arch(t->model)->hidden;
    rc = alloc_tables(t, err);
    if (!rc)
        rc = sl_trainer_make_groups(t, err);
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
                      t->train ? sl_dataset_rows(t->train) : 0, "threads", info.threads, "kernel",
                      info.kernel, "resumed", t->state.step > 0, "lr", c->optim.lr));
    return 0;
}

int sl_trainer_init(struct sl_trainer *t, const struct sl_run *run,
                    const struct sl_trainer_options *options, struct sl_emitter *report,
                    struct sl_control *control, struct sl_err *err)
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
    if (t->be) {
        sl_trainer_free_groups(t);
        t->ops->free(t->be, t->prompts);
        t->ops->free(t->be, t->dprompts);
        t->ops->free(t->be, t->dmicro);
    }
    sl_model_free(t->model);
    if (t->be)
        t->ops->close(t->be);
    sl_texts_free(t->answers, t->asked ? sl_dataset_rows(t->asked) : 0);
    sl_dataset_free(t->train);
    sl_dataset_free(t->validation);
    sl_dataset_free(t->asked);
    sl_tokenizer_free(t->tok);
    sl_weights_close(t->weights);
    free(t->slot_v);
    free(t->slot_first);
    free(t->best);
    free(t->order);
    *t = (struct sl_trainer){0};
}
