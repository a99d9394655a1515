/* Rows on their way into a product of fp8, made where they come from: a gradient, or that of an activation.
 *
 * One block has a row in its registers: it loads or computes it, finds the largest magnitude, and writes one byte
 * an element. What a row is made of is a source: load(row, cols, at, v) gives EACH neighbouring elements of it. */
#include "cuda/fp8.cuh"
#include "cuda/gelu.cuh"
#include <cuda_fp8.h>

#define EACH 8 /* elements of a lane's access */
#define MAX_THREADS 512
#define MAX_WARPS (MAX_THREADS / SL_WARP)
#define MAX_PACKS 8 /* accesses a thread: MAX_THREADS * EACH * MAX_PACKS is the longest row, SL_FP8_MAX at least */
#define SLOW_THREADS 256

static_assert(MAX_THREADS * EACH * MAX_PACKS >= SL_FP8_MAX, "a row must fit into a block");

static __device__ __forceinline__ void load_bf16(const bf16 *p, float v[EACH])
{
    sl_pack<bf16, EACH> x = *(const sl_pack<bf16, EACH> *)p;
    for (int j = 0; j < EACH; j++)
        v[j] = to_f(x.v[j]);
}

static __device__ __forceinline__ void store_fp8(const float v[EACH], float inverse, unsigned char *q)
{
    sl_pack<__nv_fp8x2_storage_t, EACH / 2> out;
    for (int j = 0; j < EACH; j += 2)
        out.v[j / 2] =
            __nv_cvt_float2_to_fp8x2(make_float2(v[j] * inverse, v[j + 1] * inverse), __NV_SATFINITE, __NV_E4M3);
    *(sl_pack<__nv_fp8x2_storage_t, EACH / 2> *)q = out;
}

/* ---- sources */
struct plain_rows {
    const bf16 *x;
    int64_t ld;
    __device__ void load(int64_t row, int, int at, float v[EACH]) const
    {
        load_bf16(x + row * ld + at, v);
    }
};

/* The hardware's tanh, 2^-11 off: a hundredth of a step of what becomes of it. */
static __device__ __forceinline__ float gelu_slope(float x)
{
    float inner = GELU_C * (x + GELU_A * x * x * x), t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(inner));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_C * (1.0f + 3.0f * GELU_A * x * x);
}

/* cols counts x's columns: with SwiGLU both halves, the gates' gradients first. */
struct activation_gradient {
    enum sl_act_kind kind;
    const bf16 *dy, *x;
    __device__ void load(int64_t row, int cols, int at, float v[EACH]) const
    {
        float d[EACH], g[EACH];
        if (kind == SL_ACT_SWIGLU) {
            int half = cols / 2, in = at < half ? at : at - half;
            load_bf16(dy + row * half + in, d);
            load_bf16(x + row * cols + in, g);
            if (at < half) {
                load_bf16(x + row * cols + half + in, v);
                for (int j = 0; j < EACH; j++) {
                    float s = sigmoid<bf16>(g[j]);
                    v[j] = d[j] * v[j] * s * (1.0f + g[j] * (1.0f - s));
                }
            } else {
                for (int j = 0; j < EACH; j++)
                    v[j] = d[j] * g[j] * sigmoid<bf16>(g[j]);
            }
            return;
        }
        load_bf16(dy + row * cols + at, d);
        load_bf16(x + row * cols + at, g);
        for (int j = 0; j < EACH; j++)
            v[j] = d[j] * (kind == SL_ACT_GELU_TANH ? gelu_slope(g[j]) : act_slope<bf16>(kind, g[j]));
    }
};

/* ---- the kernel */
template <int PACKS, typename S>
static __global__ void __launch_bounds__(MAX_THREADS) rows_to_fp8(S source, int cols, unsigned char *q, float *scale)
{
    __shared__ float shared[MAX_WARPS];
    int64_t row = blockIdx.x;
    float v[PACKS][EACH], most = 0;
    for (int i = 0; i < PACKS; i++) {
        int at = ((int)threadIdx.x + i * (int)blockDim.x) * EACH;
        if (at < cols)
            source.load(row, cols, at, v[i]);
        else
            for (int j = 0; j < EACH; j++)
                v[i][j] = 0;
    }
    for (int i = 0; i < PACKS; i++)
        for (int j = 0; j < EACH; j++) {
            float a = fabsf(v[i][j]);
            most = a > most || a != a ? a : most;
        }
    most = block_max(most, shared);
    most = most < SL_FP8_LEAST ? SL_FP8_LEAST : most;
    float inverse = __fdiv_rn(SL_FP8_LARGEST, most);
    for (int i = 0; i < PACKS; i++) {
        int at = ((int)threadIdx.x + i * (int)blockDim.x) * EACH;
        if (at < cols)
            store_fp8(v[i], inverse, q + row * cols + at);
    }
    if (threadIdx.x == 0)
        scale[row] = __fdiv_rn(most, SL_FP8_LARGEST);
}

template <typename S>
static void launch(struct sl_backend *be, const S &source, int64_t rows, int64_t cols, const struct sl_fp8_rows *to)
{
    int packs = (int)(cols / EACH), each = packs <= MAX_THREADS       ? 1
                                           : packs <= 2 * MAX_THREADS ? 2
                                           : packs <= 4 * MAX_THREADS ? 4
                                                                      : MAX_PACKS;
    int threads = (int)sl_blocks(sl_blocks(packs, each), SL_WARP) * SL_WARP;
    auto kernel = each == 1   ? rows_to_fp8<1, S>
                  : each == 2 ? rows_to_fp8<2, S>
                  : each == 4 ? rows_to_fp8<4, S>
                              : rows_to_fp8<MAX_PACKS, S>;
    if (rows <= 0)
        return;
    kernel<<<(unsigned)rows, threads, 0, be->stream>>>(source, (int)cols, (unsigned char *)to->q, to->scale);
    sl_cuda_launched(be, "rows to fp8");
}

