/* What the archive's files share: archive.c has records and notes, archive_events.c the events. Nobody else includes this. */
#ifndef SL_SERVER_ARCHIVE_PRIV_H
#define SL_SERVER_ARCHIVE_PRIV_H
#include "base/file.h"
#include "server/archive.h"
#include <pthread.h>

#define SL_ARCHIVE_TAILS 64 /* above what one pass of the archiver takes of long runs */

/* The end of a run's events, so that appending reads none of them. It holds while the file has this length. */
struct sl_archive_tail {
    char run[33];  /* "": none */
    char last[64]; /* the newest event's id; "0" */
    size_t whole;  /* bytes of the file's whole frames, */
    size_t bytes;  /* and of what is in them */
};

struct sl_archive {
    char *dir;
    pthread_mutex_t mutex; /* the rest's */
    struct sl_archive_tail tail[SL_ARCHIVE_TAILS];
    int next; /* the one that is replaced next */
};

/* file "": the run's folder. SL_NOTFOUND: not the id of a run. */
int sl_archive_path(const struct sl_archive *a, const char *run, const char *file, char ret_path[SL_PATH_MAX],
                    struct sl_err *err);
void sl_archive_forget_tail(struct sl_archive *a, const char *run);

#endif
