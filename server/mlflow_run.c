/* What MLflow is told of one run. */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/tfevents.h"
#include "server/mlflow_priv.h"
#include "server/runs.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* MLflow's limits. */
#define PARAMS_A_CALL 100
#define METRICS_A_CALL 1000
#define KEY_MAX 250
#define PARAM_MAX 6000
#define TAG_MAX 5000

#define PROXIED "mlflow-artifacts:/"

static const char *uri_of(const json_t *row)
{
    return sl_json_str(row, "uri", "");
}

static const char *theirs(const json_t *row)
{
    return sl_json_str(row, "theirs", "");
}

static bool is_ended(const json_t *row)
{
    return sl_json_int(row, "ended_ms", 0) > 0;
}

static int call(struct sl_mlflow *m, const json_t *row, const char *path, json_t *body_stolen, json_t **ret_reply,
                struct sl_err *err)
{
    int rc = body_stolen ? sl_mlflow_call(m, uri_of(row), "POST", path, body_stolen, ret_reply, err)
                         : sl_err_set(err, SL_NOMEM, "out of memory");

    json_decref(body_stolen);
    return rc;
}

/* At most most bytes of a text, whole characters. */
static json_t *cut(const char *text, size_t most)
{
    size_t len = strlen(text);

    if (len > most)
        for (len = most; len && ((unsigned char)text[len] & 0xc0) == 0x80; len--)
            ;
    return json_stringn(text, len);
}

/* {"key", "value"}; MLflow's keys have letters, digits and _ - . space : / only. */
static void add_pair(json_t *list, const char *key, const char *value, size_t most)
{
    char good[KEY_MAX + 1];

    snprintf(good, sizeof good, "%s", key);
    for (char *p = good; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("_-. :/", *p))
            *p = '_';
    json_array_append_new(list, json_pack("{s:s, s:o}", "key", good, "value", cut(value, most)));
}

/* ---- parameters and tags --------------------------------------------------------------------- */

static void add_params(json_t *list, const char *prefix, const json_t *value)
{
    char name[KEY_MAX + 1], *text;
    const char *key;
    json_t *child;
    size_t i;

    if (json_is_object(value)) {
        json_object_foreach((json_t *)(uintptr_t)value, key, child) {
            snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", key);
            add_params(list, name, child);
        }
    } else if (json_is_array(value) && json_is_object(json_array_get(value, 0))) {
        json_array_foreach((json_t *)(uintptr_t)value, i, child) {
            snprintf(name, sizeof name, "%s.%zu", prefix, i);
            add_params(list, name, child);
        }
    } else if (json_is_string(value)) {
        add_pair(list, prefix, json_string_value(value), PARAM_MAX);
    } else if (!json_is_null(value)) {
        text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        if (text)
            add_pair(list, prefix, text, PARAM_MAX);
        free(text);
    }
}

static json_t *params_of(const json_t *record)
{
    const json_t *spec = json_object_get(record, "spec");
    json_t *list = json_array();

    add_params(list, "", json_object_get(spec, "config"));
    add_params(list, "base_model", json_object_get(spec, "model"));
    add_params(list, "datasets", json_object_get(spec, "datasets"));
    add_params(list, "trials", json_object_get(spec, "trials"));
    return list;
}

static json_t *tags_of(const json_t *record)
{
    json_t *list = json_array();

    add_pair(list, "softlaunch.run", sl_json_str(record, "run", ""), TAG_MAX);
    add_pair(list, "softlaunch.project", sl_json_str(record, "project", ""), TAG_MAX);
    add_pair(list, "mlflow.user", sl_json_str(record, "created_by", ""), TAG_MAX);
    add_pair(list, "mlflow.source.name", "softlaunch", TAG_MAX);
    add_pair(list, "mlflow.source.type", "JOB", TAG_MAX);
    return list;
}

/* ---- its beginning --------------------------------------------------------------------------- */

