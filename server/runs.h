/* The runs' part of the server: the REST API over the queue and the archive, publishing, and the
 * clock's work.
 *
 *   POST /api/v1/runs                 a job spec; Idempotency-Key; 201 {"run", "state"}, 200 when it is there
 *   GET  /api/v1/runs?limit=&cursor=&sort=&...    any order and search, PATCH /api/v1/runs/{run}: see routes_history.c
 *   GET  /api/v1/runs/{run}
 *   GET  /api/v1/runs/{run}/events?after=&limit=&wait_ms=      or as they happen, as /events: see live.h
 *   POST /api/v1/runs/{run}/cancel    202 while its agent has still to stop it
 *   POST /api/v1/runs/{run}/move      {"priority", "queue"}
 *   POST /api/v1/runs/{run}/requeue   201 {"run", "state"}; Idempotency-Key
 *   POST /api/v1/runs/{run}/publish   by the run's agent: see publish.c
 *   POST /api/v1/runs/{run}/rerun     201 {"run", "state"}; Idempotency-Key; GET .../compare?with=RUN: see rerun.h
 *   GET  /api/v1/jobs, ...: see routes_jobs.c
 *   GET  /api/v1/queues, /projects, /agents        POST /api/v1/queues/{queue}, ...: see admin.c */
#ifndef SL_SERVER_RUNS_H
#define SL_SERVER_RUNS_H
#include "queue/queue.h"
#include "server/archive.h"
#include "server/history.h"
#include "server/jobs.h"
#include "server/serve.h"
#include "server/ticker.h"
#include <stdatomic.h>

#define SL_REAPER_PERIOD_US 1000000
#define SL_REAPER_PASSES 200 /* of the script at a time, each short */
#define SL_REAPER_GRACE_US                                                                         \
    INT64_C(3000000) /* after Redis was away: agents renew before their leases are reaped */
#define SL_PUBLISH_OUTPUTS_MAX 16

/* A server part (serve.h); needs Redis, but starts, and answers 503, while Redis is away. */
int sl_runs_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_runs_part_stop(void *state);

struct sl_reaper {
    int64_t spare_until_us; /* on the boot clock */
    bool away;              /* Redis is */
    int unwritten;          /* looks in a row that found results in the outbox */
};

struct sl_live;

/* What the part's files share. */
struct sl_runs {
    struct sl_server *server;
    struct sl_queue *queue;
    struct sl_archive *archive;
    struct sl_history *history;
    struct sl_jobs *jobs;
    struct sl_reaper reaper;
    bool numbered;       /* Redis numbers new runs above the archived ones */
    int archive_trouble; /* the last pass's error */
    atomic_bool stopping; /* a backlog is left to the next server */
    struct sl_ticker *reaping, *archiving, *following;
    struct sl_live *live;
};
void sl_publish_handler(struct sl_http_req *req, void *runs);
/* Writes the version records of results whose publishing was cut short after the queue had taken
 * them. */
int sl_publish_replay(struct sl_runs *runs, int *ret_replayed, struct sl_err *err);
void sl_reap(void *runs);         /* reaps, promotes, replays: once in SL_REAPER_PERIOD_US */
void sl_archive_runs(void *runs); /* as often, on a thread of its own: it waits for the disk */
void sl_history_runs(void *runs); /* as often, the read model */
/* Judges a spec, enqueues it under the request's Idempotency-Key, and answers. */
void sl_runs_enqueue(struct sl_runs *runs, struct sl_http_req *req, const json_t *spec);
/* A run, live or archived. SL_NOTFOUND. */
int sl_runs_find(struct sl_runs *runs, const char *run, json_t **ret_run, struct sl_err *err);
/* Routes of jobs and reruns. */
int sl_jobs_routes(struct sl_runs *runs, struct sl_err *err);
/* For sl_http_set_scope. */
int sl_runs_project_of(void *runs, const char *run, char ret_project[SL_HTTP_PROJECT_MAX + 1],
                       struct sl_err *err);
/* Routes of lists, searches and notes. */
int sl_history_routes(struct sl_runs *runs, struct sl_err *err);
/* Routes of queues, projects and agents. */
int sl_admin_routes(struct sl_runs *runs, struct sl_err *err);

#endif
