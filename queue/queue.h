/* Runs, queues, leases and events in Redis: what the scripts do, as C calls.
 *
 * Two users. The server calls the blocking functions on a struct sl_queue, from any thread: it
 * keeps a small pool of connections, and a call waits when all are in use. The agent builds
 * commands with sl_queue_cmd_* and sends them on its event loop (sl_redis_async_call); those name
 * the lease, and fail with SL_LEASE when it is not the run's any more. queue/scripts/common.lua
 * describes keys, fields and states.
 *
 * At-least-once with fencing: every command here may be sent again after a lost reply.
 *
 * What a run asks for and what an agent has are both a class, a text that is part of key names:
 * "cpu" or "gpu2", then "+mem80" (GiB a GPU), then labels in order: "gpu1+mem40+zone=eu". An offer
 * serves an ask when it has at least its GPUs and memory, and all its labels. */
#ifndef SL_QUEUE_QUEUE_H
#define SL_QUEUE_QUEUE_H
#include "base/clock.h"
#include "queue/redis.h"
#include <jansson.h>

#define SL_QUEUE_NAMESPACE "softlaunch"
#define SL_QUEUE_CONNECTIONS 44 /* one for every thread of the server that calls: see server/runs.c */
#define SL_QUEUE_NAMES_MAX 16    /* queues that one agent serves */
#define SL_QUEUE_NAME_MAX 128    /* bytes of the name of a queue or project */
#define SL_QUEUE_CLASS_MAX 200   /* bytes of a class */
#define SL_QUEUE_CLASSES_MAX 32  /* classes in line in one queue: then a new one is SL_CONFLICT */
#define SL_QUEUE_OFFERS_MAX 16   /* different offers that one queue remembers */
#define SL_QUEUE_LABELS_MAX 8
#define SL_QUEUE_PAGE_MAX 200    /* runs a list call gives */
#define SL_QUEUE_CHANGES_MAX 20  /* changed runs a read gives */
#define SL_QUEUE_EVENTS_MAX 1000 /* events a read gives */
#define SL_QUEUE_EVENT_ID_MAX 48 /* bytes of an event's id */
#define SL_QUEUE_TAIL_MAX 400    /* runs whose events one call reads */
#define SL_QUEUE_BATCH_MAX 200   /* events in one append */
#define SL_QUEUE_AGENTS_MAX 1000
#define SL_QUEUE_KNOWN_MAX 1000 /* queues, and as many projects, with settings or runs */
#define SL_QUEUE_BACKOFF_MAX_MS 300000
#define SL_QUEUE_REAP_MAX 10   /* runs moved per call: a script holds Redis for under 2 ms */
#define SL_QUEUE_TOKEN_MAX 200 /* bytes of an idempotency key, and of a dedupe key */

/* "critical", "high", "medium", "low" -> 0..3; -1 for another word. */
int sl_queue_rank(const char *priority);
const char *sl_queue_priority(int rank); /* its inverse */

/* labels: list of texts as "zone=eu" (job.schema.json), NULL: none. SL_SPEC: it gets too long. */
int sl_queue_class(int gpus, int gpu_memory_gib, const json_t *labels,
                   char ret_class[SL_QUEUE_CLASS_MAX + 1], struct sl_err *err);

/* ---- blocking, for the server
 * ---------------------------------------------------------------------------- */

struct sl_queue;
/* Does not connect yet. */
int sl_queue_new(const char *redis_url, struct sl_queue **ret_queue, struct sl_err *err);
void sl_queue_free(struct sl_queue *q); /* NULL-safe; no call may be under way */

/* spec is valid and has its defaults (sl_spec_with_defaults). client (may be NULL) makes the call
 * repeatable: the same key with the same spec gives the same run, with another spec SL_CONFLICT.
 * *ret_how (may be NULL; static): "new"; "known", the first call's run; "duplicate", a run of the project
 * that has not ended and has the same dedupe key. SL_CONFLICT: the queue is drained, a quota is
 * used up, too many classes. */
int sl_queue_enqueue(struct sl_queue *q, const json_t *spec, const char *client,
                     char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err);
/* The same; by: who asked for it, the run's "created_by". */
int sl_queue_enqueue_by(struct sl_queue *q, const char *by, const json_t *spec, const char *client,
                        char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err);
/* *ret_replicas: how many replicas have the run as it is now, after at most wait_ms (1 or more) for `replicas` of
 * them. SL_NOTFOUND: not even the primary has it, after a failover say. */
