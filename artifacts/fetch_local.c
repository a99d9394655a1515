/* The fetch of what is on this machine already: paths below the folders that the agent allows. */
#include "artifacts/fetch_priv.h"
#include "artifacts/pack.h"
#include "artifacts/tree.h"
#include "base/json.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool allowed(const json_t *roots, const char *path)
{
    size_t i;
    json_t *root;
    json_array_foreach(roots, i, root) {
        char real[SL_PATH_MAX];
        if (!json_is_string(root) || !realpath(json_string_value(root), real))
            continue;
        size_t len = strcmp(real, "/") == 0 ? 0 : strlen(real);
        if (strncmp(path, real, len) == 0 && (path[len] == '/' || !path[len]))
            return true;
    }
    return false;
}

/* A path that does not exist: allowed when what would be above it is. */
static bool missing_allowed(const json_t *roots, const char *path)
{
    return !strstr(path, "/../") && allowed(roots, path);
}

static int denied(const char *path, struct sl_err *err)
{
    return sl_err_set(err, SL_DENIED,
                      "%s is not below a folder that this agent allows: start the agent with "
                      "--allow-path, or put the file into the artifact store",
                      path);
}

/* The digest that a manifest of the folder's files would have. A link in it may lead to what is allowed only. */
static int hash_folder(const json_t *roots, const char *dir, char ret_sha256[SL_SHA256_HEX + 1], int64_t *ret_bytes,
                       struct sl_err *err)
{
    struct sl_tree tree;
    char path[SL_PATH_MAX], hex[SL_SHA256_HEX + 1];
    int rc = sl_tree_list(dir, true, &tree, err);
    if (rc)
        return rc;
    json_t *files = json_array();
    for (size_t i = 0; rc == 0 && i < tree.n; i++) {
        char real[SL_PATH_MAX];
        rc = sl_path(path, err, "%s/%s", dir, tree.files[i].path);
        if (rc == 0 && !realpath(path, real))
            rc = sl_err_errno(err, "looking at %s", path);
        if (rc == 0 && !allowed(roots, real))
            rc = denied(path, err);
        if (rc == 0)
            rc = sl_sha256_file(path, hex, NULL, err);
        json_array_append_new(files,
                              json_pack("{s:s, s:s, s:I}", "path", tree.files[i].path, "sha256",
                                        hex, "bytes", (json_int_t)tree.files[i].bytes));
    }
    if (rc == 0)
        rc = sl_fetch_digest(files, ret_sha256, err);
    else
        json_decref(files);
    if (rc == 0)
        *ret_bytes = tree.bytes;
    sl_tree_release(&tree);
    return rc;
}

int sl_fetch_local(struct fetch *f, struct item *it, struct sl_err *err)
{
    char real[SL_PATH_MAX], parent[SL_PATH_MAX];
    struct stat st;
    const char *path = strncmp(it->ref, "file://", 7) == 0 ? it->ref + 7 : it->ref;
    if (path[0] != '/')
        return sl_err_set(err, SL_SPEC, "%s: a file URL has three slashes, then the path", it->ref);
    bool there = realpath(path, real) != NULL;
    int why = errno;
    /* Outside of what is allowed nobody learns what exists. */
    if (there ? !allowed(f->allow_paths, real) : !missing_allowed(f->allow_paths, path))
        return denied(it->ref, err);
    if (there && stat(real, &st)) {
        there = false;
        why = errno;
    }
    if (!there)
        return sl_err_set(err, SL_NOTFOUND, "%s: %s", it->ref, strerror(why));
    int rc = S_ISDIR(st.st_mode) ? hash_folder(f->allow_paths, real, it->digest, &it->bytes, err)
                                 : sl_sha256_file(real, it->digest, &it->bytes, err);
    if (rc == 0)
        rc = sl_fetch_expect(it, it->digest, err);
    if (rc == 0)
        sl_watch_expect(&f->transfer.watch, it->bytes);
    sl_watch_progress(&f->transfer.watch, it->bytes);
    if (it->unpack_tarball)
        it->unpack = !S_ISDIR(st.st_mode) && sl_is_tarball(real);
    if (rc == 0 && it->unpack)
        return sl_fetch_place(f, it, real, it->dest, NULL, err);
    if (rc == 0)
        rc = sl_path(parent, err, "%s", it->dest);
    if (rc)
        return rc;
    *strrchr(parent, '/') = 0;
    rc = sl_mkdirs(parent, err);
    if (rc == 0 && symlink(real, it->dest))
        rc = sl_err_errno(err, "linking %s to %s", it->dest, real);
    return rc;
}
