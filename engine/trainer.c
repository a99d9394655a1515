#include "engine/trainer.h"
#include "base/clock.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Order of one epoch: rows that fill whole steps; the last partial global batch is dropped. */
static int order_epoch(struct sl_trainer *t, int epoch, struct sl_err *err)
{
    int n = sl_dataset_rows(t->train);

    if (t->order_epoch == epoch)
        return 0;
    if (!t->order)
        t->order = malloc((size_t)n * sizeof *t->order);
    if (!t->order)
        return sl_err_set(err, SL_NOMEM, "no memory for the order of %d rows", n);
    sl_dataset_order(t->train, t->run->config.seed, epoch, t->run->config.data.shuffle, t->order);
    t->order_epoch = epoch;
    return 0;
}

static void back_to_encoders(struct sl_trainer *t)
{
    size_t block = (size_t)t->run->config.new_virtual_tokens * (size_t)t->hidden;

    for (int i = 0; i < t->n_groups; i++) {
        struct sl_trainer_group *g = &t->group[i];

        for (int k = 0; k < g->n_tasks; k++)
            t->ops->copy(t->be, g->dtables + (size_t)k * block,
                         t->dprompts + (size_t)t->slot_first[g->slot[k]] * (size_t)t->hidden,
                         block * sizeof(float));
        sl_encoder_backward(g->encoder, g->dtables);
    }
}

/* dprompts += dmicro, as the bias gradient of one row. */
static void add_micro(struct sl_trainer *t)
{
    for (int i = 0; i < t->run->config.n_tasks; i++) {
        size_t at = (size_t)t->slot_first[i] * (size_t)t->hidden;

        t->ops->bias_act_back_f32(t->be, SL_ACT_NONE, 1, t->slot_v[i] * t->hidden, t->dmicro + at,
                                  t->dmicro + at, t->dmicro + at, t->dprompts + at);
    }
}

int sl_trainer_pass(struct sl_trainer *t, const struct sl_row *rows, int n, int64_t total,
                    float *dprompts, double *sum, int64_t *counted, int64_t *useful,
                    struct sl_err *err)
{
    const struct sl_arch *arch = sl_model_arch(t->model);
    struct sl_batch batch;
    float *loss;
    int rc = sl_batch_pack(rows, n, t->slot_v, t->run->config.n_tasks, arch->vocab,
                           arch->max_positions, !t->options.no_share, (int)total, &batch, err);

    if (rc)
        return rc;
    loss = malloc(((size_t)batch.n_entries + 1) * sizeof *loss);
    if (!loss) {
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d losses", batch.n_entries);
        sl_batch_release(&batch);
        return rc;
    }
    rc = sl_model_step(t->model, &batch, t->prompts, dprompts, loss, err);
    if (!rc) {
        for (int i = 0; i < batch.n_counted; i++)
            *sum += loss[batch.row_entry[i]];
        *counted += batch.n_counted;
        *useful += batch.n_useful;
    }
    free(loss);
    sl_batch_release(&batch);
    return rc;
}

int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient,
                    double *ret_loss, int64_t *ret_counted, int64_t *ret_useful, struct sl_err *err)
{
    int micro = t->run->config.micro_batch, rc = 0;
    int64_t total = 0, counted = 0, useful = 0;
    double sum = 0;
    struct sl_row *part = malloc((size_t)micro * sizeof *part);

    if (!part)
        return sl_err_set(err, SL_NOMEM, "no memory for a batch of %d rows", micro);
    for (int i = 0; i < n_rows; i++)
        total += sl_dataset_row_targets(t->train, rows[i]);
    sl_trainer_place_tables(t, gradient);
    for (int i = 0; i < n_rows && !rc; i += micro) {
        int n = n_rows - i < micro ? n_rows - i : micro;

        for (int k = 0; k < n; k++)
            part[k] = sl_dataset_row(t->train, rows[i + k]);
        rc = sl_trainer_pass(t, part, n, total,
                             !gradient ? NULL
                             : i       ? t->dmicro
                                       : t->dprompts,
                             &sum, &counted, &useful, err);
        if (!rc && gradient && i)
            add_micro(t);
    }
    free(part);
    if (rc)
        return rc;
    if (gradient)
        back_to_encoders(t);
    *ret_loss = sum / (double)(counted ? counted : 1);
    *ret_counted = counted;
    *ret_useful = useful;
    return 0;
}

static int checkpoint(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_checkpoint c = {.params = t->params,
                              .n_params = t->n_params,
                              .ops = t->ops,
                              .be = t->be,
                              .best_tables = t->best,
                              .best_rows = t->n_keep * t->n_prompts,
                              .hidden = t->hidden};
    bool best = t->state.best_step == t->state.step;
    int rc;

    sl_fingerprint_take(t->ops, t->be, &t->state.print);
    rc = sl_checkpoint_save(t->run->dir, &c, &t->state, err);
    if (rc)
        return sl_err_wrap(err, rc, "writing the checkpoint of step %lld",
                           (long long)t->state.step);
    sl_emit(t->report,
            json_pack("{s:s, s:I, s:s, s:b}", "ev", "checkpoint", "step", (json_int_t)t->state.step,
                      "path", SL_CHECKPOINT_DIR, "best", best));
    return 0;
}

