/* Bidirectional LSTM layer, torch's equations and layout: gates i, f, g, o; c = f c + i g; h = o tanh(c).
 *
 * saved: for each direction the gates [seqs*steps, 4E] after their functions, then the cells [seqs*steps, E].
 * The input's part of all gates is one product a direction. The recurrence is one cooperative launch for all steps of
 * both directions: a block owns some hidden units of one direction and keeps their recurrent weights in shared memory
 * for the whole launch, as many as fit (the rest comes from L2); the blocks of a direction wait for each other after each step.
 * A warp makes the dot products of one unit. In bf16 mode weights that do not fit in fp32 are rounded to bf16. */
#include "cuda/cuda.cuh"

#define WARPS 16
#define THREADS (WARPS * SL_WARP)
#define UNITS 8 /* hidden units of a block, at least: fewer blocks wait for each other faster */
#define SEQS 4  /* sequences whose sums a warp holds at a time */
#define STATE_BYTES ((size_t)128 << 10) /* of shared memory at most for the vectors that weights are multiplied with */
#define BIAS_ROWS 8

struct lstm_dims {
    int seqs, steps, hidden;
    int units, kept; /* of a block; of them, with weights in shared memory */
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

/* ---- the blocks of a direction, step by step */

/* All that the block wrote is there for who has waited for it. */
static __device__ __forceinline__ void arrive(unsigned *arrived)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1);
    }
}

static __device__ __forceinline__ void wait_for(const unsigned *arrived, unsigned n)
{
    unsigned now;
    if (threadIdx.x == 0)
        do
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
        while (now < n);
    __syncthreads();
}

/* N neighbouring floats that another block wrote in this launch: from L2, the L1 cache may be older. */
template <int N> static __device__ __forceinline__ void load_fresh(const float *p, float out[N])
{
    if constexpr (N % 4 == 0)
        for (int j = 0; j < N; j += 4) {
            float4 v = __ldcg((const float4 *)(p + j));
            out[j] = v.x;
            out[j + 1] = v.y;
            out[j + 2] = v.z;
            out[j + 3] = v.w;
        }
    else
        for (int j = 0; j < N; j++)
            out[j] = __ldcg(p + j);
}

/* The vectors of up to S sequences, ldx apart, to shared memory, n apart. */
template <int V> static __device__ __forceinline__ void stage(const float *x, int64_t ldx, int seqs, int n, float *to)
{
    for (int i = (int)threadIdx.x * V; i < seqs * n; i += THREADS * V) {
        alignas(16) float v[V];
        load_fresh<V>(x + i / n * ldx + i % n, v);
        *(sl_pack<float, V> *)(to + i) = *(sl_pack<float, V> *)v;
    }
}

/* The dot products of R rows of w, `stride` apart, with one vector each of `seqs` sequences; V elements an access. */
template <int R, int S, int V, bool STAGED, typename W>
static __device__ __forceinline__ void dots(const W *w, int64_t stride, const float *x, int64_t ldx, int seqs, int n,
                                            float sum[R][S])
{
    int lane = (int)threadIdx.x % SL_WARP;
    for (int k = lane * V; k < n; k += SL_WARP * V) {
        sl_pack<W, V> a[R];
        for (int r = 0; r < R; r++)
            a[r] = *(const sl_pack<W, V> *)(w + r * stride + k);
        for (int s = 0; s < S; s++) {
            alignas(16) float v[V];
            if (s >= seqs)
                break;
            if constexpr (STAGED)
                *(sl_pack<float, V> *)v = *(const sl_pack<float, V> *)(x + s * ldx + k);
            else
                load_fresh<V>(x + s * ldx + k, v);
            for (int r = 0; r < R; r++)
                for (int j = 0; j < V; j++)
                    sum[r][s] += to_f(a[r].v[j]) * v[j];
        }
    }
    for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++)
            sum[r][s] = warp_sum(sum[r][s]);
}

/* The block's first `kept` units: 4E weights each, from rows at w + (r*gate + unit)*E of R rows a unit. */
template <int R, int V, typename W>
static __device__ void keep_weights(struct lstm_dims d, const W *w, int first, int n_units, W *kept)
{
    int row = 4 / R * d.hidden, n = n_units < d.kept ? n_units : d.kept;
    for (int64_t i = (int64_t)threadIdx.x * V; i < (int64_t)n * R * row; i += THREADS * V) {
        int64_t unit = i / (R * row), r = i / row % R, k = i % row;
        *(sl_pack<W, V> *)(kept + i) = *(const sl_pack<W, V> *)(w + (r * d.hidden + first + unit) * row + k);
    }
}

