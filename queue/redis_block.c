#include "base/clock.h"
#include "queue/redis.h"
#include "queue/redis_link.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sl_redis {
    struct sl_link *link;
};

int sl_redis_new(const struct sl_redis_url *url, struct sl_redis **ret_redis, struct sl_err *err)
{
    struct sl_redis *r = calloc(1, sizeof *r);
    int rc;

    if (!r)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    rc = sl_link_new(url, &r->link, err);
    if (rc)
        free(r);
    else
        *ret_redis = r;
    return rc;
}

void sl_redis_free(struct sl_redis *r)
{
    if (!r)
        return;
    sl_link_free(r->link);
    free(r);
}

/* Waits for the socket, and lets the link work. */
static int step(struct sl_redis *r, int64_t deadline_us, struct sl_err *err)
{
    for (;;) {
        int64_t left_us = deadline_us - sl_boot_us();
        struct pollfd p = {.fd = sl_link_fd(r->link), .events = (short)sl_link_wants(r->link)};
        int n = poll(&p, 1, left_us > 0 ? (int)(left_us / 1000) + 1 : 0);
        if (n > 0)
            return sl_link_step(r->link, err);
        if (n < 0 && errno != EINTR)
            return sl_err_set(err, SL_RETRY, "poll: %s", strerror(errno));
        if (n == 0 && left_us <= 0)
            return sl_link_late(r->link, err);
    }
}

static int connect_now(struct sl_redis *r, int64_t deadline_us, struct sl_err *err)
{
    int rc = SL_LINK_REDIAL;

    while (rc == SL_LINK_REDIAL || (!rc && !sl_link_up(r->link)))
        rc = rc ? sl_link_dial(r->link, err) : step(r, deadline_us, err);
    return rc;
}

static int next_reply(struct sl_redis *r, int64_t deadline_us, redisReply **ret_reply,
                      struct sl_err *err)
{
    redisReply *reply = NULL;
    int rc = sl_link_reply(r->link, &reply, err);

    while (!rc && !reply) {
        rc = step(r, deadline_us, err);
        if (!rc)
            rc = sl_link_reply(r->link, &reply, err);
    }
    if (!rc)
        *ret_reply = reply;
    return rc;
}

/* What follows a command in the same breath: WAIT only counts on the connection that wrote. */
struct sync {
    int replicas;
    int64_t wait_ms;
    int synced;
};

static int send_sync(struct sl_redis *r, const struct sync *sync, struct sl_err *err)
{
    struct sl_cmd c;
    char *bytes;
    size_t len;
    int rc;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "WAIT");
    sl_cmd_add_int(&c, sync->replicas);
    sl_cmd_add_int(&c, sync->wait_ms);
    rc = sl_redis_format(&c, false, &bytes, &len, err);
    sl_cmd_release(&c);
    if (rc)
        return rc;
    rc = sl_link_send(r->link, bytes, len, err);
    redisFreeCommand(bytes);
    return rc;
}

static int exchange(struct sl_redis *r, const struct sl_cmd *c, bool whole_script,
                    int64_t deadline_us, struct sync *sync, redisReply **ret_reply,
                    struct sl_err *err)
{
    redisReply *reply = NULL, *count = NULL;
    char *bytes;
    size_t len;
    int rc = sl_redis_format(c, whole_script, &bytes, &len, err);

    if (rc)
        return rc;
    rc = sl_link_send(r->link, bytes, len, err);
    redisFreeCommand(bytes);
    if (!rc && sync)
        rc = send_sync(r, sync, err);
    if (!rc)
        rc = next_reply(r, deadline_us, &reply, err);
    if (!rc && sync)
        rc = next_reply(r, deadline_us, &count, err);
    if (!rc && count) {
        struct sl_err refused = SL_ERR_INIT;
        if (reply->type != REDIS_REPLY_ERROR && sl_redis_error(count, &refused))
            rc = sl_err_set(err, refused.code, "WAIT: %s", refused.msg);
        sync->synced = count->type == REDIS_REPLY_INTEGER ? (int)count->integer : 0;
    }
    if (count)
        freeReplyObject(count);
    if (!rc)
        *ret_reply = reply;
    else if (reply)
        freeReplyObject(reply);
    return rc;
}

/* On an error of the connection it has hung up. */
static int call_once(struct sl_redis *r, const struct sl_cmd *c, int64_t wait_us, struct sync *sync,
                     redisReply **ret_reply, struct sl_err *err)
{
    int64_t deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US;
    redisReply *reply = NULL;
    int rc = sl_link_up(r->link) ? 0 : connect_now(r, deadline_us, err);

    deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US + wait_us;
    if (!rc)
        rc = exchange(r, c, false, deadline_us, sync, &reply, err);
    if (!rc && c->script && sl_redis_error_is(reply, "NOSCRIPT")) {
        freeReplyObject(reply);
        reply = NULL;
        rc = exchange(r, c, true, deadline_us, sync, &reply, err);
    }
    if (rc) {
        sl_link_hang_up(r->link);
        return rc;
    }
    rc = sl_redis_error(reply, err);
    if (rc)
        freeReplyObject(reply);
    else
        *ret_reply = reply;
    return rc;
}

static int call(struct sl_redis *r, const struct sl_cmd *c, int64_t wait_us, struct sync *sync,
                redisReply **ret_reply, struct sl_err *err)
{
    int64_t until_us = sl_boot_us() + SL_REDIS_TIMEOUT_US, pause_us = SL_REDIS_BACKOFF_MIN_US;
    bool idle_before = sl_link_up(r->link); /* it may just have been closed while nobody used it */

    for (;; pause_us *= 2) {
        struct sl_err failed = SL_ERR_INIT;
        int rc = call_once(r, c, wait_us, sync, ret_reply, &failed);

        if (!rc)
            return 0;
        if (rc == SL_LINK_REDIAL)
            continue;
        if (rc != SL_RETRY || sl_link_up(r->link))
            return sl_err_set(err, rc, "%s", failed.msg);
        if (!idle_before) {
            if (!sl_link_again(r->link) || sl_boot_us() + pause_us > until_us)
                return sl_err_set(err, rc, "%s", failed.msg);
            usleep((useconds_t)pause_us);
        }
        idle_before = false;
    }
}

int sl_redis_call(struct sl_redis *r, const struct sl_cmd *c, int64_t wait_us,
                  redisReply **ret_reply, struct sl_err *err)
{
    return call(r, c, wait_us, NULL, ret_reply, err);
}

int sl_redis_call_synced(struct sl_redis *r, const struct sl_cmd *c, int replicas, int64_t wait_ms,
                         redisReply **ret_reply, int *ret_synced, struct sl_err *err)
{
    struct sync sync = {.replicas = replicas, .wait_ms = wait_ms};
    int rc = call(r, c, wait_ms * 1000, &sync, ret_reply, err);

    if (!rc)
        *ret_synced = sync.synced;
    return rc;
}
