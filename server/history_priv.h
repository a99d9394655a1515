/* What the history's files share. Nobody else includes this. */
#ifndef SL_SERVER_HISTORY_PRIV_H
#define SL_SERVER_HISTORY_PRIV_H
#include "server/history.h"
#include <pthread.h>

struct sl_history {
    struct sl_archive *archive;
    struct sl_queue *queue;
    char *path;
    /* Whoever writes to an index holds feed; whoever reads holds swap for reading, so that the index stays. */
    pthread_mutex_t feed;
    pthread_rwlock_t swap;
    struct sl_runs_index *index, *second; /* second: while it is being made; it gets all changes too */
    json_t *taken;                        /* changes that Redis may forget */
    bool whole;                           /* all of Redis is in the index */
    int64_t swept_us;
    bool away; /* Redis is: told once */
    pthread_mutex_t mutex; /* the rest's */
    bool wanted;
    json_t *report;
};

/* All of Redis's runs, newest first, into x; what x has besides is gone. Takes feed for each page, or has it. SL_CANCELLED:
 * stopped, or not done at until_us (boot clock; 0: never). */
int sl_history_sweep(struct sl_history *h, struct sl_runs_index *x, bool has_feed, int64_t until_us,
                     bool (*stopping)(void *arg), void *arg, struct sl_err *err);
/* All records into x; rows without a record go. Takes feed for each folder. */
int sl_history_take_archive(struct sl_history *h, struct sl_runs_index *x, bool (*stopping)(void *arg), void *arg,
                            struct sl_err *err);

#endif
