/* Products of a frozen GPT layer, one by one: how near to the device's own rate each comes.
 *
 *   bench_matmul [DEVICE [ROWS [HIDDEN...]]]        default: auto 16384 768 2048 4096
 *
 * For each hidden size and precision the four linear layers forward and backward, with the bias or
 * residual that their place in the layer asks for, and the feed-forward part's gradient with its
 * GELU at once. Queued many times, timed by the host's clock until the last one is done. Rates
 * count 2 m n k; fractions are of a square bf16 product of SQUARE, run first. fp8 includes the
 * rounding of its inputs; its forward pass is bf16.
 */
#include "base/clock.h"
#include "engine/backend.h"
#include "engine/cpu/coretype.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SQUARE 8192
#define LAYERS_FFN 4 /* ffn = 4 hidden */
#define SECONDS 0.03 /* of queued work a measurement */
#define MAX_RUNS 400

static struct sl_err err;
static const struct sl_ops *ops;
static struct sl_backend *be;
static uint64_t rng = 1;

static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "bench_matmul: %s\n", err.msg);
        exit(rc == SL_NOTFOUND ? 77 : 1);
    }
}

/* Never zeros: a GPU multiplies those faster. */
static float noise(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(rng >> 32) * 0x1p-31f;
}

static int read_noise(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *e)
{
    (void)row0, (void)e;
    for (int64_t i = 0; i < n * *(int64_t *)ctx; i++)
        out[i] = 0.05f * noise();
    return 0;
}

static struct sl_weight *linear(int64_t out, int64_t in)
{
    struct sl_weight *w = NULL;
    must(ops->linear_new(be, out, in, read_noise, &in, &w, &err));
    return w;
}

static struct sl_weight *vector(int64_t n)
{
    struct sl_weight *w = NULL;
    must(ops->weight_new(be, 1, n, read_noise, &n, &w, &err));
    return w;
}

static void *room(size_t bytes)
{
    void *p = NULL;
    must(ops->alloc(be, bytes, &p, &err));
    return p;
}

/* Activations of noise: one block of it again and again. */
static sl_act *filled(int64_t n)
{
    enum { BLOCK = 1 << 20 };
    static float host[BLOCK];
    void *f = room(sizeof host), *p = room((size_t)(n + BLOCK) * ops->act_bytes);
    for (int64_t at = 0; at < n; at += BLOCK) {
        if (at % (8 * BLOCK) == 0) {
            for (int i = 0; i < BLOCK; i++)
                host[i] = noise();
            must(ops->upload(be, f, host, sizeof host, &err));
        }
        ops->from_f32(be, f, BLOCK, (char *)p + (size_t)at * ops->act_bytes);
    }
    ops->free(be, f);
    return p;
}

/* ---- what is timed */
struct layer {
    int64_t rows, out, in;
    struct sl_weight *w, *up, *bias;
    sl_act *x, *y, *tmp, *pre;
};
typedef void timed_fn(const struct layer *l);

static void forward(const struct layer *l)
{
    ops->matmul(be, l->x, l->in, l->rows, l->w, l->bias, NULL, 0, l->y, l->out);
}
static void forward_residual(const struct layer *l)
{
    ops->matmul(be, l->x, l->in, l->rows, l->w, l->bias, l->tmp, l->out, l->y, l->out);
}
static void back(const struct layer *l)
{
    ops->matmul_back(be, l->y, l->out, l->rows, l->w, false, l->x, l->in);
}
/* l is down, with up beside it */
static void mlp_back(const struct layer *l)
{
    if (ops->mlp_back)
        ops->mlp_back(be, SL_ACT_GELU_TANH, l->y, l->out, l->rows, (int)l->in, l->w, l->pre, l->x,
                      l->up, l->tmp, l->out);
    else {
        ops->matmul_back(be, l->y, l->out, l->rows, l->w, false, l->x, l->in);
        ops->activation_back(be, SL_ACT_GELU_TANH, l->x, l->pre, l->rows, (int)l->in, l->pre);
        ops->matmul_back(be, l->pre, l->in, l->rows, l->up, false, l->tmp, l->out);
    }
}
static void mlp_back_apart(const struct layer *l)
{
    ops->matmul_back(be, l->y, l->out, l->rows, l->w, false, l->x, l->in);
    /* pre stays as it is: again and again in place would be products of zeros, which are faster */
    ops->activation_back(be, SL_ACT_GELU_TANH, l->x, l->pre, l->rows, (int)l->in, l->tmp);
    ops->matmul_back(be, l->tmp, l->in, l->rows, l->up, false, l->x, l->out);
}

