/* Sockets, routes and the way of a request through them. It goes: access (first call: token, route, begin)
 * -> body -> suspended while a pool runs its handler -> resumed, and the answer queued ->
 * completed. */
#include "server/http.h"
#include "base/clock.h"
#include "base/json.h"
#include "server/http_priv.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PATH_MAX_BYTES 2048
#define PATH_PARTS_MAX 16
#define STOP_GRACE_MS 5000 /* for answers on their way out */

struct sl_http {
    struct MHD_Daemon *daemons[2]; /* on `listen`, and on a unix socket */
    char *listen, *unix_path, *tls_cert, *tls_key; /* the last two: the files' text */
    struct sl_http_guard guard;
    int listen_fds[2], port;
    struct {
        const struct sl_route *route;
        void *arg;
        struct sl_http_count count;
    } routes[SL_HTTP_ROUTES_MAX];
    int n_routes;
    const struct sl_route *missing; /* for browsers; NULL: none */
    void *missing_arg;
    sl_http_check *check;
    void *check_arg;
    struct sl_http_pool pools[2]; /* short requests; `waits` */
    atomic_bool stopping;
    atomic_int active; /* requests begun and not completed */
};

bool sl_http_is_stopping(const struct sl_http *http)
{
    return atomic_load(&http->stopping);
}

struct sl_http_guard *sl_http_guard(struct sl_http *http)
{
    return &http->guard;
}

/* ---- a handler's thread ---------------------------------------------------------------------- */

/* Streamed bodies are named by their digest and mean nothing until a version refers to them. */
static bool is_audited(const struct sl_route *route)
{
    return strcmp(route->method, "GET") != 0 && route->body != SL_BODY_STREAM;
}

static bool is_fine(struct sl_http_req *req, const json_t *body)
{
    if (req->http->check)
        req->http->check(req, req->http->check_arg, req->route->method, req->route->pattern, body);
    return !req->response;
}

static void run_handler(struct sl_http_req *req)
{
    if (sl_http_in_scope(req) && (req->route->body != SL_BODY_JSON || is_fine(req, req->json)))
        req->route->handle(req, req->arg);
    else if (req->route->abort)
        req->route->abort(req->state);
    if (!req->response)
        sl_http_reply_problem(req, 500, "internal error", NULL, "no answer was made");
    if (is_audited(req->route) || (req->status == 403 && req->who.role))
        sl_http_log_done(req, true);
    struct MHD_Connection *conn = req->conn;
    MHD_resume_connection(conn); /* req belongs to the socket thread from here on */
}

/* ---- routes ---------------------------------------------------------------------------------- */

/* Compares path parts with a pattern; fills params. */
static bool match(const char *pattern, char *const *parts, int n_parts, const char **params)
{
    int part = 0, param = 0;
    const char *p = pattern;
    while (*p == '/') {
        size_t len = strcspn(++p, "/");
        if (part == n_parts)
            return false;
        if (*p == '{')
            params[param++] = parts[part];
        else if (strlen(parts[part]) != len || memcmp(parts[part], p, len) != 0)
            return false;
        part++;
        p += len;
    }
    return part == n_parts;
}

static bool accepts_html(const struct sl_http_req *req)
{
    const char *accept = sl_http_header(req, "Accept");
    return accept && strstr(accept, "text/html");
}

