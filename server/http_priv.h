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

struct sl_http_req {
    struct sl_http *http;
    struct MHD_Connection *conn;
    const struct sl_route *route; /* NULL until one matched */
    void *arg;
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

#endif
