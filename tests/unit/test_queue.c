/* Events, publishing, cancelling, lists and agents, against a real Redis: what is there once, bounded, and survives. */
#include "tests/unit/queue_fixture.h"

static void events_are_not_doubled_and_keep_progress(void **state)
{
    char run[SL_ID_HEX + 1];
    json_t *e;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    assert_int_equal(append(run, L1, 1, "{\"msg\":\"a\"}"), 0);
    assert_int_equal(append(run, L1, 1, "{\"msg\":\"a\"}"), 0);
    assert_int_equal(append(run, L1, 2, "{\"msg\":\"b\"}"), 0);
    assert_int_equal(sl_queue_events(q, run, NULL, 1000, 0, &e, NULL), 0);
    json_t *list = json_object_get(e, "events");
    assert_int_equal(json_array_size(list), 4); /* queued, running, a, b */
    assert_string_equal(sl_json_str(json_array_get(list, 2), "data.msg", ""), "a");
    assert_string_equal(sl_json_str(json_array_get(list, 3), "data.msg", ""), "b");
    char *last = strdup(sl_json_str(e, "last", ""));
    json_decref(e);
    assert_int_equal(sl_queue_events(q, run, last, 1000, 0, &e, NULL), 0);
    assert_int_equal(json_array_size(json_object_get(e, "events")), 0);
    assert_string_equal(sl_json_str(e, "last", ""), last);
    json_decref(e);
    free(last);
    check_field(run, "phase", "training");
    check_field(run, "step", "5");
    json_t *r;
    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    assert_true(sl_json_num(r, "metrics.loss", 0) == 1.25);
    json_decref(r);
}

static void events_stay_bounded(void **state)
{
    char run[SL_ID_HEX + 1], key[96];
    struct sl_cmd c;
    redisReply *reply;
    int64_t batch = 0;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    for (int i = 0; i < 120; i++) {
        sl_queue_cmd_append(&c, run, L1, ++batch, NULL, -1, -1, NULL);
        for (int k = 0; k < SL_QUEUE_BATCH_MAX; k++)
            sl_queue_cmd_append_event(&c, "log", "{\"msg\":\"x\"}");
        assert_int_equal(send_cmd(&c, NULL), 0);
    }
    snprintf(key, sizeof key, "{softlaunch}:events:%s", run);
    sl_cmd_init(&c);
    sl_cmd_add(&c, "XLEN");
    sl_cmd_add(&c, key);
    assert_int_equal(send_cmd(&c, &reply), 0);
    assert_in_range(reply->integer, 20000, 20500);
    freeReplyObject(reply);
    /* Who reads on behind what is gone is told; who reads on behind what is there is not. */
    json_t *e;
    assert_int_equal(sl_queue_events(q, run, "1-0", 10, 0, &e, NULL), 0);
    assert_true(sl_json_bool(e, "trimmed", false));
    char *last = strdup(sl_json_str(e, "last", ""));
    json_decref(e);
    assert_int_equal(sl_queue_events(q, run, last, 10, 0, &e, NULL), 0);
    assert_false(sl_json_bool(e, "trimmed", true));
    assert_int_equal(json_array_size(json_object_get(e, "events")), 10);
    json_decref(e);
    free(last);
    assert_int_equal(sl_queue_events(q, run, NULL, 10, 0, &e, NULL), 0);
    assert_true(sl_json_bool(e, "trimmed", false));
    json_decref(e);
    assert_int_equal(sl_queue_long(q, 10, &e, NULL), 0); /* the archive is asked to take them before */
    assert_int_equal(json_array_size(e), 1);
    json_decref(e);
}

static void checkpoints_only_go_forward_and_reach_the_next_owner(void **state)
{
    char run[SL_ID_HEX + 1];
    struct sl_claim c;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    assert_int_equal(checkpoint(run, L1, "m20", 20), 0);
    assert_int_equal(checkpoint(run, L1, "m10", 10), 0);
    assert_int_equal(checkpoint(run, L1, "m20", 21), 0); /* packed under the step before */
    assert_int_equal(checkpoint(run, L1, "m20", 19), 0);
    give_back(run, L1, NULL);
    assert_string_equal(claim_for(L2, "a2", 60000, &c), "x");
    assert_string_equal(c.checkpoint, "m20");
    assert_int_equal(c.checkpoint_step, 21);
    assert_int_equal(c.attempt, 2);
    sl_claim_release(&c);
}

