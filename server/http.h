/* The HTTP server under the REST API: routes, bearer token, problem+json, streamed bodies.
 *
 * libmicrohttpd's epoll threads read and write sockets. A handler runs on a bounded pool of its
 * own, once the request's body is in, so it may block (disk, Redis) without holding up other
 * connections. Routes marked `waits` (long polls) have a second pool, so that many followers do not
 * starve short requests; such a handler waits at most SL_HTTP_WAIT_MAX_MS and looks at
 * sl_http_stopping().
 *
 * A handler answers exactly once, with one sl_http_reply_* call; one that returns without answering
 * gives 500. Every request needs `Authorization: Bearer TOKEN` unless its route is `open`, the
 * route's role, and a token of some projects stays inside them (identity.h, enum sl_scope). Errors
 * are application/problem+json {"title", "status", "detail", "errors": [{"path", "detail"}, ...]}.
 */
#ifndef SL_SERVER_HTTP_H
#define SL_SERVER_HTTP_H
#include "base/err.h"
#include "server/identity.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_HTTP_JSON_MAX (1u << 20)     /* bytes of a JSON body */
#define SL_HTTP_HEADERS_MAX (32u << 10) /* bytes of a request's line and headers */
#define SL_HTTP_CONNECTIONS_MAX 12288 /* less where the system allows fewer descriptors */
#define SL_HTTP_OTHER_FDS 256         /* descriptors left for files, Redis and the rest */
#define SL_HTTP_GZIP_MIN 1024 /* bytes of a JSON answer that are worth packing */
#define SL_HTTP_IDLE_S 60 /* a connection that neither sends nor reads for so long is cut */
#define SL_HTTP_LOOP_THREADS 2
#define SL_HTTP_HANDLERS 8 /* handlers at once */
#define SL_HTTP_WAITERS 32 /* `waits` handlers at once */
#define SL_HTTP_WAIT_MAX_MS 1000
#define SL_HTTP_TOKEN_MIN 16 /* characters of a token, and its maximum */
#define SL_HTTP_TOKEN_MAX 512
#define SL_HTTP_ROUTES_MAX 128
#define SL_HTTP_PARAMS_MAX 4
#define SL_HTTP_SCOPES_MAX 16
#define SL_HTTP_TRUSTED_MAX 16        /* networks of proxies */
#define SL_HTTP_FAILURES_MAX 10       /* failed sign-ins of one address in a row, */
#define SL_HTTP_FAILURE_FORGET_S 6    /* and one more each so many seconds */
#define SL_HTTP_SESSION_S (12 * 3600) /* a browser's session */
#define SL_HTTP_COOKIE "sl_session"
#define SL_HTTP_CSRF_HEADER "X-CSRF-Token"
#define SL_HTTP_PROJECT_MAX 128 /* characters of a project's name */

struct sl_http;
struct sl_buf;
struct sl_http_req; /* one request; valid until its handler returns */

enum sl_http_body {
    SL_BODY_NONE,  /* a request with a body is refused */
    SL_BODY_JSON,  /* parsed before the handler runs; it must be there and be JSON */
    SL_BODY_STREAM /* goes to begin, data, and then the handler (or abort), as it arrives */
};

typedef void sl_http_handler(struct sl_http_req *req, void *arg);
/* Streamed bodies. These run on a socket thread: short work only. begin may refuse before the body
 * is sent, by an error or by an answer of its own; *ret_state is then not used. After data fails,
 * the error is the answer. */
typedef int sl_http_begin(struct sl_http_req *req, void *arg, void **ret_state, struct sl_err *err);
typedef int sl_http_data(void *state, const void *data, size_t len, struct sl_err *err);
typedef void
sl_http_abort(void *state); /* the client left, or data failed: the handler will not run */

/* What keeps a token of some projects inside them. */
enum sl_scope {
    SL_SCOPE_PARAM,   /* {project} in the path, or what sl_http_set_scope knows; without either the
                       * route is refused to such a token */
    SL_SCOPE_HANDLER, /* the handler keeps to sl_http_identity()->projects and sl_http_sees */
    SL_SCOPE_SHARED   /* nothing in it belongs to a project */
};

