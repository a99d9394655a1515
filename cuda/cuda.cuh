/* The CUDA backend's inside: what its files share. Users see only engine/ops.h.
 *
 * Every operation is written once for both activation types: T is float (the mode for parity with the
 * CPU) or __nv_bfloat16; arithmetic and sums are fp32. All work goes to one stream. A failed launch or
 * call is kept in the backend, the first one wins, and is reported by the next step_end, upload or
 * download. No sum depends on which block or warp comes first: no floating-point atomics anywhere. */
#ifndef SL_CUDA_CUDA_CUH
#define SL_CUDA_CUDA_CUH
extern "C" {
#include "engine/block.h"
#include "engine/ops.h"
}
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define SL_CUDA_OLDEST_MAJOR 8 /* compute capability: bf16 tensor cores, cp.async */
#define SL_CUDA_FP8_MAJOR 9   /* the one whose cublasLt has a scale a row */
#define SL_CUDA_STAGE_BYTES ((size_t)16 << 20) /* each of the two pinned buffers weights pass through */
#define SL_CUDA_RING_BYTES ((size_t)8 << 20)   /* of batches on their way to the device */

typedef __nv_bfloat16 bf16;

struct sl_weight {
    int64_t rows, cols;
    void *data; /* [rows, cols] of the activation type; NULL when q is set */
    float *f32; /* vectors (one row): the same in fp32; NULL for matrices */
    /* Linear layers only. int8: q [rows, cols] times scale[row], instead of data. fp8: beside data, for the gradient,
     * qt [cols, rows] in e4m3 times scale_t[col]: products of fp8 sum along both factors' rows. */
    void *q, *qt;
    float *scale, *scale_t;
};

enum sl_cuda_scratch {
    SL_SCRATCH_OP,
    SL_SCRATCH_PARTIALS,
    SL_SCRATCH_FP8,    /* activations on their way into a product: fp8.cuh */
    SL_SCRATCH_VALUES, /* an int8 weight multiplied out */
    SL_SCRATCHES
};

struct sl_cuda_blas;   /* matmul.cu */
struct sl_cuda_graphs; /* graph.cu */
struct sl_cuda_cut;    /* attention_cut.cu */

struct sl_backend {
    int device;
    struct sl_backend_info info; /* but for what block says */
    struct sl_block block;       /* of reserve */
    bool round_lstm; /* not in fp32 mode: an LSTM's recurrent weights become bf16 where that makes more fit on chip */
    cudaStream_t stream;
    struct sl_err kept;
    struct sl_cuda_blas *blas;
    struct sl_cuda_graphs *graphs;
    uint64_t step; /* counts steps */
    struct {
        void *p;
        size_t bytes;
    } scratch[SL_SCRATCHES];
    struct sl_cuda_cut *cut;
    char *ring; /* pinned */
    size_t ring_used;
    char *stage[2]; /* pinned, each with its part of stage_device; made by the first weight */
    void *stage_device;
    cudaEvent_t stage_done[2]; /* the device has done with it */
    int stage_next;
};

/* Keeps the failure of a CUDA call. True when it failed. */
bool sl_cuda_failed(struct sl_backend *be, cudaError_t e, const char *what);
int sl_cuda_take_kept(struct sl_backend *be, struct sl_err *err);
/* Call after each launch. */
static inline void sl_cuda_launched(struct sl_backend *be, const char *what)
{
    sl_cuda_failed(be, cudaGetLastError(), what);
}

/* To be called when memory that operations keep from step to step gets another address: captured steps know the old one. */
void sl_cuda_moved(struct sl_backend *be);
void sl_cuda_graphs_free(struct sl_cuda_graphs *graphs);
/* Device memory that one operation uses inside; content undefined; grows and stays. NULL: kept. */
void *sl_cuda_scratch(struct sl_backend *be, enum sl_cuda_scratch which, size_t bytes);
/* Memory that stays, of what is reserved while there is some. NULL: kept. */
void *sl_cuda_take(struct sl_backend *be, size_t bytes);

/* The number of a stage that is free for the host to write; -1: kept. Say staged once its last use is queued. */
int sl_cuda_stage(struct sl_backend *be);
void sl_cuda_staged(struct sl_backend *be, int at);
/* The parts, one below the other, to y [rows, cols]. SL_SPEC for a row or column wider than a stage. */
template <typename T>
int sl_cuda_raw(struct sl_backend *be, const struct sl_raw *part, int n, int64_t cols, T *y, struct sl_err *err);

