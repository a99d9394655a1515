/* The store: what it takes, what it refuses, and what is there after it was cut short. Long because
 * it is one suite over one fixture. */
#include "artifacts/manifest.h"
#include "artifacts/store.h"
#include "base/file.h"
#include "base/json.h"
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

struct fixture {
    char dir[64];
    struct sl_store *store;
    struct sl_err err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    /* In memory where there is such a folder: what is tested here does not need a disk's fsync. */
    snprintf(f->dir, sizeof f->dir, "%s/sl-store-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(f->dir) || sl_store_open(f->dir, &f->store, &f->err))
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    sl_store_close(f->store);
    sl_rmtree(f->dir, NULL);
    free(f);
    return 0;
}

static void reopen(struct fixture *f)
{
    sl_store_close(f->store);
    f->store = NULL;
    sl_err_clear(&f->err);
    if (sl_store_open(f->dir, &f->store, &f->err))
        fail_msg("%s", f->err.msg);
}

static int count_files(const struct fixture *f, const char *below)
{
    char path[SL_PATH_MAX];
    int n = 0;
    snprintf(path, sizeof path, "%s/%s", f->dir, below);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* A manifest of one file with this content, both stored. */
static void put_manifest(struct fixture *f, const char *content, char ret_manifest[65])
{
    char blob[65];
    assert_int_equal(sl_blob_put(f->store, content, strlen(content), blob, &f->err), 0);
    json_t *m = json_pack("{s:[{s:s, s:s, s:i}]}", "files", "path", "a.txt", "sha256", blob,
                          "bytes", (int)strlen(content));
    char *text = sl_json_dump(m);
    assert_int_equal(sl_blob_put(f->store, text, strlen(text), ret_manifest, &f->err), 0);
    free(text);
    json_decref(m);
}

/* Commits; gives the version's number. */
static int commit(struct fixture *f, const char *name, const char *content, const char *run,
                  const char *alias, bool *ret_created)
{
    char manifest[65];
    json_t *record, *aliases = alias ? json_pack("[s]", alias) : NULL;
    put_manifest(f, content, manifest);
    struct sl_commit c = {.name = name,
                          .manifest = manifest,
                          .number = -1,
                          .run = run,
                          .output = run ? "prompts" : NULL,
                          .aliases = aliases};
    sl_err_clear(&f->err);
    if (sl_store_commit(f->store, &c, &record, ret_created, &f->err))
        fail_msg("%s", f->err.msg);
    int number = (int)sl_json_int(record, "number", -1);
    json_decref(record);
    json_decref(aliases);
    return number;
}

static int resolve(struct fixture *f, const char *name, const char *version)
{
    json_t *record;
    sl_err_clear(&f->err);
    if (sl_store_resolve(f->store, name, version, &record, &f->err))
        return -1;
    int number = (int)sl_json_int(record, "number", -1);
    json_decref(record);
    return number;
}

/* ---- blobs ----------------------------------------------------------------------------------- */

static void blob_comes_back(void **state)
{
    struct fixture *f = *state;
    char sha[65], text[16] = "";
    int64_t bytes;
    int fd;
    assert_int_equal(sl_blob_put(f->store, "hello", 5, sha, &f->err), 0);
    assert_string_equal(sha, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_int_equal(sl_blob_open(f->store, sha, &fd, &bytes, &f->err), 0);
    assert_int_equal(bytes, 5);
    assert_int_equal(read(fd, text, sizeof text), 5);
    assert_string_equal(text, "hello");
    close(fd);
    assert_int_equal(sl_blob_put(f->store, "", 0, sha, &f->err), 0); /* empty is fine */
    assert_int_equal(sl_blob_stat(f->store, sha, &bytes, &f->err), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(count_files(f, "tmp"), 0);
}

static void wrong_digest_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    struct sl_blob_writer *w;
    char wanted[65], found[65];
    assert_int_equal(sl_sha256_data("other", 5, wanted, NULL), 0);
    assert_int_equal(sl_sha256_data("hello", 5, found, NULL), 0);
    assert_int_equal(sl_blob_begin(f->store, wanted, &w, &f->err), 0);
    assert_int_equal(sl_blob_write(w, "hello", 5, &f->err), 0);
    assert_int_equal(sl_blob_commit(w, NULL, &f->err), SL_DATA);
    assert_non_null(strstr(f->err.msg, wanted));
    assert_non_null(strstr(f->err.msg, found));
    assert_int_equal(sl_blob_stat(f->store, wanted, NULL, NULL), SL_NOTFOUND);
    assert_int_equal(sl_blob_stat(f->store, found, NULL, NULL), SL_NOTFOUND);
    assert_int_equal(count_files(f, "tmp"), 0);
}

static void unfinished_blob_is_invisible_and_swept(void **state)
{
    struct fixture *f = *state;
    struct sl_blob_writer *w;
    char sha[65], path[SL_PATH_MAX];
    assert_int_equal(sl_sha256_data("hel", 3, sha, NULL), 0);
    assert_int_equal(sl_blob_begin(f->store, NULL, &w, &f->err), 0);
    assert_int_equal(sl_blob_write(w, "hel", 3, &f->err), 0);
    assert_int_equal(count_files(f, "tmp"), 1);
    assert_int_equal(sl_blob_stat(f->store, sha, NULL, NULL), SL_NOTFOUND);
    sl_blob_abort(w);
    assert_int_equal(count_files(f, "tmp"), 0);
    snprintf(path, sizeof path, "%s/tmp/left-by-a-crash", f->dir);
    assert_int_equal(sl_file_write(path, "x", 1, &f->err), 0);
    reopen(f);
    assert_int_equal(count_files(f, "tmp"), 0);
}

/* A limit on file sizes stands for a full disk: the write fails half way through. */
static void failing_disk_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    struct rlimit was, small = {64 << 10, RLIM_INFINITY};
    struct sl_blob_writer *w;
    static char zeros[128 << 10];
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(sl_blob_begin(f->store, NULL, &w, &f->err), 0);
    getrlimit(RLIMIT_FSIZE, &was);
    small.rlim_max = was.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = sl_blob_write(w, zeros, sizeof zeros, &f->err);
    setrlimit(RLIMIT_FSIZE, &was);
    assert_int_equal(rc, SL_IO);
    sl_blob_abort(w);
    assert_int_equal(count_files(f, "tmp"), 0);
}

static void bad_digests_are_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "abc",
        "../../../../etc/passwd",
        "2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b98240",
        "../4dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824x",
    };
    struct fixture *f = *state;
    struct sl_blob_writer *w;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(sl_blob_stat(f->store, bad[i], NULL, NULL), SL_SPEC);
        assert_int_equal(sl_blob_begin(f->store, bad[i], &w, NULL), SL_SPEC);
        assert_int_equal(sl_store_pin(f->store, bad[i], "r1", NULL), SL_SPEC);
    }
}

