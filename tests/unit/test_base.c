/* The base: what every part relies on. */
#include "base/buf.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/json.h"
#include "base/loop.h"
#include "base/proc.h"
#include "base/wire.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/sl-base-XXXXXX";

static void first_error_wins_and_is_wrapped(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    char big[SL_ERR_MSG_MAX * 2];

    (void)state;
    assert_int_equal(sl_err_set(&err, SL_RETRY, "redis: %s", "timeout"), SL_RETRY);
    assert_int_equal(sl_err_set(&err, SL_SPEC, "later"), SL_SPEC);
    assert_int_equal(sl_err_wrap(&err, SL_RETRY, "renewing run %s", "r7"), SL_RETRY);
    assert_string_equal(err.msg, "renewing run r7: redis: timeout");
    assert_int_equal(err.code, SL_RETRY);
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    sl_err_wrap(&err, SL_RETRY, "%s", big);
    assert_int_equal(strlen(err.msg), SL_ERR_MSG_MAX - 1);
    for (int c = 0; c >= SL_CANCELLED; c--)
        assert_int_equal(sl_code_from_name(sl_code_name(c)), c);
    assert_int_equal(sl_err_set(NULL, SL_IO, "nobody listens"), SL_IO);
}

static void buffer_keeps_its_maximum(void **state)
{
    struct sl_buf b;

    (void)state;
    sl_buf_init(&b, 10);
    assert_string_equal(b.p, "");
    assert_int_equal(sl_buf_adds(&b, "12345"), 0);
    assert_int_equal(sl_buf_addf(&b, "%d", 678901), SL_NOMEM);
    assert_string_equal(b.p, "12345");
    assert_int_equal(sl_buf_addf(&b, "%d", 67890), 0);
    assert_int_equal(sl_buf_addc(&b, 'x'), SL_NOMEM);
    sl_buf_consume(&b, 3);
    assert_string_equal(b.p, "4567890");
    char *taken = sl_buf_take(&b);
    assert_string_equal(taken, "4567890");
    assert_int_equal(b.len, 0);
    free(taken);
    sl_buf_release(&b);
    sl_buf_release(&b);
}

static int remove_if_file(void *arg, const char *path, const char *name, struct sl_err *e)
{
    (void)arg;
    assert_string_equal(name, "file");
    return unlink(path) ? sl_err_errno(e, "removing %s", path) : sl_err_set(e, SL_CANCELLED, "one was enough");
}

static void files_are_whole_or_absent(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_buf b;
    char path[SL_PATH_MAX], missing[SL_PATH_MAX];

    (void)state;
    assert_int_equal(sl_path(path, &err, "%s/a/b/file", dir), 0);
    assert_int_not_equal(sl_file_write(path, "x", 1, &err), 0);
    sl_err_clear(&err);
    snprintf(missing, sizeof missing, "%s/a/b", dir);
    assert_int_equal(sl_mkdirs(missing, &err), 0);
    assert_int_equal(sl_file_write(path, "hello", 5, &err), 0);
    sl_buf_init(&b, 5);
    assert_int_equal(sl_file_read(path, &b, &err), 0);
    assert_string_equal(b.p, "hello");
    sl_buf_release(&b);
    sl_buf_init(&b, 4);
    assert_int_equal(sl_file_read(path, &b, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "limit of 4 bytes"));
    sl_err_clear(&err);
    snprintf(missing, sizeof missing, "%s/none", dir);
    assert_int_equal(sl_file_read(missing, &b, &err), SL_NOTFOUND);
    sl_buf_release(&b);
    sl_err_clear(&err);
    assert_int_equal(sl_dir_each(missing, remove_if_file, NULL, &err), SL_NOTFOUND);
    sl_err_clear(&err);
    snprintf(missing, sizeof missing, "%s/a/b/.hidden", dir);
    assert_int_equal(sl_file_write(missing, "x", 1, &err), 0);
    snprintf(missing, sizeof missing, "%s/a/b", dir);
    assert_int_equal(sl_dir_each(missing, remove_if_file, NULL, &err), SL_CANCELLED);
    assert_false(sl_file_exists(path));
    sl_err_clear(&err);
    assert_int_equal(sl_dir_each(missing, remove_if_file, NULL, &err), 0); /* what begins with a dot is not told of */
    assert_int_equal(sl_rmtree(dir, &err), 0);
    assert_false(sl_file_exists(path));
    assert_int_equal(sl_rmtree(dir, &err), 0);
    assert_int_equal(mkdir(dir, 0755), 0);
}

