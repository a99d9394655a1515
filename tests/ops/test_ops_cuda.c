/* Every operation of the CUDA backend, with fp32 and with bf16 activations: see suite.h. Without a GPU nothing of
 * it runs, and it says so. The library is looked for in SL_BIN. */
#include "tests/ops/suite.h"
#include "tests/ops/gpu_fixture.h"

#define SHIFT_FLOATS 64 /* allocations are aligned to 256 bytes */


static int setup_f32(void **state)
{
    (void)state;
    return suite_open(tables[0], SL_PRECISION_FP32);
}

static int setup_bf16(void **state)
{
    (void)state;
    return suite_open(tables[1], SL_PRECISION_BF16);
}

static int setup_int8(void **state)
{
    (void)state;
    return suite_open(tables[1], SL_PRECISION_INT8);
}

static int setup_fp8(void **state)
{
    (void)state;
    return suite_open(tables[1], SL_PRECISION_FP8);
}

static void test_any_address(void **state)
{
    (void)state;
    any_address(SHIFT_FLOATS);
}

static void test_errors(void **state)
{
    (void)state;
    const struct sl_ops *ops = under_test.ops;
    struct sl_backend *be = NULL;
    struct sl_err err = SL_ERR_INIT;
    void *p = &err, *before = p;
    check_errors();
    assert_int_equal(ops->open(&(struct sl_backend_opts){.device = 1000}, &be, &err), SL_SPEC);
    assert_null(be);
    sl_err_clear(&err);
    assert_int_equal(ops->alloc(under_test.be, SIZE_MAX / 8, &p, &err), SL_NOMEM);
    assert_ptr_equal(p, before);
    assert_non_null(strstr(err.msg, "are free"));
    sl_err_clear(&err);
    /* A call that the driver refuses is kept, reported once, and breaks nothing. */
    int *device = dev_bytes(&under_test, (int[]){7}, sizeof(int)), back = 0;
    ops->copy(under_test.be, NULL, device, sizeof(int));
    assert_int_equal(ops->step_end(under_test.be, &err), SL_FAULT);
    assert_non_null(strstr(err.msg, "GPU 0: copy"));
    sl_err_clear(&err);
    assert_int_equal(ops->step_end(under_test.be, &err), 0);
    assert_int_equal(ops->download(under_test.be, &back, device, sizeof back, &err), 0);
    assert_int_equal(back, 7);
    dev_reset(&under_test);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest f32[] = {
        cmocka_unit_test(test_reference),     cmocka_unit_test(test_planted_fault),
        cmocka_unit_test(test_same_bits),     cmocka_unit_test(test_any_address),
        cmocka_unit_test(test_other_backend), cmocka_unit_test(test_rows_apart),    cmocka_unit_test(test_errors),
    };
    const struct CMUnitTest narrow_tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_planted_fault),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_rows_apart),
        cmocka_unit_test(test_other_backend),
    };
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend *be = NULL;
    (void)argc;
    if (sl_cpu_reexec(argv))
        return 1;
    int rc = find_gpu(sizeof f32 / sizeof *f32 + sizeof narrow_tests / sizeof *narrow_tests);
    if (rc)
        return rc;
    rc = cmocka_run_group_tests_name("operations, fp32", f32, setup_f32, teardown);
    rc += cmocka_run_group_tests_name("operations, bf16", narrow_tests, setup_bf16, teardown);
    rc += cmocka_run_group_tests_name("operations, int8", narrow_tests, setup_int8, teardown);
    if (tables[1]->open(&(struct sl_backend_opts){.precision = SL_PRECISION_FP8}, &be, &err)) {
        printf("not run: %s\n", err.msg);
        return rc;
    }
    tables[1]->close(be);
    /* all but the last: no other backend has fp8 */
    const struct CMUnitTest fp8[] = {narrow_tests[0], narrow_tests[1], narrow_tests[2], narrow_tests[3]};
    return rc + cmocka_run_group_tests_name("operations, fp8", fp8, setup_fp8, teardown);
}
