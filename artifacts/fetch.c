/* The fetch half of plan.h. */
#include "artifacts/fetch_priv.h"
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/pack.h"
#include "artifacts/plan.h"
#include "artifacts/source.h"
#include "artifacts/store.h"
#include "base/fault.h"
#include "base/json.h"
#include <stdlib.h>
#include <string.h>

static int need_server(const struct fetch *f, const char *ref, struct sl_err *err)
{
    if (f->api)
        return 0;
    return sl_err_set(err, SL_SPEC, "%s: there is no server to fetch it from", ref);
}

static int get_blob(struct fetch *f, const char *what, const char *sha256, int64_t bytes,
                    struct sl_got *ret_got, struct sl_err *err)
{
    char url[SL_PATH_MAX];
    int rc = need_server(f, what, err);
    if (rc == 0)
        rc = sl_path(url, err, "%s/api/v1/blobs/%s", sl_api_server(f->api), sha256);
    return rc ? rc
              : sl_transfer_get(&f->transfer, &f->cache, what, url, sha256, bytes, ret_got, err);
}

int sl_fetch_place(struct fetch *f, const struct item *it, const char *path, const char *dest,
                   const json_t *entries, struct sl_err *err)
{
    if (!it->unpack)
        return sl_cache_place(path, dest, err);
    char parent[SL_PATH_MAX];
    json_t *found = NULL;
    /* Unpacked bytes are not counted in progress: their number is known too late. */
    const struct sl_watch watch = {.arg = f->transfer.watch.arg, .stop = f->transfer.watch.stop};
    int rc = sl_path(parent, err, "%s", dest);
    if (rc)
        return rc;
    *strrchr(parent, '/') = 0;
    rc = sl_mkdirs(parent, err);
    if (rc == 0)
        rc = sl_unpack(path, dest, &watch, &found, err);
    if (rc == 0 && entries && !json_equal(found, (json_t *)(uintptr_t)entries)) {
        sl_rmtree(dest, NULL);
        rc = sl_err_set(err, SL_DATA, "what was in the tarball is not what its manifest says");
    }
    json_decref(found);
    return rc ? sl_err_wrap(err, rc, "%s", it->ref) : 0;
}

int sl_fetch_expect(const struct item *it, const char *found, struct sl_err *err)
{
    if (!it->sha256 || strcmp(it->sha256, found) == 0)
        return 0;
    return sl_err_set(err, SL_DATA, "%s: wrong sha256: expected %s, found %s", it->ref, it->sha256,
                      found);
}

/* What is wanted at once, with the texts that it points to. */
struct batch {
    struct sl_want *wants;
    struct sl_got *gots;
    char **texts; /* two for each */
    size_t n;
};

static int batch_new(struct batch *b, size_t n, struct sl_err *err)
{
    *b = (struct batch){calloc(n, sizeof *b->wants), calloc(n, sizeof *b->gots),
                        calloc(2 * n, sizeof *b->texts), n};
    return b->wants && b->gots && b->texts ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
}

static void batch_release(struct batch *b)
{
    for (size_t i = 0; b->texts && i < 2 * b->n; i++)
        free(b->texts[i]);
    free(b->texts);
    free(b->gots);
    free(b->wants);
}

/* Puts "PATH of REF" and the URL beside want number i. */
static int batch_name(struct batch *b, size_t i, const char *path, const char *ref, const char *url,
                      struct sl_err *err)
{
    char what[SL_ENTRY_PATH_MAX + 300];
    snprintf(what, sizeof what, *path ? "%s of %.250s" : "%s%.250s", path, ref);
    b->texts[2 * i] = strdup(what);
    b->texts[2 * i + 1] = strdup(url);
    if (!b->texts[2 * i] || !b->texts[2 * i + 1])
        return sl_err_set(err, SL_NOMEM, "out of memory");
    b->wants[i].what = b->texts[2 * i];
    b->wants[i].url = b->texts[2 * i + 1];
    return 0;
}

