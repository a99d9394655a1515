#include "server/runs_index.h"
#include "base/file.h"
#include "base/json.h"
#include "queue/queue.h"
#include "server/runs_index_priv.h"
#include <stdlib.h>
#include <string.h>

#define FORM 2 /* of the tables below; with another one they are made anew */

/* runs is narrow, so that what is sorted and counted stays small; n is the index's own number of a run. Each order is an
 * index over (value, seq, n): SQLite puts n behind by itself. runs_words finds a run by any three characters in a row of
 * its text; it keeps no copy of the text, and the triggers tell it of every change. */
static const char schema[] =
    "CREATE TABLE runs (n INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, archived INTEGER NOT NULL,"
    " seq INTEGER NOT NULL, name TEXT, project TEXT, queue TEXT, state TEXT, priority INTEGER, user TEXT,"
    " finished INTEGER, duration INTEGER, loss REAL, val_loss REAL);"
    "CREATE TABLE runs_row (n INTEGER PRIMARY KEY, json TEXT NOT NULL, note TEXT NOT NULL);"
    "CREATE TABLE runs_text (n INTEGER PRIMARY KEY, text TEXT NOT NULL);"
    "CREATE VIRTUAL TABLE runs_words USING fts5 (text, content = 'runs_text', content_rowid = 'n',"
    " tokenize = 'trigram', columnsize = 0);"
    "CREATE TRIGGER runs_text_made AFTER INSERT ON runs_text BEGIN"
    " INSERT INTO runs_words (rowid, text) VALUES (new.n, new.text); END;"
    "CREATE TRIGGER runs_text_gone AFTER DELETE ON runs_text BEGIN"
    " INSERT INTO runs_words (runs_words, rowid, text) VALUES ('delete', old.n, old.text); END;"
    "CREATE TRIGGER runs_text_changed AFTER UPDATE ON runs_text BEGIN"
    " INSERT INTO runs_words (runs_words, rowid, text) VALUES ('delete', old.n, old.text);"
    " INSERT INTO runs_words (rowid, text) VALUES (new.n, new.text); END;"
    "CREATE TABLE runs_tags (tag TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (tag, n)) WITHOUT ROWID;"
    "CREATE INDEX runs_tags_n ON runs_tags (n);"
    "CREATE INDEX runs_seq ON runs (seq); CREATE INDEX runs_name ON runs (name, seq);"
    "CREATE INDEX runs_project ON runs (project, seq); CREATE INDEX runs_queue ON runs (queue, seq);"
    "CREATE INDEX runs_state ON runs (state, seq); CREATE INDEX runs_priority ON runs (priority, seq);"
    "CREATE INDEX runs_user ON runs (user, seq); CREATE INDEX runs_finished ON runs (finished, seq);"
    "CREATE INDEX runs_duration ON runs (duration, seq); CREATE INDEX runs_loss ON runs (loss, seq);"
    "CREATE INDEX runs_val_loss ON runs (val_loss, seq);";

int sl_runs_index_open(const char *path, struct sl_archive *archive, struct sl_runs_index **ret_index,
                       bool *ret_fresh, struct sl_err *err)
{
    struct sl_runs_index *x = calloc(1, sizeof *x);
    int rc = x ? sl_db_open(path, schema, FORM, &x->db, ret_fresh, err)
               : sl_err_set(err, SL_NOMEM, "out of memory");

    if (rc) {
        free(x);
        return rc;
    }
    x->archive = archive;
    *ret_index = x;
    return 0;
}

void sl_runs_index_close(struct sl_runs_index *x)
{
    if (!x)
        return;
    sl_db_close(x->db);
    free(x);
}

bool sl_runs_index_damaged(const struct sl_runs_index *x)
{
    return !x || sl_db_damaged(x->db);
}

int sl_runs_index_begin(struct sl_runs_index *x, bool write, struct sl_db_conn **ret_conn, struct sl_err *err)
{
    return x ? sl_db_begin(x->db, write, ret_conn, err)
             : sl_err_set(err, SL_IO, "the read model of runs is being made anew");
}

/* ---- one run --------------------------------------------------------------------------------- */

static int bad(void)
{
    return SL_IO; /* sl_db_stmt has said what */
}

/* *ret_n 0: it is not there. */
static int find(struct sl_db_conn *c, const char *run, int64_t *ret_n, bool *ret_archived,
                struct sl_err *err)
{
    sqlite3_stmt *s = sl_db_stmt(c, "SELECT n, archived FROM runs WHERE run = ?1", err);
    int rc = SL_IO;

