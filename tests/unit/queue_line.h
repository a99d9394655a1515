/* Short forms for the tests of who comes when: enqueue, claim, settings of queues and projects, a pass of the server. */
#ifndef SL_TESTS_UNIT_QUEUE_LINE_H
#define SL_TESTS_UNIT_QUEUE_LINE_H
#include "tests/unit/queue_fixture.h"
#include <time.h>

#define READY "{softlaunch}:ready:default:cpu"
#define HELD "{softlaunch}:held:default:cpu"

static inline void put(const char *name, const char *project, const char *more, char ret_run[SL_ID_HEX + 1])
{
    json_t *s = spec(name, "medium"), *extra = json_loads(more, 0, NULL);
    char run[SL_ID_HEX + 1];

    assert_non_null(extra);
    json_object_set_new(s, "project", json_string(project));
    json_object_update(s, extra);
    json_decref(extra);
    assert_int_equal(sl_queue_enqueue(q, s, NULL, ret_run ? ret_run : run, NULL, NULL), 0);
    json_decref(s);
}

static inline int try_put(const char *project, const char *more)
{
    json_t *s = spec("x", "medium"), *extra = json_loads(more, 0, NULL);
    char run[SL_ID_HEX + 1];

    json_object_set_new(s, "project", json_string(project));
    json_object_update(s, extra);
    json_decref(extra);
    int rc = sl_queue_enqueue(q, s, NULL, run, NULL, NULL);
    json_decref(s);
    return rc;
}

/* Claims with an offer under a new lease; the run's name, "" when there is none. */
static inline const char *take(const char *offer, const char *const *from, int n, struct sl_claim *ret,
                        char ret_lease[SL_ID_HEX + 1])
{
    char lease[SL_ID_HEX + 1];
    struct sl_cmd c;

    sl_random_id(lease);
    sl_queue_cmd_claim(&c, lease, "a1", 60000, offer, from, n);
    const char *name = claimed_by(&c, ret);
    if (*name && ret_lease)
        memcpy(ret_lease, lease, sizeof lease);
    return name;
}

static inline const char *next(void)
{
    return take("cpu", queues, 1, NULL, NULL);
}

static inline int64_t ask(const char *command, const char *key)
{
    struct sl_cmd c;
    redisReply *reply;

    sl_cmd_init(&c);
    sl_cmd_add(&c, command);
    sl_cmd_add(&c, key);
    assert_int_equal(send_cmd(&c, &reply), 0);
    int64_t n = reply->integer;
    freeReplyObject(reply);
    return n;
}

static inline int64_t zcard(const char *key)
{
    return ask("ZCARD", key);
}

static inline int set_name(int (*set)(struct sl_queue *, const char *, const json_t *, struct sl_err *), const char *name,
                           const char *changes)
{
    json_t *j = json_loads(changes, 0, NULL);
    struct sl_err err = SL_ERR_INIT;

    assert_non_null(j);
    int rc = set(q, name, j, &err);
    json_decref(j);
    return rc;
}

static inline int set_queue(const char *name, const char *changes)
{
    return set_name(sl_queue_set_queue, name, changes);
}

static inline int set_project(const char *name, const char *changes)
{
    return set_name(sl_queue_set_project, name, changes);
}

static inline void beat(const char *offer, const char *const *of, int n)
{
    struct sl_cmd c;

    sl_queue_cmd_heartbeat(&c, "a1", "{}", offer, of, n);
    assert_int_equal(send_cmd(&c, NULL), 0);
}

static inline void pass(void)
{
    struct sl_reaped r = {.more = true};

    for (int i = 0; r.more && i < 500; i++)
        assert_int_equal(sl_queue_reap(q, false, &r, NULL), 0);
    assert_false(r.more);
}

/* The next look at queues and projects comes a moment later. */
static inline void later_pass(void)
{
    usleep(1000000);
    pass();
}

static inline void check_waits(const char *run, const char *part)
{
    json_t *r;

    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    const char *why = sl_json_str(r, "waiting_for", "");
    if (*part ? !strstr(why, part) : *why != 0)
        fail_msg("waits for '%s', expected '%s'", why, part);
    json_decref(r);
}

#define TEST(f) cmocka_unit_test_setup(f, fresh)

#endif