struct sl_route {
    const char *method; /* "GET" (answers HEAD too), "PUT", "POST", "DELETE" */
    const char
        *pattern; /* "/api/v1/runs/{run}/events"; a parameter is one part of the path, decoded */
    enum sl_http_body body;
    bool open;         /* needs no token */
    bool waits;        /* a long poll */
    enum sl_role role; /* the least that may call it; 0: viewer for GET, member for the rest */
    enum sl_scope scope;
    sl_http_handler *handle;
    sl_http_begin *begin; /* with SL_BODY_STREAM only */
    sl_http_data *data;
    sl_http_abort *abort;
};

struct sl_accounts;
struct sl_sessions;
struct sl_audit;

struct sl_http_config {
    const char *listen;    /* "127.0.0.1:8080", "[::1]:0"; port 0: a free one */
    const char *unix_path; /* a socket for a proxy on this machine, also; NULL: none */
    const char
        *token; /* of the administrator "root"; required, SL_HTTP_TOKEN_MIN characters or more */
    struct sl_accounts *accounts; /* borrowed, with sessions; NULL: that token alone */
    struct sl_sessions *sessions;
    struct sl_audit *audit;     /* borrowed; NULL: none */
    const char *sign_in_header; /* names the user whom a trusted proxy has signed in; NULL: none */
    const char *const *trusted; /* addresses and networks of proxies, NULL at the end; NULL: none */
    const char *tls_cert, *tls_key; /* PEM files, both or neither: https on `listen` */
};

/* Makes the server; it does not answer before sl_http_start. config is copied. */
int sl_http_new(const struct sl_http_config *config, struct sl_http **ret_http, struct sl_err *err);
/* Adds routes, before start. The table is borrowed until free; arg goes to its handlers. */
int sl_http_add(struct sl_http *http, const struct sl_route *routes, size_t n, void *arg,
                struct sl_err *err);
/* What answers GET of an address that no route has and that is not under /api/, where the client
 * takes text/html, as browsers do. One; borrowed as the table above. Without it, a problem (404). */
void sl_http_set_missing(struct sl_http *http, const struct sl_route *route, void *arg);
/* Tells how to find the project of what routes under prefix name with its last parameter, such as
 * "/api/v1/runs/{run}". project_of runs before the handler, on its thread, for tokens of some
 * projects only: 0 and a project ("": shared by all, then only reading is allowed), or SL_NOTFOUND.
 * Before start; prefix is borrowed. */
typedef int sl_http_project_of(void *arg, const char *name,
                               char ret_project[SL_HTTP_PROJECT_MAX + 1], struct sl_err *err);
int sl_http_set_scope(struct sl_http *http, const char *prefix, sl_http_project_of *project_of,
                      void *arg, struct sl_err *err);
/* Judges every request whose route and caller are fine: first with body NULL, on a socket thread and before the
 * body is there (look at memory only), then, with SL_BODY_JSON, with it. Answers when something is wrong. Before
 * start. */
typedef void sl_http_check(struct sl_http_req *req, void *arg, const char *method, const char *pattern,
                           const json_t *body);
void sl_http_set_check(struct sl_http *http, sl_http_check *check, void *arg);
int sl_http_start(struct sl_http *http, struct sl_err *err);
/* Families about requests, in Prometheus' text format (base/prometheus.h). */
void sl_http_metrics(const struct sl_http *http, struct sl_buf *out);
int sl_http_port(const struct sl_http *http); /* after start */
/* Takes no new connections, lets running handlers finish, ends the threads. Blocks. NULL-safe. */
void sl_http_stop(struct sl_http *http);
bool sl_http_is_stopping(const struct sl_http *http); /* streams must end: stop waits for them */
void sl_http_free(struct sl_http *http); /* stops too; NULL-safe */
/* Binds "host:port" or "[v6]:port"; port 0 takes a free one. */
int sl_http_listen(const char *address, int *ret_fd, int *ret_port, struct sl_err *err);
/* Reads a token file (one line, blanks around it dropped) into a heap string. SL_SPEC when too
 * short. */
int sl_http_read_token(const char *path, char **ret_token, struct sl_err *err);

/* ---- what a handler reads; borrowed until it returns ----------------------------------------- */

