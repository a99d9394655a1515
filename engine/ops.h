/* What a compute backend offers: one const table over device buffers and a stream.
 *
 * model.c, encoder.c and optim.c are written once over this table; engine/cpu/ is the reference, cuda/ is the fast
 * one. Rules that hold for every operation:
 * - All pointers are device pointers of the backend (host pointers for the CPU) unless named host_.
 * - sl_act is the activation type, act_bytes per element: fp32 on the CPU, bf16 (or fp32) on CUDA. Parameters
 *   that are trained, gradients of prompts, statistics and losses are fp32 everywhere.
 * - Matrices are row-major; ld is the row stride in elements.
 * - Operations are queued on the backend's stream and return nothing; a failure is kept and reported by the next
 *   step_end, upload or download as SL_DEVICE, SL_FAULT or SL_NOMEM. Between step_begin and step_end the caller does
 *   not allocate, synchronise or branch on device data, so that a step can be captured as a graph.
 * - An output is set unless its comment says "adds". Inputs and outputs do not overlap unless it says "in place".
 * - Same inputs, same shapes, same thread count: same bits. No order of summation depends on timing.
 * - A frozen weight has no gradient: there is no buffer for it.
 * - Optional entries (NULL in the table) are said so; the caller then uses the plain ones. */
#ifndef SL_ENGINE_OPS_H
#define SL_ENGINE_OPS_H
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void sl_act;
struct sl_backend; /* stream, handles, scratch */
struct sl_weight;  /* a frozen matrix or vector as the backend likes it: type, scales, transposed copy */

/* trainer.precision: what activations and linear layers are. The CPU computes in fp32 always. */
enum sl_precision {
    SL_PRECISION_FP32,
    SL_PRECISION_BF16,
    SL_PRECISION_FP8, /* bf16, but gradients go back through linear layers as e4m3 times e4m3, scaled by row */
    SL_PRECISION_INT8 /* linear layers are kept as int8, scaled by output channel; the rest is bf16 */
};
/* Linear layers of these sizes can be fp8: what cublasLt's kernels can load. Others are bf16 in both directions. */
#define SL_FP8_MULTIPLE 16
#define SL_FP8_MAX 32768

struct sl_backend_opts {
    int threads; /* CPU threads; 0: all cores this process may use */
    int device;  /* accelerator number */
    enum sl_precision precision; /* of linear_new; the table has the activations' */
};

struct sl_backend_info {
    char kernel[64];  /* "openblas SkylakeX", "cuda sm_90": what the bits depend on */
    int threads;
    enum sl_precision precision;
    bool accelerator;       /* has memory of its own */
    int64_t memory_bytes;   /* that this process may have: of the device, of the machine, of its cgroup; what the backend
                               itself took in open is off. 0: nobody knows */
    int64_t reserved_bytes; /* by reserve, and how much of it has been given */
    int64_t given_bytes;
    int64_t allocations; /* how often alloc, reserve and weights, and a GPU's operations, took memory of the device */
};

/* Reads rows [row0, row0+n) of a host matrix as fp32. */
typedef int sl_read_rows_fn(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err);

/* Some rows of a weight as they lie in host memory, by rows or by columns: either an element's neighbour in its row
 * follows it, or the one below it does. */
enum sl_raw_type { SL_RAW_F32, SL_RAW_F16, SL_RAW_BF16 };
struct sl_raw {
    const void *p;
    enum sl_raw_type type;
    int64_t rows;
    int64_t row_bytes, col_bytes; /* from an element to the one below it, to the next of its row */
};

/* Which queries see which keys. Sequence s owns queries q_start .. q_start+q_len of the q matrix and keys
 * kv_start .. kv_start+kv_len of the k and v matrices, and may share the keys prefix_start ..
 * prefix_start+prefix_len with others. Query i sees all prefix keys of its sequence and the first visible[i]
 * of its own keys; visible ascends along a sequence. Queries lie in sequence order without gaps. */
struct sl_seq {
    int32_t q_start, q_len, kv_start, kv_len, prefix_start, prefix_len;
};
struct sl_attention {
    int heads, kv_heads, head_dim;
    float scale;               /* on q.k, usually 1/sqrt(head_dim) */
    int n_seqs, n_queries, n_keys; /* n_keys: rows of k and v in use */
    int max_q_len, max_kv_len; /* kv: prefix and own keys together */
    const struct sl_seq *seqs; /* device, [n_seqs] */
    const int32_t *visible;    /* device, [n_queries] */
    const struct sl_seq *host_seqs; /* the same on the host, for launch shapes */
    bool set_keys; /* attention_back sets dk, dv of the sequences' own keys instead of adding to them */
};

