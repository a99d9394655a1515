/* What a handler reads of its request, and its answers. */
#include "base/json.h"
#include "base/log.h"
#include "server/http_priv.h"
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define JSON_TYPE "application/json"
#define READ_BLOCK_BYTES (256u << 10) /* what one call of a reader may give */
#define PROBLEM_TYPE "application/problem+json"

const char *sl_http_method(const struct sl_http_req *req)
{
    return req->method;
}

const char *sl_http_param(const struct sl_http_req *req, const char *name)
{
    size_t len = strlen(name);
    int i = 0;
    for (const char *p = strchr(req->route->pattern, '{'); p; p = strchr(p + 1, '{'), i++)
        if (strncmp(p + 1, name, len) == 0 && p[1 + len] == '}')
            return req->params[i];
    return NULL;
}

const char *sl_http_query(const struct sl_http_req *req, const char *name)
{
    return MHD_lookup_connection_value(req->conn, MHD_GET_ARGUMENT_KIND, name);
}

int64_t sl_http_query_int(const struct sl_http_req *req, const char *name, int64_t otherwise,
                          int64_t least, int64_t most)
{
    const char *text = sl_http_query(req, name);
    char *end;
    if (!text || !*text)
        return otherwise;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*end || errno)
        return otherwise;
    return value < least ? least : value > most ? most : value;
}

const char *sl_http_header(const struct sl_http_req *req, const char *name)
{
    return MHD_lookup_connection_value(req->conn, MHD_HEADER_KIND, name);
}

json_t *sl_http_json(const struct sl_http_req *req)
{
    return req->json;
}

void *sl_http_state(const struct sl_http_req *req)
{
    return req->state;
}

bool sl_http_stopping(const struct sl_http_req *req)
{
    return sl_http_is_stopping(req->http);
}

/* ---- answers --------------------------------------------------------------------------------- */

void sl_http_set_header(struct sl_http_req *req, const char *name, const char *value)
{
    if (req->n_headers == SL_HTTP_SET_HEADERS_MAX)
        return;
    char *n = strdup(name), *v = strdup(value);
    if (!n || !v) {
        free(n);
        free(v);
        return;
    }
    req->headers[req->n_headers].name = n;
    req->headers[req->n_headers++].value = v;
}

void sl_http_answer(struct sl_http_req *req, unsigned status, const char *content_type,
                   struct MHD_Response *response)
{
    if (!response)
        return;
    if (req->response) {
        MHD_destroy_response(response);
        return;
    }
    if (content_type)
        MHD_add_response_header(response, "Content-Type", content_type);
    sl_http_safe_headers(req, response);
    for (int i = 0; i < req->n_headers; i++)
        MHD_add_response_header(response, req->headers[i].name, req->headers[i].value);
    req->response = response;
    req->status = status;
}

void sl_http_reply_data(struct sl_http_req *req, unsigned status, const char *content_type,
                        const void *data, size_t len)
{
    /* MHD's type lacks const; with MUST_COPY it only reads. */
    sl_http_answer(req, status, content_type,
           MHD_create_response_from_buffer(len, (void *)(uintptr_t)data, MHD_RESPMEM_MUST_COPY));
}

static void reply_json(struct sl_http_req *req, unsigned status, const char *type,
                       json_t *body_stolen)
{
    char *text = body_stolen ? sl_json_dump(body_stolen) : NULL;
    json_decref(body_stolen);
    if (!text || req->response) { /* the first answer counts */
        free(text);
        return;
    }
    size_t len = strlen(text);
    /* What was asked for may be kept, if the server is asked each time whether it still holds; an
     * answer to a change may say a secret, and is told once. */
    bool keeps = status == 200 && (!strcmp(req->method, "GET") || !strcmp(req->method, "HEAD"));
    sl_http_set_header(req, "Cache-Control", keeps ? "private, no-cache" : "no-store");
    if (keeps && sl_http_has_it(req, text, len)) {
        free(text);
        sl_http_reply_empty(req, 304);
        return;
    }
    sl_http_set_header(req, "Vary", "Accept-Encoding");
    sl_http_gzip(req, &text, &len);
    struct MHD_Response *r = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    if (!r)
        free(text);
    sl_http_answer(req, status, type, r);
}

