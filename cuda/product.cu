/* Matrices: cublasLt with a workspace of its own, so that equal shapes give equal bits.
 *
 * cublasLt thinks in columns: a row-major y[rows, out] is its D[out, rows], so y = x W^T is D = W_ x_ with W_
 * transposed. The algorithm is the heuristic's first choice, asked for once per kind of product and number of
 * rows rounded up, or one of a few that are written down here, never by timing; strides and addresses count by their
 * alignment. */
#include "cuda/product.cuh"
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE_BYTES ((size_t)32 << 20)
#define MAX_CHOICES 4096 /* a power of two; when full, kinds of product are forgotten, not refused */
#define MAX_ALIGNMENT 256
#define ASKED 8 /* algorithms, of which the first that runs is taken */

/* All that the choice of an algorithm may depend on. Compared as bytes: no holes. */
struct kind {
    int64_t m, n, k, lda, ldb, ldc, ldd;
    int32_t ta, tb, type, beta, bias;
    int32_t align_a, align_b, align_c, align_d, gelu, fast, unused;
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

static cudaDataType_t out_type(const struct sl_product *p)
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

static struct kind kind_of(const struct sl_product *p)
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
    k.gelu = p->gelu_at != NULL;
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
static cublasStatus_t describe_scales(const struct sl_product *p, cublasLtMatmulDesc_t desc)
{
    cublasLtMatmulMatrixScale_t outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    int8_t fast = p->fast;
    const struct {
        cublasLtMatmulDescAttributes_t attribute;
        const void *value;
        size_t bytes;
    } set[] = {{CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &outer, sizeof outer},
               {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &outer, sizeof outer},
               {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p->scale_a, sizeof p->scale_a},
               {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p->scale_b, sizeof p->scale_b},
               {CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast}};
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; !s && i < sizeof set / sizeof *set; i++)
        s = cublasLtMatmulDescSetAttribute(desc, set[i].attribute, set[i].value, set[i].bytes);
    return s;
}

static cublasStatus_t describe_gelu(const struct sl_product *p, cublasLtMatmulDesc_t desc)
{
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DGELU;
    cublasStatus_t s = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (!s)
        s = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &p->gelu_at,
                                           sizeof p->gelu_at);
    if (!s)
        s = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &p->ldd, sizeof p->ldd);
    return s;
}

static cublasStatus_t describe(const struct sl_product *p, int64_t rows, struct layouts *l)
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
    if (!s && p->gelu_at)
        s = describe_gelu(p, &l->desc);
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

/* What cublasLt may refuse, and has another way here. The heuristic also names algorithms that do not run then. */
static bool optional(const struct sl_product *p)
{
    return p->scale_a || p->gelu_at;
}

static bool runs(struct sl_cuda_blas *b, const struct layouts *l, const cublasLtMatmulAlgo_t *algo)
{
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(b->handle, (cublasLtMatmulDesc_t)&l->desc, (cublasLtMatrixLayout_t)&l->a,
                                   (cublasLtMatrixLayout_t)&l->b, (cublasLtMatrixLayout_t)&l->c,
                                   (cublasLtMatrixLayout_t)&l->d, algo, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= WORKSPACE_BYTES;
}

/* Where another algorithm than the heuristic's first was faster by 3 to 15 % on an H200, at 16,384 rows
 * (tests/bench/bench_matmul): gradients by these weights, and GELU's slope inside. Known by tile and cluster, so that
 * another device or library, which does not name them, keeps its own first choice. */
#define MANY_ROWS 4096
static const struct preference {
    int64_t m, k; /* 0: any */
    bool gelu;
    int32_t tile;
    uint16_t cluster;
} preferences[] = {
    {768, 768, false, 29, 3},   {768, 2304, false, 20, 3},   {3072, 768, false, 29, 3},   {8192, 2048, false, 29, 3},
    {4096, 4096, false, 29, 3}, {4096, 12288, false, 29, 3}, {16384, 4096, false, 29, 3}, {0, 0, true, 20, 3},
};

static const struct preference *wants(const struct sl_product *p)
{
    for (const struct preference *w = preferences; w < preferences + sizeof preferences / sizeof *preferences; w++)
        if (!p->ta && !p->tb && p->type == CUDA_R_16BF && rounded(p->n) >= MANY_ROWS &&
            w->gelu == (p->gelu_at != NULL) && (!w->m || (w->m == p->m && w->k == p->k)))
            return w;
    return NULL;
}

/* Of n found algorithms. */
static int preferred(const struct sl_product *p, const cublasLtMatmulHeuristicResult_t *found, int n)
{
    const struct preference *w = wants(p);
    for (int i = 0; w && i < n; i++) {
        int32_t tile = 0;
        uint16_t cluster = 0;
        size_t size;
        cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, &size);
        cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster,
                                             sizeof cluster, &size);
        if (tile == w->tile && cluster == w->cluster)
            return i;
    }
    return 0;
}

