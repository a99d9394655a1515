#include "base/config_yaml.h"
#include "base/json.h"
#include "base/spec.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/registry.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPLICAS_WAIT_US INT64_C(10000000)
#define LOST_TRIES 3

/* Prints everything that is wrong with the spec of path. */
static int refuse(const char *path, const char *what, const json_t *errors, struct sl_err *err)
{
    size_t count = json_array_size(errors);
    struct sl_buf text;

    sl_buf_init(&text, 1u << 20);
    sl_spec_errors_text(errors, &text);
    fputs(text.p, stderr);
    sl_buf_release(&text);
    return sl_err_set(err, SL_SPEC, "%s: %zu error%s in the %s; nothing was enqueued", path, count,
                      count == 1 ? "" : "s", what);
}

static int read_spec(const char *path, int n, char **overrides, json_t **ret_spec,
                     struct sl_err *err)
{
    json_t *spec = NULL, *errors = NULL;
    int rc = sl_json_read(path, SL_SPEC_FILE_MAX, &spec, err);

    for (int i = 0; !rc && i < n; i++)
        rc = sl_spec_apply_override(spec, overrides[i], err);
    if (!rc)
        rc = sl_spec_validate(spec, &errors, err);
    if (!rc && json_array_size(errors))
        rc = refuse(path, "job spec", errors, err);
    json_decref(errors);
    if (rc)
        json_decref(spec);
    else
        *ret_spec = spec;
    return rc;
}

static int read_yaml(const char *path, const struct sl_config_yaml_options *options,
                     json_t **ret_spec, struct sl_err *err)
{
    struct sl_config_yaml config = {0};
    json_t *note;
    size_t i;
    int rc = sl_config_yaml_read(path, options, &config, err);

    json_array_foreach(config.notes, i, note)
        fprintf(stderr, "%s: %s\n", path, json_string_value(note));
    if (!rc && json_array_size(config.errors))
        rc = refuse(path, "run configuration", config.errors, err);
    if (!rc)
        *ret_spec = json_incref(config.spec);
    sl_config_yaml_release(&config);
    return rc;
}

/* "90s", "10m", "2h", "1d" or seconds. */
static int parse_delay(const char *text, long long *ret_s, struct sl_err *err)
{
    char *end;
    long long n = strtoll(text, &end, 10);
    int unit = !*end || !strcmp(end, "s") ? 1
               : !strcmp(end, "m")        ? 60
               : !strcmp(end, "h")        ? 3600
               : !strcmp(end, "d")        ? 86400
                                          : 0;

    if (end == text || n < 0 || n > 31536000 || !unit)
        return sl_err_set(err, SL_SPEC, "--delay: expected a time as 90s, 10m, 2h or 1d, found %.40s",
                          text);
    *ret_s = n * unit;
    return 0;
}

static int finish(struct sl_api *api, const char *run, bool quiet, struct sl_err *err)
{
    const struct cli_follow how = {.follow = true, .quiet = quiet};
    char state[32];
    int rc = cli_follow_run(api, run, &how, state, err);

    if (rc)
        return rc;
    if (strcmp(state, "succeeded") != 0)
        return sl_err_set(err, SL_DATA, "run %s: %s; `softlaunch runs show %.12s` tells why", run,
                          state, run);
    return 0;
}

/* Until that many replicas have the run. SL_NOTFOUND: a failover lost it. */
static int wait_replicas(struct sl_api *api, const char *run, int want, const char *key,
                         struct sl_err *err)
{
    int64_t until_us = sl_boot_us() + REPLICAS_WAIT_US;
    char path[128];
    int have = 0;

    snprintf(path, sizeof path, "/api/v1/runs/%s/sync?replicas=%d", run, want);
    do {
        json_t *reply;
        int rc = sl_api_call(api, "POST", path, run, NULL, &reply, err);
        if (rc)
            return rc;
        have = (int)sl_json_int(reply, "replicas", 0);
        json_decref(reply);
    } while (have < want && sl_boot_us() < until_us);
    if (have >= want)
        return 0;
    return sl_err_set(err, SL_RETRY,
                      "run %s is enqueued, but after %d s %d of %d replicas have it: a failover may "
                      "lose it. See to Redis's replicas (INFO replication), and wait again by enqueueing "
                      "the same with --key %s, which gives the same run",
                      run, (int)(REPLICAS_WAIT_US / 1000000), have, want, key);
}

static int post(struct sl_api *api, const char *key, const json_t *spec, int replicas,
                json_t **ret_reply, struct sl_err *err)
{
    for (int i = 0;; i++) {
        struct sl_err lost = SL_ERR_INIT;
        int rc = sl_api_call(api, "POST", "/api/v1/runs", key, spec, ret_reply, err);
        if (rc || !replicas)
            return rc;
        rc = wait_replicas(api, sl_json_str(*ret_reply, "run", ""), replicas, key, &lost);
        if (!rc)
            return 0;
        json_decref(*ret_reply);
        *ret_reply = NULL;
        if (rc != SL_NOTFOUND || i + 1 == LOST_TRIES) /* lost by a failover: the same key makes it anew */
            return sl_err_set(err, rc, "%s", lost.msg);
    }
}

