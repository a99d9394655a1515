/* `softlaunch webhook`: who is told what happens. */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEST_WAIT_US INT64_C(60000000)

struct asked {
    struct cli_server server;
    struct cli_list events;
    const char *url, *project, *metric, *above, *below, *form, *secret_file;
    bool json;
};

static int path_of(char ret_path[512], const char *name, const char *rest, struct sl_err *err)
{
    char *part = sl_api_escape(name);
    int n = part ? snprintf(ret_path, 512, "/api/v1/webhooks/%s%s", part, rest) : 0;

    free(part);
    if (!part)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return n < 512 ? 0 : sl_err_set(err, SL_SPEC, "the name is too long");
}

static int set_bound(json_t *metric, const char *key, const char *text, struct sl_err *err)
{
    char *end;
    double value = text ? strtod(text, &end) : 0;

    if (text && (!*text || *end || json_object_set_new(metric, key, json_real(value))))
        return sl_err_set(err, SL_SPEC, "--%s %s: expected a number", key, text);
    return 0;
}

static int add(struct sl_api *api, const char *name, const struct asked *a, struct sl_err *err)
{
    json_t *events = json_array(), *body, *reply = NULL, *metric = NULL;
    char path[512];
    int rc = path_of(path, name, "", err);

    for (int i = 0; i < a->events.n; i++)
        json_array_append_new(events, json_string(a->events.items[i]));
    if (!a->events.n)
        json_array_append_new(events, json_string("failed"));
    body = json_pack("{s:s, s:o, s:s*, s:s*}", "url", a->url, "events", events, "project", a->project, "form",
                     a->form);
    if (a->metric) {
        metric = json_pack("{s:s}", "name", a->metric);
        rc = rc ? rc : set_bound(metric, "above", a->above, err);
        rc = rc ? rc : set_bound(metric, "below", a->below, err);
        json_object_set_new(body, "metric", metric);
    }
    if (!rc && a->secret_file) {
        struct sl_buf buf;
        sl_buf_init(&buf, 256);
        rc = sl_file_read(a->secret_file, &buf, err);
        buf.p[strcspn(buf.p, "\r\n")] = 0;
        json_object_set_new(body, "secret", json_string(buf.p));
        sl_buf_release(&buf);
    }
    if (!rc)
        rc = sl_api_call(api, "PUT", path, NULL, body, &reply, err);
    if (!rc && a->json)
        cli_print_json(reply);
    else if (!rc && *sl_json_str(reply, "secret", ""))
        printf("%s\n", sl_json_str(reply, "secret", ""));
    json_decref(body);
    json_decref(reply);
    return rc;
}

static int list(struct sl_api *api, const struct asked *a, struct sl_err *err)
{
    json_t *reply, *hook, *e;
    size_t i, k;
    int rc = sl_api_call(api, "GET", "/api/v1/webhooks", NULL, NULL, &reply, err);

    if (rc)
        return rc;
    if (a->json) {
        cli_print_json(reply);
    } else {
        printf("%-20s %-36s %-6s %-12s %s\n", "NAME", "RECEIVER", "FORM", "PROJECT", "EVENTS");
        json_array_foreach(json_object_get(reply, "webhooks"), i, hook) {
            printf("%-20s %-36s %-6s %-12s", sl_json_str(hook, "name", ""), sl_json_str(hook, "url", ""),
                   sl_json_str(hook, "form", "json"), sl_json_str(hook, "project", "all"));
            json_array_foreach(json_object_get(hook, "events"), k, e)
                printf("%s%s", k ? "," : " ", json_string_value(e));
            putchar('\n');
        }
    }
    json_decref(reply);
    return 0;
}