/* The files of the server's manifest, or the one given, put where the item wants them. */
static int fetch_blobs(struct fetch *f, struct item *it, const json_t *files, json_t *only,
                       struct sl_err *err)
{
    char url[SL_PATH_MAX], dest[SL_PATH_MAX];
    size_t n = only ? 1 : json_array_size(files);
    struct batch b;
    int rc = batch_new(&b, n, err);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const json_t *one = only ? only : json_array_get(files, i);
        b.wants[i] = (struct sl_want){.sha256 = sl_json_str(one, "sha256", ""),
                                      .bytes = sl_json_int(one, "bytes", -1),
                                      .parts = json_object_get(one, "parts")};
        rc = sl_path(url, err, "%s/api/v1/blobs/%s", sl_api_server(f->api), b.wants[i].sha256);
        if (rc == 0)
            rc = batch_name(&b, i, sl_json_str(one, "path", ""), it->ref, url, err);
    }
    if (rc == 0)
        rc = sl_transfer_many(&f->transfer, &f->cache, b.wants, n, b.gots, err);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const json_t *one = only ? only : json_array_get(files, i);
        rc = only ? sl_path(dest, err, "%s", it->dest)
                  : sl_path(dest, err, "%s/%s", it->dest, sl_json_str(one, "path", ""));
        if (rc == 0)
            rc = sl_fetch_place(f, it, b.gots[i].path, dest, json_object_get(one, "entries"), err);
    }
    batch_release(&b);
    return rc;
}

/* All files of a manifest, or the one called `only` ("": all). digest: the manifest's. */
static int fetch_files(struct fetch *f, struct item *it, const json_t *manifest, const char *digest,
                       const char *only, struct sl_err *err)
{
    const json_t *files = json_object_get(manifest, "files");
    json_t *file = *only ? sl_manifest_file(manifest, only) : NULL;
    if (*only && !file)
        return sl_err_set(err, SL_NOTFOUND, "%s: there is no file %s in it", it->ref, only);
    if (!file && json_array_size(files) == 1)
        file = json_array_get(files, 0);
    if (!file && it->unpack)
        return sl_err_set(err, SL_SPEC, "%s holds %zu files: only a single tarball can be unpacked",
                          it->ref, json_array_size(files));
    if (file && it->unpack_tarball)
        it->unpack = sl_is_tarball(sl_json_str(file, "path", ""));
    const char *shown = file ? sl_json_str(file, "sha256", "") : digest;
    int rc = sl_fetch_expect(it, shown, err);
    memcpy(it->digest, shown, SL_SHA256_HEX + 1);
    it->bytes = file ? sl_json_int(file, "bytes", 0) : sl_manifest_bytes(manifest);
    sl_watch_expect(&f->transfer.watch, it->bytes);
    if (rc == 0)
        rc = need_server(f, it->ref, err);
    return rc ? rc : fetch_blobs(f, it, files, file, err);
}

static int fetch_artifact(struct fetch *f, struct item *it, json_t **ret_record, struct sl_err *err)
{
    struct sl_ref ref;
    char path[2 * SL_NAME_MAX + 64];
    json_t *record = NULL;
    int rc = sl_ref_parse(it->ref, &ref, err);
    if (rc == 0)
        rc = need_server(f, it->ref, err);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "/api/v1/artifacts/%s/%s", ref.name, ref.version);
    rc = sl_api_call(f->api, "GET", path, NULL, NULL, &record, err);
    if (rc)
        return sl_err_wrap(err, rc, "%s from %s", it->ref, sl_api_server(f->api));
    rc = sl_ref_check_project(&ref, sl_json_str(record, "project", NULL), err);
    if (rc == 0)
        rc = sl_manifest_check(record, NULL, err);
    if (rc == 0) {
        it->name = sl_json_str(record, "name", ref.name);
        it->version = sl_json_str(record, "version", "");
        const char *manifest = sl_json_str(record, "manifest", "");
        rc = sl_sha256_valid(manifest)
                 ? fetch_files(f, it, record, manifest, ref.file, err)
                 : sl_err_set(err, SL_DATA, "%s: the server names no manifest", it->ref);
    }
    *ret_record = record; /* it->name and version point into it */
    return rc;
}

static int fetch_manifest(struct fetch *f, struct item *it, const char *sha256, struct sl_err *err)
{
    struct sl_got got;
    json_t *manifest = NULL;
    int rc = get_blob(f, it->ref, sha256, -1, &got, err);
    if (rc == 0)
        rc = sl_json_read(got.path, SL_MANIFEST_MAX_BYTES, &manifest, err);
    if (rc == 0)
        rc = sl_manifest_check(manifest, NULL, err);
    if (rc == 0)
        rc = fetch_files(f, it, manifest, sha256, "", err);
    if (rc == 0 && json_is_array(json_object_get(manifest, "inputs"))) {
        json_decref(f->inputs);
        f->inputs = json_incref(json_object_get(manifest, "inputs"));
    }
    json_decref(manifest);
    return rc;
}

