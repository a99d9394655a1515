/* TLS as a filter: bytes from the socket go in, bytes for the socket come out; it never touches the
 * socket itself, so that it serves a blocking and a waiting caller alike. The certificate is checked
 * against the CA file (or the system's) and the server's name or address. Not for other parts. */
#ifndef SL_QUEUE_REDIS_TLS_H
#define SL_QUEUE_REDIS_TLS_H
#include "base/buf.h"
#include "queue/redis.h"

struct sl_redis_tls;
/* Reads the certificate files anew each time, so that renewed ones are taken at the next connection.
 * host: what the certificate must be for, unless url names another. Puts the first bytes to send into wire. */
int sl_redis_tls_new(const struct sl_redis_url *url, const char *host, struct sl_buf *wire,
                     struct sl_redis_tls **ret_tls, struct sl_err *err);
void sl_redis_tls_free(struct sl_redis_tls *t); /* NULL-safe */
bool sl_redis_tls_ready(const struct sl_redis_tls *t);
/* Takes what the socket gave; adds what was in it to plain, and what must be answered to wire. SL_DENIED:
 * not the server that we trust, or it does not trust us. */
int sl_redis_tls_in(struct sl_redis_tls *t, const char *data, size_t len, struct sl_buf *plain,
                    struct sl_buf *wire, struct sl_err *err);
/* Only when ready. */
int sl_redis_tls_out(struct sl_redis_tls *t, const char *data, size_t len, struct sl_buf *wire,
                     struct sl_err *err);

#endif