static double seconds_of(timed_fn *fn, const struct layer *l)
{
    int runs = 1;
    float one;
    double s = 0;
    for (int round = 0; round < 4; round++) { /* start-up, how many, two to measure */
        int64_t begun = sl_boot_us();
        for (int i = 0; i < runs; i++)
            fn(l);
        must(ops->step_end(be, &err));
        must(ops->download(be, &one, l->y, ops->act_bytes, &err));
        double took = (double)(sl_boot_us() - begun) / 1e6 / runs;
        if (round == 1)
            runs = took * MAX_RUNS < SECONDS ? MAX_RUNS
                   : took > SECONDS / 3      ? 3
                                             : (int)(SECONDS / took);
        s = round < 3 || took < s ? took : s;
    }
    return s;
}

static double line(const char *what, timed_fn *fn, const struct layer *l, double peak)
{
    double s = seconds_of(fn, l),
           rate = 2e-12 * (double)l->rows * (double)l->out * (double)l->in / s;
    printf("  %-22s %6lld x %5lld x %5lld %9.3f ms %7.0f TFLOP/s", what, (long long)l->rows,
           (long long)l->out, (long long)l->in, s * 1e3, rate);
    if (peak > 0)
        printf(" %5.2f", rate / peak);
    printf("\n");
    fflush(stdout);
    return peak > 0 ? s : rate;
}

static void layers(int64_t rows, int64_t hidden, const char *precision, double peak)
{
    static const struct {
        const char *name;
        int out, in; /* in hidden sizes */
        timed_fn *forward;
    } all[] = {{"qkv", 3, 1, forward},
               {"o", 1, 1, forward_residual},
               {"up", LAYERS_FFN, 1, forward},
               {"down", 1, LAYERS_FFN, forward_residual}};
    struct layer l = {.rows = rows, .bias = vector(LAYERS_FFN * hidden)};
    sl_act **const acts[] = {&l.x, &l.y, &l.tmp, &l.pre};
    double sum = 0;
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
        *acts[i] = filled(rows * LAYERS_FFN * hidden);
    printf("hidden %lld, %s\n", (long long)hidden, precision);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[32];
        l.out = all[i].out * hidden;
        l.in = all[i].in * hidden;
        l.w = linear(l.out, l.in);
        sum += line(all[i].name, all[i].forward, &l, peak);
        snprintf(name, sizeof name, "%s back", all[i].name);
        sum += line(name, back, &l, peak);
        if (all[i].in == LAYERS_FFN) {
            l.up = linear(l.in, l.out);
            double apart = seconds_of(mlp_back_apart, &l);
            printf("  down, gelu and up back: %.3f ms, one by one %.3f ms\n",
                   seconds_of(mlp_back, &l) * 1e3, apart * 1e3);
            ops->weight_free(be, l.up);
        }
        ops->weight_free(be, l.w);
    }
    printf("  a layer's eight products: %.3f ms\n", sum * 1e3);
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
        ops->free(be, *acts[i]);
    ops->weight_free(be, l.bias);
}

static double square(void)
{
    struct layer l = {.rows = SQUARE, .out = SQUARE, .in = SQUARE, .w = linear(SQUARE, SQUARE)};
    l.x = filled(SQUARE * SQUARE);
    l.y = filled(SQUARE * SQUARE);
    double rate = line("square, bf16", forward, &l, 0);
    ops->weight_free(be, l.w);
    ops->free(be, l.x);
    ops->free(be, l.y);
    return rate;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        enum sl_precision precision;
    } in[] = {{"bf16", SL_PRECISION_BF16}, {"fp8", SL_PRECISION_FP8}, {"int8", SL_PRECISION_INT8}};
    static char *sizes[] = {"768", "2048", "4096"};
    double peak = 0;
    if (sl_cpu_reexec(argv))
        return 1;
    int64_t rows = argc > 2 ? atoll(argv[2]) : 16384;
    for (size_t p = 0; p < sizeof in / sizeof *in; p++) {
        if (sl_backend_open(argc > 1 ? argv[1] : NULL, in[p].precision, 0, &ops, &be, &err)) {
            printf("%s not run: %s\n", in[p].name, err.msg);
            sl_err_clear(&err);
            continue;
        }
        peak = peak > 0 ? peak : square();
        for (int i = 0; i < (argc > 3 ? argc - 3 : 3); i++)
            layers(rows, atoll(argc > 3 ? argv[i + 3] : sizes[i]), in[p].name, peak);
        ops->close(be);
    }
    return 0;
}
