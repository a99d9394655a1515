/* Cases: attention and its gradient. Several slots, each with an optional shared prefix that is a
 * sequence of its own; sequences of all positions or of chosen rows; grouped heads; keys that
 * nobody sees are NaN. */
#ifndef TESTS_OPS_CASES_ATTENTION_H
#define TESTS_OPS_CASES_ATTENTION_H
#include "tests/ops/harness.h"

#define MAX_QUERIES 1024
#define MAX_KEYS 1536
#define MAX_SEQS 64

struct att_ref {
    struct sl_attention a;
    struct sl_seq seq[MAX_SEQS];
    int32_t visible[MAX_QUERIES];
    bool reached[MAX_KEYS];
    double *q, *k, *v, *d_o;
    size_t q_cols, kv_cols, ldq, ldk, ldv, ldo;
};

static void att_add_seq(struct dev *d, struct att_ref *r, int own, int prefix_start, int prefix_len,
                        bool some)
{
    struct sl_attention *a = &r->a;
    struct sl_seq *s = &r->seq[a->n_seqs++];
    *s = (struct sl_seq){a->n_queries, 0, a->n_keys, own, prefix_start, prefix_len};
    for (int i = 0; i < own; i++)
        if (!some || rnd(d) % 3 == 0) {
            r->visible[a->n_queries++] = i + 1;
            s->q_len++;
        }
    if (rnd(d) % 3 == 0) /* room that a key cache keeps for later */
        s->kv_len += rnd_int(d, 1, 3);
    a->n_keys += s->kv_len + rnd_int(d, 0, 2);
    a->max_q_len = s->q_len > a->max_q_len ? s->q_len : a->max_q_len;
    int keys = s->prefix_len + s->kv_len;
    a->max_kv_len = keys > a->max_kv_len ? keys : a->max_kv_len;
}

/* Strides (gaps are multiples of unit), numbers, and which keys anybody sees, when the sequences are there. */
static void att_fill(struct dev *d, struct att_ref *r, int unit)
{
    struct sl_attention *a = &r->a;
    for (int i = 0; i < a->n_seqs; i++)
        for (int t = 0; t < r->seq[i].q_len; t++) {
            for (int j = 0; j < r->seq[i].prefix_len; j++)
                r->reached[r->seq[i].prefix_start + j] = true;
            for (int j = 0; j < r->visible[r->seq[i].q_start + t]; j++)
                r->reached[r->seq[i].kv_start + j] = true;
        }
    r->q_cols = (size_t)(a->heads * a->head_dim);
    r->kv_cols = (size_t)(a->kv_heads * a->head_dim);
    r->ldq = r->q_cols + (size_t)(unit * rnd_int(d, 0, 5));
    r->ldk = r->kv_cols + (size_t)(unit * rnd_int(d, 0, 5));
    r->ldv = r->kv_cols + (size_t)(unit * rnd_int(d, 0, 5));
    r->ldo = r->q_cols + (size_t)(unit * rnd_int(d, 0, 5));
    r->q = host_random(d, (size_t)a->n_queries * r->q_cols, 3);
    r->k = host_random(d, (size_t)a->n_keys * r->kv_cols, 3);
    r->v = host_random(d, (size_t)a->n_keys * r->kv_cols, 1);
    r->d_o = host_random(d, (size_t)a->n_queries * r->q_cols, 1);
}

static struct att_ref att_inputs(struct dev *d)
{
    struct att_ref r = {.a = {.kv_heads = rnd_int(d, 1, 3), .head_dim = rnd_int(d, 3, 70)}};
    struct sl_attention *a = &r.a;
    a->heads = a->kv_heads * rnd_int(d, 1, 3);
    a->scale = 1.3f / sqrtf((float)a->head_dim);
    bool some = rnd(d) & 1, one_long = rnd(d) % 3 == 0;
    int slots = rnd_int(d, 1, 3);
    for (int slot = 0; slot < slots; slot++) {
        int start = a->n_keys, prefix = rnd(d) % 3 ? rnd_int(d, 1, 20) : 0;
        if (prefix)
            att_add_seq(d, &r, prefix, 0, 0, some);
        for (int rows = rnd_int(d, 1, slot ? 3 : 20); rows > 0; rows--)
            att_add_seq(d, &r, rnd_int(d, 1, 7), start, prefix, some);
    }
    if (one_long) /* more query rows than are handled at a time */
        att_add_seq(d, &r, rnd_int(d, 60, 110), 0, 0, false);
    if (a->n_queries == 0)
        att_add_seq(d, &r, 5, 0, 0, false);
    att_fill(d, &r, 1);
    return r;
}

/* Head sizes, strides and lengths for which a backend may have kernels of its own: common sizes, 16-byte aligned
 * rows, prefixes and sequences longer than a tile of keys or queries. */