enum sl_act_kind { SL_ACT_NONE, SL_ACT_RELU, SL_ACT_GELU_TANH, SL_ACT_GELU_ERF, SL_ACT_SWIGLU };

/* One direction pair of a bidirectional LSTM layer, torch's layout and gate order (i, f, g, o):
 * w_ih [2][4E, in], w_hh [2][4E, E], b_ih and b_hh [2][4E]; direction 1 runs from the end. */
struct sl_lstm {
    int seqs, steps, in, hidden; /* x [seqs*steps, in], y [seqs*steps, 2*hidden] (forward, then backward half) */
    const float *w_ih, *w_hh, *b_ih, *b_hh;
    float *saved; /* lstm_saved(...) floats: gates and cells, written forward, read backward */
};
struct sl_lstm_grad { /* all added to */
    float *w_ih, *w_hh, *b_ih, *b_hh;
};

struct sl_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    int step; /* from 1, for the bias correction */
};

struct sl_ops {
    const char *name;
    size_t act_bytes;
    bool counts_only; /* plan.h's: memory is counted and nothing computed, so initial values need not be made */

    int (*open)(const struct sl_backend_opts *opts, struct sl_backend **ret_be, struct sl_err *err);
    void (*close)(struct sl_backend *be); /* NULL-safe */
    void (*info)(const struct sl_backend *be, struct sl_backend_info *ret_info);

    /* ---- memory. Aligned to 256 bytes, not cleared. Blocking. reserve takes bytes at once, once a backend: alloc and
     * weights are given of them until they are used up, and what is freed of them comes back in close. */
    int (*reserve)(struct sl_backend *be, size_t bytes, struct sl_err *err);
    int64_t (*memory_left)(struct sl_backend *be); /* optional: of info's memory_bytes, now */
    int (*alloc)(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err);
    void (*free)(struct sl_backend *be, void *p);
    int (*upload)(struct sl_backend *be, void *dst, const void *host_src, size_t bytes,
                  struct sl_err *err); /* host_src may be reused on return */
    int (*download)(struct sl_backend *be, void *host_dst, const void *src, size_t bytes,
                    struct sl_err *err); /* waits for the stream; reports kept failures */
    void (*zero)(struct sl_backend *be, void *dst, size_t bytes);
    void (*copy)(struct sl_backend *be, void *dst, const void *src, size_t bytes);
    void (*to_f32)(struct sl_backend *be, const sl_act *x, int64_t n, float *y);
    void (*from_f32)(struct sl_backend *be, const float *x, int64_t n, sl_act *y);

    /* ---- frozen weights, [rows, cols], a linear layer as [out, in]; a vector as [1, n]. The backend pulls the
     * rows through read, so that a model never lies in host memory twice. */
    int (*weight_new)(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                      void *ctx, struct sl_weight **ret_w, struct sl_err *err);
    /* The matrix of a linear layer, for matmul and matmul_back alone, kept as opts.precision says. A backend
     * that cannot refuses in open, with SL_SPEC. */
    int (*linear_new)(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                      void *ctx, struct sl_weight **ret_w, struct sl_err *err);
    /* Optional: weight_new, or linear_new, from n parts, one below the other, whose bytes the backend fetches and
     * converts itself. They may go when the call returns. */
    int (*weight_raw)(struct sl_backend *be, bool linear, int64_t rows, int64_t cols, const struct sl_raw *part,
                      int n, struct sl_weight **ret_w, struct sl_err *err);
    void (*weight_free)(struct sl_backend *be, struct sl_weight *w);

    /* ---- a step. Equal buckets have equal shapes, addresses and constants, and may differ in what lies on the device
     * alone (0: do not capture). */
    /* Optional: runs a step of this bucket again as it was captured, instead of step_begin and what would follow;
     * step_end comes after it too. False: not captured yet, nothing was done. */
    bool (*step_replay)(struct sl_backend *be, uint64_t bucket);
    void (*step_begin)(struct sl_backend *be, uint64_t bucket);
    int (*step_end)(struct sl_backend *be, struct sl_err *err);

