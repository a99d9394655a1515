/* What one run says to Redis: events in order, in fenced batches, at most SL_REPORT_DELAY_US after
 * they came.
 *
 * While Redis is away events wait here, within limits: then the oldest metrics are dropped and
 * counted, then the oldest log lines; never a state, checkpoint or prediction. One batch is under
 * way at a time; it is sent again with the same number when its reply was lost, so nothing comes
 * twice. Nothing here blocks. */
#ifndef SL_AGENT_REPORT_H
#define SL_AGENT_REPORT_H
#include "base/loop.h"
#include "queue/queue.h"

#define SL_REPORT_DELAY_US INT64_C(40000)
#define SL_REPORT_MAX_EVENTS 20000
#define SL_REPORT_MAX_BYTES (8u << 20)
#define SL_REPORT_BATCH_BYTES (128u << 10) /* Redis takes such a batch in about a millisecond */
#define SL_REPORT_EVENT_MAX                                                                        \
    (64u << 10)                /* bytes of one event; a longer one becomes a note that says so */
#define SL_REPORT_LOG_TAIL 200 /* lines kept for a run that fails */
#define SL_REPORT_LOG_LINE_MAX 2000 /* bytes of such a line */

struct sl_report;

struct sl_report_owner {
    void (*lost)(void *arg); /* a batch was refused: the lease is not ours */
    void (*taken)(
        void *arg); /* Redis has taken a batch: marks may be reached, nothing may be left */
    void *arg;
};

/* redis outlives the report. */
int sl_report_new(struct sl_loop *loop, struct sl_redis_async *redis, const char *run,
                  const char *lease, const struct sl_report_owner *owner,
                  struct sl_report **ret_report, struct sl_err *err);
/* No callback comes afterwards. NULL-safe. */
void sl_report_free(struct sl_report *r);
void sl_report_phase(struct sl_report *r, const char *phase); /* static text */
/* Takes a child's event of any type that belongs into the run's record; borrowed. */
void sl_report_event(struct sl_report *r, const json_t *event);
void sl_report_log(struct sl_report *r, const char *level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Redis is back: sends what waits. */
void sl_report_connected(struct sl_report *r);
/* A place behind everything added so far; reached when all before it is in Redis (or was dropped).
 */
int64_t sl_report_mark(const struct sl_report *r);
bool sl_report_reached(const struct sl_report *r, int64_t mark);
bool sl_report_drained(const struct sl_report *r);
/* The last log lines as JSON list, heap; the caller frees it. NULL when out of memory. */
char *sl_report_log_tail(const struct sl_report *r);
/* The latest metrics by name, borrowed; those of the machine (system/...) are none of the run's results. */
const json_t *sl_report_metrics(const struct sl_report *r);
int64_t sl_report_step(const struct sl_report *r); /* -1: it has not started training */

#endif
