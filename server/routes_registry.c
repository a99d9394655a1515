/* The registry and lineage over HTTP.
 *
 *   GET    /api/v1/registry                            {"models": [{"model", "created", "project", "versions": n, "stages"}]}
 *   GET    /api/v1/registry/{model}                    artifacts/registry.h has the form
 *   POST   /api/v1/registry/{model}/versions           {"artifact", "version"}
 *   DELETE /api/v1/registry/{model}/versions/{name}/{ref}    ref: v3; no stage may be at it
 *   PUT    /api/v1/registry/{model}/stages/{stage}     {"artifact", "version"}: linked, too, when it was not
 *   DELETE /api/v1/registry/{model}/stages/{stage}
 *   GET    /api/v1/lineage/{name}/{ref}                artifacts/lineage.h has the form */
#include "artifacts/lineage.h"
#include "artifacts/registry.h"
#include "base/json.h"
#include "server/scope.h"
#include "server/serve.h"

static void reply(struct sl_http_req *req, int rc, struct sl_err *err, json_t *body)
{
    if (rc)
        sl_http_reply_err(req, err, NULL);
    else
        sl_http_reply_json(req, 200, body);
}

static void list(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *models = NULL;
    int rc = sl_registry_list(arg, &models, &err);

    for (size_t i = json_array_size(models); i-- > 0;)
        if (!sl_http_sees(req, sl_json_str(json_array_get(models, i), "project", "")))
            json_array_remove(models, i);
    reply(req, rc, &err, rc ? NULL : json_pack("{s:o}", "models", models));
}

static void show(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *model = NULL;
    int rc = sl_registry_show(arg, sl_http_param(req, "model"), &model, &err);

    reply(req, rc, &err, model);
}

/* A model is changed by who sees its project, or, when it is everybody's, all projects; a new one is its artifact's
 * project's. A version must be seen to be linked. */
static void link_version(struct sl_http_req *req, struct sl_store *store, const char *stage)
{
    const char *model = sl_http_param(req, "model");
    const struct sl_identity *who = sl_http_identity(req);
    char project[SL_HTTP_PROJECT_MAX + 1];
    const json_t *body = sl_http_json(req);
    struct sl_registry_link link = {.artifact = sl_json_str(body, "artifact", ""),
                                    .version = sl_json_str(body, "version", "latest"),
                                    .stage = stage,
                                    .by = sl_http_user(req)};
    struct sl_err err = SL_ERR_INIT;
    json_t *json = NULL;
    int rc = sl_scope_version(who, store, link.artifact, link.version, project, &err);

    if (rc == 0)
        rc = sl_scope_model(who, store, model, project, &link.project, &err);
    if (rc == 0)
        rc = sl_registry_link(store, model, &link, &json, &err);
    reply(req, rc, &err, json);
}

static void post_version(struct sl_http_req *req, void *arg)
{
    link_version(req, arg, NULL);
}

static void put_stage(struct sl_http_req *req, void *arg)
{
    link_version(req, arg, sl_http_param(req, "stage"));
}

static void delete_stage(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *model = NULL;
    int rc = sl_registry_unstage(arg, sl_http_param(req, "model"), sl_http_param(req, "stage"), sl_http_user(req),
                                 &model, &err);

    reply(req, rc, &err, model);
}

static void delete_version(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *model = NULL;
    int rc = sl_registry_unlink(arg, sl_http_param(req, "model"), sl_http_param(req, "name"), sl_http_param(req, "ref"),
                                &model, &err);

    reply(req, rc, &err, model);
}

static void lineage(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *graph = NULL;
    int rc = sl_store_lineage(arg, sl_http_param(req, "name"), sl_http_param(req, "ref"), &graph, &err);

    if (rc == 0)
        rc = sl_scope_lineage(sl_http_identity(req), arg, graph, &err);
    if (rc)
        json_decref(graph);
    reply(req, rc, &err, graph);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/registry", .scope = SL_SCOPE_HANDLER, .handle = list},
    {.method = "GET", .pattern = "/api/v1/registry/{model}", .handle = show},
    {.method = "POST",
     .pattern = "/api/v1/registry/{model}/versions",
     .body = SL_BODY_JSON,
     .scope = SL_SCOPE_HANDLER,
     .handle = post_version},
    {.method = "DELETE",
     .pattern = "/api/v1/registry/{model}/versions/{name}/{ref}",
     .handle = delete_version},
    {.method = "PUT",
     .pattern = "/api/v1/registry/{model}/stages/{stage}",
     .body = SL_BODY_JSON,
     .scope = SL_SCOPE_HANDLER,
     .handle = put_stage},
    {.method = "DELETE",
     .pattern = "/api/v1/registry/{model}/stages/{stage}",
     .handle = delete_stage},
    {.method = "GET", .pattern = "/api/v1/lineage/{name}/{ref}", .scope = SL_SCOPE_HANDLER, .handle = lineage},
};

int sl_registry_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    (void)ret_state;
    int rc = sl_http_set_scope(server->http, "/api/v1/registry/{model}", sl_scope_project_of_model, server->store, err);
    return rc ? rc : sl_http_add(server->http, routes, sizeof routes / sizeof *routes, server->store, err);
}
