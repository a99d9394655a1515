#include "base/clock.h"
#include "queue/redis.h"
#include "queue/redis_link.h"
#include "queue/redis_watch.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum state { WAITING, DIALING, UP };

struct pending {
    sl_redis_reply_fn *fn;
    void *arg;
    int64_t deadline_us, wait_us;
    char *whole; /* for a script: the command with its text, should the server not know the digest */
    size_t whole_len;
};

struct sl_redis_async {
    struct sl_loop *loop;
    struct sl_link *link;
    struct sl_redis_watch *watch; /* with Sentinels; else NULL */
    sl_redis_state_fn *state_fn;
    void *arg;
    enum state state;
    int fd, wants;                                /* as the loop watches them; -1: not */
    struct pending pending[SL_REDIS_MAX_PENDING]; /* a ring */
    unsigned head, n_pending;
    int64_t backoff_us, dialed_us;
    int retry_timer, watch_timer; /* -1: none */
    int64_t watch_us;             /* when watch_timer fires */
};

static void dial(struct sl_redis_async *r);

static struct pending *pending_at(struct sl_redis_async *r, unsigned i)
{
    return &r->pending[(r->head + i) % SL_REDIS_MAX_PENDING];
}

static struct pending take_pending(struct sl_redis_async *r)
{
    struct pending p = *pending_at(r, 0);

    r->head = (r->head + 1) % SL_REDIS_MAX_PENDING;
    r->n_pending--;
    return p;
}

static void retry_due(void *arg)
{
    struct sl_redis_async *r = arg;

    r->retry_timer = -1;
    dial(r);
}

static void hang_up(struct sl_redis_async *r)
{
    if (r->fd >= 0)
        sl_loop_fd_remove(r->loop, r->fd);
    r->fd = -1;
    sl_link_hang_up(r->link);
    sl_loop_timer_cancel(r->loop, r->watch_timer);
    r->watch_timer = -1;
}

static void fail_pending(struct sl_redis_async *r, const struct sl_err *why)
{
    while (r->n_pending) {
        struct pending p = take_pending(r);
        free(p.whole);
        p.fn(p.arg, NULL, why);
    }
}

/* Everything that waited hears of it, then the owner, then a pause before the next try: between
 * half and all of the backoff, so that many agents do not return in step. Nobody pauses who was told where
 * to go. */
static void go_down(struct sl_redis_async *r, int rc, const struct sl_err *why)
{
    static const struct sl_err moved = {SL_RETRY, "the Redis primary is another one now"};
    int64_t pause_us = r->backoff_us / 2 + (int64_t)(random() % (r->backoff_us / 2 + 1));
    bool was_dialing = r->state == DIALING;

    hang_up(r);
    if (rc == SL_LINK_REDIAL && was_dialing) {
        dial(r);
        return;
    }
    r->state = WAITING;
    if (rc == SL_LINK_REDIAL) {
        pause_us = 0;
        why = &moved;
    } else {
        r->backoff_us = r->backoff_us * 2 < SL_REDIS_BACKOFF_MAX_US ? r->backoff_us * 2
                                                                    : SL_REDIS_BACKOFF_MAX_US;
    }
    fail_pending(r, why);
    r->retry_timer = sl_loop_timer(r->loop, pause_us, retry_due, r, NULL);
    r->state_fn(r->arg, false, why);
}

/* ---- time limits: one timer, set for the reply that is due first
 * ---------------------------------------- */

static void watch_due(void *arg);

static int64_t due_us(struct sl_redis_async *r)
{
    if (r->state == DIALING)
        return r->dialed_us + SL_REDIS_TIMEOUT_US;
    return r->n_pending ? pending_at(r, 0)->deadline_us : INT64_MAX;
}

static void arm_watch(struct sl_redis_async *r)
{
    int64_t due = due_us(r);

    /* A timer that is set may fire for nothing: cheaper than setting one for each command. */
    if (due == INT64_MAX || (r->watch_timer >= 0 && r->watch_us <= due))
        return;
    sl_loop_timer_cancel(r->loop, r->watch_timer);
    r->watch_us = due;
    r->watch_timer = sl_loop_timer(r->loop, due - sl_boot_us(), watch_due, r, NULL);
}

static void watch_due(void *arg)
{
    struct sl_redis_async *r = arg;
    struct sl_err err = SL_ERR_INIT;

    r->watch_timer = -1;
    if (due_us(r) > sl_boot_us())
        arm_watch(r);
    else
        go_down(r, sl_link_late(r->link, &err), &err);
}

/* ---- commands out, replies in
 * ------------------------------------------------------------------------------------ */

