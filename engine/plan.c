#include "engine/plan.h"
#include "engine/model_parts.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (INT64_C(1) << 20)
#define GIB (INT64_C(1) << 30)

/* Estimates from above of what is not counted. */
#define CUDA_CONTEXT_BYTES (600 * MIB)
#define CUDA_WORKSPACE_BYTES                                                                       \
    (160 * MIB) /* cublasLt's workspace and kernels, weights on their way, tables of a batch */
#define CUDA_SHARE 64         /* of the two blocks, for what the driver needs to map them */
#define CUDA_PREFIX_ROWS 2048 /* partial sums of shared prefixes' keys and values, at least; else  \
                               */
#define CUDA_PREFIX_BLOCK 64  /* rows of a prefix are rounded up to so many */
#define CPU_PROCESS_BYTES (96 * MIB) /* the program, its libraries and OpenBLAS's buffers */
#define CPU_THREADS_MOST 64

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What operations take inside, besides the arena. Scratch grows by a quarter more than it must. */
static int64_t workspace_bytes(const struct sl_plan *p, const struct sl_model *m)
{
    const struct sl_arch *a = &m->arch;
    int64_t prefix =
        larger(CUDA_PREFIX_ROWS, p->most.n_prompts + (int64_t)CUDA_PREFIX_BLOCK * p->most.n_slots);
    int64_t rows = p->most.n_tokens, kv = 2 * m->kv_cols,
            widest = larger(m->pre_cols, m->q_cols + kv), bytes;
    int64_t values = p->device.precision == SL_PRECISION_INT8
                         ? widest * a->hidden * (int64_t)m->ops->act_bytes
                         : 0;

    if (!p->device.accelerator) /* blocks of attention a thread; a step's partial sums */
        return values + rows * (a->heads + kv) * (int64_t)sizeof(float) +
               CPU_THREADS_MOST * (int64_t)a->head_dim * 4096;
    bytes = CUDA_WORKSPACE_BYTES + values;
    if (p->device.precision == SL_PRECISION_FP8)
        bytes += rows * widest + 2 * (int64_t)widest * a->hidden;
    bytes += rows * a->heads * (int64_t)sizeof(float); /* rows of dO . O */
    bytes += prefix * kv * (int64_t)sizeof(float);     /* prefixes' keys */
    return bytes + bytes / 4 + (p->persistent + p->arena) / CUDA_SHARE;
}

/* What passes with at most these counts take: small ones are padded where they may be captured
 * (model.c). */
static void step_bytes(const struct sl_plan *p, const struct sl_model *m,
                       const struct sl_batch *most, bool gradient, int n,
                       struct sl_step_bytes *ret)
{
    struct sl_batch small = *most, padded;
    struct sl_recompute again = sl_recompute_at(p->layers, n);
    struct sl_step_bytes bytes, other;

    sl_model_step_bytes(m, most, gradient, again, &bytes);
    if (p->device.accelerator && most->n_out) {
        int most_captured = SL_CAPTURE_NUMBERS_MAX / m->arch.hidden;
        small.n_tokens = small.n_tokens < most_captured ? small.n_tokens : most_captured;
        sl_batch_pad_bound(&small, &padded);
        sl_model_step_bytes(m, &padded, gradient, again, &other);
        if (other.total > bytes.total)
            bytes = other;
    }
    *ret = bytes;
}

void sl_plan_set(struct sl_plan *p, const struct sl_model *model, const struct sl_batch *forward,
                 int recompute)
{
    struct sl_step_bytes validation = {0};

    p->recompute = recompute;
    p->step = (struct sl_step_bytes){0};
    if (p->most.n_tokens)
        step_bytes(p, model, &p->most, true, recompute, &p->step);
    if (forward->n_tokens)
        step_bytes(p, model, forward, false, 0, &validation);
    p->arena = larger(p->step.total, validation.total);
    p->workspace = workspace_bytes(p, model);
    p->outside = p->device.accelerator ? CUDA_CONTEXT_BYTES : CPU_PROCESS_BYTES;
    p->total = p->persistent + p->arena + p->workspace + p->outside;
}

/* INT64_MAX where nobody knows. */
static int64_t left_bytes(const struct sl_plan *p)
{
    int64_t need = p->total - (p->device.open ? p->outside : 0);
    return p->device.memory_bytes ? p->device.memory_bytes - need : INT64_MAX;
}

bool sl_plan_fits(const struct sl_plan *p)
{
    return left_bytes(p) >= 0;
}

int64_t sl_plan_cache_bytes(const struct sl_plan *p, int64_t most)
{
    int64_t left = left_bytes(p) / 2; /* the other half for the pass that fills it */
    return left > most ? most : left > 1 ? left : 1;
}

void sl_plan_choose(struct sl_plan *p, const struct sl_model *model, const struct sl_batch *forward)
{
    sl_plan_set(p, model, forward, 0);
    for (int n = 2; n <= sl_recompute_most(p->layers) && !sl_plan_fits(p); n++)
        sl_plan_set(p, model, forward, n);
}

/* ---- for people */

const char *sl_bytes_text(int64_t bytes, char ret_text[SL_BYTES_TEXT_MAX])
{
    if (bytes >= GIB)
        snprintf(ret_text, SL_BYTES_TEXT_MAX, "%.2f GiB", (double)bytes / (double)GIB);
    else
        snprintf(ret_text, SL_BYTES_TEXT_MAX, "%.1f MiB", (double)bytes / (double)MIB);
    return ret_text;
}