static void sha256_matches_fips_vectors(void **state)
{
    char hex[SL_SHA256_HEX + 1];

    (void)state; /* FIPS 180-4, examples "abc" and the empty message */
    assert_int_equal(sl_sha256_data("abc", 3, hex, NULL), 0);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(sl_sha256_data("", 0, hex, NULL), 0);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_true(sl_sha256_valid(hex));
    hex[3] = 'A';
    assert_false(sl_sha256_valid(hex));
}

static void json_errors_name_the_line(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *json = NULL;

    (void)state;
    assert_int_equal(sl_json_parse("{\n\"a\":1,\n}", 10, "spec.json", &json, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "spec.json"));
    assert_non_null(strstr(err.msg, "line 3"));
    sl_err_clear(&err);
    assert_int_equal(sl_json_parse("{\"a\":1,\"a\":2}", 13, "x", &json, &err), SL_SPEC);
    sl_err_clear(&err);
    assert_int_equal(sl_json_parse("{\"a\":{\"b\":2,\"c\":null}}", 22, "x", &json, &err), 0);
    assert_int_equal(sl_json_int(json, "a.b", 9), 2);
    assert_int_equal(sl_json_int(json, "a.c", 9), 9);
    assert_int_equal(sl_json_int(json, "a.b.d", 9), 9);
    json_decref(json);
}

static void json_has_a_depth_and_integers_of_both_forms(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    char text[4 * SL_JSON_DEPTH_MAX];
    json_t *j;

    (void)state;
    memset(text, '[', SL_JSON_DEPTH_MAX);
    memset(text + SL_JSON_DEPTH_MAX, ']', SL_JSON_DEPTH_MAX);
    assert_int_equal(sl_json_parse(text, 2 * SL_JSON_DEPTH_MAX, "x", &j, &err), 0);
    json_decref(j);
    memset(text, '[', SL_JSON_DEPTH_MAX + 1);
    memset(text + SL_JSON_DEPTH_MAX + 1, ']', SL_JSON_DEPTH_MAX + 1);
    assert_int_equal(sl_json_parse(text, 2 * SL_JSON_DEPTH_MAX + 2, "x", &j, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "nested"));
    memset(text, '[', sizeof text); /* within a string they count for nothing */
    memcpy(text, "[\"a\\\"", 5);
    memcpy(text + sizeof text - 2, "\"]", 2);
    assert_int_equal(sl_json_parse(text, sizeof text, "x", &j, NULL), 0);
    json_decref(j);
    j = json_pack("{s:f, s:f, s:f, s:i, s:s}", "two", 2.0, "half", 2.5, "huge", 1e300, "n", 7, "s",
                  "3");
    assert_int_equal(sl_json_int(j, "two", -1), 2);
    assert_int_equal(sl_json_int(j, "half", -1), -1);
    assert_int_equal(sl_json_int(j, "huge", -1), -1);
    assert_int_equal(sl_json_int(j, "n", -1), 7);
    assert_int_equal(sl_json_int(j, "s", -1), -1);
    json_decref(j);
}

/* What is cut at a limit still has a JSON form. */
static void cut_messages_stay_utf8(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    char text[SL_ERR_MSG_MAX + 8], pieces[][8] = {"a\xc3\xa4", "a\xc3", "\xe2\x82", "\xf0\x9f\x98\x80",
                                                  "\xf0\x9f\x98"};
    const char *const kept[] = {"a\xc3\xa4", "a", "", "\xf0\x9f\x98\x80", ""};

    (void)state;
    for (int i = 0; i < 5; i++) {
        sl_utf8_trim(pieces[i]);
        assert_string_equal(pieces[i], kept[i]);
    }
    for (int shift = 0; shift < 3; shift++) {
        memset(text, 'x', sizeof text);
        for (size_t i = (size_t)shift; i + 4 < sizeof text; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 3); /* a euro sign */
        text[sizeof text - 1] = 0;
        sl_err_clear(&err);
        sl_err_set(&err, SL_DATA, "%s", text);
        json_t *j = json_string(err.msg);
        assert_non_null(j);
        json_decref(j);
        sl_err_wrap(&err, SL_DATA, "reading");
        j = json_string(err.msg);
        assert_non_null(j);
        json_decref(j);
    }
}

