/* Prompt encoders: initial values, names and order of parameters, given tables, refusals. */
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

#include "tests/unit/encoder_fixture.h"
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

/* ---- distributions ---- */

struct moments {
    double mean, std, max, kurtosis;
};

static struct moments moments_of(struct sl_encoder *e, const char *name)
{
    int n;
    struct sl_param *p = sl_encoder_params(e, &n);
    struct moments m = {0};

    for (int i = 0; i < n; i++) {
        size_t size = (size_t)p[i].rows * (size_t)p[i].cols;
        float *x;

        if (strcmp(p[i].name, name))
            continue;
        x = host(p[i].value, size);
        for (size_t k = 0; k < size; k++)
            m.mean += (double)x[k] / (double)size;
        for (size_t k = 0; k < size; k++) {
            double d = (double)x[k] - m.mean;

            m.std += d * d / (double)size;
            m.kurtosis += d * d * d * d / (double)size;
            m.max = fabs((double)x[k]) > m.max ? fabs((double)x[k]) : m.max;
        }
        m.kurtosis /= m.std * m.std;
        m.std = sqrt(m.std);
        free(x);
        return m;
    }
    fail_msg("no parameter %s", name);
    return m;
}

static void is_uniform(struct sl_encoder *e, const char *name, double bound)
{
    struct moments m = moments_of(e, name);

    if (!(fabs(m.mean) < 0.05 * bound && fabs(m.std * sqrt(3) / bound - 1) < 0.05 &&
          m.max <= bound && m.max > 0.95 * bound && fabs(m.kurtosis - 1.8) < 0.2))
        fail_msg("%s: mean %g, std %g, largest %g are not of U(+-%g)", name, m.mean, m.std, m.max,
                 bound);
}

static void is_normal(struct sl_encoder *e, const char *name, double std)
{
    struct moments m = moments_of(e, name);

    if (!(fabs(m.mean) < 0.05 * std && fabs(m.std / std - 1) < 0.03 && fabs(m.kurtosis - 3) < 0.3 &&
          m.max > 3 * std && m.max < 6 * std))
        fail_msg("%s: mean %g, std %g, largest %g are not of N(0, %g)", name, m.mean, m.std, m.max,
                 std);
}

static void initial_values_have_torchs_distributions(void **state)
{
    struct sl_encoder_config c = {.type = SL_ENC_MLP,
                                  .n_tasks = 1,
                                  .virtual_tokens = 40,
                                  .hidden = 128,
                                  .encoder_hidden = 300,
                                  .layers = 3,
                                  .init_std = 0.023f,
                                  .seed = 5};
    struct sl_encoder *e = make(c);

    (void)state;
    is_normal(e, "embedding.weight", 1);
    is_uniform(e, "mlp_head.0.weight", 1 / sqrt(128));
    is_uniform(e, "mlp_head.0.bias", 1 / sqrt(128));
    is_uniform(e, "mlp_head.2.weight", 1 / sqrt(300));
    is_uniform(e, "mlp_head.4.weight", 1 / sqrt(300));
    sl_encoder_free(e);
    c.type = SL_ENC_TPMLP;
    e = make(c);
    is_normal(e, "embedding.weight", 1);
    is_normal(e, "mlp_head.0.weight", 0.023);
    is_normal(e, "mlp_head.2.weight", 0.023);
    assert_true(moments_of(e, "mlp_head.0.bias").max == 0);
    assert_true(moments_of(e, "mlp_head.2.bias").max == 0);
    sl_encoder_free(e);
    c.type = SL_ENC_LSTM;
    c.layers = 2;
    e = make(c);
    is_uniform(e, "lstm_head.weight_ih_l0", 1 / sqrt(300));
    is_uniform(e, "lstm_head.weight_hh_l1_reverse", 1 / sqrt(300));
    is_uniform(e, "lstm_head.bias_ih_l0_reverse", 1 / sqrt(300));
    is_uniform(e, "lstm_head.bias_hh_l1", 1 / sqrt(300));
    is_uniform(e, "mlp_head.0.weight", 1 / sqrt(600));
    is_uniform(e, "mlp_head.2.weight", 1 / sqrt(600));
    sl_encoder_free(e);
    c.type = SL_ENC_EMBEDDING;
    e = make(c);
    is_normal(e, "embedding.weight", sqrt(2.0 / (40 + 128)));
    sl_encoder_free(e);
    c.type = SL_ENC_TABLE;
    c.n_tasks = 2;
    e = make(c);
    is_normal(e, "table.1", sqrt(2.0 / (40 + 128)));
    sl_encoder_free(e);
}

