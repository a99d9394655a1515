#include "server/ticker.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

struct sl_ticker {
    void (*fn)(void *arg);
    void *arg;
    int64_t period_us;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stop;
};

/* Returns true when it is time to stop. */
static bool pause_one_period(struct sl_ticker *t)
{
    struct timespec until;
    bool stop;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += t->period_us / 1000000;
    until.tv_nsec += t->period_us % 1000000 * 1000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&t->mutex);
    while (!t->stop && !pthread_cond_timedwait(&t->wake, &t->mutex, &until))
        ;
    stop = t->stop;
    pthread_mutex_unlock(&t->mutex);
    return stop;
}

static void *tick(void *arg)
{
    struct sl_ticker *t = arg;

    do
        t->fn(t->arg);
    while (!pause_one_period(t));
    return NULL;
}

int sl_ticker_start(void (*fn)(void *arg), void *arg, int64_t period_us,
                    struct sl_ticker **ret_ticker, struct sl_err *err)
{
    struct sl_ticker *t = calloc(1, sizeof *t);
    pthread_condattr_t attr;

    if (!t)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    t->fn = fn;
    t->arg = arg;
    t->period_us = period_us;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&t->thread, NULL, tick, t)) {
        free(t);
        return sl_err_set(err, SL_RETRY, "could not start a thread");
    }
    *ret_ticker = t;
    return 0;
}

void sl_ticker_stop(struct sl_ticker *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->mutex);
    t->stop = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->mutex);
    pthread_join(t->thread, NULL);
    pthread_mutex_destroy(&t->mutex);
    pthread_cond_destroy(&t->wake);
    free(t);
}
