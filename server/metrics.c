/* What is read from outside the API: GET /softlaunch.py, the client for Python, and
 * GET /metrics, with the server's token: what Prometheus reads. Queues, projects and agents are as
 * the API gives them (of projects those that the token sees); with Redis away softlaunch_redis_up is 0 and they are not there. */
#include "base/json.h"
#include "base/prometheus.h"
#include "queue/queue.h"
#include "server/serve.h"
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

extern const unsigned char sl_embed_server_static_softlaunch_py[];
extern const unsigned long sl_embed_server_static_softlaunch_py_len;

struct metrics {
    struct sl_server *server;
    struct sl_queue *queue; /* NULL: the server has no Redis */
};

/* One family of which every element of a list has one sample: a number of it, by a name of it. */
static void add_each(struct sl_buf *out, const json_t *list, const char *family, const char *help,
                     const char *label, const char *field)
{
    const json_t *one;
    size_t i;

    sl_prom_family(out, family, "gauge", help);
    json_array_foreach(list, i, one)
        sl_prom_value(out, family, sl_json_num(one, field, 0), label, sl_json_str(one, label, ""),
                      NULL);
}

static void add_queues(struct sl_buf *out, const json_t *queues)
{
    const json_t *q, *c;
    size_t i, k;

    add_each(out, queues, "softlaunch_queue_running", "Runs that an agent has.", "queue",
             "running");
    sl_prom_family(out, "softlaunch_queue_runs", "gauge",
                   "Runs in line: ready ones, and held ones, which wait for a limit, a pause or an "
                   "agent.");
    json_array_foreach(queues, i, q)
        json_array_foreach(json_object_get(q, "classes"), k, c) {
            const char *queue = sl_json_str(q, "queue", ""), *class = sl_json_str(c, "class", "");
            sl_prom_value(out, "softlaunch_queue_runs", sl_json_num(c, "ready", 0), "queue", queue,
                          "class", class, "state", "ready", NULL);
            sl_prom_value(out, "softlaunch_queue_runs", sl_json_num(c, "held", 0), "queue", queue,
                          "class", class, "state", "held", NULL);
        }
    sl_prom_family(out, "softlaunch_queue_served", "gauge",
                   "1 when an agent can serve runs of the class, 0 when none can.");
    json_array_foreach(queues, i, q)
        json_array_foreach(json_object_get(q, "classes"), k, c)
            sl_prom_value(out, "softlaunch_queue_served", sl_json_bool(c, "agents", true), "queue",
                          sl_json_str(q, "queue", ""), "class", sl_json_str(c, "class", ""), NULL);
    sl_prom_family(out, "softlaunch_queue_state", "gauge", "1 for the state that the queue is in.");
    json_array_foreach(queues, i, q)
        sl_prom_value(out, "softlaunch_queue_state", 1, "queue", sl_json_str(q, "queue", ""),
                      "state", sl_json_str(q, "state", ""), NULL);
}

static void add_projects(struct sl_buf *out, const json_t *projects)
{
    add_each(out, projects, "softlaunch_project_running", "Runs that an agent has.", "project",
             "running");
    add_each(out, projects, "softlaunch_project_held", "Runs that wait for the project's limits.",
             "project", "held");
    add_each(out, projects, "softlaunch_project_gpu_hours_used", "GPU hours, until set anew.",
             "project", "gpu_hours_used");
    add_each(out, projects, "softlaunch_project_storage_gib_used",
             "GiB of published results, until set anew.", "project", "storage_gib_used");
}

