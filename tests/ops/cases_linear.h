/* Cases: linear layers, kept in each precision, alone and a feed-forward part's gradient at once.
 *
 * The reference rounds as the precision says, in fp32 where it matters, and multiplies in double
 * precision. e4m3 has 3 bits behind the point and no step finer than 2^-9; in the gradient, and
 * there alone, the rows of what comes in and the columns of the weight have the scale largest
 * magnitude / 448. int8: rows of a weight, largest / 127. */
#ifndef TESTS_OPS_CASES_LINEAR_H
#define TESTS_OPS_CASES_LINEAR_H
#include "tests/ops/cases_matrix.h"
#include "tests/ops/cases_rows.h"

#define E4M3_LARGEST 448.0f
#define E4M3_LEAST_EXPONENT (-6)
#define INT8_LARGEST 127.0f

static double round_e4m3(float x)
{
    int exponent;
    if (x == 0 || !isfinite(x))
        return (double)x;
    frexpf(x, &exponent); /* x = 0.1... times 2^exponent */
    exponent = exponent - 1 < E4M3_LEAST_EXPONENT ? E4M3_LEAST_EXPONENT : exponent - 1;
    double step = ldexp(1, exponent - 3), y = nearbyint((double)x / step) * step;
    return fabs(y) > (double)E4M3_LARGEST ? copysign((double)E4M3_LARGEST, y) : y;
}

/* n numbers `stride` apart, which share a scale. */
static void round_row(enum sl_precision precision, double *x, size_t n, size_t stride)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf((float)x[i * stride]));
    if (most == 0)
        return;
    for (size_t i = 0; i < n; i++) {
        float v = (float)x[i * stride];
        if (precision == SL_PRECISION_FP8)
            x[i * stride] = round_e4m3(v * (E4M3_LARGEST / most)) * (double)(most / E4M3_LARGEST);
        else
            x[i * stride] =
                (double)rintf(v / (most / INT8_LARGEST)) * (double)(most / INT8_LARGEST);
    }
}

static bool is_fp8(const struct dev *d, size_t out, size_t in)
{
    return d->precision == SL_PRECISION_FP8 && sl_fits_fp8((int64_t)out, (int64_t)in);
}

/* The weight [out, in] as a product along its rows sees it, or one along its columns (back). */
static double *rounded_weight(struct dev *d, const double *w, size_t out, size_t in, bool back)
{
    double *y = host_new(d, out * in);
    memcpy(y, w, out * in * sizeof *y);
    if (is_fp8(d, out, in) && back)
        for (size_t c = 0; c < in; c++)
            round_row(SL_PRECISION_FP8, y + c, out, in);
    else if (d->precision == SL_PRECISION_INT8)
        for (size_t r = 0; r < out; r++)
            round_row(d->precision, y + r * in, in, 1);
    return y;
}

static double *rounded_rows(struct dev *d, bool fp8, const double *x, size_t rows, size_t cols)
{
    double *y = host_new(d, rows * cols);
    memcpy(y, x, rows * cols * sizeof *y);
    for (size_t r = 0; r < rows && fp8; r++)
        round_row(SL_PRECISION_FP8, y + r * cols, cols, 1);
    return y;
}

/* As a kernel hands numbers to the next one. */
static double as_activation(const struct dev *d, double x)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &bits, sizeof f);
    return d->precision > SL_PRECISION_FP32 && d->ops->act_bytes != sizeof f ? (double)f : x;
}

struct sizes {
    size_t rows, in, out;
};

/* Mostly what fp8 takes. */
static struct sizes linear_sizes(struct dev *d, int most)
{
    struct sizes s = {rnd(d) % 4 ? (size_t)rnd_int(d, 1, 41) : 1,
                      SL_FP8_MULTIPLE * (size_t)rnd_int(d, 1, most),
                      SL_FP8_MULTIPLE * (size_t)rnd_int(d, 1, most)};
    if (rnd(d) % 4 == 0)
        s.in++;
    return s;
}

static void linear(struct dev *d, struct sizes s, struct vec *got, struct vec *want)
{
    size_t all = s.rows * s.out, gap = rnd(d) % 2 * 8;
    bool with_bias = rnd(d) & 1, with_add = rnd(d) & 1;
    double *x = host_random(d, s.rows * s.in, 3), *w = host_random(d, s.out * s.in, 1),
           *bias = host_random(d, s.out, 1), *add = host_random(d, all, 1), *y = host_new(d, all);
    sl_act *dev_y = dev_act(d, host_nan(d, all), s.rows, s.out, s.out + gap);
    d->ops->matmul(d->be, dev_act(d, x, s.rows, s.in, s.in + gap), (int64_t)(s.in + gap),
                   (int64_t)s.rows, dev_linear(d, w, (int64_t)s.out, (int64_t)s.in),
                   with_bias ? dev_weight(d, bias, 1, (int64_t)s.out) : NULL,
                   with_add ? dev_act(d, add, s.rows, s.out, s.out) : NULL, (int64_t)s.out, dev_y,
                   (int64_t)(s.out + gap));
    ref_gemm(false, true, s.rows, s.out, s.in, 1, x, rounded_weight(d, w, s.out, s.in, false), 0,
             y);
    for (size_t i = 0; i < all; i++)
        y[i] += (with_bias ? bias[i % s.out] : 0) + (with_add ? add[i] : 0);
    segment(got, want, "y");
    get_act(d, dev_y, s.rows, s.out, s.out + gap, got);
    put(want, y, all);
}

