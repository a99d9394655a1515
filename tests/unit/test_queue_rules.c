/* What holds runs back and lets them go: limits, rates, weights and pauses of queues, quotas, start times, keys and moves;
 * against a real Redis. */
#include "tests/unit/queue_line.h"

/* ---- queues
 * ------------------------------------------------------------------------------------------------ */

static void a_queue_at_its_limit_holds_the_rest(void **state)
{
    char run[SL_ID_HEX + 1], first[SL_ID_HEX + 1], lease[SL_ID_HEX + 1], st[16];
    struct sl_claim c;

    (void)state;
    assert_int_equal(set_queue("default", "{\"max_running\": 3}"), 0);
    for (int i = 0; i < 10; i++)
        put("x", "p", "{}", i ? run : first);
    assert_int_equal(zcard(READY), 3);
    assert_int_equal(zcard(HELD), 7);
    put("urgent", "p", "{\"priority\": \"critical\"}", NULL); /* takes a place in front */
    assert_int_equal(zcard(READY), 3);
    const char *now; /* who leaves the front lets another one in */
    assert_int_equal(sl_queue_cancel(q, first, &now, NULL), 0);
    assert_int_equal(zcard(READY), 3);
    assert_int_equal(zcard(HELD), 7);
    assert_string_equal(take("cpu", queues, 1, &c, lease), "urgent");
    assert_int_equal(zcard(READY), 2);
    next();
    next();
    assert_string_equal(next(), "");
    check_waits(run, "queue default has 3 of 3 runs at once");
    fail_run(c.run, lease, "spec", st);
    sl_claim_release(&c);
    assert_int_equal(zcard(READY), 1);
    assert_string_equal(next(), "x");
    assert_int_equal(set_queue("default", "{\"max_running\": 5}"), 0);
    assert_int_equal(zcard(READY), 2);
    assert_int_equal(set_queue("default", "{\"max_running\": 0}"), 0);
    assert_int_equal(zcard(READY), 6);
    assert_int_equal(zcard(HELD), 0);
    assert_int_equal(set_queue("default", "{\"max_running\": 4}"), 0);
    assert_int_equal(zcard(READY), 1);
    assert_int_equal(zcard(HELD), 5);
}

static void pause_holds_everything_and_drain_takes_nothing(void **state)
{
    const char *now;
    char run[SL_ID_HEX + 1];

    (void)state;
    put("a", "p", "{}", NULL);
    put("b", "p", "{}", run);
    assert_int_equal(set_queue("default", "{\"state\": \"paused\"}"), 0);
    assert_int_equal(zcard(READY), 0);
    assert_string_equal(next(), "");
    put("c", "p", "{}", NULL);
    assert_int_equal(zcard(HELD), 3);
    check_waits(run, "queue default is paused");
    assert_int_equal(sl_queue_cancel(q, run, &now, NULL), 0);
    assert_int_equal(zcard(HELD), 2);
    assert_int_equal(set_queue("default", "{\"state\": \"draining\"}"), 0);
    assert_int_equal(zcard(READY), 2);
    assert_int_equal(try_put("p", "{}"), SL_CONFLICT);
    assert_string_equal(next(), "a");
    assert_string_equal(next(), "c");
    assert_int_equal(set_queue("default", "{\"state\": \"active\"}"), 0);
    assert_int_equal(try_put("p", "{}"), 0);
    assert_int_equal(set_queue("default", "{\"state\": \"asleep\"}"), SL_SPEC);
    assert_int_equal(set_queue("default", "{\"rate\": 1}"), SL_SPEC);
    assert_int_equal(set_queue("../x", "{\"state\": \"active\"}"), SL_SPEC);
}

static void a_rate_is_kept(void **state)
{
    int started = 0;

    (void)state;
    assert_int_equal(set_queue("default", "{\"rate_per_minute\": 60}"), 0);
    for (int i = 0; i < 10; i++)
        put("x", "p", "{}", NULL);
    assert_int_equal(zcard(READY), 1);
    int64_t start_us = sl_boot_us();
    while (sl_boot_us() - start_us < 2600000) {
        started += *next() ? 1 : 0;
        usleep(100000);
    }
    assert_in_range(started, 2, 4); /* one at once, then one a second */
    assert_int_equal(set_queue("default", "{\"rate_per_minute\": 0}"), 0);
    assert_int_equal(zcard(READY), 10 - started);
}

static void turns_follow_weights(void **state)
{
    const int weights[3] = {6, 3, 1};
    int first[3] = {0}, order[3];

    (void)state;
    for (int i = 0; i < 4000; i++) {
        sl_queue_turns(weights, 3, order);
        assert_int_equal((1 << order[0]) + (1 << order[1]) + (1 << order[2]), 7);
        first[order[0]]++;
    }
    assert_in_range(first[0], 2200, 2600); /* 2400, sigma 31 */
    assert_in_range(first[1], 1050, 1350);
    assert_in_range(first[2], 300, 500);
}

