#include "engine/trainer.h"
#include "base/clock.h"
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- what trials tell ---- */

void sl_trial_emit(struct sl_trainer *t, const struct sl_trial *trial, json_t *event)
{
    if (event && trial->run->name[0])
        json_object_set_new(event, "trial", json_string(trial->run->name));
    sl_emit(t->report, event);
}

void sl_trial_log(struct sl_trainer *t, const struct sl_trial *trial, enum sl_level level,
                  const char *fmt, ...)
{
    char msg[SL_ERR_MSG_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    if (trial->run->name[0])
        sl_emit_log(t->report, level, "trial %s: %s", trial->run->name, msg);
    else
        sl_emit_log(t->report, level, "%s", msg);
}

bool sl_trial_live(const struct sl_trial *trial)
{
    return trial->state.ended == SL_TRIAL_TRAINS && trial->state.step < trial->steps;
}

static bool any_live(const struct sl_trainer *t)
{
    for (int k = 0; k < t->n_trials; k++)
        if (sl_trial_live(&t->trial[k]))
            return true;
    return false;
}

int sl_trial_diverged(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    struct sl_train_state *s = &trial->state;
    int left = 0;

    for (int k = 0; k < t->n_trials; k++)
        left += t->trial[k].state.ended != SL_TRIAL_DIVERGED;
    if (left <= 1)
        return t->n_trials > 1 ? sl_err_wrap(err, err->code, "every trial has diverged, the last one")
                               : err->code;
    s->ended = SL_TRIAL_DIVERGED;
    snprintf(s->failure, sizeof s->failure, "%.*s", (int)sizeof s->failure - 1, err->msg);
    sl_utf8_trim(s->failure);
    sl_err_clear(err);
    sl_trial_log(t, trial, SL_ERROR, "diverged: %s; the other trials go on", s->failure);
    t->ops->zero(t->be, trial->prompts,
                 (size_t)trial->n_prompts * (size_t)t->hidden * sizeof(float));
    return 0;
}

static double mean_loss(const struct sl_trial_sum *sum)
{
    return sum->loss / (double)(sum->counted ? sum->counted : 1);
}

/* ---- checkpoints ---- */

static int checkpoint(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_checkpoint *parts;
    bool best = false;
    int rc = sl_trainer_model_digest(t, err);

    if (rc)
        return rc;
    parts = calloc((size_t)t->n_trials, sizeof *parts);
    if (!parts)
        return sl_err_set(err, SL_NOMEM, "no memory for a checkpoint of %d trials", t->n_trials);
    for (int k = 0; k < t->n_trials; k++) {
        parts[k] = sl_trial_checkpoint(t, &t->trial[k]);
        sl_trainer_fingerprint(t, &t->trial[k].state.print);
        best |= t->trial[k].state.best_step == t->step;
    }
    rc = sl_checkpoint_save(t->run->dir, parts, t->n_trials, err);
    free(parts);
    if (rc)
        return sl_err_wrap(err, rc, "writing the checkpoint of step %lld", (long long)t->step);
    sl_emit(t->report, json_pack("{s:s, s:I, s:s, s:b}", "ev", "checkpoint", "step",
                                 (json_int_t)t->step, "path", SL_CHECKPOINT_DIR, "best", best));
    return 0;
}

/* ---- one optimizer step ---- */

/* Rows of a step in each trial's own order: all that fill whole steps; the last partial global batch of an
 * epoch is dropped. */
static int choose_rows(struct sl_trainer *t, int64_t step, int *rows, struct sl_err *err)
{
    for (int k = 0; k < t->n_trials; k++) {
        struct sl_trial *trial = &t->trial[k];
        int n = sl_dataset_rows(trial->data->train), epoch = (int)(step / trial->steps_per_epoch);

        if (!trial->order)
            trial->order = malloc((size_t)n * sizeof *trial->order);
        if (!trial->order)
            return sl_err_set(err, SL_NOMEM, "no memory for the order of %d rows", n);
        if (trial->order_epoch != epoch)
            sl_dataset_order(trial->data->train, trial->config->seed, epoch,
                             trial->config->data.shuffle, trial->order);
        trial->order_epoch = epoch;
        memcpy(rows + (size_t)k * (size_t)t->rows_per_step,
               trial->order + step % trial->steps_per_epoch * t->rows_per_step,
               (size_t)t->rows_per_step * sizeof *rows);
    }
    return 0;
}

/* t->next becomes the batches of a step. */
static int pack_step(struct sl_trainer *t, int64_t step, struct sl_err *err)
{
    int *rows, rc;

    if (t->next_step == step)
        return 0;
    rows = malloc((size_t)t->n_trials * (size_t)t->rows_per_step * sizeof *rows);
    rc = rows ? choose_rows(t, step, rows, err)
              : sl_err_set(err, SL_NOMEM, "no memory for a step of %d rows", t->rows_per_step);
    if (!rc)
        rc = sl_trainer_pack(t, rows, t->rows_per_step, &t->next, err);
    t->next_step = rc ? -1 : step;
    free(rows);
    return rc;
}

/* Queues the update of a trial whose gradients are there. */
static int update(struct sl_trainer *t, struct sl_trial *trial, double loss, struct sl_err *err)
{
    double lr = sl_schedule_lr(&trial->schedule, t->step);
    struct sl_param whole[SL_TRAINER_MAX_GROUPS];

    if (!isfinite(loss)) {
        sl_err_set(err, SL_DATA,
                   "step %lld: the loss is not a finite number; a lower learning rate (now %g) or "
                   "trainer.gradient_clip_val may help",
                   (long long)t->step + 1, lr);
        return sl_trial_diverged(t, trial, err);
    }
    for (int i = 0; i < trial->n_groups; i++)
        whole[i] = trial->group[i].whole;
    sl_optim_queue(&trial->optim, whole, trial->n_groups, (float)lr, t->step + 1);
    return 0;
}

/* A trial whose update is done. */
static void count_step(struct sl_trainer *t, struct sl_trial *trial, const struct sl_trial_sum *sum,
                       float norm, double seconds)
{
    struct sl_train_state *s = &trial->state;
    int epoch = (int)(s->step / trial->steps_per_epoch);
    double lr = sl_schedule_lr(&trial->schedule, s->step);

    s->step++;
    s->epoch = s->step / trial->steps_per_epoch;
    s->position = s->step % trial->steps_per_epoch * t->rows_per_step;
    s->tokens += sum->useful;
    s->seconds += seconds;
    sl_trial_emit(t, trial,
                  json_pack("{s:s, s:I, s:i, s:f, s:f, s:f, s:I, s:f}", "ev", "metric", "step",
                            (json_int_t)s->step, "epoch", epoch, "loss", mean_loss(sum), "lr", lr,
                            "grad_norm", (double)norm, "tokens", (json_int_t)s->tokens,
                            "tokens_per_s", (double)sum->useful / (seconds > 0 ? seconds : 1)));
}

static int step_with(struct sl_trainer *t, struct sl_trial_sum *sum, float *norm, struct sl_err *err)
{
    int64_t begun = sl_boot_us();
    double seconds;
    int rc = pack_step(t, t->step, err);

    if (rc)
        return rc;
    sl_trainer_zero_grad(t);
    rc = sl_trainer_run_passes(t, &t->next, true, sum, err);
    if (rc)
        return sl_err_wrap(err, rc, "step %lld", (long long)t->step + 1);
    for (int k = 0; k < t->n_trials && !rc; k++)
        if (sl_trial_live(&t->trial[k]))
            rc = update(t, &t->trial[k], mean_loss(&sum[k]), err);
    if (!rc && t->step + 1 < t->steps)
        rc = pack_step(t, t->step + 1, err);
    for (int k = 0; k < t->n_trials && !rc; k++) {
        if (!sl_trial_live(&t->trial[k]))
            continue;
        rc = sl_optim_norm(&t->trial[k].optim, t->step + 1, &norm[k], err);
        if (rc)
            sl_err_wrap(err, rc, "step %lld", (long long)t->step + 1);
        if (rc == SL_DATA)
            rc = sl_trial_diverged(t, &t->trial[k], err);
    }
    if (rc)
        return rc;
    seconds = (double)(sl_boot_us() - begun) / 1e6;
    for (int k = 0; k < t->n_trials; k++)
        if (sl_trial_live(&t->trial[k]))
            count_step(t, &t->trial[k], &sum[k], norm[k], seconds);
    t->step++;
    return 0;
}

static int step(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_trial_sum *sum = calloc((size_t)t->n_trials, sizeof *sum);
    float *norm = calloc((size_t)t->n_trials, sizeof *norm);
    int rc = sum && norm ? step_with(t, sum, norm, err)
                         : sl_err_set(err, SL_NOMEM, "no memory for %d trials", t->n_trials);

    free(sum);
    free(norm);
    return rc;
}

/* ---- the run ---- */

/* The tables to keep: the best validation's, or what the encoders give now. */
static int keep_tables(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    const struct sl_train_state *s = &trial->state;

    if (!trial->n_groups || s->ended == SL_TRIAL_DIVERGED)
        return 0;
    if (!trial->data->validation || !trial->config->exp.save_best_model || s->best_step < 0) {
        sl_trial_place_tables(t, trial, false);
        return 0;
    }
    sl_trial_log(t, trial, SL_INFO,
                 "keeping the tables of step %lld: val_loss %.4f (%.4f at step 0)",
                 (long long)s->best_step, s->best_val_loss, s->first_val_loss);
    return t->ops->upload(t->be, trial->prompts, trial->best,
                          (size_t)trial->n_prompts * (size_t)t->hidden * sizeof(float), err);
}

/* Where validations and checkpoints belong. A part of an epoch counts from the start of each, steps
 * from the run's. */
static bool at_boundary(const struct sl_trial *trial)
{
    int64_t step = trial->state.step;

    if (step == 0 || step == trial->steps)
        return true;
    if (trial->validate_by_epoch)
        step = (step - 1) % trial->steps_per_epoch + 1;
    return step % trial->validate_every == 0;
}

/* Of any trial that took part in the last step. */
static bool checkpoint_due(const struct sl_trainer *t)
{
    for (int k = 0; k < t->n_trials; k++)
        if (t->trial[k].state.step == t->step && at_boundary(&t->trial[k]))
            return true;
    return false;
}

bool sl_trainer_validation_due(const struct sl_trial *trial)
{
    const struct sl_train_state *s = &trial->state;

    return trial->data->validation && s->ended == SL_TRIAL_TRAINS && s->validated_step != s->step &&
           at_boundary(trial);
}

/* ret_any: some validation was due. */
static int validate_all(struct sl_trainer *t, bool *ret_any, struct sl_err *err)
{
    int rc = 0;

    for (int k = 0; k < t->n_trials && !rc; k++)
        if (sl_trainer_validation_due(&t->trial[k])) {
            *ret_any = true;
            rc = sl_trainer_validate(t, &t->trial[k], err);
        }
    return rc;
}

int sl_trainer_run(struct sl_trainer *t, enum sl_wire_want *ret_want, struct sl_err *err)
{
    bool stepped = false;
    bool trains = t->trial[0].n_groups > 0;
    int64_t saved_step = t->step; /* resumed from; step 0 needs no checkpoint */
    int rc = 0;

    for (;;) {
        enum sl_wire_want want = t->control ? sl_control_take(t->control) : SL_WANT_NOTHING;
        bool validated = false;

        if (want == SL_WANT_CANCEL || want == SL_WANT_PREEMPT) {
            if (want == SL_WANT_PREEMPT && trains)
                rc = checkpoint(t, err);
            if (rc)
                return rc;
            *ret_want = want;
            return sl_err_set(err, SL_CANCELLED, "asked to stop at step %lld", (long long)t->step);
        }
        rc = validate_all(t, &validated, err);
        if (rc == SL_CANCELLED) { /* the wish is still there */
            sl_err_clear(err);
            continue;
        }
        if (rc)
            return rc;
        if (validated)
            saved_step = -1;
        if (t->step > 0 && t->step != saved_step && (want == SL_WANT_CHECKPOINT || checkpoint_due(t))) {
            rc = checkpoint(t, err);
            saved_step = t->step;
        }
        if (!rc && want == SL_WANT_CHECKPOINT)
            continue; /* a pause follows its checkpoint: before the next step */
        if (rc || !any_live(t))
            break;
        rc = step(t, err);
        if (rc)
            break;
        if (!stepped)
            sl_trainer_tell_memory(t);
        stepped = true;
    }
    for (int k = 0; k < t->n_trials && !rc; k++)
        rc = keep_tables(t, &t->trial[k], err);
    return rc ? rc : sl_trainer_model_digest(t, err);
}
