/* Deleting versions, collecting what nothing uses, uploads in pieces, and the look through it all. Long because it is
 * one suite over one store. */
#include "artifacts/registry.h"
#include "base/file.h"
#include "base/json.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static char dir[64];
static struct sl_store *store;
static struct sl_err err;

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/sl-collect-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    sl_err_clear(&err);
    return !mkdtemp(dir) || sl_store_open(dir, &store, &err) ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_store_close(store);
    sl_rmtree(dir, NULL);
    return 0;
}

/* As after a restart: what is held in memory is forgotten. */
static void reopen(void)
{
    sl_store_close(store);
    assert_int_equal(sl_store_open(dir, &store, &err), 0);
}

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static void put(const char *content, char blob[65], char manifest[65])
{
    ok(sl_blob_put(store, content, strlen(content), blob, &err));
    json_t *m = json_pack("{s:[{s:s, s:s, s:i}]}", "files", "path", "a.txt", "sha256", blob, "bytes",
                          (int)strlen(content));
    char *text = sl_json_dump(m);
    ok(sl_blob_put(store, text, strlen(text), manifest, &err));
    free(text);
    json_decref(m);
}

static int commit(const char *name, const char *manifest, const char *run, const char *alias)
{
    json_t *record, *aliases = alias ? json_pack("[s]", alias) : NULL;
    const struct sl_commit c = {.name = name, .manifest = manifest, .number = -1, .run = run,
                                .output = run ? "out" : NULL, .project = run ? "p" : NULL,
                                .aliases = aliases};
    ok(sl_store_commit(store, &c, &record, NULL, &err));
    int number = (int)sl_json_int(record, "number", -1);
    json_decref(record);
    json_decref(aliases);
    return number;
}

static int try_delete(const char *name, const char *version)
{
    json_t *gone = NULL;
    sl_err_clear(&err);
    int rc = sl_store_delete(store, name, version, &gone, &err);
    assert_int_equal(rc == 0, gone != NULL);
    json_decref(gone);
    return rc;
}

static int collect_with(const struct sl_collect *how)
{
    json_t *report = NULL;
    sl_err_clear(&err);
    ok(sl_store_collect(store, how, &report, &err));
    int removed = (int)sl_json_int(report, "removed_blobs", -1);
    json_decref(report);
    return removed;
}

static int collect(void)
{
    return collect_with(&(struct sl_collect){.grace_us = 0});
}

static bool there(const char *sha256)
{
    return sl_blob_stat(store, sha256, NULL, NULL) == 0;
}

static int problems(bool hash)
{
    json_t *report = NULL;
    ok(sl_store_verify(store, hash, NULL, NULL, &report, &err));
    int n = (int)sl_json_int(report, "problems_total", -1);
    assert_int_equal(json_array_size(json_object_get(report, "problems")), n);
    json_decref(report);
    return n;
}

/* ---- collecting ------------------------------------------------------------------------------ */

static void only_what_nothing_uses_goes(void **state)
{
    char kept[65], kept_m[65], gone[65], gone_m[65], lone[65], pinned[65], pinned_m[65];
    (void)state;
    put("kept", kept, kept_m);
    put("gone", gone, gone_m);
    put("pinned", pinned, pinned_m);
    ok(sl_blob_put(store, "lone", 4, lone, &err));
    commit("a", kept_m, NULL, NULL);
    commit("b", gone_m, NULL, NULL);
    ok(sl_store_pin(store, pinned_m, "run1", &err));
    assert_int_equal(try_delete("b", "v0"), 0);
    assert_int_equal(collect(), 2);
    assert_true(there(kept) && there(kept_m) && there(pinned) && there(pinned_m));
    assert_false(there(gone) || there(gone_m));
    assert_true(there(lone)); /* just uploaded: its version may be about to come */
    reopen();
    assert_int_equal(collect_with(&(struct sl_collect){.grace_us = 60000000}), 0);
    assert_int_equal(collect(), 1);
    assert_false(there(lone));
    assert_int_equal(collect_with(&(struct sl_collect){.pin_max_us = 1}), 2); /* the old pin goes */
    assert_false(there(pinned));
    assert_int_equal(problems(true), 0);
}