int sl_queue_sync(struct sl_queue *q, const char *run, int replicas, int64_t wait_ms,
                  int *ret_replicas, struct sl_err *err);
/* Enqueues a run that failed, is dead or was cancelled again, as a new run that goes on from its
 * checkpoint and says so in "requeued_from". old: as sl_queue_show or the archive gives it. */
int sl_queue_requeue(struct sl_queue *q, const json_t *old, const char *client,
                     char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err);
int sl_queue_requeue_by(struct sl_queue *q, const char *by, const json_t *old, const char *client,
                        char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err);
/* Another priority (a rank, or -1) or queue (or NULL) for a run that has not ended. In line it goes
 * to the new place's end at once; a running one's next attempt goes there. SL_NOTFOUND, SL_CONFLICT. */
int sl_queue_move(struct sl_queue *q, const char *run, const char *queue, int rank,
                  struct sl_err *err);
/* Everything about a run as the REST API gives it: {"run", "name", "state", "cause", "attempt",
 * "metrics", "spec", "outputs", "log_tail", ...}; "waiting_for" tells why a queued run cannot be
 * claimed now. SL_NOTFOUND. */
int sl_queue_show(struct sl_queue *q, const char *run, json_t **ret_run, struct sl_err *err);
/* Newest first: {"runs": [as above without spec and log_tail], "next": "seq" or null}. below,
 * state, queue, project may be NULL. */
int sl_queue_list(struct sl_queue *q, const char *below, int most, const char *state,
                  const char *queue, const char *project, json_t **ret_page, struct sl_err *err);
/* Runs of which something changed that a list shows, at most SL_QUEUE_CHANGES_MAX, as sl_queue_list gives them but without
 * "waiting_for"; "state" is null when the run is gone. They come again until the next call is given them as taken
 * (NULL: none), and again when they change after this call. One server takes them, that which holds the store. */
int sl_queue_changes(struct sl_queue *q, const json_t *taken, json_t **ret_changes,
                     struct sl_err *err);
/* Sets "waiting_for" of those runs of a list that are queued and wait for more than their turn. */
int sl_queue_waiting_for(struct sl_queue *q, json_t *runs, struct sl_err *err);
/* Events behind `after` (NULL or "0": from the start): {"events": [{"id", "time_ms", "type",
 * "attempt", "data"}], "last": id to go on from, "trimmed": true when events between `after` and
 * the first of these are gone}. Waits up to wait_ms when there is none yet. A run that nobody knows
 * has none. */
int sl_queue_events(struct sl_queue *q, const char *run, const char *after, int most,
                    int64_t wait_ms, json_t **ret_events, struct sl_err *err);
bool sl_queue_event_id_valid(const char *id); /* MILLISECONDS or MILLISECONDS-NUMBER */
/* The id of the newest one; "0": there is none. */
int sl_queue_newest_event(struct sl_queue *q, const char *run, char ret_id[SL_QUEUE_EVENT_ID_MAX],
                          struct sl_err *err);
/* Of n runs (SL_QUEUE_TAIL_MAX) at once, up to `most` of each, without waiting: {run: [events]}, runs with
 * none left out. */
int sl_queue_events_of(struct sl_queue *q, const char *const *runs, const char *const *after, int n,
                       int most, json_t **ret_events, struct sl_err *err);
/* *ret_state: "cancelled" or "cancelling", static. SL_NOTFOUND, SL_CONFLICT: it has ended. */
int sl_queue_cancel(struct sl_queue *q, const char *run, const char **ret_state,
                    struct sl_err *err);

/* {"queues": [{"queue", "state", "max_running", "rate_per_minute", "offers", "running",
 * "classes": [{"class", "ready", "held", "agents"}]}]} by name. "ready" can be claimed now; "held"
 * waits for a limit, a pause or an agent that can serve it: "agents" false. */
int sl_queue_queues(struct sl_queue *q, json_t **ret_queues, struct sl_err *err);
/* changes: any of {"state": "active" | "paused" (takes runs, gives none) | "draining" (gives runs,
 * takes none), "max_running": n, "rate_per_minute": n (both 0: no limit), "offers": [classes that
 * an autoscaler can bring, so that nothing waits for an agent to be there]}. SL_SPEC. */
int sl_queue_set_queue(struct sl_queue *q, const char *name, const json_t *changes,
                       struct sl_err *err);
