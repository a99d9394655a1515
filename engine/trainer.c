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

/* The encoder's tables into their tasks' rows of prompts. */
static void place_tables(struct sl_trainer *t, bool training)
{
    size_t block = (size_t)t->run->config.new_virtual_tokens * (size_t)t->hidden;

    sl_encoder_forward(t->encoder, training, t->state.step, t->tables);
    for (int i = 0; i < t->n_new; i++)
        t->ops->copy(t->be, t->prompts + (size_t)t->slot_first[t->new_slot[i]] * (size_t)t->hidden,
                     t->tables + (size_t)i * block, block * sizeof(float));
}

static void back_to_encoder(struct sl_trainer *t)
{
    size_t block = (size_t)t->run->config.new_virtual_tokens * (size_t)t->hidden;

    for (int i = 0; i < t->n_new; i++)
        t->ops->copy(t->be, t->dtables + (size_t)i * block,
                     t->dprompts + (size_t)t->slot_first[t->new_slot[i]] * (size_t)t->hidden,
                     block * sizeof(float));
    sl_encoder_backward(t->encoder, t->dtables);
}

/* Packs and runs rows; adds sum(loss) over counted tokens and their number. total: divisor of the gradient. */
static int pass(struct sl_trainer *t, const struct sl_row *rows, int n, int64_t total, bool gradient,
                double *sum, int64_t *counted, int64_t *useful, struct sl_err *err)
{
    const struct sl_arch *arch = sl_model_arch(t->model);
    struct sl_batch batch;
    float *loss;
    int rc = sl_batch_pack(rows, n, t->slot_v, t->run->config.n_tasks, arch->vocab, arch->max_positions,
                           !t->options.no_share, (int)total, &batch, err);

    if (rc)
        return rc;
    loss = malloc(((size_t)batch.n_entries + 1) * sizeof *loss);
    if (!loss) {
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d losses", batch.n_entries);
        sl_batch_release(&batch);
        return rc;
    }
    rc = sl_model_step(t->model, &batch, t->prompts, gradient ? t->dprompts : NULL, loss, err);
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

int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient, double *ret_loss,
                    int64_t *ret_counted, int64_t *ret_useful, struct sl_err *err)
{
    int micro = t->run->config.micro_batch, rc = 0;
    int64_t total = 0, counted = 0, useful = 0;
    double sum = 0;
    struct sl_row *part = malloc((size_t)micro * sizeof *part);

    if (!part)
        return sl_err_set(err, SL_NOMEM, "no memory for a batch of %d rows", micro);
    for (int i = 0; i < n_rows; i++)
        total += sl_dataset_row_targets(t->train, rows[i]);
    place_tables(t, gradient);
    for (int i = 0; i < n_rows && !rc; i += micro) {
        int n = n_rows - i < micro ? n_rows - i : micro;

        for (int k = 0; k < n; k++)
            part[k] = sl_dataset_row(t->train, rows[i + k]);
        rc = pass(t, part, n, total, gradient, &sum, &counted, &useful, err);
        if (!rc && gradient)
            back_to_encoder(t);
    }
    free(part);
    if (rc)
        return rc;
    *ret_loss = sum / (double)(counted ? counted : 1);
    *ret_counted = counted;
    *ret_useful = useful;
    return 0;
}

int sl_trainer_validate(struct sl_trainer *t, double *ret_loss, struct sl_err *err)
{
    int n = sl_dataset_rows(t->validation), rc = 0, used = 0;
    int64_t counted = 0, useful = 0, positions = 0;
    double sum = 0;
    struct sl_row *part = malloc((size_t)n * sizeof *part);

    if (!part)
        return sl_err_set(err, SL_NOMEM, "no memory for %d validation rows", n);
    place_tables(t, false);
    for (int i = 0; i <= n && !rc; i++) {
        struct sl_row row = {0};

        if (i < n)
            row = sl_dataset_row(t->validation, i);
        if (used && (i == n || positions + row.n > SL_VALIDATION_POSITIONS)) {
            rc = pass(t, part, used, 0, false, &sum, &counted, &useful, err);
            used = 0;
            positions = 0;
        }
        if (i < n) {
            part[used++] = row;
            positions += row.n;
        }
    }
    free(part);
    if (!rc)
        *ret_loss = sum / (double)(counted ? counted : 1);
    return rc;
}

/* ---- validation's consequences: best table, early stopping, save_top_k ---- */

static void note_best_of_k(struct sl_trainer *t, double loss)
{
    struct sl_train_state *s = &t->state;
    int keep = t->run->config.exp.save_top_k, at = s->n_best;

    if (keep > SL_CHECKPOINT_MAX_BEST)
        keep = SL_CHECKPOINT_MAX_BEST;
    while (at > 0 && loss < s->best[at - 1].val_loss)
        at--;
    if (at >= keep)
        return;
    if (s->n_best < keep)
        s->n_best++;
    memmove(&s->best[at + 1], &s->best[at], (size_t)(s->n_best - at - 1) * sizeof *s->best);
    s->best[at] = (struct sl_best){s->step, loss};
}

