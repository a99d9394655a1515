/* Opening the backend, its memory and weights, and the two tables. */
#include "cuda/cuda.cuh"
extern "C" {
#include "engine/backend.h"
}
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 256

/* ---- failures */
static int code_of(cudaError_t e)
{
    switch (e) {
    case cudaErrorMemoryAllocation:
        return SL_NOMEM;
    case cudaErrorInvalidValue: /* a call or a kernel of ours was wrong: the device is as it was */
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
        return SL_FAULT;
    default:
        return SL_DEVICE;
    }
}

/* For tests: the next check of a call finds this error (a cudaError_t) as if the call had failed with it. */
static int injected;
extern "C" __attribute__((visibility("default"))) void sl_cuda_inject(int error)
{
    injected = error;
}

bool sl_cuda_failed(struct sl_backend *be, cudaError_t e, const char *what)
{
    if (injected && e == cudaSuccess) {
        e = (cudaError_t)injected;
        injected = 0;
    }
    if (e == cudaSuccess)
        return false;
    (void)cudaGetLastError(); /* a failed allocation leaves no trace in later calls */
    sl_err_set(&be->kept, code_of(e), "GPU %d: %s: %s", be->device, what, cudaGetErrorString(e));
    return true;
}

int sl_cuda_take_kept(struct sl_backend *be, struct sl_err *err)
{
    if (!be->kept.code)
        return 0;
    int rc = sl_err_set(err, be->kept.code, "%s", be->kept.msg);
    sl_err_clear(&be->kept);
    return rc;
}

/* ---- scratch, and what is on its way to the device */
void *sl_cuda_scratch(struct sl_backend *be, enum sl_cuda_scratch which, size_t bytes)
{
    if (be->scratch[which].bytes >= bytes && be->scratch[which].p)
        return be->scratch[which].p;
    size_t want = bytes + bytes / 4 + ALIGN;
    void *p = NULL;
    sl_cuda_moved(be);
    cudaFree(be->scratch[which].p); /* waits for whoever uses it */
    be->scratch[which].p = NULL;
    be->scratch[which].bytes = 0;
    cudaError_t e = cudaMalloc(&p, want);
    be->info.allocations++;
    if (e != cudaSuccess) {
        char what[64];
        snprintf(what, sizeof what, "%zu MiB of scratch", want >> 20);
        sl_cuda_failed(be, e, what);
        return NULL;
    }
    be->scratch[which].p = p;
    be->scratch[which].bytes = want;
    return p;
}

