/* Takes finished runs out of Redis and onto the disk, and the beginning of long logs. */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "server/history.h"
#include "server/mlflow.h"
#include "server/runs.h"
#include "server/webhooks.h"
#include <string.h>

#define RUNS_A_PASS 100
#define LONG_A_PASS 20
#define EXPIRE_A_PASS 100

/* Every event that Redis has and the archive has not. ret_last: the newest's id. */
static int take_events(struct sl_runs *runs, const char *run, char last[64], struct sl_err *err)
{
    int rc = sl_archive_last_event(runs->archive, run, last, err);
    bool more = true;

    while (!rc && more) {
        json_t *page;
        rc = sl_queue_events(runs->queue, run, last, SL_QUEUE_EVENTS_MAX, 0, &page, err);
        if (rc)
            break;
        more = json_array_size(json_object_get(page, "events")) > 0;
        if (more)
            rc = sl_archive_append(runs->archive, run, json_object_get(page, "events"), err);
        if (!rc)
            snprintf(last, 64, "%s", sl_json_str(page, "last", "0"));
        json_decref(page);
    }
    return rc;
}

static int take_run(struct sl_runs *runs, const char *run, struct sl_err *err)
{
    char last[64];
    json_t *record;
    int rc = take_events(runs, run, last, err);

    if (!rc)
        rc = sl_queue_show(runs->queue, run, &record, err);
    if (rc)
        return rc;
    rc = sl_archive_tensorboard(runs->archive, run, err);
    if (!rc)
        rc = sl_webhooks_run_ended(runs->server->webhooks, record, err);
    if (!rc)
        rc = sl_mlflow_run_ended(runs->server->mlflow, record, err);
    if (!rc)
        rc = sl_history_archive(runs->history, record, err);
    json_decref(record);
    return rc;
}

/* A run that cannot be taken is left where it is; the others go on. Returns the first error. */
static int take_ended(struct sl_runs *runs, int *ret_taken, struct sl_err *err)
{
    json_t *ids, *id, *taken = json_array();
    size_t i;
    int bad = 0, rc = sl_queue_ended(runs->queue, runs->server->config->keep_finished_s * 1000,
                                     RUNS_A_PASS, &ids, err);

    *ret_taken = 0;
    if (rc) {
        json_decref(taken);
        return rc;
    }
    json_array_foreach(ids, i, id) {
        rc = take_run(runs, json_string_value(id), err);
        bad = bad ? bad : rc;
        if (!rc)
            json_array_append(taken, id);
    }
    /* What is in the archive durably, and in lists, may leave Redis. */
    rc = 0;
    json_array_foreach(taken, i, id) {
        if (!rc)
            rc = sl_queue_forget(runs->queue, json_string_value(id), err);
        *ret_taken += !rc;
    }
    json_decref(taken);
    json_decref(ids);
    return bad ? bad : rc;
}

static int take_long(struct sl_runs *runs, struct sl_err *err)
{
    json_t *ids, *id;
    size_t i;
    int rc = sl_queue_long(runs->queue, LONG_A_PASS, &ids, err);

    if (rc)
        return rc;
    json_array_foreach(ids, i, id) {
        char last[64];
        if (!rc)
            rc = take_events(runs, json_string_value(id), last, err);
        if (!rc)
            rc = sl_queue_trim(runs->queue, json_string_value(id), last, err);
    }
    json_decref(ids);
    return rc;
}

void sl_archive_runs(void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    int64_t keep_days = runs->server->config->keep_runs_days, seq = 0;
    int taken = 0, removed = 0, rc = 0;

    if (!runs->numbered)
        rc = sl_history_newest(runs->history, &seq, &err);
    if (!rc && seq)
        rc = sl_queue_number_above(runs->queue, seq, &err);
    runs->numbered |= !rc;
    if (!rc)
        rc = take_long(runs, &err);
    do {
        if (!rc)
            rc = take_ended(runs, &taken, &err);
    } while (!rc && taken == RUNS_A_PASS && !atomic_load(&runs->stopping));
    if (!rc && keep_days)
        rc = sl_history_expire(runs->history, (sl_now_us() / 1000) - keep_days * 86400000,
                               EXPIRE_A_PASS, &removed, &err);
    if (rc && rc != runs->archive_trouble)
        sl_log(rc == SL_RETRY ? SL_WARN : SL_ERROR, NULL, "archiving runs: %s", err.msg);
    runs->archive_trouble = rc; /* told once */
    if (removed)
        sl_log(SL_INFO, NULL, "removed %d runs that ended more than %lld days ago", removed,
               (long long)keep_days);
}
