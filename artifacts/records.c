/* Reading the store: records of versions, aliases, lists. */
#include "artifacts/store_priv.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int no_artifact(const char *name, struct sl_err *err)
{
    return sl_err_set(err, SL_NOTFOUND,
                      "there is no artifact %s; `softlaunch artifact ls` lists what there is",
                      name);
}

/* Fills newest and highest of one artifact. */
static int look_through(struct sl_store *store, const char *name, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/artifacts/%s", store->dir, name);
    if (rc)
        return rc;
    DIR *d = opendir(path);
    if (!d && errno != ENOENT)
        return sl_err_errno(err, "reading %s", path);
    int newest = -1, highest = -1;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *dot = strrchr(e->d_name, '.');
        bool there = dot && strcmp(dot, ".json") == 0;
        if (!there && !(dot && strcmp(dot, ".gone") == 0))
            continue;
        *dot = 0;
        int n = sl_version_number(e->d_name);
        highest = n > highest ? n : highest;
        newest = there && n > newest ? n : newest;
    }
    if (d)
        closedir(d);
    if (highest >= 0 && (json_object_set_new(store->newest, name, json_integer(newest)) ||
                         json_object_set_new(store->highest, name, json_integer(highest))))
        return sl_store_nomem(err);
    return 0;
}

static int known(struct sl_store *store, json_t *numbers, const char *name, int *ret_number,
                 struct sl_err *err)
{
    int rc = json_object_get(numbers, name) ? 0 : look_through(store, name, err);
    const json_t *number = json_object_get(numbers, name);
    if (rc == 0)
        *ret_number = number ? (int)json_integer_value(number) : -1;
    return rc;
}

int sl_store_newest(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err)
{
    return known(store, store->newest, name, ret_number, err);
}

int sl_store_highest(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err)
{
    return known(store, store->highest, name, ret_number, err);
}

int sl_store_read_record(const struct sl_store *store, const char *name, int number,
                         json_t **ret_record, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_record_path(store, name, number, path, err);
    if (rc)
        return rc;
    if (!sl_file_exists(path))
        return sl_err_set(err, SL_NOTFOUND,
                          "artifact %s has no version v%d; `softlaunch artifact ls %s` lists them",
                          name, number, name);
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

static int read_gone(struct sl_store *store, const char *name, int number, json_t **ret_record,
                     struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *record = NULL;
    int rc = sl_store_gone_path(store, name, number, path, err);
    if (rc == 0)
        rc = sl_json_read(path, SL_RECORD_MAX_BYTES, &record, err);
    if (rc == 0 && (json_object_set_new(record, "aliases", json_array()) ||
                    json_object_set_new(record, "files", json_array())))
        rc = sl_store_nomem(err);
    if (rc == 0)
        *ret_record = json_incref(record);
    json_decref(record);
    return rc;
}

int sl_store_full_record(struct sl_store *store, const char *name, int number, bool deleted,
                         json_t **ret_record, struct sl_err *err)
{
    json_t *record = NULL, *aliases = NULL, *manifest = NULL;
    int newest = -1;
    int rc = sl_store_read_record(store, name, number, &record, deleted ? NULL : err);
    if (rc && deleted)
        return read_gone(store, name, number, ret_record, err);
    if (rc == 0)
        rc = sl_store_read_aliases(store, name, &aliases, err);
    if (rc == 0)
        rc = sl_store_newest(store, name, &newest, err);
    if (rc == 0)
        rc = sl_store_read_manifest(store, sl_json_str(record, "manifest", ""), &manifest, err);
    if (rc == 0 && (json_object_set_new(record, "aliases", aliases_of(aliases, number, newest)) ||
                    json_object_set(record, "files", json_object_get(manifest, "files"))))
        rc = sl_store_nomem(err);
    if (rc == 0)
        *ret_record = json_incref(record);
    json_decref(manifest);
    json_decref(aliases);
    json_decref(record);
    return rc;
}

int sl_store_number_of(struct sl_store *store, const char *name, const char *version,
                       int *ret_number, struct sl_err *err)
{
    int newest = -1, number = sl_version_number(version);
    json_t *aliases = NULL;
    int rc = sl_store_newest(store, name, &newest, err);
    if (rc == 0 && newest < 0)
        rc = no_artifact(name, err);
    if (rc == 0 && number < 0 && strcmp(version, "latest") == 0) {
        number = newest;
    } else if (rc == 0 && number < 0) {
        rc = sl_store_read_aliases(store, name, &aliases, err);
        if (rc == 0)
            number = (int)sl_json_int(json_object_get(aliases, version), "", -1);
        if (rc == 0 && number < 0)
            rc = sl_err_set(err, SL_NOTFOUND, "artifact %s has no version or alias `%.150s`", name,
                            version);
    }
    json_decref(aliases);
    if (rc == 0)
        *ret_number = number;
    return rc;
}

int sl_store_resolve(struct sl_store *store, const char *name, const char *version,
                     json_t **ret_record, struct sl_err *err)
{
    int number, rc = sl_store_check_name("artifact name", name, err);
    if (rc)
        return rc;
    json_t *aliases = NULL;
    char staged[SL_NAME_MAX + 1];
    int newest = -1;
    bool is_stage = false;
    pthread_mutex_lock(&store->mutex);
    if (sl_version_number(version) < 0) { /* an artifact's own alias goes before a model's stage */
        rc = sl_store_newest(store, name, &newest, err);
        if (rc == 0 && newest >= 0)
            rc = sl_store_read_aliases(store, name, &aliases, err);
        if (rc == 0 && !json_object_get(aliases, version) &&
            sl_registry_stage_at(store, name, version, staged, &number) == 0) {
            name = staged;
            is_stage = true;
        }
        json_decref(aliases);
    }
    if (rc == 0 && !is_stage)
        rc = sl_store_number_of(store, name, version, &number, err);
    if (rc == 0)
        rc = sl_store_full_record(store, name, number, false, ret_record, err);
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

/* {"name", "latest", "aliases", "numbers": [3, 2, 0]}; NULL ret for a folder without versions.
 * Mutex is held. */
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
    json_t *record = NULL;
    if (rc == 0)
        rc = sl_store_read_record(store, name, newest, &record, err);
    if (rc == 0 && result && sl_json_str(record, "project", NULL))
        json_object_set(result, "project", json_object_get(record, "project"));
    json_decref(record);
    if (rc == 0 && !result)
        rc = sl_store_nomem(err);
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
    json_t *seen = NULL, *stored = NULL, *moves = NULL, *versions = json_array(), *n;
    size_t i;
    int newest = -1, rc = sl_store_check_name("artifact name", name, err);
    pthread_mutex_lock(&store->mutex);
    if (rc == 0)
        rc = sl_store_newest(store, name, &newest, err);
    if (rc == 0 && newest < 0)
        rc = no_artifact(name, err);
    if (rc == 0)
        rc = overview(store, name, newest, &seen, err);
    if (rc == 0)
        rc = sl_store_read_aliases(store, name, &stored, err);
    if (rc == 0)
        rc = sl_store_read_moves(store, name, &moves, err);
    json_array_foreach(rc == 0 ? json_object_get(seen, "numbers") : NULL, i, n) {
        json_t *record = NULL;
        int number = (int)json_integer_value(n);
        rc = sl_store_read_record(store, name, number, &record, err);
        if (rc)
            break;
        json_object_set_new(record, "aliases", aliases_of(stored, number, newest));
        json_array_append_new(versions, record);
    }
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0) {
        json_object_del(seen, "numbers");
        json_object_set(seen, "versions", versions);
        json_object_set(seen, "alias_moves", moves);
        *ret_artifact = json_incref(seen);
    }
    json_decref(versions);
    json_decref(moves);
    json_decref(stored);
    json_decref(seen);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(struct dirent *const *)a)->d_name, (*(struct dirent *const *)b)->d_name);
}

