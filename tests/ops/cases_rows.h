/* Cases: norms, rotary positions, activations, cross-entropy. */
#ifndef TESTS_OPS_CASES_ROWS_H
#define TESTS_OPS_CASES_ROWS_H
#include "tests/ops/harness.h"

/* ---- norms */
struct norm_ref {
    size_t rows, cols;
    double *x, *w, *b, *dy;
    double eps;
    bool rms;
};

static void ref_norm(const struct norm_ref *n, double *y, double *mean, double *rstd)
{
    for (size_t r = 0; r < n->rows; r++) {
        const double *x = n->x + r * n->cols;
        double m = 0, s = 0;
        for (size_t i = 0; i < n->cols && !n->rms; i++)
            m += x[i] / (double)n->cols;
        for (size_t i = 0; i < n->cols; i++)
            s += (x[i] - m) * (x[i] - m) / (double)n->cols;
        mean[r] = m;
        rstd[r] = 1 / sqrt(s + n->eps);
        for (size_t i = 0; i < n->cols; i++)
            y[r * n->cols + i] = (x[i] - m) * rstd[r] * n->w[i] + (n->b ? n->b[i] : 0);
    }
}

static struct norm_ref norm_inputs(struct dev *d, size_t max_cols)
{
    struct norm_ref n = {.rows = (size_t)rnd_int(d, 1, 30),
                         .cols = (size_t)rnd_int(d, 2, (int)max_cols)};
    n.rms = rnd(d) & 1;
    n.eps = (double)1e-5f;
    n.x = host_random(d, n.rows * n.cols, 3);
    n.w = host_random(d, n.cols, 1);
    n.b = n.rms || (rnd(d) & 1) ? NULL : host_random(d, n.cols, 1);
    n.dy = host_random(d, n.rows * n.cols, 1);
    return n;
}

static void case_norm(struct dev *d, struct vec *got, struct vec *want)
{
    struct norm_ref n = norm_inputs(d, 700);
    size_t all = n.rows * n.cols;
    double *y = host_new(d, all), *mean = host_new(d, n.rows), *rstd = host_new(d, n.rows);
    sl_act *dev_y = dev_act(d, y, n.rows, n.cols, n.cols);
    float *dev_mean = n.rms ? NULL : dev_f32(d, mean, n.rows), *dev_rstd = dev_f32(d, rstd, n.rows);
    d->ops->norm(d->be, dev_act(d, n.x, n.rows, n.cols, n.cols), (int64_t)n.rows, (int)n.cols,
                 dev_weight(d, n.w, 1, (int64_t)n.cols),
                 n.b ? dev_weight(d, n.b, 1, (int64_t)n.cols) : NULL, (float)n.eps, n.rms, dev_y,
                 dev_mean, dev_rstd);
    ref_norm(&n, y, mean, rstd);
    segment(got, want, "y");
    get_act(d, dev_y, n.rows, n.cols, n.cols, got);
    put(want, y, all);
    segment(got, want, "rstd");
    get_f32(d, dev_rstd, n.rows, got);
    put(want, rstd, n.rows);
    if (!n.rms) {
        /* A mean near 0 is known to the size of the numbers, not to its own. */
        segment(got, want, "mean+1");
        size_t at = got->n;
        get_f32(d, dev_mean, n.rows, got);
        for (size_t r = 0; r < n.rows; r++) {
            got->v[at + r] += 1;
            vec_push(want, mean[r] + 1);
        }
    }
}

static double loss_norm(void *ctx)
{
    struct norm_ref *n = ctx;
    size_t all = n->rows * n->cols;
    double *y = malloc((all + 2 * n->rows) * sizeof *y), sum = 0;
    ref_norm(n, y, y + all, y + all + n->rows);
    for (size_t i = 0; i < all; i++)
        sum += y[i] * n->dy[i];
    free(y);
    return sum;
}

