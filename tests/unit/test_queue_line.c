/* Who comes next: fair shares of projects and limits on them, classes and offers; against a real Redis. */
#include "tests/unit/queue_line.h"

/* ---- fair shares
 * ------------------------------------------------------------------------------------------- */

static void a_flood_of_one_project_delays_another_by_one_slot(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++)
        put("flood", "big", "{}", NULL);
    for (int i = 0; i < 40; i++)
        assert_string_equal(next(), "flood");
    put("one", "small", "{}", NULL);
    put("two", "small", "{}", NULL);
    put("other", "third", "{}", NULL);
    int place[3] = {-1, -1, -1};
    for (int i = 0; i < 8; i++) {
        const char *name = next();
        for (int k = 0; k < 3; k++)
            if (!strcmp(name, ((const char *const[]){"one", "two", "other"})[k]))
                place[k] = i;
    }
    assert_in_range(place[0], 0, 2); /* big's next, third's first */
    assert_in_range(place[2], 0, 2);
    assert_in_range(place[1], 2, 5);
}

static void retries_of_a_flood_do_not_pass_others(void **state)
{
    char run[SL_ID_HEX + 1], lease[SL_ID_HEX + 1], st[16];
    struct sl_claim c;

    (void)state;
    for (int i = 0; i < 60; i++)
        put("flood", "big", "{}", NULL);
    for (int i = 0; i < 60; i++) {
        take("cpu", queues, 1, &c, lease);
        fail_run(c.run, lease, "crash", st);
        make_due(c.run);
        sl_claim_release(&c);
    }
    put("one", "small", "{}", run);
    pass();
    assert_int_equal(zcard(READY), 61);
    const char *name = next();
    if (strcmp(name, "one") != 0)
        name = next();
    assert_string_equal(name, "one");
}

static void a_project_at_its_limit_lets_others_pass(void **state)
{
    char run[SL_ID_HEX + 1], lease[2][SL_ID_HEX + 1], last[SL_ID_HEX + 1];
    struct sl_claim c[2];

    (void)state;
    assert_int_equal(set_project("big", "{\"max_running\": 2}"), 0);
    for (int i = 0; i < 50; i++)
        put("big", "big", "{}", last);
    assert_int_equal(zcard(READY), 2); /* what an autoscaler counts */
    put("small", "small", "{}", run);
    assert_int_equal(zcard(READY), 3);
    check_waits(last, "project big has 0 of 2");
    int bigs = 0;
    for (int i = 0; i < 3; i++) {
        int k = bigs < 2 ? bigs : 1;
        struct sl_claim one;
        char under[SL_ID_HEX + 1];
        if (!strcmp(take("cpu", queues, 1, &one, under), "big")) {
            c[k] = one;
            memcpy(lease[k], under, sizeof under);
            bigs++;
        } else {
            sl_claim_release(&one);
        }
    }
    assert_int_equal(bigs, 2);
    assert_string_equal(next(), "");
    assert_int_equal(zcard(READY), 0);
    check_waits(last, "project big has 2 of 2");
    give_back(c[0].run, lease[0], NULL); /* a slot is free: one may start, and it is the one given back */
    assert_int_equal(zcard(READY), 1);
    struct sl_claim again;
    take("cpu", queues, 1, &again, NULL);
    assert_string_equal(again.run, c[0].run);
    sl_claim_release(&again);
    assert_string_equal(next(), "");
    assert_int_equal(set_project("big", "{\"max_running\": 0}"), 0);
    pass();
    assert_int_equal(zcard(READY), 48);
    for (int i = 0; i < 2; i++)
        sl_claim_release(&c[i]);
}

/* A limit that comes when the runs stand in line already holds from the next claim on. */
static void a_late_limit_of_a_project_holds_too(void **state)
{
    (void)state;
    for (int i = 0; i < 30; i++)
        put("big", "big", "{}", NULL);
    put("small", "small", "{\"priority\": \"low\"}", NULL);
    assert_int_equal(set_project("big", "{\"max_running\": 1}"), 0);
    assert_string_equal(next(), "big");
    const char *name = "";
    for (int i = 0; i < 3 && !*name; i++)
        name = next(); /* a claim looks at a bounded number of them */
    assert_string_equal(name, "small");
    assert_string_equal(next(), "");
    assert_int_equal(zcard(READY), 0);
}

/* More runs than one call moves: the limit holds at once, and all come back in the end. */
static void limits_on_many_runs_come_and_go(void **state)
{
    enum { RUNS = 250 };

    (void)state;
    for (int i = 0; i < RUNS; i++)
        put("big", "big", "{}", NULL);
    assert_int_equal(set_project("big", "{\"max_running\": 1}"), 0);
    assert_string_equal(next(), "big");
    later_pass();
    for (int i = 0; i < RUNS; i++) /* each looks at some and puts them aside */
        assert_string_equal(next(), "");
    assert_int_equal(zcard(READY), 0);
    assert_int_equal(set_project("big", "{\"max_running\": 0}"), 0);
    later_pass();
    assert_int_equal(zcard(READY), RUNS - 1);
    assert_int_equal(set_queue("default", "{\"max_running\": 2}"), 0);
    assert_string_equal(next(), "big");
    assert_string_equal(next(), "");
    assert_int_equal(set_queue("default", "{\"max_running\": 0}"), 0);
    later_pass();
    assert_int_equal(zcard(READY), RUNS - 2);
    assert_int_equal(set_queue("default", "{\"state\": \"paused\"}"), 0);
    assert_string_equal(next(), "");
    assert_int_equal(set_queue("default", "{\"state\": \"active\"}"), 0);
    later_pass();
    assert_int_equal(zcard(READY), RUNS - 2);
}

