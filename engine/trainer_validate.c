/* Validation: the loss over the validation rows, a metric of generated answers, and what follows
 * from them. */
#include "engine/generate.h"
#include "engine/data/metrics.h"
#include "engine/trainer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool asked_to_stop(const struct sl_trainer *t)
{
    enum sl_wire_want want = t->control ? sl_control_take(t->control) : SL_WANT_NOTHING;

    return want == SL_WANT_CANCEL ||
           want == SL_WANT_PREEMPT; /* a checkpoint follows a validation anyway */
}

/* Mean loss over the validation rows' counted tokens. */
static int loss_of_rows(struct sl_trainer *t, const struct sl_trial *trial, double *ret_loss,
                        struct sl_err *err)
{
    int n = sl_dataset_rows(trial->data->validation), k = (int)(trial - t->trial), rc = 0, used = 0;
    int64_t positions = 0;
    struct sl_row *part = malloc((size_t)n * sizeof *part);
    struct sl_trial_sum *sum = calloc((size_t)t->n_trials, sizeof *sum);

    if (!part || !sum)
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d validation rows", n);
    for (int i = 0; i <= n && !rc; i++) {
        struct sl_row row = {0};

        if (i < n)
            row = sl_dataset_row(trial->data->validation, i);
        row.slot += trial->first_slot;
        if (used &&
            (i == n || used == SL_BATCH_MAX_ROWS || positions + row.n > SL_VALIDATION_POSITIONS)) {
            rc = asked_to_stop(t)
                     ? sl_err_set(err, SL_CANCELLED, "asked to stop")
                     : sl_trainer_pass(t, part, used, sum, err);
            used = 0;
            positions = 0;
        }
        if (i < n) {
            part[used++] = row;
            positions += row.n;
        }
    }
    if (!rc)
        *ret_loss = sum[k].loss / (double)(sum[k].counted ? sum[k].counted : 1);
    free(part);
    free(sum);
    return rc;
}

/* validation_metric of what is generated for the validation rows with the tables of now. */
static int metric_of_rows(struct sl_trainer *t, const struct sl_trial *trial, double *ret_score,
                          struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    const struct sl_trainer_data *data = trial->data;
    const struct sl_generator g = {.model = t->model,
                                   .tok = t->tok,
                                   .config = c,
                                   .tuned = trial->n_prompts > 0,
                                   .prompts = trial->prompts,
                                   .control = t->control,
                                   .cache_bytes = sl_plan_cache_bytes(&t->plan, SL_GENERATE_CACHE_BYTES),
                                   .phase = "answering the validation rows"};
    int n = sl_dataset_rows(data->asked), rc;
    char **texts = NULL;

    rc = sl_generate(&g, data->asked, &texts, err);
    if (!rc)
        rc = sl_metric_corpus(c->validation_metric, (const char *const *)texts,
                              (const char *const *)data->answers, n, ret_score, err);
    sl_texts_free(texts, n);
    return rc;
}

/* Puts the tables of now among the best ones if they belong there. */
static int note_best(struct sl_trainer *t, struct sl_trial *trial, double loss, struct sl_err *err)
{
    struct sl_train_state *s = &trial->state;
    size_t block = (size_t)trial->n_prompts * (size_t)t->hidden;
    int at = s->n_best;

    while (at > 0 && loss < s->best[at - 1].val_loss)
        at--;
    if (at >= trial->n_keep)
        return 0;
    if (s->n_best < trial->n_keep)
        s->n_best++;
    memmove(&s->best[at + 1], &s->best[at], (size_t)(s->n_best - at - 1) * sizeof *s->best);
    s->best[at] = (struct sl_best){s->step, loss};
    if (at == 0) {
        s->best_val_loss = loss;
        s->best_step = s->step;
    }
    if (!block) /* no-prompts */
        return 0;
    memmove(trial->best + (size_t)(at + 1) * block, trial->best + (size_t)at * block,
            (size_t)(s->n_best - at - 1) * block * sizeof(float));
    return t->ops->download(t->be, trial->best + (size_t)at * block, trial->prompts, block * sizeof(float),
                            err);
}

/* Early stopping's counters; true when there is nothing to wait for any more. */
static bool waited_enough(struct sl_trial *trial, double loss, bool first)
{
    const struct sl_config *c = trial->config;
    struct sl_train_state *s = &trial->state;

    if (first || loss < s->stop_best - c->exp.min_delta) {
        s->stop_best = loss;
        s->stop_waited = 0;
    } else {
        s->stop_waited++;
    }
    return c->exp.early_stopping && s->stop_waited >= c->exp.patience && s->step > 0;
}

static void report(struct sl_trainer *t, const struct sl_trial *trial, double loss,
                   const double *metric)
{
    const struct sl_train_state *s = &trial->state;
    json_t *event = json_pack("{s:s, s:I, s:f, s:b}", "ev", "metric", "step", (json_int_t)s->step,
                              "val_loss", loss, "best", s->best_step == s->step);
    char name[64];

    if (metric) {
        snprintf(name, sizeof name, "val_%s", sl_metric_name(trial->config->validation_metric));
        json_object_set_new(event, name, json_real(*metric));
    }
    sl_trial_emit(t, trial, event);
}

int sl_trainer_validate(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    struct sl_train_state *s = &trial->state;
    bool first = s->best_step < 0, asked = trial->data->asked;
    double loss = 0, metric = 0;
    int rc;

    sl_trial_place_tables(t, trial, false);
    rc = loss_of_rows(t, trial, &loss, err);
    if (!rc && !isfinite(loss)) {
        sl_err_set(err, SL_DATA,
                   "validation at step %lld: val_loss is not a finite number; a lower learning rate "
                   "(model.optim.lr %g) or trainer.gradient_clip_val may help",
                   (long long)s->step, c->optim.lr);
        return sl_trial_diverged(t, trial, err);
    }
    if (!rc && asked)
        rc = metric_of_rows(t, trial, &metric, err);
    if (!rc)
        rc = note_best(t, trial, loss, err);
    if (rc)
        return sl_err_wrap(err, rc, "validation at step %lld", (long long)s->step);
    if (s->step == 0)
        s->first_val_loss = loss;
    s->validated_step = s->step;
    report(t, trial, loss, asked ? &metric : NULL);
    if (waited_enough(trial, loss, first)) {
        sl_trial_log(
            t, trial, SL_INFO,
            "early stopping at step %lld: val_loss has not improved by %g in %d validations",
            (long long)s->step, c->exp.min_delta, c->exp.patience);
        s->ended = SL_TRIAL_STOPPED;
    }
    return 0;
}
