/* Blobs of the store, and the small durable writes that versions are made of. */
#include "artifacts/remote.h"
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FETCHES 3

struct sl_blob_writer {
    struct sl_store *store;
    struct sl_sha256 digest;
    char expected[SL_SHA256_HEX + 1]; /* "" : any */
    char tmp[SL_PATH_MAX];
    int64_t bytes;
    int fd;
};

int sl_store_blob_path(const struct sl_store *store, const char *sha256, char ret_path[SL_PATH_MAX],
                       struct sl_err *err)
{
    if (!sl_sha256_valid(sha256))
        return sl_err_set(err, SL_SPEC, "not a sha256 (64 lower-case hex digits): %.80s",
                          sha256 ? sha256 : "(none)");
    return sl_path(ret_path, err, "%s/blobs/sha256/%.2s/%s", store->dir, sha256, sha256);
}

static int make_tmp(const struct sl_store *store, char ret_path[SL_PATH_MAX], int *ret_fd,
                    struct sl_err *err)
{
    char id[SL_ID_HEX + 1], path[SL_PATH_MAX];
    sl_random_id(id);
    int rc = sl_path(path, err, "%s/tmp/%s", store->dir, id);
    if (rc)
        return rc;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return sl_err_errno(err, "creating %s", path);
    memcpy(ret_path, path, sizeof path);
    *ret_fd = fd;
    return 0;
}

int sl_store_sync_parent(const char *path, struct sl_err *err)
{
    char parent[SL_PATH_MAX];
    int rc = sl_path(parent, err, "%s", path);
    if (rc)
        return rc;
    *strrchr(parent, '/') = 0;
    return sl_dir_sync(parent, err);
}

int sl_store_mkdir(const char *path, struct sl_err *err)
{
    if (mkdir(path, 0755) && errno != EEXIST)
        return sl_err_errno(err, "making folder %s", path);
    /* Also when it was there: an earlier call may have died before its sync. */
    return sl_store_sync_parent(path, err);
}

int sl_store_create(struct sl_store *store, const char *path, const char *text, bool *ret_exists,
                    struct sl_err *err)
{
    char tmp[SL_PATH_MAX];
    int fd = -1, rc = make_tmp(store, tmp, &fd, err);
    if (rc)
        return rc;
    rc = sl_write_all(fd, text, strlen(text), err);
    if (rc == 0 && fsync(fd))
        rc = sl_err_errno(err, "syncing %s", tmp);
    close(fd);
    bool exists = false;
    /* link, unlike rename, fails when the name is taken. */
    if (rc == 0 && link(tmp, path)) {
        if (errno == EEXIST)
            exists = true;
        else
            rc = sl_err_errno(err, "creating %s", path);
    }
    unlink(tmp);
    if (rc == 0)
        rc = sl_store_sync_parent(path, err);
    if (rc == 0)
        *ret_exists = exists;
    return rc;
}

int sl_blob_begin(struct sl_store *store, const char *expected, struct sl_blob_writer **ret_writer,
                  struct sl_err *err)
{
    if (expected && !sl_sha256_valid(expected))
        return sl_err_set(err, SL_SPEC, "not a sha256 (64 lower-case hex digits): %.80s", expected);
    struct sl_blob_writer *w = calloc(1, sizeof *w);
    if (!w)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    w->store = store;
    w->fd = -1;
    if (expected)
        memcpy(w->expected, expected, SL_SHA256_HEX);
    int rc = sl_sha256_init(&w->digest, err);
    if (rc == 0)
        rc = make_tmp(store, w->tmp, &w->fd, err);
    if (rc) {
        sl_blob_abort(w);
        return rc;
    }
    *ret_writer = w;
    return 0;
}

int sl_blob_write(struct sl_blob_writer *w, const void *data, size_t len, struct sl_err *err)
{
    if ((int64_t)len > SL_BLOB_MAX_BYTES - w->bytes)
        return sl_err_set(err, SL_SPEC, "a blob may have at most %lld bytes",
                          (long long)SL_BLOB_MAX_BYTES);
    int rc = sl_write_all(w->fd, data, len, err);
    if (rc)
        return sl_err_wrap(err, rc, "storing a blob in %s", w->store->dir);
    sl_sha256_update(&w->digest, data, len);
    w->bytes += (int64_t)len;
    return 0;
}

int sl_blob_commit(struct sl_blob_writer *w, char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err)
{
    char found[SL_SHA256_HEX + 1], path[SL_PATH_MAX] = "", dir[SL_PATH_MAX] = "";
    sl_sha256_hex(&w->digest, found);
    int rc = 0;
    if (w->expected[0] && strcmp(found, w->expected) != 0)
        rc = sl_err_set(err, SL_DATA, "wrong sha256 of %lld bytes: expected %s, found %s",
                        (long long)w->bytes, w->expected, found);
    if (rc == 0 && fsync(w->fd))
        rc = sl_err_errno(err, "syncing a blob in %s", w->store->dir);
    if (rc == 0)
        rc = sl_store_blob_path(w->store, found, path, err);
    if (rc == 0)
        rc = sl_path(dir, err, "%s/blobs/sha256/%.2s", w->store->dir, found);
    if (rc == 0)
        sl_store_hold(w->store, found);
    if (rc == 0)
        rc = sl_remote_keep(w->store, found, w->tmp, err);
    /* Over an older copy too: the same bytes, and it heals one that a failing disk has changed. */
    if (rc == 0 && rename(w->tmp, path))
        rc = sl_err_errno(err, "renaming a blob to %s", path);
    if (rc == 0) {
        w->tmp[0] = 0;
        rc = sl_dir_sync(dir, err);
    }
    if (rc == 0 && ret_sha256)
        memcpy(ret_sha256, found, sizeof found);
    sl_blob_abort(w);
    return rc;
}

