#include "base/json.h"
#include "queue/inner.h"
#include "queue/queue.h"
#include "queue/scripts.h"
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sl_queue_cmd(struct sl_cmd *c, enum sl_script_id id)
{
    const struct sl_script *s = sl_script_get(id);

    if (s) {
        sl_cmd_init_script(c, s, SL_QUEUE_TAG);
    } else {
        sl_cmd_init(c);
        c->failed = true;
    }
}

static void add_optional_int(struct sl_cmd *c, int64_t v)
{
    if (v < 0)
        sl_cmd_add(c, "");
    else
        sl_cmd_add_int(c, v);
}

void sl_queue_cmd_claim(struct sl_cmd *c, const char *lease, const char *agent, int64_t lease_ms,
                        const char *offer, const char *const *queues, int n_queues)
{
    sl_queue_cmd(c, SL_SCRIPT_CLAIM);
    sl_cmd_add(c, lease);
    sl_cmd_add(c, agent);
    sl_cmd_add_int(c, lease_ms);
    sl_cmd_add(c, offer);
    for (int i = 0; i < n_queues; i++)
        sl_cmd_add(c, queues[i]);
}

/* Each next one is drawn among the rest by weight. */
void sl_queue_turns(const int *weights, int n, int *ret_order)
{
    uint64_t total = 0;

    for (int i = 0; i < n; i++) {
        ret_order[i] = i;
        total += weights[i] > 0 ? (uint64_t)weights[i] : 0;
    }
    for (int i = 0; i < n && total; i++) {
        uint64_t at;
        int k = i, chosen;
        if (RAND_bytes((unsigned char *)&at, sizeof at) != 1)
            return;
        at %= total;
        for (; k < n - 1; k++) {
            uint64_t w = weights[ret_order[k]] > 0 ? (uint64_t)weights[ret_order[k]] : 0;
            if (at < w)
                break;
            at -= w;
        }
        chosen = ret_order[k];
        memmove(ret_order + i + 1, ret_order + i, (size_t)(k - i) * sizeof *ret_order);
        ret_order[i] = chosen;
        total -= weights[chosen] > 0 ? (uint64_t)weights[chosen] : 0;
    }
}

void sl_queue_cmd_renew(struct sl_cmd *c, const char *run, const char *lease, int64_t lease_ms)
{
    sl_queue_cmd(c, SL_SCRIPT_RENEW);
    sl_cmd_add(c, run);
    sl_cmd_add(c, lease);
    sl_cmd_add_int(c, lease_ms);
}

void sl_queue_cmd_append(struct sl_cmd *c, const char *run, const char *lease, int64_t batch,
                         const char *phase, int64_t step, int64_t steps, const char *metrics)
{
    sl_queue_cmd(c, SL_SCRIPT_APPEND);
    sl_cmd_add(c, run);
    sl_cmd_add(c, lease);
    sl_cmd_add_int(c, batch);
    sl_cmd_add(c, phase);
    add_optional_int(c, step);
    add_optional_int(c, steps);
    sl_cmd_add(c, metrics);
}

void sl_queue_cmd_append_event(struct sl_cmd *c, const char *type, const char *json)
{
    sl_cmd_add(c, type);
    sl_cmd_add(c, json);
}

void sl_queue_cmd_checkpoint(struct sl_cmd *c, const char *run, const char *lease,
                             const char *manifest, int64_t step)
{
    sl_queue_cmd(c, SL_SCRIPT_CHECKPOINT);
    sl_cmd_add(c, run);
    sl_cmd_add(c, lease);
    sl_cmd_add(c, manifest);
    sl_cmd_add_int(c, step);
}

void sl_queue_cmd_release(struct sl_cmd *c, const char *run, const char *lease, const char *cause)
{
    sl_queue_cmd(c, SL_SCRIPT_RELEASE);
    sl_cmd_add(c, run);
    sl_cmd_add(c, lease);
    sl_cmd_add(c, cause);
}

void sl_queue_cmd_fail(struct sl_cmd *c, const char *run, const char *lease,
                       const struct sl_failure *failure)
{
    sl_queue_cmd(c, SL_SCRIPT_FAIL);
    sl_cmd_add(c, run);
    sl_cmd_add(c, lease);
    sl_cmd_add(c, failure->kind);
    sl_cmd_add(c, failure->cause);
    sl_cmd_add(c, failure->msg);
    add_optional_int(c, failure->exit_code);
    add_optional_int(c, failure->exit_signal);
    sl_cmd_add_int(c, SL_QUEUE_BACKOFF_MAX_MS);
    sl_cmd_add(c, failure->log_tail ? failure->log_tail : "[]");
}

