/* Queues, projects and agents: what operators look at and change.
 *
 *   GET  /api/v1/queues        POST /api/v1/queues/{queue}      {"state", "max_running", ...}
 *   GET  /api/v1/projects      POST /api/v1/projects/{project}  {"max_running", "gpu_hours", ...}
 *   GET  /api/v1/agents        POST /api/v1/agents/{agent}      {"state": "active" | "paused" | "draining"}
 *
 * queue/queue.h tells the forms. */
#include "base/json.h"
#include "server/runs.h"
#include <string.h>

typedef int get_fn(struct sl_queue *q, json_t **ret, struct sl_err *err);
typedef int set_fn(struct sl_queue *q, const char *name, const json_t *changes, struct sl_err *err);

static void get(struct sl_http_req *req, struct sl_runs *runs, get_fn *fn)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *found;

    if (fn(runs->queue, &found, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, found);
}

static void change(struct sl_http_req *req, struct sl_runs *runs, const char *kind, set_fn *fn)
{
    const char *name = sl_http_param(req, kind);
    struct sl_err err = SL_ERR_INIT;

    if (fn(runs->queue, name, sl_http_json(req), &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, json_pack("{s:s}", kind, name));
}

static int set_agent(struct sl_queue *q, const char *name, const json_t *changes,
                     struct sl_err *err)
{
    static const char *const states[] = {"active", "paused", "draining"};
    const char *state = sl_json_str(changes, "state", "");

    for (int i = 0; i < 3; i++)
        if (!strcmp(state, states[i]))
            return sl_queue_set_agent(q, name, (enum sl_agent_wanted)i, err);
    return sl_err_set(err, SL_SPEC, "state: expected active, paused or draining");
}

static void queues(struct sl_http_req *req, void *arg)
{
    get(req, arg, sl_queue_queues);
}
static void projects(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *found, *list;

    if (sl_queue_projects(runs->queue, &found, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    list = json_object_get(found, "projects");
    for (size_t i = json_array_size(list); i-- > 0;)
        if (!sl_http_sees(req, sl_json_str(json_array_get(list, i), "project", "")))
            json_array_remove(list, i);
    sl_http_reply_json(req, 200, found);
}
/* Agents serve all projects; of their runs one sees those of one's own, and how many others there are. */
static void hide_runs(struct sl_http_req *req, struct sl_runs *runs, json_t *agent)
{
    json_t *list = json_object_get(agent, "runs");
    char project[SL_HTTP_PROJECT_MAX + 1];
    int others = 0;

    for (size_t i = json_array_size(list); i-- > 0;) {
        const char *run = sl_json_str(json_array_get(list, i), "run", "");
        if (!sl_runs_project_of(runs, run, project, NULL) && sl_http_sees(req, project))
            continue;
        json_array_remove(list, i);
        others++;
    }
    json_object_set_new(agent, "other_runs", json_integer(others));
}

static void agents(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *found, *agent;
    size_t i;

    if (sl_queue_agents(runs->queue, &found, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    if (sl_http_identity(req)->projects)
        json_array_foreach(json_object_get(found, "agents"), i, agent)
            hide_runs(req, runs, agent);
    sl_http_reply_json(req, 200, found);
}
static void change_queue(struct sl_http_req *req, void *arg)
{
    change(req, arg, "queue", sl_queue_set_queue);
}
static void change_project(struct sl_http_req *req, void *arg)
{
    change(req, arg, "project", sl_queue_set_project);
}
static void change_agent(struct sl_http_req *req, void *arg)
{
    change(req, arg, "agent", set_agent);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/queues", .scope = SL_SCOPE_SHARED, .handle = queues},
    {.method = "GET", .pattern = "/api/v1/projects", .scope = SL_SCOPE_HANDLER, .handle = projects},
    {.method = "GET", .pattern = "/api/v1/agents", .scope = SL_SCOPE_HANDLER, .handle = agents},
    {.method = "POST",
     .pattern = "/api/v1/queues/{queue}",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_ADMIN,
     .handle = change_queue},
    {.method = "POST",
     .pattern = "/api/v1/projects/{project}",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_ADMIN,
     .handle = change_project},
    {.method = "POST",
     .pattern = "/api/v1/agents/{agent}",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_ADMIN,
     .handle = change_agent},
};

int sl_admin_routes(struct sl_runs *runs, struct sl_err *err)
{
    return sl_http_add(runs->server->http, routes, sizeof routes / sizeof *routes, runs, err);
}
