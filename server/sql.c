#include "server/sql.h"
#include "base/file.h"
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

int sl_sql_failed(sqlite3 *db, struct sl_err *err)
{
    const char *path = db ? sqlite3_db_filename(db, "main") : NULL, *slash = path ? strrchr(path, '/') : NULL;

    return sl_err_set(err, SL_IO, "%s: %s", slash ? slash + 1 : "database", db ? sqlite3_errmsg(db) : "out of memory");
}

int sl_sql_open(const char *data_dir, const char *name, const char *set_up, sqlite3 **ret_db, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    sqlite3 *db = NULL;
    int rc = sl_path(path, err, "%s/%s", data_dir, name), fd;

    if (rc)
        return rc;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* it may hold secrets */
    if (fd < 0)
        return sl_err_errno(err, "opening %s", path);
    close(fd);
    if (sqlite3_open(path, &db) != SQLITE_OK || sqlite3_exec(db, set_up, NULL, NULL, NULL) != SQLITE_OK) {
        rc = sl_sql_failed(db, err);
        sqlite3_close(db);
        return rc;
    }
    *ret_db = db;
    return 0;
}

static int prepare(sqlite3 *db, sqlite3_stmt **ret_s, struct sl_err *err, const char *sql, const char *types, va_list ap)
{
    if (sqlite3_prepare_v2(db, sql, -1, ret_s, NULL) != SQLITE_OK)
        return sl_sql_failed(db, err);
    for (int i = 0; types[i]; i++)
        if (types[i] == 't')
            sqlite3_bind_text(*ret_s, i + 1, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
        else
            sqlite3_bind_int64(*ret_s, i + 1, va_arg(ap, int64_t));
    return 0;
}

int sl_sql_prepare(sqlite3 *db, sqlite3_stmt **ret_s, struct sl_err *err, const char *sql, const char *types, ...)
{
    va_list ap;
    int rc;

    va_start(ap, types);
    rc = prepare(db, ret_s, err, sql, types, ap);
    va_end(ap);
    return rc;
}

int sl_sql_run(sqlite3 *db, struct sl_err *err, const char *sql, const char *types, ...)
{
    sqlite3_stmt *s;
    va_list ap;
    int rc;

    va_start(ap, types);
    rc = prepare(db, &s, err, sql, types, ap);
    va_end(ap);
    return rc ? rc : sl_sql_finish(db, s, NULL, err);
}

int sl_sql_finish(sqlite3 *db, sqlite3_stmt *s, int *ret_changes, struct sl_err *err)
{
    int step = sqlite3_step(s), rc = 0;

    if (step != SQLITE_DONE && step != SQLITE_ROW)
        rc = sl_sql_failed(db, err);
    sqlite3_finalize(s);
    if (!rc && ret_changes)
        *ret_changes = sqlite3_changes(db);
    return rc;
}

const char *sl_sql_text(sqlite3_stmt *s, int column)
{
    const char *text = (const char *)sqlite3_column_text(s, column);

    return text ? text : "";
}
