/* Matrices: cublasLt with a workspace of its own, so that equal shapes give equal bits.
 *
 * cublasLt thinks in columns: a row-major y[rows, out] is its D[out, rows], so y = x W^T is D = W_ x_ with W_
 * transposed. The algorithm is the heuristic's first choice, asked for once per kind of product and number of
 * rows rounded up, never by timing; strides and addresses count by their alignment. */
#include "cuda/fp8.cuh"
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE_BYTES ((size_t)32 << 20)
#define MAX_CHOICES 4096 /* a power of two; when full, kinds of product are forgotten, not refused */
#define MAX_ALIGNMENT 256
#define FP8_ASKED 8
#define FILLS 8    /* bf16 elements in 16 bytes */
#define LARGE 4096 /* rows of a weight from which on cutting it in two pays */

/* All that the choice of an algorithm may depend on. Compared as bytes: no holes. */
struct kind {
    int64_t m, n, k, lda, ldb, ldc, ldd;
    int32_t ta, tb, type, beta, bias;
    int32_t align_a, align_b, align_c, align_d, fast;
};

struct choice {
    struct kind kind;
    bool known, refused; /* refused: cublasLt has nothing for it */
    cublasLtMatmulAlgo_t algo;
};

struct sl_cuda_blas {
    cublasLtHandle_t handle;
    void *workspace;
    struct choice choice[MAX_CHOICES];
};

/* D[m, n] = alpha op(A) op(B) + beta C (+ bias down the columns), all column-major. type is that of A and B;
 * C, D and bias have it too, but for fp8: there they are bf16, and row i of op(A) counts scale_a[i] times, column j
 * of op(B) scale_b[j] times. fast: partial sums of fp8 may stay in the tensor cores' narrower registers. */
struct product {
    bool ta, tb;
    int64_t m, n, k;
    cudaDataType_t type;
    float alpha, beta;
    const void *a, *b, *c, *bias;
    const float *scale_a, *scale_b;
    bool fast;
    int64_t lda, ldb, ldc, ldd;
    void *d;
};

int sl_cuda_blas_new(struct sl_cuda_blas **ret_blas, struct sl_err *err)
{
    struct sl_cuda_blas *b = (struct sl_cuda_blas *)calloc(1, sizeof *b);
    if (!b)
        return sl_err_set(err, SL_NOMEM, "no memory for cublasLt's handle");
    cublasStatus_t s = cublasLtCreate(&b->handle);
    if (s != CUBLAS_STATUS_SUCCESS) {
        free(b);
        return sl_err_set(err, SL_DEVICE, "starting cublasLt: %s", cublasLtGetStatusString(s));
    }
    cudaError_t e = cudaMalloc(&b->workspace, WORKSPACE_BYTES);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        b->workspace = NULL;
        sl_cuda_blas_free(b);
        return sl_err_set(err, e == cudaErrorMemoryAllocation ? SL_NOMEM : SL_DEVICE,
                          "memory for cublasLt's workspace: %s", cudaGetErrorString(e));
    }
    *ret_blas = b;
    return 0;
}

void sl_cuda_blas_free(struct sl_cuda_blas *b)
{
    if (!b)
        return;
    cudaFree(b->workspace);
    cublasLtDestroy(b->handle);
    free(b);
}

static cudaDataType_t out_type(const struct product *p)
{
    return p->scale_a ? CUDA_R_16BF : p->type;
}

static int32_t alignment(const void *p, int64_t ld, cudaDataType_t type)
{
    int bytes = type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1;
    uintptr_t bits = (uintptr_t)p | (uintptr_t)(ld * bytes) | MAX_ALIGNMENT;
    return (int32_t)(bits & (~bits + 1));
}

/* Numbers of rows vary with every batch; close ones share an algorithm. */
static int64_t rounded(int64_t n)
{
    int64_t unit = n <= 128 ? 16 : n <= 2048 ? 128 : n <= 8192 ? 512 : 2048;
    return (n + unit - 1) / unit * unit;
}

static struct kind kind_of(const struct product *p)
{
    struct kind k = {};
    k.m = p->m;
    k.n = rounded(p->n);
    k.k = p->k;
    k.lda = p->lda;
    k.ldb = p->ldb;
    k.ldc = p->ldc;
    k.ldd = p->ldd;
    k.ta = p->ta;
    k.tb = p->tb;
    k.type = (int32_t)p->type;
    k.fast = p->fast;
    k.beta = p->beta != 0;
    k.bias = p->bias != NULL;
    k.align_a = alignment(p->a, p->lda, p->type);
    k.align_b = alignment(p->b, p->ldb, p->type);
    k.align_c = alignment(p->c, p->ldc, out_type(p));
    k.align_d = alignment(p->d, p->ldd, out_type(p));
    return k;
}

