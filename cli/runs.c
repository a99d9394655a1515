#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/registry.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_age(int64_t ms)
{
    int64_t s = ms > 0 ? sl_now_us() / 1000000 - ms / 1000 : 0;

    if (ms <= 0)
        printf(" %6s", "-");
    else if (s < 120)
        printf(" %5llds", (long long)(s > 0 ? s : 0));
    else if (s < 7200)
        printf(" %5lldm", (long long)s / 60);
    else if (s < 172800)
        printf(" %5lldh", (long long)s / 3600);
    else
        printf(" %5lldd", (long long)s / 86400);
}

static void print_list(const json_t *page)
{
    json_t *r;
    size_t i;

    printf("%-12s %-24s %-10s %-9s %-10s %7s %13s %9s %6s\n", "RUN", "NAME", "QUEUE", "PRIORITY",
           "STATE", "ATTEMPT", "STEP", "VAL_LOSS", "AGE");
    json_array_foreach(json_object_get(page, "runs"), i, r) {
        const char *phase = sl_json_str(r, "phase", "");
        char step[32] = "-", loss[24] = "-";
        if (sl_json_int(r, "step", -1) >= 0)
            snprintf(step, sizeof step, "%lld/%lld", (long long)sl_json_int(r, "step", 0),
                     (long long)sl_json_int(r, "steps", 0));
        if (json_is_number(sl_json_get(r, "metrics.val_loss")))
            snprintf(loss, sizeof loss, "%.4f", sl_json_num(r, "metrics.val_loss", 0));
        printf("%-12.12s %-24.24s %-10.10s %-9s %-10s %7lld %13s %9s", sl_json_str(r, "run", ""),
               sl_json_str(r, "name", ""), sl_json_str(r, "queue", ""),
               sl_json_str(r, "priority", ""), *phase ? phase : sl_json_str(r, "state", ""),
               (long long)sl_json_int(r, "attempt", 0), step, loss);
        print_age(sl_json_int(r, "created_ms", 0));
        putchar('\n');
    }
}

static void print_time(const char *what, int64_t ms)
{
    char text[32];

    if (ms <= 0)
        return;
    sl_format_time(ms * 1000, text);
    printf("%-12s %s\n", what, text);
}

static void print_run(const json_t *r)
{
    static const char *const texts[] = {"run",   "name",  "project", "queue", "priority",  "class",
                                        "state", "phase", "waiting_for", "cause", "msg", "agent",
                                        "checkpoint", "requeued_from"};
    const char *key;
    json_t *value;
    size_t i;

    for (i = 0; i < sizeof texts / sizeof *texts; i++)
        if (*sl_json_str(r, texts[i], ""))
            printf("%-12s %s\n", texts[i], sl_json_str(r, texts[i], ""));
    printf("%-12s %lld (crashes %lld of %lld, out of memory %lld, timeouts %lld, lost %lld, "
           "preempted %lld)\n",
           "attempt", (long long)sl_json_int(r, "attempt", 0),
           (long long)sl_json_int(r, "failures", 0), (long long)sl_json_int(r, "max_attempts", 0),
           (long long)sl_json_int(r, "out_of_memory", 0), (long long)sl_json_int(r, "timeouts", 0),
           (long long)sl_json_int(r, "lost", 0), (long long)sl_json_int(r, "preemptions", 0));
    if (sl_json_int(r, "exit_code", -1) >= 0)
        printf("%-12s %lld\n", "exit status", (long long)sl_json_int(r, "exit_code", -1));
    if (sl_json_int(r, "exit_signal", -1) >= 0)
        printf("%-12s %lld\n", "signal", (long long)sl_json_int(r, "exit_signal", -1));
    if (sl_json_int(r, "step", -1) >= 0)
        printf("%-12s %lld of %lld\n", "step", (long long)sl_json_int(r, "step", 0),
               (long long)sl_json_int(r, "steps", 0));
    print_time("created", sl_json_int(r, "created_ms", 0));
    print_time("started", sl_json_int(r, "started_ms", 0));
    print_time("finished", sl_json_int(r, "finished_ms", 0));
    print_time("due", sl_json_int(r, "due_ms", 0));
    json_object_foreach(json_object_get(r, "metrics"), key, value)
        if (json_is_number(value))
            printf("%-12s %-24s %.6g\n", "metric", key, json_number_value(value));
    json_array_foreach(json_object_get(r, "outputs"), i, value)
        printf("%-12s %s:%s\n", sl_json_str(value, "output", "output"),
               sl_json_str(value, "artifact", "?"), sl_json_str(value, "version", "?"));
    json_array_foreach(json_object_get(r, "log_tail"), i, value)
        printf("%s%s\n", i ? "" : "last lines of its log:\n", json_string_value(value));
}