/* Sends one and waits until it has been tried. */
static int test(struct sl_api *api, const char *name, struct sl_err *err)
{
    char path[512], id[64];
    json_t *reply, *d;
    int64_t end_us = sl_boot_us() + TEST_WAIT_US;
    size_t i;
    int rc = path_of(path, name, "/test", err);

    if (!rc)
        rc = sl_api_call(api, "POST", path, NULL, NULL, &reply, err);
    if (rc)
        return rc;
    snprintf(id, sizeof id, "%s", sl_json_str(reply, "delivery", ""));
    json_decref(reply);
    rc = path_of(path, name, "/deliveries", err);
    while (!rc && sl_boot_us() < end_us) {
        rc = sl_api_call(api, "GET", path, NULL, NULL, &reply, err);
        if (rc)
            return rc;
        json_array_foreach(json_object_get(reply, "deliveries"), i, d) {
            if (strcmp(sl_json_str(d, "id", ""), id) != 0 || !sl_json_int(d, "tries", 0))
                continue;
            if (strcmp(sl_json_str(d, "state", ""), "done") != 0)
                rc = sl_err_set(err, SL_RETRY, "%s", sl_json_str(d, "error", "not delivered"));
            else
                printf("delivered: the receiver answered %lld\n", (long long)sl_json_int(d, "status", 0));
            json_decref(reply);
            return rc;
        }
        json_decref(reply);
        usleep(200000);
    }
    return rc ? rc : sl_err_set(err, SL_RETRY, "it has not been tried within a minute: is the server busy?");
}

int cmd_webhook(int argc, char **argv)
{
    struct asked a = {.url = NULL};
    const struct cli_option options[] = {
        {"url", 0, CLI_TEXT, &a.url, "URL", "where to: http or https", 0, 0},
        {"event", 'e', CLI_LIST, &a.events, "EVENT",
         "finished, failed, metric, unserviceable or quarantined; several times (failed)", 0, 0},
        {"project", 'p', CLI_TEXT, &a.project, "PROJECT", "runs of this one only", 0, 0},
        {"metric", 0, CLI_TEXT, &a.metric, "NAME", "for the event metric, with --above or --below", 0, 0},
        {"above", 0, CLI_TEXT, &a.above, "X", "tells when it is above X, once a run", 0, 0},
        {"below", 0, CLI_TEXT, &a.below, "X", "tells when it is below X", 0, 0},
        {"form", 0, CLI_TEXT, &a.form, "FORM", "json, or slack: {\"text\": ...} (json)", 0, 0},
        {"secret-file", 0, CLI_TEXT, &a.secret_file, "FILE", "one line: whsec_ and base64; else one is made", 0, 0},
        {"json", 0, CLI_FLAG, &a.json, NULL, "the server's answer", 0, 0},
        CLI_SERVER_OPTIONS(a.server),
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "webhook",
        .forms = (const char *const[]){"[ls]", "add NAME --url URL [OPTION ...]", "rm NAME", "test NAME", NULL},
        .options = options,
        .more = "add prints the signing secret, once, when it makes one. Signatures are those of standardwebhooks.com.\n"
                "Private addresses are refused unless the server was started with --webhook-allow.",
        .verbs = (const struct cli_verb[]){{"ls", 0}, {"add", 1}, {"rm", 1}, {"test", 1}, {NULL, 0}}};
    int at = cli_parse(&usage, argc, argv), rc;
    const char *verb;
    char path[512];
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;

    if (at < 0)
        return cli_usage_status(at);
    verb = at < argc ? argv[at] : "ls";
    bool adds = !strcmp(verb, "add");
    if (adds && !a.url)
        return cli_wrong(&usage, "add needs --url");
    rc = sl_api_open(a.server.url, a.server.token_file, &api, &err);
    if (!rc && adds)
        rc = add(api, argv[at + 1], &a, &err);
    else if (!rc && !strcmp(verb, "test"))
        rc = test(api, argv[at + 1], &err);
    else if (!rc && !strcmp(verb, "rm") && !(rc = path_of(path, argv[at + 1], "", &err)))
        rc = sl_api_call(api, "DELETE", path, NULL, NULL, NULL, &err);
    else if (!rc)
        rc = list(api, &a, &err);
    sl_api_free(api);
    return rc ? cli_fail(argv[0], &err) : 0;
}
