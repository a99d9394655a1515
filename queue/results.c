#include "base/json.h"
#include "queue/inner.h"
#include <stdlib.h>
#include <string.h>

int sl_queue_finish(struct sl_queue *q, const char *run, const char *lease, const json_t *outputs,
                    const json_t *metrics, json_t **ret_outputs, bool *ret_new, struct sl_err *err)
{
    char *outputs_text = sl_json_dump(outputs),
         *metrics_text = metrics ? sl_json_dump(metrics) : NULL;
    struct sl_cmd c;
    redisReply *reply;
    json_t *hold;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_FINISH);
    sl_cmd_add(&c, run);
    sl_cmd_add(&c, lease);
    sl_cmd_add(&c, outputs_text);
    sl_cmd_add(&c, metrics_text);
    c.failed |= !outputs_text || (metrics && !metrics_text);
    free(outputs_text);
    free(metrics_text);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        !sl_queue_is_text(reply->element[0]) || !sl_queue_is_text(reply->element[1]))
        return sl_queue_odd_reply("finish", reply, err);
    rc = sl_json_parse(reply->element[0]->str, (size_t)reply->element[0]->len, "the run's outputs",
                       &hold, err);
    if (!rc) {
        *ret_outputs = hold;
        *ret_new = !strcmp(reply->element[1]->str, "new");
    }
    freeReplyObject(reply);
    return rc;
}

int sl_queue_outbox(struct sl_queue *q, json_t **ret_outbox, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    json_t *outbox;
    int rc;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "HGETALL");
    sl_cmd_add(&c, SL_QUEUE_TAG ":outbox");
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements % 2)
        return sl_queue_odd_reply("HGETALL", reply, err);
    outbox = json_object();
    for (size_t i = 0; !rc && i < reply->elements; i += 2) {
        json_t *outputs;
        rc = sl_json_parse(reply->element[i + 1]->str, (size_t)reply->element[i + 1]->len,
                           "an outbox entry", &outputs, err);
        if (!rc && json_object_set_new(outbox, reply->element[i]->str, outputs))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
    }
    freeReplyObject(reply);
    if (rc)
        json_decref(outbox);
    else
        *ret_outbox = outbox;
    return rc;
}

int sl_queue_ack(struct sl_queue *q, const char *run, const json_t *outputs, struct sl_err *err)
{
    char *text = sl_json_dump(outputs);
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_ACK);
    sl_cmd_add(&c, run);
    sl_cmd_add(&c, text);
    c.failed |= !text;
    free(text);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (!rc)
        freeReplyObject(reply);
    return rc;
}

int sl_queue_reap(struct sl_queue *q, bool spare_leases, int *ret_ended, int *ret_promoted,
                  struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_REAP);
    sl_cmd_add_int(&c, SL_QUEUE_REAP_MAX);
    sl_cmd_add_int(&c, SL_QUEUE_MAX_LOST);
    sl_cmd_add(&c, spare_leases ? "1" : "0");
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2)
        return sl_queue_odd_reply("reap", reply, err);
    if (ret_ended)
        *ret_ended = (int)reply->element[0]->integer;
    if (ret_promoted)
        *ret_promoted = (int)reply->element[1]->integer;
    freeReplyObject(reply);
    return 0;
}

int sl_queue_agents(struct sl_queue *q, json_t **ret_agents, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    json_t *list;
    int64_t now_ms;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_AGENTS);
    sl_cmd_add_int(&c, SL_QUEUE_AGENTS_MAX);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements % 3 != 1)
        return sl_queue_odd_reply("agents", reply, err);
    for (size_t i = 0; i < reply->elements; i++)
        if (!sl_queue_is_text(reply->element[i]))
            return sl_queue_odd_reply("agents", reply, err);
    now_ms = atoll(reply->element[0]->str);
    list = json_array();
    for (size_t i = 1; i < reply->elements; i += 3) {
        json_t *a = json_loads(reply->element[i + 2]->str, 0, NULL);
        int64_t seen_ms = atoll(reply->element[i + 1]->str);
        if (!json_is_object(a)) {
            json_decref(a);
            a = json_object();
        }
        json_object_set_new(a, "agent", json_string(reply->element[i]->str));
        json_object_set_new(a, "seen_ms", json_integer(seen_ms));
        json_object_set_new(a, "age_ms", json_integer(now_ms - seen_ms));
        json_array_append_new(list, a);
    }
    freeReplyObject(reply);
    *ret_agents = json_pack("{s:o}", "agents", list);
    return 0;
}
