/* `softlaunch registry`: registered models and their stages. */
#include "cli/registry.h"
#include "artifacts/names.h"
#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <string.h>

static void print_stages(const json_t *stages)
{
    const char *stage, *comma = "";
    json_t *at;

    json_object_foreach((json_t *)(uintptr_t)stages, stage, at)
    {
        printf("%s%s %s:%s", comma, stage, sl_json_str(at, "artifact", "?"), sl_json_str(at, "version", "?"));
        comma = ", ";
    }
    putchar('\n');
}

static void print_model(const json_t *model)
{
    json_t *v;
    size_t i;

    printf("%s  ", sl_json_str(model, "model", "?"));
    print_stages(json_object_get(model, "stages"));
    json_array_foreach(json_object_get(model, "versions"), i, v)
    {
        const char *run = sl_json_str(v, "run", ""), *by = sl_json_str(v, "by", "");
        const char *made_by = *run ? "" : sl_json_str(v, "made_by", ""), *put_by = sl_json_str(v, "put_by", "");

        printf("%s:%s  linked %s%s%s%s%s%s%s\n", sl_json_str(v, "artifact", "?"), sl_json_str(v, "version", "?"),
               sl_json_str(v, "linked", "?"), *run ? "  by run " : *by ? "  by " : "", *run ? run : by,
               *made_by ? "  made by run " : "", made_by, *put_by ? "  put by " : "", put_by);
    }
}

static int say(struct sl_api *api, const char *method, const char *path, const json_t *body, bool json,
               struct sl_err *err)
{
    json_t *reply = NULL, *m;
    size_t i;
    int rc = sl_api_call(api, method, path, NULL, body, &reply, err);

    if (!rc && json) {
        cli_print_json(reply);
    } else if (!rc && json_object_get(reply, "models")) {
        json_array_foreach(json_object_get(reply, "models"), i, m)
        {
            printf("%-30s %6lld versions  ", sl_json_str(m, "model", "?"),
                   (long long)sl_json_int(m, "versions", 0));
            print_stages(json_object_get(m, "stages"));
        }
    } else if (!rc) {
        print_model(reply);
    }
    json_decref(reply);
    return rc;
}

/* stage NULL: linked only, or unlinked. */
static int change(struct sl_api *api, const char *verb, const char *model, const char *stage, const char *version, bool json,
                  struct sl_err *err)
{
    char path[3 * SL_NAME_MAX + 64];
    struct sl_ref ref;
    int rc = sl_ref_parse(version, &ref, err);

    if (!rc && ref.file[0])
        rc = sl_err_set(err, SL_SPEC, "%s names a file: a version as a whole is registered", version);
    if (!rc && !strcmp(verb, "unlink")) {
        snprintf(path, sizeof path, "/api/v1/registry/%s/versions/%s/%s", model, ref.name, ref.version);
        return say(api, "DELETE", path, NULL, json, err);
    }
    if (rc)
        return rc;
    json_t *body = json_pack("{s:s, s:s}", "artifact", ref.name, "version", ref.version);
    if (stage)
        snprintf(path, sizeof path, "/api/v1/registry/%s/stages/%s", model, stage);
    else
        snprintf(path, sizeof path, "/api/v1/registry/%s/versions", model);
    rc = say(api, stage ? "PUT" : "POST", path, body, json, err);
    json_decref(body);
    return rc;
}

int cmd_registry(int argc, char **argv)
{
    struct cli_server server = {NULL, NULL};
    bool json = false;
    const struct cli_option options[] = {
        {"json", 0, CLI_FLAG, &json, NULL, "the server's answer instead of text", 0, 0},
        CLI_SERVER_OPTIONS(server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "registry",
        .forms = (const char *const[]){"[show MODEL]", "link MODEL NAME:VERSION", "unlink MODEL NAME:VERSION",
                                       "stage MODEL STAGE NAME:VERSION", "unstage MODEL STAGE", NULL},
        .options = options,
        .more = "A registered model is a name for a line of versions, with stages such as `candidate` and `production`.\n"
                "outputs.register of a job spec makes what the run publishes the candidate; stage promotes a version.\n"
                "MODEL:STAGE is a reference wherever NAME:VERSION is one; where an artifact is called as the model, its own alias\n"
                "comes before a stage. What a model holds is not deleted: unlink takes it out.",
        .verbs = (const struct cli_verb[]){{"", 0}, {"show", 1}, {"link", 2}, {"unlink", 2}, {"stage", 3}, {"unstage", 2}, {NULL, 0}},
    };
    int at = cli_parse(&usage, argc, argv), n = argc - at, rc;
    char **a = argv + at, path[2 * SL_NAME_MAX + 64];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    const char *verb = n ? a[0] : "";
    for (int i = 1; i < n && (i == 1 || strstr(verb, "stage")) && i < 3; i++)
        if (!sl_name_valid(a[i])) {
            sl_err_set(&err, SL_SPEC, "`%.100s` is not a name: 1 to %d of a-z 0-9 . _ -, first a letter or digit",
                       a[i], SL_NAME_MAX);
            return cli_fail(argv[0], &err);
        }
    rc = sl_api_open(server.url, server.token_file, &api, &err);
    if (!rc && n <= 2) {
        snprintf(path, sizeof path, "/api/v1/registry%s%s", n ? "/" : "", n ? a[1] : "");
        rc = say(api, "GET", path, NULL, json, &err);
    } else if (!rc && !strcmp(verb, "unstage")) {
        snprintf(path, sizeof path, "/api/v1/registry/%s/stages/%s", a[1], a[2]);
        rc = say(api, "DELETE", path, NULL, json, &err);
    } else if (!rc) {
        rc = change(api, verb, a[1], n == 4 ? a[2] : NULL, a[n - 1], json, &err);
    }
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