static int live(void *arg, json_t *manifests, struct sl_err *e)
{
    const char **digest = arg;
    if (!*digest)
        return sl_err_set(e, SL_RETRY, "Redis is away");
    json_array_append_new(manifests, json_string(*digest));
    return 0;
}

static void what_others_name_is_kept(void **state)
{
    char blob[65], manifest[65];
    const char *digest = manifest;
    const struct sl_collect how = {.live = live, .arg = &digest};
    json_t *report;
    (void)state;
    put("a checkpoint", blob, manifest);
    reopen();
    assert_int_equal(collect_with(&how), 0);
    digest = NULL; /* when they cannot be asked, nothing goes */
    assert_int_equal(sl_store_collect(store, &how, &report, &err), SL_RETRY);
    assert_true(there(blob) && there(manifest));
    assert_int_equal(collect(), 2);
    assert_int_equal(collect_with(&how), 0); /* and with nothing to remove they are not asked */
}

static void a_damaged_store_is_not_collected(void **state)
{
    char blob[65], manifest[65], lone[65], path[SL_PATH_MAX];
    json_t *report;
    (void)state;
    put("x", blob, manifest);
    commit("a", manifest, NULL, NULL);
    ok(sl_blob_put(store, "lone", 4, lone, &err));
    reopen();
    snprintf(path, sizeof path, "%s/blobs/sha256/%.2s/%s", dir, manifest, manifest);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(sl_store_collect(store, &(struct sl_collect){.grace_us = 0}, &report, &err),
                     SL_DATA);
    assert_non_null(strstr(err.msg, "a:v0"));
    assert_true(there(blob) && there(lone));
}

/* ---- deleting -------------------------------------------------------------------------------- */

static int guard(void *arg, const char *name, int number, struct sl_err *e)
{
    (void)arg;
    return strcmp(name, "used") == 0 && number == 0
               ? sl_err_set(e, SL_CONFLICT, "used:v0 is in use: run r1 was started with it")
               : 0;
}

static void what_is_in_use_is_not_deleted(void **state)
{
    char blob[65], manifest[65];
    (void)state;
    ok(sl_store_add_guard(store, guard, NULL, &err));
    put("x", blob, manifest);
    commit("used", manifest, NULL, NULL);
    commit("named", manifest, NULL, "production");
    assert_int_equal(try_delete("used", "v0"), SL_CONFLICT);
    assert_non_null(strstr(err.msg, "run r1"));
    assert_int_equal(try_delete("named", "production"), SL_CONFLICT);
    assert_non_null(strstr(err.msg, "`production`"));
    assert_int_equal(sl_store_unalias(store, "named", "nothing", NULL), SL_NOTFOUND);
    ok(sl_store_unalias(store, "named", "production", &err));
    assert_int_equal(try_delete("named", "v0"), 0);
    assert_int_equal(try_delete("named", "v0"), SL_NOTFOUND);
    assert_int_equal(try_delete("nobody", "v0"), SL_NOTFOUND);
    commit("registered", manifest, NULL, NULL);
    ok(sl_registry_link(store, "squad", &(struct sl_registry_link){.artifact = "registered", .version = "v0"},
                        NULL, &err));
    assert_int_equal(try_delete("registered", "v0"), SL_CONFLICT);
    assert_non_null(strstr(err.msg, "squad"));
    assert_int_equal(try_delete("../used", "v0"), SL_SPEC);
    assert_int_equal(collect(), 0);
    assert_int_equal(problems(true), 0);
}

