/* What each trial of a run is, before there is a model: its place among the slots, its rows, its steps. */
#include "base/json.h"
#include "engine/generate.h"
#include "engine/trainer.h"
#include <math.h>
#include <stdlib.h>

/* ---- slots ---- */

static int lay_out_slots(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    bool trains = false;

    trial->first_slot = t->n_slots;
    trial->first_prompt = t->n_prompts;
    for (int i = 0; i < c->n_tasks; i++, t->n_slots++) {
        t->slot_v[t->n_slots] = c->task[i].total_virtual_tokens;
        t->slot_first[t->n_slots] = t->n_prompts;
        t->slot_trial[t->n_slots] = (int)(trial - t->trial);
        t->n_prompts += c->task[i].total_virtual_tokens;
        trains |= c->task[i].is_new;
    }
    trial->n_prompts = t->n_prompts - trial->first_prompt;
    if (!trains && c->style != SL_STYLE_NO_PROMPTS)
        return sl_err_set(
            err, SL_SPEC,
            "there is nothing to train: model.new_tasks is empty. `softlaunch generate` "
            "answers with tables that are there; virtual_prompt_style no-prompts without");
    return 0;
}

int sl_trainer_make_trials(struct sl_trainer *t, struct sl_err *err)
{
    int n = t->run->n_trials, tasks = 0, rc = 0;
    size_t slots;

    for (int k = 0; k < n; k++)
        tasks += t->run->trial[k].config.n_tasks;
    if (tasks > SL_BATCH_MAX_SLOTS)
        return sl_err_set(err, SL_SPEC, "%d tasks of %d trials; %d go into one run", tasks, n,
                          SL_BATCH_MAX_SLOTS);
    slots = (size_t)tasks + 1;
    t->trial = calloc((size_t)n, sizeof *t->trial);
    t->data = calloc((size_t)n, sizeof *t->data);
    t->slot_v = calloc(slots, sizeof *t->slot_v);
    t->slot_first = calloc(slots, sizeof *t->slot_first);
    t->slot_trial = calloc(slots, sizeof *t->slot_trial);
    if (!t->trial || !t->data || !t->slot_v || !t->slot_first || !t->slot_trial)
        return sl_err_set(err, SL_NOMEM, "no memory for %d tasks", tasks);
    for (; t->n_trials < n && !rc; t->n_trials++) {
        struct sl_trial *trial = &t->trial[t->n_trials];

        *trial = (struct sl_trial){.run = &t->run->trial[t->n_trials],
                                   .config = &t->run->trial[t->n_trials].config,
                                   .order_epoch = -1};
        rc = lay_out_slots(t, trial, err);
    }
    return rc;
}

/* ---- rows ---- */

static int open_rows(struct sl_trainer *t, const struct sl_trial *trial,
                     const struct sl_strings *files, enum sl_answer answer, int max_positions,
                     struct sl_dataset **ret_ds, struct sl_err *err)
{
    struct sl_dataset_options how = {
        .answer = answer, .max_positions = max_positions, .others = &t->run->tasks};

    return sl_dataset_open((const char *const *)files->s, files->n, trial->config, t->tok, &how,
                           ret_ds, err);
}

static void tell_rows(struct sl_trainer *t, const struct sl_trial *trial, const char *what,
                      const struct sl_dataset *ds)
{
    struct sl_dataset_counts n = sl_dataset_counts(ds);

    sl_trial_log(t, trial, SL_INFO,
                "%s rows: %lld of %lld, %lld truncated, %lld too long and %lld too short left "
                "out; %.1f positions and %.1f counted tokens a row",
                what, (long long)n.rows, (long long)n.read, (long long)n.truncated,
                (long long)n.too_long, (long long)n.too_short,
                (double)n.positions / (double)(n.rows ? n.rows : 1),
                (double)n.targets / (double)(n.rows ? n.rows : 1));
    if (sl_dataset_mostly_skipped(ds))
        sl_trial_log(t, trial, SL_WARN,
                    "more than half of the %s rows do not fit and are left out: raise "
                    "model.data.max_seq_length or name a truncate_field",
                    what);
    if (n.split_boundary)
        sl_trial_log(
            t, trial, SL_WARN,
            "in %lld %s rows a token spans the start of the answer, so that generation starts "
            "from other tokens than training saw",
            (long long)n.split_boundary, what);
}

