/* Frozen weights on their way to the device, through two pinned buffers in turn: as fp32 that a reader makes, or as the
 * bytes of a mapped file (raw.cu). No call waits for its last copies: the stream does. */
#include "cuda/cuda.cuh"
#include <stdlib.h>

void sl_cuda_weight_free(struct sl_backend *be, struct sl_weight *w)
{
    if (!w)
        return;
    void *all[] = {w->data, w->f32, w->q, w->qt, w->scale, w->scale_t};
    for (void *p : all)
        sl_cuda_free(be, p);
    free(w);
}

static bool make_stages(struct sl_backend *be)
{
    for (int i = 0; i < 2; i++) {
        void *p = NULL;
        if (be->stage[i])
            continue;
        if (sl_cuda_failed(be, cudaEventCreateWithFlags(&be->stage_done[i], cudaEventDisableTiming), "making an event") ||
            sl_cuda_failed(be, cudaHostAlloc(&p, SL_CUDA_STAGE_BYTES, cudaHostAllocDefault),
                           "pinning memory for weights"))
            return false;
        be->stage[i] = (char *)p;
    }
    return be->stage_device || !sl_cuda_failed(be, cudaMalloc(&be->stage_device, 2 * SL_CUDA_STAGE_BYTES),
                                               "memory for weights on their way");
}

int sl_cuda_stage(struct sl_backend *be)
{
    int at = be->stage_next;
    if (!make_stages(be) || sl_cuda_failed(be, cudaEventSynchronize(be->stage_done[at]), "uploading a weight"))
        return -1;
    be->stage_next = 1 - at;
    return at;
}

void sl_cuda_staged(struct sl_backend *be, int at)
{
    sl_cuda_failed(be, cudaEventRecord(be->stage_done[at], be->stream), "uploading a weight");
}

/* Rows [row0, row0+n), pulled into the pinned buffer `at`, converted on the device. */
template <typename T>
static int weight_rows(struct sl_backend *be, struct sl_weight *w, int64_t row0, int64_t n, int at,
                       sl_read_rows_fn *read, void *ctx, struct sl_err *err)
{
    float *host = (float *)(void *)be->stage[at];
    float *from = (float *)((char *)be->stage_device + (size_t)at * SL_CUDA_STAGE_BYTES);
    size_t count = (size_t)n * (size_t)w->cols;
    int rc = read(ctx, row0, n, host, err);
    if (rc)
        return rc;
    if (!sl_cuda_failed(be, cudaMemcpyAsync(from, host, count * sizeof *from, cudaMemcpyHostToDevice, be->stream),
                        "uploading a weight"))
        sl_cuda_from_f32<T>(be, from, (int64_t)count, (T *)w->data + row0 * w->cols);
    return 0;
}

/* A row wider than the stage goes through memory of its own. */
template <typename T>
static int weight_long_row(struct sl_backend *be, struct sl_weight *w, int64_t row, sl_read_rows_fn *read,
                           void *ctx, struct sl_err *err)
{
    size_t bytes = (size_t)w->cols * sizeof(float);
    float *host = (float *)malloc(bytes);
    void *from = NULL;
    int rc = host ? read(ctx, row, 1, host, err)
                  : sl_err_set(err, SL_NOMEM, "no memory for a row of %lld", (long long)w->cols);
    if (!rc)
        rc = sl_cuda_alloc(be, bytes, &from, err);
    if (!rc)
        rc = sl_cuda_upload(be, from, host, bytes, err);
    if (!rc)
        sl_cuda_from_f32<T>(be, (float *)from, w->cols, (T *)w->data + row * w->cols);
    if (from)
        sl_cuda_free(be, from);
    free(host);
    return rc;
}

template <typename T>
static int fill_weight(struct sl_backend *be, struct sl_weight *w, sl_read_rows_fn *read, void *ctx,
                       struct sl_err *err)
{
    int64_t per = (int64_t)(SL_CUDA_STAGE_BYTES / sizeof(float)) / w->cols;
    int rc = 0, at = 0;
    for (int64_t row = 0; row < w->rows && !rc && !be->kept.code; row += per > 0 ? per : 1) {
        if (per < 1) {
            rc = weight_long_row<T>(be, w, row, read, ctx, err);
            continue;
        }
        at = sl_cuda_stage(be);
        if (at >= 0) {
            rc = weight_rows<T>(be, w, row, w->rows - row < per ? w->rows - row : per, at, read, ctx, err);
            sl_cuda_staged(be, at);
        }
    }
    if (rc || !w->f32)
        return rc;
    if (per < 1) /* one row, in the activation type's precision; else as the stage still holds it */
        sl_cuda_to_f32<T>(be, w->data, w->cols, w->f32);
    else if (at >= 0)
        sl_cuda_failed(be,
                       cudaMemcpyAsync(w->f32, (char *)be->stage_device + (size_t)at * SL_CUDA_STAGE_BYTES,
                                       (size_t)w->cols * sizeof(float), cudaMemcpyDeviceToDevice, be->stream),
                       "uploading a weight");
    return 0;
}