static void publishing_happens_once(void **state)
{
    char run[SL_ID_HEX + 1];
    int number;
    bool is_new;
    json_t *outbox, *acked;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    assert_int_equal(finish(run, L1, 7, &number, &is_new), 0);
    assert_true(is_new);
    assert_int_equal(number, 7);
    /* The reply was lost; the agent asks again, and the server meanwhile would reserve another
     * number. */
    assert_int_equal(finish(run, L1, 8, &number, &is_new), 0);
    assert_false(is_new);
    assert_int_equal(number, 7);
    check_field(run, "state", "succeeded");
    assert_int_equal(sl_queue_outbox(q, &outbox, NULL), 0);
    assert_int_equal(json_object_size(outbox), 1);
    assert_non_null(json_object_get(outbox, run));
    json_decref(outbox);
    acked = json_pack("[{s:i}]", "number", 9);
    assert_int_equal(sl_queue_ack(q, run, acked, NULL), 0);
    assert_int_equal(sl_queue_ack(q, run, acked, NULL), 0);
    json_decref(acked);
    assert_int_equal(sl_queue_outbox(q, &outbox, NULL), 0);
    assert_int_equal(json_object_size(outbox), 0);
    json_decref(outbox);
    assert_int_equal(finish(run, L1, 8, &number, &is_new), 0);
    assert_int_equal(number, 9);
}

static void cancel_in_each_state(void **state)
{
    char run[SL_ID_HEX + 1], st[16];
    const char *now;
    bool cancelled, revived, is_new;
    int number;
    struct sl_cmd c;
    redisReply *reply;

    (void)state;
    assert_int_equal(sl_queue_cancel(q, "00000000000000000000000000000000", &now, NULL),
                     SL_NOTFOUND);
    assert_int_equal(sl_queue_cancel(q, "../../etc", &now, NULL), SL_NOTFOUND);

    enqueue("queued", "medium", run);
    assert_int_equal(sl_queue_cancel(q, run, &now, NULL), 0);
    assert_string_equal(now, "cancelled");
    assert_string_equal(claim(L1), "");
    assert_int_equal(sl_queue_cancel(q, run, &now, NULL), 0);

    enqueue("delayed", "medium", run);
    claim(L1);
    fail_run(run, L1, "crash", st);
    assert_int_equal(sl_queue_cancel(q, run, &now, NULL), 0);
    make_due(run);
    raw("ZREM", "{softlaunch}:delayed", run);
    check_field(run, "state", "cancelled");

    enqueue("running", "medium", run);
    claim(L2);
    assert_int_equal(sl_queue_cancel(q, run, &now, NULL), 0);
    assert_string_equal(now, "cancelling");
    sl_queue_cmd_wait(&c, "a1", OFFER, queues, 1, 1000); /* the agent hears the bell at once */
    assert_int_equal(send_cmd(&c, &reply), 0);
    assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
    assert_string_equal(reply->element[0]->str, "{softlaunch}:ring:a1");
    freeReplyObject(reply);
    assert_int_equal(renew(run, L2, 60000, &cancelled, &revived), 0);
    assert_true(cancelled);
    assert_int_equal(finish(run, L2, 1, &number, &is_new), SL_CANCELLED);
    assert_int_equal(fail_run(run, L2, "crash", st), 0);
    assert_string_equal(st, "cancelled");

    enqueue("lost", "medium", run);
    assert_string_equal(claim_for(L3, "a1", 1, NULL), "lost");
    sl_queue_cancel(q, run, &now, NULL);
    usleep(5000);
    reap(1, 0);
    check_field(run, "state", "cancelled");
    assert_int_equal(renew(run, L3, 1000, &cancelled, &revived), SL_LEASE);

    enqueue("done", "medium", run);
    claim("44444444444444444444444444444444");
    finish(run, "44444444444444444444444444444444", 1, &number, &is_new);
    assert_int_equal(sl_queue_cancel(q, run, &now, NULL), SL_CONFLICT);
    check_field(run, "state", "succeeded");
}

