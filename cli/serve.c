#include "server/serve.h"
#include "base/log.h"
#include "cli/cli.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char usage[] =
    "usage: softlaunch serve --data DIR --token-file FILE [--listen 127.0.0.1:8080] [--redis URL]\n"
    "                        [--port-file FILE] [--keep-finished S] [--keep-runs DAYS]\n\n"
    "  --data DIR         the artifact store: blobs, versions, records\n"
    "  --token-file FILE  one line: the token that every client must send\n"
    "  --listen HOST:PORT where to answer; port 0 takes a free one\n"
    "  --redis URL        redis://HOST:PORT/DB or unix:///PATH; without it the store alone is "
    "served\n"
    "  --port-file FILE   gets the port's number once the server answers\n"
    "  --keep-finished S  seconds that a finished run stays in Redis before it is archived in DIR "
    "(60)\n"
    "  --keep-runs DAYS   archived runs are removed after so many days; default: never. Artifacts "
    "stay.\n\n"
    "Prints `serving http://HOST:PORT`, logs JSON lines on standard error, stops on SIGTERM.\n";

int cmd_serve(int argc, char **argv)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'},
        {"data", required_argument, NULL, 'd'},
        {"redis", required_argument, NULL, 'r'},
        {"token-file", required_argument, NULL, 't'},
        {"port-file", required_argument, NULL, 'p'},
        {"keep-finished", required_argument, NULL, 'f'},
        {"keep-runs", required_argument, NULL, 'k'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct sl_serve_config config = {.listen = "127.0.0.1:8080", .keep_finished_s = 60};
    struct sl_err err = SL_ERR_INIT;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'l':
            config.listen = optarg;
            break;
        case 'd':
            config.data_dir = optarg;
            break;
        case 'r':
            config.redis_url = optarg;
            break;
        case 't':
            config.token_file = optarg;
            break;
        case 'p':
            config.port_file = optarg;
            break;
        case 'f':
            config.keep_finished_s = atoll(optarg);
            break;
        case 'k':
            config.keep_runs_days = atoll(optarg);
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    if (optind != argc || !config.data_dir || !config.token_file || config.keep_finished_s < 0 ||
        config.keep_runs_days < 0) {
        fputs(usage, stderr);
        return 2;
    }
    sl_log_setup("server", !isatty(STDERR_FILENO), SL_INFO);
    return sl_serve(&config, &err) ? cli_fail(argv[0], &err) : 0;
}