static int list(struct sl_api *api, int limit, const char *state, const char *queue,
                const char *project, bool json, struct sl_err *err)
{
    char path[1024], below[64] = "", *s = sl_api_escape(state), *q = sl_api_escape(queue);
    char *p = sl_api_escape(project);
    json_t *all = json_pack("{s:[], s:n}", "runs", "next"), *page;
    json_t *runs = json_object_get(all, "runs");
    int rc, left = limit;

    /* A page looks at a bounded number of runs: it may be short, even empty, and yet have a next one. */
    do {
        snprintf(path, sizeof path, "/api/v1/runs?limit=%d&state=%.300s&queue=%.300s&project=%.300s%s",
                 left, s ? s : "", q ? q : "", p ? p : "", below);
        rc = sl_api_call(api, "GET", path, NULL, NULL, &page, err);
        if (rc)
            break;
        const char *next = sl_json_str(page, "next", "");
        snprintf(below, sizeof below, "%s%.20s", *next ? "&below=" : "", next);
        json_array_extend(runs, json_object_get(page, "runs"));
        json_object_set(all, "next", json_object_get(page, "next"));
        json_decref(page);
        left = limit - (int)json_array_size(runs);
    } while (*below && left > 0);
    free(s);
    free(q);
    free(p);
    if (!rc && json)
        cli_print_json(all);
    else if (!rc)
        print_list(all);
    json_decref(all);
    return rc;
}

static int show(struct sl_api *api, const char *text, bool json, struct sl_err *err)
{
    char run[SL_ID_HEX + 1], path[128];
    json_t *r;
    int rc = cli_find_run(api, text, run, err);

    if (!rc) {
        snprintf(path, sizeof path, "/api/v1/runs/%s", run);
        rc = sl_api_call(api, "GET", path, NULL, NULL, &r, err);
    }
    if (rc)
        return rc;
    if (json)
        cli_print_json(r);
    else
        print_run(r);
    json_decref(r);
    return 0;
}

static int move(struct sl_api *api, const char *text, const char *priority, const char *queue,
                bool json, struct sl_err *err)
{
    char run[SL_ID_HEX + 1], path[128];
    json_t *to = json_object(), *reply = NULL;
    int rc = cli_find_run(api, text, run, err);

    if (*priority)
        json_object_set_new(to, "priority", json_string(priority));
    if (*queue)
        json_object_set_new(to, "queue", json_string(queue));
    if (!rc) {
        snprintf(path, sizeof path, "/api/v1/runs/%s/move", run);
        rc = sl_api_call(api, "POST", path, run, to, &reply, err); /* may be sent twice */
    }
    if (!rc && json)
        cli_print_json(reply);
    json_decref(reply);
    json_decref(to);
    return rc;
}

static int requeue(struct sl_api *api, const char *text, const char *key, bool json,
                   struct sl_err *err)
{
    char run[SL_ID_HEX + 1], path[128], random[SL_ID_HEX + 1];
    json_t *reply;
    int rc = cli_find_run(api, text, run, err);

    sl_random_id(random); /* so that our own tries after a lost answer make one run */
    if (!rc) {
        snprintf(path, sizeof path, "/api/v1/runs/%s/requeue", run);
        rc = sl_api_call(api, "POST", path, key ? key : random, NULL, &reply, err);
    }
    if (rc)
        return rc;
    if (json)
        cli_print_json(reply);
    else
        puts(sl_json_str(reply, "run", ""));
    json_decref(reply);
    return 0;
}

