/* Attention, backward (the recomputation of Dao 2023): P = exp(scale q.k - lse), D = rowsum(dO o),
 * dS = P (dO.v - D) scale; dq = dS k, dk = dS^T q, dv = P^T dO.
 *
 * The work is cut into chunks of neighbouring sequences with one prefix, times key heads. A task
 * owns its sequences' keys; what it owes to the shared prefix goes into a partial of the chunk. A
 * second pass adds the partials, chunk by chunk, so the order of summation is fixed whatever the
 * threads do. */
#include "engine/cpu/attention.h"
#include "engine/cpu/simd.h"
#include <omp.h>

#define CHUNKS 16 /* how many chunks a batch is cut into, at least (prefixes permitting) */

struct chunk {
    int seq, n_seqs;
    int prefix_start, prefix_len;
    size_t partial; /* offset of dk [prefix_len, kv_heads*head_dim]; dv follows */
};

struct backward {
    const struct sl_attention *a;
    const float *q, *k, *v, *o, *d_o, *lse;
    int64_t ldq, ldk, ldv, ldo, ldd, lddq, lddk, lddv;
    float *dq, *dk, *dv, *partials;
};

SL_CLONES static float dot(const float *x, const float *y, int n)
{
    float s = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int i = 0; i < n; i++)
        s += x[i] * y[i];
    return s;
}

SL_CLONES static void add_to(float *y, const float *x, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] += x[i];
}

/* p: raw scores become probabilities; ds: dO.v becomes dS. Both zero from seen to n. */
SL_CLONES static void score_row(float *p, float *ds, int seen, int n, float scale, float lse,
                                float delta)
{
    n = n / SL_CPU_ATT_PAD * SL_CPU_ATT_PAD; /* a multiple already: the loop has no remainder */
#pragma omp simd
    for (int j = 0; j < n; j++) {
        float pj = sl_expf(scale * p[j] - lse);
        p[j] = j < seen ? pj : 0.0f;
        ds[j] = j < seen ? pj * (ds[j] - delta) * scale : 0.0f;
    }
}

static size_t seq_floats(const struct sl_attention *a, const struct sl_seq *s)
{
    size_t d = (size_t)a->head_dim, dp = (size_t)sl_cpu_pad(a->head_dim);
    size_t n = (size_t)sl_cpu_pad(s->prefix_len + s->kv_len);
    return 2 * d * n + 3 * n * dp + 3 * SL_CPU_ATT_ROWS * dp + 2 * SL_CPU_ATT_ROWS * n;
}

/* One sequence and key head: sets dq, adds to its own dk and dv and to the chunk's prefix partials.
 */
static void backward_seq(const struct backward *f, const struct sl_seq *s, int kv_head, float *pk,
                         float *pv, float *scratch)
{
    const struct sl_attention *a = f->a;
    int d = a->head_dim, dp = sl_cpu_pad(d), group = a->heads / a->kv_heads,
        rows = s->q_len * group;
    int n = 0; /* keys that any query sees */
    for (int r = 0; r < rows; r += group)
        n = sl_cpu_seen(a, s, group, r) > n ? sl_cpu_seen(a, s, group, r) : n;
    int np = sl_cpu_pad(n);
    size_t turned = (size_t)d * (size_t)np, plain = (size_t)np * (size_t)dp,
           wide = SL_CPU_ATT_ROWS * (size_t)dp;
    float *kt = scratch, *vt = kt + turned, *keys = vt + turned, *dk = keys + plain,
          *dv = dk + plain;
    float *q = dv + plain, *g = q + wide, *dq = g + wide, *p = dq + wide,
          *ds = p + SL_CPU_ATT_ROWS * (size_t)np;
    sl_cpu_att_keys(a, s, kv_head, f->v, f->ldv, n, keys, vt);
    sl_cpu_att_keys(a, s, kv_head, f->k, f->ldk, n, keys, kt);
    memset(dk, 0, 2 * plain * sizeof *dk);
    for (int r0 = 0; r0 < rows; r0 += SL_CPU_ATT_ROWS) {
        int m = rows - r0 < SL_CPU_ATT_ROWS ? rows - r0 : SL_CPU_ATT_ROWS;
        int seen[SL_CPU_ATT_ROWS], wide_n = 0;
        for (int r = 0; r < m; r++) {
            seen[r] = sl_cpu_seen(a, s, group, r0 + r);
            wide_n = seen[r] > wide_n ? seen[r] : wide_n;
        }
        int wide_np = sl_cpu_pad(wide_n);
        sl_cpu_att_rows(a, s, kv_head, r0, m, f->q, f->ldq, 1.0f, q);
        sl_cpu_att_rows(a, s, kv_head, r0, m, f->d_o, f->ldd, 1.0f, g);
        sl_cpu_mini_gemm(m, wide_np, d, NULL, q, dp, 1, kt, np, false, p, np);
        sl_cpu_mini_gemm(m, wide_np, d, NULL, g, dp, 1, vt, np, false, ds, np);
        for (int r = 0; r < m; r++) {
            int64_t at = s->q_start + (r0 + r) / group,
                    h = (int64_t)kv_head * group + (r0 + r) % group;
            float delta = dot(g + (int64_t)r * dp, f->o + at * f->ldo + h * d, d);
            score_row(p + (int64_t)r * np, ds + (int64_t)r * np, seen[r], wide_np, a->scale,
                      f->lse[h * a->n_queries + at], delta);
        }
        sl_cpu_mini_gemm(m, dp, wide_n, seen, ds, np, 1, keys, dp, false, dq, dp);
        sl_cpu_mini_gemm(wide_n, dp, m, NULL, ds, 1, np, q, dp, true, dk, dp);
        sl_cpu_mini_gemm(wide_n, dp, m, NULL, p, 1, np, g, dp, true, dv, dp);
        for (int r = 0; r < m; r++) {
            int64_t at = s->q_start + (r0 + r) / group,
                    h = (int64_t)kv_head * group + (r0 + r) % group;
            memcpy(f->dq + at * f->lddq + h * d, dq + (int64_t)r * dp, (size_t)d * sizeof *dq);
        }
    }
    int64_t kv_cols = (int64_t)a->kv_heads * d, head = (int64_t)kv_head * d;
    for (int j = 0; j < n; j++) {
        int64_t own = s->kv_start + (j - s->prefix_len);
        bool prefix = j < s->prefix_len;
        add_to(prefix ? pk + j * kv_cols + head : f->dk + own * f->lddk + head,
               dk + (int64_t)j * dp, d);
        add_to(prefix ? pv + j * kv_cols + head : f->dv + own * f->lddv + head,
               dv + (int64_t)j * dp, d);
    }
}