static void linear_back(struct dev *d, struct sizes s, struct vec *got, struct vec *want)
{
    size_t all = s.rows * s.in, gap = rnd(d) % 2 * 8;
    bool accumulate = rnd(d) & 1, fp8 = is_fp8(d, s.out, s.in);
    double *dy = host_random(d, s.rows * s.out, 1e-6), *w = host_random(d, s.out * s.in, 1),
           *dx = accumulate ? host_random(d, all, 1e-6) : host_nan(d, all);
    sl_act *dev_dx = dev_act(d, dx, s.rows, s.in, s.in + gap);
    d->ops->matmul_back(d->be, dev_act(d, dy, s.rows, s.out, s.out + gap), (int64_t)(s.out + gap),
                        (int64_t)s.rows, dev_linear(d, w, (int64_t)s.out, (int64_t)s.in),
                        accumulate, dev_dx, (int64_t)(s.in + gap));
    ref_gemm(false, false, s.rows, s.in, s.out, 1, rounded_rows(d, fp8, dy, s.rows, s.out),
             rounded_weight(d, w, s.out, s.in, true), accumulate ? 1 : 0, dx);
    segment(got, want, "dx");
    get_act(d, dev_dx, s.rows, s.in, s.in + gap, got);
    put(want, dx, all);
}

static void case_linear(struct dev *d, struct vec *got, struct vec *want)
{
    linear(d, linear_sizes(d, 10), got, want);
}

static void case_linear_back(struct dev *d, struct vec *got, struct vec *want)
{
    linear_back(d, linear_sizes(d, 10), got, want);
}

/* Sums as long as those of a model. */
static void case_long_linear(struct dev *d, struct vec *got, struct vec *want)
{
    struct sizes s = {(size_t)rnd_int(d, 3, 9), 4096, 128}, turned = {s.rows, s.out, s.in};
    linear(d, s, got, want);
    linear_back(d, turned, got, want);
}

static void case_mlp_back(struct dev *d, struct vec *got, struct vec *want)
{
    enum sl_act_kind kind = (enum sl_act_kind)rnd_int(d, SL_ACT_RELU, SL_ACT_SWIGLU);
    struct sizes s = linear_sizes(d, 20);
    size_t cols = s.out, wide = kind == SL_ACT_SWIGLU ? 2 * cols : cols, h = s.in;
    double *x = host_random(d, s.rows * wide, 6), *dy = host_random(d, s.rows * h, 1e-6),
           *a = host_new(d, s.rows * cols), *g = host_new(d, s.rows * wide),
           *dx = host_new(d, s.rows * h), *up = host_random(d, wide * h, 1),
           *down = host_random(d, h * cols, 1);
    sl_act *dev_x = dev_act(d, x, s.rows, wide, wide), *dev_dy = dev_act(d, dy, s.rows, h, h),
           *tmp = dev_act(d, a, s.rows, cols, cols), *dev_dx = dev_act(d, dx, s.rows, h, h);
    struct sl_weight *dev_up = dev_linear(d, up, (int64_t)wide, (int64_t)h),
                     *dev_down = dev_linear(d, down, (int64_t)h, (int64_t)cols);
    if (d->ops->mlp_back)
        d->ops->mlp_back(d->be, kind, dev_dy, (int64_t)h, (int64_t)s.rows, (int)cols, dev_down,
                         dev_x, tmp, dev_up, dev_dx, (int64_t)h);
    else {
        d->ops->matmul_back(d->be, dev_dy, (int64_t)h, (int64_t)s.rows, dev_down, false, tmp,
                            (int64_t)cols);
        d->ops->activation_back(d->be, kind, tmp, dev_x, (int64_t)s.rows, (int)cols, dev_x);
        d->ops->matmul_back(d->be, dev_x, (int64_t)wide, (int64_t)s.rows, dev_up, false, dev_dx,
                            (int64_t)h);
    }
    ref_gemm(false, false, s.rows, cols, h, 1, rounded_rows(d, is_fp8(d, h, cols), dy, s.rows, h),
             rounded_weight(d, down, h, cols, true), 0, a);
    for (size_t r = 0; r < s.rows; r++)
        for (size_t c = 0; c < cols; c++) {
            double v = x[r * wide + c], by = as_activation(d, a[r * cols + c]);
            g[r * wide + c] =
                by * ref_act_slope(kind, v) * (kind == SL_ACT_SWIGLU ? x[r * wide + cols + c] : 1);
            if (kind == SL_ACT_SWIGLU)
                g[r * wide + cols + c] = by * ref_act(kind, v);
        }
    ref_gemm(false, false, s.rows, h, wide, 1, rounded_rows(d, is_fp8(d, wide, h), g, s.rows, wide),
             rounded_weight(d, up, wide, h, true), 0, dx);
    segment(got, want, "dx");
    get_act(d, dev_dx, s.rows, h, h, got);
    put(want, dx, s.rows * h);
}

#endif
