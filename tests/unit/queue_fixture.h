/* What the queue's tests share: a private Redis, a server's and an agent's side of it, and short forms of
 * the calls. */
#ifndef SL_TESTS_UNIT_QUEUE_FIXTURE_H
#define SL_TESTS_UNIT_QUEUE_FIXTURE_H
#include "base/json.h"
#include "queue/queue.h"
#include "tests/unit/private_redis.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static struct private_redis server;
static struct sl_queue *q;
static struct sl_redis *agent; /* the connection on which the agent's commands are sent here */

static const char *const queues[] = {"default"};
#define OFFER "cpu"

static inline int setup(void **state)
{
    struct sl_redis_url url;

    (void)state;
    return private_redis_start(&server) || sl_queue_new(server.url, &q, NULL) ||
           sl_redis_url_parse(server.url, &url, NULL) || sl_redis_new(&url, &agent, NULL);
}

static inline int teardown(void **state)
{
    (void)state;
    sl_queue_free(q);
    sl_redis_free(agent);
    private_redis_stop(&server);
    return 0;
}

static inline int send_cmd(struct sl_cmd *c, redisReply **ret_reply)
{
    redisReply *reply = NULL;
    struct sl_err err = SL_ERR_INIT;
    int rc = sl_redis_call(agent, c, 10000000, &reply, &err);

    sl_cmd_release(c);
    if (rc && rc != SL_LEASE && rc != SL_CANCELLED)
        print_message("%s\n", err.msg);
    if (ret_reply)
        *ret_reply = reply;
    else if (reply)
        freeReplyObject(reply);
    return rc;
}

static inline void raw(const char *a, const char *b, const char *c)
{
    struct sl_cmd cmd;

    sl_cmd_init(&cmd);
    sl_cmd_add(&cmd, a);
    if (b)
        sl_cmd_add(&cmd, b);
    if (c)
        sl_cmd_add(&cmd, c);
    assert_int_equal(send_cmd(&cmd, NULL), 0);
}

static inline int fresh(void **state)
{
    (void)state;
    raw("FLUSHALL", NULL, NULL);
    return 0;
}

static inline json_t *spec(const char *name, const char *priority)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:{s:i}}", "name", name, "project", "p", "queue",
                     "default", "priority", priority, "retry", "max_attempts", 2);
}

static inline void enqueue(const char *name, const char *priority, char run[SL_ID_HEX + 1])
{
    json_t *s = spec(name, priority);

    assert_int_equal(sl_queue_enqueue(q, s, NULL, run, NULL, NULL), 0);
    json_decref(s);
}

/* Sends a claim; the run's name in a static buffer, "" when nothing was in line. ret may be NULL. */
static inline const char *claimed_by(struct sl_cmd *cmd, struct sl_claim *ret)
{
    static char found[64];
    struct sl_claim c;
    redisReply *reply;

    assert_int_equal(send_cmd(cmd, &reply), 0);
    int rc = sl_queue_claim_reply(reply, &c, NULL);
    freeReplyObject(reply);
    if (rc == SL_NOTFOUND)
        return "";
    assert_int_equal(rc, 0);
    snprintf(found, sizeof found, "%s", c.name);
    if (ret)
        *ret = c;
    else
        sl_claim_release(&c);
    return found;
}

static inline const char *claim_for(const char *lease, const char *name, int64_t lease_ms,
                             struct sl_claim *ret)
{
    struct sl_cmd cmd;

    sl_queue_cmd_claim(&cmd, lease, name, lease_ms, OFFER, queues, 1);
    return claimed_by(&cmd, ret);
}

static inline const char *claim(const char *lease)
{
    return claim_for(lease, "a1", 60000, NULL);
}