/* Cuts the batch into chunks (NULL: only counts them) and returns their number. partial_floats:
 * room for all partials. */
static int cut(const struct sl_attention *a, struct chunk *chunks, size_t *partial_floats)
{
    int per = (a->n_seqs + CHUNKS - 1) / CHUNKS, n = 0;
    size_t floats = 0, cols = (size_t)a->kv_heads * (size_t)a->head_dim;
    struct chunk c = {0};
    for (int i = 0; i < a->n_seqs; i++) {
        const struct sl_seq *s = &a->host_seqs[i];
        if (n && c.n_seqs < per && c.prefix_start == s->prefix_start &&
            c.prefix_len == s->prefix_len) {
            c.n_seqs++;
        } else {
            c = (struct chunk){i, 1, s->prefix_start, s->prefix_len, floats};
            floats += 2 * (size_t)s->prefix_len * cols;
            n++;
        }
        if (chunks)
            chunks[n - 1] = c;
    }
    *partial_floats = floats;
    return n;
}

/* Adds the chunks' partials, in order, for columns [c0, c1). */
static void add_partials(const struct backward *f, const struct chunk *chunks, int n, int c0,
                         int c1)
{
    int64_t cols = (int64_t)f->a->kv_heads * f->a->head_dim;
    for (int i = 0; i < n; i++) {
        const struct chunk *c = &chunks[i];
        const float *pk = f->partials + c->partial, *pv = pk + c->prefix_len * cols;
        for (int64_t j = 0; j < c->prefix_len; j++) {
            int64_t at = c->prefix_start + j;
            add_to(f->dk + at * f->lddk + c0, pk + j * cols + c0, c1 - c0);
            add_to(f->dv + at * f->lddv + c0, pv + j * cols + c0, c1 - c0);
        }
    }
}

void sl_cpu_attention_back(struct sl_backend *be, const struct sl_attention *a, const sl_act *q,
                           int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                           const sl_act *o, int64_t ldo, const float *lse, const sl_act *d_o,
                           int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk, int64_t lddk,
                           sl_act *dv, int64_t lddv)
{
    if (a->n_seqs <= 0)
        return;
    struct backward f = {a,   q,   k,    v,    o,    d_o, lse, ldq, ldk, ldv,
                         ldo, ldd, lddq, lddk, lddv, dq,  dk,  dv,  NULL};
    size_t partial_floats, most = 0;
    for (int i = 0; i < a->n_seqs; i++) {
        size_t need = seq_floats(a, &a->host_seqs[i]);
        most = need > most ? need : most;
    }
    if (!sl_cpu_threads_scratch(be, most))
        return;
    int n = cut(a, NULL, &partial_floats);
    size_t chunk_floats = (size_t)n * sizeof(struct chunk) / sizeof(float);
    float *shared = sl_cpu_shared(be, chunk_floats + partial_floats);
    if (!shared)
        return;
    struct chunk *chunks = (struct chunk *)(void *)shared;
    cut(a, chunks, &partial_floats);
    f.partials = shared + chunk_floats;
    memset(f.partials, 0, partial_floats * sizeof *f.partials);

    for (int i = 0; a->set_keys && i < a->n_seqs; i++)
        for (int64_t j = a->host_seqs[i].kv_start; j < a->host_seqs[i].kv_start + a->host_seqs[i].kv_len; j++) {
            memset(f.dk + j * lddk, 0, (size_t)a->kv_heads * (size_t)a->head_dim * sizeof *f.dk);
            memset(f.dv + j * lddv, 0, (size_t)a->kv_heads * (size_t)a->head_dim * sizeof *f.dv);
        }
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
    for (int t = 0; t < n * a->kv_heads; t++) {
        const struct chunk *c = &chunks[t / a->kv_heads];
        float *pk = f.partials + c->partial;
        float *pv = pk + (size_t)c->prefix_len * (size_t)a->kv_heads * (size_t)a->head_dim;
        for (int i = c->seq; i < c->seq + c->n_seqs; i++)
            backward_seq(&f, &a->host_seqs[i], t % a->kv_heads, pk, pv,
                         be->scratch[omp_get_thread_num()].p);
    }
    if (!partial_floats)
        return;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int h = 0; h < a->kv_heads; h++)
        add_partials(&f, chunks, n, h * a->head_dim, (h + 1) * a->head_dim);
}
