/* What the agent asks of Redis, and what it does with the answers. */
#include "agent/agent_inner.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- calls to Redis
 * ---------------------------------------------------------------------------------------- */

/* A reply belongs to the lease it was asked for, and is ignored when that run is over here. */
struct call {
    struct sl_slot *s;
    char lease[SL_ID_HEX + 1];
};

/* Sends c and releases it. */
static int send_for_work(struct sl_slot *s, struct sl_cmd *c, sl_redis_reply_fn *fn)
{
    struct call *call = malloc(sizeof *call);
    int rc = SL_NOMEM;

    if (call) {
        call->s = s;
        memcpy(call->lease, s->work.lease, sizeof call->lease);
        rc = sl_redis_async_call(s->agent->redis, c, 0, fn, call, NULL);
        if (rc)
            free(call);
    }
    sl_cmd_release(c);
    return rc;
}

/* The slot, or NULL when the call's run is over. */
static struct sl_slot *take_call(void *arg)
{
    struct call *call = arg;
    struct sl_slot *s = strcmp(call->lease, call->s->work.lease) ? NULL : call->s;

    free(call);
    return s;
}

static void on_renewed(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_slot *s = take_call(arg);
    bool cancelled = false, revived = false;

    sl_fault_point("renew.after");
    if (!s)
        return;
    s->work.renewing = false;
    if (err && err->code == SL_LEASE) {
        sl_slot_handle(s, EV_LOST);
        return;
    }
    if (err || sl_queue_renew_reply(reply, &cancelled, &revived, NULL))
        return; /* the next timer, or the next connection, tries again */
    if (revived)
        sl_log(SL_INFO, s->work.claim.run, "the lease had run out and is revived");
    s->work.deadline_us = s->work.renew_sent_us + s->agent->config->lease_ms * 1000;
    sl_slot_watch_lease(s);
    if (cancelled && !s->work.cancelled) {
        s->work.cancelled = true;
        sl_slot_handle(s, EV_CANCEL);
    }
    sl_slot_handle(s, EV_RENEWED);
}

void sl_slot_renew(struct sl_slot *s)
{
    struct sl_cmd c;

    if (!s->work.lease[0] || s->work.renewing || s->work.recorded || s->work.recording ||
        s->work.lost)
        return;
    s->work.renew_sent_us = sl_boot_us();
    sl_queue_cmd_renew(&c, s->work.claim.run, s->work.lease, s->agent->config->lease_ms);
    sl_fault_point("renew.before");
    s->work.renewing = !send_for_work(s, &c, on_renewed);
}

static void on_named(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_slot *s = take_call(arg);

    sl_fault_point("checkpoint.after");
    (void)reply;
    if (!s)
        return;
    s->work.naming = false;
    if (!err && s->work.naming_step == s->work.manifest_step)
        s->work.manifest[0] = 0;
    else if (!err)
        sl_slot_name_checkpoint(s); /* a newer one went up meanwhile */
    else if (err->code == SL_LEASE)
        sl_slot_handle(s, EV_LOST);
}

void sl_slot_name_checkpoint(struct sl_slot *s)
{
    struct sl_cmd c;

    if (!s->work.manifest[0] || s->work.naming || s->work.lost ||
        !sl_report_reached(s->work.report, s->work.manifest_mark))
        return;
    sl_queue_cmd_checkpoint(&c, s->work.claim.run, s->work.lease, s->work.manifest,
                            s->work.manifest_step);
    s->work.naming_step = s->work.manifest_step;
    sl_fault_point("checkpoint.before");
    s->work.naming = !send_for_work(s, &c, on_named);
}

static void record_again(void *arg)
{
    struct sl_slot *s = arg;

    s->retry_timer = -1;
    sl_slot_record(s);
}

static void on_recorded(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_slot *s = take_call(arg);

    if (!s)
        return;
    sl_fault_point(s->work.kind[0] ? "fail.after" : "release.after");
    s->work.recording = false;
    if (err && err->code == SL_RETRY) {
        /* A repeated call gets the first answer. Without a connection EV_REDIS sends it again. */
        if (sl_redis_async_up(s->agent->redis))
            sl_slot_timer(s, &s->retry_timer, SL_AGENT_RECORD_RETRY_US, record_again);
        return;
    }
    if (err)
        sl_log(SL_WARN, s->work.claim.run, "the outcome was not taken: %s", err->msg);
    else
        sl_log(SL_INFO, s->work.claim.run, "now %s", reply->str ? reply->str : "?");
    sl_slot_handle(s, EV_RECORDED);
}

void sl_slot_record(struct sl_slot *s)
{
    struct sl_work *w = &s->work;
    struct sl_cmd c;
    char *tail;

    if (w->recording || w->recorded || !sl_report_drained(w->report))
        return;
    w->naming =
        false; /* this goes behind a naming under way; nothing can be named after the outcome */
    sl_slot_name_checkpoint(s);
    if (w->kind[0]) {
        tail = sl_report_log_tail(w->report);
        sl_queue_cmd_fail(&c, w->claim.run, w->lease,
                          &(struct sl_failure){w->kind, w->cause, w->msg, w->exit_code,
                                               w->exit_signal, tail});
        free(tail);
    } else {
        sl_queue_cmd_release(&c, w->claim.run, w->lease, w->cause);
    }
    sl_fault_point(w->kind[0] ? "fail.before" : "release.before");
    w->recording = !send_for_work(s, &c, on_recorded);
}

