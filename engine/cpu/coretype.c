#include "engine/cpu/coretype.h"
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *sl_cpu_coretype(void)
{
#if defined(__x86_64__)
    /* gcc's runtime checks CPUID and, by XGETBV, that the operating system saves the registers. */
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))
        return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "Haswell";
#endif
    return NULL;
}

/* Cores of a cgroup v2 CPU quota, rounded up; 0: none. */
static int quota_cores(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!f)
        return 0;
    long long quota_us = 0, period_us = 0;
    int n = fscanf(f, "%lld %lld", &quota_us, &period_us); /* "max 100000": no number, no quota */
    fclose(f);
    if (n != 2 || quota_us <= 0 || period_us <= 0)
        return 0;
    return (int)((quota_us + period_us - 1) / period_us);
}

int sl_cpu_usable_cores(void)
{
    cpu_set_t set;
    int cores = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cores = CPU_COUNT(&set);
    int quota = quota_cores();
    if (quota > 0 && quota < cores)
        cores = quota;
    return cores > 0 ? cores : 1;
}

int sl_cpu_reexec(char **argv)
{
    const char *type = sl_cpu_coretype();
    if (!type || getenv("OPENBLAS_CORETYPE"))
        return 0;
    char threads[16];
    snprintf(threads, sizeof threads, "%d", sl_cpu_usable_cores());
    if (setenv("OPENBLAS_CORETYPE", type, 0) || setenv("OMP_NUM_THREADS", threads, 0) ||
        setenv("OMP_WAIT_POLICY", "PASSIVE", 0))
        return -1;
    /* By its path, so that ps shows the program's name; by the link if the file is gone or
     * replaced. */
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n > 0) {
        path[n] = 0;
        execv(path, argv);
    }
    execv("/proc/self/exe", argv);
    return -1;
}
