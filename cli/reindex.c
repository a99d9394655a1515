#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LOOK_MS 200

/* Asks, and waits for the end. */
static int reindex(struct sl_api *api, json_t **ret_report, struct sl_err *err)
{
    const struct timespec pause = {LOOK_MS / 1000, LOOK_MS % 1000 * 1000000};
    json_t *report;
    int rc = sl_api_call(api, "POST", "/api/v1/reindex", NULL, NULL, &report, err);

    while (!rc && !strcmp(sl_json_str(report, "state", ""), "running")) {
        nanosleep(&pause, NULL);
        json_decref(report);
        rc = sl_api_call(api, "GET", "/api/v1/reindex", NULL, NULL, &report, err);
    }
    if (!rc && strcmp(sl_json_str(report, "state", ""), "done") != 0) {
        rc = sl_err_set(err, SL_IO, "the old read model stays: %s", sl_json_str(report, "error", "?"));
        json_decref(report);
    }
    if (!rc)
        *ret_report = report;
    return rc;
}

static void print(const json_t *report)
{
    int64_t n = sl_json_int(report, "n_differences", 0);
    json_t *one, *list = json_object_get(report, "differences");
    size_t i;

    printf("%lld runs in %.1f s: %lld difference%s\n", (long long)sl_json_int(report, "runs", 0),
           sl_json_num(report, "seconds", 0), (long long)n, n == 1 ? "" : "s");
    json_array_foreach(list, i, one)
        printf("%s %s%s%s\n", sl_json_str(one, "run", ""), sl_json_str(one, "what", ""),
               *sl_json_str(one, "in", "") ? " in " : "", sl_json_str(one, "in", ""));
    if (n > (int64_t)json_array_size(list))
        printf("... and %lld more\n", (long long)(n - (int64_t)json_array_size(list)));
}

int cmd_reindex(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    bool json = false;
    const struct cli_option options[] = {
        {"json", 0, CLI_FLAG, &json, NULL, "the server's answer instead of text", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "reindex",
        .forms = (const char *const[]){"[--json] [--server URL] [--token-file FILE]", NULL},
        .options = options,
        .more = "The server makes its read model, of which lists and searches of runs come, a second time from the\n"
                "archive and Redis, compares the two, and goes on with the new one. Differences are printed: there\n"
                "should be none. It serves meanwhile. One that is damaged is made anew by itself.",
    };
    int at = cli_parse(&usage, argc, argv), rc;
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    json_t *report = NULL;
    int64_t n = 0;

    if (at < 0)
        return cli_usage_status(at);
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = reindex(api, &report, &err);
    if (!rc) {
        n = sl_json_int(report, "n_differences", 0);
        if (json)
            cli_print_json(report);
        else
            print(report);
    }
    json_decref(report);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : n > 0;
}