int sl_bytes_parse(const char *text, int64_t *ret_bytes, struct sl_err *err)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},
                 {"KiB", 1024},
                 {"MiB", (double)MIB},
                 {"GiB", (double)GIB},
                 {"TiB", 1024 * (double)GIB}};
    char *end;
    double n = strtod(text, &end);

    for (size_t i = 0; end != text && i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].unit) && n * units[i].bytes >= 1 && n * units[i].bytes < 1e18) {
            *ret_bytes = (int64_t)(n * units[i].bytes);
            return 0;
        }
    return sl_err_set(err, SL_SPEC,
                      "'%s': expected memory such as 80GiB, 512MiB or a number of bytes", text);
}

__attribute__((format(printf, 4, 5))) static void line(struct sl_buf *text, const char *what,
                                                       int64_t bytes, const char *fmt, ...)
{
    va_list ap;

    sl_buf_addf(text, "%-26s %12.1f%s", what, (double)bytes / (double)MIB, fmt ? "   " : "\n");
    if (!fmt)
        return;
    va_start(ap, fmt);
    sl_buf_addv(text, fmt, ap);
    va_end(ap);
    sl_buf_adds(text, "\n");
}

const char *sl_plan_again(const struct sl_plan *p, char ret_text[SL_PLAN_AGAIN_MAX])
{
    struct sl_recompute again = sl_recompute_at(p->layers, p->recompute);
    if (again.whole)
        snprintf(ret_text, SL_PLAN_AGAIN_MAX,
                 "layers 0 to %d keep their input alone and are computed again, of the others the "
                 "MLP's first product",
                 again.whole - 1);
    else
        snprintf(ret_text, SL_PLAN_AGAIN_MAX, "the MLP's first product of layers 0 to %d is computed again",
                 again.mlps - 1);
    return ret_text;
}

static const char *precision_name(enum sl_precision p)
{
    static const char *const names[] = {"fp32", "bf16", "fp8", "int8"};
    return names[p];
}

void sl_plan_table(const struct sl_plan *p, struct sl_buf *text)
{
    char bytes[SL_BYTES_TEXT_MAX], again[SL_PLAN_AGAIN_MAX];
    const struct sl_batch *b = &p->most;

    sl_buf_addf(text, "device: %s, precision %s\n", p->device.accelerator ? "NVIDIA GPU" : "CPU",
                precision_name(p->device.precision));
    sl_buf_addf(text,
                "largest micro-batch: %d rows, at most %d packed positions, %d of them virtual, %d "
                "with loss\n\n",
                b->n_rows, b->n_tokens, b->n_virtual, b->n_out);
    sl_buf_addf(text, "%-26s %12s\n", "", "MiB");
    line(text, "weights", p->weights, NULL);
    line(text, "prompt encoder", p->encoder_parameters + p->encoder_gradients + p->encoder_moments,
         "parameters %.1f, gradients %.1f, moments %.1f; checkpoint %.1f",
         (double)p->encoder_parameters / (double)MIB, (double)p->encoder_gradients / (double)MIB,
         (double)p->encoder_moments / (double)MIB, (double)p->checkpoint / (double)MIB);
    line(text, "prompts, encoder's inside", p->others, p->n_trials > 1 ? "of all trials" : NULL);
    line(text, "kept for backward", p->step.kept, "%d layers%s%s", p->layers, p->recompute ? "; " : "",
         p->recompute ? sl_plan_again(p, again) : "");
    line(text, "scratch of a layer", p->step.scratch, NULL);
    line(text, "logits", p->step.logits, "a chunk of the rows with loss");
    line(text, "batch", p->step.batch, NULL);
    if (p->arena > p->step.total)
        line(text, "validation takes more", p->arena - p->step.total, NULL);
    line(text, "workspace", p->workspace, "estimated");
    line(text, p->device.accelerator ? "CUDA context" : "process", p->outside, "estimated");
    line(text, "total", p->total, NULL);
    if (p->device.memory_bytes)
        sl_buf_addf(text, "\n%s %s\n", sl_plan_fits(p) ? "fits in" : "does not fit in",
                    sl_bytes_text(p->device.memory_bytes, bytes));
}

json_t *sl_plan_json(const struct sl_plan *p)
{
    const struct sl_batch *b = &p->most;
    struct sl_recompute again = sl_recompute_at(p->layers, p->recompute);
    json_t *j = json_pack("{s:s, s:s, s:I, s:b, s:i, s:i, s:i, s:i}", "device",
                          p->device.accelerator ? "cuda" : "cpu", "precision",
                          precision_name(p->device.precision), "memory_bytes",
                          (json_int_t)p->device.memory_bytes, "fits", sl_plan_fits(p), "layers",
                          p->layers, "recomputed_layers", again.whole, "recomputed_mlps", again.mlps, "trials", p->n_trials);
    json_t *micro = json_pack("{s:i, s:i, s:i, s:i, s:i}", "micro_batch_size", p->micro_batch,
                              "rows", b->n_rows, "positions", b->n_tokens, "virtual", b->n_virtual,
                              "with_loss", b->n_out);
    const struct {
        const char *name;
        int64_t bytes;
    } all[] = {{"weights", p->weights},
               {"encoder_parameters", p->encoder_parameters},
               {"encoder_gradients", p->encoder_gradients},
               {"encoder_moments", p->encoder_moments},
               {"others", p->others},
               {"persistent", p->persistent},
               {"kept", p->step.kept},
               {"scratch", p->step.scratch},
               {"logits", p->step.logits},
               {"batch", p->step.batch},
               {"arena", p->arena},
               {"workspace", p->workspace},
               {"outside", p->outside},
               {"total", p->total},
               {"checkpoint", p->checkpoint}};
    json_t *bytes = json_object();

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        json_object_set_new(bytes, all[i].name, json_integer(all[i].bytes));
    json_object_set_new(j, "micro_batch", micro);
    json_object_set_new(j, "bytes", bytes);
    return j;
}
