/* The cut of a batch into blocks (attention.cuh), made on the device: one block for the query rows, one for the keys. */
#include "cuda/attention.cuh"
#include <stdlib.h>
#include <string.h>

#define CHUNKS 16        /* a prefix's queries are cut into at most so many chunks, */
#define CHUNK_LEAST 128  /* of so many queries at least, */
#define PREFIX_BLOCKS 32 /* into fewer where this would make more blocks */
#define CUT_THREADS 512
#define STAGED 1024 /* sequences */

static __device__ __forceinline__ int ceil_div(int n, int by)
{
    return (n + by - 1) / by;
}

/* One warp: calls put(level, s, n) for all sequences s with more than `level` blocks, the n-th in turn from n0 on, level by
 * level in the order of step; returns how many. blocks(s) is how many sequence s has. */
template <typename B, typename P>
static __device__ int level_by_level(int n_seqs, bool longest_first, int n, B blocks, P put)
{
    int lane = (int)threadIdx.x, levels = 0;
    for (int s = lane; s < n_seqs; s += SL_WARP)
        levels = max(levels, blocks(s));
    for (int d = SL_WARP / 2; d; d /= 2)
        levels = max(levels, __shfl_xor_sync(SL_ALL_LANES, levels, d));
    for (int i = 0; i < levels; i++) {
        int level = longest_first ? levels - 1 - i : i;
        for (int s0 = 0; s0 < n_seqs; s0 += SL_WARP) {
            int s = s0 + lane;
            bool has = s < n_seqs && level < blocks(s);
            unsigned who = __ballot_sync(SL_ALL_LANES, has);
            if (has)
                put(level, s, n + __popc(who & ((1u << lane) - 1)));
            n += __popc(who);
        }
    }
    return n;
}

/* The batch's sequences in shared memory, when they fit. */
static __device__ const struct sl_seq *stage(const struct sl_seq *seqs, int n_seqs)
{
    __shared__ struct sl_seq staged[STAGED];
    if (n_seqs > STAGED)
        return seqs;
    for (int i = (int)threadIdx.x; i < n_seqs * (int)(sizeof *seqs / sizeof(int32_t)); i += CUT_THREADS)
        ((int32_t *)staged)[i] = ((const int32_t *)seqs)[i];
    __syncthreads();
    return staged;
}

/* First the order, by one warp: q_start is the sequence's number; then all entries at once. */
static __device__ void cut_tiles(const struct sl_seq *seqs, int n_seqs, const int32_t *visible, int group,
                                 struct att_tile *tiles, int most)
{
    __shared__ int count;
    if (threadIdx.x < SL_WARP) {
        int n = level_by_level(
            n_seqs, true, 0, [&](int s) { return ceil_div(seqs[s].q_len * group, ATT_ROWS); },
            [&](int level, int s, int i) { tiles[i] = {s, 0, 0, 0, 0, level * ATT_ROWS, 0, 0}; });
        if (threadIdx.x == 0)
            count = n;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < most; i += CUT_THREADS) {
        struct att_tile t = {};
        if (i < count) {
            struct sl_seq q = seqs[tiles[i].q_start];
            int r0 = tiles[i].r0, last = min(r0 + ATT_ROWS, q.q_len * group) - 1;
            t = {q.q_start,
                 q.q_len,
                 q.kv_start,
                 q.prefix_start,
                 q.prefix_len,
                 r0,
                 q.prefix_len + visible[q.q_start + last / group],
                 q.prefix_len + visible[q.q_start + r0 / group]};
        }
        tiles[i] = t;
    }
}

/* The run of sequences from s on that share a prefix; returns its end. */
static __host__ __device__ int prefix_run(const struct sl_seq *seqs, int n_seqs, int s, int *ret_queries)
{
    int e = s, queries = 0;
    for (; e < n_seqs && seqs[e].prefix_start == seqs[s].prefix_start && seqs[e].prefix_len == seqs[s].prefix_len; e++)
        queries += seqs[e].q_len;
    *ret_queries = seqs[s].prefix_len ? queries : 0;
    return e;
}

