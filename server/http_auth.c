/* What stands between a request and its route: who it is, the route's role, the project's scope. */
#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "server/accounts.h"
#include "server/audit.h"
#include "server/http_priv.h"
#include "server/sessions.h"
#include <openssl/crypto.h>
#include <string.h>
#include <strings.h>

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

void sl_http_note(struct sl_http_req *req, const char *key, const char *value)
{
    if (!req->notes)
        req->notes = json_object();
    json_object_set_new(req->notes, key, json_string(value));
}

/* ---- who it is ------------------------------------------------------------------------------- */

bool sl_http_by_token(struct sl_http *http, const char *sha256, struct sl_identity *ret_who)
{
    struct sl_http_guard *guard = sl_http_guard(http);
    /* Digests have one length, and how far two of them agree says nothing about the token. */
    if (!CRYPTO_memcmp(sha256, guard->token_sha256, SL_SHA256_HEX)) {
        *ret_who =
            (struct sl_identity){.user = SL_ROOT_USER, .role = SL_ROLE_ADMIN, .via = SL_VIA_BEARER};
        return true;
    }
    return guard->accounts &&
           sl_accounts_by_token(guard->accounts, sha256, sl_now_us() / 1000, ret_who);
}

int sl_http_csrf_of(const char *secret, char ret_csrf[SL_SHA256_HEX + 1])
{
    char text[256];
    int n = snprintf(text, sizeof text, "softlaunch csrf\n%s", secret);
    return n < (int)sizeof text ? sl_sha256_data(text, (size_t)n, ret_csrf, NULL) : SL_SPEC;
}

static bool by_cookie(struct sl_http_req *req)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    const char *cookie = MHD_lookup_connection_value(req->conn, MHD_COOKIE_KIND, SL_HTTP_COOKIE);
    char sha256[SL_SHA256_HEX + 1], token[SL_SHA256_HEX + 1];
    if (!cookie || !guard->sessions || strlen(cookie) != SL_SESSION_TEXT ||
        sl_sha256_data(cookie, SL_SESSION_TEXT, sha256, NULL) ||
        !sl_sessions_find(guard->sessions, sha256, sl_now_us() / 1000, token) ||
        !sl_http_by_token(req->http, token, &req->who))
        return false;
    req->who.via = SL_VIA_COOKIE;
    return sl_http_csrf_of(cookie, req->csrf) == 0;
}

struct one_header {
    const char *name, *value;
    int n;
};

static enum MHD_Result count_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                    const char *value)
{
    struct one_header *h = cls;
    (void)kind;
    if (!strcasecmp(name, h->name)) {
        h->value = value;
        h->n++;
    }
    return MHD_YES;
}

/* A proxy that adds its header beside the client's own would let the client choose: twice is
 * nobody. */
static bool by_proxy(struct sl_http_req *req)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    struct one_header h = {.name = guard->sign_in_header};
    char secret[SL_SHA256_HEX + SL_USER_MAX + 16];
    if (!guard->sign_in_header || !guard->accounts || !req->peer.trusted)
        return false;
    MHD_get_connection_values(req->conn, MHD_HEADER_KIND, count_header, &h);
    if (h.n != 1 || !h.value || !sl_accounts_by_name(guard->accounts, h.value, &req->who))
        return false;
    snprintf(secret, sizeof secret, "%s\n%s", guard->token_sha256, req->who.user);
    return sl_http_csrf_of(secret, req->csrf) == 0;
}

/* *ret_wrong: a bearer token was sent that is none of ours. */
static void identify(struct sl_http_req *req, bool *ret_wrong)
{
    const char *header = sl_http_header(req, "Authorization");
    char sha256[SL_SHA256_HEX + 1];
    *ret_wrong = false;
    if (header && !strncasecmp(header, "Bearer ", 7)) { /* nothing else counts beside it */
        *ret_wrong = sl_sha256_data(header + 7, strlen(header + 7), sha256, NULL) ||
                     !sl_http_by_token(req->http, sha256, &req->who);
        return;
    }
    if (!by_cookie(req)) {
        sl_identity_release(&req->who);
        by_proxy(req);
    }
}

static enum sl_role least_role(const struct sl_route *route)
{
    if (route->role)
        return route->role;
    return strcmp(route->method, "GET") == 0 ? SL_ROLE_VIEWER : SL_ROLE_MEMBER;
}

static void drop_answer(struct sl_http_req *req)
{
    if (req->response)
        MHD_destroy_response(req->response);
    req->response = NULL;
}

static bool writes(const struct sl_http_req *req)
{
    return strcmp(req->method, "GET") != 0 && strcmp(req->method, "HEAD") != 0;
}

static bool csrf_ok(const struct sl_http_req *req)
{
    const char *sent = sl_http_header(req, SL_HTTP_CSRF_HEADER);
    return !req->csrf[0] || !writes(req) ||
           (sent && strlen(sent) == SL_SHA256_HEX &&
            !CRYPTO_memcmp(sent, req->csrf, SL_SHA256_HEX));
}

