/* Publishing cut off between the queue's script and the store's commit: replayed once, to one
 * version. */
#include "base/json.h"
#include "server/runs.h"
#include "tests/unit/private_redis.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static struct private_redis redis;
static struct sl_store *store;
static struct sl_server server;
static struct sl_runs runs;
static char store_dir[96];

static const char lease[] = "11111111111111111111111111111111";

static int setup(void **state)
{
    (void)state;
    if (private_redis_start(&redis))
        return -1;
    snprintf(store_dir, sizeof store_dir, "%s/store", redis.dir);
    if (sl_store_open(store_dir, &store, NULL) || sl_queue_new(redis.url, &runs.queue, NULL))
        return -1;
    server.store = store;
    runs.server = &server;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_queue_free(runs.queue);
    sl_store_close(store);
    private_redis_stop(&redis);
    return 0;
}

static void claim(const char *under)
{
    static const char *const queues[] = {"default"};
    struct sl_redis_url url;
    struct sl_redis *r;
    redisReply *reply;
    struct sl_cmd c;

    assert_int_equal(sl_redis_url_parse(redis.url, &url, NULL), 0);
    assert_int_equal(sl_redis_new(&url, &r, NULL), 0);
    sl_queue_cmd_claim(&c, under, "a1", 60000, "cpu", queues, 1);
    assert_int_equal(sl_redis_call(r, &c, 0, &reply, NULL), 0);
    assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
    freeReplyObject(reply);
    sl_cmd_release(&c);
    sl_redis_free(r);
}

static void put_manifest(const char *content, char ret_manifest[SL_SHA256_HEX + 1])
{
    char blob[SL_SHA256_HEX + 1];

    assert_int_equal(sl_blob_put(store, content, strlen(content), blob, NULL), 0);
    json_t *m = json_pack("{s:[{s:s, s:s, s:i}]}", "files", "path", "f", "sha256", blob, "bytes",
                          (int)strlen(content));
    char *text = sl_json_dump(m);
    assert_int_equal(sl_blob_put(store, text, strlen(text), ret_manifest, NULL), 0);
    free(text);
    json_decref(m);
}

/* Up to the queue's script, as if the server had been killed right after it. */
static void finish_only(const char *name, const char *content, char run[SL_ID_HEX + 1], int number)
{
    char manifest[SL_SHA256_HEX + 1], version[16];
    json_t *spec =
               json_pack("{s:s, s:s, s:s}", "name", name, "queue", "default", "priority", "medium"),
           *hold;
    bool is_new;

    assert_int_equal(sl_queue_enqueue(runs.queue, spec, NULL, run, NULL, NULL), 0);
    json_decref(spec);
    claim(lease);
    put_manifest(content, manifest);
    assert_int_equal(sl_store_pin(store, manifest, lease, NULL), 0);
    snprintf(version, sizeof version, "v%d", number);
    json_t *outputs = json_pack("[{s:s, s:s, s:s, s:s, s:i, s:s, s:[s]}]", "pin", lease, "output",
                                "prompts", "artifact", "a", "version", version, "number", number,
                                "manifest", manifest, "aliases", "candidate");
    assert_int_equal(sl_queue_finish(runs.queue, run, lease, outputs, NULL, &hold, &is_new, NULL),
                     0);
    assert_true(is_new);
    json_decref(outputs);
    json_decref(hold);
}

static int versions(void)
{
    json_t *a;

    if (sl_store_artifact(store, "a", &a, NULL))
        return 0;
    int n = (int)json_array_size(json_object_get(a, "versions"));
    json_decref(a);
    return n;
}

static void check_output(const char *run, const char *version)
{
    json_t *r;

    assert_int_equal(sl_queue_show(runs.queue, run, &r, NULL), 0);
    assert_string_equal(sl_json_str(r, "state", ""), "succeeded");
    const json_t *o = json_array_get(json_object_get(r, "outputs"), 0);
    assert_string_equal(sl_json_str(o, "version", ""), version);
    assert_null(json_object_get(o, "pin"));
    json_decref(r);
}

static void a_cut_publishing_is_replayed_once(void **state)
{
    char run[SL_ID_HEX + 1];
    json_t *record;
    int n;

    (void)state;
    finish_only("one", "first", run, 0);
    assert_int_equal(versions(), 0); /* nothing half-visible */
    sl_store_close(store);           /* the server starts again */
    assert_int_equal(sl_store_open(store_dir, &store, NULL), 0);
    server.store = store;
    assert_int_equal(sl_publish_replay(&runs, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_int_equal(versions(), 1);
    check_output(run, "v0");
    assert_int_equal(sl_store_resolve(store, "a", "candidate", &record, NULL), 0);
    assert_string_equal(sl_json_str(record, "made_by.run", ""), run);
    json_decref(record);
    assert_int_equal(sl_publish_replay(&runs, &n, NULL), 0);
    assert_int_equal(n, 0);
    assert_int_equal(versions(), 1);
}

/* Killed between the commit and the acknowledgement: the marker is found, no second version
 * appears. */
static void a_commit_without_acknowledgement_is_adopted(void **state)
{
    char run[SL_ID_HEX + 1], manifest[SL_SHA256_HEX + 1];
    json_t *record;
    bool created;
    int n;

    (void)state;
    finish_only("two", "second", run, 1);
    put_manifest("second", manifest);
    const struct sl_commit c = {
        .name = "a", .manifest = manifest, .number = 1, .run = run, .output = "prompts"};
    assert_int_equal(sl_store_commit(store, &c, &record, &created, NULL), 0);
    assert_true(created);
    json_decref(record);
    int before = versions();
    assert_int_equal(sl_publish_replay(&runs, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_int_equal(versions(), before);
    check_output(run, "v1");
}

/* A reservation is lost in a crash and its number taken by somebody else: nothing is overwritten,
 * and the run says which version its result became. */
static void a_taken_number_gives_another_version(void **state)
{
    char run[SL_ID_HEX + 1], other[SL_SHA256_HEX + 1];
    json_t *record;
    int n;

    (void)state;
    finish_only("three", "third", run, 2);
    put_manifest("somebody else's", other);
    const struct sl_commit c = {.name = "a", .manifest = other, .number = 2};
    assert_int_equal(sl_store_commit(store, &c, &record, NULL, NULL), 0);
    assert_string_equal(sl_json_str(record, "version", ""), "v2");
    json_decref(record);
    assert_int_equal(sl_publish_replay(&runs, &n, NULL), 0);
    check_output(run, "v3");
    assert_int_equal(sl_store_resolve(store, "a", "v2", &record, NULL), 0);
    assert_string_equal(sl_json_str(record, "manifest", ""), other);
    json_decref(record);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_publishing_is_replayed_once),
        cmocka_unit_test(a_commit_without_acknowledgement_is_adopted),
        cmocka_unit_test(a_taken_number_gives_another_version),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
