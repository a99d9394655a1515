/* Runs, leases and events in Redis: what the scripts do, as C calls.
 *
 * Two users. The server calls the blocking functions on a struct sl_queue, from any thread: it
 * keeps a small pool of connections, and a call waits when all are in use. The agent builds
 * commands with sl_queue_cmd_* and sends them on its event loop (sl_redis_async_call); those name
 * the lease, and fail with SL_LEASE when it is not the run's any more. queue/scripts/common.lua
 * describes keys, fields and states.
 *
 * At-least-once with fencing: every command here may be sent again after a lost reply. */
#ifndef SL_QUEUE_QUEUE_H
#define SL_QUEUE_QUEUE_H
#include "base/clock.h"
#include "queue/redis.h"
#include <jansson.h>

#define SL_QUEUE_NAMESPACE "softlaunch"
#define SL_QUEUE_CONNECTIONS 41 /* one for every thread of the server that calls: see server/runs.c */
#define SL_QUEUE_NAMES_MAX 16    /* queues that one agent serves */
#define SL_QUEUE_NAME_MAX 64     /* bytes of a queue's name */
#define SL_QUEUE_PAGE_MAX 200    /* runs a list call gives */
#define SL_QUEUE_EVENTS_MAX 1000 /* events a read gives */
#define SL_QUEUE_BATCH_MAX 200   /* events in one append */
#define SL_QUEUE_AGENTS_MAX 1000
#define SL_QUEUE_MAX_PREEMPTIONS 100
#define SL_QUEUE_MAX_LOST 10     /* leases run out, servers away, devices broken */
#define SL_QUEUE_BACKOFF_MS 2000 /* before the first retry; doubles */
#define SL_QUEUE_BACKOFF_MAX_MS 300000
#define SL_QUEUE_REAP_MAX 100  /* runs moved per call */
#define SL_QUEUE_TOKEN_MAX 200 /* bytes of an idempotency key */

/* "critical", "high", "medium", "low" -> 0..3; -1 for another word. */
int sl_queue_rank(const char *priority);
const char *sl_queue_priority(int rank); /* its inverse */

/* ---- blocking, for the server
 * ---------------------------------------------------------------------------- */

struct sl_queue;
/* Does not connect yet. */
int sl_queue_new(const char *redis_url, struct sl_queue **ret_queue, struct sl_err *err);
void sl_queue_free(struct sl_queue *q); /* NULL-safe; no call may be under way */

/* spec is valid (sl_spec_validate). client (may be NULL) makes the call repeatable: the same key
 * with the same spec gives the same run, with another spec SL_CONFLICT. *ret_new (may be NULL): the
 * run is new. */
int sl_queue_enqueue(struct sl_queue *q, const json_t *spec, const char *client,
                     char ret_run[SL_ID_HEX + 1], bool *ret_new, struct sl_err *err);
/* Everything about a run as the REST API gives it: {"run", "name", "state", "cause", "attempt",
 * "metrics", "spec", "outputs", "log_tail", ...}. SL_NOTFOUND. */
int sl_queue_show(struct sl_queue *q, const char *run, json_t **ret_run, struct sl_err *err);
/* Newest first: {"runs": [as above without spec and log_tail], "next": "seq" or null}. below,
 * state, queue may be NULL. */
int sl_queue_list(struct sl_queue *q, const char *below, int most, const char *state,
                  const char *queue, json_t **ret_page, struct sl_err *err);
/* Events behind `after` (NULL or "0": from the start): {"events": [{"id", "time_ms", "type",
 * "attempt", "data"}], "last": id to go on from}. Waits up to wait_ms when there is none yet. A run
 * that nobody knows has none. */
int sl_queue_events(struct sl_queue *q, const char *run, const char *after, int most,
                    int64_t wait_ms, json_t **ret_events, struct sl_err *err);
