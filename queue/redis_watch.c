#include "queue/redis_watch.h"
#include "queue/redis_link.h"
#include <stdlib.h>

struct sl_redis_watch {
    struct sl_loop *loop;
    struct sl_link *link;
    sl_redis_switched_fn *fn;
    void *arg;
    int fd, wants; /* as the loop watches them; -1: not */
    int timer;     /* to dial, or to give up dialling; -1: none */
};

static void dial(void *arg);

static void again(struct sl_redis_watch *w)
{
    if (w->fd >= 0)
        sl_loop_fd_remove(w->loop, w->fd);
    w->fd = -1;
    sl_link_hang_up(w->link);
    sl_loop_timer_cancel(w->loop, w->timer);
    w->timer = sl_loop_timer(w->loop, SL_REDIS_WATCH_PAUSE_US, dial, w, NULL);
}

static void late(void *arg)
{
    struct sl_redis_watch *w = arg;

    w->timer = -1;
    again(w);
}

static void on_socket(void *arg, int fd, uint32_t events)
{
    struct sl_redis_watch *w = arg;
    redisReply *message = NULL;
    bool switched = false;
    int rc = sl_link_step(w->link, NULL);

    (void)fd;
    (void)events;
    while (!rc && sl_link_up(w->link)) {
        rc = sl_link_reply(w->link, &message, NULL);
        if (rc || !message)
            break;
        switched |= sl_link_switched(w->link, message);
        freeReplyObject(message);
        message = NULL;
    }
    if (rc) {
        again(w);
    } else {
        if (sl_link_up(w->link)) {
            sl_loop_timer_cancel(w->loop, w->timer);
            w->timer = -1;
        }
        if (w->wants != sl_link_wants(w->link)) {
            w->wants = sl_link_wants(w->link);
            sl_loop_fd_modify(w->loop, w->fd, (uint32_t)w->wants, NULL);
        }
    }
    if (switched)
        w->fn(w->arg);
}

static void dial(void *arg)
{
    struct sl_redis_watch *w = arg;

    w->timer = -1;
    if (sl_link_dial(w->link, NULL)) {
        again(w);
        return;
    }
    w->wants = sl_link_wants(w->link);
    if (sl_loop_fd(w->loop, sl_link_fd(w->link), (uint32_t)w->wants, on_socket, w, NULL)) {
        again(w);
        return;
    }
    w->fd = sl_link_fd(w->link);
    w->timer = sl_loop_timer(w->loop, SL_REDIS_TIMEOUT_US, late, w, NULL);
}

int sl_redis_watch_new(struct sl_loop *loop, const struct sl_redis_url *url, sl_redis_switched_fn *fn, void *arg,
                       struct sl_redis_watch **ret_watch, struct sl_err *err)
{
    struct sl_redis_watch *w = calloc(1, sizeof *w);
    int rc;

    if (!w)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    *w = (struct sl_redis_watch){.loop = loop, .fn = fn, .arg = arg, .fd = -1, .timer = -1};
    rc = sl_link_new_watch(url, &w->link, err);
    if (!rc) {
        w->timer = sl_loop_timer(loop, 0, dial, w, err);
        rc = w->timer < 0 ? w->timer : 0;
    }
    if (rc)
        sl_redis_watch_free(w);
    else
        *ret_watch = w;
    return rc;
}

void sl_redis_watch_free(struct sl_redis_watch *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        sl_loop_fd_remove(w->loop, w->fd);
    sl_loop_timer_cancel(w->loop, w->timer);
    sl_link_free(w->link);
    free(w);
}
