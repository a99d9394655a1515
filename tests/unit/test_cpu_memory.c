/* How much memory the CPU backend says there is, by files as Linux writes them; and memory that is
 * reserved at once. */
#include "base/file.h"
#include "engine/cpu/cpu.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

#define MIB (INT64_C(1) << 20)

struct text {
    const char *path, *text;
};

static int64_t memory_of(const struct text *files, int n)
{
    char root[] = "/tmp/sl-memory-XXXXXX", path[SL_PATH_MAX];
    assert_non_null(mkdtemp(root));
    for (int i = 0; i < n; i++) {
        assert_int_equal(sl_path(path, NULL, "%s%s", root, files[i].path), 0);
        *strrchr(path, '/') = '\0';
        assert_int_equal(sl_mkdirs(path, NULL), 0);
        assert_int_equal(sl_path(path, NULL, "%s%s", root, files[i].path), 0);
        assert_int_equal(sl_file_write(path, files[i].text, strlen(files[i].text), NULL), 0);
    }
    int64_t bytes = sl_cpu_memory(root);
    assert_int_equal(sl_rmtree(root, NULL), 0);
    return bytes;
}

#define MEMINFO                                                                                    \
    {                                                                                              \
        "/proc/meminfo",                                                                           \
            "MemTotal:       16384000 kB\nMemFree:   100 kB\nMemAvailable:    8388608 kB\n"        \
    }

static void test_machine_and_groups(void **state)
{
    const struct text machine[] = {MEMINFO};
    const struct text v2[] = {
        MEMINFO,
        {"/proc/self/cgroup", "0::/work.slice/run\n"},
        {"/sys/fs/cgroup/work.slice/run/memory.max", "max\n"},
        {"/sys/fs/cgroup/work.slice/memory.max", "1073741824\n"}, /* 1 GiB, of the one above */
        {"/sys/fs/cgroup/work.slice/memory.current", "536870912\n"},
        {"/sys/fs/cgroup/work.slice/memory.stat", "anon 1\nfile 2\ninactive_file 134217728\n"}};
    const struct text inside[] = {MEMINFO, /* a container that sees its own group as the root */
                                  {"/proc/self/cgroup", "0::/kubepods/pod1\n"},
                                  {"/sys/fs/cgroup/memory.max", "2147483648\n"},
                                  {"/sys/fs/cgroup/memory.current", "1048576\n"}};
    const struct text v1[] = {
        MEMINFO,
        {"/proc/self/cgroup", "5:cpu:/\n4:memory:/docker/x\n0::/\n"},
        {"/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "268435456\n"},
        {"/sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "67108864\n"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
        {"/sys/fs/cgroup/memory/memory.usage_in_bytes", "67108864\n"}};
    (void)state;
    assert_int_equal(memory_of(machine, 1), 8192 * MIB);
    assert_int_equal(memory_of(v2, 6), (1024 - 512 + 128) * MIB);
    assert_int_equal(memory_of(inside, 4), 2047 * MIB);
    assert_int_equal(memory_of(v1, 6), 192 * MIB);
    assert_int_equal(memory_of(NULL, 0), 0);
    assert_true(sl_cpu_memory("") > 64 * MIB);
}

static void test_reserved_memory(void **state)
{
    struct sl_backend_opts opts = {.threads = 1};
    struct sl_backend_info info, before;
    struct sl_backend *be;
    struct sl_err err = SL_ERR_INIT;
    void *a, *b, *c, *d;
    (void)state;
    assert_int_equal(sl_cpu_ops.open(&opts, &be, NULL), 0);
    assert_int_equal(sl_cpu_ops.reserve(be, 1024, NULL), 0);
    sl_cpu_ops.info(be, &before);
    assert_int_equal(before.reserved_bytes, 1024);
    assert_int_equal(sl_cpu_ops.alloc(be, 300, &a, NULL), 0);
    assert_int_equal(sl_cpu_ops.alloc(be, 1, &b, NULL), 0);
    sl_cpu_ops.free(be, b); /* the last one is free again */
    assert_int_equal(sl_cpu_ops.alloc(be, 500, &c, NULL), 0);
    assert_ptr_equal(c, b);
    assert_ptr_equal(c, (char *)a + 512);
    sl_cpu_ops.free(be, a); /* comes back in close */
    sl_cpu_ops.info(be, &info);
    assert_int_equal(info.given_bytes, 1024);
    assert_int_equal(info.allocations, before.allocations);
    assert_int_equal(sl_cpu_ops.alloc(be, 1, &d, NULL), 0); /* of the machine again */
    memset(d, 1, 1);
    sl_cpu_ops.info(be, &info);
    assert_int_equal(info.allocations, before.allocations + 1);
    sl_cpu_ops.free(be, d);
    sl_cpu_ops.free(be, c);
    assert_int_equal(sl_cpu_ops.reserve(be, 1, &err), SL_CONFLICT);
    sl_cpu_ops.close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_machine_and_groups),
                                       cmocka_unit_test(test_reserved_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
