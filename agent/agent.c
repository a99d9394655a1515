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

/* ---- the table --------------------------------------------------------------------------------------------- */

static const char *const state_names[N_STATES] = {"idle", "claiming", "fetching", "training", "publishing",
                                                  "releasing", "paused", "ending", "dropping"};

/* What is not here is ignored in that state. EV_REDIS renews a lease and sends waiting events in every state. */
static sl_agent_step *const table[N_STATES][N_EVENTS] = {
    [ST_IDLE] = {[EV_REDIS] = sl_step_claim, [EV_BELL] = sl_step_claim, [EV_TERM] = sl_step_leave},
    [ST_CLAIMING] = {[EV_REDIS] = sl_step_claim, [EV_CLAIMED] = sl_step_begin, [EV_NOTHING] = sl_step_wait,
                     [EV_TERM] = sl_step_leave_if_away},
    [ST_FETCHING] = {[EV_CHILD] = sl_step_fetched, [EV_CANCEL] = sl_step_kill, [EV_TERM] = sl_step_kill,
                     [EV_LOST] = sl_step_drop},
    [ST_TRAINING] = {[EV_CHILD] = sl_step_trained, [EV_PUSHED] = sl_step_pushed, [EV_NEAR] = sl_step_pause,
                     [EV_CANCEL] = sl_step_cancel, [EV_TERM] = sl_step_preempt, [EV_GRACE] = sl_step_kill,
                     [EV_LOST] = sl_step_drop},
    [ST_PUBLISHING] = {[EV_CHILD] = sl_step_published, [EV_DRAINED] = sl_step_publish,
                       [EV_TERM] = sl_step_grace_publish, [EV_GRACE] = sl_step_kill,
                       [EV_LOST] = sl_step_note_lost},
    [ST_RELEASING] = {[EV_PUSHED] = sl_step_pushed_last, [EV_GRACE] = sl_step_release,
                      [EV_LOST] = sl_step_drop},
    [ST_PAUSED] = {[EV_RENEWED] = sl_step_resume, [EV_CANCEL] = sl_step_cancelled,
                   [EV_TERM] = sl_step_leave_if_away, [EV_LOST] = sl_step_drop, [EV_PUSHED] = sl_step_pushed},
    [ST_ENDING] = {[EV_CHILD] = sl_step_check_done, [EV_PUSHED] = sl_step_check_done,
                   [EV_DRAINED] = sl_agent_record, [EV_RECORDED] = sl_step_recorded,
                   [EV_REDIS] = sl_agent_record, [EV_LOST] = sl_step_recorded,
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

const char *sl_agent_run(const struct sl_agent *a)
{
    return a->work.claim.run[0] ? a->work.claim.run : NULL;
}

/* ---- timers ------------------------------------------------------------------------------------------------ */

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

    sl_log(SL_WARN, sl_agent_run(a), "leaving while %s: the time to leave is over", state_names[a->state]);
    sl_loop_stop(a->loop);
}

/* ---- calls to Redis ---------------------------------------------------------------------------------------- */

/* A reply belongs to the lease it was asked for, and is ignored when that run is over here. */
struct call {
    struct sl_agent *a;
    char lease[SL_ID_HEX + 1];
};

/* Sends c and releases it. */
static int send_for_work(struct sl_agent *a, struct sl_cmd *c, sl_redis_reply_fn *fn)
{
    struct call *call = malloc(sizeof *call);
    int rc = SL_NOMEM;

    if (call) {
        call->a = a;
        memcpy(call->lease, a->work.lease, sizeof call->lease);
        rc = sl_redis_async_call(a->redis, c, 0, fn, call, NULL);
        if (rc)
            free(call);
    }
    sl_cmd_release(c);
    return rc;
}

/* The agent, or NULL when the call's run is over. */
static struct sl_agent *take_call(void *arg)
{
    struct call *call = arg;
    struct sl_agent *a = strcmp(call->lease, call->a->work.lease) ? NULL : call->a;

    free(call);
    return a;
}

static void on_renewed(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = take_call(arg);
    bool cancelled = false, revived = false;

    if (!a)
        return;
    a->work.renewing = false;
    if (err && err->code == SL_LEASE) {
        sl_agent_handle(a, EV_LOST);
        return;
    }
    if (err || sl_queue_renew_reply(reply, &cancelled, &revived, NULL))
        return; /* the next timer, or the next connection, tries again */
    if (revived)
        sl_log(SL_INFO, a->work.claim.run, "the lease had run out and is revived");
    a->work.deadline_us = a->work.renew_sent_us + a->config->lease_ms * 1000;
    sl_agent_watch_lease(a);
    if (cancelled && !a->work.cancelled) {
        a->work.cancelled = true;
        sl_agent_handle(a, EV_CANCEL);
    }
    sl_agent_handle(a, EV_RENEWED);
}

void sl_agent_renew(struct sl_agent *a)
{
    struct sl_cmd c;

    if (!a->work.lease[0] || a->work.renewing || a->work.recorded || a->work.recording || a->work.lost)
        return;
    a->work.renew_sent_us = sl_boot_us();
    sl_queue_cmd_renew(&c, a->work.claim.run, a->work.lease, a->config->lease_ms);
    a->work.renewing = !send_for_work(a, &c, on_renewed);
}

static void on_named(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = take_call(arg);

    (void)reply;
    if (!a)
        return;
    a->work.naming = false;
    if (!err)
        a->work.manifest[0] = 0;
    else if (err->code == SL_LEASE)
        sl_agent_handle(a, EV_LOST);
}

void sl_agent_name_checkpoint(struct sl_agent *a)
{
    struct sl_cmd c;

    if (!a->work.manifest[0] || a->work.naming || a->work.lost)
        return;
    sl_queue_cmd_checkpoint(&c, a->work.claim.run, a->work.lease, a->work.manifest, a->work.manifest_step);
    a->work.naming = !send_for_work(a, &c, on_named);
}

static void on_recorded(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = take_call(arg);

    if (!a)
        return;
    a->work.recording = false;
    if (err && err->code == SL_RETRY)
        return; /* again when Redis is back; a repeated call gets the first answer */
    if (err)
        sl_log(SL_WARN, a->work.claim.run, "the outcome was not taken: %s", err->msg);
    else
        sl_log(SL_INFO, a->work.claim.run, "now %s", reply->str ? reply->str : "?");
    sl_agent_handle(a, EV_RECORDED);
}

void sl_agent_record(struct sl_agent *a)
{
    struct sl_work *w = &a->work;
    struct sl_cmd c;
    char *tail;

    if (w->recording || w->recorded || !sl_report_drained(w->report))
        return;
    sl_agent_name_checkpoint(a);
    if (w->kind[0]) {
        tail = sl_report_log_tail(w->report);
        sl_queue_cmd_fail(&c, w->claim.run, w->lease, w->kind, w->cause, w->msg, tail);
        free(tail);
    } else {
        sl_queue_cmd_release(&c, w->claim.run, w->lease, w->cause);
    }
    w->recording = !send_for_work(a, &c, on_recorded);
}

static void nothing_to_do(void *arg, const redisReply *reply, const struct sl_err *err)
{
    (void)arg;
    (void)reply;
    (void)err;
}

void sl_agent_heartbeat(struct sl_agent *a)
{
    char host[256] = "", *json = NULL;
    struct sl_cmd c;

    if (!a->leaving || sl_agent_run(a)) {
        json_t *queues = json_array(), *o;
        for (int i = 0; i < a->config->n_queues; i++)
            json_array_append_new(queues, json_string(a->config->queues[i]));
        gethostname(host, sizeof host - 1);
        o = json_pack("{s:s, s:i, s:o, s:s, s:s?, s:s?, s:s}", "host", host, "pid", (int)getpid(), "queues",
                      queues, "state", state_names[a->state], "run", sl_agent_run(a), "name", a->work.claim.name,
                      "version", SL_VERSION);
        json = sl_json_dump(o);
        json_decref(o);
    }
    sl_queue_cmd_heartbeat(&c, a->id, json);
    sl_redis_async_call(a->redis, &c, 0, nothing_to_do, NULL, NULL);
    sl_cmd_release(&c);
    free(json);
}

/* ---- claiming ---------------------------------------------------------------------------------------------- */

static void work_lost(void *arg)
{
    sl_agent_handle(arg, EV_LOST);
}

static void work_drained(void *arg)
{
    sl_agent_handle(arg, EV_DRAINED);
}

static void claim_later(void *arg)
{
    struct sl_agent *a = arg;

    a->retry_timer = -1;
    sl_agent_handle(a, EV_NOTHING);
}

static void on_claimed(void *arg, const redisReply *reply, const struct sl_err *err)
{
    const struct sl_report_owner owner = {work_lost, work_drained, arg};
    struct sl_agent *a = arg;
    struct sl_work *w = &a->work;
    struct sl_err failed = SL_ERR_INIT;
    int rc;

    a->claiming = false;
    if (a->state != ST_CLAIMING || (err && err->code == SL_RETRY && !sl_redis_async_up(a->redis)))
        return; /* EV_REDIS asks again under the same lease id */
    rc = err ? sl_err_set(&failed, err->code, "%s", err->msg) : sl_queue_claim_reply(reply, &w->claim, &failed);
    if (!rc) {
        memcpy(w->lease, a->lease, sizeof w->lease);
        w->deadline_us = a->claim_sent_us + a->config->lease_ms * 1000;
        w->dir.lock_fd = -1;
        rc = sl_report_new(a->loop, a->redis, w->claim.run, w->lease, &owner, &w->report, &failed);
    }
    if (rc) {
        sl_claim_release(&w->claim);
        memset(w, 0, sizeof *w);
        w->dir.lock_fd = -1;
        if (rc == SL_NOTFOUND) {
            sl_agent_handle(a, EV_NOTHING);
        } else {
            sl_log(SL_ERROR, NULL, "claiming: %s", failed.msg);
            sl_agent_timer(a, &a->retry_timer, SL_AGENT_WAIT_MS * 1000, claim_later);
        }
        return;
    }
    sl_agent_handle(a, EV_CLAIMED);
}

void sl_agent_claim(struct sl_agent *a)
{
    struct sl_cmd c;

    if (a->claiming || a->retry_timer >= 0)
        return;
    if (!a->claim_sent_us)
        a->claim_sent_us = sl_boot_us();
    sl_queue_cmd_claim(&c, a->lease, a->id, a->config->lease_ms, a->config->queues, a->config->n_queues);
    a->claiming = !sl_redis_async_call(a->redis, &c, 0, on_claimed, a, NULL);
    sl_cmd_release(&c);
}

static void wait_later(void *arg)
{
    struct sl_agent *a = arg;

    a->wait_timer = -1;
    sl_agent_wait(a);
}

static void on_bell(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    a->waiting = WAIT_NONE;
    if (err && !sl_redis_async_up(a->bell))
        return; /* bell_state goes on */
    if (err) {
        sl_log(SL_ERROR, sl_agent_run(a), "waiting for runs: %s", err->msg);
        sl_agent_timer(a, &a->wait_timer, SL_AGENT_WAIT_MS * 1000, wait_later);
        return;
    }
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[0]->str &&
        strstr(reply->element[0]->str, ":ring:"))
        sl_agent_renew(a); /* its reply tells what there is to hear */
    if (a->state == ST_IDLE)
        sl_agent_handle(a, EV_BELL);
    else
        sl_agent_wait(a);
}