/* *ret_state: "cancelled" or "cancelling", static. SL_NOTFOUND, SL_CONFLICT: it has ended. */
int sl_queue_cancel(struct sl_queue *q, const char *run, const char **ret_state,
                    struct sl_err *err);
/* {"agents": [{"agent", "seen_ms", "age_ms", ...what it says of itself}]}, last seen first. */
int sl_queue_agents(struct sl_queue *q, json_t **ret_agents, struct sl_err *err);

/* The publish script: see finish.lua. outputs: [{"output", "artifact", "version", "manifest",
 * "aliases"}]; metrics may be NULL. *ret_outputs: those that hold, which are the first call's when
 * *ret_new is false. SL_LEASE, SL_CANCELLED. */
int sl_queue_finish(struct sl_queue *q, const char *run, const char *lease, const json_t *outputs,
                    const json_t *metrics, json_t **ret_outputs, bool *ret_new, struct sl_err *err);
/* {run: outputs} whose version records are still to be written. */
int sl_queue_outbox(struct sl_queue *q, json_t **ret_outbox, struct sl_err *err);
int sl_queue_ack(struct sl_queue *q, const char *run, const json_t *outputs, struct sl_err *err);
/* One pass of reaping and promoting, bounded; spare_leases: promote only. Counts may be NULL. */
int sl_queue_reap(struct sl_queue *q, bool spare_leases, int *ret_ended, int *ret_promoted,
                  struct sl_err *err);

/* ---- commands, for the agent
 * ----------------------------------------------------------------------------- */

/* Each fills a command that the caller sends and releases. */
void sl_queue_cmd_claim(struct sl_cmd *c, const char *lease, const char *agent, int64_t lease_ms,
                        const char *const *queues, int n_queues);
void sl_queue_cmd_renew(struct sl_cmd *c, const char *run, const char *lease, int64_t lease_ms);
/* batch: 1, 2, ... under one lease; phase and metrics may be NULL, step and steps -1. Then add the
 * events. */
void sl_queue_cmd_append(struct sl_cmd *c, const char *run, const char *lease, int64_t batch,
                         const char *phase, int64_t step, int64_t steps, const char *metrics);
void sl_queue_cmd_append_event(struct sl_cmd *c, const char *type, const char *json);
void sl_queue_cmd_checkpoint(struct sl_cmd *c, const char *run, const char *lease,
                             const char *manifest, int64_t step);
void sl_queue_cmd_release(struct sl_cmd *c, const char *run, const char *lease, const char *cause);
/* kind: "final", "crash", "infra", "cancelled" (fail.lua); log_tail: JSON list as text, NULL: none.
 */
void sl_queue_cmd_fail(struct sl_cmd *c, const char *run, const char *lease, const char *kind,
                       const char *cause, const char *msg, const char *log_tail);
void sl_queue_cmd_heartbeat(struct sl_cmd *c, const char *agent,
                            const char *json); /* NULL: it leaves */
/* Blocks until there may be something in a queue, or something to hear for the agent, or for
 * wait_ms. */
void sl_queue_cmd_wait(struct sl_cmd *c, const char *agent, const char *const *queues, int n_queues,
                       int64_t wait_ms);

/* Ends the agent's own wait. */
void sl_queue_cmd_ring(struct sl_cmd *c, const char *agent);

struct sl_claim {
    char run[SL_ID_HEX + 1];
    int attempt;
    char *name;
    json_t *spec;
    char checkpoint[65]; /* manifest digest; "" when there is none */
    int64_t checkpoint_step;
};
/* 0 and *ret_claim (release it), or SL_NOTFOUND when the reply says that nothing was in line. */
int sl_queue_claim_reply(const redisReply *reply, struct sl_claim *ret_claim, struct sl_err *err);
void sl_claim_release(struct sl_claim *c); /* NULL-safe */
int sl_queue_renew_reply(const redisReply *reply, bool *ret_cancelled, bool *ret_revived,
                         struct sl_err *err);

#endif
