/* The runs' part of the server: the REST API over the queue, publishing, and the clock's work
 * (reaper.c).
 *
 *   POST /api/v1/runs                      a job spec; Idempotency-Key; 201 {"run", "state"}, 200
 * when it is there GET  /api/v1/runs?limit=&below=&state=&queue=    newest first GET
 * /api/v1/runs/{run} GET  /api/v1/runs/{run}/events?after=&limit=&wait_ms= POST
 * /api/v1/runs/{run}/cancel         202 while its agent has still to stop it POST
 * /api/v1/runs/{run}/publish        by the run's agent: see publish.c GET  /api/v1/agents */
#ifndef SL_SERVER_RUNS_H
#define SL_SERVER_RUNS_H
#include "queue/queue.h"
#include "server/serve.h"

#define SL_REAPER_PERIOD_US 1000000
#define SL_REAPER_PASSES 200 /* of the script at a time, each short */
#define SL_REAPER_GRACE_US                                                                         \
    INT64_C(3000000) /* after Redis was away: agents renew before their leases are reaped */
#define SL_PUBLISH_OUTPUTS_MAX 16

/* A server part (serve.h); needs Redis, but starts, and answers 503, while Redis is away. */
int sl_runs_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_runs_part_stop(void *state);

/* What the part's files share. */
struct sl_runs {
    struct sl_server *server;
    struct sl_queue *queue;
    struct sl_reaper *reaper;
};
void sl_publish_handler(struct sl_http_req *req, void *runs);
/* Writes the version records of results whose publishing was cut short after the queue had taken
 * them. */
int sl_publish_replay(struct sl_runs *runs, int *ret_replayed, struct sl_err *err);
/* A thread that reaps, promotes and replays, once in SL_REAPER_PERIOD_US. */
int sl_reaper_start(struct sl_runs *runs, struct sl_reaper **ret_reaper, struct sl_err *err);
void sl_reaper_stop(struct sl_reaper *reaper); /* NULL-safe */

#endif
