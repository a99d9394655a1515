/* All runs for lists and searches: the read model, DATA/read.db (server/runs_index.h), and what keeps it equal to Redis
 * and the archive.
 *
 * Redis's scripts note each run of which something changed (queue/scripts/changes.lua). Those are taken over in batches
 * and leave that set only after the commit, so a server that is killed anywhere loses none; whoever asks for a list
 * takes over first what waits. An archived run's row follows from its record alone. When the server starts, once Redis was
 * away, and every SL_HISTORY_SWEEP_S, all of Redis and the archive's folders are gone through. A file that is missing or
 * damaged is made anew.
 *
 * All functions block; may be called from any thread. */
#ifndef SL_SERVER_HISTORY_H
#define SL_SERVER_HISTORY_H
#include "queue/queue.h"
#include "server/runs_index.h"

#define SL_HISTORY_SWEEP_S 3600
#define SL_HISTORY_START_MS 5000 /* that the start waits for all of Redis */
#define SL_HISTORY_WAIT_MS 1000  /* that a list waits for others who take over changes, */
#define SL_HISTORY_CATCH_UP_MS 50 /* and takes over itself */

struct sl_history;

/* archive and queue are borrowed. Makes the file anew where needed, so it may take its time. */
int sl_history_open(const char *data_dir, struct sl_archive *archive, struct sl_queue *queue,
                    struct sl_history **ret_history, struct sl_err *err);
void sl_history_close(struct sl_history *h); /* NULL-safe */
/* From its own thread, once a second: takes over, sweeps, makes anew. stopping: asked in between. */
void sl_history_tick(struct sl_history *h, bool (*stopping)(void *arg), void *arg);

/* sl_runs_index_query's page and "live": false when Redis is away and live runs are as they were last seen. */
int sl_history_list(struct sl_history *h, const struct sl_runs_query *query, json_t **ret_page,
                    struct sl_err *err);
/* Puts the record of a run that has ended into the archive; from now on the row is the record's. */
int sl_history_archive(struct sl_history *h, const json_t *record, struct sl_err *err);
/* Removes up to `most` archived runs that ended before a time, from the archive too. */
int sl_history_expire(struct sl_history *h, int64_t before_ms, int most, int *ret_removed,
                      struct sl_err *err);
int sl_history_newest(struct sl_history *h, int64_t *ret_seq, struct sl_err *err); /* 0: none */
/* Changes what people wrote about a run that exists; either may be NULL: as it is. *ret_note: {"notes", "tags"}. */
int sl_history_note(struct sl_history *h, const char *run, const json_t *notes, const json_t *tags,
                    json_t **ret_note, struct sl_err *err);

/* Asks for a second index of all, to be compared with the first and put in its place. SL_CONFLICT: it is under way. */
int sl_history_reindex(struct sl_history *h, struct sl_err *err);
/* {"state": "never", "running", "done" or "failed", "error", "seconds", and sl_runs_index_compare's, of the last one} */
json_t *sl_history_reindexed(struct sl_history *h);

#endif
