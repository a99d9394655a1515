/* Cases: products with frozen weights, gemm_f32, embeddings, gather and scatter. */
#ifndef TESTS_OPS_CASES_MATRIX_H
#define TESTS_OPS_CASES_MATRIX_H
#include "tests/ops/harness.h"

/* c[m,n] = op(a) op(b) alpha + beta c */
static void ref_gemm(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const double *a,
                     const double *b, double beta, double *c)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double s = 0;
            for (size_t l = 0; l < k; l++)
                s += (ta ? a[l * m + i] : a[i * k + l]) * (tb ? b[j * k + l] : b[l * n + j]);
            c[i * n + j] = alpha * s + (beta != 0 ? beta * c[i * n + j] : 0);
        }
}

static void case_matmul(struct dev *d, struct vec *got, struct vec *want)
{
    size_t rows = rnd(d) % 4 ? (size_t)rnd_int(d, 1, 41) : 1, in = (size_t)rnd_int(d, 1, 131),
           out = (size_t)rnd_int(d, 1, 150);
    size_t ldx = in + (size_t)rnd_int(d, 0, 5), ldy = out + (size_t)rnd_int(d, 0, 5),
           lda = out + (size_t)rnd_int(d, 0, 5);
    bool with_bias = rnd(d) & 1, with_add = rnd(d) & 1, add_is_y = with_add && (rnd(d) & 1);
    double *x = host_random(d, rows * in, 1), *w = host_random(d, out * in, 1),
           *bias = host_random(d, out, 1);
    double *add = host_random(d, rows * out, 1), *y = host_nan(d, rows * out);
    sl_act *dev_x = dev_act(d, x, rows, in, ldx),
           *dev_y = dev_act(d, add_is_y ? add : y, rows, out, ldy);
    sl_act *dev_add = add_is_y ? dev_y : with_add ? dev_act(d, add, rows, out, lda) : NULL;
    d->ops->matmul(d->be, dev_x, (int64_t)ldx, (int64_t)rows,
                   dev_weight(d, w, (int64_t)out, (int64_t)in),
                   with_bias ? dev_weight(d, bias, 1, (int64_t)out) : NULL, dev_add,
                   (int64_t)(add_is_y ? ldy : lda), dev_y, (int64_t)ldy);
    segment(got, want, "y");
    get_act(d, dev_y, rows, out, ldy, got);
    ref_gemm(false, true, rows, out, in, 1, x, w, 0, y);
    for (size_t i = 0; i < rows * out; i++)
        vec_push(want, y[i] + (with_bias ? bias[i % out] : 0) + (with_add ? add[i] : 0));
}

static void case_matmul_back(struct dev *d, struct vec *got, struct vec *want)
{
    size_t rows = rnd(d) % 4 ? (size_t)rnd_int(d, 1, 41) : 1, in = (size_t)rnd_int(d, 1, 131),
           out = (size_t)rnd_int(d, 1, 150);
    size_t ldx = in + (size_t)rnd_int(d, 0, 5), ldy = out + (size_t)rnd_int(d, 0, 5);
    bool accumulate = rnd(d) & 1;
    double *dy = host_random(d, rows * out, 1), *w = host_random(d, out * in, 1),
           *dx = accumulate ? host_random(d, rows * in, 1) : host_nan(d, rows * in);
    sl_act *dev_dx = dev_act(d, dx, rows, in, ldx);
    d->ops->matmul_back(d->be, dev_act(d, dy, rows, out, ldy), (int64_t)ldy, (int64_t)rows,
                        dev_weight(d, w, (int64_t)out, (int64_t)in), accumulate, dev_dx,
                        (int64_t)ldx);
    segment(got, want, "dx");
    get_act(d, dev_dx, rows, in, ldx, got);
    ref_gemm(false, false, rows, in, out, 1, dy, w, accumulate ? 1 : 0, dx);
    put(want, dx, rows * in);
}

static void case_gemm_f32(struct dev *d, struct vec *got, struct vec *want)
{
    size_t m = rnd(d) % 4 ? (size_t)rnd_int(d, 1, 70) : 1, n = (size_t)rnd_int(d, 1, 70),
           k = (size_t)rnd_int(d, 1, 90);
    bool ta = rnd(d) & 1, tb = rnd(d) & 1;
    double alpha = rnd_num(d), beta = rnd(d) & 1 ? 0 : rnd_num(d);
    double *a = host_random(d, m * k, 1), *b = host_random(d, k * n, 1),
           *c = beta != 0 ? host_random(d, m * n, 1) : host_nan(d, m * n);
    float *dev_c = dev_f32(d, c, m * n);
    d->ops->gemm_f32(d->be, ta, tb, (int)m, (int)n, (int)k, (float)alpha, dev_f32(d, a, m * k),
                     (int)(ta ? m : k), dev_f32(d, b, k * n), (int)(tb ? k : n), (float)beta, dev_c,
                     (int)n);
    segment(got, want, "c");
    get_f32(d, dev_c, m * n, got);
    ref_gemm(ta, tb, m, n, k, (double)(float)alpha, a, b, (double)(float)beta, c);
    put(want, c, m * n);
}

