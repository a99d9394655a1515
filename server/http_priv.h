/* What http.c and http_reply.c share. Nobody else includes this. */
#ifndef SL_SERVER_HTTP_PRIV_H
#define SL_SERVER_HTTP_PRIV_H
#include "base/buf.h"
#include "base/digest.h"
#include "server/http.h"
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#define SL_HTTP_SET_HEADERS_MAX 8

struct sl_http_scope {
    const char *prefix;
    sl_http_project_of *project_of; /* NULL: the parameter {project} itself */
    void *arg;
};

struct sl_http_guard {
    char token_sha256[SL_SHA256_HEX + 1];
    struct sl_http_scope scopes[SL_HTTP_SCOPES_MAX];
    int n_scopes;
};

struct sl_http_req {
    struct sl_http *http;
    struct MHD_Connection *conn;
    const struct sl_route *route; /* NULL until one matched */
    void *arg;
    struct sl_identity who;
    char *path;                             /* cut into parts; params point into it */
    const char *params[SL_HTTP_PARAMS_MAX]; /* in the pattern's order */
    char *method;
    struct sl_buf body;
    json_t *json;
    void *state; /* of a streamed body; begin has run when streaming */
    bool streaming;
    bool dispatched;     /* handed to a pool */
    struct sl_err error; /* of the body; the rest of it is read and dropped */
    struct MHD_Response *response;
    unsigned status;
    struct {
        char *name, *value;
    } headers[SL_HTTP_SET_HEADERS_MAX];
    int n_headers;
    struct sl_http_req *next; /* in a pool's queue */
};

/* Binds "host:port" or "[v6]:port"; port 0 takes a free one. */
int sl_http_listen(const char *address, int *ret_fd, int *ret_port, struct sl_err *err);
bool sl_http_is_stopping(const struct sl_http *http);
struct sl_http_guard *sl_http_guard(struct sl_http *http);

/* Headers are in and the route is found: fills req->who, and answers 401 or 403 when it must not go
 * on. On a socket thread: looks at memory only. */
void sl_http_authorize(struct sl_http_req *req);
/* On a handler's thread: false, and 403 or 404 answered, when what the path names lies outside of
 * the caller's projects. */
bool sl_http_in_scope(struct sl_http_req *req);
const struct sl_http_scope *sl_http_scoped_by(const struct sl_http *http,
                                              const struct sl_route *route);

#endif
