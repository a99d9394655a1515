#include "artifacts/api.h"
#include "artifacts/web.h"
#include "base/buf.h"
#include "base/json.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_MAX_BYTES 4096

struct sl_api {
    CURL *curl;
    char *server; /* without a slash at its end */
    char *token;  /* or NULL */
};

int sl_api_new(const char *server, const char *token, struct sl_api **ret_api, struct sl_err *err)
{
    int rc = sl_web_check_url(server, err);
    if (rc)
        return sl_err_wrap(err, rc, "server");
    for (const char *p = token; p && *p; p++)
        if (*p <= ' ' || *p > '~')
            return sl_err_set(err, SL_SPEC,
                              "the token has a blank or another character that cannot be sent");
    struct sl_api *api = calloc(1, sizeof *api);
    if (!api)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    size_t len = strlen(server);
    while (len && server[len - 1] == '/')
        len--;
    api->server = strndup(server, len);
    api->token = token && *token ? strdup(token) : NULL;
    api->curl = sl_web_new(NULL);
    if (!api->server || !api->curl || (token && *token && !api->token)) {
        sl_api_free(api);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    *ret_api = api;
    return 0;
}

void sl_api_free(struct sl_api *api)
{
    if (!api)
        return;
    curl_easy_cleanup(api->curl);
    free(api->server);
    free(api->token);
    free(api);
}

const char *sl_api_server(const struct sl_api *api)
{
    return api->server;
}

const char *sl_api_token(const struct sl_api *api)
{
    return api->token;
}

static size_t take_reply(char *data, size_t size, size_t n, void *arg)
{
    return sl_buf_add(arg, data, size * n) ? 0 : size * n;
}

static struct curl_slist *make_headers(const struct sl_api *api, const char *key)
{
    char line[300];
    struct curl_slist *list = curl_slist_append(NULL, "Content-Type: application/json");
    /* Bodies are small: waiting for 100-continue would only cost a round trip. */
    struct curl_slist *longer = list ? curl_slist_append(list, "Expect:") : NULL;
    if (longer && key) {
        snprintf(line, sizeof line, "Idempotency-Key: %.256s", key);
        longer = curl_slist_append(list, line);
    }
    if (!longer) {
        curl_slist_free_all(list);
        return NULL;
    }
    return api->token ? sl_web_authorize(list, api->token) : list;
}

int sl_api_request(struct sl_api *api, const char *method, const char *path, const char *key,
                   const json_t *body, json_t **ret_reply, long *ret_status, struct sl_err *err)
{
    char url[PATH_MAX_BYTES], curl_msg[CURL_ERROR_SIZE] = "";
    if (snprintf(url, sizeof url, "%s%s", api->server, path) >= (int)sizeof url)
        return sl_err_set(err, SL_SPEC, "the path of a request is too long: %.100s...", path);
    char *text = body ? sl_json_dump(body) : NULL;
    struct curl_slist *headers = make_headers(api, key);
    struct sl_buf reply;
    if (!headers || (body && !text)) {
        free(text);
        curl_slist_free_all(headers);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    sl_buf_init(&reply, SL_API_REPLY_MAX);
    bool repeatable = key || strcmp(method, "GET") == 0 || strcmp(method, "PUT") == 0;
    long status = 0;
    CURLcode code;
    for (int attempt = 1;; attempt++) {
        CURL *c = api->curl;
        sl_buf_reset(&reply);
        status = 0;
        sl_web_set_url(c, url);
        curl_easy_setopt(c, CURLOPT_HTTPGET, 1L);
        if (strcmp(method, "GET") != 0) {
            curl_easy_setopt(c, CURLOPT_POST, 1L);
            curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE, text ? (long)strlen(text) : 0L);
            curl_easy_setopt(c, CURLOPT_POSTFIELDS, text ? text : "");
        }
        curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
        curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(c, CURLOPT_TIMEOUT, (long)SL_API_TIMEOUT_S);
        curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_reply);
        curl_easy_setopt(c, CURLOPT_WRITEDATA, &reply);
        curl_easy_setopt(c, CURLOPT_ERRORBUFFER, curl_msg);
        code = curl_easy_perform(c);
        if (code == CURLE_OK)
            curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
        bool again = code == CURLE_OK
                         ? repeatable && (status == 429 || (status >= 502 && status <= 504))
                         : code == CURLE_COULDNT_CONNECT || (repeatable && sl_web_passing(code));
        if (!again || attempt == SL_API_TRIES)
            break;
        usleep((useconds_t)sl_web_pause_us(attempt));
    }
    sl_web_reset(api->curl);
    curl_slist_free_all(headers);
    free(text);
    int rc = 0;
    json_t *json = NULL;
    if (code == CURLE_WRITE_ERROR)
        rc = sl_err_set(err, SL_DATA, "%s %s: the answer has more than %u bytes", method, url,
                        SL_API_REPLY_MAX);
    else if (code != CURLE_OK)
        rc = sl_err_set(err, sl_web_passing(code) ? SL_RETRY : SL_IO,
                        "no answer from %s (%s): is the server running, and the address right?",
                        url, curl_msg[0] ? curl_msg : curl_easy_strerror(code));
    else if (reply.len && sl_json_parse(reply.p, reply.len, "answer", &json, NULL))
        json = NULL;
    sl_buf_release(&reply);
    if (rc)
        return rc;
    *ret_reply = json;
    *ret_status = status;
    return 0;
}