/* {"projects": [{"project", "max_running", "gpu_hours", "gpu_hours_used", "storage_gib",
 * "storage_gib_used", "running", "held"}]}, those with settings, use or runs in line. */
int sl_queue_projects(struct sl_queue *q, json_t **ret_projects, struct sl_err *err);
/* changes: any of {"max_running", "gpu_hours", "storage_gib" (0: no limit), "gpu_hours_used",
 * "storage_gib_used" (to start anew)}, numbers. With a quota used up no run of the project starts
 * and none is taken; what runs goes on. */
int sl_queue_set_project(struct sl_queue *q, const char *name, const json_t *changes,
                         struct sl_err *err);
/* {"agents": [{"agent", "seen_ms", "age_ms", "wanted", ...what it says of itself}]}, last seen
 * first. */
int sl_queue_agents(struct sl_queue *q, json_t **ret_agents, struct sl_err *err);
/* What an agent is to do: it is rung, hears it with its next heartbeat too, and gets no claim
 * unless active. SL_NOTFOUND. */
enum sl_agent_wanted {
    SL_AGENT_ACTIVE,
    SL_AGENT_PAUSED,  /* finishes its runs, claims none until active again */
    SL_AGENT_DRAINING, /* finishes its runs, then ends */
    SL_AGENT_RESUMED   /* in a reply only: an operator has just made it active */
};
int sl_queue_set_agent(struct sl_queue *q, const char *agent, enum sl_agent_wanted wanted,
                       struct sl_err *err);

/* The publish script: see finish.lua. outputs: [{"output", "artifact", "version", "manifest",
 * "aliases"}]; metrics may be NULL. *ret_outputs: those that hold, which are the first call's when
 * *ret_new is false. SL_LEASE, SL_CANCELLED. */
int sl_queue_finish(struct sl_queue *q, const char *run, const char *lease, const json_t *outputs,
                    const json_t *metrics, json_t **ret_outputs, bool *ret_new, struct sl_err *err);
/* {run: outputs} whose version records are still to be written. */
int sl_queue_outbox(struct sl_queue *q, json_t **ret_outbox, struct sl_err *err);
/* Charges the outputs' "bytes" to the project's storage, once; those "shared" with another run's version
 * cost nothing. */
int sl_queue_ack(struct sl_queue *q, const char *run, const json_t *outputs, struct sl_err *err);
/* A version that was deleted: its bytes no longer count as the project's storage. The same id counts once. */
int sl_queue_refund(struct sl_queue *q, const char *id, const char *project, int64_t bytes,
                    struct sl_err *err);

struct sl_reaped {
    int ended, promoted; /* leases that ran out, runs whose time has come */
    bool more;           /* call again: the pass was cut short */
    int outbox;          /* results whose version records are still to be written */
};
/* One pass, bounded, of what time brings: dead leases, due runs, rates, classes that no agent
 * serves. spare_leases: leaves leases alone. ret_reaped may be NULL. */
int sl_queue_reap(struct sl_queue *q, bool spare_leases, struct sl_reaped *ret_reaped,
                  struct sl_err *err);

/* For the archive. Ids of runs that ended at least age_ms ago and whose outputs are recorded, oldest
 * first: a JSON list of at most `most`. */
int sl_queue_ended(struct sl_queue *q, int64_t age_ms, int most, json_t **ret_runs,
                   struct sl_err *err);
/* For those who follow what ends: calls fn for at most `most` runs that ended at least age_ms ago and at
 * from_ms or later, oldest first, the first `skip` left out. waits: its outputs are still to be recorded. An
 * error of fn ends the walk. *ret_n: how many there were; fewer than `most` were the last. */
typedef int sl_queue_ended_fn(void *arg, const char *run, int64_t ended_ms, bool waits, struct sl_err *err);
int sl_queue_ended_since(struct sl_queue *q, int64_t age_ms, int64_t from_ms, int skip, int most,
                         sl_queue_ended_fn *fn, void *arg, int *ret_n, struct sl_err *err);
/* Takes an ended run out of Redis; 0 also when it is gone already. SL_CONFLICT: it has not ended. */
int sl_queue_forget(struct sl_queue *q, const char *run, struct sl_err *err);
/* Runs that have not ended and have said so much that Redis is about to drop the beginning: a list of
 * at most `most` ids. */