static void one_process_writes(void **state)
{
    struct fixture *f = *state;
    struct sl_store *second = NULL;
    assert_int_equal(sl_store_open(f->dir, &second, &f->err), SL_CONFLICT);
    assert_null(second);
    assert_non_null(strstr(f->err.msg, "another server"));
    reopen(f);
}

static void newer_format_is_refused(void **state)
{
    struct fixture *f = *state;
    struct sl_store *store;
    char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s/store.json", f->dir);
    sl_store_close(f->store);
    f->store = NULL;
    assert_int_equal(sl_file_write(path, "{\"format\": 2}", 13, NULL), 0);
    assert_int_equal(sl_store_open(f->dir, &store, &f->err), SL_SPEC);
    assert_non_null(strstr(f->err.msg, "format 2"));
}

/* ---- names ----------------------------------------------------------------------------------- */

static void names_and_paths(void **state)
{
    static const char *const good[] = {"a", "smollm2-135m", "0", "a.b_c-d", "v1x", "a..b"};
    static const char *const bad[] = {"",         ".",    "..",   "-a",    "_a",  ".a",
                                      "A",        "a/b",  "a b",  "a:b",   "a\n", "a%2f",
                                      "\xc3\xa9", "a\\b", "../a", "a/../b"};
    static const char *const good_paths[] = {"a",  "a/b", ".hidden", "a/..b", "sub/\xc3\xbc.txt",
                                             "A B"};
    static const char *const bad_paths[] = {
        "",      "/",    "/a",   "a/",   "a//b", ".",    "..",       "a/..",         "./a",
        "a/./b", "../a", "a\\b", "a\nb", "\x7f", "\xff", "\xc0\xaf", "\xed\xa0\x80", "a/../../b"};
    char long_name[SL_NAME_MAX + 2];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(sl_name_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (sl_name_valid(bad[i]))
            fail_msg("name `%s` was taken", bad[i]);
    for (size_t i = 0; i < sizeof good_paths / sizeof *good_paths; i++)
        assert_true(sl_entry_path_valid(good_paths[i]));
    for (size_t i = 0; i < sizeof bad_paths / sizeof *bad_paths; i++)
        if (sl_entry_path_valid(bad_paths[i]))
            fail_msg("path `%s` was taken", bad_paths[i]);
    memset(long_name, 'a', sizeof long_name);
    long_name[SL_NAME_MAX + 1] = 0;
    assert_false(sl_name_valid(long_name));
    long_name[SL_NAME_MAX] = 0;
    assert_true(sl_name_valid(long_name));
    assert_false(sl_entry_path_valid("1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17"));
    assert_true(sl_entry_path_valid("1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16"));
    assert_false(sl_alias_valid("latest"));
    assert_false(sl_alias_valid("v12"));
    assert_false(sl_alias_valid("v007"));
    assert_true(sl_alias_valid("v1-good"));
    assert_int_equal(sl_version_number("v0"), 0);
    assert_int_equal(sl_version_number("v120"), 120);
    assert_int_equal(sl_version_number("v01"), -1);
    assert_int_equal(sl_version_number("v"), -1);
    assert_int_equal(sl_version_number("v99999999999999999999"), -1);
}

static void references(void **state)
{
    static const struct {
        const char *text, *name, *version, *file, *project;
    } good[] = {
        {"team/m:v0", "m", "v0", "", "team"},
        {"team/m:candidate/sub/f", "m", "candidate", "sub/f", "team"},
        {"m/sub/f:1", "m", "latest", "sub/f:1", ""},
        {"m/Sub:1", "m", "latest", "Sub:1", ""},
        {"m", "m", "latest", "", ""},
        {"m:v3", "m", "v3", "", ""},
        {"m:candidate", "m", "candidate", "", ""},
        {"wordnet:latest/train.jsonl", "wordnet", "latest", "train.jsonl", ""},
        {"wordnet/sub/a b.txt", "wordnet", "latest", "sub/a b.txt", ""},
        {"m:v0/a:b", "m", "v0", "a:b", ""},
    };
    static const char *const bad[] = {"",        ":v0",       "m:",      "M",      "m:v01",
                                      "m/",      "m:v0/../x", "m:../v0", "/m",     "m::v0",
                                      "m:v0//x", "m:v0/",     "m v0",    "../m:v0", "team/m:"};
    struct sl_ref ref;
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(sl_ref_parse(good[i].text, &ref, NULL), 0);
        assert_string_equal(ref.name, good[i].name);
        assert_string_equal(ref.version, good[i].version);
        assert_string_equal(ref.file, good[i].file);
        assert_string_equal(ref.project, good[i].project);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (sl_ref_parse(bad[i], &ref, NULL) != SL_SPEC)
            fail_msg("reference `%s` was taken", bad[i]);
}

static void attacks_by_name_touch_nothing(void **state)
{
    static const char *const bad[] = {"..", "../x", "a/../../x", "A", "", "a b", ".hidden"};
    struct fixture *f = *state;
    char manifest[65];
    json_t *record = NULL;
    int n;
    put_manifest(f, "x", manifest);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_commit c = {.name = bad[i], .manifest = manifest, .number = -1};
        assert_int_equal(sl_store_commit(f->store, &c, &record, NULL, NULL), SL_SPEC);
        c = (struct sl_commit){
            .name = "a", .manifest = manifest, .number = -1, .run = bad[i], .output = "prompts"};
        assert_int_equal(sl_store_commit(f->store, &c, &record, NULL, NULL), SL_SPEC);
        assert_int_equal(sl_store_allocate(f->store, "a", manifest, "r", bad[i], NULL, &n, NULL),
                         SL_SPEC);
        assert_int_equal(sl_store_resolve(f->store, bad[i], "latest", &record, NULL), SL_SPEC);
        assert_int_equal(sl_store_artifact(f->store, bad[i], &record, NULL), SL_SPEC);
        assert_int_equal(sl_store_pin(f->store, manifest, bad[i], NULL), SL_SPEC);
        json_t *aliases = json_pack("[s]", bad[i]);
        c = (struct sl_commit){.name = "a", .manifest = manifest, .number = -1, .aliases = aliases};
        assert_int_equal(sl_store_commit(f->store, &c, &record, NULL, NULL), SL_SPEC);
        json_decref(aliases);
    }
    struct sl_commit half = {.name = "a", .manifest = manifest, .number = -1, .run = "r"};
    assert_int_equal(sl_store_commit(f->store, &half, &record, NULL, NULL), SL_SPEC);
    assert_int_equal(count_files(f, "artifacts"), 0);
    assert_int_equal(count_files(f, "markers"), 0);
    assert_int_equal(resolve(f, "a", "../../x"), -1);
}