int sl_fetch_digest(json_t *files_taken, char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err)
{
    json_t *manifest = json_pack("{s:o}", "files", files_taken);
    char *text = manifest ? sl_json_dump(manifest) : NULL;
    int rc = text ? sl_sha256_data(text, strlen(text), ret_sha256, err)
                  : sl_err_set(err, SL_NOMEM, "out of memory");
    free(text);
    json_decref(manifest);
    return rc;
}

static int by_path(const void *a, const void *b)
{
    const struct sl_source_file *const x = a, *const y = b;
    return strcmp(x->path, y->path);
}

/* All files of a source elsewhere: one becomes a file, a folder a folder. */
static int fetch_source_files(struct fetch *f, struct item *it, struct sl_source *s,
                              struct sl_err *err)
{
    char dest[SL_PATH_MAX];
    struct sl_transfer t = f->transfer;
    struct batch b;
    json_t *files = json_array();
    int rc = batch_new(&b, s->n, err);
    t.signer = &s->signer;
    if (rc == 0 && s->folder && it->unpack)
        rc = sl_err_set(err, SL_SPEC, "%s is a folder: only a single tarball can be unpacked",
                        it->ref);
    if (s->n > 1)
        qsort(s->files, s->n, sizeof *s->files, by_path);
    for (size_t i = 0; rc == 0 && i < s->n; i++) {
        const struct sl_source_file *file = &s->files[i];
        b.wants[i] = (struct sl_want){.sha256 = file->sha256[0] ? file->sha256
                                                : s->folder     ? NULL
                                                                : it->sha256,
                                      .bytes = file->bytes};
        sl_watch_expect(&f->transfer.watch, file->bytes > 0 ? file->bytes : 0);
        rc = batch_name(&b, i, s->folder ? file->path : "", it->ref, file->url, err);
    }
    if (rc == 0)
        rc = sl_transfer_many(&t, &f->cache, b.wants, s->n, b.gots, err);
    for (size_t i = 0; rc == 0 && i < s->n; i++) {
        const struct sl_source_file *file = &s->files[i];
        const struct sl_got *got = &b.gots[i];
        rc = b.wants[i].sha256 ? 0 : sl_source_check(file, got->path, err);
        if (rc)
            sl_transfer_forget(&f->cache, file->url);
        if (rc == 0)
            rc = s->folder ? sl_path(dest, err, "%s/%s", it->dest, file->path)
                           : sl_path(dest, err, "%s", it->dest);
        if (rc == 0 && !s->folder)
            rc = sl_fetch_expect(it, got->sha256, err);
        if (rc)
            break;
        sl_watch_expect(&f->transfer.watch, file->bytes > 0 ? 0 : got->bytes);
        it->bytes += got->bytes;
        rc = sl_fetch_place(f, it, got->path, dest, NULL, err);
        json_array_append_new(files, json_pack("{s:s, s:s, s:I}", "path", file->path, "sha256",
                                               got->sha256, "bytes", (json_int_t)got->bytes));
    }
    if (rc == 0 && !s->folder)
        memcpy(it->digest, b.gots[0].sha256, sizeof it->digest);
    batch_release(&b);
    if (rc || !s->folder) {
        json_decref(files);
        return rc;
    }
    rc = sl_fetch_digest(files, it->digest, err);
    return rc ? rc : sl_fetch_expect(it, it->digest, err);
}

static int fetch_source(struct fetch *f, struct item *it, struct sl_err *err)
{
    struct sl_source source;
    if (it->unpack_tarball)
        it->unpack = sl_is_tarball(it->ref);
    int rc = sl_source_open(it->ref, &f->transfer.watch, &source, err);
    if (rc)
        return rc;
    rc = fetch_source_files(f, it, &source, err);
    sl_source_release(&source);
    return rc;
}

static int fetch_blob(struct fetch *f, struct item *it, const char *sha256, struct sl_err *err)
{
    struct sl_got got;
    int rc = get_blob(f, it->ref, sha256, -1, &got, err);
    if (rc)
        return rc;
    memcpy(it->digest, got.sha256, sizeof it->digest);
    it->bytes = got.bytes;
    sl_watch_expect(&f->transfer.watch, got.bytes);
    return sl_fetch_place(f, it, got.path, it->dest, NULL, err);
}

