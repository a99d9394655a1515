/* SQLite with our errors, for small databases whose calls one mutex orders. */
#ifndef SL_SERVER_SQL_H
#define SL_SERVER_SQL_H
#include "base/err.h"
#include <sqlite3.h>

/* SL_IO with the file's name; db may be NULL: out of memory. */
int sl_sql_failed(sqlite3 *db, struct sl_err *err);
/* Opens or makes DATA/name, readable by us alone, and runs set_up. A database that could not be opened is closed. */
int sl_sql_open(const char *data_dir, const char *name, const char *set_up, sqlite3 **ret_db, struct sl_err *err);
/* Prepares and binds: per letter of types an argument, "t" a text or NULL, "i" an int64_t. */
int sl_sql_prepare(sqlite3 *db, sqlite3_stmt **ret_s, struct sl_err *err, const char *sql, const char *types, ...);
/* Steps once and ends; ret_changes may be NULL. */
int sl_sql_finish(sqlite3 *db, sqlite3_stmt *s, int *ret_changes, struct sl_err *err);
/* Both. */
int sl_sql_run(sqlite3 *db, struct sl_err *err, const char *sql, const char *types, ...);
/* A column of the row; never NULL. */
const char *sl_sql_text(sqlite3_stmt *s, int column);

#endif
