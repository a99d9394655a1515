/* The memory of a run before it is loaded: its largest micro-batch, what it takes, and what would
 * do where that is too much. */
#include "engine/trainer.h"
#include <stdlib.h>
#include <string.h>

/* Rows whose micro-batches are looked at. In a longer run a later micro-batch may be larger: then
 * the arena grows. */
#define MAX_VISITS (INT64_C(1) << 24)

/* What a row adds to a packed batch. */
struct cost {
    int positions, own, own_virtual, targets; /* own: behind what all rows of its task begin with */
};

/* Rows of one trainer data, and by task what they all begin with: they may share more, never less.
 */
struct costs {
    struct cost *row;
    int *shared, *shared_virtual;
};

static int virtual_in(const struct sl_row *row, int from, int to)
{
    int n = 0;
    for (int i = from; i < to; i++)
        n += row->id[i] < 0;
    return n;
}

static void costs_release(struct costs *c)
{
    free(c->row);
    free(c->shared);
    free(c->shared_virtual);
}

static int costs_of(const struct sl_dataset *ds, int n_tasks, bool share, struct costs *c,
                    struct sl_err *err)
{
    int n = sl_dataset_rows(ds), *first = calloc((size_t)n_tasks, sizeof *first);

    c->row = calloc((size_t)n, sizeof *c->row);
    c->shared = calloc((size_t)n_tasks, sizeof *c->shared);
    c->shared_virtual = calloc((size_t)n_tasks, sizeof *c->shared_virtual);
    if (!first || !c->row || !c->shared || !c->shared_virtual) {
        free(first);
        return sl_err_set(err, SL_NOMEM, "no memory for the plan of %d rows", n);
    }
    for (int i = 0; i < n; i++) { /* first: the task's first row, counted from 1 */
        struct sl_row row = sl_dataset_row(ds, i), start;
        int *len = &c->shared[row.slot], same = 0;

        if (!first[row.slot]) {
            first[row.slot] = i + 1;
            *len = share ? row.n - 1 : 0;
            continue;
        }
        start = sl_dataset_row(ds, first[row.slot] - 1);
        *len = row.n - 1 < *len ? row.n - 1 : *len;
        while (same < *len && row.id[same] == start.id[same])
            same++;
        *len = same;
    }
    for (int i = 0; i < n; i++) {
        struct sl_row row = sl_dataset_row(ds, i);
        int len = c->shared[row.slot];

        c->shared_virtual[row.slot] = virtual_in(&row, 0, len);
        c->row[i] = (struct cost){row.n, row.n - len, virtual_in(&row, len, row.n),
                                  sl_dataset_row_targets(ds, i)};
    }
    free(first);
    return 0;
}

/* ---- the passes of all steps, as trainer_pass.c makes them */

struct walk {
    const struct sl_trainer *t;
    struct costs *costs; /* [n_data] */
    int **order;         /* [n_trials] */
    int *order_epoch;
    int64_t *seen; /* [n_slots] the pass that had the slot last */
    int64_t pass;
    int64_t rows, positions, packed, n_virtual, targets, seqs; /* of this pass */
    struct sl_batch most;
};

static int bounded(int64_t n)
{
    return n < INT32_MAX ? (int)n : INT32_MAX;
}

static void raise(int *most, int64_t n)
{
    *most = bounded(n) > *most ? bounded(n) : *most;
}

static void end_pass(struct walk *w)
{
    struct sl_batch *m = &w->most;

    raise(&m->n_rows, w->rows);
    raise(&m->n_tokens, w->packed);
    raise(&m->n_virtual, w->n_virtual);
    raise(&m->n_counted, w->targets);
    raise(&m->n_seqs, w->seqs);
    raise(&m->n_out, w->targets < w->packed ? w->targets : w->packed);
    w->rows = w->positions = w->packed = w->n_virtual = w->targets = w->seqs = 0;
    w->pass++;
}

static void add_row(struct walk *w, const struct sl_trial *trial, const struct costs *c, int row)
{
    int task = sl_dataset_row(trial->data->train, row).slot, slot = trial->first_slot + task;

    w->rows++;
    w->seqs++;
    w->positions += c->row[row].positions;
    w->packed += c->row[row].own;
    w->n_virtual += c->row[row].own_virtual;
    w->targets += c->row[row].targets;
    if (w->seen[slot] == w->pass)
        return;
    w->seen[slot] = w->pass;
    w->seqs++;
    w->packed += c->shared[task];
    w->n_virtual += c->shared_virtual[task];
}

