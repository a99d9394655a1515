#include "agent/agent_inner.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/proc.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the table
 * --------------------------------------------------------------------------------------------- */

static const char *const state_names[N_STATES] = {"idle",       "claiming",  "fetching", "training",
                                                  "publishing", "releasing", "paused",   "ending",
                                                  "dropping",   "left"};

/* What is not here is ignored in that state. EV_REDIS renews a lease and sends waiting events in
 * every state. */
static sl_agent_step *const table[N_STATES][N_EVENTS] = {
    [ST_IDLE] = {[EV_REDIS] = sl_step_claim, [EV_BELL] = sl_step_claim, [EV_TERM] = sl_step_leave},
    [ST_CLAIMING] = {[EV_REDIS] = sl_step_claim,
                     [EV_CLAIMED] = sl_step_begin,
                     [EV_NOTHING] = sl_step_wait,
                     [EV_TERM] = sl_step_leave_if_away},
    [ST_FETCHING] = {[EV_CHILD] = sl_step_fetched,
                     [EV_OVERTIME] = sl_step_overtime,
                     [EV_CANCEL] = sl_step_kill,
                     [EV_TERM] = sl_step_kill,
                     [EV_LOST] = sl_step_drop},
    [ST_TRAINING] = {[EV_CHILD] = sl_step_trained,
                     [EV_PUSHED] = sl_step_pushed,
                     [EV_NEAR] = sl_step_pause,
                     [EV_OVERTIME] = sl_step_overtime,
                     [EV_RENEWED] = sl_step_unpause,
                     [EV_CANCEL] = sl_step_cancel,
                     [EV_TERM] = sl_step_preempt,
                     [EV_GRACE] = sl_step_kill,
                     [EV_LOST] = sl_step_drop},
    [ST_PUBLISHING] = {[EV_CHILD] = sl_step_published,
                       [EV_DRAINED] = sl_step_publish,
                       [EV_TERM] = sl_step_grace_publish,
                       [EV_GRACE] = sl_step_kill,
                       [EV_LOST] = sl_step_note_lost},
    [ST_RELEASING] =
        {[EV_PUSHED] = sl_step_pushed_last, [EV_GRACE] = sl_step_release, [EV_LOST] = sl_step_drop},
    [ST_PAUSED] = {[EV_RENEWED] = sl_step_resume,
                   [EV_CANCEL] = sl_step_cancelled,
                   [EV_TERM] = sl_step_leave_if_away,
                   [EV_LOST] = sl_step_drop,
                   [EV_PUSHED] = sl_step_pushed},
    [ST_ENDING] = {[EV_CHILD] = sl_step_check_done,
                   [EV_PUSHED] = sl_step_check_done,
                   [EV_DRAINED] = sl_slot_record,
                   [EV_RECORDED] = sl_step_recorded,
                   [EV_REDIS] = sl_slot_record,
                   [EV_LOST] = sl_step_recorded,
                   [EV_TERM] = sl_step_leave_if_away},
    [ST_DROPPING] = {[EV_CHILD] = sl_step_check_done, [EV_PUSHED] = sl_step_check_done},
};

void sl_slot_handle(struct sl_slot *s, enum sl_agent_event event)
{
    sl_agent_step *step = table[s->state][event];

    if (step)
        step(s);
}

void sl_slot_enter(struct sl_slot *s, enum sl_agent_state state)
{
    sl_log(SL_DEBUG, sl_slot_run(s), "%s -> %s", state_names[s->state], state_names[state]);
    s->state = state;
}

const char *sl_agent_state_name(enum sl_agent_state state)
{
    return state_names[state];
}

const char *sl_slot_run(const struct sl_slot *s)
{
    return s->work.claim.run[0] ? s->work.claim.run : NULL;
}

/* ---- timers
 * ------------------------------------------------------------------------------------------------
 */

static void set_anew(struct sl_loop *loop, int *timer, int64_t delay_us, sl_timer_fn *fn, void *arg)
{
    sl_loop_timer_cancel(loop, *timer);
    *timer = sl_loop_timer(loop, delay_us > 0 ? delay_us : 0, fn, arg, NULL);
}

void sl_slot_timer(struct sl_slot *s, int *timer, int64_t delay_us, sl_timer_fn *fn)
{
    set_anew(s->agent->loop, timer, delay_us, fn, s);
}

void sl_agent_timer(struct sl_agent *a, int *timer, int64_t delay_us, sl_timer_fn *fn)
{
    set_anew(a->loop, timer, delay_us, fn, a);
}

static void grace_due(void *arg)
{
    struct sl_slot *s = arg;

    s->grace_timer = -1;
    sl_slot_handle(s, EV_GRACE);
}

void sl_slot_grace(struct sl_slot *s, int64_t delay_us)
{
    sl_slot_timer(s, &s->grace_timer, delay_us, grace_due);
}

static void near_due(void *arg)
{
    struct sl_slot *s = arg;

    s->near_timer = -1;
    sl_slot_handle(s, EV_NEAR);
}