static void watch_socket(struct sl_redis_async *r)
{
    int wants = sl_link_wants(r->link);

    if (r->wants != wants)
        sl_loop_fd_modify(r->loop, r->fd, (uint32_t)wants, NULL);
    r->wants = wants;
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
    if (!rc)
        rc = sl_link_send(r->link, bytes, len, err);
    redisFreeCommand(bytes);
    /* A send that fails shows up on the socket as well: the loop takes the connection down, from
     * its own stack, and the command's callback hears of it. */
    if (rc && rc != SL_RETRY) {
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

/* A callback may call again; r outlives it. */
static int handle_reply(struct sl_redis_async *r, const redisReply *reply, struct sl_err *err)
{
    struct sl_err failed = SL_ERR_INIT;
    struct pending p;

    if (!r->n_pending)
        return sl_err_set(err, SL_RETRY, "Redis sent a reply that nobody asked for");
    p = take_pending(r);
    if (p.whole && sl_redis_error_is(reply, "NOSCRIPT")) {
        int rc = sl_link_send(r->link, p.whole, p.whole_len, err);
        free(p.whole);
        p.whole = NULL;
        p.deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US + p.wait_us;
        *pending_at(r, r->n_pending++) = p;
        return rc;
    }
    free(p.whole);
    /* Only now: a server may let us in and put us out again. */
    r->backoff_us = SL_REDIS_BACKOFF_MIN_US;
    if (sl_redis_error(reply, &failed))
        p.fn(p.arg, NULL, &failed);
    else
        p.fn(p.arg, reply, NULL);
    return 0;
}

static int read_replies(struct sl_redis_async *r, struct sl_err *err)
{
    for (;;) {
        redisReply *reply = NULL;
        int rc = sl_link_reply(r->link, &reply, err);

        if (rc || !reply)
            return rc;
        rc = handle_reply(r, reply, err);
        freeReplyObject(reply);
        if (rc)
            return rc;
    }
}

static void on_socket(void *arg, int fd, uint32_t events)
{
    struct sl_redis_async *r = arg;
    struct sl_err err = SL_ERR_INIT;
    int rc = sl_link_step(r->link, &err);

    (void)fd;
    (void)events;
    if (!rc && r->state == DIALING && sl_link_up(r->link)) {
        r->state = UP;
        r->state_fn(r->arg, true, NULL);
    }
    /* Replies that came before a connection broke are still told. */
    if (r->state == UP) {
        int read = read_replies(r, &err);
        rc = rc ? rc : read;
    }
    if (rc) {
        go_down(r, rc, &err);
    } else {
        watch_socket(r);
        arm_watch(r);
    }
}

/* ---- connecting
 * ------------------------------------------------------------------------------------------ */

static void dial(struct sl_redis_async *r)
{
    struct sl_err err = SL_ERR_INIT;
    int rc = sl_link_dial(r->link, &err);

    r->state = DIALING;
    r->dialed_us = sl_boot_us();
    if (!rc) {
        r->wants = sl_link_wants(r->link);
        rc = sl_loop_fd(r->loop, sl_link_fd(r->link), (uint32_t)r->wants, on_socket, r, &err);
        if (!rc)
            r->fd = sl_link_fd(r->link);
    }
    if (rc)
        go_down(r, rc, &err);
    else
        arm_watch(r);
}

/* While nobody is connected, the next dial asks anyway. */
static void primary_switched(void *arg)
{
    struct sl_redis_async *r = arg;

    if (r->state == UP)
        go_down(r, SL_LINK_REDIAL, NULL);
}

int sl_redis_async_new(struct sl_loop *loop, const struct sl_redis_url *url, sl_redis_state_fn *fn,
                       void *arg, struct sl_redis_async **ret_redis, struct sl_err *err)
{
    struct sl_redis_async *r = calloc(1, sizeof *r);
    int rc;

    if (!r)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    r->loop = loop;
    r->state_fn = fn;
    r->arg = arg;
    r->fd = r->watch_timer = r->retry_timer = -1;
    r->backoff_us = SL_REDIS_BACKOFF_MIN_US;
    srandom((unsigned)sl_boot_us() ^ (unsigned)getpid());
    rc = sl_link_new(url, &r->link, err);
    if (!rc && url->primary[0])
        rc = sl_redis_watch_new(loop, url, primary_switched, r, &r->watch, err);
    if (!rc)
        rc = r->retry_timer = sl_loop_timer(loop, 0, retry_due, r, err);
    if (rc < 0) {
        sl_redis_watch_free(r->watch);
        sl_link_free(r->link);
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
    sl_redis_watch_free(r->watch);
    hang_up(r);
    sl_loop_timer_cancel(r->loop, r->retry_timer);
    r->state = WAITING;
    fail_pending(r, &(struct sl_err){SL_RETRY, "the connection to Redis was closed"});
    sl_link_free(r->link);
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
    watch_socket(r);
    arm_watch(r);
    return 0;
}
