/* Deleting versions and aliases: what is in use stays, and a number is never used again. */
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include "base/json.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GUARDS_MAX 8

struct sl_store_guard {
    sl_store_guard_fn *fn;
    void *arg;
};

int sl_store_add_guard(struct sl_store *store, sl_store_guard_fn *fn, void *arg, struct sl_err *err)
{
    if (!store->guards)
        store->guards = calloc(GUARDS_MAX, sizeof *store->guards);
    if (!store->guards)
        return sl_store_nomem(err);
    if (store->n_guards == GUARDS_MAX)
        return sl_err_set(err, SL_CONFLICT, "a store has at most %d guards", GUARDS_MAX);
    store->guards[store->n_guards++] = (struct sl_store_guard){fn, arg};
    return 0;
}

/* The mutex is held. */
static int check_aliases(struct sl_store *store, const char *name, int number, struct sl_err *err)
{
    json_t *aliases = NULL, *target;
    const char *alias;
    int rc = sl_store_read_aliases(store, name, &aliases, err);
    json_object_foreach(rc ? NULL : aliases, alias, target)
        if (json_integer_value(target) == number) {
            rc = sl_err_set(err, SL_CONFLICT,
                            "%s:v%d is in use: its alias `%s` points at it; move or remove that first",
                            name, number, alias);
            break;
        }
    json_decref(aliases);
    return rc;
}

/* The mutex is held. */
static int check_registry(struct sl_store *store, const char *name, int number, struct sl_err *err)
{
    char *model = NULL;
    int rc = sl_registry_held(store, name, number, &model, err);
    if (rc == 0 && model)
        rc = sl_err_set(err, SL_CONFLICT, "%s:v%d is in use: the registered model %s holds it; `softlaunch registry unlink %s %s:v%d` first",
                        name, number, model, model, name, number);
    free(model);
    return rc;
}

/* {"name", "number", "gone", "refund"}. */
static json_t *make_entry(const char *name, int number, json_t *record)
{
    char id[SL_ID_HEX + 1], when[32];
    const char *project = sl_json_str(record, "made_by.project", NULL);
    json_t *refund = NULL;
    if (project) {
        sl_random_id(id);
        refund = json_pack("{s:s, s:s, s:I}", "id", id, "project", project, "bytes",
                           (json_int_t)sl_json_int(record, "bytes", 0));
        if (!refund)
            return NULL;
    }
    sl_format_time(sl_now_us(), when);
    if (json_object_set_new(record, "deleted", json_string(when))) {
        json_decref(refund);
        return NULL;
    }
    return json_pack("{s:s, s:i, s:O, s:o?}", "name", name, "number", number, "gone", record,
                     "refund", refund);
}

int sl_store_delete(struct sl_store *store, const char *name, const char *version,
                    json_t **ret_gone, struct sl_err *err)
{
    int number = -1, rc = sl_store_check_name("artifact name", name, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    rc = sl_store_number_of(store, name, version, &number, err);
    pthread_mutex_unlock(&store->mutex);
    for (int i = 0; rc == 0 && i < store->n_guards; i++)
        rc = store->guards[i].fn(store->guards[i].arg, name, number, err);
    if (rc)
        return rc;
    json_t *record = NULL, *entry = NULL;
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0)
        rc = sl_store_read_record(store, name, number, &record, err);
    if (rc == 0)
        rc = check_aliases(store, name, number, err);
    if (rc == 0)
        rc = check_registry(store, name, number, err);
    if (rc == 0) {
        entry = make_entry(name, number, record);
        rc = entry ? sl_store_journal(store, entry, err) : sl_store_nomem(err);
    }
    pthread_mutex_unlock(&store->mutex);
    if (rc == 0)
        *ret_gone = json_incref(record);
    json_decref(entry);
    json_decref(record);
    return rc;
}

int sl_store_unalias(struct sl_store *store, const char *name, const char *alias,
                     struct sl_err *err)
{
    json_t *aliases = NULL, *entry = NULL;
    int rc = sl_store_check_name("artifact name", name, err);
    if (rc == 0)
        rc = sl_store_check_alias(alias, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    if (rc == 0)
        rc = sl_store_read_aliases(store, name, &aliases, err);
    if (rc == 0 && !json_object_get(aliases, alias))
        rc = sl_err_set(err, SL_NOTFOUND, "artifact %s has no alias `%s`", name, alias);
    if (rc == 0) {
        entry = json_pack("{s:s, s:[s]}", "name", name, "drop", alias);
        rc = entry ? sl_store_journal(store, entry, err) : sl_store_nomem(err);
    }
    pthread_mutex_unlock(&store->mutex);
    json_decref(entry);
    json_decref(aliases);
    return rc;
}

static int add_refund(void *list, const char *path, const char *name, struct sl_err *err)
{
    json_t *refund = NULL;
    (void)name;
    int rc = sl_json_read(path, SL_RECORD_MAX_BYTES, &refund, err);
    return rc == 0 && json_array_append_new(list, refund) ? sl_store_nomem(err) : rc;
}

int sl_store_refunds(struct sl_store *store, json_t **ret_refunds, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/refunds", store->dir);
    if (rc)
        return rc;
    json_t *list = json_array();
    rc = list ? sl_dir_each(dir, add_refund, list, err) : sl_store_nomem(err);
    if (rc == 0)
        *ret_refunds = json_incref(list);
    json_decref(list);
    return rc;
}

int sl_store_refund_done(struct sl_store *store, const char *id, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_check_name("refund", id, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/refunds/%s.json", store->dir, id);
    if (rc == 0 && unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "removing %s", path);
    return rc ? rc : sl_store_sync_parent(path, err);
}
