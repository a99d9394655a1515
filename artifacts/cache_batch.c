/* Many small files on their way into the cache together. */
#include "artifacts/cache.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int sl_cache_batch_begin(const struct sl_cache *cache, struct sl_cache_batch *ret_batch,
                         struct sl_err *err)
{
    struct sl_cache_batch b = {.cache = cache, .fd = -1};
    char id[SL_ID_HEX + 1];
    sl_random_id(id);
    int rc = sl_path(b.path, err, "%s/partial/%s", cache->dir, id);
    if (rc)
        return rc;
    int lock = sl_cache_lock(cache->dir, false); /* what nobody has locked is removed under it */
    if (mkdir(b.path, 0755))
        rc = sl_err_errno(err, "making folder %s", b.path);
    else if ((b.fd = open(b.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 ||
             flock(b.fd, LOCK_EX | LOCK_NB))
        rc = sl_err_errno(err, "locking %s", b.path);
    if (lock >= 0)
        close(lock);
    if (rc) {
        sl_cache_batch_end(&b);
        return rc;
    }
    *ret_batch = b;
    return 0;
}

int sl_cache_batch_write(struct sl_cache_batch *b, const char *sha256, const void *data, size_t len,
                         bool own, struct sl_err *err)
{
    static const struct timespec whole[2] = {{.tv_nsec = UTIME_NOW},
                                             {.tv_sec = SL_CACHE_WHOLE_TIME_S}};
    int fd = openat(b->fd, sha256, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, own ? 0644 : 0444);
    if (fd < 0)
        return sl_err_errno(err, "creating %s/%s", b->path, sha256);
    int rc = sl_write_all(fd, data, len, err);
    if (rc == 0 && !own && futimens(fd, whole))
        rc = sl_err_errno(err, "finishing %s/%s", b->path, sha256);
    close(fd);
    if (rc)
        unlinkat(b->fd, sha256, 0);
    return rc;
}

int sl_cache_batch_sync(struct sl_cache_batch *b, struct sl_err *err)
{
    return syncfs(b->fd) ? sl_err_errno(err, "syncing the disk of %s", b->path) : 0;
}

int sl_cache_batch_place(struct sl_cache_batch *b, const char *sha256, const char *dest,
                         char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    int rc = dest ? sl_path(ret_path, err, "%s", dest)
                  : sl_path(ret_path, err, "%s/sha256/%s", b->cache->dir, sha256);
    if (rc == 0 && renameat(b->fd, sha256, AT_FDCWD, ret_path))
        rc = sl_err_errno(err, "renaming %s/%s to %s", b->path, sha256, ret_path);
    return rc;
}

void sl_cache_batch_end(struct sl_cache_batch *b)
{
    sl_rmtree(b->path, NULL);
    if (b->fd >= 0)
        close(b->fd); /* the lock goes with it */
    b->fd = -1;
}