static void lists_pages_newest_first(void **state)
{
    char run[SL_ID_HEX + 1], below[24] = "";
    json_t *page;
    int seen = 0;

    (void)state;
    for (int i = 0; i < 25; i++) {
        char name[16];
        snprintf(name, sizeof name, "r%d", i);
        enqueue(name, "medium", run);
    }
    claim(L1); /* r0 */
    for (;;) {
        assert_int_equal(sl_queue_list(q, below[0] ? below : NULL, 10, NULL, NULL, NULL, &page, NULL), 0);
        json_t *runs = json_object_get(page, "runs");
        for (size_t i = 0; i < json_array_size(runs); i++) {
            char name[16];
            snprintf(name, sizeof name, "r%d", 24 - seen++);
            assert_string_equal(sl_json_str(json_array_get(runs, i), "name", ""), name);
        }
        snprintf(below, sizeof below, "%s", sl_json_str(page, "next", ""));
        json_decref(page);
        if (!below[0])
            break;
    }
    assert_int_equal(seen, 25);
    assert_int_equal(sl_queue_list(q, NULL, 10, "running", NULL, NULL, &page, NULL), 0);
    assert_int_equal(json_array_size(json_object_get(page, "runs")), 1);
    json_decref(page);
}

static void a_bell_wakes_one_and_goes_on_ringing(void **state)
{
    char run[SL_ID_HEX + 1];
    struct sl_cmd c;
    redisReply *reply;

    (void)state;
    sl_queue_cmd_heartbeat(&c, "a1", "{}", OFFER, queues, 1); /* bells are for what agents have */
    assert_int_equal(send_cmd(&c, NULL), 0);
    enqueue("one", "medium", run);
    enqueue("two", "medium", run);
    for (int i = 0; i < 2; i++) {
        sl_queue_cmd_wait(&c, "a1", OFFER, queues, 1, 500);
        assert_int_equal(send_cmd(&c, &reply), 0);
        assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
        freeReplyObject(reply);
        assert_string_not_equal(claim(i ? L2 : L1), "");
    }
    sl_queue_cmd_wait(&c, "a1", OFFER, queues, 1, 100);
    assert_int_equal(send_cmd(&c, &reply), 0);
    assert_int_equal(reply->type, REDIS_REPLY_NIL); /* nothing left: no ring */
    freeReplyObject(reply);
}

static void agents_come_and_go(void **state)
{
    struct sl_cmd c;
    json_t *agents;

    (void)state;
    sl_queue_cmd_heartbeat(&c, "host-1", "{\"host\":\"h\"}", OFFER, queues, 1);
    assert_int_equal(send_cmd(&c, NULL), 0);
    assert_int_equal(sl_queue_agents(q, &agents, NULL), 0);
    const json_t *a = json_array_get(json_object_get(agents, "agents"), 0);
    assert_string_equal(sl_json_str(a, "agent", ""), "host-1");
    assert_string_equal(sl_json_str(a, "host", ""), "h");
    assert_in_range(sl_json_int(a, "age_ms", -1), 0, 5000);
    json_decref(agents);
    sl_queue_cmd_heartbeat(&c, "host-1", NULL, OFFER, queues, 1);
    assert_int_equal(send_cmd(&c, NULL), 0);
    assert_int_equal(sl_queue_agents(q, &agents, NULL), 0);
    assert_int_equal(json_array_size(json_object_get(agents, "agents")), 0);
    json_decref(agents);
}

/* Renew, release, fail and finish must work when memory is full, enqueue must be refused as a
 * whole. */
static void full_memory_ends_runs_but_takes_none(void **state)
{
    char run[SL_ID_HEX + 1], more[SL_ID_HEX + 1], st[16];
    bool cancelled, revived;
    json_t *s = spec("more", "medium"), *page;
    struct sl_cmd c;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    sl_cmd_init(&c);
    for (int i = 0; i < 4; i++)
        sl_cmd_add(&c, (const char *[]){"CONFIG", "SET", "maxmemory", "1"}[i]);
    assert_int_equal(send_cmd(&c, NULL), 0);
    assert_int_equal(sl_queue_enqueue(q, s, NULL, more, NULL, NULL), SL_RETRY);
    assert_int_equal(renew(run, L1, 1000, &cancelled, &revived), 0);
    assert_int_equal(give_back(run, L1, st), 0);
    sl_cmd_init(&c);
    for (int i = 0; i < 4; i++)
        sl_cmd_add(&c, (const char *[]){"CONFIG", "SET", "maxmemory", "0"}[i]);
    assert_int_equal(send_cmd(&c, NULL), 0);
    assert_int_equal(sl_queue_list(q, NULL, 10, NULL, NULL, NULL, &page, NULL), 0);
    assert_int_equal(json_array_size(json_object_get(page, "runs")), 1);
    json_decref(page);
    json_decref(s);
}

