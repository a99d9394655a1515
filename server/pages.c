/* The web pages: files of server/static and Debian's Chart.js, embedded at build time, and the one HTML
 * page that every address of the user interface answers with. All are open: what they show
 * comes through the API, which asks who is there.
 *
 *   GET /, /runs/{run}, /new, ...     the page
 *   any other, for browsers           the page too, with status 404: it says that there is none
 *   GET /static/{file}                its parts, with an ETag
 *   GET /api/v1/schema                the job spec's JSON Schema
 *   POST /api/v1/specs/check          {"text": YAML or JSON} or {"spec": {...}}: {"spec", "errors"} */
#include "base/digest.h"
#include "base/json.h"
#include "base/spec.h"
#include "base/yaml.h"
#include "server/serve.h"
#include <stdlib.h>
#include <string.h>

#define HTML "text/html; charset=utf-8"
#define JS "text/javascript; charset=utf-8"
#define CSS "text/css; charset=utf-8"
#define SVG "image/svg+xml"

/* symbol, name in /static/, type */
#define FILES                                                                                      \
    X(server_static_index_html, "index.html", HTML)                                                \
    X(server_static_style_css, "style.css", CSS)                                                   \
    X(server_static_icon_svg, "icon.svg", SVG)                                                     \
    X(server_static_app_js, "app.js", JS)                                                          \
    X(server_static_api_js, "api.js", JS)                                                          \
    X(server_static_dom_js, "dom.js", JS)                                                          \
    X(server_static_hub_js, "hub.js", JS)                                                          \
    X(server_static_stream_worker_js, "stream-worker.js", JS)                                      \
    X(server_static_stream_js, "stream.js", JS)                                                    \
    X(server_static_login_js, "login.js", JS)                                                      \
    X(server_static_runs_js, "runs.js", JS)                                                        \
    X(server_static_rundata_js, "rundata.js", JS)                                                  \
    X(server_static_plot_js, "plot.js", JS)                                                        \
    X(server_static_draw_js, "draw.js", JS)                                                        \
    X(server_static_diff_js, "diff.js", JS)                                                        \
    X(server_static_lineage_js, "lineage.js", JS)                                                  \
    X(server_static_run_parts_js, "run_parts.js", JS)                                              \
    X(server_static_run_js, "run.js", JS)                                                          \
    X(server_static_compare_js, "compare.js", JS)                                                  \
    X(server_static_promote_js, "promote.js", JS)                                                  \
    X(server_static_yaml_js, "yaml.js", JS)                                                        \
    X(server_static_spec_js, "spec.js", JS)                                                        \
    X(server_static_new_js, "new.js", JS)                                                          \
    X(server_static_job_form_js, "job_form.js", JS)                                                \
    X(server_static_queues_js, "queues.js", JS)                                                    \
    X(server_static_agents_js, "agents.js", JS)                                                    \
    X(server_static_artifacts_js, "artifacts.js", JS)                                              \
    X(server_static_registry_js, "registry.js", JS)                                                \
    X(chart_js, "chart.js", JS)

#define X(symbol, name, type)                                                                      \
    extern const unsigned char sl_embed_##symbol[];                                                \
    extern const unsigned long sl_embed_##symbol##_len;
FILES
#undef X

static const struct file {
    const char *name, *type;
    const unsigned char *data;
    const unsigned long *len;
} files[] = {
#define X(symbol, name, type) {name, type, sl_embed_##symbol, &sl_embed_##symbol##_len},
    FILES
#undef X
};
#define N_FILES (sizeof files / sizeof *files)

struct sl_pages {
    char etag[N_FILES][SL_SHA256_HEX + 3]; /* quoted */
};

static void reply_page(struct sl_http_req *req, const struct sl_pages *pages, size_t i)
{
    const char *known = sl_http_header(req, "If-None-Match");

    sl_http_set_header(req, "ETag", pages->etag[i]);
    sl_http_set_header(req, "Cache-Control", "no-cache");
    if (known && strstr(known, pages->etag[i]))
        sl_http_reply_empty(req, 304);
    else
        sl_http_reply_data(req, 200, files[i].type, files[i].data, *files[i].len);
}

static void page(struct sl_http_req *req, void *arg)
{
    reply_page(req, arg, 0);
}

/* The page says itself that there is none of this address. */
static void missing(struct sl_http_req *req, void *arg)
{
    (void)arg;
    sl_http_set_header(req, "Cache-Control", "no-cache");
    sl_http_reply_data(req, 404, files[0].type, files[0].data, *files[0].len);
}

