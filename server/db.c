#include "server/db.h"
#include "base/file.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUSY_MS 10000
#define CACHE_KIB 4096 /* of a connection */

struct sl_db_conn {
    struct sl_db *db;
    sqlite3 *sql;
    struct {
        char *text;
        sqlite3_stmt *stmt;
    } kept[SL_DB_STATEMENTS_MAX];
    int next; /* the one to give up */
    bool busy;
};

struct sl_db {
    char *path;
    pthread_mutex_t mutex;
    pthread_cond_t given_back;
    struct sl_db_conn conns[1 + SL_DB_READERS]; /* the first one writes */
    atomic_bool damaged;
};

static int failed(struct sl_db_conn *c, const char *what, struct sl_err *err)
{
    int code = c->sql ? sqlite3_errcode(c->sql) : SQLITE_NOMEM;

    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB)
        c->db->damaged = true;
    return sl_err_set(err, SL_IO, "%s: %.200s: %s", c->db->path, what,
                      c->sql ? sqlite3_errmsg(c->sql) : "out of memory");
}

static int exec(struct sl_db_conn *c, const char *sql, struct sl_err *err)
{
    return sqlite3_exec(c->sql, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : failed(c, sql, err);
}

static void close_conn(struct sl_db_conn *c)
{
    for (int i = 0; i < SL_DB_STATEMENTS_MAX; i++) {
        sqlite3_finalize(c->kept[i].stmt);
        free(c->kept[i].text);
    }
    memset(c->kept, 0, sizeof c->kept);
    sqlite3_close(c->sql);
    c->sql = NULL;
}

/* ---- statements ------------------------------------------------------------------------------ */

sqlite3_stmt *sl_db_stmt(struct sl_db_conn *c, const char *sql, struct sl_err *err)
{
    int at = c->next;

    for (int i = 0; i < SL_DB_STATEMENTS_MAX; i++)
        if (c->kept[i].text && !strcmp(c->kept[i].text, sql)) {
            sqlite3_reset(c->kept[i].stmt);
            sqlite3_clear_bindings(c->kept[i].stmt);
            return c->kept[i].stmt;
        }
    sqlite3_finalize(c->kept[at].stmt);
    free(c->kept[at].text);
    c->kept[at].stmt = NULL;
    c->kept[at].text = strdup(sql);
    if (!c->kept[at].text ||
        sqlite3_prepare_v2(c->sql, sql, -1, &c->kept[at].stmt, NULL) != SQLITE_OK) {
        failed(c, sql, err);
        free(c->kept[at].text);
        c->kept[at].text = NULL;
        return NULL;
    }
    c->next = (at + 1) % SL_DB_STATEMENTS_MAX;
    return c->kept[at].stmt;
}

void sl_db_text(sqlite3_stmt *s, int at, const char *text)
{
    sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC);
}

int sl_db_step(struct sl_db_conn *c, sqlite3_stmt *s, struct sl_err *err)
{
    int step = sqlite3_step(s), rc = 0;

    if (step == SQLITE_ROW)
        return 1;
    if (step != SQLITE_DONE)
        rc = failed(c, sqlite3_sql(s), err);
    sqlite3_reset(s);
    return rc;
}

int sl_db_run(struct sl_db_conn *c, sqlite3_stmt *s, struct sl_err *err)
{
    int rc;

    while ((rc = sl_db_step(c, s, err)) > 0)
        ;
    return rc;
}

/* ---- transactions ---------------------------------------------------------------------------- */

static struct sl_db_conn *take(struct sl_db *db, bool write)
{
    struct sl_db_conn *c = NULL;

    pthread_mutex_lock(&db->mutex);
    for (;;) {
        for (int i = write ? 0 : 1; i < (write ? 1 : 1 + SL_DB_READERS) && !c; i++)
            c = db->conns[i].busy ? NULL : &db->conns[i];
        if (c)
            break;
        pthread_cond_wait(&db->given_back, &db->mutex);
    }
    c->busy = true;
    pthread_mutex_unlock(&db->mutex);
    return c;
}

static void give(struct sl_db_conn *c)
{
    struct sl_db *db = c->db;

    pthread_mutex_lock(&db->mutex);
    c->busy = false;
    pthread_cond_broadcast(&db->given_back);
    pthread_mutex_unlock(&db->mutex);
}

int sl_db_begin(struct sl_db *db, bool write, struct sl_db_conn **ret_conn, struct sl_err *err)
{
    struct sl_db_conn *c = take(db, write);
    int rc = exec(c, write ? "BEGIN IMMEDIATE" : "BEGIN", err);

    if (rc)
        give(c);
    else
        *ret_conn = c;
    return rc;
}

