/* Training against the recorded runs of PEFT (mlp, lstm, prompt) and plain torch (tpmlp, two tables
 * of different V, two tasks of one encoder): gradients of the first step, 20 losses, the final
 * table. The same comparison must fail for each planted fault. */
#include "engine/encoder.h"
#include "engine/model.h"
#include "engine/optim.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

#define MAX_TABLES 2
#define MAX_ROWS 16
#define MAX_PARAMS 64
#define MAX_STEPS 64

#define GRAD_TOLERANCE 1e-4  /* relative L2 */
#define LOSS_TOLERANCE 1e-4  /* nats */
#define TABLE_TOLERANCE 1e-3 /* relative L2 */

enum fault { NO_FAULT, GRADIENT_TENTH_MORE, LABEL_SHIFTED, PREFIX_DK_LEFT_OUT };

/* How far a run is from the recorded one. */
struct verdict {
    double grad, prompt_grad, loss, norm, lr, table;
};

static bool passes(const struct verdict *v)
{
    return v->grad <= GRAD_TOLERANCE && v->prompt_grad <= GRAD_TOLERANCE &&
           v->norm <= GRAD_TOLERANCE && v->loss <= LOSS_TOLERANCE && v->table <= TABLE_TOLERANCE &&
           v->lr <= 1e-6;
}

static void ok(int rc, const struct sl_err *err)
{
    if (rc)
        fail_msg("%s", err->msg);
}

static struct sl_err err;
static struct sl_ops faulty_ops;
static const struct sl_ops *ops = &faulty_ops;
static struct sl_backend *be;
static struct sl_model *model;
static bool no_prefix_dk; /* the planted fault is on */

/* With the fault, the keys of a shared prefix get no gradient from the rows behind it. */
static void attention_back(struct sl_backend *b, const struct sl_attention *a, const sl_act *q,
                           int64_t ldq, const sl_act *k, int64_t ldk, const sl_act *v, int64_t ldv,
                           const sl_act *o, int64_t ldo, const float *lse, const sl_act *d_o,
                           int64_t ldd, sl_act *dq, int64_t lddq, sl_act *dk, int64_t lddk,
                           sl_act *dv, int64_t lddv)
{
    const struct sl_seq *seq = a->host_seqs;
    size_t cols = (size_t)a->kv_heads * (size_t)a->head_dim;

    sl_cpu_ops.attention_back(b, a, q, ldq, k, ldk, v, ldv, o, ldo, lse, d_o, ldd, dq, lddq, dk,
                              lddk, dv, lddv);
    for (int s = 0; no_prefix_dk && s < a->n_seqs; s++) {
        if (!seq[s].prefix_len || (s > 0 && seq[s - 1].prefix_start == seq[s].prefix_start))
            continue;
        for (int64_t i = 0; i < seq[s].prefix_len; i++)
            memset((float *)dk + (seq[s].prefix_start + i) * lddk, 0, cols * sizeof(float));
        if (s == 0 || seq[s - 1].kv_start != seq[s].prefix_start)
            continue; /* the last layer: the prefix asks nothing */
        struct sl_attention own = *a;
        float *no_dv = calloc((size_t)a->n_keys * cols, sizeof *no_dv);
        assert_non_null(no_dv);
        own.n_seqs = 1;
        own.seqs += s - 1;
        own.host_seqs += s - 1;
        sl_cpu_ops.attention_back(b, &own, q, ldq, k, ldk, v, ldv, o, ldo, lse, d_o, ldd, dq, lddq,
                                  dk, lddk, no_dv, (int64_t)cols);
        free(no_dv);
    }
}

static int setup(void **state)
{
    (void)state;
    char path[SL_PATH_MAX];
    struct sl_weights *w;
    faulty_ops = sl_cpu_ops;
    faulty_ops.attention_back = attention_back;
    golden_path(path, "tiny_llama.gguf");
    ok(ops->open(&(struct sl_backend_opts){.threads = 1}, &be, &err), &err);
    ok(sl_weights_open(path, &w, &err), &err);
    ok(sl_model_new(w, ops, be, &model, &err), &err);
    sl_weights_close(w);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_model_free(model);
    ops->close(be);
    return 0;
}

/* ---- one run
 * -----------------------------------------------------------------------------------------------
 */
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