static struct att_ref wide_inputs(struct dev *d)
{
    static const int dims[] = {64, 80, 96, 128};
    struct att_ref r = {.a = {.kv_heads = rnd_int(d, 1, 2), .head_dim = dims[rnd(d) % 4]}};
    struct sl_attention *a = &r.a;
    a->heads = a->kv_heads * rnd_int(d, 1, 3);
    a->scale = 1.3f / sqrtf((float)a->head_dim);
    bool some = rnd(d) & 1;
    int slots = rnd_int(d, 1, 2);
    for (int slot = 0; slot < slots; slot++) {
        int start = a->n_keys, prefix = rnd(d) % 4 ? rnd_int(d, 1, 90) : 0;
        if (prefix)
            att_add_seq(d, &r, prefix, 0, 0, some);
        for (int rows = rnd_int(d, 1, 4); rows > 0; rows--)
            att_add_seq(d, &r, rnd_int(d, 1, slot ? 20 : 70), start, prefix, some);
    }
    if (a->n_queries == 0)
        att_add_seq(d, &r, 5, 0, 0, false);
    att_fill(d, &r, 8);
    return r;
}

/* Head sizes that have kernels of their own, at every kind of edge: a prefix of none, one or a hundred keys; sequences of
 * one row, of just a tile or two, and around; heads that share keys; rows enough for a block of two warpgroups. */
static struct att_ref ragged_inputs(struct dev *d)
{
    static const int dims[] = {64, 128, 80, 96}, prefixes[] = {100, 0, 1}, lengths[] = {1, 64, 128, 63, 65, 129};
    struct att_ref r = {.a = {.kv_heads = rnd_int(d, 1, 2), .head_dim = dims[rnd(d) % 4]}};
    struct sl_attention *a = &r.a;
    int group = rnd_int(d, 1, 3), prefix = prefixes[rnd(d) % 3];
    a->heads = a->kv_heads * group;
    a->scale = 1.3f / sqrtf((float)a->head_dim);
    if (prefix)
        att_add_seq(d, &r, prefix, 0, 0, false);
    att_add_seq(d, &r, lengths[rnd(d) % 6], 0, prefix, false);
    att_add_seq(d, &r, lengths[rnd(d) % 6], 0, prefix, rnd(d) & 1);
    att_add_seq(d, &r, 512 / group + rnd_int(d, 0, 40), 0, prefix, false);
    att_add_seq(d, &r, 1, 0, prefix, false);
    a->set_keys = rnd(d) & 1;
    att_fill(d, &r, 8);
    return r;
}

static void ref_attention(const struct att_ref *r, double *o, double *lse)
{
    const struct sl_attention *a = &r->a;
    double score[MAX_KEYS];
    for (int i = 0; i < a->n_seqs; i++)
        for (int t = 0; t < r->seq[i].q_len; t++)
            for (int h = 0; h < a->heads; h++) {
                const struct sl_seq *s = &r->seq[i];
                int query = s->q_start + t, n = s->prefix_len + r->visible[query], d = a->head_dim;
                size_t kh = (size_t)(h / (a->heads / a->kv_heads) * d);
                const double *q = r->q + (size_t)query * r->q_cols + h * d;
                double *out = o + (size_t)query * r->q_cols + h * d, max = -INFINITY, sum = 0;
                for (int j = 0; j < n; j++) {
                    int key =
                        j < s->prefix_len ? s->prefix_start + j : s->kv_start + j - s->prefix_len;
                    score[j] = 0;
                    for (int c = 0; c < d; c++)
                        score[j] += (double)a->scale * q[c] *
                                    r->k[(size_t)key * r->kv_cols + kh + (size_t)c];
                    max = score[j] > max ? score[j] : max;
                }
                memset(out, 0, (size_t)d * sizeof *out);
                for (int j = 0; j < n; j++) {
                    int key =
                        j < s->prefix_len ? s->prefix_start + j : s->kv_start + j - s->prefix_len;
                    double p = exp(score[j] - max);
                    sum += p;
                    for (int c = 0; c < d; c++)
                        out[c] += p * r->v[(size_t)key * r->kv_cols + kh + (size_t)c];
                }
                for (int c = 0; c < d; c++)
                    out[c] /= sum;
                lse[h * a->n_queries + query] = max + log(sum);
            }
}