static void a_limited_project_gets_its_share_and_no_more(void **state)
{
    struct sl_claim c;
    char lease[SL_ID_HEX + 1], st[16];
    int big = 0;

    (void)state;
    assert_int_equal(set_project("big", "{\"max_running\": 5}"), 0);
    for (int i = 0; i < 60; i++) {
        put("big", "big", "{}", NULL);
        put("small", "small", "{}", NULL);
    }
    for (int i = 0; i < 40; i++) { /* one slot: each ends before the next begins */
        big += !strcmp(take("cpu", queues, 1, &c, lease), "big");
        fail_run(c.run, lease, "spec", st);
        sl_claim_release(&c);
    }
    assert_in_range(big, 18, 22);
}

/* ---- classes
 * ----------------------------------------------------------------------------------------------- */

static void runs_go_where_they_fit(void **state)
{
    const char *gpu = "{\"resources\": {\"gpus\": 2, \"gpu_memory_gib\": 40, \"labels\": [\"zone=eu\"]}}";
    char class[SL_QUEUE_CLASS_MAX + 1], run[SL_ID_HEX + 1];
    struct sl_claim c;

    (void)state;
    put("gpu", "p", gpu, run);
    check_field(run, "class", "gpu2+mem40+zone=eu");
    const char *too_small[] = {"cpu", "gpu1+mem80+zone=eu", "gpu2+mem24+zone=eu", "gpu2+mem40",
                               "gpu4+mem80+zone=us"};
    for (int i = 0; i < 5; i++)
        assert_string_equal(take(too_small[i], queues, 1, NULL, NULL), "");
    json_t *labels = json_pack("[s, s]", "zone=eu", "nvlink");
    assert_int_equal(sl_queue_class(8, 80, labels, class, NULL), 0);
    json_decref(labels);
    assert_string_equal(class, "gpu8+mem80+nvlink+zone=eu");
    assert_string_equal(take(class, queues, 1, &c, NULL), "gpu");
    assert_int_equal(c.gpus, 2);
    sl_claim_release(&c);
    put("anywhere", "p", "{}", NULL);
    assert_string_equal(take(class, queues, 1, NULL, NULL), "anywhere");
}

static void a_class_is_not_starved_by_another(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++)
        put("gpu", "big", "{\"resources\": {\"gpus\": 1}}", NULL);
    for (int i = 0; i < 5; i++)
        take("gpu1", queues, 1, NULL, NULL);
    put("cpu", "small", "{}", NULL);
    const char *name = take("gpu1", queues, 1, NULL, NULL);
    if (strcmp(name, "cpu") != 0)
        name = take("gpu1", queues, 1, NULL, NULL);
    assert_string_equal(name, "cpu");
    /* priority is over all classes */
    put("urgent", "small", "{\"priority\": \"critical\"}", NULL);
    assert_string_equal(take("gpu1", queues, 1, NULL, NULL), "urgent");
}

static void a_run_that_nobody_can_serve_says_so(void **state)
{
    const char *huge = "{\"resources\": {\"gpus\": 8}}";
    char run[SL_ID_HEX + 1];

    (void)state;
    put("huge", "p", huge, run);
    pass();
    check_waits(run, "no agent serves queue default now");
    assert_int_equal(zcard("{softlaunch}:ready:default:gpu8"), 1); /* an autoscaler may bring one */
    beat("gpu1+mem80", queues, 1);
    later_pass();
    check_waits(run, "no agent of queue default offers gpu8; there is gpu1+mem80");
    assert_int_equal(zcard("{softlaunch}:ready:default:gpu8"), 0);
    beat("gpu8", queues, 1);
    later_pass();
    check_waits(run, "");
    assert_int_equal(zcard("{softlaunch}:ready:default:gpu8"), 1);
    assert_string_equal(take("gpu8", queues, 1, NULL, NULL), "huge");
}

static void what_an_autoscaler_brings_counts_as_there(void **state)
{
    char run[SL_ID_HEX + 1];

    (void)state;
    beat("cpu", queues, 1);
    assert_int_equal(set_queue("default", "{\"offers\": [\"gpu4+mem80\"]}"), 0);
    put("gpu", "p", "{\"resources\": {\"gpus\": 4, \"gpu_memory_gib\": 80}}", run);
    later_pass();
    assert_int_equal(zcard("{softlaunch}:ready:default:gpu4+mem80"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_flood_of_one_project_delays_another_by_one_slot),
        TEST(retries_of_a_flood_do_not_pass_others),
        TEST(a_project_at_its_limit_lets_others_pass),
        TEST(a_late_limit_of_a_project_holds_too),
        TEST(limits_on_many_runs_come_and_go),
        TEST(a_limited_project_gets_its_share_and_no_more),
        TEST(runs_go_where_they_fit),
        TEST(a_class_is_not_starved_by_another),
        TEST(a_run_that_nobody_can_serve_says_so),
        TEST(what_an_autoscaler_brings_counts_as_there),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
