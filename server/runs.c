#include "server/runs.h"
#include "server/copies.h"
#include "base/json.h"
#include "base/spec.h"
#include "server/live.h"
#include "server/scope.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Handlers, long polls, the reaper, the archiver, the read model and the live events: none waits for a connection that another one blocks on. */
_Static_assert(SL_QUEUE_CONNECTIONS >= SL_HTTP_HANDLERS + SL_HTTP_WAITERS + 4,
               "fewer Redis connections than threads that use them");

/* False: it has answered that the key is none. */
static bool read_key(struct sl_http_req *req, const char **ret_key)
{
    const char *key = sl_http_header(req, "Idempotency-Key");

    for (const char *p = key; p && (p == key || *p); p++)
        if (!isgraph((unsigned char)*p) || p - key >= SL_QUEUE_TOKEN_MAX) {
            sl_http_reply_problem(
                req, 422, "bad Idempotency-Key", NULL,
                "the header must be 1 to %d printable characters without blanks",
                SL_QUEUE_TOKEN_MAX);
            return false;
        }
    *ret_key = key;
    return true;
}

static void reply_enqueued(struct sl_http_req *req, const char *run, const char *how)
{
    bool is_new = !strcmp(how, "new");

    sl_http_note(req, "new_run", run);
    sl_http_reply_json(req, is_new ? 201 : 200,
                       json_pack("{s:s, s:s}", "run", run, "state", is_new ? "queued" : how));
}

void sl_runs_enqueue(struct sl_runs *runs, struct sl_http_req *req, const json_t *given)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *errors = NULL, *spec = NULL;
    const char *key, *how = "new", *project;
    char run[SL_ID_HEX + 1];
    int rc;

    if (!read_key(req, &key))
        return;
    rc = sl_spec_validate(given, &errors, &err);
    if (!rc && json_array_size(errors)) {
        sl_http_reply_faults(req, "the job spec is not valid", errors, "%zu error%s in the job spec",
                             json_array_size(errors), json_array_size(errors) == 1 ? "" : "s");
        json_decref(errors);
        return;
    }
    json_decref(errors);
    project = sl_json_str(given, "project", "default");
    if (!rc && !sl_scope_project(req, &project))
        return;
    if (!rc)
        rc = sl_scope_spec(sl_http_identity(req), runs->server->store, given, &err);
    if (!rc)
        rc = sl_spec_with_defaults(given, &spec, &err);
    if (!rc && sl_json_str(spec, "outputs.copy_to", NULL) &&
        (rc = sl_copies_check(runs->server->config, sl_json_str(spec, "outputs.copy_to", ""), &err)))
        sl_err_wrap(&err, rc, "outputs.copy_to");
    if (!rc)
        rc = sl_queue_enqueue_by(runs->queue, sl_http_user(req), spec, key, run, &how, &err);
    json_decref(spec);
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        reply_enqueued(req, run, how);
}

static void enqueue(struct sl_http_req *req, void *arg)
{
    sl_runs_enqueue(arg, req, sl_http_json(req));
}

static void sync_run(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    int replicas;

    if (sl_queue_sync(runs->queue, sl_http_param(req, "run"),
                      (int)sl_http_query_int(req, "replicas", 1, 1, 1000),
                      sl_http_query_int(req, "wait_ms", SL_HTTP_WAIT_MAX_MS, 1, SL_HTTP_WAIT_MAX_MS),
                      &replicas, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, json_pack("{s:i}", "replicas", replicas));
}

int sl_runs_find(struct sl_runs *runs, const char *run, json_t **ret_run, struct sl_err *err)
{
    struct sl_err live = SL_ERR_INIT, archived = SL_ERR_INIT;
    int rc = sl_queue_show(runs->queue, run, ret_run, &live);

    if (rc != SL_NOTFOUND && rc != SL_RETRY)
        return rc ? sl_err_set(err, rc, "%s", live.msg) : 0;
    if (!sl_archive_show(runs->archive, run, ret_run, &archived))
        return 0;
    return sl_err_set(err, rc, "%s", live.msg);
}

int sl_runs_project_of(void *runs, const char *run, char ret_project[SL_HTTP_PROJECT_MAX + 1],
                       struct sl_err *err)
{
    json_t *found;
    int rc = sl_runs_find(runs, run, &found, err);

    if (!rc) {
        snprintf(ret_project, SL_HTTP_PROJECT_MAX + 1, "%s",
                 sl_json_str(found, "project", "default"));
        json_decref(found);
    }
    return rc;
}

static void show(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *run, *note;
    int rc = sl_runs_find(runs, sl_http_param(req, "run"), &run, &err);

    if (!rc) {
        rc = sl_archive_note(runs->archive, sl_http_param(req, "run"), &note, &err);
        if (!rc) {
            json_object_update(run, note);
            json_decref(note);
        } else {
            json_decref(run);
        }
    }
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, run);
}

static size_t n_events(const json_t *page)
{
    return json_array_size(json_object_get(page, "events"));
}

