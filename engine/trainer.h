/* Training: prompt tables and encoders on a frozen model, step by step, to the same bits across a
 * resume.
 *
 * Slots are the config's tasks in order. The tables of all tasks lie in one device buffer; new
 * tasks' rows come from their group at every step, existing tasks' rows never change. A run of
 * style no-prompts has no group and no step: it validates once and is over. Single-threaded but for
 * the backend. */
#ifndef SL_ENGINE_TRAINER_H
#define SL_ENGINE_TRAINER_H
#include "base/wire.h"
#include "engine/checkpoint.h"
#include "engine/data/dataset.h"
#include "engine/emit.h"
#include "engine/model.h"
#include "engine/optim.h"
#include "engine/run.h"

#define SL_VALIDATION_POSITIONS 4096 /* packed positions of one validation pass, about */

struct sl_trainer_options {
    bool no_share;       /* no shared prefixes: a test's reference */
    int threads;         /* 0: all */
    const char *device;  /* engine/backend.h; NULL: by the environment, or automatic */
    enum sl_fault fault; /* planted, for tests */
};

/* New tasks of one style: those of p-tuning share a prompt encoder, those of prompt tuning have a
 * table each. */
struct sl_trainer_group {
    struct sl_encoder *encoder;
    int n_tasks, *slot;      /* its tasks, as slots */
    float *tables, *dtables; /* device [n_tasks*V, hidden]: the encoder's output and its gradient */
};
#define SL_TRAINER_MAX_GROUPS 2

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
    struct sl_dataset *train,
        *validation;          /* train: NULL exactly with no-prompts; validation may be */
    struct sl_dataset *asked; /* the validation rows without answers; NULL: no validation_metric */
    char **answers;           /* of asked */
    struct sl_optim optim;
    struct sl_schedule schedule;

    int n_groups;
    struct sl_trainer_group group[SL_TRAINER_MAX_GROUPS];
    struct sl_param *params; /* of all groups */
    int n_params;

    int n_prompts, hidden;     /* rows of all tasks' tables */
    int *slot_v, *slot_first;  /* per task: V, first row in prompts */
    float *prompts, *dprompts; /* device [n_prompts, hidden]; dprompts: of the whole step */
    float *dmicro;             /* the same of one micro-batch */
    int n_keep;                /* sets of tables kept by val_loss, at least one */
    float *best; /* host [n_keep, n_prompts, hidden]: the tables of state.best, best first */

    int *order;      /* of state.epoch */
    int order_epoch; /* -1: none yet */
    int rows_per_step, steps_per_epoch;
    int64_t steps, validate_every;
    bool validate_by_epoch; /* validate_every counts from the start of each epoch */
    bool finished_early;
    struct sl_train_state state;
    char model_digest[SL_SHA256_HEX + 1];
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
 * the passes of a validation, which a resumed run then begins anew. A loss that is not finite is
 * SL_DATA; the checkpoint of before stays. */
int sl_trainer_run(struct sl_trainer *t, enum sl_wire_want *ret_want, struct sl_err *err);

/* One global batch: loss (mean over counted tokens) and, when gradient is set, the parameters'
 * gradients (added, by one backward pass of the encoder whatever the micro-batch size). rows are
 * indices into t->train. Exposed for tests and benchmarks, as is what follows. */
int sl_trainer_loss(struct sl_trainer *t, const int *rows, int n_rows, bool gradient,
                    double *ret_loss, int64_t *ret_counted, int64_t *ret_useful,
                    struct sl_err *err);
void sl_trainer_zero_grad(struct sl_trainer *t);
/* The groups' tables into their tasks' rows of prompts. */
void sl_trainer_place_tables(struct sl_trainer *t, bool training);

/* Packs and runs rows: adds sum(loss) over counted tokens and their number; dprompts (may be NULL)
 * is set. total: divisor of the gradient. */
int sl_trainer_pass(struct sl_trainer *t, const struct sl_row *rows, int n, int64_t total,
                    float *dprompts, double *sum, int64_t *counted, int64_t *useful,
                    struct sl_err *err);

/* True when this step asks for a validation that has not been done. */
bool sl_trainer_validation_due(const struct sl_trainer *t);
/* The validation loss, and validation_metric if the config reports one; then what follows from
 * them: the best tables, early stopping, the metric event. SL_CANCELLED when control asks to stop:
 * nothing has followed. */
int sl_trainer_validate(struct sl_trainer *t, struct sl_err *err);

/* ---- parts of sl_trainer_init ---- */
/* Groups, their encoders and initial values; params. Needs slots, the tokenizer and the model. */
int sl_trainer_make_groups(struct sl_trainer *t, struct sl_err *err);
void sl_trainer_free_groups(struct sl_trainer *t);

#endif