static int order_of(struct walk *w, int k, int64_t step, struct sl_err *err)
{
    const struct sl_trial *trial = &w->t->trial[k];
    int n = sl_dataset_rows(trial->data->train), epoch = (int)(step / trial->steps_per_epoch);

    if (!w->order[k])
        w->order[k] = malloc((size_t)n * sizeof **w->order);
    if (!w->order[k])
        return sl_err_set(err, SL_NOMEM, "no memory for the order of %d rows", n);
    if (w->order_epoch[k] != epoch)
        sl_dataset_order(trial->data->train, trial->config->seed, epoch,
                         trial->config->data.shuffle, w->order[k]);
    w->order_epoch[k] = epoch;
    return 0;
}

static int walk_step(struct walk *w, int64_t step, int micro, struct sl_err *err)
{
    const struct sl_trainer *t = w->t;
    int rc = 0;

    for (int at = 0; at < t->rows_per_step; at += micro) {
        int n = t->rows_per_step - at < micro ? t->rows_per_step - at : micro;

        for (int k = 0; k < t->n_trials; k++) {
            const struct sl_trial *trial = &t->trial[k];
            const struct costs *c = &w->costs[trial->data - t->data];
            int64_t longer = 0;
            const int *row;

            rc = order_of(w, k, step, err);
            if (rc)
                return rc;
            row = w->order[k] + step % trial->steps_per_epoch * t->rows_per_step + at;
            for (int i = 0; i < n; i++)
                longer += c->row[row[i]].positions;
            if (w->rows && w->positions + longer > t->pass_positions)
                end_pass(w);
            for (int i = 0; i < n; i++)
                add_row(w, trial, c, row[i]);
        }
        end_pass(w);
    }
    return 0;
}

static void count_arrays(const struct sl_trainer *t, struct sl_batch *b)
{
    b->n_slots = t->n_slots;
    b->n_prompts = t->n_prompts;
    b->n_entries = b->n_counted;
    b->n_out_seqs = b->n_seqs;
    b->memory_bytes = sl_batch_bytes(b);
}

/* The largest counts of any pass with micro-batches of so many rows. */
static int largest(const struct sl_trainer *t, struct costs *costs, int micro,
                   struct sl_batch *ret_most, struct sl_err *err)
{
    struct walk w = {.t = t, .costs = costs, .pass = 1};
    int64_t visits = 0, each = (int64_t)t->rows_per_step * t->n_trials;
    int rc = 0;

    w.order = calloc((size_t)t->n_trials, sizeof *w.order);
    w.order_epoch = malloc((size_t)t->n_trials * sizeof *w.order_epoch);
    w.seen = calloc((size_t)t->n_slots + 1, sizeof *w.seen);
    if (!w.order || !w.order_epoch || !w.seen)
        rc = sl_err_set(err, SL_NOMEM, "no memory for the plan of %d trials", t->n_trials);
    for (int k = 0; k < t->n_trials && !rc; k++)
        w.order_epoch[k] = -1;
    for (int64_t step = 0; step < t->steps && visits < MAX_VISITS && !rc; step++, visits += each)
        rc = walk_step(&w, step, micro, err);
    for (int k = 0; w.order && k < t->n_trials; k++)
        free(w.order[k]);
    free(w.order);
    free(w.order_epoch);
    free(w.seen);
    if (rc)
        return rc;
    count_arrays(t, &w.most);
    *ret_most = w.most;
    return 0;
}

/* Counts that no validation pass exceeds, cut as trainer_validate.c does it, but for what rows
 * share. */
static struct sl_batch validation_pass(const struct sl_trainer *t)
{
    struct sl_batch most = {0};

    for (int d = 0; d < t->n_data; d++) {
        const struct sl_dataset *ds = t->data[d].validation;
        int64_t rows = 0, positions = 0, targets = 0;

        for (int i = 0; ds && i < sl_dataset_rows(ds); i++) {
            struct sl_row row = sl_dataset_row(ds, i);

            if (rows == SL_BATCH_MAX_ROWS || (rows && positions + row.n > SL_VALIDATION_POSITIONS))
                rows = positions = targets = 0;
            rows++;
            positions += row.n;
            targets += sl_dataset_row_targets(ds, i);
            raise(&most.n_rows, rows);
            raise(&most.n_tokens, positions);
            raise(&most.n_counted, targets);
        }
    }
    if (!most.n_tokens)
        return most;
    most.n_virtual = most.n_tokens;
    most.n_out = most.n_counted;
    most.n_seqs = most.n_rows + t->n_slots;
    count_arrays(t, &most);
    return most;
}

/* ---- the plan */

/* What stays for the whole run, made on a backend that only counts; the model is left for the
 * step's layout. */