static void events(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const char *run = sl_http_param(req, "run"), *after = sl_http_query(req, "after");
    int most = (int)sl_http_query_int(req, "limit", SL_QUEUE_EVENTS_MAX, 1, SL_QUEUE_EVENTS_MAX);
    int64_t wait_ms = sl_http_query_int(req, "wait_ms", 0, 0, SL_HTTP_WAIT_MAX_MS);
    struct sl_err err = SL_ERR_INIT;
    json_t *found = NULL, *archived = NULL, *known;
    int rc;

    if (sl_live_wanted(req)) {
        if (sl_runs_find(runs, run, &known, &err)) {
            sl_http_reply_err(req, &err, NULL);
        } else {
            json_decref(known);
            sl_live_run(runs->live, req, run);
        }
        return;
    }
    if (sl_http_stopping(req))
        wait_ms = 0;
    rc = sl_queue_events(runs->queue, run, after, most, wait_ms, &found, &err);
    /* Redis has none of an archived run, and not the beginning of a long one. */
    if (!rc && (!n_events(found) || sl_json_bool(found, "trimmed", false)))
        rc = sl_archive_events(runs->archive, run, after, most, &archived, &err);
    if (!rc && archived && n_events(archived)) {
        json_decref(found);
        found = archived;
        archived = NULL;
    }
    json_decref(archived);
    if (!rc && !n_events(found)) { /* every run has events: with none at all it may not exist */
        rc = sl_runs_find(runs, run, &known, &err);
        if (!rc)
            json_decref(known);
    }
    if (rc) {
        json_decref(found);
        sl_http_reply_err(req, &err, NULL);
    } else {
        sl_http_reply_json(req, 200, found);
    }
}

static void cancel(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const char *run = sl_http_param(req, "run"), *state;
    struct sl_err err = SL_ERR_INIT;

    if (sl_queue_cancel(runs->queue, run, &state, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, strcmp(state, "cancelled") ? 202 : 200,
                           json_pack("{s:s, s:s}", "run", run, "state", state));
}

static void move(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const char *run = sl_http_param(req, "run"), *priority, *queue;
    struct sl_err err = SL_ERR_INIT;

    priority = sl_json_str(sl_http_json(req), "priority", "");
    queue = sl_json_str(sl_http_json(req), "queue", NULL);
    if ((*priority && sl_queue_rank(priority) < 0) || (!*priority && !queue))
        sl_http_reply_problem(req, 422, "nowhere to move it", NULL,
                              "expected priority (critical, high, medium or low), queue, or both");
    else if (sl_queue_move(runs->queue, run, queue, sl_queue_rank(priority), &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, json_pack("{s:s}", "run", run));
}

static void requeue(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    char run[SL_ID_HEX + 1];
    struct sl_err err = SL_ERR_INIT;
    const char *key, *how;
    json_t *old;
    int rc;

    if (!read_key(req, &key))
        return;
    rc = sl_runs_find(runs, sl_http_param(req, "run"), &old, &err);
    if (!rc) {
        rc = sl_queue_requeue_by(runs->queue, sl_http_user(req), old, key, run, &how, &err);
        json_decref(old);
    }
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        reply_enqueued(req, run, how);
}

static const struct sl_route routes[] = {
    {.method = "POST",
     .pattern = "/api/v1/runs",
     .body = SL_BODY_JSON,
     .scope = SL_SCOPE_HANDLER,
     .handle = enqueue},
    {.method = "GET", .pattern = "/api/v1/runs/{run}", .handle = show},
    {.method = "GET", .pattern = "/api/v1/runs/{run}/events", .waits = true, .handle = events},
    {.method = "POST", .pattern = "/api/v1/runs/{run}/sync", .waits = true, .handle = sync_run},
    {.method = "POST", .pattern = "/api/v1/runs/{run}/cancel", .handle = cancel},
    {.method = "POST",
     .pattern = "/api/v1/runs/{run}/publish",
     .body = SL_BODY_JSON,
     .handle = sl_publish_handler},
    {.method = "POST",
     .pattern = "/api/v1/runs/{run}/move",
     .body = SL_BODY_JSON,
     .handle = move},
    {.method = "POST", .pattern = "/api/v1/runs/{run}/requeue", .handle = requeue},
};

int sl_runs_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct sl_runs *runs = calloc(1, sizeof *runs);
    int rc;

    if (!runs)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    runs->server = server;
    rc = sl_queue_new(server->config->redis_url, &runs->queue, err);
    if (!rc)
        rc = sl_archive_open(server->config->data_dir, &runs->archive, err);
    if (!rc)
        rc = sl_history_open(server->config->data_dir, runs->archive, runs->queue, &runs->history, err);
    /* Before the port answers, so that no new version takes a number that a cut-off publishing
     * holds. When Redis is away the reaper's thread does it later, and the store finds another
     * number if it must. */
    if (!rc)
        sl_publish_replay(runs, NULL, NULL);
    if (!rc)
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, runs, err);
    if (!rc)
        rc = sl_http_set_scope(server->http, "/api/v1/runs/{run}", sl_runs_project_of, runs, err);
    if (!rc)
        rc = sl_admin_routes(runs, err);
    if (!rc)
        rc = sl_history_routes(runs, err);
    if (!rc)
        rc = sl_jobs_open(server->config->data_dir, &runs->jobs, err);
    if (!rc)
        rc = sl_jobs_routes(runs, err);
    if (!rc)
        rc = sl_live_start(runs, &runs->live, err);
    if (!rc)
        rc = sl_ticker_start(sl_reap, runs, SL_REAPER_PERIOD_US, &runs->reaping, err);
    if (!rc)
        rc = sl_ticker_start(sl_archive_runs, runs, SL_REAPER_PERIOD_US, &runs->archiving, err);
    if (!rc)
        rc = sl_ticker_start(sl_history_runs, runs, SL_REAPER_PERIOD_US, &runs->following, err);
    if (rc) {
        sl_runs_part_stop(runs);
        return rc;
    }
    server->runs = runs;
    *ret_state = runs;
    return 0;
}

void sl_runs_part_stop(void *state)
{
    struct sl_runs *runs = state;

    sl_live_stop(runs->live);
    atomic_store(&runs->stopping, true);
    sl_ticker_stop(runs->following);
    sl_ticker_stop(runs->archiving);
    sl_ticker_stop(runs->reaping);
    sl_history_close(runs->history);
    sl_archive_close(runs->archive);
    sl_queue_free(runs->queue);
    sl_jobs_close(runs->jobs);
    free(runs);
}
