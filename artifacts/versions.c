/* Versions of artifacts: allocate, commit, look up. Every change goes through the journal. */
#include "artifacts/manifest.h"
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION_NUMBER_MAX 999999999

static int out_of_memory(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory");
}

static int check_name(const char *what, const char *name, struct sl_err *err)
{
    if (sl_name_valid(name))
        return 0;
    return sl_err_set(err, SL_SPEC,
                      "%s `%.150s` is not allowed: 1 to %d of a-z 0-9 . _ -, first a letter or digit",
                      what, name ? name : "", SL_NAME_MAX);
}

static int check_alias(const char *alias, struct sl_err *err)
{
    if (sl_alias_valid(alias))
        return 0;
    return sl_err_set(err, SL_SPEC,
                      "alias `%.150s` is not allowed: 1 to %d of a-z 0-9 . _ -, first a letter or digit, "
                      "neither `latest` nor like a version",
                      alias ? alias : "", SL_NAME_MAX);
}

static int check_sha256(const char *sha256, struct sl_err *err)
{
    if (sl_sha256_valid(sha256))
        return 0;
    return sl_err_set(err, SL_SPEC, "not a sha256 (64 lower-case hex digits): %.80s",
                      sha256 ? sha256 : "(none)");
}

/* ---- manifests and pins ---------------------------------------------------------------------------------- */

static int read_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                         struct sl_err *err)
{
    int64_t bytes;
    int fd, rc = sl_blob_open(store, sha256, &fd, &bytes, err);
    if (rc)
        return sl_err_wrap(err, rc, "manifest");
    if (bytes > SL_MANIFEST_MAX_BYTES) {
        close(fd);
        return sl_err_set(err, SL_SPEC, "manifest %s has %lld bytes, more than %u", sha256,
                          (long long)bytes, SL_MANIFEST_MAX_BYTES);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    rc = sl_json_read(path, SL_MANIFEST_MAX_BYTES, ret_manifest, err);
    close(fd);
    return rc ? sl_err_wrap(err, rc, "manifest %s", sha256) : 0;
}

int sl_store_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                      json_t **ret_problems, struct sl_err *err)
{
    json_t *manifest = NULL, *problems = json_array();
    int rc = read_manifest(store, sha256, &manifest, err);
    if (rc == 0)
        rc = sl_manifest_check(manifest, problems, err);
    size_t i, missing = 0;
    json_t *file;
    json_array_foreach(rc == 0 ? json_object_get(manifest, "files") : NULL, i, file) {
        const char *digest = sl_json_str(file, "sha256", ""), *path = sl_json_str(file, "path", "");
        char at[40];
        int64_t bytes;
        snprintf(at, sizeof at, "/files/%zu", i);
        if (sl_blob_stat(store, digest, &bytes, NULL))
            sl_problem_add(problems, at, "%s: blob %s is not in the store: upload it first", path,
                           digest);
        else if (bytes != sl_json_int(file, "bytes", -1))
            sl_problem_add(problems, at, "%s: the blob has %lld bytes, the manifest says %lld", path,
                           (long long)bytes, (long long)sl_json_int(file, "bytes", -1));
        else
            continue;
        missing++;
    }
    if (rc == 0 && missing)
        rc = sl_err_set(err, SL_SPEC, "%zu of the manifest's files are missing from the store", missing);
    if (rc == 0)
        *ret_manifest = json_incref(manifest);
    else if (rc == SL_SPEC && ret_problems)
        *ret_problems = json_incref(problems);
    json_decref(problems);
    json_decref(manifest);
    return rc;
}

