/* Training: prompt tables and encoders on a frozen model, step by step, to the same bits across a
 * resume.
 *
 * A run has one trial or several, which are independent: each has its own tasks, rows' order, encoder,
 * optimizer, schedule, validations, best tables and end. Their rows go through the model together:
 * every task of every trial is a prompt slot of one packed batch, trials one after another, tasks in
 * their config's order. The tables of all slots lie in one device buffer; new tasks' rows come from
 * their group at every step, existing tasks' rows never change.
 *
 * A trial that is over (stopped early, all its steps done, or diverged) is not updated any more but
 * stays in the packed batch, so that all shapes, and with them all bits of the other trials, are what
 * they were. A loss or gradient that is no finite number ends its own trial; with one trial alone it is
 * the run's failure.
 *
 * A run of style no-prompts has one trial without a group and no step: it validates once and is over.
 * Single-threaded but for the backend. */
#ifndef SL_ENGINE_TRAINER_H
#define SL_ENGINE_TRAINER_H
#include "base/wire.h"
#include "engine/checkpoint.h"
#include "engine/data/dataset.h"
#include "engine/emit.h"
#include "engine/model.h"
#include "engine/optim.h"
#include "engine/plan.h"
#include "engine/run.h"

#define SL_VALIDATION_POSITIONS 4096 /* packed positions of one validation pass, about */
/* Positions of the rows of a training pass that joins micro-batches of several trials: on a CPU what its
 * caches and memory like, on an accelerator what keeps it busy; less where memory is short. */
#define SL_PASS_POSITIONS_CPU 4096
#define SL_PASS_POSITIONS_DEVICE 32768

struct sl_trainer_options {
    bool no_share;       /* no shared prefixes: a test's reference */
    int threads;         /* 0: all */
    const char *device;  /* engine/backend.h; NULL: by the environment, or automatic */
    int64_t memory_bytes; /* what the run may take, at most what the device has; 0: all */
    int recompute;       /* so much (sl_recompute_at) instead of what fits: for tests. 0: by the plan */
    enum sl_fault fault; /* planted, for tests */
};

/* New tasks of one style: those of p-tuning share a prompt encoder, those of prompt tuning have a
 * table each. */
struct sl_trainer_group {
    struct sl_encoder *encoder;
    struct sl_param whole;   /* the encoder's parameters as one */
    int n_tasks, *task;      /* its tasks, as indices into the config's */
    float *tables, *dtables; /* device [n_tasks*V, hidden]: the encoder's output and its gradient */
};
#define SL_TRAINER_MAX_GROUPS 2

/* Rows rendered by the templates of one trial, and of all others that have the same. */
struct sl_trainer_data {
    const struct sl_run_trial *of;
    struct sl_dataset *train,
        *validation;          /* train: NULL exactly with no-prompts; validation may be */
    struct sl_dataset *asked; /* the validation rows without answers; NULL: no validation_metric */
    char **answers;           /* of asked */
};

struct sl_trial {
    const struct sl_run_trial *run; /* its name, folder and config */
    const struct sl_config *config; /* run's */
    const struct sl_trainer_data *data;
    int n_groups;
    struct sl_trainer_group group[SL_TRAINER_MAX_GROUPS];
    struct sl_param *params; /* of all groups */
    int n_params;
    struct sl_optim optim;
    struct sl_schedule schedule;

    int first_slot, first_prompt, n_prompts; /* its share of the trainer's slots and their rows */
    float *prompts, *dprompts;               /* its rows of the trainer's */
    int n_keep;  /* sets of tables kept by val_loss, at least one */
    float *best; /* host [n_keep, n_prompts, hidden]: the tables of state.best, best first */

    int *order;      /* of one epoch */
    int order_epoch; /* -1: none yet */
    int steps_per_epoch;
    int64_t steps, validate_every;
    bool validate_by_epoch; /* validate_every counts from the start of each epoch */
    struct sl_train_state state;
};

/* What passes over a trial's rows give. */
struct sl_trial_sum {
    double loss; /* nats of all counted tokens together */
    int64_t counted, useful;
};

/* The packed batches of one step, of all trials; replaced by the next call that packs. */
struct sl_passes {
    int n;
    struct sl_pass *pass;
};

struct sl_trainer {
    const struct sl_run *run;
    struct sl_emitter *report;
    struct sl_control *control;
    struct sl_trainer_options options;

    const struct sl_ops *ops;
    struct sl_backend *be;
    struct sl_weights *weights;
    struct sl_tokenizer *tok;
    struct sl_model *model;
    struct sl_plan plan;
    int n_data, n_trials;
    struct sl_trainer_data *data;
    struct sl_trial *trial;

    int n_slots, n_prompts, hidden;         /* n_prompts: rows of all slots' tables */
    int *slot_v, *slot_first, *slot_trial;  /* per slot: V, first row in prompts, whose it is */
    float *prompts, *dprompts; /* device [n_prompts, hidden]; dprompts: of the whole step */
    float *dmicro;             /* the same of one pass */
    int64_t pass_positions;    /* micro-batches of several trials make a pass up to this length */

    struct sl_passes next; /* of step next_step, packed while the device was busy with the one before */
    int64_t next_step;     /* -1: none is there */
    int rows_per_step;   /* of each trial */
    int64_t step, steps; /* of the trials that are not over; the longest trial's */
    char model_digest[SL_SHA256_HEX + 1]; /* "" until sl_trainer_model_digest */
};

/* Loads everything that run names; resumes from its checkpoint if there is one. On failure releases
 * what it had. SL_SPEC, SL_NOTFOUND, SL_DATA, SL_CONFLICT (a checkpoint of another run), SL_NOMEM,
 * SL_DEVICE. Reports as it goes. */