/* ---- quotas
 * ------------------------------------------------------------------------------------------------ */

static void gpu_hours_are_counted_and_end(void **state)
{
    char run[SL_ID_HEX + 1], lease[SL_ID_HEX + 1], st[16];
    const char *gpus = "{\"resources\": {\"gpus\": 4}}";
    bool cancelled, revived;
    struct sl_claim c;
    json_t *all;

    (void)state;
    assert_int_equal(set_project("p", "{\"gpu_hours\": 0.0001}"), 0); /* 360 ms of one GPU */
    put("a", "p", gpus, NULL);
    put("b", "p", gpus, run);
    assert_string_equal(take("gpu4", queues, 1, &c, lease), "a");
    usleep(60000);
    assert_int_equal(renew(c.run, lease, 60000, &cancelled, &revived), 0);
    assert_int_equal(sl_queue_projects(q, &all, NULL), 0);
    double used = sl_json_num(json_array_get(json_object_get(all, "projects"), 0), "gpu_hours_used", 0);
    json_decref(all);
    assert_true(used * 3600 >= 0.24 && used * 3600 < 1);
    usleep(60000);
    fail_run(c.run, lease, "spec", st);
    sl_claim_release(&c);
    assert_string_equal(take("gpu4", queues, 1, NULL, NULL), "");
    check_waits(run, "project p has used its 0.0001 GPU hours");
    assert_int_equal(try_put("p", gpus), SL_CONFLICT);
    assert_int_equal(try_put("other", gpus), 0);
    assert_int_equal(set_project("p", "{\"gpu_hours_used\": 0}"), 0);
    int b = !strcmp(take("gpu4", queues, 1, NULL, NULL), "b"); /* other's stands there too */
    assert_int_equal(b + !strcmp(take("gpu4", queues, 1, NULL, NULL), "b"), 1);
}

static void storage_counts_once(void **state)
{
    char run[SL_ID_HEX + 1];
    bool is_new;
    int number;

    (void)state;
    assert_int_equal(set_project("p", "{\"storage_gib\": 1}"), 0);
    put("a", "p", "{}", run);
    claim(L1);
    assert_int_equal(finish(run, L1, 1, &number, &is_new), 0);
    json_t *outputs = json_pack("[{s:I}]", "bytes", (json_int_t)1 << 30);
    assert_int_equal(sl_queue_ack(q, run, outputs, NULL), 0);
    assert_int_equal(sl_queue_ack(q, run, outputs, NULL), 0);
    json_decref(outputs);
    assert_int_equal(try_put("p", "{}"), SL_CONFLICT);
    assert_int_equal(set_project("p", "{\"storage_gib\": 1.5}"), 0);
    assert_int_equal(try_put("p", "{}"), 0);
}

/* ---- times, keys, moves
 * ------------------------------------------------------------------------------------ */

static void a_run_waits_for_its_time(void **state)
{
    char run[SL_ID_HEX + 1], at[64];
    struct sl_claim c;

    (void)state;
    put("late", "p", "{\"schedule\": {\"delay_s\": 3600}}", run);
    check_field(run, "state", "delayed");
    check_field(run, "cause", "scheduled");
    assert_string_equal(next(), "");
    make_due(run);
    reap(0, 1);
    assert_string_equal(next(), "late");
    time_t soon = time(NULL) + 3600 + 5400;
    strftime(at, sizeof at, "{\"schedule\": {\"at\": \"%Y-%m-%dT%H:%M:%S+01:30\"}}", gmtime(&soon));
    put("set", "p", at, run);
    json_t *r;
    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    int64_t due_s = sl_json_int(r, "due_ms", 0) / 1000;
    json_decref(r);
    assert_in_range(due_s, time(NULL) + 3590, time(NULL) + 3610);
    put("past", "p", "{\"schedule\": {\"at\": \"2001-01-01T00:00:00Z\"}, \"time_limit_s\": 90}", run);
    take("cpu", queues, 1, &c, NULL);
    assert_string_equal(c.name, "past");
    assert_int_equal(c.time_left_ms, 90000);
    sl_claim_release(&c);
    assert_int_equal(try_put("p", "{\"schedule\": {\"at\": \"tomorrow\"}}"), SL_SPEC);
}

