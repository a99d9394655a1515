/* The frozen model as one function: prompts in, loss and gradient of the prompts out.
 *
 * Written once over engine/ops.h for every architecture. Activations live in one arena, sized
 * before the first step by sl_model_reserve, or else by the batches that come; it grows between steps
 * only. Not thread-safe. */
#ifndef SL_ENGINE_MODEL_H
#define SL_ENGINE_MODEL_H
#include "engine/batch.h"
#include "engine/ops.h"
#include "engine/weights.h"

struct sl_model;

/* Loads all weights into the backend (which must outlive the model); w may be closed afterwards. */
int sl_model_new(const struct sl_weights *w, const struct sl_ops *ops, struct sl_backend *be,
                 struct sl_model **ret_model, struct sl_err *err);
void sl_model_free(struct sl_model *m);
const struct sl_arch *sl_model_arch(const struct sl_model *m);
const struct sl_ops *sl_model_ops(const struct sl_model *m);
struct sl_backend *sl_model_backend(const struct sl_model *m);

/* Test switches for planted faults: what each leaves wrong must be caught by the golden tests. */
enum sl_fault { SL_FAULT_NONE, SL_FAULT_NO_PREFIX_DKV };
void sl_model_plant(struct sl_model *m, enum sl_fault fault);

/* One pass over a packed batch.
 * prompts: device fp32 [batch->n_prompts, hidden].
 * dprompts: device fp32, same shape, set to d(sum of entry_weight * loss) / d prompts; NULL:
 * forward only. host_loss: [batch->n_entries] unweighted cross-entropy in nats of each entry. */
int sl_model_step(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                  float *dprompts, float *host_loss, struct sl_err *err);
/* Logits [n_out, vocab], fp32 on the host, of the batch's out positions. */
int sl_model_logits(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                    float *host_logits, struct sl_err *err);
/* Copies embedding rows (prompt tuning from text, task names): host fp32 [n, hidden]. */
int sl_model_embedding(const struct sl_model *m, const int32_t *host_ids, int n, float *host_rows,
                       struct sl_err *err);
/* What the backward pass computes again, to the same bits, in place of memory: layers 0 to mlps-1 share the memory of
 * what goes into the activation (two fifths of a layer of GPT, for a third of its products), layers 0 to whole-1 that of
 * all but their input; the last layer of each kind finds its own still there. */
struct sl_recompute {
    int mlps, whole;
};
/* In the order in which it pays: n of 0 (nothing) to sl_recompute_most. First MLPs, from the first layer on (one would save
 * nothing), then whole layers too; never the last layer, whose work is for the rows with loss only. */
struct sl_recompute sl_recompute_at(int layers, int n);
int sl_recompute_most(int layers);
void sl_model_recompute(struct sl_model *m, struct sl_recompute again);

/* What a step takes in the arena. */
struct sl_step_bytes {
    int64_t batch;   /* ids, positions, sequences */
    int64_t kept;    /* from forward to backward */
    int64_t scratch; /* used by one layer after the other; the last layer's rows with loss */
    int64_t logits;  /* a chunk of them */
    int64_t total;   /* a little more than the sum: alignment */
};
/* Of a batch with the counts of `most` (its arrays are not looked at, memory_bytes is: sl_batch_bytes), when
 * so much is computed again. gradient false: forward alone. */
void sl_model_step_bytes(const struct sl_model *m, const struct sl_batch *most, bool gradient, struct sl_recompute again,
                         struct sl_step_bytes *ret_bytes);
/* Takes so much for the arena at once, so that no step with at most these counts allocates. SL_NOMEM. */
int sl_model_reserve(struct sl_model *m, int64_t bytes, struct sl_err *err);
/* Bytes: weights; the arena of the last batch. */
int64_t sl_model_weight_bytes(const struct sl_model *m);
int64_t sl_model_arena_bytes(const struct sl_model *m);

#endif
