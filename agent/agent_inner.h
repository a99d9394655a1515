/* What the agent's C files share: agent.c (the table, timers,
 * connections), calls.c (what is asked of Redis), steps.c (what each
 * transition does), children.c (starting children and judging how they ended). Not for other parts.
 */
#ifndef SL_AGENT_AGENT_INNER_H
#define SL_AGENT_AGENT_INNER_H
#include "agent/agent.h"
#include "agent/devices.h"
#include "agent/gpus.h"
#include "agent/report.h"
#include "agent/rundir.h"
#include "agent/secrets.h"
#include "agent/supervise.h"

enum sl_agent_state {
    ST_IDLE,       /* no run; blocked on the doorbell */
    ST_CLAIMING,   /* a claim is on its way */
    ST_FETCHING,   /* inputs are brought in */
    ST_TRAINING,   /* the worker runs; uploads of checkpoints beside it */
    ST_PUBLISHING, /* the outputs go up, and the server publishes them */
    ST_RELEASING,  /* preempted: the last checkpoint goes up */
    ST_PAUSED, /* the lease has ended and so has the child: nothing runs until Redis says whose the
                  run is */
    ST_ENDING, /* the outcome is on its way to Redis */
    ST_DROPPING, /* the run is not ours any more: children are killed, nothing is written */
    ST_LEFT,     /* takes no run any more */
    N_STATES
};

enum sl_agent_event {
    EV_REDIS, /* the connection for commands is up */
    EV_BELL,  /* there may be something in line */
    EV_CLAIMED,
    EV_NOTHING, /* nothing was in line */
    EV_CHILD,   /* the main child has ended; slot->ended tells how */
    EV_PUSHED,  /* the upload of a checkpoint has ended */
    EV_RENEWED,
    EV_NEAR,     /* the lease ends soon and has not been renewed */
    EV_CANCEL,   /* somebody asked for the run's end */
    EV_TERM,     /* this agent must go */
    EV_LOST,     /* the lease is not ours any more */
    EV_GRACE,    /* the time given to a child is over */
    EV_DRAINED,  /* every event is in Redis */
    EV_RECORDED, /* the outcome is in Redis */
    EV_OVERTIME, /* the run's time limit is over */
    N_EVENTS
};

enum sl_ending { END_OK, END_PREEMPTED, END_CANCELLED, END_ABANDONED, END_FAILED };

struct sl_ended {
    enum sl_ending ending;
    char cause[32];
    char msg[SL_ERR_MSG_MAX];
    json_t *result; /* the child's result event; may be NULL */
    int exit_code, exit_signal; /* -1: none */
};

/* How a run was over for this agent, for its metrics. */
enum { OUT_PUBLISHED, OUT_FAILED, OUT_CANCELLED, OUT_GIVEN_BACK, OUT_LOST, SL_AGENT_OUTCOMES };

enum sl_role { ROLE_FETCH, ROLE_WORK, ROLE_PUBLISH, ROLE_CHECKPOINT };

/* A child and what it is for. */
struct sl_held {
    struct sl_child *child;
    enum sl_role role;
    json_t *result;
};

/* The run under way; all zero but for dir.lock_fd when there is none. */
struct sl_work {
    struct sl_claim claim;
    char lease[SL_ID_HEX + 1];
    int64_t deadline_us; /* the lease's local end, on the boot clock, counted from before it was
                            asked for */
    struct sl_rundir dir;
    struct sl_report *report;
    json_t *inputs, *started; /* what the fetch brought; the worker's start event; NULL: not there yet */
    struct sl_secrets secrets;
    uint64_t gpus; /* of the agent's devices, a bit each: the run's own */
    bool renewing;
    int64_t renew_sent_us;
    bool cancelled, lost;
    bool pausing; /* the worker is to pause, or does: until the lease is renewed, or lost */
    enum sl_agent_state resume; /* where ST_PAUSED goes on */
    int publish_tries;
    /* checkpoints: the newest that the worker wrote, the one being uploaded, the one to be named in
     * Redis */
    char local[256], pending[256];
    int64_t pending_step, push_step, naming_step;
    /* A checkpoint is named only when everything said before it is in Redis: its successor says it
     * no more. */
    int64_t pending_mark, push_mark, manifest_mark;
    char manifest[65];
    int64_t manifest_step;
    bool naming;
    /* the outcome, for fail.lua (kind) or release.lua (kind "") */
    char kind[16], cause[32], msg[SL_ERR_MSG_MAX];
    int exit_code, exit_signal;
    bool recording, recorded;
};

struct sl_usage { /* agent/usage.c: what was last told */
    int timer;
    int64_t since_us, ticks, step; /* step -1: nothing yet */
};

/* A place for one run: the table in agent.c is about one of these. */
struct sl_slot {
    struct sl_agent *agent;
    int number;
    enum sl_agent_state state;
    bool claiming;
    char lease[SL_ID_HEX + 1]; /* of the claim on its way */
    int64_t claim_sent_us;
    int renew_timer, near_timer, grace_timer, retry_timer, limit_timer;
    struct sl_held main, pusher;
    struct sl_ended ended;
    struct sl_work work;
    struct sl_usage usage;
};

