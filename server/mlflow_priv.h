/* What the files of the mirror to MLflow share. Nobody else includes this. */
#ifndef SL_SERVER_MLFLOW_PRIV_H
#define SL_SERVER_MLFLOW_PRIV_H
#include "queue/queue.h"
#include "server/mlflow.h"
#include "server/ticker.h"
#include <curl/curl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

struct sl_mlflow {
    struct sl_server *server;
    sqlite3 *db;
    pthread_mutex_t mutex; /* every use of db */
    /* of the thread alone */
    struct sl_queue *queue;
    struct sl_ticker *ticker;
    CURL *curl;
    json_t *running; /* runs that were running at the last look; true: mirrored */
    atomic_bool ending;
    int trouble; /* the last pass's error, told once */
};

/* A run's row, as {"run", "uri", "experiment", "theirs", "artifacts", "last", "tries", "ended_ms"}: theirs is MLflow's id of
 * it, artifacts the root of its artifacts, last the event up to which all is said, ended_ms 0 of one that has not. The
 * row goes when all is said, or given up. */

/* ---- mlflow_call.c: one call at a time ---- */
/* own: to --mlflow's, with the server's credentials and unguarded. body NULL: none. SL_NOTFOUND and SL_CONFLICT as MLflow
 * says, SL_CANCELLED: the server stops; else SL_RETRY. ret_reply may be NULL. */
int sl_mlflow_call(struct sl_mlflow *m, const char *uri, const char *method, const char *path, const json_t *body,
                   json_t **ret_reply, struct sl_err *err);
/* PUTs bytes of fd, which stays the caller's. */
int sl_mlflow_put(struct sl_mlflow *m, const char *uri, const char *path, int fd, int64_t bytes, struct sl_err *err);
void sl_mlflow_escape(struct sl_mlflow *m, const char *text, struct sl_buf *out); /* for a path or query */

/* ---- mlflow_run.c ---- */
/* All that can be said of a run now; row is changed, and saved as it goes. *ret_done: an ended run's end is said. */
int sl_mlflow_mirror(struct sl_mlflow *m, json_t *row, bool *ret_done, struct sl_err *err);

/* ---- mlflow.c ---- */
int sl_mlflow_save(struct sl_mlflow *m, const json_t *row, struct sl_err *err); /* theirs, artifacts, last */
/* Of a run that has ended. */
int sl_mlflow_record(struct sl_mlflow *m, const json_t *row, json_t **ret_record, struct sl_err *err);
bool sl_mlflow_is_own(const struct sl_mlflow *m, const char *uri);

#endif