static void wire_survives_pieces_and_rubbish(void **state)
{
    struct sl_buf b;
    const char *text = "{\"ev\":\"log\"}\nrubbish\n[1]\n{\"ev\":\"metric\",\"loss\":1.5}\n{\"ev\"";
    int bad = 0, got = 0;
    json_t *e;

    (void)state;
    sl_buf_init(&b, SL_WIRE_LINE_MAX);
    for (const char *p = text; *p; p++) {
        assert_int_equal(sl_buf_addc(&b, *p), 0);
        while ((e = sl_wire_next(&b, &bad)) != NULL) {
            got++;
            json_decref(e);
        }
    }
    assert_int_equal(got, 2);
    assert_int_equal(bad, 2);
    sl_buf_release(&b);
}

struct seen {
    struct sl_loop *loop;
    int timers, reads, signals, status;
    int fd;
};

static void on_timer(void *arg)
{
    ((struct seen *)arg)->timers++;
}

static void on_read(void *arg, int fd, uint32_t events)
{
    struct seen *s = arg;
    char c;

    (void)events;
    if (read(fd, &c, 1) == 1)
        s->reads++;
    sl_loop_fd_remove(s->loop, fd);
}

static void on_usr1(void *arg, int signo)
{
    assert_int_equal(signo, SIGUSR1);
    ((struct seen *)arg)->signals++;
}

static void on_child(void *arg, pid_t pid, int status)
{
    struct seen *s = arg;

    (void)pid;
    s->status = status;
    sl_loop_stop(s->loop);
}

static void loop_serves_all_kinds(void **state)
{
    struct seen s = {0};
    const char *argv[] = {"sh", "-c", "sleep 0.1; test \"$A\" = 1 && exit 7", NULL};
    const char *envp[] = {"A=1", NULL};
    struct sl_spawn spawn = {.argv = argv, .envp = envp, .fds = {-1, 1, 2}, .n_fds = 3};
    int p[2], cancelled;
    char text[64];
    pid_t pid;

    (void)state;
    assert_int_equal(sl_loop_new(&s.loop, NULL), 0);
    assert_int_equal(pipe(p), 0);
    assert_int_equal(write(p[1], "ab", 2), 2);
    assert_int_equal(sl_loop_fd(s.loop, p[0], EPOLLIN, on_read, &s, NULL), 0);
    assert_int_equal(sl_loop_signal(s.loop, SIGUSR1, on_usr1, &s, NULL), 0);
    assert_true(sl_loop_timer(s.loop, 1000, on_timer, &s, NULL) >= 0);
    cancelled = sl_loop_timer(s.loop, 1, on_timer, &s, NULL);
    sl_loop_timer_cancel(s.loop, cancelled);
    kill(getpid(), SIGUSR1);
    assert_int_equal(sl_spawn(&spawn, &pid, NULL), 0);
    assert_int_equal(sl_loop_child(s.loop, pid, on_child, &s, NULL), 0);
    assert_int_equal(sl_loop_run(s.loop, NULL), 0);
    assert_int_equal(s.timers, 1);
    assert_int_equal(s.reads, 1);
    assert_int_equal(s.signals, 1);
    sl_wait_text(s.status, text);
    assert_string_equal(text, "exit status 7");
    sl_loop_free(s.loop);
    close(p[0]);
    close(p[1]);
}

static void spawn_reports_a_missing_program(void **state)
{
    const char *argv[] = {"/nonexistent/worker", NULL};
    struct sl_spawn spawn = {.argv = argv, .fds = {-1, -1, -1}, .n_fds = 3};
    struct sl_err err = SL_ERR_INIT;
    pid_t pid;

    (void)state;
    assert_int_equal(sl_spawn(&spawn, &pid, &err), SL_IO);
    assert_non_null(strstr(err.msg, "/nonexistent/worker"));
    assert_non_null(strstr(err.msg, "No such file"));
}

