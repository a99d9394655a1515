/* Each operation's time at the shapes of SmolLM2-135M training, beside OpenBLAS's sgemm alone.
 *
 *   bench_ops [tokens] > ops.json
 *
 * "step" adds up one training step (30 layers, forward and backward): what sgemm alone would take
 * for its products, what matmul takes with bias and residual, and everything else. Times are the
 * least of several runs: the machine may be shared. */
#include "engine/cpu/coretype.h"
#include "engine/ops.h"
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    LAYERS = 30,
    HIDDEN = 576,
    QKV = 960,
    FFN = 1536,
    VOCAB = 49152,
    HEADS = 9,
    KV_HEADS = 3,
    HEAD_DIM = 64
};
enum { ROWS = 16, PREFIX = 16, OUT_ROWS = 64, COPIES = 6, RUNS = 9, MAX_TOKENS = 1 << 16 };

static const struct sl_ops *ops = &sl_cpu_ops;
static struct sl_backend *be;
static int tokens = 700;
static float *buf[8]; /* activations, each tokens * 2*FFN */
static float *logits, *stats, *table;
static int32_t *index_of, *visible;
static struct sl_seq seqs[ROWS + 1];
static struct sl_attention att;

struct product {
    const char *name;
    int out, in, calls; /* calls a step, forward; as many backward */
    bool residual;
    struct sl_weight *w[COPIES]; /* several, so that they come from memory as in a model */
    float *raw[COPIES];
};
static struct product products[] = {
    {"qkv", QKV, HIDDEN, LAYERS, false, {0}, {0}},
    {"o", HIDDEN, HIDDEN, LAYERS, true, {0}, {0}},
    {"gate_up", 2 * FFN, HIDDEN, LAYERS, false, {0}, {0}},
    {"down", HIDDEN, FFN, LAYERS, true, {0}, {0}},
    {"head", VOCAB, HIDDEN, 1, false, {0}, {0}},
};
enum { N_PRODUCTS = sizeof products / sizeof *products };
static struct sl_weight *vector;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static uint32_t state = 1;
static float noise(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-24f - 0.5f;
}

static int read_noise(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err)
{
    (void)row0;
    (void)err;
    int64_t cols = *(const int *)ctx;
    for (int64_t i = 0; i < n * cols; i++)
        out[i] = noise() * 0.1f;
    return 0;
}

static void *grab(size_t bytes)
{
    void *p = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (ops->alloc(be, bytes, &p, &err)) {
        fprintf(stderr, "bench_ops: %s\n", err.msg);
        exit(1);
    }
    return p;
}

