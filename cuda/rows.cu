/* Embeddings, gather and scatter, changes of type: rows moved by index. */
#include "cuda/cuda.cuh"

#define THREADS 128
#define MAX_GRID_Y 65535

/* One block of threads a row, N elements an access. */
template <typename T, int N>
static __global__ void embed_rows(const T *embed, const T *pos_embed, const float *prompts, const int32_t *src,
                                  const int32_t *pos, int hidden, T *x)
{
    int64_t t = blockIdx.x;
    int32_t from = src[t];
    int64_t at = from >= 0 ? (int64_t)from * hidden : -((int64_t)from + 1) * hidden;
    const T *learned = pos_embed ? pos_embed + (int64_t)pos[t] * hidden : NULL;
    for (int i = (int)threadIdx.x * N; i < hidden; i += THREADS * N) {
        float v[N];
        if (from >= 0) {
            sl_pack<T, N> p = *(const sl_pack<T, N> *)(embed + at + i);
            for (int j = 0; j < N; j++)
                v[j] = to_f(p.v[j]);
        } else {
            for (int j = 0; j < N; j++)
                v[j] = prompts[at + i + j];
        }
        if (learned) {
            sl_pack<T, N> p = *(const sl_pack<T, N> *)(learned + i);
            for (int j = 0; j < N; j++)
                v[j] += to_f(p.v[j]);
        }
        sl_pack<T, N> y;
        for (int j = 0; j < N; j++)
            y.v[j] = from_f<T>(v[j]);
        *(sl_pack<T, N> *)(x + t * hidden + i) = y;
    }
}

template <typename T>
void sl_cuda_embed(struct sl_backend *be, const struct sl_weight *embed, const struct sl_weight *pos_embed,
                   const float *prompts, const int32_t *src, const int32_t *pos, int64_t rows, int hidden, sl_act *x)
{
    const int n = sl_wide<T>;
    if (rows <= 0)
        return;
    const T *e = (const T *)embed->data, *p = pos_embed ? (const T *)pos_embed->data : NULL;
    if (hidden % n == 0 && sl_aligned(x, hidden, sizeof(T)))
        embed_rows<T, n><<<(unsigned)rows, THREADS, 0, be->stream>>>(e, p, prompts, src, pos, hidden, (T *)x);
    else
        embed_rows<T, 1><<<(unsigned)rows, THREADS, 0, be->stream>>>(e, p, prompts, src, pos, hidden, (T *)x);
    sl_cuda_launched(be, "embed");
}

/* Thread = (prompt row, column): its sum runs down the list. */
template <typename T>
static __global__ void embed_back_rows(const T *dx, int hidden, const int32_t *ptr, const int32_t *list,
                                       float *dprompts)
{
    int p = (int)blockIdx.x, c = (int)(blockIdx.y * THREADS + threadIdx.x);
    if (c >= hidden)
        return;
    float sum = dprompts[(int64_t)p * hidden + c];
    for (int32_t i = ptr[p]; i < ptr[p + 1]; i++)
        sum += to_f(dx[(int64_t)list[i] * hidden + c]);
    dprompts[(int64_t)p * hidden + c] = sum;
}

template <typename T>
void sl_cuda_embed_back(struct sl_backend *be, const sl_act *dx, int hidden, const int32_t *ptr, const int32_t *list,
                        int n_prompts, float *dprompts)
{
    if (n_prompts <= 0)
        return;
    dim3 grid((unsigned)n_prompts, sl_blocks(hidden, THREADS));
    embed_back_rows<T><<<grid, THREADS, 0, be->stream>>>((const T *)dx, hidden, ptr, list, dprompts);
    sl_cuda_launched(be, "embed_back");
}

enum move { GATHER, SCATTER, SCATTER_ADD };

