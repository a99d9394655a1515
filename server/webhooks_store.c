/* DATA/webhooks.db: the webhooks, what waits to be delivered, and which conditions last. The truth of these. */
#include "base/json.h"
#include "server/sql.h"
#include "server/webhooks_priv.h"
#include <stdlib.h>
#include <string.h>

static int64_t number(struct sl_webhooks *w, const char *sql, const char *text)
{
    sqlite3_stmt *s;
    int64_t found = 0;

    if (sl_sql_prepare(w->db, &s, NULL, sql, text ? "t" : "", text))
        return 0;
    if (sqlite3_step(s) == SQLITE_ROW)
        found = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return found;
}

int sl_webhooks_open(struct sl_webhooks *w, struct sl_err *err)
{
    static const char set_up[] =
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;"
        "CREATE TABLE IF NOT EXISTS hook (name TEXT PRIMARY KEY, json TEXT NOT NULL);"
        "CREATE TABLE IF NOT EXISTS delivery (id TEXT PRIMARY KEY, hook TEXT NOT NULL, event TEXT NOT NULL,"
        " subject TEXT NOT NULL, body TEXT NOT NULL, created_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL,"
        " tries INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting', status INTEGER, error TEXT,"
        " UNIQUE (hook, event, subject));"
        "CREATE INDEX IF NOT EXISTS delivery_due ON delivery (state, due_ms);"
        "CREATE INDEX IF NOT EXISTS delivery_created ON delivery (hook, created_ms);"
        "CREATE TABLE IF NOT EXISTS condition (event TEXT, subject TEXT, PRIMARY KEY (event, subject));";

    return sl_sql_open(w->server->config->data_dir, "webhooks.db", set_up, &w->db, err);
}

void sl_webhooks_close(struct sl_webhooks *w)
{
    sqlite3_close(w->db);
    w->db = NULL;
}

int sl_webhooks_all(struct sl_webhooks *w, json_t **ret_hooks, struct sl_err *err)
{
    json_t *hooks = json_object(), *one;
    sqlite3_stmt *s;
    int rc, step = SQLITE_DONE;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err, "SELECT name, json FROM hook ORDER BY name", "");
    while (!rc && (step = sqlite3_step(s)) == SQLITE_ROW) {
        const char *json = sl_sql_text(s, 1);
        rc = sl_json_parse(json, strlen(json), "webhooks.db", &one, err);
        if (!rc)
            json_object_set_new(hooks, sl_sql_text(s, 0), one);
    }
    if (!rc && step != SQLITE_DONE)
        rc = sl_sql_failed(w->db, err);
    sqlite3_finalize(s);
    pthread_mutex_unlock(&w->db_mutex);
    if (rc)
        json_decref(hooks);
    else
        *ret_hooks = hooks;
    return rc;
}

static int remove_hook(struct sl_webhooks *w, const char *name, struct sl_err *err)
{
    sqlite3_stmt *s;
    int changes = 0, rc = sl_sql_prepare(w->db, &s, err, "DELETE FROM hook WHERE name = ?", "t", name);

    if (!rc)
        rc = sl_sql_finish(w->db, s, &changes, err);
    if (!rc)
        rc = sl_sql_prepare(w->db, &s, err, "DELETE FROM delivery WHERE hook = ?", "t", name);
    if (!rc)
        rc = sl_sql_finish(w->db, s, NULL, err);
    return rc || changes ? rc : sl_err_set(err, SL_NOTFOUND, "there is no webhook %s", name);
}

int sl_webhooks_put(struct sl_webhooks *w, const char *name, const json_t *hook, struct sl_err *err)
{
    char *json = hook ? sl_json_dump(hook) : NULL;
    sqlite3_stmt *s;
    int rc;

    if (hook && !json)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_lock(&w->db_mutex);
    if (!hook) {
        rc = remove_hook(w, name, err);
    } else if (!number(w, "SELECT count(*) FROM hook WHERE name = ?", name) &&
               number(w, "SELECT count(*) FROM hook", NULL) >= SL_WEBHOOKS_MAX) {
        rc = sl_err_set(err, SL_CONFLICT, "there are %d webhooks, which is the limit: remove one first",
                        SL_WEBHOOKS_MAX);
    } else {
        rc = sl_sql_prepare(w->db, &s, err, "INSERT OR REPLACE INTO hook (name, json) VALUES (?, ?)", "tt", name, json);
        if (!rc)
            rc = sl_sql_finish(w->db, s, NULL, err);
    }
    pthread_mutex_unlock(&w->db_mutex);
    free(json);
    return rc;
}

