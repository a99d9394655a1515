#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <getopt.h>
#include <stdio.h>

static const char usage[] =
    "usage: softlaunch logs [-f] [--all] [--json] RUN [--server URL] [--token-file FILE]\n\n"
    "  RUN      its id, the beginning of it, or the name of its newest run\n"
    "  -f       goes on until the run ends\n"
    "  --all    states, checkpoints and numbers too\n"
    "  --json   each event as a line of JSON\n";

int cmd_logs(int argc, char **argv)
{
    static const struct option options[] = {
        {"follow", no_argument, NULL, 'f'},
        {"all", no_argument, NULL, 'a'},
        {"json", no_argument, NULL, 'j'},
        {"server", required_argument, NULL, 's'},
        {"token-file", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct cli_follow how = {.logs = true};
    const char *server = NULL, *token_file = NULL;
    char run[SL_ID_HEX + 1], state[32];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    int c, rc;

    while ((c = getopt_long(argc, argv, "f", options, NULL)) != -1)
        switch (c) {
        case 'f':
            how.follow = true;
            break;
        case 'a':
            how.logs = false;
            break;
        case 'j':
            how.json = true;
            break;
        case 's':
            server = optarg;
            break;
        case 't':
            token_file = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    if (optind != argc - 1) {
        fputs(usage, stderr);
        return 2;
    }
    rc = sl_api_open(server, token_file, &api, &err);
    if (!rc)
        rc = cli_find_run(api, argv[optind], run, &err);
    if (!rc)
        rc = cli_follow_run(api, run, &how, state, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
