/* What the files of the webhooks' part share. Nobody else includes this. */
#ifndef SL_SERVER_WEBHOOKS_PRIV_H
#define SL_SERVER_WEBHOOKS_PRIV_H
#include "queue/queue.h"
#include "server/ticker.h"
#include "server/webhooks.h"
#include "server/webhooks_guard.h"
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

struct sl_webhooks {
    struct sl_server *server;
    struct sl_queue *queue; /* NULL: none */
    sqlite3 *db;
    pthread_mutex_t db_mutex;    /* every use of db */
    pthread_mutex_t watch_mutex; /* from here to cursors */
    json_t *seen;                /* runs whose end has been told, of those that ended at ended_ms or later */
    int64_t ended_ms;
    json_t *batch;               /* not NULL: deliveries are put here, to be written down together */
    json_t *cursors;             /* run -> the last event that was looked at */
    struct sl_ticker *watching;
    atomic_bool stopping; /* ends a pass under way */
    struct sl_webhook_sender *sender;
    int trouble; /* the last pass's error, told once */
};

/* ---- webhooks_store.c: all block for the disk; any thread ---- */
int sl_webhooks_open(struct sl_webhooks *w, struct sl_err *err);
void sl_webhooks_close(struct sl_webhooks *w);
/* {name: {"url", "events", "project", "metric", "form", "secret", "created_ms"}} */
int sl_webhooks_all(struct sl_webhooks *w, json_t **ret_hooks, struct sl_err *err);
/* hook NULL: removes it and what waits for it. SL_NOTFOUND then; SL_CONFLICT: there are too many. */
int sl_webhooks_put(struct sl_webhooks *w, const char *name, const json_t *hook, struct sl_err *err);
/* A delivery, unless this webhook has had one of this event and subject. Wakes nobody. ret_id may be NULL. */
int sl_webhooks_add(struct sl_webhooks *w, const char *hook, const char *event, const char *subject,
                    const char *body, char ret_id[SL_ID_HEX + 1], struct sl_err *err);
/* The same for a list of {"hook", "event", "subject", "body"}: all or none, and the disk is waited for once. */
int sl_webhooks_add_all(struct sl_webhooks *w, const json_t *deliveries, struct sl_err *err);
/* A state of things that lasts: *ret_new when it has just begun. on false: it has ended. */
int sl_webhooks_condition(struct sl_webhooks *w, const char *event, const char *subject, bool on,
                          bool *ret_new, struct sl_err *err);
/* Subjects of an event that are on: a JSON list. */
int sl_webhooks_conditions(struct sl_webhooks *w, const char *event, json_t **ret_subjects,
                           struct sl_err *err);
/* [{"id", "hook", "body", "tries", "created_ms"}] that are due, oldest first; *ret_next_ms: when the next one
 * is, 0: none waits. */
int sl_webhooks_due(struct sl_webhooks *w, int64_t now_ms, int most, json_t **ret_due,
                    int64_t *ret_next_ms, struct sl_err *err);
/* state: "done", "given_up", or "waiting" until due_ms. */
int sl_webhooks_tried(struct sl_webhooks *w, const char *id, const char *state, int64_t due_ms,
                      long status, const char *error, struct sl_err *err);
int sl_webhooks_deliveries(struct sl_webhooks *w, const char *hook, json_t **ret_list,
                           struct sl_err *err);
int sl_webhooks_forget(struct sl_webhooks *w, int64_t before_ms, struct sl_err *err);

/* ---- webhooks_watch.c ---- */
void sl_webhooks_watch(void *webhooks); /* a pass: runs, queues, agents */
char *sl_webhook_body(const json_t *hook, const char *event, const json_t *data); /* heap; NULL: no memory */

/* ---- webhooks_send.c ---- */
int sl_webhooks_send_start(struct sl_webhooks *w, struct sl_err *err);
void sl_webhooks_send_stop(struct sl_webhooks *w); /* deliveries under way are tried again by the next server */
void sl_webhooks_wake(struct sl_webhooks *w);      /* something is due */
/* "whsec_" and base64 of 24 random bytes; and whether a text is such a secret of 16 to 64 bytes. */
int sl_webhook_secret(char ret_secret[128], struct sl_err *err);
bool sl_webhook_secret_valid(const char *secret);

#endif
