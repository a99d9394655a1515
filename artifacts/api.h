/* A client of the server's REST API: JSON requests, for the commands and the transfer child.
 *
 * One object belongs to one thread. Calls block, at most SL_API_TIMEOUT_S each try. The token goes
 * to the server's own origin only: redirects are not followed. */
#ifndef SL_ARTIFACTS_API_H
#define SL_ARTIFACTS_API_H
#include "base/err.h"
#include <jansson.h>

#define SL_API_REPLY_MAX (64u << 20)
#define SL_API_TIMEOUT_S 30
#define SL_API_TRIES 4 /* with growing, jittered pauses: about 3 s in all */

struct sl_api;

/* server: "http://host:port" or https; token may be NULL. Both are copied. SL_SPEC for a bad URL. */
int sl_api_new(const char *server, const char *token, struct sl_api **ret_api, struct sl_err *err);
void sl_api_free(struct sl_api *api); /* NULL-safe */
const char *sl_api_server(const struct sl_api *api);
const char *sl_api_token(const struct sl_api *api); /* may be NULL */

/* Sends one request. path starts with "/api/v1/"; what is variable in it goes through sl_api_escape
 * first. body may be NULL. key (may be NULL) is sent as Idempotency-Key. Any answer of the server
 * is a success here: *ret_status, and *ret_reply as new reference (NULL when the answer has no
 * JSON). SL_RETRY, naming the URL: no answer. GET, PUT, and anything with a key is tried
 * SL_API_TRIES times when there is no answer, or 429, 502, 503, 504; other requests when the
 * connection was refused. */
int sl_api_request(struct sl_api *api, const char *method, const char *path, const char *key,
                   const json_t *body, json_t **ret_reply, long *ret_status, struct sl_err *err);
/* 0 for 2xx; else the error that the reply describes (its detail and every entry of its "errors", a
 * line each), with the code that fits: 404 SL_NOTFOUND, 401 and 403 SL_DENIED, 409 SL_CONFLICT,
 * SL_LEASE or SL_CANCELLED, 400 and 422 SL_SPEC, 429 and 5xx SL_RETRY. */
int sl_api_check(const struct sl_api *api, long status, const json_t *reply, struct sl_err *err);
/* Both in one, for calls where only success is of interest. ret_reply may be NULL. */
int sl_api_call(struct sl_api *api, const char *method, const char *path, const char *key,
                const json_t *body, json_t **ret_reply, struct sl_err *err);
/* Percent-encodes one part of a path. Heap string, the caller frees it; NULL when out of memory. */
char *sl_api_escape(const char *part);

#endif
