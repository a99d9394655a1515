/* Queues, projects and agents: what they are told, and how they stand. */

#include "queue/inner.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK 50 /* names a script call, at most: it holds Redis for under 2 ms */
#define HOUR_MS 3600000.0
#define GIB 1073741824.0

static int by_name(const void *a, const void *b)
{
    return strcmp((*(redisReply *const *)a)->str, (*(redisReply *const *)b)->str);
}

static json_t *words(const char *text)
{
    json_t *list = json_array();
    size_t n;

    for (; text += strspn(text, " "), (n = strcspn(text, " ")) > 0; text += n)
        json_array_append_new(list, json_stringn(text, n));
    return list;
}

static double num(const redisReply *r)
{
    return atof(r->str);
}

static json_t *queue_json(redisReply *const *e, size_t n)
{
    json_t *classes = json_array(), *offers = words(e[4]->str);

    for (size_t i = 6; i + 3 < n; i += 4)
        json_array_append_new(classes,
                              json_pack("{s:s, s:I, s:I, s:b}", "class", e[i]->str, "ready",
                                        (json_int_t)num(e[i + 1]), "held",
                                        (json_int_t)num(e[i + 2]), "agents", e[i + 3]->str[0] == '1'));
    return json_pack("{s:s, s:s, s:I, s:I, s:o, s:I, s:o}", "queue", e[0]->str, "state", e[1]->str,
                     "max_running", (json_int_t)num(e[2]), "rate_per_minute",
                     (json_int_t)num(e[3]), "offers", offers, "running", (json_int_t)num(e[5]),
                     "classes", classes);
}

static json_t *project_json(redisReply *const *e, size_t n)
{
    (void)n;
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:I, s:I}", "project", e[0]->str, "max_running",
                     (json_int_t)num(e[1]), "gpu_hours", num(e[2]) / HOUR_MS, "gpu_hours_used",
                     num(e[3]) / HOUR_MS, "storage_gib", num(e[4]) / GIB, "storage_gib_used",
                     num(e[5]) / GIB, "running", (json_int_t)num(e[6]), "held",
                     (json_int_t)num(e[7]));
}

/* kind: "queue" or "project"; each entry has least texts or more. */
static int all_names(struct sl_queue *q, const char *kind, size_t least,
                     json_t *(*make)(redisReply *const *e, size_t n), json_t **ret_list,
                     struct sl_err *err)
{
    const char *key = *kind == 'q' ? SL_QUEUE_TAG ":queues" : SL_QUEUE_TAG ":projects";
    json_t *list = json_array();
    redisReply *names, *reply;
    struct sl_cmd c;
    int rc;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "ZRANGE");
    sl_cmd_add(&c, key);
    sl_cmd_add(&c, "0");
    sl_cmd_add(&c, "-1");
    rc = sl_queue_call(q, &c, 0, &names, err);
    if (!rc && !sl_queue_is_texts(names, -1))
        rc = sl_queue_odd_reply("ZRANGE", names, err);
    if (rc) {
        json_decref(list);
        return rc;
    }
    qsort(names->element, names->elements, sizeof *names->element, by_name); /* NOLINT(bugprone-sizeof-expression): pointers */
    for (size_t from = 0, got; !rc && from < names->elements; from += got) {
        sl_queue_cmd(&c, SL_SCRIPT_NAMES);
        sl_cmd_add(&c, kind);
        for (size_t i = from; i < from + CHUNK && i < names->elements; i++)
            sl_cmd_add(&c, names->element[i]->str);
        rc = sl_queue_call(q, &c, 0, &reply, err);
        if (rc)
            break;
        got = reply->elements;
        bool odd = !got || got > CHUNK;
        for (size_t i = 0; !odd && i < got; i++) {
            const redisReply *one = reply->element[i];
            odd = !sl_queue_is_texts(one, (int)least);
            if (!odd)
                json_array_append_new(list, make(one->element, one->elements));
        }
        if (odd)
            rc = sl_queue_odd_reply("names", reply, err);
        else
            freeReplyObject(reply);
    }
    freeReplyObject(names);
    if (rc)
        json_decref(list);
    else
        *ret_list = list;
    return rc;
}