static void a_number_is_never_used_again(void **state)
{
    char blob[65], one[65], two[65], manifest[65];
    json_t *record, *refunds;
    bool created;
    (void)state;
    put("one", blob, one);
    put("two", blob, two);
    assert_int_equal(commit("a", one, NULL, NULL), 0);
    assert_int_equal(commit("a", two, "r1", NULL), 1);
    assert_int_equal(try_delete("a", "latest"), 0);
    reopen();
    ok(sl_store_resolve(store, "a", "latest", &record, &err));
    assert_int_equal(sl_json_int(record, "number", -1), 0);
    json_decref(record);
    /* The run's output stays published: as what is left of it. */
    ok(sl_store_published(store, "r1", "out", &record, &err));
    assert_non_null(sl_json_str(record, "deleted", NULL));
    json_decref(record);
    const struct sl_commit again = {.name = "a", .manifest = two, .number = 1, .run = "r1", .output = "out"};
    ok(sl_store_commit(store, &again, &record, &created, &err));
    assert_false(created);
    json_decref(record);
    /* It gives its bytes back once. */
    ok(sl_store_refunds(store, &refunds, &err));
    assert_int_equal(json_array_size(refunds), 1);
    assert_string_equal(sl_json_str(json_array_get(refunds, 0), "project", ""), "p");
    assert_int_equal(sl_json_int(json_array_get(refunds, 0), "bytes", -1), 3);
    ok(sl_store_refund_done(store, sl_json_str(json_array_get(refunds, 0), "id", ""), &err));
    json_decref(refunds);
    ok(sl_store_refunds(store, &refunds, &err));
    assert_int_equal(json_array_size(refunds), 0);
    json_decref(refunds);
    assert_int_equal(try_delete("a", "v0"), 0);
    ok(sl_store_list(store, &refunds, &err));
    assert_int_equal(json_array_size(refunds), 0); /* nothing left of it to list */
    json_decref(refunds);
    put("three", blob, manifest);
    assert_int_equal(commit("a", manifest, NULL, NULL), 2);
    assert_int_equal(problems(true), 0);
}

static int count(void *arg, const json_t *record, struct sl_err *e)
{
    (void)e;
    assert_non_null(sl_json_str(record, "manifest", NULL));
    assert_true(json_is_array(json_object_get(record, "aliases")));
    ++*(int *)arg;
    return 0;
}

static void every_version_is_gone_through(void **state)
{
    char blob[65], one[65], two[65];
    int n = 0;
    (void)state;
    put("one", blob, one);
    put("two", blob, two);
    commit("a", one, NULL, NULL);
    commit("a", two, NULL, "x");
    commit("b", two, NULL, NULL);
    commit("c", two, NULL, NULL);
    assert_int_equal(try_delete("c", "v0"), 0);
    ok(sl_store_each(store, count, &n, &err));
    assert_int_equal(n, 3);
}

/* ---- verifying ------------------------------------------------------------------------------- */

static void damage_is_found(void **state)
{
    char blob[65], manifest[65], path[SL_PATH_MAX];
    (void)state;
    put("four", blob, manifest);
    commit("a", manifest, NULL, "candidate");
    assert_int_equal(problems(true), 0);
    snprintf(path, sizeof path, "%s/blobs/sha256/%.2s/%s", dir, blob, blob);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "F", 1, 0), 1);
    assert_int_equal(problems(false), 0);
    assert_int_equal(problems(true), 1);
    assert_int_equal(ftruncate(fd, 2), 0);
    close(fd);
    assert_int_equal(problems(false), 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(problems(false), 1);
    put("four", blob, manifest); /* healed */
    assert_int_equal(problems(true), 0);
    snprintf(path, sizeof path, "%s/artifacts/a/aliases.json", dir);
    ok(sl_file_write(path, "{\"candidate\": 7}", 16, &err));
    assert_int_equal(problems(false), 1);
}

/* ---- uploads in pieces ----------------------------------------------------------------------- */

