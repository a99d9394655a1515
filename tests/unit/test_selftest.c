/* The device's self-test: a device that multiplies right passes; one number wrong, and it is named. */
#include "engine/backend.h"
#include "engine/selftest.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct sl_ops *cpu;
static float damage; /* added to one number of the product */

static void broken_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows, const struct sl_weight *w,
                          const struct sl_weight *bias, const sl_act *add, int64_t ld_add, sl_act *y, int64_t ldy)
{
    cpu->matmul(be, x, ldx, rows, w, bias, add, ld_add, y, ldy);
    ((float *)y)[7 * ldy + 5] += damage;
}

static int selftest(struct sl_err *err)
{
    const struct sl_ops *ops;
    struct sl_backend *be;
    struct sl_ops broken;
    int rc;

    assert_int_equal(sl_backend_open("cpu", SL_PRECISION_FP32, 1, &ops, &be, NULL), 0);
    cpu = ops;
    broken = *ops;
    broken.matmul = broken_matmul;
    rc = sl_selftest(&broken, be, err);
    ops->close(be);
    return rc;
}

static void a_device_that_multiplies_right_passes(void **state)
{
    (void)state;
    damage = 0;
    assert_int_equal(selftest(NULL), 0);
}

static void one_wrong_number_is_found(void **state)
{
    const float wrong[] = {1, -1, 1e30f, NAN};

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct sl_err err = SL_ERR_INIT;
        damage = wrong[i];
        assert_int_equal(selftest(&err), SL_DEVICE);
        assert_non_null(strstr(err.msg, "1 of "));
        assert_non_null(strstr(err.msg, "row 7, column 5"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_multiplies_right_passes),
        cmocka_unit_test(one_wrong_number_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
