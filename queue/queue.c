#include "queue/queue.h"
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

struct sl_redis *sl_queue_take(struct sl_queue *q)
{
    struct sl_redis *r;

    pthread_mutex_lock(&q->mutex);
    while (!q->n_idle)
        pthread_cond_wait(&q->given_back, &q->mutex);
    r = q->idle[--q->n_idle];
    pthread_mutex_unlock(&q->mutex);
    return r;
}

void sl_queue_give(struct sl_queue *q, struct sl_redis *r)
{
    pthread_mutex_lock(&q->mutex);
    q->idle[q->n_idle++] = r; /* last in, first out: the warm ones are used */
    pthread_cond_signal(&q->given_back);
    pthread_mutex_unlock(&q->mutex);
}

int sl_queue_sync(struct sl_queue *q, const char *run, int replicas, int64_t wait_ms,
                  int *ret_replicas, struct sl_err *err)
{
    struct sl_redis *r;
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    sl_queue_cmd(&c, SL_SCRIPT_SYNC);
    sl_cmd_add(&c, run);
    r = sl_queue_take(q);
    rc = sl_redis_call_synced(r, &c, replicas, wait_ms, &reply, ret_replicas, err);
    sl_queue_give(q, r);
    sl_cmd_release(&c);
    if (!rc)
        freeReplyObject(reply);
    return rc;
}

/* Sends c and releases it. */
int sl_queue_call(struct sl_queue *q, struct sl_cmd *c, int64_t wait_us, redisReply **ret_reply,
                  struct sl_err *err)
{
    struct sl_redis *r = sl_queue_take(q);
    int rc = sl_redis_call(r, c, wait_us, ret_reply, err);

