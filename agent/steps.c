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
    if (!strcmp(cause, "crash"))
        return "crash";
    switch (sl_code_from_name(cause)) {
    case SL_SPEC:
        return "spec";
    case SL_NOTFOUND:
    case SL_CONFLICT:
    case SL_DENIED:
    case SL_DATA:
        return "user_data";
    case SL_RETRY:
    case SL_DEVICE:
        return "infrastructure";
    case SL_NOMEM:
        return "out_of_memory";
    case SL_CANCELLED:
        return "cancelled";
    default:
        return "crash";
    }
}

/* kind "": the run is given back. */
static void end_work(struct sl_slot *s, const char *kind, const char *cause, const char *msg)
{
    struct sl_work *w = &s->work;

    snprintf(w->kind, sizeof w->kind, "%s", kind);
    snprintf(w->cause, sizeof w->cause, "%s", cause);
    snprintf(w->msg, sizeof w->msg, "%s", msg);
    if (*msg)
        sl_report_log(w->report, "error", "%s: %s", cause, msg);
    sl_log(*kind ? SL_WARN : SL_INFO, w->claim.run, "%s: %s%s%s", *kind ? "ended" : "given back",
           cause, *msg ? ": " : "", msg);
    sl_child_kill(s->main.child);
    sl_child_kill(s->pusher.child);
    sl_slot_enter(s, ST_ENDING);
    sl_slot_record(s);
}

static void end_with_err(struct sl_slot *s, const struct sl_err *err)
{
    const char *cause = sl_code_name(err->code);

    end_work(s, kind_of(cause), cause, err->msg);
}

static void end_with_child(struct sl_slot *s)
{
    if (sl_code_from_name(s->ended.cause) == SL_DEVICE)
        sl_agent_device_failed(s->agent, s->ended.msg);
    s->work.exit_code = s->ended.exit_code;
    s->work.exit_signal = s->ended.exit_signal;
    end_work(s, kind_of(s->ended.cause), s->ended.cause, s->ended.msg);
}

void sl_step_release(struct sl_slot *s)
{
    end_work(s, "", "preempted", "");
}

void sl_step_overtime(struct sl_slot *s)
{
    end_work(s, "timeout", "timeout", "it has run for its time_limit_s");
}

void sl_step_cancelled(struct sl_slot *s)
{
    end_work(s, "cancelled", "cancelled", "");
}

static int outcome_of(const struct sl_work *w)
{
    if (!w->recorded)
        return w->lost ? OUT_LOST : OUT_PUBLISHED;
    return !w->kind[0] ? OUT_GIVEN_BACK : strcmp(w->kind, "cancelled") ? OUT_FAILED : OUT_CANCELLED;
}

/* The run is over for this agent. */
static void finish_work(struct sl_slot *s)
{
    struct sl_work *w = &s->work;
    int *timers[] = {&s->renew_timer, &s->near_timer, &s->grace_timer, &s->retry_timer,
                     &s->limit_timer};

    for (size_t i = 0; i < sizeof timers / sizeof *timers; i++) {
        sl_loop_timer_cancel(s->agent->loop, *timers[i]);
        *timers[i] = -1;
    }
    sl_slot_usage_stop(s);
    s->agent->outcomes[outcome_of(w)]++;
    sl_report_free(w->report);
    sl_rundir_remove(&w->dir);
    sl_claim_release(&w->claim);
    json_decref(w->inputs);
    json_decref(w->started);
    sl_secrets_release(&w->secrets);
    memset(w, 0, sizeof *w);
    w->dir.lock_fd = -1;
    s->agent->runs_done++;
    sl_slot_enter(s, ST_IDLE);
    if (s->agent->leaving) {
        sl_step_leave(s);
        return;
    }
    sl_agent_heartbeat(s->agent);
    sl_agent_look(s->agent);
}

void sl_step_recorded(struct sl_slot *s)
{
    s->work.recorded = true;
    sl_step_check_done(s);
}

/* In ST_ENDING and ST_DROPPING: done when there is nothing left to wait for. */
void sl_step_check_done(struct sl_slot *s)
{
    if (!s->main.child && !s->pusher.child && (s->state == ST_DROPPING || s->work.recorded))
        finish_work(s);
}

