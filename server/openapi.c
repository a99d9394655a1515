#include "server/openapi.h"
#include "base/digest.h"
#include "base/json.h"
#include "base/schema.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAULTS_MAX 20
#define SCHEMAS "#/components/schemas/"
#define RESPONSES "#/components/responses/"
#define SPEC "JobSpec"

#define PARTS X(base) X(runs) X(operation) X(store) X(accounts)
#define X(name)                                                                                    \
    extern const unsigned char sl_embed_server_openapi_##name##_json[];                            \
    extern const unsigned long sl_embed_server_openapi_##name##_json_len;
PARTS
#undef X
extern const unsigned char sl_embed_base_job_schema_json[];
extern const unsigned long sl_embed_base_job_schema_json_len;

struct part {
    const char *name;
    const unsigned char *text;
    const unsigned long *len;
};
static const struct part parts[] = {
#define X(name)                                                                                    \
    {"server/openapi/" #name ".json", sl_embed_server_openapi_##name##_json,                       \
     &sl_embed_server_openapi_##name##_json_len},
    PARTS
#undef X
};

struct sl_openapi {
    json_t *all;
    char *text; /* it, as it is sent */
    char etag[SL_SHA256_HEX + 3];
    json_t *checks; /* {"GET /api/v1/runs": {"query": {name: an entry of requests}, "body": the same}} */
    struct sl_schema *requests;
};

/* ---- joining --------------------------------------------------------------------------------- */

/* References that begin with `from` begin with `to`. */
static void refer(json_t *at, const char *from, const char *to)
{
    const char *ref = json_string_value(json_object_get(at, "$ref")), *key;
    json_t *one;
    size_t i;

    if (ref && !strncmp(ref, from, strlen(from)))
        json_object_set_new(at, "$ref", json_sprintf("%s%s", to, ref + strlen(from)));
    json_object_foreach(at, key, one)
        refer(one, from, to);
    json_array_foreach(at, i, one)
        refer(one, from, to);
}

static void may_answer(json_t *responses, const char *status, const char *name)
{
    if (!json_object_get(responses, status))
        json_object_set_new(responses, status, json_pack("{s:o}", "$ref", json_sprintf(RESPONSES "%s", name)));
}

/* What follows from http.c and http_auth.c for every operation. */
static void add_common(const char *method, json_t *operation)
{
    json_t *responses = json_object_get(operation, "responses"), *p,
           *body = json_object_get(operation, "requestBody"),
           *is_json = json_object_get(json_object_get(body, "content"), "application/json"),
           *open = json_object_get(operation, "security");
    bool has_etag = sl_json_get(json_object_get(responses, "200"), "content") != NULL &&
                    json_object_get(sl_json_get(json_object_get(responses, "200"), "content"), "application/json");
    size_t i;

    may_answer(responses, "503", "TryAgain");
    if (!open) {
        may_answer(responses, "401", "NoToken");
        may_answer(responses, "403", "NotAllowed");
        may_answer(responses, "429", "TooMany");
    }
    if (!body)
        may_answer(responses, "400", "UnexpectedBody");
    if (is_json) {
        may_answer(responses, "413", "TooLarge");
        may_answer(responses, "422", "NotValid");
    }
    if (!strcmp(method, "get") && has_etag)
        may_answer(responses, "304", "NotModified");
    json_array_foreach(json_object_get(operation, "parameters"), i, p)
        if (!strcmp(sl_json_str(p, "in", ""), "query") || strstr(sl_json_str(p, "$ref", ""), "Key"))
            may_answer(responses, "422", "NotValid");
}

static int add_spec(json_t *schemas, struct sl_err *err)
{
    json_t *spec, *def;
    const char *name;
    int rc = sl_json_parse((const char *)sl_embed_base_job_schema_json, sl_embed_base_job_schema_json_len,
                           "base/job.schema.json", &spec, err);

    if (rc)
        return rc;
    refer(spec, "#/$defs/", SCHEMAS "spec.");
    json_object_foreach(json_object_get(spec, "$defs"), name, def) {
        char text[160];
        snprintf(text, sizeof text, "spec.%.150s", name);
        json_object_set(schemas, text, def);
    }
    json_object_del(spec, "$defs");
    json_object_del(spec, "$id");
    json_object_del(spec, "$schema");
    return json_object_set_new(schemas, SPEC, spec) ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
}

static bool is_method(const char *key)
{
    static const char *const methods[] = {"get", "put", "post", "patch", "delete"};

    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (!strcmp(key, methods[i]))
            return true;
    return false;
}

static int join(json_t **ret_all, struct sl_err *err)
{
    json_t *all = NULL, *part, *schemas, *paths, *path, *operation;
    const char *key;
    int rc = 0;

    for (size_t i = 0; !rc && i < sizeof parts / sizeof *parts; i++) {
        rc = sl_json_parse((const char *)parts[i].text, *parts[i].len, parts[i].name, &part, err);
        if (rc)
            break;
        if (!all) {
            all = part;
            continue;
        }
        json_array_extend(json_object_get(all, "tags"), json_object_get(part, "tags"));
        json_object_update(json_object_get(all, "paths"), json_object_get(part, "paths"));
        json_object_update(json_object_get(json_object_get(all, "components"), "schemas"),
                           json_object_get(part, "schemas"));
        json_decref(part);
    }
    paths = json_object_get(all, "paths");
    schemas = json_object_get(json_object_get(all, "components"), "schemas");
    if (!rc)
        rc = add_spec(schemas, err);
    json_object_foreach(paths, key, path) {
        const char *method;
        json_object_foreach(path, method, operation)
            if (is_method(method))
                add_common(method, operation);
    }
    if (rc)
        json_decref(all);
    else
        *ret_all = all;
    return rc;
}

/* ---- what requests must be ------------------------------------------------------------------- */

/* Adds what a schema refers to. */
static void need(const json_t *all, json_t *defs, const json_t *schema)
{
    const char *ref = sl_json_str(schema, "$ref", ""), *key;
    json_t *one;
    size_t i;

    if (!strncmp(ref, SCHEMAS, strlen(SCHEMAS)) && !json_object_get(defs, ref + strlen(SCHEMAS))) {
        const char *name = ref + strlen(SCHEMAS);
        json_t *def = json_object_get(json_object_get(json_object_get(all, "components"), "schemas"), name);
        json_object_set_new(defs, name, json_deep_copy(def));
        need(all, defs, def);
    }
    json_object_foreach((json_t *)(uintptr_t)schema, key, one)
        need(all, defs, one);
    json_array_foreach((json_t *)(uintptr_t)schema, i, one)
        need(all, defs, one);
}

/* A schema becomes an entry of defs. */
static void define(const json_t *all, json_t *defs, const char *name, const json_t *schema)
{
    need(all, defs, schema);
    json_object_set_new(defs, name, json_deep_copy(schema));
}

static void add_check(const json_t *all, json_t *checks, json_t *defs, const char *method, const char *pattern,
                      const json_t *operation)
{
    const char *id = sl_json_str(operation, "operationId", "");
    json_t *query = json_object(), *check = json_pack("{s:o}", "query", query), *p;
    const json_t *body = json_object_get(json_object_get(operation, "requestBody"), "content");
    char name[256];
    size_t i;

    json_array_foreach(json_object_get(operation, "parameters"), i, p) {
        if (strcmp(sl_json_str(p, "in", ""), "query") != 0)
            continue;
        snprintf(name, sizeof name, "%.100s?%.100s", id, sl_json_str(p, "name", ""));
        define(all, defs, name, json_object_get(p, "schema"));
        json_object_set_new(query, sl_json_str(p, "name", ""),
                            json_pack("{s:s, s:b, s:b}", "def", name, "required", sl_json_bool(p, "required", false),
                                      "whole", !strcmp(sl_json_str(p, "schema.type", ""), "integer")));
    }
    body = json_object_get(json_object_get(body, "application/json"), "schema");
    if (body && strcmp(sl_json_str(body, "$ref", ""), SCHEMAS SPEC) != 0) {
        snprintf(name, sizeof name, "%.100s body", id);
        define(all, defs, name, body);
        json_object_set_new(check, "body", json_string(name));
    }
    for (i = 0; i < 7 && method[i]; i++)
        name[i] = (char)(method[i] - 'a' + 'A');
    snprintf(name + i, sizeof name - i, " %.200s", pattern);
    json_object_set_new(checks, name, check);
}

static int prepare(struct sl_openapi *o, struct sl_err *err)
{
    json_t *defs = json_object(), *schema = json_pack("{s:o}", "$defs", defs), *path, *operation;
    const char *pattern, *method;
    char *text;
    int rc;

    o->checks = json_object();
    json_object_foreach(json_object_get(o->all, "paths"), pattern, path)
        json_object_foreach(path, method, operation)
            if (is_method(method))
                add_check(o->all, o->checks, defs, method, pattern, operation);
    refer(schema, SCHEMAS, "#/$defs/");
    text = sl_json_dump(schema);
    json_decref(schema);
    rc = text ? sl_schema_load(text, strlen(text), &o->requests, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    free(text);
    return rc;
}

/* A number where one is expected, when the text is one. */
static json_t *query_value(const char *text, bool whole)
{
    json_t *value;
    char *end;
    long long n;

    errno = 0;
    n = strtoll(text, &end, 10);
    if (whole && *text && !*end && !errno && strspn(text, "-0123456789") == strlen(text))
        return json_integer(n);
    value = json_string(text);
    return value ? value : json_string("(not valid UTF-8)");
}

static void check_query(const struct sl_openapi *o, struct sl_http_req *req, const json_t *query, json_t *errors)
{
    const char *name;
    json_t *p;

    json_object_foreach((json_t *)(uintptr_t)query, name, p) {
        const char *text = sl_http_query(req, name), *def = sl_json_str(p, "def", "");
        if (text) {
            json_t *value = query_value(text, sl_json_bool(p, "whole", false));
            sl_schema_validate(o->requests, def, name, value, FAULTS_MAX, errors, NULL);
            json_decref(value);
        } else if (sl_json_bool(p, "required", false)) {
            sl_schema_error(errors, name, "a value", NULL, "the parameter %.100s is missing", name);
        }
    }
}

static void check(struct sl_http_req *req, void *arg, const char *method, const char *pattern, const json_t *body)
{
    const struct sl_openapi *o = arg;
    json_t *errors = json_array();
    const json_t *known;
    const char *def;
    char name[256];

    snprintf(name, sizeof name, "%.8s %.200s", method, pattern);
    known = json_object_get(o->checks, name);
    def = sl_json_str(known, "body", NULL);
    if (body && def)
        sl_schema_validate(o->requests, def, "", body, FAULTS_MAX, errors, NULL);
    else if (!body)
        check_query(o, req, json_object_get(known, "query"), errors);
    if (json_array_size(errors))
        sl_http_reply_faults(req, "not valid", errors, "%zu error%s in %s", json_array_size(errors),
                             json_array_size(errors) == 1 ? "" : "s",
                             body ? "the body" : "the parameters");
    json_decref(errors);
}

/* ---- the part -------------------------------------------------------------------------------- */

/* Whoever asks, and as often: it costs no more than sending. */
static void get(struct sl_http_req *req, void *arg)
{
    const struct sl_openapi *o = arg;
    const char *known = sl_http_header(req, "If-None-Match");

    sl_http_set_header(req, "ETag", o->etag);
    sl_http_set_header(req, "Cache-Control", "no-cache");
    if (known && strstr(known, o->etag))
        sl_http_reply_empty(req, 304);
    else
        sl_http_reply_data(req, 200, "application/json", o->text, strlen(o->text));
}

static int write_out(struct sl_openapi *o, struct sl_err *err)
{
    char digest[SL_SHA256_HEX + 1];
    int rc = (o->text = sl_json_dump(o->all)) ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc)
        rc = sl_sha256_data(o->text, strlen(o->text), digest, err);
    if (!rc)
        snprintf(o->etag, sizeof o->etag, "\"%s\"", digest);
    return rc;
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/openapi.json", .open = true, .handle = get},
};

int sl_openapi_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct sl_openapi *o = calloc(1, sizeof *o);
    int rc = o ? join(&o->all, err) : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc)
        rc = prepare(o, err);
    if (!rc)
        rc = write_out(o, err);
    if (!rc)
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, o, err);
    if (rc) {
        sl_openapi_part_stop(o);
        return rc;
    }
    sl_http_set_check(server->http, check, o);
    *ret_state = o;
    return 0;
}

void sl_openapi_part_stop(void *state)
{
    struct sl_openapi *o = state;

    if (!o)
        return;
    sl_schema_free(o->requests);
    json_decref(o->checks);
    json_decref(o->all);
    free(o->text);
    free(o);
}
