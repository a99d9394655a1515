/* Opening the backend, its memory and weights, and the table itself. */
#include "engine/cpu/coretype.h"
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"
#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PIECE_BYTES ((size_t)256 << 10) /* of zero and copy, what one thread takes at a time */
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

void *sl_cpu_alloc(size_t bytes)
{
    bool huge = bytes >= SL_CPU_HUGE_BYTES;
    size_t align = huge ? HUGE_PAGE_BYTES : SL_CPU_ALIGN;
    void *p = NULL;
    if (posix_memalign(&p, align, bytes ? bytes : 1))
        return NULL;
    if (huge)
        (void)madvise(p, bytes, MADV_HUGEPAGE); /* a wish: refusal costs only speed */
    return p;
}

void *sl_cpu_take(struct sl_backend *be, size_t bytes)
{
    void *p = sl_block_take(&be->block, bytes);
    if (!p) {
        p = sl_cpu_alloc(bytes);
        be->allocations++;
    }
    return p;
}

void sl_cpu_give(struct sl_backend *be, void *p)
{
    if (!sl_block_give(&be->block, p))
        free(p);
}

static float *grow(struct sl_backend *be, struct sl_cpu_scratch *s, size_t floats)
{
    if (s->floats >= floats && s->p)
        return s->p;
    size_t want = floats + floats / 4 + 1024;
    float *p = sl_cpu_alloc(want * sizeof *p);
    if (!p) {
        sl_err_set(&be->kept, SL_NOMEM, "no memory for %zu MiB of scratch",
                   (want * sizeof *p) >> 20);
        return NULL;
    }
    free(s->p);
    *s = (struct sl_cpu_scratch){p, want};
    return p;
}

float *sl_cpu_shared(struct sl_backend *be, size_t floats)
{
    return grow(be, &be->scratch[be->threads], floats);
}

bool sl_cpu_threads_scratch(struct sl_backend *be, size_t floats)
{
    for (int i = 0; i < be->threads; i++)
        if (!grow(be, &be->scratch[i], floats))
            return false;
    return true;
}

const char *sl_cpu_level(void)
{
#if SL_HAVE_CLONES
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4"))
        return "x86-64-v4";
    if (__builtin_cpu_supports("x86-64-v3"))
        return "x86-64-v3";
#endif
    return "baseline";
}

static void cpu_close(struct sl_backend *be)
{
    if (!be)
        return;
    for (int i = 0; be->scratch && i <= be->threads; i++)
        free(be->scratch[i].p);
    free(be->scratch);
    free(be->block.base);
    free(be);
}

static int cpu_open(const struct sl_backend_opts *opts, struct sl_backend **ret_be,
                    struct sl_err *err)
{
    int threads = opts ? opts->threads : 0;
    if (!threads) {
        threads = getenv("OMP_NUM_THREADS") ? omp_get_max_threads() : sl_cpu_usable_cores();
        threads = threads < SL_CPU_MAX_THREADS ? threads : SL_CPU_MAX_THREADS;
    }
    if (threads < 1 || threads > SL_CPU_MAX_THREADS)
        return sl_err_set(err, SL_SPEC, "%d CPU threads: expected 1 to %d", threads,
                          SL_CPU_MAX_THREADS);
    if (opts && opts->precision == SL_PRECISION_FP8)
        return sl_err_set(err, SL_SPEC,
                          "precision fp8 needs a GPU of compute capability 9.0 (H100, H200); a CPU runs fp32, "
                          "bf16 and int8");
    struct sl_backend *be = calloc(1, sizeof *be);
    if (be)
        be->scratch = calloc((size_t)threads + 1, sizeof *be->scratch);
    if (!be || !be->scratch) {
        cpu_close(be);
        return sl_err_set(err, SL_NOMEM, "no memory for the CPU backend");
    }
    be->threads = threads;
    be->precision = opts ? opts->precision : SL_PRECISION_FP32;
    be->memory_bytes = sl_cpu_memory("");
    omp_set_num_threads(threads);
    *ret_be = be;
    return 0;
}

static void cpu_info(const struct sl_backend *be, struct sl_backend_info *ret_info)
{
    *ret_info = (struct sl_backend_info){.threads = be->threads,
                                           .precision = be->precision,
                                           .memory_bytes = be->memory_bytes,
                                           .reserved_bytes = (int64_t)be->block.bytes,
                                           .given_bytes = (int64_t)be->block.used,
                                           .allocations = be->allocations};
    snprintf(ret_info->kernel, sizeof ret_info->kernel, "openblas %s, %s%s", openblas_get_corename(),
             sl_cpu_level(), be->precision == SL_PRECISION_INT8 ? ", int8" : "");
}

