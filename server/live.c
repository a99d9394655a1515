#include "server/live.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENT_STREAM "text/event-stream"
#define PAUSE_US INT64_C(5000000) /* without a reading, behind which events may have left Redis (EVENTS_FRESH_MS) */
#define BATCH_MAX (16u << 20) /* bytes for one reader in one period: a page of events */

/* A run that somebody watches. */
struct topic {
    char run[SL_ID_HEX + 1];
    char head[SL_QUEUE_EVENT_ID_MAX]; /* the last event that was read for all */
    int seats;
    struct topic *next;
};

struct seat {
    struct topic *topic; /* NULL until the thread has taken the watcher in */
    char run[SL_ID_HEX + 1];
    char last[SL_QUEUE_EVENT_ID_MAX], newest[SL_QUEUE_EVENT_ID_MAX]; /* newest: when it came */
    bool level; /* it has all up to the topic's head */
    bool reset; /* what it asks for has left Redis */
};

struct watcher {
    struct sl_http_stream *stream;
    bool one_run;
    int64_t opened_us, said_us;
    struct sl_buf out;
    struct watcher *next;
    int n;
    struct seat seats[];
};

struct sl_live {
    struct sl_runs *runs;
    struct sl_ticker *ticker;
    pthread_mutex_t mutex;
    struct watcher *arrived; /* under the mutex; the rest is the thread's */
    struct watcher *watchers;
    struct topic *topics;
    int64_t read_us; /* when all was read last */
};

/* Ids are MILLISECONDS or MILLISECONDS-NUMBER. */
static int compare_ids(const char *a, const char *b)
{
    char *a_end, *b_end;
    unsigned long long x = strtoull(a, &a_end, 10), y = strtoull(b, &b_end, 10);
    if (x == y) {
        x = *a_end == '-' ? strtoull(a_end + 1, NULL, 10) : 0;
        y = *b_end == '-' ? strtoull(b_end + 1, NULL, 10) : 0;
    }
    return x < y ? -1 : x > y;
}

static void copy_id(char to[SL_QUEUE_EVENT_ID_MAX], const char *id)
{
    snprintf(to, SL_QUEUE_EVENT_ID_MAX, "%s", id);
}

/* ---- coming and going ------------------------------------------------------------------------- */

static void free_watcher(struct watcher *w)
{
    for (int i = 0; i < w->n; i++)
        if (w->seats[i].topic)
            w->seats[i].topic->seats--;
    sl_http_stream_end(w->stream);
    sl_buf_release(&w->out);
    free(w);
}

static struct topic *topic_of(struct sl_live *live, const struct seat *seat)
{
    for (struct topic *t = live->topics; t; t = t->next)
        if (!strcmp(t->run, seat->run))
            return t;
    struct topic *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    memcpy(t->run, seat->run, sizeof t->run);
    copy_id(t->head, seat->newest);
    t->next = live->topics;
    return live->topics = t;
}

static void take_in(struct sl_live *live)
{
    pthread_mutex_lock(&live->mutex);
    struct watcher *w = live->arrived, *next;
    live->arrived = NULL;
    pthread_mutex_unlock(&live->mutex);
    for (; w; w = next) {
        bool ok = true;
        next = w->next;
        for (int i = 0; ok && i < w->n; i++) {
            struct seat *s = &w->seats[i];
            s->topic = topic_of(live, s);
            ok = s->topic != NULL;
            if (!ok)
                break;
            s->topic->seats++;
            s->level = compare_ids(s->last, s->topic->head) >= 0;
        }
        if (!ok) {
            free_watcher(w);
            continue;
        }
        w->next = live->watchers;
        live->watchers = w;
    }
}

