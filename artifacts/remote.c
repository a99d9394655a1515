#include "artifacts/remote.h"
#include "artifacts/cache.h"
#include "artifacts/transfer.h"
#include "base/clock.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FETCHING "fetching"
#define EVICT_TO(max) ((max) / 10 * 9)

int sl_remote_path(const struct sl_store *store, const char *sha256, char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    int rc = sl_store_check_sha256(sha256, err);
    return rc ? rc : sl_path(ret_path, err, "%s/blobs/remote/%.2s/%s", store->dir, sha256, sha256);
}

void sl_remote_free(struct sl_remote *r)
{
    if (!r)
        return;
    sl_target_close(r->target);
    json_decref(r->removing);
    pthread_cond_destroy(&r->removed);
    free(r);
}

/* ---- local copies ---------------------------------------------------------------------------- */

struct copy {
    char sha256[SL_SHA256_HEX + 1];
    int64_t bytes, used_us;
};
struct copies {
    struct copy *items;
    size_t n, room;
    int64_t bytes;
};

static int64_t us_of(struct timespec t)
{
    return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

static int list_copies(const struct sl_store *store, struct copies *all, struct sl_err *err)
{
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    struct stat st;
    int rc = 0;
    for (int i = 0; rc == 0 && i < 256; i++) {
        rc = sl_path(dir, err, "%s/blobs/sha256/%02x", store->dir, i);
        DIR *d = rc ? NULL : opendir(dir);
        if (rc == 0 && !d)
            rc = sl_err_errno(err, "reading %s", dir);
        for (struct dirent *e; rc == 0 && (e = readdir(d));) {
            if (!sl_sha256_valid(e->d_name) || sl_path(path, NULL, "%s/%s", dir, e->d_name) || stat(path, &st))
                continue;
            if (all->n == all->room) {
                size_t room = all->room ? 2 * all->room : 256;
                struct copy *more = realloc(all->items, room * sizeof *more);
                if (!more) {
                    rc = sl_store_nomem(err);
                    break;
                }
                all->items = more;
                all->room = room;
            }
            struct copy *c = &all->items[all->n++];
            memcpy(c->sha256, e->d_name, sizeof c->sha256);
            c->bytes = st.st_size;
            c->used_us = us_of(st.st_atim) > us_of(st.st_mtim) ? us_of(st.st_atim) : us_of(st.st_mtim);
            all->bytes += st.st_size;
        }
        if (d)
            closedir(d);
    }
    return rc;
}

static int oldest_first(const void *a, const void *b)
{
    const struct copy *x = a, *y = b;
    return x->used_us < y->used_us ? -1 : x->used_us > y->used_us;
}

/* Removes what was used longest ago and the bucket has. Who reads one of them has it open. True: what came meanwhile is over the limit
 * again. */
static bool evict_once(struct sl_store *store)
{
    struct sl_remote *r = store->remote;
    struct copies all = {NULL, 0, 0, 0};
    char path[SL_PATH_MAX], note[SL_PATH_MAX];
    pthread_mutex_lock(&store->blob_mutex);
    r->local_bytes = 0; /* what comes from now on, which the list may not have */
    pthread_mutex_unlock(&store->blob_mutex);
    if (list_copies(store, &all, NULL) == 0 && all.n)
        qsort(all.items, all.n, sizeof *all.items, oldest_first);
    for (size_t i = 0; i < all.n && all.bytes > EVICT_TO(r->local_max); i++) {
        const struct copy *c = &all.items[i];
        if (sl_store_blob_path(store, c->sha256, path, NULL) || sl_remote_path(store, c->sha256, note, NULL))
            continue;
        pthread_mutex_lock(&store->blob_mutex);
        if (sl_file_exists(note) && unlink(path) == 0)
            all.bytes -= c->bytes;
        pthread_mutex_unlock(&store->blob_mutex);
    }
    free(all.items);
    pthread_mutex_lock(&store->blob_mutex);
    bool more = r->local_bytes > 0;
    r->local_bytes += all.bytes;
    more = more && r->local_bytes > r->local_max;
    r->evicting = more;
    pthread_mutex_unlock(&store->blob_mutex);
    return more;
}

static void evict(struct sl_store *store)
{
    while (evict_once(store))
        ;
}

static void count(struct sl_store *store, int64_t bytes)
{
    struct sl_remote *r = store->remote;
    pthread_mutex_lock(&store->blob_mutex);
    r->local_bytes += bytes;
    bool over = r->local_bytes > r->local_max && !r->evicting;
    r->evicting = r->evicting || over;
    pthread_mutex_unlock(&store->blob_mutex);
    if (over)
        evict(store);
}

/* ---- the bucket ------------------------------------------------------------------------------ */

static int write_note(struct sl_store *store, const char *sha256, int64_t bytes, struct sl_err *err)
{
    char path[SL_PATH_MAX], tmp[SL_PATH_MAX], id[SL_ID_HEX + 1];
    sl_random_id(id);
    int rc = sl_remote_path(store, sha256, path, err);
    if (rc == 0)
        rc = sl_path(tmp, err, "%s/tmp/%s", store->dir, id);
    if (rc)
        return rc;
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, bytes) || fsync(fd) || rename(tmp, path))
        rc = sl_err_errno(err, "writing %s", path);
    if (fd >= 0)
        close(fd);
    if (rc)
        unlink(tmp);
    return rc ? rc : sl_store_sync_parent(path, err);
}

