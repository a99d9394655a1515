#include "agent/report.h"
#include "base/fault.h"
#include "base/json.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum rank { METRIC, LOG, KEEP }; /* what goes first when there is no more room */

struct entry {
    struct entry *next;
    enum rank rank;
    char type[16];
    size_t len;
    char *json;
};

struct sl_report {
    struct sl_loop *loop;
    struct sl_redis_async *redis;
    struct sl_report_owner owner;
    char run[SL_ID_HEX + 1], lease[SL_ID_HEX + 1];
    struct entry *first, **last;
    int n, n_frozen; /* the first n_frozen belong to the batch under way: the same when it is sent
                        again */
    size_t bytes;
    int64_t dropped, dropped_told, batch;
    int64_t added, done; /* entries ever; done: in Redis, or dropped */
    bool in_flight, progress_new;
    int timer;
    const char *phase;
    int64_t step, steps;
    json_t *metrics;
    char *tail[SL_REPORT_LOG_TAIL];
    unsigned n_tail;
};

static void flush_report(struct sl_report *r);

int sl_report_new(struct sl_loop *loop, struct sl_redis_async *redis, const char *run,
                  const char *lease, const struct sl_report_owner *owner,
                  struct sl_report **ret_report, struct sl_err *err)
{
    struct sl_report *r = calloc(1, sizeof *r);

    if (!r || !(r->metrics = json_object())) {
        free(r);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    r->loop = loop;
    r->redis = redis;
    r->owner = *owner;
    snprintf(r->run, sizeof r->run, "%s", run);
    snprintf(r->lease, sizeof r->lease, "%s", lease);
    r->last = &r->first;
    r->timer = -1;
    r->step = r->steps = -1;
    *ret_report = r;
    return 0;
}

static void free_entry(struct entry *e)
{
    free(e->json);
    free(e);
}

static void really_free(struct sl_report *r)
{
    while (r->first) {
        struct entry *e = r->first;
        r->first = e->next;
        free_entry(e);
    }
    for (size_t i = 0; i < SL_REPORT_LOG_TAIL; i++)
        free(r->tail[i]);
    json_decref(r->metrics);
    free(r);
}

/* A reply may still be on its way to us: then the last one frees. */
void sl_report_free(struct sl_report *r)
{
    if (!r)
        return;
    sl_loop_timer_cancel(r->loop, r->timer);
    r->timer = -1;
    memset(&r->owner, 0, sizeof r->owner);
    r->redis = NULL;
    if (!r->in_flight)
        really_free(r);
}

/* ---- in
 * ----------------------------------------------------------------------------------------------------
 */

static bool drop_oldest(struct sl_report *r, enum rank rank)
{
    struct entry **at = &r->first;
    int i = 0;

    for (; *at && (i < r->n_frozen || (*at)->rank != rank); i++)
        at = &(*at)->next;
    if (!*at)
        return false;
    struct entry *e = *at;
    *at = e->next;
    if (r->last == &e->next)
        r->last = at;
    r->n--;
    r->bytes -= e->len;
    r->dropped++;
    r->done++;
    free_entry(e);
    return true;
}

static void timer_due(void *arg)
{
    struct sl_report *r = arg;

    r->timer = -1;
    flush_report(r);
}

static void wake(struct sl_report *r)
{
    if (r->timer < 0 && !r->in_flight && r->redis)
        r->timer = sl_loop_timer(r->loop, SL_REPORT_DELAY_US, timer_due, r, NULL);
}

static void add(struct sl_report *r, enum rank rank, const char *type, const json_t *data)
{
    char *json = sl_json_dump(data);
    struct entry *e = calloc(1, sizeof *e);

    if (json && strlen(json) > SL_REPORT_EVENT_MAX) {
        free(json);
        json = strdup("{\"msg\":\"an event too long to be kept was left out\"}");
    }
    if (!json || !e) {
        free(json);
        free(e);
        r->dropped++;
        return;
    }
    *e = (struct entry){.rank = rank, .json = json, .len = strlen(json)};
    snprintf(e->type, sizeof e->type, "%s", type);
    *r->last = e;
    r->last = &e->next;
    r->n++;
    r->added++;
    r->bytes += e->len;
    while (r->n > SL_REPORT_MAX_EVENTS || r->bytes > SL_REPORT_MAX_BYTES)
        if (!drop_oldest(r, METRIC) && !drop_oldest(r, LOG))
            break;
    wake(r);
}

void sl_report_phase(struct sl_report *r, const char *phase)
{
    json_t *d = json_pack("{s:s}", "phase", phase);

    r->phase = phase;
    r->progress_new = true;
    add(r, KEEP, "phase", d);
    json_decref(d);
}

static void keep_tail(struct sl_report *r, const char *line)
{
    char **at = &r->tail[r->n_tail++ % SL_REPORT_LOG_TAIL];

    free(*at);
    *at = strndup(line, SL_REPORT_LOG_LINE_MAX);
}

void sl_report_log(struct sl_report *r, const char *level, const char *fmt, ...)
{
    char msg[SL_ERR_MSG_MAX + 256];
    va_list ap;
    json_t *d;

    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap); /* NOLINT(clang-analyzer-valist.Uninitialized) */
    va_end(ap);
    sl_utf8_trim(msg);
    d = json_pack("{s:s, s:s}", "level", level, "msg", msg);
    if (!d) { /* not UTF-8 */
        for (char *p = msg; *p; p++)
            if ((unsigned char)*p >= 0x80)
                *p = '?';
        d = json_pack("{s:s, s:s}", "level", level, "msg", msg);
    }
    keep_tail(r, msg);
    if (d)
        add(r, LOG, "log", d);
    json_decref(d);
}

