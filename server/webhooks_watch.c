/* Sees what webhooks are about: once a second, and by the archiver before a run leaves Redis. */
#include "base/json.h"
#include "base/log.h"
#include "server/webhooks_priv.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENDED_A_PAGE 100 /* so that the script holds Redis for under 2 ms */
#define ENDED_AGAIN_MS 5000 /* looked at again: what Redis wrote down late, or by a clock that was set back */
#define LOG_TAIL_LINES 10

/* ---- bodies ---------------------------------------------------------------------------------- */

static void slack_run(struct sl_buf *text, const char *event, const json_t *data)
{
    const json_t *run = json_object_get(data, "run"), *m = json_object_get(data, "metric");

    sl_buf_addf(text, "*%s* (%s, run %.12s", sl_json_str(run, "name", "?"), sl_json_str(run, "project", "?"),
                sl_json_str(run, "run", "?"));
    if (!strcmp(event, "metric"))
        sl_buf_addf(text, "): %s is %g at step %lld, %s %g", sl_json_str(m, "name", ""),
                    sl_json_num(m, "value", 0), (long long)sl_json_int(m, "step", 0),
                    json_object_get(m, "above") ? "above" : "below",
                    sl_json_num(m, "above", sl_json_num(m, "below", 0)));
    else
        sl_buf_addf(text, ") %s", sl_json_str(run, "state", "?"));
    if (!strcmp(event, "failed"))
        sl_buf_addf(text, ": %s. %s", sl_json_str(run, "cause", "no cause"), sl_json_str(run, "msg", ""));
}

/* What Slack reads as markup: these three are to be escaped. */
static void slack_escape(struct sl_buf *out, const char *text)
{
    for (; *text; text++) {
        const char *as = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : NULL;
        if (as)
            sl_buf_adds(out, as);
        else
            sl_buf_addc(out, *text);
    }
}

static json_t *slack(const char *event, const json_t *data)
{
    struct sl_buf text, escaped;
    json_t *body;

    sl_buf_init(&text, 4096); /* what is longer is cut: Slack takes 40,000 characters */
    sl_buf_init(&escaped, 5 * 4096);
    if (json_object_get(data, "run"))
        slack_run(&text, event, data);
    else if (!strcmp(event, "unserviceable"))
        sl_buf_addf(&text, "%lld runs wait in the queue %s for %s, and no agent can serve them",
                    (long long)sl_json_int(data, "held", 0), sl_json_str(data, "queue", ""),
                    sl_json_str(data, "class", ""));
    else if (!strcmp(event, "quarantined"))
        sl_buf_addf(&text, "The agent %s takes no runs: %s", sl_json_str(data, "agent", ""),
                    sl_json_str(data, "reason", ""));
    else
        sl_buf_adds(&text, "A test of this webhook by softlaunch");
    slack_escape(&escaped, text.p);
    body = json_pack("{s:s}", "text", escaped.p);
    sl_buf_release(&text);
    sl_buf_release(&escaped);
    return body;
}

char *sl_webhook_body(const json_t *hook, const char *event, const json_t *data)
{
    char now[32], *text;
    json_t *body;

    sl_format_time(sl_now_us(), now);
    if (!strcmp(sl_json_str(hook, "form", "json"), "slack"))
        body = slack(event, data);
    else
        body = json_pack("{s:s, s:s, s:O}", "type", event, "timestamp", now, "data", data);
    text = body ? sl_json_dump(body) : NULL;
    json_decref(body);
    return text;
}

/* ---- telling --------------------------------------------------------------------------------- */

static bool wants(const json_t *hook, const char *event)
{
    const json_t *events = json_object_get(hook, "events"), *e;
    size_t i;

    json_array_foreach(events, i, e)
        if (!strcmp(json_string_value(e), event))
            return true;
    return false;
}

