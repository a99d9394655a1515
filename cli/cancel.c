#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <getopt.h>
#include <stdio.h>

static const char usage[] =
    "usage: softlaunch cancel RUN [--json] [--server URL] [--token-file FILE]\n\n"
    "  RUN      its id, the beginning of it, or the name of its newest run\n"
    "A run in line is cancelled at once; one that is being trained stops at its next step.\n";

int cmd_cancel(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"server", required_argument, NULL, 's'},
        {"token-file", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *server = NULL, *token_file = NULL;
    char run[SL_ID_HEX + 1], path[128];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    json_t *reply = NULL;
    bool json = false;
    int c, rc;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'j':
            json = true;
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