/* ---- manifests ------------------------------------------------------------------------------- */

static void manifests_that_are_refused(void **state)
{
#define SHA "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
#define FILE_OF(path) "{\"path\":\"" path "\",\"sha256\":\"" SHA "\",\"bytes\":5}"
    static const struct {
        const char *text, *at;
    } bad[] = {
        {"[]", "/files"},
        {"{\"files\":{}}", "/files"},
        {"{\"files\":[]}", "/files"},
        {"{\"files\":[1]}", "/files/0"},
        {"{\"files\":[" FILE_OF("a") "," FILE_OF("a") "]}", "/files/1"},
        {"{\"files\":[" FILE_OF("a") "," FILE_OF("a/b") "]}", "/files/1"},
        {"{\"files\":[" FILE_OF("a/b") "," FILE_OF("a") "]}", "/files/1"},
        {"{\"files\":[" FILE_OF("../a") "]}", "/files/0"},
        {"{\"files\":[" FILE_OF("/a") "]}", "/files/0"},
        {"{\"files\":[" FILE_OF("a\\u0000b") "]}", "/files/0"},
        {"{\"files\":[{\"path\":\"a\",\"sha256\":\"x\",\"bytes\":5}]}", "/files/0"},
        {"{\"files\":[{\"path\":\"a\",\"sha256\":\"" SHA "\",\"bytes\":-1}]}", "/files/0"},
        {"{\"files\":[{\"path\":\"a\",\"sha256\":\"" SHA "\",\"bytes\":1.5}]}", "/files/0"},
        {"{\"files\":[{\"path\":\"a\",\"sha256\":\"" SHA
         "\",\"bytes\":5,\"entries\":[" FILE_OF("..") "]}]}",
         "/files/0/entries/0"},
        {"{\"files\":[{\"path\":\"a\",\"sha256\":\"" SHA "\",\"bytes\":5,\"entries\":3}]}",
         "/files/0"},
    };
    struct fixture *f = *state;
    char sha[65];
    assert_int_equal(sl_blob_put(f->store, "hello", 5, sha, NULL), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *manifest = NULL, *problems = NULL;
        assert_int_equal(sl_blob_put(f->store, bad[i].text, strlen(bad[i].text), sha, NULL), 0);
        if (sl_store_manifest(f->store, sha, &manifest, &problems, NULL) != SL_SPEC)
            fail_msg("was taken: %s", bad[i].text);
        assert_null(manifest);
        assert_string_equal(sl_json_str(json_array_get(problems, 0), "path", ""), bad[i].at);
        json_decref(problems);
        struct sl_commit c = {.name = "a", .manifest = sha, .number = -1};
        assert_int_equal(sl_store_commit(f->store, &c, &manifest, NULL, NULL), SL_SPEC);
    }
    assert_int_equal(count_files(f, "artifacts"), 0);
}

