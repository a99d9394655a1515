/* The read model of runs from the archive alone, while Redis is away: orders, what it is made anew from, expiry, notes.
 * tests/system/read_model.py has the rest. */
#include "base/file.h"
#include "base/json.h"
#include "server/history.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];
static struct sl_archive *a;
static struct sl_queue *q;
static struct sl_history *h;

static void open_all(void)
{
    struct sl_err err = SL_ERR_INIT;
    char url[128];

    snprintf(url, sizeof url, "unix://%s/none.sock", dir);
    if (sl_archive_open(dir, &a, &err) || sl_queue_new(url, &q, &err) || sl_history_open(dir, a, q, &h, &err))
        fail_msg("%s", err.msg);
}

static void close_all(void)
{
    sl_history_close(h);
    sl_queue_free(q);
    sl_archive_close(a);
}

static int fresh(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/sl-history-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    open_all();
    return 0;
}

static int done(void **state)
{
    (void)state;
    close_all();
    return sl_rmtree(dir, NULL);
}

/* Run i of n, seq i, every third one dead. */
static void run_of(int i, char run[33])
{
    snprintf(run, 33, "%032x", i * 2654435761u);
}

static void many(int n)
{
    char run[33];

    for (int i = 1; i <= n; i++) {
        run_of(i, run);
        json_t *r = json_pack("{s:s, s:i, s:s, s:s, s:s, s:i, s:{s:s}}", "run", run, "seq", i, "state",
                              i % 3 ? "succeeded" : "dead", "queue", "q", "project", "p", "finished_ms", 1000 * i,
                              "spec", "name", "x");
        assert_int_equal(sl_history_archive(h, r, NULL), 0);
        json_decref(r);
    }
}

static void check_list(int64_t below, const char *state, int n, int first_seq, int total)
{
    struct sl_runs_query query = {.below = below, .state = state, .limit = 10};
    json_t *page, *runs;

    assert_int_equal(sl_history_list(h, &query, &page, NULL), 0);
    runs = json_object_get(page, "runs");
    assert_int_equal(json_array_size(runs), n);
    assert_false(sl_json_bool(page, "live", true));
    assert_int_equal(sl_json_int(page, "total", -1), total);
    if (n) {
        assert_int_equal(sl_json_int(json_array_get(runs, 0), "seq", 0), first_seq);
        assert_null(json_object_get(json_array_get(runs, 0), "spec"));
    }
    json_decref(page);
}

static void lists_are_newest_first_and_made_anew_from_records(void **state)
{
    char path[256];
    int64_t seq;

    (void)state;
    many(50);
    for (int turn = 0; turn < 3; turn++) {
        check_list(0, NULL, 10, 50, 50);
        check_list(45, NULL, 10, 44, 50);
        check_list(4, NULL, 3, 3, 50);
        check_list(0, "dead", 10, 48, 16);
        check_list(0, "cancelled", 0, 0, 0);
        assert_int_equal(sl_history_newest(h, &seq, NULL), 0);
        assert_int_equal(seq, 50);
        close_all();
        snprintf(path, sizeof path, "%s/read.db", dir);
        if (turn == 0)
            assert_int_equal(unlink(path), 0);
        else
            assert_int_equal(sl_file_write(path, "not a database", 14, NULL), 0);
        open_all();
    }
}

static void old_runs_expire(void **state)
{
    char run[33];
    int removed;

    (void)state;
    many(20);
    assert_int_equal(sl_history_expire(h, 6000, 100, &removed, NULL), 0);
    assert_int_equal(removed, 5);
    check_list(10, NULL, 4, 9, 15);
    run_of(5, run);
    assert_false(sl_archive_has(a, run));
    close_all();
    open_all();
    check_list(10, NULL, 4, 9, 15);
    assert_int_equal(sl_history_expire(h, 100000, 3, &removed, NULL), 0);
    assert_int_equal(removed, 3);
    /* A record that is gone without us is found out at the start. */
    run_of(20, run);
    assert_int_equal(sl_archive_remove(a, run, NULL), 0);
    close_all();
    open_all();
    check_list(0, NULL, 10, 19, 11);
}

static void archived_runs_stay_what_they_are(void **state)
{
    json_t *live = json_pack("[{s:s, s:i, s:s}]", "run", "00000000000000000000000000000000", "seq", 9, "state", "dead");
    json_t *archived = json_pack("[{s:s, s:i, s:s}]", "run", "00000000000000000000000000000000", "seq", 9, "state", "failed");
    struct sl_runs_index *x;
    bool is_fresh;
    char path[256];

    (void)state;
    snprintf(path, sizeof path, "%s/other.db", dir);
    assert_int_equal(sl_runs_index_open(path, a, &x, &is_fresh, NULL), 0);
    assert_true(is_fresh);
    assert_int_equal(sl_runs_index_put(x, live, false, NULL), 0);
    assert_int_equal(sl_runs_index_put(x, archived, true, NULL), 0);
    assert_int_equal(sl_runs_index_put(x, live, false, NULL), 0);
    json_t *gone = json_pack("[{s:s, s:n}]", "run", "00000000000000000000000000000000", "state");
    assert_int_equal(sl_runs_index_put(x, gone, false, NULL), 0);
    struct sl_runs_query query = {.limit = 5, .state = "failed"};
    json_t *page;
    assert_int_equal(sl_runs_index_query(x, &query, &page, NULL), 0);
    assert_int_equal(json_array_size(json_object_get(page, "runs")), 1);
    json_decref(page);
    json_decref(gone);
    json_decref(live);
    json_decref(archived);
    sl_runs_index_close(x);
}

static void notes_are_found(void **state)
{
    json_t *notes = json_string("the one with 50% more_data"), *tags = json_pack("[s]", "best"), *note, *page;
    static const struct {
        const char *tag, *q;
        int n;
    } asked[] = {{"best", NULL, 1}, {"bes", NULL, 0}, {NULL, "50% ONE", 1}, {NULL, "50_", 0}, {NULL, "more_d", 1},
                 {"best", "nothing", 0}, {NULL, "best", 1}};
    char run[33];

    (void)state;
    many(20);
    run_of(7, run);
    assert_int_equal(sl_history_note(h, run, notes, tags, &note, NULL), 0);
    json_decref(note);
    for (int turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
            struct sl_runs_query query = {.tag = asked[i].tag, .q = asked[i].q, .limit = 10};
            assert_int_equal(sl_history_list(h, &query, &page, NULL), 0);
            assert_int_equal(sl_json_int(page, "total", -1), asked[i].n);
            assert_int_equal(json_array_size(json_object_get(page, "runs")), asked[i].n);
            json_decref(page);
        }
        close_all();
        char path[256];
        snprintf(path, sizeof path, "%s/read.db", dir);
        unlink(path);
        open_all();
    }
    json_decref(notes);
    json_decref(tags);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, fresh, done)
    const struct CMUnitTest tests[] = {
        TEST(lists_are_newest_first_and_made_anew_from_records),
        TEST(old_runs_expire),
        TEST(archived_runs_stay_what_they_are),
        TEST(notes_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
