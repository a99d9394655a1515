/* What a worker (or a fetch or publish child) and its agent say to each other.
 *
 * Child to agent: NDJSON, one object a line, at most SL_WIRE_LINE_MAX bytes, on the descriptor given with
 * --events-fd. Agent to child: NDJSON on --control-fd. When the control descriptor reaches its end, or the
 * deadline passes without being renewed, the child ends by itself within SL_WIRE_GRACE_US.
 *
 * Events ("ev"):
 *   start       step, steps, rows, threads, kernel (BLAS core type), resumed; trials (their names); fingerprint: what
 *               the bits depend on (backend, kernel, threads, libraries, pack_layout, pass_positions)
 *   metric      step, epoch, loss, lr, grad_norm, tokens, tokens_per_s; or step, val_loss; or other named numbers
 *   log         level (info, warn, error), msg
 *   checkpoint  step, path (complete and fsynced, relative to the run directory), best, val_loss
 *   progress    phase, done, total (bytes or rows)
 *   prediction  task, context, question, answer, prediction, untuned (the first test rows)
 *               metric and prediction of one of several trials: trial, its name
 *   result      state (succeeded, failed, preempted, cancelled), cause (sl_code_name), msg, metrics {}
 * Commands ("cmd"):
 *   deadline    boot_us: absolute, boot-time clock
 *   checkpoint  write a checkpoint at the next step boundary and go on
 *   preempt     write a checkpoint at the next step boundary, then end with state preempted
 *   pause       write a checkpoint at the next step boundary, then wait there with the device idle; the deadline does
 *               not count meanwhile, but no pause is longer than SL_WIRE_PAUSE_MAX_US
 *   resume      take back a pause, or go on; sent behind a new deadline
 *   cancel      stop at the next step boundary, state cancelled */
#ifndef SL_BASE_WIRE_H
#define SL_BASE_WIRE_H
#include "base/buf.h"
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_WIRE_LINE_MAX (256u << 10)
#define SL_WIRE_GRACE_US 1500000
#define SL_WIRE_PAUSE_MAX_US INT64_C(300000000) /* then abandoned: a stopped agent must not hold a device for ever */
#define SL_EXIT_PREEMPTED 75 /* EX_TEMPFAIL */
#define SL_EXIT_CANCELLED 76
#define SL_EXIT_ABANDONED 77 /* agent gone or deadline passed */

/* Writes one line; steals event. Thread-safe per descriptor (a single write call). fd < 0: drops it. */
int sl_wire_send(int fd, json_t *event_stolen, struct sl_err *err);

/* Splits a byte stream into objects: append what was read to buf, then call until it returns NULL. A line that
 * is not an object is skipped and counted in *bad (may be NULL). New reference. buf's max bounds a line. */
json_t *sl_wire_next(struct sl_buf *buf, int *bad);

/* Child's side: a thread reads control_fd. Flags are sticky until taken. */
enum sl_wire_want { SL_WANT_NOTHING, SL_WANT_CHECKPOINT, SL_WANT_PREEMPT, SL_WANT_CANCEL };
struct sl_control;
/* Starts the thread; control_fd < 0 gives a control that only reacts to SIGTERM and SIGINT (both: preempt;
 * a second one ends the process). With control_fd >= 0 SIGTERM means preempt too. */
int sl_control_new(int control_fd, struct sl_control **ret_control, struct sl_err *err);
void sl_control_free(struct sl_control *c);
/* To be called at step boundaries, with the device idle: keeps a pause, and returns from it. Gives the most urgent
 * wish since the last call (CHECKPOINT is cleared by being taken; the others stay). */
enum sl_wire_want sl_control_take(struct sl_control *c);

#endif
