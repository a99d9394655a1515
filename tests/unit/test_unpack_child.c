/* The child that unpacks is confined: what the kernel refuses to a library in it that was taken over. */
#include "artifacts/pack.h"
#include "base/file.h"
#include <archive.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static const char *child_root; /* in a child: where it unpacks to */

/* Stands before libarchive's. In the child it does what a library that was taken over might,
 * and leaves word in the folder where it may write. */
int archive_read_support_format_tar(struct archive *a)
{
    int (*real)(struct archive *) = (int (*)(struct archive *))(uintptr_t)dlsym(RTLD_NEXT, "archive_read_support_format_tar");
    const char *root = child_root;
    if (root) {
        char canary[SL_PATH_MAX], beside[SL_PATH_MAX], said[SL_PATH_MAX], text[256];
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        snprintf(canary, sizeof canary, "%s/../canary", root);
        snprintf(beside, sizeof beside, "%s/../beside", root);
        snprintf(said, sizeof said, "%s/said", root);
        int s = socket(AF_INET, SOCK_STREAM, 0);
        int written = open(canary, O_WRONLY) < 0 ? errno : 0;
        int cut = truncate(canary, 0) ? errno : 0;
        int made = open(beside, O_WRONLY | O_CREAT, 0644) < 0 ? errno : 0;
        int folder = mkdir(beside, 0755) ? errno : 0;
        int removed = unlink(canary) ? errno : 0;
        int linked = symlink("/etc", beside) ? errno : 0;
        snprintf(beside, sizeof beside, "%s/link", root);
        int below = symlink("/etc", beside) ? errno : 0;
        int connected = connect(s, (struct sockaddr *)&to, sizeof to) ? errno : 0;
        int started = 0;
        pid_t pid = fork();
        if (pid == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(errno);
        }
        waitpid(pid, &started, 0);
        snprintf(text, sizeof text, "%d %d %d %d %d %d %d %d %d %d %d", written, cut, made, folder, removed, linked, below,
                 connected, WEXITSTATUS(started), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), getenv("SL_TEST_SECRET") != NULL);
        int fd = open(said, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd))
            _exit(1);
    }
    return real(a);
}

static void it_may_write_below_its_folder_only(void **state)
{
    char dir[] = "/tmp/sl-unpack-XXXXXX", before[SL_PATH_MAX], want[256];
    int version = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct sl_err err = SL_ERR_INIT;
    struct sl_packed packed;
    struct sl_buf said;
    struct stat canary;
    (void)state;
    assert_non_null(getcwd(before, sizeof before));
    assert_non_null(mkdtemp(dir));
    assert_int_equal(chdir(dir), 0);
    assert_int_equal(mkdir("src", 0755), 0);
    assert_int_equal(sl_file_write("src/a", "a", 1, &err), 0);
    assert_int_equal(sl_file_write("canary", "untouched", 9, &err), 0);
    assert_int_equal(sl_pack("src", "x.tar", NULL, &packed, &err), 0);
    json_decref(packed.entries);
    setenv("SL_TEST_SECRET", "x", 1);
    if (sl_unpack("x.tar", "dest", NULL, NULL, &err))
        fail_msg("%s", err.msg);
    sl_buf_init(&said, 4096);
    if (sl_file_read("dest/said", &said, &err))
        fail_msg("%s", err.msg);
    bool beside = sl_file_exists("beside"), unpacked = sl_file_exists("dest/a");
    int there = stat("canary", &canary);
    assert_int_equal(chdir(before), 0);
    assert_int_equal(sl_rmtree(dir, &err), 0);
    if (version < 1) {
        print_message("not run: this kernel has no Landlock, the child did as it liked: %s\n", said.p);
        sl_buf_release(&said);
        skip();
    }
    snprintf(want, sizeof want, "%d %d %d %d %d %d %d %d %d 1 0", EACCES, version < 3 ? 0 : EACCES, EACCES, EACCES, EACCES,
             EACCES, EACCES, version < 4 ? ECONNREFUSED : EACCES, EACCES);
    assert_string_equal(said.p, want);
    sl_buf_release(&said);
    assert_true(unpacked);
    assert_false(beside);
    assert_int_equal(there, 0);
    assert_int_equal(canary.st_size, version < 3 ? 0 : 9);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_may_write_below_its_folder_only)};
    child_root = argc == 3 ? argv[2] : NULL;
    sl_unpack_main(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
