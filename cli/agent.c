#include "agent/agent.h"
#include "base/file.h"
#include "base/log.h"
#include "cli/cli.h"
#include "server/http.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: softlaunch agent --redis URL --server URL --work-dir DIR [--queue NAME ...] "
    "[--allow-path DIR ...]\n"
    "                        [--token-file FILE] [--lease-ms 30000] [--slots N]\n"
    "                        [--once | --max-runs N] [--exit-when-idle] [--worker PATH]\n\n"
    "  --redis URL       redis://[USER:PASSWORD@]HOST:PORT/DB or unix:///PATH (env "
    "SOFTLAUNCH_REDIS)\n"
    "  --server URL      where artifacts come from and go to (env SOFTLAUNCH_SERVER)\n"
    "  --token-file FILE the server's token (env SOFTLAUNCH_TOKEN)\n"
    "  --work-dir DIR    cache and run folders; agents of one machine may share it\n"
    "  --queue NAME      may be given several times; default: default\n"
    "  --allow-path DIR  a folder below which a spec may name files\n"
    "  --lease-ms N      how long a run stays ours without a word from us\n"
    "  --slots N         runs at a time (default: 1)\n"
    "  --once, --max-runs N   ends after one run, after N\n"
    "  --exit-when-idle  ends when nothing is in line\n\n"
    "SIGTERM: the run under way is checkpointed and given back. Logs JSON lines on standard "
    "error.\n";

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

int cmd_agent(int argc, char **argv)
{
    static const struct option options[] = {
        {"redis", required_argument, NULL, 'r'},
        {"server", required_argument, NULL, 's'},
        {"work-dir", required_argument, NULL, 'd'},
        {"queue", required_argument, NULL, 'q'},
        {"allow-path", required_argument, NULL, 'a'},
        {"token-file", required_argument, NULL, 't'},
        {"lease-ms", required_argument, NULL, 'l'},
        {"once", no_argument, NULL, 'o'},
        {"max-runs", required_argument, NULL, 'm'},
        {"slots", required_argument, NULL, 'n'},
        {"exit-when-idle", no_argument, NULL, 'e'},
        {"worker", required_argument, NULL, 'w'},
        {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct sl_agent_config config = {.redis_url = from_env("SOFTLAUNCH_REDIS"),
                                     .server_url = from_env("SOFTLAUNCH_SERVER"),
                                     .lease_ms = SL_AGENT_LEASE_MS, .slots = 1};
    const char *token_file = NULL, *dir = NULL;
    enum sl_level least = SL_INFO;
    char path[SL_PATH_MAX], *token = NULL;
    struct sl_err err = SL_ERR_INIT;
    int c, rc = 0;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'r':
            config.redis_url = optarg;
            break;
        case 's':
            config.server_url = optarg;
            break;
        case 'd':
            dir = optarg;
            break;
        case 'q':
            if (config.n_queues == SL_QUEUE_NAMES_MAX || !*optarg ||
                strlen(optarg) > SL_QUEUE_NAME_MAX)
                rc = sl_err_set(&err, SL_SPEC, "--queue: at most %d names of at most %d bytes",
                                SL_QUEUE_NAMES_MAX, SL_QUEUE_NAME_MAX);
            else
                config.queues[config.n_queues++] = optarg;
            break;
        case 'a':
            if (config.n_allow_paths == SL_AGENT_ALLOW_PATHS_MAX || *optarg != '/')
                rc = sl_err_set(&err, SL_SPEC, "--allow-path: at most %d absolute paths",
                                SL_AGENT_ALLOW_PATHS_MAX);
            else
                config.allow_paths[config.n_allow_paths++] = optarg;
            break;
        case 't':
            token_file = optarg;
            break;
        case 'l':
            config.lease_ms = atoll(optarg);
            break;
        case 'o':
            config.max_runs = 1;
            break;
        case 'm':
            config.max_runs = atoi(optarg);
            if (config.max_runs < 1)
                rc = sl_err_set(&err, SL_SPEC, "--max-runs: expected a number from 1, found %.40s", optarg);
            break;
        case 'n':
            config.slots = atoi(optarg);
            if (config.slots < 1 || config.slots > SL_AGENT_SLOTS_MAX)
                rc = sl_err_set(&err, SL_SPEC, "--slots: expected a number from 1 to %d, found %.40s",
                                SL_AGENT_SLOTS_MAX, optarg);
            break;
        case 'e':
            config.exit_when_idle = true;
            break;
        case 'w':
            config.worker = optarg;
            break;
        case 'v':
            least = SL_DEBUG;
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    if (optind != argc || !config.redis_url || !config.server_url || !dir) {
        fputs(usage, stderr);
        return 2;
    }
    if (!config.n_queues)
        config.queues[config.n_queues++] = "default";
    if (!rc && (config.lease_ms < SL_AGENT_LEASE_MS_MIN || config.lease_ms > SL_AGENT_LEASE_MS_MAX))
        rc = sl_err_set(&err, SL_SPEC, "--lease-ms must be from %d to %d", SL_AGENT_LEASE_MS_MIN,
                        SL_AGENT_LEASE_MS_MAX);
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
    sl_log_setup("agent", !isatty(STDERR_FILENO), least);
    if (!rc)
        rc = sl_agent(&config, &err);
    free(token);
    return rc ? cli_fail(argv[0], &err) : 0;
}