static int validate(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_train_state *s = &t->state;
    double loss = 0;
    int rc = sl_trainer_validate(t, &loss, err);
    bool first = s->best_step < 0, better;

    if (!rc && !isfinite(loss))
        rc =
            sl_err_set(err, SL_DATA,
                       "val_loss is not a finite number; a lower learning rate (model.optim.lr %g) "
                       "or trainer.gradient_clip_val may help",
                       t->run->config.optim.lr);
    if (rc)
        return sl_err_wrap(err, rc, "validation at step %lld", (long long)s->step);
    better = first || loss < s->best_val_loss;
    if (s->step == 0)
        s->first_val_loss = loss;
    if (better) {
        rc = t->ops->download(t->be, t->best, t->prompts,
                              (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float), err);
        if (rc)
            return rc;
        s->best_val_loss = loss;
        s->best_step = s->step;
    }
    if (first || loss < s->stop_best - c->exp.min_delta) {
        s->stop_best = loss;
        s->stop_waited = 0;
    } else {
        s->stop_waited++;
    }
    note_best_of_k(t, loss);
    sl_emit(t->report, json_pack("{s:s, s:I, s:f, s:b}", "ev", "metric", "step",
                                         (json_int_t)s->step, "val_loss", loss, "best", better));
    if (c->exp.early_stopping && s->stop_waited >= c->exp.patience && s->step > 0) {
        sl_emit_log(t->report, SL_INFO,
                      "early stopping at step %lld: val_loss has not improved by %g in %d validations",
                      (long long)s->step, c->exp.min_delta, c->exp.patience);
        t->finished_early = true;
    }
    return 0;
}

static int checkpoint(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_checkpoint c = {.ops = t->ops,
                              .be = t->be,
                              .best_tables = t->best,
                              .best_rows = t->n_prompts,
                              .hidden = t->hidden};
    bool best = t->state.best_step == t->state.step;
    int rc;

    c.params = sl_encoder_params(t->encoder, &c.n_params);
    sl_fingerprint_take(t->ops, t->be, &t->state.print);
    rc = sl_checkpoint_save(t->run->dir, &c, &t->state, err);
    if (rc)
        return sl_err_wrap(err, rc, "writing the checkpoint of step %lld", (long long)t->state.step);
    sl_emit(t->report,
                    json_pack("{s:s, s:I, s:s, s:b}", "ev", "checkpoint", "step",
                              (json_int_t)t->state.step, "path", SL_CHECKPOINT_DIR, "best", best));
    return 0;
}

/* ---- one optimizer step ---- */

static int step(struct sl_trainer *t, struct sl_err *err)
{
    struct sl_train_state *s = &t->state;
    int64_t counted = 0, useful = 0, begun = sl_boot_us();
    int epoch = (int)(s->step / t->steps_per_epoch), n_params;
    struct sl_param *params = sl_encoder_params(t->encoder, &n_params);
    double loss = 0, lr = sl_schedule_lr(&t->schedule, s->step), seconds;
    float norm = 0;
    int rc = order_epoch(t, epoch, err);

    if (rc)
        return rc;
    sl_encoder_zero_grad(t->encoder);
    rc = sl_trainer_loss(t, t->order + (s->step % t->steps_per_epoch) * t->rows_per_step,
                         t->rows_per_step, true, &loss, &counted, &useful, err);
    if (!rc && !isfinite(loss))
        rc = sl_err_set(err, SL_DATA,
                        "the loss is not a finite number; a lower learning rate (now %g) or "
                        "trainer.gradient_clip_val may help",
                        lr);
    if (!rc)
        rc = sl_optim_step(&t->optim, params, n_params, (float)lr, s->step + 1, &norm, err);
    if (rc)
        return sl_err_wrap(err, rc, "step %lld", (long long)s->step + 1);
    seconds = (double)(sl_boot_us() - begun) / 1e6;
    s->step++;
    s->epoch = s->step / t->steps_per_epoch;
    s->position = s->step % t->steps_per_epoch * t->rows_per_step;
    s->tokens += useful;
    s->seconds += seconds;
    sl_emit(t->report,
                    json_pack("{s:s, s:I, s:i, s:f, s:f, s:f, s:I, s:f}", "ev", "metric", "step",
                              (json_int_t)s->step, "epoch", epoch, "loss", loss, "lr", lr, "grad_norm",
                              (double)norm, "tokens", (json_int_t)s->tokens, "tokens_per_s",
                              (double)useful / (seconds > 0 ? seconds : 1)));
    return 0;
}

/* The tables to keep: the best validation's, or what the encoder gives now. */
static int keep_tables(struct sl_trainer *t, struct sl_err *err)
{
    if (!t->validation || !t->run->config.exp.save_best_model || t->state.best_step < 0) {
        place_tables(t, false);
        return 0;
    }
    sl_emit_log(t->report, SL_INFO, "keeping the tables of step %lld: val_loss %.4f (%.4f at step 0)",
                  (long long)t->state.best_step, t->state.best_val_loss, t->state.first_val_loss);
    return t->ops->upload(t->be, t->prompts, t->best,
                          (size_t)t->n_prompts * (size_t)t->hidden * sizeof(float), err);
}

int sl_trainer_run(struct sl_trainer *t, enum sl_wire_want *ret_want, struct sl_err *err)
{
    struct sl_train_state *s = &t->state;
    int rc = 0;

    if (t->validation && s->step == 0 && s->best_step < 0)
        rc = validate(t, err);
    while (!rc && s->step < t->steps && !t->finished_early) {
        enum sl_wire_want want = t->control ? sl_control_take(t->control) : SL_WANT_NOTHING;
        bool saved = false;

        if (want == SL_WANT_CANCEL || want == SL_WANT_PREEMPT) {
            if (want == SL_WANT_PREEMPT)
                rc = checkpoint(t, err);
            if (rc)
                break;
            *ret_want = want;
            return sl_err_set(err, SL_CANCELLED, "asked to stop at step %lld", (long long)s->step);
        }
        rc = step(t, err);
        if (!rc && (s->step % t->validate_every == 0 || s->step == t->steps)) {
            if (t->validation)
                rc = validate(t, err);
            if (!rc)
                rc = checkpoint(t, err);
            saved = true;
        }
        if (!rc && want == SL_WANT_CHECKPOINT && !saved)
            rc = checkpoint(t, err);
    }
    return rc ? rc : keep_tables(t, err);
}