/* w [2][4E, E] */
template <typename W, int V, int S, bool STAGED>
static __global__ void __launch_bounds__(THREADS, 1)
    forward_all(struct lstm_dims d, const W *w, float *saved, float *y, unsigned *arrived)
{
    extern __shared__ float4 shared[];
    int e = d.hidden, dir = (int)blockIdx.y, first = (int)blockIdx.x * d.units, warp = (int)threadIdx.x / SL_WARP;
    int lane = (int)threadIdx.x % SL_WARP, n_units = e - first < d.units ? e - first : d.units;
    int64_t rows = (int64_t)d.seqs * d.steps, n4 = 4 * (int64_t)e;
    W *kept = (W *)shared;
    float *staged = (float *)(kept + d.kept * n4), *gates = saved + dir * rows * 5 * e, *cells = gates + rows * n4;
    w += dir * n4 * e;
    arrived += dir;
    keep_weights<4, V>(d, w, first, n_units, kept);
    for (int i = 0; i < d.steps; i++) {
        int t = dir ? d.steps - 1 - i : i, before = dir ? t + 1 : t - 1;
        if (i)
            wait_for(arrived, (unsigned)i * gridDim.x);
        for (int s0 = 0; s0 < d.seqs; s0 += S) {
            int seqs = d.seqs - s0 < S ? d.seqs - s0 : S;
            const float *h = y + ((int64_t)s0 * d.steps + before) * 2 * e + dir * e;
            int64_t ldh = (int64_t)d.steps * 2 * e;
            __syncthreads(); /* the weights are there, the last vectors have been read */
            if (i && STAGED) {
                stage<V>(h, ldh, seqs, e, staged);
                h = staged;
                ldh = e;
                __syncthreads();
            }
            for (int u = warp; u < n_units; u += WARPS) {
                int64_t row = (int64_t)(s0 + lane) * d.steps + t, row_before = (int64_t)(s0 + lane) * d.steps + before;
                bool mine = lane < seqs; /* lane s does what follows the sums of sequence s */
                float *g = gates + row * n4 + first + u;
                float in[4] = {}, c = 0, sum[4][S] = {}, all[4] = {};
                if (mine) {
                    for (int r = 0; r < 4; r++)
                        in[r] = g[r * e];
                    c = i ? cells[row_before * e + first + u] : 0.0f;
                }
                if (i && u < d.kept)
                    dots<4, S, V, STAGED>(kept + u * n4, e, h, ldh, seqs, e, sum);
                else if (i)
                    dots<4, S, V, STAGED>(w + (int64_t)(first + u) * e, (int64_t)e * e, h, ldh, seqs, e, sum);
                for (int s = 0; s < S; s++)
                    for (int r = 0; r < 4; r++)
                        all[r] = lane == s ? sum[r][s] : all[r];
                if (!mine)
                    continue;
                float vi = sigmoid1(in[0] + all[0]), vf = sigmoid1(in[1] + all[1]);
                float vg = tanhf(in[2] + all[2]), vo = sigmoid1(in[3] + all[3]);
                c = vi * vg + vf * c;
                y[row * 2 * e + dir * e + first + u] = vo * tanhf(c);
                g[0] = vi;
                g[e] = vf;
                g[2 * e] = vg;
                g[3 * e] = vo;
                cells[row * e + first + u] = c;
            }
        }
        arrive(arrived);
    }
}

/* Backwards: dh = dy + (the next step's dgates) w_hh, then the cell. turned [2][E, 4E] is w_hh transposed; dc
 * [2][seqs, E] goes from step to step. */
