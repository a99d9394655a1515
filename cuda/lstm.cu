/* Bidirectional LSTM layer, torch's equations and layout: gates i, f, g, o; c = f c + i g; h = o tanh(c).
 *
 * saved: for each direction the gates [seqs*steps, 4E] after their functions, then the cells [seqs*steps, E].
 * The input's part of all gates is one product a direction. Then one launch a step does both directions: a warp
 * owns one hidden unit, so that the recurrent weights of its gates are read once for all sequences. */
#include "cuda/cuda.cuh"

#define WARPS 4
#define SEQS 4 /* sequences whose sums a warp holds at a time */

struct lstm_dims {
    int seqs, steps, hidden;
};

size_t sl_cuda_lstm_saved(const struct sl_lstm *l)
{
    return (size_t)2 * (size_t)l->seqs * (size_t)l->steps * 5 * (size_t)l->hidden;
}

static __device__ __forceinline__ float sigmoid1(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* gates[dir] starts as b_ih + b_hh. */
static __global__ void start_gates(struct lstm_dims d, const float *b_ih, const float *b_hh, float *saved)
{
    int64_t n4 = 4 * (int64_t)d.hidden, rows = (int64_t)d.seqs * d.steps, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < 2 * rows * n4) {
        int64_t dir = i / (rows * n4), j = i % n4;
        saved[dir * rows * 5 * d.hidden + i % (rows * n4)] = b_ih[dir * n4 + j] + b_hh[dir * n4 + j];
    }
}

/* The dot products of R rows of w, `stride` apart, with one vector each of S sequences. */
template <int R, int S>
static __device__ __forceinline__ void dots(const float *w, int64_t stride, const float *x, int64_t ldx, int seqs,
                                            int n, float sum[R][S])
{
    int lane = (int)threadIdx.x % SL_WARP;
    for (int k = lane; k < n; k += SL_WARP) {
        float a[R];
        for (int r = 0; r < R; r++)
            a[r] = w[r * stride + k];
        for (int s = 0; s < S; s++)
            if (s < seqs) {
                float v = x[s * ldx + k];
                for (int r = 0; r < R; r++)
                    sum[r][s] += a[r] * v;
            }
    }
    for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++)
            sum[r][s] = warp_sum(sum[r][s]);
}

/* Step i of both directions (blockIdx.y), hidden unit j. */
static __global__ void forward_step(struct lstm_dims d, int i, const float *w_hh, float *saved, float *y)
{
    int e = d.hidden, dir = (int)blockIdx.y, j = (int)(blockIdx.x * WARPS + threadIdx.x / SL_WARP);
    if (j >= e)
        return;
    int t = dir ? d.steps - 1 - i : i, before = dir ? t + 1 : t - 1, lane = (int)threadIdx.x % SL_WARP;
    int64_t rows = (int64_t)d.seqs * d.steps, n4 = 4 * (int64_t)e;
    float *gates = saved + dir * rows * 5 * e, *cells = gates + rows * n4;
    for (int s0 = 0; s0 < d.seqs; s0 += SEQS) {
        int seqs = d.seqs - s0 < SEQS ? d.seqs - s0 : SEQS;
        float sum[4][SEQS] = {};
        if (i)
            dots<4, SEQS>(w_hh + (dir * n4 + j) * e, (int64_t)e * e, y + ((int64_t)s0 * d.steps + before) * 2 * e + dir * e,
                          (int64_t)d.steps * 2 * e, seqs, e, sum);
        for (int s = 0; s < SEQS; s++) {
            if (s >= seqs || lane != s)
                continue;
            int64_t row = (int64_t)(s0 + s) * d.steps + t, row_before = (int64_t)(s0 + s) * d.steps + before;
            float *g = gates + row * n4 + j;
            float vi = sigmoid1(g[0] + sum[0][s]), vf = sigmoid1(g[e] + sum[1][s]);
            float vg = tanhf(g[2 * e] + sum[2][s]), vo = sigmoid1(g[3 * e] + sum[3][s]);
            float c = vi * vg + (i ? vf * cells[row_before * e + j] : 0.0f);
            g[0] = vi;
            g[e] = vf;
            g[2 * e] = vg;
            g[3 * e] = vo;
            cells[row * e + j] = c;
            y[row * 2 * e + dir * e + j] = vo * tanhf(c);
        }
    }
}

