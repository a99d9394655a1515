/* SHA-256, through OpenSSL. Digests travel as 64 lower-case hex digits. */
#ifndef SL_BASE_DIGEST_H
#define SL_BASE_DIGEST_H
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_SHA256_HEX 64

struct sl_sha256 {
    void *ctx;
};

int sl_sha256_init(struct sl_sha256 *d, struct sl_err *err);
void sl_sha256_update(struct sl_sha256 *d, const void *data, size_t len);
void sl_sha256_hex(struct sl_sha256 *d, char ret_hex[SL_SHA256_HEX + 1]); /* finishes and releases */
void sl_sha256_release(struct sl_sha256 *d);                               /* without a result; NULL-safe */
int sl_sha256_data(const void *data, size_t len, char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err);
/* ret_bytes may be NULL. Blocks. */
int sl_sha256_file(const char *path, char ret_hex[SL_SHA256_HEX + 1], int64_t *ret_bytes,
                   struct sl_err *err);
bool sl_sha256_valid(const char *hex); /* exactly 64 lower-case hex digits */

#endif