void sl_agent_wait(struct sl_agent *a)
{
    bool idle = a->state == ST_IDLE;
    struct sl_cmd c;

    /* A busy agent waits for its own ring only: it must not take a bell that is meant for an idle one. When it
     * becomes idle it rings itself, to wait anew for both. */
    if (a->waiting == WAIT_RING && idle) {
        sl_queue_cmd_ring(&c, a->id);
        sl_redis_async_call(a->redis, &c, 0, nothing_to_do, NULL, NULL);
        sl_cmd_release(&c);
    }
    if (a->waiting || a->wait_timer >= 0 || (!idle && !a->work.lease[0]))
        return;
    sl_queue_cmd_wait(&c, a->id, a->config->queues, idle ? a->config->n_queues : 0, SL_AGENT_WAIT_MS);
    if (!sl_redis_async_call(a->bell, &c, SL_AGENT_WAIT_MS * 1000, on_bell, a, NULL))
        a->waiting = idle ? WAIT_ALL : WAIT_RING;
    sl_cmd_release(&c);
}

/* ---- connections and signals ------------------------------------------------------------------------------- */

static void redis_state(void *arg, bool up, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    if (!up) {
        if (!a->told_away)
            sl_log(SL_WARN, sl_agent_run(a), "Redis is away, trying again: %s", err->msg);
        a->told_away = true;
        return;
    }
    sl_log(SL_INFO, sl_agent_run(a), "connected to Redis as agent %s", a->id);
    a->told_away = false;
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

/* ---- start and end ----------------------------------------------------------------------------------------- */

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
    a->renew_timer = a->near_timer = a->grace_timer = a->leave_timer = a->retry_timer = a->beat_timer =
        a->wait_timer = -1;
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
