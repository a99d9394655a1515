/* Training steps on given weights and token ids: encoder, frozen model, clipping and AdamW, as the trainer runs them.
 *
 *   bench_gpu DEVICE PRECISION MODEL BATCHES.json TABLE.f32 GRADIENT.f32 ENCODER E STEPS [RECOMPUTE]
 *
 * BATCHES.json is tests/bench/peft_cpu.py's, and may hold one more batch, "check". TABLE.f32 holds a prompt table
 * [virtual tokens, hidden] as raw fp32; the gradient of the check batch's loss by it (else of the first batch's) goes to
 * GRADIENT.f32. Then STEPS steps of p-tuning over the batches in turn, each timed by the host's clock until its gradient
 * norm is home; ENCODER is mlp (PEFT's, three linear layers) or lstm (two layers), of width E. Last the encoder and
 * optimizer alone. RECOMPUTE: what the backward pass computes again, see sl_recompute_at. Prints one JSON object. */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/backend.h"
#include "engine/cpu/coretype.h"
#include "engine/encoder.h"
#include "engine/model.h"
#include "engine/optim.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCHES 256
#define MAX_STEPS 1024
#define UNTIMED 3
#define ENCODER_STEPS 9
#define FILE_MAX ((size_t)1 << 30)

static struct sl_err err;

static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "bench_gpu: %s\n", err.msg);
        exit(1);
    }
}

static void *room(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (!p)
        must(sl_err_set(&err, SL_NOMEM, "no memory for %zu bytes", bytes));
    return p;
}

static enum sl_precision precision_of(const char *name)
{
    static const char *const names[] = {"fp32", "bf16", "fp8", "int8"}; /* as the enum counts */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return (enum sl_precision)i;
    must(sl_err_set(&err, SL_SPEC, "precision '%s': expected fp32, bf16, fp8 or int8", name));
    return SL_PRECISION_FP32;
}

/* The JSON batch's rows, with v virtual tokens in front of each, packed. */
static void pack(const json_t *batch, int v, const struct sl_arch *a, struct sl_batch *ret)
{
    const json_t *ids = json_object_get(batch, "ids"), *answers = json_object_get(batch, "answer");
    size_t n = json_array_size(ids);
    struct sl_row *rows = room(n * sizeof *rows);
    for (size_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(ids, i), *answer = json_array_get(answers, i);
        int len = (int)json_array_size(row);
        int32_t *id = room((size_t)(v + len) * sizeof *id);
        unsigned char *target = room((size_t)(v + len));
        for (int k = 0; k < v; k++)
            id[k] = -(k + 1);
        for (int k = 0; k < len; k++) {
            id[v + k] = (int32_t)json_integer_value(json_array_get(row, (size_t)k));
            target[v + k] = json_integer_value(json_array_get(answer, (size_t)k)) != 0;
        }
        rows[i] = (struct sl_row){0, v + len, id, target};
    }
    must(sl_batch_pack(rows, (int)n, &v, 1, a->vocab, a->max_positions, true, 0, ret, &err));
    for (size_t i = 0; i < n; i++) {
        free((void *)(uintptr_t)rows[i].id);
        free((void *)(uintptr_t)rows[i].target);
    }
    free(rows);
}