void sl_cuda_lstm(struct sl_backend *be, const struct sl_lstm *l, const float *x, float *y)
{
    struct lstm_dims d = {l->seqs, l->steps, l->hidden};
    int e = l->hidden, n4 = 4 * e, rows = l->seqs * l->steps;
    start_gates<<<sl_blocks(2 * (int64_t)rows * n4, 256), 256, 0, be->stream>>>(d, l->b_ih, l->b_hh, l->saved);
    for (int dir = 0; dir < 2; dir++)
        sl_cuda_gemm_f32(be, false, true, rows, n4, l->in, 1.0f, x, l->in, l->w_ih + (int64_t)dir * n4 * l->in, l->in,
                         1.0f, l->saved + (int64_t)dir * rows * 5 * e, n4);
    dim3 grid(sl_blocks(e, WARPS), 2);
    for (int i = 0; i < l->steps; i++)
        forward_step<<<grid, WARPS * SL_WARP, 0, be->stream>>>(d, i, l->w_hh, l->saved, y);
    sl_cuda_launched(be, "lstm");
}

/* turned[dir][E, 4E] = w_hh[dir][4E, E] transposed. */
static __global__ void turn(int e, const float *w_hh, float *turned)
{
    __shared__ float tile[SL_WARP][SL_WARP + 1];
    int64_t n4 = 4 * (int64_t)e, dir = blockIdx.z, r0 = (int64_t)blockIdx.y * SL_WARP, c0 = (int64_t)blockIdx.x * SL_WARP;
    for (int k = (int)threadIdx.y; k < SL_WARP; k += (int)blockDim.y)
        if (r0 + k < n4 && c0 + threadIdx.x < e)
            tile[k][threadIdx.x] = w_hh[(dir * n4 + r0 + k) * e + c0 + threadIdx.x];
    __syncthreads();
    for (int k = (int)threadIdx.y; k < SL_WARP; k += (int)blockDim.y)
        if (c0 + k < e && r0 + threadIdx.x < n4)
            turned[(dir * e + c0 + k) * n4 + r0 + threadIdx.x] = tile[threadIdx.x][k];
}

/* Step i backwards: dh = dy + (the next step's dgates) w_hh, then the cell. dc [2][seqs, E] goes from step to step. */
static __global__ void backward_step(struct lstm_dims d, int i, const float *turned, const float *saved,
                                     const float *dy, float *dgates, float *dc)
{
    int e = d.hidden, dir = (int)blockIdx.y, j = (int)(blockIdx.x * WARPS + threadIdx.x / SL_WARP);
    if (j >= e)
        return;
    int t = dir ? d.steps - 1 - i : i, before = dir ? t + 1 : t - 1, after = dir ? t - 1 : t + 1;
    int lane = (int)threadIdx.x % SL_WARP;
    int64_t rows = (int64_t)d.seqs * d.steps, n4 = 4 * (int64_t)e;
    const float *gates = saved + dir * rows * 5 * e, *cells = gates + rows * n4;
    bool last = i == d.steps - 1;
    dgates += dir * rows * n4;
    dc += (int64_t)dir * d.seqs * e;
    for (int s0 = 0; s0 < d.seqs; s0 += SEQS) {
        int seqs = d.seqs - s0 < SEQS ? d.seqs - s0 : SEQS;
        float sum[1][SEQS] = {};
        if (!last)
            dots<1, SEQS>(turned + ((int64_t)dir * e + j) * n4, 0, dgates + ((int64_t)s0 * d.steps + after) * n4,
                          (int64_t)d.steps * n4, seqs, (int)n4, sum);
        for (int s = 0; s < SEQS; s++) {
            if (s >= seqs || lane != s)
                continue;
            int64_t row = (int64_t)(s0 + s) * d.steps + t, row_before = (int64_t)(s0 + s) * d.steps + before;
            const float *g = gates + row * n4 + j;
            float gi = g[0], gf = g[e], gg = g[2 * e], go = g[3 * e], th = tanhf(cells[row * e + j]);
            float dh = dy[row * 2 * e + dir * e + j] + sum[0][s];
            float *dc_j = dc + (int64_t)(s0 + s) * e + j;
            float vc = (last ? 0.0f : *dc_j) + dh * go * (1.0f - th * th);
            float *out = dgates + row * n4 + j;
            out[0] = vc * gg * gi * (1.0f - gi);
            out[e] = i ? vc * cells[row_before * e + j] * gf * (1.0f - gf) : 0.0f;
            out[2 * e] = vc * gi * (1.0f - gg * gg);
            out[3 * e] = dh * th * go * (1.0f - go);
            *dc_j = vc * gf;
        }
    }
}

