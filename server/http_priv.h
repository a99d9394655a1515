/* What the files of http.h share. Nobody else includes this. */
#ifndef SL_SERVER_HTTP_PRIV_H
#define SL_SERVER_HTTP_PRIV_H
#include "base/buf.h"
#include "base/digest.h"
#include "base/prometheus.h"
#include "server/http.h"
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#define SL_HTTP_SET_HEADERS_MAX 8
#define SL_HTTP_FAILURE_SLOTS 1024

struct sl_http_scope {
    const char *prefix;
    sl_http_project_of *project_of; /* NULL: the parameter {project} itself */
    void *arg;
};

/* A network of trusted proxies; IPv4 as mapped into IPv6. */
struct sl_http_net {
    unsigned char ip[16];
    int bits;
};

struct sl_http_failures {
    unsigned char ip[16];
    double count; /* as of at_us; it shrinks with time */
    int64_t at_us;
};

struct sl_http_peer {
    unsigned char ip[16];
    bool trusted;  /* our unix socket, or a listed address: its headers about others are believed */
    char text[48]; /* the client's address, for the audit log */
};

/* What decides on requests. Fixed after sl_http_start, but for the failures. */
struct sl_http_guard {
    char token_sha256[SL_SHA256_HEX + 1];
    struct sl_accounts *accounts; /* borrowed; NULL: only the token above */
    struct sl_sessions *sessions;
    struct sl_audit *audit; /* borrowed; may be NULL */
    char *sign_in_header;   /* NULL: nobody signs in so */
    struct sl_http_net trusted[SL_HTTP_TRUSTED_MAX];
    int n_trusted;
    bool tls;
    pthread_mutex_t failing; /* of failures */
    /* Of sign-ins and of bearer tokens apart: a script with an old token locks nobody out of the
     * pages. */
    struct sl_http_failures failures[2][SL_HTTP_FAILURE_SLOTS];
    struct sl_http_scope scopes[SL_HTTP_SCOPES_MAX];
    int n_scopes;
};

#define SL_HTTP_COUNT_BOUNDS 10

/* What http_count.c keeps of a route: answers by the status's first digit, and by how long they took. */
struct sl_http_count {
    atomic_uint_least64_t status[5], took[SL_HTTP_COUNT_BOUNDS + 1], took_us;
};

struct sl_http_req {
    struct sl_http *http;
    struct MHD_Connection *conn;
    const struct sl_route *route; /* NULL until one matched */
    struct sl_http_count *count;  /* of that route */
    int64_t began_us;             /* on the boot clock */
    void *arg;
    struct sl_identity who;
    struct sl_http_peer peer;
    char csrf[SL_SHA256_HEX + 1];           /* what X-CSRF-Token must say; "" when none is needed */
    json_t *notes;                          /* for the audit log */
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

/* Threads that run handlers, each a request at a time while its connection is suspended: http_pool.c. */
struct sl_http_pool {
    void (*run)(struct sl_http_req *req); /* resumes the connection */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct sl_http_req *head, *tail;
    bool ending;
    pthread_t threads[SL_HTTP_WAITERS > SL_HTTP_HANDLERS ? SL_HTTP_WAITERS : SL_HTTP_HANDLERS];
    int n_threads;
};
void sl_http_pool_init(struct sl_http_pool *p, void (*run)(struct sl_http_req *req));
void sl_http_pool_release(struct sl_http_pool *p); /* stopped, or never started */
int sl_http_pool_start(struct sl_http_pool *p, int n_threads, struct sl_err *err);
/* Suspends the connection and queues its request; false when the pool is ending. */
bool sl_http_pool_push(struct sl_http_pool *p, struct sl_http_req *req);
void sl_http_pool_stop(struct sl_http_pool *p); /* runs what is queued to its end */

/* Binds "host:port" or "[v6]:port"; port 0 takes a free one. */
int sl_http_listen(const char *address, int *ret_fd, int *ret_port, struct sl_err *err);
/* A socket for this user and group. Takes the place of one that nobody answers on. */
int sl_http_listen_unix(const char *path, int *ret_fd, struct sl_err *err);
/* The text of a PEM file, for the caller to free. */
int sl_http_read_pem(const char *path, char **ret_text, struct sl_err *err);
void sl_http_count(struct sl_http_count *count, unsigned status, int64_t began_us);
/* One route's samples of softlaunch_http_requests_total, and of softlaunch_http_request_seconds. */
void sl_http_count_requests(const struct sl_route *route, const struct sl_http_count *count,
                            struct sl_buf *out);
void sl_http_count_took(const struct sl_route *route, const struct sl_http_count *count,
                        struct sl_buf *out);
struct sl_http_guard *sl_http_guard(struct sl_http *http);

int sl_http_trust(struct sl_http_guard *guard, const char *network, struct sl_err *err);
void sl_http_find_peer(struct sl_http_req *req);
enum sl_http_attempt { SL_ATTEMPT_LOGIN, SL_ATTEMPT_BEARER };
/* False: this place has failed too often lately. */
bool sl_http_may_try(struct sl_http_req *req, enum sl_http_attempt what);
/* Counts a failure; false: there were too many already. */
bool sl_http_failed(struct sl_http_req *req, enum sl_http_attempt what);
/* Who comes with the token of this digest; as sl_accounts_by_token, and the server's own. */
bool sl_http_by_token(struct sl_http *http, const char *sha256, struct sl_identity *ret_who);
int sl_http_csrf_of(const char *cookie, char ret_csrf[SL_SHA256_HEX + 1]);
/* Writes what a finished or refused request asked for into the audit log. */
void sl_http_log_done(struct sl_http_req *req, bool synced);
/* Takes response (NULL: out of memory, the caller of the handler answers 500). The first answer
 * counts. */
void sl_http_answer(struct sl_http_req *req, unsigned status, const char *content_type,
                    struct MHD_Response *response);
void sl_http_safe_headers(const struct sl_http_req *req, struct MHD_Response *response);

/* Headers are in and the route is found: fills req->who, and answers 401 or 403 when it must not go
 * on. On a socket thread: looks at memory only. */
void sl_http_authorize(struct sl_http_req *req);
/* On a handler's thread: false, and 403 or 404 answered, when what the path names lies outside of
 * the caller's projects. */
bool sl_http_in_scope(struct sl_http_req *req);
const struct sl_http_scope *sl_http_scoped_by(const struct sl_http *http,
                                              const struct sl_route *route);

/* Of an answer to GET, text of len bytes: sets its ETag. True: the client has it, so answer 304. */
bool sl_http_has_it(struct sl_http_req *req, const char *text, size_t len);
/* Packs it in place and says so, when the client takes that and it is long enough. *text is of the heap. */
void sl_http_gzip(struct sl_http_req *req, char **text, size_t *len);

#endif