static void case_norm_back(struct dev *d, struct vec *got, struct vec *want)
{
    struct norm_ref n = norm_inputs(d, 300);
    size_t all = n.rows * n.cols;
    bool accumulate = rnd(d) & 1;
    double *y = host_new(d, all), *mean = host_new(d, n.rows), *rstd = host_new(d, n.rows);
    double *before = host_random(d, all, 1);
    ref_norm(&n, y, mean, rstd);
    sl_act *dev_dx = dev_act(d, before, n.rows, n.cols, n.cols);
    d->ops->norm_back(
        d->be, dev_act(d, n.dy, n.rows, n.cols, n.cols), dev_act(d, n.x, n.rows, n.cols, n.cols),
        n.rms ? NULL : dev_f32(d, mean, n.rows), dev_f32(d, rstd, n.rows), (int64_t)n.rows,
        (int)n.cols, dev_weight(d, n.w, 1, (int64_t)n.cols), n.rms, accumulate, dev_dx);
    struct vec dx = {0};
    get_act(d, dev_dx, n.rows, n.cols, n.cols, &dx);
    check_gradient(d, "dx", n.x, all, 400, loss_norm, &n, &dx, accumulate ? before : NULL, got,
                   want);
    vec_free(&dx);
}

/* ---- norms of heads: the same, in the first heads of rows that hold more */
static void case_head_norm(struct dev *d, struct vec *got, struct vec *want)
{
    int heads = rnd_int(d, 1, 9), head_dim = rnd_int(d, 2, 130), rows = rnd_int(d, 1, 40);
    size_t cols = (size_t)(heads * head_dim), ldx = cols + (size_t)rnd_int(d, 0, 40),
           ldy = cols + (size_t)rnd_int(d, 0, 40), n_heads = (size_t)(rows * heads);
    struct norm_ref n = {.rows = n_heads, .cols = (size_t)head_dim, .eps = 1e-6, .rms = true};
    n.x = host_random(d, n_heads * n.cols, 3);
    n.w = host_random(d, n.cols, 1);
    double *y = host_new(d, n_heads * n.cols), *mean = host_new(d, n_heads),
           *rstd = host_new(d, n_heads);
    sl_act *dev_y = dev_act(d, y, (size_t)rows, cols, ldy);
    float *dev_rstd = dev_f32(d, rstd, n_heads);
    d->ops->head_norm(d->be, dev_act(d, n.x, (size_t)rows, cols, ldx), (int64_t)ldx, rows, heads,
                      head_dim, dev_weight(d, n.w, 1, head_dim), (float)n.eps, dev_y, (int64_t)ldy,
                      dev_rstd);
    ref_norm(&n, y, mean, rstd);
    segment(got, want, "y");
    get_act(d, dev_y, (size_t)rows, cols, ldy, got);
    put(want, y, n_heads * n.cols);
    segment(got, want, "rstd");
    get_f32(d, dev_rstd, n_heads, got);
    put(want, rstd, n_heads);
}

static void case_head_norm_back(struct dev *d, struct vec *got, struct vec *want)
{
    int heads = rnd_int(d, 1, 6), head_dim = rnd_int(d, 2, 64), rows = rnd_int(d, 1, 20);
    size_t cols = (size_t)(heads * head_dim), ldx = cols + (size_t)rnd_int(d, 0, 40),
           ldd = cols + (size_t)rnd_int(d, 0, 40), n_heads = (size_t)(rows * heads);
    struct norm_ref n = {.rows = n_heads, .cols = (size_t)head_dim, .eps = 1e-6, .rms = true};
    bool in_place = rnd(d) & 1;
    n.x = host_random(d, n_heads * n.cols, 3);
    n.w = host_random(d, n.cols, 1);
    n.dy = host_random(d, n_heads * n.cols, 1);
    double *y = host_new(d, n_heads * n.cols), *mean = host_new(d, n_heads),
           *rstd = host_new(d, n_heads);
    ref_norm(&n, y, mean, rstd);
    sl_act *dy = dev_act(d, n.dy, (size_t)rows, cols, ldd);
    sl_act *dx = in_place ? dy : dev_act(d, y, (size_t)rows, cols, ldd);
    d->ops->head_norm_back(d->be, dy, (int64_t)ldd, dev_act(d, n.x, (size_t)rows, cols, ldx),
                           (int64_t)ldx, dev_f32(d, rstd, n_heads), rows, heads, head_dim,
                           dev_weight(d, n.w, 1, head_dim), dx, (int64_t)ldd);
    struct vec computed = {0};
    get_act(d, dx, (size_t)rows, cols, ldd, &computed);
    check_gradient(d, "dx", n.x, n_heads * n.cols, 400, loss_norm, &n, &computed, NULL, got, want);
    vec_free(&computed);
}

