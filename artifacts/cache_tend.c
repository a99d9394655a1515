/* What is in the cache, what goes when it is too large, and whether it is what it says. */
#include "artifacts/cache.h"
#include "base/clock.h"
#include "base/json.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define URL_NOTE_MAX_BYTES (64u << 10)

static int64_t time_us(const struct timespec *t)
{
    return t->tv_sec * INT64_C(1000000) + t->tv_nsec / 1000;
}

static int each(const struct sl_cache *cache, const char *folder, sl_dir_fn *fn, void *arg,
                struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/%s", cache->dir, folder);
    return rc ? rc : sl_dir_each(dir, fn, arg, err);
}

/* ---- uses ------------------------------------------------------------------------------------ */

/* Whether a note's place still points at the file. */
static bool still_used(const char *note, const char *file)
{
    char place[SL_PATH_MAX], target[SL_PATH_MAX], real[SL_PATH_MAX];
    ssize_t n = readlink(note, place, sizeof place - 1);
    if (n < 0)
        return false;
    place[n] = 0;
    n = readlink(place, target, sizeof target - 1);
    if (n < 0)
        return false;
    target[n] = 0;
    return realpath(file, real) && strcmp(real, target) == 0;
}

struct uses {
    const struct sl_cache *cache;
    json_t *digests; /* an object: those with a valid note */
    bool clean;      /* removes notes that are over; the lock is held exclusively */
};

static int look_at_use(void *arg, const char *path, const char *name, struct sl_err *err)
{
    const struct uses *u = arg;
    char digest[SL_SHA256_HEX + 1] = "", file[SL_PATH_MAX];
    if (strlen(name) > SL_SHA256_HEX)
        memcpy(digest, name, SL_SHA256_HEX);
    int rc = sl_path(file, err, "%s/sha256/%s", u->cache->dir, digest);
    if (rc)
        return rc;
    if (sl_sha256_valid(digest) && still_used(path, file))
        return json_object_set_new(u->digests, digest, json_true())
                   ? sl_err_set(err, SL_NOMEM, "out of memory")
                   : 0;
    if (u->clean)
        unlink(path);
    return 0;
}

/* ---- listing --------------------------------------------------------------------------------- */

struct listing {
    struct sl_cache_file *files;
    size_t n, room;
    const json_t *used;
};

static int add_file(void *arg, const char *path, const char *name, struct sl_err *err)
{
    struct listing *l = arg;
    struct stat st;
    if (!sl_sha256_valid(name) || stat(path, &st))
        return 0;
    if (l->n == l->room) {
        size_t room = l->room ? 2 * l->room : 256;
        struct sl_cache_file *bigger = realloc(l->files, room * sizeof *bigger);
        if (!bigger)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        l->files = bigger;
        l->room = room;
    }
    struct sl_cache_file *f = &l->files[l->n++];
    memcpy(f->sha256, name, SL_SHA256_HEX + 1);
    f->bytes = st.st_size;
    f->used_us = time_us(&st.st_atim);
    f->in_use = st.st_nlink > 1 || json_object_get(l->used, name);
    return 0;
}

static int by_use(const void *a, const void *b)
{
    const struct sl_cache_file *x = a, *y = b;
    return x->used_us < y->used_us ? -1 : x->used_us > y->used_us;
}

static int list(const struct sl_cache *cache, bool clean, struct listing *ret_listing,
                struct sl_err *err)
{
    struct uses uses = {cache, json_object(), clean};
    struct listing l = {.used = uses.digests};
    int rc = uses.digests ? each(cache, "uses", look_at_use, &uses, err)
                          : sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        rc = each(cache, "sha256", add_file, &l, err);
    json_decref(uses.digests);
    if (rc) {
        free(l.files);
        return rc;
    }
    if (l.n)
        qsort(l.files, l.n, sizeof *l.files, by_use);
    l.used = NULL;
    *ret_listing = l;
    return 0;
}

int sl_cache_list(const struct sl_cache *cache, struct sl_cache_file **ret_files, size_t *ret_n,
                  struct sl_err *err)
{
    struct listing l;
    int rc = list(cache, false, &l, err);
    if (rc)
        return rc;
    *ret_files = l.files;
    *ret_n = l.n;
    return 0;
}

/* ---- evicting -------------------------------------------------------------------------------- */

/* Adds up partial files, and drops those that are old and that nobody is at. */
static int look_at_partial(void *arg, const char *path, const char *name, struct sl_err *err)
{
    struct sl_cache_evicted *sum = arg;
    struct stat st;
    (void)name;
    (void)err;
    if (stat(path, &st))
        return 0;
    if (S_ISDIR(st.st_mode)) { /* a batch: it is over when nobody holds it */
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
            sl_rmtree(path, NULL);
        if (fd >= 0)
            close(fd);
        return 0;
    }
    if (time_us(&st.st_mtim) < sl_now_us() - SL_CACHE_PARTIAL_S * INT64_C(1000000)) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        bool free_now = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && unlink(path) == 0;
        if (fd >= 0)
            close(fd);
        if (free_now) {
            sum->files++;
            sum->bytes += st.st_size;
            return 0;
        }
    }
    sum->left_files++;
    sum->left_bytes += st.st_size;
    return 0;
}

