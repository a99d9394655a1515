/* Backward pass to the prompts. dx is the gradient of the residual stream; every part adds its own
 * to it. */
#include "engine/model_parts.h"

/* Through the MLP and its norm: dx [rows, hidden] gains the MLP's share. pre is used up. */
static void back_mlp(struct sl_model *m, struct sl_work *w, int layer, int64_t rows, sl_act *dx)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    const struct sl_layer *l = &m->layers[layer];
    const struct sl_saved *s = &m->saved[layer];
    if (ops->mlp_back)
        ops->mlp_back(m->be, m->act, dx, a->hidden, rows, a->ffn, l->down, s->pre, w->act, l->up, w->tmp,
                      a->hidden);
    else {
        ops->matmul_back(m->be, dx, a->hidden, rows, l->down, false, w->act, a->ffn);
        ops->activation_back(m->be, m->act, w->act, s->pre, rows, a->ffn, s->pre);
        ops->matmul_back(m->be, s->pre, m->pre_cols, rows, l->up, false, w->tmp, a->hidden);
    }
    ops->norm_back(m->be, w->tmp, s->mid, s->mean2, s->rstd2, rows, a->hidden, l->norm2,
                   a->rms_norm, true, dx);
}

/* The planted fault: prefix keys and values keep only what their own sequence says of them. */
static void forget_rows_on_prefix(struct sl_model *m, const struct sl_attention *all,
                                  const struct sl_seq *seq, const sl_act *q, int64_t ldq,
                                  const sl_act *k, const sl_act *v, int64_t ldkv, const sl_act *o,
                                  const float *lse, const sl_act *d_o, sl_act *dq, sl_act *dk,
                                  sl_act *dv)
{
    const struct sl_ops *ops = m->ops;
    for (int s = 0; s < all->n_seqs; s++) {
        if (seq[s].prefix_len == 0 ||
            (s > 0 && seq[s - 1].prefix_len && seq[s - 1].prefix_start == seq[s].prefix_start))
            continue;
        for (int i = 0; i < seq[s].prefix_len; i++) /* V's columns follow K's */
            ops->zero(m->be, sl_at(m, dk, (seq[s].prefix_start + i) * ldkv),
                      2 * (size_t)m->kv_cols * ops->act_bytes);
        if (s == 0 || seq[s - 1].kv_start != seq[s].prefix_start)
            continue; /* the prefix has no queries here */
        struct sl_attention one = *all;
        one.n_seqs = 1;
        one.seqs += s - 1;
        one.host_seqs += s - 1;
        ops->attention_back(m->be, &one, q, ldq, k, ldkv, v, ldkv, o, m->q_cols, lse, d_o,
                            m->q_cols, dq, ldq, dk, ldkv, dv, ldkv);
    }
}

static void back_attention(struct sl_model *m, const struct sl_attention *att, const sl_act *q,
                           int64_t ldq, const sl_act *k, const sl_act *v, int64_t ldkv,
                           const struct sl_saved *s, const sl_act *d_o, sl_act *dq, sl_act *dk)
{
    sl_act *dv = sl_at(m, dk, m->kv_cols);
    m->ops->attention_back(m->be, att, q, ldq, k, ldkv, v, ldkv, s->o, m->q_cols, s->lse, d_o,
                           m->q_cols, dq, ldq, dk, ldkv, dv, ldkv);
    if (m->fault == SL_FAULT_NO_PREFIX_DKV)
        forget_rows_on_prefix(m, att, att->host_seqs, q, ldq, k, v, ldkv, s->o, s->lse, d_o, dq, dk,
                              dv);
}

/* Back through rotary positions and norms of heads, in place: from the gradient dx of Q or K, as
 * attention saw it, to that of raw. */
static void back_turn_and_norm(struct sl_model *m, const struct sl_weight *w, sl_act *dx,
                               int64_t ld, int64_t rows, int heads, const int32_t *pos,
                               const sl_act *raw, const float *rstd)
{
    const struct sl_arch *a = &m->arch;
    if (m->rope)
        m->ops->rope(m->be, dx, ld, rows, heads, a->head_dim, a->rope_dims, pos, m->rope, true);
    if (w)
        m->ops->head_norm_back(m->be, dx, ld, raw, ld, rstd, rows, heads, a->head_dim, w, dx, ld);
}

/* From w->out_dx, the gradient of the layer's output at the out rows, to w->dx, that of all rows of
 * its input. */
static void back_last(struct sl_model *m, struct sl_work *w)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    int layer = a->layers - 1;
    const struct sl_layer *l = &m->layers[layer];
    const struct sl_saved *s = &m->saved[layer];
    int64_t rows = w->dev.n_tokens, outs = w->dev.n_out, ld = 2 * m->kv_cols, hidden = a->hidden;
    sl_act *dq = w->out_tmp, *dkv = w->dqkv, *dnorm = w->out_x;

    back_mlp(m, w, layer, outs, w->out_dx);
    ops->matmul_back(m->be, w->out_dx, hidden, outs, l->o, false, w->tmp, m->q_cols);
    ops->zero(m->be, dkv, (size_t)(rows * ld) * ops->act_bytes);
    back_attention(m, &w->outs, s->q, m->q_cols, s->qkv, sl_at(m, s->raw, m->kv_cols), ld, s,
                   w->tmp, dq, dkv);
    back_turn_and_norm(m, l->k_norm, dkv, ld, rows, a->kv_heads, w->dev.pos, s->raw, s->rstd_k);
    back_turn_and_norm(m, l->q_norm, dq, m->q_cols, outs, a->heads, w->dev.out_pos, s->raw_q,
                       s->rstd_q);
    ops->matmul_back(m->be, dkv, ld, rows, l->kv, false, w->tmp, hidden);
    ops->matmul_back(m->be, dq, m->q_cols, outs, l->q, false, dnorm, hidden);
    ops->scatter(m->be, dnorm, hidden, w->dev.out, outs, a->hidden, true, w->tmp, hidden);
    ops->norm_back(m->be, w->tmp, s->x, s->mean1, s->rstd1, rows, a->hidden, l->norm1, a->rms_norm,
                   false, w->dx);
    ops->scatter(m->be, w->out_dx, hidden, w->dev.out, outs, a->hidden, true, w->dx, hidden);
}