static void a_dedupe_key_gives_the_run_that_is_there(void **state)
{
    json_t *s = spec("nightly", "medium"), *other = spec("nightly", "high");
    char a[SL_ID_HEX + 1], b[SL_ID_HEX + 1], st[16];
    const char *how;

    (void)state;
    json_object_set_new(s, "dedupe", json_string("nightly"));
    json_object_set_new(other, "dedupe", json_string("nightly"));
    assert_int_equal(sl_queue_enqueue(q, s, NULL, a, &how, NULL), 0);
    assert_string_equal(how, "new");
    assert_int_equal(sl_queue_enqueue(q, other, NULL, b, &how, NULL), 0);
    assert_string_equal(how, "duplicate");
    assert_string_equal(a, b);
    json_object_set_new(other, "project", json_string("another"));
    assert_int_equal(sl_queue_enqueue(q, other, NULL, b, &how, NULL), 0);
    assert_string_equal(how, "new");
    claim(L1); /* other: high */
    claim(L2);
    assert_int_equal(sl_queue_enqueue(q, s, NULL, b, &how, NULL), 0);
    assert_string_equal(how, "duplicate"); /* running counts */
    fail_run(a, L2, "spec", st);
    assert_int_equal(sl_queue_enqueue(q, s, NULL, b, &how, NULL), 0);
    assert_string_equal(how, "new");
    json_decref(s);
    json_decref(other);
}

static void a_run_is_moved_by_hand(void **state)
{
    static const char *const other[] = {"other"};
    char a[SL_ID_HEX + 1], b[SL_ID_HEX + 1], lease[SL_ID_HEX + 1], st[16];
    struct sl_claim c;

    (void)state;
    put("a", "p", "{}", a);
    put("b", "p", "{}", b);
    assert_int_equal(sl_queue_move(q, b, NULL, sl_queue_rank("critical"), NULL), 0);
    assert_int_equal(sl_queue_move(q, b, NULL, sl_queue_rank("critical"), NULL), 0);
    check_field(b, "priority", "critical");
    assert_string_equal(take("cpu", queues, 1, &c, lease), "b");
    give_back(c.run, lease, st); /* and it keeps its priority */
    sl_claim_release(&c);
    assert_string_equal(take("cpu", queues, 1, &c, lease), "b");
    assert_int_equal(set_queue("other", "{\"max_running\": 1}"), 0);
    assert_int_equal(sl_queue_move(q, b, "other", -1, NULL), 0); /* running: counts there from now */
    assert_int_equal(sl_queue_move(q, a, "other", -1, NULL), 0);
    assert_int_equal(zcard(READY), 0);
    assert_string_equal(take("cpu", other, 1, NULL, NULL), "");
    check_waits(a, "queue other has 1 of 1");
    assert_int_equal(fail_run(c.run, lease, "crash", st), 0);
    assert_string_equal(st, "delayed");
    assert_string_equal(take("cpu", other, 1, NULL, NULL), "a");
    make_due(b);
    reap(0, 1);
    check_waits(b, "queue other has 1 of 1");
    sl_claim_release(&c);
    assert_int_equal(sl_queue_move(q, "00000000000000000000000000000000", "other", -1, NULL), SL_NOTFOUND);
    const char *now;
    sl_queue_cancel(q, b, &now, NULL);
    assert_int_equal(sl_queue_move(q, b, NULL, 0, NULL), SL_CONFLICT);
}

static void what_is_paused_or_drained_claims_nothing(void **state)
{
    enum sl_agent_wanted wanted;
    struct sl_cmd c;
    redisReply *reply;

    (void)state;
    assert_int_equal(sl_queue_set_agent(q, "a1", SL_AGENT_PAUSED, NULL), SL_NOTFOUND);
    beat("cpu", queues, 1);
    put("x", "p", "{}", NULL);
    assert_int_equal(sl_queue_set_agent(q, "a1", SL_AGENT_PAUSED, NULL), 0);
    assert_string_equal(next(), "");
    sl_queue_cmd_wait(&c, "a1", "cpu", NULL, 0, 500); /* it is rung */
    assert_int_equal(send_cmd(&c, &reply), 0);
    assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
    freeReplyObject(reply);
    sl_queue_cmd_heartbeat(&c, "a1", "{}", "cpu", queues, 1);
    assert_int_equal(send_cmd(&c, &reply), 0);
    assert_int_equal(sl_queue_heartbeat_reply(reply, &wanted, NULL), 0);
    assert_int_equal(wanted, SL_AGENT_PAUSED);
    freeReplyObject(reply);
    assert_int_equal(sl_queue_set_agent(q, "a1", SL_AGENT_ACTIVE, NULL), 0);
    assert_string_equal(next(), "x");
}

/* Whatever is done, a queued run lies in one set, counts are right, and limits hold: random operations, checked
 * after each. */