int sl_store_pin(struct sl_store *store, const char *sha256, const char *owner, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    bool exists;
    int rc = check_sha256(sha256, err);
    if (rc == 0)
        rc = check_name("owner", owner, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s", store->dir, sha256);
    pthread_mutex_lock(&store->mutex); /* against unpin's rmdir */
    if (rc == 0)
        rc = sl_store_mkdir(path, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s/%s", store->dir, sha256, owner);
    if (rc == 0)
        rc = sl_store_create(store, path, "", &exists, err);
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

int sl_store_unpin(struct sl_store *store, const char *sha256, const char *owner, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = check_sha256(sha256, err);
    if (rc == 0)
        rc = check_name("owner", owner, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s/%s", store->dir, sha256, owner);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    if (unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "removing %s", path);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s", store->dir, sha256);
    if (rc == 0)
        rmdir(path); /* stays while others pin it */
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

/* ---- reading records ------------------------------------------------------------------------------------- */

/* The newest version's number, -1: none. The mutex is held. */
static int newest_of(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err)
{
    const json_t *known = json_object_get(store->newest, name);
    if (known) {
        *ret_number = (int)json_integer_value(known);
        return 0;
    }
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/artifacts/%s", store->dir, name);
    if (rc)
        return rc;
    DIR *d = opendir(path);
    if (!d && errno != ENOENT)
        return sl_err_errno(err, "reading %s", path);
    int newest = -1;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *dot = strrchr(e->d_name, '.');
        if (!dot || strcmp(dot, ".json") != 0)
            continue;
        *dot = 0;
        int n = sl_version_number(e->d_name);
        newest = n > newest ? n : newest;
    }
    if (d)
        closedir(d);
    if (newest >= 0)
        json_object_set_new(store->newest, name, json_integer(newest));
    *ret_number = newest;
    return 0;
}

/* The stored record as it is. SL_NOTFOUND. */
static int read_record(const struct sl_store *store, const char *name, int number,
                       json_t **ret_record, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_record_path(store, name, number, path, err);
    if (rc)
        return rc;
    if (!sl_file_exists(path))
        return sl_err_set(err, SL_NOTFOUND, "artifact %s has no version v%d", name, number);
    return sl_json_read(path, SL_RECORD_MAX_BYTES, ret_record, err);
}

static json_t *aliases_of(const json_t *aliases, int number, int newest)
{
    json_t *list = json_array();
    if (number == newest)
        json_array_append_new(list, json_string("latest"));
    const char *alias;
    json_t *target;
    json_object_foreach((json_t *)aliases, alias, target)
        if (json_integer_value(target) == number)
            json_array_append_new(list, json_string(alias));
    return list;
}

/* The record with its aliases and files, as ret_record is described. The mutex is held. */
static int full_record(struct sl_store *store, const char *name, int number, json_t **ret_record,
                       struct sl_err *err)
{
    json_t *record = NULL, *aliases = NULL, *manifest = NULL;
    int newest = -1;
    int rc = read_record(store, name, number, &record, err);
    if (rc == 0)
        rc = sl_store_read_aliases(store, name, &aliases, err);
    if (rc == 0)
        rc = newest_of(store, name, &newest, err);
    if (rc == 0)
        rc = read_manifest(store, sl_json_str(record, "manifest", ""), &manifest, err);
    if (rc == 0 && (json_object_set_new(record, "aliases", aliases_of(aliases, number, newest)) ||
                    json_object_set(record, "files", json_object_get(manifest, "files"))))
        rc = out_of_memory(err);
    if (rc == 0)
        *ret_record = json_incref(record);
    json_decref(manifest);
    json_decref(aliases);
    json_decref(record);
    return rc;
}

int sl_store_resolve(struct sl_store *store, const char *name, const char *version,
                     json_t **ret_record, struct sl_err *err)
{
    int rc = check_name("artifact name", name, err), newest = -1, number = sl_version_number(version);
    if (rc)
        return rc;
    json_t *aliases = NULL;
    pthread_mutex_lock(&store->mutex);
    rc = newest_of(store, name, &newest, err);
    if (rc == 0 && newest < 0)
        rc = sl_err_set(err, SL_NOTFOUND, "there is no artifact %s", name);
    if (rc == 0 && number < 0) {
        if (strcmp(version, "latest") == 0) {
            number = newest;
        } else {
            rc = sl_store_read_aliases(store, name, &aliases, err);
            if (rc == 0)
                number = (int)sl_json_int(json_object_get(aliases, version), "", -1);
            if (rc == 0 && number < 0)
                rc = sl_err_set(err, SL_NOTFOUND, "artifact %s has no version or alias `%.150s`", name,
                                version);
        }
    }
    if (rc == 0)
        rc = full_record(store, name, number, ret_record, err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(aliases);
    return rc;
}

/* ---- allocate and commit --------------------------------------------------------------------------------- */

/* The mutex is held. SL_NOTFOUND: not published. */
static int read_marker(struct sl_store *store, const char *run, const char *output, json_t **ret_marker,
                       struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/markers/%s/%s.json", store->dir, run, output);
    if (rc)
        return rc;
    if (!sl_file_exists(path))
        return sl_err_set(err, SL_NOTFOUND, "run %s has not published its output %s", run, output);
    return sl_json_read(path, SL_RECORD_MAX_BYTES, ret_marker, err);
}

/* ret_number: a version that a commit of this manifest finds there, or the next free number (ret_new). */
static int choose_number(struct sl_store *store, const char *name, const char *manifest,
                         int *ret_number, bool *ret_new, struct sl_err *err)
{
    int newest = -1, rc = newest_of(store, name, &newest, err);
    if (rc)
        return rc;
    bool is_new = true;
    int number = newest;
    if (newest >= 0) {
        json_t *record = NULL;
        rc = read_record(store, name, newest, &record, err);
        if (rc)
            return rc;
        is_new = strcmp(sl_json_str(record, "manifest", ""), manifest) != 0;
        json_decref(record);
    }
    if (is_new) {
        size_t i;
        json_t *taken;
        json_array_foreach(json_object_get(store->reserved, name), i, taken)
            if (json_integer_value(taken) > number)
                number = (int)json_integer_value(taken);
        if (number >= VERSION_NUMBER_MAX)
            return sl_err_set(err, SL_CONFLICT, "artifact %s has too many versions", name);
        number++;
    }
    *ret_number = number;
    *ret_new = is_new;
    return 0;
}

static int check_request(const char *name, const char *manifest, const char *run, const char *output,
                         struct sl_err *err)
{
    int rc = check_name("artifact name", name, err);
    if (rc == 0)
        rc = check_sha256(manifest, err);
    if (rc == 0 && (run || output))
        rc = check_name("run", run, err);
    if (rc == 0 && (run || output))
        rc = check_name("output", output, err);
    return rc;
}

int sl_store_allocate(struct sl_store *store, const char *name, const char *manifest,
                      const char *run, const char *output, int *ret_number, struct sl_err *err)
{
    int number = -1, rc = check_request(name, manifest, run, output, err);
    if (rc)
        return rc;
    bool is_new = false;
    json_t *marker = NULL;
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0 && run && read_marker(store, run, output, &marker, NULL) == 0)
        number = (int)sl_json_int(marker, "number", -1);
    if (rc == 0 && number < 0)
        rc = choose_number(store, name, manifest, &number, &is_new, err);
    if (rc == 0 && is_new) {
        json_t *list = json_object_get(store->reserved, name);
        if (!list) {
            list = json_array();
            json_object_set_new(store->reserved, name, list);
        }
        if (json_array_append_new(list, json_integer(number)))
            rc = out_of_memory(err);
    }
    pthread_mutex_unlock(&store->mutex);
    json_decref(marker);
    if (rc == 0)
        *ret_number = number;
    return rc;
}

/* The mutex is held. */
static void unreserve(struct sl_store *store, const char *name, int number)
{
    json_t *list = json_object_get(store->reserved, name);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_integer_value(json_array_get(list, i)) == number) {
            json_array_remove(list, i);
            break;
        }
    if (json_array_size(list) == 0)
        json_object_del(store->reserved, name);
}

void sl_store_release(struct sl_store *store, const char *name, int number)
{
    pthread_mutex_lock(&store->mutex);
    unreserve(store, name, number);
    pthread_mutex_unlock(&store->mutex);
}

/* Picks the number as sl_store_commit says. The mutex is held. */
static int commit_number(struct sl_store *store, const struct sl_commit *c, int *ret_number,
                         bool *ret_new, struct sl_err *err)
{
    if (c->number >= 0 && c->number <= VERSION_NUMBER_MAX) {
        json_t *there = NULL;
        int rc = read_record(store, c->name, c->number, &there, NULL);
        if (rc && rc != SL_NOTFOUND)
            return sl_err_set(err, rc, "reading version v%d of %s", c->number, c->name);
        bool same = rc == 0 && strcmp(sl_json_str(there, "manifest", ""), c->manifest) == 0;
        json_decref(there);
        if (rc == SL_NOTFOUND || same) {
            *ret_number = c->number;
            *ret_new = !same;
            return 0;
        }
    }
    return choose_number(store, c->name, c->manifest, ret_number, ret_new, err);
}

static json_t *make_entry(const struct sl_commit *c, int number, bool is_new, int64_t bytes)
{
    json_t *record = NULL;
    if (is_new) {
        char version[16], created[32];
        snprintf(version, sizeof version, "v%d", number);
        sl_format_time(sl_now_us(), created);
        record = json_pack("{s:s, s:s, s:i, s:s, s:s, s:I}", "name", c->name, "version", version,
                           "number", number, "manifest", c->manifest, "created", created, "bytes",
                           (json_int_t)bytes);
        if (record && c->run)
            json_object_set_new(record, "made_by",
                                json_pack("{s:s, s:s}", "run", c->run, "output", c->output));
        if (!record)
            return NULL;
    }
    return json_pack("{s:s, s:i, s:o?, s:s?, s:s?, s:O?}", "name", c->name, "number", number, "record",
                     record, "run", c->run, "output", c->output, "aliases", c->aliases);
}

int sl_store_commit(struct sl_store *store, const struct sl_commit *c, json_t **ret_record,
                    bool *ret_created, struct sl_err *err)
{
    int number = -1, rc = check_request(c->name, c->manifest, c->run, c->output, err);
    json_t *manifest = NULL, *marker = NULL, *entry = NULL, *record = NULL;
    if (rc == 0 && json_array_size(c->aliases) > SL_STORE_MAX_ALIASES)
        rc = sl_err_set(err, SL_SPEC, "more than %d aliases", SL_STORE_MAX_ALIASES);
    for (size_t i = 0; rc == 0 && i < json_array_size(c->aliases); i++)
        rc = check_alias(json_string_value(json_array_get(c->aliases, i)), err);
    if (rc == 0)
        rc = sl_store_manifest(store, c->manifest, &manifest, NULL, err);
    if (rc)
        return rc;
    bool is_new = false;
    const char *name = c->name;
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0 && c->run && read_marker(store, c->run, c->output, &marker, NULL) == 0) {
        name = sl_json_str(marker, "name", c->name);
        number = (int)sl_json_int(marker, "number", -1);
    } else if (rc == 0) {
        rc = commit_number(store, c, &number, &is_new, err);
        if (rc == 0) {
            entry = make_entry(c, number, is_new, sl_manifest_bytes(manifest));
            rc = entry ? sl_store_journal(store, entry, err) : out_of_memory(err);
        }
    }
    if (rc == 0)
        rc = full_record(store, name, number, &record, err);
    if (rc == 0 && c->number >= 0)
        unreserve(store, c->name, c->number);
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0) {
        *ret_record = record;
        if (ret_created)
            *ret_created = is_new;
    }
    json_decref(entry);
    json_decref(marker);
    json_decref(manifest);
    return rc ? sl_err_wrap(err, rc, "artifact %s", c->name) : 0;
}