bool sl_fp8_room(struct sl_backend *be, int64_t rows, int64_t cols, struct sl_fp8_rows *ret_rows)
{
    size_t floats = ((size_t)rows * sizeof(float) + 255) / 256 * 256;
    char *p = (char *)sl_cuda_scratch(be, SL_SCRATCH_FP8, floats + (size_t)rows * (size_t)cols);
    if (!p)
        return false;
    ret_rows->scale = (float *)(void *)p;
    ret_rows->q = p + floats;
    return true;
}

/* Rows that cannot be read 16 bytes at a time. */
static __global__ void pack_rows(const bf16 *x, int64_t ld, int64_t rows, int64_t cols, bf16 *y)
{
    int64_t i = (int64_t)blockIdx.x * SLOW_THREADS + threadIdx.x;
    if (i < rows * cols)
        y[i] = x[i / cols * ld + i % cols];
}

void sl_fp8_rows_of(struct sl_backend *be, const bf16 *x, int64_t ldx, int64_t rows, int64_t cols,
                    const struct sl_fp8_rows *to)
{
    launch(be, plain_rows{x, ldx}, rows, cols, to);
}

bool sl_fp8_take(struct sl_backend *be, const bf16 *x, int64_t ldx, int64_t rows, int64_t cols,
                 struct sl_fp8_rows *ret_rows)
{
    if (!sl_fp8_room(be, rows, cols, ret_rows))
        return false;
    if (!sl_aligned(x, ldx, sizeof *x)) {
        bf16 *packed = (bf16 *)sl_cuda_scratch(be, SL_SCRATCH_VALUES, (size_t)(rows * cols) * sizeof *packed);
        if (!packed)
            return false;
        pack_rows<<<sl_blocks(rows * cols, SLOW_THREADS), SLOW_THREADS, 0, be->stream>>>(x, ldx, rows, cols, packed);
        sl_cuda_launched(be, "packing rows");
        x = packed;
        ldx = cols;
    }
    sl_fp8_rows_of(be, x, ldx, rows, cols, ret_rows);
    return true;
}

static __global__ void fp8_values(const unsigned char *q, const float *scale, int64_t all, int64_t cols, bf16 *x)
{
    int64_t i = ((int64_t)blockIdx.x * SLOW_THREADS + threadIdx.x) * EACH;
    if (i >= all) /* cols is a multiple of SL_FP8_MULTIPLE */
        return;
    float s = scale[i / cols];
    sl_pack<__nv_fp8_e4m3, EACH> from = *(const sl_pack<__nv_fp8_e4m3, EACH> *)(q + i);
    sl_pack<bf16, EACH> to;
    for (int j = 0; j < EACH; j++)
        to.v[j] = from_f<bf16>((float)from.v[j] * s);
    *(sl_pack<bf16, EACH> *)(x + i) = to;
}

bool sl_fp8_values(struct sl_backend *be, const unsigned char *a, const float *scale_a, int64_t m,
                   const unsigned char *b, const float *scale_b, int64_t n, int64_t k, const void **ret_a,
                   const void **ret_b)
{
    bf16 *values = (bf16 *)sl_cuda_scratch(be, SL_SCRATCH_VALUES, (size_t)((m + n) * k) * sizeof *values);
    if (!values)
        return false;
    fp8_values<<<sl_blocks(m * k, SLOW_THREADS * EACH), SLOW_THREADS, 0, be->stream>>>(a, scale_a, m * k, k, values);
    fp8_values<<<sl_blocks(n * k, SLOW_THREADS * EACH), SLOW_THREADS, 0, be->stream>>>(b, scale_b, n * k, k,
                                                                                       values + m * k);
    sl_cuda_launched(be, "fp8 multiplied out");
    *ret_a = values;
    *ret_b = values + m * k;
    return true;
}

/* ---- several operations at once */
void sl_cuda_mlp_back(struct sl_backend *be, enum sl_act_kind kind, const sl_act *dy, int64_t ldy, int64_t rows,
                      int cols, const struct sl_weight *down, sl_act *x, sl_act *tmp, const struct sl_weight *up,
                      sl_act *dx, int64_t ldx)
{
    struct sl_fp8_rows q;
    int wide = kind == SL_ACT_SWIGLU ? 2 * cols : cols;
    if (kind == SL_ACT_GELU_TANH && sl_cuda_matmul_back_gelu(be, dy, ldy, rows, down, x, tmp)) {
        sl_cuda_matmul_back<bf16>(be, tmp, cols, rows, up, false, dx, ldx);
        return;
    }
    sl_cuda_matmul_back<bf16>(be, dy, ldy, rows, down, false, tmp, cols);
    if (!up->qt || !sl_aligned(x, cols, sizeof(bf16)) || !sl_aligned(tmp, cols, sizeof(bf16))) {
        sl_cuda_activation_back<bf16>(be, kind, tmp, x, rows, cols, x);
        sl_cuda_matmul_back<bf16>(be, x, wide, rows, up, false, dx, ldx);
    } else if (sl_fp8_room(be, rows, wide, &q)) {
        launch(be, activation_gradient{kind, (const bf16 *)tmp, (const bf16 *)x}, rows, wide, &q);
        sl_fp8_matmul_back(be, &q, rows, up, false, dx, ldx);
    }
}
