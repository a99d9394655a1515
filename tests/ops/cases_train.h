/* Cases: what encoders and the optimizer use: bias and activation, LSTM, dropout, norms, AdamW. */
#ifndef TESTS_OPS_CASES_TRAIN_H
#define TESTS_OPS_CASES_TRAIN_H
#include "tests/ops/cases_rows.h"

static void case_bias_act(struct dev *d, struct vec *got, struct vec *want)
{
    enum sl_act_kind kind = (enum sl_act_kind)rnd_int(d, SL_ACT_NONE, SL_ACT_GELU_ERF);
    size_t rows = (size_t)rnd_int(d, 1, 30), cols = (size_t)rnd_int(d, 1, 700), all = rows * cols;
    double *x = host_random(d, all, 4), *bias = host_random(d, cols, 1);
    float *dev_x = dev_f32(d, x, all);
    float *dev_y =
        kind == SL_ACT_NONE && (rnd(d) & 1) ? NULL : dev_bytes(d, NULL, all * sizeof *dev_y);
    d->ops->bias_act_f32(d->be, kind, (int)rows, (int)cols, dev_x, dev_f32(d, bias, cols), dev_y);
    segment(got, want, "x");
    get_f32(d, dev_x, all, got);
    for (size_t i = 0; i < all; i++)
        vec_push(want, x[i] + bias[i % cols]);
    if (!dev_y)
        return;
    segment(got, want, "y");
    get_f32(d, dev_y, all, got);
    for (size_t i = 0; i < all; i++)
        vec_push(want, ref_act(kind, x[i] + bias[i % cols]));
}

static void case_bias_act_back(struct dev *d, struct vec *got, struct vec *want)
{
    enum sl_act_kind kind = (enum sl_act_kind)rnd_int(d, SL_ACT_NONE, SL_ACT_GELU_ERF);
    size_t rows = (size_t)rnd_int(d, 1, 30), cols = (size_t)rnd_int(d, 1, 700), all = rows * cols;
    double *pre = host_random(d, all, 6), *dy = host_random(d, all, 1),
           *sum = host_random(d, cols, 1);
    float *dev_dy = dev_f32(d, dy, all), *dev_sum = dev_f32(d, sum, cols);
    float *dev_dx = rnd(d) & 1 ? dev_dy : dev_bytes(d, NULL, all * sizeof *dev_dx);
    d->ops->bias_act_back_f32(d->be, kind, (int)rows, (int)cols, dev_dy, dev_f32(d, pre, all),
                              dev_dx, dev_sum);
    segment(got, want, "dx");
    get_f32(d, dev_dx, all, got);
    for (size_t i = 0; i < all; i++) {
        vec_push(want, dy[i] * ref_act_slope(kind, pre[i]));
        sum[i % cols] += want->v[want->n - 1];
    }
    segment(got, want, "bias_grad");
    get_f32(d, dev_sum, cols, got);
    put(want, sum, cols);
}

/* ---- LSTM */
struct lstm_ref {
    struct sl_lstm l;
    size_t n_x, n_y, n_ih, n_hh, n_b;
    double *x, *dy, *w_ih, *w_hh, *b_ih, *b_hh;
};

static double ref_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void ref_lstm(const struct lstm_ref *r, double *y)
{
    int e = r->l.hidden, in = r->l.in, steps = r->l.steps;
    double *c = calloc((size_t)e * 5, sizeof *c), *gate = c + e;
    for (int dir = 0; dir < 2; dir++)
        for (int s = 0; s < r->l.seqs; s++) {
            memset(c, 0, (size_t)e * sizeof *c);
            for (int i = 0; i < steps; i++) {
                int t = dir ? steps - 1 - i : i;
                double *out = y + (s * steps + t) * 2 * e + dir * e;
                const double *h =
                    i ? y + (s * steps + (dir ? t + 1 : t - 1)) * 2 * e + dir * e : NULL;
                for (int j = 0; j < 4 * e; j++) {
                    double g = r->b_ih[dir * 4 * e + j] + r->b_hh[dir * 4 * e + j];
                    for (int k = 0; k < in; k++)
                        g += r->x[(s * steps + t) * in + k] * r->w_ih[(dir * 4 * e + j) * in + k];
                    for (int k = 0; k < e && h; k++)
                        g += h[k] * r->w_hh[(dir * 4 * e + j) * e + k];
                    gate[j] = g;
                }
                for (int j = 0; j < e; j++) {
                    c[j] = ref_sigmoid(gate[e + j]) * c[j] +
                           ref_sigmoid(gate[j]) * tanh(gate[2 * e + j]);
                    out[j] = ref_sigmoid(gate[3 * e + j]) * tanh(c[j]);
                }
            }
        }
    free(c);
}

