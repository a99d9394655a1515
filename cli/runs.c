#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/registry.h"
#include "cli/runs_common.h"
#include "cli/runs_list.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    const char *priority = "", *key = NULL, *board = NULL, *note = NULL, *verb;
    bool json_asked = false, table = false, wait = false, csv = false, jsonl = false;
    struct cli_list tags = {.n = 0};
    struct cli_runs_query query = {.state = "", .queue = "", .project = "", .sort = "", .q = "", .tags = &tags, .limit = 50};
    const struct cli_option options[] = {
        {"state", 0, CLI_TEXT, &query.state, "STATE",
         "of this state only: queued, delayed, running, succeeded, failed, dead, cancelled", 0, 0},
        {"queue", 0, CLI_TEXT, &query.queue, "QUEUE", "of this queue only; for move: the new queue", 0, 0},
        {"project", 0, CLI_TEXT, &query.project, "PROJECT", "of this project only", 0, 0},
        {"tag", 0, CLI_LIST, &tags, "TAG", "with this tag, and each further one; for note: these are its tags, --tag '' for none", 0, 0},
        {"search", 'q', CLI_TEXT, &query.q, "WORDS", "with each of these words in name, id, project, queue, user, job, tags or notes", 0, 0},
        {"sort", 0, CLI_TEXT, &query.sort, "[-]KEY", "created, finished, name, state, queue, project, priority, user, duration, loss or val_loss; -KEY turns it round (-created)", 0, 0},
        {"limit", 0, CLI_INT, &query.limit, "N", "so many at most (50)", 1, 1000000},
        {"note", 0, CLI_TEXT, &note, "TEXT", "for note: what to write about it", 0, 0},
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
        .forms = (const char *const[]){"ls [--state STATE] [--queue QUEUE] [--project PROJECT] [--tag TAG]... [-q WORDS]",
                                       "ls [--sort [-]KEY] [--limit N] [--json]",
                                       "show RUN [--json]",
                                       "move RUN [--priority PRIORITY] [--queue QUEUE]",
                                       "requeue RUN [--key KEY]", "rerun RUN [--wait] [--key KEY]",
                                       "compare RUN OTHER",
                                       "note RUN [--note TEXT] [--tag TAG]...", "metrics RUN [--csv | --jsonl | --tensorboard DIR]", NULL},
        .options = options,
        .more = CLI_RUN_HELP "\n"
                "rerun does one that succeeded again, with the versions and digests of inputs that it used: the same\n"
                "prompt tables, bit for bit, on the same kind of device, threads, libraries and pack layout. compare says\n"
                "what is the same of two, and what differs. metrics prints every step's numbers.\n"
                "move gives a run that has not ended another priority or queue. requeue enqueues one that is dead,\n"
                "failed or cancelled again, as a new run that goes on from its checkpoint, and prints its id.\n"
                "A table on a terminal, JSON elsewhere.",
        .verbs = (const struct cli_verb[]){{"ls", 0}, {"show", 1}, {"note", 1}, {"move", 1}, {"requeue", 1}, {"rerun", 1},
                                           {"compare", 2}, {"metrics", 1}, {NULL, 0}},
    };
    int at = cli_parse(&usage, argc, argv), rc;
    bool json = json_asked || (!table && !isatty(STDOUT_FILENO));
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    verb = at < argc ? argv[at] : "ls";
    if ((!strcmp(verb, "note") && !note && !tags.n) || (!strcmp(verb, "move") && !*priority && !*query.queue) ||
        csv + jsonl + (board != NULL) > 1)
        return cli_wrong(&usage, NULL);
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = !strcmp(verb, "ls")        ? cli_list_runs(api, &query, json, &err)
             : !strcmp(verb, "note")    ? cli_note_run(api, argv[at + 1], note, &tags, json_asked, &err)
             : !strcmp(verb, "show")    ? show(api, argv[at + 1], json, &err)
             : !strcmp(verb, "requeue") ? requeue(api, argv[at + 1], key, json_asked, &err)
             : !strcmp(verb, "rerun")   ? cli_rerun(api, argv[at + 1], key, wait, json_asked, &err)
             : !strcmp(verb, "compare") ? cli_compare_runs(api, argv[at + 1], argv[at + 2], json_asked, &err)
             : !strcmp(verb, "metrics") && board ? cli_run_tensorboard(api, argv[at + 1], board, &err)
             : !strcmp(verb, "metrics") ? cli_run_metrics(api, argv[at + 1], !jsonl, &err)
                                        : move(api, argv[at + 1], priority, query.queue, json_asked, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
