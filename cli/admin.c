/* `softlaunch queues`, `projects` and `agents`: how they stand, and what operators change. */
#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/project_port.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct thing {
    const char *name; /* "queue"; its path is /api/v1/queues */
    const char *const *forms;
    const char *more;
    bool settings, states;
    void (*print)(const json_t *list);
};

/* ---- tables
 * ------------------------------------------------------------------------------------------------ */

static void print_limit(const json_t *o, const char *key, int width)
{
    double v = sl_json_num(o, key, 0);

    if (v > 0)
        printf(" %*.6g", width, v);
    else
        printf(" %*s", width, "-");
}

static void print_queues(const json_t *list)
{
    json_t *q, *c;
    size_t i, k;

    printf("%-20s %-9s %8s %8s %8s  %-28s %8s %8s\n", "QUEUE", "STATE", "RUNNING", "LIMIT",
           "A MINUTE", "CLASS", "READY", "HELD");
    json_array_foreach(list, i, q) {
        printf("%-20.20s %-9s %8lld", sl_json_str(q, "queue", ""), sl_json_str(q, "state", ""),
               (long long)sl_json_int(q, "running", 0));
        print_limit(q, "max_running", 8);
        print_limit(q, "rate_per_minute", 8);
        json_array_foreach(json_object_get(q, "classes"), k, c)
            printf("%*s  %-28.28s %8lld %8lld%s", k ? 58 : 0, "", sl_json_str(c, "class", ""),
                   (long long)sl_json_int(c, "ready", 0), (long long)sl_json_int(c, "held", 0),
                   sl_json_bool(c, "agents", true)                             ? ""
                   : k + 1 < json_array_size(json_object_get(q, "classes"))    ? "  no agent\n"
                                                                               : "  no agent");
        putchar('\n');
    }
}

static void print_projects(const json_t *list)
{
    json_t *p;
    size_t i;

    printf("%-24s %8s %8s %8s %11s %11s %11s %11s\n", "PROJECT", "RUNNING", "LIMIT", "HELD",
           "GPU HOURS", "OF", "STORAGE GIB", "OF");
    json_array_foreach(list, i, p) {
        printf("%-24.24s %8lld", sl_json_str(p, "project", ""),
               (long long)sl_json_int(p, "running", 0));
        print_limit(p, "max_running", 8);
        printf(" %8lld %11.2f", (long long)sl_json_int(p, "held", 0),
               sl_json_num(p, "gpu_hours_used", 0));
        print_limit(p, "gpu_hours", 11);
        printf(" %11.2f", sl_json_num(p, "storage_gib_used", 0));
        print_limit(p, "storage_gib", 11);
        putchar('\n');
    }
}

static void print_agents(const json_t *list)
{
    json_t *a;
    size_t i;

    printf("%-28s %-20s %-9s %-9s %5s %5s %6s\n", "AGENT", "OFFER", "STATE", "WANTED", "SLOTS",
           "RUNS", "SEEN");
    json_array_foreach(list, i, a)
        printf("%-28.28s %-20.20s %-9.9s %-9s %5lld %5zu %5llds\n", sl_json_str(a, "agent", ""),
               sl_json_str(a, "offer", "-"), sl_json_str(a, "state", "-"),
               sl_json_str(a, "wanted", ""), (long long)sl_json_int(a, "slots", 1),
               json_array_size(json_object_get(a, "runs")),
               (long long)sl_json_int(a, "age_ms", 0) / 1000);
}

static const struct thing
    queue_thing = {"queue",
                   (const char *const[]){"[--json]", "pause|resume|drain QUEUE", "set QUEUE KEY=VALUE ...", NULL},
                   "pause: it takes runs and gives none. drain: it gives its runs and takes none.\n"
                   "KEY is max_running (runs at once, 0: no limit), rate_per_minute (runs started, 0: no limit) or\n"
                   "offers (what an autoscaler can bring: offers='[\"gpu1+mem80\"]').\n"
                   "READY can be claimed now; HELD waits for a limit, a pause, or an agent that can serve it.",
                   true, true, print_queues},
    project_thing = {"project", (const char *const[]){"[--json]", "set PROJECT KEY=VALUE ...", "export PROJECT FILE.tar",
                                           "import FILE.tar", NULL},
                     "KEY is max_running, gpu_hours, storage_gib (0: no limit), gpu_hours_used or storage_gib_used\n"
                     "(0 starts anew). With a quota used up no run of the project starts and none is taken; what runs\n"
                     "goes on. export writes all of a project: versions and their files, aliases, registered models, jobs,\n"
                     "archived runs, each with its sha256; import takes that in, changes nothing that is there, and may be\n"
                     "repeated.",
                     true, false, print_projects},
    agent_thing = {"agent", (const char *const[]){"[--json]", "pause|resume|drain AGENT", NULL},
                   "pause: it finishes its runs and claims none. drain: it finishes its runs and ends.", false,
                   true, print_agents};

