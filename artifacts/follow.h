/* The sha256 of a file that is being written, in a thread of its own that follows the bytes that are there without a
 * gap. */
#ifndef SL_ARTIFACTS_FOLLOW_H
#define SL_ARTIFACTS_FOLLOW_H
#include "base/digest.h"
#include "base/err.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_FOLLOW_DROP_FROM (INT64_C(1) << 30) /* a file of so many bytes does not stay in the page cache */
#define SL_FOLLOW_STEP (INT64_C(4) << 20)      /* written back, and dropped, in such pieces */
#define SL_FOLLOW_KEEP (INT64_C(32) << 20)     /* so far behind the hash: the disk has it by then */

struct sl_follow {
    int fd;
    const char *path; /* for messages; of who calls, as fd */
    int64_t bytes;    /* the whole file's */
    struct sl_sha256 digest; /* the thread's, until sl_follow_end */
    /* inside */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int64_t front, hashed;
    int64_t dropped; /* from the page cache; of who calls */
    bool started, stop;
    struct sl_err err;
};

/* SL_NOMEM: no thread, or no memory; then there is nothing to end. */
int sl_follow_begin(struct sl_follow *f, int fd, const char *path, int64_t bytes, struct sl_err *err);
/* All bytes below front are in the file. Never lower than before. May wait for the disk. */
void sl_follow_to(struct sl_follow *f, int64_t front);
/* finish: waits until all of the file is hashed; ret_digest, which is released first, has its digest then. Without it
 * the thread is only ended. Does nothing before sl_follow_begin (all zero) and a second time. SL_IO: reading failed. */
int sl_follow_end(struct sl_follow *f, bool finish, struct sl_sha256 *ret_digest, struct sl_err *err);

#endif
