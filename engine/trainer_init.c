/* Loading: everything a trainer holds, in the order in which it can go wrong for the user:
 * configuration and data first, weights last. */
#include "engine/backend.h"
#include "engine/format/table_forms.h"
#include "engine/trainer.h"
#include <stdlib.h>
#include <string.h>

static int alloc_best(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    size_t block = (size_t)trial->n_prompts * (size_t)t->hidden, at = (size_t)trial->first_prompt;
    int keep = trial->config->exp.save_top_k;

    trial->n_keep = keep < 1 ? 1 : keep > SL_CHECKPOINT_MAX_BEST ? SL_CHECKPOINT_MAX_BEST : keep;
    if (!block)
        return 0;
    trial->prompts = t->prompts + at * (size_t)t->hidden;
    trial->dprompts = t->dprompts + at * (size_t)t->hidden;
    trial->best = calloc((size_t)trial->n_keep, block * sizeof(float));
    return trial->best ? 0
                       : sl_err_set(err, SL_NOMEM, "no memory for the %d best tables", trial->n_keep);
}

static int alloc_tables(struct sl_trainer *t, struct sl_err *err)
{
    size_t all = (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float);
    void *p[3] = {0};
    int rc = 0;

    for (int i = 0; i < 3 && !rc && all; i++)
        rc = t->ops->alloc(t->be, all, &p[i], err);
    t->prompts = p[0], t->dprompts = p[1], t->dmicro = p[2];
    if (!rc && all)
        t->ops->zero(t->be, t->prompts, all);
    return rc;
}

/* Existing tasks' rows, from restore_path. */
static int restore_tables(struct sl_trainer *t, const struct sl_trial *trial, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    struct sl_tables tables = {0};
    int rc;

    if (c->n_new_tasks == c->n_tasks || c->style == SL_STYLE_NO_PROMPTS)
        return 0;
    if (!c->restore_path)
        return sl_err_set(
            err, SL_SPEC,
            "model.existing_tasks needs model.restore_path: the prompt table they are in");
    rc = sl_trainer_model_digest(t, err);
    if (!rc)
        rc = sl_tables_import(c->restore_path, NULL, 0, &tables, err);
    if (rc)
        return rc;
    if (tables.model_digest[0] && strcmp(tables.model_digest, t->model_digest) != 0)
        sl_trial_log(
            t, trial, SL_WARN,
            "the existing tasks' tables were trained on another model (or another quantisation of "
            "it) than %s",
            t->run->model);
    for (int i = 0; i < c->n_tasks && !rc; i++) {
        int slot = trial->first_slot + i, at = sl_tables_find(&tables, c->task[i].name);

        if (c->task[i].is_new)
            continue;
        if (at < 0)
            rc = sl_err_set(err, SL_SPEC, "%s has no table for the existing task '%s'",
                            c->restore_path, c->task[i].name);
        else if (tables.table[at].virtual_tokens != t->slot_v[slot] ||
                 tables.table[at].hidden != t->hidden)
            rc = sl_err_set(
                err, SL_SPEC,
                "%s: the table of '%s' is [%d, %d], its template and the model say [%d, %d]",
                c->restore_path, c->task[i].name, tables.table[at].virtual_tokens,
                tables.table[at].hidden, t->slot_v[slot], t->hidden);
        else
            rc = t->ops->upload(t->be, t->prompts + (size_t)t->slot_first[slot] * (size_t)t->hidden,
                                tables.table[at].rows,
                                (size_t)t->slot_v[slot] * (size_t)t->hidden * sizeof(float), err);
    }
    sl_tables_release(&tables);
    return rc;
}

static int make_optim(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    int rc = sl_optim_init(&trial->optim, t->ops, t->be, err);

    if (rc)
        return rc;
    trial->optim.beta1 = (float)c->optim.beta1;
    trial->optim.beta2 = (float)c->optim.beta2;
    trial->optim.eps = (float)c->optim.eps;
    trial->optim.weight_decay = (float)c->optim.weight_decay;
    trial->optim.clip_norm = (float)c->trainer.gradient_clip;
    return 0;
}

/* ---- resuming ---- */

int sl_trainer_model_digest(struct sl_trainer *t, struct sl_err *err)
{
    int rc = t->model_digest[0] ? 0 : sl_weights_digest(t->weights, t->model_digest, err);

    for (int k = 0; k < t->n_trials && !rc; k++)
        memcpy(t->trial[k].state.model_digest, t->model_digest, sizeof t->model_digest);
    return rc;
}