static cublasStatus_t choose(struct sl_cuda_blas *b, const struct sl_product *p, const struct kind *k, int64_t rows,
                             cublasLtMatmulAlgo_t *ret_algo)
{
    struct layouts l;
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasLtMatmulHeuristicResult_t found[ASKED];
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
        s = cublasLtMatmulAlgoGetHeuristic(b->handle, &l.desc, &l.a, &l.b, &l.c, &l.d, &pref,
                                           optional(p) || wants(p) ? ASKED : 1, found, &n);
    if (!s && !p->scale_a)
        at = preferred(p, found, n);
    while (!s && optional(p) && at < n && !runs(b, &l, &found[at].algo))
        at++;
    if (!s && at >= n)
        s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!s)
        *ret_algo = found[at].algo;
    return s;
}

static cublasStatus_t run(struct sl_backend *be, const struct sl_product *p, const cublasLtMatmulAlgo_t *algo)
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

static cublasStatus_t multiply_as(struct sl_backend *be, const struct sl_product *p)
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
    if (refused(s) && optional(p)) {
        c->kind = k;
        c->known = c->refused = true;
    }
    return s;
}

/* The same product from factors multiplied out, in bf16: for few rows, where cublasLt has no fp8 with scales of rows.
 */
static cublasStatus_t multiply_out(struct sl_backend *be, const struct sl_product *p)
{
    struct sl_product wide = *p;
    if (!sl_fp8_values(be, (const unsigned char *)p->a, p->scale_a, p->m, (const unsigned char *)p->b, p->scale_b, p->n,
                       p->k, &wide.a, &wide.b))
        return CUBLAS_STATUS_SUCCESS; /* kept */
    wide.type = CUDA_R_16BF;
    wide.scale_a = wide.scale_b = NULL;
    wide.fast = false;
    return multiply_as(be, &wide);
}

static void report(struct sl_backend *be, const struct sl_product *p, cublasStatus_t s)
{
    cudaStreamCaptureStatus capture; /* asked for what an earlier kernel may have done to the device */
    if (s && !sl_cuda_failed(be, cudaStreamIsCapturing(be->stream, &capture), "work before a product"))
        sl_err_set(&be->kept, s == CUBLAS_STATUS_ALLOC_FAILED ? SL_NOMEM : SL_DEVICE,
                   "GPU %d: product of %lld x %lld x %lld: %s", be->device, (long long)p->n, (long long)p->m,
                   (long long)p->k, cublasLtGetStatusString(s));
}

bool sl_cuda_multiply_if(struct sl_backend *be, const struct sl_product *p)
{
    if (p->m <= 0 || p->n <= 0 || be->kept.code)
        return true;
    cublasStatus_t s = multiply_as(be, p);
    if (refused(s))
        return false;
    report(be, p, s);
    return true;
}

void sl_cuda_multiply(struct sl_backend *be, const struct sl_product *p)
{
    if (p->m <= 0 || p->n <= 0 || be->kept.code)
        return;
    cublasStatus_t s = multiply_as(be, p);
    if (refused(s) && p->fast) {
        struct sl_product exact = *p;
        exact.fast = false;
        s = multiply_as(be, &exact);
    }
    if (refused(s) && p->scale_a)
        s = multiply_out(be, p);
    report(be, p, s);
}
