/* Pages of the index.
 *
 * What is asked for besides an order becomes a set of runs, one bit each: every condition reads an index of its own
 * and takes bits away, which costs the same whichever are combined, and counts what matches. The page is a walk along
 * the order's index from the cursor on, that leaves out what has no bit; of a few runs, these are sorted instead. */
#include "base/json.h"
#include "server/runs_index_priv.h"
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define FEW 500 /* sorted by SQLite */

static const struct sort {
    const char *name, *column;
} sorts[] = {
    {"created", "seq"},         {"finished", "finished"}, {"name", "name"}, {"state", "state"},
    {"queue", "queue"},         {"project", "project"},   {"priority", "priority"},
    {"user", "user"},           {"duration", "duration"}, {"loss", "loss"}, {"val_loss", "val_loss"},
};

const char *sl_runs_index_sorts(void)
{
    return "created, finished, name, state, queue, project, priority, user, duration, loss, val_loss";
}

struct place { /* behind which the page begins */
    bool there;
    bool nulls; /* among those without the value */
    json_t *value;
    int64_t seq, n;
};

/* ---- cursors --------------------------------------------------------------------------------- */

static int bad_cursor(const char *why, struct sl_err *err)
{
    return sl_err_set(err, SL_SPEC, "cursor: %s; ask for the first page again, without one", why);
}

static char *encode(json_t *cursor_stolen)
{
    char *text = sl_json_dump(cursor_stolen), *out = NULL;
    size_t len = text ? strlen(text) : 0;

    json_decref(cursor_stolen);
    if (text)
        out = malloc(4 * ((len + 2) / 3) + 1);
    if (out)
        EVP_EncodeBlock((unsigned char *)out, (const unsigned char *)text, (int)len);
    for (char *p = out; p && *p; p++) /* as a URL has it */
        *p = *p == '+' ? '-' : *p == '/' ? '_' : *p == '=' ? '.' : *p;
    free(text);
    return out;
}

static int decode(const char *cursor, const char *sort, struct place *ret_place, struct sl_err *err)
{
    char text[SL_RUNS_CURSOR_MAX + 4], plain[SL_RUNS_CURSOR_MAX + 4];
    size_t len = strlen(cursor);
    json_t *j = NULL;
    int n = -1;

    if (len <= SL_RUNS_CURSOR_MAX) {
        for (size_t i = 0; i <= len; i++)
            text[i] = cursor[i] == '-' ? '+' : cursor[i] == '_' ? '/' : cursor[i] == '.' ? '=' : cursor[i];
        n = EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)text, (int)len);
    }
    if (n > 0) {
        for (size_t i = len; i && text[i - 1] == '='; i--)
            n--;
        j = n > 0 ? json_loadb(plain, (size_t)n, 0, NULL) : NULL;
    }
    const char *for_sort = json_string_value(json_array_get(j, 0));
    json_t *value = json_array_get(j, 1);
    if (json_array_size(j) != 4 || !for_sort || !json_is_integer(json_array_get(j, 2)) ||
        !json_is_integer(json_array_get(j, 3)) || json_is_object(value) || json_is_array(value)) {
        json_decref(j);
        return bad_cursor("not one of this server's", err);
    }
    if (strcmp(for_sort, sort) != 0) {
        int rc = sl_err_set(err, SL_SPEC,
                            "cursor: it is one of a list sorted by %.40s, and this one is sorted by %.40s; ask for "
                            "the first page again, without one", for_sort, sort);
        json_decref(j);
        return rc;
    }
    *ret_place = (struct place){true, json_is_null(value), json_incref(value),
                                json_integer_value(json_array_get(j, 2)),
                                json_integer_value(json_array_get(j, 3))};
    json_decref(j);
    return 0;
}

/* ---- the walk -------------------------------------------------------------------------------- */