static int find_experiment(struct sl_mlflow *m, const json_t *row, char ret_id[128], struct sl_err *err)
{
    const char *name = sl_json_str(row, "experiment", "");
    struct sl_err missing = SL_ERR_INIT;
    json_t *reply = NULL;
    struct sl_buf path;
    int rc;

    sl_buf_init(&path, 4096);
    sl_buf_adds(&path, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=");
    sl_mlflow_escape(m, name, &path);
    rc = sl_mlflow_call(m, uri_of(row), "GET", path.p, NULL, &reply, &missing);
    sl_buf_release(&path);
    if (!rc) {
        snprintf(ret_id, 128, "%s", sl_json_str(reply, "experiment.experiment_id", ""));
    } else if (rc == SL_NOTFOUND) { /* another one may make it meanwhile: the next try finds it */
        rc = call(m, row, "/api/2.0/mlflow/experiments/create", json_pack("{s:s}", "name", name), &reply, err);
        if (!rc)
            snprintf(ret_id, 128, "%s", sl_json_str(reply, "experiment_id", ""));
        rc = rc == SL_CONFLICT ? SL_RETRY : rc;
    } else {
        sl_err_set(err, rc, "%s", missing.msg);
    }
    json_decref(reply);
    return rc;
}

/* {"info": ...} of MLflow's run; *ret_found NULL: there is none. */
static int find_run(struct sl_mlflow *m, const json_t *row, const char *experiment, json_t **ret_found, struct sl_err *err)
{
    char filter[128];
    json_t *reply = NULL;
    int rc;

    snprintf(filter, sizeof filter, "tags.`softlaunch.run` = '%s'", sl_json_str(row, "run", ""));
    rc = call(m, row, "/api/2.0/mlflow/runs/search",
              json_pack("{s:[s], s:s, s:i, s:s}", "experiment_ids", experiment, "filter", filter, "max_results", 1,
                        "run_view_type", "ACTIVE_ONLY"),
              &reply, err);
    if (!rc)
        *ret_found = json_incref(json_array_get(json_object_get(reply, "runs"), 0));
    json_decref(reply);
    return rc;
}

static int log_params(struct sl_mlflow *m, const json_t *row, const json_t *record, struct sl_err *err)
{
    json_t *params = params_of(record), *some;
    size_t i = 0;
    int rc = 0;

    while (!rc && i < json_array_size(params)) {
        some = json_array();
        for (size_t k = 0; k < PARAMS_A_CALL && i < json_array_size(params); k++)
            json_array_append(some, json_array_get(params, i++));
        rc = call(m, row, "/api/2.0/mlflow/runs/log-batch", json_pack("{s:s, s:o}", "run_id", theirs(row), "params", some),
                  NULL, err);
    }
    json_decref(params);
    return rc;
}

/* Theirs is saved when all that belongs to the beginning is said. */
static int begin(struct sl_mlflow *m, json_t *row, const json_t *record, struct sl_err *err)
{
    json_t *found = NULL, *reply = NULL, *info;
    char experiment[128];
    int rc = find_experiment(m, row, experiment, err);

    if (!rc)
        rc = find_run(m, row, experiment, &found, err);
    if (!rc && !found)
        rc = call(m, row, "/api/2.0/mlflow/runs/create",
                  json_pack("{s:s, s:s, s:I, s:o}", "experiment_id", experiment, "run_name",
                            sl_json_str(record, "name", ""), "start_time",
                            (json_int_t)sl_json_int(record, "started_ms", sl_now_us() / 1000), "tags", tags_of(record)),
                  &reply, err);
    info = json_object_get(found ? found : json_object_get(reply, "run"), "info");
    if (!rc && !*sl_json_str(info, "run_id", ""))
        rc = sl_err_set(err, SL_RETRY, "%s named no run: is this an MLflow server?", uri_of(row));
    if (!rc) {
        json_object_set(row, "theirs", json_object_get(info, "run_id"));
        json_object_set_new(row, "artifacts", json_string(sl_json_str(info, "artifact_uri", "")));
        rc = log_params(m, row, record, err);
    }
    if (rc)
        json_object_set_new(row, "theirs", json_string(""));
    json_decref(found);
    json_decref(reply);
    return rc ? rc : sl_mlflow_save(m, row, err);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static void add_metrics(json_t *metrics, const json_t *event)
{
    json_t *data = json_object_get(event, "data"), *value;
    const char *trial = sl_json_str(data, "trial", ""), *key;
    char name[KEY_MAX + 1];

    if (strcmp(sl_json_str(event, "type", ""), "metric") != 0)
        return;
    json_object_foreach(data, key, value) {
        if (!json_is_number(value) || !strcmp(key, "step"))
            continue;
        snprintf(name, sizeof name, "%s%s%s", trial, *trial ? "/" : "", sl_tfevents_name(key));
        json_array_append_new(metrics, json_pack("{s:s, s:f, s:I, s:I}", "key", name, "value", json_number_value(value),
                                                 "timestamp", (json_int_t)sl_json_int(event, "time_ms", 0), "step",
                                                 (json_int_t)sl_json_int(data, "step", 0)));
    }
}

static int send_metrics(struct sl_mlflow *m, json_t *row, json_t *metrics, const char *last, struct sl_err *err)
{
    int rc = 0;

    if (json_array_size(metrics))
        rc = call(m, row, "/api/2.0/mlflow/runs/log-batch",
                  json_pack("{s:s, s:O}", "run_id", theirs(row), "metrics", metrics), NULL, err);
    if (rc)
        return rc;
    json_array_clear(metrics);
    json_object_set_new(row, "last", json_string(last));
    return sl_mlflow_save(m, row, err);
}

/* Events behind the last that was said: from Redis, or the archive when Redis does not have them any more. */
static int read_page(struct sl_mlflow *m, const json_t *row, json_t **ret_page, struct sl_err *err)
{
    const char *run = sl_json_str(row, "run", ""), *last = sl_json_str(row, "last", "0");
    json_t *page, *archived;
    int rc = sl_queue_events(m->queue, run, last, SL_QUEUE_EVENTS_MAX, 0, &page, err);

    if (rc)
        return rc;
    if (sl_json_bool(page, "trimmed", false) ||
        (is_ended(row) && !json_array_size(json_object_get(page, "events")))) {
        rc = sl_archive_events(m->server->runs->archive, run, last, SL_QUEUE_EVENTS_MAX, &archived, err);
        if (!rc && json_array_size(json_object_get(archived, "events"))) {
            json_decref(page);
            page = archived;
        } else if (!rc) {
            json_decref(archived);
        }
    }
    if (rc)
        json_decref(page);
    else
        *ret_page = page;
    return rc;
}

static int say_metrics(struct sl_mlflow *m, json_t *row, struct sl_err *err)
{
    json_t *metrics = json_array();
    size_t n;
    int rc = 0;

    do {
        const char *last = NULL;
        json_t *page, *e;
        size_t i;
        rc = read_page(m, row, &page, err);
        if (rc)
            break;
        n = json_array_size(json_object_get(page, "events"));
        json_array_foreach(json_object_get(page, "events"), i, e) {
            json_t *more = json_array();
            add_metrics(more, e);
            if (!rc && json_array_size(metrics) && json_array_size(metrics) + json_array_size(more) > METRICS_A_CALL)
                rc = send_metrics(m, row, metrics, last, err);
            json_array_extend(metrics, more);
            json_decref(more);
            last = sl_json_str(e, "id", "0");
        }
        if (!rc && last)
            rc = send_metrics(m, row, metrics, last, err);
        json_decref(page);
    } while (!rc && n && !atomic_load(&m->ending));
    json_decref(metrics);
    return rc;
}

/* ---- its end --------------------------------------------------------------------------------- */

static int send_file(struct sl_mlflow *m, const json_t *row, const char *name, const json_t *file, struct sl_err *err)
{
    const char *root = sl_json_str(row, "artifacts", "") + strlen(PROXIED), *path = sl_json_str(file, "path", "");
    struct sl_buf url;
    int64_t bytes;
    int fd, rc = sl_blob_open(m->server->store, sl_json_str(file, "sha256", ""), &fd, &bytes, err);

    if (rc)
        return rc == SL_NOTFOUND ? 0 : rc; /* the version was deleted */
    sl_buf_init(&url, 1u << 14);
    sl_buf_addf(&url, "/api/2.0/mlflow-artifacts/artifacts/%s/", root + strspn(root, "/"));
    sl_mlflow_escape(m, name, &url);
    sl_buf_addc(&url, '/');
    sl_mlflow_escape(m, path, &url);
    if (bytes > SL_MLFLOW_UPLOAD_MAX)
        sl_log(SL_WARN, sl_json_str(row, "run", NULL), "%s/%s is too large for MLflow and stays here", name, path);
    else
        rc = sl_mlflow_put(m, uri_of(row), url.p, fd, bytes, err);
    sl_buf_release(&url);
    close(fd);
    return rc;
}

/* Outputs as "name:v3". Stores that MLflow has its clients write to by themselves are left alone. */
static int say_artifacts(struct sl_mlflow *m, const json_t *row, const json_t *record, struct sl_err *err)
{
    json_t *output, *version, *file;
    size_t i, k;
    int rc = 0;

    if (strncmp(sl_json_str(row, "artifacts", ""), PROXIED, strlen(PROXIED)) != 0)
        return 0;
    json_array_foreach(json_object_get(record, "outputs"), i, output) {
        const char *name = sl_json_str(output, "artifact", ""), *number = sl_json_str(output, "version", "");
        struct sl_err gone = SL_ERR_INIT;
        if (rc || sl_store_resolve(m->server->store, name, number, &version, &gone))
            continue;
        json_array_foreach(json_object_get(version, "files"), k, file)
            if (!rc)
                rc = send_file(m, row, name, file, err);
        json_decref(version);
    }
    return rc;
}

static int say_end(struct sl_mlflow *m, const json_t *row, const json_t *record, struct sl_err *err)
{
    const char *state = sl_json_str(record, "state", "");
    const char *status = !strcmp(state, "succeeded") ? "FINISHED" : !strcmp(state, "cancelled") ? "KILLED" : "FAILED";
    json_t *tags = json_array(), *output;
    struct sl_buf outputs;
    size_t i;
    int rc;

    sl_buf_init(&outputs, 1u << 16);
    json_array_foreach(json_object_get(record, "outputs"), i, output)
        sl_buf_addf(&outputs, "%s%s:%s", i ? " " : "", sl_json_str(output, "artifact", ""), sl_json_str(output, "version", ""));
    add_pair(tags, "softlaunch.state", state, TAG_MAX);
    add_pair(tags, "softlaunch.cause", sl_json_str(record, "cause", ""), TAG_MAX);
    add_pair(tags, "softlaunch.outputs", outputs.p, TAG_MAX);
    sl_buf_release(&outputs);
    rc = call(m, row, "/api/2.0/mlflow/runs/log-batch", json_pack("{s:s, s:o}", "run_id", theirs(row), "tags", tags), NULL,
              err);
    if (!rc)
        rc = call(m, row, "/api/2.0/mlflow/runs/update",
                  json_pack("{s:s, s:s, s:I}", "run_id", theirs(row), "status", status, "end_time",
                            (json_int_t)sl_json_int(record, "finished_ms", sl_now_us() / 1000)),
                  NULL, err);
    return rc;
}

int sl_mlflow_mirror(struct sl_mlflow *m, json_t *row, bool *ret_done, struct sl_err *err)
{
    bool ended = is_ended(row);
    json_t *record = NULL;
    int rc = 0;

    *ret_done = false;
    if (ended)
        rc = sl_mlflow_record(m, row, &record, err);
    if (!rc && !*theirs(row)) {
        if (!ended)
            rc = sl_queue_show(m->queue, sl_json_str(row, "run", ""), &record, err);
        if (rc == SL_NOTFOUND) { /* the archiver has it: the row says so in a moment */
            sl_err_clear(err);
            return 0;
        }
        if (!rc)
            rc = begin(m, row, record, err);
    }
    if (!rc)
        rc = say_metrics(m, row, err);
    if (!rc && ended)
        rc = say_artifacts(m, row, record, err);
    if (!rc && ended)
        rc = say_end(m, row, record, err);
    *ret_done = !rc && ended;
    json_decref(record);
    return rc;
}