/* The db mutex is held. */
static int add(struct sl_webhooks *w, const char *hook, const char *event, const char *subject,
               const char *body, char ret_id[SL_ID_HEX + 1], struct sl_err *err)
{
    static const char count[] = "SELECT count(*) FROM delivery WHERE hook = ? AND state = 'waiting'";
    int64_t now_ms = sl_now_us() / 1000;
    bool full = number(w, count, hook) >= SL_WEBHOOK_WAITING_MAX;
    char id[SL_ID_HEX + 1];
    sqlite3_stmt *s;
    int rc;

    sl_random_id(id);
    rc = sl_sql_prepare(w->db, &s, err,
                 "INSERT OR IGNORE INTO delivery (id, hook, event, subject, body, created_ms, due_ms, state, error)"
                 " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                 "tttttiitt", id, hook, event, subject, body, now_ms, now_ms, full ? "given_up" : "waiting",
                 full ? "too many deliveries wait for this webhook" : NULL);
    if (!rc)
        rc = sl_sql_finish(w->db, s, NULL, err);
    if (!rc && ret_id)
        memcpy(ret_id, id, sizeof id);
    return rc;
}

int sl_webhooks_add(struct sl_webhooks *w, const char *hook, const char *event, const char *subject,
                    const char *body, char ret_id[SL_ID_HEX + 1], struct sl_err *err)
{
    int rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = add(w, hook, event, subject, body, ret_id, err);
    pthread_mutex_unlock(&w->db_mutex);
    return rc;
}

int sl_webhooks_add_all(struct sl_webhooks *w, const json_t *deliveries, struct sl_err *err)
{
    const json_t *d;
    size_t i;
    int rc;

    if (!json_array_size(deliveries))
        return 0;
    pthread_mutex_lock(&w->db_mutex);
    rc = sqlite3_exec(w->db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK ? 0 : sl_sql_failed(w->db, err);
    if (!rc) {
        json_array_foreach(deliveries, i, d)
            if (!rc)
                rc = add(w, sl_json_str(d, "hook", ""), sl_json_str(d, "event", ""), sl_json_str(d, "subject", ""),
                         sl_json_str(d, "body", ""), NULL, err);
        if (!rc && sqlite3_exec(w->db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
            rc = sl_sql_failed(w->db, err);
        if (rc)
            sqlite3_exec(w->db, "ROLLBACK", NULL, NULL, NULL);
    }
    pthread_mutex_unlock(&w->db_mutex);
    return rc;
}

int sl_webhooks_condition(struct sl_webhooks *w, const char *event, const char *subject, bool on,
                          bool *ret_new, struct sl_err *err)
{
    sqlite3_stmt *s;
    int changes = 0, rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err,
                 on ? "INSERT OR IGNORE INTO condition (event, subject) VALUES (?, ?)"
                    : "DELETE FROM condition WHERE event = ? AND subject = ?",
                 "tt", event, subject);
    if (!rc)
        rc = sl_sql_finish(w->db, s, &changes, err);
    pthread_mutex_unlock(&w->db_mutex);
    if (!rc && ret_new)
        *ret_new = on && changes > 0;
    return rc;
}

int sl_webhooks_conditions(struct sl_webhooks *w, const char *event, json_t **ret_subjects,
                           struct sl_err *err)
{
    json_t *subjects = json_array();
    sqlite3_stmt *s;
    int rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err, "SELECT subject FROM condition WHERE event = ?", "t", event);
    while (!rc && sqlite3_step(s) == SQLITE_ROW)
        json_array_append_new(subjects, json_string(sl_sql_text(s, 0)));
    sqlite3_finalize(s);
    pthread_mutex_unlock(&w->db_mutex);
    if (rc)
        json_decref(subjects);
    else
        *ret_subjects = subjects;
    return rc;
}

int sl_webhooks_due(struct sl_webhooks *w, int64_t now_ms, int most, json_t **ret_due,
                    int64_t *ret_next_ms, struct sl_err *err)
{
    json_t *due = json_array();
    sqlite3_stmt *s;
    int rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err,
                 "SELECT id, hook, body, tries, created_ms FROM delivery WHERE state = 'waiting' AND due_ms <= ?"
                 " ORDER BY due_ms LIMIT ?",
                 "ii", now_ms, (int64_t)most);
    while (!rc && sqlite3_step(s) == SQLITE_ROW)
        json_array_append_new(due, json_pack("{s:s, s:s, s:s, s:I, s:I}", "id", sl_sql_text(s, 0), "hook",
                                             sl_sql_text(s, 1), "body", sl_sql_text(s, 2), "tries",
                                             (json_int_t)sqlite3_column_int64(s, 3), "created_ms",
                                             (json_int_t)sqlite3_column_int64(s, 4)));
    sqlite3_finalize(s);
    *ret_next_ms = number(w, "SELECT min(due_ms) FROM delivery WHERE state = 'waiting'", NULL);
    pthread_mutex_unlock(&w->db_mutex);
    if (rc)
        json_decref(due);
    else
        *ret_due = due;
    return rc;
}

