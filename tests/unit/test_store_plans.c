/* Plans of fetch and push against the store over HTTP. */
#include "artifacts/pack.h"
#include "artifacts/plan.h"
#include "artifacts/transfer.h"
#include "base/clock.h"
#include "base/json.h"
#include "tests/unit/http_script.h"
#include "tests/unit/store_server.h"
#include <dirent.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int publish(const char *name, const char *folder)
{
    /* By hand what `artifact put` does: blobs, manifest, version. */
    struct dirent **list;
    json_t *files = json_array(), *record;
    char sha[65];
    int n = scandir(in_dir(folder), &list, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char path[300];
        struct sl_buf buf;
        snprintf(path, sizeof path, "%s/%s", folder, list[i]->d_name);
        sl_buf_init(&buf, 1 << 20);
        if (list[i]->d_name[0] != '.') {
            assert_int_equal(sl_file_read(in_dir(path), &buf, &err), 0);
            assert_int_equal(sl_blob_put(server.store, buf.p, buf.len, sha, &err), 0);
            json_array_append_new(files, json_pack("{s:s, s:s, s:i}", "path", list[i]->d_name,
                                                   "sha256", sha, "bytes", (int)buf.len));
        }
        sl_buf_release(&buf);
        free(list[i]);
    }
    free(list);
    json_t *manifest = json_pack("{s:o}", "files", files);
    char *text = sl_json_dump(manifest);
    assert_int_equal(sl_blob_put(server.store, text, strlen(text), sha, &err), 0);
    free(text);
    json_decref(manifest);
    struct sl_commit c = {.name = name, .manifest = sha, .number = -1};
    assert_int_equal(sl_store_commit(server.store, &c, &record, NULL, &err), 0);
    int number = (int)sl_json_int(record, "number", -1);
    json_decref(record);
    return number;
}

static int fetch(json_t *items_stolen, json_t **ret_resolved)
{
    const struct sl_watch watch = {NULL, NULL, NULL, NULL};
    json_t *plan = json_pack("{s:s, s:s, s:[s], s:s, s:o}", "server", base_url, "cache",
                             in_dir("cache"), "allow_paths", in_dir("allowed"), "run_dir",
                             in_dir("run"), "items", items_stolen);
    sl_err_clear(&err);
    int rc = sl_plan_fetch(plan, TOKEN, &watch, ret_resolved, &err);
    json_decref(plan);
    return rc;
}

