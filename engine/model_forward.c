/* Forward pass and loss. See performance notes in model_parts.h for what is kept. */
#include "engine/model_parts.h"

/* Norms of heads and rotary positions, from raw to x: Q of rows with its positions, or K. */
static void norm_and_turn(struct sl_model *m, const struct sl_weight *w, const sl_act *raw,
                          int64_t ld, int64_t rows, int heads, const int32_t *pos, sl_act *x,
                          float *rstd)
{
    const struct sl_arch *a = &m->arch;
    if (w)
        m->ops->head_norm(m->be, raw, ld, rows, heads, a->head_dim, w, a->norm_eps, x, ld, rstd);
    if (m->rope)
        m->ops->rope(m->be, x, ld, rows, heads, a->head_dim, a->rope_dims, pos, m->rope, false);
}

void sl_layer_heads(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s,
                    int64_t rows, const int32_t *pos)
{
    const struct sl_arch *a = &m->arch;
    int64_t ld = m->q_cols + 2 * m->kv_cols;
    if (l->q_norm) {
        norm_and_turn(m, l->q_norm, s->raw, ld, rows, a->heads, pos, s->qkv, s->rstd_q);
        norm_and_turn(m, l->k_norm, sl_at(m, s->raw, m->q_cols), ld, rows, a->kv_heads, pos,
                      sl_at(m, s->qkv, m->q_cols), s->rstd_k);
    } else /* K's heads follow Q's */
        norm_and_turn(m, NULL, NULL, ld, rows, a->heads + a->kv_heads, pos, s->qkv, NULL);
}

void sl_layer_qkv(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s,
                  int64_t rows, const int32_t *pos, sl_act *tmp)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    int64_t ld = m->q_cols + 2 * m->kv_cols;
    sl_act *raw_k = sl_at(m, s->raw, m->q_cols);
    ops->norm(m->be, s->x, rows, a->hidden, l->norm1, l->norm1_b, a->norm_eps, a->rms_norm, tmp,
              s->mean1, s->rstd1);
    if (l->qkv)
        ops->matmul(m->be, tmp, a->hidden, rows, l->qkv, l->qkv_b, NULL, 0, s->raw, ld);
    else {
        ops->matmul(m->be, tmp, a->hidden, rows, l->q, l->q_b, NULL, 0, s->raw, ld);
        ops->matmul(m->be, tmp, a->hidden, rows, l->kv, l->kv_b, NULL, 0, raw_k, ld);
    }
    sl_layer_heads(m, l, s, rows, pos);
}

/* From mid to pre. */
static void to_pre(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s, int64_t rows, sl_act *tmp)
{
    const struct sl_arch *a = &m->arch;
    m->ops->norm(m->be, s->mid, rows, a->hidden, l->norm2, l->norm2_b, a->norm_eps, a->rms_norm, tmp, s->mean2, s->rstd2);
    m->ops->matmul(m->be, tmp, a->hidden, rows, l->up, l->up_b, NULL, 0, s->pre, m->pre_cols);
}

void sl_layer_middle(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s,
                     const sl_act *x, int64_t rows, sl_act *tmp)
{
    int64_t hidden = m->arch.hidden;
    m->ops->matmul(m->be, s->o, m->q_cols, rows, l->o, l->o_b, x, hidden, s->mid, hidden);
    to_pre(m, l, s, rows, tmp);
}

void sl_layer_rest(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s,
                   const sl_act *x, int64_t rows, sl_act *tmp, sl_act *act, sl_act *y)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    int64_t hidden = a->hidden;
    sl_layer_middle(m, l, s, x, rows, tmp);
    ops->activation(m->be, m->act, s->pre, rows, a->ffn, act);
    ops->matmul(m->be, act, a->ffn, rows, l->down, l->down_b, s->mid, hidden, y, hidden);
}

void sl_keep_kv(struct sl_model *m, const sl_act *k, const sl_act *v, int64_t ld, int64_t rows,
                const int32_t *index, sl_act *cache)
{
    m->ops->scatter(m->be, k, ld, index, rows, m->kv_cols, false, cache, 2 * m->kv_cols);
    m->ops->scatter(m->be, v, ld, index, rows, m->kv_cols, false, sl_at(m, cache, m->kv_cols),
                    2 * m->kv_cols);
}

static void attend(struct sl_model *m, const struct sl_work *w, const struct sl_saved *s)
{
    int64_t ld = m->q_cols + 2 * m->kv_cols;
    m->ops->attention(m->be, &w->full, s->qkv, ld, sl_at(m, s->qkv, m->q_cols), ld,
                      sl_at(m, s->raw, m->q_cols + m->kv_cols), ld, s->o, m->q_cols, s->lse);
}