int sl_store_published(struct sl_store *store, const char *run, const char *output,
                       json_t **ret_record, struct sl_err *err)
{
    int rc = check_name("run", run, err);
    if (rc == 0)
        rc = check_name("output", output, err);
    if (rc)
        return rc;
    json_t *marker = NULL;
    pthread_mutex_lock(&store->mutex);
    rc = read_marker(store, run, output, &marker, err);
    if (rc == 0)
        rc = full_record(store, sl_json_str(marker, "name", ""),
                         (int)sl_json_int(marker, "number", -1), ret_record, err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(marker);
    return rc;
}

int sl_store_alias(struct sl_store *store, const char *name, const char *alias, const char *version,
                   struct sl_err *err)
{
    json_t *record = NULL, *entry = NULL;
    int rc = check_alias(alias, err);
    if (rc == 0)
        rc = sl_store_resolve(store, name, version, &record, err);
    if (rc)
        return rc;
    entry = json_pack("{s:s, s:O, s:[s]}", "name", name, "number", json_object_get(record, "number"),
                      "aliases", alias);
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0)
        rc = entry ? sl_store_journal(store, entry, err) : out_of_memory(err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(entry);
    json_decref(record);
    return rc;
}

/* ---- lists ----------------------------------------------------------------------------------------------- */

/* {"name", "latest", "aliases", "numbers": [3, 2, 0]}; NULL ret for a folder without versions. Mutex is held. */
static int overview(struct sl_store *store, const char *name, int newest, json_t **ret_overview,
                    struct sl_err *err)
{
    json_t *stored = NULL, *numbers = json_array(), *aliases = json_object();
    char version[16];
    int rc = sl_store_read_aliases(store, name, &stored, err);
    const char *alias;
    json_t *target;
    json_object_foreach(stored, alias, target) {
        snprintf(version, sizeof version, "v%d", (int)json_integer_value(target));
        json_object_set_new(aliases, alias, json_string(version));
    }
    for (int n = newest; rc == 0 && n >= 0; n--) {
        char path[SL_PATH_MAX];
        rc = sl_store_record_path(store, name, n, path, err);
        if (rc == 0 && sl_file_exists(path))
            json_array_append_new(numbers, json_integer(n));
    }
    snprintf(version, sizeof version, "v%d", newest);
    json_t *result = json_pack("{s:s, s:s, s:O, s:O}", "name", name, "latest", version, "aliases",
                               aliases, "numbers", numbers);
    if (rc == 0 && !result)
        rc = out_of_memory(err);
    if (rc == 0)
        *ret_overview = json_incref(result);
    json_decref(result);
    json_decref(stored);
    json_decref(numbers);
    json_decref(aliases);
    return rc;
}

int sl_store_artifact(struct sl_store *store, const char *name, json_t **ret_artifact,
                      struct sl_err *err)
{
    json_t *seen = NULL, *stored = NULL, *versions = json_array(), *n;
    size_t i;
    int newest = -1, rc = check_name("artifact name", name, err);
    pthread_mutex_lock(&store->mutex);
    if (rc == 0)
        rc = newest_of(store, name, &newest, err);
    if (rc == 0 && newest < 0)
        rc = sl_err_set(err, SL_NOTFOUND, "there is no artifact %s", name);
    if (rc == 0)
        rc = overview(store, name, newest, &seen, err);
    if (rc == 0)
        rc = sl_store_read_aliases(store, name, &stored, err);
    json_array_foreach(rc == 0 ? json_object_get(seen, "numbers") : NULL, i, n) {
        json_t *record = NULL;
        int number = (int)json_integer_value(n);
        rc = read_record(store, name, number, &record, err);
        if (rc)
            break;
        json_object_set_new(record, "aliases", aliases_of(stored, number, newest));
        json_array_append_new(versions, record);
    }
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0) {
        json_object_del(seen, "numbers");
        json_object_set(seen, "versions", versions);
        *ret_artifact = json_incref(seen);
    }
    json_decref(versions);
    json_decref(stored);
    json_decref(seen);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int sl_store_list(struct sl_store *store, json_t **ret_list, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/artifacts", store->dir);
    if (rc)
        return rc;
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, NULL);
    if (n < 0)
        return sl_err_errno(err, "reading %s", path);
    char **names = calloc((size_t)n + 1, sizeof *names);
    int count = 0;
    for (int i = 0; i < n; i++) {
        if (names && sl_name_valid(entries[i]->d_name))
            names[count++] = strdup(entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    json_t *list = names ? json_array() : NULL;
    if (!list)
        rc = out_of_memory(err);
    else
        qsort(names, (size_t)count, sizeof *names, compare_names);
    pthread_mutex_lock(&store->mutex);
    for (int i = 0; rc == 0 && i < count; i++) {
        int newest = -1;
        json_t *seen = NULL;
        rc = names[i] ? newest_of(store, names[i], &newest, err) : out_of_memory(err);
        if (rc == 0 && newest >= 0)
            rc = overview(store, names[i], newest, &seen, err);
        if (rc == 0 && seen) {
            size_t versions = json_array_size(json_object_get(seen, "numbers"));
            json_object_del(seen, "numbers");
            json_object_set_new(seen, "versions", json_integer((json_int_t)versions));
            json_array_append_new(list, seen);
        }
    }
    pthread_mutex_unlock(&store->mutex);
    for (int i = 0; i < count; i++)
        free(names[i]);
    free(names);
    if (rc == 0)
        *ret_list = json_incref(list);
    json_decref(list);
    return rc;
}
