/* What stands between a request and its route: who it is, the route's role, the project's scope. */
#include "base/json.h"
#include "server/http_priv.h"
#include <openssl/crypto.h>
#include <string.h>

bool sl_identity_sees(const struct sl_identity *who, const char *project)
{
    const json_t *one;
    size_t i;
    if (!who->projects || !project || !*project)
        return true;
    json_array_foreach(who->projects, i, one)
        if (!strcmp(json_string_value(one), project))
            return true;
    return false;
}

void sl_identity_release(struct sl_identity *who)
{
    if (!who)
        return;
    json_decref(who->projects);
    memset(who, 0, sizeof *who);
}

const struct sl_identity *sl_http_identity(const struct sl_http_req *req)
{
    return &req->who;
}

const char *sl_http_user(const struct sl_http_req *req)
{
    return req->who.user;
}

bool sl_http_sees(const struct sl_http_req *req, const char *project)
{
    return sl_identity_sees(&req->who, project);
}

static bool is_root(const struct sl_http_guard *guard, const char *token)
{
    char found[SL_SHA256_HEX + 1];
    /* Digests have one length, and how far two of them agree says nothing about the token. */
    if (sl_sha256_data(token, strlen(token), found, NULL))
        return false;
    return CRYPTO_memcmp(found, guard->token_sha256, SL_SHA256_HEX) == 0;
}

static void identify(struct sl_http_req *req)
{
    const char *header = sl_http_header(req, "Authorization");
    if (!header || strncasecmp(header, "Bearer ", 7) != 0 ||
        !is_root(sl_http_guard(req->http), header + 7))
        return;
    memcpy(req->who.user, "root", sizeof "root");
    req->who.role = SL_ROLE_ADMIN;
    req->who.via = SL_VIA_BEARER;
}

static enum sl_role least_role(const struct sl_route *route)
{
    if (route->role)
        return route->role;
    return strcmp(route->method, "GET") == 0 ? SL_ROLE_VIEWER : SL_ROLE_MEMBER;
}

static const char *role_name(enum sl_role role)
{
    return role == SL_ROLE_ADMIN ? "admin" : role == SL_ROLE_MEMBER ? "member" : "viewer";
}

static void drop_answer(struct sl_http_req *req)
{
    if (req->response)
        MHD_destroy_response(req->response);
    req->response = NULL;
}

void sl_http_authorize(struct sl_http_req *req)
{
    identify(req);
    if (req->route && req->route->open)
        return;
    if (req->who.role == SL_ROLE_NONE) {
        drop_answer(req); /* who has no token does not learn what is there */
        sl_http_set_header(req, "WWW-Authenticate", "Bearer");
        sl_http_reply_problem(req, 401, "token missing or wrong", NULL,
                              "send `Authorization: Bearer TOKEN` with this server's token");
    } else if (req->route && req->who.role < least_role(req->route)) {
        sl_http_reply_problem(req, 403, "not allowed", NULL, "this needs the role %s; %s has %s",
                              role_name(least_role(req->route)), req->who.user,
                              role_name(req->who.role));
    } else if (req->route && req->route->scope == SL_SCOPE_PARAM && req->who.projects &&
               !sl_http_scoped_by(req->http, req->route)) {
        sl_http_reply_problem(req, 403, "not allowed", NULL,
                              "%s sees some projects only; this belongs to none of them",
                              req->who.user);
    }
}

/* ---- the project of what a path names -------------------------------------------------------- */

int sl_http_set_scope(struct sl_http *http, const char *prefix, sl_http_project_of *project_of,
                      void *arg, struct sl_err *err)
{
    struct sl_http_guard *guard = sl_http_guard(http);
    if (guard->n_scopes == SL_HTTP_SCOPES_MAX)
        return sl_err_set(err, SL_SPEC, "no room for the scope of %s", prefix);
    guard->scopes[guard->n_scopes].prefix = prefix;
    guard->scopes[guard->n_scopes].project_of = project_of;
    guard->scopes[guard->n_scopes++].arg = arg;
    return 0;
}

const struct sl_http_scope *sl_http_scoped_by(const struct sl_http *http,
                                              const struct sl_route *route)
{
    static const struct sl_http_scope by_name = {.prefix = "{project}"};
    const struct sl_http_guard *guard = sl_http_guard((struct sl_http *)(uintptr_t)http);
    for (int i = 0; i < guard->n_scopes; i++) {
        size_t len = strlen(guard->scopes[i].prefix);
        if (!strncmp(route->pattern, guard->scopes[i].prefix, len) &&
            (!route->pattern[len] || route->pattern[len] == '/'))
            return &guard->scopes[i];
    }
    return strstr(route->pattern, "{project}") ? &by_name : NULL;
}

/* The value of the last parameter in a scope's prefix. */
static const char *named_by(const struct sl_http_req *req, const char *prefix)
{
    int n = -1;
    for (const char *p = strchr(prefix, '{'); p; p = strchr(p + 1, '{'))
        n++;
    return n < 0 ? NULL : req->params[n];
}

bool sl_http_in_scope(struct sl_http_req *req)
{
    const struct sl_http_scope *scope;
    char project[SL_HTTP_PROJECT_MAX + 1] = "";
    struct sl_err err = SL_ERR_INIT;
    const char *name;
    int rc = 0;

    if (!req->who.projects || req->route->open || req->route->scope != SL_SCOPE_PARAM ||
        !(scope = sl_http_scoped_by(req->http, req->route)))
        return true;
    if (!scope->project_of) {
        name = sl_http_param(req, "project");
        if (sl_http_sees(req, name))
            return true;
    } else {
        name = named_by(req, scope->prefix);
        rc = scope->project_of(scope->arg, name, project, &err);
        bool reads = strcmp(req->route->method, "GET") == 0;
        if (!rc && *project && sl_http_sees(req, project))
            return true;
        if (!rc && !*project && reads)
            return true;
        if (!rc && !*project) {
            sl_http_reply_problem(req, 403, "not allowed", NULL,
                                  "%.150s is shared by all projects: who sees all of them may change it", name);
            return false;
        }
    }
    if (rc && rc != SL_NOTFOUND)
        sl_http_reply_err(req, &err, NULL);
    else /* the same words whether it exists elsewhere or nowhere */
        sl_http_reply_problem(req, 404, "not found", NULL,
                              "there is no %.150s in the projects that %s sees", name,
                              req->who.user);
    return false;
}
