/* Signing in, users, tokens and the audit log.
 *
 *   POST   /api/v1/login          {"token"}: a session's cookie; open
 *   POST   /api/v1/logout
 *   GET    /api/v1/me             {"user", "role", "projects", "via", "csrf", "expires_ms"}
 *   GET    /api/v1/users          POST {"user", "role", "projects"}    by who administers all
 * projects PATCH  /api/v1/users/{user}   {"role", "projects"}                 DELETE GET
 * /api/v1/tokens         POST {"user" | "service", "title", "role", "projects", "expires_in_s"}
 *   DELETE /api/v1/tokens/{id}    revokes; everybody has the tokens of their own
 *   GET    /api/v1/audit?user=&limit=&cursor= */
#include "base/clock.h"
#include "base/json.h"
#include "server/accounts.h"
#include "server/audit.h"
#include "server/http_priv.h"
#include "server/serve.h"
#include "server/sessions.h"
#include <openssl/crypto.h>
#include <string.h>
#include <strings.h>

#define EXPIRES_IN_MAX_S (INT64_C(20) * 366 * 24 * 3600)

static void forget(char *secret)
{
    OPENSSL_cleanse(secret, strlen(secret));
}

/* ---- who one is ------------------------------------------------------------------------------ */

static json_t *me_json(const struct sl_identity *who, const char *csrf)
{
    static const char *const vias[] = {"nothing", "bearer", "cookie", "proxy"};
    return json_pack("{s:s, s:s, s:o, s:s, s:s?, s:o, s:s?}", "user", who->user, "role",
                     sl_role_word(who->role), "projects",
                     who->projects ? json_deep_copy(who->projects) : json_null(), "via",
                     vias[who->via], "csrf", *csrf ? csrf : NULL, "expires_ms",
                     who->expires_ms ? json_integer((json_int_t)who->expires_ms) : json_null(),
                     "token", *who->token ? who->token : NULL);
}

static void me(struct sl_http_req *req, void *arg)
{
    (void)arg;
    sl_http_reply_json(req, 200, me_json(&req->who, req->csrf));
}

static void set_cookie(struct sl_http_req *req, const char *value, int64_t age_s)
{
    const char *proto = req->peer.trusted ? sl_http_header(req, "X-Forwarded-Proto") : NULL;
    bool https = sl_http_guard(req->http)->tls || (proto && !strcmp(proto, "https"));
    char text[256];
    snprintf(text, sizeof text, "%s=%s; Path=/; Max-Age=%lld; HttpOnly; SameSite=Strict%s",
             SL_HTTP_COOKIE, value, (long long)age_s, https ? "; Secure" : "");
    sl_http_set_header(req, "Set-Cookie", text);
    OPENSSL_cleanse(text, sizeof text);
}

/* A form of another site cannot send this type without asking first, which we do not allow. */
static bool is_json(const struct sl_http_req *req)
{
    const char *type = sl_http_header(req, "Content-Type");
    return type && !strncasecmp(type, "application/json", 16) &&
           (!type[16] || strchr("; ", type[16]));
}

static void login(struct sl_http_req *req, void *arg)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    const char *token = sl_json_str(sl_http_json(req), "token", "");
    char sha256[SL_SHA256_HEX + 1], cookie[SL_SESSION_TEXT + 1], csrf[SL_SHA256_HEX + 1];
    int64_t now_ms = sl_now_us() / 1000, age_ms = INT64_C(1000) * SL_HTTP_SESSION_S;
    struct sl_identity who = {0};
    struct sl_err err = SL_ERR_INIT;
    (void)arg;

    sl_identity_release(&req->who); /* the log names who comes, not who was there before */
    if (!is_json(req)) {
        sl_http_reply_problem(req, 415, "not JSON", NULL, "send Content-Type: application/json");
        return;
    }
    if (!sl_http_may_try(req, SL_ATTEMPT_LOGIN)) {
        sl_http_set_header(req, "Retry-After", "60");
        sl_http_reply_problem(req, 429, "too many failed sign-ins", NULL,
                              "too many sign-ins failed from %s: try again in a minute",
                              req->peer.text);
        return;
    }
    if (strlen(token) > SL_HTTP_TOKEN_MAX || sl_sha256_data(token, strlen(token), sha256, NULL) ||
        !sl_http_by_token(req->http, sha256, &who)) {
        sl_http_failed(req, SL_ATTEMPT_LOGIN);
        sl_http_reply_problem(req, 401, "token wrong", NULL,
                              "this token is unknown, expired or revoked: ask for a new one");
        return;
    }
    if (who.expires_ms && who.expires_ms - now_ms < age_ms)
        age_ms = who.expires_ms - now_ms;
    if (sl_sessions_begin(guard->sessions, sha256, now_ms, now_ms + age_ms, cookie, &err) ||
        sl_http_csrf_of(cookie, csrf)) {
        sl_http_reply_err(req, &err, NULL);
    } else {
        set_cookie(req, cookie, age_ms / 1000);
        who.via = SL_VIA_COOKIE;
        sl_http_reply_json(req, 200, me_json(&who, csrf));
        forget(cookie);
    }
    req->who = who;
}

