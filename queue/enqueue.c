/* Runs on their way in, and what people change about those that wait. */
#include "base/digest.h"
#include "base/json.h"
#include "queue/inner.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

bool sl_queue_name_valid(const char *name)
{
    size_t n = name ? strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") : 0;

    return n && n <= SL_QUEUE_NAME_MAX && !name[n] && !strchr("._-", name[0]);
}

/* ---- classes
 * ----------------------------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int sl_queue_class(int gpus, int gpu_memory_gib, const json_t *labels,
                   char ret_class[SL_QUEUE_CLASS_MAX + 1], struct sl_err *err)
{
    const char *sorted[SL_QUEUE_LABELS_MAX];
    size_t n = json_array_size(labels), len;
    char class[SL_QUEUE_CLASS_MAX + 1];

    if (n > SL_QUEUE_LABELS_MAX)
        return sl_err_set(err, SL_SPEC, "at most %d labels", SL_QUEUE_LABELS_MAX);
    for (size_t i = 0; i < n; i++) {
        const char *label = json_string_value(json_array_get(labels, i));
        if (!label || !*label ||
            label[strspn(label, "abcdefghijklmnopqrstuvwxyz0123456789._=-")])
            return sl_err_set(err, SL_SPEC, "not a label: %.60s (write it as zone=eu or fast-disk)",
                              label ? label : "");
        sorted[i] = label;
    }
    qsort(sorted, n, sizeof *sorted, by_text);
    if (gpus > 0)
        len = (size_t)snprintf(class, sizeof class, "gpu%d", gpus);
    else
        len = (size_t)snprintf(class, sizeof class, "cpu");
    if (gpus > 0 && gpu_memory_gib > 0)
        len += (size_t)snprintf(class + len, sizeof class - len, "+mem%d", gpu_memory_gib);
    for (size_t i = 0; i < n && len < sizeof class; i++)
        len += (size_t)snprintf(class + len, sizeof class - len, "+%s", sorted[i]);
    if (len >= sizeof class)
        return sl_err_set(err, SL_SPEC, "the labels are longer than %d bytes together",
                          SL_QUEUE_CLASS_MAX);
    memcpy(ret_class, class, len + 1);
    return 0;
}

/* ---- enqueue
 * ----------------------------------------------------------------------------------------------- */

/* RFC 3339, as the schema's pattern has it. */
static int parse_time(const char *text, int64_t *ret_ms, struct sl_err *err)
{
    struct tm tm = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    int hours = 0, minutes = 0;
    char sign;

    if (rest && *rest == '.')
        rest += 1 + strspn(rest + 1, "0123456789");
    if (!rest || (strcmp(rest, "Z") != 0 &&
                  (sscanf(rest, "%c%2d:%2d", &sign, &hours, &minutes) != 3 || !strchr("+-", sign))))
        return sl_err_set(err, SL_SPEC,
                          "schedule.at: expected a time as 2026-12-31T23:59:59Z, found %.40s", text);
    if (*rest == '-')
        hours = -hours, minutes = -minutes;
    *ret_ms = ((int64_t)timegm(&tm) - hours * 3600 - minutes * 60) * 1000;
    return 0;
}

struct place {
    const char *client, *from, *checkpoint, *by; /* "" or NULL: none */
    int64_t checkpoint_step;
    bool ignore_schedule;
};

static void add_field(struct sl_cmd *c, const char *field, int64_t value)
{
    sl_cmd_add(c, field);
    sl_cmd_add_int(c, value);
}