void sl_blob_abort(struct sl_blob_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->tmp[0])
        unlink(w->tmp);
    sl_sha256_release(&w->digest);
    free(w);
}

static void hold(struct sl_store *store, const char *sha256)
{
    json_object_set_new(store->held, sha256,
                        json_integer(sl_boot_us() + SL_STORE_HOLD_S * INT64_C(1000000)));
}

void sl_store_hold(struct sl_store *store, const char *sha256)
{
    pthread_mutex_lock(&store->blob_mutex);
    hold(store, sha256);
    pthread_mutex_unlock(&store->blob_mutex);
}

void sl_store_unhold(struct sl_store *store, const char *sha256)
{
    pthread_mutex_lock(&store->blob_mutex);
    json_object_del(store->held, sha256);
    if (store->collecting)
        json_object_set_new(store->fresh, sha256, json_true());
    pthread_mutex_unlock(&store->blob_mutex);
}

/* Its file here, or else the note that the bucket has it. path, the first one's, becomes the one that was found. */
static int find(const struct sl_store *store, const char *sha256, char path[SL_PATH_MAX], struct stat *ret_st)
{
    if (stat(path, ret_st) == 0)
        return 0;
    if (errno != ENOENT || !store->remote || sl_remote_path(store, sha256, path, NULL))
        return -1;
    return stat(path, ret_st);
}

int sl_blob_hold(struct sl_store *store, const char *sha256, int64_t *ret_bytes, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct stat st;
    int rc = sl_store_blob_path(store, sha256, path, err);
    if (rc)
        return rc;
    /* Blobs are removed under this mutex only. */
    pthread_mutex_lock(&store->blob_mutex);
    bool there = find(store, sha256, path, &st) == 0;
    int why = errno;
    if (there) {
        hold(store, sha256);
        utimensat(AT_FDCWD, path, NULL, 0); /* its age for collections starts anew */
        if (store->remote && sl_remote_path(store, sha256, path, NULL) == 0)
            utimensat(AT_FDCWD, path, NULL, 0);
    }
    pthread_mutex_unlock(&store->blob_mutex);
    errno = why;
    if (!there)
        return why == ENOENT ? sl_err_set(err, SL_NOTFOUND, "there is no blob %s", sha256)
                             : sl_err_errno(err, "looking at %s", path);
    if (ret_bytes)
        *ret_bytes = st.st_size;
    return 0;
}

int sl_blob_put(struct sl_store *store, const void *data, size_t len,
                char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err)
{
    struct sl_blob_writer *w = NULL;
    int rc = sl_blob_begin(store, NULL, &w, err);
    if (rc || !w)
        return rc;
    rc = sl_blob_write(w, data, len, err);
    if (rc) {
        sl_blob_abort(w);
        return rc;
    }
    return sl_blob_commit(w, ret_sha256, err);
}

static int opened(int fd, const char *path, int *ret_fd, int64_t *ret_bytes, struct sl_err *err)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        int rc = sl_err_errno(err, "opening %s", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    *ret_fd = fd;
    *ret_bytes = st.st_size;
    return 0;
}

int sl_blob_open_here(struct sl_store *store, const char *sha256, int *ret_fd, int64_t *ret_bytes,
                      struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_blob_path(store, sha256, path, err);
    if (rc)
        return rc;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return sl_err_set(err, SL_NOTFOUND, "there is no blob %s here", sha256);
    return opened(fd, path, ret_fd, ret_bytes, err);
}

int sl_blob_size_here(struct sl_store *store, const char *sha256, int64_t *ret_bytes, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct stat st;
    int rc = sl_store_blob_path(store, sha256, path, err);
    if (rc)
        return rc;
    if (stat(path, &st))
        return errno == ENOENT ? sl_err_set(err, SL_NOTFOUND, "there is no blob %s here", sha256)
                               : sl_err_errno(err, "looking at %s", path);
    *ret_bytes = st.st_size;
    return 0;
}

int sl_blob_open(struct sl_store *store, const char *sha256, int *ret_fd, int64_t *ret_bytes,
                 struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_blob_path(store, sha256, path, err);
    if (rc)
        return rc;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    for (int i = 0; fd < 0 && errno == ENOENT && store->remote && i < FETCHES; i++) { /* again: it may be evicted meanwhile */
        rc = sl_remote_fetch(store, sha256, &fd, err);
        if (rc)
            return rc;
        errno = ENOENT;
    }
    if (fd < 0 && errno == ENOENT)
        return sl_err_set(err, SL_NOTFOUND, "there is no blob %s", sha256);
    return opened(fd, path, ret_fd, ret_bytes, err);
}

int sl_blob_stat(struct sl_store *store, const char *sha256, int64_t *ret_bytes, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_blob_path(store, sha256, path, err);
    if (rc)
        return rc;
    struct stat st;
    if (find(store, sha256, path, &st)) {
        if (errno == ENOENT)
            return sl_err_set(err, SL_NOTFOUND, "there is no blob %s", sha256);
        return sl_err_errno(err, "looking at %s", path);
    }
    if (ret_bytes)
        *ret_bytes = st.st_size;
    return 0;
}
