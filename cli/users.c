/* `softlaunch user`, `token` and `audit`: who may do what, by which secrets, and who did what. */
#include "base/clock.h"
#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEED_ADMIN                                                                                 \
    "Users, services' tokens and the audit log need the role admin over all projects.\n"

static const char *joined(const json_t *projects, char *text, size_t size)
{
    const json_t *one;
    size_t i, len = 0;
    snprintf(text, size, "%s", json_is_array(projects) ? "" : "all");
    json_array_foreach(projects, i, one) {
        if (len < size)
            len += (size_t)snprintf(text + len, size - len, "%s%s", i ? "," : "",
                                    json_string_value(one));
    }
    return text;
}

static const char *day(int64_t ms, char text[32])
{
    if (!ms)
        return "-";
    sl_format_time(ms * 1000, text);
    text[16] = 0;
    return text;
}

/* The body's list of --project, or null: all. */
static json_t *projects_of(const struct cli_list *list)
{
    json_t *projects = list->n ? json_array() : json_null();
    for (int i = 0; i < list->n; i++)
        json_array_append_new(projects, json_string(list->items[i]));
    return projects;
}

static int path_of(char *path, size_t size, const char *base, const char *name, struct sl_err *err)
{
    char *part = sl_api_escape(name);
    int n = part ? snprintf(path, size, "%s/%s", base, part) : -1;
    free(part);
    return n < 0 || n >= (int)size ? sl_err_set(err, SL_SPEC, "not a name: %.40s...", name) : 0;
}

/* Seconds of "12h", "30d", "3600"; 0: not one. */
static int64_t seconds_of(const char *text)
{
    char *end;
    long long n = strtoll(text, &end, 10);
    int64_t unit = !*end || !strcmp(end, "s") ? 1
                   : !strcmp(end, "m")        ? 60
                   : !strcmp(end, "h")        ? 3600
                   : !strcmp(end, "d")        ? 86400
                                              : 0;
    return n > 0 && n < 1000000000 ? n * unit : 0;
}

static void print_token(const json_t *token)
{
    char text[32];
    int64_t expires_ms = sl_json_int(token, "expires_ms", 0);
    /* The token alone on standard output, so that it can go straight into a file. */
    fprintf(stderr, "%s, token %s, role %s, %s%s; it is shown this once:\n",
            sl_json_str(token, "user", sl_json_str(token, "service", "")),
            sl_json_str(token, "id", ""), sl_json_str(token, "role", ""),
            expires_ms ? "until " : "without end", expires_ms ? day(expires_ms, text) : "");
    printf("%s\n", sl_json_str(token, "token", ""));
}

static void print_users(const json_t *list)
{
    const json_t *u;
    char text[32], projects[256];
    size_t i;
    printf("%-32s %-8s %-28s %-17s %s\n", "USER", "ROLE", "PROJECTS", "CREATED", "BY");
    json_array_foreach(list, i, u)
        printf("%-32s %-8s %-28s %-17s %s\n", sl_json_str(u, "user", ""),
               sl_json_str(u, "role", ""),
               joined(json_object_get(u, "projects"), projects, sizeof projects),
               day(sl_json_int(u, "created_ms", 0), text), sl_json_str(u, "created_by", ""));
}

static void print_tokens(const json_t *list)
{
    const json_t *t;
    char text[32], projects[256], name[80];
    size_t i;
    printf("%-17s %-28s %-8s %-20s %-17s %s\n", "TOKEN", "OF", "ROLE", "PROJECTS", "ENDS", "TITLE");
    json_array_foreach(list, i, t) {
        const char *service = sl_json_str(t, "service", NULL);
        snprintf(name, sizeof name, "%s%s", service ? "service:" : "",
                 service ? service : sl_json_str(t, "user", ""));
        printf("%-17s %-28s %-8s %-20s %-17s %s\n", sl_json_str(t, "id", ""), name,
               sl_json_str(t, "role", ""),
               joined(json_object_get(t, "projects"), projects, sizeof projects),
               sl_json_int(t, "revoked_ms", 0) ? "revoked"
                                               : day(sl_json_int(t, "expires_ms", 0), text),
               sl_json_str(t, "title", ""));
    }
}

static void print_audit(const json_t *list)
{
    const json_t *e;
    size_t i;
    json_array_foreach(list, i, e) {
        char *params = json_dumps(json_object_get(e, "params"), JSON_COMPACT);
        char *notes = json_dumps(json_object_get(e, "notes"), JSON_COMPACT);
        printf("%s %-20s %-15s %lld %s %s %s %s\n", sl_json_str(e, "at", ""),
               *sl_json_str(e, "user", "") ? sl_json_str(e, "user", "") : "(nobody)",
               sl_json_str(e, "from", ""), (long long)sl_json_int(e, "status", 0),
               sl_json_str(e, "method", ""), sl_json_str(e, "route", ""), params ? params : "",
               notes ? notes : "");
        free(params);
        free(notes);
    }
}

