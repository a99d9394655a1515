#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>

int cmd_logs(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    struct cli_follow how = {.follow = false};
    bool all = false;
    const struct cli_option options[] = {
        {"follow", 'f', CLI_FLAG, &how.follow, NULL, "goes on until the run ends", 0, 0},
        {"all", 0, CLI_FLAG, &all, NULL, "states, checkpoints and numbers too", 0, 0},
        {"json", 0, CLI_FLAG, &how.json, NULL, "each event as a line of JSON", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "logs",
        .forms = (const char *const[]){"[-f] [--all] [--json] RUN [--server URL] [--token-file FILE]",
                                       NULL},
        .options = options,
        .more = CLI_RUN_HELP,
        .least = 1,
        .most = 1,
    };
    int at = cli_parse(&usage, argc, argv), rc;
    char run[SL_ID_HEX + 1], state[32];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    how.logs = !all;
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = cli_find_run(api, argv[at], run, &err);
    if (!rc)
        rc = cli_follow_run(api, run, &how, state, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
