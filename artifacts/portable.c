#include "artifacts/portable.h"
#include "artifacts/lineage.h"
#include "artifacts/manifest.h"
#include "artifacts/registry.h"
#include "artifacts/store_priv.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct export {
    struct sl_store *store;
    const char *project;
    sl_portable_fn *fn;
    void *arg;
    json_t *owned; /* name -> true: the project's artifacts */
    json_t *used;  /* "name:v3" -> {"name", "number"}: of everybody's, used by its runs */
};

static int emit(struct export *x, json_t *entry_stolen, struct sl_err *err)
{
    int rc = entry_stolen ? x->fn(x->arg, entry_stolen, err) : sl_store_nomem(err);
    json_decref(entry_stolen);
    return rc;
}

static int read_locked(struct export *x, const char *name, int number, json_t **ret_record, struct sl_err *err)
{
    pthread_mutex_lock(&x->store->mutex);
    int rc = sl_store_read_record(x->store, name, number, ret_record, err);
    pthread_mutex_unlock(&x->store->mutex);
    return rc;
}

/* A version, or what is left of it; neither: nothing. */
static int emit_number(struct export *x, const char *name, int number, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *record = NULL;
    int rc = read_locked(x, name, number, &record, NULL);
    if (rc == 0)
        return emit(x, json_pack("{s:s, s:o}", "kind", "version", "record", record), err);
    rc = sl_store_gone_path(x->store, name, number, path, err);
    if (rc || !sl_file_exists(path))
        return rc;
    rc = sl_json_read(path, SL_RECORD_MAX_BYTES, &record, err);
    return rc ? rc : emit(x, json_pack("{s:s, s:s, s:i, s:o}", "kind", "gone", "name", name, "number", number, "left", record), err);
}

static int emit_artifacts(struct export *x, struct sl_err *err)
{
    const char *name;
    json_t *value;
    int rc = 0;
    json_object_foreach(x->owned, name, value) {
        int highest = -1;
        pthread_mutex_lock(&x->store->mutex);
        rc = sl_store_highest(x->store, name, &highest, err);
        pthread_mutex_unlock(&x->store->mutex);
        for (int n = 0; rc == 0 && n <= highest; n++)
            rc = emit_number(x, name, n, err);
        if (rc)
            break;
    }
    return rc;
}

static int emit_aliases(struct export *x, struct sl_err *err)
{
    const char *name;
    json_t *value;
    int rc = 0;
    json_object_foreach(x->owned, name, value) {
        json_t *aliases = NULL, *moves = NULL;
        pthread_mutex_lock(&x->store->mutex);
        rc = sl_store_read_aliases(x->store, name, &aliases, err);
        if (rc == 0)
            rc = sl_store_read_moves(x->store, name, &moves, err);
        pthread_mutex_unlock(&x->store->mutex);
        if (rc == 0 && json_object_size(aliases))
            rc = emit(x, json_pack("{s:s, s:s, s:O, s:O}", "kind", "aliases", "name", name, "aliases", aliases, "moves", moves), err);
        json_decref(aliases);
        json_decref(moves);
        if (rc)
            break;
    }
    return rc;
}

/* ---- markers --------------------------------------------------------------------------------- */

typedef int marker_fn(struct export *x, const char *run, const char *output, json_t *marker, struct sl_err *err);

