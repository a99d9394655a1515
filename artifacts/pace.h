/* A limit of the bandwidth that transfers share, from any number of threads.
 *
 * libcurl's own (7.88) lets megabytes through before it holds back, and knows one connection only. */
#ifndef SL_ARTIFACTS_PACE_H
#define SL_ARTIFACTS_PACE_H
#include "artifacts/watch.h"
#include "base/err.h"
#include <pthread.h>
#include <stdint.h>

#define SL_BANDWIDTH_ENV "SOFTLAUNCH_BANDWIDTH"

struct sl_pace {
    int64_t bytes_per_s; /* 0: no limit */
    int64_t free_us;     /* boot time from which on the line is free */
    pthread_mutex_t mutex;
};

/* As SOFTLAUNCH_BANDWIDTH says: bytes a second, as 500k, 20M or 1G (powers of ten); no limit when it is not set. Nothing to
 * release. SL_SPEC: it says something else. */
int sl_pace_init(struct sl_pace *pace, struct sl_err *err);
/* Waits until the bytes that came, or are to go, have their turn, or watch says stop. pace may be NULL. */
void sl_pace_take(struct sl_pace *pace, int64_t bytes, const struct sl_watch *watch);

#endif
