/* Attention: which kernels, and plain ones for any type and head size. bf16 with common head
 * sizes goes to the tensor cores (attention_forward.cu, attention_back.cu).
 *
 * Backward is the recomputation of Dao 2023: P = exp(scale q.k - lse), D = rowsum(dO o), dS = P (dO.v - D) scale;
 * dq = dS k, dk = dS^T q, dv = P^T dO. dq and dk, dv come from different kernels, each computing P and dS anew, so
 * that nothing is summed by more than one block. */
#include "cuda/attention.cuh"

#define ADD_BLOCKS 528 /* four on each multiprocessor of a large GPU */
#define WARPS 4
#define LANE_DIMS (ATT_MAX_DIM / SL_WARP)

/* ---- plain kernels: a warp a row, or a key */
template <typename T>
static __device__ __forceinline__ float dot(const float *x, const T *y, int n)
{
    float s = 0;
    for (int c = 0; c < n; c++)
        s += x[c] * to_f(y[c]);
    return s;
}

template <typename T>
static __global__ void __launch_bounds__(WARPS *SL_WARP)
    plain_forward(struct att a, const struct att_tile *tiles, struct att_in<T> in, T *o, int64_t ldo, float *lse)
{
    __shared__ float query[WARPS][ATT_MAX_DIM];
    struct att_tile s = tiles[blockIdx.x];
    if (!s.q_len)
        return;
    int kv_head = (int)blockIdx.y, warp = (int)threadIdx.x / SL_WARP, lane = (int)threadIdx.x % SL_WARP, d = a.dim;
    int end = s.q_len * a.group < s.r0 + ATT_ROWS ? s.q_len * a.group : s.r0 + ATT_ROWS;
    float *qr = query[warp];
    for (int r = s.r0 + warp; r < end; r += WARPS) {
        int at = s.q_start + r / a.group, head = kv_head * a.group + r % a.group;
        int seen = s.prefix_len + a.visible[at];
        float m = -INFINITY, sum = 0, acc[LANE_DIMS] = {};
        __syncwarp();
        for (int c = lane; c < d; c += SL_WARP)
            qr[c] = a.scale * to_f(in.q[at * in.ldq + (int64_t)head * d + c]);
        __syncwarp();
        for (int j0 = 0; j0 < seen; j0 += SL_WARP) {
            int j = j0 + lane, n = seen - j0 < SL_WARP ? seen - j0 : SL_WARP;
            float x = j < seen ? dot(qr, in.k + key_row(s, j) * in.ldk + (int64_t)kv_head * d, d) : -INFINITY;
            float top = fmaxf(m, warp_max(x)), old = expf(m - top), p = j < seen ? expf(x - top) : 0;
            sum = sum * old + warp_sum(p);
            for (int i = 0; i < LANE_DIMS; i++)
                acc[i] *= old;
            for (int k = 0; k < n; k++) {
                const T *row = in.v + key_row(s, j0 + k) * in.ldv + (int64_t)kv_head * d;
                float pk = __shfl_sync(SL_ALL_LANES, p, k);
                for (int i = 0; i < LANE_DIMS; i++)
                    if (i * SL_WARP + lane < d)
                        acc[i] += pk * to_f(row[i * SL_WARP + lane]);
            }
            m = top;
        }
        for (int i = 0; i < LANE_DIMS; i++)
            if (i * SL_WARP + lane < d)
                o[at * ldo + (int64_t)head * d + i * SL_WARP + lane] = from_f<T>(seen ? acc[i] / sum : 0.0f);
        if (lane == 0)
            lse[(int64_t)head * a.n_queries + at] = seen ? m + logf(sum) : -INFINITY;
    }
}