int sl_webhooks_tried(struct sl_webhooks *w, const char *id, const char *state, int64_t due_ms,
                      long status, const char *error, struct sl_err *err)
{
    sqlite3_stmt *s;
    int rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err,
                 "UPDATE delivery SET state = ?, due_ms = ?, tries = tries + 1, status = ?, error = ? WHERE id = ?",
                 "tiitt", state, due_ms, (int64_t)status, error, id);
    if (!rc)
        rc = sl_sql_finish(w->db, s, NULL, err);
    pthread_mutex_unlock(&w->db_mutex);
    return rc;
}

int sl_webhooks_deliveries(struct sl_webhooks *w, const char *hook, json_t **ret_list,
                           struct sl_err *err)
{
    json_t *list = json_array();
    sqlite3_stmt *s;
    int rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err,
                 "SELECT id, event, subject, created_ms, state, tries, status, error, due_ms FROM delivery"
                 " WHERE hook = ? ORDER BY created_ms DESC, rowid DESC LIMIT ?",
                 "ti", hook, (int64_t)SL_WEBHOOK_SHOWN_MAX);
    while (!rc && sqlite3_step(s) == SQLITE_ROW) {
        json_t *one = json_pack("{s:s, s:s, s:s, s:I, s:s, s:i, s:i, s:s}", "id", sl_sql_text(s, 0), "event",
                                sl_sql_text(s, 1), "subject", sl_sql_text(s, 2), "created_ms",
                                (json_int_t)sqlite3_column_int64(s, 3), "state", sl_sql_text(s, 4), "tries",
                                sqlite3_column_int(s, 5), "status", sqlite3_column_int(s, 6), "error",
                                sl_sql_text(s, 7));
        if (one && !strcmp(sl_sql_text(s, 4), "waiting"))
            json_object_set_new(one, "due_ms", json_integer((json_int_t)sqlite3_column_int64(s, 8)));
        json_array_append_new(list, one);
    }
    sqlite3_finalize(s);
    pthread_mutex_unlock(&w->db_mutex);
    if (rc)
        json_decref(list);
    else
        *ret_list = list;
    return rc;
}

int sl_webhooks_forget(struct sl_webhooks *w, int64_t before_ms, struct sl_err *err)
{
    sqlite3_stmt *s;
    int rc;

    pthread_mutex_lock(&w->db_mutex);
    rc = sl_sql_prepare(w->db, &s, err, "DELETE FROM delivery WHERE state != 'waiting' AND created_ms < ?", "i", before_ms);
    if (!rc)
        rc = sl_sql_finish(w->db, s, NULL, err);
    pthread_mutex_unlock(&w->db_mutex);
    return rc;
}
