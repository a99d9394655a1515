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

int sl_store_newest(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err)
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

int sl_store_full_record(struct sl_store *store, const char *name, int number, json_t **ret_record,
                         struct sl_err *err)
{
    json_t *record = NULL, *aliases = NULL, *manifest = NULL;
    int newest = -1;
    int rc = sl_store_read_record(store, name, number, &record, err);
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

int sl_store_resolve(struct sl_store *store, const char *name, const char *version,
                     json_t **ret_record, struct sl_err *err)
{
    int rc = sl_store_check_name("artifact name", name, err), newest = -1,
        number = sl_version_number(version);
    if (rc)
        return rc;
    json_t *aliases = NULL;
    pthread_mutex_lock(&store->mutex);
    rc = sl_store_newest(store, name, &newest, err);
    if (rc == 0 && newest < 0)
        rc = no_artifact(name, err);
    if (rc == 0 && number < 0) {
        if (strcmp(version, "latest") == 0) {
            number = newest;
        } else {
            rc = sl_store_read_aliases(store, name, &aliases, err);
            if (rc == 0)
                number = (int)sl_json_int(json_object_get(aliases, version), "", -1);
            if (rc == 0 && number < 0)
                rc = sl_err_set(err, SL_NOTFOUND, "artifact %s has no version or alias `%.150s`",
                                name, version);
        }
    }
    if (rc == 0)
        rc = sl_store_full_record(store, name, number, ret_record, err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(aliases);
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
        rc = sl_store_nomem(err);
    else
        qsort(names, (size_t)count, sizeof *names, compare_names);
    pthread_mutex_lock(&store->mutex);
    for (int i = 0; rc == 0 && i < count; i++) {
        int newest = -1;
        json_t *seen = NULL;
        rc = names[i] ? sl_store_newest(store, names[i], &newest, err) : sl_store_nomem(err);
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
