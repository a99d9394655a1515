#include "base/buf.h"
#include "base/clock.h"
#include "queue/redis.h"
#include "queue/redis_wire.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum link_state { WAITING, CONNECTING, GREETING, UP };

struct pending {
    sl_redis_reply_fn *fn; /* NULL: a greeting's reply */
    void *arg;
    int64_t deadline_us;
    char
        *whole; /* for a script: the command with its text, should the server not know the digest */
    size_t whole_len;
    int64_t wait_us;
};

struct sl_redis_async {
    struct sl_loop *loop;
    struct sl_redis_url url;
    sl_redis_state_fn *state_fn;
    void *arg;
    enum link_state state;
    int fd;
    redisReader *reader;
    struct sl_buf out;
    struct pending pending[SL_REDIS_MAX_PENDING]; /* a ring */
    unsigned head, n_pending;
    int64_t backoff_us;
    unsigned turn;
    int retry_timer, watch_timer; /* -1: none */
    int64_t watch_us;             /* when watch_timer fires */
    bool wants_out;
};

static void start_connecting(struct sl_redis_async *r);

static struct pending *pending_at(struct sl_redis_async *r, unsigned i)
{
    return &r->pending[(r->head + i) % SL_REDIS_MAX_PENDING];
}

static void retry_due(void *arg)
{
    struct sl_redis_async *r = arg;

    r->retry_timer = -1;
    start_connecting(r);
}

static void close_link(struct sl_redis_async *r)
{
    if (r->fd >= 0) {
        sl_loop_fd_remove(r->loop, r->fd);
        close(r->fd);
    }
    r->fd = -1;
    if (r->reader)
        redisReaderFree(r->reader);
    r->reader = NULL;
    sl_buf_reset(&r->out);
    r->wants_out = false;
    sl_loop_timer_cancel(r->loop, r->watch_timer);
    r->watch_timer = -1;
}

static void fail_pending(struct sl_redis_async *r, const struct sl_err *why)
{
    while (r->n_pending) {
        struct pending p = *pending_at(r, 0);
        r->head = (r->head + 1) % SL_REDIS_MAX_PENDING;
        r->n_pending--;
        free(p.whole);
        if (p.fn)
            p.fn(p.arg, NULL, why);
    }
}

/* Everything that waited hears of it, then the owner, then a pause before the next try: between
 * half and all of the backoff, so that many agents do not return in step. */
static void go_down(struct sl_redis_async *r, const struct sl_err *why)
{
    int64_t pause_us = r->backoff_us / 2 + (int64_t)(random() % (r->backoff_us / 2 + 1));

    close_link(r);
    r->state = WAITING;
    fail_pending(r, why);
    r->backoff_us =
        r->backoff_us * 2 < SL_REDIS_BACKOFF_MAX_US ? r->backoff_us * 2 : SL_REDIS_BACKOFF_MAX_US;
    r->retry_timer = sl_loop_timer(r->loop, pause_us, retry_due, r, NULL);
    r->state_fn(r->arg, false, why);
}

/* ---- time limits: one timer, set for the reply that is due first
 * ---------------------------------------- */

static void watch_due(void *arg);

static void arm_watch(struct sl_redis_async *r)
{
    int64_t due_us;

    if (r->state == CONNECTING)
        due_us = sl_boot_us() + SL_REDIS_TIMEOUT_US;
    else if (r->n_pending)
        due_us = pending_at(r, 0)->deadline_us;
    else
        return; /* a timer that is set may fire for nothing: cheaper than setting one for each
                   command */
    if (r->watch_timer >= 0 && r->watch_us <= due_us)
        return;
    sl_loop_timer_cancel(r->loop, r->watch_timer);
    int64_t delay_us = due_us - sl_boot_us();
    r->watch_us = due_us;
    r->watch_timer = sl_loop_timer(r->loop, delay_us > 0 ? delay_us : 0, watch_due, r, NULL);
}

static void watch_due(void *arg)
{
    struct sl_redis_async *r = arg;
    struct sl_err err = SL_ERR_INIT;
    char where[400];
    bool late =
        r->state == CONNECTING || (r->n_pending && pending_at(r, 0)->deadline_us <= sl_boot_us());

    r->watch_timer = -1;
    if (!late) {
        arm_watch(r);
        return;
    }
    sl_redis_where(&r->url, where, sizeof where);
    sl_err_set(&err, SL_RETRY, "%s does not answer in time", where);
    go_down(r, &err);
}