int sl_cuda_blas_new(struct sl_cuda_blas **ret_blas, struct sl_err *err);
void sl_cuda_blas_free(struct sl_cuda_blas *b);
void sl_cuda_cut_free(struct sl_cuda_cut *c);

/* ---- device code */
#define SL_WARP 32
#define SL_ALL_LANES 0xffffffffu

static __device__ __forceinline__ float to_f(float x)
{
    return x;
}
static __device__ __forceinline__ float to_f(bf16 x)
{
    return __bfloat162float(x);
}
template <typename T> static __device__ __forceinline__ T from_f(float x);
template <> __device__ __forceinline__ float from_f<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ bf16 from_f<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}

/* N neighbouring elements as one access. */
template <typename T, int N> struct alignas(sizeof(T) * N) sl_pack {
    T v[N];
};

/* Elements of T in a 16-byte access. */
template <typename T> static constexpr int sl_wide = 16 / (int)sizeof(T);

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int d = SL_WARP / 2; d; d /= 2)
        x += __shfl_xor_sync(SL_ALL_LANES, x, d);
    return x;
}
static __device__ __forceinline__ float warp_max(float x)
{
    for (int d = SL_WARP / 2; d; d /= 2)
        x = fmaxf(x, __shfl_xor_sync(SL_ALL_LANES, x, d));
    return x;
}

/* ---- host side of launches */
static inline bool sl_aligned(const void *p, int64_t ld, size_t element)
{
    return (uintptr_t)p % 16 == 0 && (size_t)ld * element % 16 == 0;
}
static inline unsigned sl_blocks(int64_t n, int64_t per)
{
    return (unsigned)((n + per - 1) / per);
}

/* A matrix in the activation type, an int8 one multiplied out in scratch. NULL: kept. */
template <typename T> const T *sl_cuda_values(struct sl_backend *be, const struct sl_weight *w);
/* Makes q in data's place (which then is not of reserved memory), or qt, as be's precision says. */
template <typename T> int sl_cuda_quantise_weight(struct sl_backend *be, struct sl_weight *w, struct sl_err *err);

/* The entries of the tables; ops.h is their contract. */
/* Memory that is not of what is reserved: it can be freed soon. */
int sl_cuda_alloc_apart(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err);
int sl_cuda_alloc(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err);
void sl_cuda_free(struct sl_backend *be, void *p);
int sl_cuda_upload(struct sl_backend *be, void *dst, const void *host_src, size_t bytes, struct sl_err *err);
void sl_cuda_weight_free(struct sl_backend *be, struct sl_weight *w);
bool sl_cuda_step_replay(struct sl_backend *be, uint64_t bucket);
void sl_cuda_step_begin(struct sl_backend *be, uint64_t bucket);
int sl_cuda_step_end(struct sl_backend *be, struct sl_err *err);
template <typename T>
int sl_cuda_weight_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read, void *ctx,
                       struct sl_weight **ret_w, struct sl_err *err);
template <typename T>
int sl_cuda_linear_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read, void *ctx,
                       struct sl_weight **ret_w, struct sl_err *err);
template <typename T>
int sl_cuda_weight_raw(struct sl_backend *be, bool linear, int64_t rows, int64_t cols, const struct sl_raw *part, int n,
                       struct sl_weight **ret_w, struct sl_err *err);
template <typename T>
void sl_cuda_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows,
                    const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                    int64_t ld_add, sl_act *y, int64_t ldy);
template <typename T>
void sl_cuda_matmul_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                         const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx);
void sl_cuda_mlp_back(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy, int64_t ldy, int64_t rows,
                      int cols, const struct sl_weight *down, sl_act *x, sl_act *tmp, const struct sl_weight *up,
                      sl_act *dx, int64_t ldx);
