#include "engine/optim.h"
#include <math.h>

enum { SCALAR_SUMSQ, SCALAR_SCALE, N_SCALARS };

double sl_schedule_lr(const struct sl_schedule *s, int64_t step)
{
    int64_t warmup = s->warmup_steps, hold = s->constant_steps;
    int64_t decay = s->max_steps - warmup - hold; /* steps of the cosine */
    double along;

    if (warmup > 0 && step <= warmup)
        return hold > 0 ? s->lr * (double)step / (double)warmup
                        : s->lr * (double)(step + 1) / (double)(warmup + 1);
    if (decay <= 0 || step > warmup + decay)
        return s->min_lr;
    along = (double)(step - warmup) / (double)decay;
    return s->min_lr + (s->lr - s->min_lr) / 2 * (1 + cos(M_PI * along));
}

int sl_optim_init(struct sl_optim *o, const struct sl_ops *ops, struct sl_backend *be,
                  struct sl_err *err)
{
    void *scalars;
    int rc = ops->alloc(be, N_SCALARS * sizeof(float), &scalars, err);

    if (rc)
        return sl_err_wrap(err, rc, "making the optimizer");
    o->device_scalars = scalars;
    o->ops = ops;
    o->be = be;
    return 0;
}

void sl_optim_release(struct sl_optim *o)
{
    if (!o || !o->device_scalars)
        return;
    o->ops->free(o->be, o->device_scalars);
    o->device_scalars = NULL;
}

void sl_optim_queue(struct sl_optim *o, struct sl_param *params, int n, float lr, int64_t step)
{
    struct sl_adamw hp = {lr, o->beta1, o->beta2, o->eps, o->weight_decay, (int)step};
    float *sumsq = o->device_scalars + SCALAR_SUMSQ, *scale = o->device_scalars + SCALAR_SCALE;

    for (int i = 0; i < n; i++)
        o->ops->sumsq_f32(o->be, (int64_t)params[i].rows * params[i].cols, params[i].grad, i > 0,
                          sumsq);
    o->ops->clip_scale(o->be, sumsq, o->clip_norm, scale);
    for (int i = 0; i < n; i++) {
        hp.lr = lr * params[i].lr_ratio;
        o->ops->adamw(o->be, (int64_t)params[i].rows * params[i].cols, params[i].value,
                      params[i].grad, params[i].m, params[i].v, &hp, scale);
    }
}

int sl_optim_norm(struct sl_optim *o, int64_t step, float *ret_norm, struct sl_err *err)
{
    float host;
    int rc = o->ops->download(o->be, &host, o->device_scalars + SCALAR_SUMSQ, sizeof host, err);

    if (rc)
        return sl_err_wrap(err, rc, "optimizer step %lld", (long long)step);
    if (!isfinite(host)) /* clip_scale gave NaN, so adamw changed nothing */
        return sl_err_set(
            err, SL_DATA,
            "gradient is not finite at step %lld: lower the learning rate, or look at "
            "the rows of this step",
            (long long)step);
    *ret_norm = sqrtf(host);
    return 0;
}

int sl_optim_step(struct sl_optim *o, struct sl_param *params, int n, float lr, int64_t step,
                  float *ret_norm, struct sl_err *err)
{
    sl_optim_queue(o, params, n, lr, step);
    return sl_optim_norm(o, step, ret_norm, err);
}
