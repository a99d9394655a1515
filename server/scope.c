#include "server/scope.h"
#include "artifacts/registry.h"
#include "base/json.h"
#include <stdio.h>
#include <string.h>

bool sl_scope_project(struct sl_http_req *req, const char **project)
{
    const json_t *seen = sl_http_identity(req)->projects;

    if (!seen || (*project && **project && sl_http_sees(req, *project)))
        return true;
    if (!*project && json_array_size(seen) == 1) {
        *project = json_string_value(json_array_get(seen, 0));
        return true;
    }
    sl_http_reply_problem(req, 403, "not allowed", NULL,
                          *project ? "%s does not see that project"
                                   : "%s sees several projects: name one of them",
                          sl_http_user(req));
    return false;
}

int sl_scope_project_of_artifact(void *store, const char *name,
                                 char ret_project[SL_HTTP_PROJECT_MAX + 1], struct sl_err *err)
{
    return sl_store_project(store, name, ret_project, SL_HTTP_PROJECT_MAX + 1, err);
}

int sl_scope_project_of_model(void *store, const char *name, char ret_project[SL_HTTP_PROJECT_MAX + 1],
                              struct sl_err *err)
{
    return sl_registry_project(store, name, ret_project, SL_HTTP_PROJECT_MAX + 1, err);
}

/* 0: who may write to this artifact, or it is new and has yet to get a project. */
static int may_write(const struct sl_identity *who, struct sl_store *store, const char *name,
                     bool *ret_new, struct sl_err *err)
{
    char owner[SL_HTTP_PROJECT_MAX + 1] = "";
    struct sl_err none = SL_ERR_INIT;
    int rc = sl_store_project(store, name, owner, sizeof owner, &none);

    *ret_new = rc == SL_NOTFOUND;
    if (rc && rc != SL_NOTFOUND)
        return sl_err_set(err, rc, "%s", none.msg);
    if (!who->projects || rc == SL_NOTFOUND || (*owner && sl_identity_sees(who, owner)))
        return 0;
    /* That the name is taken must be said; whose it is must not. */
    return sl_err_set(err, SL_DENIED, "artifact %s is not one of %s's projects: take another name",
                      name, who->user);
}

