/* Passes of the frozen model: rows in, losses and the encoders' gradients out. */
#include "engine/trainer.h"
#include <stdlib.h>
#include <string.h>

#define ADD_FLOATS_MAX (1 << 30) /* of one call */

/* y += x, as the bias gradient of one row. x is changed by nothing. */
static void add_floats(struct sl_trainer *t, int64_t n, float *x, float *y)
{
    for (int64_t at = 0; at < n; at += ADD_FLOATS_MAX) {
        int part = (int)(n - at < ADD_FLOATS_MAX ? n - at : ADD_FLOATS_MAX);

        t->ops->bias_act_back_f32(t->be, SL_ACT_NONE, 1, part, x + at, x + at, x + at, y + at);
    }
}

/* A packed batch and whose rows it holds. */
struct sl_pass {
    struct sl_batch batch;
    int *trial; /* [batch.n_rows] */
};

static void pass_release(struct sl_pass *p)
{
    sl_batch_release(&p->batch);
    free(p->trial);
    *p = (struct sl_pass){0};
}

static int pack(struct sl_trainer *t, const struct sl_row *rows, int n, const int64_t *slot_total,
                struct sl_pass *ret, struct sl_err *err)
{
    const struct sl_arch *arch = sl_model_arch(t->model);
    struct sl_pass p = {.trial = calloc((size_t)n + 1, sizeof *p.trial)};
    int rc = p.trial ? 0 : sl_err_set(err, SL_NOMEM, "no memory for a batch of %d rows", n);

    if (!rc)
        rc = sl_batch_pack(rows, n, t->slot_v, t->n_slots, arch->vocab, arch->max_positions,
                           !t->options.no_share, slot_total, &p.batch, err);
    if (rc) {
        free(p.trial);
        return rc;
    }
    for (int r = 0; r < n; r++)
        p.trial[r] = t->slot_trial[rows[r].slot];
    *ret = p;
    return 0;
}

/* The model on a packed batch: adds to the sums of its trials; dprompts (may be NULL) is set. */
static int run_pass(struct sl_trainer *t, const struct sl_pass *p, float *dprompts,
                    struct sl_trial_sum *sum, struct sl_err *err)
{
    const struct sl_batch *b = &p->batch;
    float *loss = malloc(((size_t)b->n_entries + 1) * sizeof *loss);
    int rc = loss ? sl_model_step(t->model, b, t->prompts, dprompts, loss, err)
                  : sl_err_set(err, SL_NOMEM, "no memory for %d losses", b->n_entries);

    for (int r = 0; r < b->n_rows && !rc; r++) {
        struct sl_trial_sum *s = &sum[p->trial[r]];

        for (int i = b->row_entry_ptr[r]; i < b->row_entry_ptr[r + 1]; i++)
            s->loss += loss[b->row_entry[i]];
        s->counted += b->row_entry_ptr[r + 1] - b->row_entry_ptr[r];
        s->useful += b->row_n[r];
    }
    free(loss);
    return rc;
}

int sl_trainer_pass(struct sl_trainer *t, const struct sl_row *rows, int n, struct sl_trial_sum *sum,
                    struct sl_err *err)
{
    struct sl_pass p;
    int rc = pack(t, rows, n, NULL, &p, err);

    if (rc)
        return rc;
    rc = run_pass(t, &p, NULL, sum, err);
    pass_release(&p);
    return rc;
}

/* ---- encoders: many small operations, the same in every step ---- */

enum phase { FORWARD, BACKWARD };

static bool takes_part(const struct sl_trial *trial, enum phase phase)
{
    return phase == FORWARD ? trial->state.ended != SL_TRIAL_DIVERGED : sl_trial_live(trial);
}

/* Of what may be captured (sl_ops.step_begin): equal for the same trials. 0: not to be captured, since dropout
 * follows the step, the backend chooses how an LSTM runs, and one trial alone has little to gain. */