/* What a URL gave last is of no use without the file. */
static int look_at_url(void *arg, const char *path, const char *name, struct sl_err *err)
{
    const struct sl_cache *cache = arg;
    char file[SL_PATH_MAX];
    json_t *note = NULL;
    (void)name;
    if (sl_json_read(path, URL_NOTE_MAX_BYTES, &note, NULL))
        return 0;
    int rc = sl_path(file, err, "%s/sha256/%s", cache->dir, sl_json_str(note, "sha256", "-"));
    json_decref(note);
    if (rc == 0 && !sl_file_exists(file))
        unlink(path);
    return rc;
}

static int half_of_disk(const struct sl_cache *cache, int64_t *ret_bytes, struct sl_err *err)
{
    struct statvfs fs;
    if (statvfs(cache->dir, &fs))
        return sl_err_errno(err, "looking at the disk of %s", cache->dir);
    *ret_bytes = (int64_t)fs.f_blocks / 2 * (int64_t)fs.f_frsize;
    return 0;
}

/* Unless it has come into use meanwhile: placing needs the lock that we hold. */
static bool evict(const struct sl_cache *cache, const struct sl_cache_file *f)
{
    char path[SL_PATH_MAX];
    struct stat st;
    return sl_path(path, NULL, "%s/sha256/%s", cache->dir, f->sha256) == 0 &&
           stat(path, &st) == 0 && st.st_nlink == 1 &&
           time_us(&st.st_atim) <= sl_now_us() - SL_CACHE_KEEP_S * INT64_C(1000000) &&
           unlink(path) == 0;
}

int sl_cache_evict(const struct sl_cache *cache, int64_t max_bytes,
                   struct sl_cache_evicted *ret_evicted, struct sl_err *err)
{
    struct sl_cache_evicted sum = {.files = 0};
    struct listing l = {.n = 0};
    int rc = max_bytes < 0 ? half_of_disk(cache, &max_bytes, err) : 0;
    int lock = rc ? -1 : sl_cache_lock(cache->dir, true);
    if (rc == 0 && lock < 0)
        rc = sl_err_errno(err, "locking %s", cache->dir);
    if (rc == 0)
        rc = each(cache, "partial", look_at_partial, &sum, err);
    if (rc == 0)
        rc = list(cache, true, &l, err);
    for (size_t i = 0; rc == 0 && i < l.n; i++) {
        sum.left_files++;
        sum.left_bytes += l.files[i].bytes;
    }
    for (size_t i = 0; rc == 0 && i < l.n && sum.left_bytes > max_bytes; i++) {
        if (l.files[i].in_use || !evict(cache, &l.files[i]))
            continue;
        sum.files++;
        sum.bytes += l.files[i].bytes;
        sum.left_files--;
        sum.left_bytes -= l.files[i].bytes;
    }
    if (rc == 0 && sum.files)
        rc = each(cache, "urls", look_at_url, (void *)(uintptr_t)cache, err);
    if (lock >= 0)
        close(lock);
    free(l.files);
    if (rc)
        return sl_err_wrap(err, rc, "cache %s", cache->dir);
    if (ret_evicted)
        *ret_evicted = sum;
    return 0;
}

/* ---- verifying ------------------------------------------------------------------------------- */

int sl_cache_verify(const struct sl_cache *cache, const struct sl_watch *watch,
                    void (*dropped)(void *arg, const char *sha256), void *arg, int64_t *ret_files,
                    int64_t *ret_dropped, struct sl_err *err)
{
    struct listing l;
    int64_t checked = 0, wrong = 0;
    int rc = list(cache, false, &l, err);
    if (rc)
        return rc;
    for (size_t i = 0; rc == 0 && i < l.n; i++) {
        char path[SL_PATH_MAX], found[SL_SHA256_HEX + 1];
        if (sl_watch_stop(watch))
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        if (rc == 0)
            rc = sl_path(path, err, "%s/sha256/%s", cache->dir, l.files[i].sha256);
        if (rc == 0 && !sl_file_exists(path))
            continue; /* evicted meanwhile */
        if (rc == 0)
            rc = sl_sha256_file(path, found, NULL, err);
        if (rc)
            break;
        checked++;
        sl_watch_progress(watch, l.files[i].bytes);
        if (strcmp(found, l.files[i].sha256) != 0 && unlink(path) == 0) {
            wrong++;
            if (dropped)
                dropped(arg, l.files[i].sha256);
        }
    }
    free(l.files);
    if (rc)
        return rc;
    *ret_files = checked;
    *ret_dropped = wrong;
    return 0;
}
