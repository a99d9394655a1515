/* The frozen model as one function: prompts in, loss and gradient of the prompts out.
 *
 * Written once over engine/ops.h for every architecture. Activations live in one arena, sized
 * before the step from the batch; it grows between steps only. Not thread-safe. */
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
/* Bytes: weights, activations of the last (or the given) batch. */
int64_t sl_model_weight_bytes(const struct sl_model *m);
int64_t sl_model_arena_bytes(const struct sl_model *m);

#endif
