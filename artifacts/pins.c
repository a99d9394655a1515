/* Manifests as the store has them, and what pins them; the checks that versions share. */
#include "artifacts/manifest.h"
#include "artifacts/store_priv.h"
#include "base/json.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int sl_store_check_name(const char *what, const char *name, struct sl_err *err)
{
    if (sl_name_valid(name))
        return 0;
    return sl_err_set(
        err, SL_SPEC,
        "%s `%.150s` is not allowed: 1 to %d of a-z 0-9 . _ -, first a letter or digit", what,
        name ? name : "", SL_NAME_MAX);
}

int sl_store_check_sha256(const char *sha256, struct sl_err *err)
{
    if (sl_sha256_valid(sha256))
        return 0;
    return sl_err_set(err, SL_SPEC, "not a sha256 (64 lower-case hex digits): %.80s",
                      sha256 ? sha256 : "(none)");
}

int sl_store_read_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                           struct sl_err *err)
{
    int64_t bytes;
    int fd, rc = sl_blob_open(store, sha256, &fd, &bytes, err);
    if (rc)
        return sl_err_wrap(err, rc, "manifest");
    if (bytes > SL_MANIFEST_MAX_BYTES) {
        close(fd);
        return sl_err_set(err, SL_SPEC, "manifest %s has %lld bytes, more than %u", sha256,
                          (long long)bytes, SL_MANIFEST_MAX_BYTES);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    rc = sl_json_read(path, SL_MANIFEST_MAX_BYTES, ret_manifest, err);
    close(fd);
    if (rc != SL_SPEC)
        return rc ? sl_err_wrap(err, rc, "manifest %s", sha256) : 0;
    sl_err_clear(err); /* it names a file that says nothing */
    return sl_err_set(err, SL_SPEC, "blob %s is not a manifest, {\"files\": [...]} as JSON", sha256);
}

int sl_store_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                      json_t **ret_problems, struct sl_err *err)
{
    json_t *manifest = NULL, *problems = json_array();
    int rc = sl_blob_hold(store, sha256, NULL, err);
    if (rc == 0)
        rc = sl_store_read_manifest(store, sha256, &manifest, err);
    else
        sl_err_wrap(err, rc, "manifest");
    if (rc == 0)
        rc = sl_manifest_check(manifest, problems, err);
    size_t i, missing = 0;
    json_t *file;
    json_array_foreach(rc == 0 ? json_object_get(manifest, "files") : NULL, i, file) {
        const char *digest = sl_json_str(file, "sha256", ""), *path = sl_json_str(file, "path", "");
        char at[40];
        int64_t bytes;
        snprintf(at, sizeof at, "/files/%zu", i);
        if (sl_blob_hold(store, digest, &bytes, NULL))
            sl_problem_add(problems, at, "%s: blob %s is not in the store: upload it first", path,
                           digest);
        else if (bytes != sl_json_int(file, "bytes", -1))
            sl_problem_add(problems, at, "%s: the blob has %lld bytes, the manifest says %lld",
                           path, (long long)bytes, (long long)sl_json_int(file, "bytes", -1));
        else
            continue;
        missing++;
    }
    if (rc == 0 && missing)
        rc = sl_err_set(err, SL_SPEC, "%zu of the manifest's files are missing from the store",
                        missing);
    if (rc == 0)
        *ret_manifest = json_incref(manifest);
    else if (rc == SL_SPEC && ret_problems)
        *ret_problems = json_incref(problems);
    json_decref(problems);
    json_decref(manifest);
    return rc;
}

int sl_store_pin(struct sl_store *store, const char *sha256, const char *owner, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    bool exists;
    int rc = sl_store_check_sha256(sha256, err);
    if (rc == 0)
        rc = sl_store_check_name("owner", owner, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s", store->dir, sha256);
    pthread_mutex_lock(&store->mutex); /* against unpin's rmdir */
    if (rc == 0)
        rc = sl_store_mkdir(path, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s/%s", store->dir, sha256, owner);
    if (rc == 0)
        rc = sl_store_create(store, path, "", &exists, err);
    pthread_mutex_unlock(&store->mutex);
    return rc;
}

int sl_store_unpin(struct sl_store *store, const char *sha256, const char *owner,
                   struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_store_check_sha256(sha256, err);
    if (rc == 0)
        rc = sl_store_check_name("owner", owner, err);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s/%s", store->dir, sha256, owner);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    if (unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "removing %s", path);
    if (rc == 0)
        rc = sl_path(path, err, "%s/pins/%s", store->dir, sha256);
    if (rc == 0)
        rmdir(path); /* stays while others pin it */
    pthread_mutex_unlock(&store->mutex);
    return rc;
}