static int count_persistent(struct sl_trainer *t, struct sl_plan *p, struct sl_err *err)
{
    struct sl_backend_info info;
    int64_t floats = 0, best = 0;
    int rc = sl_trainer_make(t, err);

    if (rc)
        return rc;
    t->ops->info(t->be, &info);
    for (int k = 0; k < t->n_trials; k++) {
        const struct sl_trial *trial = &t->trial[k];
        int keep = trial->config->exp.save_top_k;

        for (int i = 0; i < trial->n_params; i++)
            floats += (int64_t)trial->params[i].rows * trial->params[i].cols;
        best += (int64_t)(keep < 1                        ? 1
                          : keep > SL_CHECKPOINT_MAX_BEST ? SL_CHECKPOINT_MAX_BEST
                                                          : keep) *
                trial->n_prompts * t->hidden;
    }
    p->layers = sl_model_arch(t->model)->layers;
    p->persistent = info.given_bytes;
    p->weights = sl_model_weight_bytes(t->model);
    p->encoder_parameters = p->encoder_gradients = floats * (int64_t)sizeof(float);
    p->encoder_moments = 2 * p->encoder_parameters;
    p->others = p->persistent - p->weights - 4 * p->encoder_parameters;
    p->checkpoint = (3 * floats + (floats ? best : 0)) * (int64_t)sizeof(float);
    return 0;
}

/* "model.micro_batch_size 6 fits" and the like: what to change, and to what. */
static int advise(const struct sl_trainer *t, struct costs *costs, const struct sl_plan *p,
                  const struct sl_batch *forward, struct sl_buf *text, struct sl_err *err)
{
    struct sl_plan q = *p;
    int fits = 0, rc = 0;

    for (int low = 1, high = p->micro_batch - 1; low <= high && !rc;) {
        int micro = low + (high - low) / 2;

        rc = largest(t, costs, micro, &q.most, err);
        if (rc)
            return rc;
        sl_plan_choose(&q, t->model, forward);
        if (sl_plan_fits(&q)) {
            fits = micro;
            low = micro + 1;
        } else {
            high = micro - 1;
        }
    }
    if (fits) {
        sl_buf_addf(text, "; model.micro_batch_size %d fits (now %d)", fits, p->micro_batch);
        return 0;
    }
    q.most = (struct sl_batch){.n_rows = 1, .n_seqs = 2};
    int longest = 0;
    for (int low = 1, high = p->most.n_tokens; low <= high;) { /* one row of how many positions? */
        int n = low + (high - low) / 2;

        q.most.n_tokens = q.most.n_out = q.most.n_counted = n;
        q.most.n_virtual = n < p->most.n_virtual ? n : p->most.n_virtual;
        count_arrays(t, &q.most);
        sl_plan_choose(&q, t->model, forward);
        if (sl_plan_fits(&q)) {
            longest = n;
            low = n + 1;
        } else {
            high = n - 1;
        }
    }
    if (longest > 1)
        sl_buf_addf(text, "; model.micro_batch_size 1 and model.data.max_seq_length %d fit",
                    longest);
    else
        sl_buf_adds(text, "; no micro-batch fits beside what stays");
    return 0;
}

static int too_large(struct sl_trainer *t, struct costs *costs, const struct sl_plan *p,
                     const struct sl_batch *forward, struct sl_err *err)
{
    char total[SL_BYTES_TEXT_MAX], have[SL_BYTES_TEXT_MAX], weights[SL_BYTES_TEXT_MAX],
        encoder[SL_BYTES_TEXT_MAX], step[SL_BYTES_TEXT_MAX];
    struct sl_buf text;
    int rc;

    sl_buf_init(&text, SL_ERR_MSG_MAX / 2);
    rc = advise(t, costs, p, forward, &text, err);
    if (!rc)
        rc = sl_err_set(
            err, SL_NOMEM,
            "out of memory before the first step: this run takes %s of %s: weights %s, prompt "
            "encoders with gradients "
            "and moments %s, a micro-batch of %d rows and at most %d packed positions %s%s%s",
            sl_bytes_text(p->total, total), sl_bytes_text(p->device.memory_bytes, have),
            sl_bytes_text(p->weights, weights), sl_bytes_text(4 * p->encoder_parameters, encoder),
            p->most.n_rows, p->most.n_tokens, sl_bytes_text(p->arena, step),
            p->recompute ? ", with every layer but the last computed again in the backward pass"
                         : "",
            text.p);
    sl_buf_release(&text);
    return rc;
}

static int plan_with(struct sl_trainer *t, struct costs *costs, struct sl_plan *p, bool explain,
                     struct sl_err *err)
{
    struct sl_batch forward = validation_pass(t);
    int rc = 0, micro = t->trial[0].config->micro_batch;