int sl_db_end(struct sl_db_conn *c, int rc, struct sl_err *err)
{
    for (int i = 0; i < SL_DB_STATEMENTS_MAX; i++) /* one left in its middle would hold the transaction */
        sqlite3_reset(c->kept[i].stmt);
    if (!rc)
        rc = exec(c, "COMMIT", err);
    if (rc)
        sqlite3_exec(c->sql, "ROLLBACK", NULL, NULL, NULL);
    give(c);
    return rc;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int open_conn(struct sl_db_conn *c, bool write, struct sl_err *err)
{
    char set_up[160];

    if (sqlite3_open_v2(c->db->path, &c->sql,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (write ? SQLITE_OPEN_CREATE : 0),
                        NULL) != SQLITE_OK)
        return failed(c, "opening", err);
    sqlite3_busy_timeout(c->sql, BUSY_MS);
    snprintf(set_up, sizeof set_up,
             "PRAGMA cache_size = -%d; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
             "PRAGMA query_only = %d;",
             CACHE_KIB, !write);
    return exec(c, set_up, err);
}

static int form_of(struct sl_db_conn *c)
{
    sqlite3_stmt *s = NULL;
    int form = -1;

    if (sqlite3_prepare_v2(c->sql, "PRAGMA user_version", -1, &s, NULL) == SQLITE_OK &&
        sqlite3_step(s) == SQLITE_ROW)
        form = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    return form;
}

static bool is_sound(struct sl_db_conn *c)
{
    sqlite3_stmt *s = NULL;
    bool sound = sqlite3_prepare_v2(c->sql, "PRAGMA quick_check(1)", -1, &s, NULL) == SQLITE_OK &&
                 sqlite3_step(s) == SQLITE_ROW &&
                 !strcmp((const char *)sqlite3_column_text(s, 0), "ok");

    sqlite3_finalize(s);
    return sound;
}

static void remove_files(const char *path)
{
    static const char *const ends[] = {"", "-wal", "-shm"};
    char file[SL_PATH_MAX];

    for (int i = 0; i < 3; i++)
        if (!sl_path(file, NULL, "%s%s", path, ends[i]))
            remove(file);
}

static int open_writer(struct sl_db *db, const char *schema, int form, bool *ret_fresh,
                       struct sl_err *err)
{
    struct sl_db_conn *c = &db->conns[0];
    struct sl_err first = SL_ERR_INIT;
    char set_form[48];
    int rc = open_conn(c, true, &first);

    *ret_fresh = false;
    if (!rc && form_of(c) == form && is_sound(c))
        return 0;
    /* Empty, damaged, or of another form: what it followed from is the truth. */
    close_conn(c);
    remove_files(db->path);
    db->damaged = false;
    rc = open_conn(c, true, err);
    if (!rc)
        rc = exec(c, schema, err);
    snprintf(set_form, sizeof set_form, "PRAGMA user_version = %d", form);
    if (!rc)
        rc = exec(c, set_form, err);
    *ret_fresh = true;
    return rc;
}

int sl_db_open(const char *path, const char *schema, int form, struct sl_db **ret_db,
               bool *ret_fresh, struct sl_err *err)
{
    struct sl_db *db = calloc(1, sizeof *db);
    bool fresh = false;
    int rc;

    if (!db)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_init(&db->mutex, NULL);
    pthread_cond_init(&db->given_back, NULL);
    for (int i = 0; i <= SL_DB_READERS; i++)
        db->conns[i].db = db;
    db->path = strdup(path);
    rc = db->path ? open_writer(db, schema, form, &fresh, err)
                  : sl_err_set(err, SL_NOMEM, "out of memory");
    for (int i = 1; !rc && i <= SL_DB_READERS; i++)
        rc = open_conn(&db->conns[i], false, err);
    if (rc) {
        sl_db_close(db);
        return rc;
    }
    *ret_db = db;
    *ret_fresh = fresh;
    return 0;
}

void sl_db_close(struct sl_db *db)
{
    if (!db)
        return;
    for (int i = SL_DB_READERS; i >= 0; i--) /* the last one takes the log into the file */
        close_conn(&db->conns[i]);
    pthread_cond_destroy(&db->given_back);
    pthread_mutex_destroy(&db->mutex);
    free(db->path);
    free(db);
}

bool sl_db_damaged(const struct sl_db *db)
{
    return db->damaged;
}
