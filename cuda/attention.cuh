/* What attention's files share: the cut into blocks, and row arithmetic.
 *
 * As on the CPU, the query rows of a key/value head are those of all heads that share it, position by position:
 * row i*group + h of a sequence. A batch is cut into three tables, which all layers share:
 *   tiles   ATT_ROWS query rows of one sequence: o, lse and dq; the longest first
 *   keys    ATT_KEYS keys and the run of queries that may see them: dk and dv. A sequence's own keys with its
 *           queries; a shared prefix's keys with chunks of all queries behind it, which leave fp32 partial sums
 *   prefixes   whose partial sums are added up, chunk by chunk, in a last pass: the order is fixed
 *
 * The tables are made on the device, by a kernel that reads the batch's sequences there, once a step. Their lengths, and so all
 * launch shapes, follow from n_queries, n_keys, n_seqs and the heads alone: entries that are left over are empty. So a
 * captured step may run on another batch of the same numbers when a step of these numbers ran uncaptured before (then all
 * memory is there) and its prefixes have no more blocks of ATT_KEYS keys together than PREFIX_BLOCKS (attention_cut.cu) or
 * than the captured batch's. */
#ifndef SL_CUDA_ATTENTION_CUH
#define SL_CUDA_ATTENTION_CUH
#include "cuda/cuda.cuh"

#define ATT_ROWS 64
#define ATT_KEYS 64
#define ATT_MAX_DIM 256
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

/* An entry says all that a block must know before it loads, in two accesses. */
struct alignas(16) att_tile {
    int32_t q_start, q_len, kv_start, prefix_start, prefix_len; /* the sequence's; q_len 0: nothing */
    int32_t r0;      /* first row */
    int32_t n, full; /* keys, the prefix's and own, that some row sees, and that all see */
};
struct alignas(16) att_keys {
    int32_t q0, n_q;      /* queries */
    int32_t key0, n_keys; /* rows of k and v; none: nothing */
    int32_t j0;           /* own keys: key0 is the sequence's key j0, seen by queries with visible > j0; else -1 */
    int32_t partial;      /* row of the partial sums, when j0 < 0 */
    int32_t begin, unused; /* first query, counted from q0, that sees key0 */
};
struct att_prefix {
    int32_t start, len, partial, chunks; /* chunk c's key j is partial row partial + c*len + j; len 0: no more */
};
struct att_cut { /* device tables and their lengths */
    const struct att_tile *tiles;
    const struct att_keys *keys;
    const struct att_prefix *prefixes;
    int n_tiles, n_keys, n_prefixes, partial_rows;
};

/* The tables of a batch, good for what is queued before those of a third batch are asked for. Failures are kept. */
bool att_cut_batch(struct sl_backend *be, const struct sl_attention *a, struct att_cut *ret);

/* By value to the kernels. */
struct att {
    int heads, kv_heads, dim, group, n_queries;
    uint32_t magic; /* row / group is the upper half of row * magic; 0: group is 1 */
    float scale;
    bool set_keys;
    const int32_t *visible;
};

template <typename T> struct att_in {
    const T *q, *k, *v;
    int64_t ldq, ldk, ldv;
};
template <typename T> struct att_grad {
    const T *d_o;
    const float *lse;
    float *delta; /* [heads, n_queries]: rowsum(dO o) */
    T *dq, *dk, *dv;
    int64_t ldd, lddq, lddk, lddv;
    float *partials; /* [rows][dk, dv][kv_heads*dim] */
};

/* Where row r of a sequence lies: its position, and its head among those that share keys. */
static __device__ __forceinline__ int row_pos(const struct att &a, int r)
{
    return a.magic ? (int)__umulhi((uint32_t)r, a.magic) : r;
}
static __device__ __forceinline__ int row_head(const struct att &a, int r)
{
    return r - row_pos(a, r) * a.group;
}

/* Row of k and v that holds key j of a sequence, its prefix first. */
static __device__ __forceinline__ int64_t key_row(const struct att_tile &s, int j)
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

/* The same on Hopper's warpgroup products. */
bool att_hopper_fits(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in);
void att_hopper_forward(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                        const struct att_tile *tiles, int n_tiles, bf16 *o, int64_t ldo, float *lse);
/* Sets delta too. */
void att_hopper_dq(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in, const bf16 *o, int64_t ldo,
                   const struct att_grad<bf16> *g, const struct att_tile *tiles, int n_tiles);
void att_hopper_dkv(struct sl_backend *be, const struct att *a, const struct att_in<bf16> *in,
                    const struct att_grad<bf16> *g, const struct att_keys *keys, int n_keys);

#endif