static void forward_layer(struct sl_model *m, struct sl_work *w, int layer,
                          const struct sl_kv_sink *sink)
{
    const struct sl_layer *l = &m->layers[layer];
    const struct sl_saved *s = &m->saved[layer];
    int64_t rows = w->dev.n_tokens, ld = m->q_cols + 2 * m->kv_cols;
    sl_layer_qkv(m, l, s, rows, w->dev.pos, w->tmp);
    if (sink)
        sl_keep_kv(m, sl_at(m, s->qkv, m->q_cols), sl_at(m, s->raw, m->q_cols + m->kv_cols), ld,
                   rows, sink->index, sink->layer[layer]);
    attend(m, w, s);
    sl_layer_rest(m, l, s, s->x, rows, w->tmp, w->act, m->saved[layer + 1].x);
}

void sl_layer_again(struct sl_model *m, struct sl_work *w, int layer)
{
    const struct sl_layer *l = &m->layers[layer];
    const struct sl_saved *s = &m->saved[layer];
    int64_t rows = w->dev.n_tokens;
    if (layer < m->again.whole - 1) {
        sl_layer_qkv(m, l, s, rows, w->dev.pos, w->tmp);
        attend(m, w, s);
        sl_layer_middle(m, l, s, s->x, rows, w->tmp);
        return;
    }
    if (l->q_norm && layer < m->arch.layers - 2) /* the last one whose heads lie there */
        sl_layer_heads(m, l, s, rows, w->dev.pos);
    if (layer < m->again.mlps - 1)
        to_pre(m, l, s, rows, w->tmp);
}

/* K and V of all rows; everything else for the out rows only. */
static void forward_last(struct sl_model *m, struct sl_work *w, const struct sl_kv_sink *sink)
{
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    const struct sl_layer *l = &m->layers[a->layers - 1];
    const struct sl_saved *s = &m->saved[a->layers - 1];
    int64_t rows = w->dev.n_tokens, outs = w->dev.n_out, ld = 2 * m->kv_cols, hidden = a->hidden;
    sl_act *v = sl_at(m, s->raw, m->kv_cols);

    ops->norm(m->be, s->x, rows, a->hidden, l->norm1, l->norm1_b, a->norm_eps, a->rms_norm, w->tmp,
              s->mean1, s->rstd1);
    ops->matmul(m->be, w->tmp, hidden, rows, l->kv, l->kv_b, NULL, 0, s->raw, ld);
    ops->gather(m->be, w->tmp, hidden, w->dev.out, outs, a->hidden, w->out_tmp, hidden);
    ops->matmul(m->be, w->out_tmp, hidden, outs, l->q, l->q_b, NULL, 0, s->raw_q, m->q_cols);
    norm_and_turn(m, l->k_norm, s->raw, ld, rows, a->kv_heads, w->dev.pos, s->qkv, s->rstd_k);
    norm_and_turn(m, l->q_norm, s->raw_q, m->q_cols, outs, a->heads, w->dev.out_pos, s->q,
                  s->rstd_q);
    if (sink)
        sl_keep_kv(m, s->qkv, v, ld, rows, sink->index, sink->layer[a->layers - 1]);
    ops->attention(m->be, &w->outs, s->q, m->q_cols, s->qkv, ld, v, ld, s->o, m->q_cols, s->lse);
    ops->gather(m->be, s->x, hidden, w->dev.out, outs, a->hidden, s->mid, hidden);
    sl_layer_rest(m, l, s, s->mid, outs, w->out_tmp, w->act, w->out_x);
}

void sl_forward(struct sl_model *m, struct sl_work *w, const float *prompts,
                const struct sl_kv_sink *sink)
{
    const struct sl_arch *a = &m->arch;
    m->ops->embed(m->be, m->embed, m->pos_embed, prompts, w->dev.src, w->dev.pos, w->dev.n_tokens,
                  a->hidden, m->saved[0].x);
    for (int l = 0; l < a->layers - 1; l++)
        forward_layer(m, w, l, sink);
    forward_last(m, w, sink);
    m->ops->norm(m->be, w->out_x, w->dev.n_out, a->hidden, m->norm, m->norm_b, a->norm_eps,
                 a->rms_norm, w->out_tmp, w->mean, w->rstd);
}

void sl_loss(struct sl_model *m, struct sl_work *w, bool gradient)
{
    const struct sl_batch *b = w->host;
    int64_t hidden = m->arch.hidden, ld = m->logits_ld;
    for (int row = 0, e = 0; row < b->n_out; row += m->logit_rows) {
        int n = b->n_out - row < m->logit_rows ? b->n_out - row : m->logit_rows, begin = e;
        while (e < b->n_entries && b->entry_out[e] < row + n)
            e++;
        sl_act *x = sl_at(m, w->out_tmp, row * hidden);
        m->ops->matmul(m->be, x, hidden, n, m->head, NULL, NULL, 0, w->logits, ld);
        m->ops->cross_entropy(m->be, w->logits, ld, n, m->arch.vocab, e - begin, w->entry_row + begin,
                              w->dev.entry_target + begin, w->dev.entry_weight + begin, gradient,
                              w->loss + begin);
        if (gradient)
            m->ops->matmul_back(m->be, w->logits, ld, n, m->head, false, x, hidden);
    }
}