int sl_queue_queues(struct sl_queue *q, json_t **ret_queues, struct sl_err *err)
{
    json_t *list;
    int rc = all_names(q, "queue", 6, queue_json, &list, err);

    if (!rc)
        *ret_queues = json_pack("{s:o}", "queues", list);
    return rc;
}

int sl_queue_projects(struct sl_queue *q, json_t **ret_projects, struct sl_err *err)
{
    json_t *list;
    int rc = all_names(q, "project", 8, project_json, &list, err);

    if (!rc)
        *ret_projects = json_pack("{s:o}", "projects", list);
    return rc;
}

/* ---- settings
 * ---------------------------------------------------------------------------------------------- */

struct setting {
    const char *name, *field;
    double unit; /* of the field in one of the setting; 0: not a number */
};

static const struct setting queue_settings[] = {{"state", "state", 0},
                                                {"max_running", "max_running", 1},
                                                {"rate_per_minute", "rate", 1},
                                                {"offers", "expected", 0}};
static const struct setting project_settings[] = {{"max_running", "max_running", 1},
                                                  {"gpu_hours", "gpu_ms_max", HOUR_MS},
                                                  {"gpu_hours_used", "gpu_ms", HOUR_MS},
                                                  {"storage_gib", "bytes_max", GIB},
                                                  {"storage_gib_used", "bytes", GIB}};

static int add_state(struct sl_cmd *c, const json_t *value, struct sl_err *err)
{
    static const char *const states[] = {"active", "paused", "draining"};
    const char *state = json_string_value(value);

    for (int i = 0; state && i < 3; i++)
        if (!strcmp(state, states[i])) {
            sl_cmd_add(c, state);
            return 0;
        }
    return sl_err_set(err, SL_SPEC, "state: expected active, paused or draining");
}

static int add_offers(struct sl_cmd *c, const json_t *value, struct sl_err *err)
{
    char text[SL_QUEUE_OFFERS_MAX * (SL_QUEUE_CLASS_MAX + 1) + 1] = "";
    const json_t *offer;
    size_t i, len = 0;

    if (!json_is_array(value) || json_array_size(value) > SL_QUEUE_OFFERS_MAX)
        return sl_err_set(err, SL_SPEC, "offers: expected a list of at most %d classes",
                          SL_QUEUE_OFFERS_MAX);
    json_array_foreach(value, i, offer) {
        const char *class = json_string_value(offer);
        size_t n = class ? strspn(class, "abcdefghijklmnopqrstuvwxyz0123456789._=+-") : 0;
        if (!n || n > SL_QUEUE_CLASS_MAX || class[n])
            return sl_err_set(err, SL_SPEC, "offers[%zu]: expected a class as gpu1+mem80", i);
        if (len)
            text[len++] = ' ';
        memcpy(text + len, class, n + 1);
        len += n;
    }
    sl_cmd_add(c, text);
    return 0;
}

static int change(struct sl_queue *q, const char *kind, const char *name,
                  const struct setting *settings, size_t n, const json_t *changes,
                  struct sl_err *err)
{
    struct sl_cmd c;
    const char *key;
    json_t *value;
    int rc = 0;

    if (!sl_queue_name_valid(name))
        return sl_err_set(err, SL_SPEC, "not a %s's name: %.80s", kind, name);
    if (!json_object_size(changes))
        return sl_err_set(err, SL_SPEC, "nothing to change about %s %s", kind, name);
    sl_queue_cmd(&c, SL_SCRIPT_SET_NAMES);
    sl_cmd_add(&c, kind);
    sl_cmd_add(&c, name);
    sl_cmd_add_int(&c, SL_QUEUE_KNOWN_MAX);
    json_object_foreach((json_t *)(uintptr_t)changes, key, value) {
        const struct setting *s = NULL;
        for (size_t i = 0; i < n; i++)
            if (!strcmp(key, settings[i].name))
                s = &settings[i];
        if (!s) {
            rc = sl_err_set(err, SL_SPEC, "a %s has no setting %.80s", kind, key);
            break;
        }
        sl_cmd_add(&c, s->field);
        if (!s->unit)
            rc = *key == 's' ? add_state(&c, value, err) : add_offers(&c, value, err);
        else if (!json_is_number(value) || json_number_value(value) < 0 ||
                 json_number_value(value) > 1e6)
            rc = sl_err_set(err, SL_SPEC, "%s: expected a number from 0 to 1000000", key);
        else
            sl_cmd_add_int(&c, (int64_t)(json_number_value(value) * s->unit + 0.5));
        if (rc)
            break;
    }
    if (!rc)
        return sl_queue_do(q, &c, err);
    sl_cmd_release(&c);
    return rc;
}