static inline int renew(const char *run, const char *lease, int64_t ms, bool *cancelled, bool *revived)
{
    struct sl_cmd c;
    redisReply *reply;

    sl_queue_cmd_renew(&c, run, lease, ms);
    int rc = send_cmd(&c, &reply);
    if (!rc) {
        assert_int_equal(sl_queue_renew_reply(reply, cancelled, revived, NULL), 0);
        freeReplyObject(reply);
    }
    return rc;
}

static inline int append(const char *run, const char *lease, int64_t batch, const char *msg)
{
    struct sl_cmd c;

    sl_queue_cmd_append(&c, run, lease, batch, "training", 5, 10, "{\"loss\":1.25}");
    sl_queue_cmd_append_event(&c, "log", msg);
    return send_cmd(&c, NULL);
}

static inline int fail_run(const char *run, const char *lease, const char *kind, char state[16])
{
    struct sl_cmd c;
    redisReply *reply;

    sl_queue_cmd_fail(&c, run, lease,
                      &(struct sl_failure){kind, "crash", "it broke", 7, -1, "[\"last line\"]"});
    int rc = send_cmd(&c, &reply);
    if (!rc) {
        if (state)
            snprintf(state, 16, "%s", reply->str);
        freeReplyObject(reply);
    }
    return rc;
}

static inline int give_back(const char *run, const char *lease, char state[16])
{
    struct sl_cmd c;
    redisReply *reply;

    sl_queue_cmd_release(&c, run, lease, "preempted");
    int rc = send_cmd(&c, &reply);
    if (!rc) {
        if (state)
            snprintf(state, 16, "%s", reply->str);
        freeReplyObject(reply);
    }
    return rc;
}

static inline int checkpoint(const char *run, const char *lease, const char *manifest, int64_t step)
{
    struct sl_cmd c;

    sl_queue_cmd_checkpoint(&c, run, lease, manifest, step);
    return send_cmd(&c, NULL);
}

static inline int finish(const char *run, const char *lease, int number, int *ret_number, bool *ret_new)
{
    json_t *outputs = json_pack("[{s:s, s:s, s:i, s:s}]", "output", "prompts", "artifact", "a",
                                "number", number, "manifest", "m");
    json_t *hold;
    int rc = sl_queue_finish(q, run, lease, outputs, NULL, &hold, ret_new, NULL);

    json_decref(outputs);
    if (!rc) {
        *ret_number = (int)json_integer_value(json_object_get(json_array_get(hold, 0), "number"));
        json_decref(hold);
    }
    return rc;
}

/* The run as one text: any write by a stale owner would show in it. */
static inline char *snapshot(const char *run)
{
    json_t *r, *e;

    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    assert_int_equal(sl_queue_events(q, run, NULL, 1000, 0, &e, NULL), 0);
    json_object_set_new(r, "events", e);
    char *text = sl_json_dump(r);
    json_decref(r);
    assert_non_null(text);
    return text;
}

static inline void check_field(const char *run, const char *path, const char *expected)
{
    json_t *r;

    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    const json_t *v = sl_json_get(r, path);
    char number[32];
    if (json_is_integer(v)) {
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v));
        assert_string_equal(number, expected);
    } else {
        assert_string_equal(v && json_is_string(v) ? json_string_value(v) : "", expected);
    }
    json_decref(r);
}

static inline void reap(int ended, int promoted)
{
    struct sl_reaped r;

    assert_int_equal(sl_queue_reap(q, false, &r, NULL), 0);
    assert_int_equal(r.ended, ended);
    assert_int_equal(r.promoted, promoted);
}

/* Moves a delayed run's due time to the past instead of waiting for it. */
static inline void make_due(const char *run)
{
    struct sl_cmd c;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "ZADD");
    sl_cmd_add(&c, "{softlaunch}:delayed");
    sl_cmd_add(&c, "1");
    sl_cmd_add(&c, run);
    assert_int_equal(send_cmd(&c, NULL), 0);
}

#define L1 "11111111111111111111111111111111"
#define L2 "22222222222222222222222222222222"
#define L3 "33333333333333333333333333333333"

#endif