static void case_embed(struct dev *d, struct vec *got, struct vec *want)
{
    int vocab = rnd_int(d, 3, 60), n_prompts = rnd_int(d, 1, 20), rows = rnd_int(d, 1, 300),
        h = rnd_int(d, 1, 77);
    int positions = rnd_int(d, 1, 40);
    bool learned = rnd(d) & 1;
    double *e = host_random(d, (size_t)(vocab * h), 1),
           *p = host_random(d, (size_t)(positions * h), 1);
    double *prompts = host_random(d, (size_t)(n_prompts * h), 1),
           *x = host_new(d, (size_t)(rows * h));
    int32_t src[300], pos[300];
    for (int t = 0; t < rows; t++) {
        src[t] = rnd(d) % 3 ? rnd_int(d, 0, vocab - 1) : -rnd_int(d, 1, n_prompts);
        pos[t] = rnd_int(d, 0, positions - 1);
        for (int i = 0; i < h; i++)
            x[t * h + i] = (src[t] >= 0 ? e[src[t] * h + i] : prompts[(-src[t] - 1) * h + i]) +
                           (learned ? p[pos[t] * h + i] : 0);
    }
    sl_act *dev_x = dev_act(d, x, (size_t)rows, (size_t)h, (size_t)h);
    d->ops->zero(d->be, dev_x, (size_t)(rows * h) * d->ops->act_bytes);
    d->ops->embed(d->be, dev_weight(d, e, vocab, h),
                  learned ? dev_weight(d, p, positions, h) : NULL,
                  dev_f32(d, prompts, (size_t)(n_prompts * h)), dev_bytes(d, src, sizeof src),
                  dev_bytes(d, pos, sizeof pos), rows, h, dev_x);
    segment(got, want, "x");
    get_act(d, dev_x, (size_t)rows, (size_t)h, (size_t)h, got);
    put(want, x, (size_t)(rows * h));
}

static void case_embed_back(struct dev *d, struct vec *got, struct vec *want)
{
    int n_prompts = rnd_int(d, 1, 40), rows = rnd_int(d, 1, 300), h = rnd_int(d, 1, 130);
    double *dx = host_random(d, (size_t)(rows * h), 1),
           *dp = host_random(d, (size_t)(n_prompts * h), 1);
    int32_t ptr[41] = {0}, list[41 * 20];
    float *dev_dp = dev_f32(d, dp, (size_t)(n_prompts * h));
    for (int p = 0; p < n_prompts; p++) {
        int n = rnd_int(d, 0, 20);
        ptr[p + 1] = ptr[p] + n;
        for (int i = ptr[p]; i < ptr[p + 1]; i++) {
            list[i] = rnd_int(d, 0, rows - 1);
            for (int j = 0; j < h; j++)
                dp[p * h + j] += dx[list[i] * h + j];
        }
    }
    d->ops->embed_back(d->be, dev_act(d, dx, (size_t)rows, (size_t)h, (size_t)h), h,
                       dev_bytes(d, ptr, sizeof ptr), dev_bytes(d, list, sizeof list), n_prompts,
                       dev_dp);
    segment(got, want, "dprompts");
    get_f32(d, dev_dp, (size_t)(n_prompts * h), got);
    put(want, dp, (size_t)(n_prompts * h));
}

/* Distinct random indices out of [0, total), n of them. */
static void distinct(struct dev *d, int32_t *index, int n, int total)
{
    for (int i = 0; i < total; i++)
        index[i] = i;
    for (int i = 0; i < n; i++) {
        int j = rnd_int(d, i, total - 1);
        int32_t t = index[i];
        index[i] = index[j];
        index[j] = t;
    }
}

static void case_copy(struct dev *d, struct vec *got, struct vec *want)
{
    size_t n = (size_t)rnd_int(d, 1, 400000), cut = (size_t)rnd_int(d, 0, (int)n - 1);
    double *x = host_random(d, n, 1), guard = 7;
    float *y = dev_f32(d, &guard, 1);
    float *from = dev_f32(d, x, n), *to = dev_bytes(d, NULL, (n + 1) * sizeof *to);
    d->ops->copy(d->be, to + n, y, sizeof *y); /* behind the end: stays as it is */
    d->ops->copy(d->be, to, from, n * sizeof *to);
    d->ops->zero(d->be, to, cut * sizeof *to);
    segment(got, want, "copy");
    get_f32(d, to, n + 1, got);
    for (size_t i = 0; i < n; i++)
        vec_push(want, i < cut ? 0 : x[i]);
    vec_push(want, guard);
}

static void case_gather(struct dev *d, struct vec *got, struct vec *want)
{
    size_t total = (size_t)rnd_int(d, 1, 200), n = (size_t)rnd_int(d, 1, (int)total),
           cols = (size_t)rnd_int(d, 1, 150);
    size_t ldx = cols + (size_t)rnd_int(d, 0, 4), ldy = cols + (size_t)rnd_int(d, 0, 4);
    double *x = host_random(d, total * cols, 1), *y = host_new(d, n * cols);
    int32_t index[200];
    distinct(d, index, (int)n, (int)total);
    sl_act *dev_y = dev_act(d, y, n, cols, ldy);
    d->ops->gather(d->be, dev_act(d, x, total, cols, ldx), (int64_t)ldx,
                   dev_bytes(d, index, sizeof index), (int64_t)n, (int)cols, dev_y, (int64_t)ldy);
    segment(got, want, "y");
    get_act(d, dev_y, n, cols, ldy, got);
    for (size_t i = 0; i < n; i++)
        put(want, x + (size_t)index[i] * cols, cols);
}