/* Room in the pinned ring, free for the host to write. */
static char *ring_take(struct sl_backend *be, size_t bytes)
{
    if (be->ring_used + bytes > SL_CUDA_RING_BYTES) {
        if (sl_cuda_failed(be, cudaStreamSynchronize(be->stream), "waiting for uploads"))
            return NULL;
        be->ring_used = 0;
    }
    char *p = be->ring + be->ring_used;
    be->ring_used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

/* ---- open and close */
static void cuda_close(struct sl_backend *be)
{
    if (!be)
        return;
    cudaSetDevice(be->device);
    if (be->stream)
        cudaStreamSynchronize(be->stream);
    sl_cuda_graphs_free(be->graphs);
    sl_cuda_blas_free(be->blas);
    for (int i = 0; i < SL_SCRATCHES; i++)
        cudaFree(be->scratch[i].p);
    sl_cuda_cut_free(be->cut);
    cudaFreeHost(be->ring);
    cudaFreeHost(be->stage[0]);
    cudaFreeHost(be->stage[1]);
    for (int i = 0; i < 2; i++)
        if (be->stage_done[i])
            cudaEventDestroy(be->stage_done[i]);
    cudaFree(be->stage_device);
    cudaFree(be->block.base);
    if (be->stream)
        cudaStreamDestroy(be->stream);
    free(be);
}

static int check_device(int device, cudaDeviceProp *ret_prop, struct sl_err *err)
{
    cudaDeviceProp prop;
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
        return sl_err_set(err, SL_NOTFOUND, "there is no NVIDIA GPU that this process may use");
    if (e == cudaErrorInsufficientDriver)
        return sl_err_set(err, SL_NOTFOUND,
                          "no NVIDIA driver, or one older than this program's CUDA %d.%d; update the driver",
                          CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e != cudaSuccess)
        return sl_err_set(err, SL_DEVICE, "asking for GPUs: %s", cudaGetErrorString(e));
    if (device < 0 || device >= count)
        return sl_err_set(err, SL_SPEC, "GPU %d: this process may use 0 to %d", device, count - 1);
    e = cudaGetDeviceProperties(&prop, device);
    if (e != cudaSuccess)
        return sl_err_set(err, SL_DEVICE, "GPU %d: %s", device, cudaGetErrorString(e));
    if (prop.major < SL_CUDA_OLDEST_MAJOR)
        return sl_err_set(err, SL_SPEC,
                          "GPU %d, %s, has compute capability %d.%d; %d.0 or newer is needed. "
                          "--device cpu trains without it",
                          device, prop.name, prop.major, prop.minor, SL_CUDA_OLDEST_MAJOR);
    *ret_prop = prop;
    return 0;
}

/* What the bits depend on beside the device. */
static const char *type_name(const struct sl_backend_opts *opts, bool bf16_activations)
{
    static const char *const linear[] = {NULL, NULL, "fp8", "int8"};
    const char *name = opts ? linear[opts->precision] : NULL;
    return name ? name : bf16_activations ? "bf16" : "fp32";
}

static int check_precision(const struct sl_backend_opts *opts, const cudaDeviceProp *prop, struct sl_err *err)
{
    if (!opts || opts->precision != SL_PRECISION_FP8 || prop->major == SL_CUDA_FP8_MAJOR)
        return 0;
    return sl_err_set(err, SL_SPEC,
                      "GPU %d, %s, has compute capability %d.%d; precision fp8 needs %d.0 (H100, H200). bf16 and "
                      "int8 run on this one",
                      opts->device, prop->name, prop->major, prop->minor, SL_CUDA_FP8_MAJOR);
}

static int open_device(const struct sl_backend_opts *opts, bool bf16_activations, struct sl_backend **ret_be,
                       struct sl_err *err)
{
    cudaDeviceProp prop = {};
    int device = opts ? opts->device : 0;
    if (opts && opts->threads < 0)
        return sl_err_set(err, SL_SPEC, "%d CPU threads: expected 0 or more", opts->threads);
    int rc = check_device(device, &prop, err);
    if (!rc)
        rc = check_precision(opts, &prop, err);
    if (rc)
        return rc;
    struct sl_backend *be = (struct sl_backend *)calloc(1, sizeof *be);
    if (!be)
        return sl_err_set(err, SL_NOMEM, "no memory for the CUDA backend");
    be->device = device;
    snprintf(be->info.kernel, sizeof be->info.kernel, "cuda sm_%d%d %s", prop.major, prop.minor,
             type_name(opts, bf16_activations));
    be->round_lstm = bf16_activations;
    void *ring = NULL;
    bool bad = sl_cuda_failed(be, cudaSetDevice(device), "selecting it") ||
               sl_cuda_failed(be, cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking),
                              "making a stream") ||
               sl_cuda_failed(be, cudaHostAlloc(&ring, SL_CUDA_RING_BYTES, cudaHostAllocDefault),
                              "pinning memory");
    be->ring = (char *)ring;
    be->info.precision = opts ? opts->precision : SL_PRECISION_FP32;
    rc = bad ? sl_cuda_take_kept(be, err) : sl_cuda_blas_new(&be->blas, err);
    size_t left = 0, all = 0;
    if (!rc && sl_cuda_failed(be, cudaMemGetInfo(&left, &all), "asking for free memory"))
        rc = sl_cuda_take_kept(be, err);
    be->info.memory_bytes = (int64_t)left;
    be->info.accelerator = true;
    if (rc) {
        cuda_close(be);
        return rc;
    }
    *ret_be = be;
    return 0;
}