/* The fields that the script only stores. */
static void add_fields(struct sl_cmd *c, const json_t *spec, const char *text,
                       const struct place *place)
{
    static const struct {
        const char *field, *path;
        int otherwise;
    } budgets[] = {{"max_attempts", "retry.max_attempts", 3},
                   {"max_ooms", "retry.out_of_memory", 2},
                   {"max_timeouts", "retry.timeout", 1},
                   {"max_lost", "retry.infrastructure", 10},
                   {"max_preemptions", "retry.preempted", 100}};

    sl_cmd_add(c, "spec");
    sl_cmd_add(c, text);
    sl_cmd_add(c, "name");
    sl_cmd_add(c, sl_json_str(spec, "name", ""));
    add_field(c, "gpus", sl_json_int(spec, "resources.gpus", 0));
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++)
        add_field(c, budgets[i].field, sl_json_int(spec, budgets[i].path, budgets[i].otherwise));
    add_field(c, "backoff_ms", (int64_t)(sl_json_num(spec, "retry.backoff_s", 2) * 1000));
    if (sl_json_int(spec, "time_limit_s", 0) > 0)
        add_field(c, "limit_ms", sl_json_int(spec, "time_limit_s", 0) * 1000);
    if (place->by && *place->by) {
        sl_cmd_add(c, "created_by");
        sl_cmd_add(c, place->by);
    }
    if (*sl_json_str(spec, "origin.job", "")) {
        sl_cmd_add(c, "job");
        sl_cmd_add(c, sl_json_str(spec, "origin.job", ""));
    }
    if (place->from && *place->from) {
        sl_cmd_add(c, "requeued_from");
        sl_cmd_add(c, place->from);
    }
    if (place->checkpoint && *place->checkpoint) {
        sl_cmd_add(c, "ckpt_manifest");
        sl_cmd_add(c, place->checkpoint);
        add_field(c, "ckpt_step", place->checkpoint_step);
    }
}

static int enqueue(struct sl_queue *q, const json_t *spec, const struct place *place,
                   char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err)
{
    static const char *const hows[] = {"new", "known", "duplicate"};
    char run[SL_ID_HEX + 1], digest[SL_SHA256_HEX + 1], class[SL_QUEUE_CLASS_MAX + 1];
    const char *queue = sl_json_str(spec, "queue", "default"), *how = NULL;
    const char *at = place->ignore_schedule ? "" : sl_json_str(spec, "schedule.at", "");
    int64_t delay_s = place->ignore_schedule ? 0 : sl_json_int(spec, "schedule.delay_s", 0);
    int64_t at_ms = 0;
    int rank = sl_queue_rank(sl_json_str(spec, "priority", "medium")), rc;
    struct sl_cmd c;
    redisReply *reply;
    char *text;

    if (rank < 0 || !sl_queue_name_valid(queue))
        return sl_err_set(err, SL_SPEC, "the spec's priority or queue is not valid");
    if ((place->client && strlen(place->client) > SL_QUEUE_TOKEN_MAX) ||
        strlen(sl_json_str(spec, "dedupe", "")) > SL_QUEUE_TOKEN_MAX)
        return sl_err_set(err, SL_SPEC, "an idempotency or dedupe key has at most %d bytes",
                          SL_QUEUE_TOKEN_MAX);
    rc = sl_queue_class((int)sl_json_int(spec, "resources.gpus", 0),
                        (int)sl_json_int(spec, "resources.gpu_memory_gib", 0),
                        sl_json_get(spec, "resources.labels"), class, err);
    if (!rc && *at)
        rc = parse_time(at, &at_ms, err);
    if (rc)
        return rc;
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
    sl_cmd_add(&c, place->client);
    sl_cmd_add(&c, digest);
    sl_cmd_add(&c, queue);
    sl_cmd_add(&c, class);
    sl_cmd_add_int(&c, rank);
    sl_cmd_add(&c, sl_json_str(spec, "project", "default"));
    sl_cmd_add(&c, sl_json_str(spec, "dedupe", ""));
    if (*at)
        sl_cmd_add_int(&c, at_ms);
    else
        sl_cmd_add(&c, "");
    if (delay_s > 0)
        sl_cmd_add_int(&c, delay_s * 1000);
    else
        sl_cmd_add(&c, "");
    sl_cmd_add_int(&c, SL_QUEUE_CLASSES_MAX);
    sl_cmd_add_int(&c, SL_QUEUE_KNOWN_MAX);
    add_fields(&c, spec, text, place);
    free(text);
    rc = sl_queue_call(q, &c, 0, &reply, err);
    if (rc)
        return rc;
    for (int i = 0; i < 3 && sl_queue_is_texts(reply, 2); i++)
        if (!strcmp(reply->element[1]->str, hows[i]))
            how = hows[i];
    if (!how || reply->element[0]->len != SL_ID_HEX)
        return sl_queue_odd_reply("enqueue", reply, err);
    memcpy(ret_run, reply->element[0]->str, SL_ID_HEX + 1);
    if (ret_how)
        *ret_how = how;
    freeReplyObject(reply);
    return 0;
}