static void missing_and_short_blobs_are_named(void **state)
{
    struct fixture *f = *state;
    char sha[65], blob[65];
    json_t *manifest = NULL, *problems = NULL;
    assert_int_equal(sl_blob_put(f->store, "hello!", 6, blob, NULL), 0);
    json_t *m = json_pack("{s:[{s:s, s:s, s:i}, {s:s, s:s, s:i}]}", "files", "path", "gone",
                          "sha256", SHA, "bytes", 5, "path", "short", "sha256", blob, "bytes", 7);
    char *text = sl_json_dump(m);
    assert_int_equal(sl_blob_put(f->store, text, strlen(text), sha, NULL), 0);
    free(text);
    json_decref(m);
    assert_int_equal(sl_store_manifest(f->store, sha, &manifest, &problems, &f->err), SL_SPEC);
    assert_int_equal(json_array_size(problems), 2);
    assert_non_null(strstr(sl_json_str(json_array_get(problems, 0), "detail", ""), SHA));
    assert_non_null(strstr(sl_json_str(json_array_get(problems, 1), "detail", ""), "6 bytes"));
    json_decref(problems);
    assert_int_equal(sl_store_manifest(f->store, SHA, &manifest, NULL, NULL), SL_NOTFOUND);
}

/* ---- versions -------------------------------------------------------------------------------- */

