/* A store in a folder of its own, and short forms of its calls. */
#ifndef SL_TESTS_UNIT_STORE_FIXTURE_H
#define SL_TESTS_UNIT_STORE_FIXTURE_H
#include "artifacts/manifest.h"
#include "artifacts/store.h"
#include "base/json.h"
#include "tests/unit/files.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

struct fixture {
    char dir[64];
    struct sl_store *store;
    struct sl_err err;
};

static inline int setup(void **state)
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

static inline int teardown(void **state)
{
    struct fixture *f = *state;
    sl_store_close(f->store);
    sl_rmtree(f->dir, NULL);
    free(f);
    return 0;
}

static inline void reopen(struct fixture *f)
{
    sl_store_close(f->store);
    f->store = NULL;
    sl_err_clear(&f->err);
    if (sl_store_open(f->dir, &f->store, &f->err))
        fail_msg("%s", f->err.msg);
}

static inline int count_files(const struct fixture *f, const char *below)
{
    char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", f->dir, below);
    return files_at(path);
}

/* A manifest of one file with this content, both stored. */
static inline void put_manifest(struct fixture *f, const char *content, char ret_manifest[65])
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
static inline int commit(struct fixture *f, const char *name, const char *content, const char *run,
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

static inline int resolve(struct fixture *f, const char *name, const char *version)
{
    json_t *record;
    sl_err_clear(&f->err);
    if (sl_store_resolve(f->store, name, version, &record, &f->err))
        return -1;
    int number = (int)sl_json_int(record, "number", -1);
    json_decref(record);
    return number;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
