/* Calls of MLflow's REST API. */
#include "base/json.h"
#include "server/mlflow_priv.h"
#include "server/webhooks_guard.h"
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct call {
    struct sl_mlflow *m;
    bool own;
    struct sl_buf answer;
    char refused[NI_MAXHOST], error[CURL_ERROR_SIZE];
    int fd;
};

static size_t take_answer(char *data, size_t size, size_t n, void *arg)
{
    struct call *c = arg;

    return sl_buf_add(&c->answer, data, size * n) ? 0 : size * n;
}

static size_t give_file(char *to, size_t size, size_t n, void *arg)
{
    const struct call *c = arg;
    ssize_t got = read(c->fd, to, size * n);

    return got < 0 ? CURL_READFUNC_ABORT : (size_t)got;
}

static int is_ending(void *arg, curl_off_t down, curl_off_t downs, curl_off_t up, curl_off_t ups)
{
    const struct call *c = arg;

    (void)down;
    (void)downs;
    (void)up;
    (void)ups;
    return atomic_load(&c->m->ending);
}

/* As for webhooks: the name has been looked up. */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
    const struct sl_serve_config *config;
    struct call *c = arg;

    (void)purpose;
    config = c->m->server->config;
    if (c->own || sl_webhook_may_go(&address->addr, config->webhook_allow, config->n_webhook_allow))
        return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    getnameinfo(&address->addr, address->addrlen, c->refused, sizeof c->refused, NULL, 0, NI_NUMERICHOST);
    return CURL_SOCKET_BAD;
}

static int judge(struct call *c, CURLcode result, const char *url, json_t **ret_reply, struct sl_err *err)
{
    json_t *reply = NULL;
    long status = 0;
    int code = SL_RETRY;

    curl_easy_getinfo(c->m->curl, CURLINFO_RESPONSE_CODE, &status);
    if (c->refused[0])
        return sl_err_set(err, SL_RETRY, "%s: %s is a private address: start the server with --webhook-allow to let it go there",
                          url, c->refused);
    if (result != CURLE_OK)
        return sl_err_set(err, atomic_load(&c->m->ending) ? SL_CANCELLED : SL_RETRY, "%s: %s", url,
                          c->error[0] ? c->error : curl_easy_strerror(result));
    if (c->answer.len)
        sl_json_parse(c->answer.p, c->answer.len, url, &reply, NULL);
    if (status >= 200 && status < 300) {
        if (ret_reply && !json_is_object(reply)) {
            json_decref(reply);
            return sl_err_set(err, SL_RETRY, "%s: its answer is no JSON object: is this an MLflow server?", url);
        }
        if (ret_reply)
            *ret_reply = json_incref(reply);
        json_decref(reply);
        return 0;
    }
    if (!strcmp(sl_json_str(reply, "error_code", ""), "RESOURCE_DOES_NOT_EXIST"))
        code = SL_NOTFOUND;
    else if (!strcmp(sl_json_str(reply, "error_code", ""), "RESOURCE_ALREADY_EXISTS"))
        code = SL_CONFLICT;
    sl_err_set(err, code, "%s answered %ld: %.300s", url, status, sl_json_str(reply, "message", ""));
    json_decref(reply);
    return code;
}

/* The server's credentials, for its own MLflow. */
static CURLcode sign_in(CURL *curl, const char *authorization, struct curl_slist **headers)
{
    const char *user = getenv("MLFLOW_TRACKING_USERNAME"), *password = getenv("MLFLOW_TRACKING_PASSWORD");
    CURLcode rc = CURLE_OK;

    if (*authorization) {
        struct curl_slist *more = curl_slist_append(*headers, authorization);
        if (!more)
            return CURLE_OUT_OF_MEMORY;
        *headers = more;
    } else if (user && password) {
        rc = curl_easy_setopt(curl, CURLOPT_HTTPAUTH, (long)CURLAUTH_BASIC);
        rc = rc ? rc : curl_easy_setopt(curl, CURLOPT_USERNAME, user);
        rc = rc ? rc : curl_easy_setopt(curl, CURLOPT_PASSWORD, password);
    }
    return rc;
}

