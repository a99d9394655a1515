/* A project's export and import: server/portable.c has the routes. */
#ifndef SL_SERVER_PORTABLE_H
#define SL_SERVER_PORTABLE_H
#include "server/serve.h"

#define SL_IMPORT_BODY_MAX (16u << 20) /* bytes of one request */

/* A server part (serve.h), behind the runs' part. */
int sl_portable_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);

#endif
