/* The driver of one pass: sizes the arena, uploads the batch, runs forward, loss and backward,
 * brings results home. */
#include "engine/model.h"
#include "engine/model_parts.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_ALIGN 256

const struct sl_arch *sl_model_arch(const struct sl_model *m)
{
    return &m->arch;
}

const struct sl_ops *sl_model_ops(const struct sl_model *m)
{
    return m->ops;
}

struct sl_backend *sl_model_backend(const struct sl_model *m)
{
    return m->be;
}

void sl_model_plant(struct sl_model *m, enum sl_fault fault)
{
    m->fault = fault;
}

int64_t sl_model_weight_bytes(const struct sl_model *m)
{
    return m->weight_bytes;
}

int64_t sl_model_arena_bytes(const struct sl_model *m)
{
    return (int64_t)m->arena_used;
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

static void lay_out_layer(const struct sl_model *m, struct sl_arena *a, const struct sl_batch *b,
                          bool last, bool own_x, struct sl_saved *s)
{
    int64_t hidden = m->arch.hidden, all = b->n_tokens, rows = last ? b->n_out : all;
    s->x = own_x ? take_rows(m, a, all, hidden) : m->saved[0].x;
    s->mean1 = sl_arena_take(a, all, sizeof(float));
    s->rstd1 = sl_arena_take(a, all, sizeof(float));
    s->raw = s->qkv = take_rows(m, a, all, (last ? 0 : m->q_cols) + 2 * m->kv_cols);
    s->raw_q = s->q = last ? take_rows(m, a, rows, m->q_cols) : NULL;
    if (m->arch.qk_norm) {
        s->raw = take_rows(m, a, all, (last ? 0 : m->q_cols) + 2 * m->kv_cols);
        s->raw_q = last ? take_rows(m, a, rows, m->q_cols) : NULL;
        s->rstd_q = sl_arena_take(a, rows * m->arch.heads, sizeof(float));
        s->rstd_k = sl_arena_take(a, all * m->arch.kv_heads, sizeof(float));
    }
    s->o = take_rows(m, a, rows, m->q_cols);
    s->lse = sl_arena_take(a, rows * m->arch.heads, sizeof(float));
    s->mid = take_rows(m, a, rows, hidden);
    s->mean2 = sl_arena_take(a, rows, sizeof(float));
    s->rstd2 = sl_arena_take(a, rows, sizeof(float));
    s->pre = take_rows(m, a, rows, m->pre_cols);
}

/* Everything a pass needs, at addresses in the arena (or just counted). Returns the block of the
 * batch's arrays and, behind it, that of the entries' rows within their chunks. */
static void *lay_out(struct sl_model *m, struct sl_arena *a, const struct sl_batch *b,
                     bool gradient, bool want_logits, struct sl_work *w)
{
    int64_t hidden = m->arch.hidden, rows = b->n_tokens, outs = b->n_out, nv = b->n_virtual;
    int64_t wide = m->q_cols > hidden ? m->q_cols : hidden, qkv = m->q_cols + 2 * m->kv_cols;
    int64_t chunk = outs < m->logit_rows ? outs : m->logit_rows;
    int last = m->arch.layers - 1;

    void *block = sl_arena_take(a, (int64_t)b->memory_bytes, 1);
    w->entry_row = sl_arena_take(a, b->n_entries, sizeof(int32_t));
    for (int l = 0; l <= last; l++) {
        if (gradient || l == 0 || l == last)
            lay_out_layer(m, a, b, l == last, gradient || l == 0, &m->saved[l]);
        else
            m->saved[l] = m->saved[0];
    }
    w->tmp = take_rows(m, a, rows, wide);
    w->act = take_rows(m, a, rows, m->arch.ffn);
    w->out_x = take_rows(m, a, outs, hidden);
    w->out_tmp = take_rows(m, a, outs, wide);
    w->mean = sl_arena_take(a, outs, sizeof(float));
    w->rstd = sl_arena_take(a, outs, sizeof(float));
    w->loss = sl_arena_take(a, b->n_entries, sizeof(float));
    w->logits = take_rows(m, a, chunk, m->logits_ld);
    if (want_logits && m->ops->act_bytes != sizeof(float))
        w->logits_f32 = sl_arena_take(a, chunk * m->arch.vocab, sizeof(float));
    if (gradient) {
        w->out_dx = take_rows(m, a, outs, hidden);
        w->dx = take_rows(m, a, rows, hidden);
        w->dqkv = take_rows(m, a, rows, qkv);
        w->v_x = take_rows(m, a, nv, hidden);
        w->v_tmp = take_rows(m, a, nv, hidden);
        w->v_dx = take_rows(m, a, nv, hidden);
        w->v_dqkv = take_rows(m, a, nv, qkv);
        w->v_mean = sl_arena_take(a, nv, sizeof(float));
        w->v_rstd = sl_arena_take(a, nv, sizeof(float));
    }
    return block;
}

/* Grows the arena to bytes. Its content is of no use between steps. */
static int reserve(struct sl_model *m, size_t bytes, struct sl_err *err)
{
    m->arena_used = bytes;
    if (bytes <= m->arena_cap)
        return 0;
    if (m->arena)
        m->ops->free(m->be, m->arena);
    m->arena = NULL;
    m->arena_cap = 0;
    int rc = m->ops->alloc(m->be, bytes, &m->arena, err);
    if (rc)
        return sl_err_wrap(err, rc,
                           "activations of this batch need %.1f MiB; lower micro_batch_size",
                           (double)bytes / (1 << 20));
    m->arena_cap = bytes;
    return 0;
}

/* The batch with its arrays' addresses in the uploaded copy of its block. */
static struct sl_batch on_device(const struct sl_batch *b, char *block)
{
    struct sl_batch d = *b;
    const char *base = b->memory;
#define MOVE(field) d.field = (void *)(block + ((const char *)b->field - base))
    MOVE(seq);
    MOVE(out_seq);
    MOVE(src);
    MOVE(pos);
    MOVE(visible);
    MOVE(out);
    MOVE(out_pos);
    MOVE(out_visible);
    MOVE(entry_out);
    MOVE(entry_target);
    MOVE(entry_weight);
    MOVE(virtual_pos);
    MOVE(grad_ptr);
    MOVE(grad_list);
#undef MOVE
    return d;
}

struct sl_attention sl_attention_over(const struct sl_model *m, const struct sl_seq *host,
                                      const struct sl_seq *device, int n_seqs,
                                      const int32_t *visible, int n_queries, int n_keys)
{
    struct sl_attention a = {.heads = m->arch.heads,
                             .kv_heads = m->arch.kv_heads,
                             .head_dim = m->arch.head_dim,
                             .scale = 1.0f / sqrtf((float)m->arch.head_dim),
                             .n_seqs = n_seqs,
                             .n_queries = n_queries,
                             .n_keys = n_keys,
                             .seqs = device,
                             .visible = visible,
                             .host_seqs = host};
    for (int s = 0; s < n_seqs; s++) {
        int kv = host[s].prefix_len + host[s].kv_len;
        a.max_q_len = host[s].q_len > a.max_q_len ? host[s].q_len : a.max_q_len;
        a.max_kv_len = kv > a.max_kv_len ? kv : a.max_kv_len;
    }
    return a;
}

static int upload(struct sl_model *m, const struct sl_batch *b, void *block, struct sl_work *w,
                  struct sl_err *err)
{
    int rc = m->ops->upload(m->be, block, b->memory, b->memory_bytes, err);
    if (rc)
        return rc;
    w->host = b;
    w->dev = on_device(b, block);
    w->full = sl_attention_over(m, b->seq, w->dev.seq, b->n_seqs, w->dev.visible, b->n_tokens,
                                b->n_tokens);
    w->outs = sl_attention_over(m, b->out_seq, w->dev.out_seq, b->n_out_seqs, w->dev.out_visible,
                                b->n_out, b->n_tokens);
    if (b->n_out <= m->logit_rows) {
        w->entry_row = w->dev.entry_out;
        return 0;
    }
    int32_t *row = malloc(sizeof *row * ((size_t)b->n_entries + 1));
    if (!row)
        return sl_err_set(err, SL_NOMEM, "%d loss entries", b->n_entries);
    for (int e = 0; e < b->n_entries; e++)
        row[e] = b->entry_out[e] % m->logit_rows;
    rc = m->ops->upload(m->be, (void *)(uintptr_t)w->entry_row, row,
                        sizeof *row * (size_t)b->n_entries, err);
    free(row);
    return rc;
}

int sl_model_head(struct sl_model *m, const sl_act *x, int64_t rows, sl_act *logits,
                  float *logits_f32, float *host_logits, struct sl_err *err)
{
    int64_t hidden = m->arch.hidden, vocab = m->arch.vocab;
    for (int64_t r = 0; r < rows; r += m->logit_rows) {
        int64_t n = rows - r < m->logit_rows ? rows - r : m->logit_rows;
        m->ops->matmul(m->be, sl_at(m, x, r * hidden), hidden, n, m->head, NULL, NULL, 0, logits,
                       vocab);
        if (logits_f32)
            m->ops->to_f32(m->be, logits, n * vocab, logits_f32);
        int rc = m->ops->download(m->be, host_logits + r * vocab,
                                  logits_f32 ? (void *)logits_f32 : logits,
                                  sizeof(float) * (size_t)(n * vocab), err);
        if (rc)
            return rc;
    }
    return 0;
}

int sl_model_pass(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                  const struct sl_kv_sink *sink, float *dprompts, float *host_loss,
                  float *host_logits, struct sl_err *err)
{
    size_t prompt_bytes = sizeof(float) * (size_t)batch->n_prompts * (size_t)m->arch.hidden;
    bool gradient = dprompts && batch->n_virtual > 0 && batch->n_entries > 0;
    struct sl_arena arena = {NULL, 0};
    struct sl_work w = {0};
    lay_out(m, &arena, batch, gradient, host_logits != NULL, &w);
    int rc = reserve(m, arena.used, err);
    if (rc)
        return rc;
    arena = (struct sl_arena){m->arena, 0};
    void *block = lay_out(m, &arena, batch, gradient, host_logits != NULL, &w);
    rc = upload(m, batch, block, &w, err);
    if (rc)
        return rc;

    m->ops->step_begin(m->be, 0);
    if (dprompts && prompt_bytes > 0)
        m->ops->zero(m->be, dprompts, prompt_bytes);
    if (batch->n_out > 0) {
        sl_forward(m, &w, prompts, sink);
        if (gradient || (host_loss && batch->n_entries > 0))
            sl_loss(m, &w, gradient);
        if (gradient)
            sl_backward(m, &w, dprompts);
    }
    rc = m->ops->step_end(m->be, err);
    if (!rc && host_loss && batch->n_entries > 0)
        rc = m->ops->download(m->be, host_loss, w.loss, sizeof(float) * (size_t)batch->n_entries,
                              err);
    if (!rc && host_logits)
        rc = sl_model_head(m, w.out_tmp, batch->n_out, w.logits, w.logits_f32, host_logits, err);
    return rc;
}

int sl_model_step(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                  float *dprompts, float *host_loss, struct sl_err *err)
{
    return sl_model_pass(m, batch, prompts, NULL, dprompts, host_loss, NULL, err);
}

int sl_model_logits(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                    float *host_logits, struct sl_err *err)
{
    return sl_model_pass(m, batch, prompts, NULL, NULL, NULL, host_logits, err);
}

int sl_model_embedding(const struct sl_model *m, const int32_t *host_ids, int n, float *host_rows,
                       struct sl_err *err)
{
    const struct sl_ops *ops = m->ops;
    int hidden = m->arch.hidden;
    for (int i = 0; i < n; i++)
        if (host_ids[i] < 0 || host_ids[i] >= m->arch.vocab)
            return sl_err_set(err, SL_SPEC, "token id %d, but the vocabulary has %d", host_ids[i],
                              m->arch.vocab);
    if (n < 1)
        return 0;
    size_t count = (size_t)n * (size_t)hidden;
    void *block = NULL;
    struct sl_arena a = {NULL, 0};
    sl_arena_take(&a, (int64_t)count, sizeof(float));
    sl_arena_take(&a, (int64_t)count, ops->act_bytes);
    sl_arena_take(&a, n, sizeof(int32_t));
    int rc = ops->alloc(m->be, a.used, &block, err);
    if (rc)
        return rc;
    a = (struct sl_arena){block, 0};
    float *rows = sl_arena_take(&a, (int64_t)count, sizeof(float));
    sl_act *x = sl_arena_take(&a, (int64_t)count, ops->act_bytes);
    int32_t *ids = sl_arena_take(&a, n, sizeof(int32_t));
    rc = ops->upload(m->be, ids, host_ids, sizeof *ids * (size_t)n, err);
    if (!rc) {
        ops->embed(m->be, m->embed, NULL, NULL, ids, ids, n, hidden, x);
        ops->to_f32(m->be, x, (int64_t)count, rows);
        rc = ops->download(m->be, host_rows, rows, sizeof(float) * count, err);
    }
    ops->free(m->be, block);
    return rc;
}
