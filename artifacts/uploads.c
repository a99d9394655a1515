/* Uploads in pieces. A blob's beginning lies in uploads/<digest>; one request at a time writes to it, the
 * newest one, and the bytes are hashed as they come as long as the file was begun in this process. */
#include "artifacts/remote.h"
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One file, shared by the requests that write to it. The store's blob_mutex guards the list and users,
 * mutex all else. */
struct upload_file {
    struct upload_file *next;
    int users;
    char sha256[SL_SHA256_HEX + 1], path[SL_PATH_MAX];
    pthread_mutex_t mutex;
    int fd;
    int64_t bytes;
    unsigned turn;       /* whose turn it is to write */
    bool hashed, closed; /* digest has all bytes; it has become a blob or is gone */
    struct sl_sha256 digest;
};

struct sl_upload {
    struct sl_store *store;
    struct upload_file *file;
    unsigned turn;
    int64_t total;
};

static void free_file(struct upload_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    sl_sha256_release(&f->digest);
    pthread_mutex_destroy(&f->mutex);
    free(f);
}

static int open_file(struct sl_store *store, const char *sha256, struct upload_file **ret_file,
                     struct sl_err *err)
{
    struct upload_file *f = calloc(1, sizeof *f);
    struct stat st;
    if (!f)
        return sl_store_nomem(err);
    pthread_mutex_init(&f->mutex, NULL);
    memcpy(f->sha256, sha256, SL_SHA256_HEX);
    f->fd = -1;
    int rc = sl_path(f->path, err, "%s/uploads/%s", store->dir, sha256);
    if (rc == 0) {
        f->fd = open(f->path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (f->fd < 0 || fstat(f->fd, &st))
            rc = sl_err_errno(err, "creating %s", f->path);
    }
    if (rc) {
        free_file(f);
        return rc;
    }
    f->bytes = st.st_size;
    *ret_file = f;
    return 0;
}

static int use(struct sl_store *store, const char *sha256, struct upload_file **ret_file,
               struct sl_err *err)
{
    struct upload_file *f;
    int rc = 0;
    pthread_mutex_lock(&store->blob_mutex);
    for (f = store->uploads; f && strcmp(f->sha256, sha256) != 0; f = f->next)
        ;
    if (!f) {
        rc = open_file(store, sha256, &f, err);
        if (rc == 0) {
            f->next = store->uploads;
            store->uploads = f;
        }
    }
    if (rc == 0) {
        f->users++;
        *ret_file = f;
    }
    pthread_mutex_unlock(&store->blob_mutex);
    return rc;
}

static void unuse(struct sl_store *store, struct upload_file *f)
{
    pthread_mutex_lock(&store->blob_mutex);
    bool last = --f->users == 0;
    for (struct upload_file **at = &store->uploads; last && *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    pthread_mutex_unlock(&store->blob_mutex);
    if (last)
        free_file(f);
}

int sl_upload_offset(struct sl_store *store, const char *sha256, int64_t *ret_offset,
                     struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct stat st;
    int rc = sl_store_check_sha256(sha256, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/uploads/%s", store->dir, sha256);
    if (rc)
        return rc;
    if (stat(path, &st) && errno != ENOENT)
        return sl_err_errno(err, "looking at %s", path);
    *ret_offset = sl_file_exists(path) ? st.st_size : 0;
    return 0;
}

static int start_piece(struct upload_file *f, int64_t offset, struct sl_err *err)
{
    if (f->closed)
        return sl_err_set(err, SL_RETRY, "the upload of %s is just being finished", f->sha256);
    if (offset != f->bytes && offset != 0)
        return sl_err_set(err, SL_CONFLICT,
                          "%lld bytes of %s have come so far: go on from there, not from %lld",
                          (long long)f->bytes, f->sha256, (long long)offset);
    if (offset == 0) {
        struct sl_sha256 fresh = {NULL};
        if (ftruncate(f->fd, 0))
            return sl_err_errno(err, "emptying %s", f->path);
        int rc = sl_sha256_init(&fresh, err);
        if (rc)
            return rc;
        sl_sha256_release(&f->digest);
        f->digest = fresh;
        f->bytes = 0;
        f->hashed = true;
    }
    f->turn++;
    return 0;
}

int sl_upload_begin(struct sl_store *store, const char *sha256, int64_t offset, int64_t total,
                    struct sl_upload **ret_upload, struct sl_err *err)
{
    struct upload_file *f = NULL;
    int rc = sl_store_check_sha256(sha256, err);
    if (rc)
        return rc;
    if (total < 0 || total > SL_BLOB_MAX_BYTES || offset < 0 || offset > total)
        return sl_err_set(err, SL_SPEC,
                          "a piece needs its offset and the whole blob's bytes, at most %lld",
                          (long long)SL_BLOB_MAX_BYTES);
    struct sl_upload *u = calloc(1, sizeof *u);
    rc = u ? use(store, sha256, &f, err) : sl_store_nomem(err);
    if (rc) {
        free(u);
        return rc;
    }
    pthread_mutex_lock(&f->mutex);
    rc = start_piece(f, offset, err);
    *u = (struct sl_upload){store, f, f->turn, total};
    pthread_mutex_unlock(&f->mutex);
    if (rc) {
        sl_upload_abort(u);
        return rc;
    }
    *ret_upload = u;
    return 0;
}

/* The file's mutex is held. */
static int check_turn(const struct sl_upload *u, struct sl_err *err)
{
    if (u->turn == u->file->turn && !u->file->closed)
        return 0;
    return sl_err_set(err, SL_CONFLICT, "another request goes on with the upload of %s",
                      u->file->sha256);
}

int sl_upload_write(struct sl_upload *u, const void *data, size_t len, struct sl_err *err)
{
    struct upload_file *f = u->file;
    pthread_mutex_lock(&f->mutex);
    int rc = check_turn(u, err);
    if (rc == 0 && (int64_t)len > u->total - f->bytes)
        rc = sl_err_set(err, SL_SPEC, "%s: more than the %lld bytes that were announced", f->sha256,
                        (long long)u->total);
    for (size_t done = 0; rc == 0 && done < len;) {
        ssize_t n = pwrite(f->fd, (const char *)data + done, len - done, f->bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            bool full = errno == ENOSPC || errno == EDQUOT;
            rc = sl_err_errno(err, "storing an upload in %s", u->store->dir);
            if (full) { /* what nobody may go on with must not keep the disk full */
                f->closed = true;
                unlink(f->path);
            }
            break;
        }
        if (f->hashed)
            sl_sha256_update(&f->digest, (const char *)data + done, (size_t)n);
        f->bytes += n;
        done += (size_t)n;
    }
    pthread_mutex_unlock(&f->mutex);
    return rc;
}

/* All bytes are there. The file's mutex is held, and nobody else writes. */
static int finish(struct sl_store *store, struct upload_file *f, struct sl_err *err)
{
    char found[SL_SHA256_HEX + 1], path[SL_PATH_MAX];
    int rc = 0;
    f->closed = true;
    if (f->hashed)
        sl_sha256_hex(&f->digest, found);
    else
        rc = sl_sha256_file(f->path, found, NULL, err);
    f->hashed = false;
    if (rc == 0 && strcmp(found, f->sha256) != 0) {
        unlink(f->path);
        return sl_err_set(err, SL_DATA, "wrong sha256 of %lld bytes: expected %s, found %s",
                          (long long)f->bytes, f->sha256, found);
    }
    if (rc == 0 && fsync(f->fd))
        rc = sl_err_errno(err, "syncing %s", f->path);
    if (rc == 0)
        rc = sl_store_blob_path(store, found, path, err);
    if (rc == 0)
        sl_store_hold(store, found);
    if (rc == 0)
        rc = sl_remote_keep(store, found, f->path, err);
    if (rc == 0 && rename(f->path, path))
        rc = sl_err_errno(err, "renaming a blob to %s", path);
    if (rc == 0)
        rc = sl_store_sync_parent(path, err);
    return rc;
}

int sl_upload_end(struct sl_upload *u, bool *ret_done, int64_t *ret_offset, struct sl_err *err)
{
    struct upload_file *f = u->file;
    pthread_mutex_lock(&f->mutex);
    int rc = check_turn(u, err);
    bool done = rc == 0 && f->bytes == u->total;
    if (done)
        rc = finish(u->store, f, err);
    if (rc == 0) {
        *ret_done = done;
        *ret_offset = f->bytes;
    }
    pthread_mutex_unlock(&f->mutex);
    sl_upload_abort(u);
    return rc;
}

void sl_upload_abort(struct sl_upload *u)
{
    if (!u)
        return;
    unuse(u->store, u->file);
    free(u);
}

struct cleaning {
    struct sl_store *store;
    int64_t before_us;
};

static int clean_upload(void *arg, const char *path, const char *name, struct sl_err *err)
{
    const struct cleaning *c = arg;
    struct stat st;
    (void)err;
    if (stat(path, &st) ||
        st.st_mtim.tv_sec * INT64_C(1000000) + st.st_mtim.tv_nsec / 1000 > c->before_us)
        return 0;
    pthread_mutex_lock(&c->store->blob_mutex);
    const struct upload_file *f = c->store->uploads;
    while (f && strcmp(f->sha256, name) != 0)
        f = f->next;
    if (!f)
        unlink(path);
    pthread_mutex_unlock(&c->store->blob_mutex);
    return 0;
}

int sl_store_clean_uploads(struct sl_store *store, int64_t grace_us, struct sl_err *err)
{
    struct cleaning c = {store, sl_now_us() - grace_us};
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/uploads", store->dir);
    return rc ? rc : sl_dir_each(dir, clean_upload, &c, err);
}