void sl_http_reply_json(struct sl_http_req *req, unsigned status, json_t *body_stolen)
{
    reply_json(req, status, JSON_TYPE, body_stolen);
}

void sl_http_reply_empty(struct sl_http_req *req, unsigned status)
{
    sl_http_answer(req, status, NULL, MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT));
}

void sl_http_reply_faults(struct sl_http_req *req, const char *title, const json_t *faults, const char *fmt, ...)
{
    json_t *errors = json_array(), *e;
    char detail[SL_ERR_MSG_MAX];
    va_list ap;
    size_t i;

    va_start(ap, fmt);
    vsnprintf(detail, sizeof detail, fmt, ap);
    va_end(ap);
    json_array_foreach((json_t *)(uintptr_t)faults, i, e)
        json_array_append_new(errors,
                              json_pack("{s:s, s:s, s:s, s:s}", "path", sl_json_str(e, "path", ""), "detail",
                                        sl_json_str(e, "message", ""), "expected", sl_json_str(e, "expected", ""),
                                        "found", sl_json_str(e, "found", "")));
    sl_http_reply_problem(req, 422, title, errors, "%s", detail);
}

void sl_http_complain(json_t *errors, const char *path, const char *detail)
{
    json_array_append_new(errors, json_pack("{s:s, s:s}", "path", path, "detail", detail));
}

