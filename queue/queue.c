#include "queue/queue.h"
#include "base/digest.h"
#include "base/json.h"
#include "queue/inner.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const priorities[] = {"critical", "high", "medium", "low"};

int sl_queue_rank(const char *priority)
{
    for (int i = 0; i < 4; i++)
        if (priority && !strcmp(priority, priorities[i]))
            return i;
    return -1;
}

const char *sl_queue_priority(int rank)
{
    return rank >= 0 && rank < 4 ? priorities[rank] : "medium";
}

/* ---- a pool of connections
 * -------------------------------------------------------------------------------- */

struct sl_queue {
    struct sl_redis *idle[SL_QUEUE_CONNECTIONS];
    int n_idle;
    pthread_mutex_t mutex;
    pthread_cond_t given_back;
};

int sl_queue_new(const char *redis_url, struct sl_queue **ret_queue, struct sl_err *err)
{
    struct sl_redis_url url;
    struct sl_queue *q;
    int rc = sl_redis_url_parse(redis_url, &url, err);

    if (rc)
        return rc;
    q = calloc(1, sizeof *q);
    if (!q)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_init(&q->mutex, NULL);
    pthread_cond_init(&q->given_back, NULL);
    for (; q->n_idle < SL_QUEUE_CONNECTIONS; q->n_idle++) {
        rc = sl_redis_new(&url, &q->idle[q->n_idle], err);
        if (rc) {
            sl_queue_free(q);
            return rc;
        }
    }
    *ret_queue = q;
    return 0;
}

void sl_queue_free(struct sl_queue *q)
{
    if (!q)
        return;
    while (q->n_idle)
        sl_redis_free(q->idle[--q->n_idle]);
    pthread_mutex_destroy(&q->mutex);
    pthread_cond_destroy(&q->given_back);
    free(q);
}

/* Sends c and releases it. */
int sl_queue_call(struct sl_queue *q, struct sl_cmd *c, int64_t wait_us, redisReply **ret_reply,
                  struct sl_err *err)
{
    struct sl_redis *r;
    int rc;

    pthread_mutex_lock(&q->mutex);
    while (!q->n_idle)
        pthread_cond_wait(&q->given_back, &q->mutex);
    r = q->idle[--q->n_idle];
    pthread_mutex_unlock(&q->mutex);

    rc = sl_redis_call(r, c, wait_us, ret_reply, err);
    sl_cmd_release(c);

    pthread_mutex_lock(&q->mutex);
    q->idle[q->n_idle++] = r; /* last in, first out: the warm ones are used */
    pthread_cond_signal(&q->given_back);
    pthread_mutex_unlock(&q->mutex);
    return rc;
}

int sl_queue_odd_reply(const char *what, redisReply *reply, struct sl_err *err)
{
    freeReplyObject(reply);
    return sl_err_set(err, SL_DATA, "Redis's reply to %s has an unknown form", what);
}

bool sl_queue_is_text(const redisReply *r)
{
    return r->type == REDIS_REPLY_STRING || r->type == REDIS_REPLY_STATUS;
}

static json_t *parsed(const char *text)
{
    json_t *j = text && *text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;

    return j ? j : json_null();
}

/* ---- runs as JSON
 * ------------------------------------------------------------------------------------------ */

enum kind { TEXT, INTEGER, FLAG, JSON, RANK };

static const struct field {
    const char *redis, *json;
    enum kind kind;
} run_fields[] = {
    {"name", "name", TEXT},
    {"project", "project", TEXT},
    {"queue", "queue", TEXT},
    {"rank", "priority", RANK},
    {"state", "state", TEXT},
    {"phase", "phase", TEXT},
    {"cause", "cause", TEXT},
    {"msg", "msg", TEXT},
    {"agent", "agent", TEXT},
    {"cancel", "cancel_requested", FLAG},
    {"created_ms", "created_ms", INTEGER},
    {"started_ms", "started_ms", INTEGER},
    {"finished_ms", "finished_ms", INTEGER},
    {"due_ms", "due_ms", INTEGER},
    {"attempt", "attempt", INTEGER},
    {"max_attempts", "max_attempts", INTEGER},
    {"failures", "failures", INTEGER},
    {"preemptions", "preemptions", INTEGER},
    {"lost", "lost", INTEGER},
    {"step", "step", INTEGER},
    {"steps", "steps", INTEGER},
    {"metrics", "metrics", JSON},
    {"ckpt_manifest", "checkpoint", TEXT},
    {"ckpt_step", "checkpoint_step", INTEGER},
    {"outputs", "outputs", JSON},
    {"spec", "spec", JSON}, /* from here on only when one run is shown */
    {"log_tail", "log_tail", JSON},
};
#define N_FIELDS (sizeof run_fields / sizeof *run_fields)
#define N_LIST_FIELDS (N_FIELDS - 2)

