/* The push half of plan.h. */
#include "artifacts/api.h"
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/pack.h"
#include "artifacts/plan.h"
#include "artifacts/transfer.h"
#include "artifacts/tree.h"
#include "artifacts/web.h"
#include "base/fault.h"
#include "base/json.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Uploads a tarball that lies at path, and its manifest. inputs: for the manifest, may be NULL. */
static int upload(const struct sl_transfer *t, const char *output, const char *tar,
                  const char *path, const struct sl_packed *packed, json_t *inputs,
                  char ret_manifest[SL_SHA256_HEX + 1], struct sl_err *err)
{
    char side[SL_PATH_MAX], digest[SL_SHA256_HEX + 1];
    json_t *parts = NULL;
    if (packed->bytes > SL_PART_BYTES) {
        int rc = sl_manifest_digests(path, digest, NULL, &parts, err);
        if (rc)
            return sl_err_wrap(err, rc, "uploading %s", output);
    }
    json_t *manifest = json_pack("{s:[{s:s, s:s, s:I, s:O, s:o*}], s:O*}", "files", "path", tar, "sha256",
                                 packed->sha256, "bytes", (json_int_t)packed->bytes, "entries",
                                 packed->entries, "parts", parts, "inputs", inputs);
    char *text = manifest ? sl_json_dump(manifest) : NULL;
    json_decref(manifest);
    int rc = text ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    sl_fault_point_in_child("blob.before");
    if (rc == 0)
        rc = sl_transfer_put(t, tar, path, packed->sha256, err);
    sl_fault_point_in_child("blob.after");
    if (rc == 0)
        rc = sl_sha256_data(text, strlen(text), digest, err);
    if (rc == 0)
        rc = sl_path(side, err, "%s.manifest", path);
    if (rc == 0) {
        rc = sl_file_write(side, text, strlen(text), err);
        sl_fault_point_in_child("manifest.before");
        if (rc == 0)
            rc = sl_transfer_put(t, "its manifest", side, digest, err);
        sl_fault_point_in_child("manifest.after");
        unlink(side);
    }
    free(text);
    if (rc)
        return sl_err_wrap(err, rc, "uploading %s", output);
    memcpy(ret_manifest, digest, sizeof digest);
    return 0;
}

static int64_t folder_bytes(const char *dir)
{
    struct sl_tree tree;
    if (sl_tree_list(dir, false, &tree, NULL))
        return 0;
    int64_t bytes = tree.bytes;
    sl_tree_release(&tree);
    return bytes;
}

static int push_item(const struct sl_transfer *t, const char *run_dir, const json_t *item,
                     json_t *manifests, json_t *outputs, struct sl_err *err)
{
    const char *output = sl_json_str(item, "output", NULL), *tar = sl_json_str(item, "tar", NULL);
    const char *dir = sl_json_str(item, "dir", NULL);
    char from[SL_PATH_MAX], path[SL_PATH_MAX], manifest[SL_SHA256_HEX + 1];
    struct sl_packed packed;
    if (!sl_name_valid(output) || !sl_entry_path_valid(tar) || strchr(tar, '/') ||
        !sl_entry_path_valid(dir))
        return sl_err_set(err, SL_SPEC, "an item needs `output`, `tar` (a file name) and `dir`");
    int rc = sl_path(from, err, "%s/%s", run_dir, dir);
    if (rc == 0)
        rc = sl_path(path, err, "%s/%s", run_dir, tar);
    if (rc)
        return rc;
    sl_watch_expect(&t->watch, folder_bytes(from));
    rc = sl_pack(from, path, &t->watch, &packed, err);
    if (rc)
        return rc;
    sl_watch_expect(&t->watch, packed.bytes);
    rc = upload(t, output, tar, path, &packed, json_object_get(item, "inputs"), manifest, err);
    unlink(path);
    json_decref(packed.entries);
    if (rc)
        return rc;
    if (json_array_append_new(
            manifests, json_pack("{s:s, s:s, s:I, s:s}", "output", output, "sha256", manifest,
                                 "bytes", (json_int_t)packed.bytes, "blob", packed.sha256)) ||
        json_array_append_new(outputs,
                              json_pack("{s:s, s:O*, s:O*, s:s}", "output", output, "artifact",
                                        json_object_get(item, "artifact"), "aliases",
                                        json_object_get(item, "aliases"), "manifest", manifest)))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return 0;
}

/* Idempotent by lease, so that it may be sent again after any lost answer. */
static int publish(struct sl_api *api, const json_t *plan, json_t *outputs,
                   const struct sl_watch *watch, json_t **ret_reply, struct sl_err *err)
{
    const char *run = sl_json_str(plan, "run", ""), *lease = sl_json_str(plan, "lease", "");
    char *escaped = sl_api_escape(run), path[512];
    json_t *body = json_copy((json_t *)(uintptr_t)json_object_get(plan, "publish"));
    if (!escaped || !body || json_object_set_new(body, "lease", json_string(lease)) ||
        json_object_set(body, "outputs", outputs) ||
        snprintf(path, sizeof path, "/api/v1/runs/%s/publish", escaped) >= (int)sizeof path) {
        free(escaped);
        json_decref(body);
        return sl_err_set(err, SL_SPEC,
                          "the plan's `publish` is not an object, or its run not a name");
    }
    free(escaped);
    int rc;
    for (int round = 1;; round++) {
        struct sl_err fault = SL_ERR_INIT;
        sl_fault_point_in_child("publish.before");
        rc = sl_api_call(api, "POST", path, lease, body, ret_reply, &fault);
        sl_fault_point_in_child("publish.after");
        if (rc != SL_RETRY || round == SL_PUBLISH_ROUNDS || sl_watch_stop(watch)) {
            if (rc)
                sl_err_set(err, rc, "publishing run %s: %s", run, fault.msg);
            break;
        }
        usleep((useconds_t)sl_web_pause_us(round + 2));
    }
    json_decref(body);
    return rc;
}

int sl_plan_push(const json_t *plan, const char *token, const struct sl_watch *watch,
                 json_t **ret_result, struct sl_err *err)
{
    const char *server = sl_json_str(plan, "server", NULL),
               *run_dir = sl_json_str(plan, "run_dir", NULL);
    const json_t *items = json_object_get(plan, "items");
    struct sl_api *api = NULL;
    if (!server || !run_dir || !json_is_array(items) || json_array_size(items) > SL_PLAN_MAX_ITEMS)
        return sl_err_set(err, SL_SPEC,
                          "a push plan needs server, run_dir and a list of at most %d items",
                          SL_PLAN_MAX_ITEMS);
    int rc = sl_api_new(server, token, &api, err);
    if (rc)
        return rc;
    struct sl_pace pace;
    const struct sl_transfer t = {.server = sl_api_server(api), .token = token, .watch = *watch, .pace = &pace};
    rc = sl_pace_init(&pace, err);
    if (rc) {
        sl_api_free(api);
        return rc;
    }
    json_t *manifests = json_array(), *outputs = json_array(), *reply = NULL, *item;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)items, i, item) {
        rc = push_item(&t, run_dir, item, manifests, outputs, err);
        if (rc)
            break;
    }
    if (rc == 0 && sl_json_get(plan, "publish"))
        rc = publish(api, plan, outputs, watch, &reply, err);
    sl_api_free(api);
    json_t *result = rc ? NULL : json_pack("{s:O, s:O*}", "manifests", manifests, "reply", reply);
    if (rc == 0 && !result)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        *ret_result = result;
    json_decref(reply);
    json_decref(outputs);
    json_decref(manifests);
    return rc;
}