static void nothing_to_do(void *arg, const redisReply *reply, const struct sl_err *err)
{
    (void)arg;
    (void)reply;
    (void)err;
}

/* Said when Redis has answered, not when it has let us in: it may put us out again at once. */
static void on_beat(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = arg;
    enum sl_agent_wanted wanted;

    if (err || a->leaving)
        return;
    if (sl_queue_heartbeat_reply(reply, &wanted, NULL))
        return;
    if (wanted == SL_AGENT_RESUMED) { /* an operator's word that also ends a quarantine */
        wanted = SL_AGENT_ACTIVE;
        sl_agent_return(a, "an operator said so");
    }
    if (wanted != a->wanted) {
        sl_log(SL_INFO, NULL, "asked to %s",
               wanted == SL_AGENT_ACTIVE   ? "take runs"
               : wanted == SL_AGENT_PAUSED ? "take no runs for now"
                                           : "take no more runs and end");
        a->wanted = wanted;
        for (int i = 0; i < a->n_slots && wanted == SL_AGENT_DRAINING; i++)
            if (a->slot[i].state == ST_IDLE)
                sl_step_leave(&a->slot[i]);
        if (wanted == SL_AGENT_ACTIVE && sl_agent_count(a, ST_IDLE))
            sl_agent_look(a);
    }
    if (a->told_there)
        return;
    sl_log(SL_INFO, NULL, "connected to Redis as agent %s", a->id);
    a->told_there = true;
    a->told_away = false;
}

void sl_agent_heartbeat(struct sl_agent *a)
{
    const struct sl_agent_config *config = a->config;
    json_t *queues, *runs, *o;
    char host[256] = "", offer[SL_QUEUE_CLASS_MAX + 1], *json;
    struct sl_cmd c;

    if (a->leaving && !sl_agent_busy(a))
        return; /* it says goodbye, or has */
    sl_agent_offer(a, true, offer);
    queues = json_array();
    runs = json_array();
    for (int i = 0; i < config->n_queues; i++)
        json_array_append_new(queues, json_string(config->queues[i]));
    for (int i = 0; i < a->n_slots; i++)
        if (sl_slot_run(&a->slot[i]))
            json_array_append_new(runs,
                                  json_pack("{s:s, s:s, s:s}", "run", sl_slot_run(&a->slot[i]),
                                            "name", a->slot[i].work.claim.name, "state",
                                            sl_agent_state_name(a->slot[i].state)));
    gethostname(host, sizeof host - 1);
    o = json_pack("{s:s, s:i, s:s, s:o, s:s, s:s*, s:i, s:o, s:s}", "host", host, "pid", (int)getpid(),
                  "offer", offer, "queues", queues, "state",
                  a->leaving              ? "leaving"
                  : a->quarantine[0]      ? "quarantined"
                  : json_array_size(runs) ? "busy"
                                          : "idle",
                  "quarantine", a->quarantine[0] ? a->quarantine : NULL, "slots", a->n_slots, "runs", runs,
                  "version", SL_VERSION);
    json = sl_json_dump(o);
    json_decref(o);
    /* A machine in quarantine is none that could serve a run. */
    sl_queue_cmd_heartbeat(&c, a->id, json, offer, config->queues, a->quarantine[0] ? 0 : config->n_queues);
    sl_redis_async_call(a->redis, &c, 0, on_beat, a, NULL);
    sl_cmd_release(&c);
    free(json);
}

static void on_goodbye(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    (void)reply;
    (void)err;
    sl_loop_stop(a->loop);
}

/* Its answer is waited for: a connection closed with answers unread takes along what was sent last. */
void sl_agent_goodbye(struct sl_agent *a)
{
    struct sl_cmd c;

    sl_queue_cmd_heartbeat(&c, a->id, NULL, "", NULL, 0);
    if (sl_redis_async_call(a->redis, &c, 0, on_goodbye, a, NULL))
        sl_loop_stop(a->loop);
    sl_cmd_release(&c);
}

/* ---- claiming
 * ---------------------------------------------------------------------------------------------- */

static void work_lost(void *arg)
{
    sl_slot_handle(arg, EV_LOST);
}

static void work_taken(void *arg)
{
    struct sl_slot *s = arg;

    sl_slot_name_checkpoint(s);
    if (sl_report_drained(s->work.report))
        sl_slot_handle(s, EV_DRAINED);
}

static void claim_later(void *arg)
{
    struct sl_slot *s = arg;

    s->retry_timer = -1;
    sl_slot_handle(s, EV_NOTHING);
}

/* The run's own GPUs, until it is over here. */
static int reserve_gpus(struct sl_slot *s, struct sl_err *err)
{
    uint64_t busy = 0;

    for (int i = 0; i < s->agent->n_slots; i++)
        busy |= s->agent->slot[i].work.gpus;
    return sl_devices_pick(&s->agent->devices, busy, s->work.claim.gpus, &s->work.gpus, err);
}

