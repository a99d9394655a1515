#include "artifacts/cache.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHOLE_TIME_S 946684800 /* 2000-01-01: the time of change of a file that nobody wrote to */
#define LOCK_POLL_US 50000
#define CHUNK_BYTES (256u << 10)

int sl_cache_open(const char *dir, struct sl_cache *ret_cache, struct sl_err *err)
{
    static const char *const folders[] = {"sha256", "partial", "urls"};
    struct sl_cache cache = {""};
    char path[SL_PATH_MAX];
    int rc = sl_path(cache.dir, err, "%s", dir);
    for (size_t i = 0; rc == 0 && i < sizeof folders / sizeof *folders; i++) {
        rc = sl_path(path, err, "%s/%s", dir, folders[i]);
        if (rc == 0)
            rc = sl_mkdirs(path, err);
    }
    if (rc)
        return sl_err_wrap(err, rc, "cache");
    *ret_cache = cache;
    return 0;
}

int sl_cache_find(const struct sl_cache *cache, const char *sha256, char ret_path[SL_PATH_MAX],
                  int64_t *ret_bytes, struct sl_err *err)
{
    char path[SL_PATH_MAX], found[SL_SHA256_HEX + 1];
    struct stat st;
    if (!sl_sha256_valid(sha256))
        return sl_err_set(err, SL_SPEC, "not a sha256 (64 lower-case hex digits): %.80s", sha256);
    int rc = sl_path(path, err, "%s/sha256/%s", cache->dir, sha256);
    if (rc)
        return rc;
    if (stat(path, &st)) {
        if (errno == ENOENT)
            return sl_err_set(err, SL_NOTFOUND, "%s is not in the cache", sha256);
        return sl_err_errno(err, "looking at %s", path);
    }
    if (st.st_mtim.tv_sec != WHOLE_TIME_S) {
        rc = sl_sha256_file(path, found, NULL, err);
        if (rc)
            return rc;
        if (strcmp(found, sha256) != 0) {
            unlink(path);
            return sl_err_set(err, SL_NOTFOUND, "%s was changed in the cache, and is dropped",
                              sha256);
        }
    }
    memcpy(ret_path, path, sizeof path);
    if (ret_bytes)
        *ret_bytes = st.st_size;
    return 0;
}

/* Opens and locks the partial file; when its holder has moved it away meanwhile, tries again. */
static int lock_partial(const char *path, const struct sl_watch *watch, int *ret_fd,
                        struct sl_err *err)
{
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0)
            return sl_err_errno(err, "creating %s", path);
        while (flock(fd, LOCK_EX | LOCK_NB)) {
            int rc = 0;
            if (errno != EWOULDBLOCK && errno != EINTR)
                rc = sl_err_errno(err, "locking %s", path);
            else if (sl_watch_stop(watch))
                rc = sl_err_set(err, SL_CANCELLED, "stopped");
            if (rc) {
                close(fd);
                return rc;
            }
            usleep(LOCK_POLL_US);
        }
        struct stat ours, there;
        if (fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_ino == there.st_ino &&
            ours.st_dev == there.st_dev) {
            *ret_fd = fd;
            return 0;
        }
        close(fd);
    }
}

