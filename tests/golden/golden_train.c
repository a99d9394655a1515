#include "tests/golden/golden_train.h"
#include "engine/backend.h"
#include "engine/encoder.h"
#include "engine/optim.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

#define MAX_TABLES 2
#define MAX_ROWS 16
#define MAX_PARAMS 64
#define MAX_STEPS 64

bool golden_passes(const struct golden_verdict *v)
{
    return v->grad <= GOLDEN_GRAD_TOLERANCE && v->prompt_grad <= GOLDEN_GRAD_TOLERANCE &&
           v->norm <= GOLDEN_GRAD_TOLERANCE && v->loss <= GOLDEN_LOSS_TOLERANCE &&
           v->table <= GOLDEN_TABLE_TOLERANCE && v->lr <= 1e-6;
}

static void ok(int rc, const struct sl_err *err)
{
    if (rc)
        fail_msg("%s", err->msg);
}

static struct sl_err err;
static struct sl_ops faulty_ops;
static const struct sl_ops *ops = &faulty_ops, *plain_ops;
static struct sl_backend *be; /* of the run that goes on, as is model */
static struct sl_model *model;
static enum golden_fault planted;

static void attention_back(struct sl_backend *b, const struct sl_attention *a, const sl_act *q,
                           int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                           const sl_act *o, int64_t ldo, const float *lse, const sl_act *d_o,
                           int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk, int64_t lddk,
                           sl_act *dv, int64_t lddv)
{
    const struct sl_seq *seq = a->host_seqs;
    size_t cols = (size_t)a->kv_heads * (size_t)a->head_dim;

    plain_ops->attention_back(b, a, q, ldq, k, ldk, v, ldv, o, ldo, lse, d_o, ldd, dq, lddq, dk,
                              lddk, dv, lddv);
    for (int s = 0; planted == GOLDEN_PREFIX_DK_LEFT_OUT && s < a->n_seqs; s++) {
        if (!seq[s].prefix_len || (s > 0 && seq[s - 1].prefix_start == seq[s].prefix_start))
            continue;
        for (int64_t i = 0; i < seq[s].prefix_len; i++)
            ops->zero(b, (float *)dk + (seq[s].prefix_start + i) * lddk, cols * sizeof(float));
        if (s == 0 || seq[s - 1].kv_start != seq[s].prefix_start)
            continue; /* the last layer: the prefix asks nothing */
        struct sl_attention own = *a;
        void *no_dv;
        ok(ops->alloc(b, (size_t)a->n_keys * cols * sizeof(float), &no_dv, &err), &err);
        ops->zero(b, no_dv, (size_t)a->n_keys * cols * sizeof(float));
        own.n_seqs = 1;
        own.seqs += s - 1;
        own.host_seqs += s - 1;
        plain_ops->attention_back(b, &own, q, ldq, k, ldk, v, ldv, o, ldo, lse, d_o, ldd, dq, lddq,
                                  dk, lddk, no_dv, (int64_t)cols);
        ops->free(b, no_dv);
    }
}

static void head_norm_back(struct sl_backend *b, const sl_act *dy, int64_t lddy, const sl_act *x,
                           int64_t ldx, const float *rstd, int64_t rows, int heads, int head_dim,
                           const struct sl_weight *w, sl_act *dx, int64_t lddx)
{
    size_t bytes = (size_t)heads * (size_t)head_dim * sizeof(float);
    if (planted != GOLDEN_HEAD_NORM_BACK_LEFT_OUT)
        plain_ops->head_norm_back(b, dy, lddy, x, ldx, rstd, rows, heads, head_dim, w, dx, lddx);
    else
        for (int64_t r = 0; r < rows; r++)
            if (dx != dy)
                ops->copy(b, (float *)dx + r * lddx, (const float *)dy + r * lddy, bytes);
}

static void matmul(struct sl_backend *b, const sl_act *x, int64_t ldx, int64_t rows,
                   const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                   int64_t ld_add, sl_act *y, int64_t ldy)
{
    plain_ops->matmul(b, x, ldx, rows, w, planted == GOLDEN_BIAS_LEFT_OUT ? NULL : bias, add,
                      ld_add, y, ldy);
}

/* A fault that asks for memory in a step cannot be captured. */
static bool step_replay(struct sl_backend *b, uint64_t bucket)
{
    return !planted && plain_ops->step_replay(b, bucket);
}

static void step_begin(struct sl_backend *b, uint64_t bucket)
{
    plain_ops->step_begin(b, planted ? 0 : bucket);
}

void golden_plant(enum golden_fault fault)
{
    planted = fault;
}

void golden_model_open(struct golden_model *gm, const char *path)
{
    golden_model_open_in(gm, path, SL_PRECISION_FP32);
}

