/* Where everything lies in the arena of a step, and how large that is. The arena is laid out twice,
 * first without memory: what is counted is what is taken. */
#include "engine/model_parts.h"

#define ARENA_ALIGN 256

int64_t sl_model_arena_bytes(const struct sl_model *m)
{
    return (int64_t)m->arena_used;
}

int sl_recompute_most(int layers)
{
    return layers > 2 ? 2 * (layers - 1) - 1 : 0;
}

struct sl_recompute sl_recompute_at(int layers, int n)
{
    int all = layers - 1, most = sl_recompute_most(layers);
    n = n > most ? most : n;
    return n < 2      ? (struct sl_recompute){0, 0}
           : n <= all ? (struct sl_recompute){n, 0}
                      : (struct sl_recompute){all, n - all + 1};
}

void sl_model_recompute(struct sl_model *m, struct sl_recompute again)
{
    m->again = again;
}

void *sl_arena_take(struct sl_arena *a, int64_t n, size_t size)
{
    size_t at = a->used;
    a->used = (at + (size_t)n * size + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return a->base ? a->base + at : NULL;
}

static void *take_rows(const struct sl_model *m, struct sl_arena *a, int64_t rows, int64_t cols)
{
    return sl_arena_take(a, rows * cols, m->ops->act_bytes);
}

/* All of a layer but x, and but pre where that is shared. heads: the memory of normed and rotated Q and K that layers
 * share. */
static void lay_out_layer(const struct sl_model *m, struct sl_arena *a, const struct sl_batch *b,
                          bool last, bool no_pre, const struct sl_saved *heads, struct sl_saved *s)
{
    int64_t hidden = m->arch.hidden, all = b->n_tokens, rows = last ? b->n_out : all;
    s->mean1 = sl_arena_take(a, all, sizeof(float));
    s->rstd1 = sl_arena_take(a, all, sizeof(float));
    s->raw = s->qkv = take_rows(m, a, all, (last ? 0 : m->q_cols) + 2 * m->kv_cols);
    s->raw_q = s->q = last ? take_rows(m, a, rows, m->q_cols) : NULL;
    if (m->arch.qk_norm) {
        s->qkv = heads->qkv;
        s->q = heads->q;
        s->rstd_q = heads->rstd_q;
        s->rstd_k = heads->rstd_k;
    }
    s->o = take_rows(m, a, rows, m->q_cols);
    s->lse = sl_arena_take(a, rows * m->arch.heads, sizeof(float));
    s->mid = take_rows(m, a, rows, hidden);
    s->mean2 = sl_arena_take(a, rows, sizeof(float));
    s->rstd2 = sl_arena_take(a, rows, sizeof(float));
    if (!no_pre)
        s->pre = take_rows(m, a, rows, m->pre_cols);
}

static struct sl_saved lay_out_heads(const struct sl_model *m, struct sl_arena *a,
                                     const struct sl_batch *b, bool last)
{
    struct sl_saved s = {0};
    int64_t all = b->n_tokens, rows = last ? b->n_out : all;
    if (!m->arch.qk_norm)
        return s;
    s.qkv = take_rows(m, a, all, (last ? 0 : m->q_cols) + 2 * m->kv_cols);
    s.q = last ? take_rows(m, a, rows, m->q_cols) : NULL;
    s.rstd_q = sl_arena_take(a, rows * m->arch.heads, sizeof(float));
    s.rstd_k = sl_arena_take(a, all * m->arch.kv_heads, sizeof(float));
    return s;
}

static void lay_out_layers(struct sl_arena *a, const struct sl_model *m, const struct sl_batch *b,
                           bool gradient, struct sl_recompute again, struct sl_saved *saved)
{
    int last = m->arch.layers - 1;
    struct sl_saved shared = {0}, heads = lay_out_heads(m, a, b, last == 0);
    for (int l = 0; l <= last; l++) {
        struct sl_saved s = {0};
        bool shares = l < last && (!gradient || l < again.whole), no_pre = l > 0 && l < last && l < again.mlps;
        if (l == last && last > 0)
            heads = lay_out_heads(m, a, b, true);
        if (shares && l > 0)
            s = shared;
        else
            lay_out_layer(m, a, b, l == last, no_pre, &heads, &s);
        if (no_pre)
            s.pre = shared.pre;
        s.x = !gradient && l > 0 ? shared.x : take_rows(m, a, b->n_tokens, m->arch.hidden);
        if (l == 0)
            shared = s;
        saved[l] = s;
    }
}

/* Everything a pass needs, at addresses in the arena (or just counted). Returns the block of the
 * batch's arrays; behind it lie the entries' rows within their chunks. */
static void *lay_out(const struct sl_model *m, struct sl_arena *a, const struct sl_batch *b,
                     bool gradient, bool want_logits, struct sl_recompute again, struct sl_saved *saved,
                     struct sl_work *w, struct sl_step_bytes *bytes)
{
    int64_t hidden = m->arch.hidden, rows = b->n_tokens, outs = b->n_out, nv = b->n_virtual;
    int64_t wide = m->q_cols > hidden ? m->q_cols : hidden, qkv = m->q_cols + 2 * m->kv_cols;
    int64_t chunk = outs < m->logit_rows ? outs : m->logit_rows;
    void *block = sl_arena_take(a, (int64_t)b->memory_bytes, 1);

    w->entry_row = sl_arena_take(a, b->n_entries, sizeof(int32_t));
    bytes->batch = (int64_t)a->used;
    lay_out_layers(a, m, b, gradient, again, saved);
    bytes->kept = (int64_t)a->used - bytes->batch;
    w->tmp = take_rows(m, a, rows, wide);
    w->act = take_rows(m, a, rows, gradient && qkv > m->arch.ffn ? qkv : m->arch.ffn);
    w->out_x = take_rows(m, a, outs, hidden);
    w->out_tmp = take_rows(m, a, outs, wide);
    w->mean = sl_arena_take(a, outs, sizeof(float));
    w->rstd = sl_arena_take(a, outs, sizeof(float));
    w->loss = sl_arena_take(a, b->n_entries, sizeof(float));
    if (gradient) {
        w->dqkv = w->act;
        w->out_dx = take_rows(m, a, outs, hidden);
        w->dx = take_rows(m, a, rows, hidden);
        w->v_x = take_rows(m, a, nv, hidden);
        w->v_tmp = take_rows(m, a, nv, hidden);
        w->v_dx = take_rows(m, a, nv, hidden);
        w->v_dqkv = take_rows(m, a, nv, qkv);
        w->v_mean = sl_arena_take(a, nv, sizeof(float));
        w->v_rstd = sl_arena_take(a, nv, sizeof(float));
    }
    bytes->scratch = (int64_t)a->used - bytes->batch - bytes->kept;
    w->logits = take_rows(m, a, chunk, m->logits_ld);
    if (want_logits && m->ops->act_bytes != sizeof(float))
        w->logits_f32 = sl_arena_take(a, chunk * m->arch.vocab, sizeof(float));
    bytes->logits = (int64_t)a->used - bytes->batch - bytes->kept - bytes->scratch;
    bytes->total = (int64_t)a->used;
    return block;
}

void sl_model_step_bytes(const struct sl_model *m, const struct sl_batch *most, bool gradient,
                         struct sl_recompute again, struct sl_step_bytes *ret_bytes)
{
    struct sl_arena a = {NULL, 0};
    struct sl_saved saved[SL_MAX_LAYERS];
    struct sl_work w;
    lay_out(m, &a, most, gradient, false, again, saved, &w, ret_bytes);
}

/* The arena's content is of no use between steps. */
int sl_model_reserve(struct sl_model *m, int64_t bytes, struct sl_err *err)
{
    if ((size_t)bytes <= m->arena_cap)
        return 0;
    if (m->arena)
        m->ops->free(m->be, m->arena);
    m->arena = NULL;
    m->arena_cap = 0;
    int rc = m->ops->alloc(m->be, (size_t)bytes, &m->arena, err);
    if (rc)
        return sl_err_wrap(err, rc,
                           "activations of this batch need %.1f MiB; lower micro_batch_size",
                           (double)bytes / (1 << 20));
    m->arena_cap = (size_t)bytes;
    return 0;
}

int sl_model_place(struct sl_model *m, const struct sl_batch *batch, bool gradient,
                   bool want_logits, struct sl_work *w, void **ret_block, struct sl_err *err)
{
    struct sl_step_bytes bytes;
    struct sl_arena a = {NULL, 0};
    lay_out(m, &a, batch, gradient, want_logits, m->again, m->saved, w, &bytes);
    int rc = sl_model_reserve(m, bytes.total, err);
    if (rc)
        return rc;
    m->arena_used = a.used;
    a = (struct sl_arena){m->arena, 0};
    *ret_block = lay_out(m, &a, batch, gradient, want_logits, m->again, m->saved, w, &bytes);
    return 0;
}
