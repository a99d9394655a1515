/* Attention, forward: scores of a block of query rows against all its keys, softmax, weighted
 * values. */
#include "engine/cpu/attention.h"
#include "engine/cpu/simd.h"
#include <omp.h>

SL_CLONES static void transpose(const float *x, int n, int cols, int ldx, float *y, int ldy)
{
    for (int i = 0; i < n; i++)
        for (int c = 0; c < cols; c++)
            y[(int64_t)c * ldy + i] = x[(int64_t)i * ldx + c];
    for (int c = 0; c < cols; c++)
        for (int i = n; i < ldy; i++)
            y[(int64_t)c * ldy + i] = 0.0f;
}

SL_INLINE void copy_row(const float *x, int cols, int padded, float f, float *y)
{
    for (int c = 0; c < cols; c++)
        y[c] = f * x[c];
    for (int c = cols; c < padded; c++)
        y[c] = 0.0f;
}

SL_CLONES void sl_cpu_att_keys(const struct sl_attention *a, const struct sl_seq *s, int kv_head,
                               const float *x, int64_t ld, int n, float *plain, float *turned)
{
    int d = a->head_dim, dp = sl_cpu_pad(d), np = sl_cpu_pad(n);
    for (int j = 0; j < n; j++) {
        int64_t at = j < s->prefix_len ? s->prefix_start + j : s->kv_start + (j - s->prefix_len);
        copy_row(x + at * ld + (int64_t)kv_head * d, d, dp, 1.0f, plain + (int64_t)j * dp);
    }
    if (turned)
        transpose(plain, n, d, dp, turned, np);
}

SL_CLONES void sl_cpu_att_rows(const struct sl_attention *a, const struct sl_seq *s, int kv_head,
                               int r0, int n, const float *x, int64_t ld, float f, float *out)
{
    int d = a->head_dim, dp = sl_cpu_pad(d), group = a->heads / a->kv_heads;
    for (int r = 0; r < n; r++) {
        int64_t q = s->q_start + (r0 + r) / group, h = (int64_t)kv_head * group + (r0 + r) % group;
        copy_row(x + q * ld + h * d, d, dp, f, out + (int64_t)r * dp);
    }
}

/* x[0, seen) becomes exp(x - max), x[seen, n) zero; n is a multiple of the padding. Returns their
 * sum and the maximum. */
SL_CLONES static float softmax_row(float *x, int seen, int n, float *ret_max)
{
    float m = -INFINITY, sum = 0.0f;
    n = n / SL_CPU_ATT_PAD * SL_CPU_ATT_PAD;
#pragma omp simd reduction(max : m)
    for (int i = 0; i < n; i++) {
        x[i] = i < seen ? x[i] : -INFINITY;
        m = x[i] > m ? x[i] : m;
    }
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) {
        x[i] = sl_expf(x[i] - m);
        sum += x[i];
    }
    *ret_max = m;
    return sum;
}

struct forward {
    const struct sl_attention *a;
    const float *q, *k, *v;
    int64_t ldq, ldk, ldv, ldo;
    float *o, *lse;
};

/* Query rows [r0, r1) of sequence s. */
static void forward_block(const struct forward *f, const struct sl_seq *s, int kv_head, int r0,
                          int r1, float *scratch)
{
    const struct sl_attention *a = f->a;
    int d = a->head_dim, dp = sl_cpu_pad(d), group = a->heads / a->kv_heads, rows = r1 - r0;
    int seen[SL_CPU_ATT_ROWS], n = 0;
    for (int r = 0; r < rows; r++) {
        seen[r] = sl_cpu_seen(a, s, group, r0 + r);
        n = seen[r] > n ? seen[r] : n;
    }
    int np = sl_cpu_pad(n);
    float *kt = scratch, *keys = kt + (size_t)d * (size_t)np, *q = keys + (size_t)n * (size_t)dp;
    float *p = q + (size_t)rows * (size_t)dp, *o = p + (size_t)rows * (size_t)np;
    sl_cpu_att_keys(a, s, kv_head, f->k, f->ldk, n, keys, kt);
    sl_cpu_att_rows(a, s, kv_head, r0, rows, f->q, f->ldq, a->scale, q);
    sl_cpu_mini_gemm(rows, np, d, NULL, q, dp, 1, kt, np, false, p, np);
    sl_cpu_att_keys(a, s, kv_head, f->v, f->ldv, n, keys, NULL);
    float sum[SL_CPU_ATT_ROWS], max;
    for (int r = 0; r < rows; r++) {
        int64_t at = s->q_start + (r0 + r) / group, h = (int64_t)kv_head * group + (r0 + r) % group;
        sum[r] = softmax_row(p + (int64_t)r * np, seen[r], sl_cpu_pad(seen[r]), &max);
        f->lse[h * a->n_queries + at] = seen[r] ? max + logf(sum[r]) : -INFINITY;
    }
    sl_cpu_mini_gemm(rows, dp, n, seen, p, np, 1, keys, dp, false, o, dp);
    for (int r = 0; r < rows; r++) {
        int64_t at = s->q_start + (r0 + r) / group, h = (int64_t)kv_head * group + (r0 + r) % group;
        copy_row(o + (int64_t)r * dp, d, d, seen[r] ? 1.0f / sum[r] : 0.0f,
                 f->o + at * f->ldo + h * d);
    }
}

void sl_cpu_attention(struct sl_backend *be, const struct sl_attention *a, const sl_act *q,
                      int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                      sl_act *o, int64_t ldo, float *lse)
{
    struct forward f = {a, q, k, v, ldq, ldk, ldv, ldo, o, lse};
    int group = a->heads / a->kv_heads, dp = sl_cpu_pad(a->head_dim);
    size_t keys = 0;
    int *first =
        (int *)(void *)sl_cpu_shared(be, (size_t)a->n_seqs + 1); /* first block of each sequence */
    if (!first)
        return;
    first[0] = 0;
    for (int i = 0; i < a->n_seqs; i++) {
        const struct sl_seq *s = &a->host_seqs[i];
        size_t n = (size_t)s->prefix_len + (size_t)s->kv_len;
        keys = n > keys ? n : keys;
        first[i + 1] = first[i] + (s->q_len * group + SL_CPU_ATT_ROWS - 1) / SL_CPU_ATT_ROWS;
    }
    keys += SL_CPU_ATT_PAD;
    size_t wide = (size_t)dp;
    if (!sl_cpu_threads_scratch(be,
                                keys * (2 * wide + SL_CPU_ATT_ROWS) + 2 * wide * SL_CPU_ATT_ROWS))
        return;
        /* Blocks are independent, so who computes one does not change its bits. */
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
    for (int t = 0; t < first[a->n_seqs] * a->kv_heads; t++) {
        int block = t / a->kv_heads, lo = 0, hi = a->n_seqs - 1;
        while (lo < hi) { /* the last sequence whose first block is not beyond this one */
            int mid = (lo + hi + 1) / 2;
            if (first[mid] <= block)
                lo = mid;
            else
                hi = mid - 1;
        }
        const struct sl_seq *s = &a->host_seqs[lo];
        int r0 = (block - first[lo]) * SL_CPU_ATT_ROWS, rows = s->q_len * group;
        int r1 = r0 + SL_CPU_ATT_ROWS < rows ? r0 + SL_CPU_ATT_ROWS : rows;
        forward_block(&f, s, t % a->kv_heads, r0, r1, be->scratch[omp_get_thread_num()].p);
    }
}