int sl_queue_set_queue(struct sl_queue *q, const char *name, const json_t *changes,
                       struct sl_err *err)
{
    return change(q, "queue", name, queue_settings, sizeof queue_settings / sizeof *queue_settings,
                  changes, err);
}

int sl_queue_set_project(struct sl_queue *q, const char *name, const json_t *changes,
                         struct sl_err *err)
{
    return change(q, "project", name, project_settings,
                  sizeof project_settings / sizeof *project_settings, changes, err);
}

/* ---- agents
 * ------------------------------------------------------------------------------------------------ */

int sl_queue_set_agent(struct sl_queue *q, const char *agent, enum sl_agent_wanted wanted,
                       struct sl_err *err)
{
    static const char *const states[] = {"active", "paused", "draining"};
    struct sl_cmd c;

    sl_queue_cmd(&c, SL_SCRIPT_SET_AGENT);
    sl_cmd_add(&c, agent);
    sl_cmd_add(&c, states[wanted]);
    return sl_queue_do(q, &c, err);
}

/* names: n agents and when each was seen last (ms), in twos. */
static int add_agents(struct sl_queue *q, redisReply *const *names, size_t n, json_t *list, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    sl_queue_cmd(&c, SL_SCRIPT_AGENTS);
    for (size_t i = 0; i < n; i++)
        sl_cmd_add(&c, names[2 * i]->str);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    if (!sl_queue_is_texts(reply, 1) || reply->elements != 2 * n + 1)
        return sl_queue_odd_reply("agents", reply, err);
    const int64_t now_ms = atoll(reply->element[0]->str);
    for (size_t i = 0; i < n; i++) {
        const redisReply *about = reply->element[2 * i + 1], *wanted = reply->element[2 * i + 2];
        const int64_t seen_ms = atoll(names[2 * i + 1]->str);
        if (!about->len)
            continue;
        json_t *a = json_loads(about->str, 0, NULL);
        if (!json_is_object(a)) {
            json_decref(a);
            a = json_object();
        }
        json_object_set_new(a, "agent", json_string(names[2 * i]->str));
        json_object_set_new(a, "seen_ms", json_integer(seen_ms));
        json_object_set_new(a, "age_ms", json_integer(now_ms > seen_ms ? now_ms - seen_ms : 0));
        json_object_set_new(a, "wanted", json_string(wanted->str));
        json_array_append_new(list, a);
    }
    freeReplyObject(reply);
    return 0;
}

int sl_queue_agents(struct sl_queue *q, json_t **ret_agents, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *seen;
    json_t *list = json_array();
    int rc;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "ZRANGE");
    sl_cmd_add(&c, SL_QUEUE_TAG ":agents_seen");
    sl_cmd_add(&c, "0");
    sl_cmd_add_int(&c, SL_QUEUE_AGENTS_MAX - 1);
    sl_cmd_add(&c, "REV");
    sl_cmd_add(&c, "WITHSCORES");
    rc = sl_queue_call(q, &c, 0, &seen, err);
    if (!rc && (!sl_queue_is_texts(seen, -1) || seen->elements % 2))
        rc = sl_queue_odd_reply("ZRANGE", seen, err);
    if (rc) {
        json_decref(list);
        return rc;
    }
    const size_t n = seen->elements / 2;
    for (size_t from = 0; !rc && from < n; from += CHUNK)
        rc = add_agents(q, seen->element + 2 * from, n - from < CHUNK ? n - from : CHUNK, list, err);
    freeReplyObject(seen);
    if (rc)
        json_decref(list);
    else
        *ret_agents = json_pack("{s:o}", "agents", list);
    return rc;
}
