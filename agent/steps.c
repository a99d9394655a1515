#include "agent/agent_inner.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- outcomes
 * ---------------------------------------------------------------------------------------------- */

/* Which budget an error is paid from: see fail.lua. */
static const char *kind_of(const char *cause)
{
    switch (strcmp(cause, "crash") ? sl_code_from_name(cause) : SL_NOMEM) {
    case SL_SPEC:
    case SL_NOTFOUND:
    case SL_CONFLICT:
    case SL_DENIED:
    case SL_DATA:
        return "final";
    case SL_RETRY:
    case SL_DEVICE:
        return "infra";
    case SL_CANCELLED:
        return "cancelled";
    default:
        return "crash";
    }
}

/* kind "": the run is given back. */
static void end_work(struct sl_agent *a, const char *kind, const char *cause, const char *msg)
{
    struct sl_work *w = &a->work;

    snprintf(w->kind, sizeof w->kind, "%s", kind);
    snprintf(w->cause, sizeof w->cause, "%s", cause);
    snprintf(w->msg, sizeof w->msg, "%s", msg);
    if (*msg)
        sl_report_log(w->report, "error", "%s: %s", cause, msg);
    sl_log(*kind ? SL_WARN : SL_INFO, w->claim.run, "%s: %s%s%s", *kind ? "ended" : "given back",
           cause, *msg ? ": " : "", msg);
    sl_child_kill(a->main.child);
    sl_child_kill(a->pusher.child);
    sl_agent_enter(a, ST_ENDING);
    sl_agent_record(a);
}

static void end_with_err(struct sl_agent *a, const struct sl_err *err)
{
    const char *cause = sl_code_name(err->code);

    end_work(a, kind_of(cause), cause, err->msg);
}

static void end_with_child(struct sl_agent *a)
{
    end_work(a, kind_of(a->ended.cause), a->ended.cause, a->ended.msg);
}

void sl_step_release(struct sl_agent *a)
{
    end_work(a, "", "preempted", "");
}

void sl_step_cancelled(struct sl_agent *a)
{
    end_work(a, "cancelled", "cancelled", "");
}

/* The run is over for this agent. */
static void finish_work(struct sl_agent *a)
{
    struct sl_work *w = &a->work;
    int *timers[] = {&a->renew_timer, &a->near_timer, &a->grace_timer, &a->retry_timer};

    for (size_t i = 0; i < sizeof timers / sizeof *timers; i++) {
        sl_loop_timer_cancel(a->loop, *timers[i]);
        *timers[i] = -1;
    }
    sl_report_free(w->report);
    sl_rundir_remove(&w->dir);
    sl_claim_release(&w->claim);
    memset(w, 0, sizeof *w);
    w->dir.lock_fd = -1;
    a->runs_done++;
    if (a->leaving || (a->config->max_runs && a->runs_done >= a->config->max_runs)) {
        sl_step_leave(a);
        return;
    }
    sl_agent_enter(a, ST_IDLE);
    sl_agent_heartbeat(a);
    sl_step_claim(a);
}

void sl_step_recorded(struct sl_agent *a)
{
    a->work.recorded = true;
    sl_step_check_done(a);
}

/* In ST_ENDING and ST_DROPPING: done when there is nothing left to wait for. */
void sl_step_check_done(struct sl_agent *a)
{
    if (!a->main.child && !a->pusher.child && (a->state == ST_DROPPING || a->work.recorded))
        finish_work(a);
}

void sl_step_drop(struct sl_agent *a)
{
    sl_log(SL_WARN, a->work.claim.run, "the lease is lost: stopping, and writing nothing more");
    a->work.lost = true;
    sl_child_kill(a->main.child);
    sl_child_kill(a->pusher.child);
    sl_agent_enter(a, ST_DROPPING);
    sl_step_check_done(a);
}

/* A renewal that comes after the server has published is refused too: the upload's result tells
 * which it is. */
void sl_step_note_lost(struct sl_agent *a)
{
    a->work.lost = true;
    if (!a->main.child)
        sl_step_drop(a);
}

/* ---- claiming and leaving
 * ---------------------------------------------------------------------------------- */

void sl_step_claim(struct sl_agent *a)
{
    if (a->state == ST_IDLE) {
        if (a->leaving) {
            sl_step_leave(a);
            return;
        }
        if (a->waiting == WAIT_ALL || !sl_redis_async_up(a->redis))
            return; /* comes back here when the wait is answered, or Redis is there */
        sl_agent_enter(a, ST_CLAIMING);
        sl_random_id(a->lease);
        a->claim_sent_us = 0;
    }
    sl_agent_claim(a);
}