/* A weight without content. What a linear layer's is made into another type from is not of reserved memory. */
template <typename T>
static int weight_handle(struct sl_backend *be, bool linear, int64_t rows, int64_t cols, struct sl_weight **ret_w, struct sl_err *err)
{
    if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX)
        return sl_err_set(err, SL_SPEC, "weight of %lld x %lld: each must be 1 to 2^31-1", (long long)rows,
                          (long long)cols);
    struct sl_weight *w = (struct sl_weight *)calloc(1, sizeof *w);
    if (!w)
        return sl_err_set(err, SL_NOMEM, "no memory for a weight's handle");
    w->rows = rows;
    w->cols = cols;
    bool passes = linear && be->info.precision == SL_PRECISION_INT8;
    int rc = (passes ? sl_cuda_alloc_apart : sl_cuda_alloc)(be, (size_t)rows * (size_t)cols * sizeof(T), &w->data, err);
    if (!rc && rows == 1) {
        void *f32 = NULL;
        rc = sl_cuda_alloc(be, (size_t)cols * sizeof(float), &f32, err);
        w->f32 = (float *)f32;
    }
    if (rc)
        sl_cuda_weight_free(be, w);
    else
        *ret_w = w;
    return rc;
}

/* Takes w, filled with success rc. */
static int weight_end(struct sl_backend *be, struct sl_weight *w, int rc, struct sl_weight **ret_w, struct sl_err *err)
{
    int kept = sl_cuda_take_kept(be, rc ? NULL : err);
    rc = rc ? rc : kept;
    if (rc)
        sl_cuda_weight_free(be, w);
    else
        *ret_w = w;
    return rc;
}

template <typename T>
int sl_cuda_weight_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read,
                           void *ctx, struct sl_weight **ret_w, struct sl_err *err)
{
    struct sl_weight *w = NULL;
    int rc = weight_handle<T>(be, false, rows, cols, &w, err);
    return rc ? rc : weight_end(be, w, fill_weight<T>(be, w, read, ctx, err), ret_w, err);
}

/* Takes w. */
template <typename T>
static int quantised(struct sl_backend *be, struct sl_weight *w, struct sl_weight **ret_w, struct sl_err *err)
{
    int rc = sl_cuda_quantise_weight<T>(be, w, err);
    if (rc)
        sl_cuda_weight_free(be, w);
    else
        *ret_w = w;
    return rc;
}

template <typename T>
int sl_cuda_linear_new(struct sl_backend *be, int64_t rows, int64_t cols, sl_read_rows_fn *read, void *ctx,
                       struct sl_weight **ret_w, struct sl_err *err)
{
    struct sl_weight *w = NULL;
    int rc = weight_handle<T>(be, true, rows, cols, &w, err);
    if (!rc)
        rc = weight_end(be, w, fill_weight<T>(be, w, read, ctx, err), &w, err);
    return rc ? rc : quantised<T>(be, w, ret_w, err);
}

template <typename T>
int sl_cuda_weight_raw(struct sl_backend *be, bool linear, int64_t rows, int64_t cols, const struct sl_raw *part, int n,
                       struct sl_weight **ret_w, struct sl_err *err)
{
    struct sl_weight *w = NULL;
    int rc = weight_handle<T>(be, linear, rows, cols, &w, err);
    if (rc)
        return rc;
    rc = sl_cuda_raw<T>(be, part, n, cols, (T *)w->data, err);
    if (!rc && w->f32)
        rc = sl_cuda_raw<float>(be, part, n, cols, w->f32, err);
    rc = weight_end(be, w, rc, &w, err);
    if (rc)
        return rc;
    return linear ? quantised<T>(be, w, ret_w, err) : (*ret_w = w, 0);
}

#define EACH(T)                                                                                                     \
    template int sl_cuda_weight_new<T>(struct sl_backend *, int64_t, int64_t, sl_read_rows_fn *, void *,            \
                                       struct sl_weight **, struct sl_err *);                                       \
    template int sl_cuda_linear_new<T>(struct sl_backend *, int64_t, int64_t, sl_read_rows_fn *, void *,            \
                                       struct sl_weight **, struct sl_err *);                                       \
    template int sl_cuda_weight_raw<T>(struct sl_backend *, bool, int64_t, int64_t, const struct sl_raw *, int,     \
                                       struct sl_weight **, struct sl_err *);
EACH(float)
EACH(bf16)