static void names_and_order_are_pefts(void **state)
{
    static const char *const lstm[] = {"embedding.weight",
                                       "lstm_head.weight_ih_l0",
                                       "lstm_head.weight_hh_l0",
                                       "lstm_head.bias_ih_l0",
                                       "lstm_head.bias_hh_l0",
                                       "lstm_head.weight_ih_l0_reverse",
                                       "lstm_head.weight_hh_l0_reverse",
                                       "lstm_head.bias_ih_l0_reverse",
                                       "lstm_head.bias_hh_l0_reverse",
                                       "mlp_head.0.weight",
                                       "mlp_head.0.bias",
                                       "mlp_head.2.weight",
                                       "mlp_head.2.bias"};
    struct sl_encoder_config c = tiny(SL_ENC_LSTM, 1, 1);
    struct sl_encoder *e = make(c);
    int64_t floats = 0;
    struct sl_param *p;
    int n;

    (void)state;
    p = sl_encoder_params(e, &n);
    assert_int_equal(n, sizeof lstm / sizeof *lstm);
    for (int i = 0; i < n; i++) {
        assert_string_equal(p[i].name, lstm[i]);
        floats += (int64_t)p[i].rows * p[i].cols;
    }
    assert_int_equal(p[5].rows, 24);
    assert_int_equal(p[5].cols, 7);
    assert_int_equal(p[7].rows, 1);
    assert_int_equal(p[7].cols, 24);
    assert_int_equal(sl_encoder_state_bytes(&c), 16 * floats);
    c.n_tasks = 0;
    assert_int_equal(sl_encoder_state_bytes(&c), 0);
    sl_encoder_free(e);
}

static void the_seed_alone_decides(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_MLP, 1, 3);
    struct sl_encoder *a = make(c), *b = make(c), *other;
    struct sl_param *pa, *pb, *po;
    int n;

    (void)state;
    c.seed++;
    other = make(c);
    pa = sl_encoder_params(a, &n);
    pb = sl_encoder_params(b, &n);
    po = sl_encoder_params(other, &n);
    for (int i = 0; i < n; i++) {
        size_t size = (size_t)pa[i].rows * (size_t)pa[i].cols;
        float *x = host(pa[i].value, size), *y = host(pb[i].value, size),
              *z = host(po[i].value, size);
        float *m = host(pa[i].m, size), *v = host(pa[i].v, size), *g = host(pa[i].grad, size);

        assert_memory_equal(x, y, size * sizeof *x);
        assert_memory_not_equal(x, z, size * sizeof *x);
        for (size_t k = 0; k < size; k++)
            assert_true(m[k] == 0 && v[k] == 0 && g[k] == 0);
        free(x), free(y), free(z), free(m), free(v), free(g);
    }
    sl_encoder_free(a);
    sl_encoder_free(b);
    sl_encoder_free(other);
}

static void a_table_starts_from_given_rows(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_TABLE, 2, 0);
    size_t size = (size_t)(c.virtual_tokens * c.hidden);
    struct sl_encoder *e = make(c), *net = make(tiny(SL_ENC_MLP, 1, 2));
    float rows[64], *tables = device(NULL, 2 * size), *got;
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    noise(rows, size, 9);
    assert_int_equal(sl_encoder_set_table(e, 1, rows, NULL), 0);
    sl_encoder_forward(e, true, 1, tables);
    got = host(tables, 2 * size);
    assert_memory_equal(got + size, rows, size * sizeof *rows);
    assert_memory_not_equal(got, rows, size * sizeof *rows);
    assert_int_equal(sl_encoder_set_table(e, 2, rows, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "no task 2"));
    assert_int_equal(sl_encoder_set_table(net, 0, rows, NULL), SL_SPEC);
    assert_int_equal(sl_encoder_fix_rows(e, 0, rows, 1, NULL), SL_SPEC);
    assert_int_equal(sl_encoder_fix_rows(net, 0, rows, 6, NULL), SL_SPEC);
    free(got);
    ops->free(be, tables);
    sl_encoder_free(e);
    sl_encoder_free(net);
}

static void refused(struct sl_encoder_config c, const char *what)
{
    struct sl_encoder *e = NULL;
    struct sl_err err = SL_ERR_INIT;

    assert_int_equal(sl_encoder_new(&c, ops, be, &e, &err), SL_SPEC);
    assert_null(e);
    assert_non_null(strstr(err.msg, what));
}

static void sizes_out_of_range_are_named(void **state)
{
    struct sl_encoder_config c = tiny(SL_ENC_LSTM, 1, 1);

    (void)state;
    c.virtual_tokens = 0;
    refused(c, "total_virtual_tokens");
    c = tiny(SL_ENC_LSTM, SL_ENC_MAX_TASKS + 1, 1);
    refused(c, "tasks");
    c = tiny(SL_ENC_MLP, 1, 1);
    refused(c, "num_layers");
    c = tiny(SL_ENC_LSTM, 1, SL_ENC_MAX_LAYERS + 1);
    refused(c, "num_layers");
    c = tiny(SL_ENC_LSTM, 1, 1);
    c.dropout = 1;
    refused(c, "dropout");
    c.dropout = NAN;
    refused(c, "dropout");
    c = tiny(SL_ENC_TPMLP, 1, 1);
    c.encoder_hidden = 0;
    refused(c, "encoder_hidden");
    sl_encoder_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initial_values_have_torchs_distributions),
        cmocka_unit_test(names_and_order_are_pefts),
        cmocka_unit_test(the_seed_alone_decides),
        cmocka_unit_test(a_table_starts_from_given_rows),
        cmocka_unit_test(sizes_out_of_range_are_named),
    };

    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