/* Named numbers of a metric become the run's latest ones; step is the run's progress. Of trials these are
 * "TRIAL/loss" and what validations and tests give. */
static void take_metric(struct sl_report *r, json_t *event)
{
    const char *key, *trial = sl_json_str(event, "trial", NULL);
    char name[256];
    json_t *value;

    json_object_foreach(event, key, value)
    {
        bool result = !strncmp(key, "val_", 4) || !strncmp(key, "test/", 5) || !strcmp(key, "loss");

        if (!json_is_number(value) || (trial && !result) || !strncmp(key, "system/", 7))
            continue;
        snprintf(name, sizeof name, "%s%s%s", trial ? trial : "", trial ? "/" : "", key);
        json_object_set(r->metrics, name, value);
    }
    r->step = sl_json_int(event, "step", r->step);
    r->progress_new = true;
}

void sl_report_event(struct sl_report *r, const json_t *event)
{
    const char *type = sl_json_str(event, "ev", "");
    json_t *d = json_copy((json_t *)(uintptr_t)event);

    json_object_del(d, "ev");
    if (!strcmp(type, "metric")) {
        take_metric(r, d);
        add(r, METRIC, type, d);
    } else if (!strcmp(type, "progress")) {
        add(r, METRIC, type, d);
    } else if (!strcmp(type, "log")) {
        keep_tail(r, sl_json_str(d, "msg", ""));
        add(r, LOG, type, d);
    } else if (!strcmp(type, "start")) {
        r->step = sl_json_int(d, "step", r->step);
        r->steps = sl_json_int(d, "steps", r->steps);
        r->progress_new = true;
        add(r, KEEP, type, d);
    } else if (!strcmp(type, "prediction")) {
        add(r, KEEP, type, d);
    }
    json_decref(d); /* checkpoint and result are told by scripts of their own */
}

/* ---- out
 * ---------------------------------------------------------------------------------------------------
 */

static void on_reply(void *arg, const redisReply *reply, const struct sl_err *err)
{
    struct sl_report *r = arg;

    sl_fault_point("append.after");
    (void)reply;
    r->in_flight = false;
    if (!r->redis) {
        really_free(r);
        return;
    }
    if (err && err->code == SL_RETRY) {
        if (sl_redis_async_up(
                r->redis)) /* refused for now (loading, out of memory): not at once again */
            wake(r);
        return; /* else sl_report_connected */
    }
    if (err && err->code == SL_LEASE) {
        r->owner.lost(r->owner.arg);
        return;
    }
    /* In Redis; or refused as odd, and then it would be refused again. */
    for (; r->n_frozen && r->first; r->n_frozen--) {
        struct entry *e = r->first;
        r->first = e->next;
        if (!r->first)
            r->last = &r->first;
        r->n--;
        r->done++;
        r->bytes -= e->len;
        free_entry(e);
    }
    r->batch++;
    flush_report(r);
    r->owner.taken(r->owner.arg);
}

static void freeze(struct sl_report *r)
{
    size_t bytes = 0;

    if (r->dropped != r->dropped_told) {
        json_t *d = json_pack("{s:s, s:s, s:I}", "level", "warn", "msg",
                              "events were dropped while Redis was away", "dropped",
                              (json_int_t)(r->dropped - r->dropped_told));
        r->dropped_told = r->dropped;
        add(r, KEEP, "log", d);
        json_decref(d);
    }
    for (struct entry *e = r->first; e && r->n_frozen < SL_QUEUE_BATCH_MAX; e = e->next) {
        bytes += e->len;
        if (r->n_frozen && bytes > SL_REPORT_BATCH_BYTES)
            break;
        r->n_frozen++;
    }
    r->progress_new = false;
}

static void flush_report(struct sl_report *r)
{
    char *metrics = NULL;
    struct sl_cmd c;
    struct entry *e;
    int i;

    if (r->in_flight || !r->redis || !sl_redis_async_up(r->redis) || (!r->n && !r->progress_new))
        return;
    if (!r->n_frozen)
        freeze(r);
    if (json_object_size(r->metrics))
        metrics = sl_json_dump(r->metrics);
    sl_queue_cmd_append(&c, r->run, r->lease, r->batch + 1, r->phase, r->step, r->steps, metrics);
    for (i = 0, e = r->first; i < r->n_frozen; i++, e = e->next)
        sl_queue_cmd_append_event(&c, e->type, e->json);
    sl_fault_point("append.before");
    if (!sl_redis_async_call(r->redis, &c, 0, on_reply, r, NULL))
        r->in_flight = true;
    else
        wake(r);
    sl_cmd_release(&c);
    free(metrics);
}

void sl_report_connected(struct sl_report *r)
{
    flush_report(r);
}

int64_t sl_report_mark(const struct sl_report *r)
{
    return r->added;
}

bool sl_report_reached(const struct sl_report *r, int64_t mark)
{
    return r->done >= mark;
}

bool sl_report_drained(const struct sl_report *r)
{
    return !r->in_flight && !r->n && !r->progress_new;
}

char *sl_report_log_tail(const struct sl_report *r)
{
    json_t *list = json_array();
    unsigned n = r->n_tail < SL_REPORT_LOG_TAIL ? r->n_tail : SL_REPORT_LOG_TAIL;
    char *text;

    for (unsigned i = r->n_tail - n; i < r->n_tail; i++) {
        const char *line = r->tail[i % SL_REPORT_LOG_TAIL];
        json_t *s = line ? json_string(line) : NULL;
        json_array_append_new(list, s ? s : json_string("(a line that is not UTF-8)"));
    }
    text = sl_json_dump(list);
    json_decref(list);
    return text;
}

const json_t *sl_report_metrics(const struct sl_report *r)
{
    return r->metrics;
}

int64_t sl_report_step(const struct sl_report *r)
{
    return r->step;
}