/* matmul_back through down and GELU (tanh) at x in one product. False: not for these, nothing was done. */
bool sl_cuda_matmul_back_gelu(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                              const struct sl_weight *down, const sl_act *x, sl_act *dx);
void sl_cuda_gemm_f32(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha,
                      const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
template <typename T>
void sl_cuda_to_f32(struct sl_backend *be, const sl_act *x, int64_t n, float *y);
template <typename T>
void sl_cuda_from_f32(struct sl_backend *be, const float *x, int64_t n, sl_act *y);
template <typename T>
void sl_cuda_embed(struct sl_backend *be, const struct sl_weight *embed,
                   const struct sl_weight *pos_embed, const float *prompts, const int32_t *src,
                   const int32_t *pos, int64_t rows, int hidden, sl_act *x);
template <typename T>
void sl_cuda_embed_back(struct sl_backend *be, const sl_act *dx, int hidden, const int32_t *ptr,
                        const int32_t *list, int n_prompts, float *dprompts);
template <typename T>
void sl_cuda_gather(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index, int64_t n,
                    int cols, sl_act *y, int64_t ldy);
template <typename T>
void sl_cuda_scatter(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index,
                     int64_t n, int cols, bool add, sl_act *y, int64_t ldy);
template <typename T>
void sl_cuda_norm(struct sl_backend *be, const sl_act *x, int64_t rows, int cols,
                  const struct sl_weight *w, const struct sl_weight *b, float eps, bool rms, sl_act *y,
                  float *mean, float *rstd);
template <typename T>
void sl_cuda_norm_back(struct sl_backend *be, const sl_act *dy, const sl_act *x, const float *mean,
                       const float *rstd, int64_t rows, int cols, const struct sl_weight *w, bool rms,
                       bool accumulate, sl_act *dx);
template <typename T>
void sl_cuda_head_norm(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, int heads,
                       int head_dim, const struct sl_weight *w, float eps, sl_act *y, int64_t ldy,
                       float *rstd);
template <typename T>
void sl_cuda_head_norm_back(struct sl_backend *be, const sl_act *dy, int64_t lddy, const sl_act *x,
                            int64_t ldx, const float *rstd, int64_t rows, int heads, int head_dim,
                            const struct sl_weight *w, sl_act *dx, int64_t lddx);
template <typename T>
void sl_cuda_rope(struct sl_backend *be, sl_act *x, int64_t ld, int64_t rows, int heads, int head_dim,
                  int rope_dims, const int32_t *pos, const float *table, bool inverse);
template <typename T>
void sl_cuda_attention(struct sl_backend *be, const struct sl_attention *a, const sl_act *q, int64_t ldq,
                       const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv, sl_act *o, int64_t ldo,
                       float *lse);
template <typename T>
void sl_cuda_attention_back(struct sl_backend *be, const struct sl_attention *a, const sl_act *q,
                            int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                            const sl_act *o, int64_t ldo, const float *lse, const sl_act *d_o,
                            int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk, int64_t lddk, sl_act *dv,
                            int64_t lddv);
template <typename T>
void sl_cuda_activation(struct sl_backend *be, enum sl_act_kind kind, const sl_act *x, int64_t rows,
                        int cols, sl_act *y);
template <typename T>
void sl_cuda_activation_back(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy,
                             const sl_act *x, int64_t rows, int cols, sl_act *dx);
template <typename T>
void sl_cuda_cross_entropy(struct sl_backend *be, sl_act *logits, int64_t ld, int64_t rows, int vocab,
                           int64_t n_entries, const int32_t *row, const int32_t *target,
                           const float *weight, bool gradient, float *loss);
void sl_cuda_bias_act_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols, float *x,
                          const float *bias, float *y);
void sl_cuda_bias_act_back_f32(struct sl_backend *be, enum sl_act_kind kind, int rows, int cols,
                               const float *dy, const float *pre, float *dx, float *bias_grad);
size_t sl_cuda_lstm_saved(const struct sl_lstm *l);
void sl_cuda_lstm(struct sl_backend *be, const struct sl_lstm *l, const float *x, float *y);
void sl_cuda_lstm_back(struct sl_backend *be, const struct sl_lstm *l, const float *x, const float *y,
                       const float *dy, float *dx, const struct sl_lstm_grad *grad);
void sl_cuda_dropout_f32(struct sl_backend *be, int64_t n, const float *x, float p, uint64_t seed,
                         float *y);
void sl_cuda_sumsq_f32(struct sl_backend *be, int64_t n, const float *x, bool accumulate, float *out);
void sl_cuda_clip_scale(struct sl_backend *be, const float *sumsq, float max_norm, float *ret_scale);
void sl_cuda_adamw(struct sl_backend *be, int64_t n, float *p, const float *g, float *m, float *v,
                   const struct sl_adamw *hp, const float *scale);

#endif