/* ---- one optimizer step ---- */

static int step(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_train_state *s = &t->state;
    int64_t counted = 0, useful = 0, begun = sl_boot_us();
    int epoch = (int)(s->step / t->steps_per_epoch);
    double loss = 0, lr = sl_schedule_lr(&t->schedule, s->step), seconds;
    float norm = 0;
    int rc = order_epoch(t, epoch, err);

    if (rc)
        return rc;
    sl_trainer_zero_grad(t);
    rc = sl_trainer_loss(t, t->order + (s->step % t->steps_per_epoch) * t->rows_per_step,
                         t->rows_per_step, true, &loss, &counted, &useful, err);
    if (!rc && !isfinite(loss))
        rc = sl_err_set(err, SL_DATA,
                        "the loss is not a finite number; a lower learning rate (now %g) or "
                        "trainer.gradient_clip_val may help",
                        lr);
    if (!rc)
        rc = sl_optim_step(&t->optim, t->params, t->n_params, (float)lr, s->step + 1, &norm, err);
    if (rc)
        return sl_err_wrap(err, rc, "step %lld", (long long)s->step + 1);
    seconds = (double)(sl_boot_us() - begun) / 1e6;
    s->step++;
    s->epoch = s->step / t->steps_per_epoch;
    s->position = s->step % t->steps_per_epoch * t->rows_per_step;
    s->tokens += useful;
    s->seconds += seconds;
    sl_emit(t->report, json_pack("{s:s, s:I, s:i, s:f, s:f, s:f, s:I, s:f}", "ev", "metric", "step",
                                 (json_int_t)s->step, "epoch", epoch, "loss", loss, "lr", lr,
                                 "grad_norm", (double)norm, "tokens", (json_int_t)s->tokens,
                                 "tokens_per_s", (double)useful / (seconds > 0 ? seconds : 1)));
    return 0;
}

/* ---- the run ---- */

/* The tables to keep: the best validation's, or what the encoders give now. */
static int keep_tables(struct sl_trainer *t, struct sl_err *err)
{
    if (!t->n_groups)
        return 0;
    if (!t->validation || !t->run->config.exp.save_best_model || t->state.best_step < 0) {
        sl_trainer_place_tables(t, false);
        return 0;
    }
    sl_emit_log(t->report, SL_INFO,
                "keeping the tables of step %lld: val_loss %.4f (%.4f at step 0)",
                (long long)t->state.best_step, t->state.best_val_loss, t->state.first_val_loss);
    return t->ops->upload(t->be, t->prompts, t->best,
                          (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float), err);
}

/* Where validations and checkpoints belong. A part of an epoch counts from the start of each, steps
 * from the run's. */
static bool at_boundary(const struct sl_trainer *t)
{
    int64_t step = t->state.step;

    if (step == 0 || step == t->steps)
        return true;
    if (t->validate_by_epoch)
        step = (step - 1) % t->steps_per_epoch + 1;
    return step % t->validate_every == 0;
}

bool sl_trainer_validation_due(const struct sl_trainer *t)
{
    return t->validation && t->state.validated_step != t->state.step && at_boundary(t);
}

int sl_trainer_run(struct sl_trainer *t, enum sl_wire_want *ret_want, struct sl_err *err)
{
    struct sl_train_state *s = &t->state;
    int64_t saved_step = s->step; /* resumed from; step 0 needs no checkpoint */
    int rc = 0;

    for (;;) {
        enum sl_wire_want want = t->control ? sl_control_take(t->control) : SL_WANT_NOTHING;

        if (want == SL_WANT_CANCEL || want == SL_WANT_PREEMPT) {
            if (want == SL_WANT_PREEMPT && t->n_groups)
                rc = checkpoint(t, err);
            if (rc)
                return rc;
            *ret_want = want;
            return sl_err_set(err, SL_CANCELLED, "asked to stop at step %lld", (long long)s->step);
        }
        if (sl_trainer_validation_due(t)) {
            rc = sl_trainer_validate(t, err);
            if (rc == SL_CANCELLED) { /* the wish is still there */
                sl_err_clear(err);
                continue;
            }
            if (rc)
                return rc;
            saved_step = -1;
        }
        if (s->step > 0 && s->step != saved_step &&
            (want == SL_WANT_CHECKPOINT || at_boundary(t))) {
            rc = checkpoint(t, err);
            saved_step = s->step;
        }
        if (!rc && want == SL_WANT_CHECKPOINT)
            continue; /* a pause follows its checkpoint: before the next step */
        if (rc || s->step >= t->steps || t->finished_early)
            break;
        rc = step(t, err);
        if (rc)
            break;
    }
    return rc ? rc : keep_tables(t, err);
}
