#include "engine/decode.h"
#include "engine/model_parts.h"
#include <stdlib.h>
#include <string.h>

/* The cache: for each layer a matrix [n_keys, 2 kv_cols] of (K | V) rows: first the shared
 * prefixes, once each, then for every row of the batch its own tokens and max_new free rows,
 * contiguous. */
struct cached_row {
    int32_t prefix_start, prefix_len, kv_start, kv_len, kv_max;
};

struct sl_decode {
    struct sl_model *m;
    int n_rows, n_keys;
    struct cached_row *row;
    void *cache_block, *step_block;
    sl_act **cache; /* [layers] */

    /* one step's arrays, host and device, in the same order; see lay_out_ints */
    int32_t *host_ints, *ints;
    size_t ints_bytes;
    bool *named; /* [n_rows] scratch: which rows this call has named */
    struct sl_saved s;
    sl_act *tmp, *act, *logits;
    float *logits_f32;
};

struct step_ints {
    struct sl_seq *seq;
    int32_t *src, *pos, *visible, *index;
};

static struct step_ints step_ints_at(int32_t *base, int n_rows)
{
    struct step_ints s = {.seq = (struct sl_seq *)base};
    s.src = base + (size_t)n_rows * (sizeof(struct sl_seq) / sizeof(int32_t));
    s.pos = s.src + n_rows;
    s.visible = s.pos + n_rows;
    s.index = s.visible + n_rows;
    return s;
}

static void lay_out_step(struct sl_decode *d, struct sl_arena *a)
{
    const struct sl_model *m = d->m;
    const struct sl_arch *arch = &m->arch;
    int64_t n = d->n_rows, hidden = arch->hidden, wide = m->q_cols > hidden ? m->q_cols : hidden;
    int64_t chunk = n < m->logit_rows ? n : m->logit_rows;
    size_t act = m->ops->act_bytes;
    d->ints = sl_arena_take(a, (int64_t)d->ints_bytes, 1);
    d->s.x = sl_arena_take(a, n * hidden, act);
    d->s.raw = d->s.qkv = sl_arena_take(a, n * (m->q_cols + 2 * m->kv_cols), act);
    if (arch->qk_norm) {
        d->s.raw = sl_arena_take(a, n * (m->q_cols + 2 * m->kv_cols), act);
        d->s.rstd_q = d->s.rstd_k = sl_arena_take(a, n * arch->heads, sizeof(float));
    }
    d->s.o = sl_arena_take(a, n * m->q_cols, act);
    d->s.mid = sl_arena_take(a, n * hidden, act);
    d->s.pre = sl_arena_take(a, n * m->pre_cols, act);
    d->s.lse = sl_arena_take(a, n * arch->heads, sizeof(float));
    d->s.mean1 = d->s.mean2 = sl_arena_take(a, n, sizeof(float));
    d->s.rstd1 = d->s.rstd2 = sl_arena_take(a, n, sizeof(float));
    d->tmp = sl_arena_take(a, n * wide, act);
    d->act = sl_arena_take(a, n * arch->ffn, act);
    d->logits = sl_arena_take(a, chunk * arch->vocab, act);
    if (act != sizeof(float))
        d->logits_f32 = sl_arena_take(a, chunk * arch->vocab, sizeof(float));
}

static int allocate(struct sl_decode *d, int max_new, struct sl_err *err)
{
    const struct sl_model *m = d->m;
    struct sl_arena a = {NULL, 0};
    int layers = m->arch.layers;
    int64_t layer_elements = (int64_t)d->n_keys * 2 * m->kv_cols;
    for (int l = 0; l < layers; l++)
        sl_arena_take(&a, layer_elements, m->ops->act_bytes);
    int rc = m->ops->alloc(m->be, a.used, &d->cache_block, err);
    if (rc)
        return sl_err_wrap(err, rc,
                           "a key/value cache of %.1f MiB for %d rows with %d new tokens each; "
                           "generate fewer rows at once",
                           (double)a.used / (1 << 20), d->n_rows, max_new);
    a = (struct sl_arena){d->cache_block, 0};
    for (int l = 0; l < layers; l++)
        d->cache[l] = sl_arena_take(&a, layer_elements, m->ops->act_bytes);
    a = (struct sl_arena){NULL, 0};
    lay_out_step(d, &a);
    rc = m->ops->alloc(m->be, a.used, &d->step_block, err);
    if (rc)
        return rc;
    a = (struct sl_arena){d->step_block, 0};
    lay_out_step(d, &a);
    return 0;
}