void sl_http_reply_problem(struct sl_http_req *req, unsigned status, const char *title,
                           json_t *errors_stolen, const char *fmt, ...)
{
    char detail[SL_ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(detail, sizeof detail, fmt, ap);
    va_end(ap);
    if (status >= 500)
        sl_log(SL_WARN, NULL, "%s: %u %s: %s", req->method, status, title, detail);
    if (json_array_size(errors_stolen) == 0) {
        json_decref(errors_stolen);
        errors_stolen = NULL;
    }
    /* What a client sent may be quoted in detail and cut inside a character. */
    json_t *text = json_string(detail);
    reply_json(req, status, PROBLEM_TYPE,
               json_pack("{s:s, s:i, s:o, s:o*}", "title", title, "status", (int)status, "detail",
                         text ? text : json_string("(the detail is not valid UTF-8)"), "errors",
                         errors_stolen));
}

void sl_http_reply_err(struct sl_http_req *req, const struct sl_err *err, json_t *errors_stolen)
{
    unsigned status = 500;
    const char *title = "internal error";
    switch (err->code) {
    case SL_SPEC:
        status = 422, title = "not valid";
        break;
    case SL_DATA:
        status = 422, title = "wrong data";
        break;
    case SL_NOTFOUND:
        status = 404, title = "not found";
        break;
    case SL_CONFLICT:
        status = 409, title = "conflict";
        break;
    case SL_LEASE:
        status = 409, title = "lease lost";
        break;
    case SL_CANCELLED:
        status = 409, title = "cancelled";
        break;
    case SL_DENIED:
        status = 403, title = "not allowed";
        break;
    case SL_RETRY:
        status = 503, title = "try again";
        break;
    case SL_NOMEM:
        title = "out of memory";
        break;
    case SL_IO:
        if (strstr(err->msg, strerror(ENOSPC)) || strstr(err->msg, strerror(EDQUOT)))
            status = 507, title = "the server's disk is full";
        else
            title = "the server's disk failed";
        break;
    default:
        break;
    }
    sl_http_reply_problem(req, status, title, errors_stolen, "%s", err->msg);
}

/* One range of bytes: 0 whole file, 1 the range given, -1 outside of the file. */
static int parse_range(const char *text, int64_t bytes, int64_t *ret_first, int64_t *ret_count)
{
    char *end;
    if (strncmp(text, "bytes=", 6) != 0 || strchr(text, ','))
        return 0;
    text += 6;
    errno = 0;
    if (*text == '-' && isdigit((unsigned char)text[1])) {
        long long last_n = strtoll(text + 1, &end, 10);
        if (*end || errno)
            return 0;
        if (last_n == 0 || bytes == 0)
            return -1;
        *ret_count = last_n < bytes ? last_n : bytes;
        *ret_first = bytes - *ret_count;
        return 1;
    }
    if (!isdigit((unsigned char)*text))
        return 0;
    long long first = strtoll(text, &end, 10), last = bytes - 1;
    if (*end != '-' || errno)
        return 0;
    text = end + 1;
    if (*text) {
        last = isdigit((unsigned char)*text) ? strtoll(text, &end, 10) : -1;
        if (*end || errno || last < first)
            return 0;
        last = last < bytes ? last : bytes - 1;
    }
    if (first >= bytes)
        return -1;
    *ret_first = first;
    *ret_count = last - first + 1;
    return 1;
}

void sl_http_reply_file(struct sl_http_req *req, int fd_taken, int64_t bytes, const char *etag,
                        const char *content_type)
{
    char quoted[SL_SHA256_HEX + 16], text[96];
    snprintf(quoted, sizeof quoted, "\"%.*s\"", SL_SHA256_HEX, etag);
    sl_http_set_header(req, "ETag", quoted);
    sl_http_set_header(req, "Accept-Ranges", "bytes");
    const char *known = sl_http_header(req, "If-None-Match");
    if (known && (strstr(known, quoted) || strcmp(known, "*") == 0)) {
        close(fd_taken);
        sl_http_reply_empty(req, 304);
        return;
    }
    int64_t first = 0, count = bytes;
    const char *range = sl_http_header(req, "Range"), *if_range = sl_http_header(req, "If-Range");
    int ranged = 0;
    if (range && (!if_range || strcmp(if_range, quoted) == 0))
        ranged = parse_range(range, bytes, &first, &count);
    if (ranged < 0) {
        close(fd_taken);
        snprintf(text, sizeof text, "bytes */%lld", (long long)bytes);
        sl_http_set_header(req, "Content-Range", text);
        sl_http_reply_problem(req, 416, "range not satisfiable", NULL, "the file has %lld bytes",
                              (long long)bytes);
        return;
    }
    if (ranged) {
        snprintf(text, sizeof text, "bytes %lld-%lld/%lld", (long long)first,
                 (long long)(first + count - 1), (long long)bytes);
        sl_http_set_header(req, "Content-Range", text);
    }
    struct MHD_Response *r = NULL;
    if (count > 0)
        r = MHD_create_response_from_fd_at_offset64((uint64_t)count, fd_taken, (uint64_t)first);
    if (!r)
        close(fd_taken);
    if (count == 0)
        r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    sl_http_answer(req, ranged ? 206 : 200, content_type, r);
}

/* ---- bytes from a reader --------------------------------------------------------------------- */

struct reader {
    sl_http_read *read;
    void (*release)(void *arg);
    void *arg;
};

static ssize_t read_some(void *arg, uint64_t pos, char *to, size_t most)
{
    const struct reader *r = arg;
    (void)pos;
    int64_t n = r->read(r->arg, to, most);
    return n > 0 ? (ssize_t)n : MHD_CONTENT_READER_END_WITH_ERROR;
}

static void reader_free(void *arg)
{
    struct reader *r = arg;
    r->release(r->arg);
    free(r);
}

void sl_http_reply_read(struct sl_http_req *req, const char *content_type, int64_t bytes,
                        sl_http_read *read, void (*release)(void *arg), void *arg)
{
    struct reader *r = malloc(sizeof *r);
    struct MHD_Response *answer = NULL;
    if (r) {
        *r = (struct reader){read, release, arg};
        answer = MHD_create_response_from_callback((uint64_t)bytes, READ_BLOCK_BYTES, read_some, r,
                                                   reader_free);
    }
    if (!answer) {
        free(r);
        release(arg);
    }
    sl_http_answer(req, 200, content_type, answer);
}