template <typename W, int V, int S, bool STAGED>
static __global__ void __launch_bounds__(THREADS, 1)
    backward_all(struct lstm_dims d, const W *turned, const float *saved, const float *dy, float *dgates, float *dc,
                 unsigned *arrived)
{
    extern __shared__ float4 shared[];
    int e = d.hidden, dir = (int)blockIdx.y, first = (int)blockIdx.x * d.units, warp = (int)threadIdx.x / SL_WARP;
    int lane = (int)threadIdx.x % SL_WARP, n_units = e - first < d.units ? e - first : d.units;
    int64_t rows = (int64_t)d.seqs * d.steps, n4 = 4 * (int64_t)e;
    W *kept = (W *)shared;
    float *staged = (float *)(kept + d.kept * n4);
    const float *gates = saved + dir * rows * 5 * e, *cells = gates + rows * n4;
    turned += dir * n4 * e;
    dgates += dir * rows * n4;
    dc += (int64_t)dir * d.seqs * e;
    arrived += dir;
    keep_weights<1, V>(d, turned, first, n_units, kept);
    for (int done = 0; done < d.steps; done++) {
        int i = d.steps - 1 - done, t = dir ? d.steps - 1 - i : i;
        int before = dir ? t + 1 : t - 1, after = dir ? t - 1 : t + 1;
        if (done)
            wait_for(arrived, (unsigned)done * gridDim.x);
        for (int s0 = 0; s0 < d.seqs; s0 += S) {
            int seqs = d.seqs - s0 < S ? d.seqs - s0 : S;
            const float *next = dgates + ((int64_t)s0 * d.steps + after) * n4;
            int64_t ldn = (int64_t)d.steps * n4;
            __syncthreads();
            if (done && STAGED) {
                stage<V>(next, ldn, seqs, (int)n4, staged);
                next = staged;
                ldn = n4;
                __syncthreads();
            }
            for (int u = warp; u < n_units; u += WARPS) {
                int j = first + u;
                int64_t row = (int64_t)(s0 + lane) * d.steps + t, row_before = (int64_t)(s0 + lane) * d.steps + before;
                bool mine = lane < seqs;
                float g[4] = {}, c = 0, c_before = 0, dh = 0, vc = 0, sum[1][S] = {};
                float *dc_j = dc + (int64_t)(s0 + lane) * e + j;
                if (mine) {
                    for (int r = 0; r < 4; r++)
                        g[r] = gates[row * n4 + r * e + j];
                    c = cells[row * e + j];
                    c_before = i ? cells[row_before * e + j] : 0.0f;
                    dh = dy[row * 2 * e + dir * e + j];
                    vc = done ? *dc_j : 0.0f;
                }
                if (done && u < d.kept)
                    dots<1, S, V, STAGED>(kept + u * n4, 0, next, ldn, seqs, (int)n4, sum);
                else if (done)
                    dots<1, S, V, STAGED>(turned + j * n4, 0, next, ldn, seqs, (int)n4, sum);
                for (int s = 0; s < S; s++)
                    dh += lane == s ? sum[0][s] : 0.0f;
                if (!mine)
                    continue;
                float th = tanhf(c), *out = dgates + row * n4 + j;
                vc += dh * g[3] * (1.0f - th * th);
                out[0] = vc * g[2] * g[0] * (1.0f - g[0]);
                out[e] = vc * c_before * g[1] * (1.0f - g[1]);
                out[2 * e] = vc * g[0] * (1.0f - g[2] * g[2]);
                out[3 * e] = dh * th * g[3] * (1.0f - g[3]);
                *dc_j = vc * g[1];
            }
        }
        arrive(arrived);
    }
}

/* ---- weights as the recurrence wants them */
template <typename W> static __global__ void narrow(int64_t n, const float *x, W *y)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = from_f<W>(x[i]);
}

/* turned[dir][E, 4E] = w_hh[dir][4E, E] transposed. */
template <typename W> static __global__ void turn(int e, const float *w_hh, W *turned)
{
    __shared__ float tile[SL_WARP][SL_WARP + 1];
    int64_t n4 = 4 * (int64_t)e, dir = blockIdx.z, r0 = (int64_t)blockIdx.y * SL_WARP, c0 = (int64_t)blockIdx.x * SL_WARP;
    for (int k = (int)threadIdx.y; k < SL_WARP; k += (int)blockDim.y)
        if (r0 + k < n4 && c0 + threadIdx.x < e)
            tile[k][threadIdx.x] = w_hh[(dir * n4 + r0 + k) * e + c0 + threadIdx.x];
    __syncthreads();
    for (int k = (int)threadIdx.y; k < SL_WARP; k += (int)blockDim.y)
        if (c0 + k < e && r0 + threadIdx.x < n4)
            turned[(dir * e + c0 + k) * n4 + r0 + threadIdx.x] = from_f<W>(tile[threadIdx.x][k]);
}