/* Where each packed position's keys go in the cache; fills d->row and d->n_keys. */
static void place(struct sl_decode *d, const struct sl_batch *b, int max_new, int32_t *index)
{
    int next = 0;
    for (int s = 0; s < b->n_seqs; s++) {
        for (int i = 0; i < b->seq[s].q_len; i++)
            index[b->seq[s].q_start + i] = next + i;
        next += b->seq[s].q_len + max_new; /* a prefix needs no room, but there is one a slot */
    }
    d->n_keys = next;
    for (int r = 0; r < b->n_rows; r++) {
        const struct sl_seq *seq = &b->seq[b->row_seq[r]];
        d->row[r] =
            (struct cached_row){.prefix_start = seq->prefix_len ? index[seq->prefix_start] : 0,
                                .prefix_len = seq->prefix_len,
                                .kv_start = index[seq->q_start],
                                .kv_len = seq->q_len,
                                .kv_max = seq->q_len + max_new};
    }
}

/* Runs the packed rows, keeps their keys and values, brings the logits home in the rows' order. */
static int prefill(struct sl_decode *d, const struct sl_batch *b, const float *prompts,
                   const int32_t *host_index, float *host_logits, struct sl_err *err)
{
    struct sl_model *m = d->m;
    size_t vocab = (size_t)m->arch.vocab;
    void *index = NULL;
    float *packed = malloc(sizeof(float) * vocab * (size_t)b->n_out);
    int rc = packed ? 0 : sl_err_set(err, SL_NOMEM, "logits of %d rows", b->n_out);
    if (!rc)
        rc = m->ops->alloc(m->be, sizeof(int32_t) * (size_t)b->n_tokens, &index, err);
    if (!rc)
        rc = m->ops->upload(m->be, index, host_index, sizeof(int32_t) * (size_t)b->n_tokens, err);
    if (!rc) {
        struct sl_kv_sink sink = {d->cache, index};
        rc = sl_model_pass(m, b, prompts, &sink, NULL, NULL, packed, err);
    }
    for (int r = 0; !rc && r < b->n_rows; r++)
        memcpy(host_logits + (size_t)r * vocab, packed + (size_t)b->row_out[r] * vocab,
               sizeof(float) * vocab);
    if (index)
        m->ops->free(m->be, index);
    free(packed);
    return rc;
}

static int check_new(const struct sl_model *m, const struct sl_row *rows, int n_rows, int max_new,
                     struct sl_err *err)
{
    if (n_rows < 1 || n_rows > SL_DECODE_MAX_ROWS)
        return sl_err_set(err, SL_SPEC, "generation of %d rows at once; allowed are 1 to %d",
                          n_rows, SL_DECODE_MAX_ROWS);
    for (int r = 0; r < n_rows; r++)
        if (max_new < 0 || max_new > m->arch.max_positions - rows[r].n)
            return sl_err_set(
                err, SL_SPEC,
                "row %d has %d tokens and is to get %d more, but the model has %d positions%s", r,
                rows[r].n, max_new, m->arch.max_positions,
                m->arch.sliding_window ? ": attention in a sliding window is not supported" : "");
    return 0;
}

int sl_decode_new(struct sl_model *m, const struct sl_row *rows, int n_rows, const int *slot_v,
                  int n_slots, const float *prompts, int max_new, float *host_logits,
                  struct sl_decode **ret_decode, struct sl_err *err)
{
    int rc = check_new(m, rows, n_rows, max_new, err);
    if (rc)
        return rc;
    struct sl_batch batch = {0};
    int32_t *index = NULL;
    struct sl_row *plain = malloc(sizeof *plain * (size_t)n_rows);
    struct sl_decode *d = calloc(1, sizeof *d);
    if (d) {
        d->m = m;
        d->n_rows = n_rows;
        d->ints_bytes = (sizeof(struct sl_seq) + 4 * sizeof(int32_t)) * (size_t)n_rows;
        d->row = calloc((size_t)n_rows, sizeof *d->row);
        d->named = calloc((size_t)n_rows, sizeof *d->named);
        d->cache = calloc((size_t)m->arch.layers, sizeof *d->cache);
        d->host_ints = malloc(d->ints_bytes);
    }
    if (!plain || !d || !d->row || !d->named || !d->cache || !d->host_ints)
        rc = sl_err_set(err, SL_NOMEM, "generation of %d rows", n_rows);
    for (int r = 0; !rc && r < n_rows; r++) {
        plain[r] = rows[r];
        plain[r].target = NULL; /* asks for the logits after the last token */
    }
    if (!rc)
        rc = sl_batch_pack(plain, n_rows, slot_v, n_slots, m->arch.vocab, m->arch.max_positions,
                           true, 0, &batch, err);
    if (!rc && !(index = malloc(sizeof *index * (size_t)batch.n_tokens)))
        rc = sl_err_set(err, SL_NOMEM, "generation of %d rows", n_rows);
    if (!rc) {
        place(d, &batch, max_new, index);
        rc = allocate(d, max_new, err);
    }
    if (!rc)
        rc = prefill(d, &batch, prompts, index, host_logits, err);
    free(index);
    free(plain);
    sl_batch_release(&batch);
    if (rc) {
        sl_decode_free(d);
        return rc;
    }
    *ret_decode = d;
    return 0;
}

