#include "server/runs.h"
#include "base/json.h"
#include "base/spec.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* Handlers, long polls, the reaper and the archiver: none waits for a connection that another one blocks on. */
_Static_assert(SL_QUEUE_CONNECTIONS >= SL_HTTP_HANDLERS + SL_HTTP_WAITERS + 2,
               "fewer Redis connections than threads that use them");

static void enqueue(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *errors = NULL, *problems, *spec = NULL, *e;
    const char *key = sl_http_header(req, "Idempotency-Key");
    char run[SL_ID_HEX + 1];
    const char *how = "new";
    size_t i;
    int rc;

    for (const char *p = key; p && *p; p++)
        if (!isgraph((unsigned char)*p) || p - key >= SL_QUEUE_TOKEN_MAX) {
            sl_http_reply_problem(
                req, 422, "bad Idempotency-Key", NULL,
                "the header must be at most %d printable characters without blanks",
                SL_QUEUE_TOKEN_MAX);
            return;
        }
    rc = sl_spec_validate(sl_http_json(req), &errors, &err);
    if (!rc && json_array_size(errors)) {
        problems = json_array();
        json_array_foreach(errors, i, e)
            json_array_append_new(problems, json_pack("{s:s, s:s, s:s, s:s}", "path",
                                                      sl_json_str(e, "path", ""), "detail",
                                                      sl_json_str(e, "message", ""), "expected",
                                                      sl_json_str(e, "expected", ""), "found",
                                                      sl_json_str(e, "found", "")));
        sl_http_reply_problem(req, 422, "the job spec is not valid", problems,
                              "%zu error%s in the job spec", json_array_size(errors),
                              json_array_size(errors) == 1 ? "" : "s");
        json_decref(errors);
        return;
    }
    json_decref(errors);
    if (!rc)
        rc = sl_spec_with_defaults(sl_http_json(req), &spec, &err);
    if (!rc)
        rc = sl_queue_enqueue(runs->queue, spec, key, run, &how, &err);
    json_decref(spec);
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, strcmp(how, "new") ? 200 : 201,
                           json_pack("{s:s, s:s}", "run", run, "state",
                                     strcmp(how, "new") ? how : "queued"));
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

static void list(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *page;

    if (sl_queue_list(runs->queue, sl_http_query(req, "below"),
                      (int)sl_http_query_int(req, "limit", 50, 1, SL_QUEUE_PAGE_MAX),
                      sl_http_query(req, "state"), sl_http_query(req, "queue"),
                      sl_http_query(req, "project"), &page, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, page);
}

static void show(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *run;

    if (sl_queue_show(runs->queue, sl_http_param(req, "run"), &run, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, run);
}

static void events(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const char *run = sl_http_param(req, "run"), *after = sl_http_query(req, "after");
    int64_t wait_ms = sl_http_query_int(req, "wait_ms", 0, 0, SL_HTTP_WAIT_MAX_MS);
    struct sl_err err = SL_ERR_INIT;
    json_t *found, *known;
    int rc;

    if (sl_http_stopping(req))
        wait_ms = 0;
    rc = sl_queue_events(
        runs->queue, run, after,
        (int)sl_http_query_int(req, "limit", SL_QUEUE_EVENTS_MAX, 1, SL_QUEUE_EVENTS_MAX), wait_ms,
        &found, &err);
    if (!rc && !json_array_size(json_object_get(found, "events"))) {
        /* Every run has events: with none at all it may not exist. */
        rc = sl_queue_show(runs->queue, run, &known, &err);
        json_decref(rc ? found : known);
    }
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, found);
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

static void agents(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *found;

    if (sl_queue_agents(runs->queue, &found, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, found);
}

static const struct sl_route routes[] = {
    {.method = "POST", .pattern = "/api/v1/runs", .body = SL_BODY_JSON, .handle = enqueue},
    {.method = "GET", .pattern = "/api/v1/runs", .handle = list},
    {.method = "GET", .pattern = "/api/v1/runs/{run}", .handle = show},
    {.method = "GET", .pattern = "/api/v1/runs/{run}/events", .waits = true, .handle = events},
    {.method = "POST", .pattern = "/api/v1/runs/{run}/sync", .waits = true, .handle = sync_run},
    {.method = "POST", .pattern = "/api/v1/runs/{run}/cancel", .handle = cancel},
    {.method = "POST",
     .pattern = "/api/v1/runs/{run}/publish",
     .body = SL_BODY_JSON,
     .handle = sl_publish_handler},
    {.method = "GET", .pattern = "/api/v1/agents", .handle = agents},
};

int sl_runs_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct sl_runs *runs = calloc(1, sizeof *runs);
    int rc;

    if (!runs)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    runs->server = server;
    rc = sl_queue_new(server->config->redis_url, &runs->queue, err);
    /* Before the port answers, so that no new version takes a number that a cut-off publishing
     * holds. When Redis is away the reaper's thread does it later, and the store finds another
     * number if it must. */
    if (!rc)
        sl_publish_replay(runs, NULL, NULL);
    if (!rc)
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, runs, err);
    if (!rc)
        rc = sl_reaper_start(runs, &runs->reaper, err);
    if (rc) {
        sl_queue_free(runs->queue);
        free(runs);
        return rc;
    }
    *ret_state = runs;
    return 0;
}

void sl_runs_part_stop(void *state)
{
    struct sl_runs *runs = state;

    sl_reaper_stop(runs->reaper);
    sl_queue_free(runs->queue);
    free(runs);
}