template <typename T>
static __global__ void __launch_bounds__(WARPS *SL_WARP)
    plain_dq(struct att a, const struct att_tile *tiles, struct att_in<T> in, struct att_grad<T> g)
{
    __shared__ float query[WARPS][ATT_MAX_DIM], grad[WARPS][ATT_MAX_DIM];
    struct att_tile s = tiles[blockIdx.x];
    if (!s.q_len)
        return;
    int kv_head = (int)blockIdx.y, warp = (int)threadIdx.x / SL_WARP, lane = (int)threadIdx.x % SL_WARP, d = a.dim;
    int end = s.q_len * a.group < s.r0 + ATT_ROWS ? s.q_len * a.group : s.r0 + ATT_ROWS;
    for (int r = s.r0 + warp; r < end; r += WARPS) {
        int at = s.q_start + r / a.group, head = kv_head * a.group + r % a.group;
        int seen = s.prefix_len + a.visible[at];
        int64_t stat = (int64_t)head * a.n_queries + at;
        float acc[LANE_DIMS] = {};
        __syncwarp();
        for (int c = lane; c < d; c += SL_WARP) {
            query[warp][c] = a.scale * to_f(in.q[at * in.ldq + (int64_t)head * d + c]);
            grad[warp][c] = to_f(g.d_o[at * g.ldd + (int64_t)head * d + c]);
        }
        __syncwarp();
        for (int j0 = 0; j0 < seen; j0 += SL_WARP) {
            int j = j0 + lane, n = seen - j0 < SL_WARP ? seen - j0 : SL_WARP;
            float ds = 0;
            if (j < seen) {
                int64_t row = key_row(s, j);
                float x = dot(query[warp], in.k + row * in.ldk + (int64_t)kv_head * d, d);
                float dp = dot(grad[warp], in.v + row * in.ldv + (int64_t)kv_head * d, d);
                ds = expf(x - g.lse[stat]) * (dp - g.delta[stat]) * a.scale;
            }
            for (int k = 0; k < n; k++) {
                const T *row = in.k + key_row(s, j0 + k) * in.ldk + (int64_t)kv_head * d;
                float dk = __shfl_sync(SL_ALL_LANES, ds, k);
                for (int i = 0; i < LANE_DIMS; i++)
                    if (i * SL_WARP + lane < d)
                        acc[i] += dk * to_f(row[i * SL_WARP + lane]);
            }
        }
        for (int i = 0; i < LANE_DIMS; i++)
            if (i * SL_WARP + lane < d)
                g.dq[at * g.lddq + (int64_t)head * d + i * SL_WARP + lane] = from_f<T>(acc[i]);
    }
}

