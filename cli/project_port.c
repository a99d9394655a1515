/* A project as a tarball (artifacts/bundle.h):
 *
 *   softlaunch-export.json      {"format": "softlaunch-export/v1", "project", "entries": sha256 of entries.ndjson}
 *   blobs/sha256/<digest>       manifests and files, each once
 *   entries.ndjson              what GET /projects/{project}/export gives (server/portable.c)
 *   SHA256SUMS */
#include "cli/project_port.h"
#include "artifacts/ask.h"
#include "artifacts/bundle.h"
#include "artifacts/cache.h"
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/store.h"
#include "artifacts/transfer.h"
#include "base/json.h"
#include "cli/bar.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "softlaunch-export/v1"
#define HEAD "softlaunch-export.json"
#define ENTRIES "entries.ndjson"
#define BLOBS "blobs/sha256/"
#define HEAD_BYTES_MAX (64u << 10)
#define BATCH 64                 /* files that lie here at a time */
#define BODY_BYTES (4u << 20)    /* of one request, unless a line is longer */
#define LINE_BYTES_MAX (16u << 20)
#define REQUEST_S 600
#define URL_BYTES 1024

struct port {
    struct sl_api *api;
    struct sl_transfer t;
    struct sl_pace pace;
    char dir[SL_PATH_MAX]; /* what lies here for a while */
    struct sl_cache cache;
    /* export */
    struct sl_bundle *bundle;
    json_t *seen; /* digests in it */
    int64_t told, versions, runs, live, blobs; /* told: entries of any kind */
    /* import */
    char project[SL_NAME_MAX + 1], entries_sha256[SL_SHA256_HEX + 1], entries[SL_PATH_MAX];
    int64_t changed, unchanged;
    json_t *kept;
};

bool project_port_knows(int argc, char **argv)
{
    return (argc == 3 && strcmp(argv[0], "export") == 0) || (argc == 2 && strcmp(argv[0], "import") == 0);
}

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory");
}

/* Calls fn with each line, which it may change. */
static int each_line(const char *path, int (*fn)(struct port *p, char *line, size_t len, struct sl_err *err), struct port *p,
                     struct sl_err *err)
{
    char *line = NULL;
    size_t size = 0;
    int rc = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return sl_err_errno(err, "opening %s", path);
    for (ssize_t len; rc == 0 && (len = getline(&line, &size, f)) > 0;)
        rc = len > (ssize_t)LINE_BYTES_MAX ? sl_err_set(err, SL_DATA, "an entry has more than %u bytes", LINE_BYTES_MAX)
                                           : fn(p, line, (size_t)len, err);
    free(line);
    fclose(f);
    return rc;
}

/* ---- export ---------------------------------------------------------------------------------- */

/* Fetches blobs that are not in the bundle yet, and adds them. files: of a manifest, from `first` on, n of them. */
static int add_files(struct port *p, const json_t *files, size_t first, size_t n, struct sl_err *err)
{
    struct sl_want wants[BATCH] = {0};
    struct sl_got gots[BATCH] = {0};
    char(*urls)[URL_BYTES] = calloc(BATCH, sizeof *urls), name[sizeof BLOBS + SL_SHA256_HEX];
    size_t wanted = 0;
    int rc = urls ? 0 : no_memory(err);
    for (size_t i = first; rc == 0 && i < first + n; i++) {
        const json_t *file = json_array_get(files, i);
        const char *sha256 = sl_json_str(file, "sha256", "");
        if (json_object_get(p->seen, sha256))
            continue;
        if (json_object_set_new(p->seen, sha256, json_true()))
            rc = no_memory(err);
        if (snprintf(urls[wanted], URL_BYTES, "%s/api/v1/blobs/%s", p->t.server, sha256) >= URL_BYTES)
            rc = sl_err_set(err, SL_SPEC, "the server's URL is too long");
        sl_watch_expect(&p->t.watch, sl_json_int(file, "bytes", 0));
        wants[wanted] = (struct sl_want){.what = sl_json_str(file, "path", sha256),
                                         .url = urls[wanted],
                                         .sha256 = sha256,
                                         .bytes = sl_json_int(file, "bytes", -1),
                                         .parts = json_object_get(file, "parts")};
        wanted++;
    }
    if (rc == 0 && wanted)
        rc = sl_transfer_many(&p->t, &p->cache, wants, wanted, gots, err);
    for (size_t i = 0; i < wanted; i++) {
        snprintf(name, sizeof name, BLOBS "%s", wants[i].sha256);
        if (rc == 0)
            rc = sl_bundle_add(p->bundle, name, gots[i].path, wants[i].sha256, err);
        if (gots[i].path[0])
            unlink(gots[i].path);
    }
    p->blobs += rc ? 0 : (int64_t)wanted;
    free(urls);
    return rc;
}