/* Calls fn with every marker of the project's versions. */
static int each_marker(struct export *x, marker_fn *fn, struct sl_err *err)
{
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    struct dirent **runs, **outputs;
    int rc = sl_path(dir, err, "%s/markers", x->store->dir);
    int n = rc ? -1 : scandir(dir, &runs, NULL, alphasort);
    if (n < 0)
        return rc ? rc : sl_err_errno(err, "reading %s", dir);
    for (int i = 0; i < n; i++) {
        int m = 0;
        if (rc == 0 && sl_name_valid(runs[i]->d_name) && (rc = sl_path(path, err, "%s/%s", dir, runs[i]->d_name)) == 0)
            m = scandir(path, &outputs, NULL, alphasort);
        for (int k = 0; k < m; k++) {
            char *dot = strrchr(outputs[k]->d_name, '.');
            json_t *marker = NULL;
            if (rc == 0 && dot && strcmp(dot, ".json") == 0) {
                rc = sl_path(path, err, "%s/%s/%s", dir, runs[i]->d_name, outputs[k]->d_name);
                *dot = 0;
                if (rc == 0)
                    rc = sl_json_read(path, SL_RECORD_MAX_BYTES, &marker, err);
                if (rc == 0 && json_object_get(x->owned, sl_json_str(marker, "name", "")))
                    rc = fn(x, runs[i]->d_name, outputs[k]->d_name, marker, err);
                json_decref(marker);
            }
            free(outputs[k]);
        }
        if (m > 0)
            free(outputs);
        free(runs[i]);
    }
    free(runs);
    return rc;
}

/* Notes which shared versions the run used. */
static int note_used(struct export *x, const char *run, const char *output, json_t *marker, struct sl_err *err)
{
    char id[SL_NAME_MAX + 20];
    size_t i;
    json_t *in;
    (void)run;
    (void)output;
    json_array_foreach((json_t *)(uintptr_t)sl_json_get(marker, "facts.inputs"), i, in) {
        const char *name = sl_json_str(in, "name", "");
        int number = sl_version_number(sl_json_str(in, "version", ""));
        json_t *record = NULL;
        if (!sl_name_valid(name) || number < 0 || json_object_get(x->owned, name))
            continue;
        snprintf(id, sizeof id, "%s:v%d", name, number);
        if (read_locked(x, name, number, &record, NULL) == 0 && !*sl_json_str(record, "project", "") &&
            json_object_set_new(x->used, id, json_pack("{s:s, s:i}", "name", name, "number", number))) {
            json_decref(record);
            return sl_store_nomem(err);
        }
        json_decref(record);
    }
    return 0;
}

static int emit_marker(struct export *x, const char *run, const char *output, json_t *marker, struct sl_err *err)
{
    return emit(x, json_pack("{s:s, s:s, s:s, s:O}", "kind", "marker", "run", run, "output", output, "marker", marker), err);
}

/* ---- models ---------------------------------------------------------------------------------- */

static bool travels(const struct export *x, const json_t *entry)
{
    char id[SL_NAME_MAX + 40];
    const char *name = sl_json_str(entry, "artifact", "");
    snprintf(id, sizeof id, "%.*s:%.16s", SL_NAME_MAX, name, sl_json_str(entry, "version", ""));
    return json_object_get(x->owned, name) || json_object_get(x->used, id);
}

static void keep_travelling(const struct export *x, json_t *list)
{
    for (size_t i = json_array_size(list); i-- > 0;)
        if (json_object_get(json_array_get(list, i), "artifact") && !travels(x, json_array_get(list, i)))
            json_array_remove(list, i);
}

static int emit_models(struct export *x, struct sl_err *err)
{
    json_t *list = NULL, *line;
    size_t i;
    int rc = sl_registry_list(x->store, &list, err);
    json_array_foreach(list, i, line) {
        json_t *model = NULL, *stage;
        const char *name;
        void *next;
        rc = sl_registry_show(x->store, sl_json_str(line, "model", ""), &model, err);
        if (rc)
            break;
        keep_travelling(x, json_object_get(model, "versions"));
        keep_travelling(x, json_object_get(model, "history"));
        json_object_foreach_safe(json_object_get(model, "stages"), next, name, stage)
            if (!travels(x, stage))
                json_object_del(json_object_get(model, "stages"), name);
        if (json_array_size(json_object_get(model, "versions")))
            rc = emit(x, json_pack("{s:s, s:O}", "kind", "model", "model", model), err);
        json_decref(model);
        if (rc)
            break;
    }
    json_decref(list);
    return rc;
}

