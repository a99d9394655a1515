#include "artifacts/registry.h"
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REGISTRY_MAX_BYTES (8u << 20)

static int model_path(const struct sl_store *store, const char *model, char ret_path[SL_PATH_MAX],
                      struct sl_err *err)
{
    int rc = sl_store_check_name("model", model, err);
    return rc ? rc : sl_path(ret_path, err, "%s/registry/%s.json", store->dir, model);
}

/* The mutex is held. */
static int read_model(const struct sl_store *store, const char *model, json_t **ret_model,
                      struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = model_path(store, model, path, err);
    if (rc)
        return rc;
    if (!sl_file_exists(path))
        return sl_err_set(err, SL_NOTFOUND,
                          "there is no registered model %s; `softlaunch registry` lists what there is",
                          model);
    return sl_json_read(path, REGISTRY_MAX_BYTES, ret_model, err);
}

static int write_model(struct sl_store *store, const char *model, const json_t *json,
                       struct sl_err *err)
{
    char path[SL_PATH_MAX], dir[SL_PATH_MAX];
    int rc = model_path(store, model, path, err);
    if (rc == 0)
        rc = sl_path(dir, err, "%s/registry", store->dir);
    if (rc == 0)
        rc = sl_store_mkdir(dir, err);
    return rc ? rc : sl_json_write(path, json, err);
}

static bool is_version(const json_t *entry, const char *artifact, const char *version)
{
    return strcmp(sl_json_str(entry, "artifact", ""), artifact) == 0 &&
           strcmp(sl_json_str(entry, "version", ""), version) == 0;
}

static const json_t *find_version(const json_t *model, const char *artifact, const char *version)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(model, "versions"), i, entry)
        if (is_version(entry, artifact, version))
            return entry;
    return NULL;
}

static void remember(json_t *model, const char *stage, const char *artifact, const char *version,
                     const char *now, const char *by)
{
    json_t *history = json_object_get(model, "history");
    json_array_append_new(history,
                          json_pack("{s:s, s:s?, s:s?, s:s, s:s*}", "stage", stage, "artifact", artifact,
                                    "version", version, "time", now, "by", by));
    while (json_array_size(history) > SL_REGISTRY_HISTORY_MAX)
        json_array_remove(history, 0);
}

/* Changes the model in memory. record: of the version. */
static int change(json_t *model, const struct sl_registry_link *link, const json_t *record,
                  const char *now, bool *ret_changed, struct sl_err *err)
{
    const char *version = sl_json_str(record, "version", ""), *made_by = sl_json_str(record, "made_by.run", NULL);
    json_t *versions = json_object_get(model, "versions"), *stages = json_object_get(model, "stages");
    const json_t *linked = find_version(model, link->artifact, version);
    const json_t *at = link->stage ? json_object_get(stages, link->stage) : NULL;
    /* A run registers once: publishing that is repeated must not take a stage back that was moved since. */
    bool done = linked && link->run && strcmp(sl_json_str(linked, "run", ""), link->run) == 0;
    bool staged = !link->stage || done || (at && is_version(at, link->artifact, version));
    if (!linked && json_array_size(versions) >= SL_REGISTRY_VERSIONS_MAX)
        return sl_err_set(err, SL_CONFLICT, "registered model %s has %d versions: begin another one",
                          sl_json_str(model, "model", ""), SL_REGISTRY_VERSIONS_MAX);
    if (!staged && !at && json_object_size(stages) >= SL_REGISTRY_STAGES_MAX)
        return sl_err_set(err, SL_CONFLICT, "registered model %s has %d stages: reuse one",
                          sl_json_str(model, "model", ""), SL_REGISTRY_STAGES_MAX);
    if (!linked && json_array_append_new(versions, json_pack("{s:s, s:s, s:s, s:s*, s:s*, s:s*, s:s*}", "artifact", link->artifact,
                                                    "version", version, "linked", now, "run", link->run, "by", link->by, "made_by",
                                                    made_by, "put_by", made_by ? NULL : sl_json_str(record, "created_by", NULL))))
        return sl_store_nomem(err);
    if (!staged) {
        if (json_object_set_new(stages, link->stage,
                                json_pack("{s:s, s:s, s:s, s:s*}", "artifact", link->artifact, "version",
                                          version, "since", now, "by", link->by)))
            return sl_store_nomem(err);
        remember(model, link->stage, link->artifact, version, now, link->by);
    }
    *ret_changed = !linked || !staged;
    return 0;
}

