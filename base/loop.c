#include "base/loop.h"
#include "base/clock.h"
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Timers are few (a handful a run): a flat array, scanned, is simpler than a heap and fast enough. */
struct timer {
    int64_t at_us;
    sl_timer_fn *fn; /* NULL: free */
    void *arg;
};

enum kind { FREE, DEAD, FD, SIGNALS, CHILD };

struct watch {
    enum kind kind;
    int fd;
    sl_fd_fn *fd_fn;
    sl_child_fn *child_fn;
    void *arg;
    pid_t pid;
};

struct sl_loop {
    int epoll, signal_fd;
    bool stop, dispatching;
    sigset_t signals;
    sl_signal_fn *signal_fn[NSIG];
    void *signal_arg[NSIG];
    struct watch watches[SL_LOOP_MAX_WATCHES];
    struct timer timers[SL_LOOP_MAX_WATCHES];
    int n_timers;
};

int sl_loop_new(struct sl_loop **ret_loop, struct sl_err *err)
{
    struct sl_loop *l = calloc(1, sizeof *l);

    if (!l)
        return sl_err_set(err, SL_NOMEM, "no memory for an event loop");
    l->signal_fd = -1;
    sigemptyset(&l->signals);
    signal(SIGCHLD, SIG_DFL); /* ignored (it is inherited), the kernel would keep no exit status */
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l->epoll < 0) {
        int rc = sl_err_errno(err, "creating an epoll descriptor");

        free(l);
        return rc;
    }
    *ret_loop = l;
    return 0;
}

void sl_loop_free(struct sl_loop *l)
{
    if (!l)
        return;
    for (int i = 0; i < SL_LOOP_MAX_WATCHES; i++)
        if (l->watches[i].kind == CHILD)
            close(l->watches[i].fd);
    if (l->signal_fd >= 0)
        close(l->signal_fd);
    close(l->epoll);
    free(l);
}

static int add_watch(struct sl_loop *l, int fd, uint32_t events, enum kind kind, int *ret_index,
                     struct sl_err *err)
{
    int i = 0;
    struct epoll_event ev = {.events = events};

    while (i < SL_LOOP_MAX_WATCHES && l->watches[i].kind != FREE)
        i++;
    if (i == SL_LOOP_MAX_WATCHES)
        return sl_err_set(err, SL_NOMEM, "more than %d descriptors in one loop", SL_LOOP_MAX_WATCHES);
    ev.data.u32 = (uint32_t)i;
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &ev))
        return sl_err_errno(err, "watching descriptor %d", fd);
    l->watches[i] = (struct watch){.kind = kind, .fd = fd};
    *ret_index = i;
    return 0;
}

static int find_fd(const struct sl_loop *l, int fd)
{
    for (int i = 0; i < SL_LOOP_MAX_WATCHES; i++)
        if (l->watches[i].kind == FD && l->watches[i].fd == fd)
            return i;
    return -1;
}

/* While events of one epoll_wait are handed out, a freed slot must not be reused: a stale event could reach the
 * new owner. It is DEAD until the round ends. */
static void drop_watch(struct sl_loop *l, int i)
{
    epoll_ctl(l->epoll, EPOLL_CTL_DEL, l->watches[i].fd, NULL);
    l->watches[i].kind = l->dispatching ? DEAD : FREE;
}

int sl_loop_fd(struct sl_loop *l, int fd, uint32_t events, sl_fd_fn *fn, void *arg, struct sl_err *err)
{
    int i, rc = add_watch(l, fd, events, FD, &i, err);

    if (rc)
        return rc;
    l->watches[i].fd_fn = fn;
    l->watches[i].arg = arg;
    return 0;
}

int sl_loop_fd_modify(struct sl_loop *l, int fd, uint32_t events, struct sl_err *err)
{
    int i = find_fd(l, fd);
    struct epoll_event ev = {.events = events};

    if (i < 0)
        return sl_err_set(err, SL_NOTFOUND, "descriptor %d is not watched", fd);
    ev.data.u32 = (uint32_t)i;
    if (epoll_ctl(l->epoll, EPOLL_CTL_MOD, fd, &ev))
        return sl_err_errno(err, "watching descriptor %d", fd);
    return 0;
}

void sl_loop_fd_remove(struct sl_loop *l, int fd)
{
    int i = find_fd(l, fd);

    if (i >= 0)
        drop_watch(l, i);
}

