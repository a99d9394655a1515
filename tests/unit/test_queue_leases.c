/* Claims, leases and retries, against a real Redis: order, fencing, budgets. */
#include "tests/unit/queue_fixture.h"

static void claims_by_priority_then_age(void **state)
{
    char run[SL_ID_HEX + 1];

    (void)state;
    enqueue("low", "low", run);
    enqueue("medium-1", "medium", run);
    enqueue("high", "high", run);
    enqueue("medium-2", "medium", run);
    enqueue("critical", "critical", run);
    const char *order[] = {"critical", "high", "medium-1", "medium-2", "low", ""};
    for (int i = 0; i < 6; i++) {
        char lease[SL_ID_HEX + 1];
        sl_random_id(lease);
        assert_string_equal(claim(lease), order[i]);
    }
}

static void a_run_given_back_keeps_its_place(void **state)
{
    char first[SL_ID_HEX + 1], second[SL_ID_HEX + 1], st[16];

    (void)state;
    enqueue("first", "medium", first);
    enqueue("second", "medium", second);
    assert_string_equal(claim(L1), "first");
    assert_int_equal(give_back(first, L1, st), 0);
    assert_string_equal(st, "queued");
    assert_int_equal(give_back(first, L1, st), 0); /* a lost reply, repeated */
    assert_string_equal(st, "queued");
    enqueue("third", "medium", second);
    assert_string_equal(claim(L2), "first");
    check_field(first, "preemptions", "1");
    check_field(first, "failures", "0");
    check_field(first, "attempt", "2");
}

static void enqueue_is_idempotent_by_client_key(void **state)
{
    char a[SL_ID_HEX + 1], b[SL_ID_HEX + 1];
    json_t *s = spec("x", "medium"), *other = spec("y", "medium");
    const char *how;

    (void)state;
    assert_int_equal(sl_queue_enqueue(q, s, "key", a, &how, NULL), 0);
    assert_string_equal(how, "new");
    assert_int_equal(sl_queue_enqueue(q, s, "key", b, &how, NULL), 0);
    assert_string_equal(how, "known");
    assert_string_equal(a, b);
    assert_int_equal(sl_queue_enqueue(q, other, "key", b, &how, NULL), SL_CONFLICT);
    assert_string_equal(claim(L1), "x");
    assert_string_equal(claim(L2), "");
    json_decref(s);
    json_decref(other);
}

static void a_claim_repeated_gives_the_same_run(void **state)
{
    char run[SL_ID_HEX + 1];

    (void)state;
    enqueue("one", "medium", run);
    enqueue("two", "medium", run);
    assert_string_equal(claim(L1), "one");
    assert_string_equal(claim(L1), "one");
    assert_string_equal(claim(L2), "two");
}

/* Every write under a lease that is not the run's current one is refused and leaves no trace,
 * whether the lease was never any, is another's, or was the run's own before. */
