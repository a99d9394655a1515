/* `softlaunch job`: reusable jobs made of finished runs; and what `enqueue --job` does. */
#include "artifacts/names.h"
#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/registry.h"
#include "cli/runs_common.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARAMETER_HELP                                                                             \
    "NAME=KEY:number:LEAST..MOST, NAME=KEY:integer:LEAST..MOST, NAME=KEY:choice:A|B|C or NAME=KEY:text[:LENGTH]"

static int job_path(const char *name, const char *behind, char ret_path[2 * SL_NAME_MAX + 64], struct sl_err *err)
{
    if (!sl_name_valid(name))
        return sl_err_set(err, SL_SPEC, "`%.100s` is not a job's name: 1 to %d of a-z 0-9 . _ -, first a letter or digit",
                          name, SL_NAME_MAX);
    snprintf(ret_path, 2 * SL_NAME_MAX + 64, "/api/v1/jobs/%s%s", name, behind);
    return 0;
}

/* ---- parameters ------------------------------------------------------------------------------ */

static int bad_parameter(const char *text, struct sl_err *err)
{
    return sl_err_set(err, SL_SPEC, "--param %.200s: expected " PARAMETER_HELP, text);
}

static bool read_bounds(const char *text, json_t *p)
{
    const char *dots = strstr(text, "..");
    char *end, left[64];
    double least, most;

    if (!dots || dots == text || dots - text >= (int)sizeof left)
        return false;
    snprintf(left, sizeof left, "%.*s", (int)(dots - text), text);
    least = strtod(left, &end);
    if (*end)
        return false;
    most = strtod(dots + 2, &end);
    if (end == dots + 2 || *end)
        return false;
    json_object_set_new(p, "minimum", json_real(least));
    json_object_set_new(p, "maximum", json_real(most));
    return true;
}

static void read_choices(const char *text, json_t *p)
{
    json_t *choices = json_array();

    for (const char *from = text;; from++) {
        size_t len = strcspn(from, "|");
        json_t *value = json_loadb(from, len, JSON_DECODE_ANY, NULL);
        json_array_append_new(choices, value && !json_is_object(value) && !json_is_array(value)
                                           ? value
                                           : json_stringn(from, len));
        from += len;
        if (!*from)
            break;
    }
    json_object_set_new(p, "choices", choices);
}

static int read_parameter(const char *text, json_t *parameters, struct sl_err *err)
{
    const char *equals = strchr(text, '='), *colon = equals ? strchr(equals, ':') : NULL, *bounds;
    char name[SL_NAME_MAX + 1], type[16];
    json_t *p;
    bool good;

    if (!colon || equals - text > SL_NAME_MAX)
        return bad_parameter(text, err);
    snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
    bounds = colon + 1 + strcspn(colon + 1, ":");
    snprintf(type, sizeof type, "%.*s", (int)(bounds - colon - 1), colon + 1);
    bounds += *bounds == ':';
    p = json_pack("{s:o, s:s}", "path", json_stringn(equals + 1, (size_t)(colon - equals - 1)), "type", type);
    good = p != NULL;
    if (!strcmp(type, "number") || !strcmp(type, "integer"))
        good = good && read_bounds(bounds, p);
    else if (!strcmp(type, "choice"))
        read_choices(bounds, p);
    else if (!strcmp(type, "text") && *bounds)
        json_object_set_new(p, "max_length", json_integer(atoll(bounds)));
    if (!good) {
        json_decref(p);
        return bad_parameter(text, err);
    }
    if (json_object_get(parameters, name)) {
        json_decref(p);
        return sl_err_set(err, SL_SPEC, "--param %.128s is given twice", name);
    }
    json_object_set_new(parameters, name, p);
    return 0;
}

/* ---- enqueue --job --------------------------------------------------------------------------- */

/* "lr=1e-3": JSON, unless the job says that it is a text. */
static int read_value(const json_t *job, const char *text, json_t *values, struct sl_err *err)
{
    const char *equals = strchr(text, '=');
    char name[SL_NAME_MAX + 1];
    json_t *value = NULL;

    if (!equals || equals == text || equals - text > SL_NAME_MAX)
        return sl_err_set(err, SL_SPEC, "%.200s: expected PARAMETER=VALUE", text);
    snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
    const json_t *p = json_object_get(json_object_get(job, "parameters"), name);
    if (strcmp(sl_json_str(p, "type", ""), "text") != 0)
        value = json_loads(equals + 1, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    json_object_set_new(values, name, value ? value : json_string(equals + 1));
    return 0;
}

int cli_enqueue_job(struct sl_api *api, const char *name, int n, char **given, const char *key, json_t **ret_reply,
                    struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64];
    json_t *job = NULL, *values = json_object(), *body = NULL;
    int rc = job_path(name, "", path, err);

    if (!rc)
        rc = sl_api_call(api, "GET", path, NULL, NULL, &job, err);
    for (int i = 0; !rc && i < n; i++)
        rc = read_value(job, given[i], values, err);
    if (!rc)
        rc = job_path(name, "/runs", path, err);
    body = json_pack("{s:O, s:O*}", "parameters", values, "version", json_object_get(job, "version"));
    if (!rc)
        rc = sl_api_call(api, "POST", path, key, body, ret_reply, err);
    json_decref(body);
    json_decref(values);
    json_decref(job);
    return rc;
}

