/* The mirror's rows in DATA/mlflow.db, and its thread. */
#include "server/mlflow.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "server/mlflow_priv.h"
#include "server/sql.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_A_PASS 1000

bool sl_mlflow_is_own(const struct sl_mlflow *m, const char *uri)
{
    const char *own = m->server->config->mlflow_uri;

    return own && !strcmp(own, uri);
}

/* Where a run is mirrored to; NULL: nowhere. */
static const char *wanted(const struct sl_mlflow *m, const json_t *record)
{
    return sl_json_str(record, "spec.tracking.mlflow.uri", m->server->config->mlflow_uri);
}

/* ---- rows ------------------------------------------------------------------------------------ */

static int add_row(struct sl_mlflow *m, const json_t *record, const char *uri, struct sl_err *err)
{
    const char *experiment =
        sl_json_str(record, "spec.tracking.mlflow.experiment", sl_json_str(record, "project", "default"));

    return sl_sql_run(m->db, err, "INSERT OR IGNORE INTO mirror (run, uri, experiment) VALUES (?, ?, ?)", "ttt",
                      sl_json_str(record, "run", ""), uri, experiment);
}

int sl_mlflow_run_ended(struct sl_mlflow *m, const json_t *record, struct sl_err *err)
{
    const char *uri = m ? wanted(m, record) : NULL;
    char *text = m ? sl_json_dump(record) : NULL;
    int rc = 0;

    if (!m)
        return 0;
    if (!text)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_lock(&m->mutex);
    if (uri)
        rc = add_row(m, record, uri, err);
    /* One that was mirrored has its end said, too, when --mlflow has gone meanwhile. */
    if (!rc)
        rc = sl_sql_run(m->db, err,
                        "UPDATE mirror SET record = ?, due_ms = 0, ended_ms = ? WHERE run = ? AND record IS NULL", "tit",
                        text, sl_now_us() / 1000, sl_json_str(record, "run", ""));
    pthread_mutex_unlock(&m->mutex);
    free(text);
    return rc;
}