/* ---- the plan -------------------------------------------------------------------------------- */

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static int fetch_item(struct fetch *f, const json_t *given, json_t *resolved, struct sl_err *err)
{
    const char *blob = sl_json_str(given, "blob", NULL),
               *manifest = sl_json_str(given, "manifest", NULL);
    const char *ref = sl_json_str(given, "ref", NULL), *named = ref ? ref : blob ? blob : manifest;
    struct item it = {.ref = named,
                      .sha256 = sl_json_str(given, "sha256", NULL),
                      .path = sl_json_str(given, "dest", ""),
                      .unpack = sl_json_bool(given, "unpack", false),
                      .unpack_tarball = strcmp(sl_json_str(given, "unpack", ""), "tarball") == 0};
    char pinned[SL_PLAN_REF_BYTES];
    json_t *record = NULL;
    if (!named || !sl_entry_path_valid(it.path))
        return sl_err_set(
            err, SL_SPEC,
            "an item needs `ref`, `blob` or `manifest`, and `dest` below the run's folder");
    int rc = sl_plan_pinned(f->inputs, it.path, &ref, &it.sha256, pinned, err);
    if (rc)
        return rc;
    if (ref)
        it.ref = ref;
    if (it.sha256 && !sl_sha256_valid(it.sha256))
        return sl_err_set(err, SL_SPEC, "%s: not a sha256 (64 lower-case hex digits): %.80s", named,
                          it.sha256);
    rc = sl_path(it.dest, err, "%s/%s", f->run_dir, it.path);
    if (rc == 0)
        rc = sl_rmtree(it.dest, err);
    if (rc)
        return rc;
    if (blob)
        rc = fetch_blob(f, &it, blob, err);
    else if (manifest)
        rc = fetch_manifest(f, &it, manifest, err);
    else if (sl_source_knows(it.ref))
        rc = fetch_source(f, &it, err);
    else if (it.ref[0] == '/' || starts_with(it.ref, "file:"))
        rc = sl_fetch_local(f, &it, err);
    else if (strstr(it.ref, "://"))
        rc = sl_err_set(err, SL_SPEC,
                        "%s: only http, https, s3, gs and hf URLs, file paths and artifact names "
                        "can be fetched",
                        ref);
    else
        rc = fetch_artifact(f, &it, &record, err);
    if (rc == 0 && json_array_append_new(
                       resolved, json_pack("{s:s, s:s*, s:s*, s:s, s:I, s:s}", "ref", named, "name",
                                           it.name, "version", it.version, "sha256", it.digest,
                                           "bytes", (json_int_t)it.bytes, "path", it.path)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(record);
    return rc;
}

int sl_plan_fetch(const json_t *plan, const char *token, const struct sl_watch *watch,
                  json_t **ret_resolved, struct sl_err *err)
{
    const char *server = sl_json_str(plan, "server", NULL);
    const json_t *items = json_object_get(plan, "items");
    struct fetch f = {.run_dir = sl_json_str(plan, "run_dir", NULL),
                      .allow_paths = json_object_get(plan, "allow_paths")};
    if (!f.run_dir || !json_is_array(items) || json_array_size(items) > SL_PLAN_MAX_ITEMS)
        return sl_err_set(err, SL_SPEC, "a fetch plan needs run_dir and a list of at most %d items",
                          SL_PLAN_MAX_ITEMS);
    int rc = sl_cache_open(sl_json_str(plan, "cache", "cache"), &f.cache, err);
    if (rc == 0 && server)
        rc = sl_api_new(server, token, &f.api, err);
    if (rc)
        return rc;
    struct sl_pace pace;
    f.transfer = (struct sl_transfer){
        .server = f.api ? sl_api_server(f.api) : NULL, .token = token, .watch = *watch, .pace = &pace};
    rc = sl_pace_init(&pace, err);
    if (rc) {
        sl_api_free(f.api);
        return rc;
    }
    /* Room is made before and after; neither is a reason not to fetch. */
    int64_t cache_bytes = sl_json_int(plan, "cache_bytes", -1);
    sl_cache_evict(&f.cache, cache_bytes, NULL, NULL);
    json_t *resolved = json_array(), *item;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)items, i, item) {
        sl_fault_point_in_child("fetch.before");
        rc = sl_watch_stop(watch) ? sl_err_set(err, SL_CANCELLED, "stopped")
                                  : fetch_item(&f, item, resolved, err);
        sl_fault_point_in_child("fetch.after");
        if (rc)
            break;
    }
    sl_api_free(f.api);
    json_decref(f.inputs);
    sl_cache_evict(&f.cache, cache_bytes, NULL, NULL);
    if (rc == 0)
        *ret_resolved = json_incref(resolved);
    json_decref(resolved);
    return rc;
}