static int tell_one(struct sl_webhooks *w, const char *name, const json_t *hook, const char *event,
                    const char *subject, const json_t *data, struct sl_err *err)
{
    char *body = sl_webhook_body(hook, event, data);
    int rc = body ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc && !w->batch)
        rc = sl_webhooks_add(w, name, event, subject, body, NULL, err);
    else if (!rc && json_array_append_new(w->batch, json_pack("{s:s, s:s, s:s, s:s}", "hook", name, "event", event,
                                                               "subject", subject, "body", body)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    free(body);
    return rc;
}

/* Every webhook that wants it. */
static int tell(struct sl_webhooks *w, json_t *hooks, const char *event, const char *subject,
                const json_t *data, struct sl_err *err)
{
    const char *name;
    json_t *hook;
    int rc = 0;

    json_object_foreach(hooks, name, hook)
        if (!rc && wants(hook, event))
            rc = tell_one(w, name, hook, event, subject, data, err);
    return rc;
}

/* A run without what is long. */
static json_t *short_run(const json_t *record)
{
    json_t *run = json_copy((json_t *)(uintptr_t)record), *tail = json_object_get(run, "log_tail");

    json_object_del(run, "spec");
    if (json_array_size(tail) > LOG_TAIL_LINES) {
        json_t *last = json_array();
        for (size_t i = json_array_size(tail) - LOG_TAIL_LINES; i < json_array_size(tail); i++)
            json_array_append(last, json_array_get(tail, i));
        json_object_set_new(run, "log_tail", last);
    }
    return run;
}

static bool of_project(const json_t *hook, const json_t *run)
{
    const char *project = sl_json_str(hook, "project", NULL);

    return !project || !strcmp(project, sl_json_str(run, "project", ""));
}

/* ---- metrics --------------------------------------------------------------------------------- */

static int look_at_event(struct sl_webhooks *w, json_t *hooks, const json_t *run, const json_t *event,
                         struct sl_err *err)
{
    const json_t *data = json_object_get(event, "data");
    const char *id = sl_json_str(run, "run", ""), *name;
    json_t *hook;
    int rc = 0;

    json_object_foreach(hooks, name, hook) {
        const json_t *m = json_object_get(hook, "metric"), *found, *above, *below;
        if (rc || !m || !wants(hook, "metric") || !of_project(hook, run) ||
            sl_json_int(event, "time_ms", 0) < sl_json_int(hook, "created_ms", 0))
            continue;
        found = json_object_get(data, sl_json_str(m, "name", ""));
        above = json_object_get(m, "above");
        below = json_object_get(m, "below");
        if (!json_is_number(found) ||
            !((above && json_number_value(found) > json_number_value(above)) ||
              (below && json_number_value(found) < json_number_value(below))))
            continue;
        json_t *about = json_deep_copy(m), *all;
        json_object_set(about, "value", (json_t *)(uintptr_t)found);
        json_object_set_new(about, "step", json_integer((json_int_t)sl_json_int(data, "step", 0)));
        all = json_pack("{s:o, s:o}", "run", short_run(run), "metric", about);
        rc = tell_one(w, name, hook, "metric", id, all, err);
        json_decref(all);
    }
    return rc;
}

/* Events that have not been looked at. With the watch mutex. */
static int look_at_metrics(struct sl_webhooks *w, json_t *hooks, const json_t *run, struct sl_err *err)
{
    const char *id = sl_json_str(run, "run", "");
    int rc = 0;

    for (bool more = true; !rc && more;) {
        json_t *page, *events, *e;
        size_t i;
        rc = sl_queue_events(w->queue, id, sl_json_str(w->cursors, id, "0"), SL_QUEUE_EVENTS_MAX, 0, &page, err);
        if (rc)
            break;
        events = json_object_get(page, "events");
        json_array_foreach(events, i, e)
            if (!rc && !strcmp(sl_json_str(e, "type", ""), "metric"))
                rc = look_at_event(w, hooks, run, e, err);
        more = json_array_size(events) == SL_QUEUE_EVENTS_MAX;
        if (!rc && json_array_size(events))
            json_object_set_new(w->cursors, id, json_string(sl_json_str(page, "last", "0")));
        json_decref(page);
    }
    return rc;
}

static bool any_wants(json_t *hooks, const char *event)
{
    const char *name;
    json_t *hook;

    json_object_foreach(hooks, name, hook)
        if (wants(hook, event))
            return true;
    return false;
}

static int look_at_running(struct sl_webhooks *w, json_t *hooks, struct sl_err *err)
{
    char below[24] = "";
    int rc = 0;

    do {
        json_t *page, *run;
        size_t i;
        rc = sl_queue_list(w->queue, below[0] ? below : NULL, SL_QUEUE_PAGE_MAX, "running", NULL, NULL, &page, err);
        if (rc)
            break;
        json_array_foreach(json_object_get(page, "runs"), i, run)
            if (!rc)
                rc = look_at_metrics(w, hooks, run, err);
        snprintf(below, sizeof below, "%s", sl_json_str(page, "next", ""));
        json_decref(page);
    } while (!rc && below[0]);
    return rc;
}

/* ---- runs that have ended -------------------------------------------------------------------- */

/* With the watch mutex. */
static int tell_ended(struct sl_webhooks *w, json_t *hooks, const json_t *record, struct sl_err *err)
{
    const char *id = sl_json_str(record, "run", ""), *state = sl_json_str(record, "state", ""), *name;
    const char *event = !strcmp(state, "succeeded")                           ? "finished"
                        : !strcmp(state, "failed") || !strcmp(state, "dead") ? "failed"
                                                                              : NULL;
    json_t *hook, *data = json_pack("{s:o}", "run", short_run(record));
    int rc = any_wants(hooks, "metric") ? look_at_metrics(w, hooks, record, err) : 0;

    json_object_del(w->cursors, id);
    json_object_foreach(hooks, name, hook)
        if (!rc && event && wants(hook, event) && of_project(hook, record) &&
            sl_json_int(record, "finished_ms", 0) >= sl_json_int(hook, "created_ms", 0))
            rc = tell_one(w, name, hook, event, id, data, err);
    json_decref(data);
    return rc;
}

int sl_webhooks_run_ended(struct sl_webhooks *w, const json_t *record, struct sl_err *err)
{
    json_t *hooks = NULL;
    int rc;

    if (!w)
        return 0;
    pthread_mutex_lock(&w->watch_mutex);
    rc = sl_webhooks_all(w, &hooks, err);
    if (!rc && json_object_size(hooks)) {
        rc = tell_ended(w, hooks, record, err);
        sl_webhooks_wake(w);
    }
    json_decref(hooks);
    pthread_mutex_unlock(&w->watch_mutex);
    return rc;
}

struct ended {
    struct sl_webhooks *w;
    json_t *hooks, *now; /* runs that have been told, of those that were looked at */
    int64_t last_ms;     /* when the last one ended */
    int64_t waits_ms;    /* when the first one ended whose outputs are still to be recorded */
};

static int look_at_one(void *arg, const char *run, int64_t ended_ms, bool waits, struct sl_err *err)
{
    struct ended *e = arg;

    if (atomic_load(&e->w->stopping))
        return sl_err_set(err, SL_CANCELLED, "stopped");
    e->last_ms = ended_ms;
    if (waits && ended_ms < e->waits_ms)
        e->waits_ms = ended_ms;
    if (waits || json_object_get(e->now, run))
        return 0;
    if (!json_object_get(e->w->seen, run)) {
        struct sl_err gone = SL_ERR_INIT;
        json_t *record;
        int rc = sl_queue_show(e->w->queue, run, &record, &gone);
        if (rc == SL_NOTFOUND) /* the archiver was first, and has told it */
            return 0;
        if (rc)
            return sl_err_set(err, rc, "%s", gone.msg);
        rc = tell_ended(e->w, e->hooks, record, err);
        json_decref(record);
        if (rc)
            return rc;
    }
    return json_object_set_new(e->now, run, json_true()) ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
}

/* All that have ended, page by page, from shortly before where the last pass came to. What is missed, the
 * archiver tells. */
static int look_at_ended(struct sl_webhooks *w, json_t *hooks, struct sl_err *err)
{
    struct ended e = {w, hooks, json_object(), w->ended_ms, INT64_MAX};
    int n = ENDED_A_PAGE, skip = 0, rc = 0;

    for (int64_t from_ms = w->ended_ms; !rc && n == ENDED_A_PAGE; from_ms = e.last_ms) {
        w->batch = json_array();
        rc = sl_queue_ended_since(w->queue, 0, from_ms, skip, ENDED_A_PAGE, look_at_one, &e, &n, err);
        if (!rc)
            rc = sl_webhooks_add_all(w, w->batch, err);
        json_decref(w->batch);
        w->batch = NULL;
        sl_webhooks_wake(w);
        skip = e.last_ms == from_ms ? skip + n : 0; /* a page full of one millisecond */
    }
    if (rc) {
        json_decref(e.now);
        return rc;
    }
    json_decref(w->seen);
    w->seen = e.now;
    e.last_ms = e.last_ms > ENDED_AGAIN_MS ? e.last_ms - ENDED_AGAIN_MS : 0;
    w->ended_ms = e.last_ms < e.waits_ms ? e.last_ms : e.waits_ms;
    return 0;
}

/* ---- conditions ------------------------------------------------------------------------------ */

/* now: {subject: data} of those that hold. Tells those that have begun, and forgets those that are over. */
static int follow_conditions(struct sl_webhooks *w, json_t *hooks, const char *event, json_t *now,
                             struct sl_err *err)
{
    const char *subject;
    json_t *data, *before, *s;
    size_t i;
    int rc = sl_webhooks_conditions(w, event, &before, err);

    if (rc)
        return rc;
    json_array_foreach(before, i, s)
        if (!rc && !json_object_get(now, json_string_value(s)))
            rc = sl_webhooks_condition(w, event, json_string_value(s), false, NULL, err);
        else
            json_object_del(now, json_string_value(s));
    json_object_foreach(now, subject, data) {
        char once[SL_QUEUE_CLASS_MAX + SL_QUEUE_NAME_MAX + 64];
        snprintf(once, sizeof once, "%s since %lld", subject, (long long)(sl_now_us() / 1000));
        if (!rc)
            rc = tell(w, hooks, event, once, data, err);
        if (!rc) /* behind it: what a fault cuts short is told again */
            rc = sl_webhooks_condition(w, event, subject, true, NULL, err);
    }
    json_decref(before);
    return rc;
}

static int look_at_queues(struct sl_webhooks *w, json_t *hooks, struct sl_err *err)
{
    json_t *found, *now = json_object(), *q, *c;
    size_t i, k;
    int rc = sl_queue_queues(w->queue, &found, err);

    if (rc) {
        json_decref(now);
        return rc;
    }
    json_array_foreach(json_object_get(found, "queues"), i, q)
        json_array_foreach(json_object_get(q, "classes"), k, c) {
            char subject[SL_QUEUE_CLASS_MAX + SL_QUEUE_NAME_MAX + 8];
            if (sl_json_bool(c, "agents", true) || !sl_json_int(c, "held", 0))
                continue;
            snprintf(subject, sizeof subject, "%s %s", sl_json_str(q, "queue", ""), sl_json_str(c, "class", ""));
            json_object_set_new(now, subject,
                                json_pack("{s:s, s:s, s:I}", "queue", sl_json_str(q, "queue", ""), "class",
                                          sl_json_str(c, "class", ""), "held",
                                          (json_int_t)sl_json_int(c, "held", 0)));
        }
    rc = follow_conditions(w, hooks, "unserviceable", now, err);
    json_decref(found);
    json_decref(now);
    return rc;
}

static int look_at_agents(struct sl_webhooks *w, json_t *hooks, struct sl_err *err)
{
    json_t *found, *now = json_object(), *a;
    size_t i;
    int rc = sl_queue_agents(w->queue, &found, err);

    if (rc) {
        json_decref(now);
        return rc;
    }
    json_array_foreach(json_object_get(found, "agents"), i, a)
        if (*sl_json_str(a, "quarantine", ""))
            json_object_set_new(now, sl_json_str(a, "agent", ""),
                                json_pack("{s:s, s:s, s:s}", "agent", sl_json_str(a, "agent", ""), "host",
                                          sl_json_str(a, "host", ""), "reason",
                                          sl_json_str(a, "quarantine", "")));
    rc = follow_conditions(w, hooks, "quarantined", now, err);
    json_decref(found);
    json_decref(now);
    return rc;
}

void sl_webhooks_watch(void *webhooks)
{
    struct sl_webhooks *w = webhooks;
    struct sl_err err = SL_ERR_INIT;
    json_t *hooks = NULL;
    int rc;

    pthread_mutex_lock(&w->watch_mutex);
    rc = sl_webhooks_all(w, &hooks, &err);
    if (!rc && json_object_size(hooks)) {
        rc = look_at_ended(w, hooks, &err);
        if (!rc && any_wants(hooks, "metric"))
            rc = look_at_running(w, hooks, &err);
        if (!rc && any_wants(hooks, "unserviceable"))
            rc = look_at_queues(w, hooks, &err);
        if (!rc && any_wants(hooks, "quarantined"))
            rc = look_at_agents(w, hooks, &err);
        sl_webhooks_wake(w);
    }
    json_decref(hooks);
    pthread_mutex_unlock(&w->watch_mutex);
    if (rc && rc != w->trouble && rc != SL_RETRY && rc != SL_CANCELLED) /* that Redis is away is told already */
        sl_log(SL_ERROR, NULL, "watching for webhooks: %s", err.msg);
    w->trouble = rc;
}
