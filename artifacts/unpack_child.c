/* Unpacking in a child of its own: this program again, since a fork of a process with threads may do next to
 * nothing, and so that neither memory nor environment of ours is there. It says what it did on a pipe, a line each:
 * {"progress": bytes}, and at its end {"entries": [...]} or {"code", "msg"}. */
#include "artifacts/pack_priv.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/proc.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_FD 3 /* the pipe */
#define ARCHIVE_FD 4
#define CHILD_FDS 16
#define REPLY_MAX_BYTES (64u << 20) /* of SL_UNPACK_MAX_ENTRIES entries */
#define STOP_POLL_MS 50
#define VERB "unpack-child"
#define CHILD_ENV "SOFTLAUNCH_UNPACKING"
/* what older headers do not have */
#define FS_TRUNCATE (1ull << 14)  /* third version of Landlock */
#define NET_BIND_CONNECT_TCP 3ull /* fourth */

/* ---- the child ------------------------------------------------------------------------------- */

static void say(json_t *line)
{
    char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text && sl_write_all(CHILD_FD, text, strlen(text), NULL) == 0)
        sl_write_all(CHILD_FD, "\n", 1, NULL);
    free(text);
}

static void say_progress(void *arg, int64_t bytes)
{
    (void)arg;
    say(json_pack("{s:I}", "progress", (json_int_t)bytes));
}

static void limit(int what, rlim_t value)
{
    struct rlimit now, new = {value, value};
    if (getrlimit(what, &now) == 0 && now.rlim_max < value)
        new.rlim_cur = new.rlim_max = now.rlim_max;
    setrlimit(what, &new);
}

#ifndef __SANITIZE_ADDRESS__ /* whose shadow takes terabytes of address space */
static int64_t memory_now(void)
{
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    if (fscanf(f, "%lld", &pages) != 1)
        pages = 0;
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}
#endif

/* Files and folders can be made and written below root only, nothing can be started, no TCP. Kernels without
 * Landlock leave that to the checks of each entry. */
static void confine(const char *root)
{
    int version = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct {
        uint64_t fs, net;
    } all = {.fs = LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
                   LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR |
                   LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                   LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM,
             .net = NET_BIND_CONNECT_TCP};
    struct landlock_path_beneath_attr below = {
        .allowed_access = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR |
                          LANDLOCK_ACCESS_FS_MAKE_REG,
        .parent_fd = open(root, O_PATH | O_CLOEXEC)};
    if (version >= 3)
        all.fs |= FS_TRUNCATE;
    int rules = version < 1 ? -1
                            : (int)syscall(SYS_landlock_create_ruleset, &all,
                                           version < 4 ? sizeof all.fs : sizeof all, 0);
    if (rules >= 0 && below.parent_fd >= 0 &&
        syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &below, 0) == 0)
        syscall(SYS_landlock_restrict_self, rules, 0);
    if (rules >= 0)
        close(rules);
    if (below.parent_fd >= 0)
        close(below.parent_fd);
}

void sl_unpack_main(int argc, char **argv)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *entries = NULL;
    const struct sl_watch watch = {.progress = say_progress};
    if (argc != 3 || strcmp(argv[1], VERB) != 0 || !getenv(CHILD_ENV))
        return;
    const char *root = argv[2];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    signal(SIGXFSZ, SIG_IGN);
    limit(RLIMIT_NOFILE, CHILD_FDS);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_CPU, SL_UNPACK_MAX_CPU_S);
    limit(RLIMIT_FSIZE, SL_UNPACK_MAX_BYTES);
#ifndef __SANITIZE_ADDRESS__
    limit(RLIMIT_AS, (rlim_t)(memory_now() + SL_UNPACK_MAX_MEMORY));
#endif
    confine(root);
    if (sl_unpack_into(ARCHIVE_FD, root, &watch, &entries, &err)) {
        json_t *msg = json_string(err.msg);
        for (char *c = err.msg; !msg && *c; c++) /* a name that is not UTF-8 is in it */
            if ((unsigned char)*c >= 0x80)
                *c = '?';
        say(json_pack("{s:i, s:o}", "code", err.code, "msg", msg ? msg : json_string(err.msg)));
    } else {
        say(json_pack("{s:o}", "entries", entries));
    }
    _exit(0);
}

/* ---- who waits for it ------------------------------------------------------------------------ */

/* One line of the child: progress, or its last word, which *ret_last gets. */
static void hear(const char *line, size_t len, const struct sl_watch *watch, json_t **ret_last)
{
    json_t *said = json_loadb(line, len, 0, NULL);
    if (json_object_get(said, "progress")) {
        sl_watch_progress(watch, sl_json_int(said, "progress", 0));
        json_decref(said);
    } else if (said) {
        json_decref(*ret_last);
        *ret_last = said;
    }
}