void sl_step_wait(struct sl_agent *a)
{
    sl_agent_enter(a, ST_IDLE);
    if (a->leaving)
        sl_step_leave(a);
    else
        sl_agent_wait(a);
}

void sl_step_leave(struct sl_agent *a)
{
    a->leaving = true;
    sl_agent_heartbeat(a);
    sl_loop_stop(a->loop);
}

/* Without Redis there is nobody to give a run back to: its lease will end by itself. */
void sl_step_leave_if_away(struct sl_agent *a)
{
    if (!sl_redis_async_up(a->redis))
        sl_step_leave(a);
}

/* ---- fetching and training
 * --------------------------------------------------------------------------------- */

static void begin_phase(struct sl_agent *a, enum sl_agent_state state, const char *phase,
                        int (*start)(struct sl_agent *, struct sl_err *))
{
    struct sl_err err = SL_ERR_INIT;

    sl_agent_enter(a, state);
    sl_report_phase(a->work.report, phase);
    sl_agent_heartbeat(a);
    if (start && start(a, &err))
        end_with_err(a, &err);
}

void sl_step_begin(struct sl_agent *a)
{
    struct sl_work *w = &a->work;
    struct sl_err err = SL_ERR_INIT;

    sl_log(SL_INFO, w->claim.run, "claimed %s, attempt %d%s", w->claim.name, w->claim.attempt,
           w->claim.checkpoint[0] ? ", going on from its checkpoint" : "");
    sl_agent_watch_lease(a);
    sl_agent_wait(a);
    if (a->leaving)
        sl_step_release(a);
    else if (sl_rundir_make(a->config->work_dir, w->claim.run, w->lease, &w->dir, &err))
        end_with_err(a, &err);
    else
        begin_phase(a, ST_FETCHING, "fetching", sl_agent_start_fetch);
}

static void pause_work(struct sl_agent *a, enum sl_agent_state resume)
{
    sl_log(SL_WARN, a->work.claim.run, "paused: the lease could not be renewed in time");
    a->work.resume = resume;
    a->work.pausing = false;
    sl_agent_enter(a, ST_PAUSED);
    if (a->leaving && !sl_redis_async_up(a->redis))
        sl_step_leave(a);
    else
        sl_agent_renew(a);
}

void sl_step_fetched(struct sl_agent *a)
{
    if (a->leaving)
        sl_step_release(a);
    else if (a->work.cancelled)
        sl_step_cancelled(a);
    else if (a->ended.ending == END_OK)
        begin_phase(a, ST_TRAINING, "training", sl_agent_start_work);
    else if (a->ended.ending == END_ABANDONED)
        pause_work(a, ST_FETCHING);
    else
        end_with_child(a);
}

static void begin_release(struct sl_agent *a)
{
    int64_t since_us = a->term_us ? sl_boot_us() - a->term_us : 0;

    if (a->leaving && !sl_redis_async_up(a->redis)) { /* nobody to give it back to: sl_step_leave_if_away */
        sl_step_leave(a);
        return;
    }
    sl_agent_start_push(a);
    if (!a->pusher.child) {
        sl_step_release(a);
        return;
    }
    begin_phase(a, ST_RELEASING, "releasing", NULL);
    sl_agent_grace(a, SL_AGENT_RELEASE_US - since_us);
}

static void begin_publish(struct sl_agent *a)
{
    a->work.pending[0] = 0; /* the result makes checkpoints superfluous */
    sl_child_kill(a->pusher.child);
    begin_phase(a, ST_PUBLISHING, "publishing", NULL);
}

void sl_step_trained(struct sl_agent *a)
{
    enum sl_ending how = a->ended.ending;

    sl_loop_timer_cancel(a->loop, a->grace_timer);
    a->grace_timer = -1;
    if (a->work.cancelled || how == END_CANCELLED)
        sl_step_cancelled(a);
    else if (how == END_OK)
        begin_publish(a);
    else if ((how == END_PREEMPTED && a->work.pausing) || (how == END_ABANDONED && !a->leaving))
        pause_work(a, ST_TRAINING);
    else if (how == END_PREEMPTED || a->leaving)
        begin_release(a);
    else
        end_with_child(a);
}

void sl_step_kill(struct sl_agent *a)
{
    sl_child_kill(a->main.child);
}

void sl_step_cancel(struct sl_agent *a)
{
    sl_log(SL_INFO, a->work.claim.run, "cancelled: stopping the worker");
    sl_child_command(a->main.child, "cancel");
    sl_agent_grace(a, SL_AGENT_CANCEL_GRACE_US);
}

void sl_step_preempt(struct sl_agent *a)
{
    sl_child_command(a->main.child, "preempt");
    sl_agent_grace(a, SL_AGENT_PREEMPT_US);
}