static void survives_a_kill_and_a_script_flush(void **state)
{
    char run[SL_ID_HEX + 1];

    (void)state;
    enqueue("x", "medium", run);
    raw("SCRIPT", "FLUSH", NULL);
    claim(L1);
    raw("CONFIG", "RESETSTAT", NULL);
    usleep(1100000); /* appendfsync everysec */
    private_redis_kill(&server, SIGKILL);
    struct sl_err err = SL_ERR_INIT;
    json_t *r;
    assert_int_equal(sl_queue_show(q, run, &r, &err), SL_RETRY);
    assert_non_null(strstr(err.msg, "redis.sock"));
    assert_int_equal(private_redis_launch(&server), 0);
    check_field(run, "state", "running");
    assert_int_equal(append(run, L1, 1, "{}"), 0);
}

/* A script gives long events in pieces, and few at once of many; a read is whole all the same. */
static void a_read_is_whole_however_long_events_are(void **state)
{
    enum { BATCHES = 4, EVENTS = 150 };
    char run[SL_ID_HEX + 1], text[6000];
    struct sl_cmd c;
    json_t *e;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    for (int batch = 1; batch <= BATCHES; batch++) {
        sl_queue_cmd_append(&c, run, L1, batch, NULL, -1, -1, NULL);
        for (int i = 0; i < EVENTS; i++) {
            snprintf(text, sizeof text, "{\"n\":%d,\"msg\":\"%0*d\"}", (batch - 1) * EVENTS + i, batch == 2 ? 5000 : 1, 0);
            sl_queue_cmd_append_event(&c, "log", text);
        }
        assert_int_equal(send_cmd(&c, NULL), 0);
    }
    assert_int_equal(sl_queue_events(q, run, NULL, 1000, 0, &e, NULL), 0);
    const json_t *list = json_object_get(e, "events");
    assert_int_equal(json_array_size(list), BATCHES * EVENTS + 2); /* queued, running */
    for (int i = 0; i < BATCHES * EVENTS; i++)
        assert_int_equal(sl_json_int(json_array_get(list, (size_t)i + 2), "data.n", -1), i);
    assert_string_equal(sl_json_str(e, "last", ""), sl_json_str(json_array_get(list, BATCHES * EVENTS + 1), "id", "?"));
    assert_false(sl_json_bool(e, "trimmed", true));
    json_decref(e);
    assert_int_equal(sl_queue_events(q, run, NULL, 333, 0, &e, NULL), 0);
    assert_int_equal(json_array_size(json_object_get(e, "events")), 333);
    json_decref(e);
}

/* More than one call of the script asks for; last seen first. */
static void many_agents_are_listed(void **state)
{
    enum { AGENTS = 130 };
    char name[32];
    struct sl_cmd c;
    json_t *agents;

    (void)state;
    for (int i = 0; i < AGENTS; i++) {
        snprintf(name, sizeof name, "host-%03d", i);
        sl_queue_cmd_heartbeat(&c, name, "{}", OFFER, queues, 1);
        assert_int_equal(send_cmd(&c, NULL), 0);
    }
    assert_int_equal(sl_queue_agents(q, &agents, NULL), 0);
    const json_t *list = json_object_get(agents, "agents");
    assert_int_equal(json_array_size(list), AGENTS);
    for (int i = 0; i < AGENTS; i++) {
        snprintf(name, sizeof name, "host-%03d", AGENTS - 1 - i);
        assert_string_equal(sl_json_str(json_array_get(list, (size_t)i), "agent", ""), name);
    }
    json_decref(agents);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup(f, fresh)
    const struct CMUnitTest tests[] = {
        T(a_read_is_whole_however_long_events_are),
        T(many_agents_are_listed),
        T(events_are_not_doubled_and_keep_progress),
        T(events_stay_bounded),
        T(checkpoints_only_go_forward_and_reach_the_next_owner),
        T(publishing_happens_once),
        T(cancel_in_each_state),
        T(lists_pages_newest_first),
        T(a_bell_wakes_one_and_goes_on_ringing),
        T(agents_come_and_go),
        T(full_memory_ends_runs_but_takes_none),
        T(survives_a_kill_and_a_script_flush),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
