/* A prompt encoder's share of a training step, alone: forward, backward, clipping and AdamW.
 *
 *   bench_encoder DEVICE PRECISION TYPE HIDDEN E VIRTUAL TASKS STEPS
 *
 * TYPE is lstm (2 layers), mlp (3 linear layers) or tpmlp. Prints one JSON object: medians over STEPS steps in ms, each
 * part waited for by itself, and the whole step waited for once; and the table's distance from the fp32 CPU's after
 * those steps against a fixed target (CPU_STEPS of them, where that is not 0 in the environment). */
#include "base/clock.h"
#include "engine/backend.h"
#include "engine/cpu/coretype.h"
#include "engine/optim.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 1000
#define UNTIMED 3

enum part { FORWARD, BACKWARD, UPDATE, WHOLE, PARTS };

static struct sl_err err;

static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "bench_encoder: %s\n", err.msg);
        exit(1);
    }
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct run {
    const struct sl_ops *ops;
    struct sl_backend *be;
    struct sl_encoder *e;
    struct sl_optim optim;
    float *tables, *dtables, *one;
    size_t n; /* floats of the tables */
};

static void open_run(struct run *r, const char *device, enum sl_precision precision, const struct sl_encoder_config *c)
{
    void *p;
    *r = (struct run){.n = (size_t)c->n_tasks * (size_t)c->virtual_tokens * (size_t)c->hidden};
    must(sl_backend_open(device, precision, 0, &r->ops, &r->be, &err));
    must(sl_encoder_new(c, r->ops, r->be, &r->e, &err));
    r->optim = (struct sl_optim){.beta1 = 0.9f, .beta2 = 0.98f, .eps = 1e-8f, .weight_decay = 0.01f, .clip_norm = 1};
    must(sl_optim_init(&r->optim, r->ops, r->be, &err));
    must(r->ops->alloc(r->be, r->n * sizeof(float), &p, &err));
    r->tables = p;
    must(r->ops->alloc(r->be, r->n * sizeof(float), &p, &err));
    r->dtables = p;
    must(r->ops->alloc(r->be, sizeof(float), &p, &err));
    r->one = p;
}

static void close_run(struct run *r)
{
    r->ops->free(r->be, r->tables);
    r->ops->free(r->be, r->dtables);
    r->ops->free(r->be, r->one);
    sl_optim_release(&r->optim);
    sl_encoder_free(r->e);
    r->ops->close(r->be);
}

/* Milliseconds since t, once the device has done all that was asked of it. */
static double passed(const struct run *r, int64_t t)
{
    float x;
    must(r->ops->download(r->be, &x, r->tables, sizeof x, &err));
    return (double)(sl_boot_us() - t) / 1e3;
}

/* The gradient of half the squared distance from fixed numbers, so that training goes somewhere. */
static void toward_target(struct run *r, float *host)
{
    must(r->ops->download(r->be, host, r->tables, r->n * sizeof *host, &err));
    for (size_t i = 0; i < r->n; i++)
        host[i] -= 0.1f * (float)((int)(i * 2654435761u % 2001) - 1000) / 1000;
    must(r->ops->upload(r->be, r->dtables, host, r->n * sizeof *host, &err));
}

static void train(struct run *r, int steps, float *host)
{
    float norm;
    struct sl_param all = sl_encoder_whole(r->e);
    for (int i = 0; i < steps; i++) {
        sl_encoder_zero_grad(r->e);
        sl_encoder_forward(r->e, true, i, r->tables);
        toward_target(r, host);
        sl_encoder_backward(r->e, r->dtables);
        must(sl_optim_step(&r->optim, &all, 1, 1e-3f, i + 1, &norm, &err));
    }
    sl_encoder_forward(r->e, false, steps, r->tables);
    must(r->ops->download(r->be, host, r->tables, r->n * sizeof *host, &err));
}

