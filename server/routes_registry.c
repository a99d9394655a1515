/* The registry and lineage over HTTP.
 *
 *   GET    /api/v1/registry                            {"models": [{"model", "created", "versions": n, "stages"}]}
 *   GET    /api/v1/registry/{model}                    artifacts/registry.h has the form
 *   POST   /api/v1/registry/{model}/versions           {"artifact", "version"}
 *   PUT    /api/v1/registry/{model}/stages/{stage}     {"artifact", "version"}: linked, too, when it was not
 *   DELETE /api/v1/registry/{model}/stages/{stage}
 *   GET    /api/v1/lineage/{name}/{ref}                artifacts/lineage.h has the form */
#include "artifacts/lineage.h"
#include "artifacts/registry.h"
#include "base/json.h"
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

    reply(req, rc, &err, rc ? NULL : json_pack("{s:o}", "models", models));
}

static void show(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *model = NULL;
    int rc = sl_registry_show(arg, sl_http_param(req, "model"), &model, &err);

    reply(req, rc, &err, model);
}

static void link_version(struct sl_http_req *req, struct sl_store *store, const char *stage)
{
    const json_t *body = sl_http_json(req);
    const struct sl_registry_link link = {.artifact = sl_json_str(body, "artifact", ""),
                                          .version = sl_json_str(body, "version", "latest"),
                                          .stage = stage};
    struct sl_err err = SL_ERR_INIT;
    json_t *model = NULL;
    int rc = sl_registry_link(store, sl_http_param(req, "model"), &link, &model, &err);

    reply(req, rc, &err, model);
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
    int rc = sl_registry_unstage(arg, sl_http_param(req, "model"), sl_http_param(req, "stage"), NULL, &model,
                                 &err);

    reply(req, rc, &err, model);
}

static void lineage(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *graph = NULL;
    int rc = sl_store_lineage(arg, sl_http_param(req, "name"), sl_http_param(req, "ref"), &graph, &err);

    reply(req, rc, &err, graph);
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/registry", .handle = list},
    {.method = "GET", .pattern = "/api/v1/registry/{model}", .handle = show},
    {.method = "POST",
     .pattern = "/api/v1/registry/{model}/versions",
     .body = SL_BODY_JSON,
     .handle = post_version},
    {.method = "PUT",
     .pattern = "/api/v1/registry/{model}/stages/{stage}",
     .body = SL_BODY_JSON,
     .handle = put_stage},
    {.method = "DELETE",
     .pattern = "/api/v1/registry/{model}/stages/{stage}",
     .handle = delete_stage},
    {.method = "GET", .pattern = "/api/v1/lineage/{name}/{ref}", .handle = lineage},
};

int sl_registry_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    (void)ret_state;
    return sl_http_add(server->http, routes, sizeof routes / sizeof *routes, server->store, err);
}
