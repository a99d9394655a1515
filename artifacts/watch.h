/* What long work tells its caller, and asks it: bytes done, and whether to stop. */
#ifndef SL_ARTIFACTS_WATCH_H
#define SL_ARTIFACTS_WATCH_H
#include <stdbool.h>
#include <stdint.h>

struct sl_watch {
    void *arg;
    void (*expect)(void *arg, int64_t delta_bytes); /* so much more is to be done; may be NULL */
    void (*progress)(void *arg,
                     int64_t delta_bytes); /* negative when work is done over; may be NULL */
    bool (*stop)(void *arg); /* true: end with SL_CANCELLED; asked often; may be NULL */
};

static inline void sl_watch_expect(const struct sl_watch *w, int64_t delta_bytes)
{
    if (w && w->expect)
        w->expect(w->arg, delta_bytes);
}

static inline void sl_watch_progress(const struct sl_watch *w, int64_t delta_bytes)
{
    if (w && w->progress)
        w->progress(w->arg, delta_bytes);
}

static inline bool sl_watch_stop(const struct sl_watch *w)
{
    return w && w->stop && w->stop(w->arg);
}

#endif