template <typename T>
static __global__ void __launch_bounds__(WARPS *SL_WARP)
    plain_dkv(struct att a, const struct att_keys *table, struct att_in<T> in, struct att_grad<T> g)
{
    __shared__ float key[WARPS][ATT_MAX_DIM], value[WARPS][ATT_MAX_DIM];
    struct att_keys t = table[blockIdx.x];
    int kv_head = (int)blockIdx.y, warp = (int)threadIdx.x / SL_WARP, lane = (int)threadIdx.x % SL_WARP, d = a.dim;
    for (int i = warp; i < t.n_keys; i += WARPS) {
        int begin = t.j0 < 0 ? 0 : first_to_see(a.visible, t.q0, t.n_q, t.j0 + i) * a.group, end = t.n_q * a.group;
        float dk[LANE_DIMS] = {}, dv[LANE_DIMS] = {};
        if (begin == end && t.j0 >= 0 && !a.set_keys)
            continue; /* nobody looks: the key is not read, its gradient stays */
        __syncwarp();
        for (int c = lane; c < d; c += SL_WARP) {
            key[warp][c] = a.scale * to_f(in.k[(int64_t)(t.key0 + i) * in.ldk + (int64_t)kv_head * d + c]);
            value[warp][c] = to_f(in.v[(int64_t)(t.key0 + i) * in.ldv + (int64_t)kv_head * d + c]);
        }
        __syncwarp();
        for (int r0 = begin; r0 < end; r0 += SL_WARP) {
            int r = r0 + lane, n = end - r0 < SL_WARP ? end - r0 : SL_WARP;
            float p = 0, ds = 0;
            if (r < end) {
                int64_t at = t.q0 + r / a.group, head = kv_head * a.group + r % a.group, stat = head * a.n_queries + at;
                p = expf(dot(key[warp], in.q + at * in.ldq + head * d, d) - g.lse[stat]);
                ds = p * (dot(value[warp], g.d_o + at * g.ldd + head * d, d) - g.delta[stat]) * a.scale;
            }
            for (int k = 0; k < n; k++) {
                int64_t at = t.q0 + (r0 + k) / a.group, head = kv_head * a.group + (r0 + k) % a.group;
                float pk = __shfl_sync(SL_ALL_LANES, p, k), dk_k = __shfl_sync(SL_ALL_LANES, ds, k);
                for (int c = 0; c < LANE_DIMS; c++)
                    if (c * SL_WARP + lane < d) {
                        dk[c] += dk_k * to_f(in.q[at * in.ldq + head * d + c * SL_WARP + lane]);
                        dv[c] += pk * to_f(g.d_o[at * g.ldd + head * d + c * SL_WARP + lane]);
                    }
            }
        }
        for (int c = 0; c < LANE_DIMS; c++) {
            int col = kv_head * d + c * SL_WARP + lane;
            if (c * SL_WARP + lane >= d)
                break;
            if (t.j0 < 0) {
                float *to = g.partials + (int64_t)(t.partial + i) * 2 * a.kv_heads * d + col;
                to[0] = dk[c];
                to[a.kv_heads * d] = dv[c];
            } else {
                T *to_k = g.dk + (int64_t)(t.key0 + i) * g.lddk + col, *to_v = g.dv + (int64_t)(t.key0 + i) * g.lddv + col;
                *to_k = from_f<T>(a.set_keys ? dk[c] : to_f(*to_k) + dk[c]);
                *to_v = from_f<T>(a.set_keys ? dv[c] : to_f(*to_v) + dv[c]);
            }
        }
    }
}

/* ---- before and after */

/* delta[head, query] = rowsum(dO o): LANES lanes each, N elements an access. */
template <typename T, int N, int LANES>
static __global__ void __launch_bounds__(WARPS *SL_WARP)
    row_delta(struct att a, const T *o, int64_t ldo, const T *d_o, int64_t ldd, float *delta)
{
    constexpr int per = WARPS * SL_WARP / LANES;
    int64_t i = (int64_t)blockIdx.x * per + threadIdx.x / LANES, at = i / a.heads, head = i % a.heads;
    int lane = (int)threadIdx.x % LANES;
    float sum = 0;
    if (at < a.n_queries)
        for (int c = lane * N; c < a.dim; c += LANES * N) {
            sl_pack<T, N> x = *(const sl_pack<T, N> *)(o + at * ldo + head * a.dim + c);
            sl_pack<T, N> y = *(const sl_pack<T, N> *)(d_o + at * ldd + head * a.dim + c);
            for (int j = 0; j < N; j++)
                sum += to_f(x.v[j]) * to_f(y.v[j]);
        }
    for (int d = LANES / 2; d; d /= 2)
        sum += __shfl_xor_sync(SL_ALL_LANES, sum, d);
    if (lane == 0 && at < a.n_queries)
        delta[head * a.n_queries + at] = sum;
}

/* Adds up the partial sums of prefixes: a thread owns N columns of one key and adds its chunks in order. Where prefixes
 * share a key, the first of them adds for all. */
