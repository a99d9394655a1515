/* The versions of a store: aliases, one publication of an output, what is there after a cut, many writers at once. */
#include "tests/unit/store_fixture.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
