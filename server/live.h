/* Events of runs as they happen, to any number of readers (server-sent events).
 *
 *   GET /api/v1/events?runs=A,B      from now on; each block: `event:` its type, `data:` {"run", "id",
 *                                    "time_ms", "attempt", "data"}; after each batch an `id:` that goes on
 *                                    from there (Last-Event-ID)
 *   GET /api/v1/runs/{run}/events    with Accept: text/event-stream: from Last-Event-ID or ?after= (the
 *                                    start when neither is given); `id:` is the event's
 *
 * `event: reset` {"run"} tells that events before the next one are no longer in Redis: they are read
 * as pages. One thread reads Redis for all, every SL_LIVE_PERIOD_US. A comment every
 * SL_LIVE_COMMENT_US finds dead connections. A reader with SL_LIVE_BEHIND_MAX untaken bytes gets no
 * more before it has taken them, and then pages from where it was. Each stream ends after
 * SL_LIVE_STREAM_US, so that a revoked token does not watch for ever: the reader comes again with the
 * last id. */
#ifndef SL_SERVER_LIVE_H
#define SL_SERVER_LIVE_H
#include "server/runs.h"

#define SL_LIVE_PERIOD_US 50000
#define SL_LIVE_COMMENT_US INT64_C(15000000)
#define SL_LIVE_STREAM_US INT64_C(900000000)
#define SL_LIVE_BEHIND_MAX (256u << 10) /* bytes */
#define SL_LIVE_RUNS_MAX 50             /* runs in one stream */
#define SL_LIVE_PAGE 500                /* events of a run in one read */

int sl_live_start(struct sl_runs *runs, struct sl_live **ret_live, struct sl_err *err);
void sl_live_stop(struct sl_live *live); /* after the HTTP server has stopped; NULL-safe */
/* Whether the request asks for events as they happen. */
bool sl_live_wanted(const struct sl_http_req *req);
/* Answers with the stream of one run that exists. */
void sl_live_run(struct sl_live *live, struct sl_http_req *req, const char *run);

#endif
