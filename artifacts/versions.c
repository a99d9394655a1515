/* Versions and aliases: allocate and commit. Every change goes through the journal. */
#include "artifacts/manifest.h"
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include "base/json.h"
#include <stdio.h>
#include <string.h>

#define VERSION_NUMBER_MAX 999999999

int sl_store_check_alias(const char *alias, struct sl_err *err)
{
    if (sl_alias_valid(alias))
        return 0;
    return sl_err_set(
        err, SL_SPEC,
        "alias `%.150s` is not allowed: 1 to %d of a-z 0-9 . _ -, first a letter or digit, "
        "neither `latest` nor like a version",
        alias ? alias : "", SL_NAME_MAX);
}

/* aliases (NULL: none) are lists of names. The mutex is held. */
static int check_room(struct sl_store *store, const char *name, const json_t *aliases,
                      struct sl_err *err)
{
    json_t *all = NULL;
    int rc = json_array_size(aliases) ? sl_store_read_aliases(store, name, &all, err) : 0;
    size_t before = json_object_size(all);
    for (size_t i = 0; all && i < json_array_size(aliases); i++)
        json_object_set_new(all, json_string_value(json_array_get(aliases, i)), json_null());
    if (json_object_size(all) > before && json_object_size(all) > SL_STORE_MAX_ALIASES)
        rc = sl_err_set(err, SL_CONFLICT, "artifact %s would have more than %d aliases: reuse some",
                        name, SL_STORE_MAX_ALIASES);
    json_decref(all);
    return rc;
}

/* The mutex is held. SL_NOTFOUND: not published. */
static int read_marker(struct sl_store *store, const char *run, const char *output,
                       json_t **ret_marker, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/markers/%s/%s.json", store->dir, run, output);
    if (rc)
        return rc;
    if (!sl_file_exists(path))
        return sl_err_set(err, SL_NOTFOUND, "run %s has not published its output %s", run, output);
    return sl_json_read(path, SL_RECORD_MAX_BYTES, ret_marker, err);
}

/* ret_number: a version that a commit of this manifest finds there, or the next free number
 * (ret_new). */
static int choose_number(struct sl_store *store, const char *name, const char *manifest,
                         int *ret_number, bool *ret_new, struct sl_err *err)
{
    int newest = -1, rc = sl_store_newest(store, name, &newest, err);
    if (rc)
        return rc;
    bool is_new = true;
    int number = newest, highest = -1;
    if (newest >= 0) {
        json_t *record = NULL;
        rc = sl_store_read_record(store, name, newest, &record, err);
        if (rc)
            return rc;
        is_new = strcmp(sl_json_str(record, "manifest", ""), manifest) != 0;
        json_decref(record);
    }
    if (is_new) {
        size_t i;
        json_t *taken;
        rc = sl_store_highest(store, name, &highest, err);
        if (rc)
            return rc;
        number = highest > number ? highest : number;
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

static int check_request(const char *name, const char *manifest, const char *run,
                         const char *output, struct sl_err *err)
{
    int rc = sl_store_check_name("artifact name", name, err);
    if (rc == 0)
        rc = sl_store_check_sha256(manifest, err);
    if (rc == 0 && (run || output))
        rc = sl_store_check_name("run", run, err);
    if (rc == 0 && (run || output))
        rc = sl_store_check_name("output", output, err);
    return rc;
}

int sl_store_allocate(struct sl_store *store, const char *name, const char *manifest,
                      const char *run, const char *output, const json_t *aliases, int *ret_number,
                      struct sl_err *err)
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
        rc = check_room(store, name, aliases, err);
    if (rc == 0 && number < 0)
        rc = choose_number(store, name, manifest, &number, &is_new, err);
    if (rc == 0 && is_new) {
        json_t *list = json_object_get(store->reserved, name);
        if (!list) {
            list = json_array();
            json_object_set_new(store->reserved, name, list);
        }
        if (json_array_append_new(list, json_integer(number)))
            rc = sl_store_nomem(err);
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
        int rc = sl_store_read_record(store, c->name, c->number, &there, NULL);
        if (rc && rc != SL_NOTFOUND)
            return sl_err_set(err, rc, "reading version v%d of %s", c->number, c->name);
        bool same = rc == 0 && strcmp(sl_json_str(there, "manifest", ""), c->manifest) == 0;
        json_decref(there);
        char gone[SL_PATH_MAX];
        int wrong = sl_store_gone_path(store, c->name, c->number, gone, err);
        if (wrong)
            return wrong;
        if ((rc == SL_NOTFOUND && !sl_file_exists(gone)) || same) {
            *ret_number = c->number;
            *ret_new = !same;
            return 0;
        }
    }
    return choose_number(store, c->name, c->manifest, ret_number, ret_new, err);
}

/* The newest version's; the mutex is held. */
static int read_project(struct sl_store *store, const char *name, char *ret_project, size_t size,
                        struct sl_err *err)
{
    json_t *record = NULL;
    int newest = -1, rc = sl_store_newest(store, name, &newest, err);
    if (rc == 0 && newest < 0)
        rc = sl_err_set(err, SL_NOTFOUND, "there is no artifact %s", name);
    if (rc == 0)
        rc = sl_store_read_record(store, name, newest, &record, err);
    if (rc == 0)
        snprintf(ret_project, size, "%s", sl_json_str(record, "project", ""));
    json_decref(record);
    return rc;
}

int sl_store_project(struct sl_store *store, const char *name, char *ret_project, size_t size,
                     struct sl_err *err)
{
    int rc = sl_store_check_name("artifact name", name, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    rc = read_project(store, name, ret_project, size, err);
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

static json_t *make_entry(const struct sl_commit *c, const char *project, int number, bool is_new,
                          int64_t bytes)
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
                                json_pack("{s:s, s:s, s:s*, s:O*, s:O*}", "run", c->run, "output",
                                          c->output, "project",
                                          c->project && *c->project ? c->project : NULL, "spec",
                                          json_object_get(c->facts, "spec"), "code",
                                          json_object_get(c->facts, "code")));
        if (!record)
            return NULL;
        if (c->created_by && *c->created_by)
            json_object_set_new(record, "created_by", json_string(c->created_by));
        if (project && *project)
            json_object_set_new(record, "project", json_string(project));
    }
    return json_pack("{s:s, s:i, s:o?, s:s?, s:s?, s:O?, s:O?, s:s?}", "name", c->name, "number",
                     number, "record", record, "run", c->run, "output", c->output, "facts",
                     c->facts, "aliases", c->aliases, "by", c->created_by);
}

