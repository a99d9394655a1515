/* The store's journal: a commit of several files that happens whole or not at all. */
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include "base/json.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int sl_store_record_path(const struct sl_store *store, const char *name, int number,
                         char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    return sl_path(ret_path, err, "%s/artifacts/%s/v%d.json", store->dir, name, number);
}

int sl_store_gone_path(const struct sl_store *store, const char *name, int number,
                       char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    return sl_path(ret_path, err, "%s/artifacts/%s/v%d.gone", store->dir, name, number);
}

int sl_store_read_aliases(const struct sl_store *store, const char *name, json_t **ret_aliases,
                          struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/artifacts/%s/aliases.json", store->dir, name);
    if (rc)
        return rc;
    if (!sl_file_exists(path)) {
        json_t *none = json_object();
        if (!none)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        *ret_aliases = none;
        return 0;
    }
    return sl_json_read(path, SL_ALIASES_MAX_BYTES, ret_aliases, err);
}

static int write_new(struct sl_store *store, const char *path, const json_t *content,
                     struct sl_err *err)
{
    bool exists;
    char *text = sl_json_dump(content);
    int rc = text ? sl_store_create(store, path, text, &exists, err)
                  : sl_err_set(err, SL_NOMEM, "out of memory");
    free(text);
    return rc;
}

/* What is left of a version, what its project gets back, and then the version is no more. */
static int apply_gone(struct sl_store *store, const char *name, int number, const json_t *entry,
                      struct sl_err *err)
{
    const json_t *refund = sl_json_get(entry, "refund");
    char path[SL_PATH_MAX];
    int rc = sl_store_gone_path(store, name, number, path, err);
    if (rc == 0)
        rc = write_new(store, path, sl_json_get(entry, "gone"), err);
    if (rc == 0 && json_is_object(refund)) {
        rc = sl_path(path, err, "%s/refunds/%s.json", store->dir, sl_json_str(refund, "id", ""));
        if (rc == 0)
            rc = write_new(store, path, refund, err);
    }
    if (rc == 0)
        rc = sl_store_record_path(store, name, number, path, err);
    if (rc == 0 && unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "removing %s", path);
    if (rc == 0)
        rc = sl_store_sync_parent(path, err);
    json_object_del(store->newest, name);
    json_object_del(store->highest, name);
    return rc;
}

static int apply_aliases(struct sl_store *store, const char *name, int number, const json_t *add,
                         const json_t *drop, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *all = NULL;
    int rc = sl_store_read_aliases(store, name, &all, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(add); i++)
        json_object_set_new(all, json_string_value(json_array_get(add, i)), json_integer(number));
    for (size_t i = 0; rc == 0 && i < json_array_size(drop); i++)
        json_object_del(all, json_string_value(json_array_get(drop, i)));
    if (rc == 0)
        rc = sl_path(path, err, "%s/artifacts/%s/aliases.json", store->dir, name);
    if (rc == 0)
        rc = sl_json_write(path, all, err);
    json_decref(all);
    return rc;
}

int sl_store_read_moves(const struct sl_store *store, const char *name, json_t **ret_moves,
                        struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/artifacts/%s/moves.json", store->dir, name);
    if (rc)
        return rc;
    if (!sl_file_exists(path)) {
        *ret_moves = json_object();
        return *ret_moves ? 0 : sl_store_nomem(err);
    }
    return sl_json_read(path, SL_ALIASES_MAX_BYTES, ret_moves, err);
}

