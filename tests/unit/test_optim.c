/* AdamW, clipping and the schedule, against torch's numbers and hand-worked ones. */
#include "engine/optim.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/cpu_fixture.h"

#define N_PARAMS 3
#define TOLERANCE 2e-6 /* relative L2 distance after ten fp32 steps */
#define LR_TOLERANCE 1e-7

static float *device(const float *host, size_t n)
{
    void *p;

    assert_int_equal(ops->alloc(be, n * sizeof(float), &p, NULL), 0);
    if (host)
        assert_int_equal(ops->upload(be, p, host, n * sizeof(float), NULL), 0);
    else
        ops->zero(be, p, n * sizeof(float));
    return p;
}

static struct sl_param param(const float *value, int rows, int cols)
{
    size_t n = (size_t)rows * (size_t)cols;
    struct sl_param p = {.rows = rows, .cols = cols, .lr_ratio = 1};

    p.value = device(value, n);
    p.grad = device(NULL, n);
    p.m = device(NULL, n);
    p.v = device(NULL, n);
    return p;
}

static void drop(struct sl_param *p)
{
    ops->free(be, p->value);
    ops->free(be, p->grad);
    ops->free(be, p->m);
    ops->free(be, p->v);
}

static void ten_steps_are_torchs(void **state)
{
    static const int cols[N_PARAMS] = {35, 13, 390};
    struct sl_param p[N_PARAMS];
    struct sl_optim o = {0};
    struct golden g;
    char name[64];
    int64_t n;
    int steps;

    (void)state;
    golden_open(&g, "adamw.safetensors");
    assert_int_equal(sl_optim_init(&o, ops, be, NULL), 0);
    o.beta1 = (float)golden_meta_num(&g, "beta1");
    o.beta2 = (float)golden_meta_num(&g, "beta2");
    o.eps = (float)golden_meta_num(&g, "eps");
    o.weight_decay = (float)golden_meta_num(&g, "weight_decay");
    o.clip_norm = (float)golden_meta_num(&g, "gradient_clip_val");
    steps = (int)golden_meta_num(&g, "steps");
    for (int i = 0; i < N_PARAMS; i++) {
        snprintf(name, sizeof name, "param.%d", i);
        p[i] = param(golden_f32(&g, name, &n), 1, cols[i]);
        assert_int_equal(n, cols[i]);
    }
    for (int s = 0; s < steps; s++) {
        float lr = golden_f32(&g, "lr", NULL)[s], norm = golden_f32(&g, "norm", NULL)[s], got;

        for (int i = 0; i < N_PARAMS; i++) {
            snprintf(name, sizeof name, "grad.%d.%d", s, i);
            ops->upload(be, p[i].grad, golden_f32(&g, name, NULL), (size_t)cols[i] * sizeof(float),
                        NULL);
        }
        assert_int_equal(sl_optim_step(&o, p, N_PARAMS, lr, s + 1, &got, NULL), 0);
        assert_true(fabsf(got - norm) <= 1e-6f * norm);
        for (int i = 0; i < N_PARAMS; i++) {
            float after[390];

            snprintf(name, sizeof name, "after.%d.%d", s, i);
            assert_int_equal(
                ops->download(be, after, p[i].value, (size_t)cols[i] * sizeof(float), NULL), 0);
            if (!(golden_distance(after, golden_f32(&g, name, NULL), cols[i]) <= TOLERANCE))
                fail_msg("parameter %d after step %d is %g from torch's", i, s,
                         golden_distance(after, golden_f32(&g, name, NULL), cols[i]));
        }
    }
    for (int i = 0; i < N_PARAMS; i++)
        drop(&p[i]);
    sl_optim_release(&o);
    golden_close(&g);
}

static void schedule_is_the_recorded_one(void **state)
{
    struct golden g;
    int64_t n;
    const float *lr;

    (void)state;
    golden_open(&g, "adamw.safetensors");
    lr = golden_f32(&g, "lr", &n);
    for (int64_t s = 0; s < n; s++) {
        struct sl_schedule c = {golden_meta_num(&g, "lr"), golden_meta_num(&g, "min_lr"),
                                (int64_t)golden_meta_num(&g, "warmup_steps"), 0, n};

        assert_true(fabs(sl_schedule_lr(&c, s) - (double)lr[s]) <= LR_TOLERANCE);
    }
    golden_close(&g);
}

static void near(double got, double want)
{
    if (!(fabs(got - want) <= LR_TOLERANCE))
        fail_msg("%.12g instead of %.12g", got, want);
}