static void sweep(struct sl_live *live)
{
    int64_t now = sl_boot_us();
    bool stopping = sl_http_is_stopping(live->runs->server->http);
    for (struct watcher **at = &live->watchers, *w; (w = *at);) {
        if (stopping || sl_http_stream_gone(w->stream) || now - w->opened_us > SL_LIVE_STREAM_US) {
            *at = w->next;
            free_watcher(w);
        } else {
            at = &w->next;
        }
    }
    for (struct topic **at = &live->topics, *t; (t = *at);) {
        if (!t->seats) {
            *at = t->next;
            free(t);
        } else {
            at = &t->next;
        }
    }
}

/* ---- blocks ----------------------------------------------------------------------------------- */

/* The text of one event, without its id line and the empty line that ends it. */
static char *block_of(const char *run, const json_t *event)
{
    json_t *data = json_pack("{s:s}", "run", run);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)event, key, value)
        if (strcmp(key, "type") != 0)
            json_object_set(data, key, value);
    char *text = sl_json_dump(data), *block = NULL;
    json_decref(data);
    if (text && asprintf(&block, "event: %s\ndata: %s\n", sl_json_str(event, "type", "event"), text) < 0)
        block = NULL;
    free(text);
    return block;
}

/* False, and nothing is given: the batch is full. */
static bool give(struct watcher *w, struct seat *s, const char *id, const char *block)
{
    size_t before = w->out.len;
    if ((w->one_run && sl_buf_addf(&w->out, "id: %s\n", id)) || sl_buf_adds(&w->out, block) ||
        sl_buf_addc(&w->out, '\n')) {
        w->out.len = before;
        w->out.p[before] = 0;
        return false;
    }
    copy_id(s->last, id);
    return true;
}

static bool is_behind(const struct watcher *w)
{
    return w->out.len + sl_http_stream_waiting(w->stream) > SL_LIVE_BEHIND_MAX;
}

static void flush(struct watcher *w)
{
    int64_t now = sl_boot_us();
    if (w->out.len > 0 && !w->one_run) {
        for (int i = 0; i < w->n; i++)
            sl_buf_addf(&w->out, "%s%s:%s", i ? "," : "id: ", w->seats[i].run, w->seats[i].last);
        sl_buf_adds(&w->out, "\n\n");
    }
    if (w->out.len == 0) {
        if (now - w->said_us < SL_LIVE_COMMENT_US)
            return;
        sl_buf_adds(&w->out, ":\n\n");
    }
    w->said_us = now;
    sl_http_stream_send(w->stream, w->out.p, w->out.len);
    sl_buf_reset(&w->out);
}

/* ---- reading ---------------------------------------------------------------------------------- */

static void fan_out(struct sl_live *live, struct topic *t, const json_t *events)
{
    json_t *event;
    size_t i;
    json_array_foreach(events, i, event) {
        const char *id = sl_json_str(event, "id", "0");
        char *block = block_of(t->run, event);
        if (!block)
            return;
        for (struct watcher *w = live->watchers; w; w = w->next)
            for (int k = 0; k < w->n; k++)
                if (w->seats[k].topic == t && w->seats[k].level &&
                    compare_ids(id, w->seats[k].last) > 0)
                    w->seats[k].level = !is_behind(w) && give(w, &w->seats[k], id, block);
        free(block);
        copy_id(t->head, id);
    }
}

/* What is new of all runs that are watched. */
static void read_news(struct sl_live *live)
{
    struct topic *some[SL_QUEUE_TAIL_MAX], *t = live->topics;
    const char *runs[SL_QUEUE_TAIL_MAX], *after[SL_QUEUE_TAIL_MAX];
    int64_t now = sl_boot_us();
    if (live->read_us && now - live->read_us > PAUSE_US)
        for (struct watcher *w = live->watchers; w; w = w->next)
            for (int i = 0; i < w->n; i++)
                w->seats[i].level = false; /* each looks for its own place, and is told of a gap */
    while (t) {
        int n = 0;
        json_t *events;
        for (; t && n < SL_QUEUE_TAIL_MAX; t = t->next, n++) {
            some[n] = t;
            runs[n] = t->run;
            after[n] = t->head;
        }
        if (sl_queue_events_of(live->runs->queue, runs, after, n, SL_LIVE_PAGE, &events, NULL))
            return; /* Redis is away: the next period tries again, from the same ids */
        for (int i = 0; i < n; i++)
            fan_out(live, some[i], json_object_get(events, runs[i]));
        json_decref(events);
    }
    live->read_us = now;
}