static int open_f32(const struct sl_backend_opts *opts, struct sl_backend **ret_be, struct sl_err *err)
{
    return open_device(opts, false, ret_be, err);
}

static int open_bf16(const struct sl_backend_opts *opts, struct sl_backend **ret_be, struct sl_err *err)
{
    return open_device(opts, true, ret_be, err);
}

static void cuda_info(const struct sl_backend *be, struct sl_backend_info *ret_info)
{
    *ret_info = be->info;
    ret_info->reserved_bytes = (int64_t)be->block.bytes;
    ret_info->given_bytes = (int64_t)be->block.used;
}

/* ---- memory */
int sl_cuda_alloc_apart(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err)
{
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    be->info.allocations++;
    if (e != cudaSuccess) {
        size_t left = 0, all = 0;
        (void)cudaGetLastError();
        if (e != cudaErrorMemoryAllocation)
            return sl_err_set(err, code_of(e), "GPU %d: %zu MiB: %s", be->device, bytes >> 20,
                              cudaGetErrorString(e));
        cudaMemGetInfo(&left, &all);
        return sl_err_set(err, SL_NOMEM, "GPU %d has no memory for %zu MiB: %zu of %zu MiB are free",
                          be->device, bytes >> 20, left >> 20, all >> 20);
    }
    *ret_p = p;
    return 0;
}

static int cuda_reserve(struct sl_backend *be, size_t bytes, struct sl_err *err)
{
    void *p = NULL;
    if (be->block.base)
        return sl_err_set(err, SL_CONFLICT, "GPU %d's memory has been reserved before", be->device);
    int rc = sl_cuda_alloc_apart(be, bytes, &p, err);
    if (!rc)
        be->block = {(char *)p, bytes, 0, 0};
    return rc;
}

static int64_t cuda_memory_left(struct sl_backend *be)
{
    size_t left = 0, all = 0;
    sl_cuda_failed(be, cudaMemGetInfo(&left, &all), "asking for free memory");
    return (int64_t)left;
}

int sl_cuda_alloc(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err)
{
    void *p = sl_block_take(&be->block, bytes);
    if (!p)
        return sl_cuda_alloc_apart(be, bytes, ret_p, err);
    *ret_p = p;
    return 0;
}

void *sl_cuda_take(struct sl_backend *be, size_t bytes)
{
    void *p = NULL;
    return sl_cuda_alloc(be, bytes, &p, &be->kept) ? NULL : p;
}

void sl_cuda_free(struct sl_backend *be, void *p)
{
    if (!sl_block_give(&be->block, p))
        sl_cuda_failed(be, cudaFree(p), "freeing memory");
}

/* Does not wait where the ring has room: a batch is queued behind what the device still does. */
int sl_cuda_upload(struct sl_backend *be, void *dst, const void *host_src, size_t bytes,
                   struct sl_err *err)
{
    char *pinned = bytes && bytes <= SL_CUDA_RING_BYTES / 4 ? ring_take(be, bytes) : NULL;
    if (pinned) {
        memcpy(pinned, host_src, bytes);
        sl_cuda_failed(be, cudaMemcpyAsync(dst, pinned, bytes, cudaMemcpyHostToDevice, be->stream), "upload");
    } else if (bytes && !sl_cuda_failed(be, cudaMemcpyAsync(dst, host_src, bytes, cudaMemcpyHostToDevice, be->stream),
                                        "upload")) {
        sl_cuda_failed(be, cudaStreamSynchronize(be->stream), "upload, or work before it");
    }
    return sl_cuda_take_kept(be, err);
}

static int cuda_download(struct sl_backend *be, void *host_dst, const void *src, size_t bytes,
                         struct sl_err *err)
{
    if (!be->kept.code && bytes)
        sl_cuda_failed(be, cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, be->stream),
                       "download");
    sl_cuda_failed(be, cudaStreamSynchronize(be->stream), "download, or work before it");
    return sl_cuda_take_kept(be, err);
}