    sl_queue_give(q, r);
    sl_cmd_release(c);
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

bool sl_queue_is_texts(const redisReply *r, int n)
{
    if (r->type != REDIS_REPLY_ARRAY || (n >= 0 && r->elements < (size_t)n))
        return false;
    for (size_t i = 0; i < r->elements; i++)
        if (!sl_queue_is_text(r->element[i]))
            return false;
    return true;
}

int sl_queue_do(struct sl_queue *q, struct sl_cmd *c, struct sl_err *err)
{
    redisReply *reply;
    int rc = sl_queue_call(q, c, 0, &reply, err);

    if (!rc)
        freeReplyObject(reply);
    return rc;
}

json_t *sl_queue_parsed(const char *text)
{
    json_t *j = text && *text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;

    return j ? j : json_null();
}

/* ---- runs as JSON
 * ------------------------------------------------------------------------------------------ */

enum kind { TEXT, INTEGER, COUNT, FLAG, JSON, RANK };

static const struct field {
    const char *redis, *json;
    enum kind kind;
} run_fields[] = {
    {"name", "name", TEXT},
    {"project", "project", TEXT},
    {"queue", "queue", TEXT},
    {"class", "class", TEXT},
    {"rank", "priority", RANK},
    {"state", "state", TEXT},
    {"phase", "phase", TEXT},
    {"cause", "cause", TEXT},
    {"msg", "msg", TEXT},
    {"agent", "agent", TEXT},
    {"cancel", "cancel_requested", FLAG},
    {"seq", "seq", INTEGER},
    {"requeued_from", "requeued_from", TEXT},
    {"created_by", "created_by", TEXT},
    {"job", "job", TEXT},
    {"created_ms", "created_ms", INTEGER},
    {"started_ms", "started_ms", INTEGER},
    {"finished_ms", "finished_ms", INTEGER},
    {"due_ms", "due_ms", INTEGER},
    {"attempt", "attempt", INTEGER},
    {"max_attempts", "max_attempts", INTEGER},
    {"failures", "failures", COUNT},
    {"ooms", "out_of_memory", COUNT},
    {"timeouts", "timeouts", COUNT},
    {"lost", "lost", COUNT},
    {"preemptions", "preemptions", COUNT},
    {"run_ms", "run_ms", INTEGER},
    {"exit_code", "exit_code", INTEGER},
    {"exit_signal", "exit_signal", INTEGER},
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
#define WAITING_A_CALL 50
#define LIST_CALLS 34 /* of the script for one page: some 2,000 runs are looked at */

/* An absent value is null, but a count of 0 and a flag that is not set are not kept in Redis at all. */
static json_t *field_json(const struct field *f, const redisReply *r)
{
    if (f->kind == COUNT || f->kind == FLAG) {
        long long n = sl_queue_is_text(r) ? atoll(r->str) : 0;
        return f->kind == FLAG ? json_boolean(n == 1) : json_integer(n);
    }
    if (!sl_queue_is_text(r) || r->len == 0)
        return json_null();
    switch (f->kind) {
    case INTEGER:
        return json_integer(atoll(r->str));
    case COUNT:
    case FLAG:
        break;
    case JSON:
        return sl_queue_parsed(r->str);
    case RANK:
        return json_string(sl_queue_priority(atoi(r->str)));
    case TEXT:
        break;
    }
    return json_string(r->str);
}

/* The fields' values. */
static json_t *fields_json(const char *run, redisReply *const *values, size_t n)
{
    json_t *j = json_object();

    json_object_set_new(j, "run", json_string(run));
    for (size_t i = 0; i < n; i++)
        json_object_set_new(j, run_fields[i].json, field_json(&run_fields[i], values[i]));
    return j;
}

/* values: why it waits, then the fields. */
static json_t *run_json(const char *run, redisReply *const *values, size_t n)
{
    json_t *j = fields_json(run, values + 1, n);

    json_object_set_new(j, "waiting_for",
                        values[0]->len ? json_string(values[0]->str) : json_null());
    return j;
}

int sl_queue_no_run(const char *run, struct sl_err *err)
{
    return sl_err_set(err, SL_NOTFOUND, "no run %.64s", run);
}

/* Run ids are 32 hex digits; anything else cannot exist, and never gets into a key. */
bool sl_queue_run_valid(const char *run)
{
    return strlen(run) == SL_ID_HEX && strspn(run, "0123456789abcdef") == SL_ID_HEX;
}

/* The messages of log events that come newest first. */
static json_t *log_lines(redisReply *const *events, size_t n)
{
    json_t *lines = json_array();

    while (n--) {
        json_t *e = sl_queue_parsed(events[n]->str);
        const char *msg = sl_json_str(e, "msg", NULL);
        if (msg)
            json_array_append_new(lines, json_string(msg));
        json_decref(e);
    }
    return lines;
}

int sl_queue_show(struct sl_queue *q, const char *run, json_t **ret_run, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    sl_queue_cmd(&c, SL_SCRIPT_SHOW);
    sl_cmd_add(&c, run);
    for (size_t i = 0; i < N_FIELDS; i++)
        sl_cmd_add(&c, run_fields[i].redis);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (!sl_queue_is_texts(reply, N_FIELDS + 1))
        return sl_queue_odd_reply("show", reply, err);
    *ret_run = run_json(run, reply->element, N_FIELDS);
    if (reply->elements > N_FIELDS + 1)
        json_object_set_new(*ret_run, "log_tail",
                            log_lines(reply->element + N_FIELDS + 1, reply->elements - N_FIELDS - 1));
    freeReplyObject(reply);
    return 0;
}

/* One call of the script: adds to runs; next gets the place to go on below, "" at the end. */
static int list_more(struct sl_queue *q, const char *below, int most, const char *const filters[3],
                     json_t *runs, char next[24], struct sl_err *err)
{
    const size_t stride = N_LIST_FIELDS + 2;
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_LIST);
    sl_cmd_add(&c, below);
    sl_cmd_add_int(&c, most);
    for (int i = 0; i < 3; i++)
        sl_cmd_add(&c, filters[i]);
    for (size_t i = 0; i < N_LIST_FIELDS; i++)
        sl_cmd_add(&c, run_fields[i].redis);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (!sl_queue_is_texts(reply, 1) || reply->elements % stride != 1)
        return sl_queue_odd_reply("list", reply, err);
    for (size_t i = 1; i < reply->elements; i += stride)
        json_array_append_new(
            runs, run_json(reply->element[i]->str, reply->element + i + 1, N_LIST_FIELDS));
    snprintf(next, 24, "%s", reply->element[0]->str);
    freeReplyObject(reply);
    return 0;
}

int sl_queue_list(struct sl_queue *q, const char *below, int most, const char *state,
                  const char *queue, const char *project, json_t **ret_page, struct sl_err *err)
{
    const char *const filters[] = {state, queue, project};
    char next[24];
    json_t *runs;
    int rc = 0;

    if (below && (!*below || strlen(below) > 16 || strspn(below, "0123456789") != strlen(below)))
        return sl_err_set(err, SL_SPEC, "not a place in the list of runs: %.40s", below);
    if (most < 1 || most > SL_QUEUE_PAGE_MAX)
        most = SL_QUEUE_PAGE_MAX;
    snprintf(next, sizeof next, "%s", below ? below : "");
    runs = json_array();
    for (int calls = 0, left = most; !rc && calls < LIST_CALLS && left > 0 && (!calls || *next);
         calls++, left = most - (int)json_array_size(runs))
        rc = list_more(q, next, left, filters, runs, next, err);
    if (rc)
        json_decref(runs);
    else
        *ret_page = json_pack("{s:o, s:o}", "runs", runs, "next",
                              *next ? json_string(next) : json_null());
    return rc;
}

/* ---- what changed ---------------------------------------------------------------------------- */

int sl_queue_changes(struct sl_queue *q, const json_t *taken, json_t **ret_changes,
                     struct sl_err *err)
{
    const size_t stride = N_LIST_FIELDS + 1;
    struct sl_cmd c;
    redisReply *reply;
    json_t *changes, *one;
    size_t i;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_CHANGES);
    sl_cmd_add_int(&c, (int64_t)json_array_size(taken));
    json_array_foreach(taken, i, one)
        sl_cmd_add(&c, sl_json_str(one, "run", ""));
    sl_cmd_add_int(&c, SL_QUEUE_CHANGES_MAX);
    for (i = 0; i < N_LIST_FIELDS; i++)
        sl_cmd_add(&c, run_fields[i].redis);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (!sl_queue_is_texts(reply, 0) || reply->elements % stride)
        return sl_queue_odd_reply("changes", reply, err);
    changes = json_array();
    for (i = 0; i < reply->elements; i += stride)
        json_array_append_new(changes, fields_json(reply->element[i]->str, reply->element + i + 1,
                                                   N_LIST_FIELDS));
    freeReplyObject(reply);
    *ret_changes = changes;
    return 0;
}