/* A page for who came with an older id, or is behind and has now taken what waited. After read_news, so that with the last page nothing lies
 * between it and the topic's head. */
static void catch_up(struct sl_live *live, struct watcher *w, struct seat *s)
{
    json_t *page, *event;
    size_t i;
    if (is_behind(w) ||
        sl_queue_events(live->runs->queue, s->run, s->last, SL_LIVE_PAGE, 0, &page, NULL))
        return;
    const json_t *events = json_object_get(page, "events");
    if (sl_json_bool(page, "trimmed", false) || s->reset)
        sl_buf_addf(&w->out, "event: reset\ndata: {\"run\": \"%s\"}\n\n", s->run);
    s->reset = false;
    s->level = json_array_size(events) < SL_LIVE_PAGE;
    json_array_foreach(events, i, event) {
        char *block = block_of(s->run, event);
        bool given = block && give(w, s, sl_json_str(event, "id", "0"), block);
        free(block);
        if (!given) {
            s->level = false;
            break;
        }
    }
    json_decref(page);
}

static void tick(void *arg)
{
    struct sl_live *live = arg;
    take_in(live);
    sweep(live);
    if (!live->watchers) {
        live->read_us = 0;
        return;
    }
    read_news(live);
    for (struct watcher *w = live->watchers; w; w = w->next) {
        for (int i = 0; i < w->n; i++)
            if (!w->seats[i].level || w->seats[i].reset)
                catch_up(live, w, &w->seats[i]);
        flush(w);
    }
}

/* ---- requests --------------------------------------------------------------------------------- */

bool sl_live_wanted(const struct sl_http_req *req)
{
    const char *accept = sl_http_header(req, "Accept");
    return accept && strstr(accept, EVENT_STREAM);
}

/* Opens the stream. Takes w. */
static void open_stream(struct sl_live *live, struct sl_http_req *req, struct watcher *w)
{
    struct sl_err err = SL_ERR_INIT;
    for (int i = 0; i < w->n; i++) {
        struct seat *s = &w->seats[i];
        if (sl_queue_newest_event(live->runs->queue, s->run, s->newest, &err)) {
            sl_http_reply_err(req, &err, NULL);
            free_watcher(w);
            return;
        }
        if (!*s->last)
            copy_id(s->last, s->newest);
        s->reset = !strcmp(s->newest, "0"); /* archived: every run in Redis has events */
    }
    sl_buf_init(&w->out, BATCH_MAX);
    w->opened_us = w->said_us = sl_boot_us();
    w->stream = sl_http_reply_stream(req, EVENT_STREAM, SL_LIVE_BEHIND_MAX + BATCH_MAX);
    if (!w->stream) {
        free_watcher(w);
        return;
    }
    sl_http_stream_send(w->stream, "retry: 1000\n\n", 13);
    pthread_mutex_lock(&live->mutex);
    w->next = live->arrived;
    live->arrived = w;
    pthread_mutex_unlock(&live->mutex);
}

static struct watcher *new_watcher(struct sl_http_req *req, int n)
{
    struct watcher *w = calloc(1, sizeof *w + (size_t)n * sizeof w->seats[0]);
    if (!w)
        sl_http_reply_problem(req, 500, "internal error", NULL, "out of memory");
    else
        w->n = n;
    return w;
}

