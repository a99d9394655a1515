#include "artifacts/cache.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_POLL_US 50000
#define CHUNK_BYTES (256u << 10)

int sl_cache_open(const char *dir, struct sl_cache *ret_cache, struct sl_err *err)
{
    static const char *const folders[] = {"sha256", "partial", "urls", "uses"};
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

/* Its turn to be evicted comes anew. Another owner's file keeps its time. */
static int touch(const char *path, struct stat *ret_st)
{
    static const struct timespec now[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
    utimensat(AT_FDCWD, path, now, 0);
    return stat(path, ret_st);
}

bool sl_cache_has(const struct sl_cache *cache, const char *sha256, char ret_path[SL_PATH_MAX],
                  int64_t *ret_bytes)
{
    struct stat st;
    if (sl_path(ret_path, NULL, "%s/sha256/%s", cache->dir, sha256) || stat(ret_path, &st) || touch(ret_path, &st) ||
        st.st_mtim.tv_sec != SL_CACHE_WHOLE_TIME_S)
        return false;
    *ret_bytes = st.st_size;
    return true;
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
    int lock = sl_cache_lock(cache->dir, false); /* an eviction under way ends first */
    bool missing = touch(path, &st) != 0;
    int why = errno;
    if (lock >= 0)
        close(lock);
    errno = why;
    if (missing) {
        if (errno == ENOENT)
            return sl_err_set(err, SL_NOTFOUND, "%s is not in the cache", sha256);
        return sl_err_errno(err, "looking at %s", path);
    }
    if (st.st_mtim.tv_sec != SL_CACHE_WHOLE_TIME_S) {
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
    off_t at = lseek(fill->fd, 0, SEEK_CUR);
    int rc = sl_write_all(fill->fd, data, len, NULL);
    if (rc && (errno == ENOSPC || errno == EDQUOT) && at >= 0) {
        /* What nobody uses makes room. */
        sl_cache_evict(fill->cache, 0, NULL, NULL);
        if (lseek(fill->fd, at, SEEK_SET) == at)
            rc = sl_write_all(fill->fd, data, len, err);
    } else if (rc) {
        rc = sl_err_errno(err, "writing %s", fill->path);
    }
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
    static const struct timespec whole[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = SL_CACHE_WHOLE_TIME_S}};
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
    /* The folder is not synced: a name that a power cut takes away is fetched again. */
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

int sl_cache_lock(const char *dir, bool exclusive)
{
    char path[SL_PATH_MAX];
    if (sl_path(path, NULL, "%s/lock", dir))
        return -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    while (fd >= 0 && flock(fd, exclusive ? LOCK_EX : LOCK_SH) && errno == EINTR)
        ;
    return fd;
}

/* The folder of the cache that a file lies in: its path without /sha256/<digest>. False: not in one. */
static bool cache_of(const char *path, char ret_dir[SL_PATH_MAX], const char **ret_name)
{
    const char *slash = strrchr(path, '/');
    if (!slash || !sl_sha256_valid(slash + 1) || slash - path < 7 ||
        strncmp(slash - 7, "/sha256", 7) != 0)
        return false;
    *ret_name = slash + 1;
    return sl_path(ret_dir, NULL, "%.*s", (int)(slash - 7 - path), path) == 0;
}

/* On another file system: a symbolic link, and before it the note that says who has one. */
static int link_far(const char *path, const char *dest, const char *dir, const char *name,
                    struct sl_err *err)
{
    char target[SL_PATH_MAX], note[SL_PATH_MAX], place[SL_PATH_MAX], id[SL_ID_HEX + 1];
    const char *slash = strrchr(dest, '/');
    if (!realpath(path, target))
        return sl_err_errno(err, "resolving %s", path);
    if (name) {
        char parent[SL_PATH_MAX];
        int rc = slash ? sl_path(parent, err, "%.*s", (int)(slash - dest), dest)
                       : sl_path(parent, err, ".");
        if (rc == 0 && !realpath(slash == dest ? "/" : parent, place))
            rc = sl_err_errno(err, "resolving %s", parent);
        sl_random_id(id);
        if (rc == 0)
            rc = sl_path(note, err, "%s/uses/%s.%.12s", dir, name, id);
        char whole[2 * SL_PATH_MAX];
        snprintf(whole, sizeof whole, "%s/%s", place, slash ? slash + 1 : dest);
        if (rc == 0 && symlink(whole, note))
            rc = sl_err_errno(err, "noting the use of %s", path);
        if (rc)
            return rc;
    }
    if (symlink(target, dest))
        return sl_err_errno(err, "linking %s to %s", dest, target);
    return 0;
}

int sl_cache_place(const char *path, const char *dest, struct sl_err *err)
{
    char parent[SL_PATH_MAX], dir[SL_PATH_MAX];
    const char *name = NULL;
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
    int lock = cache_of(path, dir, &name) ? sl_cache_lock(dir, false) : -1;
    if (link(path, dest) == 0)
        rc = 0;
    else if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != ENOTSUP)
        rc = sl_err_errno(err, "linking %s to %s", dest, path);
    else
        rc = link_far(path, dest, dir, name, err);
    if (lock >= 0)
        close(lock);
    return rc;
}
