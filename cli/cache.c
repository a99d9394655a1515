/* `softlaunch cache ls|verify|gc`: the folder of fetched files that the agents of a machine share. */
#include "artifacts/cache.h"
#include "base/clock.h"
#include "cli/artifact_store.h"
#include "cli/cli.h"
#include "cli/options.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    int max_gib;
    bool json;
};

static int ls(const struct sl_cache *cache, const struct options *o, struct sl_err *err)
{
    struct sl_cache_file *files = NULL;
    char size[24], when[32];
    int64_t bytes = 0, used = 0;
    size_t n = 0;
    int rc = sl_cache_list(cache, &files, &n, err);
    if (rc)
        return rc;
    json_t *list = json_array();
    if (!o->json)
        printf("%-64s %10s  %-24s  %s\n", "SHA256", "SIZE", "LAST USED", "IN USE");
    for (size_t i = n; i-- > 0;) {
        const struct sl_cache_file *f = &files[i];
        artifact_bytes(f->bytes, size);
        sl_format_time(f->used_us, when);
        bytes += f->bytes;
        used += f->in_use ? f->bytes : 0;
        if (o->json)
            json_array_append_new(list, json_pack("{s:s, s:I, s:s, s:b}", "sha256", f->sha256,
                                                  "bytes", (json_int_t)f->bytes, "last_used", when,
                                                  "in_use", (int)f->in_use));
        else
            printf("%s %10s  %-24s  %s\n", f->sha256, size, when, f->in_use ? "yes" : "no");
    }
    free(files);
    if (o->json) {
        json_t *all = json_pack("{s:O, s:I}", "files", list, "bytes", (json_int_t)bytes);
        artifact_print_json(all);
        json_decref(all);
    } else {
        char in_use[24];
        artifact_bytes(bytes, size);
        artifact_bytes(used, in_use);
        printf("%zu files of %s, %s of them in use by runs\n", n, size, in_use);
    }
    json_decref(list);
    return 0;
}

static void on_dropped(void *arg, const char *sha256)
{
    json_array_append_new(arg, json_string(sha256));
}

static int verify(const struct sl_cache *cache, const struct options *o, struct sl_err *err)
{
    json_t *dropped = json_array(), *digest;
    int64_t files = 0, wrong = 0;
    size_t i;
    int rc = sl_cache_verify(cache, NULL, on_dropped, dropped, &files, &wrong, err);
    if (rc == 0 && o->json) {
        json_t *all = json_pack("{s:I, s:O}", "files", (json_int_t)files, "dropped", dropped);
        artifact_print_json(all);
        json_decref(all);
    } else if (rc == 0) {
        json_array_foreach(dropped, i, digest)
            printf("%s had other bytes, and is dropped\n", json_string_value(digest));
        printf("%lld files read, %lld dropped\n", (long long)files, (long long)wrong);
    }
    json_decref(dropped);
    if (rc == 0 && wrong)
        rc = sl_err_set(err, SL_DATA, "%lld files had other bytes than their sha256 says; they are "
                        "fetched again when a run needs them", (long long)wrong);
    return rc;
}

static int gc(const struct sl_cache *cache, const struct options *o, struct sl_err *err)
{
    struct sl_cache_evicted sum;
    char gone[24], left[24];
    int rc = sl_cache_evict(cache, o->max_gib < 0 ? -1 : (int64_t)o->max_gib << 30, &sum, err);
    if (rc)
        return rc;
    artifact_bytes(sum.bytes, gone);
    artifact_bytes(sum.left_bytes, left);
    if (o->json) {
        json_t *all = json_pack("{s:I, s:I, s:I, s:I}", "removed_files", (json_int_t)sum.files,
                                "removed_bytes", (json_int_t)sum.bytes, "files",
                                (json_int_t)sum.left_files, "bytes", (json_int_t)sum.left_bytes);
        artifact_print_json(all);
        json_decref(all);
    } else {
        printf("removed %lld files of %s; %lld of %s stay\n", (long long)sum.files, gone,
               (long long)sum.left_files, left);
    }
    return 0;
}

static const struct {
    const char *name;
    int (*run)(const struct sl_cache *cache, const struct options *o, struct sl_err *err);
} verbs[] = {{"ls", ls}, {"verify", verify}, {"gc", gc}};

int cmd_cache(int argc, char **argv)
{
    struct options o = {.max_gib = -1};
    const char *work_dir = NULL;
    const struct cli_option options[] = {
        {"work-dir", 0, CLI_TEXT, &work_dir, "DIR", "the agents' --work-dir; the cache is in it", 0, 0},
        {"max-gib", 0, CLI_INT, &o.max_gib, "N", "for gc: what may stay (half of its disk)", 0, INT_MAX},
        {"json", 0, CLI_FLAG, &o.json, NULL, "JSON instead of text", 0, 0},
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "cache",
        .forms = (const char *const[]){"ls --work-dir DIR", "verify --work-dir DIR",
                                       "gc --work-dir DIR [--max-gib N]", NULL},
        .options = options,
        .more = "ls lists files, last used first. verify reads them all and drops those with other bytes than their\n"
                "sha256 says. gc removes what was used longest ago, never what a run uses; agents do so by themselves\n"
                "(--cache-gib). All may run beside agents.",
        .least = 1,
        .most = 1,
    };
    struct sl_err err = SL_ERR_INIT;
    struct sl_cache cache;
    char dir[SL_PATH_MAX];
    int at = cli_parse(&usage, argc, argv);

    if (at < 0)
        return cli_usage_status(at);
    if (!work_dir)
        return cli_wrong(&usage, "--work-dir is needed");
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(argv[at], verbs[i].name) != 0)
            continue;
        int rc = sl_path(dir, &err, "%s/cache", work_dir);
        if (rc == 0 && !sl_file_exists(dir))
            rc = sl_err_set(&err, SL_NOTFOUND, "there is no cache in %s", work_dir);
        if (rc == 0)
            rc = sl_cache_open(dir, &cache, &err);
        if (rc == 0)
            rc = verbs[i].run(&cache, &o, &err);
        return rc ? cli_fail(argv[0], &err) : 0;
    }
    return cli_wrong(&usage, "ls, verify or gc");
}
