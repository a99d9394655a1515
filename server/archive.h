/* Finished runs on the store's disk, so that Redis holds only what is live.
 *
 *   runs/<ab>/<run>/events.ndjson.zst  its events, oldest first: zstd frames, one behind the other
 *   runs/<ab>/<run>/record.json        the run as the API shows it; written last, never changed
 *   runs/<ab>/<run>/tensorboard/...      its metrics as TensorBoard reads them (base/tfevents.h), from when it has ended
 *   runs/<ab>/<run>.notes.json         {"notes", "tags"}: what people wrote about it, also while it is live; beside the
 *                                      folder, so that listing one folder finds all that have any
 *
 * Lists come from the read model (server/history.h), which is made of these.
 *
 * Events of a long run come here while it runs, before Redis drops them. Durable: what a function
 * has written survives a power cut. Safe to repeat: appending takes up behind the last whole frame.
 * All functions block; may be called from any thread. */
#ifndef SL_SERVER_ARCHIVE_H
#define SL_SERVER_ARCHIVE_H
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_ARCHIVE_EVENTS_MAX (256u << 20) /* bytes of one run's events, unpacked */
#define SL_ARCHIVE_RECORD_MAX (8u << 20)
#define SL_ARCHIVE_NOTE_MAX (1u << 20)

struct sl_archive;

/* data_dir is the store's, whose lock is held. */
int sl_archive_open(const char *data_dir, struct sl_archive **ret_archive, struct sl_err *err);
void sl_archive_close(struct sl_archive *a); /* NULL-safe */

/* ret_last: the id of the newest event that is there, "0" when there is none. 64 bytes. */
int sl_archive_last_event(struct sl_archive *a, const char *run, char ret_last[64],
                          struct sl_err *err);
/* events: list as sl_queue_events gives it, behind the last one. */
int sl_archive_append(struct sl_archive *a, const char *run, const json_t *events,
                      struct sl_err *err);
/* The record, unless it is there already. */
int sl_archive_put(struct sl_archive *a, const json_t *run, struct sl_err *err);
/* {"notes": text, "tags": [texts]}; of a run without any, the same and empty. */
int sl_archive_note(struct sl_archive *a, const char *run, json_t **ret_note, struct sl_err *err);
int sl_archive_set_note(struct sl_archive *a, const char *run, const json_t *note, struct sl_err *err);

/* SL_NOTFOUND. */
int sl_archive_show(struct sl_archive *a, const char *run, json_t **ret_run, struct sl_err *err);
/* As sl_queue_events; none of a run that is not there. */
int sl_archive_events(struct sl_archive *a, const char *run, const char *after, int most,
                      json_t **ret_events, struct sl_err *err);
/* Each event of a run, oldest first; fn's error ends it. */
typedef int sl_archive_event_fn(void *arg, const json_t *event, struct sl_err *err);
int sl_archive_each(struct sl_archive *a, const char *run, sl_archive_event_fn *fn, void *arg, struct sl_err *err);
/* The files for TensorBoard, when all events are there. */
int sl_archive_tensorboard(struct sl_archive *a, const char *run, struct sl_err *err);
/* Ids of runs that begin with two hex digits, in order: with a folder, which may be live ones, or with notes. */
int sl_archive_ids(struct sl_archive *a, const char *prefix, json_t **ret_ids, struct sl_err *err);
int sl_archive_noted(struct sl_archive *a, const char *prefix, json_t **ret_ids, struct sl_err *err);
bool sl_archive_has(struct sl_archive *a, const char *run); /* its record */
int sl_archive_remove(struct sl_archive *a, const char *run, struct sl_err *err);

#endif
