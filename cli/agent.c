#include "agent/agent.h"
#include "artifacts/pace.h"
#include "base/file.h"
#include "base/log.h"
#include "base/spec.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "server/http.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *from_env(const char *name)
{
    const char *v = getenv(name);

    return v && *v ? v : NULL;
}

/* An absolute path: children run elsewhere. */
static int work_dir(const char *given, char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    int rc = sl_mkdirs(given, err);

    if (!rc && !realpath(given, ret_path))
        rc = sl_err_errno(err, "the work folder %s", given);
    return rc;
}

/* NAME or NAME:WEIGHT. */
static int take_queue(const char *text, char name[SL_QUEUE_NAME_MAX + 1], struct sl_agent_config *config,
                      struct sl_err *err)
{
    const char *colon = strchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : strlen(text);
    int weight = colon ? atoi(colon + 1) : 0, n = config->n_queues;

    if (n == SL_QUEUE_NAMES_MAX || !len || len > SL_QUEUE_NAME_MAX)
        return sl_err_set(err, SL_SPEC, "--queue: at most %d names of at most %d bytes", SL_QUEUE_NAMES_MAX,
                          SL_QUEUE_NAME_MAX);
    if (colon && (weight < 1 || weight > SL_AGENT_WEIGHT_MAX))
        return sl_err_set(err, SL_SPEC, "--queue %s: a weight is a number from 1 to %d", text, SL_AGENT_WEIGHT_MAX);
    if (n && !weight != !config->weights[0])
        return sl_err_set(err, SL_SPEC, "--queue %s: give every queue a weight, or none: then the first is served first",
                          text);
    memcpy(name, text, len);
    name[len] = 0;
    config->queues[n] = name;
    config->weights[config->n_queues++] = weight;
    return 0;
}

static int take_lists(const struct cli_list *queues, const struct cli_list *paths, const struct cli_list *labels,
                      char names[SL_QUEUE_NAMES_MAX][SL_QUEUE_NAME_MAX + 1], struct sl_agent_config *config,
                      struct sl_err *err)
{
    int rc = 0;

    for (int i = 0; i < queues->n && !rc; i++)
        rc = take_queue(queues->items[i], names[i < SL_QUEUE_NAMES_MAX ? i : 0], config, err);
    for (int i = 0; i < paths->n && !rc; i++) {
        if (i == SL_AGENT_ALLOW_PATHS_MAX || *paths->items[i] != '/')
            return sl_err_set(err, SL_SPEC, "--allow-path: at most %d absolute paths", SL_AGENT_ALLOW_PATHS_MAX);
        config->allow_paths[config->n_allow_paths++] = paths->items[i];
    }
    for (int i = 0; i < labels->n && !rc; i++) {
        if (i == SL_QUEUE_LABELS_MAX)
            return sl_err_set(err, SL_SPEC, "--label: at most %d", SL_QUEUE_LABELS_MAX);
        config->labels[config->n_labels++] = labels->items[i];
    }
    return rc;
}