/* The gradients; adds to dk and dv. */
static void ref_attention_back(const struct att_ref *r, const double *o, const double *lse, double *dq, double *dk, double *dv)
{
    const struct sl_attention *a = &r->a;
    for (int i = 0; i < a->n_seqs; i++)
        for (int t = 0; t < r->seq[i].q_len; t++)
            for (int h = 0; h < a->heads; h++) {
                const struct sl_seq *s = &r->seq[i];
                int query = s->q_start + t, n = s->prefix_len + r->visible[query], d = a->head_dim;
                size_t at = (size_t)query * r->q_cols + (size_t)(h * d), kh = (size_t)(h / (a->heads / a->kv_heads) * d);
                double delta = 0;
                for (int c = 0; c < d; c++) {
                    delta += o[at + (size_t)c] * r->d_o[at + (size_t)c];
                    dq[at + (size_t)c] = 0;
                }
                for (int j = 0; j < n; j++) {
                    int key = j < s->prefix_len ? s->prefix_start + j : s->kv_start + j - s->prefix_len;
                    size_t k = (size_t)key * r->kv_cols + kh;
                    double score = 0, dp = 0;
                    for (size_t c = 0; c < (size_t)d; c++) {
                        score += r->q[at + c] * r->k[k + c];
                        dp += r->d_o[at + c] * r->v[k + c];
                    }
                    double p = exp((double)a->scale * score - lse[h * a->n_queries + query]);
                    double ds = p * (dp - delta) * (double)a->scale;
                    for (size_t c = 0; c < (size_t)d; c++) {
                        dq[at + c] += ds * r->k[k + c];
                        dk[k + c] += ds * r->q[at + c];
                        dv[k + c] += p * r->d_o[at + c];
                    }
                }
            }
}

/* Keys as the device gets them: NaN where no query looks. */
static sl_act *dev_keys(struct dev *d, const struct att_ref *r, const double *x, size_t ld)
{
    size_t n = (size_t)r->a.n_keys;
    double *poisoned = host_new(d, n * r->kv_cols);
    for (size_t i = 0; i < n * r->kv_cols; i++)
        poisoned[i] = r->reached[i / r->kv_cols] ? x[i] : NAN;
    return dev_act(d, poisoned, n, r->kv_cols, ld);
}

struct att_dev {
    struct sl_attention a;
    sl_act *q, *k, *v, *o;
    float *lse;
};
static struct att_dev att_upload(struct dev *d, const struct att_ref *r, const double *o,
                                 const double *lse)
{
    size_t n = (size_t)r->a.n_queries;
    struct att_dev x = {.a = r->a};
    x.a.seqs = dev_bytes(d, r->seq, sizeof r->seq);
    x.a.host_seqs = r->seq;
    x.a.visible = dev_bytes(d, r->visible, sizeof r->visible);
    x.q = dev_act(d, r->q, n, r->q_cols, r->ldq);
    x.k = dev_keys(d, r, r->k, r->ldk);
    x.v = dev_keys(d, r, r->v, r->ldv);
    x.o = dev_act(d, o, n, r->q_cols, r->ldo);
    x.lse = dev_f32(d, lse, n * (size_t)r->a.heads);
    return x;
}

static void attention_of(struct dev *d, struct att_ref r, struct vec *got, struct vec *want)
{
    size_t n = (size_t)r.a.n_queries, all = n * r.q_cols, stats = n * (size_t)r.a.heads;
    double *o = host_new(d, all), *lse = host_new(d, stats);
    struct att_dev x = att_upload(d, &r, o, lse);
    d->ops->attention(d->be, &x.a, x.q, (int64_t)r.ldq, x.k, (int64_t)r.ldk, x.v, (int64_t)r.ldv,
                      x.o, (int64_t)r.ldo, x.lse);
    ref_attention(&r, o, lse);
    segment(got, want, "o");
    get_act(d, x.o, n, r.q_cols, r.ldo, got);
    put(want, o, all);
    segment(got, want, "lse");
    get_f32(d, x.lse, stats, got);
    put(want, lse, stats);
}

static void case_attention(struct dev *d, struct vec *got, struct vec *want)
{
    attention_of(d, att_inputs(d), got, want);
}

static void case_wide_attention(struct dev *d, struct vec *got, struct vec *want)
{
    attention_of(d, wide_inputs(d), got, want);
}

static double loss_attention(void *ctx)
{
    struct att_ref *r = ctx;
    size_t all = (size_t)r->a.n_queries * r->q_cols;
    double *o = malloc((all + (size_t)(r->a.n_queries * r->a.heads)) * sizeof *o), sum = 0;
    ref_attention(r, o, o + all);
    for (size_t i = 0; i < all; i++)
        sum += o[i] * r->d_o[i];
    free(o);
    return sum;
}

