/* Whether two indexes of the runs say the same: both are read in order of the runs' ids. */
#include "base/json.h"
#include "server/runs_index_priv.h"
#include <stdio.h>
#include <string.h>

static const char rows[] =
    "SELECT run, archived, seq, name, project, queue, state, priority, user, finished, duration, loss, val_loss,"
    " json, note, text, (SELECT group_concat(tag, char(10)) FROM (SELECT tag FROM runs_tags AS t WHERE t.n = r.n "
    "ORDER BY tag)) FROM runs AS r LEFT JOIN runs_row AS w ON w.n = r.n LEFT JOIN runs_text AS x ON x.n = r.n "
    "ORDER BY run";
#define COLUMNS 17

struct side {
    struct sl_db_conn *conn;
    sqlite3_stmt *s;
    int at; /* 1: on a row, 0: behind the last */
};

static int begin(struct side *d, struct sl_runs_index *x, struct sl_err *err)
{
    int rc = sl_runs_index_begin(x, false, &d->conn, err);

    if (!rc) {
        d->s = sl_db_stmt(d->conn, rows, err);
        rc = d->s ? 0 : SL_IO;
    }
    return rc;
}

static const char *text(const struct side *d, int column)
{
    const char *t = (const char *)sqlite3_column_text(d->s, column);

    return t ? t : "";
}

static int go_on(struct side *d, struct sl_err *err)
{
    d->at = sl_db_step(d->conn, d->s, err);
    return d->at < 0 ? d->at : 0;
}

/* The columns in which two rows differ, with commas; "": none. */
static const char *different(const struct side *a, const struct side *b, char ret[256])
{
    size_t len = 0;

    ret[0] = 0;
    for (int i = 1; i < COLUMNS; i++)
        if (strcmp(text(a, i), text(b, i)) != 0 && len < 200)
            len += (size_t)snprintf(ret + len, 256 - len, "%s%s", len ? ", " : "",
                                    i == COLUMNS - 1 ? "tags" : sqlite3_column_name(a->s, i));
    return ret;
}

static void differs(json_t *list, int *n, const char *run, const char *what, const char *in)
{
    if ((*n)++ < SL_RUNS_DIFFERENCES_MAX)
        json_array_append_new(list, json_pack("{s:s, s:s, s:s*}", "run", run, "what", what, "in", in));
}

int sl_runs_index_compare(struct sl_runs_index *x, struct sl_runs_index *y, json_t **ret_report,
                          struct sl_err *err)
{
    struct side a = {0}, b = {0};
    json_t *list = json_array();
    int n = 0, rc = begin(&a, x, err);
    int64_t runs = 0;
    char in[256];

    if (!rc)
        rc = begin(&b, y, err);
    if (!rc)
        rc = go_on(&a, err);
    if (!rc)
        rc = go_on(&b, err);
    while (!rc && (a.at || b.at)) {
        int order = !a.at ? 1 : !b.at ? -1 : strcmp(text(&a, 0), text(&b, 0));
        runs += order >= 0;
        if (order < 0)
            differs(list, &n, text(&a, 0), "missing", NULL);
        else if (order > 0)
            differs(list, &n, text(&b, 0), "extra", NULL);
        else if (*different(&a, &b, in))
            differs(list, &n, text(&b, 0), "differs", in);
        if (order <= 0)
            rc = go_on(&a, err);
        if (!rc && order >= 0)
            rc = go_on(&b, err);
    }
    if (b.conn)
        rc = sl_db_end(b.conn, rc, err);
    if (a.conn)
        rc = sl_db_end(a.conn, rc, err);
    if (rc)
        json_decref(list);
    else
        *ret_report = json_pack("{s:I, s:i, s:o}", "runs", (json_int_t)runs, "n_differences", n,
                                "differences", list);
    return rc;
}
