#include "base/rng.h"
#include "engine/encoder_impl.h"

/* ---- forward ---- */

/* Every task's rows of the shared embedding, frozen rows over the first ones. */
static void build_input(struct sl_encoder *e, float *dst)
{
    size_t row = (size_t)e->config.hidden * sizeof(float);
    size_t table = (size_t)e->config.virtual_tokens * (size_t)e->config.hidden;

    for (int t = 0; t < e->config.n_tasks; t++) {
        e->ops->copy(e->be, dst + (size_t)t * table, e->param[0].value, table * sizeof(float));
        if (e->fixed[t].n)
            e->ops->copy(e->be, dst + (size_t)t * table, e->fixed[t].rows,
                         (size_t)e->fixed[t].n * row);
    }
}

/* The mask between LSTM layers: torch's nn.LSTM drops every layer's output but the last one's. */
static uint64_t dropout_seed(const struct sl_encoder *e, int layer)
{
    return sl_rng_mix(sl_rng_new(e->config.seed, SL_RNG_DROPOUT + (uint64_t)layer).key +
                      (uint64_t)e->step);
}

static const float *lstm_forward(struct sl_encoder *e, const float *x)
{
    size_t n = (size_t)e->rows * 2 * (size_t)e->config.encoder_hidden;

    for (int i = 0; i < e->n_lstm; i++) {
        struct sl_encoder_lstm *l = &e->lstm[i];
        const struct sl_param *p = &e->param[l->first];

        l->l.w_ih = p[0].value;
        l->l.w_hh = p[1].value;
        l->l.b_ih = p[2].value;
        l->l.b_hh = p[3].value;
        l->x = x;
        e->ops->lstm(e->be, &l->l, x, l->y);
        x = l->y;
        if (e->dropped && i < e->n_lstm - 1) {
            e->ops->dropout_f32(e->be, (int64_t)n, l->y, e->config.dropout, dropout_seed(e, i),
                                l->dropped);
            x = l->dropped;
        }
    }
    return x;
}

void sl_encoder_forward(struct sl_encoder *e, bool training, int64_t step, float *tables)
{
    size_t table = (size_t)e->config.virtual_tokens * (size_t)e->config.hidden;
    const float *x = e->input;

    e->dropped = training && e->config.type == SL_ENC_LSTM && e->config.dropout > 0;
    e->step = step;
    if (e->config.type == SL_ENC_TABLE) {
        for (int t = 0; t < e->n_params; t++)
            e->ops->copy(e->be, tables + (size_t)t * table, e->param[t].value,
                         table * sizeof(float));
        return;
    }
    build_input(e, e->n_linear ? e->input : tables);
    if (e->n_lstm)
        x = lstm_forward(e, x);
    for (int i = 0; i < e->n_linear; i++) {
        struct sl_encoder_linear *l = &e->linear[i];
        float *pre = l->pre ? l->pre : tables;

        l->x = x;
        e->ops->gemm_f32(e->be, false, true, e->rows, l->out, l->in, 1, x, l->in,
                         e->param[l->weight].value, l->in, 0, pre, l->out);
        e->ops->bias_act_f32(e->be, l->kind, e->rows, l->out, pre, e->param[l->bias].value, l->y);
        x = l->y;
    }
}

/* ---- backward ---- */

/* Adds dy, seen as [rows, cols], summed over rows, to grad; dx is scratch or dy itself. */
static void add_sum(struct sl_encoder *e, int rows, size_t cols, const float *dy, float *dx,
                    float *grad)
{
    e->ops->bias_act_back_f32(e->be, SL_ACT_NONE, rows, (int)cols, dy, dy, dx, grad);
}

/* From the gradient of the input (changed) to that of the embedding. */
static void input_back(struct sl_encoder *e, float *dx)
{
    size_t row = (size_t)e->config.hidden * sizeof(float);
    size_t table = (size_t)e->config.virtual_tokens * (size_t)e->config.hidden;

    for (int t = 0; t < e->config.n_tasks; t++)
        if (e->fixed[t].n)
            e->ops->zero(e->be, dx + (size_t)t * table, (size_t)e->fixed[t].n * row);
    add_sum(e, e->config.n_tasks, table, dx, dx, e->param[0].grad);
}

/* dy lies in scratch[at], and the gradient of the LSTM's input is left in the other or the same
 * one: returned. */
static float *lstm_backward(struct sl_encoder *e, int at)
{
    size_t n = (size_t)e->rows * 2 * (size_t)e->config.encoder_hidden;

    for (int i = e->n_lstm - 1; i >= 0; i--, at = 1 - at) {
        struct sl_encoder_lstm *l = &e->lstm[i];
        const struct sl_param *p = &e->param[l->first];
        struct sl_lstm_grad grad = {p[0].grad, p[1].grad, p[2].grad, p[3].grad};

        if (e->dropped && i < e->n_lstm - 1)
            e->ops->dropout_f32(e->be, (int64_t)n, e->scratch[at], e->config.dropout,
                                dropout_seed(e, i), e->scratch[at]);
        e->ops->lstm_back(e->be, &l->l, l->x, l->y, e->scratch[at], e->scratch[1 - at], &grad);
    }
    return e->scratch[at];
}

void sl_encoder_backward(struct sl_encoder *e, const float *dtables)
{
    size_t table = (size_t)e->config.virtual_tokens * (size_t)e->config.hidden;
    const float *dy = dtables;
    int at = 0;

    if (e->config.type == SL_ENC_TABLE) {
        for (int t = 0; t < e->n_params; t++)
            add_sum(e, 1, table, dtables + (size_t)t * table, e->scratch[0], e->param[t].grad);
        return;
    }
    if (!e->n_linear) {
        e->ops->copy(e->be, e->scratch[0], dtables,
                     (size_t)e->config.n_tasks * table * sizeof(float));
        input_back(e, e->scratch[0]);
        return;
    }
    for (int i = e->n_linear - 1; i >= 0; i--, at = 1 - at) {
        struct sl_encoder_linear *l = &e->linear[i];
        float *dpre = e->scratch[at];

        e->ops->bias_act_back_f32(e->be, l->kind, e->rows, l->out, dy, l->pre ? l->pre : dy, dpre,
                                  e->param[l->bias].grad);
        e->ops->gemm_f32(e->be, true, false, l->out, l->in, e->rows, 1, dpre, l->out, l->x, l->in,
                         1, e->param[l->weight].grad, l->in);
        e->ops->gemm_f32(e->be, false, false, e->rows, l->in, l->out, 1, dpre, l->out,
                         e->param[l->weight].value, l->in, 0, e->scratch[1 - at], l->in);
        dy = e->scratch[1 - at];
    }
    input_back(e, e->n_lstm ? lstm_backward(e, at) : e->scratch[at]);
}
