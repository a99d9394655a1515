/* `softlaunch artifact put|get|ls|alias`, and the table of all its verbs. Long because of put, get and that table. */
#include "artifacts/api.h"
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/pack.h"
#include "artifacts/transfer.h"
#include "artifacts/tree.h"
#include "base/json.h"
#include "cli/api.h"
#include "cli/artifact_get.h"
#include "cli/artifact_store.h"
#include "cli/bar.h"
#include "cli/cli.h"
#include "cli/registry.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PUT_ROUNDS 5
#define PART_FOLDER                                                                                \
    ".softlaunch-part" /* beside what `get` writes: an interrupted one goes on from it */

/* The options of every verb; those of put stand apart, as artifact_store.h need not know lists. */
static struct cli_list aliases_wanted;
static const char *project_wanted;

/* ---- printing -------------------------------------------------------------------------------- */

static void join(const json_t *names, char *ret_text, size_t size)
{
    size_t i, at = 0;
    json_t *name;
    ret_text[0] = 0;
    json_array_foreach((json_t *)(uintptr_t)names, i, name) {
        int n = snprintf(ret_text + at, size - at, "%s%s", i ? ", " : "", json_string_value(name));
        if (n < 0 || (size_t)n >= size - at)
            break;
        at += (size_t)n;
    }
}

static void print_record(const json_t *record)
{
    char bytes[24], aliases[256];
    artifact_bytes(sl_json_int(record, "bytes", 0), bytes);
    join(json_object_get(record, "aliases"), aliases, sizeof aliases);
    printf("%s:%s  %s in %zu file%s  aliases: %s\n", sl_json_str(record, "name", "?"),
           sl_json_str(record, "version", "?"), bytes,
           json_array_size(json_object_get(record, "files")),
           json_array_size(json_object_get(record, "files")) == 1 ? "" : "s", aliases);
}

static void print_versions(const json_t *artifact)
{
    size_t i;
    json_t *v;
    printf("%-8s %10s  %-24s  %-34s  %s\n", "VERSION", "SIZE", "CREATED", "FROM RUN", "ALIASES");
    json_array_foreach(json_object_get(artifact, "versions"), i, v) {
        char bytes[24], aliases[256];
        artifact_bytes(sl_json_int(v, "bytes", 0), bytes);
        join(json_object_get(v, "aliases"), aliases, sizeof aliases);
        printf("%-8s %10s  %-24s  %-34s  %s\n", sl_json_str(v, "version", "?"), bytes,
               sl_json_str(v, "created", "?"), sl_json_str(v, "made_by.run", "-"), aliases);
    }
}

static void print_artifacts(const json_t *list)
{
    size_t i;
    json_t *a;
    printf("%-40s %-8s %8s  %s\n", "NAME", "LATEST", "VERSIONS", "ALIASES");
    json_array_foreach((json_t *)(uintptr_t)list, i, a) {
        printf("%-40s %-8s %8lld ", sl_json_str(a, "name", "?"), sl_json_str(a, "latest", "?"),
               (long long)sl_json_int(a, "versions", 0));
        const char *alias;
        json_t *version;
        json_object_foreach(json_object_get(a, "aliases"), alias, version)
            printf(" %s=%s", alias, json_string_value(version));
        putchar('\n');
    }
}

/* ---- put ------------------------------------------------------------------------------------- */