static const char text[] = "the first half, and the second half";
#define TEXT_BYTES ((int64_t)sizeof text - 1)
#define HALF 15

static int64_t piece(const char *sha256, int64_t offset, size_t len, bool *ret_done)
{
    struct sl_upload *u;
    int64_t now = -1;
    ok(sl_upload_begin(store, sha256, offset, TEXT_BYTES, &u, &err));
    ok(sl_upload_write(u, text + offset, len, &err));
    ok(sl_upload_end(u, ret_done, &now, &err));
    return now;
}

static int64_t offset_of(const char *sha256)
{
    int64_t offset = -1;
    ok(sl_upload_offset(store, sha256, &offset, &err));
    return offset;
}

static void an_upload_goes_on_after_a_restart(void **state)
{
    char sha256[65];
    bool done;
    struct sl_upload *u;
    (void)state;
    ok(sl_sha256_data(text, TEXT_BYTES, sha256, &err));
    assert_int_equal(offset_of(sha256), 0);
    assert_int_equal(piece(sha256, 0, HALF, &done), HALF);
    assert_false(done || there(sha256));
    reopen();
    assert_int_equal(offset_of(sha256), HALF);
    assert_int_equal(sl_upload_begin(store, sha256, 3, TEXT_BYTES, &u, &err), SL_CONFLICT);
    assert_non_null(strstr(err.msg, "15 bytes"));
    sl_err_clear(&err);
    /* A client that vanishes leaves what it sent. */
    ok(sl_upload_begin(store, sha256, HALF, TEXT_BYTES, &u, &err));
    ok(sl_upload_write(u, text + HALF, 5, &err));
    sl_upload_abort(u);
    assert_int_equal(piece(sha256, HALF + 5, (size_t)TEXT_BYTES - HALF - 5, &done), TEXT_BYTES);
    assert_true(done && there(sha256));
    assert_int_equal(offset_of(sha256), 0);
}

static void the_newest_writer_goes_on(void **state)
{
    char sha256[65];
    struct sl_upload *old, *new;
    int64_t at;
    bool done;
    (void)state;
    ok(sl_sha256_data(text, TEXT_BYTES, sha256, &err));
    ok(sl_upload_begin(store, sha256, 0, TEXT_BYTES, &old, &err));
    ok(sl_upload_write(old, text, HALF, &err));
    ok(sl_upload_begin(store, sha256, HALF, TEXT_BYTES, &new, &err));
    assert_int_equal(sl_upload_write(old, "junk", 4, &err), SL_CONFLICT);
    sl_err_clear(&err);
    assert_int_equal(sl_upload_end(old, &done, &at, &err), SL_CONFLICT);
    sl_err_clear(&err);
    /* A collection leaves what is being written to. */
    assert_int_equal(collect(), 0);
    ok(sl_upload_write(new, text + HALF, (size_t)TEXT_BYTES - HALF, &err));
    assert_int_equal(sl_upload_write(new, "x", 1, &err), SL_SPEC);
    sl_err_clear(&err);
    ok(sl_upload_end(new, &done, &at, &err));
    assert_true(done && there(sha256));
}

