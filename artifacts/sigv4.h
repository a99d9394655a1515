/* AWS Signature Version 4, in headers: pure functions over a request.
 *
 * Written here and not left to libcurl, whose signer (7.88) neither sorts the query nor can sign
 * the digest of a body that is streamed. */
#ifndef SL_ARTIFACTS_SIGV4_H
#define SL_ARTIFACTS_SIGV4_H
#include "base/buf.h"
#include "base/digest.h"
#include "base/err.h"
#include <stdbool.h>

#define SL_SIGV4_MAX_BYTES 32768 /* of a canonical request */
#define SL_SIGV4_MAX_HEADERS 32  /* that are signed */
#define SL_SIGV4_MAX_QUERY 64    /* parameters of a query */
#define SL_SIGV4_TIME_MAX 17     /* "20150830T123600Z" and its NUL */

struct sl_sigv4_header {
    const char *name, *value;
};

struct sl_sigv4 {
    const char *key_id, *secret, *region, *service;
    const char *time; /* "20150830T123600Z" */
    /* true: the path's "." and ".." and double slashes are resolved and "%" is encoded once more,
     * as every service but S3 wants it. false: the path is signed as it is, except that what a path
     * cannot hold is percent-encoded. */
    bool normalize;
};

struct sl_sigv4_request {
    const char *method;
    const char *path;  /* "/..." as it is sent */
    const char *query; /* without "?"; "" or NULL: none. Decoded and encoded anew. */
    const struct sl_sigv4_header *headers; /* all of them are signed; in the order they are sent */
    int n_headers;
    const char *sha256; /* of the body, in hex, or "UNSIGNED-PAYLOAD" */
};

/* Writes time as SigV4 has it. unix_s: seconds since 1970. */
void sl_sigv4_time(long long unix_s, char ret_time[SL_SIGV4_TIME_MAX]);

/* The three steps, each appended to an empty buffer. SL_SPEC: over a limit above; SL_NOMEM. */
int sl_sigv4_canonical(const struct sl_sigv4 *s, const struct sl_sigv4_request *r,
                       struct sl_buf *canonical, struct sl_buf *signed_names, struct sl_err *err);
int sl_sigv4_to_sign(const struct sl_sigv4 *s, const char *canonical, struct sl_buf *to_sign,
                     struct sl_err *err);
int sl_sigv4_signature(const struct sl_sigv4 *s, const char *to_sign,
                       char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err);
/* The value of the Authorization header. */
int sl_sigv4_authorization(const struct sl_sigv4 *s, const struct sl_sigv4_request *r,
                           struct sl_buf *authorization, struct sl_err *err);

/* Percent-encodes as SigV4 demands: everything but A-Z a-z 0-9 - . _ ~ and the characters in keep.
 */
int sl_uri_encode(struct sl_buf *to, const char *text, size_t len, const char *keep);

#endif