/* Blocks of keys that all prefixes have with one chunk each. */
static __host__ __device__ int prefix_blocks(const struct sl_seq *seqs, int n_seqs)
{
    int blocks = 0;
    for (int s = 0, e, queries; s < n_seqs; s = e) {
        e = prefix_run(seqs, n_seqs, s, &queries);
        blocks += queries ? (seqs[s].prefix_len + ATT_KEYS - 1) / ATT_KEYS : 0;
    }
    return blocks;
}

static __device__ int cut_prefixes(const struct sl_seq *seqs, int n_seqs, struct att_keys *keys,
                                   struct att_prefix *prefixes, int most_prefixes)
{
    int n = 0, n_keys = 0, partial = 0, all = prefix_blocks(seqs, n_seqs);
    if (all > most_prefixes)
        __trap(); /* a captured step ran on a batch that it does not fit (attention.cuh) */
    for (int s = 0, e, queries; s < n_seqs; s = e) {
        struct sl_seq first = seqs[s];
        e = prefix_run(seqs, n_seqs, s, &queries);
        if (!queries)
            continue;
        int per = ceil_div(queries, max(1, min(CHUNKS, PREFIX_BLOCKS / all)));
        per = max(CHUNK_LEAST, ceil_div(per, 64) * 64);
        if (all > PREFIX_BLOCKS)
            per = queries;
        int chunks = ceil_div(queries, per);
        prefixes[n++] = {first.prefix_start, first.prefix_len, partial, chunks};
        for (int c = 0; c < chunks; c++)
            for (int j = 0; j < first.prefix_len; j += ATT_KEYS)
                keys[n_keys++] = {first.q_start + c * per,
                                  min(per, queries - c * per),
                                  first.prefix_start + j,
                                  min(ATT_KEYS, first.prefix_len - j),
                                  -1,
                                  partial + c * first.prefix_len + j,
                                  0,
                                  0};
        partial += chunks * first.prefix_len;
    }
    for (; n < most_prefixes; n++)
        prefixes[n] = {0, 0, 0, 0};
    return n_keys;
}

/* Likewise: of own keys, q0 is the sequence's number at first. */
static __device__ void cut_keys(const struct sl_seq *seqs, int n_seqs, const int32_t *visible, struct att_keys *keys,
                                int most, struct att_prefix *prefixes, int most_prefixes)
{
    __shared__ int shared, count;
    if (threadIdx.x < SL_WARP) {
        int own = threadIdx.x ? 0 : cut_prefixes(seqs, n_seqs, keys, prefixes, most_prefixes);
        own = __shfl_sync(SL_ALL_LANES, own, 0);
        int n = level_by_level(
            n_seqs, false, own, [&](int s) { return ceil_div(seqs[s].kv_len, ATT_KEYS); },
            [&](int level, int s, int i) { keys[i] = {s, 0, 0, 0, level * ATT_KEYS, -1, 0, 0}; });
        if (threadIdx.x == 0) {
            shared = own;
            count = n;
        }
    }
    __syncthreads();
    for (int i = shared + (int)threadIdx.x; i < most; i += CUT_THREADS) {
        struct att_keys t = {};
        if (i < count) {
            struct sl_seq q = seqs[keys[i].q0];
            int j = keys[i].j0;
            t = {q.q_start, q.q_len, q.kv_start + j, min(ATT_KEYS, q.kv_len - j), j, -1,
                 first_to_see(visible, q.q_start, q.q_len, j), 0};
        }
        keys[i] = t;
    }
}

static __global__ void __launch_bounds__(CUT_THREADS)
    cut(const struct sl_seq *all, int n_seqs, const int32_t *visible, int group, struct att_tile *tiles, int n_tiles,
        struct att_keys *keys, int n_keys, struct att_prefix *prefixes, int n_prefixes)
{
    const struct sl_seq *seqs = stage(all, n_seqs);
    if (blockIdx.x == 0)
        cut_tiles(seqs, n_seqs, visible, group, tiles, n_tiles);
    else
        cut_keys(seqs, n_seqs, visible, keys, n_keys, prefixes, n_prefixes);
}

