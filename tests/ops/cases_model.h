/* Cases at the sizes of a real model (SmolLM2-135M, a batch of 16 rows): all threads, many tiles.
 * Results are sampled: the reference computes only the elements it is asked for. */
#ifndef TESTS_OPS_CASES_MODEL_H
#define TESTS_OPS_CASES_MODEL_H
#include "tests/ops/cases_attention.h"

enum { MODEL_HIDDEN = 576, MODEL_UP = 3072, MODEL_VOCAB = 49152, SAMPLES = 400 };

/* Elements of an activation at the picked places. */
static void get_some(struct dev *d, const sl_act *p, size_t rows, size_t cols, const size_t *pick,
                     size_t n, struct vec *got)
{
    struct vec all = {0};
    get_act(d, p, rows, cols, cols, &all);
    for (size_t i = 0; i < n; i++)
        vec_push(got, all.v[pick[i]]);
    vec_free(&all);
}

static void model_matmul(struct dev *d, size_t rows, size_t out, struct vec *got, struct vec *want)
{
    size_t in = MODEL_HIDDEN, n;
    double *x = host_random(d, rows * in, 1), *w = host_random(d, out * in, 1);
    struct sl_weight *dev_w = dev_weight(d, w, (int64_t)out, (int64_t)in);
    sl_act *dev_x = dev_act(d, x, rows, in, in);
    sl_act *dev_y = dev_act(d, host_nan(d, rows * out), rows, out, out);
    d->ops->matmul(d->be, dev_x, (int64_t)in, (int64_t)rows, dev_w, NULL, NULL, 0, dev_y,
                   (int64_t)out);
    size_t *pick = pick_some(d, rows * out, SAMPLES, &n);
    segment(got, want, "y");
    get_some(d, dev_y, rows, out, pick, n, got);
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t l = 0; l < in; l++)
            sum += x[pick[i] / out * in + l] * w[pick[i] % out * in + l];
        vec_push(want, sum);
    }
    free(pick);

    double *dy = host_random(d, rows * out, 1);
    d->ops->matmul_back(d->be, dev_act(d, dy, rows, out, out), (int64_t)out, (int64_t)rows, dev_w,
                        false, dev_x, (int64_t)in);
    pick = pick_some(d, rows * in, SAMPLES, &n);
    segment(got, want, "dx");
    get_some(d, dev_x, rows, in, pick, n, got);
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t l = 0; l < out; l++)
            sum += dy[pick[i] / in * out + l] * w[l * in + pick[i] % in];
        vec_push(want, sum);
    }
    free(pick);
}

static void case_model_matmul(struct dev *d, struct vec *got, struct vec *want)
{
    model_matmul(d, (size_t)rnd_int(d, 250, 420), MODEL_UP, got, want);
}

/* A matrix whose number of rows fills no vector: a vocabulary. */
static void case_odd_matmul(struct dev *d, struct vec *got, struct vec *want)
{
    model_matmul(d, (size_t)rnd_int(d, 20, 40), 8 * (size_t)rnd_int(d, 600, 700) + (size_t)rnd_int(d, 1, 7), got, want);
}

