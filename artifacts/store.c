/* The store as a whole: its lock, its folders, what a crash has left. */
#include "artifacts/remote.h"
#include "artifacts/store_priv.h"
#include "base/json.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define STORE_FORMAT 1

static int check_format(struct sl_store *store, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/store.json", store->dir);
    if (rc)
        return rc;
    if (!sl_file_exists(path)) {
        json_t *j = json_pack("{s:i}", "format", STORE_FORMAT);
        rc = j ? sl_json_write(path, j, err) : sl_err_set(err, SL_NOMEM, "out of memory");
        json_decref(j);
        return rc;
    }
    json_t *j;
    rc = sl_json_read(path, SL_RECORD_MAX_BYTES, &j, err);
    if (rc)
        return rc;
    int64_t format = sl_json_int(j, "format", -1);
    json_decref(j);
    if (format == STORE_FORMAT)
        return 0;
    return sl_err_set(err, SL_SPEC, "%s has store format %lld; this program knows format %d only",
                      store->dir, (long long)format, STORE_FORMAT);
}

static int make_folders(struct sl_store *store, struct sl_err *err)
{
    static const char *const folders[] = {"blobs",   "blobs/sha256", "artifacts", "markers",
                                          "pins",    "journal",      "uploads",   "refunds"};
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/tmp", store->dir);
    if (rc == 0)
        rc = sl_rmtree(path, err);
    if (rc == 0)
        rc = sl_mkdirs(path, err);
    for (size_t i = 0; rc == 0 && i < sizeof folders / sizeof *folders; i++) {
        rc = sl_path(path, err, "%s/%s", store->dir, folders[i]);
        if (rc == 0)
            rc = sl_mkdirs(path, err);
    }
    /* All of them at once, so that no blob's folder is ever newer than its last sync. */
    for (int i = 0; rc == 0 && i < 256; i++) {
        rc = sl_path(path, err, "%s/blobs/sha256/%02x", store->dir, i);
        if (rc == 0)
            rc = sl_mkdirs(path, err);
    }
    if (rc == 0)
        rc = sl_path(path, err, "%s/blobs/sha256", store->dir);
    if (rc == 0)
        rc = sl_dir_sync(path, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/blobs", store->dir);
    if (rc == 0)
        rc = sl_dir_sync(path, err);
    if (rc == 0)
        rc = sl_dir_sync(store->dir, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/..", store->dir);
    return rc ? rc : sl_dir_sync(path, err);
}

int sl_store_open(const char *dir, struct sl_store **ret_store, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_mkdirs(dir, err);
    if (rc)
        return rc;
    struct sl_store *store = calloc(1, sizeof *store);
    if (!store)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_init(&store->mutex, NULL);
    pthread_mutex_init(&store->blob_mutex, NULL);
    store->lock_fd = -1;
    store->dir = strdup(dir);
    store->newest = json_object();
    store->highest = json_object();
    store->reserved = json_object();
    store->held = json_object();
    store->fresh = json_object();
    if (!store->dir || !store->newest || !store->highest || !store->reserved || !store->held ||
        !store->fresh)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        rc = sl_path(path, err, "%s/lock", dir);
    if (rc == 0) {
        store->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (store->lock_fd < 0)
            rc = sl_err_errno(err, "opening %s", path);
        else if (flock(store->lock_fd, LOCK_EX | LOCK_NB))
            rc = errno == EWOULDBLOCK
                     ? sl_err_set(err, SL_CONFLICT,
                                  "another server is using %s (it holds %s): stop it, or give "
                                  "another --data folder",
                                  dir, path)
                     : sl_err_errno(err, "locking %s", path);
    }
    if (rc == 0)
        rc = check_format(store, err);
    if (rc == 0)
        rc = make_folders(store, err);
    if (rc == 0)
        rc = sl_store_replay(store, err);
    if (rc) {
        sl_store_close(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

void sl_store_close(struct sl_store *store)
{
    if (!store)
        return;
    if (store->lock_fd >= 0)
        close(store->lock_fd);
    sl_remote_free(store->remote);
    json_decref(store->newest);
    json_decref(store->highest);
    json_decref(store->reserved);
    json_decref(store->lineage);
    json_decref(store->held);
    json_decref(store->fresh);
    free(store->guards);
    pthread_mutex_destroy(&store->blob_mutex);
    pthread_mutex_destroy(&store->mutex);
    free(store->dir);
    free(store);
}
