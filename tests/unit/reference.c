/* The frozen model in double precision, one row at a time, nothing shared: slow and plain. */
#include "tests/unit/tiny_model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ref_layer {
    double *norm1, *norm1_b, *q, *q_b, *k, *k_b, *v, *v_b, *o, *o_b;
    double *norm2, *norm2_b, *gate, *up, *up_b, *down, *down_b;
};

struct reference {
    struct sl_arch a;
    const struct sl_weights *w;
    double *embed, *pos, *norm, *norm_b, *head;
    struct ref_layer *layers;
    void **owned;
    int n_owned;
};

/* NULL when the model has no such tensor */
static double *get(struct reference *r, const char *fmt, int layer, const char *suffix)
{
    char name[96];
    int64_t rows, cols;
    snprintf(name, sizeof name, fmt, layer);
    strncat(name, suffix, sizeof name - strlen(name) - 1);
    if (sl_weights_shape(r->w, name, &rows, &cols, NULL))
        return NULL;
    size_t n = (size_t)(rows * cols);
    float *f = malloc(n * sizeof *f);
    double *d = malloc(n * sizeof *d);
    struct sl_err err = SL_ERR_INIT;
    if (!f || !d || sl_weights_read_f32(r->w, name, 0, rows, f, &err)) {
        fprintf(stderr, "reference: %s: %s\n", name, err.msg);
        exit(2);
    }
    for (size_t i = 0; i < n; i++)
        d[i] = f[i];
    free(f);
    r->owned[r->n_owned++] = d;
    return d;
}

struct reference *reference_new(const struct sl_weights *w)
{
    struct reference *r = calloc(1, sizeof *r);
    r->w = w;
    r->a = *sl_weights_arch(w);
    r->layers = calloc((size_t)r->a.layers, sizeof *r->layers);
    r->owned = calloc((size_t)r->a.layers * 20 + 8, sizeof *r->owned);
    r->embed = get(r, "embed", 0, "");
    r->pos = get(r, "pos_embed", 0, "");
    r->norm = get(r, "norm", 0, ".weight");
    r->norm_b = get(r, "norm", 0, ".bias");
    r->head = r->a.tied ? r->embed : get(r, "head", 0, "");
    for (int i = 0; i < r->a.layers; i++) {
        struct ref_layer *l = &r->layers[i];
        l->norm1 = get(r, "layers.%d.norm1", i, ".weight");
        l->norm1_b = get(r, "layers.%d.norm1", i, ".bias");
        l->norm2 = get(r, "layers.%d.norm2", i, ".weight");
        l->norm2_b = get(r, "layers.%d.norm2", i, ".bias");
        l->q = get(r, "layers.%d.q", i, "");
        l->q_b = get(r, "layers.%d.q", i, ".bias");
        l->k = get(r, "layers.%d.k", i, "");
        l->k_b = get(r, "layers.%d.k", i, ".bias");
        l->v = get(r, "layers.%d.v", i, "");
        l->v_b = get(r, "layers.%d.v", i, ".bias");
        l->o = get(r, "layers.%d.o", i, "");
        l->o_b = get(r, "layers.%d.o", i, ".bias");
        l->gate = get(r, "layers.%d.gate", i, "");
        l->up = get(r, "layers.%d.up", i, "");
        l->up_b = get(r, "layers.%d.up", i, ".bias");
        l->down = get(r, "layers.%d.down", i, "");
        l->down_b = get(r, "layers.%d.down", i, ".bias");
    }
    return r;
}

void reference_free(struct reference *r)
{
    for (int i = 0; i < r->n_owned; i++)
        free(r->owned[i]);
    free(r->owned);
    free(r->layers);
    free(r);
}

/* y (+)= W x + b, W [out, in] */
static void linear(const double *w, const double *b, const double *x, int out, int in, bool add,
                   double *y)
{
    for (int i = 0; i < out; i++) {
        double sum = b ? b[i] : 0;
        for (int j = 0; j < in; j++)
            sum += w[(size_t)i * (size_t)in + (size_t)j] * x[j];
        y[i] = add ? y[i] + sum : sum;
    }
}

static void norm(const struct reference *r, const double *w, const double *b, const double *x,
                 double *y)
{
    int n = r->a.hidden;
    double mean = 0, var = 0;
    for (int i = 0; i < n && !r->a.rms_norm; i++)
        mean += x[i] / n;
    for (int i = 0; i < n; i++)
        var += (x[i] - mean) * (x[i] - mean) / n;
    for (int i = 0; i < n; i++)
        y[i] = (x[i] - mean) / sqrt(var + r->a.norm_eps) * w[i] + (b ? b[i] : 0);
}

static void rotate(const struct reference *r, double *head, int pos)
{
    int half = r->a.rope_dims / 2;
    for (int i = 0; i < half; i++) {
        double angle = pos * pow(r->a.rope_base, -2.0 * i / r->a.rope_dims);
        if (r->a.rope_scaling == SL_ROPE_LINEAR)
            angle /= r->a.rope_factor;
        double a = head[i], b = head[i + half];
        head[i] = a * cos(angle) - b * sin(angle);
        head[i + half] = b * cos(angle) + a * sin(angle);
    }
}