/* Finds the route; answers 404 or 405 when there is none. */
static void find_route(struct sl_http *http, struct sl_http_req *req, const char *url)
{
    char *parts[PATH_PARTS_MAX], allowed[64] = "";
    int n_parts = 0;
    const char *method = strcmp(req->method, "HEAD") == 0 ? "GET" : req->method;
    for (char *p = req->path; *p == '/';) {
        *p++ = 0;
        if (n_parts == PATH_PARTS_MAX)
            break;
        parts[n_parts++] = p;
        p += strcspn(p, "/");
    }
    for (int i = 0; i < http->n_routes; i++) {
        const struct sl_route *r = http->routes[i].route;
        const char *params[SL_HTTP_PARAMS_MAX] = {NULL};
        if (!match(r->pattern, parts, n_parts, params))
            continue;
        if (strcmp(r->method, method) == 0) {
            req->route = r;
            req->arg = http->routes[i].arg;
            req->count = &http->routes[i].count;
            memcpy(req->params, params, sizeof params);
            return;
        }
        size_t len = strlen(allowed);
        snprintf(allowed + len, sizeof allowed - len, "%s%s", len ? ", " : "", r->method);
    }
    if (allowed[0]) {
        sl_http_set_header(req, "Allow", allowed);
        sl_http_reply_problem(req, 405, "method not allowed", NULL,
                              "%.20s is not possible here: use %s", req->method, allowed);
    } else if (http->missing && !strcmp(method, "GET") && strncmp(url, "/api/", 5) != 0 &&
               accepts_html(req)) {
        req->route = http->missing;
        req->arg = http->missing_arg;
    } else {
        sl_http_reply_problem(req, 404, "not found", NULL, "there is nothing at %.200s", url);
    }
}

/* ---- one request ----------------------------------------------------------------------------- */

static enum MHD_Result send_answer(struct sl_http_req *req)
{
    if (!req->response)
        return MHD_NO; /* out of memory: cut the connection */
    enum MHD_Result ok = MHD_queue_response(req->conn, req->status, req->response);
    MHD_destroy_response(req->response);
    req->response = NULL;
    return ok;
}

/* Headers are in: everything that can be said before the body. An answer is there when it was
 * refused. */
static void first_call(struct sl_http_req *req, const char *url)
{
    struct sl_http *http = req->http;
    if (sl_http_is_stopping(http)) {
        sl_http_reply_problem(req, 503, "try again", NULL, "the server is stopping");
        return;
    }
    if (strlen(url) > PATH_MAX_BYTES) {
        sl_http_reply_problem(req, 414, "path too long", NULL, "a path has at most %d bytes",
                              PATH_MAX_BYTES);
        return;
    }
    find_route(http, req, url);
    sl_http_authorize(req);
    if (req->response || !req->route)
        return;
    if (!is_fine(req, NULL))
        return;
    const char *length = sl_http_header(req, "Content-Length");
    int64_t bytes = length ? strtoll(length, NULL, 10) : 0;
    bool has_body = bytes > 0 || sl_http_header(req, "Transfer-Encoding");
    if (req->route->body == SL_BODY_NONE && has_body) {
        sl_http_reply_problem(req, 400, "unexpected body", NULL, "%s takes no body", url);
    } else if (req->route->body == SL_BODY_JSON && bytes > (int64_t)SL_HTTP_JSON_MAX) {
        sl_http_reply_problem(req, 413, "body too large", NULL, "a JSON body has at most %u bytes",
                              SL_HTTP_JSON_MAX);
    } else if (req->route->body == SL_BODY_STREAM) {
        int rc = req->route->begin(req, req->arg, &req->state, &req->error);
        req->streaming = rc == 0 && !req->response;
        if (rc && !req->response)
            sl_http_reply_err(req, &req->error, NULL);
    }
}

static void take_body(struct sl_http_req *req, const char *data, size_t len)
{
    if (req->error.code) /* an answer cannot be given before the body's end: drop the rest */
        return;
    if (req->streaming) {
        if (req->route->data(req->state, data, len, &req->error)) {
            req->route->abort(req->state);
            req->streaming = false;
        }
    } else if (req->route->body == SL_BODY_NONE) {
        sl_err_set(&req->error, SL_SPEC, "this request takes no body");
    } else if (sl_buf_add(&req->body, data, len)) {
        sl_buf_reset(&req->body);
        sl_err_set(&req->error, SL_SPEC, "a JSON body has at most %u bytes", SL_HTTP_JSON_MAX);
    }
}

