#include "base/rng.h"
#include "engine/encoder_impl.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARALLEL_MIN (1 << 15) /* initial values; below, one thread makes them */
#define ALIGN_FLOATS                                                                               \
    64 /* parameters begin at multiples of 256 bytes; an LSTM's directions follow each other */
static int check(const struct sl_encoder_config *c, struct sl_err *err)
{
    bool net = c->type != SL_ENC_TABLE && c->type != SL_ENC_EMBEDDING;
    bool layered = c->type == SL_ENC_MLP || c->type == SL_ENC_LSTM;
    int least = c->type == SL_ENC_MLP ? 2 : 1;

    if (c->n_tasks < 1 || c->n_tasks > SL_ENC_MAX_TASKS)
        return sl_err_set(err, SL_SPEC, "a prompt encoder serves 1 to %d tasks, not %d",
                          SL_ENC_MAX_TASKS, c->n_tasks);
    if (c->virtual_tokens < 1 || c->virtual_tokens > SL_ENC_MAX_VIRTUAL)
        return sl_err_set(err, SL_SPEC, "total_virtual_tokens must be 1 to %d, not %d",
                          SL_ENC_MAX_VIRTUAL, c->virtual_tokens);
    if (c->hidden < 1 || c->hidden > SL_ENC_MAX_WIDTH)
        return sl_err_set(err, SL_SPEC, "the model's hidden size must be 1 to %d, not %d",
                          SL_ENC_MAX_WIDTH, c->hidden);
    if (net && (c->encoder_hidden < 1 || c->encoder_hidden > SL_ENC_MAX_WIDTH))
        return sl_err_set(err, SL_SPEC, "p_tuning.encoder_hidden must be 1 to %d, not %d",
                          SL_ENC_MAX_WIDTH, c->encoder_hidden);
    if (layered && (c->layers < least || c->layers > SL_ENC_MAX_LAYERS))
        return sl_err_set(err, SL_SPEC,
                          "p_tuning.num_layers must be %d to %d for this encoder, not %d", least,
                          SL_ENC_MAX_LAYERS, c->layers);
    if (c->type == SL_ENC_LSTM && !(c->dropout >= 0 && c->dropout < 1))
        return sl_err_set(err, SL_SPEC, "p_tuning.dropout must be at least 0 and below 1, not %g",
                          (double)c->dropout);
    if (c->type == SL_ENC_TPMLP && !(c->init_std >= 0 && c->init_std < INFINITY))
        return sl_err_set(err, SL_SPEC, "p_tuning.init_std must be at least 0, not %g",
                          (double)c->init_std);
    return 0;
}

/* ---- parameters ---- */