int sl_queue_waiting_for(struct sl_queue *q, json_t *runs, struct sl_err *err)
{
    json_t *asked = json_array(), *run;
    struct sl_cmd c;
    redisReply *reply;
    size_t i, n;
    int rc = 0;

    json_array_foreach(runs, i, run)
        if (!strcmp(sl_json_str(run, "state", ""), "queued"))
            json_array_append(asked, run);
    n = json_array_size(asked);
    for (size_t at = 0; !rc && at < n; at += WAITING_A_CALL) {
        size_t some = n - at < WAITING_A_CALL ? n - at : WAITING_A_CALL;
        sl_queue_cmd(&c, SL_SCRIPT_WAITING);
        for (i = at; i < at + some; i++)
            sl_cmd_add(&c, sl_json_str(json_array_get(asked, i), "run", ""));
        rc = sl_queue_call(q, &c, 0, &reply, err);
        if (!rc && !sl_queue_is_texts(reply, (int)some))
            rc = sl_queue_odd_reply("waiting", reply, err);
        else if (!rc) {
            for (i = 0; i < some; i++)
                if (reply->element[i]->len)
                    json_object_set_new(json_array_get(asked, at + i), "waiting_for",
                                        json_string(reply->element[i]->str));
            freeReplyObject(reply);
        }
    }
    json_decref(asked);
    return rc;
}