/* Uploads one file and adds it to the manifest's list. */
static int put_file(const struct sl_transfer *t, const char *full, const char *path, json_t *files,
                    struct sl_err *err)
{
    char sha256[SL_SHA256_HEX + 1];
    json_t *parts = NULL;
    int64_t bytes;
    int rc = sl_manifest_digests(full, sha256, &bytes, &parts, err);
    if (rc == 0) {
        sl_watch_expect(&t->watch, bytes);
        rc = sl_transfer_put(t, full, full, sha256, err);
    }
    if (rc == 0 &&
        json_array_append_new(files, json_pack("{s:s, s:s, s:I, s:O*}", "path", path, "sha256",
                                               sha256, "bytes", (json_int_t)bytes, "parts", parts)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(parts);
    return rc;
}

static int put_argument(const struct sl_transfer *t, const char *arg, json_t *files,
                        struct sl_err *err)
{
    char full[SL_PATH_MAX];
    struct stat st;
    if (stat(arg, &st))
        return sl_err_errno(err, "%s", arg);
    if (!S_ISDIR(st.st_mode)) {
        const char *slash = strrchr(arg, '/'), *base = slash ? slash + 1 : arg;
        if (!S_ISREG(st.st_mode) || !sl_entry_path_valid(base))
            return sl_err_set(err, SL_SPEC, "%s is not a file or folder that can be put", arg);
        return put_file(t, arg, base, files, err);
    }
    struct sl_tree tree;
    int rc = sl_tree_list(arg, true, &tree, err);
    if (rc)
        return rc;
    for (size_t i = 0; rc == 0 && i < tree.n; i++) {
        rc = sl_path(full, err, "%s/%s", arg, tree.files[i].path);
        if (rc == 0)
            rc = put_file(t, full, tree.files[i].path, files, err);
    }
    sl_tree_release(&tree);
    return rc;
}

/* Uploads the manifest by way of a temporary file and gives its digest. */
static int put_manifest(const struct sl_transfer *t, const json_t *manifest,
                        char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err)
{
    char path[] = "/tmp/softlaunch-manifest-XXXXXX";
    char *text = sl_json_dump(manifest);
    if (!text)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    int rc = 0, fd = mkstemp(path);
    if (fd < 0)
        rc = sl_err_errno(err, "creating %s", path);
    if (rc == 0)
        rc = sl_write_all(fd, text, strlen(text), err);
    if (rc == 0)
        rc = sl_sha256_data(text, strlen(text), ret_sha256, err);
    if (rc == 0)
        rc = sl_transfer_put(t, "the manifest", path, ret_sha256, err);
    if (fd >= 0) {
        close(fd);
        unlink(path);
    }
    free(text);
    return rc;
}

static int put_once(struct sl_api *api, const struct sl_transfer *t, int argc, char **argv,
                    json_t **ret_reply, struct sl_err *err)
{
    char sha256[SL_SHA256_HEX + 1], path[SL_NAME_MAX + 64];
    json_t *files = json_array(), *problems = json_array();
    int rc = 0;
    for (int i = 1; rc == 0 && i < argc; i++)
        rc = put_argument(t, argv[i], files, err);
    json_t *manifest = json_pack("{s:o}", "files", files);
    if (rc == 0)
        rc = sl_manifest_check(manifest, problems, err);
    if (rc == SL_SPEC && json_array_size(problems) > 0)
        sl_err_wrap(err, rc, "%s", sl_json_str(json_array_get(problems, 0), "detail", ""));
    if (rc == 0)
        rc = put_manifest(t, manifest, sha256, err);
    json_t *aliases = json_array();
    for (int i = 0; i < aliases_wanted.n; i++)
        json_array_append_new(aliases, json_string(aliases_wanted.items[i]));
    json_t *body = json_pack("{s:s, s:o, s:s*}", "manifest", sha256, "aliases", aliases, "project",
                             project_wanted);
    snprintf(path, sizeof path, "/api/v1/artifacts/%s/versions", argv[0]);
    /* Equal content makes no second version, so this may be repeated: the digest is its key. */
    if (rc == 0)
        rc = sl_api_call(api, "POST", path, sha256, body, ret_reply, err);
    json_decref(body);
    json_decref(problems);
    json_decref(manifest);
    return rc;
}

static int put(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
               struct sl_err *err)
{
    struct cli_bar bar = cli_bar_new();
    const struct sl_transfer t = {.server = sl_api_server(api),
                                  .token = sl_api_token(api),
                                  .watch = cli_bar_watch(&bar),
                                  .pace = o->pace};
    if (!sl_name_valid(argv[0]))
        return sl_err_set(err, SL_SPEC,
                          "`%s` is not a name: 1 to %d of a-z 0-9 . _ -, first a letter or digit",
                          argv[0], SL_NAME_MAX);
    json_t *reply = NULL;
    int rc;
    for (int round = 1;; round++) {
        sl_err_clear(err);
        rc = put_once(api, &t, argc, argv, &reply, err);
        /* What a collection has taken between upload and version is uploaded again. */
        bool taken = (rc == SL_SPEC && strstr(err->msg, "missing from the store")) ||
                     (rc == SL_NOTFOUND && strstr(err->msg, "there is no blob"));
        if (!taken || round == PUT_ROUNDS)
            break;
    }
    cli_bar_end(&bar);
    if (rc == 0 && o->json)
        artifact_print_json(reply);
    else if (rc == 0)
        print_record(reply);
    json_decref(reply);
    return rc;
}

/* ---- get ------------------------------------------------------------------------------------- */

/* x.tar.zst beside itself as the folder x; other files stay as they are. */
static int unpack_beside(const char *path, struct sl_err *err)
{
    static const char *const endings[] = {".tar", ".tar.gz", ".tar.zst"};
    char dest[SL_PATH_MAX];
    size_t len = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t n = strlen(endings[i]);
        if (len <= n || strcmp(path + len - n, endings[i]) != 0)
            continue;
        int rc = sl_path(dest, err, "%.*s", (int)(len - n), path);
        if (rc == 0 && sl_file_exists(dest))
            return sl_err_set(err, SL_CONFLICT, "%s is there already: move it away first", dest);
        if (rc == 0)
            rc = sl_unpack(path, dest, NULL, NULL, err);
        return rc;
    }
    return 0;
}

static int get(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
               struct sl_err *err)
{
    struct cli_bar bar = cli_bar_new();
    const struct sl_transfer t = {.server = sl_api_server(api),
                                  .token = sl_api_token(api),
                                  .watch = cli_bar_watch(&bar),
                                  .pace = o->pace};
    const char *dir = argc > 1 ? argv[1] : ".";
    char part_dir[SL_PATH_MAX], dest[SL_PATH_MAX];
    struct sl_cache part;
    struct sl_ref ref;
    json_t *record = NULL, *file;
    int rc = artifact_record(api, argv[0], &ref, &record, err);
    if (rc)
        return rc;
    if (rc == 0)
        rc = sl_path(part_dir, err, "%s/" PART_FOLDER, dir);
    if (rc == 0)
        rc = sl_cache_open(part_dir, &part, err);
    bar.total = rc ? 0 : sl_manifest_bytes(record);
    if (rc == 0)
        rc = artifact_get_files(&t, &part, record, ref.file, dir, err);
    cli_bar_end(&bar);
    size_t i;
    json_array_foreach(rc ? NULL : json_object_get(record, "files"), i, file) {
        const char *name = sl_json_str(file, "path", "");
        if (ref.file[0] && strcmp(ref.file, name) != 0)
            continue;
        rc = sl_path(dest, err, "%s/%s", dir, name);
        if (rc == 0 && o->unpack)
            rc = unpack_beside(dest, err);
        if (rc)
            break;
        if (!o->json)
            puts(dest);
    }
    cli_bar_end(&bar);
    if (rc == 0)
        rc = sl_rmtree(part_dir, err);
    if (rc == 0 && o->json)
        artifact_print_json(record);
    json_decref(record);
    return rc;
}

/* ---- ls and alias ---------------------------------------------------------------------------- */

static int ls(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
              struct sl_err *err)
{
    char path[SL_NAME_MAX + 64];
    json_t *reply = NULL;
    if (argc && !sl_name_valid(argv[0]))
        return sl_err_set(err, SL_SPEC, "`%s` is not an artifact's name", argv[0]);
    snprintf(path, sizeof path, "/api/v1/artifacts%s%s", argc ? "/" : "", argc ? argv[0] : "");
    int rc = sl_api_call(api, "GET", path, NULL, NULL, &reply, err);
    if (rc == 0 && o->json)
        artifact_print_json(reply);
    else if (rc == 0 && argc)
        print_versions(reply);
    else if (rc == 0)
        print_artifacts(json_object_get(reply, "artifacts"));
    json_decref(reply);
    return rc;
}

static int alias(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                 struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64];
    struct sl_ref ref;
    json_t *reply = NULL;
    (void)argc;
    int rc = sl_ref_parse(argv[0], &ref, err);
    if (rc == 0 && !sl_alias_valid(argv[1]))
        rc = sl_err_set(err, SL_SPEC, "`%s` cannot be an alias", argv[1]);
    if (rc)
        return rc;
    json_t *body = json_pack("{s:s}", "version", ref.version);
    snprintf(path, sizeof path, "/api/v1/artifacts/%s/aliases/%s", ref.name, argv[1]);
    rc = sl_api_call(api, "PUT", path, NULL, body, &reply, err);
    if (rc == 0 && o->json)
        artifact_print_json(reply);
    else if (rc == 0)
        print_record(reply);
    json_decref(body);
    json_decref(reply);
    return rc;
}

