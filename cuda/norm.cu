/* RMSNorm and LayerNorm, forward and backward to the input, of whole rows and of heads.
 *
 * A team of 1, 2, 4 or 8 warps has a row in its registers, 16 bytes an access; rows that are too long or not
 * aligned go through a plain loop. */
#include "cuda/cuda.cuh"

#define BLOCK_WARPS 8
#define PACKS 4 /* 16-byte accesses that a lane holds */
#define LOOP_THREADS 256

/* Sum over a team of W warps; every lane gets it. shared has room for BLOCK_WARPS floats. */
template <int W> static __device__ __forceinline__ float team_sum(float x, float *shared)
{
    x = warp_sum(x);
    if (W == 1)
        return x;
    int warp = (int)threadIdx.x / SL_WARP, first = warp / W * W;
    __syncthreads(); /* the last sum has been read */
    if (threadIdx.x % SL_WARP == 0)
        shared[warp] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < W; i++)
        sum += shared[first + i];
    return sum;
}

/* One row's elements over a team: lane's pack i is pack (i * team lanes + lane) of the row. */
template <typename T, int W> struct team_row {
    static constexpr int N = sl_wide<T>;
    float v[PACKS][N];
    __device__ void load(const T *row, int cols, int lane)
    {
        for (int i = 0; i < PACKS; i++) {
            int c = (i * W * SL_WARP + lane) * N;
            if (c < cols) {
                sl_pack<T, N> p = *(const sl_pack<T, N> *)(row + c);
                for (int j = 0; j < N; j++)
                    v[i][j] = to_f(p.v[j]);
            } else {
                for (int j = 0; j < N; j++)
                    v[i][j] = 0;
            }
        }
    }
};

/* N neighbouring fp32 weights. */
template <int N> static __device__ __forceinline__ void load_weights(const float *w, float out[N])
{
    for (int j = 0; j < N; j += 4)
        *(sl_pack<float, 4> *)(out + j) = *(const sl_pack<float, 4> *)(w + j);
}

template <typename T, int W>
static __global__ void __launch_bounds__(BLOCK_WARPS *SL_WARP)
    norm_rows(const T *x, int64_t rows, int cols, const float *w, const float *b, float eps, bool rms, T *y,
              float *mean, float *rstd)
{
    constexpr int N = sl_wide<T>;
    __shared__ float shared[BLOCK_WARPS];
    int lane = (int)threadIdx.x % (W * SL_WARP);
    int64_t r = (int64_t)blockIdx.x * (BLOCK_WARPS / W) + threadIdx.x / (W * SL_WARP);
    bool mine = r < rows; /* the others only keep the barriers company */
    team_row<T, W> row;
    row.load(x + (mine ? r : 0) * cols, cols, lane);
    float m = 0, s = 0;
    if (!rms) {
        for (int i = 0; i < PACKS; i++)
            for (int j = 0; j < N; j++)
                s += row.v[i][j];
        m = team_sum<W>(s, shared) / (float)cols;
        s = 0;
    }
    for (int i = 0; i < PACKS; i++)
        if ((i * W * SL_WARP + lane) * N < cols)
            for (int j = 0; j < N; j++)
                s += (row.v[i][j] - m) * (row.v[i][j] - m);
    float rs = 1.0f / sqrtf(team_sum<W>(s, shared) / (float)cols + eps);
    if (!mine)
        return;
    for (int i = 0; i < PACKS; i++) {
        int c = (i * W * SL_WARP + lane) * N;
        if (c >= cols)
            break;
        sl_pack<T, N> out;
        alignas(16) float wc[N], bc[N] = {};
        load_weights<N>(w + c, wc);
        if (b)
            load_weights<N>(b + c, bc);
        for (int j = 0; j < N; j++)
            out.v[j] = from_f<T>((row.v[i][j] - m) * rs * wc[j] + bc[j]);
        *(sl_pack<T, N> *)(y + r * cols + c) = out;
    }
    if (lane == 0) {
        if (!rms)
            mean[r] = m;
        rstd[r] = rs;
    }
}