static struct choice *find_choice(struct sl_cuda_blas *b, const struct kind *k)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof *k; i++)
        h = (h ^ ((const unsigned char *)k)[i]) * 1099511628211u;
    for (int probe = 0; probe < 8; probe++) {
        struct choice *c = &b->choice[(h + (uint64_t)probe) % MAX_CHOICES];
        if (!c->known || !memcmp(&c->kind, k, sizeof *k))
            return c;
    }
    struct choice *c = &b->choice[h % MAX_CHOICES];
    c->known = false;
    return c;
}

struct layouts {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
};

/* n of the layouts is rows: the product's own, or the rounded number when the heuristic is asked. */
static cublasStatus_t describe_scales(const struct product *p, cublasLtMatmulDesc_t desc)
{
    cublasLtMatmulMatrixScale_t outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    int8_t fast = p->fast;
    cudaDataType_t bias = CUDA_R_16BF;
    const struct {
        cublasLtMatmulDescAttributes_t attribute;
        const void *value;
        size_t bytes;
    } set[] = {{CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &outer, sizeof outer},
               {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &outer, sizeof outer},
               {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p->scale_a, sizeof p->scale_a},
               {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p->scale_b, sizeof p->scale_b},
               {CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast},
               {CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias}};
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; !s && i < sizeof set / sizeof *set; i++)
        s = cublasLtMatmulDescSetAttribute(desc, set[i].attribute, set[i].value, set[i].bytes);
    return s;
}