/* Names of all artifacts, in order; the caller's. */
static int list_names(const struct sl_store *store, json_t **ret_names, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/artifacts", store->dir);
    if (rc)
        return rc;
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, NULL);
    if (n < 0)
        return sl_err_errno(err, "reading %s", path);
    qsort(entries, (size_t)n, sizeof *entries, compare_names);
    json_t *names = json_array();
    for (int i = 0; i < n; i++) {
        if (sl_name_valid(entries[i]->d_name) &&
            json_array_append_new(names, json_string(entries[i]->d_name)))
            rc = sl_store_nomem(err);
        free(entries[i]);
    }
    free(entries);
    if (rc)
        json_decref(names);
    else
        *ret_names = names;
    return rc;
}

int sl_store_list(struct sl_store *store, json_t **ret_list, struct sl_err *err)
{
    json_t *names = NULL, *list = json_array(), *name;
    size_t i;
    int rc = list_names(store, &names, err);
    pthread_mutex_lock(&store->mutex);
    json_array_foreach(names, i, name) {
        int newest = -1;
        json_t *seen = NULL;
        rc = sl_store_newest(store, json_string_value(name), &newest, err);
        if (rc == 0 && newest >= 0)
            rc = overview(store, json_string_value(name), newest, &seen, err);
        if (rc)
            break;
        if (seen) {
            size_t versions = json_array_size(json_object_get(seen, "numbers"));
            json_object_del(seen, "numbers");
            json_object_set_new(seen, "versions", json_integer((json_int_t)versions));
            json_array_append_new(list, seen);
        }
    }
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0)
        *ret_list = json_incref(list);
    json_decref(list);
    json_decref(names);
    return rc;
}

int sl_store_each(struct sl_store *store,
                  int (*fn)(void *arg, const json_t *record, struct sl_err *err), void *arg,
                  struct sl_err *err)
{
    json_t *names = NULL, *name, *version;
    size_t i, k;
    int rc = list_names(store, &names, err);
    json_array_foreach(rc ? NULL : names, i, name) {
        json_t *artifact = NULL;
        rc = sl_store_artifact(store, json_string_value(name), &artifact, err);
        if (rc == SL_NOTFOUND) { /* every version of it is deleted */
            sl_err_clear(err);
            rc = 0;
        }
        json_array_foreach(json_object_get(artifact, "versions"), k, version) {
            rc = fn(arg, version, err);
            if (rc)
                break;
        }
        json_decref(artifact);
        if (rc)
            break;
    }
    json_decref(names);
    return rc;
}