    /* ---- matrices with frozen weights.
     * matmul: y[rows, out] = x[rows, in] W^T (+ bias[out]) (+ add[rows, out]); bias and add may be NULL; add may
     * be y. matmul_back: dx[rows, in] = dy[rows, out] W, or adds to dx when accumulate. */
    void (*matmul)(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows,
                   const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                   int64_t ld_add, sl_act *y, int64_t ldy);
    void (*matmul_back)(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                        const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx);

    /* ---- several of these operations at once, optional: matmul_back through down, activation_back at x [rows, cols or
     * twice that], which is used up, and matmul_back through up; tmp has [rows, cols]. */
    void (*mlp_back)(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy, int64_t ldy, int64_t rows,
                     int cols, const struct sl_weight *down, sl_act *x, sl_act *tmp, const struct sl_weight *up,
                     sl_act *dx, int64_t ldx);

    /* ---- embeddings. src[t] >= 0: row src[t] of embed; < 0: row -(src[t]+1) of prompts [n, hidden] fp32.
     * pos_embed may be NULL; pos[t] is its row. x [rows, hidden]. */
    void (*embed)(struct sl_backend *be, const struct sl_weight *embed,
                  const struct sl_weight *pos_embed, const float *prompts, const int32_t *src,
                  const int32_t *pos, int64_t rows, int hidden, sl_act *x);
    /* dprompts[p] adds the rows list[ptr[p]] .. list[ptr[p+1]-1] of dx, in that order. */
    void (*embed_back)(struct sl_backend *be, const sl_act *dx, int hidden, const int32_t *ptr,
                       const int32_t *list, int n_prompts, float *dprompts);

    /* ---- rows. gather: y[i] = x[index[i]]. scatter: y[index[i]] = x[i], or adds; indices are distinct. */
    void (*gather)(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index, int64_t n,
                   int cols, sl_act *y, int64_t ldy);
    void (*scatter)(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index, int64_t n,
                    int cols, bool add, sl_act *y, int64_t ldy);

    /* ---- norms over cols: RMSNorm (mean and bias unused, NULL) or LayerNorm. mean and rstd [rows] are kept for
     * norm_back: dx from dy and the norm's input x; adds to dx when accumulate. */
    void (*norm)(struct sl_backend *be, const sl_act *x, int64_t rows, int cols,
                 const struct sl_weight *w, const struct sl_weight *b, float eps, bool rms, sl_act *y,
                 float *mean, float *rstd);
    void (*norm_back)(struct sl_backend *be, const sl_act *dy, const sl_act *x, const float *mean,
                      const float *rstd, int64_t rows, int cols, const struct sl_weight *w, bool rms,
                      bool accumulate, sl_act *dx);

    /* RMSNorm of each head by itself (Qwen3's Q and K): of the first `heads` heads of each row of x into
     * those of y, w [1, head_dim]; rstd [rows, heads] is kept for head_norm_back. There dx may be dy. */
    void (*head_norm)(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, int heads,
                      int head_dim, const struct sl_weight *w, float eps, sl_act *y, int64_t ldy,
                      float *rstd);
    void (*head_norm_back)(struct sl_backend *be, const sl_act *dy, int64_t lddy, const sl_act *x,
                           int64_t ldx, const float *rstd, int64_t rows, int heads, int head_dim,
                           const struct sl_weight *w, sl_act *dx, int64_t lddx);

    /* ---- rotary positions, half-split order, in place on the first `heads` heads of each row. table is fp32
     * [positions, rope_dims/2, 2] of (cos, sin). inverse rotates back (the gradient). */
    void (*rope)(struct sl_backend *be, sl_act *x, int64_t ld, int64_t rows, int heads, int head_dim,
                 int rope_dims, const int32_t *pos, const float *table, bool inverse);

    /* ---- attention. q [n_queries, heads*head_dim], k and v [n_keys, kv_heads*head_dim], o as q, lse fp32
     * [heads, n_queries]. Keys outside a query's view never touch it, not even as 0 x NaN.
     * attention_back sets dq and adds to dk, dv, or sets what is a sequence's own there (set_keys; 0 where nobody looks);
     * a prefix's share, summed over its sequences in order, is added after that. */
    void (*attention)(struct sl_backend *be, const struct sl_attention *a, const sl_act *q, int64_t ldq,
                      const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv, sl_act *o, int64_t ldo,
                      float *lse);
    void (*attention_back)(struct sl_backend *be, const struct sl_attention *a, const sl_act *q,
                           int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                           const sl_act *o, int64_t ldo, const float *lse, const sl_act *d_o,
                           int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk, int64_t lddk, sl_act *dv,
                           int64_t lddv);