static double loss_lstm(void *ctx)
{
    struct lstm_ref *r = ctx;
    double *y = malloc(r->n_y * sizeof *y), sum = 0;
    ref_lstm(r, y);
    for (size_t i = 0; i < r->n_y; i++)
        sum += y[i] * r->dy[i];
    free(y);
    return sum;
}

static struct lstm_ref lstm_inputs(struct dev *d, struct sl_lstm l)
{
    struct lstm_ref r = {.l = l};
    size_t rows = (size_t)(r.l.seqs * r.l.steps), e = (size_t)r.l.hidden;
    r.n_x = rows * (size_t)r.l.in;
    r.n_y = rows * 2 * e;
    r.n_ih = 8 * e * (size_t)r.l.in;
    r.n_hh = 8 * e * e;
    r.n_b = 8 * e;
    r.x = host_random(d, r.n_x, 2);
    r.dy = host_random(d, r.n_y, 1);
    r.w_ih = host_random(d, r.n_ih, 1);
    r.w_hh = host_random(d, r.n_hh, 1);
    r.b_ih = host_random(d, r.n_b, 1);
    r.b_hh = host_random(d, r.n_b, 1);
    return r;
}

static void lstm_both(struct dev *d, struct lstm_ref r, int samples, struct vec *got,
                      struct vec *want)
{
    struct sl_lstm l = r.l;
    double *y = host_new(d, r.n_y);
    l.w_ih = dev_f32(d, r.w_ih, r.n_ih);
    l.w_hh = dev_f32(d, r.w_hh, r.n_hh);
    l.b_ih = dev_f32(d, r.b_ih, r.n_b);
    l.b_hh = dev_f32(d, r.b_hh, r.n_b);
    l.saved = dev_bytes(d, NULL, d->ops->lstm_saved(&l) * sizeof(float));
    float *x = dev_f32(d, r.x, r.n_x), *dev_y = dev_f32(d, y, r.n_y);
    d->ops->lstm(d->be, &l, x, dev_y);
    ref_lstm(&r, y);
    segment(got, want, "y");
    get_f32(d, dev_y, r.n_y, got);
    put(want, y, r.n_y);

    double *g_ih = host_random(d, r.n_ih, 1), *g_hh = host_random(d, r.n_hh, 1);
    double *g_b = host_random(d, r.n_b, 1);
    struct sl_lstm_grad g = {dev_f32(d, g_ih, r.n_ih), dev_f32(d, g_hh, r.n_hh),
                             dev_f32(d, g_b, r.n_b), dev_f32(d, g_b, r.n_b)};
    float *dx = rnd(d) % 4 ? dev_bytes(d, NULL, r.n_x * sizeof *dx) : NULL;
    d->ops->lstm_back(d->be, &l, x, dev_y, dev_f32(d, r.dy, r.n_y), dx, &g);
    struct {
        const char *name;
        const float *dev;
        double *x;
        size_t n;
        const double *before;
    } out[] = {{"w_ih", g.w_ih, r.w_ih, r.n_ih, g_ih},
               {"w_hh", g.w_hh, r.w_hh, r.n_hh, g_hh},
               {"b_ih", g.b_ih, r.b_ih, r.n_b, g_b},
               {"b_hh", g.b_hh, r.b_hh, r.n_b, g_b},
               {"dx", dx, r.x, r.n_x, NULL}};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++) {
        struct vec c = {0};
        if (!out[i].dev)
            continue;
        get_f32(d, out[i].dev, out[i].n, &c);
        check_gradient(d, out[i].name, out[i].x, out[i].n, samples, loss_lstm, &r, &c,
                       out[i].before, got, want);
        vec_free(&c);
    }
}

static void case_lstm(struct dev *d, struct vec *got, struct vec *want)
{
    struct sl_lstm l = {.seqs = rnd_int(d, 1, 6),
                        .steps = rnd_int(d, 1, 7),
                        .in = rnd_int(d, 1, 40),
                        .hidden = rnd_int(d, 1, 37)};
    lstm_both(d, lstm_inputs(d, l), 80, got, want);
}

/* Too wide for one block of threads, and for all recurrent weights in an H100's shared memory. */
static void case_wide_lstm(struct dev *d, struct vec *got, struct vec *want)
{
    struct sl_lstm l = {.seqs = 1, .steps = 3, .in = 5, .hidden = rnd(d) & 1 ? 1000 : 1003};
    struct lstm_ref r = lstm_inputs(d, l);
    for (size_t i = 0; i < r.n_hh; i++) /* sums of a thousand: out of the functions' flat ends */
        r.w_hh[i] /= 16;
    lstm_both(d, r, 4, got, want);
}