int cmd_runs(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    const char *state = "", *queue = "", *project = "", *priority = "", *key = NULL, *board = NULL, *verb;
    bool json_asked = false, table = false, wait = false, csv = false, jsonl = false;
    int limit = 50;
    const struct cli_option options[] = {
        {"state", 0, CLI_TEXT, &state, "STATE",
         "of this state only: queued, delayed, running, succeeded, failed, dead, cancelled", 0, 0},
        {"queue", 0, CLI_TEXT, &queue, "QUEUE", "of this queue only; for move: the new queue", 0, 0},
        {"project", 0, CLI_TEXT, &project, "PROJECT", "of this project only", 0, 0},
        {"limit", 0, CLI_INT, &limit, "N", "so many of the newest (50)", 1, 1000000},
        {"priority", 0, CLI_TEXT, &priority, "PRIORITY", "for move: critical, high, medium or low", 0, 0},
        {"key", 0, CLI_TEXT, &key, "KEY", "for requeue and rerun: with the same key it is one run", 0, 0},
        {"wait", 0, CLI_FLAG, &wait, NULL, "for rerun: to its end, and says whether the prompt tables are the same", 0, 0},
        {"csv", 0, CLI_FLAG, &csv, NULL, "for metrics: CSV with a header (the default)", 0, 0},
        {"jsonl", 0, CLI_FLAG, &jsonl, NULL, "for metrics: a JSON object a line", 0, 0},
        {"tensorboard", 0, CLI_TEXT, &board, "DIR", "for metrics: as TensorBoard's event files, in DIR/RUN", 0, 0},
        {"json", 0, CLI_FLAG, &json_asked, NULL, "JSON on a terminal too; of what is changed, the server's answer", 0, 0},
        {"table", 0, CLI_FLAG, &table, NULL, "a table in a file or pipe too", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "runs",
        .forms = (const char *const[]){"[--state STATE] [--queue QUEUE] [--project PROJECT] [--limit N] [--json]",
                                       "show RUN [--json]",
                                       "move RUN [--priority PRIORITY] [--queue QUEUE]",
                                       "requeue RUN [--key KEY]", "rerun RUN [--wait] [--key KEY]",
                                       "compare RUN OTHER", "metrics RUN [--csv | --jsonl | --tensorboard DIR]", NULL},
        .options = options,
        .more = CLI_RUN_HELP "\n"
                "rerun does one that succeeded again, with the versions and digests of inputs that it used: the same\n"
                "prompt tables, bit for bit, on the same kind of device, threads, libraries and pack layout. compare says\n"
                "what is the same of two, and what differs. metrics prints every step's numbers.\n"
                "move gives a run that has not ended another priority or queue. requeue enqueues one that is dead,\n"
                "failed or cancelled again, as a new run that goes on from its checkpoint, and prints its id.\n"
                "A table on a terminal, JSON elsewhere.",
        .most = 3,
    };
    int at = cli_parse(&usage, argc, argv), left = argc - at, rc;
    bool json = json_asked || (!table && !isatty(STDOUT_FILENO));
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    verb = left >= 2 ? argv[at] : "";
    const char *const two[] = {"show", "requeue", "rerun", "metrics"};
    bool known = !left || (left == 2 && !strcmp(verb, "move") && (*priority || *queue)) ||
                 (left == 3 && !strcmp(verb, "compare"));
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        known |= left == 2 && !strcmp(verb, two[i]);
    if (!known || csv + jsonl + (board != NULL) > 1)
        return cli_wrong(&usage, NULL);
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = !left                      ? list(api, limit, state, queue, project, json, &err)
             : !strcmp(verb, "show")    ? show(api, argv[at + 1], json, &err)
             : !strcmp(verb, "requeue") ? requeue(api, argv[at + 1], key, json_asked, &err)
             : !strcmp(verb, "rerun")   ? cli_rerun(api, argv[at + 1], key, wait, json_asked, &err)
             : !strcmp(verb, "compare") ? cli_compare_runs(api, argv[at + 1], argv[at + 2], json_asked, &err)
             : !strcmp(verb, "metrics") && board ? cli_run_tensorboard(api, argv[at + 1], board, &err)
             : !strcmp(verb, "metrics") ? cli_run_metrics(api, argv[at + 1], !jsonl, &err)
                                        : move(api, argv[at + 1], priority, queue, json_asked, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
