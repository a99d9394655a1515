/* The frame of the operation tests: a backend under test, its buffers, and lists of results.
 *
 * A case is one function: from a seed it makes shapes and inputs, runs the operation on a backend
 * and appends what came out to `got`, and what a plain double-precision computation gives to
 * `want`, segment by segment. The same function thus compares a backend to the reference, to itself
 * (bits) and to another backend. Included by one program; everything is static. */
#ifndef TESTS_OPS_HARNESS_H
#define TESTS_OPS_HARNESS_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "engine/ops.h"
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SEGMENTS 16
#define MAX_BUFFERS 64
#define MAX_WEIGHTS 8
#define FD_STEP 1e-4 /* central differences in double: truncation about 1e-8 */

struct segment {
    const char *name;
    size_t start;
};
struct vec {
    double *v;
    size_t n, cap;
    struct segment seg[MAX_SEGMENTS];
    int n_segs;
};

struct dev {
    const struct sl_ops *ops;
    struct sl_backend *be;
    enum sl_precision precision; /* of linear layers */
    bool bits_only;   /* only what comes out matters: finite differences are left out */
    bool bf16_inputs; /* inputs that bf16 holds exactly, so that backends of other types get the
                         same numbers */
    uint64_t rng;
    void *buffer[MAX_BUFFERS];
    double *host[MAX_BUFFERS];
    int n_buffers, n_host;
    struct sl_weight *weight[MAX_WEIGHTS];
    int n_weights;
};

typedef void case_fn(struct dev *d, struct vec *got, struct vec *want);

static inline void vec_free(struct vec *x)
{
    free(x->v);
    *x = (struct vec){0};
}

static inline void vec_push(struct vec *x, double value)
{
    if (x->n == x->cap) {
        x->cap = x->cap ? 2 * x->cap : 1024;
        x->v = realloc(x->v, x->cap * sizeof *x->v);
        assert_non_null(x->v);
    }
    x->v[x->n++] = value;
}

/* Starts a segment in both: numbers of one kind and size. */
static inline void segment(struct vec *got, struct vec *want, const char *name)
{
    assert_true(got->n_segs < MAX_SEGMENTS);
    got->seg[got->n_segs++] = (struct segment){name, got->n};
    want->seg[want->n_segs++] = (struct segment){name, want->n};
}

