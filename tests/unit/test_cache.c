/* The cache of fetched files: what it evicts and what never, and what it finds wrong. */
#include "artifacts/cache.h"
#include "base/clock.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static char dir[64];
static struct sl_cache cache;
static struct sl_err err;

static int setup(void **state)
{
    char path[SL_PATH_MAX];
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/sl-cache-XXXXXX");
    sl_err_clear(&err);
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/cache", dir);
    return sl_cache_open(path, &cache, &err);
}

static int teardown(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static const char *in_dir(const char *name)
{
    static char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* A file of 1,000 bytes that was asked for so long ago. */
static void fill(char letter, int64_t ago_s, char ret_sha256[65])
{
    char data[1000], path[SL_PATH_MAX];
    struct sl_fill f;
    bool there;
    memset(data, letter, sizeof data);
    ok(sl_sha256_data(data, sizeof data, ret_sha256, &err));
    ok(sl_fill_begin(&cache, ret_sha256, ret_sha256, NULL, &f, &there, &err));
    assert_false(there);
    ok(sl_fill_write(&f, data, sizeof data, &err));
    ok(sl_fill_commit(&f, ret_sha256, ret_sha256, path, &err));
    const struct timespec times[2] = {{.tv_sec = sl_now_us() / 1000000 - ago_s}, {.tv_nsec = UTIME_OMIT}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static bool has(const char *sha256)
{
    char path[SL_PATH_MAX];
    ok(sl_path(path, NULL, "%s/sha256/%s", cache.dir, sha256));
    return sl_file_exists(path);
}

static int64_t evict(int64_t max_bytes)
{
    struct sl_cache_evicted sum;
    ok(sl_cache_evict(&cache, max_bytes, &sum, &err));
    return sum.files;
}

static void place(const char *sha256, const char *dest)
{
    char path[SL_PATH_MAX];
    ok(sl_path(path, NULL, "%s/sha256/%s", cache.dir, sha256));
    ok(sl_cache_place(path, dest, &err));
}

static void the_least_recently_used_goes(void **state)
{
    char a[65], b[65], c[65], path[SL_PATH_MAX];
    (void)state;
    fill('a', 3000, a);
    fill('b', 2000, b);
    fill('c', 1000, c);
    assert_int_equal(evict(3000), 0);
    ok(sl_cache_find(&cache, a, path, NULL, &err)); /* now the newest */
    assert_int_equal(evict(2999), 1);
    assert_true(has(a) && !has(b) && has(c));
    assert_int_equal(evict(0), 1); /* a was asked for just now: somebody may be about to place it */
    assert_true(has(a) && !has(c));
    assert_int_equal(evict(-1), 0); /* half of a disk is more than this */
}

static void what_a_run_uses_stays(void **state)
{
    char a[65], b[65];
    struct sl_cache_file *files;
    size_t n;
    (void)state;
    fill('a', 3000, a);
    fill('b', 2000, b);
    place(a, in_dir("runs/r1/inputs/model"));
    ok(sl_cache_list(&cache, &files, &n, &err));
    assert_int_equal(n, 2);
    assert_string_equal(files[0].sha256, a);
    assert_true(files[0].in_use && !files[1].in_use);
    assert_int_equal(files[0].bytes, 1000);
    free(files);
    assert_int_equal(evict(0), 1);
    assert_true(has(a) && !has(b));
    ok(sl_rmtree(in_dir("runs"), &err)); /* the run's end, whoever ends it */
    assert_int_equal(evict(0), 1);
    assert_false(has(a));
}

/* Where no hard link is possible, as between /tmp and /dev/shm. */
static void a_use_on_another_disk_counts(void **state)
{
    char a[65], far[] = "/dev/shm/sl-far-XXXXXX", dest[64];
    struct stat here, there;
    (void)state;
    if (!mkdtemp(far) || stat(far, &there) || stat(dir, &here) || here.st_dev == there.st_dev)
        skip();
    snprintf(dest, sizeof dest, "%s/model", far);
    fill('a', 3000, a);
    place(a, dest);
    assert_true(lstat(dest, &there) == 0 && S_ISLNK(there.st_mode));
    assert_int_equal(evict(0), 0);
    assert_true(has(a));
    ok(sl_rmtree(far, &err));
    assert_int_equal(evict(0), 1);
    assert_false(has(a));
}

static void partial_files_of_the_dead_go(void **state)
{
    char sha256[65];
    struct sl_fill f;
    bool there;
    (void)state;
    ok(sl_sha256_data("x", 1, sha256, &err));
    const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    ok(sl_fill_begin(&cache, sha256, sha256, NULL, &f, &there, &err));
    ok(sl_fill_write(&f, "part", 4, &err));
    assert_int_equal(evict(0), 0);
    assert_int_equal(utimensat(AT_FDCWD, f.path, old, 0), 0);
    assert_int_equal(evict(0), 0); /* somebody is at it */
    char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s", f.path);
    sl_fill_abort(&f);
    assert_int_equal(evict(0), 1);
    assert_false(sl_file_exists(path));
}

static void count(void *arg, const char *sha256)
{
    assert_string_equal(sha256, arg);
}

static void changed_files_are_found(void **state)
{
    char a[65], b[65], path[SL_PATH_MAX];
    int64_t files, dropped;
    (void)state;
    fill('a', 10, a);
    fill('b', 10, b);
    ok(sl_path(path, NULL, "%s/sha256/%s", cache.dir, a));
    assert_int_equal(chmod(path, 0644), 0);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "Z", 1, 500), 1);
    const struct timespec times[2] = {st.st_atim, st.st_mtim}; /* as a disk does it: no new time */
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
    ok(sl_cache_verify(&cache, NULL, count, a, &files, &dropped, &err));
    assert_int_equal(files, 2);
    assert_int_equal(dropped, 1);
    assert_true(!has(a) && has(b));
}

/* ---- many at once ----------------------------------------------------------------------------- */

static atomic_bool stop;

static void *evict_always(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop))
        sl_cache_evict(&cache, 0, NULL, NULL);
    return NULL;
}