template <typename T, int N, move M>
static __global__ void move_rows(const T *x, int64_t ldx, const int32_t *index, int cols, T *y, int64_t ldy)
{
    int64_t i = blockIdx.x, far = index[i];
    const T *from = x + (M == GATHER ? far : i) * ldx;
    T *to = y + (M == GATHER ? i : far) * ldy;
    for (int c = (int)threadIdx.x * N; c < cols; c += THREADS * N) {
        sl_pack<T, N> v = *(const sl_pack<T, N> *)(from + c);
        if (M == SCATTER_ADD) {
            sl_pack<T, N> old = *(const sl_pack<T, N> *)(to + c);
            for (int j = 0; j < N; j++)
                v.v[j] = from_f<T>(to_f(old.v[j]) + to_f(v.v[j]));
        }
        *(sl_pack<T, N> *)(to + c) = v;
    }
}

template <typename T, move M>
static void move_all(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index, int64_t n, int cols,
                     sl_act *y, int64_t ldy)
{
    const int wide = sl_wide<T>;
    if (n <= 0)
        return;
    if (cols % wide == 0 && sl_aligned(x, ldx, sizeof(T)) && sl_aligned(y, ldy, sizeof(T)))
        move_rows<T, wide, M><<<(unsigned)n, THREADS, 0, be->stream>>>((const T *)x, ldx, index, cols, (T *)y, ldy);
    else
        move_rows<T, 1, M><<<(unsigned)n, THREADS, 0, be->stream>>>((const T *)x, ldx, index, cols, (T *)y, ldy);
    sl_cuda_launched(be, "moving rows");
}

template <typename T>
void sl_cuda_gather(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index, int64_t n, int cols,
                    sl_act *y, int64_t ldy)
{
    move_all<T, GATHER>(be, x, ldx, index, n, cols, y, ldy);
}

template <typename T>
void sl_cuda_scatter(struct sl_backend *be, const sl_act *x, int64_t ldx, const int32_t *index, int64_t n, int cols,
                     bool add, sl_act *y, int64_t ldy)
{
    if (add)
        move_all<T, SCATTER_ADD>(be, x, ldx, index, n, cols, y, ldy);
    else
        move_all<T, SCATTER>(be, x, ldx, index, n, cols, y, ldy);
}

template <typename A, typename B> static __global__ void convert(const A *x, int64_t n, B *y)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        y[i] = from_f<B>(to_f(x[i]));
}

template <typename A, typename B> static void convert_all(struct sl_backend *be, const A *x, int64_t n, B *y)
{
    if (n <= 0)
        return;
    unsigned blocks = sl_blocks(n, 256 * 4);
    convert<A, B><<<blocks < MAX_GRID_Y ? blocks : MAX_GRID_Y, 256, 0, be->stream>>>(x, n, y);
    sl_cuda_launched(be, "changing type");
}

template <typename T> void sl_cuda_to_f32(struct sl_backend *be, const sl_act *x, int64_t n, float *y)
{
    convert_all<T, float>(be, (const T *)x, n, y);
}

template <typename T> void sl_cuda_from_f32(struct sl_backend *be, const float *x, int64_t n, sl_act *y)
{
    convert_all<float, T>(be, x, n, (T *)y);
}

#define EACH(T)                                                                                                       \
    template void sl_cuda_embed<T>(struct sl_backend *, const struct sl_weight *, const struct sl_weight *,           \
                                   const float *, const int32_t *, const int32_t *, int64_t, int, sl_act *);          \
    template void sl_cuda_embed_back<T>(struct sl_backend *, const sl_act *, int, const int32_t *, const int32_t *,   \
                                        int, float *);                                                                \
    template void sl_cuda_gather<T>(struct sl_backend *, const sl_act *, int64_t, const int32_t *, int64_t, int,      \
                                    sl_act *, int64_t);                                                               \
    template void sl_cuda_scatter<T>(struct sl_backend *, const sl_act *, int64_t, const int32_t *, int64_t, int,     \
                                     bool, sl_act *, int64_t);                                                        \
    template void sl_cuda_to_f32<T>(struct sl_backend *, const sl_act *, int64_t, float *);                           \
    template void sl_cuda_from_f32<T>(struct sl_backend *, const float *, int64_t, sl_act *);
EACH(float)
EACH(bf16)