struct asked {
    struct cli_server server;
    const char *role, *title, *expires, *user, *service;
    struct cli_list projects;
    bool json, all_projects, no_token;
    int limit;
};

static int call_list(struct sl_api *api, const char *path, const char *key, const struct asked *a,
                     void (*print)(const json_t *), struct sl_err *err)
{
    json_t *reply;
    int rc = sl_api_call(api, "GET", path, NULL, NULL, &reply, err);
    if (rc)
        return rc;
    if (a->json || !isatty(STDOUT_FILENO))
        cli_print_json(reply);
    else
        print(json_object_get(reply, key));
    json_decref(reply);
    return 0;
}

static int make_token(struct sl_api *api, const struct asked *a, const char *user,
                      struct sl_err *err)
{
    json_t *reply, *body = json_pack("{s:s*, s:s*, s:s*, s:s*}", "user", user, "service",
                                     a->service, "title", a->title, "role", a->role);
    int64_t in_s = a->expires ? seconds_of(a->expires) : 0;
    int rc = 0;
    if (a->projects.n)
        json_object_set_new(body, "projects", projects_of(&a->projects));
    if (a->expires && !in_s)
        rc = sl_err_set(err, SL_SPEC, "--expires %s: expected such as 12h or 90d", a->expires);
    else if (in_s)
        json_object_set_new(body, "expires_in_s", json_integer((json_int_t)in_s));
    if (rc == 0)
        rc = sl_api_call(api, "POST", "/api/v1/tokens", NULL, body, &reply, err);
    json_decref(body);
    if (rc)
        return rc;
    if (a->json)
        cli_print_json(reply);
    else
        print_token(reply);
    json_decref(reply);
    return 0;
}

/* ---- user ------------------------------------------------------------------------------------ */

static int user_verb(struct sl_api *api, const char *verb, const char *name, struct asked *a,
                     struct sl_err *err)
{
    char path[512];
    json_t *body, *reply = NULL;
    int rc = path_of(path, sizeof path, "/api/v1/users", name, err);
    if (rc)
        return rc;
    if (!strcmp(verb, "rm"))
        return sl_api_call(api, "DELETE", path, NULL, NULL, NULL, err);
    bool add = !strcmp(verb, "add");
    body = json_pack("{s:s*, s:s*}", "user", add ? name : NULL, "role", a->role);
    if (a->projects.n || a->all_projects || add)
        json_object_set_new(body, "projects", projects_of(&a->projects));
    rc = sl_api_call(api, add ? "POST" : "PATCH", add ? "/api/v1/users" : path, NULL, body, &reply,
                     err);
    json_decref(body);
    if (rc == 0 && a->json && (!add || a->no_token))
        cli_print_json(reply);
    json_decref(reply);
    if (rc || !add || a->no_token)
        return rc;
    a->projects.n = 0; /* the user's own scope holds */
    return make_token(api, a, name, err);
}