/* ---- dropout, sum of squares, clipping, AdamW */
static void case_dropout(struct dev *d, struct vec *got, struct vec *want)
{
    size_t n = (size_t)rnd_int(d, 1, 20000);
    double *x = host_random(d, n, 1), p = (double)(float)(0.05 + 0.3 * fabs(rnd_num(d)));
    uint64_t seed = rnd(d);
    float *dev_x = dev_f32(d, x, n), *y = rnd(d) & 1 ? dev_x : dev_bytes(d, NULL, n * sizeof *y);
    d->ops->dropout_f32(d->be, (int64_t)n, dev_x, (float)p, seed, y);
    segment(got, want, "y");
    get_f32(d, y, n, got);
    struct dev mask = {.rng = seed};
    for (size_t i = 0; i < n; i++)
        vec_push(want, (double)(rnd(&mask) >> 40) * 0x1p-24 < p ? 0 : x[i] / (1 - p));
}

static void case_sumsq(struct dev *d, struct vec *got, struct vec *want)
{
    size_t n = (size_t)rnd_int(d, 1, 60000);
    double *x = host_random(d, n, 1), start = 7.25, sum = 0;
    bool accumulate = rnd(d) & 1;
    float *out = dev_f32(d, &start, 1);
    d->ops->sumsq_f32(d->be, (int64_t)n, dev_f32(d, x, n), accumulate, out);
    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    segment(got, want, "sum");
    get_f32(d, out, 1, got);
    vec_push(want, sum + (accumulate ? start : 0));
}

static void case_clip(struct dev *d, struct vec *got, struct vec *want)
{
    segment(got, want, "scale");
    const double cases[][3] = {{4, 1, 0.5},   {4, 3, 1}, {4, 0, 1}, {4, -1, 1},
                               {NAN, 1, NAN}, {0, 1, 1}, {16, 4, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float *out = dev_bytes(d, NULL, sizeof *out);
        d->ops->clip_scale(d->be, dev_f32(d, &cases[i][0], 1), (float)cases[i][1], out);
        get_f32(d, out, 1, got);
        vec_push(want, cases[i][2]);
    }
}

static void case_adamw(struct dev *d, struct vec *got, struct vec *want)
{
    size_t n = (size_t)rnd_int(d, 1, 20000);
    struct sl_adamw hp = {.lr = 0.01f,
                          .beta1 = 0.9f,
                          .beta2 = 0.98f,
                          .eps = 1e-8f,
                          .weight_decay = 0.1f,
                          .step = rnd_int(d, 1, 2000)};
    double *p = host_random(d, n, 1), *g = host_random(d, n, 1), *m = host_random(d, n, 1);
    double *v = host_random(d, n, 1), scale = 0.37;
    for (size_t i = 0; i < n; i++)
        v[i] = fabs(v[i]);
    int kind = rnd_int(d, 0, 3); /* 0: no scale, 1 and 2: a scale, 3: not finite, nothing changes */
    double use = kind == 0 ? 1 : (double)(float)scale, bad = rnd(d) & 1 ? NAN : INFINITY;
    float *dev_p = dev_f32(d, p, n), *dev_m = dev_f32(d, m, n), *dev_v = dev_f32(d, v, n);
    d->ops->adamw(d->be, (int64_t)n, dev_p, dev_f32(d, g, n), dev_m, dev_v, &hp,
                  kind == 0 ? NULL : dev_f32(d, kind == 3 ? &bad : &scale, 1));
    double lr = (double)hp.lr, b1 = (double)hp.beta1, b2 = (double)hp.beta2;
    for (size_t i = 0; i < n && kind != 3; i++) { /* torch.optim.AdamW, single tensor */
        double gi = use * g[i];
        p[i] *= 1 - lr * (double)hp.weight_decay;
        m[i] = b1 * m[i] + (1 - b1) * gi;
        v[i] = b2 * v[i] + (1 - b2) * gi * gi;
        double denom = sqrt(v[i]) / sqrt(1 - pow(b2, hp.step)) + (double)hp.eps;
        p[i] -= lr / (1 - pow(b1, hp.step)) * m[i] / denom;
    }
    const float *dev[] = {dev_p, dev_m, dev_v};
    const double *ref[] = {p, m, v};
    const char *name[] = {"p", "m", "v"};
    for (int i = 0; i < 3; i++) {
        segment(got, want, name[i]);
        get_f32(d, dev[i], n, got);
        put(want, ref[i], n);
    }
}

#endif