static int add_manifest(struct port *p, const char *sha256, struct sl_err *err)
{
    char url[URL_BYTES], name[sizeof BLOBS + SL_SHA256_HEX];
    struct sl_got got;
    json_t *manifest = NULL;
    int rc = 0;
    if (json_object_get(p->seen, sha256))
        return 0;
    if (snprintf(url, sizeof url, "%s/api/v1/blobs/%s", p->t.server, sha256) >= URL_BYTES)
        rc = sl_err_set(err, SL_SPEC, "the server's URL is too long");
    if (rc == 0 && json_object_set_new(p->seen, sha256, json_true()))
        rc = no_memory(err);
    if (rc == 0)
        rc = sl_transfer_get(&p->t, &p->cache, "a manifest", url, sha256, -1, &got, err);
    if (rc)
        return rc;
    rc = sl_json_read(got.path, SL_MANIFEST_MAX_BYTES, &manifest, err);
    if (rc == 0)
        rc = sl_manifest_check(manifest, NULL, err);
    snprintf(name, sizeof name, BLOBS "%s", sha256);
    if (rc == 0)
        rc = sl_bundle_add(p->bundle, name, got.path, sha256, err);
    unlink(got.path);
    const json_t *files = json_object_get(manifest, "files");
    for (size_t i = 0; rc == 0 && i < json_array_size(files); i += BATCH)
        rc = add_files(p, files, i, json_array_size(files) - i < BATCH ? json_array_size(files) - i : BATCH, err);
    p->blobs++;
    json_decref(manifest);
    return rc;
}

static int take_line(struct port *p, char *line, size_t len, struct sl_err *err)
{
    json_t *entry = NULL;
    int rc = sl_json_parse(line, len, "an entry", &entry, err);
    const char *kind = rc ? "" : sl_json_str(entry, "kind", "");
    if (strcmp(kind, "version") == 0) {
        rc = add_manifest(p, sl_json_str(entry, "record.manifest", ""), err);
        p->versions++;
    }
    p->runs += strcmp(kind, "run") == 0;
    p->told += strcmp(kind, "end") != 0;
    if (strcmp(kind, "end") == 0)
        p->live = sl_json_int(entry, "live_runs", 0);
    json_decref(entry);
    return rc;
}

static int add_head(struct port *p, const char *project, const char *entries_sha256, struct sl_err *err)
{
    json_t *head = json_pack("{s:s, s:s, s:s}", "format", FORMAT, "project", project, "entries", entries_sha256);
    char *text = head ? sl_json_dump(head) : NULL;
    int rc = text ? sl_bundle_add_text(p->bundle, HEAD, text, err) : no_memory(err);
    free(text);
    json_decref(head);
    return rc;
}

static int export(struct port *p, const char *project, const char *file, struct sl_err *err)
{
    char url[URL_BYTES];
    struct sl_got index;
    if (!sl_name_valid(project) || snprintf(url, sizeof url, "%s/api/v1/projects/%s/export", p->t.server, project) >= URL_BYTES)
        return sl_err_set(err, SL_SPEC, "`%.100s` is not a project's name", project);
    int rc = sl_transfer_get(&p->t, &p->cache, "the export", url, NULL, -1, &index, err);
    if (rc == 0)
        rc = sl_bundle_create(file, &p->bundle, err);
    if (rc)
        return rc;
    rc = add_head(p, project, index.sha256, err);
    if (rc == 0)
        rc = each_line(index.path, take_line, p, err);
    if (rc == 0 && !p->told)
        rc = sl_err_set(err, SL_NOTFOUND, "project %s has nothing that can be exported%s", project,
                        p->live ? ": its runs have not ended, or are not in the archive yet" : "; `softlaunch projects` lists those with runs");
    if (rc == 0)
        rc = sl_bundle_add(p->bundle, ENTRIES, index.path, index.sha256, err);
    if (rc)
        sl_bundle_abort(p->bundle);
    else
        rc = sl_bundle_finish(p->bundle, err);
    return rc;
}