/* Adds the column sums of x [rows, n] to both biases' gradients. */
static __global__ void bias_gradient(const float *x, int rows, int n, float *g1, float *g2)
{
    int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= n)
        return;
    float sum = 0;
    for (int r = 0; r < rows; r++)
        sum += x[(int64_t)r * n + c];
    g1[c] += sum;
    g2[c] += sum;
}

void sl_cuda_lstm_back(struct sl_backend *be, const struct sl_lstm *l, const float *x, const float *y, const float *dy,
                       float *dx, const struct sl_lstm_grad *grad)
{
    struct lstm_dims d = {l->seqs, l->steps, l->hidden};
    int e = l->hidden, n4 = 4 * e, rows = l->seqs * l->steps;
    size_t gates = 2 * (size_t)rows * (size_t)n4, weights = 2 * (size_t)e * (size_t)n4,
           state = 2 * (size_t)l->seqs * (size_t)e;
    float *dgates = (float *)sl_cuda_scratch(be, SL_SCRATCH_OP, (gates + weights + state) * sizeof *dgates);
    if (!dgates)
        return;
    float *turned = dgates + gates, *dc = turned + weights;
    dim3 tiles(sl_blocks(e, SL_WARP), sl_blocks(n4, SL_WARP), 2), grid(sl_blocks(e, WARPS), 2);
    turn<<<tiles, dim3(SL_WARP, 8), 0, be->stream>>>(e, l->w_hh, turned);
    for (int i = l->steps - 1; i >= 0; i--)
        backward_step<<<grid, WARPS * SL_WARP, 0, be->stream>>>(d, i, turned, l->saved, dy, dgates, dc);
    for (int dir = 0; dir < 2; dir++) {
        const float *dg = dgates + (int64_t)dir * rows * n4;
        int half = dir ? e : 0;
        sl_cuda_gemm_f32(be, true, false, n4, l->in, rows, 1.0f, dg, n4, x, l->in, 1.0f,
                         grad->w_ih + (int64_t)dir * n4 * l->in, l->in);
        /* The state before a step is y of the step before it in the direction's order; before the first it is 0. */
        for (int s = 0; s < l->seqs && l->steps > 1; s++) {
            int64_t row = (int64_t)s * l->steps;
            sl_cuda_gemm_f32(be, true, false, n4, e, l->steps - 1, 1.0f, dg + (row + (dir ? 0 : 1)) * n4, n4,
                             y + (row + (dir ? 1 : 0)) * 2 * e + half, 2 * e, 1.0f, grad->w_hh + (int64_t)dir * n4 * e,
                             e);
        }
        bias_gradient<<<sl_blocks(n4, 128), 128, 0, be->stream>>>(dg, rows, n4, grad->b_ih + (int64_t)dir * n4,
                                                                  grad->b_hh + (int64_t)dir * n4);
        if (dx)
            sl_cuda_gemm_f32(be, false, false, rows, l->in, n4, 1.0f, dg, n4, l->w_ih + (int64_t)dir * n4 * l->in,
                             l->in, dir ? 1.0f : 0.0f, dx, l->in);
    }
    sl_cuda_launched(be, "lstm_back");
}
