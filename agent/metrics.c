/* GET /metrics of an agent, for Prometheus: libmicrohttpd on the agent's own loop, no thread. Off
 * unless
 * --metrics names an address; it has no token, so it belongs on loopback or a network of its own.
 */
#include "agent/agent_inner.h"
#include "base/prometheus.h"
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define CONNECTIONS_MAX 16
#define IDLE_S 10 /* a connection that neither sends nor reads for so long is cut */
#define CONNECTION_BYTES (16u << 10)

struct sl_agent_metrics {
    struct sl_agent *agent;
    struct MHD_Daemon *daemon;
    int epoll_fd, timer;
};

static void add_slots(struct sl_buf *out, const struct sl_agent *a)
{
    sl_prom_family(out, "softlaunch_agent_slots", "gauge", "Places for runs by what they do.");
    for (int i = 0; i < N_STATES; i++)
        sl_prom_value(out, "softlaunch_agent_slots", sl_agent_count(a, (enum sl_agent_state)i),
                      "state", sl_agent_state_name((enum sl_agent_state)i), NULL);
}

static void add_ended(struct sl_buf *out, const struct sl_agent *a)
{
    static const char *const words[SL_AGENT_OUTCOMES] = {"published", "failed", "cancelled",
                                                         "given_back", "lost"};

    sl_prom_family(out, "softlaunch_agent_runs_total", "counter",
                   "Runs that are over here by how they ended.");
    for (int i = 0; i < SL_AGENT_OUTCOMES; i++)
        sl_prom_value(out, "softlaunch_agent_runs_total", (double)a->outcomes[i], "outcome",
                      words[i], NULL);
}

static void write_metrics(struct sl_buf *out, const struct sl_agent *a)
{
    sl_prom_process(out, "agent");
    add_slots(out, a);
    add_ended(out, a);
    sl_prom_family(out, "softlaunch_agent_gpus", "gauge", "GPUs that passed their test.");
    sl_prom_value(out, "softlaunch_agent_gpus", a->devices.n, NULL);
    sl_prom_family(out, "softlaunch_agent_quarantined", "gauge",
                   "1 while no run is taken after device failures.");
    sl_prom_value(out, "softlaunch_agent_quarantined", a->quarantine[0] != 0, NULL);
    sl_prom_family(out, "softlaunch_redis_up", "gauge", "1 while connected to Redis.");
    sl_prom_value(out, "softlaunch_redis_up", sl_redis_async_up(a->redis), NULL);
}

static enum MHD_Result answer(void *cls, struct MHD_Connection *conn, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *data_len, void **con_cls)
{
    static const char nothing[] = "GET /metrics is all there is here\n";
    struct sl_agent_metrics *m = cls;
    struct MHD_Response *response;
    enum MHD_Result ok;
    bool known = !strcmp(url, "/metrics") && (!strcmp(method, "GET") || !strcmp(method, "HEAD"));
    struct sl_buf out;

    (void)version;
    (void)data;
    if (!*con_cls) { /* MHD asks for the answer in a second call, when the body is in */
        *con_cls = m;
        return MHD_YES;
    }
    if (*data_len) {
        *data_len = 0;
        return MHD_YES;
    }
    sl_buf_init(&out, SL_PROM_MAX);
    if (known)
        write_metrics(&out, m->agent);
    else
        sl_buf_adds(&out, nothing);
    response = MHD_create_response_from_buffer(out.len, out.p, MHD_RESPMEM_MUST_COPY);
    sl_buf_release(&out);
    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", known ? SL_PROM_TYPE : "text/plain");
    ok = MHD_queue_response(conn, known ? 200 : 404, response);
    MHD_destroy_response(response);
    return ok;
}

static void run(struct sl_agent_metrics *m);

static void due(void *arg)
{
    struct sl_agent_metrics *m = arg;

    m->timer = -1;
    run(m);
}

static void ready(void *arg, int fd, uint32_t events)
{
    (void)fd;
    (void)events;
    run(arg);
}

/* What can be done now is done; connections that wait are looked at when their time is over. */
static void run(struct sl_agent_metrics *m)
{
    MHD_UNSIGNED_LONG_LONG ms;

    MHD_run(m->daemon);
    sl_loop_timer_cancel(m->agent->loop, m->timer);
    m->timer = -1;
    if (MHD_get_timeout(m->daemon, &ms) == MHD_YES)
        m->timer = sl_loop_timer(m->agent->loop, (int64_t)ms * 1000, due, m, NULL);
}

int sl_agent_metrics_start(struct sl_agent *a, int listen_fd, struct sl_err *err)
{
    struct sl_agent_metrics *m = calloc(1, sizeof *m);
    const union MHD_DaemonInfo *info = NULL;

    if (!m)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    m->agent = a;
    m->timer = -1;
    m->daemon = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, answer, m, MHD_OPTION_LISTEN_SOCKET,
                                 listen_fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
                                 MHD_OPTION_END);
    if (m->daemon)
        info = MHD_get_daemon_info(m->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    a->metrics = m;
    if (!info)
        return sl_err_set(err, SL_IO, "cannot start the HTTP server of --metrics");
    m->epoll_fd = info->epoll_fd;
    return sl_loop_fd(a->loop, m->epoll_fd, EPOLLIN, ready, m, err);
}

void sl_agent_metrics_stop(struct sl_agent *a)
{
    struct sl_agent_metrics *m = a->metrics;

    if (!m)
        return;
    sl_loop_timer_cancel(a->loop, m->timer);
    if (m->epoll_fd)
        sl_loop_fd_remove(a->loop, m->epoll_fd);
    if (m->daemon)
        MHD_stop_daemon(m->daemon); /* closes the listening socket */
    free(m);
    a->metrics = NULL;
}