int sl_queue_enqueue(struct sl_queue *q, const json_t *spec, const char *client,
                     char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err)
{
    return sl_queue_enqueue_by(q, NULL, spec, client, ret_run, ret_how, err);
}

int sl_queue_enqueue_by(struct sl_queue *q, const char *by, const json_t *spec, const char *client,
                        char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err)
{
    return enqueue(q, spec, &(struct place){.client = client, .by = by}, ret_run, ret_how, err);
}

int sl_queue_requeue(struct sl_queue *q, const json_t *old, const char *client,
                     char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err)
{
    return sl_queue_requeue_by(q, NULL, old, client, ret_run, ret_how, err);
}

int sl_queue_requeue_by(struct sl_queue *q, const char *by, const json_t *old, const char *client,
                        char ret_run[SL_ID_HEX + 1], const char **ret_how, struct sl_err *err)
{
    const char *state = sl_json_str(old, "state", "");
    const struct place place = {.client = client,
                                .by = by,
                                .from = sl_json_str(old, "run", ""),
                                .checkpoint = sl_json_str(old, "checkpoint", ""),
                                .checkpoint_step = sl_json_int(old, "checkpoint_step", 0),
                                .ignore_schedule = true};
    json_t *spec;
    int rc;

    if (strcmp(state, "dead") != 0 && strcmp(state, "failed") != 0 &&
        strcmp(state, "cancelled") != 0)
        return sl_err_set(err, SL_CONFLICT,
                          "run %s is %s: only one that is dead, failed or cancelled is requeued",
                          place.from, state);
    spec = json_copy(json_object_get(old, "spec"));
    if (!spec)
        return sl_err_set(err, SL_DATA, "run %s has no spec", place.from);
    /* Where it was moved to, not where its spec put it. */
    json_object_set(spec, "queue", json_object_get(old, "queue"));
    json_object_set(spec, "priority", json_object_get(old, "priority"));
    rc = enqueue(q, spec, &place, ret_run, ret_how, err);
    json_decref(spec);
    return rc;
}

int sl_queue_move(struct sl_queue *q, const char *run, const char *queue, int rank,
                  struct sl_err *err)
{
    struct sl_cmd c;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
    if (queue && !sl_queue_name_valid(queue))
        return sl_err_set(err, SL_SPEC, "not a queue's name: %.80s", queue);
    sl_queue_cmd(&c, SL_SCRIPT_MOVE);
    sl_cmd_add(&c, run);
    sl_cmd_add(&c, queue);
    if (rank >= 0 && rank < 4)
        sl_cmd_add_int(&c, rank);
    else
        sl_cmd_add(&c, "");
    sl_cmd_add_int(&c, SL_QUEUE_CLASSES_MAX);
    return sl_queue_do(q, &c, err);
}

int sl_queue_cancel(struct sl_queue *q, const char *run, const char **ret_state, struct sl_err *err)
{
    struct sl_cmd c;
    redisReply *reply;
    int rc;

    if (!sl_queue_run_valid(run))
        return sl_queue_no_run(run, err);
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