static int open_data(struct sl_trainer *t, const struct sl_trial *trial,
                     struct sl_trainer_data *d, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    int model_max = sl_weights_arch(t->weights)->max_positions, most = model_max, prompt = 0,
        rc = 0;

    if (c->data.max_seq_length && c->data.max_seq_length < most)
        most = c->data.max_seq_length;
    if (c->style != SL_STYLE_NO_PROMPTS) {
        if (!t->run->train.n)
            return sl_err_set(err, SL_SPEC,
                              "datasets.train names no file: there is nothing to train on");
        rc = open_rows(t, trial, &t->run->train, SL_ANSWER_ROW, most, &d->train, err);
        if (rc)
            return rc;
        tell_rows(t, trial, "training", d->train);
    }
    if (!t->run->validation.n)
        return 0;
    rc = open_rows(t, trial, &t->run->validation, SL_ANSWER_ROW, most, &d->validation, err);
    if (rc)
        return rc;
    tell_rows(t, trial, "validation", d->validation);
    if (!c->report_validation_metric)
        return 0;
    rc = sl_prompt_positions(c, model_max, &prompt, err);
    if (!rc)
        rc = open_rows(t, trial, &t->run->validation, SL_ANSWER_NONE, prompt, &d->asked, err);
    if (!rc)
        rc = sl_row_answers(d->asked, &d->answers, err);
    return rc;
}

static int plan_steps(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err)
{
    const struct sl_config *c = trial->config;
    int rows = trial->data->train ? sl_dataset_rows(trial->data->train) : 0;
    int64_t by_epochs;

    trial->validate_every = 1;
    if (!trial->data->train)
        return 0;
    t->rows_per_step = c->global_batch * c->trainer.accumulate_grad_batches;
    trial->steps_per_epoch = rows / t->rows_per_step;
    if (!trial->steps_per_epoch)
        return sl_err_set(
            err, SL_SPEC,
            "%d training rows do not fill one step of %d (model.global_batch_size %d x "
            "trainer.accumulate_grad_batches %d); lower one of them",
            rows, t->rows_per_step, c->global_batch, c->trainer.accumulate_grad_batches);
    by_epochs =
        c->trainer.max_epochs < 0 ? INT64_MAX : (int64_t)c->trainer.max_epochs * trial->steps_per_epoch;
    trial->steps = c->trainer.max_steps >= 0 && c->trainer.max_steps < by_epochs ? c->trainer.max_steps
                                                                             : by_epochs;
    if (c->trainer.max_steps >= 0 && by_epochs < c->trainer.max_steps)
        sl_trial_log(
            t, trial, SL_WARN,
            "trainer.max_epochs %d ends the run after %lld steps, before trainer.max_steps %d",
            c->trainer.max_epochs, (long long)by_epochs, c->trainer.max_steps);
    trial->validate_by_epoch = !c->trainer.val_check_steps;
    trial->validate_every = trial->validate_by_epoch
                            ? (int64_t)floor(c->trainer.val_check_fraction * trial->steps_per_epoch)
                            : c->trainer.val_check_steps;
    if (trial->validate_every < 1)
        trial->validate_every = 1;
    trial->schedule = (struct sl_schedule){.lr = c->optim.lr,
                                       .min_lr = c->optim.min_lr,
                                       .warmup_steps = c->optim.warmup_steps,
                                       .constant_steps = c->optim.constant_steps,
                                       .max_steps = trial->steps};
    if (trial->steps > t->steps)
        t->steps = trial->steps;
    return 0;
}

/* The rows of an earlier trial that has the same templates. */
static const struct sl_trainer_data *find_data(const struct sl_trainer *t, const struct sl_trial *trial)
{
    for (int i = 0; i < t->n_data; i++)
        if (json_equal(sl_json_get(trial->run->json, "model.task_templates"),
                       sl_json_get(t->data[i].of->json, "model.task_templates")))
            return &t->data[i];
    return NULL;
}

int sl_trainer_open_data(struct sl_trainer *t, struct sl_err *err)
{
    int rc = 0;

    for (int k = 0; k < t->n_trials && !rc; k++) {
        struct sl_trial *trial = &t->trial[k];

        trial->data = find_data(t, trial);
        if (!trial->data) {
            struct sl_trainer_data *d = &t->data[t->n_data++];

            d->of = trial->run;
            trial->data = d;
            rc = open_data(t, trial, d, err);
        }
        if (!rc)
            rc = plan_steps(t, trial, err);
        if (rc && trial->run->name[0])
            sl_err_wrap(err, rc, "trial %s", trial->run->name);
    }
    return rc;
}

void sl_trainer_free_trials(struct sl_trainer *t)
{
    for (int k = 0; k < t->n_trials; k++) {
        struct sl_trial *trial = &t->trial[k];

        free(trial->best);
        free(trial->order);
    }
    for (int i = 0; i < t->n_data; i++) {
        struct sl_trainer_data *d = &t->data[i];

        sl_texts_free(d->answers, d->asked ? sl_dataset_rows(d->asked) : 0);
        sl_dataset_free(d->train);
        sl_dataset_free(d->validation);
        sl_dataset_free(d->asked);
    }
    free(t->trial);
    free(t->data);
    free(t->slot_v);
    free(t->slot_first);
    free(t->slot_trial);
}
