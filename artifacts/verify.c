/* Looks through the whole store for what does not fit. */
#include "artifacts/manifest.h"
#include "artifacts/store_priv.h"
#include "base/json.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct verify {
    struct sl_store *store;
    bool hash;
    bool (*stop)(void *arg);
    void *arg;
    json_t *seen;     /* sha256 -> size, or -1 when there is something wrong with it */
    json_t *problems; /* texts */
    int64_t versions, blobs, bytes, total;
};

static void __attribute__((format(printf, 2, 3))) problem(struct verify *v, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (v->total++ < SL_VERIFY_PROBLEMS_MAX)
        json_array_append_new(v->problems, json_string(text));
}

/* The size of a blob that is there and right; else -1, and why. */
static int64_t look(struct verify *v, const char *sha256, char why[256])
{
    char path[sizeof "/proc/self/fd/" + 16], found[SL_SHA256_HEX + 1];
    struct sl_err err = SL_ERR_INIT;
    int64_t bytes = -1;
    int fd = -1;
    int rc = sl_blob_stat(v->store, sha256, &bytes, &err);
    if (rc == 0 && v->hash)
        rc = sl_blob_open(v->store, sha256, &fd, &bytes, &err);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (rc == 0 && v->hash)
        rc = sl_sha256_file(path, found, NULL, &err);
    if (fd >= 0)
        close(fd);
    if (rc == 0 && v->hash && strcmp(found, sha256) != 0)
        rc = sl_err_set(&err, SL_DATA, "blob %s has other bytes, of sha256 %s", sha256, found);
    if (rc)
        snprintf(why, 256, "%.255s", err.msg);
    return rc ? -1 : bytes;
}

/* expected -1: any size. Tells of each blob once. */
static bool check_blob(struct verify *v, const char *who, const char *sha256, int64_t expected)
{
    const json_t *known = json_object_get(v->seen, sha256);
    char why[256] = "it is damaged, as told above";
    int64_t bytes = known ? json_integer_value(known) : look(v, sha256, why);
    if (!known) {
        json_object_set_new(v->seen, sha256, json_integer(bytes));
        v->blobs++;
        v->bytes += bytes > 0 ? bytes : 0;
    }
    if (bytes < 0)
        problem(v, "%s: %s", who, why);
    else if (expected >= 0 && bytes != expected)
        problem(v, "%s: blob %s has %lld bytes, the manifest says %lld", who, sha256,
                (long long)bytes, (long long)expected);
    return bytes >= 0;
}

static void check_files(struct verify *v, const char *who, const char *digest)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *manifest = NULL, *file;
    size_t i;
    if (sl_store_read_manifest(v->store, digest, &manifest, &err) ||
        sl_manifest_check(manifest, NULL, &err))
        problem(v, "%s: %s", who, err.msg);
    json_array_foreach(json_object_get(manifest, "files"), i, file) {
        const char *sha256 = sl_json_str(file, "sha256", "");
        if (sl_sha256_valid(sha256))
            check_blob(v, who, sha256, sl_json_int(file, "bytes", -1));
    }
    json_decref(manifest);
}

static int check_version(void *arg, const json_t *record, struct sl_err *err)
{
    struct verify *v = arg;
    char who[2 * SL_NAME_MAX];
    const char *name = sl_json_str(record, "name", ""), *digest = sl_json_str(record, "manifest", "");
    json_t *problems = v->problems, *now = NULL;
    int64_t total = v->total;
    if (v->stop && v->stop(v->arg))
        return sl_err_set(err, SL_CANCELLED, "stopped");
    snprintf(who, sizeof who, "%s:%s", name, sl_json_str(record, "version", "?"));
    v->versions++;
    v->problems = json_array();
    if (!sl_sha256_valid(digest))
        problem(v, "%s: its record names no manifest", who);
    else if (check_blob(v, who, digest, -1))
        check_files(v, who, digest);
    /* One that was deleted meanwhile needs nothing. */
    pthread_mutex_lock(&v->store->mutex);
    int gone = sl_store_read_record(v->store, name, (int)sl_json_int(record, "number", -1), &now,
                                    NULL) == SL_NOTFOUND;
    pthread_mutex_unlock(&v->store->mutex);
    json_decref(now);
    if (gone)
        v->total = total;
    else
        json_array_extend(problems, v->problems);
    json_decref(v->problems);
    v->problems = problems;
    return 0;
}

/* Aliases point at versions. */
static int check_aliases(struct verify *v, struct sl_err *err)
{
    json_t *list = NULL, *artifact, *target, *record;
    const char *alias;
    size_t i;
    int rc = sl_store_list(v->store, &list, err);
    json_array_foreach(list, i, artifact) {
        const char *name = sl_json_str(artifact, "name", "");
        json_object_foreach(json_object_get(artifact, "aliases"), alias, target) {
            struct sl_err why = SL_ERR_INIT;
            record = NULL;
            if (sl_store_resolve(v->store, name, alias, &record, &why) && why.code != SL_DATA)
                problem(v, "alias %s:%s: %s", name, alias, why.msg);
            json_decref(record);
        }
    }
    json_decref(list);
    return rc;
}

struct run_check {
    struct verify *v;
    const char *run;
};

static int check_output(void *arg, const char *path, const char *name, struct sl_err *err)
{
    const struct run_check *c = arg;
    char output[SL_NAME_MAX + 8];
    size_t len = strlen(name);
    json_t *record = NULL;
    struct sl_err why = SL_ERR_INIT;
    (void)path, (void)err;
    if (len <= 5 || len >= sizeof output || strcmp(name + len - 5, ".json") != 0)
        return 0;
    memcpy(output, name, len - 5);
    output[len - 5] = 0;
    if (sl_store_published(c->v->store, c->run, output, &record, &why))
        problem(c->v, "output %s of run %s: %s", output, c->run, why.msg);
    json_decref(record);
    return 0;
}

/* Every output that a run has published is there, or was deleted by somebody. */
static int check_run(void *arg, const char *path, const char *run, struct sl_err *err)
{
    struct verify *v = arg;
    struct run_check c = {v, run};
    int rc = sl_dir_each(path, check_output, &c, err);
    return rc == 0 && v->stop && v->stop(v->arg) ? sl_err_set(err, SL_CANCELLED, "stopped") : rc;
}

static int check_markers(struct verify *v, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/markers", v->store->dir);
    return rc ? rc : sl_dir_each(dir, check_run, v, err);
}

int sl_store_verify(struct sl_store *store, bool hash, bool (*stop)(void *arg), void *arg,
                    json_t **ret_report, struct sl_err *err)
{
    struct verify v = {.store = store,
                       .hash = hash,
                       .stop = stop,
                       .arg = arg,
                       .seen = json_object(),
                       .problems = json_array()};
    int rc = v.seen && v.problems ? 0 : sl_store_nomem(err);
    if (rc == 0)
        rc = sl_store_each(store, check_version, &v, err);
    if (rc == 0)
        rc = check_aliases(&v, err);
    if (rc == 0)
        rc = check_markers(&v, err);
    json_t *report =
        rc ? NULL
           : json_pack("{s:I, s:I, s:I, s:O, s:I}", "versions", (json_int_t)v.versions, "blobs",
                       (json_int_t)v.blobs, "bytes", (json_int_t)v.bytes, "problems", v.problems,
                       "problems_total", (json_int_t)v.total);
    if (rc == 0 && !report)
        rc = sl_store_nomem(err);
    if (rc == 0)
        *ret_report = report;
    json_decref(v.seen);
    json_decref(v.problems);
    return rc;
}