    p->micro_batch = micro;
    p->n_trials = t->n_trials;
    if (t->trial[0].data->train)
        rc = largest(t, costs, micro, &p->most, err);
    if (!rc)
        rc = count_persistent(t, p, err);
    if (rc)
        return rc;
    if (t->options.recompute)
        sl_plan_set(p, t->model, &forward, t->options.recompute);
    else
        sl_plan_choose(p, t->model, &forward);
    /* shorter passes cost less than computing layers again */
    while (!t->options.recompute && t->n_trials > 1 && p->recompute && t->pass_positions > 1) {
        t->pass_positions /= 2;
        rc = largest(t, costs, micro, &p->most, err);
        if (rc)
            return rc;
        sl_plan_choose(p, t->model, &forward);
    }
    return explain && !sl_plan_fits(p) ? too_large(t, costs, p, &forward, err) : 0;
}

static int plan(struct sl_trainer *t, const struct sl_plan_device *device, bool explain,
                struct sl_plan *ret_plan, struct sl_err *err)
{
    const struct sl_ops *ops = t->ops;
    struct sl_backend *be = t->be;
    struct costs *costs = calloc((size_t)t->n_data + 1, sizeof *costs);
    struct sl_plan p = {.device = *device};
    int rc = costs ? 0 : sl_err_set(err, SL_NOMEM, "no memory for a plan");

    for (int d = 0; d < t->n_data && !rc; d++)
        if (t->data[d].train)
            rc = costs_of(t->data[d].train, t->data[d].of->config.n_tasks, !t->options.no_share,
                          &costs[d], err);
    t->pass_positions = device->accelerator ? SL_PASS_POSITIONS_DEVICE : SL_PASS_POSITIONS_CPU;
    if (!rc)
        rc = sl_count_open(device, &t->ops, &t->be, err);
    if (!rc) {
        rc = plan_with(t, costs, &p, explain, err);
        sl_trainer_unmake(t);
        t->ops->close(t->be);
    }
    t->ops = ops;
    t->be = be;
    for (int d = 0; costs && d < t->n_data; d++)
        costs_release(&costs[d]);
    free(costs);
    if (!rc)
        *ret_plan = p;
    return rc;
}

int sl_trainer_plan_for(struct sl_trainer *t, const struct sl_plan_device *device,
                        struct sl_plan *ret_plan, struct sl_err *err)
{
    return plan(t, device, false, ret_plan, err);
}

int sl_trainer_too_large(struct sl_trainer *t, const struct sl_plan_device *device,
                         struct sl_err *err)
{
    struct sl_plan_device smaller = *device;
    struct sl_err why = SL_ERR_INIT;
    struct sl_plan p, q;
    char bytes[SL_BYTES_TEXT_MAX];
    int rc = plan(t, device, true, &p, &why);

    smaller.precision = SL_PRECISION_INT8;
    if (rc == SL_NOMEM && device->precision != SL_PRECISION_INT8 &&
        !sl_trainer_plan_for(t, &smaller, &q, NULL))
        return sl_err_set(err, rc, "%s; trainer.precision int8 takes %s of weights%s", why.msg,
                          sl_bytes_text(q.weights, bytes), sl_plan_fits(&q) ? " and fits" : "");
    return rc ? sl_err_set(err, rc, "%s", why.msg) : 0;
}

int sl_trainer_fit(struct sl_trainer *t, struct sl_err *err)
{
    char total[SL_BYTES_TEXT_MAX], have[SL_BYTES_TEXT_MAX], again[SL_PLAN_AGAIN_MAX];
    struct sl_plan_device device = {.precision = t->trial[0].config->trainer.precision};
    struct sl_backend_info info;
    int rc;

    t->ops->info(t->be, &info);
    device.accelerator = info.accelerator;
    device.memory_bytes = info.memory_bytes;
    device.open = true;
    if (t->options.memory_bytes &&
        (!info.memory_bytes || t->options.memory_bytes < info.memory_bytes)) {
        device.memory_bytes = t->options.memory_bytes;
        device.open = false;
    }
    rc = sl_trainer_plan_for(t, &device, &t->plan, err);
    if (!rc && !sl_plan_fits(&t->plan))
        rc = sl_trainer_too_large(t, &device, err);
    if (!rc && t->plan.recompute)
        sl_emit_log(t->report, SL_INFO,
                    "memory: %s of %s; in the backward pass %s",
                    sl_bytes_text(t->plan.total, total), sl_bytes_text(device.memory_bytes, have),
                    sl_plan_again(&t->plan, again));
    return rc;
}

void sl_trainer_tell_memory(struct sl_trainer *t)
{
    char taken[SL_BYTES_TEXT_MAX], planned[SL_BYTES_TEXT_MAX];
    struct sl_backend_info info;

    if (!t->ops->memory_left)
        return;
    t->ops->info(t->be, &info);
    sl_emit_log(t->report, SL_INFO,
                "memory: %s taken after the first step, %s planned, the device's context left out",
                sl_bytes_text(info.memory_bytes - t->ops->memory_left(t->be), taken),
                sl_bytes_text(t->plan.total - t->plan.outside, planned));
}