static cublasStatus_t describe(const struct product *p, int64_t rows, struct layouts *l)
{
    cublasOperation_t ta = p->ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = p->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t s = cublasLtMatmulDescInit(&l->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    uint64_t m = (uint64_t)p->m, n = (uint64_t)rows, k = (uint64_t)p->k;
    if (!s)
        s = cublasLtMatmulDescSetAttribute(&l->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
    if (!s)
        s = cublasLtMatmulDescSetAttribute(&l->desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
    if (!s && p->bias)
        s = cublasLtMatmulDescSetAttribute(&l->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (!s && p->bias)
        s = cublasLtMatmulDescSetAttribute(&l->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    if (!s && p->scale_a)
        s = describe_scales(p, &l->desc);
    if (!s)
        s = cublasLtMatrixLayoutInit(&l->a, p->type, p->ta ? k : m, p->ta ? m : k, p->lda);
    if (!s)
        s = cublasLtMatrixLayoutInit(&l->b, p->type, p->tb ? n : k, p->tb ? k : n, p->ldb);
    if (!s)
        s = cublasLtMatrixLayoutInit(&l->c, out_type(p), m, n, p->ldc);
    if (!s)
        s = cublasLtMatrixLayoutInit(&l->d, out_type(p), m, n, p->ldd);
    return s;
}

/* With scales of rows the heuristic also names algorithms that do not know them. */
static bool runs(struct sl_cuda_blas *b, const struct layouts *l, const cublasLtMatmulAlgo_t *algo)
{
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(b->handle, (cublasLtMatmulDesc_t)&l->desc, (cublasLtMatrixLayout_t)&l->a,
                                   (cublasLtMatrixLayout_t)&l->b, (cublasLtMatrixLayout_t)&l->c,
                                   (cublasLtMatrixLayout_t)&l->d, algo, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= WORKSPACE_BYTES;
}

static cublasStatus_t choose(struct sl_cuda_blas *b, const struct product *p, const struct kind *k, int64_t rows,
                             cublasLtMatmulAlgo_t *ret_algo)
{
    struct layouts l;
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasLtMatmulHeuristicResult_t found[FP8_ASKED];
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        int32_t value;
    } align[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, k->align_a},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, k->align_b},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, k->align_c},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, k->align_d}};
    size_t room = WORKSPACE_BYTES;
    int n = 0, at = 0;
    cublasStatus_t s = describe(p, rows, &l);
    if (!s)
        s = cublasLtMatmulPreferenceInit(&pref);
    if (!s)
        s = cublasLtMatmulPreferenceSetAttribute(&pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
    for (size_t i = 0; !s && i < sizeof align / sizeof *align; i++) {
        uint32_t bytes = (uint32_t)align[i].value;
        s = cublasLtMatmulPreferenceSetAttribute(&pref, align[i].attribute, &bytes, sizeof bytes);
    }
    if (!s)
        s = cublasLtMatmulAlgoGetHeuristic(b->handle, &l.desc, &l.a, &l.b, &l.c, &l.d, &pref, p->scale_a ? FP8_ASKED : 1,
                                           found, &n);
    while (!s && p->scale_a && at < n && !runs(b, &l, &found[at].algo))
        at++;
    if (!s && at >= n)
        s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!s)
        *ret_algo = found[at].algo;
    return s;
}

static cublasStatus_t run(struct sl_backend *be, const struct product *p, const cublasLtMatmulAlgo_t *algo)
{
    struct layouts l;
    cublasStatus_t s = describe(p, p->n, &l);
    if (s)
        return s;
    return cublasLtMatmul(be->blas->handle, &l.desc, &p->alpha, p->a, &l.a, p->b, &l.b, &p->beta, p->c, &l.c, p->d,
                          &l.d, algo, be->blas->workspace, WORKSPACE_BYTES, be->stream);
}

static bool refused(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_NOT_SUPPORTED || s == CUBLAS_STATUS_INVALID_VALUE;
}

static cublasStatus_t multiply_as(struct sl_backend *be, const struct product *p)
{
    struct kind k = kind_of(p);
    struct choice *c = find_choice(be->blas, &k);
    if (c->known && c->refused)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    cublasStatus_t s = c->known ? CUBLAS_STATUS_SUCCESS : choose(be->blas, p, &k, k.n, &c->algo);
    if (!c->known) {
        c->kind = k;
        c->known = !s;
        c->refused = false;
    }
    if (!s)
        s = run(be, p, &c->algo);
    if (refused(s)) {
        cublasLtMatmulAlgo_t exact; /* an algorithm for the rounded shape that this one does not allow */
        s = choose(be->blas, p, &k, p->n, &exact);
        if (!s)
            s = run(be, p, &exact);
    }
    if (refused(s) && p->scale_a) {
        c->kind = k;
        c->known = c->refused = true;
    }
    return s;
}

/* The same product from factors multiplied out, in bf16: for few rows, where cublasLt has no fp8 with scales of rows. */
static cublasStatus_t multiply_out(struct sl_backend *be, const struct product *p)
{
    struct product wide = *p;
    if (!sl_fp8_values(be, (const unsigned char *)p->a, p->scale_a, p->m, (const unsigned char *)p->b, p->scale_b, p->n, p->k,
                       &wide.a, &wide.b))
        return CUBLAS_STATUS_SUCCESS; /* kept */
    wide.type = CUDA_R_16BF;
    wide.scale_a = wide.scale_b = NULL;
    wide.fast = false;
    return multiply_as(be, &wide);
}

static void multiply(struct sl_backend *be, const struct product *p)
{
    if (p->m <= 0 || p->n <= 0 || be->kept.code)
        return;
    cublasStatus_t s = multiply_as(be, p);
    if (refused(s) && p->scale_a)
        s = multiply_out(be, p);
    cudaStreamCaptureStatus capture; /* asked for what an earlier kernel may have done to the device */
    if (s && !sl_cuda_failed(be, cudaStreamIsCapturing(be->stream, &capture), "work before a product"))
        sl_err_set(&be->kept, s == CUBLAS_STATUS_ALLOC_FAILED ? SL_NOMEM : SL_DEVICE,
                   "GPU %d: product of %lld x %lld x %lld: %s", be->device, (long long)p->n, (long long)p->m,
                   (long long)p->k, cublasLtGetStatusString(s));
}

/* cublasLt's fast kernels want sizes that fill 16 bytes. A large bf16 matrix that does not (a vocabulary of 50,257) is
 * cut into rows that do and a few that remain. Returns how many rows the first part has. */
static int64_t even_rows(const struct sl_weight *w, cudaDataType_t type)
{
    return type == CUDA_R_16BF && w->rows > LARGE && w->rows % FILLS ? w->rows / FILLS * FILLS : w->rows;
}

template <typename T> static constexpr cudaDataType_t type_of = sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F;

template <typename T>
void sl_cuda_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, const struct sl_weight *w,
                    const struct sl_weight *bias, const sl_act *add, int64_t ld_add, sl_act *y, int64_t ldy)
{
    if (w->qt) {
        struct sl_fp8_rows q;
        if (sl_fp8_take(be, (const bf16 *)x, ldx, rows, w->cols, &q))
            sl_fp8_matmul(be, &q, rows, w, bias, add, ld_add, y, ldy);
        return;
    }
    const T *values = sl_cuda_values<T>(be, w);
    struct product p = {};
    if (!values)
        return;
    p.ta = true;
    p.m = w->rows;
    p.n = rows;
    p.k = w->cols;
    p.type = type_of<T>;
    p.alpha = 1;
    p.beta = add ? 1.0f : 0.0f;
    p.a = values;
    p.lda = w->cols;
    p.b = x;
    p.ldb = ldx;
    p.c = add ? add : y;
    p.ldc = add ? ld_add : ldy;
    p.d = y;
    p.ldd = ldy;
    p.bias = bias ? bias->data : NULL;
    int64_t even = even_rows(w, p.type);
    p.m = even;
    multiply(be, &p);
    if (even == w->rows)
        return;
    p.m = w->rows - even;
    p.a = values + even * w->cols;
    p.c = (const T *)p.c + even;
    p.d = (T *)y + even;
    p.bias = bias ? (const T *)bias->data + even : NULL;
    multiply(be, &p);
}