struct sl_agent {
    const struct sl_agent_config *config;
    struct sl_loop *loop;
    struct sl_redis_async *redis, *bell; /* commands; the one that blocks */
    char id[128], self[SL_PATH_MAX], worker[SL_PATH_MAX], cache[SL_PATH_MAX];
    enum sl_agent_wanted wanted; /* by an operator */
    enum { WAIT_NONE, WAIT_RING, WAIT_ALL } waiting; /* what the bell connection blocks on */
    char waiting_for[SL_QUEUE_CLASS_MAX + 1];         /* with this offer */
    bool leaving, told_away, told_there;             /* told: in the log */
    int runs_done;
    uint64_t outcomes[SL_AGENT_OUTCOMES];
    struct sl_agent_metrics *metrics; /* NULL: none */
    int beat_timer, leave_timer, wait_timer, quarantine_timer;
    int device_failures;  /* in a row */
    char quarantine[512]; /* why no run is taken; "": runs are taken */
    int64_t term_us;
    struct sl_devices devices;
    struct sl_gpus *gpus; /* NULL: there is none to watch */
    int gpu_memory_gib; /* of the smallest of them; 0: none, or not known */
    json_t *labels;
    int n_slots;
    struct sl_slot slot[SL_AGENT_SLOTS_MAX];
};

/* agent.c */
void sl_slot_handle(struct sl_slot *s, enum sl_agent_event event);
void sl_slot_enter(struct sl_slot *s, enum sl_agent_state state);
void sl_slot_timer(struct sl_slot *s, int *timer, int64_t delay_us,
                   sl_timer_fn *fn); /* sets it anew; fn gets the slot */
void sl_agent_timer(struct sl_agent *a, int *timer, int64_t delay_us, sl_timer_fn *fn); /* the agent */
void sl_slot_grace(struct sl_slot *s, int64_t delay_us);
void sl_slot_limit(struct sl_slot *s); /* starts the clock of the claim's time limit, if it has one */
void sl_slot_watch_lease(struct sl_slot *s); /* after deadline_us has changed */
const char *sl_agent_state_name(enum sl_agent_state state);
const char *sl_slot_run(const struct sl_slot *s); /* for the log; NULL without one */
int sl_agent_count(const struct sl_agent *a, enum sl_agent_state state); /* slots in it */
int sl_agent_busy(const struct sl_agent *a); /* slots with a run, or about to have one */
void sl_agent_look(struct sl_agent *a); /* an idle slot asks for a run, when none does already */
void sl_agent_left(struct sl_agent *a); /* a slot has left: when all have, the agent ends */

/* What is free on the machine, or (all) what it has, as a class of the queue. */
void sl_agent_offer(const struct sl_agent *a, bool all, char ret_offer[SL_QUEUE_CLASS_MAX + 1]);

/* health.c: no run is given to a machine that breaks them */
int sl_agent_test_devices(struct sl_agent *a, struct sl_err *err); /* blocks; then a->devices are those that passed */
void sl_agent_device_failed(struct sl_agent *a, const char *msg);
void sl_agent_device_good(struct sl_agent *a);
void sl_agent_return(struct sl_agent *a, const char *why); /* from quarantine */

/* metrics.c: stop also after a start that failed */
int sl_agent_metrics_start(struct sl_agent *a, int listen_fd, struct sl_err *err);
void sl_agent_metrics_stop(struct sl_agent *a);

/* usage.c: from a worker's start until the run is over here */
void sl_slot_usage_start(struct sl_slot *s);
void sl_slot_usage_stop(struct sl_slot *s);

/* calls.c */
void sl_agent_wait(struct sl_agent *a); /* blocks on the doorbell, unless it does already */
void sl_agent_heartbeat(struct sl_agent *a);
void sl_agent_goodbye(struct sl_agent *a); /* stops the loop when Redis has heard it, or is away */
void sl_slot_claim(struct sl_slot *s); /* under the same lease id until it is answered */
void sl_slot_renew(struct sl_slot *s);
void sl_slot_name_checkpoint(struct sl_slot *s);
void sl_slot_record(struct sl_slot *s); /* the outcome, when everything before it is in Redis */

struct sl_secret_sources sl_agent_secret_sources(const struct sl_agent *a);

/* children.c: start one; on failure nothing has started */
int sl_slot_start_fetch(struct sl_slot *s, struct sl_err *err);
int sl_slot_start_work(struct sl_slot *s, struct sl_err *err);
int sl_slot_start_publish(struct sl_slot *s, struct sl_err *err);
void sl_slot_start_push(struct sl_slot *s); /* of the newest checkpoint, when none is under way */

/* steps.c: what the table in agent.c calls */
typedef void sl_agent_step(struct sl_slot *s);
sl_agent_step sl_step_claim, sl_step_wait, sl_step_begin, sl_step_fetched, sl_step_trained,
    sl_step_publish, sl_step_published, sl_step_pushed, sl_step_pushed_last, sl_step_kill,
    sl_step_cancel, sl_step_cancelled, sl_step_preempt, sl_step_pause, sl_step_unpause,
    sl_step_resume, sl_step_release, sl_step_drop, sl_step_note_lost, sl_step_check_done,
    sl_step_recorded, sl_step_leave, sl_step_leave_if_away, sl_step_grace_publish,
    sl_step_overtime;

#endif
