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
static int loss_of_rows(struct sl_trainer *t, double *ret_loss, struct sl_err *err)
{
    int n = sl_dataset_rows(t->validation), rc = 0, used = 0;
    int64_t counted = 0, useful = 0, positions = 0;
    double sum = 0;
    struct sl_row *part = malloc((size_t)n * sizeof *part);

    if (!part)
        return sl_err_set(err, SL_NOMEM, "no memory for %d validation rows", n);
    for (int i = 0; i <= n && !rc; i++) {
        struct sl_row row = {0};

        if (i < n)
            row = sl_dataset_row(t->validation, i);
        if (used &&
            (i == n || used == SL_BATCH_MAX_ROWS || positions + row.n > SL_VALIDATION_POSITIONS)) {
            rc = asked_to_stop(t)
                     ? sl_err_set(err, SL_CANCELLED, "asked to stop")
                     : sl_trainer_pass(t, part, used, 0, NULL, &sum, &counted, &useful, err);
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

/* validation_metric of what is generated for the validation rows with the tables of now. */
static int metric_of_rows(struct sl_trainer *t, double *ret_score, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    const struct sl_generator g = {.model = t->model,
                                   .tok = t->tok,
                                   .config = c,
                                   .tuned = t->n_prompts > 0,
                                   .prompts = t->prompts,
                                   .control = t->control,
                                   .phase = "answering the validation rows"};
    int n = sl_dataset_rows(t->asked), rc;
    char **texts = NULL;

    rc = sl_generate(&g, t->asked, &texts, err);
    if (!rc)
        rc = sl_metric_corpus(c->validation_metric, (const char *const *)texts,
                              (const char *const *)t->answers, n, ret_score, err);
    sl_texts_free(texts, n);
    return rc;
}

/* Puts the tables of now among the best ones if they belong there. */
static int note_best(struct sl_trainer *t, double loss, struct sl_err *err)
{
    struct sl_train_state *s = &t->state;
    size_t block = (size_t)t->n_prompts * (size_t)t->hidden;
    int at = s->n_best;

    while (at > 0 && loss < s->best[at - 1].val_loss)
        at--;
    if (at >= t->n_keep)
        return 0;
    if (s->n_best < t->n_keep)
        s->n_best++;
    memmove(&s->best[at + 1], &s->best[at], (size_t)(s->n_best - at - 1) * sizeof *s->best);
    s->best[at] = (struct sl_best){s->step, loss};
    if (at == 0) {
        s->best_val_loss = loss;
        s->best_step = s->step;
    }
    if (!block) /* no-prompts */
        return 0;
    memmove(t->best + (size_t)(at + 1) * block, t->best + (size_t)at * block,
            (size_t)(s->n_best - at - 1) * block * sizeof(float));
    return t->ops->download(t->be, t->best + (size_t)at * block, t->prompts, block * sizeof(float),
                            err);
}

/* Early stopping's counters; true when there is nothing to wait for any more. */
static bool waited_enough(struct sl_trainer *t, double loss, bool first)
{
    const struct sl_config *c = &t->run->config;
    struct sl_train_state *s = &t->state;

    if (first || loss < s->stop_best - c->exp.min_delta) {
        s->stop_best = loss;
        s->stop_waited = 0;
    } else {
        s->stop_waited++;
    }
    return c->exp.early_stopping && s->stop_waited >= c->exp.patience && s->step > 0;
}

static void report(struct sl_trainer *t, double loss, const double *metric)
{
    const struct sl_train_state *s = &t->state;
    json_t *event = json_pack("{s:s, s:I, s:f, s:b}", "ev", "metric", "step", (json_int_t)s->step,
                              "val_loss", loss, "best", s->best_step == s->step);
    char name[64];

    if (metric) {
        snprintf(name, sizeof name, "val_%s", sl_metric_name(t->run->config.validation_metric));
        json_object_set_new(event, name, json_real(*metric));
    }
    sl_emit(t->report, event);
}

int sl_trainer_validate(struct sl_trainer *t, struct sl_err *err)
{
    const struct sl_config *c = &t->run->config;
    struct sl_train_state *s = &t->state;
    bool first = s->best_step < 0;
    double loss = 0, metric = 0;
    int rc;

    sl_trainer_place_tables(t, false);
    rc = loss_of_rows(t, &loss, err);
    if (!rc && !isfinite(loss))
        rc = sl_err_set(
            err, SL_DATA,
            "val_loss is not a finite number; a lower learning rate (model.optim.lr %g) or "
            "trainer.gradient_clip_val may help",
            c->optim.lr);
    if (!rc && t->asked)
        rc = metric_of_rows(t, &metric, err);
    if (!rc)
        rc = note_best(t, loss, err);
    if (rc)
        return sl_err_wrap(err, rc, "validation at step %lld", (long long)s->step);
    if (s->step == 0)
        s->first_val_loss = loss;
    s->validated_step = s->step;
    report(t, loss, t->asked ? &metric : NULL);
    if (waited_enough(t, loss, first)) {
        sl_emit_log(
            t->report, SL_INFO,
            "early stopping at step %lld: val_loss has not improved by %g in %d validations",
            (long long)s->step, c->exp.min_delta, c->exp.patience);
        t->finished_early = true;
    }
    return 0;
}