/* The tables of one batch, in one block of memory. */
struct table {
    void *device;
    size_t room;
    const struct sl_seq *seqs; /* of the batch it was last made of; good in that step, */
    struct sl_seq *host_seqs;  /* for the same content */
    int n_seqs, group, n_queries, n_keys;
    uint64_t step;
};
struct sl_cuda_cut {
    struct table table[2]; /* a model's passes have two batches: all rows, and the last layer's */
    int next;
};

void sl_cuda_cut_free(struct sl_cuda_cut *c)
{
    for (int i = 0; c && i < 2; i++) {
        cudaFree(c->table[i].device);
        free(c->table[i].host_seqs);
    }
    free(c);
}

/* The table for a batch; NULL: kept. *ret_made: it is this batch's already. */
static struct table *table_for(struct sl_backend *be, const struct sl_attention *a, bool *ret_made)
{
    if (!be->cut)
        be->cut = (struct sl_cuda_cut *)calloc(1, sizeof *be->cut);
    if (!be->cut) {
        sl_err_set(&be->kept, SL_NOMEM, "no memory for the blocks of attention");
        return NULL;
    }
    struct table *t = &be->cut->table[0];
    if (t->seqs != a->seqs)
        t++;
    if (t->seqs != a->seqs) {
        t = &be->cut->table[be->cut->next];
        be->cut->next ^= 1;
    }
    size_t bytes = sizeof *a->host_seqs * (size_t)a->n_seqs;
    *ret_made = t->seqs == a->seqs && t->step == be->step && t->n_seqs == a->n_seqs && t->group == a->heads / a->kv_heads &&
                t->n_queries == a->n_queries && t->n_keys == a->n_keys && !memcmp(t->host_seqs, a->host_seqs, bytes);
    if (*ret_made)
        return t;
    struct sl_seq *seqs = (struct sl_seq *)realloc(t->host_seqs, bytes);
    if (!seqs) {
        sl_err_set(&be->kept, SL_NOMEM, "no memory for the blocks of attention");
        return NULL;
    }
    memcpy(seqs, a->host_seqs, bytes);
    t->host_seqs = seqs;
    t->seqs = a->seqs;
    t->n_seqs = a->n_seqs;
    t->group = a->heads / a->kv_heads;
    t->n_queries = a->n_queries;
    t->n_keys = a->n_keys;
    t->step = be->step;
    return t;
}

bool att_cut_batch(struct sl_backend *be, const struct sl_attention *a, struct att_cut *ret)
{
    int group = a->heads / a->kv_heads, blocks = prefix_blocks(a->host_seqs, a->n_seqs);
    int n_tiles = (int)((int64_t)a->n_queries * group / ATT_ROWS) + a->n_seqs;
    blocks = blocks > PREFIX_BLOCKS ? blocks : PREFIX_BLOCKS; /* and each prefix has one at least */
    int n_keys = a->n_keys / ATT_KEYS + a->n_seqs + blocks;
    size_t tile_bytes = sizeof(struct att_tile) * (size_t)n_tiles, key_bytes = sizeof(struct att_keys) * (size_t)n_keys;
    size_t bytes = tile_bytes + key_bytes + sizeof(struct att_prefix) * (size_t)blocks;
    bool made;
    struct table *t = table_for(be, a, &made);
    if (!t)
        return false;
    if (bytes > t->room) {
        sl_cuda_moved(be);
        cudaFree(t->device); /* waits for whoever uses it */
        t->device = NULL;
        t->room = 0;
        made = false;
        be->info.allocations++;
        if (sl_cuda_failed(be, cudaMalloc(&t->device, bytes + bytes / 2), "memory for the blocks of attention")) {
            t->seqs = NULL;
            return false;
        }
        t->room = bytes + bytes / 2;
    }
    char *p = (char *)t->device;
    struct att_tile *tiles = (struct att_tile *)p;
    struct att_keys *keys = (struct att_keys *)(p + tile_bytes);
    struct att_prefix *prefixes = (struct att_prefix *)(p + tile_bytes + key_bytes);
    if (!made)
        cut<<<2, CUT_THREADS, 0, be->stream>>>(a->seqs, a->n_seqs, a->visible, group, tiles, n_tiles, keys, n_keys, prefixes,
                                               blocks);
    *ret = {tiles, keys, prefixes, n_tiles, n_keys, blocks, blocks * ATT_KEYS};
    return true;
}
