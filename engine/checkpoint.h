/* Checkpoints: everything that a bit-exact resume needs, in one file.
 *
 * RUN_DIR/checkpoint/checkpoint.safetensors holds value, m and v of every parameter ("value/NAME",
 * ...; of a trial that is over its value), the best tables so far ("best") and, as metadata "state", the training state as JSON: a list of
 * one object a trial. Tensors of a trial with a name begin with it ("TRIAL/value/NAME"). It is
 * one sealed file (engine/format/safetensors.h) so that replacing it is one rename: at every instant a
 * complete checkpoint is there, and whoever has it open (an upload) keeps reading the one it
 * opened. It is made as RUN_DIR/checkpoint.tmp, outside the folder that is uploaded. There is no
 * random state to save: orders and dropout masks are functions of (seed, epoch) and (seed, step).
 * Everything here blocks. */
#ifndef SL_ENGINE_CHECKPOINT_H
#define SL_ENGINE_CHECKPOINT_H
#include "base/digest.h"
#include "engine/encoder.h"
#include "engine/ops.h"

#define SL_CHECKPOINT_DIR "checkpoint"
#define SL_CHECKPOINT_FILE "checkpoint/checkpoint.safetensors"
#define SL_CHECKPOINT_MAX_BEST 64
#define SL_CHECKPOINT_WARNING_MAX 1024
#define SL_CHECKPOINT_FAILURE_MAX 512
#define SL_PACK_LAYOUT 1 /* raise when batch.c packs rows otherwise: sums change their order */

/* What the bits of a run depend on besides its configuration. */
struct sl_fingerprint {
    char backend[32]; /* sl_ops.name */
    char kernel[64];  /* sl_backend_info.kernel */
    int threads;
    char libraries[128]; /* softlaunch's own version and the C library's (its libm) */
    int pack_layout;
    int64_t pass_positions; /* of several trials: how long their common passes may be */
};
void sl_fingerprint_take(const struct sl_ops *ops, const struct sl_backend *be,
                         struct sl_fingerprint *ret_print);

struct sl_best {
    int64_t step;
    double val_loss;
};

enum sl_trial_end { SL_TRIAL_TRAINS, SL_TRIAL_STOPPED /* early */, SL_TRIAL_DIVERGED };

struct sl_train_state {
    int64_t step;     /* optimizer steps done */
    int64_t epoch;    /* of the next row, from 0 */
    int64_t position; /* rows of that epoch's order already used */
    uint64_t seed;
    int64_t ended;    /* enum sl_trial_end: the step then stays what it is */
    char failure[SL_CHECKPOINT_FAILURE_MAX]; /* of a diverged trial: the message */
    int64_t tokens;        /* useful tokens so far */
    double seconds;        /* training time so far, for rates; no bit of the result depends on it */
    double first_val_loss; /* at step 0 */
    double best_val_loss;  /* meaningful when best_step >= 0 */
    int64_t best_step;     /* -1: no validation yet */
    double stop_best; /* early stopping: the loss to beat by min_delta; meaningful when best_step >=
                         0 */
    int64_t stop_waited; /* validations without an improvement */
    int64_t validated_step; /* of the last validation; -1: none yet */
    int n_best;
    struct sl_best best[SL_CHECKPOINT_MAX_BEST]; /* save_top_k, best first */
    char config_digest[SL_SHA256_HEX + 1];       /* the caller's digest of what must not change */
    char model_digest[SL_SHA256_HEX + 1];
    struct sl_fingerprint print;
};

/* One trial's part. On load all parts must have the names and shapes that were saved. */
struct sl_checkpoint {
    const char *name;          /* "" or NULL: the run's only one */
    const char *config_digest; /* NULL: not compared on load */
    struct sl_train_state *state;
    int64_t steps; /* of the run; a part that has done them, or has ended before, keeps no moments. 0: unknown */
    struct sl_param *params; /* device */
    int n_params;
    const struct sl_ops *ops;
    struct sl_backend *be;
    float *best_tables; /* host [best_rows, hidden]; saved, and filled by load, when state's
                           best_step >= 0 */
    int best_rows, hidden;
};

/* SL_IO (disk full), SL_DEVICE, SL_NOMEM; SL_DATA for a number in the state that is not finite. On
 * failure the checkpoint that was there before is untouched. */
int sl_checkpoint_save(const char *run_dir, const struct sl_checkpoint *parts, int n,
                       struct sl_err *err);
bool sl_checkpoint_exists(const char *run_dir);
/* Verifies everything before it changes anything. SL_NOTFOUND: none there. SL_DATA: damaged, or not
 * these parameters; names what is wrong. SL_CONFLICT: other trials, another config_digest or model_digest
 * than the given ones (NULL: not compared). ret_warning: a sentence for the log when `now` differs from
 * the saved fingerprint ("... bits will differ ..."), else "". */
int sl_checkpoint_load(const char *run_dir, const struct sl_checkpoint *parts, int n,
                       const char *model_digest, const struct sl_fingerprint *now,
                       char ret_warning[SL_CHECKPOINT_WARNING_MAX], struct sl_err *err);

#endif