/* ---- random numbers: splitmix64 */
static inline uint64_t rnd(struct dev *d)
{
    uint64_t z = (d->rng += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline int rnd_int(struct dev *d, int lo, int hi) /* lo..hi, both included */
{
    return lo + (int)(rnd(d) % (uint64_t)(hi - lo + 1));
}

static inline double round_bf16(double x)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bits &= 0xffff0000u;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* Uniform in (-1, 1), away from 0 where kinks are. */
static inline double rnd_num(struct dev *d)
{
    float x = (float)(rnd(d) >> 40) * 0x1p-24f * 1.98f + 0.01f;
    return rnd(d) & 1 ? -(double)x / 2 : (double)x / 2;
}

/* ---- host arrays and device buffers, freed by dev_reset */
static inline double *host_new(struct dev *d, size_t n)
{
    assert_true(d->n_host < MAX_BUFFERS);
    double *p = calloc(n ? n : 1, sizeof *p);
    assert_non_null(p);
    return d->host[d->n_host++] = p;
}

static inline double *host_nan(struct dev *d, size_t n)
{
    double *p = host_new(d, n);
    for (size_t i = 0; i < n; i++)
        p[i] = NAN;
    return p;
}

static inline double *host_random(struct dev *d, size_t n, double scale)
{
    double *p = host_new(d, n);
    for (size_t i = 0; i < n; i++)
        p[i] = d->bf16_inputs ? round_bf16(scale * rnd_num(d)) : scale * rnd_num(d);
    return p;
}

static inline void *dev_bytes(struct dev *d, const void *host, size_t bytes)
{
    struct sl_err err = SL_ERR_INIT;
    void *p = NULL;
    assert_true(d->n_buffers < MAX_BUFFERS);
    assert_int_equal(d->ops->alloc(d->be, bytes ? bytes : 4, &p, &err), 0);
    if (host)
        assert_int_equal(d->ops->upload(d->be, p, host, bytes, &err), 0);
    return d->buffer[d->n_buffers++] = p;
}

static inline float *dev_f32(struct dev *d, const double *x, size_t n)
{
    float *f = malloc((n ? n : 1) * sizeof *f);
    assert_non_null(f);
    for (size_t i = 0; i < n; i++)
        f[i] = (float)x[i];
    float *p = dev_bytes(d, f, n * sizeof *f);
    free(f);
    return p;
}

/* [rows, cols] as activations with row stride ld; the gaps hold NaN, which nobody may read or
 * overwrite. */
static inline sl_act *dev_act(struct dev *d, const double *x, size_t rows, size_t cols, size_t ld)
{
    double *padded = malloc((rows * ld + 1) * sizeof *padded);
    assert_non_null(padded);
    for (size_t i = 0; i < rows * ld; i++)
        padded[i] = i % ld < cols ? x[i / ld * cols + i % ld] : NAN;
    float *f = dev_f32(d, padded, rows * ld);
    free(padded);
    sl_act *p = dev_bytes(d, NULL, rows * ld * d->ops->act_bytes);
    d->ops->from_f32(d->be, f, (int64_t)(rows * ld), p);
    return p;
}

static inline void get_f32(struct dev *d, const float *p, size_t n, struct vec *got)
{
    struct sl_err err = SL_ERR_INIT;
    float *f = malloc((n ? n : 1) * sizeof *f);
    assert_non_null(f);
    assert_int_equal(d->ops->download(d->be, f, p, n * sizeof *f, &err), 0);
    for (size_t i = 0; i < n; i++)
        vec_push(got, (double)f[i]);
    free(f);
}

/* The values of a strided activation; fails when a gap was written. */
static inline void get_act(struct dev *d, const sl_act *p, size_t rows, size_t cols, size_t ld,
                           struct vec *got)
{
    struct vec all = {0};
    float *f = dev_bytes(d, NULL, rows * ld * sizeof *f);
    d->ops->to_f32(d->be, p, (int64_t)(rows * ld), f);
    get_f32(d, f, rows * ld, &all);
    for (size_t i = 0; i < rows * ld; i++)
        if (i % ld < cols)
            vec_push(got, all.v[i]);
        else
            assert_true(isnan(all.v[i]));
    vec_free(&all);
}

static inline void put(struct vec *want, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        vec_push(want, x[i]);
}

struct matrix {
    const double *x;
    int64_t cols;
};
static inline int read_matrix(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err)
{
    (void)err;
    const struct matrix *m = ctx;
    for (int64_t i = 0; i < n * m->cols; i++)
        out[i] = (float)m->x[row0 * m->cols + i];
    return 0;
}

static inline struct sl_weight *dev_weight(struct dev *d, const double *x, int64_t rows,
                                           int64_t cols)
{
    struct sl_err err = SL_ERR_INIT;
    struct matrix m = {x, cols};
    struct sl_weight *w = NULL;
    assert_true(d->n_weights < MAX_WEIGHTS);
    assert_int_equal(d->ops->weight_new(d->be, rows, cols, read_matrix, &m, &w, &err), 0);
    return d->weight[d->n_weights++] = w;
}

static inline struct sl_weight *dev_linear(struct dev *d, const double *x, int64_t rows,
                                           int64_t cols)
{
    struct sl_err err = SL_ERR_INIT;
    struct matrix m = {x, cols};
    struct sl_weight *w = NULL;
    assert_true(d->n_weights < MAX_WEIGHTS);
    assert_int_equal(d->ops->linear_new(d->be, rows, cols, read_matrix, &m, &w, &err), 0);
    return d->weight[d->n_weights++] = w;
}

static inline void dev_reset(struct dev *d)
{
    for (int i = 0; i < d->n_buffers; i++)
        d->ops->free(d->be, d->buffer[i]);
    for (int i = 0; i < d->n_host; i++)
        free(d->host[i]);
    for (int i = 0; i < d->n_weights; i++)
        d->ops->weight_free(d->be, d->weight[i]);
    d->n_buffers = d->n_host = d->n_weights = 0;
}

/* ---- finite differences: the derivative of loss(ctx) by each of the picked elements of x */
typedef double loss_fn(void *ctx);
static inline void finite_differences(double *x, const size_t *pick, size_t n_pick, loss_fn *loss,
                                      void *ctx, struct vec *want)
{
    for (size_t i = 0; i < n_pick; i++) {
        double keep = x[pick[i]];
        x[pick[i]] = keep + FD_STEP;
        double up = loss(ctx);
        x[pick[i]] = keep - FD_STEP;
        double down = loss(ctx);
        x[pick[i]] = keep;
        vec_push(want, (up - down) / (2 * FD_STEP));
    }
}

/* At most `most` elements of n, spread at random; all when n is not larger. Freed by the caller. */
static inline size_t *pick_some(struct dev *d, size_t n, size_t most, size_t *ret_n)
{
    size_t k = n < most ? n : most, *pick = malloc((k ? k : 1) * sizeof *pick);
    assert_non_null(pick);
    for (size_t i = 0; i < k; i++)
        pick[i] = n <= most ? i : i * n / k + (size_t)(rnd(d) % (n / k));
    *ret_n = k;
    return pick;
}

/* Appends a gradient: got's picked elements of `computed`, and want by finite differences, plus
 * what was there before (before may be NULL). */
static inline void check_gradient(struct dev *d, const char *name, double *x, size_t n, size_t most,
                                  loss_fn *loss, void *ctx, const struct vec *computed,
                                  const double *before, struct vec *got, struct vec *want)
{
    size_t k, *pick = pick_some(d, n, most, &k), start = want->n;
    assert_int_equal(computed->n, n);
    segment(got, want, name);
    if (d->bits_only)
        put(want, x, k);
    else
        finite_differences(x, pick, k, loss, ctx, want);
    for (size_t i = 0; i < k; i++) {
        vec_push(got, computed->v[pick[i]]);
        if (before)
            want->v[start + i] += before[pick[i]];
    }
    free(pick);
}

/* Largest error over all elements of a segment: |got - want| / (|want| + rms of the segment's
 * want). NaN must meet NaN. */
static inline double segment_error(const struct vec *got, const struct vec *want, int s)
{
    size_t i0 = want->seg[s].start, i1 = s + 1 < want->n_segs ? want->seg[s + 1].start : want->n;
    double square = 0, worst = 0;
    size_t n = 0;
    for (size_t i = i0; i < i1; i++)
        if (isfinite(want->v[i])) {
            square += want->v[i] * want->v[i];
            n++;
        }
    double rms = n ? sqrt(square / (double)n) : 0;
    for (size_t i = i0; i < i1; i++) {
        double g = got->v[i], w = want->v[i], e;
        if (!isfinite(w))
            e = isnan(w) ? (isnan(g) ? 0 : INFINITY) : (g == w ? 0 : INFINITY);
        else
            e = g == w ? 0 : fabs(g - w) / (fabs(w) + rms);
        worst = e > worst || isnan(e) ? (isnan(e) ? INFINITY : e) : worst;
    }
    return worst;
}

#endif