int sl_mlflow_save(struct sl_mlflow *m, const json_t *row, struct sl_err *err)
{
    int rc;

    pthread_mutex_lock(&m->mutex);
    rc = sl_sql_run(m->db, err, "UPDATE mirror SET theirs = ?, artifacts = ?, last = ? WHERE run = ?", "tttt",
                    sl_json_str(row, "theirs", ""), sl_json_str(row, "artifacts", ""), sl_json_str(row, "last", "0"),
                    sl_json_str(row, "run", ""));
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

int sl_mlflow_record(struct sl_mlflow *m, const json_t *row, json_t **ret_record, struct sl_err *err)
{
    const char *text;
    sqlite3_stmt *s;
    int rc;

    pthread_mutex_lock(&m->mutex);
    rc = sl_sql_prepare(m->db, &s, err, "SELECT record FROM mirror WHERE run = ?", "t", sl_json_str(row, "run", ""));
    if (!rc && sqlite3_step(s) != SQLITE_ROW)
        rc = sl_sql_failed(m->db, err);
    if (!rc) {
        text = sl_sql_text(s, 0);
        rc = sl_json_parse(text, strlen(text), "mlflow.db", ret_record, err);
    }
    sqlite3_finalize(s);
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

static int put_off(struct sl_mlflow *m, const json_t *row, int64_t tries, int64_t due_ms, struct sl_err *err)
{
    int rc;

    pthread_mutex_lock(&m->mutex);
    rc = sl_sql_run(m->db, err, "UPDATE mirror SET tries = ?, due_ms = ? WHERE run = ?", "iit", tries, due_ms,
                    sl_json_str(row, "run", ""));
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

static int remove_row(struct sl_mlflow *m, const json_t *row, struct sl_err *err)
{
    int rc;

    pthread_mutex_lock(&m->mutex);
    rc = sl_sql_run(m->db, err, "DELETE FROM mirror WHERE run = ?", "t", sl_json_str(row, "run", ""));
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

static int due_rows(struct sl_mlflow *m, json_t **ret_rows, struct sl_err *err)
{
    enum { N_NAMES = 6 };
    json_t *rows = json_array();
    sqlite3_stmt *s;
    int rc, step = SQLITE_DONE;

    pthread_mutex_lock(&m->mutex);
    rc = sl_sql_prepare(m->db, &s, err,
                        "SELECT run, uri, experiment, theirs, artifacts, last, tries, ended_ms FROM mirror"
                        " WHERE due_ms <= ? ORDER BY record IS NULL, due_ms LIMIT ?",
                        "ii", sl_now_us() / 1000, (int64_t)ROWS_A_PASS);
    while (!rc && (step = sqlite3_step(s)) == SQLITE_ROW) {
        static const char *const names[] = {"run", "uri", "experiment", "theirs", "artifacts", "last"};
        json_t *row = json_object();
        for (int i = 0; i < N_NAMES; i++)
            json_object_set_new(row, names[i], json_string(sl_sql_text(s, i)));
        json_object_set_new(row, "tries", json_integer((json_int_t)sqlite3_column_int64(s, N_NAMES)));
        json_object_set_new(row, "ended_ms", json_integer((json_int_t)sqlite3_column_int64(s, N_NAMES + 1)));
        json_array_append_new(rows, row);
    }
    if (!rc && step != SQLITE_DONE)
        rc = sl_sql_failed(m->db, err);
    sqlite3_finalize(s);
    pthread_mutex_unlock(&m->mutex);
    if (rc)
        json_decref(rows);
    else
        *ret_rows = rows;
    return rc;
}

/* ---- a pass ---------------------------------------------------------------------------------- */

/* Runs that have started since the last look. */
static int look_at_running(struct sl_mlflow *m, struct sl_err *err)
{
    json_t *now = json_object(), *page, *run, *known, *record;
    char below[24] = "";
    int rc;

    do {
        size_t i;
        rc = sl_queue_list(m->queue, below[0] ? below : NULL, SL_QUEUE_PAGE_MAX, "running", NULL, NULL, &page, err);
        if (rc)
            break;
        json_array_foreach(json_object_get(page, "runs"), i, run) {
            const char *id = sl_json_str(run, "run", ""), *uri;
            struct sl_err gone = SL_ERR_INIT;
            known = json_object_get(m->running, id);
            if (!rc && !known && !sl_queue_show(m->queue, id, &record, &gone)) {
                uri = wanted(m, record);
                pthread_mutex_lock(&m->mutex);
                rc = uri ? add_row(m, record, uri, err) : 0;
                pthread_mutex_unlock(&m->mutex);
                json_decref(record);
            }
            if (!rc)
                json_object_set_new(now, id, json_true());
        }
        snprintf(below, sizeof below, "%s", sl_json_str(page, "next", ""));
        json_decref(page);
    } while (!rc && below[0]);
    if (rc) {
        json_decref(now);
        return rc;
    }
    json_decref(m->running);
    m->running = now;
    return 0;
}

static int failed(struct sl_mlflow *m, const json_t *row, const struct sl_err *why, struct sl_err *err)
{
    int64_t tries = sl_json_int(row, "tries", 0) + 1, now_ms = sl_now_us() / 1000, delay = SL_MLFLOW_LAST_RETRY_MS;
    int64_t ended_ms = sl_json_int(row, "ended_ms", 0);
    bool over = ended_ms && now_ms - ended_ms > SL_MLFLOW_AGE_MS;

    if (tries < 10)
        delay = SL_MLFLOW_FIRST_RETRY_MS << (tries - 1);
    if (delay > SL_MLFLOW_LAST_RETRY_MS)
        delay = SL_MLFLOW_LAST_RETRY_MS;
    if (tries == 1 || over)
        sl_log(SL_WARN, sl_json_str(row, "run", NULL), "mirroring to MLflow%s: %s",
               over ? " is given up after three days" : " is tried again", why->msg);
    return over ? remove_row(m, row, err) : put_off(m, row, tries, now_ms + delay, err);
}

static int mirror_due(struct sl_mlflow *m, struct sl_err *err)
{
    json_t *rows, *row, *away = json_object(); /* addresses that did not answer: once a pass is enough */
    size_t i;
    int rc = due_rows(m, &rows, err);

    if (rc) {
        json_decref(away);
        return rc;
    }
    json_array_foreach(rows, i, row) {
        const char *uri = sl_json_str(row, "uri", "");
        struct sl_err why = SL_ERR_INIT;
        bool done = false, tries = sl_json_int(row, "tries", 0) > 0;
        int said;
        if (rc || atomic_load(&m->ending) || json_object_get(away, uri))
            continue;
        said = sl_mlflow_mirror(m, row, &done, &why);
        if (said == SL_CANCELLED)
            continue;
        if (said) {
            json_object_set_new(away, uri, json_true());
            rc = failed(m, row, &why, err);
        } else {
            rc = done ? remove_row(m, row, err) : tries ? put_off(m, row, 0, 0, err) : 0;
        }
    }
    json_decref(away);
    json_decref(rows);
    return rc;
}

static void pass(void *arg)
{
    struct sl_mlflow *m = arg;
    struct sl_err err = SL_ERR_INIT;
    int rc = look_at_running(m, &err);

    if (!rc || rc == SL_RETRY) { /* with Redis away ended runs are still told from the archive */
        sl_err_clear(&err);
        rc = mirror_due(m, &err);
    }
    if (rc && rc != m->trouble)
        sl_log(SL_ERROR, NULL, "mirroring to MLflow: %s", err.msg);
    m->trouble = rc;
}

/* ---- the parts ------------------------------------------------------------------------------- */

int sl_mlflow_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    static const char set_up[] =
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;"
        "CREATE TABLE IF NOT EXISTS mirror (run TEXT PRIMARY KEY, uri TEXT NOT NULL, experiment TEXT NOT NULL,"
        " theirs TEXT NOT NULL DEFAULT '', artifacts TEXT NOT NULL DEFAULT '', last TEXT NOT NULL DEFAULT '0',"
        " record TEXT, tries INTEGER NOT NULL DEFAULT 0,"
        " due_ms INTEGER NOT NULL DEFAULT 0, ended_ms INTEGER NOT NULL DEFAULT 0);"
        "CREATE INDEX IF NOT EXISTS mirror_due ON mirror (due_ms);";
    struct sl_mlflow *m = calloc(1, sizeof *m);
    int rc;

    if (!m)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    m->server = server;
    pthread_mutex_init(&m->mutex, NULL);
    rc = sl_sql_open(server->config->data_dir, "mlflow.db", set_up, &m->db, err);
    if (rc) {
        sl_mlflow_part_stop(m);
        return rc;
    }
    server->mlflow = m;
    *ret_state = m;
    return 0;
}

void sl_mlflow_part_stop(void *state)
{
    struct sl_mlflow *m = state;

    if (!m)
        return;
    sqlite3_close(m->db);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

int sl_mlflow_send_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct sl_mlflow *m = server->mlflow;
    int rc;

    m->running = json_object();
    m->curl = curl_easy_init();
    rc = m->curl && m->running ? sl_queue_new(server->config->redis_url, &m->queue, err)
                               : sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc)
        rc = sl_ticker_start(pass, m, SL_MLFLOW_PERIOD_US, &m->ticker, err);
    if (rc)
        sl_mlflow_send_stop(m);
    else
        *ret_state = m;
    return rc;
}

void sl_mlflow_send_stop(void *state)
{
    struct sl_mlflow *m = state;

    atomic_store(&m->ending, true);
    sl_ticker_stop(m->ticker);
    sl_queue_free(m->queue);
    if (m->curl)
        curl_easy_cleanup(m->curl);
    json_decref(m->running);
    m->ticker = NULL;
    m->queue = NULL;
    m->curl = NULL;
    m->running = NULL;
}
