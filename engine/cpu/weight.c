/* Weights: fp32, or int8 with one scale a row (an output channel) that is multiplied out where it
 * is used. */
#include "engine/cpu/cpu.h"
#include <math.h>
#include <stdlib.h>

#define INT8_MOST 127
#define PIECE_FLOATS                                                                               \
    ((int64_t)1 << 20) /* read at a time, before they become int8; at least a row */

void sl_cpu_weight_free(struct sl_backend *be, struct sl_weight *w)
{
    if (!w)
        return;
    sl_cpu_give(be, w->data);
    sl_cpu_give(be, w->q);
    sl_cpu_give(be, w->scale);
    free(w);
}

static int new_weight(int64_t rows, int64_t cols, struct sl_weight **ret_w, struct sl_err *err)
{
    if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX)
        return sl_err_set(err, SL_SPEC, "weight of %lld x %lld: each must be 1 to 2^31-1",
                          (long long)rows, (long long)cols);
    struct sl_weight *w = calloc(1, sizeof *w);
    if (!w)
        return sl_err_set(err, SL_NOMEM, "no memory for a weight's handle");
    w->rows = rows;
    w->cols = cols;
    *ret_w = w;
    return 0;
}

static int no_memory(const struct sl_weight *w, struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "no memory for a weight of %lld x %lld", (long long)w->rows,
                      (long long)w->cols);
}

static int keep(struct sl_backend *be, struct sl_weight *w, int rc, struct sl_weight **ret_w)
{
    if (rc)
        sl_cpu_weight_free(be, w);
    else
        *ret_w = w;
    return rc;
}

int sl_cpu_weight_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                      void *ctx, struct sl_weight **ret_w, struct sl_err *err)
{
    struct sl_weight *w = NULL;
    int rc = new_weight(rows, cols, &w, err);
    if (rc)
        return rc;
    w->data = sl_cpu_take(be, (size_t)rows * (size_t)cols * sizeof *w->data);
    /* One call: the rows land where they stay, and the reader spreads them over all threads. */
    rc = w->data ? read(ctx, 0, rows, w->data, err) : no_memory(w, err);
    return keep(be, w, rc, ret_w);
}

/* A row that is not finite comes back as NaN: 0 times its scale. */
static void quantise(const float *x, int64_t n, int8_t *q, float *scale)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fabsf(x[i]) <= most || isnan(most) ? most : fabsf(x[i]);
    *scale = most / INT8_MOST;
    for (int64_t i = 0; i < n; i++)
        q[i] = most > 0 && isfinite(most) ? (int8_t)lrintf(x[i] / *scale) : 0;
}

static int fill_int8(struct sl_backend *be, struct sl_weight *w, sl_read_rows_fn *read, void *ctx,
                     struct sl_err *err)
{
    int64_t per = PIECE_FLOATS / w->cols > 0 ? PIECE_FLOATS / w->cols : 1;
    per = per < w->rows ? per : w->rows;
    float *piece = sl_cpu_alloc((size_t)(per * w->cols) * sizeof *piece);
    int rc = piece ? 0 : no_memory(w, err);
    for (int64_t row = 0; row < w->rows && !rc; row += per) {
        int64_t n = w->rows - row < per ? w->rows - row : per;
        rc = read(ctx, row, n, piece, err);
        if (rc)
            break;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n * w->cols > SL_CPU_SMALL)
        for (int64_t i = 0; i < n; i++)
            quantise(piece + i * w->cols, w->cols, w->q + (row + i) * w->cols, &w->scale[row + i]);
    }
    free(piece);
    return rc;
}

int sl_cpu_linear_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                      void *ctx, struct sl_weight **ret_w, struct sl_err *err)
{
    if (be->precision != SL_PRECISION_INT8)
        return sl_cpu_weight_new(be, rows, cols, read, ctx, ret_w, err);
    struct sl_weight *w = NULL;
    int rc = new_weight(rows, cols, &w, err);
    if (rc)
        return rc;
    w->q = sl_cpu_take(be, (size_t)rows * (size_t)cols);
    w->scale = sl_cpu_take(be, (size_t)rows * sizeof *w->scale);
    rc = w->q && w->scale ? fill_int8(be, w, read, ctx, err) : no_memory(w, err);
    return keep(be, w, rc, ret_w);
}

const float *sl_cpu_values(struct sl_backend *be, const struct sl_weight *w)
{
    if (w->data)
        return w->data;
    float *values = sl_cpu_shared(be, (size_t)(w->rows * w->cols));
    if (!values)
        return NULL;
#pragma omp parallel for num_threads(be->threads)                                                  \
    schedule(static) if (w->rows * w->cols > SL_CPU_SMALL)
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t j = 0; j < w->cols; j++)
            values[i * w->cols + j] = (float)w->q[i * w->cols + j] * w->scale[i];
    return values;
}