/* With xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)); RMSNorm has no mean(g). */
template <typename T, int W>
static __global__ void __launch_bounds__(BLOCK_WARPS *SL_WARP)
    back_rows(const T *dy, const T *x, const float *mean, const float *rstd, int64_t rows, int cols, const float *w,
              bool rms, bool accumulate, T *dx)
{
    constexpr int N = sl_wide<T>;
    __shared__ float shared[BLOCK_WARPS];
    int lane = (int)threadIdx.x % (W * SL_WARP);
    int64_t r = (int64_t)blockIdx.x * (BLOCK_WARPS / W) + threadIdx.x / (W * SL_WARP);
    bool mine = r < rows;
    int64_t at = (mine ? r : 0) * cols;
    float m = rms ? 0 : mean[mine ? r : 0], rs = rstd[mine ? r : 0], sg = 0, sgx = 0;
    team_row<T, W> hat, g;
    hat.load(x + at, cols, lane);
    g.load(dy + at, cols, lane);
    for (int i = 0; i < PACKS; i++) {
        int c = (i * W * SL_WARP + lane) * N;
        alignas(16) float wc[N];
        if (c >= cols)
            break;
        load_weights<N>(w + c, wc);
        for (int j = 0; j < N; j++) {
            hat.v[i][j] = (hat.v[i][j] - m) * rs;
            g.v[i][j] *= wc[j];
            sg += g.v[i][j];
            sgx += g.v[i][j] * hat.v[i][j];
        }
    }
    sg = rms ? 0 : team_sum<W>(sg, shared) / (float)cols;
    sgx = team_sum<W>(sgx, shared) / (float)cols;
    for (int i = 0; i < PACKS && mine; i++) {
        int c = (i * W * SL_WARP + lane) * N;
        if (c >= cols)
            break;
        sl_pack<T, N> out;
        if (accumulate)
            out = *(const sl_pack<T, N> *)(dx + at + c);
        for (int j = 0; j < N; j++) {
            float d = rs * (g.v[i][j] - sg - hat.v[i][j] * sgx);
            out.v[j] = from_f<T>(accumulate ? to_f(out.v[j]) + d : d);
        }
        *(sl_pack<T, N> *)(dx + at + c) = out;
    }
}

/* ---- any width, any alignment: one block a row */
template <typename T>
static __global__ void norm_loop(const T *x, int cols, const float *w, const float *b, float eps, bool rms, T *y,
                                 float *mean, float *rstd)
{
    __shared__ float shared[BLOCK_WARPS];
    int64_t r = blockIdx.x, at = r * cols;
    float m = 0, s = 0;
    if (!rms) {
        for (int c = (int)threadIdx.x; c < cols; c += LOOP_THREADS)
            s += to_f(x[at + c]);
        m = team_sum<BLOCK_WARPS>(s, shared) / (float)cols;
        s = 0;
    }
    for (int c = (int)threadIdx.x; c < cols; c += LOOP_THREADS)
        s += (to_f(x[at + c]) - m) * (to_f(x[at + c]) - m);
    float rs = 1.0f / sqrtf(team_sum<BLOCK_WARPS>(s, shared) / (float)cols + eps);
    for (int c = (int)threadIdx.x; c < cols; c += LOOP_THREADS)
        y[at + c] = from_f<T>((to_f(x[at + c]) - m) * rs * w[c] + (b ? b[c] : 0.0f));
    if (threadIdx.x == 0) {
        if (!rms)
            mean[r] = m;
        rstd[r] = rs;
    }
}

