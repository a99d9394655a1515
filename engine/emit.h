/* What a worker tells: NDJSON events to its agent (base/wire.h), or a progress bar and lines to a person. */
#ifndef SL_ENGINE_EMIT_H
#define SL_ENGINE_EMIT_H
#include "base/err.h"
#include "base/log.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_emitter {
    int events_fd;     /* -1: a person reads standard error */
    bool terminal;     /* standard error is one: draw a bar, else a line now and then */
    bool bar_drawn;
    int64_t started_us, last_line_us;
    int64_t step, steps, first_step; /* for the bar: done, of, where this process began */
    double loss, val_loss, tokens_per_s; /* of several trials the least losses, and all tokens */
};

void sl_emit_init(struct sl_emitter *r, int events_fd);
/* Sends an event object ("ev" and what base/wire.h says), or shows it. Steals event. A closed pipe is no error here:
 * the control channel ends the worker. */
void sl_emit(struct sl_emitter *r, json_t *event_stolen);
void sl_emit_log(struct sl_emitter *r, enum sl_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