static float *fill(size_t n)
{
    float *p = grab(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = noise();
    return p;
}

static struct sl_weight *weight(int rows, int cols)
{
    struct sl_weight *w = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (ops->weight_new(be, rows, cols, read_noise, &cols, &w, &err)) {
        fprintf(stderr, "bench_ops: %s\n", err.msg);
        exit(1);
    }
    return w;
}

static void setup(void)
{
    for (int i = 0; i < 8; i++)
        buf[i] = fill((size_t)tokens * 2 * FFN);
    logits = fill((size_t)OUT_ROWS * VOCAB);
    stats = fill((size_t)tokens * HEADS);
    table = fill((size_t)tokens * HEAD_DIM);
    index_of = grab((size_t)tokens * sizeof *index_of);
    visible = grab((size_t)tokens * sizeof *visible);
    for (int i = 0; i < N_PRODUCTS; i++)
        for (int c = 0; c < (products[i].calls > 1 ? COPIES : 1); c++) {
            products[i].w[c] = weight(products[i].out, products[i].in);
            products[i].raw[c] = fill((size_t)products[i].out * (size_t)products[i].in);
        }
    vector = weight(1, HIDDEN);
    int at = 0, n_rows = 0;
    for (int i = 0; i <= ROWS; i++) { /* the prefix, then rows of equal length */
        int n = i == 0 ? PREFIX : (tokens - PREFIX) * i / ROWS - (tokens - PREFIX) * (i - 1) / ROWS;
        seqs[n_rows++] = (struct sl_seq){at, n, at, n, 0, i ? PREFIX : 0};
        for (int t = 0; t < n; t++, at++) {
            visible[at] = t + 1;
            index_of[at] = at;
        }
    }
    att = (struct sl_attention){HEADS,  KV_HEADS, HEAD_DIM, 0.125f, n_rows,  tokens,
                                tokens, tokens,   tokens,   seqs,   visible, seqs};
}

/* ---- what is timed; `round` picks the copy of the weights */
static struct product *current;
static void sgemm_forward(int round)
{
    int rows = current->calls == 1 ? OUT_ROWS : tokens;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, current->out, current->in, 1.0f,
                buf[0], current->in, current->raw[current->calls > 1 ? round % COPIES : 0],
                current->in, 0.0f, current->calls == 1 ? logits : buf[1], current->out);
}
static void sgemm_backward(int round)
{
    int rows = current->calls == 1 ? OUT_ROWS : tokens;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, current->in, current->out, 1.0f,
                current->calls == 1 ? logits : buf[0], current->out,
                current->raw[current->calls > 1 ? round % COPIES : 0], current->in, 0.0f, buf[1],
                current->in);
}
static void matmul_forward(int round)
{
    int rows = current->calls == 1 ? OUT_ROWS : tokens;
    ops->matmul(be, buf[0], current->in, rows, current->w[current->calls > 1 ? round % COPIES : 0],
                NULL, current->residual ? buf[2] : NULL, current->out,
                current->calls == 1 ? logits : buf[1], current->out);
}
static void matmul_backward(int round)
{
    int rows = current->calls == 1 ? OUT_ROWS : tokens;
    ops->matmul_back(be, current->calls == 1 ? logits : buf[0], current->out, rows,
                     current->w[current->calls > 1 ? round % COPIES : 0], false, buf[1],
                     current->in);
}
static void run_norm(int round)
{
    (void)round;
    ops->norm(be, buf[0], tokens, HIDDEN, vector, NULL, 1e-5f, true, buf[1], NULL, stats);
}
static void run_norm_back(int round)
{
    (void)round;
    ops->norm_back(be, buf[0], buf[2], NULL, stats, tokens, HIDDEN, vector, true, true, buf[1]);
}
static void run_rope(int round)
{
    ops->rope(be, buf[3], QKV, tokens, HEADS + KV_HEADS, HEAD_DIM, HEAD_DIM, index_of, table,
              round & 1);
}
static void run_attention(int round)
{
    (void)round;
    ops->attention(be, &att, buf[4], QKV, buf[4] + HIDDEN, QKV,
                   buf[4] + HIDDEN + KV_HEADS * HEAD_DIM, QKV, buf[5], HIDDEN, stats);
}
static void run_attention_back(int round)
{
    (void)round;
    float *d = buf[6];
    ops->attention_back(be, &att, buf[4], QKV, buf[4] + HIDDEN, QKV,
                        buf[4] + HIDDEN + KV_HEADS * HEAD_DIM, QKV, buf[5], HIDDEN, stats, buf[7],
                        HIDDEN, d, QKV, d + HIDDEN, QKV, d + HIDDEN + KV_HEADS * HEAD_DIM, QKV);
}
static void run_swiglu(int round)
{
    (void)round;
    ops->activation(be, SL_ACT_SWIGLU, buf[0], tokens, FFN, buf[1]);
}
static void run_swiglu_back(int round)
{
    (void)round;
    ops->activation_back(be, SL_ACT_SWIGLU, buf[2], buf[0], tokens, FFN, buf[1]);
}
static void run_zero(int round)
{
    (void)round;
    ops->zero(be, buf[6], (size_t)tokens * QKV * sizeof(float));
}
static void run_embed(int round)
{
    (void)round;
    ops->embed(be, products[4].w[0], NULL, NULL, index_of, index_of, tokens, HIDDEN, buf[1]);
}
static void run_cross_entropy(int round)
{
    (void)round;
    static float ones[OUT_ROWS], loss[OUT_ROWS];
    ops->cross_entropy(be, logits, VOCAB, OUT_ROWS, VOCAB, OUT_ROWS, index_of, index_of, ones, true, loss);
}