static double loss_of(const struct sl_batch *b, const float *loss)
{
    double sum = 0;
    for (int e = 0; e < b->n_entries; e++)
        sum += (double)b->entry_weight[e] * (double)loss[e];
    return sum;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static struct sl_batch batch[MAX_BATCHES], check;
    static double seconds[MAX_STEPS], rate[MAX_STEPS], encoder[ENCODER_STEPS];
    const struct sl_ops *ops;
    struct sl_backend *be;
    struct sl_backend_info info;
    struct sl_weights *w;
    struct sl_model *m;
    struct sl_encoder *e;
    struct sl_optim optim = {.beta1 = 0.9f, .beta2 = 0.98f, .eps = 1e-8f, .weight_decay = 0.01f, .clip_norm = 1};
    struct sl_buf table = {0};
    int64_t begun = sl_boot_us(), opened, loaded, first = 0;
    json_t *all = NULL;
    void *prompts, *dprompts;
    float norm = 0;
    double loss = 0, first_loss;

    if (sl_cpu_reexec(argv) || argc < 10 || argc > 11) {
        fprintf(stderr, "usage: bench_gpu DEVICE PRECISION MODEL BATCHES.json TABLE.f32 GRADIENT.f32 mlp|lstm E STEPS [RECOMPUTE]\n");
        return 2;
    }
    int steps = atoi(argv[9]);
    if (steps < 1 || steps > MAX_STEPS - UNTIMED)
        return 2;
    must(sl_json_read(argv[4], FILE_MAX, &all, &err));
    must(sl_weights_open(argv[3], &w, &err));
    must(sl_backend_open(argv[1], precision_of(argv[2]), 0, &ops, &be, &err));
    opened = sl_boot_us();
    must(sl_model_new(w, ops, be, &m, &err));
    sl_model_recompute(m, sl_recompute_at(sl_model_arch(m)->layers, argc > 10 ? atoi(argv[10]) : 0));
    loaded = sl_boot_us();
    sl_weights_close(w);
    ops->info(be, &info);

    const struct sl_arch *a = sl_model_arch(m);
    const json_t *list = json_object_get(all, "batches");
    int v = (int)json_integer_value(json_object_get(all, "virtual_tokens")), n = (int)json_array_size(list), most = 0;
    size_t bytes = (size_t)v * (size_t)a->hidden * sizeof(float);
    for (int i = 0; i < n && i < MAX_BATCHES; i++) {
        pack(json_array_get(list, (size_t)i), v, a, &batch[i]);
        most = batch[i].n_entries > most ? batch[i].n_entries : most;
    }
    const json_t *check_json = json_object_get(all, "check");
    pack(check_json ? check_json : json_array_get(list, 0), v, a, &check);
    most = check.n_entries > most ? check.n_entries : most;
    json_decref(all);
    float *host_loss = room((size_t)(most + 1) * sizeof *host_loss), *host = room(bytes);
    must(ops->alloc(be, bytes, &prompts, &err));
    must(ops->alloc(be, bytes, &dprompts, &err));
    sl_buf_init(&table, FILE_MAX);
    must(sl_file_read(argv[5], &table, &err));
    if (table.len != bytes)
        must(sl_err_set(&err, SL_DATA, "%s has %zu bytes, not %zu", argv[5], table.len, bytes));
    must(ops->upload(be, prompts, table.p, bytes, &err));
    must(sl_model_step(m, &check, prompts, dprompts, host_loss, &err));
    must(ops->download(be, host, dprompts, bytes, &err));
    must(sl_file_write(argv[6], host, bytes, &err));
    first_loss = loss_of(&check, host_loss);

    bool lstm = !strcmp(argv[7], "lstm");
    struct sl_encoder_config c = {.type = lstm ? SL_ENC_LSTM : SL_ENC_MLP,
                                  .n_tasks = 1,
                                  .virtual_tokens = v,
                                  .hidden = a->hidden,
                                  .encoder_hidden = atoi(argv[8]),
                                  .layers = lstm ? 2 : 3,
                                  .seed = 1};
    must(sl_encoder_new(&c, ops, be, &e, &err));
    must(sl_optim_init(&optim, ops, be, &err));
    struct sl_param whole = sl_encoder_whole(e); /* as the trainer does */
    for (int i = 0; i < steps + UNTIMED; i++) {
        struct sl_batch *b = &batch[i % n];
        int64_t t = sl_boot_us();
        sl_encoder_zero_grad(e);
        sl_encoder_forward(e, true, i, prompts);
        must(sl_model_step(m, b, prompts, dprompts, host_loss, &err));
        sl_encoder_backward(e, dprompts);
        must(sl_optim_step(&optim, &whole, 1, 1e-4f, i + 1, &norm, &err));
        loss = loss_of(b, host_loss);
        if (i == 0)
            first = sl_boot_us();
        if (i < UNTIMED)
            continue;
        seconds[i - UNTIMED] = (double)(sl_boot_us() - t) / 1e6;
        rate[i - UNTIMED] = (double)b->n_useful / seconds[i - UNTIMED];
    }
    for (int i = 0; i < ENCODER_STEPS; i++) {
        int64_t t = sl_boot_us();
        sl_encoder_zero_grad(e);
        sl_encoder_forward(e, true, i, prompts);
        sl_encoder_backward(e, dprompts);
        must(sl_optim_step(&optim, &whole, 1, 1e-4f, steps + UNTIMED + i + 1, &norm, &err));
        encoder[i] = (double)(sl_boot_us() - t) / 1e6;
    }
    qsort(encoder, ENCODER_STEPS, sizeof *encoder, by_size);
    qsort(seconds, (size_t)steps, sizeof *seconds, by_size);
    qsort(rate, (size_t)steps, sizeof *rate, by_size);
    printf("{\"kernel\": \"%s\", \"rows\": %d, \"packed\": %d, \"useful\": %lld, \"step_ms\": %.3f, \"useful_tok_s\": %.0f, "
           "\"loss_of_table\": %.6f, \"last_loss\": %.6f, \"grad_norm\": %.4g, \"weights_mib\": %.1f, \"activations_mib\": "
           "%.1f, \"encoder_ms\": %.3f, \"encoder_mib\": %.1f, \"open_s\": %.3f, \"load_s\": %.3f, \"first_step_s\": %.3f}\n",
           info.kernel, batch[0].n_rows, batch[0].n_tokens, (long long)batch[0].n_useful, seconds[steps / 2] * 1e3,
           rate[steps / 2], first_loss, loss, (double)norm, (double)sl_model_weight_bytes(m) / (1 << 20),
           (double)sl_model_arena_bytes(m) / (1 << 20), encoder[ENCODER_STEPS / 2] * 1e3,
           (double)sl_encoder_state_bytes(&c) / (1 << 20), (double)(opened - begun) / 1e6,
           (double)(loaded - begun) / 1e6, (double)(first - begun) / 1e6);
    sl_optim_release(&optim);
    sl_encoder_free(e);
    ops->free(be, prompts);
    ops->free(be, dprompts);
    sl_model_free(m);
    ops->close(be);
    for (int i = 0; i < n && i < MAX_BATCHES; i++)
        sl_batch_release(&batch[i]);
    sl_batch_release(&check);
    sl_buf_release(&table);
    free(host_loss);
    free(host);
    return 0;
}
