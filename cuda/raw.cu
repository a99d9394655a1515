/* Weights from the bytes of a mapped file: all cores copy them into two pinned buffers in turn, the device turns and
 * converts them. A weight stored by columns goes up as it lies and is transposed there. */
#include "cuda/cuda.cuh"
#include <cuda_fp16.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE_BYTES ((size_t)512 << 10) /* that one thread copies at a time */
#define THREADS 256

static __device__ __forceinline__ float to_f(__half x)
{
    return __half2float(x);
}

template <typename A, typename T> static __global__ void convert(const A *x, int64_t n, T *y)
{
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)
        y[i] = from_f<T>(to_f(x[i]));
}

/* y[r, c] = x[c, r] of n columns; ldy from a row of y to the next. */
template <typename A, typename T>
static __global__ void turn(const A *x, int64_t rows, int64_t n, T *y, int64_t ldy)
{
    __shared__ float tile[SL_WARP][SL_WARP + 1];
    int64_t r0 = (int64_t)blockIdx.x * SL_WARP, c0 = (int64_t)blockIdx.y * SL_WARP;
    for (int k = (int)threadIdx.y; k < SL_WARP; k += (int)blockDim.y)
        if (c0 + k < n && r0 + threadIdx.x < rows)
            tile[k][threadIdx.x] = to_f(x[(c0 + k) * rows + r0 + threadIdx.x]);
    __syncthreads();
    for (int k = (int)threadIdx.y; k < SL_WARP; k += (int)blockDim.y)
        if (r0 + k < rows && c0 + threadIdx.x < n)
            y[(r0 + k) * ldy + c0 + threadIdx.x] = from_f<T>(tile[threadIdx.x][k]);
}

/* What is mapped in one call costs far less than page by page at each first touch. */
static void expect_reading(const char *p, size_t bytes)
{
#ifdef MADV_POPULATE_READ
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)p / page * page;
    (void)madvise((void *)begin, (uintptr_t)p + bytes - begin, MADV_POPULATE_READ); /* older kernels: as it was */
#else
    (void)p, (void)bytes;
#endif
}

/* n runs of `run` bytes, `step` apart, one behind the other. */
static void gather(char *to, const char *from, size_t n, size_t run, size_t step)
{
    size_t all = n * run;
    if (run == step) {
#pragma omp parallel for schedule(static)
        for (size_t at = 0; at < all; at += PIECE_BYTES) {
            size_t bytes = all - at < PIECE_BYTES ? all - at : PIECE_BYTES;
            expect_reading(from + at, bytes);
            memcpy(to + at, from + at, bytes);
        }
        return;
    }
    expect_reading(from, (n - 1) * step + run);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++)
        memcpy(to + i * run, from + i * step, run);
}

/* n runs (rows, or columns) of the part from run `first` on, `len` elements each, to their place in y [part->rows, cols]. */
template <typename A, typename T>
static void send(struct sl_backend *be, const struct sl_raw *part, int64_t first, int64_t n, int64_t len, int64_t cols, T *y)
{
    bool by_rows = part->col_bytes == (int64_t)sizeof(A);
    int64_t step = by_rows ? part->row_bytes : part->col_bytes;
    int at = sl_cuda_stage(be);
    if (at < 0)
        return;
    size_t bytes = (size_t)(n * len) * sizeof(A);
    A *device = (A *)(void *)((char *)be->stage_device + (size_t)at * SL_CUDA_STAGE_BYTES);
    void *to = by_rows && sizeof(A) == sizeof(T) && part->type != SL_RAW_F16 ? (void *)(y + first * cols) : device;
    gather(be->stage[at], (const char *)part->p + first * step, (size_t)n, (size_t)len * sizeof(A), (size_t)step);
    if (sl_cuda_failed(be, cudaMemcpyAsync(to, be->stage[at], bytes, cudaMemcpyHostToDevice, be->stream), "uploading a weight"))
        return;
    if (!by_rows)
        turn<A, T><<<dim3(sl_blocks(len, SL_WARP), sl_blocks(n, SL_WARP)), dim3(SL_WARP, 8), 0, be->stream>>>(
            device, len, n, y + first, cols);
    else if (to == device)
        convert<A, T><<<sl_blocks(n * len, THREADS * 8), THREADS, 0, be->stream>>>(device, n * len, y + first * cols);
    sl_cuda_launched(be, "converting a weight");
    sl_cuda_staged(be, at);
}

template <typename A, typename T>
static int send_part(struct sl_backend *be, const struct sl_raw *part, int64_t cols, T *y, struct sl_err *err)
{
    bool by_rows = part->col_bytes == (int64_t)sizeof(A);
    int64_t runs = by_rows ? part->rows : cols, len = by_rows ? cols : part->rows;
    int64_t per = (int64_t)(SL_CUDA_STAGE_BYTES / sizeof(A)) / len;
    if (per < 1 || (!by_rows && part->row_bytes != (int64_t)sizeof(A)))
        return sl_err_set(err, SL_SPEC, "a weight with runs of %lld elements", (long long)len);
    for (int64_t i = 0; i < runs && !be->kept.code; i += per)
        send<A, T>(be, part, i, runs - i < per ? runs - i : per, len, cols, y);
    return 0;
}

template <typename T>
int sl_cuda_raw(struct sl_backend *be, const struct sl_raw *part, int n, int64_t cols, T *y, struct sl_err *err)
{
    int rc = 0;
    for (int i = 0; i < n && !rc; y += part[i++].rows * cols)
        switch (part[i].type) {
        case SL_RAW_F32:
            rc = send_part<float, T>(be, &part[i], cols, y, err);
            break;
        case SL_RAW_F16:
            rc = send_part<__half, T>(be, &part[i], cols, y, err);
            break;
        case SL_RAW_BF16:
            rc = send_part<bf16, T>(be, &part[i], cols, y, err);
            break;
        }
    return rc;
}

template int sl_cuda_raw<float>(struct sl_backend *, const struct sl_raw *, int, int64_t, float *, struct sl_err *);
template int sl_cuda_raw<bf16>(struct sl_backend *, const struct sl_raw *, int, int64_t, bf16 *, struct sl_err *);
