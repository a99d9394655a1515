/* A run's events on their way to Redis: in order, once, bounded while Redis is away, refused when
 * stale. */
#include "agent/report.h"
#include "base/json.h"
#include "tests/unit/private_redis.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static struct private_redis server;
static struct sl_queue *q;
static struct sl_loop *loop;
static struct sl_redis_async *redis;
static struct sl_report *report;
static char run[SL_ID_HEX + 1];
static bool lost, stop_when_up;
static int ups;

static const char lease[] = "11111111111111111111111111111111";

static void on_state(void *arg, bool up, const struct sl_err *err)
{
    (void)arg;
    (void)err;
    if (!up)
        return;
    ups++;
    if (report)
        sl_report_connected(report);
    if (stop_when_up)
        sl_loop_stop(loop);
}

static void on_lost(void *arg)
{
    (void)arg;
    lost = true;
    sl_loop_stop(loop);
}

static void on_taken(void *arg)
{
    (void)arg;
    if (sl_report_drained(report))
        sl_loop_stop(loop);
}

static void on_timeout(void *arg)
{
    *(bool *)arg = true;
    sl_loop_stop(loop);
}

/* Runs the loop until something stops it; fails after 10 s. */
static void spin(void)
{
    bool late = false;
    int timer = sl_loop_timer(loop, 10000000, on_timeout, &late, NULL);

    assert_int_equal(sl_loop_run(loop, NULL), 0);
    sl_loop_timer_cancel(loop, timer);
    assert_false(late);
}

static int start(void **state)
{
    static const char *const queues[] = {"default"};
    const struct sl_report_owner owner = {on_lost, on_taken, NULL};
    json_t *spec =
        json_pack("{s:s, s:s, s:s}", "name", "x", "queue", "default", "priority", "medium");
    struct sl_redis_url url;
    struct sl_redis *r;
    redisReply *reply;
    struct sl_cmd c;

    (void)state;
    lost = false;
    ups = 0;
    if (private_redis_start(&server) || sl_queue_new(server.url, &q, NULL) ||
        sl_queue_enqueue(q, spec, NULL, run, NULL, NULL) ||
        sl_redis_url_parse(server.url, &url, NULL) || sl_redis_new(&url, &r, NULL))
        return -1;
    json_decref(spec);
    sl_queue_cmd_claim(&c, lease, "a1", 60000, "cpu", queues, 1);
    if (sl_redis_call(r, &c, 0, &reply, NULL))
        return -1;
    freeReplyObject(reply);
    sl_cmd_release(&c);
    sl_redis_free(r);
    if (sl_loop_new(&loop, NULL) || sl_redis_async_new(loop, &url, on_state, NULL, &redis, NULL))
        return -1;
    stop_when_up = true;
    spin();
    stop_when_up = false;
    return sl_report_new(loop, redis, run, lease, &owner, &report, NULL);
}

static int stop(void **state)
{
    (void)state;
    sl_report_free(report);
    report = NULL;
    sl_redis_async_free(redis);
    sl_loop_free(loop);
    sl_queue_free(q);
    private_redis_stop(&server);
    return 0;
}

static void metric(int step)
{
    json_t *e =
        json_pack("{s:s, s:i, s:f}", "ev", "metric", "step", step, "loss", 1.0 / (step + 1));

    sl_report_event(report, e);
    json_decref(e);
}

/* All events of a type, in order. */
static json_t *events_of(const char *type)
{
    json_t *all = json_array(), *page, *e;
    char last[64] = "0";
    size_t i;

    for (;;) {
        assert_int_equal(sl_queue_events(q, run, last, 1000, 0, &page, NULL), 0);
        json_array_foreach(json_object_get(page, "events"), i, e)
            if (!strcmp(sl_json_str(e, "type", ""), type))
                json_array_append(all, e);
        size_t n = json_array_size(json_object_get(page, "events"));
        snprintf(last, sizeof last, "%s", sl_json_str(page, "last", "0"));
        json_decref(page);
        if (!n)
            return all;
    }
}

static void events_come_once_and_in_order(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++)
        metric(i);
    int64_t mark = sl_report_mark(report);
    assert_false(sl_report_reached(report, mark));
    spin();
    assert_true(sl_report_drained(report));
    assert_true(sl_report_reached(report, mark));
    json_t *got = events_of("metric");
    assert_int_equal(json_array_size(got), 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(sl_json_int(json_array_get(got, (size_t)i), "data.step", -1), i);
    json_decref(got);
    json_t *r;
    assert_int_equal(sl_queue_show(q, run, &r, NULL), 0);
    assert_int_equal(sl_json_int(r, "step", -1), 999);
    assert_true(sl_json_num(r, "metrics.loss", 0) == 1.0 / 1000);
    json_decref(r);
}