int sl_registry_link(struct sl_store *store, const char *model, const struct sl_registry_link *link,
                     json_t **ret_model, struct sl_err *err)
{
    json_t *record = NULL, *json = NULL, *there = NULL;
    char now[32];
    bool changed = false;
    int rc = sl_store_check_name("model", model, err);
    if (rc == 0 && link->stage && !sl_alias_valid(link->stage)) /* `latest` is an artifact's newest version always */
        rc = sl_err_set(err, SL_SPEC, "`%.128s` cannot be a stage: a name that is neither `latest` nor like a version",
                        link->stage);
    if (rc == 0)
        rc = sl_store_resolve(store, link->artifact, link->version, &record, err);
    if (rc)
        return rc;
    sl_format_time(sl_now_us(), now);
    struct sl_registry_link resolved = *link;
    resolved.artifact = sl_json_str(record, "name", link->artifact);
    pthread_mutex_lock(&store->mutex);
    /* It may have been deleted meanwhile; from here on it cannot be. */
    rc = sl_store_read_record(store, resolved.artifact, (int)sl_json_int(record, "number", -1), &there,
                              err);
    json_decref(there);
    bool still = rc == 0;
    if (still)
        rc = read_model(store, model, &json, err);
    if (still && rc == SL_NOTFOUND) {
        sl_err_clear(err);
        const char *project = link->project ? link->project : sl_json_str(record, "project", NULL);
        json = json_pack("{s:s, s:s, s:s*, s:[], s:{}, s:[]}", "model", model, "created", now, "project",
                         project, "versions", "stages", "history");
        rc = json ? 0 : sl_store_nomem(err);
    }
    if (rc == 0)
        rc = change(json, &resolved, record, now, &changed, err);
    if (rc == 0 && changed)
        rc = write_model(store, model, json, err);
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0 && ret_model)
        *ret_model = json_incref(json);
    json_decref(json);
    json_decref(record);
    return rc ? sl_err_wrap(err, rc, "registering %s:%s as %s", link->artifact, link->version, model) : 0;
}

static int bad_model(const char *what, struct sl_err *err)
{
    return sl_err_set(err, SL_SPEC, "a registered model of the import is not as it should be: %s", what);
}

/* Every version that it names is in the store. The mutex is held. */
static int check_linked(struct sl_store *store, const json_t *entry, struct sl_err *err)
{
    const char *artifact = sl_json_str(entry, "artifact", "");
    int number = sl_version_number(sl_json_str(entry, "version", ""));
    json_t *record = NULL;
    if (!sl_name_valid(artifact) || number < 0)
        return bad_model("a version needs artifact and version", err);
    int rc = sl_store_read_record(store, artifact, number, &record, err);
    json_decref(record);
    return rc;
}

static int merge_model(struct sl_store *store, json_t *mine, const json_t *given, bool *ret_changed, char **kept,
                       struct sl_err *err)
{
    json_t *versions = json_object_get(mine, "versions"), *stages = json_object_get(mine, "stages"), *entry;
    const char *stage;
    size_t i;
    int rc = 0;
    json_array_foreach(json_object_get(given, "versions"), i, entry) {
        if (find_version(mine, sl_json_str(entry, "artifact", ""), sl_json_str(entry, "version", "")))
            continue;
        rc = check_linked(store, entry, err);
        if (rc == 0 && json_array_size(versions) >= SL_REGISTRY_VERSIONS_MAX)
            rc = sl_err_set(err, SL_CONFLICT, "registered model %s has too many versions", sl_json_str(mine, "model", ""));
        if (rc || json_array_append(versions, entry))
            return rc ? rc : sl_store_nomem(err);
        *ret_changed = true;
    }
    json_object_foreach(json_object_get(given, "stages"), stage, entry) {
        const json_t *at = json_object_get(stages, stage);
        if (at && !is_version(at, sl_json_str(entry, "artifact", ""), sl_json_str(entry, "version", "")) && !*kept &&
            asprintf(kept, "%s stays at %s:%s in stage %s", sl_json_str(mine, "model", ""), sl_json_str(at, "artifact", ""),
                     sl_json_str(at, "version", ""), stage) < 0)
            return sl_store_nomem(err);
        if (at)
            continue;
        if (!sl_alias_valid(stage) || !find_version(mine, sl_json_str(entry, "artifact", ""), sl_json_str(entry, "version", "")))
            return bad_model("a stage needs a name and a version of the model", err);
        if (json_object_size(stages) >= SL_REGISTRY_STAGES_MAX)
            return sl_err_set(err, SL_CONFLICT, "registered model %s has too many stages", sl_json_str(mine, "model", ""));
        if (json_object_set(stages, stage, entry))
            return sl_store_nomem(err);
        *ret_changed = true;
    }
    return 0;
}