template <typename T>
void sl_cuda_matmul_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                         const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    if (w->qt) {
        struct sl_fp8_rows q;
        if (sl_fp8_take(be, (const bf16 *)dy, ldy, rows, w->rows, &q))
            sl_fp8_matmul_back(be, &q, rows, w, accumulate, dx, ldx);
        return;
    }
    const T *values = sl_cuda_values<T>(be, w);
    struct product p = {};
    if (!values)
        return;
    p.m = w->cols;
    p.n = rows;
    p.k = w->rows;
    p.type = type_of<T>;
    p.alpha = 1;
    p.beta = accumulate ? 1.0f : 0.0f;
    p.a = values;
    p.lda = w->cols;
    p.b = dy;
    p.ldb = ldy;
    p.c = p.d = dx;
    p.ldc = p.ldd = ldx;
    int64_t even = even_rows(w, p.type);
    p.k = even;
    multiply(be, &p);
    if (even == w->rows)
        return;
    p.k = w->rows - even;
    p.a = values + even * w->cols;
    p.b = (const T *)dy + even;
    p.beta = 1;
    multiply(be, &p);
}

/* out = x weight^T: both sum along their rows, which is the one form that fp8 has. */
static struct product fp8_product(const struct sl_fp8_rows *x, int64_t rows, const void *weight, const float *scale,
                                  int64_t outs, int64_t ins)
{
    struct product p = {};
    p.ta = true;
    p.m = outs;
    p.n = rows;
    p.k = ins;
    p.type = CUDA_R_8F_E4M3;
    p.alpha = 1;
    p.a = weight;
    p.b = x->q;
    p.lda = p.ldb = ins;
    p.scale_a = scale;
    p.scale_b = x->scale;
    return p;
}

void sl_fp8_matmul(struct sl_backend *be, const struct sl_fp8_rows *x, int64_t rows, const struct sl_weight *w,
                   const struct sl_weight *bias, const sl_act *add, int64_t ld_add, sl_act *y, int64_t ldy)
{
    struct product p = fp8_product(x, rows, w->q, w->scale, w->rows, w->cols);
    p.fast = true;
    p.beta = add ? 1.0f : 0.0f;
    p.c = add ? add : y;
    p.ldc = add ? ld_add : ldy;
    p.d = y;
    p.ldd = ldy;
    p.bias = bias ? bias->data : NULL;
    multiply(be, &p);
}

void sl_fp8_matmul_back(struct sl_backend *be, const struct sl_fp8_rows *dy, int64_t rows,
                        const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    struct product p = fp8_product(dy, rows, w->qt, w->scale_t, w->cols, w->rows);
    p.beta = accumulate ? 1.0f : 0.0f;
    p.c = p.d = dx;
    p.ldc = p.ldd = ldx;
    multiply(be, &p);
}

void sl_cuda_gemm_f32(struct sl_backend *be, bool ta, bool tb, int m, int n, int k, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc)
{
    struct product p = {};
    p.ta = tb; /* row-major C[m, n] is D[n, m]: the factors change places */
    p.tb = ta;
    p.m = n;
    p.n = m;
    p.k = k;
    p.type = CUDA_R_32F;
    p.alpha = alpha;
    p.beta = beta;
    p.a = b;
    p.lda = ldb;
    p.b = a;
    p.ldb = lda;
    p.c = p.d = c;
    p.ldc = p.ldd = ldc;
    multiply(be, &p);
}

#define EACH(T)                                                                                                      \
    template void sl_cuda_matmul<T>(struct sl_backend *, const sl_act *, int64_t, int64_t, const struct sl_weight *, \
                                    const struct sl_weight *, const sl_act *, int64_t, sl_act *, int64_t);           \
    template void sl_cuda_matmul_back<T>(struct sl_backend *, const sl_act *, int64_t, int64_t,                      \
                                         const struct sl_weight *, bool, sl_act *, int64_t);
EACH(float)
EACH(bf16)
