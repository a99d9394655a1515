/* Copies of what runs publish, in buckets: `outputs.copy_to` of a spec.
 *
 * The server makes them from its own store, once the version's record is written, below TO/<artifact>/<version>/; behind the files
 * comes the record, TO/<artifact>/<version>.json: where it is, all of them are. So nothing of a run that lost its lease is ever
 * there, and agents need no keys. What is to be copied is in DATA/copies/<run>.<output>.json before a run's publishing is answered; it
 * goes when the copy is whole. A copy that fails is tried again, less and less often, for SL_COPY_DAYS.
 *
 *   GET /api/v1/copies   {"copies": [{"run", "output", "name", "version", "to", "project", "created", "tries" since the server's start,
 *        "error" of the last one, "failed": true when it was given up}, ...]}, those that are not done
 *
 * Only to folders that `serve --copy-to` names: the keys are the server's. */
#ifndef SL_SERVER_COPIES_H
#define SL_SERVER_COPIES_H
#include "server/serve.h"

#define SL_COPY_DAYS 3
#define SL_COPY_TO_MAX 512       /* bytes of a reference */
#define SL_COPY_EVERY_S 5        /* between two looks */
#define SL_COPY_PAUSE_MAX_S 600  /* between two tries of one */

/* A server part, before the runs' part. */
int sl_copies_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_copies_part_stop(void *state);

/* Whether the server may copy there. SL_SPEC: no folder of a bucket; SL_DENIED says what would allow it. */
int sl_copies_check(const struct sl_serve_config *config, const char *to, struct sl_err *err);
/* Notes, durably, that a run's output is to be copied; again is fine. record: of its version. */
int sl_copies_add(const struct sl_serve_config *config, const char *run, const char *output, const json_t *record, const char *to,
                  struct sl_err *err);

#endif
