/* Prompt encoders: forward and every gradient against a plain double-precision reference written
 * here. */
#include "base/rng.h"
#include "engine/encoder.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FORWARD_TOLERANCE                                                                          \
    2e-6 /* absolute, of table entries near 1: fp32 sums of at most 10 terms */
#define GRADIENT_TOLERANCE 2e-5 /* relative to 1 + |gradient| */
#define EPS 1e-5                /* of finite differences in double precision */
#define MAX_SIZE 4096

#include "tests/unit/encoder_fixture.h"
}

/* ---- the reference: names as PEFT has them, loops as the definitions say ---- */

struct ref {
    struct sl_encoder_config c;
    int n;
    const char *name[SL_ENC_MAX_PARAMS];
    double *p[SL_ENC_MAX_PARAMS];
    float *fixed;
    int n_fixed[4];
};

static const double *get(const struct ref *r, const char *fmt, int layer, int reverse)
{
    char name[SL_PARAM_NAME_MAX];

    snprintf(name, sizeof name, fmt, layer, reverse ? "_reverse" : "");
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->name[i], name))
            return r->p[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

static void ref_linear(const struct ref *r, int at, int rows, int in, int out, double *x)
{
    const double *w = get(r, "mlp_head.%d.weight", at, 0), *b = get(r, "mlp_head.%d.bias", at, 0);
    double y[MAX_SIZE];

    for (int i = 0; i < rows; i++)
        for (int o = 0; o < out; o++) {
            double s = b[o];

            for (int k = 0; k < in; k++)
                s += x[i * in + k] * w[o * in + k];
            y[i * out + o] = s;
        }
    memcpy(x, y, sizeof(double) * (size_t)(rows * out));
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void ref_lstm(const struct ref *r, int layer, int steps, int in, double *x)
{
    int hidden = r->c.encoder_hidden;
    double y[MAX_SIZE];

    for (int dir = 0; dir < 2; dir++) {
        const double *wi = get(r, "lstm_head.weight_ih_l%d%s", layer, dir);
        const double *wh = get(r, "lstm_head.weight_hh_l%d%s", layer, dir);
        const double *bi = get(r, "lstm_head.bias_ih_l%d%s", layer, dir);
        const double *bh = get(r, "lstm_head.bias_hh_l%d%s", layer, dir);
        double h[64] = {0}, c[64] = {0}, g[256];

        for (int s = 0; s < steps; s++) {
            int t = dir ? steps - 1 - s : s;

            for (int j = 0; j < 4 * hidden; j++) {
                g[j] = bi[j] + bh[j];
                for (int k = 0; k < in; k++)
                    g[j] += wi[j * in + k] * x[t * in + k];
                for (int k = 0; k < hidden; k++)
                    g[j] += wh[j * hidden + k] * h[k];
            }
            for (int k = 0; k < hidden; k++) {
                c[k] = sigmoid(g[hidden + k]) * c[k] + sigmoid(g[k]) * tanh(g[2 * hidden + k]);
                h[k] = sigmoid(g[3 * hidden + k]) * tanh(c[k]);
                y[t * 2 * hidden + dir * hidden + k] = h[k];
            }
        }
    }
    memcpy(x, y, sizeof(double) * (size_t)(steps * 2 * hidden));
}

static void relu(double *x, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = x[i] > 0 ? x[i] : 0;
}

static void gelu(double *x, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = 0.5 * x[i] * (1 + tanh(sqrt(2 / M_PI) * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
}

/* One task's table into x [V, H]. */
static void ref_table(const struct ref *r, int task, double *x)
{
    int v = r->c.virtual_tokens, h = r->c.hidden, wide = r->c.encoder_hidden, layers = r->c.layers;

    if (r->c.type == SL_ENC_TABLE) {
        memcpy(x, get(r, "table.%d", task, 0), sizeof(double) * (size_t)(v * h));
        return;
    }
    memcpy(x, get(r, "embedding.weight", 0, 0), sizeof(double) * (size_t)(v * h));
    for (int i = 0; i < r->n_fixed[task] * h; i++)
        x[i] = (double)r->fixed[task * v * h + i];
    if (r->c.type == SL_ENC_TPMLP) {
        ref_linear(r, 0, v, h, wide, x);
        gelu(x, v * wide);
        ref_linear(r, 2, v, wide, h, x);
    }
    for (int i = 0; r->c.type == SL_ENC_MLP && i < layers; i++) {
        ref_linear(r, 2 * i, v, i ? wide : h, i < layers - 1 ? wide : h, x);
        if (i < layers - 1)
            relu(x, v * wide);
    }
    if (r->c.type == SL_ENC_LSTM) {
        for (int i = 0; i < layers; i++)
            ref_lstm(r, i, v, i ? 2 * wide : h, x);
        ref_linear(r, 0, v, 2 * wide, 2 * wide, x);
        relu(x, v * 2 * wide);
        ref_linear(r, 2, v, 2 * wide, h, x);
    }
}

static double ref_loss(const struct ref *r, const float *w)
{
    int size = r->c.virtual_tokens * r->c.hidden;
    double x[MAX_SIZE], loss = 0;

    for (int t = 0; t < r->c.n_tasks; t++) {
        ref_table(r, t, x);
        for (int i = 0; i < size; i++)
            loss += x[i] * (double)w[t * size + i];
    }
    return loss;
}

static void ref_take(struct ref *r, struct sl_encoder *e)
{
    struct sl_param *p = sl_encoder_params(e, &r->n);

    r->c = *sl_encoder_config(e);
    for (int i = 0; i < r->n; i++) {
        size_t n = (size_t)p[i].rows * (size_t)p[i].cols;
        float *value = host(p[i].value, n);

        r->name[i] = p[i].name;
        r->p[i] = malloc(n * sizeof(double));
        for (size_t k = 0; k < n; k++)
            r->p[i][k] = (double)value[k];
        free(value);
    }
}

/* Forward and all gradients of one encoder against the reference; fixed rows n_fixed[task]. */
static void compare(struct sl_encoder_config c, const int *n_fixed)
{
    size_t size = (size_t)(c.virtual_tokens * c.hidden), all = size * (size_t)c.n_tasks;
    static struct ref r;
    struct sl_encoder *e = make(c);
    float fixed[MAX_SIZE], w[MAX_SIZE], *got, *tables = device(NULL, all), *dtables;
    struct sl_param *p;
    double x[MAX_SIZE];

    memset(&r, 0, sizeof r);
    noise(fixed, all, 3);
    noise(w, all, 4);
    dtables = device(w, all);
    r.fixed = fixed;
    for (int t = 0; t < c.n_tasks && n_fixed; t++) {
        r.n_fixed[t] = n_fixed[t];
        assert_int_equal(sl_encoder_fix_rows(e, t, fixed + (size_t)t * size, n_fixed[t], NULL), 0);
    }
    ref_take(&r, e);
    sl_encoder_forward(e, true, 1, tables);
    got = host(tables, all);
    for (int t = 0; t < c.n_tasks; t++) {
        ref_table(&r, t, x);
        for (size_t i = 0; i < size; i++)
            if (!(fabs(x[i] - (double)got[(size_t)t * size + i]) <=
                  FORWARD_TOLERANCE * (1 + fabs(x[i]))))
                fail_msg("type %d, task %d, entry %zu: %.9g, reference %.9g", c.type, t, i,
                         (double)got[(size_t)t * size + i], x[i]);
    }
    free(got);

    sl_encoder_backward(e, dtables);
    p = sl_encoder_params(e, &r.n);
    for (int i = 0; i < r.n; i++) {
        size_t n = (size_t)p[i].rows * (size_t)p[i].cols;

        got = host(p[i].grad, n);
        for (size_t k = 0; k < n; k++) {
            double kept = r.p[i][k], up, slope;

            r.p[i][k] = kept + EPS;
            up = ref_loss(&r, w);
            r.p[i][k] = kept - EPS;
            slope = (up - ref_loss(&r, w)) / (2 * EPS);
            r.p[i][k] = kept;
            if (!(fabs(slope - (double)got[k]) <= GRADIENT_TOLERANCE * (1 + fabs(slope))))
                fail_msg("type %d, %s[%zu]: gradient %.9g, finite difference %.9g", c.type,
                         p[i].name, k, (double)got[k], slope);
        }
        free(got);
    }
    for (int i = 0; i < r.n; i++)
        free(r.p[i]);
    ops->free(be, tables);
    ops->free(be, dtables);
    sl_encoder_free(e);
}

static struct sl_encoder_config tiny(enum sl_encoder_type type, int tasks, int layers)
{
    return (struct sl_encoder_config){.type = type,
                                      .n_tasks = tasks,
                                      .virtual_tokens = 5,
                                      .hidden = 7,
                                      .encoder_hidden = 6,
                                      .layers = layers,
                                      .init_std = 0.4f,
                                      .seed = 11};
}

static void every_type_has_right_values_and_gradients(void **state)
{
    (void)state;
    compare(tiny(SL_ENC_TABLE, 1, 0), NULL);
    compare(tiny(SL_ENC_TPMLP, 1, 0), NULL);
    compare(tiny(SL_ENC_MLP, 1, 2), NULL);
    compare(tiny(SL_ENC_MLP, 1, 3), NULL);
    compare(tiny(SL_ENC_MLP, 1, 5), NULL);
    compare(tiny(SL_ENC_LSTM, 1, 1), NULL);
    compare(tiny(SL_ENC_LSTM, 1, 2), NULL);
    compare(tiny(SL_ENC_LSTM, 1, 3), NULL);
    compare(tiny(SL_ENC_EMBEDDING, 1, 0), NULL);
}

static void several_tasks_share_all_but_their_frozen_rows(void **state)
{
    const int fixed[] = {2, 0, 5}; /* some, none, all of the input's rows */

    (void)state;
    compare(tiny(SL_ENC_TABLE, 3, 0), NULL);
    compare(tiny(SL_ENC_TPMLP, 3, 0), fixed);
    compare(tiny(SL_ENC_MLP, 3, 3), fixed);
    compare(tiny(SL_ENC_LSTM, 3, 2), fixed);
    compare(tiny(SL_ENC_EMBEDDING, 3, 0), fixed);
}

static void one_virtual_token_is_enough(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_LSTM, 2, 2);

    (void)state;
    c.virtual_tokens = c.hidden = c.encoder_hidden = 1;
    compare(c, NULL);
    c.type = SL_ENC_MLP;
    compare(c, NULL);
}

static void rows_fixed_for_every_task_get_no_gradient(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_MLP, 2, 2);
    size_t all = (size_t)(c.n_tasks * c.virtual_tokens * c.hidden), row = (size_t)c.hidden;
    struct sl_encoder *e = make(c);
    float rows[64], w[128], *tables = device(NULL, all), *dtables, *grad;
    int n;

    (void)state;
    noise(rows, sizeof rows / sizeof *rows, 1);
    noise(w, all, 2);
    dtables = device(w, all);
    assert_int_equal(sl_encoder_fix_rows(e, 0, rows, 2, NULL), 0);
    assert_int_equal(sl_encoder_fix_rows(e, 1, rows, 3, NULL), 0);
    sl_encoder_forward(e, true, 1, tables);
    sl_encoder_backward(e, dtables);
    grad = host(sl_encoder_params(e, &n)[0].grad, (size_t)c.virtual_tokens * row);
    for (size_t i = 0; i < 2 * row; i++)
        assert_true(grad[i] == 0);
    for (size_t i = 2 * row; i < 5 * row; i++)
        assert_true(grad[i] != 0);
    free(grad);
    ops->free(be, tables);
    ops->free(be, dtables);
    sl_encoder_free(e);
}

static void gradients_add_up_until_they_are_zeroed(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_LSTM, 2, 2);
    size_t all = (size_t)(c.n_tasks * c.virtual_tokens * c.hidden);
    struct sl_encoder *e = make(c);
    float w[128], *tables = device(NULL, all), *dtables;
    struct sl_param *p;
    int n;

    (void)state;
    noise(w, all, 2);
    dtables = device(w, all);
    p = sl_encoder_params(e, &n);
    sl_encoder_forward(e, true, 1, tables);
    for (int i = 0; i < n; i++) {
        size_t size = (size_t)p[i].rows * (size_t)p[i].cols;
        float *once, *twice, *zero;

        sl_encoder_zero_grad(e);
        zero = host(p[i].grad, size);
        sl_encoder_backward(e, dtables);
        once = host(p[i].grad, size);
        sl_encoder_backward(e, dtables);
        twice = host(p[i].grad, size);
        for (size_t k = 0; k < size; k++) {
            assert_true(zero[k] == 0);
            assert_true(fabsf(twice[k] - 2 * once[k]) <= 1e-5f * (1 + fabsf(once[k])));
        }
        free(once);
        free(twice);
        free(zero);
    }
    ops->free(be, tables);
    ops->free(be, dtables);
    sl_encoder_free(e);
}

/* ---- dropout ---- */

static void dropout_follows_the_step_and_its_mask_goes_back(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_LSTM, 1, 2);
    size_t all = (size_t)(c.virtual_tokens * c.hidden);
    struct sl_encoder *e, *plain = make(c);
    float w[64], dir[512], *tables = device(NULL, all), *dtables, *a, *b, *d, *none, *loss[2];
    double analytic = 0, numeric = 0, eps = 1e-3;
    struct sl_param *p;
    int n;

    (void)state;
    c.dropout = 0.5f;
    e = make(c);
    p = sl_encoder_params(e, &n);
    noise(w, all, 2);
    dtables = device(w, all);
    sl_encoder_forward(e, true, 7, tables);
    a = host(tables, all);
    sl_encoder_backward(e, dtables);
    sl_encoder_forward(e, true, 8, tables);
    b = host(tables, all);
    assert_memory_not_equal(a, b, all * sizeof *a);
    sl_encoder_forward(e, false, 7, tables);
    d = host(tables, all);
    sl_encoder_forward(plain, true, 7, tables);
    none = host(tables, all);
    assert_memory_equal(d, none, all * sizeof *d); /* not training: no dropout */
    sl_encoder_forward(e, true, 7, tables);
    free(b);
    b = host(tables, all);
    assert_memory_equal(a, b, all * sizeof *a);

    /* Derivative along a random direction of the first layer, which gets its gradient through the
     * mask. */
    for (int i = 1; i < 9; i++) {
        size_t size = (size_t)p[i].rows * (size_t)p[i].cols;
        float *g = host(p[i].grad, size);

        noise(dir, size, 50 + (uint64_t)i);
        for (size_t k = 0; k < size; k++)
            analytic += (double)g[k] * (double)dir[k];
        free(g);
    }
    for (int side = 0; side < 2; side++) {
        for (int i = 1; i < 9; i++) {
            size_t size = (size_t)p[i].rows * (size_t)p[i].cols;
            float *v = host(p[i].value, size);

            noise(dir, size, 50 + (uint64_t)i);
            for (size_t k = 0; k < size; k++)
                v[k] += (float)(side ? -2 * eps : eps) * dir[k];
            assert_int_equal(ops->upload(be, p[i].value, v, size * sizeof *v, NULL), 0);
            free(v);
        }
        sl_encoder_forward(e, true, 7, tables);
        loss[side] = host(tables, all);
    }
    for (size_t i = 0; i < all; i++)
        numeric += ((double)loss[0][i] - (double)loss[1][i]) * (double)w[i] / (2 * eps);
    assert_true(fabs(numeric) > 1e-3);
    assert_true(fabs(numeric - analytic) <= 1e-2 * fabs(numeric));
    free(a), free(b), free(d), free(none), free(loss[0]), free(loss[1]);
    ops->free(be, tables);
    ops->free(be, dtables);
    sl_encoder_free(e);
    sl_encoder_free(plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_has_right_values_and_gradients),
        cmocka_unit_test(several_tasks_share_all_but_their_frozen_rows),
        cmocka_unit_test(one_virtual_token_is_enough),
        cmocka_unit_test(rows_fixed_for_every_task_get_no_gradient),
        cmocka_unit_test(gradients_add_up_until_they_are_zeroed),
        cmocka_unit_test(dropout_follows_the_step_and_its_mask_goes_back),
    };

    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