int cmd_user(int argc, char **argv)
{
    struct asked a = {.role = NULL};
    const struct cli_option options[] = {
        {"role", 0, CLI_TEXT, &a.role, "ROLE",
         "viewer (looks), member (enqueues, cancels, uploads), admin", 0, 0},
        {"project", 'p', CLI_LIST, &a.projects, "PROJECT",
         "sees this one only; several times. Else all", 0, 0},
        {"all-projects", 0, CLI_FLAG, &a.all_projects, NULL,
         "set: takes the limit to some projects away", 0, 0},
        {"expires", 0, CLI_TEXT, &a.expires, "TIME",
         "add: of the first token, such as 12h or 90d (never)", 0, 0},
        {"no-token", 0, CLI_FLAG, &a.no_token, NULL,
         "add: no token, for one who comes through a proxy", 0, 0},
        {"json", 0, CLI_FLAG, &a.json, NULL, "the server's answer", 0, 0},
        CLI_SERVER_OPTIONS(a.server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = argv[0],
        .forms =
            (const char *const[]){"[ls]", "add NAME --role ROLE [--project PROJECT ...]",
                                  "set NAME [--role ROLE] [--project PROJECT ... | --all-projects]",
                                  "rm NAME", NULL},
        .options = options,
        .more = "add prints the user's first token, once; `softlaunch token add` makes more. rm "
                "revokes all of them.\n" NEED_ADMIN,
        .verbs = (const struct cli_verb[]){{"ls", 0}, {"add", 1}, {"set", 1}, {"rm", 1}, {NULL, 0}}};
    int at = cli_parse(&usage, argc, argv);
    const char *verb;
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    verb = at < argc ? argv[at] : "ls";
    if (!strcmp(verb, "add") && !a.role)
        return cli_wrong(&usage, "--role is needed");
    int rc = sl_api_open(a.server.url, a.server.token_file, &api, &err);
    if (rc == 0)
        rc = !strcmp(verb, "ls") ? call_list(api, "/api/v1/users", "users", &a, print_users, &err)
                : user_verb(api, verb, argv[at + 1], &a, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}

/* ---- token ----------------------------------------------------------------------------------- */

int cmd_token(int argc, char **argv)
{
    struct asked a = {.role = NULL};
    const struct cli_option options[] = {
        {"user", 0, CLI_TEXT, &a.user, "NAME", "of this user instead of oneself", 0, 0},
        {"service", 0, CLI_TEXT, &a.service, "NAME", "of a service: an agent, CI, a script", 0, 0},
        {"role", 0, CLI_TEXT, &a.role, "ROLE",
         "viewer, member or admin; of a user at most the user's own", 0, 0},
        {"project", 'p', CLI_LIST, &a.projects, "PROJECT", "sees this one only; several times", 0,
         0},
        {"expires", 0, CLI_TEXT, &a.expires, "TIME",
         "ends after so long, such as 12h or 90d (never)", 0, 0},
        {"title", 0, CLI_TEXT, &a.title, "TEXT", "what it is for", 0, 0},
        {"json", 0, CLI_FLAG, &a.json, NULL, "the server's answer", 0, 0},
        CLI_SERVER_OPTIONS(a.server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = argv[0],
        .forms =
            (const char *const[]){"[ls]",
                                  "add [--user NAME | --service NAME --role ROLE] [OPTION ...]",
                                  "revoke ID", NULL},
        .options = options,
        .more = "add prints the token on standard output, once: `softlaunch token add --service "
                "agents --role member > token`.\n"
                "An agent needs the role member. The server keeps a sha256 only.\n" NEED_ADMIN,
        .verbs = (const struct cli_verb[]){{"ls", 0}, {"add", 0}, {"revoke", 1}, {NULL, 0}}};
    int at = cli_parse(&usage, argc, argv), rc;
    const char *verb;
    char path[512];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    verb = at < argc ? argv[at] : "ls";
    if (a.user && a.service)
        return cli_wrong(&usage, "a token is --user's or --service's, not both");
    rc = sl_api_open(a.server.url, a.server.token_file, &api, &err);
    if (rc == 0 && !strcmp(verb, "add"))
        rc = make_token(api, &a, a.user, &err);
    else if (rc == 0 && !strcmp(verb, "ls"))
        rc = call_list(api, "/api/v1/tokens", "tokens", &a, print_tokens, &err);
    else if (rc == 0 && !(rc = path_of(path, sizeof path, "/api/v1/tokens", argv[at + 1], &err)))
        rc = sl_api_call(api, "DELETE", path, NULL, NULL, NULL, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}

/* ---- audit ----------------------------------------------------------------------------------- */

int cmd_audit(int argc, char **argv)
{
    struct asked a = {.limit = 50};
    const struct cli_option options[] = {
        {"user", 0, CLI_TEXT, &a.user, "NAME", "of this user, `root` or service:NAME only", 0, 0},
        {"limit", 'n', CLI_INT, &a.limit, "N", "so many lines (50)", 1, 500},
        {"json", 0, CLI_FLAG, &a.json, NULL, "the server's answer", 0, 0},
        CLI_SERVER_OPTIONS(a.server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = argv[0],
        .forms = (const char *const[]){"[OPTION ...]", NULL},
        .options = options,
        .more = "Who changed what, and what was refused, newest first. The whole of it is in\n"
                "DATA/audit/*.jsonl of the server.\n" NEED_ADMIN};
    int at = cli_parse(&usage, argc, argv), rc;
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    char path[512], *user;

    if (at < 0)
        return cli_usage_status(at);
    user = sl_api_escape(a.user ? a.user : "");
    snprintf(path, sizeof path, "/api/v1/audit?limit=%d%s%.300s", a.limit, a.user ? "&user=" : "",
             user ? user : "");
    free(user);
    rc = sl_api_open(a.server.url, a.server.token_file, &api, &err);
    if (rc == 0)
        rc = call_list(api, path, "entries", &a, print_audit, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