template <typename T, int N>
static __global__ void add_prefixes(struct att a, const struct att_prefix *prefixes, int n, struct att_grad<T> g)
{
    const int cols = a.kv_heads * a.dim, stride = (int)(gridDim.x * blockDim.x);
    for (int i = 0; i < n && prefixes[i].len; i++)
        for (int at = (int)(blockIdx.x * blockDim.x + threadIdx.x); at < prefixes[i].len * (cols / N); at += stride) {
            int row = prefixes[i].start + at / (cols / N), c = at % (cols / N) * N;
            bool first = true;
            for (int k = 0; k < i && first; k++)
                first = row < prefixes[k].start || row >= prefixes[k].start + prefixes[k].len;
            if (!first)
                continue;
            float dk[N] = {}, dv[N] = {};
            for (int k = i; k < n && prefixes[k].len; k++) {
                struct att_prefix p = prefixes[k];
                if (row < p.start || row >= p.start + p.len)
                    continue;
                for (int chunk = 0; chunk < p.chunks; chunk++) {
                    const float *from = g.partials + (int64_t)(p.partial + chunk * p.len + row - p.start) * 2 * cols + c;
                    sl_pack<float, N> x = *(const sl_pack<float, N> *)from, y = *(const sl_pack<float, N> *)(from + cols);
                    for (int j = 0; j < N; j++) {
                        dk[j] += x.v[j];
                        dv[j] += y.v[j];
                    }
                }
            }
            T *to_k = g.dk + (int64_t)row * g.lddk + c, *to_v = g.dv + (int64_t)row * g.lddv + c;
            for (int j = 0; j < N; j++) {
                to_k[j] = from_f<T>(to_f(to_k[j]) + dk[j]);
                to_v[j] = from_f<T>(to_f(to_v[j]) + dv[j]);
            }
        }
}

/* ---- the operations */
static bool describe(struct sl_backend *be, const struct sl_attention *a, struct att *ret)
{
    if (a->n_seqs <= 0 || a->n_queries <= 0)
        return false;
    if (a->head_dim > ATT_MAX_DIM) {
        sl_err_set(&be->kept, SL_SPEC, "attention heads of %d: the CUDA backend has up to %d", a->head_dim, ATT_MAX_DIM);
        return false;
    }
    ret->heads = a->heads;
    ret->kv_heads = a->kv_heads;
    ret->dim = a->head_dim;
    ret->group = a->heads / a->kv_heads;
    ret->n_queries = a->n_queries;
    ret->magic = ret->group > 1 ? (uint32_t)((((uint64_t)1 << 32) + (uint32_t)ret->group - 1) / (uint32_t)ret->group) : 0;
    ret->scale = a->scale;
    ret->visible = a->visible;
    ret->set_keys = a->set_keys;
    return true;
}

template <typename T>
void sl_cuda_attention(struct sl_backend *be, const struct sl_attention *a, const sl_act *q, int64_t ldq,
                       const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv, sl_act *o, int64_t ldo, float *lse)
{
    struct att at;
    struct att_in<T> in = {(const T *)q, (const T *)k, (const T *)v, ldq, ldk, ldv};
    struct att_cut t;
    if (!describe(be, a, &at))
        return;
    bool hopper = false;
    if constexpr (sizeof(T) == 2)
        hopper = att_hopper_fits(be, &at, &in) && sl_aligned(o, ldo, sizeof(T));
    if (!att_cut_batch(be, a, &t))
        return;
    if constexpr (sizeof(T) == 2) {
        if (hopper) {
            att_hopper_forward(be, &at, &in, t.tiles, t.n_tiles, (T *)o, ldo, lse);
            return;
        }
        if (att_mma_fits(&at, &in) && sl_aligned(o, ldo, sizeof(T))) {
            att_mma_forward(be, &at, &in, t.tiles, t.n_tiles, (T *)o, ldo, lse);
            return;
        }
    }
    plain_forward<T><<<dim3((unsigned)t.n_tiles, (unsigned)at.kv_heads), WARPS * SL_WARP, 0, be->stream>>>(at, t.tiles, in, (T *)o,
                                                                                                 ldo, lse);
    sl_cuda_launched(be, "attention");
}