static void attention_back_of(struct dev *d, struct att_ref r, size_t samples, struct vec *got, struct vec *want)
{
    size_t n = (size_t)r.a.n_queries, keys = (size_t)r.a.n_keys, all = n * r.q_cols,
           kv = keys * r.kv_cols;
    double *o = host_new(d, all), *lse = host_new(d, n * (size_t)r.a.heads);
    double *dk0 = host_random(d, kv, 1), *dv0 = host_random(d, kv, 1);
    ref_attention(&r, o, lse);
    struct att_dev x = att_upload(d, &r, o, lse);
    sl_act *dq = dev_act(d, o, n, r.q_cols, r.ldo);
    sl_act *dk = dev_act(d, dk0, keys, r.kv_cols, r.ldk),
           *dv = dev_act(d, dv0, keys, r.kv_cols, r.ldv);
    d->ops->attention_back(d->be, &x.a, x.q, (int64_t)r.ldq, x.k, (int64_t)r.ldk, x.v,
                           (int64_t)r.ldv, x.o, (int64_t)r.ldo, x.lse,
                           dev_act(d, r.d_o, n, r.q_cols, r.ldq), (int64_t)r.ldq, dq,
                           (int64_t)r.ldo, dk, (int64_t)r.ldk, dv, (int64_t)r.ldv);
    struct vec c = {0};
    get_act(d, dq, n, r.q_cols, r.ldo, &c);
    check_gradient(d, "dq", r.q, all, samples, loss_attention, &r, &c, NULL, got, want);
    c.n = 0;
    get_act(d, dk, keys, r.kv_cols, r.ldk, &c);
    check_gradient(d, "dk", r.k, kv, samples, loss_attention, &r, &c, dk0, got, want);
    c.n = 0;
    get_act(d, dv, keys, r.kv_cols, r.ldv, &c);
    check_gradient(d, "dv", r.v, kv, samples, loss_attention, &r, &c, dv0, got, want);
    vec_free(&c);
}

static void case_attention_back(struct dev *d, struct vec *got, struct vec *want)
{
    attention_back_of(d, att_inputs(d), 60, got, want);
}

static void case_wide_attention_back(struct dev *d, struct vec *got, struct vec *want)
{
    attention_back_of(d, wide_inputs(d), d->bits_only ? 5000 : 16, got, want);
}

/* With set_keys, gradients of a sequence's own keys are `value` beforehand. */
static void att_before(const struct att_ref *r, double *dk, double *dv, double value)
{
    for (int i = 0; r->a.set_keys && i < r->a.n_seqs; i++)
        for (size_t j = (size_t)r->seq[i].kv_start * r->kv_cols; j < (size_t)(r->seq[i].kv_start + r->seq[i].kv_len) * r->kv_cols; j++)
            dk[j] = dv[j] = value;
}

/* Forward and backward, every element. */
static void case_ragged_attention(struct dev *d, struct vec *got, struct vec *want)
{
    struct att_ref r = ragged_inputs(d);
    size_t n = (size_t)r.a.n_queries, keys = (size_t)r.a.n_keys, all = n * r.q_cols, kv = keys * r.kv_cols,
           stats = n * (size_t)r.a.heads;
    double *o = host_new(d, all), *lse = host_new(d, stats), *dq = host_new(d, all);
    double *dk = host_random(d, kv, 1), *dv = host_random(d, kv, 1);
    if (!d->bits_only)
        ref_attention(&r, o, lse);
    struct att_dev x = att_upload(d, &r, o, lse);
    att_before(&r, dk, dv, NAN);
    sl_act *dev_dq = dev_act(d, host_nan(d, all), n, r.q_cols, r.ldo), *dev_dk = dev_act(d, dk, keys, r.kv_cols, r.ldk);
    sl_act *dev_dv = dev_act(d, dv, keys, r.kv_cols, r.ldv), *dev_do = dev_act(d, r.d_o, n, r.q_cols, r.ldq);
    d->ops->attention(d->be, &x.a, x.q, (int64_t)r.ldq, x.k, (int64_t)r.ldk, x.v, (int64_t)r.ldv, x.o, (int64_t)r.ldo, x.lse);
    d->ops->attention_back(d->be, &x.a, x.q, (int64_t)r.ldq, x.k, (int64_t)r.ldk, x.v, (int64_t)r.ldv, x.o, (int64_t)r.ldo,
                           x.lse, dev_do, (int64_t)r.ldq, dev_dq, (int64_t)r.ldo, dev_dk, (int64_t)r.ldk, dev_dv,
                           (int64_t)r.ldv);
    att_before(&r, dk, dv, 0);
    if (!d->bits_only)
        ref_attention_back(&r, o, lse, dq, dk, dv);
    segment(got, want, "o");
    get_act(d, x.o, n, r.q_cols, r.ldo, got);
    put(want, o, all);
    segment(got, want, "lse");
    get_f32(d, x.lse, stats, got);
    put(want, lse, stats);
    segment(got, want, "dq");
    get_act(d, dev_dq, n, r.q_cols, r.ldo, got);
    put(want, dq, all);
    segment(got, want, "dk");
    get_act(d, dev_dk, keys, r.kv_cols, r.ldk, got);
    put(want, dk, kv);
    segment(got, want, "dv");
    get_act(d, dev_dv, keys, r.kv_cols, r.ldv, got);
    put(want, dv, kv);
}

#endif