/* An absent value is null. */
static json_t *field_json(const struct field *f, const redisReply *r)
{
    if (!sl_queue_is_text(r) || r->len == 0)
        return json_null();
    switch (f->kind) {
    case INTEGER:
        return json_integer(atoll(r->str));
    case FLAG:
        return json_boolean(!strcmp(r->str, "1"));
    case JSON:
        return parsed(r->str);
    case RANK:
        return json_string(sl_queue_priority(atoi(r->str)));
    case TEXT:
        break;
    }
    return json_string(r->str);
}

static json_t *run_json(const char *run, redisReply *const *values, size_t n)
{
    json_t *j = json_object();

    json_object_set_new(j, "run", json_string(run));
    for (size_t i = 0; i < n; i++)
        json_object_set_new(j, run_fields[i].json, field_json(&run_fields[i], values[i]));
    return j;
}

static int no_such_run(const char *run, struct sl_err *err)
{
    return sl_err_set(err, SL_NOTFOUND, "no run %.64s", run);
}

/* Run ids are 32 hex digits; anything else cannot exist, and never gets into a key. */
static bool run_id_valid(const char *run)
{
    return strlen(run) == SL_ID_HEX && strspn(run, "0123456789abcdef") == SL_ID_HEX;
}

int sl_queue_show(struct sl_queue *q, const char *run, json_t **ret_run, struct sl_err *err)
{
    char key[SL_QUEUE_KEY_MAX];
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    if (!run_id_valid(run))
        return no_such_run(run, err);
    snprintf(key, sizeof key, SL_QUEUE_TAG ":run:%s", run);
    sl_cmd_init(&c);
    sl_cmd_add(&c, "HMGET");
    sl_cmd_add(&c, key);
    for (size_t i = 0; i < N_FIELDS; i++)
        sl_cmd_add(&c, run_fields[i].redis);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != N_FIELDS)
        return sl_queue_odd_reply("HMGET", reply, err);
    if (reply->element[4]->type == REDIS_REPLY_NIL) {
        freeReplyObject(reply);
        return no_such_run(run, err);
    }
    *ret_run = run_json(run, reply->element, N_FIELDS);
    freeReplyObject(reply);
    return 0;
}

int sl_queue_list(struct sl_queue *q, const char *below, int most, const char *state,
                  const char *queue, json_t **ret_page, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    json_t *runs;
    int rc;

    if (below && (!*below || strlen(below) > 16 || strspn(below, "0123456789") != strlen(below)))
        return sl_err_set(err, SL_SPEC, "not a place in the list of runs: %.40s", below);
    if (most < 1 || most > SL_QUEUE_PAGE_MAX)
        most = SL_QUEUE_PAGE_MAX;
    sl_queue_cmd(&c, SL_SCRIPT_LIST);
    sl_cmd_add(&c, below);
    sl_cmd_add_int(&c, most);
    sl_cmd_add(&c, state);
    sl_cmd_add(&c, queue);
    for (size_t i = 0; i < N_LIST_FIELDS; i++)
        sl_cmd_add(&c, run_fields[i].redis);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements % (N_LIST_FIELDS + 1) != 1 ||
        !sl_queue_is_text(reply->element[0]))
        return sl_queue_odd_reply("list", reply, err);
    runs = json_array();
    for (size_t i = 1; i < reply->elements; i += N_LIST_FIELDS + 1)
        json_array_append_new(
            runs, run_json(reply->element[i]->str, reply->element + i + 1, N_LIST_FIELDS));
    *ret_page =
        json_pack("{s:o, s:o}", "runs", runs, "next",
                  reply->element[0]->len ? json_string(reply->element[0]->str) : json_null());
    freeReplyObject(reply);
    return 0;
}

/* ---- enqueue and cancel
 * ------------------------------------------------------------------------------------ */