template <typename T>
static __global__ void back_loop(const T *dy, const T *x, const float *mean, const float *rstd, int cols,
                                 const float *w, bool rms, bool accumulate, T *dx)
{
    __shared__ float shared[BLOCK_WARPS];
    int64_t r = blockIdx.x, at = r * cols;
    float m = rms ? 0 : mean[r], rs = rstd[r], sg = 0, sgx = 0;
    for (int c = (int)threadIdx.x; c < cols; c += LOOP_THREADS) {
        float g = to_f(dy[at + c]) * w[c];
        sg += g;
        sgx += g * (to_f(x[at + c]) - m) * rs;
    }
    sg = rms ? 0 : team_sum<BLOCK_WARPS>(sg, shared) / (float)cols;
    sgx = team_sum<BLOCK_WARPS>(sgx, shared) / (float)cols;
    for (int c = (int)threadIdx.x; c < cols; c += LOOP_THREADS) {
        float d = rs * (to_f(dy[at + c]) * w[c] - sg - (to_f(x[at + c]) - m) * rs * sgx);
        dx[at + c] = from_f<T>(accumulate ? to_f(dx[at + c]) + d : d);
    }
}

/* Warps of a team that hold a row of cols; 0: the loop. */
template <typename T> static int team_for(int cols, bool aligned)
{
    int lane = PACKS * sl_wide<T> * SL_WARP;
    if (!aligned || cols % sl_wide<T>)
        return 0;
    return cols <= lane ? 1 : cols <= 2 * lane ? 2 : cols <= 4 * lane ? 4 : cols <= 8 * lane ? 8 : 0;
}

template <typename T>
void sl_cuda_norm(struct sl_backend *be, const sl_act *x, int64_t rows, int cols, const struct sl_weight *w,
                  const struct sl_weight *b, float eps, bool rms, sl_act *y, float *mean, float *rstd)
{
    if (rows <= 0)
        return;
    const T *in = (const T *)x;
    const float *bias = b && !rms ? b->f32 : NULL;
    int team = team_for<T>(cols, sl_aligned(x, cols, sizeof(T)) && sl_aligned(y, cols, sizeof(T)));
    unsigned threads = BLOCK_WARPS * SL_WARP;
#define GO(W)                                                                                                      \
    norm_rows<T, W><<<sl_blocks(rows, BLOCK_WARPS / W), threads, 0, be->stream>>>(in, rows, cols, w->f32, bias, eps, \
                                                                                  rms, (T *)y, mean, rstd)
    if (team == 1)
        GO(1);
    else if (team == 2)
        GO(2);
    else if (team == 4)
        GO(4);
    else if (team == 8)
        GO(8);
    else
        norm_loop<T><<<(unsigned)rows, LOOP_THREADS, 0, be->stream>>>(in, cols, w->f32, bias, eps, rms, (T *)y, mean,
                                                                      rstd);
#undef GO
    sl_cuda_launched(be, "norm");
}

template <typename T>
void sl_cuda_norm_back(struct sl_backend *be, const sl_act *dy, const sl_act *x, const float *mean, const float *rstd,
                       int64_t rows, int cols, const struct sl_weight *w, bool rms, bool accumulate, sl_act *dx)
{
    if (rows <= 0)
        return;
    const T *d = (const T *)dy, *in = (const T *)x;
    int team = team_for<T>(cols, sl_aligned(x, cols, sizeof(T)) && sl_aligned(dy, cols, sizeof(T)) &&
                                     sl_aligned(dx, cols, sizeof(T)));
    unsigned threads = BLOCK_WARPS * SL_WARP;
#define GO(W)                                                                                                  \
    back_rows<T, W><<<sl_blocks(rows, BLOCK_WARPS / W), threads, 0, be->stream>>>(d, in, mean, rstd, rows, cols, \
                                                                                  w->f32, rms, accumulate, (T *)dx)
    if (team == 1)
        GO(1);
    else if (team == 2)
        GO(2);
    else if (team == 4)
        GO(4);
    else if (team == 8)
        GO(8);
    else
        back_loop<T><<<(unsigned)rows, LOOP_THREADS, 0, be->stream>>>(d, in, mean, rstd, cols, w->f32, rms,
                                                                      accumulate, (T *)dx);
#undef GO
    sl_cuda_launched(be, "norm_back");
}