static double time_parts(struct run *r, int steps, double median[PARTS])
{
    static double ms[PARTS][MAX_STEPS];
    float norm = 0;
    struct sl_param all = sl_encoder_whole(r->e);
    for (int i = -UNTIMED; i < steps; i++) {
        double at[PARTS];
        int64_t t = sl_boot_us();
        sl_encoder_forward(r->e, true, i + UNTIMED, r->tables);
        at[FORWARD] = passed(r, t);
        t = sl_boot_us();
        sl_encoder_zero_grad(r->e);
        sl_encoder_backward(r->e, r->dtables);
        at[BACKWARD] = passed(r, t);
        t = sl_boot_us();
        must(sl_optim_step(&r->optim, &all, 1, 0, i + UNTIMED + 1, &norm, &err));
        at[UPDATE] = passed(r, t);
        t = sl_boot_us();
        sl_encoder_zero_grad(r->e);
        sl_encoder_forward(r->e, true, i + UNTIMED, r->tables);
        sl_encoder_backward(r->e, r->dtables);
        must(sl_optim_step(&r->optim, &all, 1, 0, i + UNTIMED + 1, &norm, &err));
        at[WHOLE] = passed(r, t);
        for (int k = 0; k < PARTS && i >= 0; k++)
            ms[k][i] = at[k];
    }
    for (int k = 0; k < PARTS; k++) {
        qsort(ms[k], (size_t)steps, sizeof **ms, by_size);
        median[k] = ms[k][steps / 2];
    }
    return (double)norm;
}

static double distance(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / s);
}

int main(int argc, char **argv)
{
    const char *asked = getenv("CPU_STEPS");
    int steps = argc == 9 ? atoi(argv[8]) : 0, cpu_steps = asked ? atoi(asked) : 0, n_params;
    double median[PARTS], norm, far = NAN;
    int64_t floats = 0;
    struct run r, cpu;

    if (sl_cpu_reexec(argv) || steps < 1 || steps > MAX_STEPS) {
        fprintf(stderr, "usage: bench_encoder DEVICE PRECISION lstm|mlp|tpmlp HIDDEN E VIRTUAL TASKS STEPS\n");
        return 2;
    }
    bool lstm = !strcmp(argv[3], "lstm");
    struct sl_encoder_config c = {.type = lstm                       ? SL_ENC_LSTM
                                          : !strcmp(argv[3], "mlp") ? SL_ENC_MLP
                                                                    : SL_ENC_TPMLP,
                                  .hidden = atoi(argv[4]),
                                  .encoder_hidden = atoi(argv[5]),
                                  .virtual_tokens = atoi(argv[6]),
                                  .n_tasks = atoi(argv[7]),
                                  .layers = lstm ? 2 : 3,
                                  .init_std = 0.023f,
                                  .seed = 1};
    open_run(&r, argv[1], strcmp(argv[2], "bf16") ? SL_PRECISION_FP32 : SL_PRECISION_BF16, &c);
    float *host = malloc(r.n * sizeof *host), *other = malloc(r.n * sizeof *other);
    if (!host || !other)
        return 1;
    if (cpu_steps > 0) {
        open_run(&cpu, "cpu", SL_PRECISION_FP32, &c);
        train(&cpu, cpu_steps, other);
        train(&r, cpu_steps, host);
        far = distance(host, other, r.n);
        close_run(&cpu);
    }
    toward_target(&r, host);
    norm = time_parts(&r, steps, median);
    struct sl_param *p = sl_encoder_params(r.e, &n_params);
    for (int i = 0; i < n_params; i++)
        floats += (int64_t)p[i].rows * p[i].cols;
    printf("{\"backend\": \"%s\", \"type\": \"%s\", \"hidden\": %d, \"encoder_hidden\": %d, \"virtual\": %d, \"tasks\": %d, "
           "\"parameters\": %lld, \"forward_ms\": %.3f, \"backward_ms\": %.3f, \"update_ms\": %.3f, \"step_ms\": %.3f, "
           "\"grad_norm\": %.4g",
           r.ops->name, argv[3], c.hidden, c.encoder_hidden, c.virtual_tokens, c.n_tasks, (long long)floats,
           median[FORWARD], median[BACKWARD], median[UPDATE], median[WHOLE], norm);
    if (cpu_steps > 0)
        printf(", \"steps_compared\": %d, \"distance_from_cpu\": %.2e", cpu_steps, far);
    printf("}\n");
    close_run(&r);
    free(host);
    free(other);
    return 0;
}
