/* A whole training step beside sgemm alone on the step's minimal shapes, and the same batches as JSON for PEFT.
 *
 * usage: bench_step RUN-DIR STEPS [BATCHES.json]     RUN-DIR holds a run.json (softlaunch train --spec makes one)
 *
 * Minimal shapes: every product with a frozen weight that a step cannot do without, forward and backward, on the packed
 * rows (shared prefixes once, logits of rows with loss only, the last layer's queries and MLP for those rows, the first
 * layer's input gradient at virtual positions), and the encoder's. The two are timed in turn, step by step; prints one
 * JSON object with medians and the median of the ratios. */
#include "base/clock.h"
#include "engine/cpu/coretype.h"
#include "engine/trainer.h"
#include <cblas.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 1000

struct shapes {
    long rows, outs, virtuals;
    float *a, *b, *c; /* large enough for every shape, filled with small numbers */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* y[rows, out] = x[rows, in] W^T and its input gradient dx = dy W. */
static void forward(const struct shapes *s, long rows, int in, int out)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, out, in, 1, s->a, in, s->b, in, 0, s->c,
                out);
}

static void backward(const struct shapes *s, long rows, int in, int out)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, in, out, 1, s->a, out, s->b, in, 0,
                s->c, in);
}

static void both(const struct shapes *s, long rows, int in, int out)
{
    forward(s, rows, in, out);
    backward(s, rows, in, out);
}

static void products(const struct shapes *s, const struct sl_arch *m, const struct sl_trainer *t)
{
    int q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    int up = m->activation == SL_SWIGLU ? 2 * m->ffn : m->ffn, last = m->layers - 1;
    const struct sl_encoder_config *e = sl_encoder_config(t->trial[0].group[0].encoder);
    long v = (long)e->n_tasks * e->virtual_tokens;

    for (int l = 0; l < m->layers; l++) {
        long r = l == last ? s->outs : s->rows;

        if (l == last) {
            both(s, s->rows, m->hidden, 2 * kv);
            both(s, r, m->hidden, q);
        } else {
            forward(s, s->rows, m->hidden, q + 2 * kv);
            backward(s, l ? s->rows : s->virtuals, m->hidden, q + 2 * kv);
        }
        both(s, r, q, m->hidden);
        both(s, r, m->hidden, up);
        both(s, r, m->ffn, m->hidden);
    }
    both(s, s->outs, m->hidden, m->vocab);
    if (e->type == SL_ENC_TPMLP || e->type == SL_ENC_MLP) {
        int hidden_layers = e->type == SL_ENC_MLP ? e->layers - 2 : 0;

        for (int i = 0; i < 3; i++) { /* forward, gradients of input and of weights: equal sizes */
            forward(s, v, m->hidden, e->encoder_hidden);
            for (int k = 0; k < hidden_layers; k++)
                forward(s, v, e->encoder_hidden, e->encoder_hidden);
            forward(s, v, e->encoder_hidden, m->hidden);
        }
    }
}

static int fill(struct shapes *s, const struct sl_arch *m, long rows)
{
    size_t wide = (size_t)(m->ffn * 2 > m->hidden ? m->ffn * 2 : m->hidden) * (size_t)rows;
    size_t logits = (size_t)m->vocab * (size_t)rows, weight = (size_t)m->vocab * (size_t)m->hidden;
    size_t n = (wide > logits ? wide : logits) + (1u << 22);

    s->a = malloc(n * sizeof(float));
    s->b = malloc((weight + (1u << 22)) * sizeof(float));
    s->c = malloc(n * sizeof(float));
    if (!s->a || !s->b || !s->c)
        return -1;
    for (size_t i = 0; i < n; i++)
        s->a[i] = s->c[i] = (float)(i % 97) * 1e-3f;
    for (size_t i = 0; i < weight + (1u << 22); i++)
        s->b[i] = (float)(i % 89) * 1e-3f;
    return 0;
}

static int pack(struct sl_trainer *t, const int *rows, struct sl_batch *batch)
{
    const struct sl_arch *m = sl_model_arch(t->model);
    struct sl_row *r = malloc((size_t)t->rows_per_step * sizeof *r);
    int rc;

    for (int i = 0; i < t->rows_per_step; i++)
        r[i] = sl_dataset_row(t->trial[0].data->train, rows[i]);
    rc = sl_batch_pack(r, t->rows_per_step, t->slot_v, t->n_slots, m->vocab, m->max_positions,
                       true, 0, batch, NULL);
    free(r);
    return rc;
}

static int one_step(struct sl_trainer *t, const int *rows, int step, int64_t *ret_useful)
{
    struct sl_err err = SL_ERR_INIT;
    int rc;
    struct sl_trial *trial = &t->trial[0];
    struct sl_trial_sum sum = {0};
    float norm;

    sl_trainer_zero_grad(t);
    rc = sl_trainer_loss(t, rows, t->rows_per_step, true, &sum, &err);
    if (!rc)
        rc = sl_optim_step(&trial->optim, &trial->group[0].whole, 1, 1e-4f, step + 1, &norm, &err);
    if (rc)
        fprintf(stderr, "bench_step: %s\n", err.msg);
    *ret_useful = sum.useful;
    return rc;
}