/* Nobody: 401, or 429 when wrong tokens came too often. Right ones are never held up by this: they
 * have 256 random bits, and what a stranger at the same address does is not their fault. */
static void reject(struct sl_http_req *req, bool wrong)
{
    drop_answer(req); /* who has no token does not learn what is there */
    if (wrong && !sl_http_failed(req, SL_ATTEMPT_BEARER)) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", SL_HTTP_FAILURE_FORGET_S);
        sl_http_set_header(req, "Retry-After", seconds);
        sl_http_reply_problem(req, 429, "too many wrong tokens", NULL,
                              "%s sent too many wrong tokens: try again in %s s", req->peer.text,
                              seconds);
        return;
    }
    sl_http_set_header(req, "WWW-Authenticate", "Bearer");
    sl_http_reply_problem(req, 401, "token missing or wrong", NULL,
                          "send `Authorization: Bearer TOKEN` with a token of this server");
    if (wrong)
        sl_http_log_done(req, false);
}

/* To somebody of some projects, for what is the whole server's. */
static void refuse_whole(struct sl_http_req *req)
{
    struct sl_buf names;
    json_t *name;
    size_t i;

    sl_buf_init(&names, SL_ERR_MSG_MAX / 2);
    json_array_foreach(req->who.projects, i, name)
        sl_buf_addf(&names, "%s%s", i ? ", " : "", json_string_value(name));
    sl_http_reply_problem(req, 403, "not allowed", NULL,
                          "%s has the role %s for the projects %.200s only, and this belongs to the whole server: it "
                          "needs the role %s for all projects",
                          req->who.user, sl_role_word(req->who.role), names.len ? names.p : "(none)",
                          sl_role_word(least_role(req->route)));
    sl_buf_release(&names);
}

void sl_http_authorize(struct sl_http_req *req)
{
    bool wrong;
    sl_http_find_peer(req);
    identify(req, &wrong);
    if (req->route && req->route->open)
        return;
    if (req->who.role == SL_ROLE_NONE) {
        reject(req, wrong);
        return;
    }
    if (!req->route)
        return;
    if (req->who.role < least_role(req->route))
        sl_http_reply_problem(req, 403, "not allowed", NULL, "this needs the role %s; %s has %s",
                              sl_role_word(least_role(req->route)), req->who.user,
                              sl_role_word(req->who.role));
    else if (!csrf_ok(req))
        sl_http_reply_problem(
            req, 403, "CSRF header missing or wrong", NULL,
            "a browser's request that changes something needs the header " SL_HTTP_CSRF_HEADER
            " with `csrf` from GET /api/v1/me");
    else if (req->route->scope == SL_SCOPE_PARAM && req->who.projects &&
             !sl_http_scoped_by(req->http, req->route))
        refuse_whole(req);
    if (req->response)
        sl_http_log_done(req, false);
}

/* ---- what is written down, what every answer says -------------------------------------------- */

static const char *via_word(enum sl_via via)
{
    static const char *const words[] = {"nothing", "bearer", "cookie", "proxy"};
    return words[via];
}

/* Route and parameters, never the query or a body, which may hold what is secret. */
void sl_http_log_done(struct sl_http_req *req, bool synced)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    struct sl_err err = SL_ERR_INIT;
    char at[32];
    int64_t now_us = sl_now_us();
    const char *p = req->route ? strchr(req->route->pattern, '{') : NULL;
    if (!guard->audit)
        return;
    json_t *params = json_object();
    for (int i = 0; p; p = strchr(p + 1, '{'), i++)
        json_object_setn_new(params, p + 1, strcspn(p + 1, "}"),
                             json_stringn(req->params[i], strnlen(req->params[i], 200)));
    sl_format_time(now_us, at);
    json_t *entry = json_pack("{s:s, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:i, s:O*}", "at",
                              at, "at_ms", (json_int_t)(now_us / 1000), "user", req->who.user,
                              "role", sl_role_word(req->who.role), "via", via_word(req->who.via),
                              "token", req->who.token, "from", req->peer.text, "method",
                              req->method, "route", req->route ? req->route->pattern : "", "params",
                              params, "status", (int)req->status, "notes", req->notes);
    if (!entry || sl_audit_add(guard->audit, entry, synced, &err))
        sl_log(SL_ERROR, NULL, "an entry is missing in the audit log: %s", err.msg);
    json_decref(entry);
}

void sl_http_safe_headers(const struct sl_http_req *req, struct MHD_Response *r)
{
    static const char *const always[][2] = {
        {"X-Content-Type-Options", "nosniff"},
        {"Content-Security-Policy",
         "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
         "font-src 'self'; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
         "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"},
        {"X-Frame-Options", "DENY"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
    };
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        MHD_add_response_header(r, always[i][0], always[i][1]);
    if (sl_http_guard(req->http)->tls)
        MHD_add_response_header(r, "Strict-Transport-Security", "max-age=31536000");
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
            sl_http_reply_problem(
                req, 403, "not allowed", NULL,
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