int cmd_enqueue(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    const char *key = NULL, *config = NULL, *not_before = NULL, *delay = NULL, *dedupe = NULL, *job = NULL;
    bool wait = false, follow = false, json = false, allow_unknown = false;
    int replicas = 0;
    const struct cli_option options[] = {
        {"config", 0, CLI_TEXT, &config, "FILE",
         "a run configuration in NeMo's YAML in place of a spec: the base model is its\n"
         "model.language_model_path, rows are model.data.train_ds, validation_ds, test_ds,\n"
         "name is its name; project, queue, priority, resources, retry and outputs may\n"
         "stand at its top", 0, 0},
        {"job", 0, CLI_TEXT, &job, "JOB", "a job (`softlaunch job`) in place of a spec; PARAMETER=VALUE sets one of its parameters", 0, 0},
        {"allow-unknown", 0, CLI_FLAG, &allow_unknown, NULL,
         "keys of FILE that nobody knows are named and ignored; else they are errors", 0, 0},
        {"wait", 0, CLI_FLAG, &wait, NULL, "waits for the run's end; exit status 0 only when it succeeded", 0, 0},
        {"follow", 'f', CLI_FLAG, &follow, NULL, "the same, showing its progress", 0, 0},
        {"wait-replicas", 0, CLI_INT, &replicas, "N",
         "until N replicas of Redis have the run, so that a failover to one of them\nkeeps it", 1, 1000},
        {"at", 0, CLI_TEXT, &not_before, "TIME", "not before 2026-12-31T23:59:59Z (or +01:00)", 0, 0},
        {"delay", 0, CLI_TEXT, &delay, "TIME", "not before 90s, 10m, 2h or 1d from now", 0, 0},
        {"dedupe", 0, CLI_TEXT, &dedupe, "KEY",
         "while a run of the project with this key has not ended, gives that one", 0, 0},
        {"key", 0, CLI_TEXT, &key, "KEY", "enqueueing again with the same key and spec gives the same run", 0, 0},
        {"json", 0, CLI_FLAG, &json, NULL, "prints {\"run\": ...} instead of the id", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "enqueue",
        .forms = (const char *const[]){"SPEC.json [KEY=VALUE ...] [--wait | --follow] [--key KEY] [--json] ...",
                                       "--config FILE.yaml [--allow-unknown] [KEY=VALUE ...] ...",
                                       "--job JOB [PARAMETER=VALUE ...] [--wait | --follow] [--key KEY] [--json]", NULL},
        .options = options,
        .more = "KEY=VALUE changes the spec: priority=high, model.optim.lr=3e-4, datasets.train.0=...",
        .most = -1,
    };
    int at = cli_parse(&usage, argc, argv), rc;
    char random[SL_ID_HEX + 1], run[SL_ID_HEX + 1] = "";
    json_t *spec = NULL, *reply = NULL;
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    long long delay_s = 0;

    if (at < 0)
        return cli_usage_status(at);
    if ((at == argc && !config && !job) || (config && job))
        return cli_wrong(&usage, NULL);
    if (job && (not_before || delay || dedupe || replicas))
        return cli_wrong(&usage, "--at, --delay, --dedupe and --wait-replicas do not go with --job");
    if (!key) { /* so that our own tries after a lost answer make one run */
        sl_random_id(random);
        key = random;
    }
    if (job)
        rc = 0;
    else if (config)
        rc = read_yaml(config,
                       &(struct sl_config_yaml_options){argv + at, argc - at,
                                                        allow_unknown, false},
                       &spec, &err);
    else
        rc = read_spec(argv[at], argc - at - 1, argv + at + 1, &spec, &err);
    if (!rc && delay)
        rc = parse_delay(delay, &delay_s, &err);
    if (!rc && (not_before || delay))
        json_object_set_new(spec, "schedule",
                            not_before ? json_pack("{s:s}", "at", not_before)
                               : json_pack("{s:I}", "delay_s", (json_int_t)delay_s));
    if (!rc && dedupe)
        json_object_set_new(spec, "dedupe", json_string(dedupe));
    if (!rc)
        rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = job ? cli_enqueue_job(api, job, argc - at, argv + at, key, &reply, &err)
                 : post(api, key, spec, replicas, &reply, &err);
    if (!rc) {
        snprintf(run, sizeof run, "%s", sl_json_str(reply, "run", ""));
        if (json)
            cli_print_json(reply);
        else
            puts(run);
        fflush(stdout);
    }
    if (!rc && (wait || follow))
        rc = finish(api, run, !follow, &err);
    json_decref(reply);
    json_decref(spec);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
