/* Training: prompt tables and encoders on a frozen model, step by step, to the same bits across a resume.
 *
 * Slots are the config's tasks in order. The tables of all tasks lie in one device buffer; new tasks' rows come from
 * the encoder at every step, existing tasks' rows never change. Single-threaded but for the backend. */
#ifndef SL_ENGINE_TRAINER_H
#define SL_ENGINE_TRAINER_H
#include "base/wire.h"
#include "engine/checkpoint.h"
#include "engine/dataset.h"
#include "engine/model.h"
#include "engine/optim.h"
#include "engine/emit.h"
#include "engine/run.h"

#define SL_VALIDATION_POSITIONS 4096 /* packed positions of one validation pass, about */

struct sl_trainer_options {
    bool no_share; /* no shared prefixes: a test's reference */
    int threads;   /* 0: all */
    enum sl_fault fault; /* planted, for tests */
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
    struct sl_dataset *train, *validation; /* validation may be NULL */
    struct sl_encoder *encoder;
    struct sl_optim optim;
    struct sl_schedule schedule;

    int n_prompts, hidden;     /* rows of all tasks' tables */
    int *slot_v, *slot_first;  /* per task: V, first row in prompts */
    int *new_slot, n_new;      /* the encoder's tasks, as slots */
    float *prompts, *dprompts; /* device [n_prompts, hidden] */
    float *tables, *dtables;   /* device [n_new*V, hidden]: the encoder's output and its gradient */
    float *best;               /* host [n_prompts, hidden]: tables of the best val_loss */

    int *order;       /* of state.epoch */
    int order_epoch;  /* -1: none yet */
    int rows_per_step, steps_per_epoch;
    int64_t steps, validate_every;
    bool finished_early;
    struct sl_train_state state;
    char model_digest[SL_SHA256_HEX + 1];
};

/* Loads everything that run names; resumes from its checkpoint if there is one. On failure releases what it had.
 * SL_SPEC, SL_NOTFOUND, SL_DATA, SL_CONFLICT (a checkpoint of another run), SL_NOMEM, SL_DEVICE. Reports as it goes. */
int sl_trainer_init(struct sl_trainer *t, const struct sl_run *run, const struct sl_trainer_options *options,
                    struct sl_emitter *report, struct sl_control *control, struct sl_err *err);
void sl_trainer_release(struct sl_trainer *t);

/* Trains to the end, validating and writing checkpoints. Returns 0 at the end, with prompts holding the tables to keep
 * (the best ones when exp_manager.save_best_model); SL_CANCELLED with *ret_want = SL_WANT_PREEMPT (a checkpoint is on
 * disk) or SL_WANT_CANCEL. */
int sl_trainer_run(struct sl_trainer *t, enum sl_wire_want *ret_want, struct sl_err *err);

/* One global batch: loss (mean over counted tokens) and, when gradient is set, encoder gradients (added). rows are
 * indices into t->train. Exposed for tests and benchmarks. */
int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient, double *ret_loss,
                    int64_t *ret_counted, int64_t *ret_useful, struct sl_err *err);
/* Mean loss over the validation rows' counted tokens. */
int sl_trainer_validate(struct sl_trainer *t, double *ret_loss, struct sl_err *err);

#endif