struct sl_checkpoint sl_trial_checkpoint(struct sl_trainer *t, struct sl_trial *trial)
{
    return (struct sl_checkpoint){.name = trial->run->name,
                                  .config_digest = trial->run->config_digest,
                                  .state = &trial->state,
                                  .steps = trial->steps,
                                  .params = trial->params,
                                  .n_params = trial->n_params,
                                  .ops = t->ops,
                                  .be = t->be,
                                  .best_tables = trial->best,
                                  .best_rows = trial->n_keep * trial->n_prompts,
                                  .hidden = t->hidden};
}

void sl_trainer_fingerprint(const struct sl_trainer *t, struct sl_fingerprint *ret_print)
{
    sl_fingerprint_take(t->ops, t->be, ret_print);
    ret_print->pass_positions = t->n_trials > 1 ? t->pass_positions : 0;
}

static int load(struct sl_trainer *t, struct sl_checkpoint *parts, struct sl_err *err)
{
    char warning[SL_CHECKPOINT_WARNING_MAX];
    struct sl_fingerprint now;
    int rc;

    for (int k = 0; k < t->n_trials; k++)
        parts[k] = sl_trial_checkpoint(t, &t->trial[k]);
    sl_trainer_fingerprint(t, &now);
    rc = sl_trainer_model_digest(t, err);
    if (!rc)
        rc = sl_checkpoint_load(t->run->dir, parts, t->n_trials, t->model_digest, &now, warning, err);
    if (rc)
        return sl_err_wrap(err, rc, "resuming");
    for (int k = 0; k < t->n_trials; k++)
        if (t->trial[k].state.step > t->step)
            t->step = t->trial[k].state.step;
    if (warning[0])
        sl_emit_log(t->report, SL_WARN, "%s", warning);
    sl_emit_log(t->report, SL_INFO, "resumed at step %lld", (long long)t->step);
    return 0;
}

static int resume(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_checkpoint *parts;
    int rc;

    for (int k = 0; k < t->n_trials; k++) {
        struct sl_train_state *s = &t->trial[k].state;

        *s = (struct sl_train_state){
            .best_step = -1, .validated_step = -1, .seed = t->trial[k].config->seed};
        memcpy(s->config_digest, t->trial[k].run->config_digest, sizeof s->config_digest);
    }
    if (!t->trial[0].n_groups || !t->trial[0].config->exp.resume_if_exists ||
        !sl_checkpoint_exists(t->run->dir))
        return 0;
    parts = calloc((size_t)t->n_trials, sizeof *parts);
    if (!parts)
        return sl_err_set(err, SL_NOMEM, "no memory for a checkpoint of %d trials", t->n_trials);
    rc = load(t, parts, err);
    free(parts);
    return rc;
}

/* ---- all of it ---- */

int sl_trainer_make(struct sl_trainer *t, struct sl_err *err)
{
    int rc = sl_model_new(t->weights, t->ops, t->be, &t->model, err);

    t->hidden = sl_weights_arch(t->weights)->hidden;
    if (!rc)
        rc = alloc_tables(t, err);
    for (int k = 0; k < t->n_trials && !rc; k++) {
        rc = sl_trial_make_groups(t, &t->trial[k], err);
        if (!rc)
            rc = make_optim(t, &t->trial[k], err);
        if (rc && t->trial[k].run->name[0])
            sl_err_wrap(err, rc, "trial %s", t->trial[k].run->name);
    }
    return rc;
}

void sl_trainer_unmake(struct sl_trainer *t)
{
    for (int k = 0; k < t->n_trials; k++) {
        sl_optim_release(&t->trial[k].optim);
        sl_trial_free_groups(t, &t->trial[k]);
    }
    if (t->be) {
        t->ops->free(t->be, t->prompts);
        t->ops->free(t->be, t->dprompts);
        t->ops->free(t->be, t->dmicro);
    }
    t->prompts = t->dprompts = t->dmicro = NULL;
    sl_model_free(t->model);
    t->model = NULL;
}