void golden_model_open_in(struct golden_model *gm, const char *path, enum sl_precision precision)
{
    struct sl_weights *w;
    plain_ops = &sl_cpu_ops;
    if (getenv("SL_TEST_CUDA")) /* the folder of the CUDA library: the same comparisons on a GPU */
        ok(sl_backend_cuda(getenv("SL_TEST_CUDA"), precision == SL_PRECISION_FP32, &plain_ops, &err), &err);
    faulty_ops = *plain_ops;
    faulty_ops.attention_back = attention_back;
    faulty_ops.head_norm_back = head_norm_back;
    faulty_ops.matmul = matmul;
    faulty_ops.step_replay = plain_ops->step_replay ? step_replay : NULL;
    faulty_ops.step_begin = step_begin;
    ok(ops->open(&(struct sl_backend_opts){.threads = 1, .precision = precision}, &gm->be, &err), &err);
    ok(sl_weights_open(path, &w, &err), &err);
    ok(sl_model_new(w, ops, gm->be, &gm->model, &err), &err);
    sl_weights_close(w);
}

void golden_model_close(struct golden_model *gm)
{
    sl_model_free(gm->model);
    ops->close(gm->be);
}

/* ---- one run */
struct run {
    struct golden g;
    int hidden, n_tables, v[MAX_TABLES], n_prompts;
    int n_encoders, tasks; /* tasks of each encoder: one, or all of a shared one */
    struct sl_encoder *encoder[MAX_TABLES];
    struct sl_param *param[MAX_PARAMS];
    char param_name[MAX_PARAMS][SL_PARAM_NAME_MAX]; /* the recorded one */
    int n_params;
    float *tables, *dtables; /* device, [n_prompts, hidden] */
};

/* The recorded name of a parameter of encoder `table`. */
static void recorded_name(const struct run *r, int table, const char *ours,
                          char ret[SL_PARAM_NAME_MAX])
{
    static const char *const other[][3] = {
        {"prompt", "table.0", "embedding.weight"},
        {"tpmlp", "mlp_head.0.weight", "first.weight"},
        {"tpmlp", "mlp_head.0.bias", "first.bias"},
        {"tpmlp", "mlp_head.2.weight", "second.weight"},
        {"tpmlp", "mlp_head.2.bias", "second.bias"},
    };
    const char *name = golden_meta(&r->g, "case");
    snprintf(ret, SL_PARAM_NAME_MAX, "%s", ours);
    if (!strcmp(name, "two_tables"))
        snprintf(ret, SL_PARAM_NAME_MAX, "%d", table);
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (!strcmp(name, other[i][0]) && !strcmp(ours, other[i][1]))
            snprintf(ret, SL_PARAM_NAME_MAX, "%s", other[i][2]);
}

static const float *recorded(const struct run *r, const char *kind, const char *name, int64_t n)
{
    char full[2 * SL_PARAM_NAME_MAX];
    int64_t have;
    snprintf(full, sizeof full, "%s.%s", kind, name);
    const float *x = golden_f32(&r->g, full, &have);
    assert_int_equal(have, n);
    return x;
}

static enum sl_encoder_type type_of(const char *name)
{
    return !strcmp(name, "tpmlp")  ? SL_ENC_TPMLP
           : !strcmp(name, "mlp")  ? SL_ENC_MLP
           : !strcmp(name, "lstm") ? SL_ENC_LSTM
                                   : SL_ENC_TABLE;
}

static void fix_rows(struct run *r, int task)
{
    char name[32];
    int64_t n;
    snprintf(name, sizeof name, "fixed.%d", task);
    const float *rows = golden_f32(&r->g, name, &n);
    ok(sl_encoder_fix_rows(r->encoder[0], task, rows, (int)(n / r->hidden), &err), &err);
}

static void run_init(struct run *r, const char *file)
{
    memset(r, 0, sizeof *r);
    golden_open(&r->g, file);
    r->hidden = sl_model_arch(model)->hidden;
    for (const char *p = golden_meta(&r->g, "virtual_tokens"); *p; p += *p == ',') {
        assert_true(r->n_tables < MAX_TABLES);
        r->v[r->n_tables] = (int)strtol(p, (char **)&p, 10);
        r->n_prompts += r->v[r->n_tables++];
    }
    bool shared = golden_meta_num(&r->g, "shared_encoder") > 0;
    r->n_encoders = shared ? 1 : r->n_tables;
    r->tasks = shared ? r->n_tables : 1;
    for (int t = 0; t < r->n_encoders; t++) {
        struct sl_encoder_config c = {
            .type = type_of(golden_meta(&r->g, "encoder_type")),
            .n_tasks = r->tasks,
            .virtual_tokens = r->v[t],
            .hidden = r->hidden,
            .encoder_hidden = (int)golden_meta_num(&r->g, "encoder_hidden"),
            .layers = (int)golden_meta_num(&r->g, "num_layers"),
            .init_std = 0.02f,
        };
        int n;
        ok(sl_encoder_new(&c, ops, be, &r->encoder[t], &err), &err);
        for (int task = 0; shared && task < r->tasks; task++)
            fix_rows(r, task);
        struct sl_param *params = sl_encoder_params(r->encoder[t], &n);
        for (int i = 0; i < n; i++, r->n_params++) {
            assert_true(r->n_params < MAX_PARAMS);
            struct sl_param *p = r->param[r->n_params] = &params[i];
            char *as = r->param_name[r->n_params];
            recorded_name(r, t, p->name, as);
            size_t count = (size_t)p->rows * (size_t)p->cols;
            const float *init = recorded(r, "init", as, (int64_t)count);
            ok(ops->upload(be, p->value, init, count * sizeof(float), &err), &err);
        }
    }
    size_t bytes = (size_t)r->n_prompts * (size_t)r->hidden * sizeof(float);
    ok(ops->alloc(be, bytes, (void **)&r->tables, &err), &err);
    ok(ops->alloc(be, bytes, (void **)&r->dtables, &err), &err);
}

