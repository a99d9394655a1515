/* The archive of finished runs: nothing twice, nothing lost behind a torn write. */
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

/* Long logs are taken in many pieces: none may cost what all before it have cost. What is there is zeros meanwhile, so whoever
 * reads it would cut it off. */
static void appending_reads_nothing_of_what_is_there(void **state)
{
    char path[256], last[64];
    struct sl_buf before, after;

    (void)state;
    snprintf(path, sizeof path, "%s/runs/00/" RUN "/events.ndjson.zst", dir);
    append(0, 1000);
    reopen();
    append(1000, 2000);
    sl_buf_init(&before, 1 << 20);
    sl_buf_init(&after, 1 << 20);
    assert_int_equal(sl_file_read(path, &before, NULL), 0);
    char *zeros = calloc(1, before.len);
    FILE *f = fopen(path, "r+");
    assert_int_equal(fwrite(zeros, 1, before.len, f), before.len);
    assert_int_equal(fclose(f), 0);
    append(1990, 2500);
    assert_int_equal(sl_archive_last_event(a, RUN, last, NULL), 0);
    assert_string_equal(last, "1249-9");
    assert_int_equal(sl_file_read(path, &after, NULL), 0);
    assert_true(after.len > before.len);
    assert_memory_equal(after.p, zeros, before.len);
    memcpy(after.p, before.p, before.len);
    assert_int_equal(sl_file_write(path, after.p, after.len, NULL), 0);
    reopen();
    check_events("0", 3000, 0, 2500);
    free(zeros);
    sl_buf_release(&before);
    sl_buf_release(&after);
}

static void put(const char *run, int seq, const char *state, int64_t finished_ms)
{
    json_t *r = json_pack("{s:s, s:i, s:s, s:s, s:s, s:I, s:{s:s}}", "run", run, "seq", seq, "state",
                          state, "queue", "q", "project", "p", "finished_ms",
                          (json_int_t)finished_ms, "spec", "name", "x");
    assert_int_equal(sl_archive_put(a, r, NULL), 0);
    json_decref(r);
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

static void notes_are_apart_and_go_with_the_run(void **state)
{
    json_t *note, *given = json_pack("{s:s, s:[s]}", "notes", "good", "tags", "best"), *ids;

    (void)state;
    assert_int_equal(sl_archive_note(a, RUN, &note, NULL), 0);
    assert_string_equal(sl_json_str(note, "notes", "?"), "");
    assert_int_equal(json_array_size(json_object_get(note, "tags")), 0);
    json_decref(note);
    assert_int_equal(sl_archive_set_note(a, RUN, given, NULL), 0); /* while it is live */
    assert_false(sl_archive_has(a, RUN));
    put(RUN, 7, "dead", 1000);
    assert_true(sl_archive_has(a, RUN));
    reopen();
    assert_int_equal(sl_archive_note(a, RUN, &note, NULL), 0);
    assert_true(json_equal(note, given));
    json_decref(note);
    json_decref(given);
    assert_int_equal(sl_archive_ids(a, "00", &ids, NULL), 0);
    assert_int_equal(json_array_size(ids), 1);
    json_decref(ids);
    assert_int_equal(sl_archive_remove(a, RUN, NULL), 0);
    assert_false(sl_archive_has(a, RUN));
    assert_int_equal(sl_archive_ids(a, "00", &ids, NULL), 0);
    assert_int_equal(json_array_size(ids), 0);
    json_decref(ids);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, fresh, done)
    const struct CMUnitTest tests[] = {
        TEST(events_come_once_and_in_order),
        TEST(a_torn_end_is_cut_off),
        TEST(appending_reads_nothing_of_what_is_there),
        TEST(a_record_is_never_changed),
        TEST(notes_are_apart_and_go_with_the_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
