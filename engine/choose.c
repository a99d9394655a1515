/* Labels by likelihood: each data set row is a slot of its own, so that its labels share their
 * prompt. */
#include "engine/generate_impl.h"
#include <stdlib.h>

struct scoring {
    struct sl_row *row;
    struct sl_rendered *rendered;
    int *data_row, *choice; /* [n] */
    int *slot_v;
    int n, cap, n_slots;
    int64_t positions;
};

static void scoring_release(struct scoring *s)
{
    for (int i = 0; i < s->cap; i++)
        sl_rendered_release(&s->rendered[i]);
    free(s->row);
    free(s->rendered);
    free(s->data_row);
    free(s->choice);
    free(s->slot_v);
}

static int scoring_init(struct scoring *s, int cap, struct sl_err *err)
{
    *s = (struct scoring){.cap = cap};
    s->row = calloc((size_t)cap, sizeof *s->row);
    s->rendered = calloc((size_t)cap, sizeof *s->rendered);
    s->data_row = calloc((size_t)cap, sizeof *s->data_row);
    s->choice = calloc((size_t)cap, sizeof *s->choice);
    s->slot_v = calloc((size_t)cap, sizeof *s->slot_v);
    if (!s->row || !s->rendered || !s->data_row || !s->choice || !s->slot_v) {
        s->cap = s->rendered ? cap : 0;
        scoring_release(s);
        return sl_err_set(err, SL_NOMEM, "no memory to score %d labels", cap);
    }
    return 0;
}

/* The prompts of each slot's task, one after another, on the device. NULL when there are none. */
static int slot_prompts(const struct sl_generator *g, const struct scoring *s,
                        const struct sl_dataset *ds, float **ret_prompts, struct sl_err *err)
{
    const struct sl_ops *ops = sl_model_ops(g->model);
    struct sl_backend *be = sl_model_backend(g->model);
    size_t hidden = (size_t)sl_model_arch(g->model)->hidden, total = 0, at = 0;
    void *p;
    int rc, slot = -1;

    for (int i = 0; i < s->n_slots; i++)
        total += (size_t)s->slot_v[i];
    if (!total) {
        *ret_prompts = NULL;
        return 0;
    }
    rc = ops->alloc(be, total * hidden * sizeof(float), &p, err);
    if (rc)
        return rc;
    for (int i = 0; i < s->n; i++) {
        size_t offset = 0, v = (size_t)s->slot_v[s->row[i].slot];
        int task = sl_dataset_row(ds, s->data_row[i]).slot;

        if (s->row[i].slot == slot)
            continue;
        slot = s->row[i].slot;
        for (int t = 0; t < task; t++)
            offset += (size_t)g->config->task[t].total_virtual_tokens;
        ops->copy(be, (float *)p + at * hidden, g->prompts + offset * hidden,
                  v * hidden * sizeof(float));
        at += v;
    }
    *ret_prompts = p;
    return 0;
}

static int score(const struct sl_generator *g, struct scoring *s, const struct sl_dataset *ds,
                 double *best, const char **labels, struct sl_err *err)
{
    const struct sl_arch *arch = sl_model_arch(g->model);
    struct sl_batch batch;
    float *loss = NULL, *prompts = NULL;
    int rc;

    if (!s->n)
        return 0;
    rc = sl_batch_pack(s->row, s->n, s->slot_v, s->n_slots, arch->vocab, arch->max_positions, true,
                       0, &batch, err);
    if (rc)
        return rc;
    loss = malloc((size_t)(batch.n_entries + 1) * sizeof *loss);
    if (!loss)
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d losses", batch.n_entries);
    if (!rc)
        rc = slot_prompts(g, s, ds, &prompts, err);
    if (!rc)
        rc = sl_model_step(g->model, &batch, prompts, NULL, loss, err);
    for (int i = 0; i < s->n && !rc; i++) {
        const struct sl_task *task = &g->config->task[sl_dataset_row(ds, s->data_row[i]).slot];
        double sum = 0;

        for (int k = batch.row_entry_ptr[i]; k < batch.row_entry_ptr[i + 1]; k++)
            sum -= loss[batch.row_entry[k]];
        if (!labels[s->data_row[i]] || sum > best[s->data_row[i]]) {
            best[s->data_row[i]] = sum;
            labels[s->data_row[i]] = task->choice[s->choice[i]];
        }
    }
    if (prompts)
        sl_model_ops(g->model)->free(sl_model_backend(g->model), prompts);
    free(loss);
    sl_batch_release(&batch);
    s->n = s->n_slots = 0;
    s->positions = 0;
    return rc;
}

static int add_labels(const struct sl_generator *g, struct scoring *s, const struct sl_dataset *ds,
                      int i, struct sl_err *err)
{
    int task_index = sl_dataset_row(ds, i).slot, eos = sl_tokenizer_eos(g->tok), before = s->n;
    const struct sl_task *task = &g->config->task[task_index];

    for (int c = 0; c < task->n_choices; c++) {
        struct sl_rendered *r = &s->rendered[s->n];
        int rc = sl_dataset_render(ds, i, SL_ANSWER_GIVEN, task->choice[c], r, err);

        if (rc > 0)
            continue; /* does not fit: cannot be chosen */
        if (rc)
            return rc;
        if (r->ids.n && r->ids.id[r->ids.n - 1] == eos)
            r->target[r->ids.n - 1] = 0;
        s->row[s->n] = (struct sl_row){s->n_slots, r->ids.n, r->ids.id, r->target};
        s->data_row[s->n] = i;
        s->choice[s->n] = c;
        s->positions += s->n == 0 || s->data_row[s->n - 1] != i ? r->ids.n : 4;
        s->n++;
    }
    if (s->n > before)
        s->slot_v[s->n_slots++] = g->tuned ? task->total_virtual_tokens : 0;
    return 0;
}

int sl_choose(const struct sl_generator *g, const struct sl_dataset *ds, const char ***ret_labels,
              struct sl_err *err)
{
    int n = sl_dataset_rows(ds), most = 1, rc;
    const char **labels = calloc((size_t)n + 1, sizeof *labels);
    double *best = calloc((size_t)n + 1, sizeof *best);
    struct scoring s;

    for (int t = 0; t < g->config->n_tasks; t++)
        if (g->config->task[t].n_choices > most)
            most = g->config->task[t].n_choices;
    rc = scoring_init(&s, SL_BATCH_MAX_SLOTS + most, err);
    if (!labels || !best)
        rc = sl_err_set(err, SL_NOMEM, "no memory to score %d rows", n);
    for (int i = 0; i < n && !rc; i++) {
        if (s.positions > SL_SCORE_POSITIONS || s.n + most > SL_BATCH_MAX_SLOTS) {
            rc = score(g, &s, ds, best, labels, err);
            if (!rc)
                rc = sl_generate_go_on(g, i, n, err);
        }
        if (!rc)
            rc = add_labels(g, &s, ds, i, err);
    }
    if (!rc)
        rc = score(g, &s, ds, best, labels, err);
    if (s.row)
        scoring_release(&s);
    free(best);
    if (rc) {
        free(labels);
        return sl_err_wrap(err, rc, "scoring labels");
    }
    *ret_labels = labels;
    return 0;
}

bool sl_any_choices(const struct sl_config *c)
{
    for (int i = 0; i < c->n_tasks; i++)
        if (c->task[i].n_choices)
            return true;
    return false;
}
