/* Runs of which something changed: none is missed, none comes twice without a reason. */
#include "tests/unit/queue_fixture.h"
#include <string.h>

/* Takes what changed; *ret_run: the last one, as it is. Returns how many. */
static int take(json_t **ret_run)
{
    json_t *taken = NULL, *changes;
    int n = 0;

    for (;;) {
        assert_int_equal(sl_queue_changes(q, taken, &changes, NULL), 0);
        json_decref(taken);
        taken = changes;
        if (!json_array_size(changes))
            break;
        n += (int)json_array_size(changes);
        if (ret_run) {
            json_decref(*ret_run);
            *ret_run = json_incref(json_array_get(changes, 0));
        }
    }
    json_decref(taken);
    return n;
}

/* That one run changed, and how it is now. */
static void one(const char *run, const char *state)
{
    json_t *r = NULL, *shown, *value;
    const char *key;

    assert_int_equal(take(&r), 1);
    assert_string_equal(sl_json_str(r, "run", ""), run);
    assert_string_equal(sl_json_str(r, "state", ""), state);
    assert_int_equal(sl_queue_show(q, run, &shown, NULL), 0);
    json_object_foreach(r, key, value)
        assert_true(json_equal(value, json_object_get(shown, key)));
    json_decref(shown);
    json_decref(r);
}

static void every_step_of_a_run_is_a_change(void **state)
{
    char run[SL_ID_HEX + 1];
    bool cancelled, revived, is_new;
    int number;
    json_t *outputs = json_pack("[{s:i}]", "number", 9);

    (void)state;
    enqueue("x", "medium", run);
    one(run, "queued");
    assert_int_equal(sl_queue_move(q, run, NULL, 0, NULL), 0);
    one(run, "queued");
    claim(L1);
    one(run, "running");
    assert_int_equal(renew(run, L1, 60000, &cancelled, &revived), 0);
    one(run, "running");
    assert_int_equal(append(run, L1, 1, "{}"), 0);
    one(run, "running");
    assert_int_equal(checkpoint(run, L1, "m", 3), 0);
    one(run, "running");
    assert_int_equal(give_back(run, L1, NULL), 0);
    one(run, "queued");
    claim(L2);
    assert_int_equal(fail_run(run, L2, "crash", NULL), 0);
    one(run, "delayed");
    make_due(run);
    reap(0, 1);
    one(run, "queued");
    claim(L3);
    assert_int_equal(finish(run, L3, 7, &number, &is_new), 0);
    one(run, "succeeded");
    assert_int_equal(sl_queue_ack(q, run, outputs, NULL), 0);
    one(run, "succeeded");
    json_decref(outputs);
    assert_int_equal(take(NULL), 0);
    assert_int_equal(sl_queue_forget(q, run, NULL), 0);
    assert_int_equal(take(NULL), 0);
}

static void what_is_not_taken_or_changed_again_comes_again(void **state)
{
    char run[SL_ID_HEX + 1];
    const char *how;
    json_t *changes, *again;

    (void)state;
    enqueue("x", "medium", run);
    assert_int_equal(sl_queue_changes(q, NULL, &changes, NULL), 0);
    assert_int_equal(json_array_size(changes), 1);
    json_decref(changes);
    assert_int_equal(sl_queue_changes(q, NULL, &changes, NULL), 0);
    assert_int_equal(json_array_size(changes), 1);
    assert_int_equal(sl_queue_cancel(q, run, &how, NULL), 0); /* between reading and taking */
    assert_int_equal(sl_queue_changes(q, changes, &again, NULL), 0);
    json_decref(changes);
    assert_int_equal(json_array_size(again), 1);
    assert_string_equal(sl_json_str(json_array_get(again, 0), "state", ""), "cancelled");
    json_decref(again);
    one(run, "cancelled");
}

static void many_come_in_pieces(void **state)
{
    char run[SL_ID_HEX + 1];

    (void)state;
    for (int i = 0; i < 3 * SL_QUEUE_CHANGES_MAX + 1; i++)
        enqueue("x", "medium", run);
    assert_int_equal(take(NULL), 3 * SL_QUEUE_CHANGES_MAX + 1);
}

static void a_run_says_why_it_waits_and_of_which_job_it_is(void **state)
{
    json_t *s = spec("x", "medium"), *runs, *changes, *paused = json_pack("{s:s}", "state", "paused");
    char run[SL_ID_HEX + 1];

    (void)state;
    json_object_set_new(s, "origin", json_pack("{s:s}", "job", "nightly"));
    assert_int_equal(sl_queue_enqueue(q, s, NULL, run, NULL, NULL), 0);
    json_decref(s);
    assert_int_equal(sl_queue_set_queue(q, "default", paused, NULL), 0);
    json_decref(paused);
    assert_int_equal(sl_queue_changes(q, NULL, &changes, NULL), 0);
    runs = json_copy(changes);
    assert_string_equal(sl_json_str(json_array_get(runs, 0), "job", ""), "nightly");
    assert_int_equal(sl_queue_waiting_for(q, runs, NULL), 0);
    json_t *shown;
    assert_int_equal(sl_queue_show(q, run, &shown, NULL), 0);
    assert_true(*sl_json_str(shown, "waiting_for", ""));
    assert_string_equal(sl_json_str(json_array_get(runs, 0), "waiting_for", ""), sl_json_str(shown, "waiting_for", ""));
    json_decref(shown);
    json_decref(runs);
    json_decref(changes);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup(f, fresh)
    const struct CMUnitTest tests[] = {
        T(every_step_of_a_run_is_a_change),
        T(what_is_not_taken_or_changed_again_comes_again),
        T(many_come_in_pieces),
        T(a_run_says_why_it_waits_and_of_which_job_it_is),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