/* The body is in: hands the request to a pool. */
static enum MHD_Result dispatch(struct sl_http_req *req)
{
    if (!req->error.code && req->route->body == SL_BODY_JSON)
        sl_json_parse(req->body.p, req->body.len, "the body", &req->json, &req->error);
    if (req->error.code) {
        sl_http_reply_err(req, &req->error, NULL);
        return send_answer(req);
    }
    bool streaming = req->streaming;
    req->dispatched = true;
    req->streaming = false; /* the handler owns the state */
    if (sl_http_pool_push(&req->http->pools[req->route->waits], req))
        return MHD_YES;
    req->streaming = streaming;
    sl_http_reply_problem(req, 503, "try again", NULL, "the server is stopping");
    return send_answer(req);
}

static enum MHD_Result access_handler(void *cls, struct MHD_Connection *conn, const char *url,
                                      const char *method, const char *version, const char *data,
                                      size_t *data_len, void **con_cls)
{
    struct sl_http *http = cls;
    struct sl_http_req *req = *con_cls;
    (void)version;
    if (!req) {
        req = calloc(1, sizeof *req);
        if (!req)
            return MHD_NO;
        sl_buf_init(&req->body, SL_HTTP_JSON_MAX);
        req->http = http;
        req->conn = conn;
        req->began_us = sl_boot_us();
        *con_cls = req;
        atomic_fetch_add(&http->active, 1);
        req->path = strdup(url);
        req->method = strdup(method);
        if (!req->path || !req->method)
            return MHD_NO;
        first_call(req, url);
        return req->response || !req->route ? send_answer(req) : MHD_YES;
    }
    if (*data_len) {
        take_body(req, data, *data_len);
        *data_len = 0;
        return MHD_YES;
    }
    return req->dispatched ? send_answer(req) : dispatch(req);
}

static void completed(void *cls, struct MHD_Connection *conn, void **con_cls,
                      enum MHD_RequestTerminationCode code)
{
    struct sl_http *http = cls;
    struct sl_http_req *req = *con_cls;
    (void)conn;
    (void)code;
    if (!req)
        return;
    *con_cls = NULL;
    if (req->count)
        sl_http_count(req->count, req->status, req->began_us);
    if (req->streaming)
        req->route->abort(req->state);
    if (req->response)
        MHD_destroy_response(req->response);
    for (int i = 0; i < req->n_headers; i++) {
        free(req->headers[i].name);
        free(req->headers[i].value);
    }
    json_decref(req->json);
    json_decref(req->notes);
    sl_identity_release(&req->who);
    sl_buf_release(&req->body);
    free(req->path);
    free(req->method);
    free(req);
    atomic_fetch_sub(&http->active, 1);
}

/* ---- the server ------------------------------------------------------------------------------ */

static int configure(struct sl_http *http, const struct sl_http_config *config, struct sl_err *err)
{
    struct sl_http_guard *guard = &http->guard;
    int rc = sl_sha256_data(config->token, strlen(config->token), guard->token_sha256, err);
    guard->accounts = config->accounts;
    guard->sessions = config->sessions;
    guard->audit = config->audit;
    guard->tls = config->tls_cert != NULL;
    for (int i = 0; rc == 0 && config->trusted && config->trusted[i]; i++)
        rc = sl_http_trust(guard, config->trusted[i], err);
    if (rc == 0 && !config->tls_cert != !config->tls_key)
        rc = sl_err_set(err, SL_SPEC, "--tls-cert and --tls-key go together");
    if (rc == 0 && config->tls_cert)
        rc = sl_http_read_pem(config->tls_cert, &http->tls_cert, err);
    if (rc == 0 && config->tls_key)
        rc = sl_http_read_pem(config->tls_key, &http->tls_key, err);
    http->listen = strdup(config->listen);
    http->unix_path = config->unix_path ? strdup(config->unix_path) : NULL;
    guard->sign_in_header = config->sign_in_header ? strdup(config->sign_in_header) : NULL;
    if (rc == 0 && (!http->listen || !http->unix_path != !config->unix_path ||
                    !guard->sign_in_header != !config->sign_in_header))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    return rc;
}