static void wrong_uploads_leave_nothing(void **state)
{
    char sha256[65], wrong[65];
    struct sl_upload *u;
    int64_t at;
    bool done;
    (void)state;
    ok(sl_sha256_data(text, TEXT_BYTES, sha256, &err));
    ok(sl_sha256_data("other", 5, wrong, &err));
    ok(sl_upload_begin(store, wrong, 0, TEXT_BYTES, &u, &err));
    ok(sl_upload_write(u, text, (size_t)TEXT_BYTES, &err));
    assert_int_equal(sl_upload_end(u, &done, &at, &err), SL_DATA);
    assert_non_null(strstr(err.msg, sha256));
    assert_false(there(wrong));
    assert_int_equal(offset_of(wrong), 0);
    sl_err_clear(&err);
    assert_int_equal(sl_upload_begin(store, "../x", 0, 1, &u, NULL), SL_SPEC);
    assert_int_equal(sl_upload_begin(store, sha256, 2, 1, &u, NULL), SL_SPEC);
    assert_int_equal(sl_upload_begin(store, sha256, -1, 1, &u, NULL), SL_SPEC);
    assert_int_equal(sl_upload_begin(store, sha256, 0, SL_BLOB_MAX_BYTES + 1, &u, NULL), SL_SPEC);
    piece(sha256, 0, HALF, &done);
    assert_int_equal(collect_with(&(struct sl_collect){.grace_us = 60000000}), 0);
    assert_int_equal(offset_of(sha256), HALF);
    collect(); /* older than the grace, and nobody writes */
    assert_int_equal(offset_of(sha256), 0);
}

/* ---- all at once ----------------------------------------------------------------------------- */

static atomic_bool stop;

static void *collect_always(void *arg)
{
    int *removed = arg;
    while (!atomic_load(&stop)) {
        json_t *report = NULL;
        struct sl_err e = SL_ERR_INIT;
        if (sl_store_collect(store, &(struct sl_collect){.grace_us = 0}, &report, &e)) {
            fprintf(stderr, "%s\n", e.msg);
            *removed = -1;
            return NULL;
        }
        *removed += (int)sl_json_int(report, "removed_blobs", 0);
        json_decref(report);
    }
    return NULL;
}

/* Equal content is put and deleted over and over under two names, beside a collection without grace:
 * each version has its blobs as long as it is there. */
static void *put_and_delete(void *arg)
{
    const char *name = arg;
    for (int i = 0; i < 150; i++) {
        char blob[65], manifest[65], content[16];
        struct sl_err e = SL_ERR_INIT;
        json_t *record = NULL;
        snprintf(content, sizeof content, "content %d", i % 3);
        int rc = SL_SPEC, rounds = 0;
        /* Another name's commit ends the hold; its deletion may then take the blob: then once more. */
        while ((rc == SL_SPEC || rc == SL_NOTFOUND) && rounds++ < 1000) {
            sl_err_clear(&e);
            put(content, blob, manifest);
            const struct sl_commit c = {.name = name, .manifest = manifest, .number = -1};
            rc = sl_store_commit(store, &c, &record, NULL, &e);
        }
        if (rc || !there(blob) || !there(manifest))
            return arg;
        json_t *gone = NULL;
        if (sl_store_delete(store, name, sl_json_str(record, "version", ""), &gone, &e))
            return arg;
        json_decref(gone);
        json_decref(record);
    }
    return NULL;
}

static void collections_beside_puts_and_deletes(void **state)
{
    static const char *const names[] = {"a", "b"};
    pthread_t collector, putters[2];
    int removed = 0;
    void *bad = NULL;
    (void)state;
    atomic_store(&stop, false);
    assert_int_equal(pthread_create(&collector, NULL, collect_always, &removed), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&putters[i], NULL, put_and_delete, (void *)(uintptr_t)names[i]), 0);
    for (int i = 0; i < 2; i++) {
        void *result;
        pthread_join(putters[i], &result);
        bad = bad ? bad : result;
    }
    atomic_store(&stop, true);
    pthread_join(collector, NULL);
    assert_null(bad);
    assert_true(removed >= 0);
    assert_int_equal(problems(true), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(only_what_nothing_uses_goes),
        T(what_others_name_is_kept),
        T(a_damaged_store_is_not_collected),
        T(what_is_in_use_is_not_deleted),
        T(a_number_is_never_used_again),
        T(every_version_is_gone_through),
        T(damage_is_found),
        T(an_upload_goes_on_after_a_restart),
        T(the_newest_writer_goes_on),
        T(wrong_uploads_leave_nothing),
        T(collections_beside_puts_and_deletes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