/* ---- bytes out and in
 * ------------------------------------------------------------------------------------ */

static void want_out(struct sl_redis_async *r, bool on)
{
    if (r->wants_out == on)
        return;
    r->wants_out = on;
    sl_loop_fd_modify(r->loop, r->fd, on ? EPOLLIN | EPOLLOUT : EPOLLIN, NULL);
}

static int flush_out(struct sl_redis_async *r, struct sl_err *err)
{
    while (r->out.len) {
        ssize_t n = send(r->fd, r->out.p, r->out.len, MSG_NOSIGNAL);
        if (n > 0)
            sl_buf_consume(&r->out, (size_t)n);
        else if (n < 0 && errno == EINTR)
            continue;
        else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        else
            return sl_err_set(err, SL_RETRY, "the connection to Redis broke: %s", strerror(errno));
    }
    want_out(r, r->out.len > 0);
    return 0;
}

static int push(struct sl_redis_async *r, const struct sl_cmd *c, int64_t wait_us,
                sl_redis_reply_fn *fn, void *arg, struct sl_err *err)
{
    struct pending *p;
    char *bytes, *whole = NULL;
    size_t len, whole_len = 0;
    int rc;

    if (r->n_pending == SL_REDIS_MAX_PENDING)
        return sl_err_set(err, SL_RETRY, "%d Redis replies are awaited already",
                          SL_REDIS_MAX_PENDING);
    rc = sl_redis_format(c, false, &bytes, &len, err);
    if (rc)
        return rc;
    if (c->script)
        rc = sl_redis_format(c, true, &whole, &whole_len, err);
    if (!rc && sl_buf_add(&r->out, bytes, len))
        rc = sl_err_set(err, SL_NOMEM, "no room for more Redis commands on this connection");
    redisFreeCommand(bytes);
    if (rc) {
        free(whole);
        return rc;
    }
    p = pending_at(r, r->n_pending++);
    *p = (struct pending){.fn = fn,
                          .arg = arg,
                          .whole = whole,
                          .whole_len = whole_len,
                          .wait_us = wait_us,
                          .deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US + wait_us};
    return 0;
}

static void become_up(struct sl_redis_async *r)
{
    r->state = UP;
    r->state_fn(r->arg, true, NULL);
}

/* Returns a negative code when the connection must go down. */
static int handle_reply(struct sl_redis_async *r, const redisReply *reply, struct sl_err *err)
{
    struct sl_err failed = SL_ERR_INIT;
    struct pending p;

    if (!r->n_pending)
        return sl_err_set(err, SL_RETRY, "Redis sent a reply that nobody asked for");
    p = *pending_at(r, 0);
    r->head = (r->head + 1) % SL_REDIS_MAX_PENDING;
    r->n_pending--;
    if (p.whole && sl_redis_is_noscript(reply) && !sl_buf_add(&r->out, p.whole, p.whole_len)) {
        free(p.whole);
        p.whole = NULL;
        p.deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US + p.wait_us;
        *pending_at(r, r->n_pending++) = p;
        return flush_out(r, err);
    }
    free(p.whole);
    if (!p.fn) { /* AUTH or SELECT */
        if (sl_redis_error(reply, &failed))
            return sl_err_set(err, failed.code, "%s", failed.msg);
        if (r->state == GREETING && !r->n_pending)
            become_up(r);
        return 0;
    }
    r->backoff_us = SL_REDIS_BACKOFF_MIN_US; /* only now: a server may let us in and put us out again */
    if (sl_redis_error(reply, &failed))
        p.fn(p.arg, NULL, &failed);
    else
        p.fn(p.arg, reply, NULL);
    return 0;
}

static int read_replies(struct sl_redis_async *r, struct sl_err *err)
{
    char data[16384];
    ssize_t n = recv(r->fd, data, sizeof data, 0);

    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    if (n <= 0)
        return sl_err_set(err, SL_RETRY,
                          n ? "the connection to Redis broke: %s" : "Redis closed the connection",
                          strerror(errno));
    if (redisReaderFeed(r->reader, data, (size_t)n) != REDIS_OK)
        return sl_err_set(err, SL_NOMEM, "out of memory for a Redis reply");
    for (;;) {
        void *reply = NULL;
        if (redisReaderGetReply(r->reader, &reply) != REDIS_OK)
            return sl_err_set(err, SL_RETRY, "Redis sent what is not its protocol: %s",
                              r->reader->errstr);
        if (!reply)
            return 0;
        int rc = handle_reply(r, reply, err);
        freeReplyObject(reply);
        if (rc)
            return rc;
    }
}

