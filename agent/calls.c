/* What the agent asks of Redis, and what it does with the answers. */
#include "agent/agent_inner.h"
#include "base/clock.h"
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

    if (!a->work.lease[0] || a->work.renewing || a->work.recorded || a->work.recording ||
        a->work.lost)
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
    if (!err && a->work.naming_step == a->work.manifest_step)
        a->work.manifest[0] = 0;
    else if (!err)
        sl_agent_name_checkpoint(a); /* a newer one went up meanwhile */
    else if (err->code == SL_LEASE)
        sl_agent_handle(a, EV_LOST);
}

void sl_agent_name_checkpoint(struct sl_agent *a)
{
    struct sl_cmd c;

    if (!a->work.manifest[0] || a->work.naming || a->work.lost ||
        !sl_report_reached(a->work.report, a->work.manifest_mark))
        return;
    sl_queue_cmd_checkpoint(&c, a->work.claim.run, a->work.lease, a->work.manifest,
                            a->work.manifest_step);
    a->work.naming_step = a->work.manifest_step;
    a->work.naming = !send_for_work(a, &c, on_named);
}

static void record_again(void *arg)
{
    struct sl_agent *a = arg;

    a->retry_timer = -1;
    sl_agent_record(a);
}

static void on_recorded(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = take_call(arg);

    if (!a)
        return;
    a->work.recording = false;
    if (err && err->code == SL_RETRY) {
        /* A repeated call gets the first answer. Without a connection EV_REDIS sends it again. */
        if (sl_redis_async_up(a->redis))
            sl_agent_timer(a, &a->retry_timer, SL_AGENT_RECORD_RETRY_US, record_again);
        return;
    }
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
    w->naming = false; /* this goes behind a naming under way; nothing can be named after the outcome */
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

/* Said when Redis has answered, not when it has let us in: it may put us out again at once. */
static void on_beat(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_agent *a = arg;

    (void)reply;
    if (err || a->told_there)
        return;
    sl_log(SL_INFO, sl_agent_run(a), "connected to Redis as agent %s", a->id);
    a->told_there = true;
    a->told_away = false;
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
        o = json_pack("{s:s, s:i, s:o, s:s, s:s?, s:s?, s:s}", "host", host, "pid", (int)getpid(),
                      "queues", queues, "state", sl_agent_state_name(a->state), "run",
                      sl_agent_run(a), "name", a->work.claim.name, "version", SL_VERSION);
        json = sl_json_dump(o);
        json_decref(o);
    }
    sl_queue_cmd_heartbeat(&c, a->id, json);
    sl_redis_async_call(a->redis, &c, 0, on_beat, a, NULL);
    sl_cmd_release(&c);
    free(json);
}

/* ---- claiming
 * ---------------------------------------------------------------------------------------------- */

static void work_lost(void *arg)
{
    sl_agent_handle(arg, EV_LOST);
}

static void work_taken(void *arg)
{
    struct sl_agent *a = arg;

    sl_agent_name_checkpoint(a);
    if (sl_report_drained(a->work.report))
        sl_agent_handle(a, EV_DRAINED);
}

static void claim_later(void *arg)
{
    struct sl_agent *a = arg;

    a->retry_timer = -1;
    sl_agent_handle(a, EV_NOTHING);
}

static void on_claimed(void *arg, const redisReply *reply, const struct sl_err *err)
{
    const struct sl_report_owner owner = {work_lost, work_taken, arg};
    struct sl_agent *a = arg;
    struct sl_work *w = &a->work;
    struct sl_err failed = SL_ERR_INIT;
    int rc;

    a->claiming = false;
    if (a->state != ST_CLAIMING || (err && err->code == SL_RETRY && !sl_redis_async_up(a->redis)))
        return; /* EV_REDIS asks again under the same lease id */
    rc = err ? sl_err_set(&failed, err->code, "%s", err->msg)
             : sl_queue_claim_reply(reply, &w->claim, &failed);
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
    sl_queue_cmd_claim(&c, a->lease, a->id, a->config->lease_ms, a->config->queues,
                       a->config->n_queues);
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

    /* A busy agent waits for its own ring only: it must not take a bell that is meant for an idle
     * one. When it becomes idle it rings itself, to wait anew for both. */
    if (a->waiting == WAIT_RING && idle) {
        sl_queue_cmd_ring(&c, a->id);
        sl_redis_async_call(a->redis, &c, 0, nothing_to_do, NULL, NULL);
        sl_cmd_release(&c);
    }
    if (a->waiting || a->wait_timer >= 0 || (!idle && !a->work.lease[0]))
        return;
    sl_queue_cmd_wait(&c, a->id, a->config->queues, idle ? a->config->n_queues : 0,
                      SL_AGENT_WAIT_MS);
    if (!sl_redis_async_call(a->bell, &c, SL_AGENT_WAIT_MS * 1000, on_bell, a, NULL))
        a->waiting = idle ? WAIT_ALL : WAIT_RING;
    sl_cmd_release(&c);
}