static void renew_due(void *arg)
{
    struct sl_slot *s = arg;

    sl_slot_timer(s, &s->renew_timer, s->agent->config->lease_ms * 1000 / 3, renew_due);
    sl_slot_renew(s);
}

static void limit_due(void *arg)
{
    struct sl_slot *s = arg;

    s->limit_timer = -1;
    sl_slot_handle(s, EV_OVERTIME);
}

void sl_slot_limit(struct sl_slot *s)
{
    if (s->work.claim.time_left_ms >= 0)
        sl_slot_timer(s, &s->limit_timer, s->work.claim.time_left_ms * 1000, limit_due);
}

void sl_slot_watch_lease(struct sl_slot *s)
{
    int64_t lease_us = s->agent->config->lease_ms * 1000,
            left_us = s->work.deadline_us - sl_boot_us();

    sl_slot_timer(s, &s->near_timer, left_us - lease_us / 3, near_due);
    if (s->renew_timer < 0)
        sl_slot_timer(s, &s->renew_timer, left_us - lease_us * 2 / 3, renew_due);
    sl_child_deadline(s->main.child, s->work.deadline_us);
    sl_child_deadline(s->pusher.child, s->work.deadline_us);
}

/* ---- all slots together
 * ------------------------------------------------------------------------------------- */

int sl_agent_count(const struct sl_agent *a, enum sl_agent_state state)
{
    int n = 0;

    for (int i = 0; i < a->n_slots; i++)
        n += a->slot[i].state == state;
    return n;
}

int sl_agent_busy(const struct sl_agent *a)
{
    return a->n_slots - sl_agent_count(a, ST_IDLE) - sl_agent_count(a, ST_LEFT);
}

void sl_agent_look(struct sl_agent *a)
{
    if (sl_agent_count(a, ST_CLAIMING))
        return; /* when it is answered the next slot asks */
    for (int i = 0; i < a->n_slots; i++)
        if (a->slot[i].state == ST_IDLE) {
            sl_slot_handle(&a->slot[i], EV_BELL);
            return;
        }
}

static void beat_due(void *arg)
{
    struct sl_agent *a = arg;

    sl_agent_timer(a, &a->beat_timer, SL_AGENT_HEARTBEAT_US, beat_due);
    sl_agent_heartbeat(a);
}

static void leave_due(void *arg)
{
    struct sl_agent *a = arg;

    for (int i = 0; i < a->n_slots; i++)
        if (a->slot[i].state != ST_LEFT)
            sl_log(SL_WARN, sl_slot_run(&a->slot[i]), "leaving while %s: the time to leave is over",
                   state_names[a->slot[i].state]);
    sl_loop_stop(a->loop);
}

void sl_agent_left(struct sl_agent *a)
{
    if (sl_agent_count(a, ST_LEFT) < a->n_slots)
        return;
    a->leaving = true;
    sl_agent_timer(a, &a->leave_timer, SL_AGENT_GOODBYE_US, leave_due);
    sl_agent_goodbye(a);
}

/* ---- connections and signals
 * ------------------------------------------------------------------------------- */

static void redis_state(void *arg, bool up, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    if (!up) {
        if (!a->told_away)
            sl_log(SL_WARN, NULL, "Redis is away, trying again: %s", err->msg);
        a->told_away = true;
        a->told_there = false;
        return;
    }
    for (int i = 0; i < a->n_slots; i++)
        if (a->slot[i].work.lease[0]) {
            sl_slot_renew(&a->slot[i]);
            sl_slot_name_checkpoint(&a->slot[i]);
            sl_report_connected(a->slot[i].work.report);
        }
    sl_agent_heartbeat(a);
    for (int i = 0; i < a->n_slots; i++)
        if (a->slot[i].state != ST_IDLE)
            sl_slot_handle(&a->slot[i], EV_REDIS);
    sl_agent_look(a);
}

static void bell_state(void *arg, bool up, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    (void)err; /* the other connection tells it */
    if (up && sl_agent_count(a, ST_IDLE))
        sl_agent_look(a);
    else if (up)
        sl_agent_wait(a);
}

static void on_term(void *arg, int signo)
{
    struct sl_agent *a = arg;

    if (a->leaving) {
        sl_log(SL_WARN, NULL, "signal %d again: leaving at once", signo);
        sl_loop_stop(a->loop);
        return;
    }
    sl_log(SL_INFO, NULL, "signal %d: %s", signo,
           sl_agent_busy(a) ? "giving runs back, then leaving" : "leaving");
    a->leaving = true;
    a->term_us = sl_boot_us();
    sl_agent_timer(a, &a->leave_timer, SL_AGENT_LEAVE_US, leave_due);
    for (int i = 0; i < a->n_slots; i++)
        sl_slot_handle(&a->slot[i], EV_TERM);
}

/* ---- start and end
 * ----------------------------------------------------------------------------------------- */