static void versions_and_aliases(void **state)
{
    struct fixture *f = *state;
    bool created;
    assert_int_equal(commit(f, "m", "one", NULL, "candidate", &created), 0);
    assert_true(created);
    assert_int_equal(commit(f, "m", "one", NULL, "prod", &created), 0); /* equal: no new version */
    assert_false(created);
    assert_int_equal(commit(f, "m", "two", NULL, "candidate", &created), 1);
    assert_int_equal(commit(f, "m", "one", NULL, NULL, &created),
                     2); /* back to older content: new */
    assert_true(created);
    assert_int_equal(resolve(f, "m", "latest"), 2);
    assert_int_equal(resolve(f, "m", "candidate"), 1);
    assert_int_equal(resolve(f, "m", "prod"), 0);
    assert_int_equal(resolve(f, "m", "v1"), 1);
    assert_int_equal(resolve(f, "m", "v3"), -1);
    assert_int_equal(f->err.code, SL_NOTFOUND);
    assert_int_equal(resolve(f, "m", "nope"), -1);
    assert_non_null(strstr(f->err.msg, "nope"));
    assert_int_equal(resolve(f, "other", "latest"), -1);
    assert_non_null(strstr(f->err.msg, "no artifact other"));
    assert_int_equal(sl_store_alias(f->store, "m", "prod", "candidate", &f->err), 0);
    assert_int_equal(sl_store_alias(f->store, "m", "latest", "v0", NULL), SL_SPEC);
    assert_int_equal(sl_store_alias(f->store, "m", "x", "v9", NULL), SL_NOTFOUND);
    reopen(f);
    assert_int_equal(resolve(f, "m", "prod"), 1);
    assert_int_equal(resolve(f, "m", "latest"), 2);
    json_t *list, *artifact;
    assert_int_equal(sl_store_list(f->store, &list, &f->err), 0);
    assert_int_equal(json_array_size(list), 1);
    assert_int_equal(sl_json_int(json_array_get(list, 0), "versions", 0), 3);
    assert_string_equal(sl_json_str(json_array_get(list, 0), "aliases.candidate", ""), "v1");
    json_decref(list);
    assert_int_equal(sl_store_artifact(f->store, "m", &artifact, &f->err), 0);
    assert_int_equal(json_array_size(json_object_get(artifact, "versions")), 3);
    json_decref(artifact);
}