int sl_remote_keep(struct sl_store *store, const char *sha256, const char *path, struct sl_err *err)
{
    struct sl_remote *r = store->remote;
    const struct sl_target_file file = {path, sha256, sha256};
    char note[SL_PATH_MAX];
    struct sl_err why = SL_ERR_INIT;
    struct stat st;
    if (!r)
        return 0;
    int rc = sl_remote_path(store, sha256, note, err);
    if (rc == 0 && stat(path, &st))
        rc = sl_err_errno(err, "looking at %s", path);
    pthread_mutex_lock(&store->blob_mutex);
    while (rc == 0 && json_object_get(r->removing, sha256))
        pthread_cond_wait(&r->removed, &store->blob_mutex);
    pthread_mutex_unlock(&store->blob_mutex);
    if (rc || sl_file_exists(note))
        return rc;
    rc = sl_target_put(r->target, &file, 1, &why);
    if (rc) /* whoever uploads is not to blame */
        return sl_err_set(err, rc == SL_RETRY ? SL_RETRY : SL_IO, "the store's bucket: %s", why.msg);
    rc = write_note(store, sha256, st.st_size, err);
    if (rc == 0)
        count(store, st.st_size);
    return rc;
}

int sl_remote_fetch(struct sl_store *store, const char *sha256, int *ret_fd, struct sl_err *err)
{
    struct sl_remote *r = store->remote;
    char dir[SL_PATH_MAX], path[SL_PATH_MAX], note[SL_PATH_MAX];
    struct sl_transfer t = {.signer = r ? sl_target_signer(r->target) : NULL};
    struct sl_err why = SL_ERR_INIT;
    struct sl_cache cache;
    struct sl_got got;
    struct sl_buf url;
    struct stat st;
    int rc = sl_remote_path(store, sha256, note, err);
    if (rc == 0 && (!r || stat(note, &st)))
        rc = sl_err_set(err, SL_NOTFOUND, "there is no blob %s", sha256);
    if (rc == 0)
        rc = sl_store_blob_path(store, sha256, path, err);
    if (rc == 0)
        rc = sl_path(dir, err, "%s/" FETCHING, store->dir);
    if (rc == 0)
        rc = sl_cache_open(dir, &cache, err);
    if (rc)
        return rc;
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    rc = sl_target_url(r->target, sha256, &url, &why);
    const struct sl_want want = {.what = "a blob", .url = url.p, .sha256 = sha256, .bytes = st.st_size};
    if (rc == 0)
        rc = sl_transfer_want(&t, &cache, &want, &got, &why);
    sl_buf_release(&url);
    /* Two that wanted it at once: the second one finds it moved. */
    if (rc == 0 && rename(got.path, path) && errno != ENOENT)
        rc = sl_err_errno(&why, "moving a blob to %s", path);
    int fd = rc ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (rc == 0 && fd < 0 && errno != ENOENT)
        rc = sl_err_errno(&why, "opening %s", path);
    if (rc)
        return sl_err_set(err, rc == SL_RETRY ? SL_RETRY : SL_IO, "the store's bucket: blob %s: %s", sha256, why.msg);
    *ret_fd = fd;
    count(store, st.st_size);
    return 0;
}

void sl_remote_begin_remove(struct sl_store *store, const char *sha256)
{
    json_object_set_new(store->remote->removing, sha256, json_true());
}

int sl_remote_end_remove(struct sl_store *store, const char *sha256, struct sl_err *err)
{
    struct sl_remote *r = store->remote;
    int rc = sl_target_remove(r->target, sha256, err);
    pthread_mutex_lock(&store->blob_mutex);
    json_object_del(r->removing, sha256);
    pthread_cond_broadcast(&r->removed);
    pthread_mutex_unlock(&store->blob_mutex);
    return rc;
}

/* ---- setting up ------------------------------------------------------------------------------ */

/* What the disk alone has goes to the bucket, too. */
static int send_local(struct sl_store *store, const struct copies *all, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < all->n; i++) {
        rc = sl_store_blob_path(store, all->items[i].sha256, path, err);
        if (rc == 0)
            rc = sl_remote_keep(store, all->items[i].sha256, path, err);
    }
    return rc;
}

int sl_store_use_bucket(struct sl_store *store, const char *ref, int64_t local_max, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    struct copies all = {NULL, 0, 0, 0};
    struct sl_remote *r = calloc(1, sizeof *r);
    int rc = r ? 0 : sl_store_nomem(err);
    for (int i = -1; rc == 0 && i < 256; i++) {
        rc = i < 0 ? sl_path(dir, err, "%s/blobs/remote", store->dir) : sl_path(dir, err, "%s/blobs/remote/%02x", store->dir, i);
        if (rc == 0)
            rc = sl_store_mkdir(dir, err);
    }
    if (rc == 0)
        rc = sl_path(dir, err, "%s/" FETCHING, store->dir);
    if (rc == 0)
        rc = sl_rmtree(dir, err);
    if (rc == 0)
        rc = sl_target_open(ref, NULL, NULL, &r->target, err);
    if (rc == 0 && !sl_target_is_folder(r->target))
        rc = sl_err_set(err, SL_SPEC, "%s: write a slash behind it, for the folder of the blobs", ref);
    if (rc) {
        if (r)
            sl_target_close(r->target);
        free(r);
        return rc;
    }
    r->local_max = local_max;
    r->removing = json_object();
    pthread_cond_init(&r->removed, NULL);
    store->remote = r;
    rc = list_copies(store, &all, err);
    r->local_bytes = all.bytes;
    if (rc == 0)
        rc = send_local(store, &all, err);
    free(all.items);
    if (rc == 0)
        count(store, 0);
    return rc;
}