static int find_programs(struct sl_agent *a, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", a->self, sizeof a->self - 1);
    int rc;

    if (n < 0)
        return sl_err_errno(err, "reading /proc/self/exe");
    a->self[n] = 0;
    rc = sl_self_dir(dir, sizeof dir, err);
    if (!rc)
        rc = a->config->worker ? sl_path(a->worker, err, "%s", a->config->worker)
                               : sl_path(a->worker, err, "%s/softlaunch-worker", dir);
    if (!rc && access(a->worker, X_OK))
        rc = sl_err_errno(err, "the worker program %s (name another with --worker)", a->worker);
    return rc;
}

void sl_agent_offer(const struct sl_agent *a, bool all, char ret_offer[SL_QUEUE_CLASS_MAX + 1])
{
    int gpus = a->devices.n;

    for (int i = 0; i < a->n_slots && !all; i++)
        gpus -= __builtin_popcountll(a->slot[i].work.gpus);
    sl_queue_class(gpus, gpus ? a->gpu_memory_gib : 0, a->labels, ret_offer, NULL); /* its length was checked at the start */
}

static int find_offer(struct sl_agent *a, struct sl_err *err)
{
    char longest[SL_QUEUE_CLASS_MAX + 1]; /* what is free later is no longer */
    int rc = sl_agent_test_devices(a, err);

    a->labels = json_array();
    for (int i = 0; i < a->config->n_labels; i++)
        json_array_append_new(a->labels, json_string(a->config->labels[i]));
    return rc ? rc : sl_queue_class(a->devices.n, a->gpu_memory_gib, a->labels, longest, err);
}

static int set_up(struct sl_agent *a, const struct sl_redis_url *url, struct sl_err *err)
{
    char host[64] = "agent", random[SL_ID_HEX + 1];
    int rc;

    gethostname(host, sizeof host - 1);
    sl_random_id(random);
    snprintf(a->id, sizeof a->id, "%s-%.8s", host, random);
    rc = find_programs(a, err);
    if (!rc)
        rc = sl_path(a->cache, err, "%s/cache", a->config->work_dir);
    if (!rc)
        rc = sl_mkdirs(a->cache, err);
    if (!rc)
        rc = sl_rundir_clean(a->config->work_dir, err);
    if (!rc)
        rc = sl_loop_new(&a->loop, err);
    if (!rc)
        rc = find_offer(a, err);
    if (!rc)
        rc = sl_loop_signal(a->loop, SIGTERM, on_term, a, err);
    if (!rc)
        rc = sl_loop_signal(a->loop, SIGINT, on_term, a, err);
    if (!rc)
        rc = sl_redis_async_new(a->loop, url, redis_state, a, &a->redis, err);
    if (!rc)
        rc = sl_redis_async_new(a->loop, url, bell_state, a, &a->bell, err);
    if (!rc && a->config->metrics_fd >= 0)
        rc = sl_agent_metrics_start(a, a->config->metrics_fd, err);
    return rc;
}

static void stop_slot(struct sl_slot *s)
{
    sl_child_free(s->main.child);
    sl_child_free(s->pusher.child);
    sl_report_free(s->work.report);
    s->work.report = NULL;
    s->work.lease[0] = 0; /* what Redis still answers belongs to nobody */
    s->state = ST_DROPPING;
}

static void clear_slot(struct sl_slot *s)
{
    sl_rundir_remove(&s->work.dir);
    sl_claim_release(&s->work.claim);
    json_decref(s->work.inputs);
    json_decref(s->work.started);
    sl_secrets_release(&s->work.secrets);
    json_decref(s->main.result);
    json_decref(s->pusher.result);
    json_decref(s->ended.result);
}

int sl_agent(const struct sl_agent_config *config, struct sl_err *err)
{
    struct sl_agent *a;
    struct sl_redis_url url;
    int rc = sl_redis_url_parse(config->redis_url, &url, err);

    if (rc)
        return rc;
    a = calloc(1, sizeof *a);
    if (!a)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    a->config = config;
    a->beat_timer = a->leave_timer = a->wait_timer = a->quarantine_timer = -1;
    a->n_slots = config->slots;
    for (int i = 0; i < a->n_slots; i++) {
        struct sl_slot *s = &a->slot[i];

        s->agent = a;
        s->number = i;
        s->work.dir.lock_fd = -1;
        s->renew_timer = s->near_timer = s->grace_timer = s->retry_timer = s->limit_timer = -1;
        s->usage.timer = -1;
    }
    signal(SIGPIPE, SIG_IGN);
    rc = set_up(a, &url, err);
    if (!rc) {
        sl_agent_timer(a, &a->beat_timer, SL_AGENT_HEARTBEAT_US, beat_due);
        rc = sl_loop_run(a->loop, err);
    }
    sl_agent_metrics_stop(a);
    for (int i = 0; i < a->n_slots; i++)
        stop_slot(&a->slot[i]);
    sl_gpus_stop(a->gpus);
    sl_redis_async_free(a->bell);
    sl_redis_async_free(a->redis);
    for (int i = 0; i < a->n_slots; i++)
        clear_slot(&a->slot[i]);
    json_decref(a->labels);
    if (a->loop)
        sl_loop_free(a->loop);
    free(a);
    return rc;
}
