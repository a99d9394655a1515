#include "server/webhooks.h"
#include "base/json.h"
#include "base/log.h"
#include "server/webhooks_priv.h"
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#define WATCH_PERIOD_US 1000000

/* What server/openapi.c's check does not know. */
static void check_rules(const struct sl_serve_config *config, const json_t *hook, json_t *problems)
{
    const char *secret = sl_json_str(hook, "secret", NULL);
    const json_t *m = json_object_get(hook, "metric"), *e;
    struct sl_err bad_url = SL_ERR_INIT;
    size_t i;

    json_array_foreach(json_object_get(hook, "events"), i, e)
        if (!strcmp(json_string_value(e), "metric") &&
            (!*sl_json_str(m, "name", "") || (!json_object_get(m, "above") && !json_object_get(m, "below"))))
            sl_http_complain(problems, "metric", "the event metric needs {\"name\": ..., \"above\" or \"below\": a number}");
    if (secret && !sl_webhook_secret_valid(secret))
        sl_http_complain(problems, "secret", "expected whsec_ and base64 of 16 to 64 bytes; left out, one is made");
    if (sl_webhook_url_check(sl_json_str(hook, "url", ""), config->webhook_allow, config->n_webhook_allow, &bad_url))
        sl_http_complain(problems, "url", bad_url.msg);
}

/* False: it has answered that the name is none. */
static bool name_ok(struct sl_http_req *req)
{
    const char *name = sl_http_param(req, "webhook");
    size_t len = strlen(name);

    if (len && len <= SL_WEBHOOK_NAME_MAX &&
        strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len)
        return true;
    sl_http_reply_problem(req, 422, "bad name", NULL, "a webhook's name has 1 to %d letters, digits, . _ or -",
                          SL_WEBHOOK_NAME_MAX);
    return false;
}

/* As it is shown: without secret, and of the URL no path, since that often is one. */
static json_t *shown(const char *name, const json_t *hook)
{
    json_t *o = json_copy((json_t *)(uintptr_t)hook);
    const char *url = sl_json_str(hook, "url", ""), *host = strstr(url, "://");
    size_t len = host ? (size_t)(host - url) + 3 + strcspn(host + 3, "/?#") : 0;
    struct sl_buf short_url;

    sl_buf_init(&short_url, SL_WEBHOOK_URL_MAX + 8);
    sl_buf_add(&short_url, url, len);
    if (url[len] && strcmp(url + len, "/") != 0)
        sl_buf_adds(&short_url, "/...");
    json_object_set_new(o, "url", json_string(short_url.p));
    json_object_del(o, "secret");
    json_object_set_new(o, "name", json_string(name));
    sl_buf_release(&short_url);
    return o;
}