    /* ---- activations. GELU: x, y [rows, cols]. SWIGLU: x [rows, 2*cols] as (gate | up), y [rows, cols] =
     * silu(gate)*up. activation_back: dx in x's shape from dy and x; dx may be x. */
    void (*activation)(struct sl_backend *be, enum sl_act_kind kind, const sl_act *x, int64_t rows,
                       int cols, sl_act *y);
    void (*activation_back)(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy,
                            const sl_act *x, int64_t rows, int cols, sl_act *dx);

    /* ---- loss. Entry e says that logits row row[e] (ascending) should be token target[e], weighted weight[e]:
     * loss[e] = -log softmax(logits[row[e]])[target[e]], unweighted. Then, with gradient, logits is replaced in place
     * by the gradient of sum of weight[e]*loss[e]. logits [rows, vocab]. A row without entry gets 0. */
    void (*cross_entropy)(struct sl_backend *be, sl_act *logits, int64_t ld, int64_t rows, int vocab,
                          int64_t n_entries, const int32_t *row, const int32_t *target,
                          const float *weight, bool gradient, float *loss);

    /* ---- training of encoders and tables, all fp32.
     * gemm_f32: C[m,n] = alpha op(A) op(B) + beta C; op transposes when its flag is set. */
    void (*gemm_f32)(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
    /* x[rows, cols] += bias (kept as the pre-activation), y = act(x); y may be NULL with SL_ACT_NONE. */
    void (*bias_act_f32)(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols, float *x,
                         const float *bias, float *y);
    /* dx = dy * act'(pre), dx may be dy; bias_grad [cols] adds the column sums of dx. */
    void (*bias_act_back_f32)(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols,
                              const float *dy, const float *pre, float *dx, float *bias_grad);
    size_t (*lstm_saved)(const struct sl_lstm *l); /* floats of l->saved */
    void (*lstm)(struct sl_backend *be, const struct sl_lstm *l, const float *x, float *y);
    /* dx [seqs*steps, in] is set, or NULL; grads are added to. */
    void (*lstm_back)(struct sl_backend *be, const struct sl_lstm *l, const float *x, const float *y,
                      const float *dy, float *dx, const struct sl_lstm_grad *grad);
    /* y = x * mask / (1-p), the mask a function of (seed, index) alone, so that backward calls it again. In place
     * allowed. */
    void (*dropout_f32)(struct sl_backend *be, int64_t n, const float *x, float p, uint64_t seed,
                        float *y);
    /* *out (+)= sum of squares, fixed order. */
    void (*sumsq_f32)(struct sl_backend *be, int64_t n, const float *x, bool accumulate, float *out);
    /* *ret_scale = min(1, max_norm / sqrt(*sumsq)), 1 when max_norm <= 0; NaN when *sumsq is not finite. */
    void (*clip_scale)(struct sl_backend *be, const float *sumsq, float max_norm, float *ret_scale);
    /* torch's AdamW (decoupled decay) with gradient g * *scale (scale may be NULL). Skipped when *scale is not
     * finite. */
    void (*adamw)(struct sl_backend *be, int64_t n, float *p, const float *g, float *m, float *v,
                  const struct sl_adamw *hp, const float *scale);
};

extern const struct sl_ops sl_cpu_ops;

static inline bool sl_fits_fp8(int64_t rows, int64_t cols)
{
    return rows % SL_FP8_MULTIPLE == 0 && cols % SL_FP8_MULTIPLE == 0 && rows <= SL_FP8_MAX && cols <= SL_FP8_MAX;
}

/* What a linear layer [rows, cols] takes. */
static inline int64_t sl_linear_bytes(enum sl_precision precision, size_t act_bytes, int64_t rows, int64_t cols)
{
    if (precision == SL_PRECISION_INT8)
        return rows * cols + rows * (int64_t)sizeof(float);
    int64_t bytes = rows * cols * (int64_t)act_bytes;
    if (precision == SL_PRECISION_FP8 && sl_fits_fp8(rows, cols)) /* transposed beside it */
        bytes += rows * cols + cols * (int64_t)sizeof(float);
    return bytes;
}

#endif