/* How a pass whose vectors have n floats lies on the device. */
struct shape {
    struct lstm_dims d;
    bool half, several, staged; /* weights in bf16; S = SEQS, else 1; vectors in shared memory */
    unsigned blocks;            /* of a direction */
    size_t shared_bytes;
};

static struct shape shape_of(struct sl_backend *be, const struct sl_lstm *l, size_t n)
{
    struct shape s = {};
    int sms = 0, room = 0, most;
    size_t unit = 4 * (size_t)l->hidden, vector = n * sizeof(float), left;
    sl_cuda_failed(be, cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, be->device), "asking for its size");
    sl_cuda_failed(be, cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, be->device),
                   "asking for its shared memory");
    most = sms / 2 > 0 ? sms / 2 : 1;
    s.d = {l->seqs, l->steps, l->hidden, (l->hidden + most - 1) / most, 0};
    if (s.d.units < UNITS)
        s.d.units = UNITS < l->hidden ? UNITS : l->hidden;
    s.blocks = sl_blocks(l->hidden, s.d.units);
    s.several = l->seqs > 1 && SEQS * vector <= STATE_BYTES;
    s.staged = vector <= STATE_BYTES;
    vector = s.staged ? vector * (s.several ? SEQS : 1) : 0;
    left = (size_t)room > vector ? (size_t)room - vector : 0;
    s.half = be->round_lstm && (size_t)s.d.units * unit * sizeof(float) > left;
    left /= unit * (s.half ? sizeof(bf16) : sizeof(float));
    s.d.kept = left < (size_t)s.d.units ? (int)left : s.d.units;
    s.shared_bytes = (size_t)s.d.kept * unit * (s.half ? sizeof(bf16) : sizeof(float)) + vector;
    return s;
}

/* All blocks must be resident at once, since they wait for each other. */
static void launch(struct sl_backend *be, const void *kernel, const struct shape *s, void **args)
{
    if (!sl_cuda_failed(be, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)s->shared_bytes),
                        "shared memory of an LSTM"))
        sl_cuda_failed(be, cudaLaunchCooperativeKernel(kernel, dim3(s->blocks, 2), dim3(THREADS), args, s->shared_bytes, be->stream),
                       "lstm");
}

#define PICK_SEQS(NAME, W, V, s)                                                                               \
    ((s)->several  ? (const void *)NAME<W, V, SEQS, true>                                                      \
     : (s)->staged ? (const void *)NAME<W, V, 1, true>                                                         \
                   : (const void *)NAME<W, V, 1, false>)
#define PICK(NAME, s)                                                                                          \
    ((s)->half ? ((s)->d.hidden % 8 ? PICK_SEQS(NAME, bf16, 1, s) : PICK_SEQS(NAME, bf16, 8, s))               \
               : ((s)->d.hidden % 4 ? PICK_SEQS(NAME, float, 1, s) : PICK_SEQS(NAME, float, 4, s)))

#define ARRIVED_BYTES 256 /* two counters, before what else is in the scratch */

/* Room for the counters, set to 0, and for bytes behind them. */
static char *start(struct sl_backend *be, size_t bytes)
{
    char *p = (char *)sl_cuda_scratch(be, SL_SCRATCH_OP, ARRIVED_BYTES + bytes);
    return p && !sl_cuda_failed(be, cudaMemsetAsync(p, 0, ARRIVED_BYTES, be->stream), "lstm") ? p : NULL;
}

void sl_cuda_lstm(struct sl_backend *be, const struct sl_lstm *l, const float *x, float *y)
{
    int e = l->hidden, n4 = 4 * e, rows = l->seqs * l->steps;
    struct shape s = shape_of(be, l, (size_t)e);
    int64_t n = 2 * (int64_t)e * n4;
    char *scratch = start(be, s.half ? (size_t)n * sizeof(bf16) : 0);
    if (!scratch)
        return;
    const void *w = l->w_hh;
    unsigned *arrived = (unsigned *)(void *)scratch;
    if (s.half) {
        w = scratch + ARRIVED_BYTES;
        narrow<bf16><<<sl_blocks(n, 256), 256, 0, be->stream>>>(n, l->w_hh, (bf16 *)(void *)(scratch + ARRIVED_BYTES));
    }
    start_gates<<<sl_blocks(2 * (int64_t)rows * n4, 256), 256, 0, be->stream>>>(s.d, l->b_ih, l->b_hh, l->saved);
    for (int dir = 0; dir < 2; dir++)
        sl_cuda_gemm_f32(be, false, true, rows, n4, l->in, 1.0f, x, l->in, l->w_ih + (int64_t)dir * n4 * l->in, l->in,
                         1.0f, l->saved + (int64_t)dir * rows * 5 * e, n4);
    void *args[] = {&s.d, &w, (void *)&l->saved, &y, &arrived};
    launch(be, PICK(forward_all, &s), &s, args);
    sl_cuda_launched(be, "lstm");
}