/* Text ids and answer masks of each row, without the virtual tokens, as tests/bench/peft_cpu.py reads them. */
static int write_batches(struct sl_trainer *t, const int *order, int steps, const char *path)
{
    json_t *batches = json_array(), *all;
    int rc;

    for (int b = 0; b < steps; b++) {
        json_t *ids = json_array(), *answers = json_array();

        for (int i = 0; i < t->rows_per_step; i++) {
            struct sl_row r = sl_dataset_row(t->trial[0].data->train, order[b * t->rows_per_step + i]);
            json_t *id = json_array(), *answer = json_array();

            for (int k = 0; k < r.n; k++)
                if (r.id[k] >= 0) {
                    json_array_append_new(id, json_integer(r.id[k]));
                    json_array_append_new(answer, json_integer(r.target[k] != 0));
                }
            json_array_append_new(ids, id);
            json_array_append_new(answers, answer);
        }
        json_array_append_new(batches, json_pack("{s:o, s:o}", "ids", ids, "answer", answers));
    }
    all = json_pack("{s:i, s:o}", "virtual_tokens", t->slot_v[0], "batches", batches);
    rc = json_dump_file(all, path, JSON_COMPACT);
    json_decref(all);
    return rc;
}

int main(int argc, char **argv)
{
    static double ours[MAX_STEPS], sgemm[MAX_STEPS], ratio[MAX_STEPS];
    struct sl_err err = SL_ERR_INIT;
    struct sl_trainer t;
    struct sl_run run;
    struct sl_emitter report;
    struct sl_backend_info info;
    struct shapes s = {0};
    int64_t useful = 0, total = 0, packed = 0;
    double seconds = 0;
    int *order, steps = argc > 2 ? atoi(argv[2]) : 0;

    if (sl_cpu_reexec(argv) || argc < 3 || steps < 1 || steps > MAX_STEPS) {
        fprintf(stderr, "usage: bench_step RUN-DIR STEPS [BATCHES.json]\n");
        return 2;
    }
    sl_emit_init(&report, open("/dev/null", 1));
    if (sl_run_open(argv[1], &run, &err) || sl_trainer_init(&t, &run, NULL, &report, NULL, &err)) {
        fprintf(stderr, "bench_step: %s\n", err.msg);
        return 1;
    }
    order = malloc((size_t)sl_dataset_rows(t.trial[0].data->train) * sizeof *order);
    sl_dataset_order(t.trial[0].data->train, run.trial[0].config.seed, 0, true, order);
    if (steps > t.trial[0].steps_per_epoch)
        steps = t.trial[0].steps_per_epoch;
    if (argc > 3 && write_batches(&t, order, steps, argv[3]))
        return 1;
    for (int i = -2; i < steps; i++) { /* two unmeasured rounds */
        const int *rows = order + (i < 0 ? 0 : i) * t.rows_per_step;
        struct sl_batch batch;
        int64_t t0, t1, t2;

        if (pack(&t, rows, &batch))
            return 1;
        s.rows = batch.n_tokens, s.outs = batch.n_out, s.virtuals = batch.n_virtual;
        sl_batch_release(&batch);
        if (!s.a && fill(&s, sl_model_arch(t.model), 4 * s.rows))
            return 1;
        t0 = sl_boot_us();
        products(&s, sl_model_arch(t.model), &t);
        t1 = sl_boot_us();
        if (one_step(&t, rows, i + 2, &useful))
            return 1;
        t2 = sl_boot_us();
        if (i < 0)
            continue;
        sgemm[i] = (double)(t1 - t0) / 1e6;
        ours[i] = (double)(t2 - t1) / 1e6;
        ratio[i] = ours[i] / sgemm[i];
        seconds += ours[i];
        total += useful;
        packed += s.rows;
    }
    t.ops->info(t.be, &info);
    printf("{\"steps\": %d, \"rows\": %d, \"packed_tokens\": %.1f, \"useful_tokens\": %.1f, \"kernel\": \"%s\", "
           "\"threads\": %d, \"step_s_median\": %.4f, \"sgemm_s_median\": %.4f, \"ratio_median\": %.3f, "
           "\"tokens_per_s\": %.1f}\n",
           steps, t.rows_per_step, (double)packed / steps, (double)total / steps, info.kernel, info.threads,
           median(ours, steps), median(sgemm, steps), median(ratio, steps), (double)total / seconds);
    free(s.a), free(s.b), free(s.c), free(order);
    sl_trainer_release(&t);
    sl_run_release(&run);
    return 0;
}