void sl_live_run(struct sl_live *live, struct sl_http_req *req, const char *run)
{
    const char *last = sl_http_header(req, "Last-Event-ID"), *after = sl_http_query(req, "after");
    if (!last || !*last)
        last = after && *after ? after : "0";
    if (!sl_queue_event_id_valid(last)) {
        sl_http_reply_problem(req, 422, "not valid", NULL, "not an event id: %.60s", last);
        return;
    }
    struct watcher *w = new_watcher(req, 1);
    if (!w)
        return;
    w->one_run = true;
    snprintf(w->seats[0].run, sizeof w->seats[0].run, "%s", run);
    copy_id(w->seats[0].last, last);
    open_stream(live, req, w);
}

/* Splits "A,B,C". -1: too many, or one too long. */
static int split_runs(const char *list, char runs[SL_LIVE_RUNS_MAX][SL_ID_HEX + 1])
{
    int n = 0;
    while (*list) {
        size_t len = strcspn(list, ",");
        if (n == SL_LIVE_RUNS_MAX || len > SL_ID_HEX || len == 0)
            return -1;
        memcpy(runs[n], list, len);
        runs[n++][len] = 0;
        list += len + (list[len] == ',');
    }
    return n;
}

/* Where a stream of several runs broke off: RUN:ID,RUN:ID. */
static void go_on_from(struct seat *s, const char *ids)
{
    char id[SL_QUEUE_EVENT_ID_MAX];
    const char *at = ids ? strstr(ids, s->run) : NULL;
    if (!at || at[strlen(s->run)] != ':')
        return;
    at += strlen(s->run) + 1;
    size_t len = strcspn(at, ",");
    if (len >= sizeof id)
        return;
    memcpy(id, at, len);
    id[len] = 0;
    if (sl_queue_event_id_valid(id))
        copy_id(s->last, id);
}

static void watch_several(struct sl_http_req *req, void *arg)
{
    struct sl_live *live = arg;
    struct sl_err err = SL_ERR_INIT;
    char runs[SL_LIVE_RUNS_MAX][SL_ID_HEX + 1], project[SL_HTTP_PROJECT_MAX + 1];
    const char *list = sl_http_query(req, "runs");
    int n = list ? split_runs(list, runs) : 0;
    if (n < 1) {
        sl_http_reply_problem(req, 422, "not valid", NULL,
                              "?runs= must name 1 to %d runs, with commas between them", SL_LIVE_RUNS_MAX);
        return;
    }
    for (int i = 0; i < n; i++) {
        int rc = sl_runs_project_of(live->runs, runs[i], project, &err);
        if (rc == 0 && !sl_http_sees(req, project))
            rc = sl_err_set(&err, SL_NOTFOUND, "there is no run %s", runs[i]);
        if (rc) {
            sl_http_reply_err(req, &err, NULL);
            return;
        }
    }
    struct watcher *w = new_watcher(req, n);
    if (!w)
        return;
    for (int i = 0; i < n; i++) {
        memcpy(w->seats[i].run, runs[i], sizeof runs[i]);
        go_on_from(&w->seats[i], sl_http_header(req, "Last-Event-ID"));
    }
    open_stream(live, req, w);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/events", .scope = SL_SCOPE_HANDLER, .handle = watch_several},
};

int sl_live_start(struct sl_runs *runs, struct sl_live **ret_live, struct sl_err *err)
{
    struct sl_live *live = calloc(1, sizeof *live);
    if (!live)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    live->runs = runs;
    pthread_mutex_init(&live->mutex, NULL);
    int rc = sl_http_add(runs->server->http, routes, sizeof routes / sizeof *routes, live, err);
    if (rc == 0)
        rc = sl_ticker_start(tick, live, SL_LIVE_PERIOD_US, &live->ticker, err);
    if (rc) {
        sl_live_stop(live);
        return rc;
    }
    *ret_live = live;
    return 0;
}

void sl_live_stop(struct sl_live *live)
{
    if (!live)
        return;
    sl_ticker_stop(live->ticker);
    take_in(live);
    for (struct watcher *w = live->watchers, *next; w; w = next) {
        next = w->next;
        free_watcher(w);
    }
    live->watchers = NULL;
    sweep(live);
    pthread_mutex_destroy(&live->mutex);
    free(live);
}