static int lineage(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                   struct sl_err *err)
{
    (void)argc;
    return cli_lineage(api, argv[0], o->json, err);
}

/* ---- the command ----------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int least, most; /* arguments */
    int (*run)(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
               struct sl_err *err);
} verbs[] = {
    {"put", 2, 10000, put},
    {"get", 1, 2, get},
    {"export", 2, 2, artifact_export},
    {"ls", 0, 1, ls},
    {"alias", 2, 2, alias},
    {"unalias", 2, 2, artifact_unalias},
    {"rm", 1, 1, artifact_rm},
    {"gc", 0, 0, artifact_gc},
    {"verify", 0, 0, artifact_verify},
    {"lineage", 1, 1, lineage},
};

int cmd_artifact(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    struct sl_pace pace;
    struct artifact_options o = {.grace_s = -1, .pace = &pace};
    const char *bandwidth = NULL;
    const struct cli_option options[] = {
        {"project", 'p', CLI_TEXT, &project_wanted, "PROJECT", "for put: whose a new artifact is; without one everybody's, or your only one's", 0, 0},
        {"alias", 0, CLI_LIST, &aliases_wanted, "A", "for put: a name that points at the new version from now on", 0, 0},
        {"unpack", 0, CLI_FLAG, &o.unpack, NULL, "for get: a tarball x.tar.zst also becomes the folder x", 0, 0},
        {"grace", 0, CLI_INT, &o.grace_s, "S", "for gc: files that came in the last S seconds stay (the server's own)", 0, INT_MAX},
        {"hash", 0, CLI_FLAG, &o.hash, NULL, "for verify: reads every byte and compares the sha256 too", 0, 0},
        {"bandwidth", 0, CLI_TEXT, &bandwidth, "RATE", "the most that transfers take: bytes a second, as 20M (" SL_BANDWIDTH_ENV ")", 0, 0},
        {"json", 0, CLI_FLAG, &o.json, NULL, "the server's answer instead of text", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "artifact",
        .forms = (const char *const[]){"put NAME FILE|DIR ... [--alias A ...]",
                                       "get [--unpack] NAME[:VERSION|:ALIAS][/FILE] [DIR]", "export NAME[:VERSION|:ALIAS][/FILE] s3://BUCKET/PREFIX/|gs://BUCKET/PREFIX/", "ls [NAME]",
                                       "alias NAME:VERSION ALIAS", "unalias NAME ALIAS", "rm NAME:VERSION",
                                       "lineage NAME:VERSION", "gc [--grace S]", "verify [--hash]",
                                       "convert FROM TO", NULL},
        .options = options,
        .more = "put uploads files (a folder's with their paths in it) as a new version; equal content makes none.\n"
                "get downloads a version's files into DIR (here), each checked by its sha256. export sends\n"
                "them on to a bucket (keys as AWS's and Google's tools find them). alias points a name\n"
                "such as `production` at a version. rm deletes a version that no alias points at and nothing uses; gc\n"
                "then removes the files that no version has (the server does so by itself). lineage says which runs\n"
                "made a version of what, and which used it. convert turns a prompt table's file into another tool's form.",
        .most = -1,
    };
    int at = cli_parse(&usage, argc, argv), status = 2;
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    for (size_t i = 0; at < argc && i < sizeof verbs / sizeof *verbs; i++) {
        int n = argc - at - 1;
        if (strcmp(argv[at], verbs[i].name) != 0 || n < verbs[i].least || n > verbs[i].most)
            continue;
        int rc = bandwidth && setenv(SL_BANDWIDTH_ENV, bandwidth, 1) ? sl_err_errno(&err, "--bandwidth") : 0;
        if (rc == 0)
            rc = sl_pace_init(&pace, &err);
        if (rc == 0)
            rc = sl_api_open(server.url, server.token_file, &api, &err);
        if (rc == 0)
            rc = verbs[i].run(api, &o, n, argv + at + 1, &err);
        status = rc ? cli_fail(argv[0], &err) : 0;
    }
    sl_api_free(api);
    return status == 2 ? cli_wrong(&usage, NULL) : status;
}