/* q, k, v [n, heads | kv_heads, head_dim]; o as q; causal */
static void attend(const struct sl_arch *a, int n, const double *q, const double *k,
                   const double *v, double *o)
{
    int d = a->head_dim, group = a->heads / a->kv_heads;
    double *p = malloc(sizeof *p * (size_t)n);
    for (int t = 0; t < n; t++)
        for (int h = 0; h < a->heads; h++) {
            const double *qh = q + (t * a->heads + h) * d;
            double *oh = o + (t * a->heads + h) * d, sum = 0, max = -INFINITY;
            for (int s = 0; s <= t; s++) {
                const double *kh = k + (s * a->kv_heads + h / group) * d;
                p[s] = 0;
                for (int i = 0; i < d; i++)
                    p[s] += qh[i] * kh[i] / sqrt(d);
                max = p[s] > max ? p[s] : max;
            }
            for (int s = 0; s <= t; s++)
                sum += p[s] = exp(p[s] - max);
            memset(oh, 0, sizeof *oh * (size_t)d);
            for (int s = 0; s <= t; s++)
                for (int i = 0; i < d; i++)
                    oh[i] += p[s] / sum * v[(s * a->kv_heads + h / group) * d + i];
        }
    free(p);
}

static void mlp(const struct reference *r, const struct ref_layer *l, const double *x, double *up,
                double *gate, double *y)
{
    const struct sl_arch *a = &r->a;
    linear(l->up, l->up_b, x, a->ffn, a->hidden, false, up);
    if (l->gate)
        linear(l->gate, NULL, x, a->ffn, a->hidden, false, gate);
    for (int i = 0; i < a->ffn; i++)
        if (l->gate)
            up[i] *= gate[i] / (1 + exp(-gate[i]));
        else if (a->activation == SL_GELU_ERF)
            up[i] = up[i] / 2 * (1 + erf(up[i] / sqrt(2)));
        else
            up[i] =
                up[i] / 2 * (1 + tanh(sqrt(2 / M_PI) * (up[i] + 0.044715 * up[i] * up[i] * up[i])));
    linear(l->down, l->down_b, up, a->hidden, a->ffn, true, y);
}

/* The row's residual stream after all layers, x [n, hidden]. */
static void run_row(const struct reference *r, const struct sl_row *row, const int *slot_prompts,
                    const double *prompts, double *x)
{
    const struct sl_arch *a = &r->a;
    int h = a->hidden, n = row->n, qc = a->heads * a->head_dim, kc = a->kv_heads * a->head_dim;
    double *t = malloc(sizeof *t * (size_t)(n * (2 * qc + 2 * kc) + h + 2 * a->ffn));
    double *q = t, *k = q + n * qc, *v = k + n * kc, *o = v + n * kc, *tmp = o + n * qc,
           *up = tmp + h, *gate = up + a->ffn;
    for (int i = 0; i < n; i++) {
        const double *from = row->id[i] >= 0
                                 ? r->embed + row->id[i] * h
                                 : prompts + (slot_prompts[row->slot] - (row->id[i] + 1)) * h;
        for (int c = 0; c < h; c++)
            x[i * h + c] = from[c] + (r->pos ? r->pos[i * h + c] : 0);
    }
    for (int i = 0; i < a->layers; i++) {
        const struct ref_layer *l = &r->layers[i];
        for (int p = 0; p < n; p++) {
            norm(r, l->norm1, l->norm1_b, x + p * h, tmp);
            linear(l->q, l->q_b, tmp, qc, h, false, q + p * qc);
            linear(l->k, l->k_b, tmp, kc, h, false, k + p * kc);
            linear(l->v, l->v_b, tmp, kc, h, false, v + p * kc);
            for (int j = 0; j < a->heads && !a->learned_pos; j++)
                rotate(r, q + p * qc + j * a->head_dim, p);
            for (int j = 0; j < a->kv_heads && !a->learned_pos; j++)
                rotate(r, k + p * kc + j * a->head_dim, p);
        }
        attend(a, n, q, k, v, o);
        for (int p = 0; p < n; p++) {
            linear(l->o, l->o_b, o + p * qc, h, qc, true, x + p * h);
            norm(r, l->norm2, l->norm2_b, x + p * h, tmp);
            mlp(r, l, tmp, up, gate, x + p * h);
        }
    }
    free(t);
}

static void head(const struct reference *r, const double *x, double *logits)
{
    double *tmp = malloc(sizeof *tmp * (size_t)r->a.hidden);
    norm(r, r->norm, r->norm_b, x, tmp);
    linear(r->head, NULL, tmp, r->a.vocab, r->a.hidden, false, logits);
    free(tmp);
}

double reference_loss(const struct reference *r, const struct sl_row *rows, int n_rows,
                      const int *slot_prompts, const double *prompts, double *losses)
{
    int vocab = r->a.vocab, counted = 0;
    double total = 0, *logits = malloc(sizeof *logits * (size_t)vocab);
    for (int i = 0; i < n_rows; i++) {
        const struct sl_row *row = &rows[i];
        double *x = malloc(sizeof *x * (size_t)(row->n * r->a.hidden));
        run_row(r, row, slot_prompts, prompts, x);
        for (int p = 1; p < row->n; p++) {
            if (!row->target[p])
                continue;
            head(r, x + (p - 1) * r->a.hidden, logits);
            double max = -INFINITY, sum = 0;
            for (int c = 0; c < vocab; c++)
                max = logits[c] > max ? logits[c] : max;
            for (int c = 0; c < vocab; c++)
                sum += exp(logits[c] - max);
            double loss = max + log(sum) - logits[row->id[p]];
            total += loss;
            if (losses)
                losses[counted++] = loss;
        }
        free(x);
    }
    free(logits);
    return total;
}

void reference_logits(const struct reference *r, const struct sl_row *row, const int *slot_prompts,
                      const double *prompts, double *logits)
{
    double *x = malloc(sizeof *x * (size_t)(row->n * r->a.hidden));
    run_row(r, row, slot_prompts, prompts, x);
    head(r, x + (row->n - 1) * r->a.hidden, logits);
    free(x);
}