template <typename T>
void sl_cuda_attention_back(struct sl_backend *be, const struct sl_attention *a, const sl_act *q, int64_t ldq,
                            const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv, const sl_act *o, int64_t ldo,
                            const float *lse, const sl_act *d_o, int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk,
                            int64_t lddk, sl_act *dv, int64_t lddv)
{
    struct att at;
    struct att_in<T> in = {(const T *)q, (const T *)k, (const T *)v, ldq, ldk, ldv};
    struct att_grad<T> g = {(const T *)d_o, lse, NULL, (T *)dq, (T *)dk, (T *)dv, ldd, lddq, lddk, lddv, NULL};
    struct att_cut t = {};
    if (!describe(be, a, &at))
        return;
    size_t stats = (size_t)a->heads * (size_t)a->n_queries, cols = (size_t)a->kv_heads * (size_t)a->head_dim;
    float *delta = (float *)sl_cuda_scratch(be, SL_SCRATCH_OP, stats * sizeof *delta);
    bool ready = delta && att_cut_batch(be, a, &t);
    if (ready)
        g.partials = (float *)sl_cuda_scratch(be, SL_SCRATCH_PARTIALS, (size_t)t.partial_rows * 2 * cols * sizeof(float) + 1);
    if (ready && g.partials) {
        dim3 rows((unsigned)t.n_tiles, (unsigned)at.kv_heads), keys((unsigned)t.n_keys, (unsigned)at.kv_heads);
        bool wide = a->head_dim % sl_wide<T> == 0 && sl_aligned(o, ldo, sizeof(T)) && sl_aligned(d_o, ldd, sizeof(T));
        bool mma = false, hopper = false;
        g.delta = delta;
        if constexpr (sizeof(T) == 2) {
            mma = wide && att_mma_fits(&at, &in) && sl_aligned(dq, lddq, sizeof(T)) && sl_aligned(dk, lddk, sizeof(T)) &&
                  sl_aligned(dv, lddv, sizeof(T));
            hopper = mma && att_hopper_fits(be, &at, &in);
        }
        if (!hopper && wide)
            row_delta<T, sl_wide<T>, 8><<<sl_blocks((int64_t)stats, WARPS * SL_WARP / 8), WARPS * SL_WARP, 0, be->stream>>>(
                at, (const T *)o, ldo, (const T *)d_o, ldd, delta);
        else if (!hopper)
            row_delta<T, 1, SL_WARP><<<sl_blocks((int64_t)stats, WARPS), WARPS * SL_WARP, 0, be->stream>>>(
                at, (const T *)o, ldo, (const T *)d_o, ldd, delta);
        if constexpr (sizeof(T) == 2) {
            if (hopper) {
                att_hopper_dq(be, &at, &in, (const T *)o, ldo, &g, t.tiles, t.n_tiles);
                att_hopper_dkv(be, &at, &in, &g, t.keys, t.n_keys);
            } else if (mma) {
                att_mma_dq(be, &at, &in, &g, t.tiles, t.n_tiles);
                att_mma_dkv(be, &at, &in, &g, t.keys, t.n_keys);
            }
        }
        if (!mma) {
            plain_dq<T><<<rows, WARPS * SL_WARP, 0, be->stream>>>(at, t.tiles, in, g);
            plain_dkv<T><<<keys, WARPS * SL_WARP, 0, be->stream>>>(at, t.keys, in, g);
        }
        if (cols % 4 == 0)
            add_prefixes<T, 4><<<ADD_BLOCKS, WARPS * SL_WARP, 0, be->stream>>>(at, t.prefixes, t.n_prefixes, g);
        else
            add_prefixes<T, 1><<<ADD_BLOCKS, WARPS * SL_WARP, 0, be->stream>>>(at, t.prefixes, t.n_prefixes, g);
        sl_cuda_launched(be, "attention_back");
    }
}

#define EACH(T)                                                                                                       \
    template void sl_cuda_attention<T>(struct sl_backend *, const struct sl_attention *, const sl_act *, int64_t,     \
                                       const sl_act *, int64_t, const sl_act *, int64_t, sl_act *, int64_t, float *); \
    template void sl_cuda_attention_back<T>(struct sl_backend *, const struct sl_attention *, const sl_act *, int64_t, \
                                            const sl_act *, int64_t, const sl_act *, int64_t, const sl_act *, int64_t, \
                                            const float *, const sl_act *, int64_t, sl_act *, int64_t, sl_act *,      \
                                            int64_t, sl_act *, int64_t);
EACH(float)
EACH(bf16)
