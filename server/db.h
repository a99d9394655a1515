/* SQLite for the server's read model: a file that all follows from elsewhere, so that one which is damaged or of another
 * form is thrown away and made anew.
 *
 * One writer at a time, some readers beside it that see what is committed. Statements stay prepared. A commit survives
 * the process's end; after a power cut the last ones may be missing, never a part of one. Functions
 * block; may be called from any thread. */
#ifndef SL_SERVER_DB_H
#define SL_SERVER_DB_H
#include "base/err.h"
#include <sqlite3.h>
#include <stdbool.h>

#define SL_DB_READERS 4 /* at once; one more waits */
#define SL_DB_STATEMENTS_MAX 48 /* kept by a connection */

struct sl_db;
struct sl_db_conn;

/* schema is run in an empty file; form is its version. *ret_fresh: it is empty now. */
int sl_db_open(const char *path, const char *schema, int form, struct sl_db **ret_db,
               bool *ret_fresh, struct sl_err *err);
void sl_db_close(struct sl_db *db); /* NULL-safe */
/* True once a statement has found the file damaged: make it anew. */
bool sl_db_damaged(const struct sl_db *db);

/* A transaction; end takes it back when rc is not 0, and returns rc or its own error. */
int sl_db_begin(struct sl_db *db, bool write, struct sl_db_conn **ret_conn, struct sl_err *err);
int sl_db_end(struct sl_db_conn *c, int rc, struct sl_err *err);

/* A statement of the connection, without values; sql must stay as it is. NULL and an error: it cannot be prepared. */
sqlite3_stmt *sl_db_stmt(struct sl_db_conn *c, const char *sql, struct sl_err *err);
void sl_db_text(sqlite3_stmt *s, int at, const char *text); /* borrowed until it has run; NULL: null */
/* 1: a row, 0: none more (s is ready for its next use), negative: an error. Reset s when rows are left. */
int sl_db_step(struct sl_db_conn *c, sqlite3_stmt *s, struct sl_err *err);
/* Runs to its end and resets. */
int sl_db_run(struct sl_db_conn *c, sqlite3_stmt *s, struct sl_err *err);

#endif
