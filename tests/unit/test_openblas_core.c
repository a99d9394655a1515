/* OpenBLAS runs the kernels that fit this processor, and what the environment says wins.
 *
 * OpenBLAS reads its environment when it is loaded, so each check starts this program again
 * (--child) with an environment of its own; the child does what the worker's main does and prints
 * the kernel and its threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "engine/cpu/coretype.h"
#include "engine/ops.h"
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int child(char **argv)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend *be = NULL;
    struct sl_backend_info info;
    if (sl_cpu_reexec(argv) || sl_cpu_ops.open(&(struct sl_backend_opts){0}, &be, &err))
        return 1;
    sl_cpu_ops.info(be, &info);
    printf("%s; %d threads\n", info.kernel, info.threads);
    sl_cpu_ops.close(be);
    return 0;
}

/* What the child prints with the two variables set so (NULL: unset). */
static void run_child(const char *coretype, const char *threads, char *ret_text, size_t size)
{
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        unsetenv("OPENBLAS_CORETYPE");
        unsetenv("OMP_NUM_THREADS");
        if ((coretype && setenv("OPENBLAS_CORETYPE", coretype, 1)) ||
            (threads && setenv("OMP_NUM_THREADS", threads, 1)) || dup2(fd[1], 1) < 0)
            _exit(2);
        execl("/proc/self/exe", "test_openblas_core", "--child", (char *)NULL);
        _exit(3);
    }
    close(fd[1]);
    size_t n = 0;
    for (ssize_t got; n + 1 < size && (got = read(fd[0], ret_text + n, size - 1 - n)) > 0;)
        n += (size_t)got;
    ret_text[n] = 0;
    close(fd[0]);
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void test_right_kernels(void **state)
{
    (void)state;
    char text[256], want[64];
    const char *type = sl_cpu_coretype();
    if (!type)
        skip(); /* no AVX2: whatever OpenBLAS chooses is right */
    run_child(NULL, NULL, text, sizeof text);
    assert_null(strstr(text, "Prescott"));
    snprintf(want, sizeof want, "openblas %s,", type);
    assert_non_null(strstr(text, want));
}

static void test_environment_wins(void **state)
{
    (void)state;
    char text[256];
    if (!sl_cpu_coretype())
        skip();
    run_child("Sandybridge", NULL, text, sizeof text);
    assert_non_null(strstr(text, "openblas Sandybridge"));
    run_child(NULL, "1", text, sizeof text);
    assert_non_null(strstr(text, "; 1 threads"));
}

static void test_threads_are_usable_cores(void **state)
{
    (void)state;
    char text[256], want[64];
    int cores = sl_cpu_usable_cores();
    assert_true(cores >= 1 && cores <= sysconf(_SC_NPROCESSORS_ONLN));
    run_child(NULL, NULL, text, sizeof text);
    snprintf(want, sizeof want, "; %d threads", cores);
    assert_non_null(strstr(text, want));
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--child"))
        return child(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_kernels),
        cmocka_unit_test(test_environment_wins),
        cmocka_unit_test(test_threads_are_usable_cores),
    };
    return cmocka_run_group_tests_name("OpenBLAS kernels", tests, NULL, NULL);
}