static void list(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *hooks, *hook, *out;
    const char *name;

    if (sl_webhooks_all(arg, &hooks, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    out = json_array();
    json_object_foreach(hooks, name, hook)
        json_array_append_new(out, shown(name, hook));
    json_decref(hooks);
    sl_http_reply_json(req, 200, json_pack("{s:o}", "webhooks", out));
}

static void put(struct sl_http_req *req, void *arg)
{
    struct sl_webhooks *w = arg;
    const json_t *body = sl_http_json(req), *old;
    json_t *problems = json_array(), *hooks = NULL, *hook, *reply;
    const char *name = sl_http_param(req, "webhook");
    struct sl_err err = SL_ERR_INIT;
    char secret[128] = "";
    int rc;

    if (!name_ok(req)) {
        json_decref(problems);
        return;
    }
    check_rules(w->server->config, body, problems);
    if (json_array_size(problems)) {
        sl_http_reply_problem(req, 422, "the webhook is not valid", problems, "see errors");
        return;
    }
    json_decref(problems);
    rc = sl_webhooks_all(w, &hooks, &err);
    old = json_object_get(hooks, name);
    hook = json_deep_copy(body);
    json_object_set_new(hook, "created_ms",
                        json_integer((json_int_t)sl_json_int(old, "created_ms", sl_now_us() / 1000)));
    if (!rc && !json_object_get(hook, "secret")) {
        if (old)
            json_object_set(hook, "secret", json_object_get(old, "secret"));
        else if (!(rc = sl_webhook_secret(secret, &err)))
            json_object_set_new(hook, "secret", json_string(secret));
    }
    if (!rc)
        rc = sl_webhooks_put(w, name, hook, &err);
    if (rc) {
        sl_http_reply_err(req, &err, NULL);
    } else {
        reply = shown(name, hook);
        if (secret[0])
            json_object_set_new(reply, "secret", json_string(secret));
        sl_http_reply_json(req, old ? 200 : 201, reply);
    }
    json_decref(hook);
    json_decref(hooks);
}

static void delete(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;

    if (sl_webhooks_put(arg, sl_http_param(req, "webhook"), NULL, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_empty(req, 204);
}

/* The webhook of the request; NULL: it has answered. *ret_hooks is the caller's. */
static const json_t *known(struct sl_http_req *req, struct sl_webhooks *w, json_t **ret_hooks)
{
    const char *name = sl_http_param(req, "webhook");
    struct sl_err err = SL_ERR_INIT;
    const json_t *hook = NULL;

    *ret_hooks = NULL;
    if (!sl_webhooks_all(w, ret_hooks, &err)) {
        hook = json_object_get(*ret_hooks, name);
        if (!hook)
            sl_err_set(&err, SL_NOTFOUND, "there is no webhook %s", name);
    }
    if (!hook)
        sl_http_reply_err(req, &err, NULL);
    return hook;
}

static void test(struct sl_http_req *req, void *arg)
{
    struct sl_webhooks *w = arg;
    const char *name = sl_http_param(req, "webhook");
    char id[SL_ID_HEX + 1], subject[SL_ID_HEX + 1], *body;
    struct sl_err err = SL_ERR_INIT;
    json_t *hooks, *data;
    const json_t *hook = known(req, w, &hooks);

    if (hook) {
        data = json_pack("{s:s}", "webhook", name);
        body = sl_webhook_body(hook, "test", data);
        sl_random_id(subject);
        if (!body)
            sl_err_set(&err, SL_NOMEM, "out of memory");
        if (!body || sl_webhooks_add(w, name, "test", subject, body, id, &err))
            sl_http_reply_err(req, &err, NULL);
        else
            sl_http_reply_json(req, 202, json_pack("{s:s}", "delivery", id));
        sl_webhooks_wake(w);
        free(body);
        json_decref(data);
    }
    json_decref(hooks);
}

static void deliveries(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *hooks, *found;

    if (known(req, arg, &hooks)) {
        if (sl_webhooks_deliveries(arg, sl_http_param(req, "webhook"), &found, &err))
            sl_http_reply_err(req, &err, NULL);
        else
            sl_http_reply_json(req, 200, json_pack("{s:o}", "deliveries", found));
    }
    json_decref(hooks);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/webhooks", .role = SL_ROLE_ADMIN, .handle = list},
    {.method = "PUT",
     .pattern = "/api/v1/webhooks/{webhook}",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_ADMIN,
     .handle = put},
    {.method = "DELETE", .pattern = "/api/v1/webhooks/{webhook}", .role = SL_ROLE_ADMIN, .handle = delete},
    {.method = "POST", .pattern = "/api/v1/webhooks/{webhook}/test", .role = SL_ROLE_ADMIN, .handle = test},
    {.method = "GET",
     .pattern = "/api/v1/webhooks/{webhook}/deliveries",
     .role = SL_ROLE_ADMIN,
     .handle = deliveries},
};

int sl_webhooks_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct sl_webhooks *w = calloc(1, sizeof *w);
    int rc;

    if (!w)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    w->server = server;
    pthread_mutex_init(&w->db_mutex, NULL);
    pthread_mutex_init(&w->watch_mutex, NULL);
    w->seen = json_object();
    w->cursors = json_object();
    rc = sl_webhook_allow_check(server->config->webhook_allow, server->config->n_webhook_allow, err);
    if (!rc)
        rc = sl_webhooks_open(w, err);
    if (!rc && server->config->redis_url)
        rc = sl_queue_new(server->config->redis_url, &w->queue, err);
    if (!rc)
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, w, err);
    if (!rc)
        rc = sl_webhooks_send_start(w, err);
    if (!rc && w->queue)
        rc = sl_ticker_start(sl_webhooks_watch, w, WATCH_PERIOD_US, &w->watching, err);
    if (rc) {
        sl_webhooks_part_stop(w);
        return rc;
    }
    server->webhooks = w->queue ? w : NULL;
    *ret_state = w;
    return 0;
}

void sl_webhooks_part_stop(void *state)
{
    struct sl_webhooks *w = state;

    if (!w)
        return;
    atomic_store(&w->stopping, true);
    sl_ticker_stop(w->watching);
    sl_webhooks_send_stop(w);
    sl_queue_free(w->queue);
    sl_webhooks_close(w);
    json_decref(w->seen);
    json_decref(w->cursors);
    pthread_mutex_destroy(&w->db_mutex);
    pthread_mutex_destroy(&w->watch_mutex);
    free(w);
}