static void fetch_plans(void **state)
{
    json_t *resolved;
    char link[SL_PATH_MAX];
    (void)state;
    put_file("one/model.gguf", "the model");
    put_file("two/train.jsonl", "{\"a\":1}");
    put_file("two/test.jsonl", "{\"b\":2}");
    put_file("allowed/mine.txt", "local");
    put_file("secret/mine.txt", "secret");
    put_file("allowed/folder/inside", "inside");
    put_file("allowed/open/inside", "inside");
    assert_int_equal(symlink("../secret/mine.txt", in_dir("allowed/sneaky")), 0);
    assert_int_equal(symlink("../../secret", in_dir("allowed/folder/out")), 0);
    assert_int_equal(symlink("../mine.txt", in_dir("allowed/open/near")), 0);
    assert_int_equal(publish("model", "one"), 0);
    assert_int_equal(publish("data", "two"), 0);
    snprintf(link, sizeof link, "file://%s", in_dir("allowed/mine.txt"));
    for (int round = 0; round < 2; round++) { /* the second replaces what the first has placed */
        json_t *items = json_pack("[{s:s, s:s}, {s:s, s:s}, {s:s, s:s}, {s:s, s:s}]", "ref",
                                  "model:latest", "dest", "inputs/model", "ref", "data", "dest",
                                  "inputs/data", "ref", "data:v0/train.jsonl", "dest",
                                  "inputs/train-0.jsonl", "ref", link, "dest", "inputs/local");
        if (fetch(items, &resolved))
            fail_msg("%s", err.msg);
        assert_content("run/inputs/model", "the model");
        assert_content("run/inputs/data/train.jsonl", "{\"a\":1}");
        assert_content("run/inputs/data/test.jsonl", "{\"b\":2}");
        assert_content("run/inputs/train-0.jsonl", "{\"a\":1}");
        assert_content("run/inputs/local", "local");
        assert_int_equal(json_array_size(resolved), 4);
        assert_string_equal(sl_json_str(json_array_get(resolved, 0), "version", ""), "v0");
        assert_int_equal(sl_json_int(json_array_get(resolved, 0), "bytes", 0), 9);
        assert_int_equal(strlen(sl_json_str(json_array_get(resolved, 3), "sha256", "")), 64);
        json_decref(resolved);
    }
    static const struct {
        const char *ref;
        int code;
        const char *says;
    } bad[] = {
        {"nope", SL_NOTFOUND, "there is no artifact nope"},
        {"model:v9", SL_NOTFOUND, "no version v9"},
        {"data/none.txt", SL_NOTFOUND, "none.txt"},
        {"Model", SL_SPEC, "not an artifact reference"},
        {"ftp://x/y", SL_SPEC, "only http, https, s3"},
        {"/etc/passwd", SL_DENIED, "--allow-path"},
        {"/no/such/file", SL_DENIED, "--allow-path"},
        {"file://host", SL_SPEC, "three slashes"},
        {"http://127.0.0.1:1/x", SL_RETRY, "127.0.0.1:1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (fetch(json_pack("[{s:s, s:s}]", "ref", bad[i].ref, "dest", "inputs/x"), &resolved) !=
                bad[i].code ||
            !strstr(err.msg, bad[i].says))
            fail_msg("%s: code %d: %s", bad[i].ref, err.code, err.msg);
        assert_false(sl_file_exists(in_dir("run/inputs/x")));
    }
    snprintf(link, sizeof link, "%s/../secret/mine.txt", in_dir("allowed"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved),
                     SL_DENIED);
    snprintf(link, sizeof link, "%s", in_dir("allowed/sneaky"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved),
                     SL_DENIED);
    snprintf(link, sizeof link, "%s", in_dir("allowed/gone"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved),
                     SL_NOTFOUND);
    assert_non_null(strstr(err.msg, "No such file"));
    /* What is outside is not told apart from what is not there. */
    snprintf(link, sizeof link, "%s/../secret/none", in_dir("allowed"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved), SL_DENIED);
    snprintf(link, sizeof link, "%s", in_dir("allowed/folder")); /* with a link that leads outside */
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved), SL_DENIED);
    assert_non_null(strstr(err.msg, "out/mine.txt"));
    assert_false(sl_file_exists(in_dir("run/x")));
    snprintf(link, sizeof link, "%s", in_dir("allowed/open")); /* with one that does not */
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved), 0);
    json_decref(resolved);
    assert_content("run/x/near", "local");
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", "model", "dest", "../x"), &resolved),
                     SL_SPEC);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:s}]", "ref", "model", "dest", "x", "sha256", EMPTY_SHA),
              &resolved),
        SL_DATA);
    assert_non_null(strstr(err.msg, EMPTY_SHA));
}

static int push(json_t *plan_stolen, json_t **ret_result)
{
    const struct sl_watch watch = {NULL, NULL, NULL, NULL};
    sl_err_clear(&err);
    int rc = sl_plan_push(plan_stolen, TOKEN, &watch, ret_result, &err);
    json_decref(plan_stolen);
    return rc;
}

static json_t *push_plan(const char *url, const char *publish_key)
{
    json_t *plan =
        json_pack("{s:s, s:s, s:s, s:s, s:[{s:s, s:s, s:s, s:s, s:[s]}]}", "server", url, "run",
                  "r1", "lease", "l1", "run_dir", in_dir("run"), "items", "output", "prompts",
                  "tar", "prompts.tar.zst", "dir", "out", "artifact", "p", "aliases", "candidate");
    if (publish_key)
        json_object_set_new(plan, "publish", json_pack("{s:{s:i}}", publish_key, "loss", 1));
    return plan;
}