int sl_store_export(struct sl_store *store, const char *project, sl_portable_fn *fn, void *arg, struct sl_err *err)
{
    struct export x = {store, project, fn, arg, json_object(), json_object()};
    json_t *list = NULL, *line;
    const char *id;
    size_t i;
    int rc = x.owned && x.used ? sl_store_list(store, &list, err) : sl_store_nomem(err);
    json_array_foreach(list, i, line)
        if (strcmp(sl_json_str(line, "project", ""), project) == 0)
            json_object_set_new(x.owned, sl_json_str(line, "name", ""), json_true());
    if (rc == 0)
        rc = each_marker(&x, note_used, err);
    json_object_foreach(x.used, id, line)
        if (rc == 0)
            rc = emit_number(&x, sl_json_str(line, "name", ""), (int)sl_json_int(line, "number", -1), err);
    if (rc == 0)
        rc = emit_artifacts(&x, err);
    if (rc == 0)
        rc = each_marker(&x, emit_marker, err);
    if (rc == 0)
        rc = emit_aliases(&x, err);
    if (rc == 0)
        rc = emit_models(&x, err);
    json_decref(list);
    json_decref(x.owned);
    json_decref(x.used);
    return rc;
}

/* ---- taking in ------------------------------------------------------------------------------- */

static int bad(struct sl_err *err, const char *what)
{
    return sl_err_set(err, SL_SPEC, "an entry of the import is not as it should be: %s", what);
}

/* What a record may hold, and must. */
static int check_record(const json_t *record, const char *project, struct sl_err *err)
{
    static const char *const keys[] = {"name", "version", "number", "manifest", "created", "created_by",
                                       "project", "bytes", "made_by", "deleted", NULL};
    const char *name = sl_json_str(record, "name", NULL), *version = sl_json_str(record, "version", ""), *key;
    const char *owner = sl_json_str(record, "project", "");
    int number = (int)sl_json_int(record, "number", -1);
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)record, key, value) {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], key) != 0)
            i++;
        if (!keys[i])
            return bad(err, "a record has a key that this version does not know");
    }
    if (!sl_name_valid(name) || number < 0 || sl_version_number(version) != number || sl_json_int(record, "bytes", -1) < 0 ||
        !sl_sha256_valid(sl_json_str(record, "manifest", "")) || !json_is_string(json_object_get(record, "created")))
        return bad(err, "a record needs name, version, number, manifest, created and bytes");
    if (*owner && strcmp(owner, project) != 0)
        return bad(err, "a record of another project");
    return 0;
}

/* The artifact is the project's here, too, or not there. The mutex is held. */
static int check_owner(struct sl_store *store, const char *name, const char *project, struct sl_err *err)
{
    json_t *record = NULL;
    int newest = -1, rc = sl_store_newest(store, name, &newest, err);
    if (rc || newest < 0)
        return rc;
    rc = sl_store_read_record(store, name, newest, &record, err);
    if (rc == 0 && strcmp(sl_json_str(record, "project", ""), project) != 0)
        rc = sl_err_set(err, SL_CONFLICT, "artifact %s is here, and %s%s", name,
                        *sl_json_str(record, "project", "") ? "of project " : "everybody's", sl_json_str(record, "project", ""));
    json_decref(record);
    return rc;
}

static int import_version(struct sl_store *store, const char *project, const json_t *record, bool *ret_changed, struct sl_err *err)
{
    const char *name, *digest = sl_json_str(record, "manifest", "");
    json_t *manifest = NULL, *there = NULL, *entry;
    char gone[SL_PATH_MAX];
    int number, rc = check_record(record, project, err);
    if (rc == 0)
        rc = sl_store_manifest(store, digest, &manifest, NULL, err);
    if (rc == 0 && sl_manifest_bytes(manifest) != sl_json_int(record, "bytes", -1))
        rc = bad(err, "a record tells other bytes than its manifest");
    json_decref(manifest);
    if (rc)
        return rc;
    name = sl_json_str(record, "name", "");
    number = (int)sl_json_int(record, "number", -1);
    pthread_mutex_lock(&store->mutex);
    rc = check_owner(store, name, sl_json_str(record, "project", ""), err);
    if (rc == 0)
        rc = sl_store_gone_path(store, name, number, gone, err);
    if (rc == 0 && sl_store_read_record(store, name, number, &there, NULL) == 0) {
        if (strcmp(sl_json_str(there, "manifest", ""), digest) != 0)
            rc = sl_err_set(err, SL_CONFLICT, "%s:v%d is here with other content", name, number);
    } else if (rc == 0 && !sl_file_exists(gone)) { /* a deleted one stays deleted */
        entry = json_pack("{s:s, s:i, s:O, s:n, s:n, s:n, s:n, s:n}", "name", name, "number", number, "record", record, "run",
                          "output", "facts", "aliases", "by");
        rc = entry ? sl_store_journal(store, entry, err) : sl_store_nomem(err);
        json_decref(entry);
        *ret_changed = rc == 0;
    }
    pthread_mutex_unlock(&store->mutex);
    json_decref(there);
    return rc;
}

