/* The store: blobs, names and manifests, what it takes and what it refuses. */
#include "tests/unit/store_fixture.h"

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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