int sl_http_new(const struct sl_http_config *config, struct sl_http **ret_http, struct sl_err *err)
{
    size_t token_len = config->token ? strlen(config->token) : 0;
    if (token_len < SL_HTTP_TOKEN_MIN || token_len > SL_HTTP_TOKEN_MAX)
        return sl_err_set(err, SL_SPEC, "the server's token has %zu characters; it needs %d to %d",
                          token_len, SL_HTTP_TOKEN_MIN, SL_HTTP_TOKEN_MAX);
    struct sl_http *http = calloc(1, sizeof *http);
    if (!http)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_init(&http->guard.failing, NULL);
    for (int i = 0; i < 2; i++) {
        http->listen_fds[i] = -1;
        sl_http_pool_init(&http->pools[i], run_handler);
    }
    int rc = configure(http, config, err);
    if (rc) {
        sl_http_free(http);
        return rc;
    }
    *ret_http = http;
    return 0;
}

void sl_http_set_check(struct sl_http *http, sl_http_check *check, void *arg)
{
    http->check = check;
    http->check_arg = arg;
}

int sl_http_add(struct sl_http *http, const struct sl_route *routes, size_t n, void *arg,
                struct sl_err *err)
{
    for (size_t i = 0; i < n; i++) {
        int params = 0;
        for (const char *p = strchr(routes[i].pattern, '{'); p; p = strchr(p + 1, '{'))
            params++;
        bool stream = routes[i].body == SL_BODY_STREAM;
        if (http->n_routes == SL_HTTP_ROUTES_MAX || params > SL_HTTP_PARAMS_MAX ||
            !routes[i].handle ||
            (stream && (!routes[i].begin || !routes[i].data || !routes[i].abort)))
            return sl_err_set(err, SL_SPEC, "route %s %s does not fit the server's limits",
                              routes[i].method, routes[i].pattern);
        http->routes[http->n_routes].route = &routes[i];
        http->routes[http->n_routes++].arg = arg;
    }
    return 0;
}

void sl_http_set_missing(struct sl_http *http, const struct sl_route *route, void *arg)
{
    http->missing = route;
    http->missing_arg = arg;
}

/* Asks for as many descriptors as we may have. */
static unsigned connections_max(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l))
        return SL_HTTP_CONNECTIONS_MAX / 16;
    const rlim_t want = SL_HTTP_CONNECTIONS_MAX + SL_HTTP_OTHER_FDS;
    if (l.rlim_cur < want) {
        l.rlim_cur = l.rlim_max < want ? l.rlim_max : want;
        setrlimit(RLIMIT_NOFILE, &l);
        getrlimit(RLIMIT_NOFILE, &l);
    }
    if (l.rlim_cur >= want)
        return SL_HTTP_CONNECTIONS_MAX;
    return l.rlim_cur > 2 * SL_HTTP_OTHER_FDS ? (unsigned)l.rlim_cur - SL_HTTP_OTHER_FDS
                                              : SL_HTTP_OTHER_FDS;
}

static int start_daemon(struct sl_http *http, int which, struct sl_err *err)
{
    bool tls = which == 0 && http->tls_cert;
    struct MHD_OptionItem secrets[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, http->tls_cert},
                                       {MHD_OPTION_HTTPS_MEM_KEY, 0, http->tls_key},
                                       {MHD_OPTION_END, 0, NULL}};
    if (!tls)
        secrets[0] = secrets[2];
    http->daemons[which] = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_ALLOW_SUSPEND_RESUME |
            (tls ? MHD_USE_TLS : 0u),
        0, NULL, NULL, access_handler, http, MHD_OPTION_LISTEN_SOCKET, http->listen_fds[which],
        MHD_OPTION_THREAD_POOL_SIZE, (unsigned)SL_HTTP_LOOP_THREADS, MHD_OPTION_CONNECTION_LIMIT,
        connections_max(), MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SL_HTTP_IDLE_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)SL_HTTP_HEADERS_MAX,
        MHD_OPTION_NOTIFY_COMPLETED, completed, http, MHD_OPTION_ARRAY, secrets, MHD_OPTION_END);
    if (!http->daemons[which])
        return sl_err_set(err, SL_IO, "cannot start the HTTP server on %s%s",
                          which ? http->unix_path : http->listen,
                          tls ? ": are --tls-cert and --tls-key PEM files of one pair?" : "");
    return 0;
}

