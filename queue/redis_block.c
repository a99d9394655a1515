#include "base/clock.h"
#include "queue/redis.h"
#include "queue/redis_wire.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct sl_redis {
    struct sl_redis_url url;
    int fd; /* -1: not connected */
    redisReader *reader;
    unsigned turn;
};

int sl_redis_new(const struct sl_redis_url *url, struct sl_redis **ret_redis, struct sl_err *err)
{
    struct sl_redis *r = calloc(1, sizeof *r);

    if (!r)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    r->url = *url;
    r->fd = -1;
    *ret_redis = r;
    return 0;
}

static void hang_up(struct sl_redis *r)
{
    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
    if (r->reader)
        redisReaderFree(r->reader);
    r->reader = NULL;
}

void sl_redis_free(struct sl_redis *r)
{
    if (!r)
        return;
    hang_up(r);
    free(r);
}

static int wait_fd(struct sl_redis *r, short events, int64_t deadline_us, struct sl_err *err)
{
    char where[400];

    for (;;) {
        int64_t left_us = deadline_us - sl_boot_us();
        struct pollfd p = {.fd = r->fd, .events = events};
        int n = poll(&p, 1, left_us > 0 ? (int)(left_us / 1000) + 1 : 0);
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return sl_err_set(err, SL_RETRY, "poll: %s", strerror(errno));
        if (n == 0 && left_us <= 0) {
            sl_redis_where(&r->url, where, sizeof where);
            return sl_err_set(err, SL_RETRY, "%s does not answer in time", where);
        }
    }
}

static int send_all(struct sl_redis *r, const char *bytes, size_t len, int64_t deadline_us,
                    struct sl_err *err)
{
    while (len) {
        ssize_t n = send(r->fd, bytes, len, MSG_NOSIGNAL);
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            int rc = wait_fd(r, POLLOUT, deadline_us, err);
            if (rc)
                return rc;
        } else {
            return sl_err_set(err, SL_RETRY, "the connection to Redis broke: %s", strerror(errno));
        }
    }
    return 0;
}

static int read_reply(struct sl_redis *r, int64_t deadline_us, redisReply **ret_reply,
                      struct sl_err *err)
{
    char data[16384];

    for (;;) {
        void *reply = NULL;
        if (redisReaderGetReply(r->reader, &reply) != REDIS_OK)
            return sl_err_set(err, SL_RETRY, "Redis sent what is not its protocol: %s",
                              r->reader->errstr);
        if (reply) {
            *ret_reply = reply;
            return 0;
        }
        ssize_t n = recv(r->fd, data, sizeof data, 0);
        if (n > 0) {
            if (redisReaderFeed(r->reader, data, (size_t)n) != REDIS_OK)
                return sl_err_set(err, SL_NOMEM, "out of memory for a Redis reply");
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            int rc = wait_fd(r, POLLIN, deadline_us, err);
            if (rc)
                return rc;
        } else {
            return sl_err_set(err, SL_RETRY, "Redis closed the connection");
        }
    }
}

static int exchange(struct sl_redis *r, const struct sl_cmd *c, bool whole_script,
                    int64_t deadline_us, redisReply **ret_reply, struct sl_err *err)
{
    char *bytes;
    size_t len;
    int rc = sl_redis_format(c, whole_script, &bytes, &len, err);

    if (rc)
        return rc;
    rc = send_all(r, bytes, len, deadline_us, err);
    redisFreeCommand(bytes);
    return rc ? rc : read_reply(r, deadline_us, ret_reply, err);
}

static int hook_up(struct sl_redis *r, struct sl_err *err)
{
    int64_t deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US;
    struct sl_cmd hello[2];
    int fd = sl_redis_socket(&r->url, r->turn++, err), rc = 0;

    if (fd < 0)
        return fd;
    r->fd = fd;
    r->reader = redisReaderCreate();
    if (!r->reader) {
        hang_up(r);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    rc = wait_fd(r, POLLOUT, deadline_us, err);
    if (!rc)
        rc = sl_redis_socket_result(&r->url, fd, err);
    int n = sl_redis_greeting(&r->url, hello);
    for (int i = 0; i < n; i++) {
        redisReply *reply = NULL;
        if (!rc)
            rc = exchange(r, &hello[i], false, deadline_us, &reply, err);
        if (!rc)
            rc = sl_redis_error(reply, err);
        if (reply)
            freeReplyObject(reply);
        sl_cmd_release(&hello[i]);
    }
    if (rc)
        hang_up(r);
    return rc;
}

static int call_once(struct sl_redis *r, const struct sl_cmd *c, int64_t wait_us,
                     redisReply **ret_reply, struct sl_err *err)
{
    redisReply *reply = NULL;
    int64_t deadline_us;
    int rc = r->fd < 0 ? hook_up(r, err) : 0;

    if (rc)
        return rc;
    deadline_us = sl_boot_us() + SL_REDIS_TIMEOUT_US + wait_us;
    rc = exchange(r, c, false, deadline_us, &reply, err);
    if (!rc && c->script && sl_redis_is_noscript(reply)) {
        freeReplyObject(reply);
        reply = NULL;
        rc = exchange(r, c, true, deadline_us, &reply, err);
    }
    if (rc) {
        hang_up(r);
        return rc;
    }
    rc = sl_redis_error(reply, err);
    if (rc)
        freeReplyObject(reply);
    else
        *ret_reply = reply;
    return rc;
}

int sl_redis_call(struct sl_redis *r, const struct sl_cmd *c, int64_t wait_us,
                  redisReply **ret_reply, struct sl_err *err)
{
    struct sl_err first = SL_ERR_INIT;
    bool was_up = r->fd >= 0;
    int rc = call_once(r, c, wait_us, ret_reply, &first);

    /* Only a connection that has served before is tried again: it may just have been closed while
     * idle. */
    if (rc == SL_RETRY && was_up && r->fd < 0)
        return call_once(r, c, wait_us, ret_reply, err);
    return rc ? sl_err_set(err, rc, "%s", first.msg) : 0;
}