/* Aliases that are never used again, one a run, must not make the artifact unreadable. */
static void aliases_have_a_limit_that_harms_nothing(void **state)
{
    struct fixture *f = *state;
    char manifest[65], alias[SL_NAME_MAX + 8];
    int number, refused = 0;
    bool created;
    put_manifest(f, "one", manifest);
    for (int i = 0; i < SL_STORE_MAX_ALIASES / SL_COMMIT_MAX_ALIASES + 2; i++) {
        json_t *aliases = json_array(), *record = NULL;
        for (int k = 0; k < SL_COMMIT_MAX_ALIASES; k++) {
            snprintf(alias, sizeof alias, "%04d-%0120d", i, k);
            json_array_append_new(aliases, json_string(alias));
        }
        struct sl_commit c = {
            .name = "many", .manifest = manifest, .number = -1, .aliases = aliases};
        sl_err_clear(&f->err);
        int rc = sl_store_commit(f->store, &c, &record, NULL, &f->err);
        if (rc) {
            assert_int_equal(rc, SL_CONFLICT);
            assert_non_null(strstr(f->err.msg, "aliases"));
            char run[16];
            snprintf(run, sizeof run, "r%d", i);
            assert_int_equal(sl_store_allocate(f->store, "many", manifest, run, "o", aliases, &number,
                                               NULL),
                             SL_CONFLICT);
            /* A run's result that the queue has taken already is stored all the same. */
            c.run = run, c.output = "o";
            assert_int_equal(sl_store_commit(f->store, &c, &record, NULL, NULL), 0);
            refused++;
        }
        json_decref(record);
        json_decref(aliases);
    }
    assert_true(refused > 0);
    assert_int_equal(sl_store_alias(f->store, "many", "one-more", "v0", NULL), SL_CONFLICT);
    snprintf(alias, sizeof alias, "%04d-%0120d", 0, 0);
    assert_int_equal(sl_store_alias(f->store, "many", alias, "v0", NULL), 0); /* moving one is fine */
    assert_int_equal(resolve(f, "many", alias), 0);
    assert_int_equal(commit(f, "other", "two", NULL, "candidate", &created), 0);
    reopen(f);
    assert_int_equal(resolve(f, "many", "latest"), 0);
}

static void an_output_is_published_once(void **state)
{
    struct fixture *f = *state;
    bool created;
    json_t *record;
    assert_int_equal(sl_store_published(f->store, "run1", "prompts", &record, NULL), SL_NOTFOUND);
    assert_int_equal(commit(f, "p", "result", "run1", "candidate", &created), 0);
    assert_true(created);
    assert_int_equal(commit(f, "p", "later", "run2", "candidate", &created), 1);
    /* The replay finds its version, whatever it brings, and does not move the alias back. */
    assert_int_equal(commit(f, "p", "result", "run1", "candidate", &created), 0);
    assert_false(created);
    assert_int_equal(commit(f, "p", "not the same bytes", "run1", "candidate", &created), 0);
    assert_false(created);
    assert_int_equal(commit(f, "elsewhere", "result", "run1", NULL, &created), 0);
    assert_false(created);
    assert_int_equal(resolve(f, "elsewhere", "latest"), -1);
    assert_int_equal(resolve(f, "p", "candidate"), 1);
    assert_int_equal(resolve(f, "p", "latest"), 1);
    reopen(f);
    assert_int_equal(commit(f, "p", "again", "run1", "candidate", &created), 0);
    assert_int_equal(sl_store_published(f->store, "run2", "prompts", &record, &f->err), 0);
    assert_int_equal(sl_json_int(record, "number", -1), 1);
    assert_string_equal(sl_json_str(record, "made_by.run", ""), "run2");
    json_decref(record);
    /* Equal content of another run: the same version, remembered for that run too. */
    assert_int_equal(commit(f, "p", "later", "run3", NULL, &created), 1);
    assert_false(created);
    assert_int_equal(commit(f, "p", "newest", NULL, NULL, &created), 2);
    assert_int_equal(commit(f, "p", "later", "run3", NULL, &created), 1);
}

