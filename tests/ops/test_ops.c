/* Every operation of the CPU backend: see suite.h. */
#include "tests/ops/suite.h"

static int setup(void **state)
{
    (void)state;
    return suite_open(&sl_cpu_ops);
}

static void test_any_address(void **state)
{
    (void)state;
    any_address(1);
}

static void test_errors(void **state)
{
    (void)state;
    check_errors();
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
        cmocka_unit_test(test_other_backend), cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("operations", tests, setup, teardown);
}
