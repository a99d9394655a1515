/* Frozen weights rounded once, when they have been loaded: to fp8, transposed, for the gradient; or to int8, which is
 * multiplied out into scratch before each product. */
#include "cuda/fp8.cuh"

#define THREADS 256
#define EACH 8 /* elements of a lane's access */

static __global__ void transpose(const bf16 *x, int64_t rows, int64_t cols, bf16 *y)
{
    __shared__ bf16 tile[SL_WARP][SL_WARP + 1];
    int64_t r = (int64_t)blockIdx.y * SL_WARP, c = (int64_t)blockIdx.x * SL_WARP;
    for (int i = (int)threadIdx.y; i < SL_WARP; i += (int)blockDim.y)
        if (r + i < rows && c + threadIdx.x < cols)
            tile[i][threadIdx.x] = x[(r + i) * cols + c + threadIdx.x];
    __syncthreads();
    for (int i = (int)threadIdx.y; i < SL_WARP; i += (int)blockDim.y)
        if (c + i < cols && r + threadIdx.x < rows)
            y[(c + i) * rows + r + threadIdx.x] = tile[threadIdx.x][i];
}

static bool make_fp8(struct sl_backend *be, struct sl_weight *w)
{
    size_t n = (size_t)w->rows * (size_t)w->cols;
    bf16 *turned = (bf16 *)sl_cuda_scratch(be, SL_SCRATCH_VALUES, n * sizeof *turned);
    w->qt = sl_cuda_take(be, n);
    w->scale_t = (float *)sl_cuda_take(be, (size_t)w->cols * sizeof(float));
    if (!turned || !w->qt || !w->scale_t)
        return false;
    struct sl_fp8_rows to = {w->qt, w->scale_t};
    dim3 blocks(sl_blocks(w->cols, SL_WARP), sl_blocks(w->rows, SL_WARP)), threads(SL_WARP, 8);
    transpose<<<blocks, threads, 0, be->stream>>>((const bf16 *)w->data, w->rows, w->cols, turned);
    sl_cuda_launched(be, "transposing a weight");
    sl_fp8_rows_of(be, turned, w->rows, w->cols, w->rows, &to);
    return true;
}

/* ---- int8: symmetric, the row's largest magnitude is 127 */
#define INT8_MOST 127.0f

template <typename T>
static __global__ void __launch_bounds__(THREADS) rows_to_int8(const T *x, int64_t cols, signed char *q, float *scale)
{
    __shared__ float shared[(THREADS / SL_WARP)];
    const T *row = x + blockIdx.x * cols;
    float most = 0;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
        float a = fabsf(to_f(row[i]));
        most = a > most || a != a ? a : most;
    }
    most = block_max(most, shared);
    float s = __fdiv_rn(most, INT8_MOST);
    bool fine = most > 0 && most <= 3e38f;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x)
        q[blockIdx.x * cols + i] = fine ? (signed char)__float2int_rn(__fdiv_rn(to_f(row[i]), s)) : 0;
    if (threadIdx.x == 0)
        scale[blockIdx.x] = s;
}

template <typename T>
static __global__ void int8_values(const signed char *q, const float *scale, int64_t n, int64_t cols, T *x)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (i + EACH <= n && cols % EACH == 0) {
        float s = scale[i / cols];
        sl_pack<signed char, EACH> from = *(const sl_pack<signed char, EACH> *)(q + i);
        for (int j = 0; j < EACH; j += sl_wide<T>) {
            sl_pack<T, sl_wide<T>> to;
            for (int l = 0; l < sl_wide<T>; l++)
                to.v[l] = from_f<T>((float)from.v[j + l] * s);
            *(sl_pack<T, sl_wide<T>> *)(x + i + j) = to;
        }
        return;
    }
    for (int64_t j = i; j < n && j < i + EACH; j++)
        x[j] = from_f<T>((float)q[j] * scale[j / cols]);
}

template <typename T> static bool make_int8(struct sl_backend *be, struct sl_weight *w)
{
    w->q = sl_cuda_take(be, (size_t)w->rows * (size_t)w->cols);
    w->scale = (float *)sl_cuda_take(be, (size_t)w->rows * sizeof(float));
    if (!w->q || !w->scale)
        return false;
    rows_to_int8<T>
        <<<(unsigned)w->rows, THREADS, 0, be->stream>>>((const T *)w->data, w->cols, (signed char *)w->q, w->scale);
    sl_cuda_launched(be, "a weight to int8");
    return true;
}

template <typename T> const T *sl_cuda_values(struct sl_backend *be, const struct sl_weight *w)
{
    int64_t n = w->rows * w->cols;
    if (w->data)
        return (const T *)w->data;
    T *values = (T *)sl_cuda_scratch(be, SL_SCRATCH_VALUES, (size_t)n * sizeof(T));
    if (!values)
        return NULL;
    int8_values<T><<<sl_blocks(n, THREADS * EACH), THREADS, 0, be->stream>>>((const signed char *)w->q, w->scale, n,
                                                                             w->cols, values);
    sl_cuda_launched(be, "values of an int8 weight");
    return values;
}

template <typename T> int sl_cuda_quantise_weight(struct sl_backend *be, struct sl_weight *w, struct sl_err *err)
{
    if (be->info.precision == SL_PRECISION_FP8 && sizeof(T) == sizeof(bf16) && sl_fits_fp8(w->rows, w->cols))
        make_fp8(be, w);
    if (be->info.precision == SL_PRECISION_INT8 && make_int8<T>(be, w)) { /* waits until it has been read */
        sl_cuda_failed(be, cudaFree(w->data), "freeing a weight");
        w->data = NULL;
    }
    int rc = be->kept.code ? sl_err_set(err, be->kept.code, "%s", be->kept.msg) : 0;
    sl_err_clear(&be->kept);
    return rc;
}

#define EACH_TYPE(T)                                                                                                   \
    template const T *sl_cuda_values<T>(struct sl_backend *, const struct sl_weight *);                                \
    template int sl_cuda_quantise_weight<T>(struct sl_backend *, struct sl_weight *, struct sl_err *);
EACH_TYPE(float)
EACH_TYPE(bf16)
