/* The element-wise passes of a step beside a plain copy: bytes that each cannot do without, over its time.
 *
 *   bench_rows DEVICE PRECISION [ROWS HIDDEN VOCAB]
 *
 * One JSON line an operation: GB/s, and that as a part of what a copy of as many rows reaches. Inputs are random; three
 * sets take turns, so that little of them is in a cache. */
#include "base/clock.h"
#include "engine/backend.h"
#include "engine/cpu/coretype.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SETS 3
#define CALLS 30
#define HEAD 64
#define OUT_SHARE 32 /* rows for each row of logits */

static struct sl_err err;
static const struct sl_ops *ops;
static struct sl_backend *be;
static int64_t rows, outs;
static int hidden, vocab;
static sl_act *x[SETS], *y[SETS], *z[SETS], *logits; /* x, z: [rows, 8 hidden]; y [rows, 4 hidden] */
static float *mean, *rstd, *turns, *ones, *loss;
static int32_t *index_of;
static struct sl_weight *weight;

static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "bench_rows: %s\n", err.msg);
        exit(1);
    }
}

static void *device(size_t bytes)
{
    void *p;
    must(ops->alloc(be, bytes, &p, &err));
    return p;
}

static float number(size_t i)
{
    return (float)((int)(i * 2654435761u % 2001) - 1000) / 500;
}

static sl_act *numbers(size_t n)
{
    enum { PIECE = 1 << 20 };
    static float host[PIECE];
    float *piece = device(sizeof host);
    sl_act *p = device(n * ops->act_bytes);
    for (size_t i = 0; i < PIECE; i++)
        host[i] = number(i);
    must(ops->upload(be, piece, host, sizeof host, &err));
    for (size_t at = 0; at < n; at += PIECE)
        ops->from_f32(be, piece, (int64_t)(n - at < PIECE ? n - at : PIECE), (char *)p + at * ops->act_bytes);
    must(ops->download(be, host, piece, sizeof *host, &err));
    ops->free(be, piece);
    return p;
}

static int read_row(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *e)
{
    (void)ctx, (void)row0, (void)e;
    for (int64_t i = 0; i < n * hidden; i++)
        out[i] = number((size_t)i);
    return 0;
}

static void run_copy(int s)
{
    ops->copy(be, y[s], x[s], (size_t)(rows * hidden) * ops->act_bytes);
}
static void run_zero(int s)
{
    ops->zero(be, y[s], (size_t)(rows * hidden) * ops->act_bytes);
}
static void run_norm(int s)
{
    ops->norm(be, x[s], rows, hidden, weight, weight, 1e-5f, false, y[s], mean, rstd);
}
static void run_norm_back(int s)
{
    ops->norm_back(be, x[s], z[s], mean, rstd, rows, hidden, weight, false, true, y[s]);
}
static void run_gelu(int s)
{
    ops->activation(be, SL_ACT_GELU_TANH, x[s], rows, 4 * hidden, y[s]);
}
static void run_gelu_back(int s)
{
    ops->activation_back(be, SL_ACT_GELU_TANH, y[s], x[s], rows, 4 * hidden, z[s]);
}
static void run_swiglu(int s)
{
    ops->activation(be, SL_ACT_SWIGLU, x[s], rows, 4 * hidden, y[s]);
}
static void run_swiglu_back(int s)
{
    ops->activation_back(be, SL_ACT_SWIGLU, y[s], x[s], rows, 4 * hidden, z[s]);
}
static void run_rope(int s)
{
    ops->rope(be, y[s], hidden, rows, hidden / HEAD, HEAD, HEAD, index_of, turns, false);
}
static void run_gather(int s)
{
    ops->gather(be, x[s], hidden, index_of, rows, hidden, y[s], hidden);
}
static void run_loss(int s)
{
    (void)s;
    ops->cross_entropy(be, logits, vocab, outs, vocab, outs, index_of, index_of, ones, true, loss);
}