struct walk {
    struct sl_db_conn *c;
    const char *column;
    bool down, by_seq;
    const struct sl_runs_set *set;
    const char *few; /* NULL: along the index */
    const struct place *from;
    int64_t below;
    int most;
    struct found {
        int64_t n, seq;
        json_t *value;
    } found[SL_RUNS_PAGE_MAX + 1];
    int n_found;
};

static json_t *value_of(sqlite3_stmt *s, int column)
{
    switch (sqlite3_column_type(s, column)) {
    case SQLITE_INTEGER:
        return json_integer(sqlite3_column_int64(s, column));
    case SQLITE_FLOAT:
        return json_real(sqlite3_column_double(s, column));
    case SQLITE_TEXT:
        return json_string((const char *)sqlite3_column_text(s, column));
    default:
        return json_null();
    }
}

static void bind_value(sqlite3_stmt *s, int at, const json_t *value)
{
    if (json_is_integer(value))
        sqlite3_bind_int64(s, at, json_integer_value(value));
    else if (json_is_real(value))
        sqlite3_bind_double(s, at, json_real_value(value));
    else
        sl_db_text(s, at, json_string_value(value));
}

/* Those with the value, or those without. */
static int walk(struct walk *w, bool nulls, struct sl_err *err)
{
    const char *way = w->down ? "DESC" : "ASC", *beyond = w->down ? "<" : ">";
    bool from = w->from->there && w->from->nulls == nulls;
    char sql[1024], start[160] = "", order[160], source[160];
    sqlite3_stmt *s;
    int rc;

    if (w->by_seq || nulls)
        snprintf(order, sizeof order, "seq %s, n %s", way, way);
    else
        snprintf(order, sizeof order, "%s %s, seq %s, n %s", w->column, way, way, way);
    if (from && (w->by_seq || nulls))
        snprintf(start, sizeof start, " AND (seq, n) %s (?2, ?3)", beyond);
    else if (from)
        snprintf(start, sizeof start, " AND (%s, seq, n) %s (?1, ?2, ?3)", w->column, beyond);
    if (w->few)
        snprintf(source, sizeof source, "WHERE n IN (SELECT value FROM json_each(?4))");
    else
        snprintf(source, sizeof source, "INDEXED BY runs_%s WHERE 1", w->column);
    snprintf(sql, sizeof sql, "SELECT n, seq, %s FROM runs %s AND %s IS %sNULL%s%s ORDER BY %s", w->column,
             source, w->column, nulls ? "" : "NOT ", start, w->below ? " AND seq < ?5" : "", order);
    s = sl_db_stmt(w->c, sql, err);
    if (!s)
        return SL_IO;
    if (from) {
        if (!w->by_seq && !nulls)
            bind_value(s, 1, w->from->value);
        sqlite3_bind_int64(s, 2, w->from->seq);
        sqlite3_bind_int64(s, 3, w->from->n);
    }
    if (w->few)
        sl_db_text(s, 4, w->few);
    if (w->below)
        sqlite3_bind_int64(s, 5, w->below);
    while (w->n_found < w->most && (rc = sl_db_step(w->c, s, err)) > 0)
        if (sl_runs_set_has(w->set, sqlite3_column_int64(s, 0)))
            w->found[w->n_found++] = (struct found){sqlite3_column_int64(s, 0), sqlite3_column_int64(s, 1),
                                                    value_of(s, 2)};
    rc = w->n_found < w->most ? rc : 0;
    sqlite3_reset(s);
    return rc;
}

static int rows_of(struct walk *w, int n, json_t *runs, struct sl_err *err)
{
    int rc = 0;

    for (int i = 0; !rc && i < n; i++) {
        sqlite3_stmt *s = sl_db_stmt(w->c, "SELECT json, note FROM runs_row WHERE n = ?1", err);
        if (!s)
            return SL_IO;
        sqlite3_bind_int64(s, 1, w->found[i].n);
        rc = sl_db_step(w->c, s, err);
        if (rc > 0) {
            json_t *run = json_loads((const char *)sqlite3_column_text(s, 0), 0, NULL);
            json_t *note = json_loads((const char *)sqlite3_column_text(s, 1), 0, NULL);
            json_object_update(run, note);
            json_object_set_new(run, "waiting_for", json_null());
            json_array_append_new(runs, run);
            json_decref(note);
            rc = 0;
        }
        sqlite3_reset(s);
    }
    return rc;
}

