/* The store over HTTP: /api/v1/health, blobs, artifacts and their versions. */
#include "artifacts/manifest.h"
#include "artifacts/store.h"
#include "base/json.h"
#include "server/blob_batch.h"
#include "server/scope.h"
#include "server/serve.h"
#include <stdio.h>
#include <string.h>

#define BLOB_TYPE "application/octet-stream"

static void health(struct sl_http_req *req, void *arg)
{
    (void)arg;
    sl_http_reply_json(req, 200, json_pack("{s:s, s:s}", "status", "ok", "version", SL_VERSION));
}

static void get_blob(struct sl_http_req *req, void *arg)
{
    struct sl_store *store = arg;
    struct sl_err err = SL_ERR_INIT;
    const char *sha256 = sl_http_param(req, "sha256");
    int64_t bytes;
    int fd;
    /* HEAD: whether an upload is needless. */
    if (strcmp(sl_http_method(req), "HEAD") == 0)
        sl_blob_hold(store, sha256, NULL, NULL);
    if (sl_blob_open(store, sha256, &fd, &bytes, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_file(req, fd, bytes, sha256, BLOB_TYPE);
}

static void get_blobs(struct sl_http_req *req, void *arg)
{
    sl_blob_batch_reply(req, arg);
}

static int put_blob_begin(struct sl_http_req *req, void *arg, void **ret_state, struct sl_err *err)
{
    struct sl_store *store = arg;
    const char *sha256 = sl_http_param(req, "sha256");
    int64_t bytes;
    if (sl_blob_hold(store, sha256, &bytes, NULL) == 0) {
        sl_http_reply_json(req, 200,
                           json_pack("{s:s, s:I}", "sha256", sha256, "bytes", (json_int_t)bytes));
        return 0;
    }
    struct sl_blob_writer *w;
    int rc = sl_blob_begin(store, sha256, &w, err);
    if (rc == 0)
        *ret_state = w;
    return rc;
}

static int put_blob_data(void *state, const void *data, size_t len, struct sl_err *err)
{
    return sl_blob_write(state, data, len, err);
}

static void put_blob_abort(void *state)
{
    sl_blob_abort(state);
}

static void put_blob(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    char sha256[SL_SHA256_HEX + 1];
    int64_t bytes;
    if (sl_blob_commit(sl_http_state(req), sha256, &err) || sl_blob_stat(arg, sha256, &bytes, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 201,
                           json_pack("{s:s, s:I}", "sha256", sha256, "bytes", (json_int_t)bytes));
}

/* ---- uploads in pieces ------------------------------------------------------------------------ */

/* {"sha256", "offset"}, or with "bytes" when the blob is there; the offset is in the header Upload-Offset
 * too, for HEAD. */
static void get_upload(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    const char *sha256 = sl_http_param(req, "sha256");
    char offset[32];
    int64_t bytes = 0;
    int rc = sl_blob_hold(arg, sha256, &bytes, &err);
    bool there = rc == 0;
    if (rc == SL_NOTFOUND) {
        sl_err_clear(&err);
        rc = sl_upload_offset(arg, sha256, &bytes, &err);
    }
    snprintf(offset, sizeof offset, "%lld", (long long)bytes);
    if (rc == 0)
        sl_http_set_header(req, "Upload-Offset", offset);
    if (there) {
        sl_http_reply_json(req, 200,
                           json_pack("{s:s, s:I, s:I}", "sha256", sha256, "offset",
                                     (json_int_t)bytes, "bytes", (json_int_t)bytes));
        return;
    }
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(
            req, 200, json_pack("{s:s, s:I}", "sha256", sha256, "offset", (json_int_t)bytes));
}

static int patch_upload_begin(struct sl_http_req *req, void *arg, void **ret_state,
                              struct sl_err *err)
{
    const char *sha256 = sl_http_param(req, "sha256");
    int64_t bytes;
    if (sl_blob_hold(arg, sha256, &bytes, NULL) == 0) {
        sl_http_reply_json(req, 200,
                           json_pack("{s:s, s:I, s:I}", "sha256", sha256, "offset",
                                     (json_int_t)bytes, "bytes", (json_int_t)bytes));
        return 0;
    }
    struct sl_upload *upload;
    int rc = sl_upload_begin(arg, sha256, sl_http_query_int(req, "offset", -1, -1, INT64_MAX),
                             sl_http_query_int(req, "bytes", -1, -1, INT64_MAX), &upload, err);
    if (rc == 0)
        *ret_state = upload;
    return rc;
}

static int patch_upload_data(void *state, const void *data, size_t len, struct sl_err *err)
{
    return sl_upload_write(state, data, len, err);
}

static void patch_upload_abort(void *state)
{
    sl_upload_abort(state);
}

static void patch_upload(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    const char *sha256 = sl_http_param(req, "sha256");
    int64_t offset = 0;
    bool done = false;
    (void)arg;
    if (sl_upload_end(sl_http_state(req), &done, &offset, &err))
        sl_http_reply_err(req, &err, NULL);
    else if (done)
        sl_http_reply_json(req, 201,
                           json_pack("{s:s, s:I, s:I}", "sha256", sha256, "offset",
                                     (json_int_t)offset, "bytes", (json_int_t)offset));
    else
        sl_http_reply_json(
            req, 202, json_pack("{s:s, s:I}", "sha256", sha256, "offset", (json_int_t)offset));
}

/* ---- artifacts -------------------------------------------------------------------------------- */

static void list_artifacts(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *list;
    if (sl_store_list(arg, &list, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    for (size_t i = json_array_size(list); i-- > 0;)
        if (!sl_http_sees(req, sl_json_str(json_array_get(list, i), "project", "")))
            json_array_remove(list, i);
    sl_http_reply_json(req, 200, json_pack("{s:o}", "artifacts", list));
}

static void get_artifact(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *artifact;
    if (sl_store_artifact(arg, sl_http_param(req, "name"), &artifact, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, artifact);
}

static void get_version(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *record;
    if (sl_store_resolve(arg, sl_http_param(req, "name"), sl_http_param(req, "ref"), &record, &err))
        sl_http_reply_err(req, &err, NULL);
    else if (!sl_http_sees(req, sl_json_str(record, "project", ""))) {
        json_decref(record); /* a stage's name may lead to another project's artifact */
        sl_http_reply_problem(req, 404, "not found", NULL,
                              "there is no %.150s in the projects that %s sees", sl_http_param(req, "name"),
                              sl_http_user(req));
    } else
        sl_http_reply_json(req, 200, record);
}

/* Body: {"manifest": sha256 of an uploaded manifest, "aliases": ["candidate"], "project": whose a new
 * artifact is; without one everybody's}. */
static void post_version(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *body = sl_http_json(req), *problems = NULL, *record = NULL, *manifest = NULL;
    const char *project;
    if (!sl_scope_artifact(req, arg, sl_http_param(req, "name"),
                           sl_json_str(body, "project", NULL), &project))
        return;
    struct sl_commit commit = {.name = sl_http_param(req, "name"),
                               .created_by = sl_http_user(req),
                               .project = project,
                               .aliases = json_object_get(body, "aliases"),
                               .number = -1,
                               .manifest = sl_json_str(body, "manifest", "")};
    bool created = false;
    int rc = sl_store_manifest(arg, commit.manifest, &manifest, &problems, &err);
    json_decref(manifest);
    if (rc == 0)
        rc = sl_store_commit(arg, &commit, &record, &created, &err);
    if (rc)
        sl_http_reply_err(req, &err, problems);
    else {
        sl_http_note(req, "version", sl_json_str(record, "version", ""));
        sl_http_reply_json(req, created ? 201 : 200, record);
    }
}

/* Body: {"version": "v3"}. */
static void put_alias(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    const char *name = sl_http_param(req, "name"), *alias = sl_http_param(req, "alias");
    const char *version = sl_json_str(sl_http_json(req), "version", "");
    json_t *record;
    if (sl_store_alias_by(arg, sl_http_user(req), name, alias, version, &err) ||
        sl_store_resolve(arg, name, alias, &record, &err))
        sl_http_reply_err(req, &err, NULL);
    else {
        sl_http_note(req, "version", sl_json_str(record, "version", ""));
        sl_http_reply_json(req, 200, record);
    }
}

static void delete_alias(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_store_unalias(arg, sl_http_param(req, "name"), sl_http_param(req, "alias"), &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_empty(req, 204);
}

/* Gives what is left: the record with "deleted". */
static void delete_version(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *gone;
    if (sl_store_delete(arg, sl_http_param(req, "name"), sl_http_param(req, "ref"), &gone, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, gone);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/health", .open = true, .handle = health},
    {.method = "GET",
     .pattern = "/api/v1/blobs/{sha256}",
     .scope = SL_SCOPE_SHARED, /* who knows a digest may read what has it */
     .handle = get_blob},
    {.method = "GET", .pattern = "/api/v1/blobs", .scope = SL_SCOPE_SHARED, .handle = get_blobs},
    {.method = "PUT",
     .pattern = "/api/v1/blobs/{sha256}",
     .body = SL_BODY_STREAM,
     .scope = SL_SCOPE_SHARED,
     .handle = put_blob,
     .begin = put_blob_begin,
     .data = put_blob_data,
     .abort = put_blob_abort},
    {.method = "GET", .pattern = "/api/v1/blobs/{sha256}/upload", .scope = SL_SCOPE_SHARED,
     .handle = get_upload},
    /* ?offset=&bytes=: where the next piece begins, and what the whole blob has */
    {.method = "PATCH",
     .pattern = "/api/v1/blobs/{sha256}/upload",
     .body = SL_BODY_STREAM,
     .scope = SL_SCOPE_SHARED,
     .handle = patch_upload,
     .begin = patch_upload_begin,
     .data = patch_upload_data,
     .abort = patch_upload_abort},
    {.method = "GET",
     .pattern = "/api/v1/artifacts",
     .scope = SL_SCOPE_HANDLER,
     .handle = list_artifacts},
    {.method = "GET", .pattern = "/api/v1/artifacts/{name}", .handle = get_artifact},
    {.method = "GET", .pattern = "/api/v1/artifacts/{name}/{ref}", .handle = get_version},
    {.method = "POST",
     .pattern = "/api/v1/artifacts/{name}/versions",
     .body = SL_BODY_JSON,
     .scope = SL_SCOPE_HANDLER,
     .handle = post_version},
    {.method = "GET", .pattern = "/api/v1/artifacts/{name}/versions/{ref}", .handle = get_version},
    {.method = "DELETE",
     .pattern = "/api/v1/artifacts/{name}/versions/{ref}",
     .handle = delete_version},
    {.method = "DELETE",
     .pattern = "/api/v1/artifacts/{name}/aliases/{alias}",
     .handle = delete_alias},
    {.method = "PUT",
     .pattern = "/api/v1/artifacts/{name}/aliases/{alias}",
     .body = SL_BODY_JSON,
     .handle = put_alias},
};

int sl_store_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    (void)ret_state;
    int rc = sl_http_set_scope(server->http, "/api/v1/artifacts/{name}",
                               sl_scope_project_of_artifact, server->store, err);
    return rc ? rc : sl_http_add(server->http, routes, sizeof routes / sizeof *routes, server->store, err);
}