int cmd_agent(int argc, char **argv)
{
    struct sl_agent_config config = {.redis_url = from_env("SOFTLAUNCH_REDIS"),
                                     .server_url = from_env("SOFTLAUNCH_SERVER"), .slots = 1, .metrics_fd = -1};
    const char *token_file = NULL, *dir = NULL, *metrics = NULL, *bandwidth = NULL;
    struct cli_list queues = {.n = 0}, paths = {.n = 0}, labels = {.n = 0}, variables = {.n = 0};
    char names[SL_QUEUE_NAMES_MAX][SL_QUEUE_NAME_MAX + 1];
    int lease_ms = SL_AGENT_LEASE_MS, quarantine_s = (int)(SL_AGENT_QUARANTINE_US / 1000000);
    int cache_gib = -1;
    bool once = false, verbose = false;
    const struct cli_option options[] = {
        {"redis", 0, CLI_TEXT, &config.redis_url, "URL", CLI_REDIS_HELP, 0, 0},
        {"server", 0, CLI_TEXT, &config.server_url, "URL",
         "where artifacts come from and go to (SOFTLAUNCH_SERVER)", 0, 0},
        {"token-file", 0, CLI_TEXT, &token_file, "FILE", "the server's token (SOFTLAUNCH_TOKEN)", 0, 0},
        {"work-dir", 0, CLI_TEXT, &dir, "DIR", "cache and run folders; agents of one machine may share it", 0, 0},
        {"queue", 0, CLI_LIST, &queues, "NAME[:WEIGHT]",
         "may be given several times: served in this order, or, with weights, in turns (default)", 0, 0},
        {"label", 0, CLI_LIST, &labels, "NAME=VALUE", "what runs may ask for (resources.labels); several times", 0, 0},
        {"allow-path", 0, CLI_LIST, &paths, "DIR", "a folder below which a spec may name files", 0, 0},
        {"cache-gib", 0, CLI_INT, &cache_gib, "N",
         "files of the cache that no run uses go when it has more (half of its disk)", 0, INT_MAX},
        {"bandwidth", 0, CLI_TEXT, &bandwidth, "RATE",
         "the most that each run's transfers take: bytes a second, as 20M (" SL_BANDWIDTH_ENV ")", 0, 0},
        {"secrets-dir", 0, CLI_TEXT, &config.secrets_dir, "DIR",
         "a folder of files, a secret each, that specs name (secret:NAME); those in DIR/PROJECT are\n"
         "one project's (CREDENTIALS_DIRECTORY, which systemd sets)", 0, 0},
        {"allow-env", 0, CLI_LIST, &variables, "NAME", "a variable of this environment that specs may ask for (env)", 0, 0},
        {"lease-ms", 0, CLI_INT, &lease_ms, "N", "how long a run stays ours without a word from us (30000)",
         SL_AGENT_LEASE_MS_MIN, SL_AGENT_LEASE_MS_MAX},
        {"slots", 0, CLI_INT, &config.slots, "N", "runs at a time (1)", 1, SL_AGENT_SLOTS_MAX},
        {"once", 0, CLI_FLAG, &once, NULL, "ends after one run", 0, 0},
        {"max-runs", 0, CLI_INT, &config.max_runs, "N", "ends after N runs", 1, INT_MAX},
        {"quarantine-s", 0, CLI_INT, &quarantine_s, "N",
         "how long no run is taken after device failures in a row (1800)", 1, 7 * 86400},
        {"exit-when-idle", 0, CLI_FLAG, &config.exit_when_idle, NULL, "ends when nothing is in line", 0, 0},
        {"metrics", 0, CLI_TEXT, &metrics, "HOST:PORT", "answers GET /metrics there, for Prometheus, without a token", 0, 0},
        {"worker", 0, CLI_TEXT, &config.worker, "PATH", "the worker (softlaunch-worker beside this program)", 0, 0},
        {"verbose", 0, CLI_FLAG, &verbose, NULL, "logs each change of state", 0, 0},
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "agent",
        .forms = (const char *const[]){"--redis URL --server URL --work-dir DIR [OPTION ...]", NULL},
        .options = options,
        .more = CLI_REDIS_URLS "\nSIGTERM: the runs under way are checkpointed and given back. Logs JSON lines on "
                               "standard error.",
    };
    char path[SL_PATH_MAX], *token = NULL;
    struct sl_err err = SL_ERR_INIT;
    int at = cli_parse(&usage, argc, argv), port = 0, rc;
    struct sl_pace pace;

    if (at < 0)
        return cli_usage_status(at);
    if (!config.redis_url || !config.server_url || !dir)
        return cli_wrong(&usage, "--redis, --server and --work-dir are needed");
    rc = take_lists(&queues, &paths, &labels, names, &config, &err);
    if (!rc && bandwidth && setenv(SL_BANDWIDTH_ENV, bandwidth, 1)) /* the transfers are children, and take it from there */
        rc = sl_err_errno(&err, "--bandwidth");
    if (!rc)
        rc = sl_pace_init(&pace, &err);
    for (int i = 0; i < variables.n && !rc; i++) {
        if (!sl_spec_env_name(variables.items[i]))
            rc = sl_err_set(&err, SL_SPEC, "--allow-env %.100s: not a variable that a run may be given", variables.items[i]);
        config.allow_env[config.n_allow_env++] = variables.items[i];
    }
    if (!config.secrets_dir)
        config.secrets_dir = from_env("CREDENTIALS_DIRECTORY");
    config.lease_ms = lease_ms;
    config.cache_bytes = cache_gib < 0 ? -1 : (int64_t)cache_gib << 30;
    config.quarantine_us = quarantine_s * INT64_C(1000000);
    if (once)
        config.max_runs = 1;
    if (!config.n_queues)
        config.queues[config.n_queues++] = "default";
    if (!rc)
        rc = work_dir(dir, path, &err);
    config.work_dir = path;
    if (!rc && token_file)
        rc = sl_http_read_token(token_file, &token, &err);
    else if (!rc && from_env("SOFTLAUNCH_TOKEN"))
        token = strdup(from_env("SOFTLAUNCH_TOKEN"));
    unsetenv("SOFTLAUNCH_TOKEN"); /* workers must see neither; the text itself stays where it is */
    unsetenv("SOFTLAUNCH_REDIS");
    config.token = token;
    if (!rc && metrics)
        rc = sl_http_listen(metrics, &config.metrics_fd, &port, &err);
    sl_log_setup("agent", !isatty(STDERR_FILENO), verbose ? SL_DEBUG : SL_INFO);
    if (!rc && metrics)
        sl_log(SL_INFO, NULL, "metrics on port %d", port);
    if (!rc)
        rc = sl_agent(&config, &err);
    free(token);
    return rc ? cli_fail(argv[0], &err) : 0;
}