void sl_step_drop(struct sl_slot *s)
{
    sl_log(SL_WARN, s->work.claim.run, "the lease is lost: stopping, and writing nothing more");
    s->work.lost = true;
    sl_child_kill(s->main.child);
    sl_child_kill(s->pusher.child);
    sl_slot_enter(s, ST_DROPPING);
    sl_step_check_done(s);
}

/* A renewal that comes after the server has published is refused too: the upload's result tells
 * which it is. */
void sl_step_note_lost(struct sl_slot *s)
{
    s->work.lost = true;
    if (!s->main.child)
        sl_step_drop(s);
}

/* ---- claiming and leaving
 * ---------------------------------------------------------------------------------- */

/* How many runs may still be started. */
static int runs_left(const struct sl_agent *a)
{
    if (a->wanted == SL_AGENT_DRAINING)
        return 0;
    return a->config->max_runs ? a->config->max_runs - a->runs_done - sl_agent_busy(a) : 1;
}

void sl_step_claim(struct sl_slot *s)
{
    struct sl_agent *a = s->agent;

    if (s->state == ST_IDLE) {
        if (a->leaving || runs_left(a) < 1) {
            sl_step_leave(s);
            return;
        }
        if (a->wanted == SL_AGENT_PAUSED || a->quarantine[0]) {
            sl_agent_wait(a);
            return;
        }
        if (!sl_redis_async_up(a->redis))
            return; /* comes back here when it is there */
        sl_slot_enter(s, ST_CLAIMING);
        sl_random_id(s->lease);
        s->claim_sent_us = 0;
    }
    sl_slot_claim(s);
}

/* Nothing is in line. */
void sl_step_wait(struct sl_slot *s)
{
    struct sl_agent *a = s->agent;

    sl_slot_enter(s, ST_IDLE);
    if (!a->leaving && !(a->config->exit_when_idle && !sl_agent_busy(a))) {
        sl_agent_wait(a);
        return;
    }
    for (int i = 0; i < a->n_slots; i++)
        if (a->slot[i].state == ST_IDLE)
            sl_step_leave(&a->slot[i]);
}

void sl_step_leave(struct sl_slot *s)
{
    s->work.lost = true; /* what it still holds is nobody's business any more */
    sl_child_kill(s->main.child);
    sl_child_kill(s->pusher.child);
    sl_slot_enter(s, ST_LEFT);
    sl_agent_left(s->agent);
}

/* Without Redis there is nobody to give a run back to: its lease will end by itself. */
void sl_step_leave_if_away(struct sl_slot *s)
{
    if (!sl_redis_async_up(s->agent->redis))
        sl_step_leave(s);
}

/* ---- fetching and training
 * --------------------------------------------------------------------------------- */

static void begin_phase(struct sl_slot *s, enum sl_agent_state state, const char *phase,
                        int (*start)(struct sl_slot *, struct sl_err *))
{
    struct sl_err err = SL_ERR_INIT;

    sl_slot_enter(s, state);
    sl_report_phase(s->work.report, phase);
    sl_agent_heartbeat(s->agent);
    if (start && start(s, &err))
        end_with_err(s, &err);
}

struct sl_secret_sources sl_agent_secret_sources(const struct sl_agent *a)
{
    return (struct sl_secret_sources){a->config->secrets_dir, a->config->allow_env, a->config->n_allow_env};
}

void sl_step_begin(struct sl_slot *s)
{
    struct sl_work *w = &s->work;
    const struct sl_secret_sources secrets = sl_agent_secret_sources(s->agent);
    struct sl_err err = SL_ERR_INIT;

    sl_log(SL_INFO, w->claim.run, "claimed %s, attempt %d%s", w->claim.name, w->claim.attempt,
           w->claim.checkpoint[0] ? ", going on from its checkpoint" : "");
    sl_slot_watch_lease(s);
    sl_slot_limit(s);
    sl_agent_look(s->agent); /* another slot's turn */
    sl_agent_wait(s->agent);
    if (s->agent->leaving)
        sl_step_release(s);
    else if (sl_secrets_load(w->claim.spec, &secrets, &w->secrets, &err) ||
             sl_rundir_make(s->agent->config->work_dir, w->claim.run, w->lease, &w->dir, &err))
        end_with_err(s, &err);
    else
        begin_phase(s, ST_FETCHING, "fetching", sl_slot_start_fetch);
}