static size_t align_up(size_t n)
{
    return (n + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

/* Appends a parameter at the offset given; returns its index. */
__attribute__((format(printf, 5, 6))) static int
add_param_at(struct sl_encoder *e, size_t offset, int rows, int cols, const char *fmt, ...)
{
    struct sl_param *p = &e->param[e->n_params];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(p->name, sizeof p->name, fmt, ap);
    va_end(ap);
    p->rows = rows;
    p->cols = cols;
    e->offset[e->n_params] = offset;
    return e->n_params++;
}

static int add_param(struct sl_encoder *e, const char *name, int rows, int cols,
                     struct sl_encoder_init init)
{
    size_t offset = align_up(e->n_floats);

    e->n_floats = offset + (size_t)rows * (size_t)cols;
    e->init[e->n_params] = init;
    return add_param_at(e, offset, rows, cols, "%s", name);
}

/* mlp_head.<at>: at counts activations too, as torch's Sequential does. std < 0: torch's default,
 * U(+-1/sqrt(in)). */
static void add_linear(struct sl_encoder *e, int at, int in, int out, enum sl_act_kind kind,
                       double std)
{
    struct sl_encoder_linear *l = &e->linear[e->n_linear++];
    struct sl_encoder_init weight = {INIT_UNIFORM, 1 / sqrt(in)}, bias = weight;
    char name[SL_PARAM_NAME_MAX];

    if (std >= 0) {
        weight = (struct sl_encoder_init){INIT_NORMAL, std};
        bias = (struct sl_encoder_init){INIT_ZERO, 0};
    }
    l->in = in;
    l->out = out;
    l->kind = kind;
    snprintf(name, sizeof name, "mlp_head.%d.weight", at);
    l->weight = add_param(e, name, out, in, weight);
    snprintf(name, sizeof name, "mlp_head.%d.bias", at);
    l->bias = add_param(e, name, 1, out, bias);
}

/* Eight parameters in torch's order (forward's four, then _reverse), in memory by pairs as sl_lstm
 * wants them. */
static void add_lstm(struct sl_encoder *e, int layer, int in)
{
    static const char *const what[4] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};
    int hidden = e->config.encoder_hidden, gates = 4 * hidden;
    int rows[4] = {gates, gates, 1, 1}, cols[4] = {in, hidden, gates, gates};
    struct sl_encoder_lstm *l = &e->lstm[e->n_lstm++];
    size_t offset[4];

    for (int i = 0; i < 4; i++) {
        offset[i] = align_up(e->n_floats);
        e->n_floats = offset[i] + 2 * (size_t)rows[i] * (size_t)cols[i];
    }
    l->first = e->n_params;
    for (int i = 0; i < 8; i++) {
        size_t size = (size_t)rows[i % 4] * (size_t)cols[i % 4];

        e->init[e->n_params] = (struct sl_encoder_init){INIT_UNIFORM, 1 / sqrt(hidden)};
        add_param_at(e, offset[i % 4] + (i < 4 ? 0 : size), rows[i % 4], cols[i % 4],
                     "lstm_head.%s_l%d%s", what[i % 4], layer, i < 4 ? "" : "_reverse");
    }
    l->l = (struct sl_lstm){
        .seqs = e->config.n_tasks, .steps = e->config.virtual_tokens, .in = in, .hidden = hidden};
}

static void add_params(struct sl_encoder *e)
{
    const struct sl_encoder_config *c = &e->config;
    int wide = c->encoder_hidden;
    struct sl_encoder_init xavier = {INIT_NORMAL,
                                     sqrt(2.0 / ((double)c->virtual_tokens + c->hidden))};
    char name[SL_PARAM_NAME_MAX];

    if (c->type == SL_ENC_TABLE) {
        for (int t = 0; t < c->n_tasks; t++) {
            snprintf(name, sizeof name, "table.%d", t);
            add_param(e, name, c->virtual_tokens, c->hidden, xavier);
        }
        return;
    }
    add_param(e, "embedding.weight", c->virtual_tokens, c->hidden,
              c->type == SL_ENC_EMBEDDING ? xavier : (struct sl_encoder_init){INIT_NORMAL, 1});
    switch (c->type) {
    case SL_ENC_TPMLP:
        add_linear(e, 0, c->hidden, wide, SL_ACT_GELU_TANH, (double)c->init_std);
        add_linear(e, 2, wide, c->hidden, SL_ACT_NONE, (double)c->init_std);
        break;
    case SL_ENC_MLP:
        for (int i = 0; i < c->layers; i++)
            add_linear(e, 2 * i, i ? wide : c->hidden, i < c->layers - 1 ? wide : c->hidden,
                       i < c->layers - 1 ? SL_ACT_RELU : SL_ACT_NONE, -1);
        break;
    case SL_ENC_LSTM:
        for (int i = 0; i < c->layers; i++)
            add_lstm(e, i, i ? 2 * wide : c->hidden);
        add_linear(e, 0, 2 * wide, 2 * wide, SL_ACT_RELU, -1);
        add_linear(e, 2, 2 * wide, c->hidden, SL_ACT_NONE, -1);
        break;
    case SL_ENC_TABLE:
    case SL_ENC_EMBEDDING:
        break;
    }
}

static int max_params(const struct sl_encoder_config *c)
{
    return c->type == SL_ENC_TABLE ? c->n_tasks : 5 + 8 * SL_ENC_MAX_LAYERS;
}
_Static_assert(5 + 8 * SL_ENC_MAX_LAYERS <= SL_ENC_MAX_PARAMS &&
                   SL_ENC_MAX_TASKS <= SL_ENC_MAX_PARAMS,
               "every encoder's parameters fit");

/* ---- making one ---- */

static int alloc_floats(struct sl_encoder *e, size_t n, float **ret_p, struct sl_err *err)
{
    void *p;
    int rc = e->ops->alloc(e->be, n * sizeof(float), &p, err);

    if (rc)
        return rc;
    e->block[e->n_blocks++] = p;
    *ret_p = p;
    return 0;
}

static int fill(struct sl_encoder *e, int index, float *host, struct sl_err *err)
{
    struct sl_param *p = &e->param[index];
    size_t n = (size_t)p->rows * (size_t)p->cols;
    struct sl_rng all = sl_rng_new(e->config.seed, SL_RNG_ENCODER + (uint64_t)index);
    struct sl_encoder_init init = e->init[index];

    if (e->ops->counts_only)
        return 0;
#pragma omp parallel for schedule(static) if (n >= PARALLEL_MIN)
    for (size_t i = 0; i < n; i++) { /* by element: the same numbers from any number of threads */
        struct sl_rng rng = {all.key, init.kind == INIT_NORMAL ? 2 * i : i};
        double x = 0;

        if (init.kind == INIT_NORMAL)
            x = sl_rng_normal(&rng) * init.scale;
        else if (init.kind == INIT_UNIFORM)
            x = (2 * sl_rng_uniform(&rng) - 1) * init.scale;
        host[i] = (float)x;
    }
    return e->ops->upload(e->be, p->value, host, n * sizeof *host, err);
}

static int alloc_params(struct sl_encoder *e, struct sl_err *err)
{
    size_t most = 0;
    float *host;
    int rc = 0;

    for (int k = 0; k < 4 && !rc; k++) {
        rc = alloc_floats(e, e->n_floats, &e->state[k], err);
        if (!rc)
            e->ops->zero(e->be, e->state[k], e->n_floats * sizeof(float));
    }
    if (rc)
        return rc;
    for (int i = 0; i < e->n_params; i++) {
        struct sl_param *p = &e->param[i];
        size_t n = (size_t)p->rows * (size_t)p->cols;

        p->value = e->state[0] + e->offset[i];
        p->grad = e->state[1] + e->offset[i];
        p->m = e->state[2] + e->offset[i];
        p->v = e->state[3] + e->offset[i];
        p->lr_ratio = 1;
        most = n > most ? n : most;
    }
    host = malloc(most * sizeof *host);
    if (!host)
        return sl_err_set(err, SL_NOMEM, "out of memory: %zu bytes for initial values",
                          most * sizeof *host);
    for (int i = 0; i < e->n_params && !rc; i++)
        rc = fill(e, i, host, err);
    free(host);
    return rc;
}

static int alloc_activations(struct sl_encoder *e, struct sl_err *err)
{
    const struct sl_encoder_config *c = &e->config;
    size_t rows = (size_t)e->rows, widest = (size_t)c->hidden;
    int rc = 0;

    if (c->type != SL_ENC_TABLE && c->type != SL_ENC_EMBEDDING)
        rc = alloc_floats(e, rows * (size_t)c->hidden, &e->input, err);
    for (int i = 0; i < e->n_lstm && !rc; i++) {
        struct sl_encoder_lstm *l = &e->lstm[i];
        size_t wide = 2 * (size_t)c->encoder_hidden;

        rc = alloc_floats(e, e->ops->lstm_saved(&l->l), &l->l.saved, err);
        if (!rc)
            rc = alloc_floats(e, rows * wide, &l->y, err);
        if (!rc && c->dropout > 0 && i < e->n_lstm - 1)
            rc = alloc_floats(e, rows * wide, &l->dropped, err);
        widest = wide > widest ? wide : widest;
    }
    for (int i = 0; i < e->n_linear - 1 && !rc; i++) {
        struct sl_encoder_linear *l = &e->linear[i];

        rc = alloc_floats(e, rows * (size_t)l->out, &l->pre, err);
        if (!rc)
            rc = alloc_floats(e, rows * (size_t)l->out, &l->y, err);
        widest = (size_t)l->out > widest ? (size_t)l->out : widest;
    }
    for (int i = 0; i < 2 && !rc; i++)
        rc = alloc_floats(e, rows * widest, &e->scratch[i], err);
    return rc;
}

static void free_host(struct sl_encoder *e)
{
    free(e->param);
    free(e->init);
    free(e->offset);
    free(e->fixed);
    free(e);
}

/* Everything but device memory; NULL when out of memory. */
static struct sl_encoder *plan(const struct sl_encoder_config *c)
{
    struct sl_encoder *e = calloc(1, sizeof *e);
    size_t n = (size_t)max_params(c);

    if (!e)
        return NULL;
    e->config = *c;
    e->rows = c->n_tasks * c->virtual_tokens;
    e->param = calloc(n, sizeof *e->param);
    e->init = calloc(n, sizeof *e->init);
    e->offset = calloc(n, sizeof *e->offset);
    e->fixed = calloc((size_t)c->n_tasks, sizeof *e->fixed);
    if (!e->param || !e->init || !e->offset || !e->fixed) {
        free_host(e);
        return NULL;
    }
    add_params(e);
    e->n_floats = align_up(e->n_floats);
    return e;
}

int sl_encoder_new(const struct sl_encoder_config *config, const struct sl_ops *ops,
                   struct sl_backend *be, struct sl_encoder **ret_encoder, struct sl_err *err)
{
    struct sl_encoder *e;
    int rc = check(config, err);

    if (rc)
        return rc;
    e = plan(config);
    if (!e)
        return sl_err_set(err, SL_NOMEM, "making the prompt encoder: out of memory");
    e->ops = ops;
    e->be = be;
    rc = alloc_params(e, err);
    if (!rc)
        rc = alloc_activations(e, err);
    if (rc) {
        sl_err_wrap(err, rc, "making the prompt encoder (%lld bytes of state)",
                    (long long)sl_encoder_state_bytes(config));
        sl_encoder_free(e);
        return rc;
    }
    *ret_encoder = e;
    return 0;
}

void sl_encoder_free(struct sl_encoder *e)
{
    if (!e)
        return;
    for (int t = 0; t < e->config.n_tasks; t++)
        if (e->fixed[t].rows)
            e->ops->free(e->be, e->fixed[t].rows);
    for (int i = 0; i < e->n_blocks; i++)
        e->ops->free(e->be, e->block[i]);
    free_host(e);
}

const struct sl_encoder_config *sl_encoder_config(const struct sl_encoder *e)
{
    return &e->config;
}

struct sl_param *sl_encoder_params(struct sl_encoder *e, int *ret_n)
{
    *ret_n = e->n_params;
    return e->param;
}

struct sl_param sl_encoder_whole(const struct sl_encoder *e)
{
    return (struct sl_param){.name = "all",
                             .rows = (int)(e->n_floats / ALIGN_FLOATS),
                             .cols = ALIGN_FLOATS,
                             .value = e->state[0],
                             .grad = e->state[1],
                             .m = e->state[2],
                             .v = e->state[3],
                             .lr_ratio = 1};
}

int64_t sl_encoder_state_bytes(const struct sl_encoder_config *config)
{
    struct sl_encoder *e = check(config, NULL) ? NULL : plan(config);
    int64_t floats = 0;

    for (int i = 0; e && i < e->n_params; i++)
        floats += (int64_t)e->param[i].rows * e->param[i].cols;
    if (e)
        free_host(e);
    return 4 * floats * (int64_t)sizeof(float);
}

static int check_task(const struct sl_encoder *e, int task, struct sl_err *err)
{
    if (task < 0 || task >= e->config.n_tasks)
        return sl_err_set(err, SL_SPEC, "the prompt encoder has tasks 0 to %d, no task %d",
                          e->config.n_tasks - 1, task);
    return 0;
}

int sl_encoder_fix_rows(struct sl_encoder *e, int task, const float *host_rows, int n,
                        struct sl_err *err)
{
    size_t bytes = (size_t)(n > 0 ? n : 0) * (size_t)e->config.hidden * sizeof(float);
    int rc = check_task(e, task, err);
    void *rows = NULL;

    if (rc)
        return rc;
    if (e->config.type == SL_ENC_TABLE || n < 0 || n > e->config.virtual_tokens)
        return sl_err_set(err, SL_SPEC,
                          "%d frozen rows do not go into this prompt encoder's input of %d rows", n,
                          e->config.virtual_tokens);
    if (n) {
        rc = e->ops->alloc(e->be, bytes, &rows, err);
        if (rc)
            return rc;
        rc = e->ops->upload(e->be, rows, host_rows, bytes, err);
        if (rc) {
            e->ops->free(e->be, rows);
            return rc;
        }
    }
    if (e->fixed[task].rows)
        e->ops->free(e->be, e->fixed[task].rows);
    e->fixed[task] = (struct sl_encoder_fixed){rows, n};
    return 0;
}

int sl_encoder_set_table(struct sl_encoder *e, int task, const float *host_rows, struct sl_err *err)
{
    int rc = check_task(e, task, err);

    if (rc)
        return rc;
    if (e->config.type != SL_ENC_TABLE)
        return sl_err_set(err, SL_SPEC,
                          "only prompt tuning starts from given rows; this is a prompt encoder");
    return e->ops->upload(
        e->be, e->param[task].value, host_rows,
        (size_t)e->config.virtual_tokens * (size_t)e->config.hidden * sizeof(float), err);
}

void sl_encoder_zero_grad(struct sl_encoder *e)
{
    e->ops->zero(e->be, e->state[1], e->n_floats * sizeof(float));
}