/* Who moved each alias last, beside the aliases. */
static int write_moves(struct sl_store *store, const json_t *entry, struct sl_err *err)
{
    const char *name = sl_json_str(entry, "name", "");
    const json_t *aliases = sl_json_get(entry, "aliases"), *alias;
    char path[SL_PATH_MAX], version[16], now[32];
    json_t *moves = NULL;
    size_t i;
    int rc = sl_store_read_moves(store, name, &moves, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/artifacts/%s/moves.json", store->dir, name);
    if (rc == 0) {
        sl_format_time(sl_now_us(), now);
        snprintf(version, sizeof version, "v%d", (int)sl_json_int(entry, "number", -1));
        json_array_foreach(aliases, i, alias)
            json_object_set_new(moves, json_string_value(alias),
                                json_pack("{s:s, s:s?, s:s}", "version", version, "created_by",
                                          sl_json_str(entry, "by", NULL), "created", now));
        rc = sl_json_write(path, moves, err);
    }
    json_decref(moves);
    return rc;
}

/* As sl_store_journal says; every step may have been done before. */
static int apply_entry(struct sl_store *store, const json_t *entry, struct sl_err *err)
{
    const char *name = sl_json_str(entry, "name", ""), *run = sl_json_str(entry, "run", NULL);
    int number = (int)sl_json_int(entry, "number", -1);
    const json_t *record = sl_json_get(entry, "record"), *aliases = sl_json_get(entry, "aliases");
    const json_t *drop = sl_json_get(entry, "drop");
    char path[SL_PATH_MAX];
    bool exists;
    int rc = 0;
    if (json_is_object(record)) {
        rc = sl_path(path, err, "%s/artifacts/%s", store->dir, name);
        if (rc == 0)
            rc = sl_store_mkdir(path, err);
        if (rc == 0)
            rc = sl_store_record_path(store, name, number, path, err);
        if (rc == 0)
            rc = write_new(store, path, record, err);
        json_object_del(store->newest, name);
        json_object_del(store->highest, name);
    }
    if (rc == 0 && json_is_object(sl_json_get(entry, "gone")))
        rc = apply_gone(store, name, number, entry, err);
    if (rc == 0 && run) {
        rc = sl_path(path, err, "%s/markers/%s", store->dir, run);
        if (rc == 0)
            rc = sl_store_mkdir(path, err);
        if (rc == 0)
            rc = sl_path(path, err, "%s/markers/%s/%s.json", store->dir, run,
                         sl_json_str(entry, "output", ""));
        json_t *marker = json_pack("{s:s, s:i, s:O*}", "name", name, "number", number, "facts",
                                   json_is_object(json_object_get(entry, "facts")) ? json_object_get(entry, "facts")
                                                                                  : NULL);
        char *text = marker ? sl_json_dump(marker) : NULL;
        if (rc == 0)
            rc = text ? sl_store_create(store, path, text, &exists, err)
                      : sl_err_set(err, SL_NOMEM, "out of memory");
        if (rc == 0)
            sl_lineage_note(store, run, sl_json_str(entry, "output", ""), marker);
        free(text);
        json_decref(marker);
    }
    if (rc == 0 && (json_array_size(aliases) > 0 || json_array_size(drop) > 0))
        rc = apply_aliases(store, name, number, aliases, drop, err);
    if (rc == 0 && json_array_size(aliases) > 0)
        rc = write_moves(store, entry, err);
    return rc;
}

/* Carries out one journal file and removes it. */
static int apply_file(struct sl_store *store, const char *path, struct sl_err *err)
{
    json_t *entry = NULL;
    char dir[SL_PATH_MAX];
    int rc = sl_json_read(path, SL_RECORD_MAX_BYTES, &entry, err);
    if (rc == 0)
        rc = apply_entry(store, entry, err);
    json_decref(entry);
    if (rc == 0 && unlink(path))
        rc = sl_err_errno(err, "removing %s", path);
    if (rc == 0)
        rc = sl_path(dir, err, "%s/journal", store->dir);
    /* Durably gone before the next commit: replayed later it would move its aliases back. */
    if (rc == 0)
        rc = sl_dir_sync(dir, err);
    return rc;
}

static int replay_file(void *store, const char *path, const char *name, struct sl_err *err)
{
    size_t len = strlen(name);
    if (len > 5 && strcmp(name + len - 5, ".json") == 0)
        return sl_err_wrap(err, apply_file(store, path, err), "finishing an earlier commit");
    unlink(path); /* a temporary file of sl_file_write */
    return 0;
}

int sl_store_replay(struct sl_store *store, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/journal", store->dir);
    if (rc)
        return rc;
    rc = sl_dir_each(dir, replay_file, store, err);
    store->journal_pending = rc != 0;
    return rc;
}

int sl_store_journal(struct sl_store *store, const json_t *entry, struct sl_err *err)
{
    char id[SL_ID_HEX + 1], path[SL_PATH_MAX];
    sl_random_id(id);
    int rc = sl_path(path, err, "%s/journal/%s.json", store->dir, id);
    if (rc)
        return rc;
    rc = sl_json_write(path, entry, err);
    if (rc) {
        store->journal_pending = true; /* it may have been renamed before the failing sync */
        return rc;
    }
    rc = apply_file(store, path, err);
    store->journal_pending = rc != 0;
    return rc;
}