static void case_scatter(struct dev *d, struct vec *got, struct vec *want)
{
    size_t total = (size_t)rnd_int(d, 1, 200), n = (size_t)rnd_int(d, 1, (int)total),
           cols = (size_t)rnd_int(d, 1, 150);
    size_t ldx = cols + (size_t)rnd_int(d, 0, 4), ldy = cols + (size_t)rnd_int(d, 0, 4);
    bool add = rnd(d) & 1;
    double *x = host_random(d, n * cols, 1), *y = host_random(d, total * cols, 1);
    int32_t index[200];
    distinct(d, index, (int)n, (int)total);
    sl_act *dev_y = dev_act(d, y, total, cols, ldy);
    d->ops->scatter(d->be, dev_act(d, x, n, cols, ldx), (int64_t)ldx,
                    dev_bytes(d, index, sizeof index), (int64_t)n, (int)cols, add, dev_y,
                    (int64_t)ldy);
    segment(got, want, "y");
    get_act(d, dev_y, total, cols, ldy, got);
    for (size_t i = 0; i < n * cols; i++) {
        double *to = y + (size_t)index[i / cols] * cols + i % cols;
        *to = x[i] + (add ? *to : 0);
    }
    put(want, y, total * cols);
}

/* ---- weights from a file's bytes: read back as rows of an embedding, exactly */
static size_t put_raw(enum sl_raw_type type, float x, unsigned char *to)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    if (type == SL_RAW_F16) /* x is normal in fp16, with at most its digits */
        half = (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023));
    memcpy(to, type == SL_RAW_F32 ? (void *)&bits : &half, type == SL_RAW_F32 ? 4 : 2);
    return type == SL_RAW_F32 ? 4 : 2;
}

static void case_weight_raw(struct dev *d, struct vec *got, struct vec *want)
{
    enum { PARTS = 3, SHOWN = 40 };
    bool large = rnd(d) % 8 == 0; /* than what passes through pinned memory at once */
    int n_parts = rnd_int(d, 1, PARTS), cols = large ? 2500 : rnd_int(d, 1, 90), rows = 0;
    struct sl_raw part[PARTS];
    for (int i = 0; i < n_parts; i++)
        rows += (int)(part[i].rows = rnd_int(d, 1, large ? 2500 : 80));
    double *w = host_new(d, (size_t)rows * (size_t)cols);
    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++)
        w[i] = round_bf16(rnd_num(d));
    const double *from = w;
    for (int i = 0; i < n_parts; from += part[i++].rows * cols) {
        bool by_rows = rnd(d) & 1;
        enum sl_raw_type type = (enum sl_raw_type)rnd_int(d, SL_RAW_F32, SL_RAW_BF16);
        int64_t element = type == SL_RAW_F32 ? 4 : 2, beside = rnd(d) & 1 ? rnd_int(d, 1, 9) : 0;
        int64_t run = ((by_rows ? cols : part[i].rows) + beside) * element;
        size_t bytes = (size_t)(run * (by_rows ? part[i].rows : cols));
        unsigned char *p = (unsigned char *)host_new(d, bytes / sizeof(double) + 1);
        part[i].p = p;
        part[i].type = type;
        part[i].row_bytes = by_rows ? run : element;
        part[i].col_bytes = by_rows ? element : run;
        for (int64_t r = 0; r < part[i].rows; r++)
            for (int64_t c = 0; c < cols; c++)
                put_raw(type, (float)from[r * cols + c], p + r * part[i].row_bytes + c * part[i].col_bytes);
    }
    struct sl_weight *weight = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (d->ops->weight_raw) {
        assert_int_equal(d->ops->weight_raw(d->be, false, rows, cols, part, n_parts, &weight, &err), 0);
        d->weight[d->n_weights++] = weight;
    } else {
        weight = dev_weight(d, w, rows, cols);
    }
    int32_t shown[SHOWN];
    for (int i = 0; i < SHOWN; i++)
        shown[i] = rnd_int(d, 0, rows - 1);
    shown[0] = 0;
    shown[1] = rows - 1;
    int32_t *src = dev_bytes(d, shown, sizeof shown);
    sl_act *x = dev_bytes(d, NULL, (size_t)(SHOWN * cols) * sizeof(float));
    d->ops->embed(d->be, weight, NULL, NULL, src, src, SHOWN, cols, x);
    segment(got, want, "rows");
    get_act(d, x, SHOWN, (size_t)cols, (size_t)cols, got);
    for (int i = 0; i < SHOWN; i++)
        put(want, w + (size_t)shown[i] * (size_t)cols, (size_t)cols);
}

#endif