static void pause_work(struct sl_slot *s, enum sl_agent_state resume)
{
    sl_log(SL_WARN, s->work.claim.run, "paused: the lease could not be renewed in time");
    s->work.resume = resume;
    s->work.pausing = false;
    sl_slot_enter(s, ST_PAUSED);
    sl_report_phase(s->work.report, "paused"); /* what is said twice behind it is no stale owner's */
    if (s->agent->leaving && !sl_redis_async_up(s->agent->redis))
        sl_step_leave(s);
    else
        sl_slot_renew(s);
}

void sl_step_fetched(struct sl_slot *s)
{
    if (s->agent->leaving)
        sl_step_release(s);
    else if (s->work.cancelled)
        sl_step_cancelled(s);
    else if (s->ended.ending == END_ABANDONED)
        pause_work(s, ST_FETCHING);
    else if (s->ended.ending == END_OK) {
        json_decref(s->work.inputs);
        s->work.inputs = json_incref(json_object_get(s->ended.result, "resolved"));
        begin_phase(s, ST_TRAINING, "training", sl_slot_start_work);
    } else {
        end_with_child(s);
    }
}

static void begin_release(struct sl_slot *s)
{
    int64_t since_us = s->agent->term_us ? sl_boot_us() - s->agent->term_us : 0;

    if (s->agent->leaving &&
        !sl_redis_async_up(
            s->agent->redis)) { /* nobody to give it back to: sl_step_leave_if_away */
        sl_step_leave(s);
        return;
    }
    sl_slot_start_push(s);
    if (!s->pusher.child) {
        sl_step_release(s);
        return;
    }
    begin_phase(s, ST_RELEASING, "releasing", NULL);
    sl_slot_grace(s, SL_AGENT_RELEASE_US - since_us);
}

static void begin_publish(struct sl_slot *s)
{
    s->work.pending[0] = 0; /* the result makes checkpoints superfluous */
    sl_child_kill(s->pusher.child);
    begin_phase(s, ST_PUBLISHING, "publishing", NULL);
}

void sl_step_trained(struct sl_slot *s)
{
    enum sl_ending how = s->ended.ending;

    sl_loop_timer_cancel(s->agent->loop, s->grace_timer);
    s->grace_timer = -1;
    if (how == END_OK)
        sl_agent_device_good(s->agent);
    if (s->work.cancelled || how == END_CANCELLED)
        sl_step_cancelled(s);
    else if (how == END_OK)
        begin_publish(s);
    else if ((how == END_PREEMPTED && s->work.pausing) ||
             (how == END_ABANDONED && !s->agent->leaving))
        pause_work(s, ST_TRAINING);
    else if (how == END_PREEMPTED || s->agent->leaving)
        begin_release(s);
    else
        end_with_child(s);
}

void sl_step_kill(struct sl_slot *s)
{
    sl_child_kill(s->main.child);
}

void sl_step_cancel(struct sl_slot *s)
{
    sl_log(SL_INFO, s->work.claim.run, "cancelled: stopping the worker");
    sl_child_command(s->main.child, "cancel");
    sl_slot_grace(s, SL_AGENT_CANCEL_GRACE_US);
}

void sl_step_preempt(struct sl_slot *s)
{
    sl_child_command(s->main.child, "preempt");
    sl_slot_grace(s, SL_AGENT_PREEMPT_US);
}

void sl_step_pause(struct sl_slot *s)
{
    if (s->work.pausing)
        return;
    sl_log(SL_WARN, s->work.claim.run,
           "the lease ends soon and cannot be renewed: the worker writes a checkpoint and pauses");
    s->work.pausing = true;
    sl_child_command(s->main.child, "pause");
}

/* The worker keeps its model: a short absence of Redis costs no reload. */
void sl_step_unpause(struct sl_slot *s)
{
    if (!s->work.pausing)
        return;
    sl_log(SL_INFO, s->work.claim.run, "the lease is ours again: the worker goes on");
    s->work.pausing = false;
    sl_child_command(s->main.child, "resume");
}