static void what_is_pushed_comes_back(void **state)
{
    json_t *result, *resolved;
    char manifest[65], again[65];
    (void)state;
    put_file("run/out/prompt_table.safetensors", "table");
    put_file("run/out/peft/task/adapter_config.json", "{}");
    if (push(push_plan(base_url, NULL), &result))
        fail_msg("%s", err.msg);
    const json_t *first = json_array_get(json_object_get(result, "manifests"), 0);
    assert_string_equal(sl_json_str(first, "output", ""), "prompts");
    snprintf(manifest, sizeof manifest, "%s", sl_json_str(first, "sha256", ""));
    json_decref(result);
    assert_false(
        sl_file_exists(in_dir("run/prompts.tar.zst"))); /* nothing is left beside the output */
    assert_int_equal(push(push_plan(base_url, NULL), &result), 0);
    first = json_array_get(json_object_get(result, "manifests"), 0);
    snprintf(again, sizeof again, "%s", sl_json_str(first, "sha256", ""));
    json_decref(result);
    assert_string_equal(manifest, again);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:b}]", "manifest", manifest, "dest", "back", "unpack", 1),
              &resolved),
        0);
    assert_content("run/back/prompt_table.safetensors", "table");
    assert_content("run/back/peft/task/adapter_config.json", "{}");
    json_decref(resolved);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:b}]", "blob", EMPTY_SHA, "dest", "x", "unpack", 1),
              &resolved),
        SL_NOTFOUND);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:b}]", "blob", manifest, "dest", "x", "unpack", 1),
              &resolved),
        SL_DATA); /* not a tarball */
    assert_false(sl_file_exists(in_dir("run/x")));
    assert_int_equal(sl_rmtree(in_dir("run/out"), NULL), 0);
    assert_int_not_equal(push(push_plan(base_url, NULL), &result), 0);
    assert_non_null(strstr(err.msg, "out"));
}

/* A server in front of the real one's blobs, that answers publishing as a run's part would. */
static void publish_script(struct script *s, int n, const struct request *r, int fd)
{
    char head[256];
    const char *text = s->other;
    (void)n;
    if (strncmp(r->text, "HEAD", 4) == 0) {
        script_status(fd, "200 There");
        return;
    }
    if (strncmp(text, "503", 3) == 0 && n > 4) /* lost once, then taken */
        text = "200 {\"outputs\":[]}";
    snprintf(head, sizeof head,
             "HTTP/1.1 %.3s X\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", text,
             strlen(text + 4));
    script_send(fd, head, text + 4, strlen(text + 4));
}

static void publishing_says_what_the_server_says(void **state)
{
    static const struct {
        const char *answer;
        int code;
    } cases[] = {
        {"200 {\"outputs\":[]}", 0},
        {"503 {}", 0},
        {"409 {\"title\":\"lease lost\",\"detail\":\"another agent has it\"}", SL_LEASE},
        {"409 {\"title\":\"cancelled\",\"detail\":\"the run was cancelled\"}", SL_CANCELLED},
        {"422 {\"title\":\"not valid\",\"detail\":\"no\"}", SL_SPEC},
    };
    (void)state;
    put_file("run/out/a", "a");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct script s = {.answer = publish_script, .other = cases[i].answer};
        char own[64];
        json_t *result = NULL;
        assert_int_equal(script_start(&s), 0);
        snprintf(own, sizeof own, "http://127.0.0.1:%d", s.port);
        int rc = push(push_plan(own, "metrics"), &result);
        script_stop(&s);
        if (rc != cases[i].code)
            fail_msg("%s gave %d: %s", cases[i].answer, rc, err.msg);
        const char *text = s.requests[atomic_load(&s.n) - 1].text;
        assert_non_null(strstr(text, "POST /api/v1/runs/r1/publish"));
        assert_non_null(strstr(text, "Idempotency-Key: l1"));
        json_decref(result);
    }
}

int main(int argc, char **argv)
{
    sl_unpack_main(argc, argv);
    const struct CMUnitTest tests[] = {
        WITH_SERVER(fetch_plans),
        WITH_SERVER(what_is_pushed_comes_back),
        WITH_SERVER(publishing_says_what_the_server_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
