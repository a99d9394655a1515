/* The CPU backend's inside: what its files share. Users see only engine/ops.h.
 *
 * OpenBLAS does the matrices, one thread a block; OpenMP has the threads. open() makes its number
 * of threads the calling thread's default for OpenMP, which OpenBLAS goes by outside of our
 * regions. A failure inside an operation (only memory can fail) is kept in the backend and reported
 * by the next step_end or download. */
#ifndef SL_ENGINE_CPU_CPU_H
#define SL_ENGINE_CPU_CPU_H
#include "engine/block.h"
#include "engine/ops.h"

#define SL_CPU_ALIGN 256
#define SL_CPU_HUGE_BYTES (4u << 20) /* from here on memory asks for huge pages */
#define SL_CPU_MAX_THREADS 64        /* what Debian's OpenBLAS is built for */
#define SL_CPU_SMALL 8192 /* elements below which an operation is not worth a second thread */

struct sl_weight {
    int64_t rows, cols;
    float *data;  /* [rows, cols]; NULL: int8 */
    int8_t *q;    /* [rows, cols], times scale[row] */
    float *scale; /* [rows] */
};

struct sl_cpu_scratch {
    float *p;
    size_t floats;
};

struct sl_backend {
    int threads;
    enum sl_precision precision;
    struct sl_err kept;
    struct sl_cpu_scratch *scratch; /* [threads] one a thread, then one shared */
    struct sl_block block;          /* of reserve */
    int64_t memory_bytes, allocations;
};

/* Memory that operations use inside, at least `floats` long, aligned; content undefined; grows and
 * stays until close. NULL: out of memory, kept. _threads: every thread's (read them as
 * be->scratch[thread].p), false: as above. */
float *sl_cpu_shared(struct sl_backend *be, size_t floats);
bool sl_cpu_threads_scratch(struct sl_backend *be, size_t floats);

/* Aligned memory; NULL when there is none. */
void *sl_cpu_alloc(size_t bytes);
/* The same of what is reserved, as long as there is some. */
void *sl_cpu_take(struct sl_backend *be, size_t bytes);
void sl_cpu_give(struct sl_backend *be, void *p);

/* What this process may have of the machine's memory and of its cgroup's now; 0: nobody knows. root: "" but in tests. */
int64_t sl_cpu_memory(const char *root);

/* The values of a matrix, if need be in the shared scratch. NULL: out of memory, kept. */
const float *sl_cpu_values(struct sl_backend *be, const struct sl_weight *w);

/* C (+)= A B in one thread, for the small matrices of attention. A is [m, k] with element (i, j) at
 * a[i*lda + j*sa], B [k, n] with row stride ldb, n a multiple of 16. With klen, row i of C sums
 * only its first klen[i] products and the others are never read as factors: 0 x NaN does not occur.
 */
void sl_cpu_mini_gemm(int m, int n, int k, const int *klen, const float *a, int lda, int sa,
                      const float *b, int ldb, bool add, float *c, int ldc);

/* "x86-64-v4", "x86-64-v3" or "baseline": which clones this processor runs. */
const char *sl_cpu_level(void);

/* The entries of sl_cpu_ops; ops.h is their contract. */
int sl_cpu_weight_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                      void *ctx, struct sl_weight **ret_w, struct sl_err *err);
int sl_cpu_linear_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                      void *ctx, struct sl_weight **ret_w, struct sl_err *err);
void sl_cpu_weight_free(struct sl_backend *be, struct sl_weight *w);
void sl_cpu_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows,
                   const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                   int64_t ld_add, sl_act *y, int64_t ldy);
void sl_cpu_matmul_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                        const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx);
void sl_cpu_gemm_f32(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                     int ldc);
void sl_cpu_embed(struct sl_backend *be, const struct sl_weight *embed,
                  const struct sl_weight *pos_embed, const float *prompts, const int32_t *src,
                  const int32_t *pos, int64_t rows, int hidden, sl_act *x);
void sl_cpu_embed_back(struct sl_backend *be, const sl_act *dx, int hidden, const int32_t *ptr,
                       const int32_t *list, int n_prompts, float *dprompts);
void sl_cpu_gather(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index,
                   int64_t n, int cols, sl_act *y, int64_t ldy);
void sl_cpu_scatter(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index,
                    int64_t n, int cols, bool add, sl_act *y, int64_t ldy);
void sl_cpu_norm(struct sl_backend *be, const sl_act *x, int64_t rows, int cols,
                 const struct sl_weight *w, const struct sl_weight *b, float eps, bool rms,
                 sl_act *y, float *mean, float *rstd);
void sl_cpu_norm_back(struct sl_backend *be, const sl_act *dy, const sl_act *x, const float *mean,
                      const float *rstd, int64_t rows, int cols, const struct sl_weight *w,
                      bool rms, bool accumulate, sl_act *dx);
void sl_cpu_head_norm(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, int heads,
                      int head_dim, const struct sl_weight *w, float eps, sl_act *y, int64_t ldy,
                      float *rstd);
void sl_cpu_head_norm_back(struct sl_backend *be, const sl_act *dy, int64_t lddy, const sl_act *x,
                           int64_t ldx, const float *rstd, int64_t rows, int heads, int head_dim,
                           const struct sl_weight *w, sl_act *dx, int64_t lddx);
void sl_cpu_rope(struct sl_backend *be, sl_act *x, int64_t ld, int64_t rows, int heads,
                 int head_dim, int rope_dims, const int32_t *pos, const float *table, bool inverse);
void sl_cpu_attention(struct sl_backend *be, const struct sl_attention *a, const sl_act *q,
                      int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                      sl_act *o, int64_t ldo, float *lse);
void sl_cpu_attention_back(struct sl_backend *be, const struct sl_attention *a, const sl_act *q,
                           int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                           const sl_act *o, int64_t ldo, const float *lse, const sl_act *d_o,
                           int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk, int64_t lddk,
                           sl_act *dv, int64_t lddv);
void sl_cpu_activation(struct sl_backend *be, enum sl_act_kind kind, const sl_act *x, int64_t rows,
                       int cols, sl_act *y);
void sl_cpu_activation_back(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy,
                            const sl_act *x, int64_t rows, int cols, sl_act *dx);
void sl_cpu_bias_act_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols, float *x,
                         const float *bias, float *y);
void sl_cpu_bias_act_back_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols,
                              const float *dy, const float *pre, float *dx, float *bias_grad);
void sl_cpu_cross_entropy(struct sl_backend *be, sl_act *logits, int64_t ld, int64_t rows, int vocab,
                          int64_t n_entries, const int32_t *row, const int32_t *target,
                          const float *weight, bool gradient, float *loss);
size_t sl_cpu_lstm_saved(const struct sl_lstm *l);
void sl_cpu_lstm(struct sl_backend *be, const struct sl_lstm *l, const float *x, float *y);
void sl_cpu_lstm_back(struct sl_backend *be, const struct sl_lstm *l, const float *x,
                      const float *y, const float *dy, float *dx, const struct sl_lstm_grad *grad);
void sl_cpu_dropout_f32(struct sl_backend *be, int64_t n, const float *x, float p, uint64_t seed,
                        float *y);
void sl_cpu_sumsq_f32(struct sl_backend *be, int64_t n, const float *x, bool accumulate,
                      float *out);
void sl_cpu_clip_scale(struct sl_backend *be, const float *sumsq, float max_norm, float *ret_scale);
void sl_cpu_adamw(struct sl_backend *be, int64_t n, float *p, const float *g, float *m, float *v,
                  const struct sl_adamw *hp, const float *scale);

#endif
