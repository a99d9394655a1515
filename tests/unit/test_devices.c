/* Which GPUs an agent has, and which a run gets. */
#include "agent/devices.h"
#include "base/err.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void finds(const char *visible, const char *expected)
{
    struct sl_devices d;
    char all[SL_DEVICES_TEXT_MAX] = "";

    sl_devices_find(visible, "/nonexistent", &d);
    for (int i = 0; i < d.n; i++) {
        strncat(all, d.id[i], sizeof all - strlen(all) - 1);
        strncat(all, ";", sizeof all - strlen(all) - 1);
    }
    assert_string_equal(all, expected);
}

/* As CUDA's programming guide says of the variable: the list ends before the first that cannot be
 * one. */
static void test_visible(void **state)
{
    (void)state;
    finds("0", "0;");
    finds("2,0, 1", "2;0;1;");
    finds("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-1",
          "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6;MIG-1;");
    finds("", "");
    finds("-1", "");
    finds("1,-1,0", "1;");
    finds("1,,0", "1;");
    finds(NULL, "");
}

static void test_folder(void **state)
{
    static const char *const names[] = {"nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm",
                                        "nvidia11"};
    char dir[] = "/tmp/sl-devices-XXXXXX", path[64];
    struct sl_devices d;

    (void)state;
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    sl_devices_find(NULL, dir, &d);
    assert_int_equal(d.n, 3);
    assert_string_equal(d.id[2], "2");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void test_pick(void **state)
{
    struct sl_devices d;
    char names[SL_DEVICES_TEXT_MAX] = "as it was";
    uint64_t taken = 7;
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    sl_devices_find("4,5,6", "/dev", &d);
    assert_int_equal(sl_devices_pick(&d, 0, 1, &taken, &err), 0);
    sl_devices_names(&d, taken, names);
    assert_int_equal(taken, 1);
    assert_string_equal(names, "4");
    assert_int_equal(sl_devices_pick(&d, taken, 2, &taken, &err), 0);
    sl_devices_names(&d, taken, names);
    assert_int_equal(taken, 6);
    assert_string_equal(names, "5,6");
    assert_int_equal(sl_devices_pick(&d, 2, 3, &taken, &err), SL_RETRY);
    assert_non_null(strstr(err.msg, "3 GPUs"));
    assert_non_null(strstr(err.msg, "has 3, and 2 of them free"));
    assert_int_equal(taken, 6);
    assert_string_equal(names, "5,6");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_visible),
                                       cmocka_unit_test(test_folder), cmocka_unit_test(test_pick)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