/* One that asks and then places always has the file, whatever is evicted meanwhile. */
static void asked_for_then_placed(void **state)
{
    pthread_t evictor;
    char a[65], path[SL_PATH_MAX];
    int missing = 0, wrong = 0;
    (void)state;
    atomic_store(&stop, false);
    assert_int_equal(pthread_create(&evictor, NULL, evict_always, NULL), 0);
    for (int i = 0; i < 300; i++) {
        struct sl_fill f;
        bool there;
        char data[1000];
        memset(data, 'a', sizeof data);
        sl_sha256_data(data, sizeof data, a, NULL);
        if (sl_cache_find(&cache, a, path, NULL, NULL)) {
            missing++;
            wrong += sl_fill_begin(&cache, a, a, NULL, &f, &there, NULL) != 0;
            wrong += sl_fill_write(&f, data, sizeof data, NULL) != 0;
            wrong += sl_fill_commit(&f, a, a, path, NULL) != 0;
        }
        wrong += sl_cache_place(path, in_dir("run/model"), NULL) != 0;
        /* Long unused but for the run: still it stays. */
        const struct timespec times[2] = {{.tv_sec = 1}, {.tv_nsec = UTIME_OMIT}};
        utimensat(AT_FDCWD, path, times, 0);
        wrong += !has(a);
        sl_rmtree(in_dir("run"), NULL);
    }
    atomic_store(&stop, true);
    pthread_join(evictor, NULL);
    assert_int_equal(wrong, 0);
    assert_true(missing > 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_least_recently_used_goes), T(what_a_run_uses_stays), T(a_use_on_another_disk_counts),
        T(partial_files_of_the_dead_go), T(changed_files_are_found), T(asked_for_then_placed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
