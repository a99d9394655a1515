/* `softlaunch serve`: the store, the REST API and, with Redis, the runs' part, in one process.
 *
 * A part is a piece of the server with a start and a stop; serve.c holds the list. Parts start in
 * its order, before the port answers, and stop in the opposite one, after the last handler has
 * returned. A part that needs Redis is left out when no --redis is given. */
#ifndef SL_SERVER_SERVE_H
#define SL_SERVER_SERVE_H
#include "artifacts/store.h"
#include "base/err.h"
#include "server/http.h"
#include <stdbool.h>

#define SL_WEBHOOK_ALLOW_MAX 16
#define SL_COPY_FOLDERS_MAX 16

struct sl_serve_config {
    const char *listen; /* "127.0.0.1:8080" */
    const char *unix_path, *sign_in_header, *tls_cert, *tls_key; /* http.h; may be NULL */
    const char *const *trusted;                                  /* the same */
    const char *data_dir;
    const char *blobs;       /* the folder of a bucket that has the blobs (sl_store_use_bucket); NULL: data_dir */
    int64_t blobs_local_max; /* bytes of copies in data_dir then */
    const char *redis_url; /* NULL: the store alone */
    const char *token_file;
    const char *port_file; /* gets the port as text, durably, once it answers; may be NULL */
    int64_t keep_finished_s; /* how long a finished run stays in Redis before it is archived */
    int64_t keep_runs_days;  /* how long it stays in the archive; 0: for ever */
    int64_t collect_every_s; /* between collections of the store; 0: none by the clock */
    int64_t collect_grace_s; /* see sl_collect */
    const char *webhook_allow[SL_WEBHOOK_ALLOW_MAX]; /* private networks that webhooks and mirrors may go to */
    int n_webhook_allow;
    const char *mlflow_uri; /* where runs are mirrored to that name no other place (server/mlflow.h); NULL: nowhere */
    const char *copy_to[SL_COPY_FOLDERS_MAX]; /* folders of buckets that outputs may be copied to (server/copies.h) */
    int n_copy_to;
};

struct sl_webhooks;
struct sl_mlflow;

struct sl_server {
    const struct sl_serve_config *config;
    struct sl_store *store;
    struct sl_http *http;
    struct sl_runs *runs; /* once its part has started; NULL: without Redis */
    struct sl_accounts *accounts;
    struct sl_sessions *sessions;
    struct sl_audit *audit;
    struct sl_webhooks *webhooks; /* NULL: none (server/webhooks.h) */
    struct sl_mlflow *mlflow;     /* NULL: without Redis */
};

struct sl_server_part {
    const char *name;
    bool needs_redis;
    /* Adds its routes with sl_http_add(server->http, ...), starts its threads. server outlives the
     * part. */
    int (*start)(struct sl_server *server, void **ret_state, struct sl_err *err);
    void (*stop)(void *state); /* may be NULL */
};

/* Serves until SIGTERM or SIGINT; prints `serving http://HOST:PORT` once it answers. Logs. */
int sl_serve(const struct sl_serve_config *config, struct sl_err *err);

/* The store's part: server/routes_store.c. */
int sl_store_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
/* The registry's and lineage: server/routes_registry.c. */
int sl_registry_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
/* The web pages: server/pages.c. */
int sl_pages_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_pages_part_stop(void *state);

/* Signing in, users, tokens, the audit log: server/routes_auth.c. */
int sl_auth_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
/* GET /metrics: server/metrics.c. */
int sl_metrics_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_metrics_part_stop(void *state);

#endif
