/* Passes of the frozen model: rows in, losses and the encoders' gradients out. */
#include "engine/trainer.h"
#include <stdlib.h>

#define ADD_FLOATS_MAX (1 << 30) /* of one call */

/* y += x, as the bias gradient of one row. x is changed by nothing. */
static void add_floats(struct sl_trainer *t, int64_t n, float *x, float *y)
{
    for (int64_t at = 0; at < n; at += ADD_FLOATS_MAX) {
        int part = (int)(n - at < ADD_FLOATS_MAX ? n - at : ADD_FLOATS_MAX);

        t->ops->bias_act_back_f32(t->be, SL_ACT_NONE, 1, part, x + at, x + at, x + at, y + at);
    }
}

int sl_trainer_pass(struct sl_trainer *t, const struct sl_row *rows, int n, const int64_t *slot_total,
                    float *dprompts, struct sl_trial_sum *sum, struct sl_err *err)
{
    const struct sl_arch *arch = sl_model_arch(t->model);
    struct sl_batch batch;
    float *loss;
    int rc = sl_batch_pack(rows, n, t->slot_v, t->n_slots, arch->vocab, arch->max_positions,
                           !t->options.no_share, slot_total, &batch, err);

    if (rc)
        return rc;
    loss = malloc(((size_t)batch.n_entries + 1) * sizeof *loss);
    if (!loss) {
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d losses", batch.n_entries);
        sl_batch_release(&batch);
        return rc;
    }
    rc = sl_model_step(t->model, &batch, t->prompts, dprompts, loss, err);
    for (int r = 0; r < n && !rc; r++) {
        struct sl_trial_sum *s = &sum[t->slot_trial[rows[r].slot]];

        for (int i = batch.row_entry_ptr[r]; i < batch.row_entry_ptr[r + 1]; i++)
            s->loss += loss[batch.row_entry[i]];
        s->counted += batch.row_entry_ptr[r + 1] - batch.row_entry_ptr[r];
        s->useful += rows[r].n;
    }
    free(loss);
    sl_batch_release(&batch);
    return rc;
}

static void back_to_encoders(struct sl_trainer *t, struct sl_trial *trial)
{
    size_t block = (size_t)trial->config->new_virtual_tokens * (size_t)t->hidden;

    for (int i = 0; i < trial->n_groups; i++) {
        struct sl_trainer_group *g = &trial->group[i];

        for (int k = 0; k < g->n_tasks; k++)
            t->ops->copy(t->be, g->dtables + (size_t)k * block,
                         t->dprompts + (size_t)t->slot_first[trial->first_slot + g->task[k]] *
                                           (size_t)t->hidden,
                         block * sizeof(float));
        sl_encoder_backward(g->encoder, g->dtables);
    }
}

/* One micro-batch of a trial, rows [n] of its training data, in the trainer's slots; returns its positions. */
static int64_t take_rows(const struct sl_trial *trial, const int *rows, int n, struct sl_row *ret)
{
    int64_t positions = 0;

    for (int i = 0; i < n; i++) {
        ret[i] = sl_dataset_row(trial->data->train, rows[i]);
        ret[i].slot += trial->first_slot;
        positions += ret[i].n;
    }
    return positions;
}

/* The passes of one micro-batch of every trial. A pass takes the micro-batches of as many trials as its
 * length allows, and at least one. */
static int micro_batch(struct sl_trainer *t, const int *rows, int n_rows, int at, int n,
                       const int64_t *slot_total, bool gradient, struct sl_row *part,
                       struct sl_trial_sum *sum, struct sl_err *err)
{
    int64_t all = (int64_t)t->n_prompts * t->hidden, positions = 0;
    int used = 0, rc = 0;
    bool first = at == 0;

    for (int k = 0; k <= t->n_trials && !rc; k++) {
        bool more = k < t->n_trials;
        int64_t longer = more ? take_rows(&t->trial[k], rows + (size_t)k * (size_t)n_rows + at, n,
                                          part + used)
                              : 0;

        if (used && (!more || positions + longer > t->pass_positions)) {
            rc = sl_trainer_pass(t, part, used, slot_total,
                                 !gradient ? NULL
                                 : first   ? t->dprompts
                                           : t->dmicro,
                                 sum, err);
            if (!rc && gradient && !first)
                add_floats(t, all, t->dmicro, t->dprompts);
            first = false;
            for (int i = 0; i < n && more; i++)
                part[i] = part[used + i];
            used = 0;
            positions = 0;
        }
        used += more ? n : 0;
        positions += longer;
    }
    return rc;
}

int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient,
                    struct sl_trial_sum *ret_sum, struct sl_err *err)
{
    int micro = t->trial[0].config->micro_batch, rc = 0;
    struct sl_row *part = malloc((size_t)micro * (size_t)t->n_trials * sizeof *part);
    int64_t *slot_total = calloc((size_t)t->n_slots, sizeof *slot_total);
    struct sl_trial_sum *sum = calloc((size_t)t->n_trials, sizeof *sum);

    if (!part || !slot_total || !sum)
        rc = sl_err_set(err, SL_NOMEM, "no memory for a batch of %d rows", micro);
    for (int s = 0; s < t->n_slots && !rc; s++) {
        int k = t->slot_trial[s];

        for (int i = 0; i < n_rows; i++)
            slot_total[s] += sl_dataset_row_targets(t->trial[k].data->train,
                                                    rows[(size_t)k * (size_t)n_rows + (size_t)i]);
    }
    if (!rc)
        sl_trainer_place_tables(t, gradient);
    for (int i = 0; i < n_rows && !rc; i += micro)
        rc = micro_batch(t, rows, n_rows, i, n_rows - i < micro ? n_rows - i : micro, slot_total,
                         gradient, part, sum, err);
    for (int k = 0; k < t->n_trials && !rc && gradient; k++)
        if (sl_trial_live(&t->trial[k]))
            back_to_encoders(t, &t->trial[k]);
    for (int k = 0; k < t->n_trials && !rc; k++)
        ret_sum[k] = sum[k];
    free(part);
    free(slot_total);
    free(sum);
    return rc;
}

void sl_trainer_zero_grad(struct sl_trainer *t)
{
    for (int k = 0; k < t->n_trials; k++)
        for (int i = 0; i < t->trial[k].n_groups; i++)
            sl_encoder_zero_grad(t->trial[k].group[i].encoder);
}

void sl_trial_place_tables(struct sl_trainer *t, struct sl_trial *trial, bool training)
{
    size_t block = (size_t)trial->config->new_virtual_tokens * (size_t)t->hidden;

    for (int i = 0; i < trial->n_groups; i++) {
        struct sl_trainer_group *g = &trial->group[i];

        sl_encoder_forward(g->encoder, training, trial->state.step, g->tables);
        for (int k = 0; k < g->n_tasks; k++)
            t->ops->copy(t->be,
                         t->prompts + (size_t)t->slot_first[trial->first_slot + g->task[k]] *
                                          (size_t)t->hidden,
                         g->tables + (size_t)k * block, block * sizeof(float));
    }
}

void sl_trainer_place_tables(struct sl_trainer *t, bool training)
{
    for (int k = 0; k < t->n_trials; k++)
        if (t->trial[k].state.ended != SL_TRIAL_DIVERGED)
            sl_trial_place_tables(t, &t->trial[k], training);
}
