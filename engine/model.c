/* The driver of one pass: uploads the batch, runs forward, loss and backward, brings results home. */
#include "engine/model.h"
#include "engine/model_parts.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    w->full.set_keys = true; /* every key is some sequence's */
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

/* What must be equal for a captured pass to serve another batch: numbers and addresses. Never 0. */
static uint64_t bucket_of(const struct sl_model *m, const struct sl_batch *b, const float *prompts, const float *dprompts,
                          bool loss)
{
    uint64_t h = 1469598103934665603u;
#define MIX(x) h = (h ^ (uint64_t)(x)) * 1099511628211u, h ^= h >> 29
    MIX(b->n_tokens), MIX(b->n_out), MIX(b->n_entries), MIX(b->n_virtual), MIX(b->n_prompts);
    MIX(b->n_seqs), MIX(b->n_out_seqs), MIX(loss), MIX(m->again.mlps), MIX(m->again.whole);
    MIX((uintptr_t)m), MIX((uintptr_t)m->arena), MIX((uintptr_t)prompts), MIX((uintptr_t)dprompts);
    for (int s = 0; s < b->n_seqs; s++) /* launches of attention follow from these too */
        if (s == 0 || b->seq[s].prefix_start != b->seq[s - 1].prefix_start ||
            b->seq[s].prefix_len != b->seq[s - 1].prefix_len)
            MIX(b->seq[s].prefix_len);
#undef MIX
    return h ? h : 1;
}

/* A pass over few positions is launches more than work: it is captured and run again where the backend can. */
static bool worth_capture(const struct sl_model *m, const struct sl_batch *b)
{
    return m->ops->step_replay && b->n_out > 0 && (int64_t)b->n_tokens * m->arch.hidden <= SL_CAPTURE_NUMBERS_MAX &&
           b->n_out <= m->logit_rows / 2;
}

static int run_pass(struct sl_model *m, const struct sl_batch *batch, bool capture, const float *prompts,
                    const struct sl_kv_sink *sink, float *dprompts, bool loss, bool logits, struct sl_work *w,
                    struct sl_err *err)
{
    size_t prompt_bytes = sizeof(float) * (size_t)batch->n_prompts * (size_t)m->arch.hidden;
    bool gradient = dprompts && batch->n_virtual > 0 && batch->n_entries > 0;
    void *block;
    int rc = sl_model_place(m, batch, gradient, logits, w, &block, err);
    if (!rc)
        rc = upload(m, batch, block, w, err);
    if (rc)
        return rc;
    uint64_t bucket = capture ? bucket_of(m, batch, prompts, dprompts, loss) : 0;
    if (bucket && m->ops->step_replay(m->be, bucket))
        return m->ops->step_end(m->be, err);
    m->ops->step_begin(m->be, bucket);
    if (dprompts && prompt_bytes > 0)
        m->ops->zero(m->be, dprompts, prompt_bytes);
    if (batch->n_out > 0) {
        sl_forward(m, w, prompts, sink);
        if (gradient || (loss && batch->n_entries > 0))
            sl_loss(m, w, gradient);
        if (gradient)
            sl_backward(m, w, dprompts);
    }
    return m->ops->step_end(m->be, err);
}

int sl_model_pass(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                  const struct sl_kv_sink *sink, float *dprompts, float *host_loss,
                  float *host_logits, struct sl_err *err)
{
    bool capture = !sink && !host_logits && worth_capture(m, batch);
    struct sl_batch padded = {0};
    struct sl_work w = {0};
    int rc = capture ? sl_batch_pad(batch, &padded, err) : 0;
    if (rc)
        return rc;
    rc = run_pass(m, capture ? &padded : batch, capture, prompts, sink, dprompts, host_loss != NULL, host_logits != NULL, &w,
                  err);
    if (!rc && host_loss && batch->n_entries > 0)
        rc = m->ops->download(m->be, host_loss, w.loss, sizeof(float) * (size_t)batch->n_entries,
                              err);
    if (!rc && host_logits)
        rc = sl_model_head(m, w.out_tmp, batch->n_out, w.logits, w.logits_f32, host_logits, err);
    sl_batch_release(&padded);
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
