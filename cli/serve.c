#include "server/keeper.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/options.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cmd_serve(int argc, char **argv)
{
    struct sl_serve_config config = {.listen = "127.0.0.1:8080", .redis_url = getenv("SOFTLAUNCH_REDIS")};
    int local_gib = 20, keep_finished_s = 60, keep_runs_days = 0, collect_every_s = SL_KEEPER_EVERY_S,
        collect_grace_s = SL_KEEPER_GRACE_S;
    struct cli_list allow = {.n = 0}, copy_to = {.n = 0};
    struct cli_list trusted = {.n = 0};
    const struct cli_option options[] = {
        {"data", 0, CLI_TEXT, &config.data_dir, "DIR", "the artifact store: blobs, versions, records", 0, 0},
        {"blobs", 0, CLI_TEXT, &config.blobs, "s3://BUCKET/PREFIX/|gs://...",
         "files lie in this folder of a bucket; records, and copies of what was used last, in DIR", 0, 0},
        {"blobs-local", 0, CLI_INT, &local_gib, "GIB", "with --blobs: how much of DIR such copies may take (20)", 0, INT_MAX},
        {"token-file", 0, CLI_TEXT, &config.token_file, "FILE", "one line: the token of the administrator `root`; `softlaunch user` and `token` make more", 0, 0},
        {"listen", 0, CLI_TEXT, &config.listen, "HOST:PORT", "where to answer (127.0.0.1:8080); port 0 takes a free one", 0, 0},
        {"tls-cert", 0, CLI_TEXT, &config.tls_cert, "FILE", "PEM, with the chain: https instead of http", 0, 0},
        {"tls-key", 0, CLI_TEXT, &config.tls_key, "FILE", "PEM, its key", 0, 0},
        {"listen-unix", 0, CLI_TEXT, &config.unix_path, "PATH", "also answer http on this socket, for a proxy", 0, 0},
        {"sign-in-header", 0, CLI_TEXT, &config.sign_in_header, "NAME",
         "the header in which the proxy names the user whom it has signed in, such as X-Forwarded-User;\n"
         "it counts from --listen-unix and --trusted-proxy, and for users of `softlaunch user`", 0, 0},
        {"trusted-proxy", 0, CLI_LIST, &trusted, "ADDRESS[/BITS]", "a proxy whose headers are believed; several times", 0, 0},
        {"redis", 0, CLI_TEXT, &config.redis_url, "URL",
         CLI_REDIS_HELP ";\nwithout it the store alone is served", 0, 0},
        {"port-file", 0, CLI_TEXT, &config.port_file, "FILE", "gets the port's number once the server answers", 0, 0},
        {"keep-finished", 0, CLI_INT, &keep_finished_s, "S",
         "seconds that a finished run stays in Redis before it is archived in DIR (60)", 0, INT_MAX},
        {"keep-runs", 0, CLI_INT, &keep_runs_days, "DAYS",
         "archived runs are removed after so many days (never). Artifacts stay.", 0, INT_MAX},
        {"collect-every", 0, CLI_INT, &collect_every_s, "S",
         "seconds between collections of what no version in DIR uses (3600); 0: only when asked", 0, INT_MAX},
        {"collect-grace", 0, CLI_INT, &collect_grace_s, "S",
         "what came in the last S seconds is not collected (21600)", 0, INT_MAX},
        {"webhook-allow", 0, CLI_LIST, &allow, "NETWORK",
         "webhooks and MLflow may go to private addresses of this network, as 10.1.0.0/16; several times", 0, 0},
        {"mlflow", 0, CLI_TEXT, &config.mlflow_uri, "URL",
         "mirrors runs to this MLflow server, unless tracking.mlflow.uri of a spec names another one;\n"
         "with the credentials in MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", 0, 0},
        {"copy-to", 0, CLI_LIST, &copy_to, "s3://BUCKET/PREFIX/|gs://...",
         "a folder that a spec's outputs.copy_to may name, or one below it; several times. The keys are this\n"
         "machine's, as AWS's and Google's tools find them.", 0, 0},
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "serve",
        .forms = (const char *const[]){"--data DIR --token-file FILE [OPTION ...]", NULL},
        .options = options,
        .more = CLI_REDIS_URLS "\nPrints `serving http://HOST:PORT`, logs JSON lines on standard error, stops on SIGTERM.",
    };
    struct sl_err err = SL_ERR_INIT;
    int at = cli_parse(&usage, argc, argv);

    if (at < 0)
        return cli_usage_status(at);
    if (!config.data_dir || !config.token_file)
        return cli_wrong(&usage, "--data and --token-file are needed");
    if (config.redis_url && !*config.redis_url)
        config.redis_url = NULL;
    if (trusted.n == CLI_LIST_MAX)
        return cli_wrong(&usage, "too many --trusted-proxy");
    trusted.items[trusted.n] = NULL;
    config.trusted = trusted.items;
    if (allow.n > SL_WEBHOOK_ALLOW_MAX)
        return cli_wrong(&usage, "--webhook-allow: at most 16 networks");
    for (int i = 0; i < allow.n; i++)
        config.webhook_allow[config.n_webhook_allow++] = allow.items[i];
    if (config.mlflow_uri && strncmp(config.mlflow_uri, "http://", 7) != 0 && strncmp(config.mlflow_uri, "https://", 8) != 0)
        return cli_wrong(&usage, "--mlflow: expected the address of an MLflow server, as http://127.0.0.1:5000");
    if (copy_to.n > SL_COPY_FOLDERS_MAX)
        return cli_wrong(&usage, "--copy-to: at most 16 folders");
    for (int i = 0; i < copy_to.n; i++)
        config.copy_to[config.n_copy_to++] = copy_to.items[i];
    config.blobs_local_max = (int64_t)local_gib << 30;
    config.keep_finished_s = keep_finished_s;
    config.keep_runs_days = keep_runs_days;
    config.collect_every_s = collect_every_s;
    config.collect_grace_s = collect_grace_s;
    sl_log_setup("server", !isatty(STDERR_FILENO), SL_INFO);
    return sl_serve(&config, &err) ? cli_fail(argv[0], &err) : 0;
}
