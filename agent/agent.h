/* The agent: claims runs from Redis and has them trained on this machine, one at a time.
 *
 * One event loop; nothing in it waits for the network, a child or a large file. A run's fetch,
 * training and uploads are child processes (agent/supervise.h): `softlaunch transfer` and
 * `softlaunch-worker`. The agent itself only claims, renews the lease, forwards events, and tells
 * the children what to do.
 *
 * States of an agent, and what moves it on, are the table in agent.c; a run's state is in the
 * queue. */
#ifndef SL_AGENT_AGENT_H
#define SL_AGENT_AGENT_H
#include "base/err.h"
#include "queue/queue.h"

#define SL_AGENT_SLOTS_MAX 64
#define SL_AGENT_WEIGHT_MAX 1000
#define SL_AGENT_ALLOW_PATHS_MAX 16
#define SL_AGENT_ALLOW_ENV_MAX 64 /* as many as a command line may repeat an option */
#define SL_AGENT_LEASE_MS 30000
#define SL_AGENT_LEASE_MS_MIN 500
#define SL_AGENT_LEASE_MS_MAX 3600000
#define SL_AGENT_WAIT_MS 5000  /* an idle agent looks this often by itself, should a bell be lost */
#define SL_AGENT_AGAIN_MS 2000 /* after an answer of Redis that nobody understands */
#define SL_AGENT_HEARTBEAT_US INT64_C(10000000)
#define SL_AGENT_CANCEL_GRACE_US                                                                   \
    INT64_C(5000000) /* a cancelled child that has not ended by then is killed */
#define SL_AGENT_PREEMPT_US                                                                        \
    INT64_C(9000000) /* after SIGTERM: the worker's time to write its checkpoint */
#define SL_AGENT_RELEASE_US                                                                        \
    INT64_C(13000000)                       /* and when the run is given back, uploaded or not     \
                                             */
#define SL_AGENT_LEAVE_US INT64_C(15000000) /* and when the agent ends in any case */
#define SL_AGENT_GOODBYE_US INT64_C(1000000) /* for Redis's answer to the goodbye */
#define SL_AGENT_USAGE_FIRST_US INT64_C(1000000) /* after a worker's start: what it takes of the machine */
#define SL_AGENT_USAGE_US INT64_C(10000000)      /* and then so often */
#define SL_AGENT_BREAKER 3 /* device failures in a row: then no run is taken for a while */
#define SL_AGENT_QUARANTINE_US INT64_C(1800000000) /* and then the devices are tested again */
#define SL_AGENT_RECORD_RETRY_US INT64_C(1000000) /* an outcome that Redis refuses for now */
#define SL_AGENT_PUBLISH_TRIES 20 /* while the server is away, with growing pauses */

struct sl_agent_config {
    const char *redis_url, *server_url, *work_dir;
    const char *token; /* for the server; goes to the transfer children only; may be NULL */
    const char *queues[SL_QUEUE_NAMES_MAX];
    int weights[SL_QUEUE_NAMES_MAX]; /* all 0: strictly in this order */
    int n_queues;
    const char *labels[SL_QUEUE_LABELS_MAX]; /* what runs may ask for, as "zone=eu" */
    int n_labels;
    const char *allow_paths[SL_AGENT_ALLOW_PATHS_MAX]; /* folders that a spec may name files in */
    int n_allow_paths;
    int64_t cache_bytes; /* limit of the cache; -1: half of its disk */
    const char *secrets_dir; /* where secrets that specs name are files; NULL: there are none */
    const char *allow_env[SL_AGENT_ALLOW_ENV_MAX]; /* variables that a spec may ask for */
    int n_allow_env;
    int64_t lease_ms, quarantine_us;
    int slots;           /* runs at a time */
    int max_runs;        /* ends after so many; 0: never */
    bool exit_when_idle; /* ends when there is nothing to do */
    int metrics_fd;      /* a listening socket for Prometheus (agent/metrics.c), taken; -1: none */
    const char *worker;  /* the worker program; NULL: softlaunch-worker beside this one */
};

/* Runs until SIGTERM or SIGINT (the run under way is checkpointed and given back), or until
 * max_runs are done. Logs. SL_SPEC, SL_IO, SL_NOMEM: it could not start. config is borrowed. */
int sl_agent(const struct sl_agent_config *config, struct sl_err *err);

#endif
