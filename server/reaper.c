#include "base/clock.h"
#include "base/log.h"
#include "server/runs.h"
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define REPLAY_PERIOD_US                                                                           \
    INT64_C(30000000) /* results cut short by a fault that may pass, as a full disk */

struct sl_reaper {
    struct sl_runs *runs;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stop;
};

/* Returns true when it is time to stop. */
static bool pause_one_period(struct sl_reaper *r)
{
    struct timespec until;
    bool stop;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += SL_REAPER_PERIOD_US / 1000000;
    pthread_mutex_lock(&r->mutex);
    while (!r->stop && !pthread_cond_timedwait(&r->wake, &r->mutex, &until))
        ;
    stop = r->stop;
    pthread_mutex_unlock(&r->mutex);
    return stop;
}

static void *reap(void *arg)
{
    struct sl_reaper *r = arg;
    int64_t spare_until_us = sl_boot_us() + SL_REAPER_GRACE_US, replay_us = sl_boot_us();
    bool away = false;

    do {
        struct sl_err err = SL_ERR_INIT;
        struct sl_reaped done = {.more = true};
        int ended = 0, promoted = 0, replayed = 0, passes = 0, rc = 0;
        /* Under a long absence of Redis every lease has ended; their agents get the first word. */
        for (; !rc && done.more && passes < SL_REAPER_PASSES; passes++) {
            rc = sl_queue_reap(r->runs->queue, sl_boot_us() < spare_until_us, &done, &err);
            ended += rc ? 0 : done.ended;
            promoted += rc ? 0 : done.promoted;
        }
        if (rc) {
            if (!away)
                sl_log(SL_WARN, NULL, "looking after leases: %s", err.msg);
            away = true;
            spare_until_us = sl_boot_us() + SL_REAPER_GRACE_US;
            continue;
        }
        if (away) {
            sl_log(SL_INFO, NULL, "Redis is back");
            spare_until_us = sl_boot_us() + SL_REAPER_GRACE_US;
        }
        if (ended || promoted)
            sl_log(SL_INFO, NULL, "%d leases ended, %d runs are due again", ended, promoted);
        if (away || sl_boot_us() >= replay_us) {
            replay_us = sl_boot_us() + REPLAY_PERIOD_US;
            if (sl_publish_replay(r->runs, &replayed, &err))
                sl_log(SL_ERROR, NULL, "writing the versions of published results: %s", err.msg);
            else if (replayed)
                sl_log(SL_INFO, NULL, "wrote the versions of %d published results", replayed);
        }
        away = false;
    } while (!pause_one_period(r));
    return NULL;
}

int sl_reaper_start(struct sl_runs *runs, struct sl_reaper **ret_reaper, struct sl_err *err)
{
    struct sl_reaper *r = calloc(1, sizeof *r);
    pthread_condattr_t attr;

    if (!r)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    r->runs = runs;
    pthread_mutex_init(&r->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&r->thread, NULL, reap, r)) {
        free(r);
        return sl_err_set(err, SL_RETRY, "could not start a thread");
    }
    *ret_reaper = r;
    return 0;
}

void sl_reaper_stop(struct sl_reaper *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->mutex);
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->mutex);
    pthread_join(r->thread, NULL);
    pthread_mutex_destroy(&r->mutex);
    pthread_cond_destroy(&r->wake);
    free(r);
}
