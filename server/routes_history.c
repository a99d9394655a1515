/* Lists of all runs, and what people write about them.
 *
 *   GET   /api/v1/runs?limit=&cursor=&sort=[-]KEY&project=&queue=&state=&tag=&q=
 *         {"runs", "total", "next_cursor", "live"}; runs_index.h has the orders. Also below=SEQ and "next", for newest first.
 *   PATCH /api/v1/runs/{run}     {"notes": text, "tags": [texts]}, either: answers both as they are now
 *   POST  /api/v1/reindex        202; an administrator's. GET: how the last one went (history.h) */
#include "base/json.h"
#include "server/runs.h"
#include "server/scope.h"
#include <stdlib.h>
#include <string.h>

#define NOTES_MAX 20000 /* bytes */
#define TAGS_MAX 20
#define TAG_MAX 64 /* bytes */

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

static void complain(json_t *errors, const char *path, const char *detail)
{
    json_array_append_new(errors, json_pack("{s:s, s:s}", "path", path, "detail", detail));
}

static bool is_tag(const json_t *tag)
{
    const char *text = json_string_value(tag);
    size_t len = json_string_length(tag);

    if (!text || !len || len > TAG_MAX || strlen(text) != len)
        return false;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] <= ' ' || text[i] == ',' || text[i] == 0x7f)
            return false;
    return true;
}

/* Each tag once. New reference, NULL: there are none given. */
static json_t *read_tags(const json_t *given, json_t *errors)
{
    json_t *tags = json_array(), *tag, *seen = json_object();
    size_t i;
    bool good = json_is_array(given) && json_array_size(given) <= TAGS_MAX;

    json_array_foreach(good ? given : NULL, i, tag) {
        good &= is_tag(tag);
        if (good && !json_object_get(seen, json_string_value(tag))) {
            json_object_set_new(seen, json_string_value(tag), json_true());
            json_array_append(tags, tag);
        }
    }
    if (!good)
        complain(errors, "tags", "expected at most 20 texts of 1 to 64 bytes without blanks and commas");
    json_decref(seen);
    return tags;
}

static void patch(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const json_t *body = sl_http_json(req), *notes = json_object_get(body, "notes");
    const json_t *given = json_object_get(body, "tags");
    const char *run = sl_http_param(req, "run"), *key;
    json_t *errors = json_array(), *tags = given ? read_tags(given, errors) : NULL, *value, *found, *note;
    struct sl_err err = SL_ERR_INIT;

    json_object_foreach((json_t *)(uintptr_t)body, key, value)
        if (strcmp(key, "notes") != 0 && strcmp(key, "tags") != 0)
            complain(errors, key, "cannot be changed: notes and tags can");
    if (notes && (!json_is_string(notes) || json_string_length(notes) > NOTES_MAX ||
                  strlen(json_string_value(notes)) != json_string_length(notes)))
        complain(errors, "notes", "expected a text of at most 20000 bytes");
    if (!json_is_object(body) || (!notes && !given && !json_array_size(errors)))
        complain(errors, "", "expected an object with notes, tags or both");
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
