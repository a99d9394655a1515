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

static const char *const state_names[N_STATES] = {"idle",     "claiming",   "fetching",
                                                  "training", "publishing", "releasing",
                                                  "paused",   "ending",     "dropping"};

/* What is not here is ignored in that state. EV_REDIS renews a lease and sends waiting events in
 * every state. */
static sl_agent_step *const table[N_STATES][N_EVENTS] = {
    [ST_IDLE] = {[EV_REDIS] = sl_step_claim, [EV_BELL] = sl_step_claim, [EV_TERM] = sl_step_leave},
    [ST_CLAIMING] = {[EV_REDIS] = sl_step_claim,
                     [EV_CLAIMED] = sl_step_begin,
                     [EV_NOTHING] = sl_step_wait,
                     [EV_TERM] = sl_step_leave_if_away},
    [ST_FETCHING] = {[EV_CHILD] = sl_step_fetched,
                     [EV_CANCEL] = sl_step_kill,
                     [EV_TERM] = sl_step_kill,
                     [EV_LOST] = sl_step_drop},
    [ST_TRAINING] = {[EV_CHILD] = sl_step_trained,
                     [EV_PUSHED] = sl_step_pushed,
                     [EV_NEAR] = sl_step_pause,
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
                   [EV_DRAINED] = sl_agent_record,
                   [EV_RECORDED] = sl_step_recorded,
                   [EV_REDIS] = sl_agent_record,
                   [EV_LOST] = sl_step_recorded,
                   [EV_TERM] = sl_step_leave_if_away},
    [ST_DROPPING] = {[EV_CHILD] = sl_step_check_done, [EV_PUSHED] = sl_step_check_done},
};

void sl_agent_handle(struct sl_agent *a, enum sl_agent_event event)
{
    sl_agent_step *step = table[a->state][event];

    if (step)
        step(a);
}

void sl_agent_enter(struct sl_agent *a, enum sl_agent_state state)
{
    sl_log(SL_DEBUG, sl_agent_run(a), "%s -> %s", state_names[a->state], state_names[state]);
    a->state = state;
}

const char *sl_agent_state_name(enum sl_agent_state state)
{
    return state_names[state];
}

const char *sl_agent_run(const struct sl_agent *a)
{
    return a->work.claim.run[0] ? a->work.claim.run : NULL;
}

/* ---- timers
 * ------------------------------------------------------------------------------------------------
 */

void sl_agent_timer(struct sl_agent *a, int *timer, int64_t delay_us, sl_timer_fn *fn)
{
    sl_loop_timer_cancel(a->loop, *timer);
    *timer = sl_loop_timer(a->loop, delay_us > 0 ? delay_us : 0, fn, a, NULL);
}

static void grace_due(void *arg)
{
    struct sl_agent *a = arg;

    a->grace_timer = -1;
    sl_agent_handle(a, EV_GRACE);
}

void sl_agent_grace(struct sl_agent *a, int64_t delay_us)
{
    sl_agent_timer(a, &a->grace_timer, delay_us, grace_due);
}

static void near_due(void *arg)
{
    struct sl_agent *a = arg;

    a->near_timer = -1;
    sl_agent_handle(a, EV_NEAR);
}

static void renew_due(void *arg)
{
    struct sl_agent *a = arg;

    sl_agent_timer(a, &a->renew_timer, a->config->lease_ms * 1000 / 3, renew_due);
    sl_agent_renew(a);
}

void sl_agent_watch_lease(struct sl_agent *a)
{
    int64_t lease_us = a->config->lease_ms * 1000, left_us = a->work.deadline_us - sl_boot_us();

    sl_agent_timer(a, &a->near_timer, left_us - lease_us / 3, near_due);
    if (a->renew_timer < 0)
        sl_agent_timer(a, &a->renew_timer, left_us - lease_us * 2 / 3, renew_due);
    sl_child_deadline(a->main.child, a->work.deadline_us);
    sl_child_deadline(a->pusher.child, a->work.deadline_us);
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

    sl_log(SL_WARN, sl_agent_run(a), "leaving while %s: the time to leave is over",
           state_names[a->state]);
    sl_loop_stop(a->loop);
}

/* ---- connections and signals
 * ------------------------------------------------------------------------------- */

static void redis_state(void *arg, bool up, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    if (!up) {
        if (!a->told_away)
            sl_log(SL_WARN, sl_agent_run(a), "Redis is away, trying again: %s", err->msg);
        a->told_away = true;
        a->told_there = false;
        return;
    }
    if (a->work.lease[0]) {
        sl_agent_renew(a);
        sl_agent_name_checkpoint(a);
        sl_report_connected(a->work.report);
    }
    sl_agent_heartbeat(a);
    sl_agent_handle(a, EV_REDIS);
}

static void bell_state(void *arg, bool up, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    (void)err; /* the other connection tells it */
    if (up && a->state == ST_IDLE)
        sl_agent_handle(a, EV_BELL);
    else if (up)
        sl_agent_wait(a);
}

static void on_term(void *arg, int signo)
{
    struct sl_agent *a = arg;

    if (a->leaving) {
        sl_log(SL_WARN, sl_agent_run(a), "signal %d again: leaving at once", signo);
        sl_loop_stop(a->loop);
        return;
    }
    sl_log(SL_INFO, sl_agent_run(a), "signal %d: %s", signo,
           sl_agent_run(a) ? "giving the run back, then leaving" : "leaving");
    a->leaving = true;
    a->term_us = sl_boot_us();
    sl_agent_timer(a, &a->leave_timer, SL_AGENT_LEAVE_US, leave_due);
    sl_agent_handle(a, EV_TERM);
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
        rc = sl_loop_signal(a->loop, SIGTERM, on_term, a, err);
    if (!rc)
        rc = sl_loop_signal(a->loop, SIGINT, on_term, a, err);
    if (!rc)
        rc = sl_redis_async_new(a->loop, url, redis_state, a, &a->redis, err);
    if (!rc)
        rc = sl_redis_async_new(a->loop, url, bell_state, a, &a->bell, err);
    return rc;
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
    a->work.dir.lock_fd = -1;
    a->renew_timer = a->near_timer = a->grace_timer = a->leave_timer = a->retry_timer =
        a->beat_timer = a->wait_timer = -1;
    signal(SIGPIPE, SIG_IGN);
    rc = set_up(a, &url, err);
    if (!rc) {
        sl_agent_timer(a, &a->beat_timer, SL_AGENT_HEARTBEAT_US, beat_due);
        rc = sl_loop_run(a->loop, err);
    }
    sl_child_free(a->main.child);
    sl_child_free(a->pusher.child);
    sl_report_free(a->work.report);
    a->work.report = NULL;
    a->work.lease[0] = 0; /* what Redis still answers belongs to nobody */
    a->state = ST_DROPPING;
    sl_redis_async_free(a->bell);
    sl_redis_async_free(a->redis);
    sl_rundir_remove(&a->work.dir);
    sl_claim_release(&a->work.claim);
    json_decref(a->main.result);
    json_decref(a->pusher.result);
    json_decref(a->ended.result);
    if (a->loop)
        sl_loop_free(a->loop);
    free(a);
    return rc;
}
