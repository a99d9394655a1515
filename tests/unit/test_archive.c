/* The archive of finished runs: nothing twice, nothing lost behind a torn write, lists from records alone. */
#include "base/file.h"
#include "base/json.h"
#include "server/archive.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RUN "00112233445566778899aabbccddeeff"

static char dir[64];
static struct sl_archive *a;

static int fresh(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/sl-archive-XXXXXX");
    return !mkdtemp(dir) || sl_archive_open(dir, &a, NULL);
}

static int done(void **state)
{
    (void)state;
    sl_archive_close(a);
    a = NULL;
    return sl_rmtree(dir, NULL);
}

static void reopen(void)
{
    struct sl_err err = SL_ERR_INIT;

    sl_archive_close(a);
    a = NULL;
    if (sl_archive_open(dir, &a, &err))
        fail_msg("%s", err.msg);
}

/* Events from..to-1, as Redis numbers them. */
static json_t *events(int from, int to)
{
    json_t *list = json_array();

    for (int i = from; i < to; i++) {
        char id[32];
        snprintf(id, sizeof id, "%d-%d", 1000 + i / 10, i % 10);
        json_array_append_new(list, json_pack("{s:s, s:s, s:{s:i}}", "id", id, "type", "log", "data",
                                              "n", i));
    }
    return list;
}

static void append(int from, int to)
{
    json_t *list = events(from, to);

    assert_int_equal(sl_archive_append(a, RUN, list, NULL), 0);
    json_decref(list);
}

static void check_events(const char *after, int most, int from, int to)
{
    json_t *page;

    assert_int_equal(sl_archive_events(a, RUN, after, most, &page, NULL), 0);
    const json_t *list = json_object_get(page, "events");
    assert_int_equal(json_array_size(list), to - from);
    for (int i = from; i < to; i++)
        assert_int_equal(sl_json_int(json_array_get(list, (size_t)(i - from)), "data.n", -1), i);
    json_decref(page);
}

static void events_come_once_and_in_order(void **state)
{
    char last[64];

    (void)state;
    assert_int_equal(sl_archive_last_event(a, RUN, last, NULL), 0);
    assert_string_equal(last, "0");
    check_events("0", 100, 0, 0);
    append(0, 12);
    append(0, 12); /* a pass that was cut short, again */
    append(5, 30);
    assert_int_equal(sl_archive_last_event(a, RUN, last, NULL), 0);
    assert_string_equal(last, "1002-9");
    check_events("0", 100, 0, 30);
    check_events("1000-9", 5, 10, 15); /* 1001-0 comes behind 1000-9 */
    check_events("1002-9", 5, 30, 30);
    reopen();
    check_events(NULL, 100, 0, 30);
}

/* A crash in the middle of a write leaves a piece of a frame. */
static void a_torn_end_is_cut_off(void **state)
{
    char path[256];
    struct sl_buf whole;

    (void)state;
    snprintf(path, sizeof path, "%s/runs/00/" RUN "/events.ndjson.zst", dir);
    append(0, 20);
    sl_buf_init(&whole, 1 << 20);
    assert_int_equal(sl_file_read(path, &whole, NULL), 0);
    size_t first = whole.len;
    append(20, 40);
    sl_buf_reset(&whole);
    assert_int_equal(sl_file_read(path, &whole, NULL), 0);
    for (size_t cut = first + 1; cut < whole.len; cut += 7) {
        assert_int_equal(sl_file_write(path, whole.p, cut, NULL), 0);
        check_events("0", 100, 0, 20);
        append(18, 40);
        check_events("0", 100, 0, 40);
    }
    sl_buf_release(&whole);
}

static void put(const char *run, int seq, const char *state, int64_t finished_ms)
{
    json_t *r = json_pack("{s:s, s:i, s:s, s:s, s:s, s:I, s:{s:s}}", "run", run, "seq", seq, "state",
                          state, "queue", "q", "project", "p", "finished_ms",
                          (json_int_t)finished_ms, "spec", "name", "x");
    assert_int_equal(sl_archive_put(a, r, NULL), 0);
    json_decref(r);
}

static void many(int n)
{
    char run[33];

    for (int i = 1; i <= n; i++) {
        snprintf(run, sizeof run, "%032x", i * 2654435761u);
        put(run, i, i % 3 ? "succeeded" : "dead", 1000 * i);
    }
    assert_int_equal(sl_archive_commit(a, NULL), 0);
}

static void check_list(const char *below, const char *state, int n, int first_seq)
{
    json_t *list;

    assert_int_equal(sl_archive_list(a, below, 10, state, NULL, "p", &list, NULL), 0);
    assert_int_equal(json_array_size(list), n);
    if (n) {
        assert_int_equal(sl_json_int(json_array_get(list, 0), "seq", 0), first_seq);
        assert_null(json_object_get(json_array_get(list, 0), "spec"));
    }
    json_decref(list);
}

static void lists_are_newest_first_and_made_anew_from_records(void **state)
{
    char path[256];
    int64_t seq;

    (void)state;
    many(50);
    for (int turn = 0; turn < 3; turn++) {
        check_list(NULL, NULL, 10, 50);
        check_list("45", NULL, 10, 44);
        check_list("4", NULL, 3, 3);
        check_list(NULL, "dead", 10, 48);
        check_list(NULL, "cancelled", 0, 0);
        assert_int_equal(sl_archive_newest(a, &seq, NULL), 0);
        assert_int_equal(seq, 50);
        snprintf(path, sizeof path, "%s/runs/index.db", dir);
        if (turn == 0) {
            assert_int_equal(unlink(path), 0);
            snprintf(path, sizeof path, "%s/runs/index.db-wal", dir);
            unlink(path);
        } else {
            assert_int_equal(sl_file_write(path, "not a database", 14, NULL), 0);
        }
        reopen();
    }
}

static void a_record_is_never_changed(void **state)
{
    json_t *r;

    (void)state;
    put(RUN, 7, "dead", 1000);
    put(RUN, 7, "succeeded", 2000);
    assert_int_equal(sl_archive_show(a, RUN, &r, NULL), 0);
    assert_string_equal(sl_json_str(r, "state", ""), "dead");
    json_decref(r);
    assert_int_equal(sl_archive_show(a, "ffffffffffffffffffffffffffffffff", &r, NULL), SL_NOTFOUND);
    assert_int_equal(sl_archive_show(a, "../../../../etc/passwd", &r, NULL), SL_NOTFOUND);
}

static void old_runs_expire(void **state)
{
    int removed;

    (void)state;
    many(20);
    append(0, 3); /* of a run that has not ended: stays */
    assert_int_equal(sl_archive_expire(a, 6000, 100, &removed, NULL), 0);
    assert_int_equal(removed, 5);
    check_list("10", NULL, 4, 9);
    check_events("0", 10, 0, 3);
    reopen();
    check_list("10", NULL, 4, 9);
    assert_int_equal(sl_archive_expire(a, 100000, 3, &removed, NULL), 0);
    assert_int_equal(removed, 3);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, fresh, done)
    const struct CMUnitTest tests[] = {
        TEST(events_come_once_and_in_order),
        TEST(a_torn_end_is_cut_off),
        TEST(lists_are_newest_first_and_made_anew_from_records),
        TEST(a_record_is_never_changed),
        TEST(old_runs_expire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