void sl_step_resume(struct sl_slot *s)
{
    struct sl_work *w = &s->work;
    struct sl_err err = SL_ERR_INIT;

    if (s->agent->leaving) {
        begin_release(s);
        return;
    }
    if (w->claim.time_left_ms >= 0 && s->limit_timer < 0) { /* it came to an end meanwhile */
        sl_step_overtime(s);
        return;
    }
    sl_log(SL_INFO, w->claim.run, "the lease is ours again: going on");
    if (w->resume == ST_FETCHING)
        begin_phase(s, ST_FETCHING, "fetching", sl_slot_start_fetch);
    else if (w->resume == ST_PUBLISHING)
        begin_publish(s);
    else if (w->local[0] && sl_rundir_resume_from(&w->dir, w->local, &err))
        end_with_err(s, &err);
    else
        begin_phase(s, ST_TRAINING, "training", sl_slot_start_work);
}

/* ---- checkpoints
 * ------------------------------------------------------------------------------------------- */

static void take_pushed(struct sl_slot *s)
{
    struct sl_work *w = &s->work;
    const char *manifest =
        sl_json_str(json_array_get(json_object_get(s->ended.result, "manifests"), 0), "sha256", "");

    if (s->ended.ending == END_OK && strlen(manifest) == sizeof w->manifest - 1) {
        memcpy(w->manifest, manifest, sizeof w->manifest);
        w->manifest_step = w->push_step;
        w->manifest_mark = w->push_mark;
        sl_slot_name_checkpoint(s);
    } else if (w->report) {
        sl_report_log(w->report, "warn", "the checkpoint of step %lld was not uploaded: %s",
                      (long long)w->push_step, s->ended.msg);
    }
}

void sl_step_pushed(struct sl_slot *s)
{
    take_pushed(s);
    sl_slot_start_push(s);
}

void sl_step_pushed_last(struct sl_slot *s)
{
    sl_step_pushed(s);
    if (!s->pusher.child)
        sl_step_release(s);
}

/* ---- publishing
 * -------------------------------------------------------------------------------------------- */

/* Only when every event is in Redis: publishing ends the lease. */
void sl_step_publish(struct sl_slot *s)
{
    struct sl_err err = SL_ERR_INIT;

    if (s->main.child || s->retry_timer >= 0 || !sl_report_drained(s->work.report))
        return;
    if (sl_slot_start_publish(s, &err))
        end_with_err(s, &err);
}

static void publish_again(void *arg)
{
    struct sl_slot *s = arg;

    s->retry_timer = -1;
    if (s->state == ST_PUBLISHING)
        sl_step_publish(s);
}

void sl_step_published(struct sl_slot *s)
{
    struct sl_work *w = &s->work;
    int code = sl_code_from_name(s->ended.cause);

    if (s->ended.ending == END_OK) {
        sl_log(SL_INFO, w->claim.run, "published %s", w->claim.name);
        finish_work(s);
    } else if (w->lost || (s->ended.ending == END_FAILED && code == SL_LEASE)) {
        sl_step_drop(s);
    } else if (w->cancelled || s->ended.ending == END_CANCELLED || code == SL_CANCELLED) {
        sl_step_cancelled(s);
    } else if (s->agent->leaving) {
        sl_step_release(s);
    } else if (s->ended.ending == END_ABANDONED) {
        pause_work(s, ST_PUBLISHING);
    } else if (code == SL_RETRY && w->publish_tries < SL_AGENT_PUBLISH_TRIES) {
        int64_t pause_us = INT64_C(500000) << (w->publish_tries < 6 ? w->publish_tries : 6);
        w->publish_tries++;
        sl_log(SL_WARN, w->claim.run, "publishing again in %.1f s: %s", (double)pause_us / 1e6,
               s->ended.msg);
        sl_slot_timer(s, &s->retry_timer, pause_us, publish_again);
    } else {
        end_with_child(s);
    }
}

void sl_step_grace_publish(struct sl_slot *s)
{
    if (s->main.child)
        sl_slot_grace(s, SL_AGENT_PREEMPT_US);
    else
        sl_step_release(s);
}
