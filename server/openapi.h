/* The OpenAPI 3.1 description of the REST API: GET /api/v1/openapi.json, open.
 *
 * The folder server/openapi has its parts: base.json holds what all share, each other one the tags, paths and schemas of
 * a field. Joining them adds what follows from how the server works: the schema of a spec (base/job.schema.json),
 * and the answers that many operations have in common (304, 400, 401, 403, 413, 422, 429, 503).
 *
 * The server keeps to it: a query parameter or a JSON body that is not as described is answered with 422 before
 * the handler runs. A spec is left to its handler, which knows more than the schema. So what describes requests
 * has only keywords that base/schema.h knows. */
#ifndef SL_SERVER_OPENAPI_H
#define SL_SERVER_OPENAPI_H
#include "server/serve.h"

/* A part of the server. */
int sl_openapi_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_openapi_part_stop(void *state); /* NULL-safe */

#endif