/* ---- the command ----------------------------------------------------------------------------- */

static void print_parameters(const json_t *job)
{
    const char *name;
    json_t *p;

    json_object_foreach(json_object_get(job, "parameters"), name, p)
    {
        char *value = json_dumps(json_object_get(p, "default"), JSON_COMPACT | JSON_ENCODE_ANY);
        char *choices = json_dumps(json_object_get(p, "choices"), JSON_COMPACT);
        printf("  %-14s %-8s %s", name, sl_json_str(p, "type", "?"), sl_json_str(p, "path", "?"));
        if (value)
            printf(" = %s", value);
        if (json_object_get(p, "minimum"))
            printf(", %.10g to %.10g", sl_json_num(p, "minimum", 0), sl_json_num(p, "maximum", 0));
        if (choices)
            printf(", one of %s", choices);
        putchar('\n');
        free(choices);
        free(value);
    }
}

static void print_job(const json_t *job)
{
    printf("%s, version %lld, from run %.12s, softlaunch %s\n", sl_json_str(job, "job", "?"),
           (long long)sl_json_int(job, "version", 0), sl_json_str(job, "from", "?"), sl_json_str(job, "code", "?"));
    print_parameters(job);
}

static int create(struct sl_api *api, const char *name, const char *from, const struct cli_list *given,
                  json_t **ret_reply, struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64], run[SL_ID_HEX + 1];
    json_t *parameters = given->n ? json_object() : NULL, *body;
    int rc = job_path(name, "", path, err);

    for (int i = 0; !rc && i < given->n; i++)
        rc = read_parameter(given->items[i], parameters, err);
    if (!rc)
        rc = cli_find_run(api, from, run, err);
    if (!rc) {
        body = json_pack("{s:s, s:O*}", "from", run, "parameters", parameters);
        rc = sl_api_call(api, "PUT", path, NULL, body, ret_reply, err);
        json_decref(body);
    }
    json_decref(parameters);
    return rc;
}

int cmd_job(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    struct cli_list parameters = {.n = 0};
    const char *from = NULL;
    bool json = false;
    const struct cli_option options[] = {
        {"from", 0, CLI_TEXT, &from, "RUN", "for create: a run that has succeeded", 0, 0},
        {"param", 0, CLI_LIST, &parameters, "PARAM",
         "for create: what may be set, once for each: " PARAMETER_HELP
         ";\nKEY is one of the spec, as model.optim.lr. Without any: lr, max_steps and seed, within bounds", 0, 0},
        {"json", 0, CLI_FLAG, &json, NULL, "the server's answer instead of text", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "job",
        .forms = (const char *const[]){"create NAME --from RUN [--param PARAM ...]", "ls", "show NAME", NULL},
        .options = options,
        .more = "A job is a finished run's spec with the versions and digests of its inputs, and typed, bounded parameters;\n"
                "`softlaunch enqueue --job NAME lr=1e-3` enqueues it. Creating it again makes a new version.",
        .verbs = (const struct cli_verb[]){{"ls", 0}, {"create", 1}, {"show", 1}, {NULL, 0}},
    };
    int at = cli_parse(&usage, argc, argv), rc;
    char path[2 * SL_NAME_MAX + 64];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    json_t *reply = NULL, *job;
    size_t i;

    if (at < 0)
        return cli_usage_status(at);
    const char *verb = at < argc ? argv[at] : "ls";
    bool making = !strcmp(verb, "create"), listing = !strcmp(verb, "ls");
    if (making && !from)
        return cli_wrong(&usage, "create needs --from RUN");
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc && making) {
        rc = create(api, argv[at + 1], from, &parameters, &reply, &err);
    } else if (!rc && listing) {
        rc = sl_api_call(api, "GET", "/api/v1/jobs", NULL, NULL, &reply, &err);
    } else if (!rc) {
        rc = job_path(argv[at + 1], "", path, &err);
        if (!rc)
            rc = sl_api_call(api, "GET", path, NULL, NULL, &reply, &err);
    }
    if (!rc && json)
        cli_print_json(reply);
    else if (!rc && listing)
        json_array_foreach(json_object_get(reply, "jobs"), i, job) print_job(job);
    else if (!rc)
        print_job(reply);
    json_decref(reply);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