/* ---- connecting
 * ------------------------------------------------------------------------------------------ */

static int greet(struct sl_redis_async *r, struct sl_err *err)
{
    struct sl_cmd hello[2];
    int n, rc = sl_redis_socket_result(&r->url, r->fd, err);

    if (rc)
        return rc;
    r->state = GREETING;
    sl_loop_timer_cancel(r->loop, r->watch_timer);
    r->watch_timer = -1;
    n = sl_redis_greeting(&r->url, hello);
    for (int i = 0; i < n; i++) {
        if (!rc)
            rc = push(r, &hello[i], 0, NULL, NULL, err);
        sl_cmd_release(&hello[i]);
    }
    if (rc)
        return rc;
    rc = flush_out(r, err);
    if (!rc && !n)
        become_up(r);
    arm_watch(r);
    return rc;
}

static void on_socket(void *arg, int fd, uint32_t events)
{
    struct sl_redis_async *r = arg;
    struct sl_err err = SL_ERR_INIT;
    int rc = 0;

    (void)fd;
    if (r->state == CONNECTING)
        rc = greet(r, &err);
    else {
        if (events & EPOLLOUT)
            rc = flush_out(r, &err);
        if (!rc && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            rc = read_replies(r, &err);
        if (!rc)
            arm_watch(r);
    }
    if (rc)
        go_down(r, &err);
}

static void start_connecting(struct sl_redis_async *r)
{
    struct sl_err err = SL_ERR_INIT;
    int rc = 0;

    r->fd = sl_redis_socket(&r->url, r->turn++, &err);
    if (r->fd < 0)
        rc = r->fd;
    else if (!(r->reader = redisReaderCreate()))
        rc = sl_err_set(&err, SL_NOMEM, "out of memory");
    else
        rc = sl_loop_fd(r->loop, r->fd, EPOLLIN | EPOLLOUT, on_socket, r, &err);
    if (rc) {
        go_down(r, &err);
        return;
    }
    r->wants_out = true;
    r->state = CONNECTING;
    arm_watch(r);
}

int sl_redis_async_new(struct sl_loop *loop, const struct sl_redis_url *url, sl_redis_state_fn *fn,
                       void *arg, struct sl_redis_async **ret_redis, struct sl_err *err)
{
    struct sl_redis_async *r = calloc(1, sizeof *r);

    if (!r)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    r->loop = loop;
    r->url = *url;
    r->state_fn = fn;
    r->arg = arg;
    r->fd = r->watch_timer = -1;
    r->backoff_us = SL_REDIS_BACKOFF_MIN_US;
    sl_buf_init(&r->out, SL_REDIS_OUT_MAX);
    srandom((unsigned)sl_boot_us() ^ (unsigned)getpid());
    r->retry_timer = sl_loop_timer(loop, 0, retry_due, r, err);
    if (r->retry_timer < 0) {
        int rc = r->retry_timer;
        free(r);
        return rc;
    }
    *ret_redis = r;
    return 0;
}

void sl_redis_async_free(struct sl_redis_async *r)
{
    if (!r)
        return;
    close_link(r);
    sl_loop_timer_cancel(r->loop, r->retry_timer);
    r->state = WAITING;
    fail_pending(r, &(struct sl_err){SL_RETRY, "the connection to Redis was closed"});
    sl_buf_release(&r->out);
    free(r);
}

bool sl_redis_async_up(const struct sl_redis_async *r)
{
    return r->state == UP;
}

int sl_redis_async_call(struct sl_redis_async *r, const struct sl_cmd *c, int64_t wait_us,
                        sl_redis_reply_fn *fn, void *arg, struct sl_err *err)
{
    int rc;

    if (r->state != UP)
        return sl_err_set(err, SL_RETRY, "not connected to Redis");
    rc = push(r, c, wait_us, fn, arg, err);
    if (rc)
        return rc;
    /* A send that fails shows up on the socket as well: the loop takes the connection down, from
     * its own stack. */
    flush_out(r, NULL);
    arm_watch(r);
    return 0;
}
