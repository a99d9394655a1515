/* Webhooks: an HTTP POST to an address of the operator's when something happens.
 *
 *   finished       a run has succeeded, and its outputs are recorded
 *   failed         a run is failed or dead
 *   metric         a run's metric went above or below a number, the first time
 *   unserviceable  runs of a class wait in a queue, and no agent can serve them
 *   quarantined    an agent takes no runs after device failures
 *
 * What happened is written to DATA/webhooks.db before its run may leave Redis, and tried until it is
 * answered with 2xx, 410, or is SL_WEBHOOK_AGE_MS old: at least once, in no certain order; a
 * receiver tells repetitions by webhook-id. Signed as standardwebhooks.com says: webhook-id,
 * webhook-timestamp, webhook-signature = "v1," + base64(HMAC-SHA256(secret, "id.timestamp.body")).
 * The body is {"type", "timestamp", "data"}, or with the form "slack" {"text"}.
 *
 * Private addresses (loopback, link-local, a site's own) are refused when the connection is made, after the
 * name has been looked up, unless --webhook-allow names them; redirects and proxies are not followed.
 *
 *   GET    /api/v1/webhooks                       {"webhooks": [...]}, addresses without their path
 *   PUT    /api/v1/webhooks/{webhook}             {"url", "events", "project", "metric", "form", "secret"}; tells
 *                                                 the secret once, when it makes one
 *   DELETE /api/v1/webhooks/{webhook}
 *   POST   /api/v1/webhooks/{webhook}/test        202 {"delivery"}
 *   GET    /api/v1/webhooks/{webhook}/deliveries  {"deliveries": [...]}, newest first */
#ifndef SL_SERVER_WEBHOOKS_H
#define SL_SERVER_WEBHOOKS_H
#include "base/clock.h"
#include "server/serve.h"
#include <jansson.h>

#define SL_WEBHOOKS_MAX 100
#define SL_WEBHOOK_NAME_MAX 64
#define SL_WEBHOOK_URL_MAX 2048
#define SL_WEBHOOK_WAITING_MAX 100000           /* of one webhook; what comes then is given up at once */
#define SL_WEBHOOK_AGE_MS INT64_C(259200000)    /* three days: then a delivery is given up */
#define SL_WEBHOOK_KEEP_MS INT64_C(604800000)   /* a week: then what is over is forgotten */
#define SL_WEBHOOK_FIRST_RETRY_MS INT64_C(2000) /* doubles with every try... */
#define SL_WEBHOOK_LAST_RETRY_MS INT64_C(3600000) /* ...up to this */
#define SL_WEBHOOK_TIMEOUT_MS 10000L
#define SL_WEBHOOK_AT_ONCE 16      /* deliveries under way */
#define SL_WEBHOOK_AT_ONCE_EACH 4  /* of one webhook, so that a slow receiver holds up no other */
#define SL_WEBHOOK_ANSWER_MAX 65536 /* bytes that a receiver's answer may have */
#define SL_WEBHOOK_SHOWN_MAX 100    /* deliveries that a list shows */

struct sl_webhooks;

/* A server part; without Redis it has its routes and can test only. */
int sl_webhooks_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_webhooks_part_stop(void *state);
/* For the archiver: what is to be said of this ended run is durable when it returns 0. w NULL: nothing. */
int sl_webhooks_run_ended(struct sl_webhooks *w, const json_t *record, struct sl_err *err);

#endif
