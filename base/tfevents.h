/* A run's metrics as TensorBoard's event files.
 *
 *   DIR/events.out.tfevents.SECONDS.RUN        of the run; SECONDS: of its first event
 *   DIR/TRIAL/events.out.tfevents.SECONDS.RUN  of each of its trials
 *
 * A file is TFRecords (length, masked CRC-32C, data, masked CRC-32C) of tensorflow/core/util/event.proto, every number
 * of a metric event a scalar. Names are those of NeMo's logger: "loss" is reduced_train_loss, the others are NeMo's
 * already (val_loss, lr, grad_norm, epoch) or nobody's. Where a run went on from a checkpoint there is a SessionLog
 * START, at which TensorBoard forgets the steps that come again. */
#ifndef SL_BASE_TFEVENTS_H
#define SL_BASE_TFEVENTS_H
#include "base/err.h"
#include <jansson.h>

#define SL_TFEVENTS_FILE_MAX (256u << 20) /* bytes */
#define SL_TFEVENTS_TRIALS_MAX 64
#define SL_TFEVENTS_NAME_MAX 64 /* of a trial */

struct sl_tfevents;

const char *sl_tfevents_name(const char *metric); /* what a metric of ours is called there; borrowed */

int sl_tfevents_new(const char *run, struct sl_tfevents **ret_t, struct sl_err *err);
/* One of the run's events {"type", "time_ms", "data"}, oldest first; borrowed. Others than metric and start are
 * left out. SL_NOMEM: over a limit. */
int sl_tfevents_add(struct sl_tfevents *t, const json_t *event, struct sl_err *err);
/* Makes dir and the files, each whole or not there; without metrics nothing. Blocks. */
int sl_tfevents_write(struct sl_tfevents *t, const char *dir, struct sl_err *err);
void sl_tfevents_free(struct sl_tfevents *t); /* NULL-safe */

#endif