static json_t *next_of(struct walk *w, const char *sort, int limit)
{
    const struct found *last = &w->found[limit - 1];
    char *cursor;
    json_t *next;

    if (w->n_found <= limit)
        return json_null();
    cursor = encode(json_pack("[s, O, I, I]", sort, last->value, (json_int_t)last->seq, (json_int_t)last->n));
    next = cursor ? json_string(cursor) : NULL;
    free(cursor);
    return next ? next : json_null();
}

static int query_in(struct walk *w, const struct sl_runs_query *q, const char *sort, json_t **ret_page,
                    struct sl_err *err)
{
    struct sl_runs_set set = {NULL, 0};
    json_t *runs = json_array();
    char *few = NULL;
    int64_t total = 0;
    int rc = sl_runs_set_of(w->c, q, &set, &total, err);

    w->set = &set;
    w->most = q->limit + 1;
    w->below = q->below;
    if (!rc && set.bits && total <= FEW) {
        few = sl_runs_set_numbers(&set);
        rc = few ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    }
    w->few = few;
    if (!rc && !(w->from->there && w->from->nulls))
        rc = walk(w, false, err);
    if (!rc && w->n_found < w->most && !w->by_seq)
        rc = walk(w, true, err);
    int n = w->n_found < q->limit ? w->n_found : q->limit;
    if (!rc)
        rc = rows_of(w, n, runs, err);
    free(few);
    free(set.bits);
    if (rc) {
        json_decref(runs);
        return rc;
    }
    char seq[24];
    snprintf(seq, sizeof seq, "%lld", (long long)(n ? w->found[n - 1].seq : 0));
    *ret_page = json_pack("{s:o, s:I, s:o, s:o}", "runs", runs, "total", (json_int_t)total, "next_cursor",
                          next_of(w, sort, q->limit), "next",
                          w->n_found > q->limit && !strcmp(sort, "-created") ? json_string(seq) : json_null());
    return 0;
}

int sl_runs_index_query(struct sl_runs_index *x, const struct sl_runs_query *q, json_t **ret_page,
                        struct sl_err *err)
{
    const char *sort = q->sort && *q->sort ? q->sort : "-created";
    const struct sort *by = NULL;
    struct place from = {0};
    struct walk *w;
    json_t *page = NULL;
    int rc = 0;

    for (size_t i = 0; i < sizeof sorts / sizeof *sorts; i++)
        if (!strcmp(sort + (*sort == '-'), sorts[i].name))
            by = &sorts[i];
    if (!by)
        return sl_err_set(err, SL_SPEC, "sort: %.40s is none of %s, each with or without - before it", sort,
                          sl_runs_index_sorts());
    if (q->cursor && *q->cursor)
        rc = decode(q->cursor, sort, &from, err);
    if (rc)
        return rc;
    w = calloc(1, sizeof *w);
    if (!w) {
        json_decref(from.value);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    w->column = by->column;
    w->by_seq = !strcmp(by->column, "seq");
    w->down = *sort == '-';
    w->from = &from;
    rc = sl_runs_index_begin(x, false, &w->c, err);
    if (!rc) {
        rc = query_in(w, q, sort, &page, err);
        rc = sl_db_end(w->c, rc, err);
        if (rc)
            json_decref(page);
    }
    for (int i = 0; i < w->n_found; i++)
        json_decref(w->found[i].value);
    free(w);
    json_decref(from.value);
    if (!rc)
        *ret_page = page;
    return rc;
}
