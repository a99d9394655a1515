#include "server/keeper.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REFUND_EVERY_S 1
#define FIRST_AFTER_S 600 /* the first collection by the clock: agents have said by then what they have */

struct keeper {
    struct sl_server *server;
    pthread_t thread;
    bool running;
    atomic_bool stop;
    pthread_mutex_t mutex; /* tasks */
    pthread_cond_t changed;
    json_t *tasks; /* oldest first: as the route gives them, and "grace_s", "hash" */
    int next;
};

/* ---- tasks ----------------------------------------------------------------------------------- */

/* The mutex is held. */
static json_t *find_task(struct keeper *k, const char *id)
{
    size_t i;
    json_t *task;
    json_array_foreach(k->tasks, i, task)
        if (strcmp(sl_json_str(task, "task", ""), id) == 0)
            return task;
    return NULL;
}

static bool is_over(const json_t *task)
{
    const char *state = sl_json_str(task, "state", "");
    return strcmp(state, "done") == 0 || strcmp(state, "failed") == 0;
}

/* One that waits and asks for the same stands for both. */
static int add_task(struct keeper *k, const char *kind, int64_t grace_s, bool hash, char ret_id[16],
                    struct sl_err *err)
{
    json_t *task = NULL;
    size_t i;
    int rc = 0;
    pthread_mutex_lock(&k->mutex);
    json_array_foreach(k->tasks, i, task)
        if (strcmp(sl_json_str(task, "state", ""), "waiting") == 0 &&
            strcmp(sl_json_str(task, "kind", ""), kind) == 0 &&
            sl_json_int(task, "grace_s", -1) == grace_s && sl_json_bool(task, "hash", false) == hash)
            break;
    if (i < json_array_size(k->tasks)) {
        snprintf(ret_id, 16, "%s", sl_json_str(task, "task", ""));
    } else {
        if (json_array_size(k->tasks) >= SL_KEEPER_TASKS_MAX && is_over(json_array_get(k->tasks, 0)))
            json_array_remove(k->tasks, 0);
        snprintf(ret_id, 16, "%d", k->next);
        if (json_array_size(k->tasks) >= SL_KEEPER_TASKS_MAX)
            rc = sl_err_set(err, SL_RETRY, "%d tasks of the store wait already",
                            SL_KEEPER_TASKS_MAX);
        else if (json_array_append_new(
                     k->tasks, json_pack("{s:s, s:s, s:s, s:I, s:b}", "task", ret_id, "kind", kind,
                                         "state", "waiting", "grace_s", (json_int_t)grace_s, "hash",
                                         (int)hash)))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        else
            k->next++;
    }
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->mutex);
    return rc;
}

static bool stopping(void *arg)
{
    return atomic_load(&((struct keeper *)arg)->stop);
}

static int collect(struct keeper *k, int64_t grace_s, json_t **ret_report, struct sl_err *err)
{
    struct sl_runs *runs = k->server->runs;
    const struct sl_collect how = {.grace_us = grace_s * 1000000,
                                   .pin_max_us = runs ? SL_KEEPER_PIN_MAX_S * INT64_C(1000000) : 0,
                                   .live = runs ? sl_runs_live_manifests : NULL,
                                   .arg = runs};
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/runs", k->server->config->data_dir);
    if (rc == 0 && !runs && sl_file_exists(path))
        return sl_err_set(err, SL_CONFLICT,
                          "this store has served runs, whose checkpoints only Redis names: start the "
                          "server with --redis to collect");
    return rc ? rc : sl_store_collect(k->server->store, &how, ret_report, err);
}

static void do_task(struct keeper *k, json_t *task)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *report = NULL;
    bool is_collection = strcmp(sl_json_str(task, "kind", ""), "collection") == 0;
    int rc = is_collection ? collect(k, sl_json_int(task, "grace_s", SL_KEEPER_GRACE_S), &report, &err)
                           : sl_store_verify(k->server->store, sl_json_bool(task, "hash", false),
                                             stopping, k, &report, &err);
    int64_t removed = sl_json_int(report, "removed_blobs", 0),
            wrong = sl_json_int(report, "problems_total", 0);
    if (rc)
        sl_log(rc == SL_RETRY ? SL_WARN : SL_ERROR, NULL, "%s", err.msg);
    if (removed)
        sl_log(SL_INFO, NULL, "collected %lld blobs of %lld bytes that nothing uses",
               (long long)removed, (long long)sl_json_int(report, "removed_bytes", 0));
    if (wrong)
        sl_log(SL_ERROR, NULL, "the store has %lld problems; the first: %s", (long long)wrong,
               json_string_value(json_array_get(json_object_get(report, "problems"), 0)));
    pthread_mutex_lock(&k->mutex);
    json_object_set_new(task, "state", json_string(rc ? "failed" : "done"));
    if (rc)
        json_object_set_new(task, "error", json_string(err.msg));
    if (report)
        json_object_set_new(task, "report", report);
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->mutex);
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* What was deleted no longer counts as its project's. */
static void settle_refunds(struct keeper *k)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *refunds = NULL, *refund;
    size_t i;
    if (!k->server->runs)
        return;
    int rc = sl_store_refunds(k->server->store, &refunds, &err);
    json_array_foreach(rc ? NULL : refunds, i, refund) {
        const char *id = sl_json_str(refund, "id", "");
        rc = sl_queue_refund(k->server->runs->queue, id, sl_json_str(refund, "project", ""),
                             sl_json_int(refund, "bytes", 0), &err);
        if (rc == 0)
            rc = sl_store_refund_done(k->server->store, id, &err);
        if (rc)
            break;
    }
    if (rc && rc != SL_RETRY)
        sl_log(SL_ERROR, NULL, "giving deleted versions' bytes back to projects: %s", err.msg);
    json_decref(refunds);
}