    if (!s)
        return bad();
    sl_db_text(s, 1, run);
    rc = sl_db_step(c, s, err);
    *ret_n = rc > 0 ? sqlite3_column_int64(s, 0) : 0;
    *ret_archived = rc > 0 && sqlite3_column_int(s, 1);
    sqlite3_reset(s);
    return rc < 0 ? rc : 0;
}

static int forget(struct sl_db_conn *c, int64_t n, struct sl_err *err)
{
    static const char *const each[] = {
        "DELETE FROM runs WHERE n = ?1", "DELETE FROM runs_row WHERE n = ?1",
        "DELETE FROM runs_text WHERE n = ?1", "DELETE FROM runs_tags WHERE n = ?1"};
    int rc = 0;

    for (int i = 0; !rc && i < 4; i++) {
        sqlite3_stmt *s = sl_db_stmt(c, each[i], err);
        if (!s)
            return bad();
        sqlite3_bind_int64(s, 1, n);
        rc = sl_db_run(c, s, err);
    }
    return rc;
}

static void bind_text_of(sqlite3_stmt *s, int at, const json_t *run, const char *key)
{
    sl_db_text(s, at, sl_json_str(run, key, NULL));
}

static void bind_number(sqlite3_stmt *s, int at, const json_t *value)
{
    if (json_is_integer(value))
        sqlite3_bind_int64(s, at, json_integer_value(value));
    else if (json_is_real(value))
        sqlite3_bind_double(s, at, json_real_value(value));
    else
        sqlite3_bind_null(s, at);
}

static int put_columns(struct sl_db_conn *c, int64_t n, const json_t *run, bool archived,
                       int64_t *ret_n, struct sl_err *err)
{
    sqlite3_stmt *s = sl_db_stmt(
        c,
        "INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) "
        "ON CONFLICT (n) DO UPDATE SET archived = ?3, seq = ?4, name = ?5, project = ?6, queue = ?7,"
        " state = ?8, priority = ?9, user = ?10, finished = ?11, duration = ?12, loss = ?13,"
        " val_loss = ?14 RETURNING n",
        err);
    int rc;

    if (!s)
        return bad();
    if (n)
        sqlite3_bind_int64(s, 1, n);
    bind_text_of(s, 2, run, "run");
    sqlite3_bind_int(s, 3, archived);
    sqlite3_bind_int64(s, 4, sl_json_int(run, "seq", 0));
    bind_text_of(s, 5, run, "name");
    bind_text_of(s, 6, run, "project");
    bind_text_of(s, 7, run, "queue");
    bind_text_of(s, 8, run, "state");
    sqlite3_bind_int(s, 9, sl_queue_rank(sl_json_str(run, "priority", "")));
    bind_text_of(s, 10, run, "created_by");
    bind_number(s, 11, sl_json_get(run, "finished_ms"));
    bind_number(s, 12, sl_json_get(run, "run_ms"));
    bind_number(s, 13, sl_json_get(run, "metrics.loss"));
    bind_number(s, 14, sl_json_get(run, "metrics.val_loss"));
    rc = sl_db_step(c, s, err);
    if (rc > 0)
        *ret_n = sqlite3_column_int64(s, 0);
    return rc < 0 ? rc : sl_db_run(c, s, err);
}

/* What is searched: lines, so that no word is found across two of them. */
static char *searched(const json_t *run, const json_t *note)
{
    static const char *const keys[] = {"name", "run", "project", "queue", "created_by", "job"};
    struct sl_buf text;
    json_t *tag;
    size_t i;

    sl_buf_init(&text, SL_ARCHIVE_RECORD_MAX);
    for (i = 0; i < sizeof keys / sizeof *keys; i++)
        if (*sl_json_str(run, keys[i], ""))
            sl_buf_addf(&text, "%s\n", sl_json_str(run, keys[i], ""));
    json_array_foreach(json_object_get(note, "tags"), i, tag)
        sl_buf_addf(&text, "%s\n", json_string_value(tag));
    sl_buf_adds(&text, sl_json_str(note, "notes", ""));
    return sl_buf_take(&text);
}

