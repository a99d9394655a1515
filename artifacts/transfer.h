/* Files over HTTP: downloads into the cache, uploads of blobs.
 *
 * A download is hashed as it comes, goes on by Range after a break, and appears in the cache whole
 * or not at all. What may pass (no connection, a cut or stalled one, 408, 429, 5xx) is tried again
 * with growing, jittered pauses, SL_TRANSFER_TRIES times without progress; the rest fails at once.
 * An upload of SL_TRANSFER_PIECES_FROM or more goes on where it broke off, too.
 * The token goes to the server's own origin and nowhere else; its redirects are not followed.
 * Blocks; watch may stop it (SL_CANCELLED).
 *
 * Errors: SL_NOTFOUND (404), SL_DENIED (401, 403), SL_SPEC (other 4xx), SL_DATA (digest, size),
 * SL_RETRY (tries used up), SL_IO (our disk, or the server's: its message says which). Each names
 * the thing and the URL. */
#ifndef SL_ARTIFACTS_TRANSFER_H
#define SL_ARTIFACTS_TRANSFER_H
#include "artifacts/ask.h"
#include "artifacts/cache.h"
#include "artifacts/manifest.h"
#include "artifacts/pace.h"
#include "artifacts/watch.h"
#include "base/err.h"
#include <stdint.h>

#define SL_TRANSFER_TRIES 6
#define SL_TRANSFER_LANES 4
#define SL_TRANSFER_AT_ONCE 8
#define SL_RANGES_MIN_BYTES (2 * SL_PART_BYTES)
#define SL_TRANSFER_STALL_S 30 /* without a byte for so long, a connection counts as cut */
#define SL_TRANSFER_SYNC_S                                                                         \
    600 /* the same while uploading: the server syncs its disk before it answers */
#define SL_TRANSFER_PIECES_FROM (8 << 20) /* an upload of so many bytes goes on after a break */
#define SL_TRANSFER_RETRY_AFTER_S 30 /* the most that a server's Retry-After is heeded */

struct sl_transfer {
    const char *server;             /* own origin, "http://host:port"; may be NULL */
    const char *token;              /* may be NULL */
    const struct sl_signer *signer; /* lets downloads in; may be NULL */
    struct sl_watch watch;          /* progress counts bytes that came or went */
    void *curl; /* a handle (sl_web_new) to use, which keeps its connections; may be NULL */
    struct sl_pace *pace; /* how fast these transfers may be together; may be NULL */
    int tries;           /* 0: SL_TRANSFER_TRIES */
};

/* One file that is wanted. */
struct sl_want {
    const char *what; /* how messages call it ("model.gguf of smollm2-135m:v0") */
    const char *url;
    const char *sha256;  /* NULL: whatever the URL gives; then the cache is used when the server's
                            ETag  says that it is unchanged */
    int64_t bytes;       /* the size it must have, or -1 */
    const json_t *parts; /* the digests of its SL_PART_BYTES parts (manifest.h), or NULL: with them
                            only parts that came wrong are fetched again */
    const char *dest;    /* NULL, or where a small file may go at once instead of into the cache, as a file of its
                            own (0644); sl_got's path says where it is. For sl_transfer_many */
};

struct sl_got {
    char path[SL_PATH_MAX]; /* in the cache, or sl_want's dest */
    char sha256[SL_SHA256_HEX + 1];
    int64_t bytes;
    bool cached; /* nothing was transferred */
};

/* Files of known digest and at least SL_RANGES_MIN_BYTES come over up to SL_TRANSFER_LANES
 * connections at once, a part of SL_PART_BYTES each, where the server has ranges. */
int sl_transfer_want(const struct sl_transfer *t, const struct sl_cache *cache,
                     const struct sl_want *want, struct sl_got *ret_got, struct sl_err *err);
/* Many at once, SL_TRANSFER_AT_ONCE of them at a time; the first error ends all. watch's functions
 * are called by one thread at a time. gots: n of them. */
int sl_transfer_many(const struct sl_transfer *t, const struct sl_cache *cache,
                     const struct sl_want *wants, size_t n, struct sl_got *gots,
                     struct sl_err *err);
int sl_transfer_get(const struct sl_transfer *t, const struct sl_cache *cache, const char *what,
                    const char *url, const char *sha256, int64_t bytes, struct sl_got *ret_got,
                    struct sl_err *err);
/* Forgets what a URL without a digest gave, so that it is transferred again. */
void sl_transfer_forget(const struct sl_cache *cache, const char *url);
/* Uploads a file as blob `sha256` to the own server, unless it is there. */
int sl_transfer_put(const struct sl_transfer *t, const char *what, const char *path,
                    const char *sha256, struct sl_err *err);

#endif