static void run_init(struct run *r, const char *name)
{
    char file[64];
    memset(r, 0, sizeof *r);
    snprintf(file, sizeof file, "train_%s.safetensors", name);
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

/* Trains as the recorded run did and compares. */
static struct verdict train(const char *name, bool share, enum fault fault)
{
    struct run r;
    struct verdict v = {0};
    run_init(&r, name);
    no_prefix_dk = fault == PREFIX_DK_LEFT_OUT;
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
        if (fault == LABEL_SHIFTED)
            shift_labels(&b);
        float *entry_loss = calloc((size_t)b.n_entries, sizeof *entry_loss);
        assert_non_null(entry_loss);
        forward(&r, true, step);
        ok(sl_model_step(model, &b, r.tables, r.dtables, entry_loss, &err), &err);
        double sum = 0;
        for (int e = 0; e < b.n_entries; e++)
            sum += (double)b.entry_weight[e] * entry_loss[e];
        loss[step] = (float)sum;
        if (fault == GRADIENT_TENTH_MORE)
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
        v.lr = golden_worst(fabs(lr / want_lr[step] - 1), v.lr);
        /* later norms follow the parameters: the losses and the table say how far those are */
        if (step == 0)
            v.norm = fabs(norm / want_norm[step] - 1);
        free(entry_loss);
        sl_batch_release(&b);
    }
    if (fault == NO_FAULT)
        assert_true(loss[steps - batches] <= 0.8f * loss[0]); /* the same batch again */
    forward(&r, false, steps);
    v.table = far_tables(&r, r.tables, "table");
    print_message(
        "%s%s%s: gradients %.1e, of prompts %.1e, first norm %.1e, losses %.1e, table %.1e\n", name,
        share ? "" : ", not shared", fault ? ", with a fault" : "", v.grad, v.prompt_grad, v.norm,
        v.loss, v.table);
    sl_optim_release(&optim);
    no_prefix_dk = false;
    run_release(&r);
    return v;
}

/* ---- tests */
static void check(const char *name)
{
    struct verdict shared = train(name, true, NO_FAULT), plain = train(name, false, NO_FAULT);
    assert_true(passes(&shared));
    assert_true(passes(&plain));
}

static void test_mlp(void **state)
{
    (void)state;
    check("mlp");
}
static void test_lstm(void **state)
{
    (void)state;
    check("lstm");
}
static void test_tpmlp(void **state)
{
    (void)state;
    check("tpmlp");
}
static void test_prompt_tuning(void **state)
{
    (void)state;
    check("prompt");
}
static void test_two_tables_of_different_length(void **state)
{
    (void)state;
    check("two_tables");
}

static void test_two_tasks_of_one_encoder(void **state)
{
    (void)state;
    check("two_tasks");
}

static const char *const cases[] = {"mlp", "lstm", "tpmlp", "prompt", "two_tables", "two_tasks"};
#define N_CASES (sizeof cases / sizeof *cases)

static void test_larger_gradient_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct verdict v = train(cases[i], true, GRADIENT_TENTH_MORE);
        assert_false(passes(&v));
        assert_true(v.grad > 0.09 && v.grad < 0.11 && v.prompt_grad > 0.09 && v.prompt_grad < 0.11);
        assert_true(v.norm > 0.09 && v.norm < 0.11);
    }
}

static void test_shifted_label_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct verdict v = train(cases[i], true, LABEL_SHIFTED);
        assert_false(passes(&v));
        assert_true(v.loss > 100 * LOSS_TOLERANCE && v.prompt_grad > 100 * GRAD_TOLERANCE);
    }
}

static void test_missing_prefix_dk_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct verdict v = train(cases[i], true, PREFIX_DK_LEFT_OUT);
        assert_false(passes(&v));
        assert_true(v.prompt_grad > 100 * GRAD_TOLERANCE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_lstm),
        cmocka_unit_test(test_tpmlp),
        cmocka_unit_test(test_prompt_tuning),
        cmocka_unit_test(test_two_tables_of_different_length),
        cmocka_unit_test(test_two_tasks_of_one_encoder),
        cmocka_unit_test(test_larger_gradient_is_caught),
        cmocka_unit_test(test_shifted_label_is_caught),
        cmocka_unit_test(test_missing_prefix_dk_is_caught),
    };
    return cmocka_run_group_tests_name("golden training", tests, setup, teardown);
}