/* A child with a control channel: ends when the pipe closes, and when its deadline passes. */
static int abandoned_child(bool close_pipe, int64_t *ret_us)
{
    int p[2], status;
    int64_t start = sl_boot_us();
    pid_t pid;

    assert_int_equal(pipe(p), 0);
    pid = fork();
    if (pid == 0) {
        struct sl_control *c;

        close(p[1]);
        if (sl_control_new(p[0], &c, NULL))
            _exit(1);
        for (;;)
            pause();
    }
    close(p[0]);
    if (close_pipe)
        close(p[1]);
    else
        assert_int_equal(sl_wire_send(p[1],
                                      json_pack("{s:s, s:I}", "cmd", "deadline", "boot_us",
                                                (json_int_t)(start + 300000)),
                                      NULL),
                         0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!close_pipe)
        close(p[1]);
    *ret_us = sl_boot_us() - start;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_child_outlives_neither_pipe_nor_deadline(void **state)
{
    int64_t us;

    (void)state;
    assert_int_equal(abandoned_child(true, &us), SL_EXIT_ABANDONED);
    assert_true(us < SL_WIRE_GRACE_US);
    assert_int_equal(abandoned_child(false, &us), SL_EXIT_ABANDONED);
    assert_true(us >= 299000 && us < 300000 + SL_WIRE_GRACE_US);
}

static void command(int fd, const char *cmd, int64_t boot_us)
{
    assert_int_equal(sl_wire_send(fd,
                                  json_pack("{s:s, s:I}", "cmd", cmd, "boot_us", (json_int_t)boot_us),
                                  NULL),
                     0);
}

/* The child counts its boundaries into a pipe: one byte for each, 'c' when a checkpoint is wished. */
static pid_t counting_child(int *ret_control, int *ret_counts)
{
    int control[2], counts[2];
    pid_t pid;

    assert_int_equal(pipe(control), 0);
    assert_int_equal(pipe2(counts, O_NONBLOCK), 0);
    pid = fork();
    if (pid == 0) {
        struct sl_control *c;

        close(control[1]);
        if (sl_control_new(control[0], &c, NULL))
            _exit(1);
        for (;;) {
            enum sl_wire_want want = sl_control_take(c);

            if (want == SL_WANT_CANCEL)
                _exit(SL_EXIT_CANCELLED);
            if (want == SL_WANT_PREEMPT)
                _exit(SL_EXIT_PREEMPTED);
            if (write(counts[1], want == SL_WANT_CHECKPOINT ? "c" : ".", 1) < 0)
                _exit(1);
            usleep(10000);
        }
    }
    close(control[0]);
    close(counts[1]);
    *ret_control = control[1];
    *ret_counts = counts[0];
    return pid;
}

static ssize_t counted(int fd, char text[4096])
{
    ssize_t n = read(fd, text, 4095);

    text[n < 0 ? 0 : n] = 0;
    return n < 0 ? 0 : n;
}

/* Paused, it writes a checkpoint, does nothing more, outlives its deadline, and goes on when told. */
static void a_paused_child_outlives_its_deadline(void **state)
{
    static const struct {
        const char *cmd;
        int status;
    } ends[] = {{"cancel", SL_EXIT_CANCELLED}, {"preempt", SL_EXIT_PREEMPTED}, {NULL, SL_EXIT_ABANDONED}};
    char text[4096];

    (void)state;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        int control, counts, status;
        pid_t pid = counting_child(&control, &counts);

        command(control, "deadline", sl_boot_us() + 400000);
        usleep(100000);
        command(control, "pause", 0);
        usleep(150000);
        assert_true(counted(counts, text) > 0);
        assert_string_equal(strchr(text, 'c'), "c"); /* the checkpoint is the last it did */
        usleep(500000);                             /* the deadline is over */
        assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
        assert_int_equal(counted(counts, text), 0);
        command(control, "deadline", sl_boot_us() + 5000000);
        command(control, "resume", 0);
        usleep(300000);
        assert_true(counted(counts, text) > 5);
        assert_null(strchr(text, 'c'));
        command(control, "pause", 0); /* and a second time, out of which it is called or left */
        usleep(150000);
        if (ends[i].cmd)
            command(control, ends[i].cmd, 0);
        else
            close(control);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), ends[i].status);
        if (ends[i].cmd)
            close(control);
        close(counts);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_error_wins_and_is_wrapped),
        cmocka_unit_test(buffer_keeps_its_maximum),
        cmocka_unit_test(files_are_whole_or_absent),
        cmocka_unit_test(sha256_matches_fips_vectors),
        cmocka_unit_test(json_errors_name_the_line),
        cmocka_unit_test(json_has_a_depth_and_integers_of_both_forms),
        cmocka_unit_test(cut_messages_stay_utf8),
        cmocka_unit_test(wire_survives_pieces_and_rubbish),
        cmocka_unit_test(loop_serves_all_kinds),
        cmocka_unit_test(spawn_reports_a_missing_program),
        cmocka_unit_test(a_child_outlives_neither_pipe_nor_deadline),
        cmocka_unit_test(a_paused_child_outlives_its_deadline),
    };
    int failed;

    if (!mkdtemp(dir))
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    sl_rmtree(dir, NULL);
    return failed ? 1 : 0;
}