void sl_queue_cmd_heartbeat(struct sl_cmd *c, const char *agent, const char *json,
                            const char *offer, const char *const *queues, int n_queues)
{
    sl_queue_cmd(c, SL_SCRIPT_HEARTBEAT);
    sl_cmd_add(c, agent);
    sl_cmd_add(c, json);
    sl_cmd_add(c, offer);
    for (int i = 0; i < n_queues; i++)
        sl_cmd_add(c, queues[i]);
}

void sl_queue_cmd_wait(struct sl_cmd *c, const char *agent, const char *offer,
                       const char *const *queues, int n_queues, int64_t wait_ms)
{
    char key[SL_QUEUE_KEY_MAX + SL_QUEUE_CLASS_MAX], seconds[32];

    sl_cmd_init(c);
    sl_cmd_add(c, "BLPOP");
    snprintf(key, sizeof key, SL_QUEUE_TAG ":ring:%s", agent);
    sl_cmd_add(c, key);
    for (int i = 0; i < n_queues; i++) {
        snprintf(key, sizeof key, SL_QUEUE_TAG ":bell:%s:%s", queues[i], offer);
        sl_cmd_add(c, key);
    }
    snprintf(seconds, sizeof seconds, "%.3f", (double)wait_ms / 1000);
    sl_cmd_add(c, seconds);
}

void sl_queue_cmd_ring(struct sl_cmd *c, const char *agent)
{
    char key[SL_QUEUE_KEY_MAX];

    snprintf(key, sizeof key, SL_QUEUE_TAG ":ring:%s", agent);
    sl_cmd_init(c);
    sl_cmd_add(c, "LPUSH");
    sl_cmd_add(c, key);
    sl_cmd_add(c, "1");
}

int sl_queue_claim_reply(const redisReply *reply, struct sl_claim *ret_claim, struct sl_err *err)
{
    struct sl_claim c;
    int rc;

    memset(&c, 0, sizeof c);
    if (reply->type == REDIS_REPLY_NIL)
        return sl_err_set(err, SL_NOTFOUND, "nothing in line");
    if (!sl_queue_is_texts(reply, 8))
        return sl_err_set(err, SL_DATA, "the claim's reply has an unknown form");
    if (reply->element[0]->len != SL_ID_HEX || reply->element[4]->len >= (int)sizeof c.checkpoint)
        return sl_err_set(err, SL_DATA, "the claim's reply holds an odd run id or checkpoint");
    memcpy(c.run, reply->element[0]->str, SL_ID_HEX);
    c.attempt = atoi(reply->element[1]->str);
    memcpy(c.checkpoint, reply->element[4]->str, (size_t)reply->element[4]->len);
    c.checkpoint_step = atoll(reply->element[5]->str);
    c.time_left_ms = reply->element[6]->len ? atoll(reply->element[6]->str) : -1;
    c.gpus = atoi(reply->element[7]->str);
    rc = sl_json_parse(reply->element[3]->str, (size_t)reply->element[3]->len, "the run's spec",
                       &c.spec, err);
    if (rc)
        return rc;
    c.name = strdup(reply->element[2]->str);
    if (!c.name) {
        sl_claim_release(&c);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    *ret_claim = c;
    return 0;
}

void sl_claim_release(struct sl_claim *c)
{
    if (!c)
        return;
    free(c->name);
    json_decref(c->spec);
    memset(c, 0, sizeof *c);
}

int sl_queue_renew_reply(const redisReply *reply, bool *ret_cancelled, bool *ret_revived,
                         struct sl_err *err)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements < 3 ||
        reply->element[1]->type != REDIS_REPLY_STRING ||
        reply->element[2]->type != REDIS_REPLY_STRING)
        return sl_err_set(err, SL_DATA, "the renewal's reply has an unknown form");
    *ret_cancelled = !strcmp(reply->element[1]->str, "1");
    *ret_revived = !strcmp(reply->element[2]->str, "1");
    return 0;
}

int sl_queue_heartbeat_reply(const redisReply *reply, enum sl_agent_wanted *ret_wanted,
                             struct sl_err *err)
{
    if (!sl_queue_is_text(reply))
        return sl_err_set(err, SL_DATA, "the heartbeat's reply has an unknown form");
    *ret_wanted = !strcmp(reply->str, "paused")     ? SL_AGENT_PAUSED
                  : !strcmp(reply->str, "draining") ? SL_AGENT_DRAINING
                  : !strcmp(reply->str, "resumed")  ? SL_AGENT_RESUMED
                                                    : SL_AGENT_ACTIVE;
    return 0;
}