void sl_step_pause(struct sl_agent *a)
{
    if (a->work.pausing)
        return;
    sl_log(SL_WARN, a->work.claim.run,
           "the lease ends soon and cannot be renewed: the worker writes a checkpoint and pauses");
    a->work.pausing = true;
    sl_child_command(a->main.child, "pause");
}

/* The worker keeps its model: a short absence of Redis costs no reload. */
void sl_step_unpause(struct sl_agent *a)
{
    if (!a->work.pausing)
        return;
    sl_log(SL_INFO, a->work.claim.run, "the lease is ours again: the worker goes on");
    a->work.pausing = false;
    sl_child_command(a->main.child, "resume");
}

void sl_step_resume(struct sl_agent *a)
{
    struct sl_work *w = &a->work;
    struct sl_err err = SL_ERR_INIT;

    if (a->leaving) {
        begin_release(a);
        return;
    }
    sl_log(SL_INFO, w->claim.run, "the lease is ours again: going on");
    if (w->resume == ST_FETCHING)
        begin_phase(a, ST_FETCHING, "fetching", sl_agent_start_fetch);
    else if (w->resume == ST_PUBLISHING)
        begin_publish(a);
    else if (w->local[0] && sl_rundir_resume_from(&w->dir, w->local, &err))
        end_with_err(a, &err);
    else
        begin_phase(a, ST_TRAINING, "training", sl_agent_start_work);
}

/* ---- checkpoints
 * ------------------------------------------------------------------------------------------- */

static void take_pushed(struct sl_agent *a)
{
    struct sl_work *w = &a->work;
    const char *manifest =
        sl_json_str(json_array_get(json_object_get(a->ended.result, "manifests"), 0), "sha256", "");

    if (a->ended.ending == END_OK && strlen(manifest) == sizeof w->manifest - 1) {
        memcpy(w->manifest, manifest, sizeof w->manifest);
        w->manifest_step = w->push_step;
        w->manifest_mark = w->push_mark;
        sl_agent_name_checkpoint(a);
    } else if (w->report) {
        sl_report_log(w->report, "warn", "the checkpoint of step %lld was not uploaded: %s",
                      (long long)w->push_step, a->ended.msg);
    }
}

void sl_step_pushed(struct sl_agent *a)
{
    take_pushed(a);
    sl_agent_start_push(a);
}

void sl_step_pushed_last(struct sl_agent *a)
{
    sl_step_pushed(a);
    if (!a->pusher.child)
        sl_step_release(a);
}

/* ---- publishing
 * -------------------------------------------------------------------------------------------- */

/* Only when every event is in Redis: publishing ends the lease. */
void sl_step_publish(struct sl_agent *a)
{
    struct sl_err err = SL_ERR_INIT;

    if (a->main.child || a->retry_timer >= 0 || !sl_report_drained(a->work.report))
        return;
    if (sl_agent_start_publish(a, &err))
        end_with_err(a, &err);
}

static void publish_again(void *arg)
{
    struct sl_agent *a = arg;

    a->retry_timer = -1;
    if (a->state == ST_PUBLISHING)
        sl_step_publish(a);
}

void sl_step_published(struct sl_agent *a)
{
    struct sl_work *w = &a->work;
    int code = sl_code_from_name(a->ended.cause);

    if (a->ended.ending == END_OK) {
        sl_log(SL_INFO, w->claim.run, "published %s", w->claim.name);
        finish_work(a);
    } else if (w->lost || (a->ended.ending == END_FAILED && code == SL_LEASE)) {
        sl_step_drop(a);
    } else if (w->cancelled || a->ended.ending == END_CANCELLED || code == SL_CANCELLED) {
        sl_step_cancelled(a);
    } else if (a->leaving) {
        sl_step_release(a);
    } else if (a->ended.ending == END_ABANDONED) {
        pause_work(a, ST_PUBLISHING);
    } else if (code == SL_RETRY && w->publish_tries < SL_AGENT_PUBLISH_TRIES) {
        int64_t pause_us = INT64_C(500000) << (w->publish_tries < 6 ? w->publish_tries : 6);
        w->publish_tries++;
        sl_log(SL_WARN, w->claim.run, "publishing again in %.1f s: %s", (double)pause_us / 1e6,
               a->ended.msg);
        sl_agent_timer(a, &a->retry_timer, pause_us, publish_again);
    } else {
        end_with_child(a);
    }
}

void sl_step_grace_publish(struct sl_agent *a)
{
    if (a->main.child)
        sl_agent_grace(a, SL_AGENT_PREEMPT_US);
    else
        sl_step_release(a);
}
