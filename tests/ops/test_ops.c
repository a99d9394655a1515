/* Every operation of the CPU backend: see suite.h. */
#include "tests/ops/suite.h"

static int setup(void **state)
{
    (void)state;
    return suite_open(&sl_cpu_ops, SL_PRECISION_FP32);
}

static int setup_int8(void **state)
{
    (void)state;
    return suite_open(&sl_cpu_ops, SL_PRECISION_INT8);
}

static void test_any_address(void **state)
{
    (void)state;
    any_address(1);
}

static void test_errors(void **state)
{
    (void)state;
    struct sl_backend *none = NULL;
    struct sl_err no_fp8 = SL_ERR_INIT;
    check_errors();
    assert_int_equal(sl_cpu_ops.open(&(struct sl_backend_opts){.precision = SL_PRECISION_FP8}, &none, &no_fp8), SL_SPEC);
    assert_null(none);
    assert_non_null(strstr(no_fp8.msg, "H100"));
#if !defined(__SANITIZE_ADDRESS__) /* which stops at such a request */
    struct sl_err err = SL_ERR_INIT;
    const struct sl_ops *ops = under_test.ops;
    assert_null(sl_cpu_shared(under_test.be, SIZE_MAX / 8));
    assert_int_equal(ops->step_end(under_test.be, &err), SL_NOMEM);
    assert_non_null(strstr(err.msg, "scratch"));
    assert_int_equal(ops->step_end(under_test.be, &err), 0);
#endif
}

int main(int argc, char **argv)
{
    (void)argc;
    if (sl_cpu_reexec(argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),     cmocka_unit_test(test_planted_fault),
        cmocka_unit_test(test_same_bits),     cmocka_unit_test(test_any_address),
        cmocka_unit_test(test_other_backend), cmocka_unit_test(test_rows_apart),    cmocka_unit_test(test_errors),
    };
    const struct CMUnitTest int8[] = {
        cmocka_unit_test(test_reference),     cmocka_unit_test(test_planted_fault), cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_other_backend), cmocka_unit_test(test_rows_apart),
    };
    return cmocka_run_group_tests_name("operations", tests, setup, teardown) +
           cmocka_run_group_tests_name("operations, int8", int8, setup_int8, teardown);
}