int sl_trainer_init(struct sl_trainer *t, const struct sl_run *run,
                    const struct sl_trainer_options *options, struct sl_emitter *report,
                    struct sl_control *control, struct sl_err *err);
void sl_trainer_release(struct sl_trainer *t);

/* Trains to the end, validating and writing checkpoints. Returns 0 at the end, with prompts holding
 * the tables to keep (the best ones when exp_manager.save_best_model); SL_CANCELLED with *ret_want
 * = SL_WANT_PREEMPT (a checkpoint is on disk) or SL_WANT_CANCEL. It stops between steps and between
 * the passes of a validation, which a resumed run then begins anew. SL_DATA when every trial has
 * diverged; of a single one the checkpoint of before stays. */
int sl_trainer_run(struct sl_trainer *t, enum sl_wire_want *ret_want, struct sl_err *err);

/* Sets the trainer's and its trials' model_digest, waiting for the thread that computes it. */
int sl_trainer_model_digest(struct sl_trainer *t, struct sl_err *err);

/* Of the trial's last step: not over yet. */
bool sl_trial_live(const struct sl_trial *trial);
/* An event with the trial's name, where it has one; a log line that begins with it. */
void sl_trial_emit(struct sl_trainer *t, const struct sl_trial *trial, json_t *event_stolen);
void sl_trial_log(struct sl_trainer *t, const struct sl_trial *trial, enum sl_level level,
                  const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* One global batch of every trial: rows [n_trials, n_rows] are indices into its training rows. Sets
 * ret_sum [n_trials] and, when gradient is set, adds to the gradients of all parameters (by one backward
 * pass of each encoder whatever the micro-batch size), each trial's of the mean over its own counted
 * tokens. Exposed for tests and benchmarks, as is what follows. */
int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient,
                    struct sl_trial_sum *ret_sum, struct sl_err *err);
void sl_trainer_zero_grad(struct sl_trainer *t);
/* The groups' tables into their tasks' rows of prompts: of all trials, or of one. */
void sl_trainer_place_tables(struct sl_trainer *t, bool training);
void sl_trial_place_tables(struct sl_trainer *t, struct sl_trial *trial, bool training);

/* The same in two halves: packing is the host's work and does not wait for the device. */
int sl_trainer_pack(struct sl_trainer *t, const int *rows, int n_rows, struct sl_passes *p,
                    struct sl_err *err);
int sl_trainer_run_passes(struct sl_trainer *t, const struct sl_passes *p, bool gradient,
                          struct sl_trial_sum *ret_sum, struct sl_err *err);
void sl_passes_release(struct sl_passes *p);
/* Packs and runs rows, whose slots are the trainer's, without gradient: adds to the sums [n_trials] of their
 * trials. */
int sl_trainer_pass(struct sl_trainer *t, const struct sl_row *rows, int n, struct sl_trial_sum *sum,
                    struct sl_err *err);

/* True when the trial's step asks for a validation that has not been done. */
bool sl_trainer_validation_due(const struct sl_trial *trial);
/* The trial's validation loss, and validation_metric if the config reports one; then what follows from
 * them: the best tables, early stopping, the metric event. SL_CANCELLED when control asks to stop:
 * nothing has followed. */
int sl_trainer_validate(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err);
/* A trial whose numbers are no numbers any more; err says where. Others go on: then 0, err is cleared
 * and the trial's prompts are zeros. Else err's code. */
int sl_trial_diverged(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err);

/* What the run takes on a device, which need not be here (engine/plan.h). t: of sl_trainer_look. */
int sl_trainer_plan_for(struct sl_trainer *t, const struct sl_plan_device *device, struct sl_plan *ret_plan,
                        struct sl_err *err);
/* SL_NOMEM: what the run takes of a device that is too small for it, and what would fit. */
int sl_trainer_too_large(struct sl_trainer *t, const struct sl_plan_device *device, struct sl_err *err);
/* A trainer that has read everything but the weights, for a plan. Errors as sl_trainer_init; release it. */
int sl_trainer_look(struct sl_trainer *t, const struct sl_run *run, const struct sl_trainer_options *options,
                    struct sl_emitter *report, struct sl_err *err);

/* ---- parts of sl_trainer_init ---- */
/* Sets t->plan for the opened backend. SL_NOMEM with what would fit. */
int sl_trainer_fit(struct sl_trainer *t, struct sl_err *err);
/* After a process's first step: what the device says was taken, beside what was planned. */
void sl_trainer_tell_memory(struct sl_trainer *t);
/* All that lies in the backend for the whole run: model, tables, encoders, optimizers; and the end of it. */
int sl_trainer_make(struct sl_trainer *t, struct sl_err *err);
void sl_trainer_unmake(struct sl_trainer *t);
/* Trials and their place among the slots; their rows and steps, which needs the tokenizer. */
int sl_trainer_make_trials(struct sl_trainer *t, struct sl_err *err);
int sl_trainer_open_data(struct sl_trainer *t, struct sl_err *err);
void sl_trainer_free_trials(struct sl_trainer *t);
/* A trial's groups, their encoders and initial values; params. Needs the model. */
int sl_trial_make_groups(struct sl_trainer *t, struct sl_trial *trial, struct sl_err *err);
void sl_trial_free_groups(struct sl_trainer *t, struct sl_trial *trial);
void sl_trainer_fingerprint(const struct sl_trainer *t, struct sl_fingerprint *ret_print);
/* A trial's part of the run's checkpoint. */
struct sl_checkpoint sl_trial_checkpoint(struct sl_trainer *t, struct sl_trial *trial);

#endif