/* Adds the column sums of each direction's x [rows, n] to both biases' gradients [2][n]: BIAS_ROWS groups of rows, their
 * sums in order. */
static __global__ void bias_gradient(const float *x, int rows, int n, float *g1, float *g2)
{
    __shared__ float part[BIAS_ROWS][SL_WARP];
    int c = (int)(blockIdx.x * SL_WARP + threadIdx.x), dir = (int)blockIdx.y;
    float sum = 0;
    for (int r = (int)threadIdx.y; r < rows && c < n; r += BIAS_ROWS)
        sum += x[((int64_t)dir * rows + r) * n + c];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= n)
        return;
    for (int i = 1; i < BIAS_ROWS; i++)
        sum += part[i][threadIdx.x];
    g1[dir * n + c] += sum;
    g2[dir * n + c] += sum;
}

void sl_cuda_lstm_back(struct sl_backend *be, const struct sl_lstm *l, const float *x, const float *y, const float *dy,
                       float *dx, const struct sl_lstm_grad *grad)
{
    int e = l->hidden, n4 = 4 * e, rows = l->seqs * l->steps;
    struct shape s = shape_of(be, l, (size_t)n4);
    size_t gates = 2 * (size_t)rows * (size_t)n4, state = 2 * (size_t)l->seqs * (size_t)e, n = 2 * (size_t)e * (size_t)n4;
    char *scratch = start(be, n * (s.half ? sizeof(bf16) : sizeof(float)) + (gates + state) * sizeof(float));
    if (!scratch)
        return;
    unsigned *arrived = (unsigned *)(void *)scratch;
    float *dgates = (float *)(void *)(scratch + ARRIVED_BYTES), *dc = dgates + gates;
    void *turned = dc + state;
    dim3 tiles(sl_blocks(e, SL_WARP), sl_blocks(n4, SL_WARP), 2), threads(SL_WARP, 8);
    if (s.half)
        turn<bf16><<<tiles, threads, 0, be->stream>>>(e, l->w_hh, (bf16 *)turned);
    else
        turn<float><<<tiles, threads, 0, be->stream>>>(e, l->w_hh, (float *)turned);
    void *args[] = {&s.d, &turned, (void *)&l->saved, &dy, &dgates, &dc, &arrived};
    launch(be, PICK(backward_all, &s), &s, args);
    for (int dir = 0; dir < 2; dir++) {
        const float *dg = dgates + (int64_t)dir * rows * n4;
        int half = dir ? e : 0;
        sl_cuda_gemm_f32(be, true, false, n4, l->in, rows, 1.0f, dg, n4, x, l->in, 1.0f,
                         grad->w_ih + (int64_t)dir * n4 * l->in, l->in);
        /* The state before a step is y of the step before it in the direction's order; before the first it is 0. */
        for (int q = 0; q < l->seqs && l->steps > 1; q++) {
            int64_t row = (int64_t)q * l->steps;
            sl_cuda_gemm_f32(be, true, false, n4, e, l->steps - 1, 1.0f, dg + (row + (dir ? 0 : 1)) * n4, n4,
                             y + (row + (dir ? 1 : 0)) * 2 * e + half, 2 * e, 1.0f, grad->w_hh + (int64_t)dir * n4 * e,
                             e);
        }
        if (dx)
            sl_cuda_gemm_f32(be, false, false, rows, l->in, n4, 1.0f, dg, n4, l->w_ih + (int64_t)dir * n4 * l->in,
                             l->in, dir ? 1.0f : 0.0f, dx, l->in);
    }
    bias_gradient<<<dim3(sl_blocks(n4, SL_WARP), 2), dim3(SL_WARP, BIAS_ROWS), 0, be->stream>>>(dgates, rows, n4, grad->b_ih,
                                                                                             grad->b_hh);
    sl_cuda_launched(be, "lstm_back");
}
