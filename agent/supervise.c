#include "agent/supervise.h"
#include "base/buf.h"
#include "base/proc.h"
#include "base/wire.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ARGS 32

struct sl_child {
    struct sl_loop *loop;
    struct sl_child_owner owner;
    pid_t pid;                            /* 0: reaped */
    int events_fd, output_fd, control_fd; /* -1: closed */
    struct sl_buf events, output;
};

static void close_fd(struct sl_child *c, int *fd)
{
    if (*fd < 0)
        return;
    sl_loop_fd_remove(c->loop, *fd);
    close(*fd);
    *fd = -1;
}

static void free_child(struct sl_child *c)
{
    close_fd(c, &c->events_fd);
    close_fd(c, &c->output_fd);
    if (c->control_fd >= 0)
        close(c->control_fd);
    sl_buf_release(&c->events);
    sl_buf_release(&c->output);
    free(c);
}

static void take_events(struct sl_child *c)
{
    json_t *event;

    while ((event = sl_wire_next(&c->events, NULL)) != NULL) {
        c->owner.event(c->owner.arg, c, event);
        json_decref(event);
    }
}

static void take_lines(struct sl_child *c, bool ended)
{
    char line[SL_CHILD_OUTPUT_LINE_MAX + 1];

    for (;;) {
        char *newline = memchr(c->output.p, '\n', c->output.len);
        size_t len = newline ? (size_t)(newline - c->output.p) : c->output.len;
        if (!newline && len < SL_CHILD_OUTPUT_LINE_MAX && !(ended && len))
            return;
        size_t shown = len < SL_CHILD_OUTPUT_LINE_MAX ? len : SL_CHILD_OUTPUT_LINE_MAX;
        memcpy(line, c->output.p, shown);
        line[shown] = 0;
        sl_buf_consume(&c->output, newline ? len + 1 : len);
        if (shown)
            c->owner.output(c->owner.arg, c, line);
    }
}

/* Returns false at the end of the pipe or when there is nothing more now. */
static bool read_some(struct sl_child *c, int *fd, struct sl_buf *buf)
{
    char data[16384];
    ssize_t n;

    if (*fd < 0)
        return false;
    n = read(*fd, data, sizeof data);
    if (n > 0) {
        /* A buffer that is full holds no whole line: what it has is not worth keeping. */
        if (sl_buf_add(buf, data, (size_t)n))
            sl_buf_reset(buf);
        return true;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    close_fd(c, fd);
    return false;
}

static void on_events(void *arg, int fd, uint32_t events)
{
    struct sl_child *c = arg;

    (void)fd;
    (void)events;
    if (read_some(c, &c->events_fd, &c->events))
        take_events(c);
}

static void on_output(void *arg, int fd, uint32_t events)
{
    struct sl_child *c = arg;

    (void)fd;
    (void)events;
    if (read_some(c, &c->output_fd, &c->output))
        take_lines(c, false);
}

static void on_exit_status(void *arg, pid_t pid, int status)
{
    struct sl_child *c = arg;

    kill(-pid, SIGKILL); /* what it may have left behind in its session */
    c->pid = 0;
    while (read_some(c, &c->events_fd, &c->events))
        take_events(c);
    while (read_some(c, &c->output_fd, &c->output))
        take_lines(c, false);
    take_lines(c, true);
    c->owner.exited(c->owner.arg, c, status);
    free_child(c);
}

static int watch(struct sl_child *c, struct sl_err *err)
{
    int rc = sl_loop_fd(c->loop, c->events_fd, EPOLLIN, on_events, c, err);

    if (!rc)
        rc = sl_loop_fd(c->loop, c->output_fd, EPOLLIN, on_output, c, err);
    if (!rc)
        rc = sl_loop_child(c->loop, c->pid, on_exit_status, c, err);
    return rc;
}

int sl_child_start(struct sl_loop *loop, const char *const *argv, const char *const *envp,
                   const char *cwd, const struct sl_child_owner *owner, struct sl_child **ret_child,
                   struct sl_err *err)
{
    const char *args[MAX_ARGS + 5];
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}}, n = 0, rc = 0;
    enum { EVENTS, OUTPUT, CONTROL };
    struct sl_child *c;

    while (n < MAX_ARGS && argv[n]) {
        args[n] = argv[n];
        n++;
    }
    memcpy(args + n, (const char *[]){"--events-fd", "3", "--control-fd", "4", NULL},
           5 * sizeof *args);
    c = calloc(1, sizeof *c);
    if (!c)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    c->loop = loop;
    c->owner = *owner;
    sl_buf_init(&c->events, 2 * SL_WIRE_LINE_MAX);
    sl_buf_init(&c->output, 16 * SL_CHILD_OUTPUT_LINE_MAX);
    for (int i = 0; i < 3 && !rc; i++)
        if (pipe2(pipes[i], O_CLOEXEC))
            rc = sl_err_errno(err, "making a pipe to start %s", argv[0]);
    c->events_fd = pipes[EVENTS][0];
    c->output_fd = pipes[OUTPUT][0];
    c->control_fd = pipes[CONTROL][1];
    if (!rc) {
        struct sl_spawn s = {
            .argv = args,
            .envp = envp,
            .cwd = cwd,
            .n_fds = 5,
            .fds = {-1, pipes[OUTPUT][1], pipes[OUTPUT][1], pipes[EVENTS][1], pipes[CONTROL][0]}};
        fcntl(c->events_fd, F_SETFL, O_NONBLOCK);
        fcntl(c->output_fd, F_SETFL, O_NONBLOCK);
        fcntl(c->control_fd, F_SETFL, O_NONBLOCK);
        rc = sl_spawn(&s, &c->pid, err);
    }
    for (int i = 0; i < 2; i++)
        if (pipes[i][1] >= 0)
            close(pipes[i][1]);
    if (pipes[CONTROL][0] >= 0)
        close(pipes[CONTROL][0]);
    if (!rc && (rc = watch(c, err)) != 0) {
        kill(-c->pid, SIGKILL);
        waitpid(c->pid, NULL, 0);
    }
    if (rc) {
        free_child(c);
        return rc;
    }
    *ret_child = c;
    return 0;
}

static void send_command(struct sl_child *c, json_t *cmd_stolen)
{
    if (c && c->pid && c->control_fd >= 0 && cmd_stolen) {
        char *text = json_dumps(cmd_stolen, JSON_COMPACT);
        struct sl_buf line;

        sl_buf_init(&line, 4096);
        /* One write of less than PIPE_BUF: whole or not at all. A full pipe means that nobody
         * reads. */
        if (text && !sl_buf_addf(&line, "%s\n", text) &&
            write(c->control_fd, line.p, line.len) < 0 && errno == EPIPE) {
            close(c->control_fd);
            c->control_fd = -1;
        }
        sl_buf_release(&line);
        free(text);
    }
    json_decref(cmd_stolen);
}

void sl_child_deadline(struct sl_child *c, int64_t boot_us)
{
    send_command(c, json_pack("{s:s, s:I}", "cmd", "deadline", "boot_us", (json_int_t)boot_us));
}

void sl_child_command(struct sl_child *c, const char *cmd)
{
    send_command(c, json_pack("{s:s}", "cmd", cmd));
}

pid_t sl_child_pid(const struct sl_child *c)
{
    return c->pid;
}

void sl_child_kill(struct sl_child *c)
{
    if (c && c->pid)
        kill(-c->pid, SIGKILL);
}

void sl_child_free(struct sl_child *c)
{
    if (!c)
        return;
    if (c->pid) {
        sl_child_kill(c);
        waitpid(c->pid, NULL, 0);
    }
    free_child(c);
}
