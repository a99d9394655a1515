/* Who sends a request and what they may do. Filled by sl_http_authorize before a route begins. */
#ifndef SL_SERVER_IDENTITY_H
#define SL_SERVER_IDENTITY_H
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_USER_MAX 64 /* characters of a user's or service's name */

enum sl_role {
    SL_ROLE_NONE, /* nobody: only what is open */
    SL_ROLE_VIEWER,
    SL_ROLE_MEMBER, /* enqueues, cancels, uploads, moves aliases */
    SL_ROLE_ADMIN   /* limits, queues, agents, users */
};

/* How a request said who it is. Browsers send the last two by themselves, so that writes need the
 * CSRF header too. */
enum sl_via { SL_VIA_NOTHING, SL_VIA_BEARER, SL_VIA_COOKIE, SL_VIA_PROXY };

struct sl_identity {
    char user[SL_USER_MAX +
              9];       /* "root" for the server's own token file; "service:NAME"; "": nobody */
    char token[16 + 1]; /* the public id of the token that it came by; may be "" */
    int64_t expires_ms; /* that token's; 0: never */
    enum sl_role role;
    enum sl_via via;
    json_t *projects; /* owned list of names: sees nothing outside of them; NULL: sees everything */
};

/* True for a project inside the scope, and for NULL or "", which is what everybody shares. */
bool sl_identity_sees(const struct sl_identity *who, const char *project);
void sl_identity_release(struct sl_identity *who); /* NULL-safe */

#endif