/* The backend, memory for the whole run at once, and all that goes there. */
static int load_all(struct sl_trainer *t, struct sl_err *err)
{
    int rc = sl_backend_open(t->options.device, t->trial[0].config->trainer.precision, t->options.threads, &t->ops,
                             &t->be, err);

    if (!rc)
        rc = sl_trainer_fit(t, err);
    if (!rc)
        rc = t->ops->reserve(t->be, (size_t)t->plan.persistent, err);
    if (!rc)
        sl_weights_digest_begin(t->weights);
    if (!rc)
        rc = sl_trainer_make(t, err);
    if (!rc)
        rc = sl_model_reserve(t->model, t->plan.arena, err);
    if (rc)
        return rc;
    sl_model_plant(t->model, t->options.fault);
    sl_model_recompute(t->model, sl_recompute_at(t->plan.layers, t->plan.recompute));
    for (int k = 0; k < t->n_trials && !rc; k++) {
        rc = alloc_best(t, &t->trial[k], err);
        if (!rc)
            rc = restore_tables(t, &t->trial[k], err);
        if (rc && t->trial[k].run->name[0])
            sl_err_wrap(err, rc, "trial %s", t->trial[k].run->name);
    }
    return rc;
}

static void tell_start(struct sl_trainer *t)
{
    const struct sl_trial *first = &t->trial[0];
    json_t *names = first->run->name[0] ? json_array() : NULL, *event;
    struct sl_backend_info info;
    struct sl_fingerprint print;

    for (int k = 0; k < t->n_trials && names; k++)
        json_array_append_new(names, json_string(t->trial[k].run->name));
    t->ops->info(t->be, &info);
    sl_trainer_fingerprint(t, &print);
    event = json_pack("{s:s, s:I, s:I, s:i, s:i, s:s, s:b, s:o*}", "ev", "start", "step",
                      (json_int_t)t->step, "steps", (json_int_t)t->steps, "rows",
                      first->data->train ? sl_dataset_rows(first->data->train) : 0, "threads",
                      info.threads, "kernel", info.kernel, "resumed", t->step > 0, "trials", names);
    if (t->n_trials == 1)
        json_object_set_new(event, "lr", json_real(first->config->optim.lr));
    json_object_set_new(event, "fingerprint",
                        json_pack("{s:s, s:s, s:i, s:s, s:i, s:I}", "backend", print.backend, "kernel",
                                  print.kernel, "threads", print.threads, "libraries", print.libraries,
                                  "pack_layout", print.pack_layout, "pass_positions",
                                  (json_int_t)print.pass_positions));
    sl_emit(t->report, event);
}

static int look(struct sl_trainer *t, struct sl_err *err)
{
    int rc = sl_trainer_make_trials(t, err);

    if (!rc)
        rc = sl_weights_open(t->run->model, &t->weights, err);
    if (!rc)
        rc = sl_weights_tokenizer(t->weights, &t->tok, err);
    if (!rc && sl_weights_arch(t->weights)->padding_rows)
        sl_emit_log(t->report, SL_INFO,
                    "%d padding rows of the model's vocabulary are left out of the softmax (NeMo counts "
                    "them)",
                    sl_weights_arch(t->weights)->padding_rows);
    return rc ? rc : sl_trainer_open_data(t, err);
}

int sl_trainer_look(struct sl_trainer *t, const struct sl_run *run, const struct sl_trainer_options *options,
                    struct sl_emitter *report, struct sl_err *err)
{
    int rc;

    *t = (struct sl_trainer){.run = run, .report = report, .options = *options};
    rc = look(t, err);
    if (rc)
        sl_trainer_release(t);
    return rc;
}

static int init(struct sl_trainer *t, struct sl_err *err)
{
    int rc = look(t, err);

    if (!rc)
        rc = load_all(t, err);
    if (!rc)
        rc = resume(t, err);
    if (!rc)
        tell_start(t);
    return rc;
}

int sl_trainer_init(struct sl_trainer *t, const struct sl_run *run,
                    const struct sl_trainer_options *options, struct sl_emitter *report,
                    struct sl_control *control, struct sl_err *err)
{
    int rc;

    *t = (struct sl_trainer){
        .run = run, .report = report, .control = control, .next_step = -1};
    if (options)
        t->options = *options;
    rc = init(t, err);
    if (rc)
        sl_trainer_release(t);
    return rc;
}

void sl_trainer_release(struct sl_trainer *t)
{
    sl_trainer_unmake(t);
    sl_passes_release(&t->next);
    sl_trainer_free_trials(t);
    if (t->be)
        t->ops->close(t->be);
    sl_tokenizer_free(t->tok);
    sl_weights_close(t->weights);
    *t = (struct sl_trainer){0};
}
