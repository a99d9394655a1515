/* `softlaunch artifact export`: from the store to a bucket, by way of a folder here, some files at a time. */
#include "artifacts/cache.h"
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/target.h"
#include "artifacts/transfer.h"
#include "base/json.h"
#include "cli/artifact_store.h"
#include "cli/bar.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH_FILES 64
#define BATCH_BYTES (INT64_C(256) << 20) /* lie here at a time; one file may be larger */
#define URL_BYTES 1024

/* Files i to i + n of the list: here, there, and away from here. */
static int send_batch(const struct sl_transfer *t, const struct sl_cache *cache, struct sl_target *target,
                      const json_t *files, size_t first, size_t n, struct sl_err *err)
{
    struct sl_want wants[BATCH_FILES] = {0};
    struct sl_got gots[BATCH_FILES] = {0};
    struct sl_target_file sent[BATCH_FILES];
    char(*urls)[URL_BYTES] = calloc(n, sizeof *urls);
    int rc = urls ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const json_t *file = json_array_get(files, first + i);
        const char *path = sl_json_str(file, "path", ""), *sha256 = sl_json_str(file, "sha256", "");
        if (snprintf(urls[i], URL_BYTES, "%s/api/v1/blobs/%s", t->server, sha256) >= URL_BYTES)
            rc = sl_err_set(err, SL_SPEC, "the server's URL is too long");
        wants[i] = (struct sl_want){.what = path, .url = urls[i], .sha256 = sha256,
                                    .bytes = sl_json_int(file, "bytes", -1),
                                    .parts = json_object_get(file, "parts")};
    }
    if (rc == 0)
        rc = sl_transfer_many(t, cache, wants, n, gots, err);
    for (size_t i = 0; rc == 0 && i < n; i++)
        sent[i] = (struct sl_target_file){gots[i].path, sl_target_is_folder(target) ? wants[i].what : "", wants[i].sha256};
    if (rc == 0)
        rc = sl_target_put(target, sent, n, err);
    for (size_t i = 0; i < n; i++)
        if (gots[i].path[0])
            unlink(gots[i].path);
    free(urls);
    return rc;
}

static int send_files(const struct sl_transfer *t, const struct sl_cache *cache, struct sl_target *target,
                      const json_t *files, struct sl_err *err)
{
    size_t count = json_array_size(files);
    int rc = 0;
    for (size_t first = 0, n; rc == 0 && first < count; first += n) {
        int64_t bytes = 0;
        for (n = 0; first + n < count && n < BATCH_FILES; n++) {
            bytes += sl_json_int(json_array_get(files, first + n), "bytes", 0);
            if (n && bytes > BATCH_BYTES)
                break;
        }
        rc = send_batch(t, cache, target, files, first, n, err);
    }
    return rc;
}

int artifact_export(struct sl_api *api, const struct artifact_options *o, int argc, char **argv, struct sl_err *err)
{
    struct cli_bar bar = cli_bar_new();
    const struct sl_transfer t = {.server = sl_api_server(api),
                                  .token = sl_api_token(api),
                                  .watch = cli_bar_watch(&bar),
                                  .pace = o->pace};
    const char *tmp = getenv("TMPDIR");
    char dir[SL_PATH_MAX];
    struct sl_target *target = NULL;
    struct sl_cache cache;
    struct sl_ref ref;
    json_t *record = NULL, *files = NULL;
    (void)argc;
    int rc = artifact_record(api, argv[0], &ref, &record, err);
    if (rc)
        return rc;
    files = ref.file[0] ? json_pack("[O]", sl_manifest_file(record, ref.file)) : json_incref(json_object_get(record, "files"));
    rc = sl_target_open(argv[1], &t.watch, o->pace, &target, err);
    if (rc == 0 && json_array_size(files) > 1 && !sl_target_is_folder(target))
        rc = sl_err_set(err, SL_SPEC, "%s names one object, but there are %zu files: write a slash behind it", argv[1],
                        json_array_size(files));
    if (rc == 0)
        rc = sl_path(dir, err, "%s/softlaunch-export-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (rc == 0 && !mkdtemp(dir))
        rc = sl_err_errno(err, "making folder %s", dir);
    else if (rc == 0) {
        bar.total = 2 * sl_manifest_bytes(record); /* here and there */
        rc = sl_cache_open(dir, &cache, err);
        if (rc == 0)
            rc = send_files(&t, &cache, target, files, err);
        sl_rmtree(dir, NULL);
    }
    cli_bar_end(&bar);
    if (rc == 0 && o->json)
        artifact_print_json(record);
    else if (rc == 0)
        printf("%s:%s  %zu file%s to %s\n", ref.name, sl_json_str(record, "version", "?"), json_array_size(files),
               json_array_size(files) == 1 ? "" : "s", argv[1]);
    sl_target_close(target);
    json_decref(files);
    json_decref(record);
    return rc;
}
