/* The archive's index: one table, each row what a list shows of a run. */
#include "base/file.h"
#include "base/json.h"
#include "server/archive_priv.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORM 1 /* of the table; another one is thrown away and made anew */

static int failed(struct sl_archive *a, const char *what, struct sl_err *err)
{
    return sl_err_set(err, SL_IO, "%s/index.db: %s: %s", a->dir, what,
                      a->index ? sqlite3_errmsg(a->index) : "out of memory");
}

static int run_sql(struct sl_archive *a, const char *sql, struct sl_err *err)
{
    return sqlite3_exec(a->index, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : failed(a, sql, err);
}

static int form_of(struct sl_archive *a)
{
    sqlite3_stmt *s;
    int form = -1;

    if (sqlite3_prepare_v2(a->index, "PRAGMA user_version", -1, &s, NULL) == SQLITE_OK &&
        sqlite3_step(s) == SQLITE_ROW)
        form = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    return form;
}

int sl_archive_index_open(struct sl_archive *a, bool *ret_fresh, struct sl_err *err)
{
    static const char set_up[] =
        "CREATE TABLE run (id TEXT PRIMARY KEY, seq INTEGER, state TEXT, queue TEXT, project TEXT,"
        " finished_ms INTEGER, json TEXT);"
        "CREATE INDEX run_seq ON run (seq); CREATE INDEX run_finished ON run (finished_ms);"
        "PRAGMA user_version = 1;";
    char path[SL_PATH_MAX], more[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/index.db", a->dir), form = 0;

    for (int turn = 0; !rc && turn < 2; turn++) {
        if (sqlite3_open(path, &a->index) != SQLITE_OK)
            return failed(a, "opening", err);
        form = form_of(a);
        if (form == FORM || form == 0)
            break;
        if (turn)
            return failed(a, "reading", err);
        sl_archive_index_close(a); /* damaged, or of another version: the records are the truth */
        remove(path);
        for (int i = 0; i < 2; i++) {
            rc = sl_path(more, err, "%s-%s", path, i ? "wal" : "shm");
            if (!rc)
                remove(more);
        }
    }
    if (!rc)
        rc = run_sql(a, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;", err);
    if (!rc && form == 0)
        rc = run_sql(a, set_up, err);
    if (!rc)
        *ret_fresh = form == 0;
    return rc;
}

void sl_archive_index_close(struct sl_archive *a)
{
    sqlite3_close(a->index);
    a->index = NULL;
}

/* Begins a transaction when none is open. */
static int begin(struct sl_archive *a, struct sl_err *err)
{
    int rc = a->changing ? 0 : run_sql(a, "BEGIN", err);

    a->changing |= !rc;
    return rc;
}

int sl_archive_commit(struct sl_archive *a, struct sl_err *err)
{
    int rc = 0;

    pthread_mutex_lock(&a->mutex);
    if (a->changing) {
        rc = run_sql(a, "COMMIT", err);
        if (rc)
            sqlite3_exec(a->index, "ROLLBACK", NULL, NULL, NULL);
        a->changing = false;
    }
    pthread_mutex_unlock(&a->mutex);
    return rc;
}

static void bind_text(sqlite3_stmt *s, int at, const char *text)
{
    sqlite3_bind_text(s, at, text, -1, SQLITE_TRANSIENT);
}

static int step_once(struct sl_archive *a, sqlite3_stmt *s, const char *what, struct sl_err *err)
{
    int rc = s && sqlite3_step(s) == SQLITE_DONE ? 0 : failed(a, what, err);

    sqlite3_finalize(s);
    return rc;
}

int sl_archive_index_put(struct sl_archive *a, const json_t *run, struct sl_err *err)
{
    json_t *brief = json_copy((json_t *)(uintptr_t)run);
    sqlite3_stmt *s = NULL;
    char *text;
    int rc;

    json_object_del(brief, "spec");
    json_object_del(brief, "log_tail");
    text = sl_json_dump(brief);
    json_decref(brief);
    if (!text)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_lock(&a->mutex);
    rc = begin(a, err);
    if (!rc && sqlite3_prepare_v2(a->index,
                                  "INSERT OR REPLACE INTO run VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                                  -1, &s, NULL) != SQLITE_OK)
        rc = failed(a, "adding a run", err);
    if (!rc) {
        bind_text(s, 1, sl_json_str(run, "run", ""));
        sqlite3_bind_int64(s, 2, sl_json_int(run, "seq", 0));
        bind_text(s, 3, sl_json_str(run, "state", ""));
        bind_text(s, 4, sl_json_str(run, "queue", ""));
        bind_text(s, 5, sl_json_str(run, "project", ""));
        sqlite3_bind_int64(s, 6, sl_json_int(run, "finished_ms", 0));
        bind_text(s, 7, text);
        rc = step_once(a, s, "adding a run", err);
    }
    pthread_mutex_unlock(&a->mutex);
    free(text);
    return rc;
}

int sl_archive_index_remove(struct sl_archive *a, const char *run, struct sl_err *err)
{
    sqlite3_stmt *s = NULL;
    int rc;

    pthread_mutex_lock(&a->mutex);
    rc = begin(a, err);
    if (!rc && sqlite3_prepare_v2(a->index, "DELETE FROM run WHERE id = ?1", -1, &s, NULL) !=
                   SQLITE_OK)
        rc = failed(a, "removing a run", err);
    if (!rc) {
        bind_text(s, 1, run);
        rc = step_once(a, s, "removing a run", err);
    }
    pthread_mutex_unlock(&a->mutex);
    return rc;
}

/* Rows' first column into a list, as JSON or as text. Finalizes s. */
static int collect(struct sl_archive *a, sqlite3_stmt *s, bool json, json_t **ret_list,
                   struct sl_err *err)
{
    json_t *list = json_array();
    int rc;

    while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(s, 0);
        json_array_append_new(list, json ? json_loads(text ? text : "{}", 0, NULL)
                                         : json_string(text ? text : ""));
    }
    rc = rc == SQLITE_DONE ? 0 : failed(a, "reading", err);
    sqlite3_finalize(s);
    if (rc)
        json_decref(list);
    else
        *ret_list = list;
    return rc;
}

int sl_archive_index_old(struct sl_archive *a, int64_t before_ms, int most, json_t **ret_runs,
                         struct sl_err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = 0;

    pthread_mutex_lock(&a->mutex);
    if (sqlite3_prepare_v2(a->index,
                           "SELECT id FROM run WHERE finished_ms < ?1 ORDER BY finished_ms LIMIT ?2",
                           -1, &s, NULL) != SQLITE_OK)
        rc = failed(a, "reading", err);
    if (!rc) {
        sqlite3_bind_int64(s, 1, before_ms);
        sqlite3_bind_int(s, 2, most);
        rc = collect(a, s, false, ret_runs, err);
    }
    pthread_mutex_unlock(&a->mutex);
    return rc;
}

int sl_archive_list(struct sl_archive *a, const char *below, int most, const char *state,
                    const char *queue, const char *project, json_t **ret_runs, struct sl_err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = 0;

    pthread_mutex_lock(&a->mutex);
    if (sqlite3_prepare_v2(a->index,
                           "SELECT json FROM run WHERE seq < ?1 AND (?2 = '' OR state = ?2) AND "
                           "(?3 = '' OR queue = ?3) AND (?4 = '' OR project = ?4) "
                           "ORDER BY seq DESC LIMIT ?5",
                           -1, &s, NULL) != SQLITE_OK)
        rc = failed(a, "reading", err);
    if (!rc) {
        sqlite3_bind_int64(s, 1, below && *below ? atoll(below) : INT64_MAX);
        bind_text(s, 2, state ? state : "");
        bind_text(s, 3, queue ? queue : "");
        bind_text(s, 4, project ? project : "");
        sqlite3_bind_int(s, 5, most);
        rc = collect(a, s, true, ret_runs, err);
    }
    pthread_mutex_unlock(&a->mutex);
    return rc;
}

int sl_archive_newest(struct sl_archive *a, int64_t *ret_seq, struct sl_err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = 0;

    pthread_mutex_lock(&a->mutex);
    if (sqlite3_prepare_v2(a->index, "SELECT max(seq) FROM run", -1, &s, NULL) != SQLITE_OK ||
        sqlite3_step(s) != SQLITE_ROW)
        rc = failed(a, "reading", err);
    else
        *ret_seq = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    pthread_mutex_unlock(&a->mutex);
    return rc;
}