static void cuda_zero(struct sl_backend *be, void *dst, size_t bytes)
{
    if (bytes)
        sl_cuda_failed(be, cudaMemsetAsync(dst, 0, bytes, be->stream), "zero");
}

static void cuda_copy(struct sl_backend *be, void *dst, const void *src, size_t bytes)
{
    if (bytes)
        sl_cuda_failed(be, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, be->stream), "copy");
}

/* ---- the tables */
template <typename T, typename F> static constexpr F *for_bf16(F *entry)
{
    return sizeof(T) == sizeof(bf16) ? entry : NULL;
}

#define TABLE(T, NAME, OPEN)                                                                         \
    {                                                                                                \
        .name = NAME, .act_bytes = sizeof(T), .counts_only = false, .open = OPEN, .close = cuda_close, .info = cuda_info,  \
        .reserve = cuda_reserve, .memory_left = cuda_memory_left, .alloc = sl_cuda_alloc, .free = sl_cuda_free, .upload = sl_cuda_upload, .download = cuda_download,    \
        .zero = cuda_zero, .copy = cuda_copy, .to_f32 = sl_cuda_to_f32<T>,                           \
        .from_f32 = sl_cuda_from_f32<T>, .weight_new = sl_cuda_weight_new<T>,                           \
        .linear_new = sl_cuda_linear_new<T>,                                                            \
        .weight_raw = sl_cuda_weight_raw<T>,                                                            \
        .weight_free = sl_cuda_weight_free, .step_replay = sl_cuda_step_replay,              \
        .step_begin = sl_cuda_step_begin, .step_end = sl_cuda_step_end,   \
        .matmul = sl_cuda_matmul<T>, .matmul_back = sl_cuda_matmul_back<T>,                          \
        .mlp_back = for_bf16<T>(sl_cuda_mlp_back),                                                   \
        .embed = sl_cuda_embed<T>, .embed_back = sl_cuda_embed_back<T>, .gather = sl_cuda_gather<T>, \
        .scatter = sl_cuda_scatter<T>, .norm = sl_cuda_norm<T>, .norm_back = sl_cuda_norm_back<T>,   \
        .head_norm = sl_cuda_head_norm<T>, .head_norm_back = sl_cuda_head_norm_back<T>,              \
        .rope = sl_cuda_rope<T>, .attention = sl_cuda_attention<T>,                                  \
        .attention_back = sl_cuda_attention_back<T>, .activation = sl_cuda_activation<T>,            \
        .activation_back = sl_cuda_activation_back<T>, .cross_entropy = sl_cuda_cross_entropy<T>,    \
        .gemm_f32 = sl_cuda_gemm_f32, .bias_act_f32 = sl_cuda_bias_act_f32,                          \
        .bias_act_back_f32 = sl_cuda_bias_act_back_f32, .lstm_saved = sl_cuda_lstm_saved,            \
        .lstm = sl_cuda_lstm, .lstm_back = sl_cuda_lstm_back, .dropout_f32 = sl_cuda_dropout_f32,    \
        .sumsq_f32 = sl_cuda_sumsq_f32, .clip_scale = sl_cuda_clip_scale, .adamw = sl_cuda_adamw,    \
    }

static const struct sl_ops cuda_f32 = TABLE(float, "cuda fp32", open_f32);
static const struct sl_ops cuda_bf16 = TABLE(bf16, "cuda", open_bf16);

extern "C" __attribute__((visibility("default"))) const struct sl_ops *sl_cuda_ops(unsigned abi, size_t ops_bytes,
                                                                                   int fp32)
{
    if (abi != SL_CUDA_ABI || ops_bytes != sizeof(struct sl_ops))
        return NULL;
    return fp32 ? &cuda_f32 : &cuda_bf16;
}
