/* What the archive's two files share. Nobody else includes this. */
#ifndef SL_SERVER_ARCHIVE_PRIV_H
#define SL_SERVER_ARCHIVE_PRIV_H
#include "server/archive.h"
#include <pthread.h>
#include <sqlite3.h>

struct sl_archive {
    char *dir;
    pthread_mutex_t mutex; /* the index's */
    sqlite3 *index;
    bool changing; /* a transaction is open */
};

/* Opens the index, empty and *ret_fresh when it was not there or of another form. */
int sl_archive_index_open(struct sl_archive *a, bool *ret_fresh, struct sl_err *err);
void sl_archive_index_close(struct sl_archive *a);
/* Puts a record into the index. */
int sl_archive_index_put(struct sl_archive *a, const json_t *run, struct sl_err *err);
int sl_archive_index_remove(struct sl_archive *a, const char *run, struct sl_err *err);
/* Runs that ended before a time, oldest first: a list of ids. */
int sl_archive_index_old(struct sl_archive *a, int64_t before_ms, int most, json_t **ret_runs,
                         struct sl_err *err);

#endif