/* ---- import ---------------------------------------------------------------------------------- */

static int take_head(struct port *p, const char *path, struct sl_err *err)
{
    json_t *head = NULL;
    int rc = sl_json_read(path, HEAD_BYTES_MAX, &head, err);
    const char *project = sl_json_str(head, "project", ""), *entries = sl_json_str(head, "entries", "");
    if (rc == 0 && strcmp(sl_json_str(head, "format", ""), FORMAT) != 0)
        rc = sl_err_set(err, SL_DATA, "it is of the form `%.40s`, and this version knows " FORMAT, sl_json_str(head, "format", "?"));
    if (rc == 0 && (!sl_name_valid(project) || !sl_sha256_valid(entries)))
        rc = sl_err_set(err, SL_DATA, HEAD " names no project");
    if (rc == 0) {
        snprintf(p->project, sizeof p->project, "%s", project);
        snprintf(p->entries_sha256, sizeof p->entries_sha256, "%s", entries);
    }
    json_decref(head);
    return rc;
}

static int on_file(void *arg, const char *name, const char *path, int64_t bytes, const char *sha256, struct sl_err *err)
{
    struct port *p = arg;
    if (strcmp(name, HEAD) == 0)
        return take_head(p, path, err);
    if (!p->project[0])
        return sl_err_set(err, SL_DATA, "it is not an export of softlaunch: it does not begin with " HEAD);
    if (strcmp(name, ENTRIES) == 0) {
        if (strcmp(sha256, p->entries_sha256) != 0)
            return sl_err_set(err, SL_DATA, "wrong sha256 of " ENTRIES ": expected %s, found %s", p->entries_sha256, sha256);
        int rc = sl_path(p->entries, err, "%s/" ENTRIES, p->dir);
        return rc == 0 && rename(path, p->entries) ? sl_err_errno(err, "moving %s", path) : rc;
    }
    if (strncmp(name, BLOBS, sizeof BLOBS - 1) != 0 || strcmp(name + sizeof BLOBS - 1, sha256) != 0)
        return sl_err_set(err, SL_DATA, "wrong sha256: %.200s has %s", name, sha256);
    sl_watch_expect(&p->t.watch, bytes);
    p->blobs++;
    return sl_transfer_put(&p->t, name, path, sha256, err);
}

static int send_lines(struct port *p, const struct sl_buf *body, struct sl_err *err)
{
    char url[URL_BYTES], authorization[1024];
    const char *token = sl_api_token(p->api);
    const char *const headers[] = {"Content-Type: application/octet-stream", token ? authorization : NULL, NULL};
    struct sl_answer answer;
    json_t *reply = NULL, *text;
    size_t i;
    snprintf(url, sizeof url, "%s/api/v1/projects/%s/import", p->t.server, p->project);
    if (snprintf(authorization, sizeof authorization, "Authorization: Bearer %s", token ? token : "") >= (int)sizeof authorization)
        return sl_err_set(err, SL_SPEC, "the token is too long");
    const struct sl_ask ask = {.method = "POST", .url = url, .headers = headers, .body = body->p, .len = (int64_t)body->len,
                               .timeout_s = REQUEST_S};
    int rc = sl_ask(&ask, &p->t.watch, &answer, err);
    explicit_bzero(authorization, sizeof authorization);
    if (rc)
        return rc;
    rc = sl_answer_check(&answer, "the import", url, err);
    if (rc == 0)
        rc = sl_json_parse(answer.body.p, answer.body.len, "the server's answer", &reply, err);
    p->changed += sl_json_int(reply, "changed", 0);
    p->unchanged += sl_json_int(reply, "unchanged", 0);
    json_array_foreach(json_object_get(reply, "kept"), i, text)
        json_array_append(p->kept, text);
    json_decref(reply);
    sl_answer_release(&answer);
    return rc;
}