/* Every write under each of three leases is refused and leaves the run as it is. */
static void write_nothing(const char *run, const char *const leases[3])
{
    bool cancelled, revived, is_new;
    int number;
    char *before = snapshot(run);

    for (int i = 0; i < 3; i++) {
        assert_int_equal(renew(run, leases[i], 1000, &cancelled, &revived), SL_LEASE);
        assert_int_equal(append(run, leases[i], 1, "{\"msg\":\"stale\"}"), SL_LEASE);
        assert_int_equal(checkpoint(run, leases[i], "m", 1), SL_LEASE);
        assert_int_equal(give_back(run, leases[i], NULL), SL_LEASE);
        assert_int_equal(fail_run(run, leases[i], "crash", NULL), SL_LEASE);
        assert_int_equal(fail_run(run, leases[i], "cancelled", NULL), SL_LEASE);
        assert_int_equal(finish(run, leases[i], 1, &number, &is_new), SL_LEASE);
    }
    char *after = snapshot(run);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void a_stale_lease_writes_nothing(void **state)
{
    char run[SL_ID_HEX + 1];
    const char *const stale[] = {L1, L3, ""};

    (void)state;
    enqueue("x", "medium", run);
    assert_string_equal(claim_for(L1, "a1", 1, NULL), "x");
    usleep(5000);
    reap(1, 0);
    assert_string_equal(claim_for(L2, "a2", 60000, NULL), "x");
    write_nothing(run, stale);
    assert_int_equal(append(run, L2, 1, "{}"), 0); /* and the owner can still write */
}

/* A run in line has no lease: neither the empty one nor any other may write, and only its last one
 * revives it. */
static void a_run_in_line_takes_no_writes(void **state)
{
    char run[SL_ID_HEX + 1];
    const char *const wrong[] = {"", L2, L3};

    (void)state;
    for (int reaped = 0; reaped < 2; reaped++) {
        if (!reaped) {
            enqueue("x", "medium", run);
        } else {
            assert_string_equal(claim_for(L1, "a1", 1, NULL), "x");
            usleep(5000);
            reap(1, 0);
        }
        write_nothing(run, wrong);
    }
}

static void one_agent_serves_several_queues_in_its_order(void **state)
{
    static const char *const both[] = {"default", "other"};
    static const char *const order[] = {"first", "second", "urgent"}; /* the first queue comes first */
    char run[SL_ID_HEX + 1];
    json_t *s = spec("urgent", "high");

    (void)state;
    enqueue("first", "medium", run);
    json_object_set_new(s, "queue", json_string("other"));
    assert_int_equal(sl_queue_enqueue(q, s, NULL, run, NULL, NULL), 0);
    json_decref(s);
    enqueue("second", "medium", run);
    for (int i = 0; i < 3; i++) {
        char lease[SL_ID_HEX + 1];
        struct sl_claim c;
        struct sl_cmd cmd;
        redisReply *reply;
        sl_random_id(lease);
        sl_queue_cmd_claim(&cmd, lease, "a1", 60000, OFFER, both, 2);
        assert_int_equal(send_cmd(&cmd, &reply), 0);
        assert_int_equal(sl_queue_claim_reply(reply, &c, NULL), 0);
        freeReplyObject(reply);
        assert_string_equal(c.name, order[i]);
        sl_claim_release(&c);
    }
}

static void an_ended_run_takes_no_more_writes(void **state)
{
    char run[SL_ID_HEX + 1], st[16];
    int number;
    bool is_new, cancelled, revived;

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    assert_int_equal(finish(run, L1, 3, &number, &is_new), 0);
    char *before = snapshot(run);
    assert_int_equal(append(run, L1, 9, "{}"), SL_LEASE);
    assert_int_equal(renew(run, L1, 1000, &cancelled, &revived), SL_LEASE);
    assert_int_equal(fail_run(run, L1, "crash", st), SL_LEASE);
    assert_int_equal(give_back(run, L1, st), SL_LEASE);
    char *after = snapshot(run);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void a_lost_lease_can_be_revived_until_claimed(void **state)
{
    char run[SL_ID_HEX + 1];
    bool cancelled, revived;

    (void)state;
    enqueue("x", "medium", run);
    assert_string_equal(claim_for(L1, "a1", 1, NULL), "x");
    usleep(5000);
    reap(1, 0);
    check_field(run, "state", "queued");
    check_field(run, "lost", "1");
    assert_int_equal(renew(run, L1, 60000, &cancelled, &revived), 0);
    assert_true(revived);
    struct sl_cmd c; /* nor is it counted as ready */
    redisReply *reply;
    sl_cmd_init(&c);
    sl_cmd_add(&c, "ZCARD");
    sl_cmd_add(&c, "{softlaunch}:ready:default:cpu");
    assert_int_equal(send_cmd(&c, &reply), 0);
    assert_int_equal(reply->integer, 0);
    freeReplyObject(reply);
    check_field(run, "state", "running");
    check_field(run, "agent", "a1");
    check_field(run, "lost", "0");
    check_field(run, "attempt", "1");
    assert_string_equal(claim(L2), ""); /* it is not in line any more */
    assert_int_equal(append(run, L1, 1, "{}"), 0);
    assert_int_equal(renew(run, L1, 60000, &cancelled, &revived), 0);
    assert_false(revived);
}

static void reaping_has_its_own_budget(void **state)
{
    char run[SL_ID_HEX + 1];

    (void)state;
    enqueue("x", "medium", run);
    for (int i = 1; i <= 10; i++) {
        char lease[SL_ID_HEX + 1];
        sl_random_id(lease);
        assert_string_equal(claim_for(lease, "a1", 1, NULL), "x");
        assert_int_equal(append(run, lease, 1, i == 10 ? "{\"msg\":\"what it said last\"}" : "{}"), 0);
        usleep(3000);
        reap(1, 0);
        check_field(run, "state", i < 10 ? "queued" : "dead");
    }
    check_field(run, "failures", "0");
    check_field(run, "cause", "lease_lost");
    json_t *r; /* nobody was there to hand in a log */
    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    const json_t *tail = json_object_get(r, "log_tail");
    assert_string_equal(json_string_value(json_array_get(tail, json_array_size(tail) - 1)), "what it said last");
    json_decref(r);
    reap(0, 0);
}

static void crashes_back_off_then_die(void **state)
{
    char run[SL_ID_HEX + 1], st[16];

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    assert_int_equal(fail_run(run, L1, "crash", st), 0);
    assert_string_equal(st, "delayed");
    assert_int_equal(fail_run(run, L1, "crash", st), 0); /* a lost reply, repeated */
    assert_string_equal(st, "delayed");
    check_field(run, "failures", "1");
    assert_string_equal(claim(L2), "");
    reap(0, 0); /* its time has not come */
    make_due(run);
    reap(0, 1);
    assert_string_equal(claim(L2), "x");
    assert_int_equal(fail_run(run, L2, "crash", st), 0);
    assert_string_equal(st, "dead"); /* max_attempts is 2 */
    check_field(run, "cause", "crash");
    check_field(run, "msg", "it broke");
    json_t *r;
    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    assert_string_equal(json_string_value(json_array_get(json_object_get(r, "log_tail"), 0)),
                        "last line");
    json_decref(r);
}

static void wrong_specs_are_not_retried_and_outages_spend_no_attempt(void **state)
{
    char run[SL_ID_HEX + 1], st[16];

    (void)state;
    enqueue("x", "medium", run);
    claim(L1);
    fail_run(run, L1, "infrastructure", st);
    assert_string_equal(st, "delayed");
    check_field(run, "failures", "0");
    make_due(run);
    reap(0, 1);
    claim(L2);
    fail_run(run, L2, "spec", st);
    assert_string_equal(st, "failed");
    reap(0, 0);
    assert_string_equal(claim(L3), "");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup(f, fresh)
    const struct CMUnitTest tests[] = {
        T(claims_by_priority_then_age),
        T(a_run_given_back_keeps_its_place),
        T(enqueue_is_idempotent_by_client_key),
        T(a_claim_repeated_gives_the_same_run),
        T(a_stale_lease_writes_nothing),
        T(an_ended_run_takes_no_more_writes),
        T(a_run_in_line_takes_no_writes),
        T(one_agent_serves_several_queues_in_its_order),
        T(a_lost_lease_can_be_revived_until_claimed),
        T(reaping_has_its_own_budget),
        T(crashes_back_off_then_die),
        T(wrong_specs_are_not_retried_and_outages_spend_no_attempt),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
