#include "base/wire.h"
#include "base/clock.h"
#include "base/json.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int sl_wire_send(int fd, json_t *event, struct sl_err *err)
{
    char *text;
    size_t len;
    int rc = 0;

    if (fd < 0) {
        json_decref(event);
        return 0;
    }
    text = event ? sl_json_dump(event) : NULL;
    json_decref(event);
    if (!text)
        return sl_err_set(err, SL_NOMEM, "no memory for an event");
    len = strlen(text);
    if (len >= SL_WIRE_LINE_MAX) {
        free(text);
        return sl_err_set(err, SL_SPEC, "event of %zu bytes is longer than %u", len, SL_WIRE_LINE_MAX);
    }
    text[len] = '\n'; /* replaces the NUL: the text is sent by length */
    for (size_t done = 0; done < len + 1 && !rc;) {
        ssize_t n = write(fd, text + done, len + 1 - done);

        if (n >= 0)
            done += (size_t)n;
        else if (errno == EAGAIN)
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 1000);
        else if (errno != EINTR)
            rc = sl_err_errno(err, "sending an event");
    }
    free(text);
    return rc;
}

json_t *sl_wire_next(struct sl_buf *buf, int *bad)
{
    for (;;) {
        char *end = memchr(buf->p, '\n', buf->len);
        json_t *json = NULL;

        if (!end) {
            if (buf->len >= SL_WIRE_LINE_MAX) { /* no line may be that long: drop it */
                sl_buf_consume(buf, buf->len);
                if (bad)
                    ++*bad;
            }
            return NULL;
        }
        if (sl_json_parse(buf->p, (size_t)(end - buf->p), "event", &json, NULL) == 0 &&
            !json_is_object(json)) {
            json_decref(json);
            json = NULL;
        }
        sl_buf_consume(buf, (size_t)(end - buf->p) + 1);
        if (json)
            return json;
        if (bad)
            ++*bad;
    }
}

/* ---- the child's side ---- */

#define PAUSE_LOOK_MS 20 /* how often a paused child looks whether it may go on */

struct sl_control {
    int fd, stop_fd; /* stop_fd: an eventfd that ends the thread */
    pthread_t thread;
    atomic_bool checkpoint, preempt, cancel, pause;
    _Atomic int64_t deadline_us, paused_us; /* paused_us: since when the main thread keeps a pause; 0: it does not */
};

static atomic_int signals_seen;

static void on_signal(int signo)
{
    (void)signo;
    if (atomic_fetch_add(&signals_seen, 1) > 0)
        _exit(SL_EXIT_ABANDONED);
}

static void obey(struct sl_control *c, const json_t *cmd)
{
    const char *what = sl_json_str(cmd, "cmd", "");

    if (!strcmp(what, "checkpoint"))
        atomic_store(&c->checkpoint, true);
    else if (!strcmp(what, "preempt"))
        atomic_store(&c->preempt, true);
    else if (!strcmp(what, "cancel"))
        atomic_store(&c->cancel, true);
    else if (!strcmp(what, "pause")) {
        atomic_store(&c->checkpoint, true);
        atomic_store(&c->pause, true);
    } else if (!strcmp(what, "resume"))
        atomic_store(&c->pause, false);
    else if (!strcmp(what, "deadline"))
        atomic_store(&c->deadline_us, sl_json_int(cmd, "boot_us", 0));
}

/* _exit, not exit: the main thread may be anywhere, and half-written files carry temporary names. */
static void *listen_thread(void *arg)
{
    struct sl_control *c = arg;
    struct sl_buf buf;
    json_t *cmd;

    sl_buf_init(&buf, SL_WIRE_LINE_MAX);
    for (;;) {
        struct pollfd p[2] = {{.fd = c->fd, .events = POLLIN}, {.fd = c->stop_fd, .events = POLLIN}};
        int64_t paused = atomic_load(&c->paused_us);
        int64_t deadline = paused ? paused + SL_WIRE_PAUSE_MAX_US : atomic_load(&c->deadline_us);
        int64_t left_ms = deadline ? (deadline - sl_boot_us()) / 1000 : 500;

        if (deadline && left_ms <= 0)
            _exit(SL_EXIT_ABANDONED);
        if (poll(p, 2, left_ms > 500 ? 500 : (int)left_ms + 1) > 0) {
            if (p[1].revents)
                break;
            char *to = sl_buf_reserve(&buf, 4096);
            ssize_t n = to ? read(c->fd, to, 4096) : 0;

            if (n < 0 && (errno == EINTR || errno == EAGAIN))
                continue;
            if (n <= 0)
                _exit(SL_EXIT_ABANDONED);
            buf.len += (size_t)n;
            buf.p[buf.len] = '\0';
            while ((cmd = sl_wire_next(&buf, NULL)) != NULL) {
                obey(c, cmd);
                json_decref(cmd);
            }
        }
    }
    sl_buf_release(&buf);
    return NULL;
}

int sl_control_new(int control_fd, struct sl_control **ret_control, struct sl_err *err)
{
    struct sl_control *c = calloc(1, sizeof *c);
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    int e;

    if (!c)
        return sl_err_set(err, SL_NOMEM, "no memory for the control channel");
    c->fd = control_fd;
    c->stop_fd = -1;
    if (control_fd >= 0 && (c->stop_fd = eventfd(0, EFD_CLOEXEC)) < 0) {
        int rc = sl_err_errno(err, "making an eventfd");

        free(c);
        return rc;
    }
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (control_fd >= 0 && (e = pthread_create(&c->thread, NULL, listen_thread, c)) != 0) {
        close(c->stop_fd);
        free(c);
        errno = e;
        return sl_err_errno(err, "starting the control thread");
    }
    *ret_control = c;
    return 0;
}

void sl_control_free(struct sl_control *c)
{
    if (!c)
        return;
    if (c->fd >= 0) {
        eventfd_write(c->stop_fd, 1);
        pthread_join(c->thread, NULL);
        close(c->stop_fd);
    }
    free(c);
}

enum sl_wire_want sl_control_take(struct sl_control *c)
{
    enum sl_wire_want want;

    for (;;) {
        want = atomic_load(&c->cancel)                                       ? SL_WANT_CANCEL
               : atomic_load(&c->preempt) || atomic_load(&signals_seen) > 0 ? SL_WANT_PREEMPT
               : atomic_exchange(&c->checkpoint, false)                     ? SL_WANT_CHECKPOINT
                                                                            : SL_WANT_NOTHING;
        if (want != SL_WANT_NOTHING || !atomic_load(&c->pause))
            break;
        if (!atomic_load(&c->paused_us))
            atomic_store(&c->paused_us, sl_boot_us());
        poll(NULL, 0, PAUSE_LOOK_MS); /* a signal ends it at once */
    }
    atomic_store(&c->paused_us, 0);
    return want;
}