static void add_agents(struct sl_buf *out, const json_t *agents)
{
    const json_t *a;
    size_t i;

    sl_prom_family(out, "softlaunch_agent_seen_seconds", "gauge",
                   "Seconds since the agent's last heartbeat.");
    json_array_foreach(agents, i, a)
        sl_prom_value(out, "softlaunch_agent_seen_seconds", sl_json_num(a, "age_ms", 0) / 1000,
                      "agent", sl_json_str(a, "agent", ""), NULL);
    sl_prom_family(out, "softlaunch_agent_runs", "gauge", "Runs that the agent has.");
    json_array_foreach(agents, i, a)
        sl_prom_value(out, "softlaunch_agent_runs",
                      (double)json_array_size(json_object_get(a, "runs")), "agent",
                      sl_json_str(a, "agent", ""), NULL);
    sl_prom_family(out, "softlaunch_agent_state", "gauge", "1 for the state that the agent is in.");
    json_array_foreach(agents, i, a)
        sl_prom_value(out, "softlaunch_agent_state", 1, "agent", sl_json_str(a, "agent", ""),
                      "state", sl_json_str(a, "state", ""), NULL);
}

static bool add_redis(struct sl_http_req *req, struct sl_buf *out, struct sl_queue *queue)
{
    static const struct {
        int (*get)(struct sl_queue *q, json_t **ret, struct sl_err *err);
        const char *list;
        void (*add)(struct sl_buf *out, const json_t *list);
    } parts[] = {{sl_queue_queues, "queues", add_queues},
                 {sl_queue_projects, "projects", add_projects},
                 {sl_queue_agents, "agents", add_agents}};

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        json_t *found = NULL;
        if (parts[i].get(queue, &found, NULL))
            return false;
        json_t *list = json_object_get(found, parts[i].list);
        for (size_t k = json_array_size(list); k-- > 0;)
            if (!sl_http_sees(req, sl_json_str(json_array_get(list, k), "project", NULL)))
                json_array_remove(list, k);
        parts[i].add(out, list);
        json_decref(found);
    }
    return true;
}

static void add_disk(struct sl_buf *out, const char *data_dir)
{
    struct statvfs v;

    if (statvfs(data_dir, &v))
        return;
    sl_prom_family(out, "softlaunch_data_bytes", "gauge", "Size of the data folder's file system.");
    sl_prom_value(out, "softlaunch_data_bytes", (double)v.f_blocks * (double)v.f_frsize, NULL);
    sl_prom_family(out, "softlaunch_data_free_bytes", "gauge",
                   "What of it is free for the server.");
    sl_prom_value(out, "softlaunch_data_free_bytes", (double)v.f_bavail * (double)v.f_frsize, NULL);
}

static void get(struct sl_http_req *req, void *arg)
{
    struct metrics *m = arg;
    struct sl_buf out;

    sl_buf_init(&out, SL_PROM_MAX);
    sl_prom_process(&out, "server");
    add_disk(&out, m->server->config->data_dir);
    sl_http_metrics(m->server->http, &out);
    if (m->queue) {
        bool up = add_redis(req, &out, m->queue);
        sl_prom_family(&out, "softlaunch_redis_up", "gauge", "1 when Redis answers.");
        sl_prom_value(&out, "softlaunch_redis_up", up, NULL);
    }
    sl_http_reply_data(req, 200, SL_PROM_TYPE, out.p, out.len);
    sl_buf_release(&out);
}

/* The Python client: it holds nothing secret, and a person fetches it before there is a token at hand. */
static void get_client(struct sl_http_req *req, void *arg)
{
    (void)arg;
    sl_http_reply_data(req, 200, "text/x-python; charset=utf-8",
                       sl_embed_server_static_softlaunch_py,
                       sl_embed_server_static_softlaunch_py_len);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/metrics", .scope = SL_SCOPE_HANDLER, .handle = get},
    {.method = "GET", .pattern = "/softlaunch.py", .open = true, .handle = get_client},
};

int sl_metrics_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct metrics *m = calloc(1, sizeof *m);
    int rc = 0;

    if (!m)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    m->server = server;
    if (server->config->redis_url)
        rc = sl_queue_new(server->config->redis_url, &m->queue, err);
    if (!rc)
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, m, err);
    if (rc)
        sl_metrics_part_stop(m);
    else
        *ret_state = m;
    return rc;
}

void sl_metrics_part_stop(void *state)
{
    struct metrics *m = state;

    if (!m)
        return;
    sl_queue_free(m->queue);
    free(m);
}