int sl_queue_enqueue(struct sl_queue *q, const json_t *spec, const char *client,
                     char ret_run[SL_ID_HEX + 1], bool *ret_new, struct sl_err *err)
{
    char run[SL_ID_HEX + 1], digest[SL_SHA256_HEX + 1];
    const char *queue = sl_json_str(spec, "queue", "default");
    int rank = sl_queue_rank(sl_json_str(spec, "priority", "medium"));
    struct sl_cmd c;
    redisReply *reply;
    char *text;
    int rc;

    if (rank < 0 || !*queue || strlen(queue) > SL_QUEUE_NAME_MAX)
        return sl_err_set(err, SL_SPEC, "the spec's priority or queue is not valid");
    if (client && strlen(client) > SL_QUEUE_TOKEN_MAX)
        return sl_err_set(err, SL_SPEC, "an idempotency key has at most %d bytes",
                          SL_QUEUE_TOKEN_MAX);
    text = sl_json_dump(spec);
    if (!text)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    rc = sl_sha256_data(text, strlen(text), digest, err);
    if (rc) {
        free(text);
        return rc;
    }
    sl_random_id(run);
    sl_queue_cmd(&c, SL_SCRIPT_ENQUEUE);
    sl_cmd_add(&c, run);
    /* Even without a key of the caller's, a retry of ours after a lost reply must find its own run.
     */
    sl_cmd_add(&c, client && *client ? client : run);
    sl_cmd_add(&c, queue);
    sl_cmd_add_int(&c, rank);
    sl_cmd_add(&c, text);
    sl_cmd_add(&c, digest);
    sl_cmd_add(&c, sl_json_str(spec, "name", ""));
    sl_cmd_add(&c, sl_json_str(spec, "project", ""));
    sl_cmd_add_int(&c, sl_json_int(spec, "retry.max_attempts", 3));
    free(text);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        !sl_queue_is_text(reply->element[0]) || reply->element[0]->len != SL_ID_HEX ||
        !sl_queue_is_text(reply->element[1]))
        return sl_queue_odd_reply("enqueue", reply, err);
    memcpy(ret_run, reply->element[0]->str, SL_ID_HEX + 1);
    if (ret_new)
        *ret_new = !strcmp(reply->element[1]->str, "new");
    freeReplyObject(reply);
    return 0;
}

int sl_queue_cancel(struct sl_queue *q, const char *run, const char **ret_state, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    if (!run_id_valid(run))
        return no_such_run(run, err);
    sl_queue_cmd(&c, SL_SCRIPT_CANCEL);
    sl_cmd_add(&c, run);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (!sl_queue_is_text(reply))
        return sl_queue_odd_reply("cancel", reply, err);
    *ret_state = !strcmp(reply->str, "cancelled") ? "cancelled" : "cancelling";
    freeReplyObject(reply);
    return 0;
}

/* ---- events
 * ------------------------------------------------------------------------------------------------
 */

static bool event_id_valid(const char *id)
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
            json_object_set_new(e, "data", parsed(value));
    }
    return e;
}

int sl_queue_events(struct sl_queue *q, const char *run, const char *after, int most,
                    int64_t wait_ms, json_t **ret_events, struct sl_err *err)
{
    char key[SL_QUEUE_KEY_MAX];
    const char *last = after && *after ? after : "0";
    json_t *events;
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    if (!run_id_valid(run))
        return no_such_run(run, err);
    if (!event_id_valid(last))
        return sl_err_set(err, SL_SPEC, "not an event id: %.60s", last);
    if (most < 1 || most > SL_QUEUE_EVENTS_MAX)
        most = SL_QUEUE_EVENTS_MAX;
    snprintf(key, sizeof key, SL_QUEUE_TAG ":events:%s", run);
    sl_cmd_init(&c);
    sl_cmd_add(&c, "XREAD");
    sl_cmd_add(&c, "COUNT");
    sl_cmd_add_int(&c, most);
    if (wait_ms > 0) {
        sl_cmd_add(&c, "BLOCK");
        sl_cmd_add_int(&c, wait_ms);
    }
    sl_cmd_add(&c, "STREAMS");
    sl_cmd_add(&c, key);
    sl_cmd_add(&c, last);
    rc = sl_queue_call(q, &c, wait_ms > 0 ? wait_ms * 1000 : 0, &reply, err);
    if (rc)
        return rc;
    events = json_array();
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 &&
        reply->element[0]->type == REDIS_REPLY_ARRAY && reply->element[0]->elements == 2) {
        const redisReply *entries = reply->element[0]->element[1];
        for (size_t i = 0; i < entries->elements; i++) {
            json_t *e = event_json(entries->element[i]);
            if (!e)
                continue;
            last = entries->element[i]->element[0]->str;
            json_array_append_new(events, e);
        }
    }
    *ret_events = json_pack("{s:o, s:s}", "events", events, "last", last);
    freeReplyObject(reply);
    return 0;
}