static void release_holds(struct sl_store *store, const char *digest, const json_t *manifest)
{
    size_t i;
    json_t *file;
    json_array_foreach(json_object_get(manifest, "files"), i, file)
        sl_store_unhold(store, sl_json_str(file, "sha256", ""));
    sl_store_unhold(store, digest);
}

int sl_store_commit(struct sl_store *store, const struct sl_commit *c, json_t **ret_record,
                    bool *ret_created, struct sl_err *err)
{
    int number = -1, rc = check_request(c->name, c->manifest, c->run, c->output, err);
    json_t *manifest = NULL, *marker = NULL, *entry = NULL, *record = NULL;
    if (rc == 0 && json_array_size(c->aliases) > SL_COMMIT_MAX_ALIASES)
        rc = sl_err_set(err, SL_SPEC, "more than %d aliases at once", SL_COMMIT_MAX_ALIASES);
    for (size_t i = 0; rc == 0 && i < json_array_size(c->aliases); i++)
        rc = sl_store_check_alias(json_string_value(json_array_get(c->aliases, i)), err);
    if (rc == 0)
        rc = sl_store_manifest(store, c->manifest, &manifest, NULL, err);
    if (rc)
        return rc;
    bool is_new = false;
    const char *name = c->name;
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0 && !c->run)
        rc = check_room(store, c->name, c->aliases, err);
    if (rc == 0 && c->run && read_marker(store, c->run, c->output, &marker, NULL) == 0) {
        name = sl_json_str(marker, "name", c->name);
        number = (int)sl_json_int(marker, "number", -1);
    } else if (rc == 0) {
        rc = commit_number(store, c, &number, &is_new, err);
        char owner[SL_NAME_MAX + 1];
        const char *project = c->project;
        if (rc == 0 && read_project(store, c->name, owner, sizeof owner, NULL) == 0)
            project = owner;
        if (rc == 0) {
            entry = make_entry(c, project, number, is_new, sl_manifest_bytes(manifest));
            rc = entry ? sl_store_journal(store, entry, err) : sl_store_nomem(err);
        }
    }
    if (rc == 0)
        rc = sl_store_full_record(store, name, number, marker != NULL, &record, err);
    if (rc == 0 && c->number >= 0)
        unreserve(store, c->name, c->number);
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0) {
        release_holds(store, c->manifest, manifest);
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
    int rc = sl_store_check_name("run", run, err);
    if (rc == 0)
        rc = sl_store_check_name("output", output, err);
    if (rc)
        return rc;
    json_t *marker = NULL;
    pthread_mutex_lock(&store->mutex);
    rc = read_marker(store, run, output, &marker, err);
    if (rc == 0)
        rc = sl_store_full_record(store, sl_json_str(marker, "name", ""),
                                  (int)sl_json_int(marker, "number", -1), true, ret_record, err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(marker);
    return rc;
}

int sl_store_alias(struct sl_store *store, const char *name, const char *alias, const char *version,
                   struct sl_err *err)
{
    return sl_store_alias_by(store, NULL, name, alias, version, err);
}

int sl_store_alias_by(struct sl_store *store, const char *by, const char *name, const char *alias,
                      const char *version, struct sl_err *err)
{
    json_t *record = NULL, *entry = NULL;
    int rc = sl_store_check_alias(alias, err);
    if (rc == 0)
        rc = sl_store_resolve(store, name, version, &record, err);
    if (rc)
        return rc;
    entry = json_pack("{s:s, s:O, s:[s], s:s?}", "name", name, "number",
                      json_object_get(record, "number"), "aliases", alias, "by", by);
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0)
        rc = entry ? check_room(store, name, json_object_get(entry, "aliases"), err)
                   : sl_store_nomem(err);
    if (rc == 0)
        rc = sl_store_journal(store, entry, err);
    pthread_mutex_unlock(&store->mutex);
    json_decref(entry);
    json_decref(record);
    return rc;
}