static int perform(struct call *c, const char *uri, const char *method, const char *path, const char *body, int64_t bytes,
                   json_t **ret_reply, struct sl_err *err)
{
    const char *token = getenv("MLFLOW_TRACKING_TOKEN");
    struct curl_slist *headers = curl_slist_append(NULL, body ? "Content-Type: application/json" : "Expect:");
    char authorization[4096] = "";
    CURL *curl = c->m->curl;
    CURLcode rc = headers ? CURLE_OK : CURLE_OUT_OF_MEMORY;
    struct sl_buf url;
    size_t len = strlen(uri);
    int result;

    while (len && uri[len - 1] == '/')
        len--;
    sl_buf_init(&url, 1u << 16);
    sl_buf_init(&c->answer, SL_MLFLOW_ANSWER_MAX);
    if (sl_buf_add(&url, uri, len) || sl_buf_adds(&url, path))
        rc = CURLE_OUT_OF_MEMORY;
    c->own = sl_mlflow_is_own(c->m, uri);
    if (c->own && token)
        snprintf(authorization, sizeof authorization, "Authorization: Bearer %s", token);
    curl_easy_reset(curl); /* keeps connections */
#define SET(option, value) rc = rc ? rc : curl_easy_setopt(curl, option, value)
    SET(CURLOPT_URL, url.p);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    if (c->fd >= 0) {
        SET(CURLOPT_UPLOAD, 1L);
        SET(CURLOPT_READFUNCTION, give_file);
        SET(CURLOPT_READDATA, c);
        SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)bytes);
    } else if (body) {
        SET(CURLOPT_POSTFIELDS, body);
    }
    SET(CURLOPT_CUSTOMREQUEST, method);
    if (!rc && c->own)
        rc = sign_in(curl, authorization, &headers);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_USERAGENT, "softlaunch/" SL_VERSION);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, ""); /* a proxy would look the name up by itself */
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_TIMEOUT_MS, c->fd >= 0 ? SL_MLFLOW_UPLOAD_TIMEOUT_MS : SL_MLFLOW_TIMEOUT_MS);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, c);
    SET(CURLOPT_WRITEFUNCTION, take_answer);
    SET(CURLOPT_WRITEDATA, c);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, is_ending);
    SET(CURLOPT_XFERINFODATA, c);
    SET(CURLOPT_ERRORBUFFER, c->error);
#undef SET
    if (!rc)
        rc = curl_easy_perform(curl);
    result = judge(c, rc, url.p, ret_reply, err);
    curl_slist_free_all(headers);
    explicit_bzero(authorization, sizeof authorization);
    sl_buf_release(&c->answer);
    sl_buf_release(&url);
    return result;
}

int sl_mlflow_call(struct sl_mlflow *m, const char *uri, const char *method, const char *path, const json_t *body,
                   json_t **ret_reply, struct sl_err *err)
{
    struct call c = {.m = m, .fd = -1};
    char *text = body ? sl_json_dump(body) : NULL;
    int rc;

    if (body && !text)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    rc = perform(&c, uri, method, path, text, 0, ret_reply, err);
    free(text);
    return rc;
}

int sl_mlflow_put(struct sl_mlflow *m, const char *uri, const char *path, int fd, int64_t bytes, struct sl_err *err)
{
    struct call c = {.m = m, .fd = fd};

    return perform(&c, uri, "PUT", path, NULL, bytes, NULL, err);
}

void sl_mlflow_escape(struct sl_mlflow *m, const char *text, struct sl_buf *out)
{
    char *escaped = curl_easy_escape(m->curl, text, 0);

    if (escaped)
        sl_buf_adds(out, escaped);
    curl_free(escaped);
}