/* The next task, "running" now; NULL: none came within a second. */
static json_t *take_task(struct keeper *k)
{
    json_t *task, *found = NULL;
    struct timespec until;
    size_t i;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_mutex_lock(&k->mutex);
    for (int round = 0; round < 2 && !found && !atomic_load(&k->stop); round++) {
        if (round)
            pthread_cond_timedwait(&k->changed, &k->mutex, &until);
        json_array_foreach(k->tasks, i, task)
            if (!found && strcmp(sl_json_str(task, "state", ""), "waiting") == 0)
                found = task;
    }
    if (found)
        json_object_set_new(found, "state", json_string("running"));
    json_t *kept = json_incref(found);
    pthread_mutex_unlock(&k->mutex);
    return kept;
}

static void *keep(void *arg)
{
    struct keeper *k = arg;
    const struct sl_serve_config *config = k->server->config;
    int64_t collect_at =
                sl_boot_us() + INT64_C(1000000) * (config->collect_every_s < FIRST_AFTER_S
                                                       ? config->collect_every_s
                                                       : FIRST_AFTER_S),
            refund_at = 0;
    while (!atomic_load(&k->stop)) {
        json_t *task = take_task(k);
        if (task)
            do_task(k, task);
        json_decref(task);
        if (config->collect_every_s > 0 && sl_boot_us() >= collect_at) {
            char id[16];
            add_task(k, "collection", config->collect_grace_s, false, id, NULL);
            collect_at = sl_boot_us() + config->collect_every_s * INT64_C(1000000);
        }
        if (sl_boot_us() >= refund_at || task) {
            settle_refunds(k);
            refund_at = sl_boot_us() + REFUND_EVERY_S * INT64_C(1000000);
        }
    }
    return NULL;
}

/* ---- routes ---------------------------------------------------------------------------------- */

static void reply_task(struct sl_http_req *req, int rc, const char *id, const struct sl_err *err)
{
    if (rc)
        sl_http_reply_err(req, err, NULL);
    else
        sl_http_reply_json(req, 202, json_pack("{s:s}", "task", id));
}

static void post_collection(struct sl_http_req *req, void *arg)
{
    struct keeper *k = arg;
    struct sl_err err = SL_ERR_INIT;
    char id[16] = "";
    const json_t *body = sl_http_json(req);
    int64_t grace_s = sl_json_int(body, "grace_s", k->server->config->collect_grace_s);
    int rc = add_task(k, "collection", grace_s, false, id, &err);
    reply_task(req, rc, id, &err);
}

static void post_verification(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    char id[16] = "";
    int rc = add_task(arg, "verification", -1, sl_json_bool(sl_http_json(req), "hash", false), id,
                      &err);
    reply_task(req, rc, id, &err);
}

static void get_task(struct sl_http_req *req, void *arg)
{
    struct keeper *k = arg;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SL_HTTP_WAIT_MAX_MS / 1000;
    pthread_mutex_lock(&k->mutex);
    const json_t *task = find_task(k, sl_http_param(req, "task"));
    while (task && !is_over(task) && !sl_http_stopping(req) &&
           pthread_cond_timedwait(&k->changed, &k->mutex, &until) == 0)
        task = find_task(k, sl_http_param(req, "task"));
    json_t *reply = json_deep_copy(task);
    pthread_mutex_unlock(&k->mutex);
    if (!reply) {
        sl_http_reply_problem(req, 404, "not found", NULL, "there is no task %.40s",
                              sl_http_param(req, "task"));
        return;
    }
    json_object_del(reply, "grace_s");
    json_object_del(reply, "hash");
    sl_http_reply_json(req, 200, reply);
}

static const struct sl_route routes[] = {
    {.method = "POST",
     .pattern = "/api/v1/store/collections",
     .role = SL_ROLE_ADMIN,
     .body = SL_BODY_JSON,
     .handle = post_collection},
    {.method = "POST",
     .pattern = "/api/v1/store/verifications",
     .role = SL_ROLE_ADMIN,
     .body = SL_BODY_JSON,
     .handle = post_verification},
    {.method = "GET",
     .pattern = "/api/v1/store/tasks/{task}",
     .waits = true,
     .role = SL_ROLE_ADMIN,
     .handle = get_task},
};

int sl_keeper_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct keeper *k = calloc(1, sizeof *k);
    if (!k)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    k->server = server;
    k->tasks = json_array();
    k->next = 1;
    pthread_mutex_init(&k->mutex, NULL);
    pthread_cond_init(&k->changed, NULL);
    int rc = 0;
    if (server->runs)
        rc = sl_store_add_guard(server->store, sl_runs_guard_version, server->runs, err);
    if (rc == 0)
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, k, err);
    if (rc == 0 && pthread_create(&k->thread, NULL, keep, k))
        rc = sl_err_set(err, SL_NOMEM, "cannot start the store's thread");
    k->running = rc == 0;
    if (rc) {
        sl_keeper_stop(k);
        return rc;
    }
    *ret_state = k;
    return 0;
}

void sl_keeper_stop(void *state)
{
    struct keeper *k = state;
    if (!k)
        return;
    pthread_mutex_lock(&k->mutex);
    atomic_store(&k->stop, true);
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->mutex);
    if (k->running)
        pthread_join(k->thread, NULL);
    json_decref(k->tasks);
    pthread_cond_destroy(&k->changed);
    pthread_mutex_destroy(&k->mutex);
    free(k);
}