const char *sl_http_method(const struct sl_http_req *req); /* "HEAD" for HEAD */
const struct sl_identity *sl_http_identity(const struct sl_http_req *req);
const char *sl_http_user(const struct sl_http_req *req); /* for created_by; "" for nobody */
bool sl_http_sees(const struct sl_http_req *req, const char *project);
/* Adds a fact to the request's line in the audit log. Never a secret. */
void sl_http_note(struct sl_http_req *req, const char *key, const char *value);
const char *sl_http_param(const struct sl_http_req *req,
                          const char *name); /* never NULL for one of the pattern */
const char *sl_http_query(const struct sl_http_req *req, const char *name); /* NULL: not given */
/* Clamped to least..most; `otherwise` when not given or not a number. */
int64_t sl_http_query_int(const struct sl_http_req *req, const char *name, int64_t otherwise,
                          int64_t least, int64_t most);
const char *sl_http_header(const struct sl_http_req *req, const char *name); /* NULL: not given */
json_t *sl_http_json(const struct sl_http_req *req); /* the body (SL_BODY_JSON) */
void *sl_http_state(const struct sl_http_req *req);  /* begin's state; the handler owns it now */
bool sl_http_stopping(const struct sl_http_req *req);

/* ---- answers --------------------------------------------------------------------------------- */

/* Before the reply. Returns without effect when out of memory. */
void sl_http_set_header(struct sl_http_req *req, const char *name, const char *value);
/* A 200 to GET has an ETag and answers If-None-Match; longer ones go by gzip to clients that take it. */
void sl_http_reply_json(struct sl_http_req *req, unsigned status, json_t *body_stolen);
void sl_http_reply_empty(struct sl_http_req *req, unsigned status);
/* data is copied. */
void sl_http_reply_data(struct sl_http_req *req, unsigned status, const char *content_type,
                        const void *data, size_t len);
/* Takes fd. Sends the file with its ETag (sha256, without quotes), answering Range and
 * If-None-Match. */
void sl_http_reply_file(struct sl_http_req *req, int fd_taken, int64_t bytes, const char *etag,
                        const char *content_type);
/* Answers 200 with `bytes` bytes that read gives, on a socket thread (short work only): up to `most` at a time, -1: the
 * connection is cut. release(arg) when the answer is over, in every case. */
typedef int64_t sl_http_read(void *arg, char *to, size_t most);
void sl_http_reply_read(struct sl_http_req *req, const char *content_type, int64_t bytes,
                        sl_http_read *read, void (*release)(void *arg), void *arg);
/* errors_stolen: [{"path", "detail"}, ...] or NULL. */
void sl_http_reply_problem(struct sl_http_req *req, unsigned status, const char *title,
                           json_t *errors_stolen, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Appends one such error. */
void sl_http_complain(json_t *errors, const char *path, const char *detail);
/* 422 with what a schema's check found (base/schema.h). */
void sl_http_reply_faults(struct sl_http_req *req, const char *title, const json_t *faults, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The problem for an error: SPEC and DATA 422, NOTFOUND 404, CONFLICT 409, LEASE 409 with the title
 * "lease lost", CANCELLED 409 with the title "cancelled", DENIED 403, RETRY 503, IO (a full disk)
 * 507, else 500. */
void sl_http_reply_err(struct sl_http_req *req, const struct sl_err *err, json_t *errors_stolen);

/* ---- answers without an end ------------------------------------------------------------------- */

struct sl_http_stream;
/* Answers 200 with what sl_http_stream_send adds later, from any thread; the connection costs no
 * thread. At most most_bytes wait for a slow reader. NULL: out of memory. The caller ends it. */
struct sl_http_stream *sl_http_reply_stream(struct sl_http_req *req, const char *content_type,
                                            size_t most_bytes);
/* Never blocks. SL_CANCELLED: the reader has left. SL_RETRY: it is too far behind, and is cut off
 * after what waits. */
int sl_http_stream_send(struct sl_http_stream *s, const void *data, size_t len);
size_t sl_http_stream_waiting(struct sl_http_stream *s); /* bytes that were not taken yet */
bool sl_http_stream_gone(struct sl_http_stream *s);      /* the reader has left */
void sl_http_stream_end(struct sl_http_stream *s); /* and frees it, once what waits is sent; NULL-safe */

#endif