int sl_http_start(struct sl_http *http, struct sl_err *err)
{
    int rc = sl_http_listen(http->listen, &http->listen_fds[0], &http->port, err);
    if (rc == 0 && http->unix_path)
        rc = sl_http_listen_unix(http->unix_path, &http->listen_fds[1], err);
    if (rc == 0)
        rc = sl_http_pool_start(&http->pools[0], SL_HTTP_HANDLERS, err);
    if (rc == 0)
        rc = sl_http_pool_start(&http->pools[1], SL_HTTP_WAITERS, err);
    if (rc == 0)
        rc = start_daemon(http, 0, err);
    if (rc == 0 && http->unix_path)
        rc = start_daemon(http, 1, err);
    if (rc)
        sl_http_stop(http);
    return rc;
}

void sl_http_metrics(const struct sl_http *http, struct sl_buf *out)
{
    sl_prom_family(out, "softlaunch_http_requests_total", "counter",
                   "Answered requests by route and class of status.");
    for (int i = 0; i < http->n_routes; i++)
        sl_http_count_requests(http->routes[i].route, &http->routes[i].count, out);
    sl_prom_family(out, "softlaunch_http_request_seconds", "histogram",
                   "From a request's headers to the end of its answer.");
    for (int i = 0; i < http->n_routes; i++)
        if (atomic_load(&http->routes[i].count.took_us))
            sl_http_count_took(http->routes[i].route, &http->routes[i].count, out);
    sl_prom_family(out, "softlaunch_http_active_requests", "gauge", "Requests under way.");
    sl_prom_value(out, "softlaunch_http_active_requests", atomic_load(&http->active), NULL);
}

int sl_http_port(const struct sl_http *http)
{
    return http->port;
}

void sl_http_stop(struct sl_http *http)
{
    if (!http)
        return;
    atomic_store(&http->stopping, true);
    for (int i = 0; i < 2; i++)
        if (http->daemons[i])
            MHD_quiesce_daemon(http->daemons[i]); /* gives its listening socket back */
    sl_http_pool_stop(&http->pools[0]);
    sl_http_pool_stop(&http->pools[1]);
    struct timespec tick = {.tv_nsec = 10 * 1000 * 1000};
    for (int ms = 0; http->daemons[0] && atomic_load(&http->active) > 0 && ms < STOP_GRACE_MS;
         ms += 10)
        nanosleep(&tick, NULL);
    for (int i = 0; i < 2; i++) {
        if (http->daemons[i])
            MHD_stop_daemon(http->daemons[i]);
        http->daemons[i] = NULL;
        if (http->listen_fds[i] >= 0)
            close(http->listen_fds[i]);
        http->listen_fds[i] = -1;
    }
    if (http->unix_path)
        unlink(http->unix_path);
}

void sl_http_free(struct sl_http *http)
{
    if (!http)
        return;
    sl_http_stop(http);
    for (int i = 0; i < 2; i++)
        sl_http_pool_release(&http->pools[i]);
    pthread_mutex_destroy(&http->guard.failing);
    OPENSSL_cleanse(http->guard.token_sha256, sizeof http->guard.token_sha256);
    if (http->tls_key)
        OPENSSL_cleanse(http->tls_key, strlen(http->tls_key));
    free(http->tls_key);
    free(http->tls_cert);
    free(http->guard.sign_in_header);
    free(http->unix_path);
    free(http->listen);
    free(http);
}