static void schedule_by_hand(void **state)
{
    struct sl_schedule s = {1.0, 0.2, 4, 0, 12};

    (void)state;
    near(sl_schedule_lr(&s, 0), 1.0 / 5);
    near(sl_schedule_lr(&s, 3), 4.0 / 5);
    near(sl_schedule_lr(&s, 4),
         1.0); /* the warm-up's last step is the peak and the cosine's start */
    near(sl_schedule_lr(&s, 6), 0.2 + 0.4 * (1 + sqrt(0.5)));
    near(sl_schedule_lr(&s, 8), 0.6);
    near(sl_schedule_lr(&s, 12), 0.2);
    near(sl_schedule_lr(&s, 13), 0.2);
    near(sl_schedule_lr(&s, 1000000), 0.2);

    s.warmup_steps = 0; /* no warm-up: step 0 is the peak */
    near(sl_schedule_lr(&s, 0), 1.0);
    near(sl_schedule_lr(&s, 6), 0.6);

    s = (struct sl_schedule){1.0, 0.2, 4, 4,
                             12}; /* Megatron's form: 4 warm-up, 4 cosine, 4 constant */
    near(sl_schedule_lr(&s, 0), 0.0);
    near(sl_schedule_lr(&s, 1), 0.25);
    near(sl_schedule_lr(&s, 4), 1.0);
    near(sl_schedule_lr(&s, 6), 0.6);
    near(sl_schedule_lr(&s, 8), 0.2);
    near(sl_schedule_lr(&s, 9), 0.2);
    near(sl_schedule_lr(&s, 12), 0.2);
    near(sl_schedule_lr(&s, 13), 0.2);

    s = (struct sl_schedule){1.0, 0.2, 20, 0, 12}; /* a run shorter than its warm-up */
    near(sl_schedule_lr(&s, 11), 12.0 / 21);
    s = (struct sl_schedule){1.0, 0.2, 12, 0, 12};
    near(sl_schedule_lr(&s, 12), 1.0);
    near(sl_schedule_lr(&s, 13), 0.2);
}

/* One weight, worked by hand: g = 4 clipped to 1 (norm 4, clip 1); m = .1, v = .02, both
 * bias-corrected to 1; so the weight goes from 2 to 2 - lr*wd*2 - lr*1 = 2 - 0.01*0.5*2 - 0.01. */
static void one_step_by_hand(void **state)
{
    const float two = 2, four = 4;
    struct sl_param p = param(&two, 1, 1);
    struct sl_optim o = {0};
    float got, norm;

    (void)state;
    assert_int_equal(sl_optim_init(&o, ops, be, NULL), 0);
    o.beta1 = 0.9f, o.beta2 = 0.98f, o.eps = 1e-8f, o.weight_decay = 0.5f, o.clip_norm = 1;
    ops->upload(be, p.grad, &four, sizeof four, NULL);
    assert_int_equal(sl_optim_step(&o, &p, 1, 0.01f, 1, &norm, NULL), 0);
    ops->download(be, &got, p.value, sizeof got, NULL);
    near((double)norm, 4);
    near((double)got, (double)1.98f);
    drop(&p);
    sl_optim_release(&o);
}

static void clipping_off_uses_the_whole_gradient(void **state)
{
    const float start[2] = {1, 1}, grad[2] = {30, 40};
    struct sl_param p = param(start, 1, 2), q = param(start, 1, 2);
    struct sl_optim o = {0};
    float m[2], norm;

    (void)state;
    assert_int_equal(sl_optim_init(&o, ops, be, NULL), 0);
    o.beta1 = 0.9f, o.beta2 = 0.98f, o.eps = 1e-8f;
    ops->upload(be, p.grad, grad, sizeof grad, NULL);
    ops->upload(be, q.grad, grad, sizeof grad, NULL);
    assert_int_equal(sl_optim_step(&o, &p, 1, 0.01f, 1, &norm, NULL), 0);
    ops->download(be, m, p.m, sizeof m, NULL);
    assert_true(norm == 50 && fabsf(m[0] - 3) < 1e-5f && fabsf(m[1] - 4) < 1e-5f);
    o.clip_norm = 5; /* a tenth of the norm */
    assert_int_equal(sl_optim_step(&o, &q, 1, 0.01f, 1, &norm, NULL), 0);
    ops->download(be, m, q.m, sizeof m, NULL);
    assert_true(norm == 50 && fabsf(m[0] - 0.3f) < 1e-6f && fabsf(m[1] - 0.4f) < 1e-6f);
    drop(&p);
    drop(&q);
    sl_optim_release(&o);
}

static void a_gradient_that_is_not_finite_changes_nothing(void **state)
{
    const float start[4] = {1, 2, 3, 4}, bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    struct sl_optim o = {0};

    (void)state;
    assert_int_equal(sl_optim_init(&o, ops, be, NULL), 0);
    o.beta1 = 0.9f, o.beta2 = 0.98f, o.eps = 1e-8f, o.weight_decay = 0.1f;
    for (int i = 0; i < 8; i++) {
        struct sl_param p = param(start, 2, 2);
        struct sl_err err = SL_ERR_INIT;
        float grad[4] = {1, bad[i % 4], 1, 1}, value[4], m[4], v[4], norm = -1;

        o.clip_norm = i < 4 ? 1 : 0;
        ops->upload(be, p.grad, grad, sizeof grad, NULL);
        assert_int_equal(sl_optim_step(&o, &p, 1, 0.1f, 17, &norm, &err), SL_DATA);
        assert_non_null(strstr(err.msg, "gradient is not finite at step 17"));
        assert_true(norm == -1);
        ops->download(be, value, p.value, sizeof value, NULL);
        ops->download(be, m, p.m, sizeof m, NULL);
        ops->download(be, v, p.v, sizeof v, NULL);
        assert_memory_equal(value, start, sizeof start);
        for (int k = 0; k < 4; k++)
            assert_true(m[k] == 0 && v[k] == 0);
        drop(&p);
    }
    sl_optim_release(&o);
    sl_optim_release(&o);
    sl_optim_release(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_steps_are_torchs),
        cmocka_unit_test(schedule_is_the_recorded_one),
        cmocka_unit_test(schedule_by_hand),
        cmocka_unit_test(one_step_by_hand),
        cmocka_unit_test(clipping_off_uses_the_whole_gradient),
        cmocka_unit_test(a_gradient_that_is_not_finite_changes_nothing),
    };

    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