static int write_if_new(struct sl_store *store, const char *path, const json_t *content, bool *ret_changed, struct sl_err *err)
{
    bool exists = true;
    char *text = sl_json_dump(content);
    int rc = text ? sl_store_create(store, path, text, &exists, err) : sl_store_nomem(err);
    free(text);
    if (rc == 0)
        *ret_changed = !exists;
    return rc;
}

static int import_gone(struct sl_store *store, const char *project, const json_t *entry, bool *ret_changed, struct sl_err *err)
{
    const json_t *left = json_object_get(entry, "left");
    char path[SL_PATH_MAX];
    json_t *there = NULL;
    int rc = check_record(left, project, err);
    const char *name = rc ? "" : sl_json_str(left, "name", "");
    int number = rc ? -1 : (int)sl_json_int(left, "number", -1);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    rc = check_owner(store, name, sl_json_str(left, "project", ""), err);
    /* One that is not deleted here stays. */
    if (rc == 0 && sl_store_read_record(store, name, number, &there, NULL) != 0) {
        rc = sl_path(path, err, "%s/artifacts/%s", store->dir, name);
        if (rc == 0)
            rc = sl_store_mkdir(path, err);
        if (rc == 0)
            rc = sl_store_gone_path(store, name, number, path, err);
        if (rc == 0)
            rc = write_if_new(store, path, left, ret_changed, err);
        json_object_del(store->newest, name);
        json_object_del(store->highest, name);
    }
    pthread_mutex_unlock(&store->mutex);
    json_decref(there);
    return rc;
}

/* The version, or what is left of it, is there and the project's. The mutex is held. */
static int need_version(struct sl_store *store, const char *name, int number, const char *project, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *there = NULL;
    int rc = sl_store_check_name("artifact name", name, err);
    if (rc == 0)
        rc = sl_store_gone_path(store, name, number, path, err);
    if (rc || sl_file_exists(path))
        return rc;
    rc = sl_store_read_record(store, name, number, &there, err);
    if (rc == 0 && strcmp(sl_json_str(there, "project", ""), project) != 0)
        rc = bad(err, "it is about an artifact of another project");
    json_decref(there);
    return rc;
}

