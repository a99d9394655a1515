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
    int64_t bytes = 0;
    const json_t *o;
    struct sl_cmd c;
    size_t i;

    json_array_foreach(outputs, i, o)
        bytes += sl_json_bool(o, "shared", false) ? 0 : sl_json_int(o, "bytes", 0);
    sl_queue_cmd(&c, SL_SCRIPT_ACK);
    sl_cmd_add(&c, run);
    sl_cmd_add(&c, text);
    sl_cmd_add_int(&c, bytes);
    c.failed |= !text;
    free(text);
    return sl_queue_do(q, &c, err);
}

int sl_queue_refund(struct sl_queue *q, const char *id, const char *project, int64_t bytes,
                    struct sl_err *err)
{
    struct sl_cmd c;
    sl_queue_cmd(&c, SL_SCRIPT_REFUND);
    sl_cmd_add(&c, id);
    sl_cmd_add(&c, project);
    sl_cmd_add_int(&c, bytes);
    return sl_queue_do(q, &c, err);
}

int sl_queue_reap(struct sl_queue *q, bool spare_leases, struct sl_reaped *ret_reaped,
                  struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_REAP);
    sl_cmd_add_int(&c, SL_QUEUE_REAP_MAX);
    sl_cmd_add(&c, spare_leases ? "1" : "0");
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 4)
        return sl_queue_odd_reply("reap", reply, err);
    if (ret_reaped)
        *ret_reaped =
            (struct sl_reaped){(int)reply->element[0]->integer, (int)reply->element[1]->integer,
                               reply->element[2]->integer == 1, (int)reply->element[3]->integer};
    freeReplyObject(reply);
    return 0;
}

/* ---- the archive
 * -------------------------------------------------------------------------------------------- */

/* Sends c and releases it. */
static int ask_ids(struct sl_queue *q, struct sl_cmd *c, const char *what, json_t **ret_runs,
                   struct sl_err *err)
{
    redisReply *reply;
    json_t *runs;
    int rc = sl_queue_call(q, c, 0, &reply, err);

    if (rc)
        return rc;
    if (!sl_queue_is_texts(reply, -1))
        return sl_queue_odd_reply(what, reply, err);
    runs = json_array();
    for (size_t i = 0; i < reply->elements; i++)
        json_array_append_new(runs, json_string(reply->element[i]->str));
    freeReplyObject(reply);
    *ret_runs = runs;
    return 0;
}

int sl_queue_ended_since(struct sl_queue *q, int64_t age_ms, int64_t from_ms, int skip, int most,
                         sl_queue_ended_fn *fn, void *arg, int *ret_n, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_ENDED);
    sl_cmd_add_int(&c, age_ms);
    sl_cmd_add_int(&c, most);
    sl_cmd_add_int(&c, from_ms);
    sl_cmd_add_int(&c, skip);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (!sl_queue_is_texts(reply, -1) || reply->elements % 3)
        return sl_queue_odd_reply("ended", reply, err);
    for (size_t i = 0; !rc && i < reply->elements; i += 3)
        rc = fn(arg, reply->element[i]->str, strtoll(reply->element[i + 1]->str, NULL, 10),
                reply->element[i + 2]->str[0] == '1', err);
    *ret_n = (int)(reply->elements / 3);
    freeReplyObject(reply);
    return rc;
}

static int add_recorded(void *ids, const char *run, int64_t ended_ms, bool waits, struct sl_err *err)
{
    (void)ended_ms;
    if (!waits && json_array_append_new(ids, json_string(run)))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return 0;
}

int sl_queue_ended(struct sl_queue *q, int64_t age_ms, int most, json_t **ret_runs,
                   struct sl_err *err)
{
    json_t *ids = json_array();
    int n, rc = sl_queue_ended_since(q, age_ms, 0, 0, most, add_recorded, ids, &n, err);

    if (rc)
        json_decref(ids);
    else
        *ret_runs = ids;
    return rc;
}

int sl_queue_long(struct sl_queue *q, int most, json_t **ret_runs, struct sl_err *err)
{
    struct sl_cmd c;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "SRANDMEMBER");
    sl_cmd_add(&c, SL_QUEUE_TAG ":long");
    sl_cmd_add_int(&c, most);
    return ask_ids(q, &c, "SRANDMEMBER", ret_runs, err);
}

int sl_queue_trim(struct sl_queue *q, const char *run, const char *id, struct sl_err *err)
{
    struct sl_cmd c;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    sl_queue_cmd(&c, SL_SCRIPT_TRIM);
    sl_cmd_add(&c, run);
    sl_cmd_add(&c, id);
    return sl_queue_do(q, &c, err);
}

int sl_queue_forget(struct sl_queue *q, const char *run, struct sl_err *err)
{
    struct sl_cmd c;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    sl_queue_cmd(&c, SL_SCRIPT_FORGET);
    sl_cmd_add(&c, run);
    return sl_queue_do(q, &c, err);
}

int sl_queue_number_above(struct sl_queue *q, int64_t seq, struct sl_err *err)
{
    struct sl_cmd c;

    sl_queue_cmd(&c, SL_SCRIPT_NUMBER);
    sl_cmd_add_int(&c, seq);
    return sl_queue_do(q, &c, err);
}