/* ---- what is done
 * ------------------------------------------------------------------------------------------ */

static int show_all(struct sl_api *api, const struct thing *t, bool json, struct sl_err *err)
{
    char path[32], key[16];
    json_t *reply;
    int rc;

    snprintf(key, sizeof key, "%ss", t->name);
    snprintf(path, sizeof path, "/api/v1/%s", key);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &reply, err);
    if (rc)
        return rc;
    if (json)
        cli_print_json(reply);
    else
        t->print(json_object_get(reply, key));
    json_decref(reply);
    return 0;
}

/* The body that a verb and its arguments mean, or NULL: wrong usage. */
static json_t *changes_of(const struct thing *t, const char *verb, int n, char **settings)
{
    static const char *const verbs[][2] = {
        {"pause", "paused"}, {"resume", "active"}, {"drain", "draining"}};
    json_t *changes;

    for (size_t i = 0; t->states && n == 0 && i < 3; i++)
        if (!strcmp(verb, verbs[i][0]))
            return json_pack("{s:s}", "state", verbs[i][1]);
    if (!t->settings || strcmp(verb, "set") != 0 || !n)
        return NULL;
    changes = json_object();
    for (int i = 0; i < n; i++) {
        const char *value = strchr(settings[i], '=');
        json_t *v = value ? json_loads(value + 1, JSON_DECODE_ANY, NULL) : NULL;
        if (value && !v)
            v = json_string(value + 1);
        if (!v || json_object_setn_new(changes, settings[i], (size_t)(value - settings[i]), v)) {
            json_decref(changes);
            return NULL;
        }
    }
    return changes;
}

static int change(struct sl_api *api, const struct thing *t, const char *name,
                  const json_t *changes, bool json, struct sl_err *err)
{
    json_t *reply = NULL;
    char path[512], *part = sl_api_escape(name);
    int rc = part ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc && snprintf(path, sizeof path, "/api/v1/%ss/%s", t->name, part) >= (int)sizeof path)
        rc = sl_err_set(err, SL_SPEC, "not the name of %s: %.40s...", t->name, name);
    if (!rc)
        rc = sl_api_call(api, "POST", path, NULL, changes, &reply, err);
    if (!rc && json)
        cli_print_json(reply);
    json_decref(reply);
    free(part);
    return rc;
}

static int command(const struct thing *t, int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    bool json = false, table = false;
    const struct cli_option options[] = {
        {"json", 0, CLI_FLAG, &json, NULL, "JSON on a terminal too; of what is changed, the server's answer", 0, 0},
        {"table", 0, CLI_FLAG, &table, NULL, "a table in a file or pipe too", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = argv[0], .forms = t->forms, .options = options, .more = t->more, .most = -1};
    int at = cli_parse(&usage, argc, argv), left = argc - at, rc;
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    json_t *changes = NULL;

    if (at < 0)
        return cli_usage_status(at);
    bool port = t == &project_thing && project_port_knows(left, argv + at);
    if (left >= 2 && !port)
        changes = changes_of(t, argv[at], left - 2, argv + at + 2);
    if (left && !changes && !port)
        return cli_wrong(&usage, NULL);
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc)
        rc = port      ? project_port(api, left, argv + at, json, &err)
             : changes ? change(api, t, argv[at + 1], changes, json, &err)
                     : show_all(api, t, json || (!table && !isatty(STDOUT_FILENO)), &err);
    json_decref(changes);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}

int cmd_queues(int argc, char **argv)
{
    return command(&queue_thing, argc, argv);
}

int cmd_projects(int argc, char **argv)
{
    return command(&project_thing, argc, argv);
}

int cmd_agents(int argc, char **argv)
{
    return command(&agent_thing, argc, argv);
}