int sl_registry_import(struct sl_store *store, const json_t *model, bool *ret_changed, char **kept, struct sl_err *err)
{
    const char *name = sl_json_str(model, "model", "");
    const json_t *history = json_object_get(model, "history"), *project = json_object_get(model, "project");
    json_t *mine = NULL;
    bool changed = false;
    int rc = sl_store_check_name("model", name, err);
    if (rc == 0 && project)
        rc = sl_store_check_name("project", json_string_value(project) ? json_string_value(project) : "", err);
    if (rc == 0 && (!json_is_string(json_object_get(model, "created")) || (history && !json_is_array(history)) ||
                    json_array_size(history) > SL_REGISTRY_HISTORY_MAX))
        rc = bad_model("created or history", err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    rc = read_model(store, name, &mine, err);
    if (rc == SL_NOTFOUND) {
        sl_err_clear(err);
        mine = json_pack("{s:s, s:O, s:O*, s:[], s:{}, s:O*}", "model", name, "created",
                         json_object_get(model, "created"), "project", project, "versions", "stages", "history", history);
        if (mine && !history)
            json_object_set_new(mine, "history", json_array());
        rc = mine ? 0 : sl_store_nomem(err);
    }
    if (rc == 0)
        rc = merge_model(store, mine, model, &changed, kept, err);
    if (rc == 0 && changed)
        rc = write_model(store, name, mine, err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(mine);
    if (rc == 0)
        *ret_changed = changed;
    return rc;
}

int sl_registry_unstage(struct sl_store *store, const char *model, const char *stage, const char *by,
                        json_t **ret_model, struct sl_err *err)
{
    json_t *json = NULL;
    char now[32];
    sl_format_time(sl_now_us(), now);
    pthread_mutex_lock(&store->mutex);
    int rc = read_model(store, model, &json, err);
    if (rc == 0 && json_object_del(json_object_get(json, "stages"), stage))
        rc = sl_err_set(err, SL_NOTFOUND, "registered model %s has nothing in stage `%.128s`", model, stage);
    if (rc == 0) {
        remember(json, stage, NULL, NULL, now, by);
        rc = write_model(store, model, json, err);
    }
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0 && ret_model)
        *ret_model = json_incref(json);
    json_decref(json);
    return rc;
}

/* The mutex is held. */
static int unlink_version(json_t *model, const char *artifact, const char *version, struct sl_err *err)
{
    json_t *versions = json_object_get(model, "versions"), *at;
    const char *stage, *name = sl_json_str(model, "model", "");
    json_object_foreach(json_object_get(model, "stages"), stage, at)
        if (!strcmp(sl_json_str(at, "artifact", ""), artifact) && !strcmp(sl_json_str(at, "version", ""), version))
            return sl_err_set(err, SL_CONFLICT, "%s:%s is %s of the registered model %s: move or remove that first", artifact,
                              version, stage, name);
    for (size_t i = 0; i < json_array_size(versions); i++) {
        const json_t *v = json_array_get(versions, i);
        if (!strcmp(sl_json_str(v, "artifact", ""), artifact) && !strcmp(sl_json_str(v, "version", ""), version))
            return json_array_remove(versions, i);
    }
    return sl_err_set(err, SL_NOTFOUND, "registered model %s does not hold %.128s:%.20s", name, artifact, version);
}

int sl_registry_unlink(struct sl_store *store, const char *model, const char *artifact, const char *version,
                       json_t **ret_model, struct sl_err *err)
{
    json_t *json = NULL;
    pthread_mutex_lock(&store->mutex);
    int rc = read_model(store, model, &json, err);
    if (rc == 0)
        rc = unlink_version(json, artifact, version, err);
    if (rc == 0)
        rc = write_model(store, model, json, err);
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0 && ret_model)
        *ret_model = json_incref(json);
    json_decref(json);
    return rc;
}