/* Reads until the child has closed its end. */
static int listen_to(int fd, const struct sl_watch *watch, json_t **ret_last, struct sl_err *err)
{
    struct sl_buf buf;
    char chunk[4096];
    int64_t heard_us = sl_boot_us();
    int rc = 0;
    sl_buf_init(&buf, REPLY_MAX_BYTES);
    while (rc == 0) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int ready = poll(&p, 1, STOP_POLL_MS);
        if (sl_watch_stop(watch))
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        else if (ready == 0 && sl_boot_us() - heard_us > SL_UNPACK_STALL_S * INT64_C(1000000))
            rc = sl_err_set(err, SL_RETRY, "nothing came out of it for %d s", SL_UNPACK_STALL_S);
        if (rc || ready <= 0)
            continue;
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        heard_us = sl_boot_us();
        rc = sl_buf_add(&buf, chunk, (size_t)n);
        if (rc)
            sl_err_set(err, SL_DATA, "its list of entries has more than %u bytes", REPLY_MAX_BYTES);
        size_t from = 0;
        /* A line can only end in what has just come. */
        for (char *end; rc == 0 && memchr(chunk, '\n', (size_t)n) &&
                        (end = memchr(buf.p + from, '\n', buf.len - from));) {
            size_t len = (size_t)(end - (buf.p + from));
            hear(buf.p + from, len, watch, ret_last);
            from += len + 1;
        }
        if (from) {
            memmove(buf.p, buf.p + from, buf.len - from);
            buf.len -= from;
        }
    }
    sl_buf_release(&buf);
    return rc;
}

static int judge(int status, json_t *last, json_t **ret_entries, struct sl_err *err)
{
    if (json_object_get(last, "entries")) {
        *ret_entries = json_incref(json_object_get(last, "entries"));
        return 0;
    }
    if (last)
        return sl_err_set(err, (int)sl_json_int(last, "code", SL_DATA), "%s",
                          sl_json_str(last, "msg", "it cannot be unpacked"));
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU)
        return sl_err_set(err, SL_DATA, "it takes more than %d s to unpack: refused",
                          SL_UNPACK_MAX_CPU_S);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return sl_err_set(err, SL_NOMEM, "what unpacked it was killed, as when memory runs out");
    return sl_err_set(err, SL_DATA, "what unpacked it ended with %s %d: refused",
                      WIFSIGNALED(status) ? "signal" : "status",
                      WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

/* The child's environment: what the loader and sanitizers are told, no secrets. */
static void child_env(const char *ret_env[8], char room[4][SL_PATH_MAX])
{
    static const char *const kept[] = {"LD_LIBRARY_PATH", "LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS"};
    int n = 0;
    ret_env[n++] = CHILD_ENV "=1";
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (getenv(kept[i]) && sl_path(room[i], NULL, "%s=%s", kept[i], getenv(kept[i])) == 0)
            ret_env[n++] = room[i];
    ret_env[n] = NULL;
}

static int unpack_by_child(int fd, const char *root, const struct sl_watch *watch,
                           json_t **ret_entries, struct sl_err *err)
{
    char room[4][SL_PATH_MAX];
    const char *env[8], *const argv[] = {"/proc/self/exe", VERB, root, NULL};
    int ends[2], status = 0;
    json_t *last = NULL;
    pid_t pid;
    if (sl_watch_stop(watch))
        return sl_err_set(err, SL_CANCELLED, "stopped");
    if (getenv(CHILD_ENV)) /* else each child would start another one */
        return sl_err_set(err, SL_SPEC, "this program's main does not call sl_unpack_main");
    if (pipe2(ends, O_CLOEXEC))
        return sl_err_errno(err, "making a pipe");
    child_env(env, room);
    const struct sl_spawn child = {.argv = argv, .envp = env, .bare_env = true, .n_fds = ARCHIVE_FD + 1,
                                   .fds = {-1, -1, fcntl(STDERR_FILENO, F_GETFD) < 0 ? -1 : STDERR_FILENO,
                                           ends[1], fd}};
    int rc = sl_spawn(&child, &pid, err);
    close(ends[1]);
    if (rc) {
        close(ends[0]);
        return rc;
    }
    rc = listen_to(ends[0], watch, &last, err);
    close(ends[0]);
    if (rc)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (rc == 0)
        rc = judge(status, last, ret_entries, err);
    json_decref(last);
    return rc;
}

typedef int unpack_fn(int fd, const char *root, const struct sl_watch *watch, json_t **ret_entries,
                      struct sl_err *err);

/* Into a folder beside dest, which then takes its name. */
static int unpack(unpack_fn *fn, const char *path, const char *dest, const struct sl_watch *watch,
                  json_t **ret_entries, struct sl_err *err)
{
    char tmp[SL_PATH_MAX], id[SL_ID_HEX + 1];
    json_t *entries = NULL;
    sl_random_id(id);
    int rc = sl_path(tmp, err, "%s.%.12s.tmp", dest, id);
    if (rc)
        return rc;
    if (sl_file_exists(dest))
        return sl_err_set(err, SL_CONFLICT, "%s is there already", dest);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return sl_err_errno(err, "opening %s", path);
    if (mkdir(tmp, 0755)) {
        rc = sl_err_errno(err, "making folder %s", tmp);
        close(fd);
        return rc;
    }
    rc = fn(fd, tmp, watch, &entries, err);
    close(fd);
    if (rc == 0 && rename(tmp, dest))
        rc = sl_err_errno(err, "renaming %s to %s", tmp, dest);
    if (rc) {
        sl_rmtree(tmp, NULL);
        json_decref(entries);
        return sl_err_wrap(err, rc, "unpacking %s", path);
    }
    if (ret_entries)
        *ret_entries = entries;
    else
        json_decref(entries);
    return 0;
}

int sl_unpack(const char *path, const char *dest, const struct sl_watch *watch,
              json_t **ret_entries, struct sl_err *err)
{
    return unpack(unpack_by_child, path, dest, watch, ret_entries, err);
}

int sl_unpack_here(const char *path, const char *dest, const struct sl_watch *watch,
                   json_t **ret_entries, struct sl_err *err)
{
    return unpack(sl_unpack_into, path, dest, watch, ret_entries, err);
}
