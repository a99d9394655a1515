/* The server's thread that looks after the store: collections and verifications, asked for or by the
 * clock, and what deleted versions give back to their projects' storage.
 *
 *   POST /api/v1/store/collections {"grace_s": n}     202 {"task": id}
 *   POST /api/v1/store/verifications {"hash": bool}   202 {"task": id}
 *   GET  /api/v1/store/tasks/{task}                   {"task", "kind", "state": "waiting" | "running" | "done" |
 *        "failed", "report" as sl_store_collect and sl_store_verify give it, "error"}; answers when it has
 *        ended, or within SL_HTTP_WAIT_MAX_MS */
#ifndef SL_SERVER_KEEPER_H
#define SL_SERVER_KEEPER_H
#include "server/runs.h"

#define SL_KEEPER_GRACE_S 21600         /* 6 h; an upload may take so long from its first file to its version */
#define SL_KEEPER_EVERY_S 3600          /* between collections */
#define SL_KEEPER_PIN_MAX_S (7 * 86400) /* a publishing that was cut short and that nobody took up */
#define SL_KEEPER_TASKS_MAX 32          /* remembered */

/* A server part (serve.h), behind the runs' part. */
int sl_keeper_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_keeper_stop(void *state);

/* As sl_collect's live and as a guard of the store: see in_use.c. arg: struct sl_runs. */
int sl_runs_live_manifests(void *arg, json_t *manifests, struct sl_err *err);
int sl_runs_guard_version(void *arg, const char *name, int number, struct sl_err *err);

#endif