static uint64_t bucket_of(const struct sl_trainer *t, enum phase phase)
{
    uint64_t h = (1469598103934665603u ^ (uint64_t)phase) * 1099511628211u;

    if (!t->ops->step_replay || t->n_trials == 1)
        return 0;
    for (int k = 0; k < t->n_trials; k++) {
        const struct sl_trial *trial = &t->trial[k];

        for (int i = 0; i < trial->n_groups; i++)
            if (sl_encoder_config(trial->group[i].encoder)->type == SL_ENC_LSTM)
                return 0;
        h = (h ^ (uint64_t)(2 * k + takes_part(trial, phase))) * 1099511628211u;
        h ^= h >> 29;
    }
    return h ? h : 1;
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

static int run_encoders(struct sl_trainer *t, enum phase phase, struct sl_err *err)
{
    uint64_t bucket = bucket_of(t, phase);

    if (bucket && t->ops->step_replay(t->be, bucket))
        return t->ops->step_end(t->be, err);
    if (bucket)
        t->ops->step_begin(t->be, bucket);
    for (int k = 0; k < t->n_trials; k++) {
        if (!takes_part(&t->trial[k], phase))
            continue;
        if (phase == FORWARD)
            sl_trial_place_tables(t, &t->trial[k], true);
        else
            back_to_encoders(t, &t->trial[k]);
    }
    return bucket ? t->ops->step_end(t->be, err) : 0;
}

/* ---- a step's rows ---- */

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

static int add_pass(struct sl_trainer *t, struct sl_passes *p, const struct sl_row *rows, int n,
                    const int64_t *slot_total, struct sl_err *err)
{
    struct sl_pass *all = realloc(p->pass, (size_t)(p->n + 1) * sizeof *all);
    int rc;

    if (!all)
        return sl_err_set(err, SL_NOMEM, "no memory for %d passes", p->n + 1);
    p->pass = all;
    rc = pack(t, rows, n, slot_total, &all[p->n], err);
    p->n += !rc;
    return rc;
}

/* The passes of one micro-batch of every trial: rows at..at+n of each. A pass takes the micro-batches of as
 * many trials as its length allows, and at least one. */
static int pack_micro(struct sl_trainer *t, const int *rows, int n_rows, int at, int n,
                      const int64_t *slot_total, struct sl_row *part, struct sl_passes *p,
                      struct sl_err *err)
{
    int64_t positions = 0;
    int used = 0, rc = 0;

    for (int k = 0; k < t->n_trials && !rc; k++) {
        int64_t longer = take_rows(&t->trial[k], rows + (size_t)k * (size_t)n_rows + at, n, part + used);

        if (used && positions + longer > t->pass_positions) {
            rc = add_pass(t, p, part, used, slot_total, err);
            memmove(part, part + used, (size_t)n * sizeof *part);
            used = 0;
            positions = 0;
        }
        used += n;
        positions += longer;
    }
    return rc ? rc : add_pass(t, p, part, used, slot_total, err);
}

int sl_trainer_pack(struct sl_trainer *t, const int *rows, int n_rows, struct sl_passes *p,
                    struct sl_err *err)
{
    int micro = t->trial[0].config->micro_batch, rc = 0;
    struct sl_row *part = calloc((size_t)micro * (size_t)t->n_trials, sizeof *part);
    int64_t *slot_total = calloc((size_t)t->n_slots, sizeof *slot_total);

    sl_passes_release(p);
    if (!part || !slot_total)
        rc = sl_err_set(err, SL_NOMEM, "no memory for a batch of %d rows", micro);
    for (int s = 0; s < t->n_slots && !rc; s++) {
        int k = t->slot_trial[s];

        for (int i = 0; i < n_rows; i++)
            slot_total[s] += sl_dataset_row_targets(t->trial[k].data->train,
                                                    rows[(size_t)k * (size_t)n_rows + (size_t)i]);
    }
    for (int i = 0; i < n_rows && !rc; i += micro)
        rc = pack_micro(t, rows, n_rows, i, n_rows - i < micro ? n_rows - i : micro, slot_total, part,
                        p, err);
    free(part);
    free(slot_total);
    if (rc)
        sl_passes_release(p);
    return rc;
}

void sl_passes_release(struct sl_passes *p)
{
    for (int i = 0; i < p->n; i++)
        pass_release(&p->pass[i]);
    free(p->pass);
    *p = (struct sl_passes){0};
}

int sl_trainer_run_passes(struct sl_trainer *t, const struct sl_passes *p, bool gradient,
                          struct sl_trial_sum *ret_sum, struct sl_err *err)
{
    struct sl_trial_sum *sum = calloc((size_t)t->n_trials, sizeof *sum);
    int rc = sum ? 0 : sl_err_set(err, SL_NOMEM, "no memory for %d sums", t->n_trials);

    if (!rc && gradient)
        rc = run_encoders(t, FORWARD, err);
    if (!rc && !gradient)
        sl_trainer_place_tables(t, false);
    for (int i = 0; i < p->n && !rc; i++) {
        rc = run_pass(t, &p->pass[i], !gradient ? NULL : i ? t->dmicro : t->dprompts, sum, err);
        if (!rc && gradient && i)
            add_floats(t, (int64_t)t->n_prompts * t->hidden, t->dmicro, t->dprompts);
    }
    if (!rc && gradient)
        rc = run_encoders(t, BACKWARD, err);
    if (!rc)
        memcpy(ret_sum, sum, (size_t)t->n_trials * sizeof *sum);
    free(sum);
    return rc;
}

int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient,
                    struct sl_trial_sum *ret_sum, struct sl_err *err)
{
    struct sl_passes p = {0};
    int rc = sl_trainer_pack(t, rows, n_rows, &p, err);

    if (!rc)
        rc = sl_trainer_run_passes(t, &p, gradient, ret_sum, err);
    sl_passes_release(&p);
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