static int cpu_mem_alloc(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err)
{
    void *p = sl_cpu_take(be, bytes);
    if (!p)
        return sl_err_set(err, SL_NOMEM, "no memory for %zu MiB", bytes >> 20);
    *ret_p = p;
    return 0;
}

static void cpu_mem_free(struct sl_backend *be, void *p)
{
    sl_cpu_give(be, p);
}

static int cpu_reserve(struct sl_backend *be, size_t bytes, struct sl_err *err)
{
    void *p = be->block.base ? NULL : sl_cpu_alloc(bytes);
    if (be->block.base)
        return sl_err_set(err, SL_CONFLICT, "this backend's memory has been reserved before");
    if (!p)
        return sl_err_set(err, SL_NOMEM, "no memory for %zu MiB", bytes >> 20);
    be->block = (struct sl_block){.base = p, .bytes = bytes};
    be->allocations++;
    return 0;
}

static int take_kept(struct sl_backend *be, struct sl_err *err)
{
    if (!be->kept.code)
        return 0;
    int rc = sl_err_set(err, be->kept.code, "%s", be->kept.msg);
    sl_err_clear(&be->kept);
    return rc;
}

static int cpu_upload(struct sl_backend *be, void *dst, const void *host_src, size_t bytes,
                      struct sl_err *err)
{
    (void)be;
    (void)err;
    if (bytes)
        memcpy(dst, host_src, bytes);
    return 0;
}

static int cpu_download(struct sl_backend *be, void *host_dst, const void *src, size_t bytes,
                        struct sl_err *err)
{
    int rc = take_kept(be, err);
    if (rc)
        return rc;
    if (bytes)
        memcpy(host_dst, src, bytes);
    return 0;
}

static void cpu_zero(struct sl_backend *be, void *dst, size_t bytes)
{
    char *p = dst;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (bytes > 2 * PIECE_BYTES)
    for (size_t i = 0; i < bytes; i += PIECE_BYTES)
        memset(p + i, 0, bytes - i < PIECE_BYTES ? bytes - i : PIECE_BYTES);
}

static void cpu_copy(struct sl_backend *be, void *dst, const void *src, size_t bytes)
{
    char *p = dst;
    const char *q = src;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (bytes > 2 * PIECE_BYTES)
    for (size_t i = 0; i < bytes; i += PIECE_BYTES)
        memcpy(p + i, q + i, bytes - i < PIECE_BYTES ? bytes - i : PIECE_BYTES);
}

static void cpu_to_f32(struct sl_backend *be, const sl_act *x, int64_t n, float *y)
{
    cpu_copy(be, y, x, (size_t)n * sizeof *y);
}

static void cpu_from_f32(struct sl_backend *be, const float *x, int64_t n, sl_act *y)
{
    cpu_copy(be, y, x, (size_t)n * sizeof *x);
}

static void cpu_step_begin(struct sl_backend *be, uint64_t bucket)
{
    (void)be;
    (void)bucket;
}

static int cpu_step_end(struct sl_backend *be, struct sl_err *err)
{
    return take_kept(be, err);
}

const struct sl_ops sl_cpu_ops = {
    .name = "cpu",
    .act_bytes = sizeof(float),
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .reserve = cpu_reserve,
    .alloc = cpu_mem_alloc,
    .free = cpu_mem_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .copy = cpu_copy,
    .to_f32 = cpu_to_f32,
    .from_f32 = cpu_from_f32,
    .weight_new = sl_cpu_weight_new,
    .linear_new = sl_cpu_linear_new,
    .weight_free = sl_cpu_weight_free,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .matmul = sl_cpu_matmul,
    .matmul_back = sl_cpu_matmul_back,
    .embed = sl_cpu_embed,
    .embed_back = sl_cpu_embed_back,
    .gather = sl_cpu_gather,
    .scatter = sl_cpu_scatter,
    .norm = sl_cpu_norm,
    .norm_back = sl_cpu_norm_back,
    .head_norm = sl_cpu_head_norm,
    .head_norm_back = sl_cpu_head_norm_back,
    .rope = sl_cpu_rope,
    .attention = sl_cpu_attention,
    .attention_back = sl_cpu_attention_back,
    .activation = sl_cpu_activation,
    .activation_back = sl_cpu_activation_back,
    .cross_entropy = sl_cpu_cross_entropy,
    .gemm_f32 = sl_cpu_gemm_f32,
    .bias_act_f32 = sl_cpu_bias_act_f32,
    .bias_act_back_f32 = sl_cpu_bias_act_back_f32,
    .lstm_saved = sl_cpu_lstm_saved,
    .lstm = sl_cpu_lstm,
    .lstm_back = sl_cpu_lstm_back,
    .dropout_f32 = sl_cpu_dropout_f32,
    .sumsq_f32 = sl_cpu_sumsq_f32,
    .clip_scale = sl_cpu_clip_scale,
    .adamw = sl_cpu_adamw,
};