static int send_entries(struct port *p, struct sl_err *err)
{
    struct sl_buf body;
    char *line = NULL;
    size_t size = 0;
    int rc = 0;
    FILE *f = fopen(p->entries, "re");
    if (!f)
        return sl_err_errno(err, "opening %s", p->entries);
    sl_buf_init(&body, LINE_BYTES_MAX);
    for (ssize_t len; rc == 0 && (len = getline(&line, &size, f)) > 0;) {
        if (body.len && body.len + (size_t)len > BODY_BYTES) {
            rc = send_lines(p, &body, err);
            sl_buf_reset(&body);
        }
        if (rc == 0 && sl_buf_add(&body, line, (size_t)len))
            rc = sl_err_set(err, SL_DATA, "an entry has more than %u bytes", LINE_BYTES_MAX);
    }
    if (rc == 0 && body.len)
        rc = send_lines(p, &body, err);
    sl_buf_release(&body);
    free(line);
    fclose(f);
    return rc;
}

static int import(struct port *p, const char *file, struct sl_err *err)
{
    /* Blobs first, each under its own digest; records only when the whole file is known to be right. */
    int rc = sl_bundle_read(file, p->dir, &p->t.watch, on_file, p, err);
    if (rc == 0 && !p->entries[0])
        rc = sl_err_set(err, SL_DATA, "%s has no " ENTRIES, file);
    return rc ? rc : send_entries(p, err);
}

/* ---- both ------------------------------------------------------------------------------------ */

static void print(const struct port *p, bool exported, const char *file, bool json)
{
    size_t i;
    json_t *text, *told = exported ? json_pack("{s:I, s:I, s:I, s:I}", "versions", (json_int_t)p->versions, "runs", (json_int_t)p->runs,
                                               "live_runs", (json_int_t)p->live, "blobs", (json_int_t)p->blobs)
                                   : json_pack("{s:s, s:I, s:I, s:I, s:O}", "project", p->project, "blobs", (json_int_t)p->blobs,
                                               "changed", (json_int_t)p->changed, "unchanged", (json_int_t)p->unchanged, "kept", p->kept);
    if (json)
        cli_print_json(told);
    else if (exported)
        printf("%s: %lld versions, %lld runs, %lld blobs\n", file, (long long)p->versions, (long long)p->runs, (long long)p->blobs);
    else
        printf("project %s: %lld entries were new, %lld were here already\n", p->project, (long long)p->changed, (long long)p->unchanged);
    if (exported && p->live)
        fprintf(stderr, "%lld runs have not ended, or are not in the archive yet: they are not in it\n", (long long)p->live);
    json_array_foreach(p->kept, i, text)
        fprintf(stderr, "%s\n", json_string_value(text));
    json_decref(told);
}

int project_port(struct sl_api *api, int argc, char **argv, bool json, struct sl_err *err)
{
    const bool exports = argc == 3;
    const char *file = argv[argc - 1], *tmp = getenv("TMPDIR");
    struct cli_bar bar = cli_bar_new();
    struct port p = {.api = api, .seen = json_object(), .kept = json_array()};
    int rc = p.seen && p.kept ? sl_pace_init(&p.pace, err) : no_memory(err);
    p.t = (struct sl_transfer){.server = sl_api_server(api), .token = sl_api_token(api), .watch = cli_bar_watch(&bar), .pace = &p.pace};
    if (rc == 0)
        rc = exports ? sl_path(p.dir, err, "%s.tmp-XXXXXX", file)
                     : sl_path(p.dir, err, "%s/softlaunch-import-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (rc == 0 && !mkdtemp(p.dir))
        rc = sl_err_errno(err, "making folder %s", p.dir);
    else if (rc == 0) {
        rc = sl_cache_open(p.dir, &p.cache, err);
        if (rc == 0)
            rc = exports ? export(&p, argv[1], file, err) : import(&p, file, err);
        sl_rmtree(p.dir, NULL);
    }
    cli_bar_end(&bar);
    if (rc == 0)
        print(&p, exports, file, json);
    else if (!exports)
        sl_err_wrap(err, rc, "%s", file);
    json_decref(p.seen);
    json_decref(p.kept);
    return rc;
}