static double least_ms(void (*run)(int))
{
    double least = 1e30;
    run(0);
    for (int i = 0; i < RUNS; i++) {
        double start = now_ms();
        run(i);
        double ms = now_ms() - start;
        least = ms < least ? ms : least;
    }
    return least;
}

static const struct {
    const char *name;
    void (*run)(int);
    int calls; /* a step */
} others[] = {
    {"norm", run_norm, 2 * LAYERS},
    {"norm_back", run_norm_back, 2 * LAYERS},
    {"rope", run_rope, 2 * LAYERS},
    {"attention", run_attention, LAYERS},
    {"attention_back", run_attention_back, LAYERS},
    {"swiglu", run_swiglu, LAYERS},
    {"swiglu_back", run_swiglu_back, LAYERS},
    {"zero_dqkv", run_zero, LAYERS},
    {"embed", run_embed, 1},
    {"cross_entropy", run_cross_entropy, 1},
};

int main(int argc, char **argv)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_cpu_reexec(argv)) {
        perror("bench_ops: starting over with OpenBLAS's right kernels");
        return 1;
    }
    if (argc > 1)
        tokens = atoi(argv[1]);
    if (tokens < PREFIX + ROWS || tokens > MAX_TOKENS) {
        fprintf(stderr, "bench_ops: tokens must be %d to %d\n", PREFIX + ROWS, MAX_TOKENS);
        return 2;
    }
    if (ops->open(&(struct sl_backend_opts){0}, &be, &err)) {
        fprintf(stderr, "bench_ops: %s\n", err.msg);
        return 1;
    }
    setup();
    struct sl_backend_info info;
    ops->info(be, &info);
    double sgemm = 0, matmul = 0, other = 0;
    printf("{\"kernel\": \"%s\", \"threads\": %d, \"tokens\": %d,\n \"products\": [", info.kernel,
           info.threads, tokens);
    for (int i = 0; i < N_PRODUCTS; i++) {
        current = &products[i];
        double flop = 2.0 * (current->calls == 1 ? OUT_ROWS : tokens) * current->out * current->in;
        double sf = least_ms(sgemm_forward), sb = least_ms(sgemm_backward);
        double mf = least_ms(matmul_forward), mb = least_ms(matmul_backward);
        sgemm += current->calls * (sf + sb);
        matmul += current->calls * (mf + mb);
        printf("%s\n  {\"name\": \"%s\", \"sgemm_ms\": %.3f, \"sgemm_gflops\": %.0f, "
               "\"matmul_ms\": %.3f, "
               "\"sgemm_back_ms\": %.3f, \"sgemm_back_gflops\": %.0f, \"matmul_back_ms\": %.3f}",
               i ? "," : "", current->name, sf, flop / sf * 1e-6, mf, sb, flop / sb * 1e-6, mb);
    }
    printf("],\n \"others\": [");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        double ms = least_ms(others[i].run);
        other += others[i].calls * ms;
        printf("%s\n  {\"name\": \"%s\", \"ms\": %.3f, \"step_ms\": %.2f}", i ? "," : "",
               others[i].name, ms, others[i].calls * ms);
    }
    printf("],\n \"step\": {\"sgemm_ms\": %.1f, \"matmul_ms\": %.1f, \"others_ms\": %.1f, "
           "\"ratio\": %.3f}}\n",
           sgemm, matmul, other, (matmul + other) / sgemm);
    ops->close(be);
    return 0;
}
