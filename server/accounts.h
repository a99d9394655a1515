/* Users and tokens: who there is, and by which secrets they come.
 *
 *   DATA/auth/accounts.json   users by name, tokens by id; of a token's text only its sha256 is
 * kept
 *
 * A token is "slt_" and 64 hex digits: 256 random bits, so that a plain sha256 hides it. It belongs
 * to a user, and then never allows more than that user may now, or to a service, which is nothing
 * but its tokens. What a token may is decided at each request: a changed role, a removed user, a
 * revoked or expired token counts at once, in sessions too.
 *
 * Durable: when a function that writes returns 0, the change survives a power cut; when it fails,
 * nothing has changed. May be called from any thread; the ones that look up do not block on the
 * disk. Times are milliseconds since 1970. json handed out is a new reference. */
#ifndef SL_SERVER_ACCOUNTS_H
#define SL_SERVER_ACCOUNTS_H
#include "base/digest.h"
#include "base/err.h"
#include "server/identity.h"
#include <stdint.h>

#define SL_USERS_MAX 10000
#define SL_TOKENS_MAX 20000
#define SL_TOKEN_PROJECTS_MAX 100
#define SL_TOKEN_TEXT (4 + 64)
#define SL_ROOT_USER "root"
#define SL_SERVICE_PREFIX "service:" /* before a service's name, where a user's would stand */

struct sl_accounts;

/* Makes DATA/auth, readable by its owner only. SL_DATA: a file there is not one of ours. */
int sl_accounts_open(const char *data_dir, struct sl_accounts **ret_accounts, struct sl_err *err);
void sl_accounts_close(struct sl_accounts *a); /* NULL-safe */

/* "viewer", "member", "admin"; SL_ROLE_NONE for another word or NULL. */
enum sl_role sl_role_of(const char *word);
const char *sl_role_word(enum sl_role role);

/* ---- looking up: memory only ----------------------------------------------------------------- */

/* Who comes with the token that has this sha256. False: unknown, expired, revoked, or its user is
 * gone. *ret_who is then untouched; else its projects are the caller's to release. */
bool sl_accounts_by_token(struct sl_accounts *a, const char *sha256, int64_t now_ms,
                          struct sl_identity *ret_who);
/* A user whom somebody else has authenticated. */
bool sl_accounts_by_name(struct sl_accounts *a, const char *user, struct sl_identity *ret_who);
/* ---- changing -------------------------------------------------------------------------------- */

/* projects: list of names, or NULL for all. SL_CONFLICT: the user is there, or there are too many.
 * SL_SPEC: not the name of a user, role or projects. */
int sl_accounts_add_user(struct sl_accounts *a, const char *user, enum sl_role role,
                         const json_t *projects, const char *by, json_t **ret_user,
                         struct sl_err *err);
/* Another role (SL_ROLE_NONE: as it is), other projects (NULL: as they are; json null: all). */
int sl_accounts_set_user(struct sl_accounts *a, const char *user, enum sl_role role,
                         const json_t *projects, json_t **ret_user, struct sl_err *err);
/* With its tokens, which stay in the list as revoked. SL_NOTFOUND. */
int sl_accounts_remove_user(struct sl_accounts *a, const char *user, struct sl_err *err);
/* [{"user", "role", "projects": [..] or null, "created_ms", "created_by"}] by name. */
int sl_accounts_users(struct sl_accounts *a, json_t **ret_users, struct sl_err *err);

struct sl_new_token {
    const char *user;       /* or a service: its name without the prefix */
    const char *service;    /* exactly one of the two */
    const char *title;      /* what it is for; may be NULL */
    enum sl_role role;      /* of a user's token: at most this */
    const json_t *projects; /* NULL: all that the user sees */
    int64_t expires_ms;     /* 0: never */
    const char *by;
};
/* ret_text is told once and kept nowhere. SL_NOTFOUND: no such user. */
int sl_accounts_add_token(struct sl_accounts *a, const struct sl_new_token *token,
                          char ret_text[SL_TOKEN_TEXT + 1], json_t **ret_token, struct sl_err *err);
/* owner: only when it is this user's; NULL: whoever's. SL_NOTFOUND; revoked already is fine. */
int sl_accounts_revoke(struct sl_accounts *a, const char *id, const char *owner,
                       struct sl_err *err);
/* [{"id", "user" or "service", "title", "role", "projects", "created_ms", "created_by",
 * "expires_ms" or null, "revoked_ms" or null}], newest first; of one user, or all when NULL. */
int sl_accounts_tokens(struct sl_accounts *a, const char *user, json_t **ret_tokens,
                       struct sl_err *err);

#endif