/* Milliseconds a call. */
static double time_of(void (*run)(int))
{
    float end;
    int64_t t = 0;
    for (int i = -SETS; i < CALLS; i++) {
        if (i == 0) {
            must(ops->download(be, &end, mean, sizeof end, &err));
            t = sl_boot_us();
        }
        run((i + SETS) % SETS);
    }
    must(ops->download(be, &end, mean, sizeof end, &err));
    return (double)(sl_boot_us() - t) / 1e3 / CALLS;
}

int main(int argc, char **argv)
{
    if (sl_cpu_reexec(argv) || (argc != 3 && argc != 6)) {
        fprintf(stderr, "usage: bench_rows DEVICE PRECISION [ROWS HIDDEN VOCAB]\n");
        return 2;
    }
    rows = argc > 3 ? atoi(argv[3]) : 16384;
    hidden = argc > 3 ? atoi(argv[4]) : 2048;
    vocab = argc > 3 ? atoi(argv[5]) : 50304;
    outs = rows / OUT_SHARE;
    must(sl_backend_open(argv[1], strcmp(argv[2], "bf16") ? SL_PRECISION_FP32 : SL_PRECISION_BF16, 0, &ops, &be, &err));
    size_t n = (size_t)rows * (size_t)hidden;
    for (int s = 0; s < SETS; s++) {
        x[s] = numbers(8 * n);
        z[s] = numbers(8 * n);
        y[s] = numbers(4 * n);
    }
    logits = numbers((size_t)outs * (size_t)vocab);
    int32_t *host = malloc((size_t)rows * sizeof *host);
    float *one = malloc((size_t)(rows > HEAD ? rows : HEAD) * HEAD * sizeof *one);
    if (!host || !one)
        return 1;
    for (int64_t i = 0; i < rows; i++)
        host[i] = (int32_t)i;
    for (int64_t i = 0; i < rows * HEAD; i++)
        one[i] = 1;
    index_of = device((size_t)rows * sizeof *index_of);
    turns = device((size_t)rows * HEAD * sizeof(float));
    mean = device((size_t)rows * sizeof(float));
    rstd = device((size_t)rows * sizeof(float));
    loss = device((size_t)rows * sizeof(float));
    ones = turns;
    must(ops->upload(be, index_of, host, (size_t)rows * sizeof *host, &err));
    must(ops->upload(be, turns, one, (size_t)rows * HEAD * sizeof *one, &err));
    must(ops->weight_new(be, 1, hidden, read_row, NULL, &weight, &err));
    const struct {
        const char *name;
        void (*run)(int);
        double elements; /* read and written, in the activation type */
    } all[] = {{"copy", run_copy, 2.0 * (double)n},
               {"zero", run_zero, 1.0 * (double)n},
               {"norm", run_norm, 2.0 * (double)n},
               {"norm_back", run_norm_back, 4.0 * (double)n},
               {"gelu", run_gelu, 8.0 * (double)n},
               {"gelu_back", run_gelu_back, 12.0 * (double)n},
               {"swiglu", run_swiglu, 12.0 * (double)n},
               {"swiglu_back", run_swiglu_back, 20.0 * (double)n},
               {"rope", run_rope, 2.0 * (double)n},
               {"gather", run_gather, 2.0 * (double)n},
               {"cross_entropy", run_loss, 2.0 * (double)outs * (double)vocab}};
    double copy = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double ms = time_of(all[i].run), gb_s = all[i].elements * (double)ops->act_bytes / ms / 1e6;
        copy = i == 0 ? gb_s : copy;
        printf("{\"op\": \"%s\", \"rows\": %lld, \"hidden\": %d, \"ms\": %.4f, \"gb_s\": %.0f, \"of_copy\": %.2f}\n",
               all[i].name, (long long)rows, hidden, ms, gb_s, gb_s / copy);
    }
    ops->weight_free(be, weight);
    ops->close(be); /* and the process ends: the buffers go with it */
    free(host);
    free(one);
    return 0;
}