int sl_loop_timer(struct sl_loop *l, int64_t delay_us, sl_timer_fn *fn, void *arg, struct sl_err *err)
{
    int i = 0;

    while (i < l->n_timers && l->timers[i].fn)
        i++;
    if (i == SL_LOOP_MAX_WATCHES)
        return sl_err_set(err, SL_NOMEM, "more than %d timers in one loop", SL_LOOP_MAX_WATCHES);
    if (i == l->n_timers)
        l->n_timers++;
    l->timers[i] = (struct timer){sl_boot_us() + (delay_us > 0 ? delay_us : 0), fn, arg};
    return i;
}

void sl_loop_timer_cancel(struct sl_loop *l, int timer)
{
    if (timer >= 0 && timer < l->n_timers)
        l->timers[timer].fn = NULL;
}

static void take_signals(struct sl_loop *l)
{
    struct signalfd_siginfo info = {0};

    while (read(l->signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
        if (info.ssi_signo < NSIG && l->signal_fn[info.ssi_signo])
            l->signal_fn[info.ssi_signo](l->signal_arg[info.ssi_signo], (int)info.ssi_signo);
}

int sl_loop_signal(struct sl_loop *l, int signo, sl_signal_fn *fn, void *arg, struct sl_err *err)
{
    int i, rc, fd;

    l->signal_fn[signo] = fn;
    l->signal_arg[signo] = arg;
    sigaddset(&l->signals, signo);
    if (sigprocmask(SIG_BLOCK, &l->signals, NULL))
        return sl_err_errno(err, "blocking signal %d", signo);
    fd = signalfd(l->signal_fd, &l->signals, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        return sl_err_errno(err, "making a signal descriptor");
    if (l->signal_fd >= 0)
        return 0;
    l->signal_fd = fd;
    rc = add_watch(l, fd, EPOLLIN, SIGNALS, &i, err);
    return rc;
}

int sl_loop_child(struct sl_loop *l, pid_t pid, sl_child_fn *fn, void *arg, struct sl_err *err)
{
    int i, rc, fd = (int)syscall(SYS_pidfd_open, pid, 0);

    if (fd < 0)
        return sl_err_errno(err, "opening process %d", (int)pid);
    rc = add_watch(l, fd, EPOLLIN, CHILD, &i, err);
    if (rc) {
        close(fd);
        return rc;
    }
    l->watches[i].child_fn = fn;
    l->watches[i].arg = arg;
    l->watches[i].pid = pid;
    return 0;
}

static void dispatch(struct sl_loop *l, int i, uint32_t events)
{
    struct watch w = l->watches[i];
    int status = 0;

    if (w.kind == FD) {
        w.fd_fn(w.arg, w.fd, events);
    } else if (w.kind == SIGNALS) {
        take_signals(l);
    } else if (w.kind == CHILD) {
        if (waitpid(w.pid, &status, WNOHANG) != w.pid)
            return;
        drop_watch(l, i);
        close(w.fd);
        w.child_fn(w.arg, w.pid, status);
    }
}

static int64_t next_timer_us(const struct sl_loop *l)
{
    int64_t at = INT64_MAX;

    for (int i = 0; i < l->n_timers; i++)
        if (l->timers[i].fn && l->timers[i].at_us < at)
            at = l->timers[i].at_us;
    return at;
}

static void fire_timers(struct sl_loop *l)
{
    int64_t now = sl_boot_us();

    for (int i = 0; i < l->n_timers; i++) {
        struct timer t = l->timers[i];

        if (!t.fn || t.at_us > now)
            continue;
        l->timers[i].fn = NULL;
        t.fn(t.arg);
    }
}

int sl_loop_run(struct sl_loop *l, struct sl_err *err)
{
    struct epoll_event events[64];

    l->stop = false;
    while (!l->stop) {
        int64_t at = next_timer_us(l), wait_us = at == INT64_MAX ? -1 : at - sl_boot_us();
        int ms = at == INT64_MAX ? -1 : wait_us <= 0 ? 0 : (int)((wait_us + 999) / 1000);
        int n = epoll_wait(l->epoll, events, 64, ms);

        if (n < 0 && errno != EINTR)
            return sl_err_errno(err, "waiting for events");
        l->dispatching = true;
        for (int i = 0; i < n && !l->stop; i++)
            dispatch(l, (int)events[i].data.u32, events[i].events);
        l->dispatching = false;
        for (int i = 0; i < SL_LOOP_MAX_WATCHES; i++)
            if (l->watches[i].kind == DEAD)
                l->watches[i].kind = FREE;
        if (!l->stop)
            fire_timers(l);
    }
    return 0;
}

void sl_loop_stop(struct sl_loop *l)
{
    l->stop = true;
}