/* ---- rotary positions */
static void case_rope(struct dev *d, struct vec *got, struct vec *want)
{
    int rows = rnd_int(d, 1, 60), heads = rnd_int(d, 1, 9), head_dim = 2 * rnd_int(d, 1, 40);
    int dims = rnd(d) & 1 ? head_dim : 2 * rnd_int(d, 1, head_dim / 2),
        positions = rnd_int(d, 1, 50);
    size_t cols = (size_t)(heads * head_dim + rnd_int(d, 0, 30)),
           ld = cols + (size_t)rnd_int(d, 0, 5);
    bool inverse = rnd(d) & 1;
    double *x = host_random(d, (size_t)rows * cols, 1),
           *table = host_new(d, (size_t)(positions * dims));
    int32_t pos[60];
    for (int p = 0; p < positions; p++)
        for (int i = 0; i < dims / 2; i++) {
            double a = p * pow(10000, -2.0 * i / dims);
            table[p * dims + 2 * i] = cos(a);
            table[p * dims + 2 * i + 1] = sin(a);
        }
    for (int r = 0; r < rows; r++)
        pos[r] = rnd_int(d, 0, positions - 1);
    sl_act *dev_x = dev_act(d, x, (size_t)rows, cols, ld);
    d->ops->rope(d->be, dev_x, (int64_t)ld, rows, heads, head_dim, dims,
                 dev_bytes(d, pos, sizeof pos), dev_f32(d, table, (size_t)(positions * dims)),
                 inverse);
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < dims / 2; i++) {
                double *a = x + (size_t)r * cols + h * head_dim + i, *b = a + dims / 2, u = *a,
                       v = *b;
                double c = table[pos[r] * dims + 2 * i],
                       s = (inverse ? -1 : 1) * table[pos[r] * dims + 2 * i + 1];
                *a = u * c - v * s;
                *b = v * c + u * s;
            }
    segment(got, want, "x");
    get_act(d, dev_x, (size_t)rows, cols, ld, got);
    put(want, x, (size_t)rows * cols);
}

/* ---- activations */
static double ref_act(enum sl_act_kind kind, double x)
{
    switch (kind) {
    case SL_ACT_RELU:
        return x > 0 ? x : 0;
    case SL_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case SL_ACT_GELU_ERF:
        return 0.5 * x * (1 + erf(x / sqrt(2)));
    case SL_ACT_SWIGLU:
        return x / (1 + exp(-x));
    default:
        return x;
    }
}

static double ref_act_slope(enum sl_act_kind kind, double x)
{
    return (ref_act(kind, x + FD_STEP) - ref_act(kind, x - FD_STEP)) / (2 * FD_STEP);
}

static void activation_case(struct dev *d, bool back, struct vec *got, struct vec *want)
{
    enum sl_act_kind kind = (enum sl_act_kind)rnd_int(d, SL_ACT_RELU, SL_ACT_SWIGLU);
    size_t rows = (size_t)rnd_int(d, 1, 30), cols = (size_t)rnd_int(d, 1, 500);
    size_t wide = kind == SL_ACT_SWIGLU ? 2 * cols : cols;
    double *x = host_random(d, rows * wide, 12), *y = host_new(d, rows * cols),
           *dy = host_random(d, rows * cols, 1);
    sl_act *dev_x = dev_act(d, x, rows, wide, wide);
    segment(got, want, back ? "dx" : "y");
    if (!back) {
        sl_act *dev_y = dev_act(d, y, rows, cols, cols);
        d->ops->activation(d->be, kind, dev_x, (int64_t)rows, (int)cols, dev_y);
        get_act(d, dev_y, rows, cols, cols, got);
    } else {
        sl_act *dev_dx =
            rnd(d) & 1 ? dev_x : dev_act(d, host_new(d, rows * wide), rows, wide, wide);
        d->ops->activation_back(d->be, kind, dev_act(d, dy, rows, cols, cols), dev_x, (int64_t)rows,
                                (int)cols, dev_dx);
        get_act(d, dev_dx, rows, wide, wide, got);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < wide; c++) {
            double v = x[r * wide + c], g = dy[r * cols + c % cols];
            if (kind != SL_ACT_SWIGLU)
                vec_push(want, back ? g * ref_act_slope(kind, v) : ref_act(kind, v));
            else if (back)
                vec_push(want, c < cols ? g * ref_act_slope(kind, v) * x[r * wide + cols + c]
                                        : g * ref_act(kind, x[r * wide + c - cols]));
            else if (c < cols)
                vec_push(want, ref_act(kind, v) * x[r * wide + cols + c]);
        }
}

