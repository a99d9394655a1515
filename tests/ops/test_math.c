/* The vectorised exp, tanh, erf and sigmoid against the C library in double, over their whole
 * range. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "engine/cpu/simd.h"
#include <cmocka.h>

#define POINTS 4000000

typedef void span_fn(const float *x, float *y, int n);
SL_CLONES static void span_exp(const float *x, float *y, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] = sl_expf(x[i]);
}
SL_CLONES static void span_tanh(const float *x, float *y, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] = sl_tanhf(x[i]);
}
SL_CLONES static void span_erf(const float *x, float *y, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] = sl_erff(x[i]);
}
SL_CLONES static void span_sigmoid(const float *x, float *y, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] = sl_sigmoidf(x[i]);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Largest error in units in the last place of the exact result, over POINTS from lo to hi. */
static double worst_ulp(span_fn *fn, double (*exact)(double), double lo, double hi)
{
    double worst = 0;
    float x[1000], y[1000];
    for (int i = 0; i < POINTS; i += 1000) {
        for (int j = 0; j < 1000; j++)
            x[j] = (float)(lo + (hi - lo) * (i + j) / (POINTS - 1));
        fn(x, y, 1000);
        for (int j = 0; j < 1000; j++) {
            double want = exact((double)x[j]);
            float next = nextafterf((float)fabs(want), INFINITY);
            double ulp = (double)next - (double)(float)fabs(want);
            double e = fabs((double)y[j] - want) / ulp;
            worst = e > worst || isnan(e) ? e : worst;
        }
    }
    print_message("    worst %.2f ulp\n", worst);
    return worst;
}

static void test_exp(void **state)
{
    (void)state;
    assert_true(worst_ulp(span_exp, exp, -86.89, 88.72) <= 2);
    assert_true(worst_ulp(span_exp, exp, -1, 1) <= 2);
}

static void test_tanh(void **state)
{
    (void)state;
    assert_true(worst_ulp(span_tanh, tanh, -10, 10) <= 2);
    assert_true(worst_ulp(span_tanh, tanh, -0.01, 0.01) <= 2);
}

static void test_erf(void **state)
{
    (void)state;
    assert_true(worst_ulp(span_erf, erf, -5, 5) <= 3);
    assert_true(worst_ulp(span_erf, erf, -0.01, 0.01) <= 3);
}

static void test_sigmoid(void **state)
{
    (void)state;
    assert_true(worst_ulp(span_sigmoid, sigmoid, -80, 80) <= 3);
}

static void test_ends(void **state)
{
    (void)state;
    const float x[] = {-INFINITY, -1000.0f, 1000.0f, INFINITY, NAN, 0.0f};
    float y[6];
    span_exp(x, y, 6);
    assert_true(y[0] == 0 && y[1] == 0 && y[2] == INFINITY && y[3] == INFINITY && isnan(y[4]) &&
                y[5] == 1);
    span_tanh(x, y, 6);
    assert_true(y[0] == -1 && y[1] == -1 && y[2] == 1 && y[3] == 1 && isnan(y[4]) && y[5] == 0);
    span_erf(x, y, 6);
    assert_true(y[0] == -1 && y[1] == -1 && y[2] == 1 && y[3] == 1 && isnan(y[4]) && y[5] == 0);
    span_sigmoid(x, y, 6);
    assert_true(y[0] == 0 && y[1] == 0 && y[2] == 1 && y[3] == 1 && isnan(y[4]) && y[5] == 0.5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),     cmocka_unit_test(test_tanh), cmocka_unit_test(test_erf),
        cmocka_unit_test(test_sigmoid), cmocka_unit_test(test_ends),
    };
    return cmocka_run_group_tests_name("vectorised functions", tests, NULL, NULL);
}