static void allocated_numbers_are_kept(void **state)
{
    struct fixture *f = *state;
    char a[65], b[65], c[65];
    int first, second, third;
    bool created;
    json_t *record;
    put_manifest(f, "a", a);
    put_manifest(f, "b", b);
    put_manifest(f, "c", c);
    assert_int_equal(sl_store_allocate(f->store, "p", a, "r1", "prompts", NULL, &first, &f->err), 0);
    assert_int_equal(sl_store_allocate(f->store, "p", b, "r2", "prompts", NULL, &second, &f->err), 0);
    assert_int_equal(first, 0);
    assert_int_equal(second, 1);
    assert_int_equal(commit(f, "p", "plain", NULL, NULL, &created), 2); /* goes around them */
    sl_store_release(f->store, "p", first);                             /* the script refused r1 */
    struct sl_commit r2 = {
        .name = "p", .manifest = b, .number = second, .run = "r2", .output = "prompts"};
    assert_int_equal(sl_store_commit(f->store, &r2, &record, &created, &f->err), 0);
    assert_int_equal(sl_json_int(record, "number", -1), 1);
    json_decref(record);
    assert_int_equal(sl_store_allocate(f->store, "p", c, "r3", "prompts", NULL, &third, &f->err), 0);
    assert_int_equal(third, 3);
    assert_int_equal(sl_store_allocate(f->store, "p", b, "r2", "prompts", NULL, &second, &f->err), 0);
    assert_int_equal(second, 1); /* by its marker */
    /* After a crash the reservation is gone and another commit may have the number: it is kept. */
    reopen(f);
    assert_int_equal(commit(f, "p", "other", NULL, NULL, &created), 3);
    struct sl_commit r3 = {
        .name = "p", .manifest = c, .number = third, .run = "r3", .output = "prompts"};
    assert_int_equal(sl_store_commit(f->store, &r3, &record, &created, &f->err), 0);
    assert_int_equal(sl_json_int(record, "number", -1), 4);
    assert_true(created);
    json_decref(record);
    assert_int_equal(sl_store_commit(f->store, &r3, &record, &created, &f->err), 0);
    assert_int_equal(sl_json_int(record, "number", -1), 4);
    assert_false(created);
    json_decref(record);
}

/* Cuts a commit after each of its steps, by taking away what later steps made and putting the
 * journal back. */
static void a_cut_commit_is_finished(void **state)
{
    struct fixture *f = *state;
    char manifest[65], path[SL_PATH_MAX], journal[SL_PATH_MAX];
    bool created;
    json_t *record;
    assert_int_equal(commit(f, "p", "zero", NULL, "candidate", &created), 0);
    put_manifest(f, "one", manifest);
    for (int done = 0; done <= 3;
         done++) { /* 0: the journal only, 1: record, 2: marker, 3: aliases */
        struct sl_commit c = {
            .name = "p", .manifest = manifest, .number = 1, .run = "r1", .output = "prompts"};
        json_t *aliases = json_pack("[s]", "candidate");
        c.aliases = aliases;
        assert_int_equal(sl_store_commit(f->store, &c, &record, &created, &f->err), 0);
        json_t *kept = json_deep_copy(record);
        json_decref(record);
        json_object_del(kept, "files");
        json_object_del(kept, "aliases");
        json_t *entry =
            json_pack("{s:s, s:i, s:o, s:s, s:s, s:o}", "name", "p", "number", 1, "record", kept,
                      "run", "r1", "output", "prompts", "aliases", aliases);
        snprintf(journal, sizeof journal, "%s/journal/0123.json", f->dir);
        assert_int_equal(sl_json_write(journal, entry, &f->err), 0);
        json_decref(entry);
        if (done < 1) {
            snprintf(path, sizeof path, "%s/artifacts/p/v1.json", f->dir);
            assert_int_equal(unlink(path), 0);
        }
        if (done < 2) {
            snprintf(path, sizeof path, "%s/markers/r1/prompts.json", f->dir);
            assert_int_equal(unlink(path), 0);
        }
        if (done < 3) {
            snprintf(path, sizeof path, "%s/artifacts/p/aliases.json", f->dir);
            assert_int_equal(sl_file_write(path, "{\"candidate\":0}", 15, &f->err), 0);
        }
        snprintf(path, sizeof path, "%s/journal/0124.json.5f.tmp", f->dir); /* cut while written */
        assert_int_equal(sl_file_write(path, "{\"na", 4, &f->err), 0);
        reopen(f);
        assert_int_equal(count_files(f, "journal"), 0);
        assert_int_equal(resolve(f, "p", "candidate"), 1);
        assert_int_equal(resolve(f, "p", "latest"), 1);
        assert_int_equal(sl_store_published(f->store, "r1", "prompts", &record, &f->err), 0);
        assert_int_equal(sl_json_int(record, "number", -1), 1);
        json_decref(record);
    }
}