static void run_release(struct run *r)
{
    ops->free(be, r->tables);
    ops->free(be, r->dtables);
    for (int t = 0; t < r->n_encoders; t++)
        sl_encoder_free(r->encoder[t]);
    golden_close(&r->g);
}

static void forward(struct run *r, bool training, int64_t step)
{
    float *to = r->tables;
    for (int t = 0; t < r->n_encoders; t++) {
        sl_encoder_forward(r->encoder[t], training, step, to);
        to += (size_t)r->tasks * (size_t)r->v[t] * (size_t)r->hidden;
    }
}

static void backward(struct run *r)
{
    const float *from = r->dtables;
    for (int t = 0; t < r->n_encoders; t++) {
        sl_encoder_zero_grad(r->encoder[t]);
        sl_encoder_backward(r->encoder[t], from);
        from += (size_t)r->tasks * (size_t)r->v[t] * (size_t)r->hidden;
    }
}

static const int32_t *batch_tensor(const struct run *r, int b, const char *what, int64_t *ret_n)
{
    char name[64];
    snprintf(name, sizeof name, "batch.%d.%s", b, what);
    return golden_i32(&r->g, name, ret_n);
}

/* The recorded rows with their virtual tokens in front. */
static void pack(const struct run *r, int b, bool share, struct sl_batch *ret_batch)
{
    struct sl_row rows[MAX_ROWS];
    int64_t n_rows, n_ids;
    const int32_t *length = batch_tensor(r, b, "length", &n_rows);
    const int32_t *slot = batch_tensor(r, b, "slot", NULL);
    const int32_t *ids = batch_tensor(r, b, "ids", &n_ids);
    const int32_t *answer = batch_tensor(r, b, "answer", NULL);
    assert_true(n_rows <= MAX_ROWS);
    size_t room = (size_t)(n_ids + n_rows * r->n_prompts);
    int32_t *id = calloc(room, sizeof *id);
    unsigned char *target = calloc(room, 1);
    assert_non_null(id);
    assert_non_null(target);
    int32_t *to = id;
    unsigned char *to_target = target;
    for (int i = 0; i < n_rows; i++) {
        int v = r->v[slot[i]];
        rows[i] = (struct sl_row){slot[i], v + length[i], to, to_target};
        for (int k = 0; k < v; k++)
            *to++ = -(k + 1);
        to_target += v;
        for (int k = 0; k < length[i]; k++, ids++, answer++) {
            *to++ = *ids;
            *to_target++ = (unsigned char)*answer;
        }
    }
    const struct sl_arch *a = sl_model_arch(model);
    int rc = sl_batch_pack(rows, (int)n_rows, r->v, r->n_tables, a->vocab, a->max_positions, share,
                           0, ret_batch, &err);
    free(id);
    free(target);
    ok(rc, &err);
}

static double far(const float *device, const float *want, int64_t n)
{
    float *host = malloc((size_t)n * sizeof(float));
    assert_non_null(host);
    ok(ops->download(be, host, device, (size_t)n * sizeof(float), &err), &err);
    double d = golden_distance(host, want, n);
    free(host);
    return d;
}

static double far_tables(const struct run *r, const float *device, const char *kind)
{
    double d = 0;
    for (int t = 0; t < r->n_tables; t++) {
        char name[16];
        int64_t n = (int64_t)r->v[t] * r->hidden;
        snprintf(name, sizeof name, "%d", t);
        d = golden_worst(far(device, recorded(r, kind, name, n), n), d);
        device += n;
    }
    return d;
}

