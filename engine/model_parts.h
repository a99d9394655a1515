/* What the model_*.c files and decode.c share; not for others. */
#ifndef SL_ENGINE_MODEL_PARTS_H
#define SL_ENGINE_MODEL_PARTS_H
#include "engine/model.h"

/* Logits of out rows are made in chunks of at most this size (and at least one row). */
#define SL_LOGITS_BYTES_MAX (64 << 20)
#define SL_LOGITS_ALIGN 64 /* elements */
#define SL_CAPTURE_NUMBERS_MAX (5 << 19) /* positions x hidden of a pass that is padded and captured: beyond, launching costs less than padding */

/* Q, K and V are one matrix, so that a layer reads its input once; gate and up too. The last layer
 * needs K and V of all rows but Q only of the out rows: there qkv is NULL, and q and kv are set.
 * Biases may be NULL. */
struct sl_layer {
    struct sl_weight *norm1, *norm1_b, *qkv, *qkv_b, *q, *q_b, *kv, *kv_b, *o, *o_b;
    struct sl_weight *norm2, *norm2_b, *up, *up_b, *down, *down_b;
    struct sl_weight *q_norm, *k_norm; /* of each head; NULL: none */
};

struct sl_model {
    struct sl_arch arch;
    const struct sl_ops *ops;
    struct sl_backend *be;
    struct sl_layer *layers;
    struct sl_weight *embed, *pos_embed, *norm, *norm_b, *head; /* head is embed when tied */
    float *rope;                                                /* device, see ops.h; NULL: none */
    int q_cols, kv_cols, pre_cols; /* heads*head_dim, kv_heads*head_dim, ffn or 2*ffn (gate | up) */
    enum sl_act_kind act;
    enum sl_fault fault;
    int logit_rows; /* out rows in a chunk */
    int64_t logits_ld; /* row stride of a loss's logits: the vocabulary, and what keeps rows aligned */
    int64_t weight_bytes;
    struct sl_saved *saved; /* [layers], addresses in the arena of the running step */
    struct sl_recompute again; /* see sl_model_recompute */
    void *arena;
    size_t arena_cap, arena_used;
};

/* What the backward pass needs of a layer: nothing that can be recomputed by an element-wise pass.
 * In a forward pass alone all layers but the last share one; of the layers that are computed again
 * each has its own x, and they share the rest, or pre alone. In the last layer qkv holds K and V
 * only, and q, o, mid, pre, lse, mean2 and rstd2 have the out rows only.
 *
 * raw and raw_q are what the matrices made of Q, K and V. With norms of heads qkv and q hold the
 * normed and rotated Q and K (V's columns stay unused), which all layers but the last share and the
 * backward pass makes again; else they are the same memory. V is always read from raw. */
struct sl_saved {
    sl_act *x;   /* [rows, hidden] residual stream at the layer's start */
    sl_act *qkv; /* [rows, q_cols + 2 kv_cols] after rotary */
    sl_act *q;   /* the last layer's queries */
    sl_act *raw, *raw_q;
    sl_act *o;   /* [rows, q_cols] attention's output */
    sl_act *mid; /* [rows, hidden] residual stream between attention and MLP */
    sl_act *pre; /* [rows, pre_cols] before the activation */
    float *lse, *mean1, *rstd1, *mean2, *rstd2;
    float *rstd_q, *rstd_k; /* [rows, heads], [rows, kv_heads] of the norms of heads */
};

/* Device memory of one pass over a batch. */
struct sl_work {
    struct sl_batch dev; /* the batch's counts, its arrays on the device */
    const struct sl_batch *host;
    const int32_t *entry_row; /* device: entry_out counted within its chunk */
    struct sl_attention full, outs;
    sl_act *tmp;               /* [rows, max(hidden, q_cols)]: norm outputs; their gradients */
    sl_act *act;               /* [rows, ffn] activations; their gradients; then dqkv */
    sl_act *out_x;             /* [n_out, hidden] the last layer's output; its gradient */
    sl_act *out_tmp;           /* [n_out, max(hidden, q_cols)] */
    sl_act *out_dx;            /* [n_out, hidden] */
    float *mean, *rstd, *loss; /* of the last norm [n_out]; [n_entries] */
    sl_act *logits;            /* [min(n_out, logit_rows), logits_ld] */
    float *logits_f32;         /* the same; NULL where sl_act is fp32 or nobody asks for logits */
    sl_act *dx, *dqkv;         /* [rows, hidden], [rows, q_cols + 2 kv_cols] in act's place */
    sl_act *v_x, *v_tmp, *v_dx, *v_dqkv; /* [n_virtual, ...] */
    float *v_mean, *v_rstd;
};