static void nothing_is_lost_between_gates(void **state)
{
    enum { RUNS = 40, STEPS = 1500 };
    static const char *const both[] = {"default", "other"};
    static const char *const settings[] = {"{\"max_running\": 2}", "{\"max_running\": 0}", "{\"max_running\": 4}",
                                           "{\"state\": \"paused\"}", "{\"state\": \"active\"}"};
    static const char *const check =
        "local P = KEYS[1] local queued, running, bad = {}, 0, '' "
        "for _, id in ipairs(redis.call('ZRANGE', P .. ':runs', 0, -1)) do "
        "  local s = redis.call('HGET', P .. ':run:' .. id, 'state') "
        "  if s == 'queued' then queued[id] = 0 elseif s == 'running' then running = running + 1 end end "
        "for _, kind in ipairs({'ready', 'held', 'line'}) do "
        "  for _, key in ipairs(redis.call('KEYS', P .. ':' .. kind .. ':*')) do "
        "    for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do "
        "      if not queued[id] then bad = bad .. ' ' .. key .. ' holds one that is not queued' else "
        "      queued[id] = queued[id] + 1 end end end end "
        "for id, n in pairs(queued) do if n ~= 1 then bad = bad .. ' ' .. id .. ' lies in ' .. n end end "
        "local sums, counts = {q = 0, p = 0}, redis.call('HGETALL', P .. ':board') "
        "for k = 1, #counts, 2 do local kind = counts[k]:match('^([qp]):') "
        "  if kind then sums[kind] = sums[kind] + counts[k + 1] end end "
        "for kind, sum in pairs(sums) do "
        "  if sum ~= running then bad = bad .. ' ' .. kind .. ' counts ' .. sum .. ' of ' .. running end end "
        "return bad";
    unsigned seed = (unsigned)time(NULL);
    char runs[RUNS][SL_ID_HEX + 1], leases[RUNS][SL_ID_HEX + 1], st[16];
    int held = 0, n = 0;
    const char *now;

    (void)state;
    print_message("seed %u\n", seed);
    srandom(seed);
    beat("cpu", both, 2);
    for (int step = 0; step < STEPS; step++) {
        int what = (int)(random() % 12), at = held ? (int)(random() % held) : 0;
        struct sl_claim c;
        if (what < 3 && n < RUNS * 4) {
            char run[SL_ID_HEX + 1];
            put("r", random() % 2 ? "p1" : "p2",
                random() % 2 ? "{\"queue\": \"other\", \"priority\": \"high\"}" : "{}", run);
            n++;
            if (random() % 8 == 0)
                sl_queue_cancel(q, run, &now, NULL);
            else if (random() % 6 == 0)
                sl_queue_move(q, run, both[random() % 2], (int)(random() % 4), NULL);
        } else if (what < 6 && held < RUNS) {
            if (*take("cpu", both + random() % 2, 1, &c, leases[held])) {
                memcpy(runs[held++], c.run, sizeof c.run);
                sl_claim_release(&c);
            }
        } else if (what < 9 && held) {
            if (what == 6)
                give_back(runs[at], leases[at], st);
            else if (what == 7) {
                fail_run(runs[at], leases[at], "infrastructure", st);
                if (!strcmp(st, "delayed"))
                    make_due(runs[at]);
            } else
                fail_run(runs[at], leases[at], "spec", st);
            held--;
            memcpy(runs[at], runs[held], sizeof runs[at]);
            memcpy(leases[at], leases[held], sizeof leases[at]);
        } else if (what == 9) {
            set_queue(both[random() % 2], settings[random() % 5]);
        } else if (what == 10) {
            set_project(random() % 2 ? "p1" : "p2", settings[random() % 3]);
        } else {
            sl_queue_reap(q, false, NULL, NULL);
        }
        struct sl_cmd cmd;
        redisReply *reply;
        sl_cmd_init(&cmd);
        sl_cmd_add(&cmd, "EVAL");
        sl_cmd_add(&cmd, check);
        sl_cmd_add(&cmd, "1");
        sl_cmd_add(&cmd, "{softlaunch}");
        assert_int_equal(send_cmd(&cmd, &reply), 0);
        if (reply->len)
            fail_msg("seed %u, step %d, operation %d:%s", seed, step, what, reply->str);
        freeReplyObject(reply);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_queue_at_its_limit_holds_the_rest),
        TEST(pause_holds_everything_and_drain_takes_nothing),
        TEST(a_rate_is_kept),
        TEST(turns_follow_weights),
        TEST(gpu_hours_are_counted_and_end),
        TEST(storage_counts_once),
        TEST(a_run_waits_for_its_time),
        TEST(a_dedupe_key_gives_the_run_that_is_there),
        TEST(a_run_is_moved_by_hand),
        TEST(what_is_paused_or_drained_claims_nothing),
        TEST(nothing_is_lost_between_gates),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