static void scale_device(float *device, int64_t n, float by)
{
    float *host = malloc((size_t)n * sizeof(float));
    assert_non_null(host);
    ok(ops->download(be, host, device, (size_t)n * sizeof(float), &err), &err);
    for (int64_t i = 0; i < n; i++)
        host[i] *= by;
    ok(ops->upload(be, device, host, (size_t)n * sizeof(float), &err), &err);
    free(host);
}

/* Each position is asked for its own token: what forgetting the shift does. */
static void shift_labels(struct sl_batch *b)
{
    for (int e = 0; e < b->n_entries; e++) {
        int32_t own = b->src[b->out[b->entry_out[e]]];
        if (own >= 0)
            b->entry_target[e] = own;
    }
}

struct golden_verdict golden_train(const struct golden_model *gm, const char *file, bool share,
                                   enum golden_fault fault)
{
    struct run r;
    struct golden_verdict v = {0};
    be = gm->be;
    model = gm->model;
    run_init(&r, file);
    golden_plant(fault);
    int steps = (int)golden_meta_num(&r.g, "steps"),
        batches = (int)golden_meta_num(&r.g, "batches");
    assert_in_range(steps, 20, MAX_STEPS);
    struct sl_schedule schedule = {
        .lr = golden_meta_num(&r.g, "lr"),
        .min_lr = golden_meta_num(&r.g, "min_lr"),
        .warmup_steps = (int64_t)golden_meta_num(&r.g, "warmup_steps"),
        .max_steps = steps,
    };
    struct sl_optim optim = {
        .beta1 = (float)golden_meta_num(&r.g, "beta1"),
        .beta2 = (float)golden_meta_num(&r.g, "beta2"),
        .eps = (float)golden_meta_num(&r.g, "eps"),
        .weight_decay = (float)golden_meta_num(&r.g, "weight_decay"),
        .clip_norm = (float)golden_meta_num(&r.g, "gradient_clip_val"),
    };
    ok(sl_optim_init(&optim, ops, be, &err), &err);
    const float *want_loss = golden_f32(&r.g, "loss", NULL),
                *want_lr = golden_f32(&r.g, "lr", NULL);
    const float *want_norm = golden_f32(&r.g, "grad_norm", NULL);
    float loss[MAX_STEPS];
    for (int step = 0; step < steps; step++) {
        struct sl_batch b;
        pack(&r, step % batches, share, &b);
        if (fault == GOLDEN_LABEL_SHIFTED)
            shift_labels(&b);
        float *entry_loss = calloc((size_t)b.n_entries, sizeof *entry_loss);
        assert_non_null(entry_loss);
        forward(&r, true, step);
        ok(sl_model_step(model, &b, r.tables, r.dtables, entry_loss, &err), &err);
        double sum = 0;
        for (int e = 0; e < b.n_entries; e++)
            sum += (double)b.entry_weight[e] * entry_loss[e];
        loss[step] = (float)sum;
        if (fault == GOLDEN_GRADIENT_TENTH_MORE)
            scale_device(r.dtables, (int64_t)r.n_prompts * r.hidden, 1.1f);
        backward(&r);
        if (step == 0) {
            v.prompt_grad = far_tables(&r, r.dtables, "grad.prompt");
            for (int i = 0; i < r.n_params; i++) {
                int64_t n = (int64_t)r.param[i]->rows * r.param[i]->cols;
                double d = far(r.param[i]->grad, recorded(&r, "grad", r.param_name[i], n), n);
                v.grad = golden_worst(d, v.grad);
            }
        }
        struct sl_param params[MAX_PARAMS];
        for (int i = 0; i < r.n_params; i++)
            params[i] = *r.param[i];
        double lr = sl_schedule_lr(&schedule, step);
        float norm;
        ok(sl_optim_step(&optim, params, r.n_params, (float)lr, step + 1, &norm, &err), &err);
        v.loss = golden_worst(fabs(sum - want_loss[step]), v.loss);
        v.last_loss = fabs(sum / want_loss[step] - 1);
        v.lr = golden_worst(fabs(lr / want_lr[step] - 1), v.lr);
        /* later norms follow the parameters: the losses and the table say how far those are */
        if (step == 0)
            v.norm = fabs(norm / want_norm[step] - 1);
        free(entry_loss);
        sl_batch_release(&b);
    }
    if (fault == GOLDEN_NO_FAULT)
        assert_true(loss[steps - batches] <= 0.8f * loss[0]); /* the same batch again */
    forward(&r, false, steps);
    v.table = far_tables(&r, r.tables, "table");
    print_message(
        "%s%s%s: gradients %.1e, of prompts %.1e, first norm %.1e, losses %.1e, table %.1e\n", file,
        share ? "" : ", not shared", fault ? ", with a fault" : "", v.grad, v.prompt_grad, v.norm,
        v.loss, v.table);
    sl_optim_release(&optim);
    golden_plant(GOLDEN_NO_FAULT);
    run_release(&r);
    return v;
}