int sl_registry_show(struct sl_store *store, const char *model, json_t **ret_model,
                     struct sl_err *err)
{
    pthread_mutex_lock(&store->mutex);
    int rc = read_model(store, model, ret_model, err);
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

int sl_registry_project(struct sl_store *store, const char *model, char *ret_project, size_t size,
                        struct sl_err *err)
{
    json_t *json = NULL;
    int rc = sl_registry_show(store, model, &json, err);
    if (rc == 0)
        snprintf(ret_project, size, "%s", sl_json_str(json, "project", ""));
    json_decref(json);
    return rc;
}

/* Calls fn with every model until it gives something other than 0. The mutex is held. */
static int each_model(struct sl_store *store, int (*fn)(const json_t *model, void *arg), void *arg,
                      struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct dirent **entries;
    int rc = sl_path(path, err, "%s/registry", store->dir);
    if (rc)
        return rc;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0)
        return errno == ENOENT ? 0 : sl_err_errno(err, "reading %s", path);
    for (int i = 0; i < n; i++) {
        char *dot = strrchr(entries[i]->d_name, '.');
        json_t *model = NULL;
        if (dot && strcmp(dot, ".json") == 0)
            *dot = 0;
        else
            dot = NULL;
        if (rc == 0 && dot && sl_name_valid(entries[i]->d_name)) {
            rc = read_model(store, entries[i]->d_name, &model, err);
            if (rc == 0)
                rc = fn(model, arg);
            json_decref(model);
        }
        free(entries[i]);
    }
    free(entries);
    return rc;
}

static int add_line(const json_t *model, void *list)
{
    return json_array_append_new(
        list, json_pack("{s:O, s:O, s:O*, s:i, s:O}", "model", json_object_get(model, "model"), "created",
                        json_object_get(model, "created"), "project", json_object_get(model, "project"), "versions",
                        (int)json_array_size(json_object_get(model, "versions")), "stages",
                        json_object_get(model, "stages")));
}

int sl_registry_list(struct sl_store *store, json_t **ret_list, struct sl_err *err)
{
    json_t *list = json_array();
    pthread_mutex_lock(&store->mutex);
    int rc = list ? each_model(store, add_line, list, err) : sl_store_nomem(err);
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0)
        *ret_list = json_incref(list);
    json_decref(list);
    return rc;
}

struct holder {
    const char *artifact;
    char version[16], *model;
};

static int find_holder(const json_t *model, void *arg)
{
    struct holder *h = arg;
    if (!h->model && find_version(model, h->artifact, h->version))
        h->model = strdup(sl_json_str(model, "model", ""));
    return 0;
}

int sl_registry_held(struct sl_store *store, const char *artifact, int number, char **ret_model,
                     struct sl_err *err)
{
    struct holder h = {.artifact = artifact};
    snprintf(h.version, sizeof h.version, "v%d", number);
    int rc = each_model(store, find_holder, &h, err);
    if (rc == 0)
        *ret_model = h.model;
    else
        free(h.model);
    return rc;
}

int sl_registry_holder(struct sl_store *store, const char *artifact, int number, char **ret_model,
                       struct sl_err *err)
{
    pthread_mutex_lock(&store->mutex);
    int rc = sl_registry_held(store, artifact, number, ret_model, err);
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

int sl_registry_stage_at(const struct sl_store *store, const char *model, const char *stage,
                         char ret_artifact[SL_NAME_MAX + 1], int *ret_number)
{
    json_t *json = NULL;
    if (read_model(store, model, &json, NULL))
        return SL_NOTFOUND;
    const json_t *at = json_object_get(json_object_get(json, "stages"), stage);
    int number = at ? sl_version_number(sl_json_str(at, "version", "")) : -1;
    if (number >= 0) {
        snprintf(ret_artifact, SL_NAME_MAX + 1, "%s", sl_json_str(at, "artifact", ""));
        *ret_number = number;
    }
    json_decref(json);
    return number >= 0 ? 0 : SL_NOTFOUND;
}