static void case_model_cross_entropy(struct dev *d, struct vec *got, struct vec *want)
{
    size_t rows = 24, vocab = MODEL_VOCAB, n;
    double *x = host_random(d, rows * vocab, 30), *weight = host_new(d, rows),
           *lse = host_new(d, rows);
    int32_t row[24], target[24];
    for (size_t r = 0; r < rows; r++) {
        row[r] = (int32_t)r;
        target[r] = rnd_int(d, 0, MODEL_VOCAB - 1);
        weight[r] = 1.0 / (double)rows;
        double sum = 0;
        for (size_t i = 0; i < vocab; i++)
            sum += exp(x[r * vocab + i]);
        lse[r] = log(sum);
    }
    sl_act *dev_x = dev_act(d, x, rows, vocab, vocab);
    float *loss = dev_f32(d, weight, rows);
    d->ops->cross_entropy(d->be, dev_x, (int64_t)vocab, (int64_t)rows, (int)vocab, (int64_t)rows,
                          dev_bytes(d, row, sizeof row), dev_bytes(d, target, sizeof target),
                          dev_f32(d, weight, rows), true, loss);
    segment(got, want, "loss");
    get_f32(d, loss, rows, got);
    for (size_t r = 0; r < rows; r++)
        vec_push(want, lse[r] - x[r * vocab + (size_t)target[r]]);
    size_t *pick = pick_some(d, rows * vocab, 20 * SAMPLES, &n);
    segment(got, want, "dlogits");
    get_some(d, dev_x, rows, vocab, pick, n, got);
    for (size_t i = 0; i < n; i++) {
        size_t r = pick[i] / vocab;
        double p = exp(x[pick[i]] - lse[r]);
        vec_push(want, weight[r] * (p - (pick[i] % vocab == (size_t)target[r])));
    }
    free(pick);
}

/* A prefix of 16 and 16 rows of 20 to 28, 9 heads on 3, head dimension 64; every key that is not
 * reached is NaN. */
static void case_model_attention(struct dev *d, struct vec *got, struct vec *want)
{
    struct att_ref r = {.a = {.heads = 9, .kv_heads = 3, .head_dim = 64, .scale = 0.125f}};
    att_add_seq(d, &r, 16, 0, 0, false);
    for (int i = 0; i < 16; i++)
        att_add_seq(d, &r, rnd_int(d, 20, 28), 0, 16, false);
    att_fill(d, &r, 8);
    size_t n = (size_t)r.a.n_queries, all = n * r.q_cols, keys = (size_t)r.a.n_keys,
           kv = keys * r.kv_cols;
    double *o = host_new(d, all), *lse = host_new(d, n * (size_t)r.a.heads);
    ref_attention(&r, o, lse);
    struct att_dev x = att_upload(d, &r, o, lse);
    d->ops->attention(d->be, &x.a, x.q, (int64_t)r.ldq, x.k, (int64_t)r.ldk, x.v, (int64_t)r.ldv,
                      x.o, (int64_t)r.ldo, x.lse);
    segment(got, want, "o");
    get_act(d, x.o, n, r.q_cols, r.ldo, got);
    put(want, o, all);
    double *zero = host_new(d, kv);
    sl_act *dq = dev_act(d, o, n, r.q_cols, r.ldo);
    sl_act *dk = dev_act(d, zero, keys, r.kv_cols, r.ldk),
           *dv = dev_act(d, zero, keys, r.kv_cols, r.ldv);
    d->ops->attention_back(d->be, &x.a, x.q, (int64_t)r.ldq, x.k, (int64_t)r.ldk, x.v,
                           (int64_t)r.ldv, x.o, (int64_t)r.ldo, x.lse,
                           dev_act(d, r.d_o, n, r.q_cols, r.ldq), (int64_t)r.ldq, dq,
                           (int64_t)r.ldo, dk, (int64_t)r.ldk, dv, (int64_t)r.ldv);
    /* The prefix comes first: a few elements of its summed gradients and of the queries'. */
    struct vec c = {0};
    get_act(d, dq, n, r.q_cols, r.ldo, &c);
    check_gradient(d, "dq", r.q, all, 8, loss_attention, &r, &c, NULL, got, want);
    c.n = 0;
    get_act(d, dk, keys, r.kv_cols, r.ldk, &c);
    c.n = 16 * r.kv_cols;
    check_gradient(d, "dk of the prefix", r.k, c.n, 12, loss_attention, &r, &c, NULL, got, want);
    c.n = 0;
    get_act(d, dv, keys, r.kv_cols, r.ldv, &c);
    c.n = 16 * r.kv_cols;
    check_gradient(d, "dv of the prefix", r.v, c.n, 12, loss_attention, &r, &c, NULL, got, want);
    vec_free(&c);
}

#endif
