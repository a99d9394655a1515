/* Lists of all runs, and what people write about them.
 *
 *   GET   /api/v1/runs?limit=&cursor=&sort=[-]KEY&project=&queue=&state=&tag=&q=
 *         {"runs", "total", "next_cursor", "live"}; runs_index.h has the orders. Also below=SEQ and "next", for newest first.
 *   PATCH /api/v1/runs/{run}     {"notes": text, "tags": [texts]}, either: answers both as they are now
 *   POST  /api/v1/reindex        202; an administrator's. GET: how the last one went (history.h) */
#include "base/json.h"
#include "server/note.h"
#include "server/runs.h"
#include "server/scope.h"
#include <stdlib.h>
#include <string.h>

static bool is_stopping(void *arg)
{
    const struct sl_runs *runs = arg;

    return sl_http_is_stopping(runs->server->http);
}

void sl_history_runs(void *arg)
{
    struct sl_runs *runs = arg;

    sl_history_tick(runs->history, is_stopping, runs);
}

/* ---- lists ----------------------------------------------------------------------------------- */

static bool read_below(struct sl_http_req *req, struct sl_runs_query *query)
{
    const char *below = sl_http_query(req, "below");

    if (!below)
        return true;
    if (!*below || strlen(below) > 16 || strspn(below, "0123456789") != strlen(below) ||
        (query->sort && *query->sort && strcmp(query->sort, "-created") != 0)) {
        sl_http_reply_problem(req, 422, "not valid", NULL,
                              "below: not a place in the list of runs, newest first; use cursor for other orders");
        return false;
    }
    query->below = atoll(below);
    return true;
}

static void list(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    struct sl_runs_query query = {.sort = sl_http_query(req, "sort"),
                                  .cursor = sl_http_query(req, "cursor"),
                                  .limit = (int)sl_http_query_int(req, "limit", 50, 1, SL_RUNS_PAGE_MAX),
                                  .project = sl_http_query(req, "project"),
                                  .queue = sl_http_query(req, "queue"),
                                  .state = sl_http_query(req, "state"),
                                  .tag = sl_http_query(req, "tag"),
                                  .q = sl_http_query(req, "q"),
                                  .projects = sl_http_identity(req)->projects};
    json_t *page;
    int rc;

    if (query.project && *query.project && !sl_scope_project(req, &query.project))
        return;
    if (!read_below(req, &query))
        return;
    rc = sl_history_list(runs->history, &query, &page, &err);
    if (rc == SL_SPEC)
        sl_http_reply_problem(req, 400, "not a list of runs", NULL, "%s", err.msg);
    else if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, page);
}

/* ---- notes ----------------------------------------------------------------------------------- */

static void patch(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const json_t *body = sl_http_json(req), *notes = NULL;
    const char *run = sl_http_param(req, "run"), *key;
    json_t *errors = json_array(), *tags = NULL, *value, *found, *note;
    struct sl_err err = SL_ERR_INIT;

    sl_note_read(body, &notes, &tags, errors);
    json_object_foreach((json_t *)(uintptr_t)body, key, value)
        if (strcmp(key, "notes") != 0 && strcmp(key, "tags") != 0)
            sl_http_complain(errors, key, "cannot be changed: notes and tags can");
    if (!json_is_object(body) || (!notes && !tags && !json_array_size(errors)))
        sl_http_complain(errors, "", "expected an object with notes, tags or both");
    if (json_array_size(errors)) {
        sl_http_reply_problem(req, 422, "not valid", errors, "notes and tags stay as they were");
        json_decref(tags);
        return;
    }
    json_decref(errors);
    if (sl_runs_find(runs, run, &found, &err)) {
        sl_http_reply_err(req, &err, NULL);
    } else {
        json_decref(found);
        if (sl_history_note(runs->history, run, notes, tags, &note, &err))
            sl_http_reply_err(req, &err, NULL);
        else
            sl_http_reply_json(req, 200, note);
    }
    json_decref(tags);
}

/* ---- reindex --------------------------------------------------------------------------------- */

static void reindexed(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;

    sl_http_reply_json(req, 200, sl_history_reindexed(runs->history));
}

static void reindex(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;

    if (sl_history_reindex(runs->history, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 202, sl_history_reindexed(runs->history));
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/runs", .scope = SL_SCOPE_HANDLER, .handle = list},
    {.method = "PATCH", .pattern = "/api/v1/runs/{run}", .body = SL_BODY_JSON, .handle = patch},
    {.method = "GET", .pattern = "/api/v1/reindex", .role = SL_ROLE_ADMIN, .handle = reindexed},
    {.method = "POST", .pattern = "/api/v1/reindex", .role = SL_ROLE_ADMIN, .handle = reindex},
};

int sl_history_routes(struct sl_runs *runs, struct sl_err *err)
{
    return sl_http_add(runs->server->http, routes, sizeof routes / sizeof *routes, runs, err);
}