static int put_texts(struct sl_db_conn *c, int64_t n, const json_t *run, const char *json,
                     const json_t *note, struct sl_err *err)
{
    char *note_text = sl_json_dump(note), *text = searched(run, note);
    sqlite3_stmt *s = NULL;
    json_t *tag;
    size_t i;
    int rc = note_text && text ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc && !(s = sl_db_stmt(c, "INSERT OR REPLACE INTO runs_row VALUES (?1, ?2, ?3)", err)))
        rc = bad();
    if (!rc) {
        sqlite3_bind_int64(s, 1, n);
        sl_db_text(s, 2, json);
        sl_db_text(s, 3, note_text);
        rc = sl_db_run(c, s, err);
    }
    if (!rc && !(s = sl_db_stmt(c, "INSERT INTO runs_text VALUES (?1, ?2) ON CONFLICT (n) DO UPDATE "
                                   "SET text = ?2 WHERE text <> ?2", err)))
        rc = bad();
    if (!rc) {
        sqlite3_bind_int64(s, 1, n);
        sl_db_text(s, 2, text);
        rc = sl_db_run(c, s, err);
    }
    if (!rc && !(s = sl_db_stmt(c, "DELETE FROM runs_tags WHERE n = ?1", err)))
        rc = bad();
    if (!rc) {
        sqlite3_bind_int64(s, 1, n);
        rc = sl_db_run(c, s, err);
    }
    json_array_foreach(json_object_get(note, "tags"), i, tag) {
        if (!rc && !(s = sl_db_stmt(c, "INSERT OR IGNORE INTO runs_tags VALUES (?1, ?2)", err)))
            rc = bad();
        if (!rc) {
            sl_db_text(s, 1, json_string_value(tag));
            sqlite3_bind_int64(s, 2, n);
            rc = sl_db_run(c, s, err);
        }
    }
    free(note_text);
    free(text);
    return rc;
}

/* The row's texts as they are: heap strings. */
static int row_of(struct sl_db_conn *c, int64_t n, json_t **ret_run, json_t **ret_note,
                  struct sl_err *err)
{
    sqlite3_stmt *s = sl_db_stmt(c, "SELECT json, note FROM runs_row WHERE n = ?1", err);
    int rc;

    if (!s)
        return bad();
    sqlite3_bind_int64(s, 1, n);
    rc = sl_db_step(c, s, err);
    if (rc > 0) {
        *ret_run = json_loads((const char *)sqlite3_column_text(s, 0), 0, NULL);
        *ret_note = json_loads((const char *)sqlite3_column_text(s, 1), 0, NULL);
    }
    sqlite3_reset(s);
    return rc < 0 ? rc : rc ? 0 : sl_err_set(err, SL_IO, "a run without its row");
}

/* ---- changes --------------------------------------------------------------------------------- */

static int put_one(struct sl_runs_index *x, struct sl_db_conn *c, const json_t *given, bool archived,
                   struct sl_err *err)
{
    const char *id = sl_json_str(given, "run", "");
    json_t *run = NULL, *old = NULL, *note = NULL;
    bool was_archived;
    char *json = NULL;
    int64_t n;
    int rc = find(c, id, &n, &was_archived, err);

    if (rc || (was_archived && !archived))
        return rc;
    if (!*sl_json_str(given, "state", ""))
        return n ? forget(c, n, err) : 0;
    run = json_copy((json_t *)(uintptr_t)given);
    json_object_del(run, "spec");
    json_object_del(run, "log_tail");
    json_object_del(run, "waiting_for"); /* follows from more than the run: asked for when it is shown */
    json_object_del(run, "notes");
    json_object_del(run, "tags");
    if (n)
        rc = row_of(c, n, &old, &note, err);
    else
        rc = sl_archive_note(x->archive, id, &note, err);
    if (!rc && !(old && was_archived == archived && json_equal(old, run))) {
        json = sl_json_dump(run);
        rc = json ? put_columns(c, n, run, archived, &n, err)
                  : sl_err_set(err, SL_NOMEM, "out of memory");
        if (!rc)
            rc = put_texts(c, n, run, json, note, err);
    }
    free(json);
    json_decref(old);
    json_decref(note);
    json_decref(run);
    return rc;
}

int sl_runs_index_put(struct sl_runs_index *x, const json_t *runs, bool archived, struct sl_err *err)
{
    struct sl_db_conn *c;
    json_t *run;
    size_t i;
    int rc = sl_runs_index_begin(x, true, &c, err);

    if (rc)
        return rc;
    json_array_foreach(runs, i, run)
        if (!rc)
            rc = put_one(x, c, run, archived, err);
    return sl_db_end(c, rc, err);
}

