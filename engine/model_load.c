/* Building a model: checks the architecture, reads the weights into the backend, computes the
 * rotary table. */
#include "engine/model_parts.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTS_MAX 3
#define NAME_MAX_BYTES 64
#define ROPE_POSITIONS 4096 /* of the rotary table that are computed and uploaded together */

/* Rows of several tensors one below the other; a vector's parts one beside the other. A missing
 * bias among present ones counts as zero. */
struct fused {
    const struct sl_weights *w;
    int n;
    int64_t cols;
    char name[PARTS_MAX][NAME_MAX_BYTES];
    int64_t rows[PARTS_MAX];
    bool missing[PARTS_MAX];
};

static int read_matrix(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err)
{
    const struct fused *f = ctx;
    int64_t begin = 0;
    for (int i = 0; i < f->n && n > 0; i++) {
        int64_t end = begin + f->rows[i];
        if (row0 < end) {
            int64_t have = end - row0 < n ? end - row0 : n;
            int rc = sl_weights_read_f32(f->w, f->name[i], row0 - begin, have, out, err);
            if (rc)
                return rc;
            out += have * f->cols;
            row0 += have;
            n -= have;
        }
        begin = end;
    }
    return 0;
}

static int read_vector(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err)
{
    const struct fused *f = ctx;
    (void)row0, (void)n; /* a vector has one row */
    for (int i = 0; i < f->n; out += f->rows[i], i++) {
        if (f->missing[i])
            memset(out, 0, sizeof *out * (size_t)f->rows[i]);
        else {
            int rc = sl_weights_read_f32(f->w, f->name[i], 0, 1, out, err);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* The parts as they lie in the file, neighbours joined; 0: one of them does not lie there plainly. */
static int raw_parts(const struct fused *f, struct sl_raw part[PARTS_MAX])
{
    int n = 0;
    for (int i = 0; i < f->n; i++) {
        struct sl_raw next, *last = n ? &part[n - 1] : NULL;
        if (f->missing[i] || !sl_weights_raw(f->w, f->name[i], &next))
            return 0;
        if (last && last->type == next.type && last->row_bytes == next.row_bytes &&
            last->col_bytes == next.col_bytes &&
            (const char *)last->p + last->rows * last->row_bytes == (const char *)next.p)
            last->rows += next.rows;
        else
            part[n++] = next;
    }
    return n;
}

static bool present(const struct sl_weights *w, const char *name)
{
    int64_t rows, cols;
    return sl_weights_shape(w, name, &rows, &cols, NULL) == 0;
}

static int has_shape(const struct sl_weights *w, const char *name, int64_t rows, int64_t cols,
                     struct sl_err *err)
{
    int64_t have_rows, have_cols;
    int rc = sl_weights_shape(w, name, &have_rows, &have_cols, err);
    if (!rc && (have_rows != rows || have_cols != cols))
        rc = sl_err_set(
            err, SL_DATA, "tensor %s is [%lld, %lld], but the model's header asks for [%lld, %lld]",
            name, (long long)have_rows, (long long)have_cols, (long long)rows, (long long)cols);
    return rc;
}

/* One weight from up to three tensors "<prefix><part><suffix>" of rows[i] rows each. */
struct parts {
    const char *prefix;
    int n;
    const char *part[PARTS_MAX];
    int64_t rows[PARTS_MAX];
};

enum load_as { VECTOR, TABLE, LINEAR };

static int load(struct sl_model *m, const struct sl_weights *w, const struct parts *p, enum load_as as,
                const char *suffix, int64_t cols, bool optional, struct sl_weight **ret_weight,
                struct sl_err *err)
{
    bool vector = as == VECTOR;
    struct fused f = {.w = w, .n = p->n, .cols = cols};
    struct sl_backend_info info;
    int64_t total = 0, found = 0;
    m->ops->info(m->be, &info);
    for (int i = 0; i < p->n; i++) {
        snprintf(f.name[i], sizeof f.name[i], "%s%s%s", p->prefix, p->part[i], suffix);
        f.rows[i] = p->rows[i];
        f.missing[i] = optional && !present(w, f.name[i]);
        found += !f.missing[i];
        total += p->rows[i];
        int rc = f.missing[i] ? 0
                              : has_shape(w, f.name[i], vector ? 1 : p->rows[i],
                                          vector ? p->rows[i] : cols, err);
        if (rc)
            return rc;
    }
    if (found == 0)
        return 0;
    int64_t rows = vector ? 1 : total;
    if (vector)
        cols = total;
    struct sl_raw part[PARTS_MAX];
    int n = m->ops->weight_raw && !vector ? raw_parts(&f, part) : 0;
    int rc = n ? m->ops->weight_raw(m->be, as == LINEAR, rows, cols, part, n, ret_weight, err)
               : (as == LINEAR ? m->ops->linear_new : m->ops->weight_new)(
                     m->be, rows, cols, vector ? read_vector : read_matrix, &f, ret_weight, err);
    if (rc)
        return sl_err_wrap(err, rc, "loading %s", f.name[0]);
    m->weight_bytes += as == LINEAR ? sl_linear_bytes(info.precision, m->ops->act_bytes, rows, cols)
                                    : rows * cols * (int64_t)m->ops->act_bytes;
    return 0;
}

/* A linear layer and its optional bias. */
static int load_linear(struct sl_model *m, const struct sl_weights *w, const struct parts *p,
                       int64_t in, struct sl_weight **ret_weight, struct sl_weight **ret_bias,
                       struct sl_err *err)
{
    int rc = load(m, w, p, LINEAR, "", in, false, ret_weight, err);
    return rc ? rc : load(m, w, p, VECTOR, ".bias", 0, true, ret_bias, err);
}

static int load_norm(struct sl_model *m, const struct sl_weights *w, const char *prefix,
                     const char *name, struct sl_weight **ret_weight, struct sl_weight **ret_bias,
                     struct sl_err *err)
{
    struct parts p = {prefix, 1, {name}, {m->arch.hidden}};
    int rc = load(m, w, &p, VECTOR, ".weight", 0, false, ret_weight, err);
    if (rc || m->arch.rms_norm)
        return rc;
    return load(m, w, &p, VECTOR, ".bias", 0, false, ret_bias, err);
}

static int load_layer(struct sl_model *m, const struct sl_weights *w, int i, struct sl_err *err)
{
    struct sl_layer *l = &m->layers[i];
    int64_t hidden = m->arch.hidden, q = m->q_cols, kv = m->kv_cols, ffn = m->arch.ffn;
    bool gated = m->act == SL_ACT_SWIGLU;
    char prefix[NAME_MAX_BYTES / 2];
    snprintf(prefix, sizeof prefix, "layers.%d.", i);
    struct parts all = {prefix, 3, {"q", "k", "v"}, {q, kv, kv}};
    struct parts only_q = {prefix, 1, {"q"}, {q}}, only_kv = {prefix, 2, {"k", "v"}, {kv, kv}};
    struct parts o = {prefix, 1, {"o"}, {hidden}}, down = {prefix, 1, {"down"}, {hidden}};
    struct parts gate_up = {prefix, 2, {"gate", "up"}, {ffn, ffn}}, up = {prefix, 1, {"up"}, {ffn}};

    struct parts q_norm = {prefix, 1, {"q_norm"}, {m->arch.head_dim}},
                 k_norm = {prefix, 1, {"k_norm"}, {m->arch.head_dim}};

    int rc = load_norm(m, w, prefix, "norm1", &l->norm1, &l->norm1_b, err);
    if (!rc && m->arch.qk_norm)
        rc = load(m, w, &q_norm, VECTOR, "", 0, false, &l->q_norm, err);
    if (!rc && m->arch.qk_norm)
        rc = load(m, w, &k_norm, VECTOR, "", 0, false, &l->k_norm, err);
    if (!rc && i < m->arch.layers - 1)
        rc = load_linear(m, w, &all, hidden, &l->qkv, &l->qkv_b, err);
    else if (!rc) {
        rc = load_linear(m, w, &only_q, hidden, &l->q, &l->q_b, err);
        if (!rc)
            rc = load_linear(m, w, &only_kv, hidden, &l->kv, &l->kv_b, err);
    }
    if (!rc)
        rc = load_linear(m, w, &o, q, &l->o, &l->o_b, err);
    if (!rc)
        rc = load_norm(m, w, prefix, "norm2", &l->norm2, &l->norm2_b, err);
    if (!rc)
        rc = load_linear(m, w, gated ? &gate_up : &up, hidden, &l->up, &l->up_b, err);
    return rc ? rc : load_linear(m, w, &down, ffn, &l->down, &l->down_b, err);
}

/* (cos, sin) for every position and pair of dimensions. Frequencies and angles are rounded to fp32
 * where transformers rounds them, so that far positions agree; llama3 is its
 * _compute_llama3_parameters. */
static int load_rope(struct sl_model *m, struct sl_err *err)
{
    const struct sl_arch *a = &m->arch;
    int pairs = a->rope_dims / 2;
    size_t row = (size_t)pairs * 2 * sizeof(float);
    float *piece = malloc(ROPE_POSITIONS * row), *freq = malloc(sizeof *freq * (size_t)pairs);
    int rc = 0;
    if (!piece || !freq)
        rc = sl_err_set(err, SL_NOMEM, "rotary table of %d positions", a->max_positions);
    for (int i = 0; !rc && i < pairs; i++) {
        double f = 1.0 / pow(a->rope_base, 2.0 * i / a->rope_dims);
        if (a->rope_scaling == SL_ROPE_LINEAR)
            f /= a->rope_factor;
        if (a->rope_scaling == SL_ROPE_LLAMA3) {
            double wavelen = 2 * M_PI / f, context = a->rope_original_positions;
            double smooth =
                (context / wavelen - a->rope_low_freq) / (a->rope_high_freq - a->rope_low_freq);
            if (wavelen > context / a->rope_low_freq)
                f /= a->rope_factor;
            else if (wavelen >= context / a->rope_high_freq)
                f *= (1 - smooth) / a->rope_factor + smooth;
        }
        freq[i] = (float)f;
    }
    void *device = NULL;
    if (!rc)
        rc = m->ops->alloc(m->be, (size_t)a->max_positions * row, &device, err);
    if (!rc) {
        m->rope = device;
        m->weight_bytes += (int64_t)((size_t)a->max_positions * row);
    }
    for (int begin = 0; !rc && !m->ops->counts_only && begin < a->max_positions; begin += ROPE_POSITIONS) {
        int left = a->max_positions - begin, n = left < ROPE_POSITIONS ? left : ROPE_POSITIONS;
        float *to = piece;
        for (int p = begin; p < begin + n; p++)
            for (int i = 0; i < pairs; i++) {
                float angle = (float)p * freq[i];
                *to++ = cosf(angle);
                *to++ = sinf(angle);
            }
        rc = m->ops->upload(m->be, (char *)device + (size_t)begin * row, piece, (size_t)n * row,
                            err);
    }
    free(piece);
    free(freq);
    return rc;
}

static int check_arch(const struct sl_arch *a, struct sl_err *err)
{
    if (a->layers < 1 || a->layers > SL_MAX_LAYERS || a->hidden < 1 || a->hidden > SL_MAX_HIDDEN ||
        a->vocab < 1 || a->vocab > SL_MAX_VOCAB || a->heads < 1 || a->kv_heads < 1 ||
        a->head_dim < 1 || a->ffn < 1 || a->max_positions < 1)
        return sl_err_set(
            err, SL_DATA,
            "impossible sizes: %d layers, hidden %d, vocabulary %d, %d heads, %d key heads "
            "of %d, ffn %d, %d positions",
            a->layers, a->hidden, a->vocab, a->heads, a->kv_heads, a->head_dim, a->ffn,
            a->max_positions);
    if (a->heads % a->kv_heads)
        return sl_err_set(err, SL_DATA, "%d heads cannot share %d key heads evenly", a->heads,
                          a->kv_heads);
    if (!a->learned_pos && (a->rope_dims < 2 || a->rope_dims % 2 || a->rope_dims > a->head_dim))
        return sl_err_set(err, SL_DATA,
                          "rotary over %d of %d dimensions: an even number up to all is needed",
                          a->rope_dims, a->head_dim);
    return 0;
}

static int load_all(struct sl_model *m, const struct sl_weights *w, struct sl_err *err)
{
    const struct sl_arch *a = &m->arch;
    struct parts embed = {"", 1, {"embed"}, {a->vocab}}, head = {"", 1, {"head"}, {a->vocab}};
    struct parts pos = {"", 1, {"pos_embed"}, {a->max_positions}};
    int rc = load(m, w, &embed, TABLE, "", a->hidden, false, &m->embed, err);
    if (!rc && a->learned_pos)
        rc = load(m, w, &pos, TABLE, "", a->hidden, false, &m->pos_embed, err);
    if (!rc && !a->learned_pos)
        rc = load_rope(m, err);
    sl_weights_forget(w);
    for (int i = 0; !rc && i < a->layers; i++) {
        rc = load_layer(m, w, i, err);
        sl_weights_forget(w);
    }
    if (!rc)
        rc = load_norm(m, w, "", "norm", &m->norm, &m->norm_b, err);
    if (!rc && a->tied)
        m->head = m->embed;
    else if (!rc)
        rc = load(m, w, &head, TABLE, "", a->hidden, false, &m->head, err);
    sl_weights_forget(w);
    return rc;
}

int sl_model_new(const struct sl_weights *w, const struct sl_ops *ops, struct sl_backend *be,
                 struct sl_model **ret_model, struct sl_err *err)
{
    const struct sl_arch *a = sl_weights_arch(w);
    int rc = check_arch(a, err);
    if (rc)
        return rc;
    struct sl_model *m = calloc(1, sizeof *m);
    if (!m)
        return sl_err_set(err, SL_NOMEM, "model");
    m->arch = *a;
    m->ops = ops;
    m->be = be;
    m->q_cols = a->heads * a->head_dim;
    m->kv_cols = a->kv_heads * a->head_dim;
    m->act = a->activation == SL_SWIGLU     ? SL_ACT_SWIGLU
             : a->activation == SL_GELU_ERF ? SL_ACT_GELU_ERF
                                            : SL_ACT_GELU_TANH;
    m->pre_cols = m->act == SL_ACT_SWIGLU ? 2 * a->ffn : a->ffn;
    m->logits_ld = ((int64_t)a->vocab + SL_LOGITS_ALIGN - 1) / SL_LOGITS_ALIGN * SL_LOGITS_ALIGN;
    int64_t chunk = SL_LOGITS_BYTES_MAX / (m->logits_ld * (int64_t)ops->act_bytes);
    m->logit_rows = chunk > 0 ? (int)chunk : 1;
    m->layers = calloc((size_t)a->layers, sizeof *m->layers);
    m->saved = calloc((size_t)a->layers, sizeof *m->saved);
    if (!m->layers || !m->saved)
        rc = sl_err_set(err, SL_NOMEM, "model of %d layers", a->layers);
    if (!rc)
        rc = load_all(m, w, err);
    if (rc) {
        sl_model_free(m);
        return rc;
    }
    *ret_model = m;
    return 0;
}

static void drop(struct sl_model *m, struct sl_weight *w)
{
    if (w)
        m->ops->weight_free(m->be, w);
}

void sl_model_free(struct sl_model *m)
{
    if (!m)
        return;
    for (int i = 0; m->layers && i < m->arch.layers; i++) {
        const struct sl_layer *l = &m->layers[i];
        struct sl_weight *all[] = {l->norm1, l->norm1_b, l->qkv,  l->qkv_b,  l->q,      l->q_b,
                                   l->kv,    l->kv_b,    l->o,    l->o_b,    l->norm2,  l->norm2_b,
                                   l->up,    l->up_b,    l->down, l->down_b, l->q_norm, l->k_norm};
        for (size_t k = 0; k < sizeof all / sizeof(void *); k++)
            drop(m, all[k]);
    }
    if (m->head != m->embed)
        drop(m, m->head);
    drop(m, m->embed);
    drop(m, m->pos_embed);
    drop(m, m->norm);
    drop(m, m->norm_b);
    if (m->rope)
        m->ops->free(m->be, m->rope);
    if (m->arena)
        m->ops->free(m->be, m->arena);
    free(m->layers);
    free(m->saved);
    free(m);
}
