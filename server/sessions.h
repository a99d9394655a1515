/* Sessions of browsers: a cookie in the place of a token.
 *
 *   DATA/auth/sessions.json   by the sha256 of their cookie; each is bound to one token's sha256
 *
 * A session allows what its token allows at each request, and ends with it, by logging out, or at
 * its time. Durable, and of all threads, as accounts.h says. */
#ifndef SL_SERVER_SESSIONS_H
#define SL_SERVER_SESSIONS_H
#include "base/digest.h"
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_SESSIONS_MAX 10000     /* all of them together; then the oldest ends */
#define SL_SESSIONS_OF_A_TOKEN 20 /* then its oldest ends */
#define SL_SESSION_TEXT 64        /* characters of a cookie */

struct sl_sessions;

/* DATA/auth is there: after sl_accounts_open. */
int sl_sessions_open(const char *data_dir, struct sl_sessions **ret_sessions, struct sl_err *err);
void sl_sessions_close(struct sl_sessions *s); /* NULL-safe */
/* ret_cookie is told once and kept nowhere. */
int sl_sessions_begin(struct sl_sessions *s, const char *token_sha256, int64_t now_ms,
                      int64_t expires_ms, char ret_cookie[SL_SESSION_TEXT + 1], struct sl_err *err);
/* Looks at memory only. False: unknown or over. */
bool sl_sessions_find(struct sl_sessions *s, const char *cookie_sha256, int64_t now_ms,
                      char ret_token_sha256[SL_SHA256_HEX + 1]);
/* Ending one that is not there is fine. */
int sl_sessions_end(struct sl_sessions *s, const char *cookie_sha256, struct sl_err *err);

/* 2 * bytes hex digits of the system's randomness, and a NUL; bytes at most 32. */
int sl_secret_hex(char *ret_hex, int bytes, struct sl_err *err);
/* The file, or what stands for it while it is not there. otherwise is stolen. */
int sl_json_read_or(const char *path, size_t max_bytes, json_t *otherwise_stolen, json_t **ret,
                    struct sl_err *err);

#endif