static void on_claimed(void *arg, const redisReply *reply, const struct sl_err *err)
{
    const struct sl_report_owner owner = {work_lost, work_taken, arg};
    struct sl_slot *s = arg;
    struct sl_work *w = &s->work;
    struct sl_err failed = SL_ERR_INIT;
    int rc;

    sl_fault_point("claim.after");
    s->claiming = false;
    if (s->state != ST_CLAIMING ||
        (err && err->code == SL_RETRY && !sl_redis_async_up(s->agent->redis)))
        return; /* EV_REDIS asks again under the same lease id */
    rc = err ? sl_err_set(&failed, err->code, "%s", err->msg)
             : sl_queue_claim_reply(reply, &w->claim, &failed);
    if (!rc) {
        memcpy(w->lease, s->lease, sizeof w->lease);
        w->exit_code = w->exit_signal = -1;
        w->deadline_us = s->claim_sent_us + s->agent->config->lease_ms * 1000;
        w->dir.lock_fd = -1;
        rc = reserve_gpus(s, &failed);
    }
    if (!rc) {
        rc = sl_report_new(s->agent->loop, s->agent->redis, w->claim.run, w->lease, &owner,
                           &w->report, &failed);
    }
    if (rc) {
        sl_claim_release(&w->claim);
        memset(w, 0, sizeof *w);
        w->dir.lock_fd = -1;
        if (rc == SL_NOTFOUND) {
            sl_slot_handle(s, EV_NOTHING);
        } else {
            sl_log(SL_ERROR, NULL, "claiming: %s", failed.msg);
            sl_slot_timer(s, &s->retry_timer, SL_AGENT_AGAIN_MS * 1000, claim_later);
        }
        return;
    }
    sl_slot_handle(s, EV_CLAIMED);
}

void sl_slot_claim(struct sl_slot *s)
{
    struct sl_agent *a = s->agent;
    const struct sl_agent_config *config = a->config;
    const char *queues[SL_QUEUE_NAMES_MAX];
    int order[SL_QUEUE_NAMES_MAX];
    char offer[SL_QUEUE_CLASS_MAX + 1];
    struct sl_cmd c;

    if (s->claiming || s->retry_timer >= 0)
        return;
    if (!s->claim_sent_us)
        s->claim_sent_us = sl_boot_us();
    if (config->weights[0])
        sl_queue_turns(config->weights, config->n_queues, order);
    for (int i = 0; i < config->n_queues; i++)
        queues[i] = config->queues[config->weights[0] ? order[i] : i];
    sl_agent_offer(a, false, offer);
    sl_queue_cmd_claim(&c, s->lease, a->id, config->lease_ms, offer, queues, config->n_queues);
    sl_fault_point("claim.before");
    s->claiming = !sl_redis_async_call(a->redis, &c, 0, on_claimed, s, NULL);
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
        sl_log(SL_ERROR, NULL, "waiting for runs: %s", err->msg);
        sl_agent_timer(a, &a->wait_timer, SL_AGENT_AGAIN_MS * 1000, wait_later);
        return;
    }
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[0]->str &&
        strstr(reply->element[0]->str, ":ring:")) {
        for (int i = 0; i < a->n_slots; i++)
            sl_slot_renew(&a->slot[i]); /* the replies tell what there is to hear */
        sl_agent_heartbeat(a);
    }
    if (sl_agent_count(a, ST_IDLE))
        sl_agent_look(a);
    else
        sl_agent_wait(a);
}

void sl_agent_wait(struct sl_agent *a)
{
    bool idle = sl_agent_count(a, ST_IDLE) > 0 && !a->leaving && a->wanted == SL_AGENT_ACTIVE && !a->quarantine[0];
    char offer[SL_QUEUE_CLASS_MAX + 1];
    struct sl_cmd c;

    /* An agent without an idle slot waits for its own ring only: it must not take a bell that is
     * meant for an idle one. When that changes it rings itself, to wait anew. */
    sl_agent_offer(a, false, offer);
    if (a->waiting && ((a->waiting == WAIT_ALL) != idle || (idle && strcmp(offer, a->waiting_for) != 0))) {
        sl_queue_cmd_ring(&c, a->id);
        sl_redis_async_call(a->redis, &c, 0, nothing_to_do, NULL, NULL);
        sl_cmd_release(&c);
    }
    if (a->waiting || a->wait_timer >= 0 || (!sl_agent_count(a, ST_IDLE) && !sl_agent_busy(a)))
        return;
    memcpy(a->waiting_for, offer, sizeof offer);
    sl_queue_cmd_wait(&c, a->id, offer, a->config->queues, idle ? a->config->n_queues : 0,
                      SL_AGENT_WAIT_MS);
    if (!sl_redis_async_call(a->bell, &c, SL_AGENT_WAIT_MS * 1000, on_bell, a, NULL))
        a->waiting = idle ? WAIT_ALL : WAIT_RING;
    sl_cmd_release(&c);
}
