#include "queue/inner.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool sl_queue_event_id_valid(const char *id)
{
    size_t n = strspn(id, "0123456789"), m;

    if (!n || n > 20)
        return false;
    if (!id[n])
        return true;
    m = strspn(id + n + 1, "0123456789");
    return id[n] == '-' && m && m <= 20 && !id[n + 1 + m];
}

static json_t *event_json(const redisReply *entry)
{
    const redisReply *kv;
    json_t *e;

    if (entry->type != REDIS_REPLY_ARRAY || entry->elements != 2 ||
        !sl_queue_is_text(entry->element[0]) || entry->element[1]->type != REDIS_REPLY_ARRAY)
        return NULL;
    kv = entry->element[1];
    e = json_pack("{s:s, s:I}", "id", entry->element[0]->str, "time_ms",
                  (json_int_t)atoll(entry->element[0]->str));
    for (size_t i = 0; e && i + 1 < kv->elements; i += 2) {
        if (!sl_queue_is_text(kv->element[i]) || !sl_queue_is_text(kv->element[i + 1]))
            continue;
        const char *key = kv->element[i]->str, *value = kv->element[i + 1]->str;
        if (!strcmp(key, "t"))
            json_object_set_new(e, "type", json_string(value));
        else if (!strcmp(key, "a"))
            json_object_set_new(e, "attempt", json_integer(atoll(value)));
        else if (!strcmp(key, "d"))
            json_object_set_new(e, "data", sl_queue_parsed(value));
    }
    return e;
}

/* Appends entries to events. Returns the last one's id or NULL. */
static const char *take_entries(const redisReply *entries, json_t *events)
{
    const char *last = NULL;

    for (size_t i = 0; i < entries->elements; i++) {
        json_t *e = event_json(entries->element[i]);
        if (!e)
            continue;
        last = entries->element[i]->element[0]->str;
        json_array_append_new(events, e);
    }
    return last;
}

static int read_now(struct sl_queue *q, const char *run, const char *after, int most,
                    redisReply **ret_reply, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_EVENTS);
    sl_cmd_add(&c, run);
    sl_cmd_add(&c, after);
    sl_cmd_add_int(&c, most);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 3 ||
        reply->element[0]->type != REDIS_REPLY_ARRAY)
        return sl_queue_odd_reply("events", reply, err);
    *ret_reply = reply;
    return 0;
}

static int read_waiting(struct sl_queue *q, const char *run, const char *after, int most,
                        int64_t wait_ms, redisReply **ret_reply, struct sl_err *err)
{
    char key[SL_QUEUE_KEY_MAX];
    struct sl_cmd c;

    snprintf(key, sizeof key, SL_QUEUE_TAG ":events:%s", run);
    sl_cmd_init(&c);
    sl_cmd_add(&c, "XREAD");
    sl_cmd_add(&c, "COUNT");
    sl_cmd_add_int(&c, most);
    sl_cmd_add(&c, "BLOCK");
    sl_cmd_add_int(&c, wait_ms);
    sl_cmd_add(&c, "STREAMS");
    sl_cmd_add(&c, key);
    sl_cmd_add(&c, after);
    return sl_queue_call(q, &c, wait_ms * 1000, ret_reply, err);
}

int sl_queue_events(struct sl_queue *q, const char *run, const char *after, int most,
                    int64_t wait_ms, json_t **ret_events, struct sl_err *err)
{
    const char *from = after && *after ? after : "0", *last;
    char at[SL_QUEUE_EVENT_ID_MAX];
    redisReply *reply = NULL;
    bool trimmed = false, more = true;
    json_t *events;
    int rc;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    if (!sl_queue_event_id_valid(from))
        return sl_err_set(err, SL_SPEC, "not an event id: %.60s", from);
    if (most < 1 || most > SL_QUEUE_EVENTS_MAX)
        most = SL_QUEUE_EVENTS_MAX;
    events = json_array();
    snprintf(at, sizeof at, "%s", from);
    while (more && (int)json_array_size(events) < most) {
        rc = read_now(q, run, at, most - (int)json_array_size(events), &reply, err);
        if (rc) {
            json_decref(events);
            return rc;
        }
        last = take_entries(reply->element[0], events); /* NOLINT(clang-analyzer-core.NullDereference): 0 comes with a reply */
        if (last)
            snprintf(at, sizeof at, "%s", last);
        trimmed = trimmed || reply->element[1]->integer == 1;
        more = last && reply->element[2]->integer == 1;
        freeReplyObject(reply);
    }
    if (!json_array_size(events) && wait_ms > 0) {
        rc = read_waiting(q, run, from, most, wait_ms, &reply, err);
        if (rc) {
            json_decref(events);
            return rc;
        }
        if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 &&
            reply->element[0]->type == REDIS_REPLY_ARRAY && reply->element[0]->elements == 2)
            last = take_entries(reply->element[0]->element[1], events);
        else
            last = NULL;
        if (last)
            snprintf(at, sizeof at, "%s", last);
        freeReplyObject(reply);
    }
    *ret_events = json_pack("{s:o, s:s, s:b}", "events", events, "last", at, "trimmed", trimmed);
    return 0;
}

int sl_queue_newest_event(struct sl_queue *q, const char *run, char ret_id[SL_QUEUE_EVENT_ID_MAX],
                          struct sl_err *err)
{
    char key[SL_QUEUE_KEY_MAX];
    redisReply *reply;
    struct sl_cmd c;
    int rc;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    snprintf(key, sizeof key, SL_QUEUE_TAG ":events:%s", run);
    sl_cmd_init(&c);
    sl_cmd_add(&c, "XREVRANGE");
    sl_cmd_add(&c, key);
    sl_cmd_add(&c, "+");
    sl_cmd_add(&c, "-");
    sl_cmd_add(&c, "COUNT");
    sl_cmd_add_int(&c, 1);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    const redisReply *one = reply->type == REDIS_REPLY_ARRAY && reply->elements ? reply->element[0] : NULL;
    snprintf(ret_id, SL_QUEUE_EVENT_ID_MAX, "%s",
             one && one->type == REDIS_REPLY_ARRAY && one->elements && sl_queue_is_text(one->element[0])
                 ? one->element[0]->str
                 : "0");
    freeReplyObject(reply);
    return 0;
}

int sl_queue_events_of(struct sl_queue *q, const char *const *runs, const char *const *after, int n,
                       int most, json_t **ret_events, struct sl_err *err)
{
    static const size_t prefix = sizeof SL_QUEUE_TAG ":events:" - 1;
    char key[SL_QUEUE_KEY_MAX];
    redisReply *reply;
    struct sl_cmd c;
    int rc;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "XREAD");
    sl_cmd_add(&c, "COUNT");
    sl_cmd_add_int(&c, most);
    sl_cmd_add(&c, "STREAMS");
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, SL_QUEUE_TAG ":events:%s", runs[i]);
        sl_cmd_add(&c, key);
    }
    for (int i = 0; i < n; i++)
        sl_cmd_add(&c, after[i]);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    json_t *events = json_object();
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++) {
        const redisReply *of = reply->element[i];
        if (of->type != REDIS_REPLY_ARRAY || of->elements != 2 || !sl_queue_is_text(of->element[0]) ||
            of->element[0]->len <= prefix || of->element[1]->type != REDIS_REPLY_ARRAY)
            continue;
        json_t *list = json_array();
        take_entries(of->element[1], list);
        json_object_set_new(events, of->element[0]->str + prefix, list);
    }
    freeReplyObject(reply);
    *ret_events = events;
    return 0;
}