int sl_runs_index_note(struct sl_runs_index *x, const char *run, const json_t *note, struct sl_err *err)
{
    struct sl_db_conn *c;
    json_t *old = NULL, *old_note = NULL;
    bool archived;
    int64_t n;
    int rc = sl_runs_index_begin(x, true, &c, err);

    if (rc)
        return rc;
    rc = find(c, run, &n, &archived, err);
    if (!rc && n)
        rc = row_of(c, n, &old, &old_note, err);
    if (!rc && n && !json_equal(old_note, note)) {
        char *json = sl_json_dump(old);
        rc = json ? put_texts(c, n, old, json, note, err) : sl_err_set(err, SL_NOMEM, "out of memory");
        free(json);
    }
    json_decref(old);
    json_decref(old_note);
    return sl_db_end(c, rc, err);
}

int sl_runs_index_remove(struct sl_runs_index *x, const json_t *ids, struct sl_err *err)
{
    struct sl_db_conn *c;
    json_t *id;
    size_t i;
    int rc = sl_runs_index_begin(x, true, &c, err);

    if (rc)
        return rc;
    json_array_foreach(ids, i, id) {
        bool archived;
        int64_t n = 0;
        if (!rc)
            rc = find(c, json_string_value(id), &n, &archived, err);
        if (!rc && n)
            rc = forget(c, n, err);
    }
    return sl_db_end(c, rc, err);
}

/* ---- small readings -------------------------------------------------------------------------- */

/* The first column of each row as a list of texts. */
static int ids_of(struct sl_db_conn *c, sqlite3_stmt *s, json_t **ret_ids,
                  struct sl_err *err)
{
    json_t *ids = json_array();
    int rc;

    while ((rc = sl_db_step(c, s, err)) > 0)
        json_array_append_new(ids, json_string((const char *)sqlite3_column_text(s, 0)));
    rc = sl_db_end(c, rc, err);
    if (rc)
        json_decref(ids);
    else
        *ret_ids = ids;
    return rc;
}

/* The ids that a statement of two numbers finds. */
static int ids_by_numbers(struct sl_runs_index *x, const char *sql, int64_t one, int64_t two, json_t **ret_ids,
                          struct sl_err *err)
{
    struct sl_db_conn *c;
    sqlite3_stmt *s;
    int rc = sl_runs_index_begin(x, false, &c, err);

    if (rc)
        return rc;
    s = sl_db_stmt(c, sql, err);
    if (!s)
        return sl_db_end(c, bad(), err);
    sqlite3_bind_int64(s, 1, one);
    sqlite3_bind_int64(s, 2, two);
    return ids_of(c, s, ret_ids, err);
}

int sl_runs_index_old(struct sl_runs_index *x, int64_t before_ms, int most, json_t **ret_ids,
                      struct sl_err *err)
{
    return ids_by_numbers(x, "SELECT run FROM runs WHERE finished < ?1 AND archived ORDER BY finished LIMIT ?2",
                          before_ms, most, ret_ids, err);
}

int sl_runs_index_archived(struct sl_runs_index *x, const char *prefix, json_t **ret_ids,
                           struct sl_err *err)
{
    struct sl_db_conn *c;
    sqlite3_stmt *s;
    char end[40];
    int rc = sl_runs_index_begin(x, false, &c, err);

    if (rc)
        return rc;
    snprintf(end, sizeof end, "%.32sg", prefix); /* behind every digit */
    s = sl_db_stmt(c, "SELECT run FROM runs WHERE run >= ?1 AND run < ?2 AND archived ORDER BY run", err);
    if (!s)
        return sl_db_end(c, bad(), err);
    sl_db_text(s, 1, prefix);
    sl_db_text(s, 2, end);
    return ids_of(c, s, ret_ids, err);
}

int sl_runs_index_live(struct sl_runs_index *x, int64_t from, int64_t below, json_t **ret_ids,
                       struct sl_err *err)
{
    return ids_by_numbers(x, "SELECT run FROM runs WHERE seq >= ?1 AND seq < ?2 AND NOT archived", from, below,
                          ret_ids, err);
}

int sl_runs_index_newest(struct sl_runs_index *x, int64_t *ret_seq, struct sl_err *err)
{
    struct sl_db_conn *c;
    sqlite3_stmt *s;
    int64_t seq = 0;
    int rc = sl_runs_index_begin(x, false, &c, err);

    if (rc)
        return rc;
    s = sl_db_stmt(c, "SELECT max(seq) FROM runs", err);
    rc = s ? sl_db_step(c, s, err) : bad();
    if (rc > 0) {
        seq = sqlite3_column_int64(s, 0);
        sqlite3_reset(s);
        rc = 0;
    }
    rc = sl_db_end(c, rc, err);
    if (!rc)
        *ret_seq = seq;
    return rc;
}