static void logout(struct sl_http_req *req, void *arg)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    const char *cookie = MHD_lookup_connection_value(req->conn, MHD_COOKIE_KIND, SL_HTTP_COOKIE);
    char sha256[SL_SHA256_HEX + 1];
    struct sl_err err = SL_ERR_INIT;
    (void)arg;
    if (cookie && (sl_sha256_data(cookie, strlen(cookie), sha256, &err) ||
                   sl_sessions_end(guard->sessions, sha256, &err))) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    set_cookie(req, "", 0);
    sl_http_reply_empty(req, 204);
}

/* ---- users ----------------------------------------------------------------------------------- */

static void users(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *list;
    if (sl_accounts_users(arg, &list, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_reply_json(req, 200,
                       json_pack("{s:o, s:n, s:I}", "users", list, "next_cursor", "total",
                                 (json_int_t)json_array_size(list)));
}

static void add_user(struct sl_http_req *req, void *arg)
{
    const json_t *body = sl_http_json(req);
    struct sl_err err = SL_ERR_INIT;
    json_t *user;
    if (sl_accounts_add_user(arg, sl_json_str(body, "user", ""),
                             sl_role_of(sl_json_str(body, "role", NULL)),
                             json_object_get(body, "projects"), sl_http_user(req), &user, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_note(req, "added", sl_json_str(user, "user", ""));
    sl_http_note(req, "role", sl_json_str(user, "role", ""));
    sl_http_reply_json(req, 201, user);
}

static void change_user(struct sl_http_req *req, void *arg)
{
    const json_t *body = sl_http_json(req), *role = json_object_get(body, "role");
    struct sl_err err = SL_ERR_INIT;
    json_t *user;
    if (role && !sl_role_of(json_string_value(role))) {
        sl_http_reply_problem(req, 422, "not valid", NULL,
                              "role: expected viewer, member or admin");
        return;
    }
    if (sl_accounts_set_user(arg, sl_http_param(req, "user"), sl_role_of(json_string_value(role)),
                             json_object_get(body, "projects"), &user, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_note(req, "role", sl_json_str(user, "role", ""));
    sl_http_reply_json(req, 200, user);
}

static void remove_user(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_accounts_remove_user(arg, sl_http_param(req, "user"), &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_empty(req, 204);
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static bool rules_all(const struct sl_http_req *req)
{
    return req->who.role == SL_ROLE_ADMIN && !req->who.projects;
}

static bool is_user(const struct sl_http_req *req)
{
    return strcmp(req->who.user, SL_ROOT_USER) != 0 &&
           strncmp(req->who.user, SL_SERVICE_PREFIX, strlen(SL_SERVICE_PREFIX)) != 0;
}

static void tokens(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *list = NULL;
    const char *user = rules_all(req) ? sl_http_query(req, "user") : sl_http_user(req);
    if (sl_accounts_tokens(arg, user, &list, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_reply_json(req, 200,
                       json_pack("{s:o, s:n, s:I}", "tokens", list, "next_cursor", "total",
                                 (json_int_t)json_array_size(list)));
}

/* Nobody gives away more than they came with: what a token of theirs lacks, its child lacks too. */
static int within(const struct sl_http_req *req, struct sl_new_token *t, struct sl_err *err)
{
    const struct sl_identity *who = &req->who;
    const json_t *one;
    size_t i;
    bool own = t->user && !strcmp(t->user, who->user);
    if (!own && !rules_all(req))
        return sl_err_set(err, SL_DENIED,
                          "tokens of others and of services are made by who administers all "
                          "projects; leave out user and service for one of your own");
    if (t->role > who->role)
        return sl_err_set(err, SL_DENIED, "role: %s has %s itself", who->user,
                          sl_role_word(who->role));
    if (json_is_array(t->projects))
        json_array_foreach(t->projects, i, one)
            if (!sl_identity_sees(who, json_string_value(one)))
                return sl_err_set(err, SL_DENIED, "projects[%zu]: %s does not see it", i,
                                  who->user);
    if (!json_is_array(t->projects) && who->projects)
        t->projects = who->projects;
    if (own && who->expires_ms && (!t->expires_ms || t->expires_ms > who->expires_ms))
        t->expires_ms = who->expires_ms;
    return 0;
}

static void add_token(struct sl_http_req *req, void *arg)
{
    const json_t *body = sl_http_json(req), *role = json_object_get(body, "role"),
                 *expires = json_object_get(body, "expires_in_s");
    struct sl_new_token t = {.user = sl_json_str(body, "user", NULL),
                             .service = sl_json_str(body, "service", NULL),
                             .title = sl_json_str(body, "title", NULL),
                             .projects = json_object_get(body, "projects"),
                             .by = sl_http_user(req)};
    char text[SL_TOKEN_TEXT + 1];
    struct sl_err err = SL_ERR_INIT;
    json_t *token;
    int rc = 0;

    if (!t.user && !t.service && is_user(req))
        t.user = sl_http_user(req);
    if (!t.user && !t.service)
        rc = sl_err_set(&err, SL_SPEC, "user, service: %s is no user: name one of them",
                        sl_http_user(req));
    t.role = role ? sl_role_of(json_string_value(role)) : t.user ? req->who.role : SL_ROLE_NONE;
    if (rc == 0 && !t.role)
        rc = sl_err_set(&err, SL_SPEC, "role: expected viewer, member or admin");
    if (expires && !json_is_null(expires)) {
        int64_t in_s = sl_json_int(body, "expires_in_s", 0);
        if (rc == 0 && (in_s < 1 || in_s > EXPIRES_IN_MAX_S))
            rc = sl_err_set(&err, SL_SPEC, "expires_in_s: expected 1 to %lld seconds",
                            (long long)EXPIRES_IN_MAX_S);
        t.expires_ms = sl_now_us() / 1000 + in_s * 1000;
    }
    if (rc == 0)
        rc = within(req, &t, &err);
    if (rc == 0)
        rc = sl_accounts_add_token(arg, &t, text, &token, &err);
    if (rc) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_note(req, "id", sl_json_str(token, "id", ""));
    sl_http_note(req, t.user ? "of_user" : "of_service", t.user ? t.user : t.service);
    sl_http_note(req, "role", sl_json_str(token, "role", ""));
    json_object_set_new(token, "token", json_string(text));
    forget(text);
    sl_http_reply_json(req, 201, token);
}

static void revoke_token(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_accounts_revoke(arg, sl_http_param(req, "id"), rules_all(req) ? NULL : sl_http_user(req),
                           &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_empty(req, 204);
}

/* ---- the audit log --------------------------------------------------------------------------- */

static void audit(struct sl_http_req *req, void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *list;
    char next[40];
    (void)arg;
    if (sl_audit_read(sl_http_guard(req->http)->audit, sl_http_query(req, "cursor"),
                      (int)sl_http_query_int(req, "limit", 50, 1, SL_AUDIT_PAGE_MAX),
                      sl_http_query(req, "user"), &list, next, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_reply_json(
        req, 200, json_pack("{s:o, s:s?}", "entries", list, "next_cursor", *next ? next : NULL));
}

static const struct sl_route routes[] = {
    {.method = "POST",
     .pattern = "/api/v1/login",
     .body = SL_BODY_JSON,
     .open = true,
     .handle = login},
    {.method = "POST",
     .pattern = "/api/v1/logout",
     .role = SL_ROLE_VIEWER,
     .scope = SL_SCOPE_SHARED,
     .handle = logout},
    {.method = "GET", .pattern = "/api/v1/me", .scope = SL_SCOPE_SHARED, .handle = me},
    {.method = "GET", .pattern = "/api/v1/users", .role = SL_ROLE_ADMIN, .handle = users},
    {.method = "POST",
     .pattern = "/api/v1/users",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_ADMIN,
     .handle = add_user},
    {.method = "PATCH",
     .pattern = "/api/v1/users/{user}",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_ADMIN,
     .handle = change_user},
    {.method = "DELETE",
     .pattern = "/api/v1/users/{user}",
     .role = SL_ROLE_ADMIN,
     .handle = remove_user},
    {.method = "GET", .pattern = "/api/v1/tokens", .scope = SL_SCOPE_HANDLER, .handle = tokens},
    {.method = "POST",
     .pattern = "/api/v1/tokens",
     .body = SL_BODY_JSON,
     .role = SL_ROLE_VIEWER,
     .scope = SL_SCOPE_HANDLER,
     .handle = add_token},
    {.method = "DELETE",
     .pattern = "/api/v1/tokens/{id}",
     .role = SL_ROLE_VIEWER,
     .scope = SL_SCOPE_HANDLER,
     .handle = revoke_token},
    {.method = "GET", .pattern = "/api/v1/audit", .role = SL_ROLE_ADMIN, .handle = audit},
};

int sl_auth_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    (void)ret_state;
    return sl_http_add(server->http, routes, sizeof routes / sizeof *routes, server->accounts, err);
}
