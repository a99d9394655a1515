/* The backend that only counts. */
#include "engine/block.h"
#include "engine/plan.h"
#include <stdlib.h>
#include <string.h>

#define FIRST_ADDRESS ((uintptr_t)1 << 20) /* of memory that is not there */

struct sl_backend {
    struct sl_plan_device device;
    size_t act_bytes;
    struct sl_block block;
};

struct sl_weight {
    int unused;
};

static void count_close(struct sl_backend *be)
{
    free(be);
}

static void count_info(const struct sl_backend *be, struct sl_backend_info *ret_info)
{
    *ret_info = (struct sl_backend_info){.kernel = "none",
                                         .precision = be->device.precision,
                                         .accelerator = be->device.accelerator,
                                         .memory_bytes = be->device.memory_bytes,
                                         .given_bytes = (int64_t)be->block.used};
}

static int count_alloc(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err)
{
    void *p = sl_block_take(&be->block, bytes);
    if (!p)
        return sl_err_set(err, SL_NOMEM, "no machine has memory for %zu bytes", bytes);
    *ret_p = p;
    return 0;
}

static void count_free(struct sl_backend *be, void *p)
{
    sl_block_give(&be->block, p);
}

static int count_upload(struct sl_backend *be, void *dst, const void *host_src, size_t bytes,
                        struct sl_err *err)
{
    (void)be, (void)dst, (void)host_src, (void)bytes, (void)err;
    return 0;
}

static int count_download(struct sl_backend *be, void *host_dst, const void *src, size_t bytes,
                          struct sl_err *err)
{
    (void)be, (void)src, (void)err;
    memset(host_dst, 0, bytes);
    return 0;
}

static void count_zero(struct sl_backend *be, void *dst, size_t bytes)
{
    (void)be, (void)dst, (void)bytes;
}

static void count_copy(struct sl_backend *be, void *dst, const void *src, size_t bytes)
{
    (void)be, (void)dst, (void)src, (void)bytes;
}

static void count_to_f32(struct sl_backend *be, const sl_act *x, int64_t n, float *y)
{
    (void)be, (void)x, (void)n, (void)y;
}

static void count_embed(struct sl_backend *be, const struct sl_weight *embed,
                        const struct sl_weight *pos_embed, const float *prompts, const int32_t *src,
                        const int32_t *pos, int64_t rows, int hidden, sl_act *x)
{
    (void)be, (void)embed, (void)pos_embed, (void)prompts, (void)src, (void)pos, (void)rows,
        (void)hidden, (void)x;
}

/* Takes pieces of so many bytes each. */
static int take_weight(struct sl_backend *be, const size_t *bytes, int n, struct sl_weight **ret_w,
                       struct sl_err *err)
{
    void *p;
    int rc = 0;
    for (int i = 0; i < n && !rc; i++)
        rc = count_alloc(be, bytes[i], &p, err);
    struct sl_weight *w = rc ? NULL : malloc(sizeof *w);
    if (!rc && !w)
        rc = sl_err_set(err, SL_NOMEM, "a weight's handle");
    if (!rc)
        *ret_w = w;
    return rc;
}

static int count_weight_new(struct sl_backend *be, int64_t rows, int64_t cols,
                            sl_read_rows_fn *read, void *ctx, struct sl_weight **ret_w,
                            struct sl_err *err)
{
    size_t n = (size_t)rows * (size_t)cols, bytes[] = {n * be->act_bytes, n * sizeof(float)};
    (void)read, (void)ctx;
    /* on a GPU vectors are there in fp32 too */
    return take_weight(be, bytes, rows == 1 && be->device.accelerator ? 2 : 1, ret_w, err);
}

static int count_linear_new(struct sl_backend *be, int64_t rows, int64_t cols,
                            sl_read_rows_fn *read, void *ctx, struct sl_weight **ret_w,
                            struct sl_err *err)
{
    size_t n = (size_t)rows * (size_t)cols, scale = (size_t)rows * sizeof(float);
    size_t int8[] = {n, scale}, fp8[] = {n * be->act_bytes, n, (size_t)cols * sizeof(float)};
    if (be->device.precision == SL_PRECISION_INT8)
        return take_weight(be, int8, 2, ret_w, err);
    if (be->device.precision == SL_PRECISION_FP8 && sl_fits_fp8(rows, cols))
        return take_weight(be, fp8, 3, ret_w, err);
    return count_weight_new(be, rows, cols, read, ctx, ret_w, err);
}

static void count_weight_free(struct sl_backend *be, struct sl_weight *w)
{
    (void)be;
    free(w);
}

/* As both backends have it: four gates and a cell a direction, step and unit. */
static size_t count_lstm_saved(const struct sl_lstm *l)
{
    return (size_t)2 * (size_t)l->seqs * (size_t)l->steps * 5 * (size_t)l->hidden;
}

#define TABLE(BYTES)                                                                               \
    {                                                                                              \
        .name = "count", .act_bytes = (BYTES), .counts_only = true, .close = count_close,          \
        .info = count_info, .alloc = count_alloc, .free = count_free, .upload = count_upload,      \
        .download = count_download, .zero = count_zero, .copy = count_copy,                        \
        .to_f32 = count_to_f32, .weight_new = count_weight_new, .linear_new = count_linear_new,    \
        .weight_free = count_weight_free, .embed = count_embed, .lstm_saved = count_lstm_saved,    \
    }

int sl_count_open(const struct sl_plan_device *device, const struct sl_ops **ret_ops,
                  struct sl_backend **ret_be, struct sl_err *err)
{
    static const struct sl_ops in_fp32 = TABLE(sizeof(float)), in_bf16 = TABLE(2);
    const struct sl_ops *ops =
        device->accelerator && device->precision != SL_PRECISION_FP32 ? &in_bf16 : &in_fp32;
    struct sl_backend *be = calloc(1, sizeof *be);
    if (!be)
        return sl_err_set(err, SL_NOMEM, "planning memory");
    be->device = *device;
    be->act_bytes = ops->act_bytes;
    be->block = (struct sl_block){.base = (char *)FIRST_ADDRESS, .bytes = SIZE_MAX / 2};
    *ret_ops = ops;
    *ret_be = be;
    return 0;
}