/* Where decode.c wants the keys and values of a pass: packed position t goes to row index[t] of
 * layer[l], [keys, 2 kv_cols] as (K | V). */
struct sl_kv_sink {
    sl_act *const *layer;
    const int32_t *index; /* device */
};

/* p + n elements */
static inline sl_act *sl_at(const struct sl_model *m, const sl_act *p, int64_t n)
{
    return (char *)(uintptr_t)p + n * (int64_t)m->ops->act_bytes;
}

/* model.c: the one driver. dprompts, sink, host_loss and host_logits may be NULL. */
int sl_model_pass(struct sl_model *m, const struct sl_batch *batch, const float *prompts,
                  const struct sl_kv_sink *sink, float *dprompts, float *host_loss,
                  float *host_logits, struct sl_err *err);
/* The sequences as the attention ops want them. */
struct sl_attention sl_attention_over(const struct sl_model *m, const struct sl_seq *host,
                                      const struct sl_seq *device, int n_seqs,
                                      const int32_t *visible, int n_queries, int n_keys);
/* Logits of rows of x (after the last norm) to the host, in chunks. Synchronises: outside a step.
 */
int sl_model_head(struct sl_model *m, const sl_act *x, int64_t rows, sl_act *logits,
                  float *logits_f32, float *host_logits, struct sl_err *err);

/* model_layout.c: everything that a pass needs at addresses in the arena, which grows if need be. *ret_block: where
 * the batch's arrays go. */
int sl_model_place(struct sl_model *m, const struct sl_batch *batch, bool gradient, bool want_logits, struct sl_work *w,
                   void **ret_block, struct sl_err *err);

/* A bump allocator that first counts (base NULL gives NULL everywhere), then hands out. */
struct sl_arena {
    char *base;
    size_t used;
};
void *sl_arena_take(struct sl_arena *a, int64_t n, size_t size);

/* model_forward.c. Norm, fused or split Q, K and V to s->raw and s->qkv [rows, q_cols + 2 kv_cols],
 * norms of heads, rotary. */
void sl_layer_qkv(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s,
                  int64_t rows, const int32_t *pos, sl_act *tmp);
/* Rows of (K | V) to the rows index[i] of a cache [keys, 2 kv_cols]; k and v have the row stride
 * ld. */
void sl_keep_kv(struct sl_model *m, const sl_act *k, const sl_act *v, int64_t ld, int64_t rows,
                const int32_t *index, sl_act *cache);
/* Q and K as attention sees them, from raw: norms of heads, rotary. */
void sl_layer_heads(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s, int64_t rows,
                    const int32_t *pos);
/* The middle of a layer: from attention's output o [rows, q_cols] and the residual x to s->mid and s->pre. mid may
 * be x. */
void sl_layer_middle(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s, const sl_act *x,
                     int64_t rows, sl_act *tmp);
/* The middle and what follows it: the layer's output y, which may be mid or x. */
void sl_layer_rest(struct sl_model *m, const struct sl_layer *l, const struct sl_saved *s,
                   const sl_act *x, int64_t rows, sl_act *tmp, sl_act *act, sl_act *y);
void sl_forward(struct sl_model *m, struct sl_work *w, const float *prompts,
                const struct sl_kv_sink *sink);
/* Loss of all entries, by chunks; with gradient, out_tmp becomes the gradient of the last norm's
 * output. */
void sl_loss(struct sl_model *m, struct sl_work *w, bool gradient);

/* What the forward pass left of a layer, made again from what is its own. */
void sl_layer_again(struct sl_model *m, struct sl_work *w, int layer);

/* model_back.c: from out_tmp (see sl_loss) to dprompts, which is added to. */
void sl_backward(struct sl_model *m, struct sl_work *w, float *dprompts);

#endif