static void file(struct sl_http_req *req, void *arg)
{
    const char *name = sl_http_param(req, "file");

    for (size_t i = 0; i < N_FILES; i++)
        if (!strcmp(files[i].name, name)) {
            reply_page(req, arg, i);
            return;
        }
    sl_http_reply_problem(req, 404, "not found", NULL, "there is no page part of that name");
}

static void schema(struct sl_http_req *req, void *arg)
{
    extern const unsigned char sl_embed_base_job_schema_json[];
    extern const unsigned long sl_embed_base_job_schema_json_len;

    (void)arg;
    sl_http_reply_data(req, 200, "application/schema+json", sl_embed_base_job_schema_json,
                       sl_embed_base_job_schema_json_len);
}

static json_t *problems_of(const json_t *errors)
{
    json_t *list = json_array(), *e;
    size_t i;

    json_array_foreach(errors, i, e)
        json_array_append_new(list, json_pack("{s:s, s:s}", "path", sl_json_str(e, "path", ""),
                                              "detail", sl_json_str(e, "message", "")));
    return list;
}

/* Always 200 when it could judge: {"spec": what was read, or null, "errors": [{"path", "detail"}]}. */
static void check(struct sl_http_req *req, void *arg)
{
    const json_t *body = sl_http_json(req), *text = json_object_get(body, "text");
    json_t *spec = json_object_get(body, "spec"), *errors = NULL, *list = NULL;
    struct sl_err err = SL_ERR_INIT;
    int rc = 0;

    (void)arg;
    if (json_object_size(body) != 1 || !(json_is_string(text) || json_is_object(spec))) {
        sl_http_reply_problem(req, 422, "not valid", NULL,
                              "expected one of text (a spec as JSON or YAML) and spec (an object)");
        return;
    }
    if (text)
        rc = sl_yaml_parse(json_string_value(text), json_string_length(text), "the spec", &spec,
                           &err);
    else
        json_incref(spec);
    if (rc == SL_SPEC) { /* not even YAML */
        list = json_pack("[{s:s, s:s}]", "path", "", "detail", err.msg);
        spec = json_null();
        rc = 0;
    } else if (!rc) {
        rc = sl_spec_validate(spec, &errors, &err);
        list = problems_of(errors);
        json_decref(errors);
    }
    if (rc) {
        json_decref(list);
        json_decref(spec);
        sl_http_reply_err(req, &err, NULL);
    } else {
        sl_http_reply_json(req, 200, json_pack("{s:o, s:o}", "spec", spec, "errors", list));
    }
}

#define PAGE(path) {.method = "GET", .pattern = path, .open = true, .handle = page}
static const struct sl_route page_routes[] = {
    PAGE("/"),
    PAGE("/login"),
    PAGE("/runs/{run}"),
    PAGE("/compare"),
    PAGE("/new"),
    PAGE("/queues"),
    PAGE("/agents"),
    PAGE("/artifacts"),
    PAGE("/artifacts/{name}"),
    PAGE("/registry"),
    PAGE("/registry/{model}"),
    {.method = "GET", .pattern = "/static/{file}", .open = true, .handle = file},
    {.method = "GET", .pattern = "/api/v1/schema", .scope = SL_SCOPE_SHARED, .handle = schema},
    {.method = "POST",
     .pattern = "/api/v1/specs/check",
     .body = SL_BODY_JSON,
     .scope = SL_SCOPE_SHARED,
     .handle = check},
};

static const struct sl_route missing_route = {
    .method = "GET", .pattern = "/", .open = true, .handle = missing};

int sl_pages_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    struct sl_pages *pages = calloc(1, sizeof *pages);
    int rc = pages ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    for (size_t i = 0; !rc && i < N_FILES; i++) {
        pages->etag[i][0] = '"';
        rc = sl_sha256_data(files[i].data, *files[i].len, pages->etag[i] + 1, err);
        pages->etag[i][SL_SHA256_HEX + 1] = '"';
    }
    if (!rc)
        rc = sl_http_add(server->http, page_routes, sizeof page_routes / sizeof *page_routes, pages,
                         err);
    if (rc) {
        free(pages);
    } else {
        sl_http_set_missing(server->http, &missing_route, pages);
        *ret_state = pages;
    }
    return rc;
}

void sl_pages_part_stop(void *state)
{
    free(state);
}
