#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>

int cmd_cancel(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    bool json = false;
    const struct cli_option options[] = {
        {"json", 0, CLI_FLAG, &json, NULL, "the server's answer instead of text", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "cancel",
        .forms = (const char *const[]){"RUN [--json] [--server URL] [--token-file FILE]", NULL},
        .options = options,
        .more = CLI_RUN_HELP "\nA run in line is cancelled at once; one that is being trained stops at its next step.",
        .least = 1,
        .most = 1,
    };
    int at = cli_parse(&usage, argc, argv), rc;
    char run[SL_ID_HEX + 1], path[128];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    json_t *reply = NULL;

    if (at < 0)
        return cli_usage_status(at);
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = cli_find_run(api, argv[at], run, &err);
    if (!rc) {
        snprintf(path, sizeof path, "/api/v1/runs/%s/cancel", run);
        rc = sl_api_call(api, "POST", path, run, NULL, &reply, &err);
    }
    if (!rc && json)
        cli_print_json(reply);
    else if (!rc)
        printf("%s: %s\n", run, sl_json_str(reply, "state", "?"));
    json_decref(reply);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