int sl_api_check(const struct sl_api *api, long status, const json_t *reply, struct sl_err *err)
{
    if (status >= 200 && status < 300)
        return 0;
    const char *title = sl_json_str(reply, "title", ""),
               *detail = sl_json_str(reply, "detail", NULL);
    int code = SL_SPEC;
    if (status == 404)
        code = SL_NOTFOUND;
    else if (status == 401 || status == 403)
        code = SL_DENIED;
    else if (status == 409)
        code = !strcmp(title, "lease lost")  ? SL_LEASE
               : !strcmp(title, "cancelled") ? SL_CANCELLED
                                             : SL_CONFLICT;
    else if (status == 429 || status >= 500)
        code = SL_RETRY;
    struct sl_buf text;
    sl_buf_init(&text, SL_ERR_MSG_MAX);
    if (detail)
        sl_buf_adds(&text, detail);
    else
        sl_buf_addf(&text, "%s answered with status %ld%s", api->server, status,
                    reply ? "" : " and no explanation: is it a softlaunch server?");
    if (status == 401)
        sl_buf_addf(&text, " (%s)",
                    api->token ? "the token given is not the one of this server"
                               : "set SOFTLAUNCH_TOKEN or give --token-file");
    size_t i;
    json_t *e;
    json_array_foreach(sl_json_get(reply, "errors"), i, e)
        sl_buf_addf(&text, "\n  %s: %s", sl_json_str(e, "path", "?"),
                    sl_json_str(e, "detail", "?"));
    sl_err_set(err, code, "%s", text.p);
    sl_buf_release(&text);
    return code;
}

int sl_api_call(struct sl_api *api, const char *method, const char *path, const char *key,
                const json_t *body, json_t **ret_reply, struct sl_err *err)
{
    json_t *reply = NULL;
    long status = 0;
    int rc = sl_api_request(api, method, path, key, body, &reply, &status, err);
    if (rc)
        return rc;
    rc = sl_api_check(api, status, reply, err);
    if (rc == 0 && ret_reply && !reply)
        rc = sl_err_set(err, SL_DATA, "%s answered %s %s without JSON", api->server, method, path);
    if (rc == 0 && ret_reply)
        *ret_reply = json_incref(reply);
    json_decref(reply);
    return rc;
}

char *sl_api_escape(const char *part)
{
    static const char hex[] = "0123456789ABCDEF";
    char *text = malloc(3 * strlen(part) + 1), *to = text;
    for (const char *p = part; text && *p; p++) {
        unsigned char c = (unsigned char)*p;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
            strchr("-._~", c)) {
            *to++ = (char)c;
            continue;
        }
        *to++ = '%';
        *to++ = hex[c >> 4];
        *to++ = hex[c & 15];
    }
    if (text)
        *to = 0;
    return text;
}