static int check_step(struct sl_decode *d, const int *row, const int32_t *token, int n,
                      struct sl_err *err)
{
    int rc = 0;
    if (n < 1 || n > d->n_rows)
        return sl_err_set(err, SL_SPEC, "a decoding step of %d rows, but there are %d", n,
                          d->n_rows);
    memset(d->named, 0, sizeof *d->named * (size_t)d->n_rows);
    for (int i = 0; i < n && !rc; i++) {
        if (row[i] < 0 || row[i] >= d->n_rows || d->named[row[i]])
            rc = sl_err_set(err, SL_SPEC, "row %d does not exist or is named twice", row[i]);
        else if (token[i] < 0 || token[i] >= d->m->arch.vocab)
            rc = sl_err_set(err, SL_SPEC, "row %d: token id %d, but the vocabulary has %d", row[i],
                            token[i], d->m->arch.vocab);
        else if (d->row[row[i]].kv_len >= d->row[row[i]].kv_max)
            rc = sl_err_set(err, SL_SPEC, "row %d has all the new tokens it has room for", row[i]);
        else
            d->named[row[i]] = true;
    }
    return rc;
}

static void step_layers(struct sl_decode *d, const struct step_ints *dev,
                        const struct sl_attention *att, int n)
{
    struct sl_model *m = d->m;
    const struct sl_ops *ops = m->ops;
    const struct sl_arch *a = &m->arch;
    int64_t ld = m->q_cols + 2 * m->kv_cols, ld_cache = 2 * m->kv_cols;
    ops->embed(m->be, m->embed, m->pos_embed, NULL, dev->src, dev->pos, n, a->hidden, d->s.x);
    for (int l = 0; l < a->layers; l++) {
        sl_act *k = d->cache[l], *v = sl_at(m, k, m->kv_cols);
        sl_layer_qkv(m, &m->layers[l], &d->s, n, dev->pos, d->tmp);
        sl_keep_kv(m, sl_at(m, d->s.qkv, m->q_cols), sl_at(m, d->s.raw, m->q_cols + m->kv_cols), ld,
                   n, dev->index, k);
        ops->attention(m->be, att, d->s.qkv, ld, k, ld_cache, v, ld_cache, d->s.o, m->q_cols,
                       d->s.lse);
        sl_layer_rest(m, &m->layers[l], &d->s, d->s.x, n, d->tmp, d->act, d->s.x);
    }
    ops->norm(m->be, d->s.x, n, a->hidden, m->norm, m->norm_b, a->norm_eps, a->rms_norm, d->tmp,
              d->s.mean1, d->s.rstd1);
}

int sl_decode_step(struct sl_decode *d, const int *row, const int32_t *token, int n,
                   float *host_logits, struct sl_err *err)
{
    struct sl_model *m = d->m;
    int rc = check_step(d, row, token, n, err);
    if (rc)
        return rc;
    struct step_ints host = step_ints_at(d->host_ints, d->n_rows),
                     dev = step_ints_at(d->ints, d->n_rows);
    for (int i = 0; i < n; i++) {
        const struct cached_row *r = &d->row[row[i]];
        host.seq[i] =
            (struct sl_seq){i, 1, r->kv_start, r->kv_len + 1, r->prefix_start, r->prefix_len};
        host.src[i] = token[i];
        host.pos[i] = r->prefix_len + r->kv_len;
        host.visible[i] = r->kv_len + 1;
        host.index[i] = r->kv_start + r->kv_len;
    }
    rc = m->ops->upload(m->be, d->ints, d->host_ints, d->ints_bytes, err);
    if (rc)
        return rc;
    struct sl_attention att = sl_attention_over(m, host.seq, dev.seq, n, dev.visible, n, d->n_keys);
    m->ops->step_begin(m->be, 0);
    step_layers(d, &dev, &att, n);
    rc = m->ops->step_end(m->be, err);
    if (!rc)
        rc = sl_model_head(m, d->tmp, n, d->logits, d->logits_f32, host_logits, err);
    for (int i = 0; !rc && i < n; i++)
        d->row[row[i]].kv_len++;
    return rc;
}

void sl_decode_free(struct sl_decode *d)
{
    if (!d)
        return;
    if (d->cache_block)
        d->m->ops->free(d->m->be, d->cache_block);
    if (d->step_block)
        d->m->ops->free(d->m->be, d->step_block);
    free(d->cache);
    free(d->row);
    free(d->named);
    free(d->host_ints);
    free(d);
}