static int import_marker(struct sl_store *store, const char *project, const json_t *entry, bool *ret_changed, struct sl_err *err)
{
    const char *run = sl_json_str(entry, "run", ""), *output = sl_json_str(entry, "output", "");
    const json_t *marker = json_object_get(entry, "marker"), *facts = json_object_get(marker, "facts");
    char path[SL_PATH_MAX];
    int number = (int)sl_json_int(marker, "number", -1);
    const char *name = sl_json_str(marker, "name", "");
    int rc = sl_store_check_name("run", run, err);
    if (rc == 0)
        rc = sl_store_check_name("output", output, err);
    if (rc == 0 && facts)
        rc = sl_facts_check(facts, err);
    if (rc)
        return rc;
    json_t *clean = json_pack("{s:s, s:i, s:O*}", "name", name, "number", number, "facts", facts);
    pthread_mutex_lock(&store->mutex);
    rc = need_version(store, name, number, project, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/markers/%s", store->dir, run);
    if (rc == 0)
        rc = sl_store_mkdir(path, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/markers/%s/%s.json", store->dir, run, output);
    if (rc == 0)
        rc = clean ? write_if_new(store, path, clean, ret_changed, err) : sl_store_nomem(err);
    if (rc == 0 && *ret_changed)
        sl_lineage_note(store, run, output, clean);
    pthread_mutex_unlock(&store->mutex);
    json_decref(clean);
    return rc;
}

/* Adds what is not there yet; *kept gets the first that points elsewhere. */
static int merge_aliases(struct sl_store *store, const char *project, const char *name, const json_t *entry, json_t *aliases,
                         json_t *moves, bool *ret_changed, char **kept, struct sl_err *err)
{
    const char *alias;
    json_t *number;
    int rc = 0;
    json_object_foreach(json_object_get(entry, "aliases"), alias, number) {
        const json_t *there = json_object_get(aliases, alias);
        json_t *move = json_object_get(json_object_get(entry, "moves"), alias);
        if (there && json_integer_value(there) != json_integer_value(number) && !*kept &&
            asprintf(kept, "%s:%s stays at v%lld", name, alias, (long long)json_integer_value(there)) < 0)
            return sl_store_nomem(err);
        if (there)
            continue;
        rc = sl_store_check_alias(alias, err);
        if (rc == 0)
            rc = need_version(store, name, (int)json_integer_value(number), project, err);
        if (rc == 0 && json_object_size(aliases) >= SL_STORE_MAX_ALIASES)
            rc = sl_err_set(err, SL_CONFLICT, "artifact %s would have more than %d aliases", name, SL_STORE_MAX_ALIASES);
        if (rc == 0 && (json_object_set(aliases, alias, number) || (json_is_object(move) && json_object_set(moves, alias, move))))
            rc = sl_store_nomem(err);
        if (rc)
            return rc;
        *ret_changed = true;
    }
    return 0;
}

static int import_aliases(struct sl_store *store, const char *project, const json_t *entry, bool *ret_changed, char **kept,
                          struct sl_err *err)
{
    const char *name = sl_json_str(entry, "name", "");
    char path[SL_PATH_MAX];
    json_t *aliases = NULL, *moves = NULL;
    int rc = sl_store_check_name("artifact name", name, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    rc = sl_store_read_aliases(store, name, &aliases, err);
    if (rc == 0)
        rc = sl_store_read_moves(store, name, &moves, err);
    if (rc == 0)
        rc = merge_aliases(store, project, name, entry, aliases, moves, ret_changed, kept, err);
    if (rc == 0 && *ret_changed) { /* the moves only tell of the aliases, so a crash between the two costs a line of history */
        rc = sl_path(path, err, "%s/artifacts/%s/moves.json", store->dir, name);
        if (rc == 0)
            rc = sl_json_write(path, moves, err);
        if (rc == 0)
            rc = sl_path(path, err, "%s/artifacts/%s/aliases.json", store->dir, name);
        if (rc == 0)
            rc = sl_json_write(path, aliases, err);
    }
    pthread_mutex_unlock(&store->mutex);
    json_decref(aliases);
    json_decref(moves);
    return rc;
}

int sl_store_import(struct sl_store *store, const char *project, const json_t *entry, bool *ret_changed, char **ret_kept,
                    struct sl_err *err)
{
    const char *kind = sl_json_str(entry, "kind", "");
    bool changed = false;
    char *kept = NULL;
    int rc;
    if (strcmp(kind, "version") == 0)
        rc = import_version(store, project, json_object_get(entry, "record"), &changed, err);
    else if (strcmp(kind, "gone") == 0)
        rc = import_gone(store, project, entry, &changed, err);
    else if (strcmp(kind, "marker") == 0)
        rc = import_marker(store, project, entry, &changed, err);
    else if (strcmp(kind, "aliases") == 0)
        rc = import_aliases(store, project, entry, &changed, &kept, err);
    else if (strcmp(kind, "model") == 0)
        rc = sl_registry_import(store, json_object_get(entry, "model"), &changed, &kept, err);
    else
        rc = bad(err, "its kind is not known here");
    if (rc == 0)
        *ret_changed = changed;
    if (rc == 0 && ret_kept)
        *ret_kept = kept;
    else
        free(kept);
    return rc;
}
