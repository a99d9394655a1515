/* AdamW with the cosine schedule and clipping by global norm, over any list of parameters. */
#ifndef SL_ENGINE_OPTIM_H
#define SL_ENGINE_OPTIM_H
#include "engine/encoder.h"

struct sl_schedule {
    double lr, min_lr;
    int64_t warmup_steps, constant_steps, max_steps; /* NeMo's CosineAnnealing */
};
/* Learning rate of step s, counted from 0, as NeMo's CosineAnnealing gives it:
 *   s <= W (with W > 0): lr (s+1)/(W+1); then min + (lr-min)/2 (1 + cos(pi (s-W)/(max-W))); after
 * max: min. constant_steps C > 0 holds min_lr for the last C steps before max; NeMo then warms up
 * as Megatron does, lr s/W, so that step 0 changes nothing. With W + C >= max there is no cosine:
 * min follows the warm-up. */
double sl_schedule_lr(const struct sl_schedule *s, int64_t step);

struct sl_optim {
    float beta1, beta2, eps, weight_decay, clip_norm; /* clip_norm <= 0: none */
    float *device_scalars;                            /* sum of squares, scale */
    const struct sl_ops *ops;
    struct sl_backend *be;
};
int sl_optim_init(struct sl_optim *o, const struct sl_ops *ops, struct sl_backend *be,
                  struct sl_err *err);
void sl_optim_release(struct sl_optim *o);
/* One update of all parameters from their grads, each at lr times its lr_ratio. step from 1. ret_norm: global gradient norm before
 * clipping. A norm that is not finite changes nothing and is SL_DATA ("gradient is not finite at
 * step ..."). */
int sl_optim_step(struct sl_optim *o, struct sl_param *params, int n, float lr, int64_t step,
                  float *ret_norm, struct sl_err *err);
/* The same in two halves, so that updates of several optimizers are queued before the first of them is
 * waited for: the update, then its norm (and errors). */
void sl_optim_queue(struct sl_optim *o, struct sl_param *params, int n, float lr, int64_t step);
int sl_optim_norm(struct sl_optim *o, int64_t step, float *ret_norm, struct sl_err *err);

#endif
