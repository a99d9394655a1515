/* What attention's files share: the cut into blocks, and row arithmetic.
 *
 * As on the CPU, the query rows of a key/value head are those of all heads that share it, position by position:
 * row i*group + h of a sequence. The host cuts a batch into three tables, which all layers share:
 *   tiles   ATT_ROWS query rows of one sequence: o, lse and dq; the longest first
 *   keys    ATT_KEYS keys and the run of queries that may see them: dk and dv. A sequence's own keys with its
 *           queries; a shared prefix's keys with chunks of all queries behind it, which leave fp32 partial sums
 *   prefixes   whose partial sums are added up, chunk by chunk, in a last pass: the order is fixed */
#ifndef SL_CUDA_ATTENTION_CUH
#define SL_CUDA_ATTENTION_CUH
#include "cuda/cuda.cuh"

#define ATT_ROWS 64
#define ATT_KEYS 64
#define ATT_MAX_DIM 256
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

struct att_tile {
    int32_t seq, r0;
};
struct att_keys {
    int32_t q0, n_q;      /* queries */
    int32_t key0, n_keys; /* rows of k and v */
    int32_t j0;           /* own keys: key0 is the sequence's key j0, seen by queries with visible > j0; else -1 */
    int32_t partial;      /* row of the partial sums, when j0 < 0 */
};
struct att_prefix {
    int32_t start, len, partial, chunks; /* chunk c's key j is partial row partial + c*len + j */
};

/* By value to the kernels. */
struct att {
    int heads, kv_heads, dim, group, n_queries;
    float scale;
    const struct sl_seq *seqs;
    const int32_t *visible;
};

template <typename T> struct att_in {
    const T *q, *k, *v;
    int64_t ldq, ldk, ldv;
};
template <typename T> struct att_grad {
    const T *d_o;
    const float *lse, *delta; /* delta [heads, n_queries]: rowsum(dO o) */
    T *dq, *dk, *dv;
    int64_t ldd, lddq, lddk, lddv;
    float *partials; /* [rows][dk, dv][kv_heads*dim] */
};

/* Row of k and v that holds key j of a sequence, its prefix first. */
static __device__ __forceinline__ int64_t key_row(const struct sl_seq &s, int j)
{
    return j < s.prefix_len ? s.prefix_start + j : s.kv_start + (j - s.prefix_len);
}

/* First query of [q0, q0+n) that sees own key j; visible ascends along a sequence. */
static __device__ __forceinline__ int first_to_see(const int32_t *visible, int q0, int n, int j)
{
    if (j < n && visible[q0 + j] == j + 1) /* all positions are there: the usual case */
        return j;
    int lo = 0, hi = n;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (visible[q0 + mid] > j)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* Tensor-core kernels for bf16; false: not for these shapes, nothing was done. */
bool att_mma_fits(const struct att *a, const struct att_in<bf16> *in);
void att_mma_forward(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                     const struct att_tile *tiles, int n_tiles, bf16 *o, int64_t ldo, float *lse);
void att_mma_dq(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                const struct att_grad<bf16> *g, const struct att_tile *tiles, int n_tiles);
void att_mma_dkv(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                 const struct att_grad<bf16> *g, const struct att_keys *keys, int n_keys);

#endif