int sl_queue_long(struct sl_queue *q, int most, json_t **ret_runs, struct sl_err *err);
/* Events before id (they are in the archive) leave Redis. */
int sl_queue_trim(struct sl_queue *q, const char *run, const char *id, struct sl_err *err);
/* Places in line are numbered from above seq: a Redis that starts empty numbers no run as an
 * archived one. */
int sl_queue_number_above(struct sl_queue *q, int64_t seq, struct sl_err *err);

/* ---- commands, for the agent
 * ----------------------------------------------------------------------------- */

/* Each fills a command that the caller sends and releases. */

/* The first of the queues that has a run for offer (what is free on the machine now) gives its
 * first: priority, then fair between projects, then age. Strict: the order is the operator's; by weight:
 * sl_queue_turns makes one for each claim. */
void sl_queue_cmd_claim(struct sl_cmd *c, const char *lease, const char *agent, int64_t lease_ms,
                        const char *offer, const char *const *queues, int n_queues);
/* ret_order: a random order of 0..n-1, in which i comes before j with odds weights[i] : weights[j]. */
void sl_queue_turns(const int *weights, int n, int *ret_order);
void sl_queue_cmd_renew(struct sl_cmd *c, const char *run, const char *lease, int64_t lease_ms);
/* batch: 1, 2, ... under one lease; phase and metrics may be NULL, step and steps -1. Then add the
 * events. */
void sl_queue_cmd_append(struct sl_cmd *c, const char *run, const char *lease, int64_t batch,
                         const char *phase, int64_t step, int64_t steps, const char *metrics);
void sl_queue_cmd_append_event(struct sl_cmd *c, const char *type, const char *json);
void sl_queue_cmd_checkpoint(struct sl_cmd *c, const char *run, const char *lease,
                             const char *manifest, int64_t step);
/* Preemption: no attempt spent, its old place in line. */
void sl_queue_cmd_release(struct sl_cmd *c, const char *run, const char *lease, const char *cause);

/* How an attempt failed. Each kind has its own budget in the spec's "retry"; the run is tried again
 * after a backoff until that is spent, and then is dead. */
struct sl_failure {
    /* "infrastructure" (server away, device broken), "crash", "out_of_memory", "timeout"
     * (time_limit_s), each with a budget; "spec", "user_data": never tried again, state failed;
     * "cancelled": the worker stopped because of a cancel */
    const char *kind;
    const char *cause, *msg;    /* a word, and a sentence for people */
    int exit_code, exit_signal; /* of the worker; -1: none */
    const char *log_tail;       /* JSON list as text, NULL: none */
};
/* The reply is the state it is in: "delayed", "dead", "failed" or "cancelled". */
void sl_queue_cmd_fail(struct sl_cmd *c, const char *run, const char *lease,
                       const struct sl_failure *failure);
/* json NULL: it leaves. offer: all that the machine has, for every one of the queues. */
void sl_queue_cmd_heartbeat(struct sl_cmd *c, const char *agent, const char *json,
                            const char *offer, const char *const *queues, int n_queues);
/* Blocks until there may be something for offer (the heartbeat's) in a queue, or something to hear
 * for the agent (its own ring: then ask with renew and heartbeat), or for wait_ms. n_queues 0: the ring only. */
void sl_queue_cmd_wait(struct sl_cmd *c, const char *agent, const char *offer,
                       const char *const *queues, int n_queues, int64_t wait_ms);

/* Ends the agent's own wait. */
void sl_queue_cmd_ring(struct sl_cmd *c, const char *agent);

struct sl_claim {
    char run[SL_ID_HEX + 1];
    int attempt;
    char *name;
    json_t *spec;
    char checkpoint[65]; /* manifest digest; "" when there is none */
    int64_t checkpoint_step;
    int64_t time_left_ms; /* of the spec's time_limit_s, over all attempts; -1: no limit */
    int gpus;             /* as the spec asks */
};
/* 0 and *ret_claim (release it), or SL_NOTFOUND when the reply says that nothing was in line. */
int sl_queue_claim_reply(const redisReply *reply, struct sl_claim *ret_claim, struct sl_err *err);
void sl_claim_release(struct sl_claim *c); /* NULL-safe */
int sl_queue_renew_reply(const redisReply *reply, bool *ret_cancelled, bool *ret_revived,
                         struct sl_err *err);
int sl_queue_heartbeat_reply(const redisReply *reply, enum sl_agent_wanted *ret_wanted,
                             struct sl_err *err);

#endif