static void case_activation(struct dev *d, struct vec *got, struct vec *want)
{
    activation_case(d, false, got, want);
}

static void case_activation_back(struct dev *d, struct vec *got, struct vec *want)
{
    activation_case(d, true, got, want);
}

/* ---- cross-entropy */
struct loss_ref {
    size_t vocab, n;
    double *logits, *weight;
    int32_t *row, *target;
};

static double ref_loss(const struct loss_ref *l, size_t e)
{
    const double *x = l->logits + (size_t)l->row[e] * l->vocab;
    double m = x[0], s = 0;
    for (size_t i = 1; i < l->vocab; i++)
        m = x[i] > m ? x[i] : m;
    for (size_t i = 0; i < l->vocab; i++)
        s += exp(x[i] - m);
    return m + log(s) - x[l->target[e]];
}

static double loss_entropy(void *ctx)
{
    struct loss_ref *l = ctx;
    double sum = 0;
    for (size_t e = 0; e < l->n; e++)
        sum += l->weight[e] * ref_loss(l, e);
    return sum;
}

static void case_cross_entropy(struct dev *d, struct vec *got, struct vec *want)
{
    size_t rows = (size_t)rnd_int(d, 2, 12), vocab = (size_t)rnd_int(d, 2, 6000),
           all = rows * vocab;
    bool gradient = rnd(d) % 4 != 0;
    int32_t row[64], target[64];
    struct loss_ref l = {.vocab = vocab, .row = row, .target = target};
    for (size_t r = 0; r < rows; r++) /* none, one or several entries a row */
        for (int k = r ? rnd_int(d, 0, 3) : 1; k > 0; k--) {
            row[l.n] = (int32_t)r;
            target[l.n++] = rnd_int(d, 0, (int)vocab - 1);
        }
    l.logits = host_random(d, all, 20);
    l.weight = host_random(d, l.n, 1);
    for (size_t e = 0; e < l.n; e++)
        l.weight[e] = fabs(l.weight[e]);
    size_t ld = vocab + (size_t)rnd_int(d, 0, 20);
    sl_act *dev_x = dev_act(d, l.logits, rows, vocab, ld);
    float *dev_loss = dev_f32(d, l.weight, l.n);
    d->ops->cross_entropy(d->be, dev_x, (int64_t)ld, (int64_t)rows, (int)vocab, (int64_t)l.n,
                          dev_bytes(d, row, sizeof row), dev_bytes(d, target, sizeof target),
                          dev_f32(d, l.weight, l.n), gradient, dev_loss);
    segment(got, want, "loss");
    get_f32(d, dev_loss, l.n, got);
    for (size_t e = 0; e < l.n; e++)
        vec_push(want, ref_loss(&l, e));
    struct vec dx = {0};
    get_act(d, dev_x, rows, vocab, ld, &dx);
    if (gradient) {
        check_gradient(d, "dlogits", l.logits, all, 60, loss_entropy, &l, &dx, NULL, got, want);
        /* The targets, which a sample of a large vocabulary would miss. */
        segment(got, want, "dlogits at targets");
        for (size_t e = 0; e < l.n && !d->bits_only; e++) {
            size_t at = (size_t)row[e] * vocab + (size_t)target[e];
            vec_push(got, dx.v[at]);
            finite_differences(l.logits, &at, 1, loss_entropy, &l, want);
        }
    }
    vec_free(&dx);
}

#endif
