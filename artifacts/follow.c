#include "artifacts/follow.h"
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define CHUNK_BYTES (256u << 10) /* stays in a core's cache between reading and hashing */

/* A large file leaves the page cache behind the hash. Else every page of it is new memory, which a virtual machine has to
 * ask its host for, and the writer is held back when too much is dirty: 300 to 600 MB/s became 1,200 to 1,500. The
 * thread that hashes has the most to do, so the one that writes does this. */
static void drop_behind(struct sl_follow *f, int64_t hashed)
{
    while (f->bytes >= SL_FOLLOW_DROP_FROM && f->dropped + SL_FOLLOW_STEP + SL_FOLLOW_KEEP <= hashed) {
        if (sync_file_range(f->fd, f->dropped, SL_FOLLOW_STEP,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) == 0)
            posix_fadvise(f->fd, f->dropped, SL_FOLLOW_STEP, POSIX_FADV_DONTNEED);
        f->dropped += SL_FOLLOW_STEP; /* an error of the disk is told by the fsync at the end */
    }
}

static void *follow_main(void *arg)
{
    struct sl_follow *f = arg;
    char *chunk = malloc(CHUNK_BYTES);
    pthread_mutex_lock(&f->mutex);
    if (!chunk)
        sl_err_set(&f->err, SL_NOMEM, "out of memory");
    while (!f->stop && !f->err.code && f->hashed < f->bytes) {
        int64_t from = f->hashed, len = f->front - from;
        if (len == 0) {
            pthread_cond_wait(&f->cond, &f->mutex);
            continue;
        }
        if (len > CHUNK_BYTES)
            len = CHUNK_BYTES;
        pthread_mutex_unlock(&f->mutex);
        ssize_t n = pread(f->fd, chunk, (size_t)len, from);
        if (n > 0)
            sl_sha256_update(&f->digest, chunk, (size_t)n);
        pthread_mutex_lock(&f->mutex);
        if (n <= 0)
            sl_err_errno(&f->err, "reading %s", f->path);
        else
            f->hashed += n;
    }
    pthread_mutex_unlock(&f->mutex);
    free(chunk);
    return NULL;
}

int sl_follow_begin(struct sl_follow *f, int fd, const char *path, int64_t bytes, struct sl_err *err)
{
    *f = (struct sl_follow){.fd = fd, .path = path, .bytes = bytes};
    int rc = sl_sha256_init(&f->digest, err);
    if (rc)
        return rc;
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->cond, NULL);
    f->started = pthread_create(&f->thread, NULL, follow_main, f) == 0;
    if (f->started)
        return 0;
    pthread_cond_destroy(&f->cond);
    pthread_mutex_destroy(&f->mutex);
    sl_sha256_release(&f->digest);
    return sl_err_set(err, SL_NOMEM, "no thread to hash with");
}

void sl_follow_to(struct sl_follow *f, int64_t front)
{
    pthread_mutex_lock(&f->mutex);
    if (front > f->front) {
        f->front = front;
        pthread_cond_signal(&f->cond);
    }
    int64_t hashed = f->hashed;
    pthread_mutex_unlock(&f->mutex);
    drop_behind(f, hashed);
}

int sl_follow_end(struct sl_follow *f, bool finish, struct sl_sha256 *ret_digest, struct sl_err *err)
{
    if (!f->started)
        return 0;
    pthread_mutex_lock(&f->mutex);
    f->stop = !finish;
    pthread_cond_signal(&f->cond);
    pthread_mutex_unlock(&f->mutex);
    pthread_join(f->thread, NULL);
    f->started = false;
    pthread_cond_destroy(&f->cond);
    pthread_mutex_destroy(&f->mutex);
    if (!finish || f->err.code) {
        sl_sha256_release(&f->digest);
        return finish ? sl_err_set(err, f->err.code, "%s", f->err.msg) : 0;
    }
    sl_sha256_release(ret_digest);
    *ret_digest = f->digest;
    return 0;
}