bool sl_scope_artifact(struct sl_http_req *req, struct sl_store *store, const char *name,
                       const char *asked, const char **ret_project)
{
    struct sl_err err = SL_ERR_INIT;
    bool is_new;

    if (may_write(sl_http_identity(req), store, name, &is_new, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return false;
    }
    if (asked && !sl_name_valid(asked)) {
        sl_http_reply_problem(req, 422, "not valid", NULL, "project: not the name of one");
        return false;
    }
    *ret_project = asked;
    return !is_new || sl_scope_project(req, ret_project);
}

/* A reference, or an object that has one; URLs and paths are the agent's to judge. */
static int may_read(const struct sl_identity *who, struct sl_store *store, const json_t *source,
                    const char *key, struct sl_err *err)
{
    const char *text =
        json_is_object(source) ? sl_json_str(source, "ref", NULL) : json_string_value(source);
    json_t *record = NULL;
    struct sl_ref ref;
    int rc;

    if (!text || sl_ref_parse(text, &ref, NULL))
        return 0;
    /* As the agent's fetch will find it: a stage of a registered model leads to its artifact. */
    rc = sl_store_resolve(store, ref.name, ref.version, &record, NULL);
    bool sees = rc == 0 && sl_identity_sees(who, sl_json_str(record, "project", ""));
    json_decref(record);
    if (sees)
        return 0;
    if (rc && rc != SL_NOTFOUND)
        return sl_err_set(err, rc, "%s: reading artifact %s", key, ref.name);
    return sl_err_set(err, SL_NOTFOUND, "%s: there is no artifact %s in the projects that %s sees",
                      key, ref.name, who->user);
}

int sl_scope_version(const struct sl_identity *who, struct sl_store *store, const char *name, const char *version,
                     char ret_project[SL_HTTP_PROJECT_MAX + 1], struct sl_err *err)
{
    json_t *record = NULL;
    int rc = sl_store_resolve(store, name, version, &record, err);

    if (rc)
        return rc;
    snprintf(ret_project, SL_HTTP_PROJECT_MAX + 1, "%s", sl_json_str(record, "project", ""));
    json_decref(record);
    if (sl_identity_sees(who, ret_project))
        return 0;
    return sl_err_set(err, SL_NOTFOUND, "there is no artifact %.150s in the projects that %s sees", name, who->user);
}

int sl_scope_model(const struct sl_identity *who, struct sl_store *store, const char *model,
                   const char *artifact_project, const char **ret_project, struct sl_err *err)
{
    char owner[SL_HTTP_PROJECT_MAX + 1] = "";
    struct sl_err none = SL_ERR_INIT;
    int rc;

    *ret_project = NULL;
    if (!who->projects)
        return 0;
    rc = sl_registry_project(store, model, owner, sizeof owner, &none);
    if (rc == SL_NOTFOUND) {
        *ret_project = *artifact_project              ? artifact_project
                       : json_array_size(who->projects) == 1 ? json_string_value(json_array_get(who->projects, 0))
                                                      : NULL;
        return *ret_project ? 0
                            : sl_err_set(err, SL_DENIED, "model %.150s would be everybody's, like the artifact: who "
                                                         "sees all projects may make it", model);
    }
    if (rc)
        return sl_err_set(err, rc, "%s", none.msg);
    if (*owner && sl_identity_sees(who, owner))
        return 0;
    /* That the name is taken must be said; whose it is must not. */
    return sl_err_set(err, SL_DENIED, "model %.150s is not one of %s's projects: take another name", model, who->user);
}

/* ---- lineage --------------------------------------------------------------------------------- */

static bool sees_node(const struct sl_identity *who, struct sl_store *store, const json_t *node)
{
    const char *kind = sl_json_str(node, "kind", ""), *of_run = sl_json_str(node, "project", NULL);
    char project[SL_HTTP_PROJECT_MAX + 1];

    if (!strcmp(kind, "artifact"))
        return !sl_store_project(store, sl_json_str(node, "name", ""), project, sizeof project, NULL) &&
               sl_identity_sees(who, project);
    return !strcmp(kind, "source") || (of_run && sl_identity_sees(who, of_run));
}

/* Of two ends one is reached: the other is, too. True when that was news. */
static bool reach(json_t *reached, const json_t *seen, const json_t *edge)
{
    const char *from = sl_json_str(edge, "from", ""), *to = sl_json_str(edge, "to", "");
    bool a = json_object_get(reached, from) != NULL, b = json_object_get(reached, to) != NULL;

    if (a == b || !json_object_get(seen, from) || !json_object_get(seen, to))
        return false;
    json_object_set_new(reached, a ? to : from, json_true());
    return true;
}

int sl_scope_lineage(const struct sl_identity *who, struct sl_store *store, json_t *graph, struct sl_err *err)
{
    json_t *nodes = json_object_get(graph, "nodes"), *edges = json_object_get(graph, "edges"), *one;
    json_t *seen, *reached;
    const char *root = sl_json_str(graph, "root", "");
    size_t i, before = json_array_size(nodes);
    bool more = true;

    if (!who->projects)
        return 0;
    seen = json_object();
    reached = json_object();
    json_array_foreach(nodes, i, one)
        if (sees_node(who, store, one))
            json_object_set_new(seen, sl_json_str(one, "id", ""), json_true());
    if (json_object_get(seen, root))
        json_object_set_new(reached, root, json_true());
    while (more) {
        more = false;
        json_array_foreach(edges, i, one)
            more |= reach(reached, seen, one);
    }
    for (i = json_array_size(nodes); i-- > 0;)
        if (!json_object_get(reached, sl_json_str(json_array_get(nodes, i), "id", "")))
            json_array_remove(nodes, i);
    for (i = json_array_size(edges); i-- > 0;)
        if (!json_object_get(reached, sl_json_str(json_array_get(edges, i), "from", "")) ||
            !json_object_get(reached, sl_json_str(json_array_get(edges, i), "to", "")))
            json_array_remove(edges, i);
    if (json_array_size(nodes) < before)
        json_object_set_new(graph, "hidden", json_true());
    json_decref(seen);
    json_decref(reached);
    return json_array_size(nodes) ? 0
                                  : sl_err_set(err, SL_NOTFOUND, "there is no such artifact in the projects that %s sees",
                                               who->user);
}

int sl_scope_spec(const struct sl_identity *who, struct sl_store *store, const json_t *spec,
                  struct sl_err *err)
{
    json_t *datasets = json_object_get(spec, "datasets"), *list, *one;
    const char *kind, *model = sl_json_str(spec, "outputs.register", NULL), *ignored,
        *output = sl_json_str(spec, "outputs.artifact", sl_json_str(spec, "name", ""));
    char key[160];
    bool is_new;
    size_t i;
    int rc;

    if (!who->projects)
        return 0;
    rc = may_read(who, store, sl_json_get(spec, "model"), "model", err);
    if (rc == 0)
        rc = may_read(who, store, sl_json_get(spec, "config.model.restore_path"),
                      "config.model.restore_path", err);
    json_object_foreach(datasets, kind, list)
        json_array_foreach(list, i, one) {
            snprintf(key, sizeof key, "datasets.%.100s[%zu]", kind, i);
            if (rc == 0)
                rc = may_read(who, store, one, key, err);
        }
    if (rc == 0 && may_write(who, store, output, &is_new, err))
        rc = sl_err_wrap(err, SL_DENIED, "outputs.artifact");
    if (rc == 0 && model && sl_scope_model(who, store, model, "any", &ignored, err))
        rc = sl_err_wrap(err, SL_DENIED, "outputs.register");
    return rc;
}