/* Hashes what an earlier process has left. */
static int rehash(struct sl_fill *fill, const struct sl_watch *watch, struct sl_err *err)
{
    char *chunk = malloc(CHUNK_BYTES);
    int rc = chunk ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    while (rc == 0) {
        ssize_t n = read(fill->fd, chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = sl_err_errno(err, "reading %s", fill->path);
        else if (sl_watch_stop(watch))
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        if (rc || n == 0)
            break;
        sl_sha256_update(&fill->digest, chunk, (size_t)n);
        fill->bytes += n;
    }
    free(chunk);
    return rc;
}

int sl_fill_begin(const struct sl_cache *cache, const char *key, const char *sha256,
                  const struct sl_watch *watch, struct sl_fill *ret_fill, bool *ret_there,
                  struct sl_err *err)
{
    struct sl_fill fill = {.cache = cache, .fd = -1};
    char there[SL_PATH_MAX];
    int rc = sl_path(fill.path, err, "%s/partial/%s", cache->dir, key);
    if (rc == 0)
        rc = lock_partial(fill.path, watch, &fill.fd, err);
    if (rc)
        return rc;
    if (sha256 && sl_cache_find(cache, sha256, there, NULL, NULL) == 0) {
        unlink(fill.path);
        close(fill.fd);
        *ret_there = true;
        return 0;
    }
    rc = sl_sha256_init(&fill.digest, err);
    if (rc == 0 && sha256)
        rc = rehash(&fill, watch, err);
    else if (rc == 0 && ftruncate(fill.fd, 0))
        rc = sl_err_errno(err, "emptying %s", fill.path);
    if (rc) {
        sl_fill_abort(&fill);
        return rc;
    }
    *ret_fill = fill;
    *ret_there = false;
    return 0;
}

int sl_fill_write(struct sl_fill *fill, const void *data, size_t len, struct sl_err *err)
{
    int rc = sl_write_all(fill->fd, data, len, err);
    if (rc) {
        bool full = errno == ENOSPC || errno == EDQUOT;
        return sl_err_wrap(err, rc, full ? "the disk of the cache %s is full" : "cache %s",
                           fill->cache->dir);
    }
    sl_sha256_update(&fill->digest, data, len);
    fill->bytes += (int64_t)len;
    return 0;
}

int sl_fill_restart(struct sl_fill *fill, struct sl_err *err)
{
    struct sl_sha256 fresh = {NULL};
    if (ftruncate(fill->fd, 0) || lseek(fill->fd, 0, SEEK_SET) < 0)
        return sl_err_errno(err, "emptying %s", fill->path);
    int rc = sl_sha256_init(&fresh, err);
    if (rc)
        return rc;
    sl_sha256_release(&fill->digest);
    fill->digest = fresh;
    fill->bytes = 0;
    return 0;
}

int sl_fill_commit(struct sl_fill *fill, const char *expected, char ret_sha256[SL_SHA256_HEX + 1],
                   char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    static const struct timespec whole[2] = {{.tv_sec = WHOLE_TIME_S}, {.tv_sec = WHOLE_TIME_S}};
    char found[SL_SHA256_HEX + 1], path[SL_PATH_MAX] = "", dir[SL_PATH_MAX] = "";
    sl_sha256_hex(&fill->digest, found);
    int rc = 0;
    if (expected && strcmp(expected, found) != 0) {
        unlink(fill->path);
        rc = sl_err_set(err, SL_DATA, "wrong sha256 of %lld bytes: expected %s, found %s",
                        (long long)fill->bytes, expected, found);
    }
    if (rc == 0)
        rc = sl_path(dir, err, "%s/sha256", fill->cache->dir);
    if (rc == 0)
        rc = sl_path(path, err, "%s/%s", dir, found);
    if (rc == 0 && (fchmod(fill->fd, 0444) || futimens(fill->fd, whole) || fsync(fill->fd)))
        rc = sl_err_errno(err, "finishing %s", fill->path);
    if (rc == 0 && rename(fill->path, path))
        rc = sl_err_errno(err, "renaming %s to %s", fill->path, path);
    if (rc == 0)
        rc = sl_dir_sync(dir, err);
    sl_fill_abort(fill);
    if (rc)
        return rc;
    memcpy(ret_sha256, found, sizeof found);
    memcpy(ret_path, path, sizeof path);
    return 0;
}

void sl_fill_abort(struct sl_fill *fill)
{
    sl_sha256_release(&fill->digest);
    if (fill->fd >= 0)
        close(fill->fd); /* the lock goes with it */
    fill->fd = -1;
}

int sl_cache_place(const char *path, const char *dest, struct sl_err *err)
{
    char parent[SL_PATH_MAX], target[SL_PATH_MAX];
    int rc = sl_path(parent, err, "%s", dest);
    if (rc)
        return rc;
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent) {
        *slash = 0;
        rc = sl_mkdirs(parent, err);
        if (rc)
            return rc;
    }
    if (link(path, dest) == 0)
        return 0;
    if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != ENOTSUP)
        return sl_err_errno(err, "linking %s to %s", dest, path);
    if (!realpath(path, target))
        return sl_err_errno(err, "resolving %s", path);
    if (symlink(target, dest))
        return sl_err_errno(err, "linking %s to %s", dest, target);
    return 0;
}