static void pins_are_files(void **state)
{
    struct fixture *f = *state;
    char manifest[65], below[128];
    put_manifest(f, "x", manifest);
    assert_int_equal(sl_store_pin(f->store, manifest, "run1", &f->err), 0);
    assert_int_equal(sl_store_pin(f->store, manifest, "run1", &f->err), 0);
    assert_int_equal(sl_store_pin(f->store, manifest, "run2", &f->err), 0);
    reopen(f);
    snprintf(below, sizeof below, "pins/%s", manifest);
    assert_int_equal(count_files(f, below), 2);
    assert_int_equal(sl_store_unpin(f->store, manifest, "run1", &f->err), 0);
    assert_int_equal(sl_store_unpin(f->store, manifest, "run1", &f->err), 0);
    assert_int_equal(count_files(f, below), 1);
    assert_int_equal(sl_store_unpin(f->store, manifest, "run2", &f->err), 0);
    assert_int_equal(count_files(f, "pins"), 0);
}

/* ---- many at once ---------------------------------------------------------------------------- */

#define N_WRITERS 4
#define N_EACH 6

struct writer {
    struct fixture *f;
    int id;
    int numbers[N_EACH];
};

static void *write_versions(void *arg)
{
    struct writer *w = arg;
    for (int i = 0; i < N_EACH; i++) {
        struct fixture f = {.store = w->f->store};
        char text[32], run[32];
        bool created;
        snprintf(text, sizeof text, "%d/%d", w->id, i);
        snprintf(run, sizeof run, "run-%d-%d", w->id, i);
        w->numbers[i] = commit(&f, "busy", text, run, "candidate", &created);
    }
    return NULL;
}

static void concurrent_commits_get_numbers_of_their_own(void **state)
{
    struct fixture *f = *state;
    struct writer w[N_WRITERS];
    pthread_t threads[N_WRITERS];
    bool seen[N_WRITERS * N_EACH] = {false};
    for (int i = 0; i < N_WRITERS; i++) {
        w[i] = (struct writer){.f = f, .id = i};
        assert_int_equal(pthread_create(&threads[i], NULL, write_versions, &w[i]), 0);
    }
    for (int i = 0; i < N_WRITERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < N_WRITERS; i++)
        for (int k = 0; k < N_EACH; k++) {
            int n = w[i].numbers[k];
            assert_in_range(n, 0, N_WRITERS * N_EACH - 1);
            assert_false(seen[n]);
            seen[n] = true;
        }
    assert_int_equal(resolve(f, "busy", "latest"), N_WRITERS * N_EACH - 1);
}

static void *write_same(void *arg)
{
    struct writer *w = arg;
    struct fixture f = {.store = w->f->store};
    bool created;
    w->numbers[0] = commit(&f, "same", "equal bytes", NULL, NULL, &created);
    w->numbers[1] = created;
    return NULL;
}

static void concurrent_equal_commits_make_one_version(void **state)
{
    struct fixture *f = *state;
    struct writer w[N_WRITERS];
    pthread_t threads[N_WRITERS];
    int created = 0;
    for (int i = 0; i < N_WRITERS; i++) {
        w[i] = (struct writer){.f = f, .id = i};
        assert_int_equal(pthread_create(&threads[i], NULL, write_same, &w[i]), 0);
    }
    for (int i = 0; i < N_WRITERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(w[i].numbers[0], 0);
        created += w[i].numbers[1];
    }
    assert_int_equal(created, 1);
    assert_int_equal(resolve(f, "same", "latest"), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(blob_comes_back),
        T(wrong_digest_leaves_nothing),
        T(unfinished_blob_is_invisible_and_swept),
        T(failing_disk_leaves_nothing),
        T(bad_digests_are_refused),
        T(one_process_writes),
        T(newer_format_is_refused),
        cmocka_unit_test(names_and_paths),
        cmocka_unit_test(references),
        T(attacks_by_name_touch_nothing),
        T(manifests_that_are_refused),
        T(missing_and_short_blobs_are_named),
        T(versions_and_aliases),
        T(aliases_have_a_limit_that_harms_nothing),
        T(an_output_is_published_once),
        T(allocated_numbers_are_kept),
        T(a_cut_commit_is_finished),
        T(pins_are_files),
        T(concurrent_commits_get_numbers_of_their_own),
        T(concurrent_equal_commits_make_one_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