/* ---- heads: one warp each */
template <typename T>
static __global__ void head_rows(const T *x, int64_t ldx, int64_t rows, int heads, int dim, const float *w, float eps,
                                 T *y, int64_t ldy, float *rstd)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK_WARPS + threadIdx.x / SL_WARP;
    int lane = (int)threadIdx.x % SL_WARP;
    if (i >= rows * heads)
        return;
    const T *from = x + i / heads * ldx + i % heads * dim;
    T *to = y + i / heads * ldy + i % heads * dim;
    float s = 0;
    for (int c = lane; c < dim; c += SL_WARP)
        s += to_f(from[c]) * to_f(from[c]);
    float rs = 1.0f / sqrtf(warp_sum(s) / (float)dim + eps);
    for (int c = lane; c < dim; c += SL_WARP)
        to[c] = from_f<T>(to_f(from[c]) * rs * w[c]);
    if (lane == 0)
        rstd[i] = rs;
}

template <typename T>
static __global__ void head_back_rows(const T *dy, int64_t lddy, const T *x, int64_t ldx, const float *rstd,
                                      int64_t rows, int heads, int dim, const float *w, T *dx, int64_t lddx)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK_WARPS + threadIdx.x / SL_WARP;
    int lane = (int)threadIdx.x % SL_WARP;
    if (i >= rows * heads)
        return;
    const T *in = x + i / heads * ldx + i % heads * dim, *d = dy + i / heads * lddy + i % heads * dim;
    T *to = dx + i / heads * lddx + i % heads * dim;
    float rs = rstd[i], s = 0;
    for (int c = lane; c < dim; c += SL_WARP)
        s += to_f(d[c]) * w[c] * to_f(in[c]) * rs;
    s = warp_sum(s) / (float)dim;
    for (int c = lane; c < dim; c += SL_WARP)
        to[c] = from_f<T>(rs * (to_f(d[c]) * w[c] - to_f(in[c]) * rs * s));
}

template <typename T>
void sl_cuda_head_norm(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, int heads, int head_dim,
                       const struct sl_weight *w, float eps, sl_act *y, int64_t ldy, float *rstd)
{
    if (rows <= 0)
        return;
    head_rows<T><<<sl_blocks(rows * heads, BLOCK_WARPS), BLOCK_WARPS * SL_WARP, 0, be->stream>>>(
        (const T *)x, ldx, rows, heads, head_dim, w->f32, eps, (T *)y, ldy, rstd);
    sl_cuda_launched(be, "head_norm");
}

template <typename T>
void sl_cuda_head_norm_back(struct sl_backend *be, const sl_act *dy, int64_t lddy, const sl_act *x, int64_t ldx,
                            const float *rstd, int64_t rows, int heads, int head_dim, const struct sl_weight *w,
                            sl_act *dx, int64_t lddx)
{
    if (rows <= 0)
        return;
    head_back_rows<T><<<sl_blocks(rows * heads, BLOCK_WARPS), BLOCK_WARPS * SL_WARP, 0, be->stream>>>(
        (const T *)dy, lddy, (const T *)x, ldx, rstd, rows, heads, head_dim, w->f32, (T *)dx, lddx);
    sl_cuda_launched(be, "head_norm_back");
}

#define EACH(T)                                                                                                        \
    template void sl_cuda_norm<T>(struct sl_backend *, const sl_act *, int64_t, int, const struct sl_weight *,         \
                                  const struct sl_weight *, float, bool, sl_act *, float *, float *);                  \
    template void sl_cuda_norm_back<T>(struct sl_backend *, const sl_act *, const sl_act *, const float *,             \
                                       const float *, int64_t, int, const struct sl_weight *, bool, bool, sl_act *);   \
    template void sl_cuda_head_norm<T>(struct sl_backend *, const sl_act *, int64_t, int64_t, int, int,                \
                                       const struct sl_weight *, float, sl_act *, int64_t, float *);                   \
    template void sl_cuda_head_norm_back<T>(struct sl_backend *, const sl_act *, int64_t, const sl_act *, int64_t,     \
                                            const float *, int64_t, int, int, const struct sl_weight *, sl_act *, int64_t);
EACH(float)
EACH(bf16)