static void redis_is_killed_and_started(void *arg)
{
    (void)arg;
    private_redis_kill(&server, SIGTERM);
    metric(100000);
    assert_int_equal(private_redis_launch(&server), 0);
}

static void a_restart_in_the_middle_loses_and_doubles_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 3000; i++)
        metric(i);
    /* While batches are under way: some reply will be lost. */
    assert_true(sl_loop_timer(loop, SL_REPORT_DELAY_US + 2000, redis_is_killed_and_started, NULL,
                              NULL) >= 0);
    while (!sl_report_drained(report) || ups < 2)
        spin();
    json_t *got = events_of("metric");
    assert_int_equal(json_array_size(got), 3001);
    for (int i = 0; i < 3000; i++)
        assert_int_equal(sl_json_int(json_array_get(got, (size_t)i), "data.step", -1), i);
    json_decref(got);
}

static void away_the_oldest_metrics_go_and_are_counted(void **state)
{
    json_t *e = json_pack("{s:s, s:s}", "ev", "prediction", "prediction", "kept");

    (void)state;
    private_redis_kill(&server, SIGTERM);
    sl_report_event(report, e);
    json_decref(e);
    sl_report_log(report, "info", "a log line");
    for (int i = 0; i < SL_REPORT_MAX_EVENTS + 500; i++)
        metric(i);
    assert_int_equal(private_redis_launch(&server), 0);
    while (!sl_report_drained(report))
        spin();
    json_t *metrics = events_of("metric"), *predictions = events_of("prediction"),
           *logs = events_of("log");
    assert_int_equal(json_array_size(predictions), 1);
    assert_string_equal(sl_json_str(json_array_get(logs, 0), "data.msg", ""), "a log line");
    /* The stream's own limit cuts the far end; what counts here is that the newest are there. */
    size_t n = json_array_size(metrics);
    assert_in_range(n, SL_REPORT_MAX_EVENTS - 200, SL_REPORT_MAX_EVENTS);
    assert_int_equal(sl_json_int(json_array_get(metrics, n - 1), "data.step", -1),
                     SL_REPORT_MAX_EVENTS + 499);
    bool told = false;
    for (size_t i = 0; i < json_array_size(logs); i++)
        if (sl_json_int(json_array_get(logs, i), "data.dropped", 0) >= 500)
            told = true;
    assert_true(told);
    json_decref(metrics);
    json_decref(predictions);
    json_decref(logs);
}

static void a_stale_lease_is_told_and_writes_nothing(void **state)
{
    const struct sl_report_owner owner = {on_lost, on_taken, NULL};

    (void)state;
    sl_report_free(report);
    assert_int_equal(
        sl_report_new(loop, redis, run, "22222222222222222222222222222222", &owner, &report, NULL),
        0);
    metric(1);
    spin();
    assert_true(lost);
    json_t *got = events_of("metric");
    assert_int_equal(json_array_size(got), 0);
    json_decref(got);
}

static void a_log_tail_holds_the_last_lines(void **state)
{
    (void)state;
    for (int i = 0; i < SL_REPORT_LOG_TAIL + 50; i++)
        sl_report_log(report, "info", "line %d", i);
    sl_report_log(report, "info", "%s", "bad \xff bytes");
    char *text = sl_report_log_tail(report);
    json_t *list = json_loads(text, 0, NULL);
    assert_int_equal(json_array_size(list), SL_REPORT_LOG_TAIL);
    assert_string_equal(json_string_value(json_array_get(list, 0)), "line 51");
    assert_string_equal(json_string_value(json_array_get(list, SL_REPORT_LOG_TAIL - 1)),
                        "bad ? bytes");
    json_decref(list);
    free(text);
    spin(); /* and Redis takes them */
    json_t *got = events_of("log");
    assert_int_equal(json_array_size(got), SL_REPORT_LOG_TAIL + 51);
    json_decref(got);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        T(events_come_once_and_in_order),
        T(a_restart_in_the_middle_loses_and_doubles_nothing),
        T(away_the_oldest_metrics_go_and_are_counted),
        T(a_stale_lease_is_told_and_writes_nothing),
        T(a_log_tail_holds_the_last_lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