/* From w->dx at the layer's output to w->dx at its middle and w->dqkv, see back_heads. */
static void back_to_qkv(struct sl_model *m, struct sl_work *w, int layer)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_saved *s = &m->saved[layer];
    int64_t rows = w->dev.n_tokens, ld = m->q_cols + 2 * m->kv_cols;
    sl_layer_again(m, w, layer);
    back_mlp(m, w, layer, rows, w->dx);
    ops->matmul_back(m->be, w->dx, m->arch.hidden, rows, m->layers[layer].o, false, w->tmp,
                     m->q_cols);
    back_attention(m, &w->full, s->qkv, ld, sl_at(m, s->qkv, m->q_cols),
                   sl_at(m, s->raw, m->q_cols + m->kv_cols), ld, s, w->tmp, w->dqkv,
                   sl_at(m, w->dqkv, m->q_cols));
}

/* From w->dqkv as attention left it to that of raw, in all rows. */
static void back_heads(struct sl_model *m, struct sl_work *w, int layer)
{
    const struct sl_arch *a = &m->arch;
    const struct sl_layer *l = &m->layers[layer];
    const struct sl_saved *s = &m->saved[layer];
    int64_t rows = w->dev.n_tokens, ld = m->q_cols + 2 * m->kv_cols;
    if (!l->q_norm) { /* K's heads follow Q's */
        back_turn_and_norm(m, NULL, w->dqkv, ld, rows, a->heads + a->kv_heads, w->dev.pos, NULL,
                           NULL);
        return;
    }
    back_turn_and_norm(m, l->q_norm, w->dqkv, ld, rows, a->heads, w->dev.pos, s->raw, s->rstd_q);
    back_turn_and_norm(m, l->k_norm, sl_at(m, w->dqkv, m->q_cols), ld, rows, a->kv_heads,
                       w->dev.pos, sl_at(m, s->raw, m->q_cols), s->rstd_k);
}

static void back_layer(struct sl_model *m, struct sl_work *w, int layer)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    const struct sl_saved *s = &m->saved[layer];
    int64_t rows = w->dev.n_tokens, ld = m->q_cols + 2 * m->kv_cols;
    back_to_qkv(m, w, layer);
    back_heads(m, w, layer);
    ops->matmul_back(m->be, w->dqkv, ld, rows, m->layers[layer].qkv, false, w->tmp, a->hidden);
    ops->norm_back(m->be, w->tmp, s->x, s->mean1, s->rstd1, rows, a->hidden, m->layers[layer].norm1,
                   a->rms_norm, true, w->dx);
}

/* The first layer's input matters at virtual positions only. */
static void back_first(struct sl_model *m, struct sl_work *w)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    const struct sl_layer *l = &m->layers[0];
    int64_t ld = m->q_cols + 2 * m->kv_cols, n = w->dev.n_virtual, hidden = a->hidden;
    const int32_t *at = w->dev.virtual_pos;
    back_to_qkv(m, w, 0);
    back_heads(m, w, 0);
    ops->gather(m->be, w->dqkv, ld, at, n, (int)ld, w->v_dqkv, ld);
    ops->matmul_back(m->be, w->v_dqkv, ld, n, l->qkv, false, w->v_dx, hidden);
    ops->gather(m->be, m->saved[0].x, hidden, at, n, a->hidden, w->v_x, hidden);
    /* again for these rows alone: only their mean and rstd are wanted, beside each other */
    ops->norm(m->be, w->v_x, n, a->hidden, l->norm1, l->norm1_b, a->norm_eps, a->rms_norm, w->v_tmp,
              w->v_mean, w->v_rstd);
    ops->gather(m->be, w->dx, hidden, at, n, a->hidden, w->v_tmp, hidden);
    ops->norm_back(m->be, w->v_dx, w->v_x, w->v_mean, w->v_rstd, n, a->hidden, l->norm1,
                   a->rms_norm, true, w->v_tmp);
}

void sl_backward(struct sl_model *m, struct sl_work *w, float *dprompts)
{
    const struct sl_arch *a = &m->arch;
    m->ops->norm_back(m->be, w->out_tmp, w->out_x, w->mean, w->rstd, w->dev.n_out, a->hidden,
                      m->norm, a->rms_norm, false, w->out_dx);
    back_last(m, w);
    for (int l = a->layers - 2; l > 0; l--)
        back_layer(m, w, l);
    if (a->layers > 1)
        back_first(m, w);
    else
        m->ops->gather(m->be, w->dx, a->hidden, w->dev.virtual_pos, w->dev.n_virtual, a->hidden,
                       w->v_tmp, a->hidden);
    m->ops->embed_back(m->be, w->v_tmp, a->hidden, w->dev.grad_ptr, w->dev.grad_list,
                       w->dev.n_prompts, dprompts);
}
