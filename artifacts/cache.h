/* A folder of fetched files by sha256, shared by every agent of a machine.
 *
 *   sha256/<digest>       whole files, checked, read-only, with a fixed time of change: a file that
 *                         has another was written to; it is hashed again, and dropped if it differs
 *   partial/<key>         what is being fetched; who fetches it holds its lock (flock)
 *   partial/<id>/         small files that come together (a batch); who fetches them holds the folder's
 *                         lock, and a folder without a holder goes with the next eviction
 *   urls/<sha256 of URL>  {"url", "etag", "sha256"}: what a URL without a digest gave last
 *   uses/<digest>.<id>    a symbolic link to a place outside this file system that uses the file
 *   lock                  shared (flock) while a file is placed, exclusive while one is evicted
 *
 * A file is in use as long as it has another hard link (sl_cache_place makes one), or its place in uses/
 * still points here: both end with the run's folder, whoever removes that and whoever was killed. What is
 * in use, or was asked for in the last SL_CACHE_KEEP_S, is never evicted; of the rest goes what was used
 * longest ago. The time of use is the file's time of access, set by hand.
 *
 * Any number of processes may use it at once: two that want the same file fetch it once, the second
 * waits. A process may be killed at any point; the next goes on from its partial file. Blocks. */
#ifndef SL_ARTIFACTS_CACHE_H
#define SL_ARTIFACTS_CACHE_H
#include "artifacts/watch.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/file.h"
#include <stdint.h>

#define SL_CACHE_KEEP_S 60
#define SL_CACHE_WHOLE_TIME_S 946684800 /* 2000-01-01: the time of change of a file that nobody wrote to */
#define SL_CACHE_PARTIAL_S (7 * 86400) /* a partial file that nobody went on with for so long is dropped */

struct sl_cache {
    char dir[SL_PATH_MAX];
};

int sl_cache_open(const char *dir, struct sl_cache *ret_cache,
                  struct sl_err *err); /* makes the folders */
/* Path and size of a file that is there and whole. SL_NOTFOUND. */
int sl_cache_find(const struct sl_cache *cache, const char *sha256, char ret_path[SL_PATH_MAX],
                  int64_t *ret_bytes, struct sl_err *err);

/* A file on its way in. */
struct sl_fill {
    const struct sl_cache *cache;
    char path[SL_PATH_MAX];
    int fd;
    int64_t bytes; /* so far, all of them hashed; more than 0 at the beginning: left by an earlier
                      process */
    struct sl_sha256 digest;
};
/* Takes the lock of key (a digest, or another file name), waiting while another process holds it.
 * When sha256 is given and the file is in the cache by then, *ret_there is true and there is
 * nothing to do or release. Else a partial file is opened: resumed when sha256 is given, empty when
 * not. SL_CANCELLED by watch. */
int sl_fill_begin(const struct sl_cache *cache, const char *key, const char *sha256,
                  const struct sl_watch *watch, struct sl_fill *ret_fill, bool *ret_there,
                  struct sl_err *err);
int sl_fill_write(struct sl_fill *fill, const void *data, size_t len, struct sl_err *err);
/* Back to no bytes. */
int sl_fill_restart(struct sl_fill *fill, struct sl_err *err);
/* Checks the digest (expected may be NULL) and puts the file in its place. Releases fill in every
 * case. SL_DATA gives the expected and the found digest; the partial file is gone then. */
int sl_fill_commit(struct sl_fill *fill, const char *expected, char ret_sha256[SL_SHA256_HEX + 1],
                   char ret_path[SL_PATH_MAX], struct sl_err *err);
void sl_fill_abort(struct sl_fill *fill); /* keeps the partial file, for who goes on */

/* ---- small files together: cache_batch.c ------------------------------------------------------ */

/* Files that get their names only when sync has made all of them durable: one sync instead of one for each. A process
 * that is killed leaves none of them. */
struct sl_cache_batch {
    const struct sl_cache *cache;
    char path[SL_PATH_MAX];
    int fd; /* the folder's, locked */
};
int sl_cache_batch_begin(const struct sl_cache *cache, struct sl_cache_batch *ret_batch,
                         struct sl_err *err);
/* data: all of the file's bytes, which the caller has checked. own: it is to leave the cache. */
int sl_cache_batch_write(struct sl_cache_batch *b, const char *sha256, const void *data, size_t len,
                         bool own, struct sl_err *err);
/* Waits for all that the file system has not written yet, other programs' too (syncfs). */
int sl_cache_batch_sync(struct sl_cache_batch *b, struct sl_err *err);
/* Gives a file its place, after sync: in the cache, or dest, whose folder must be there, on the same file system. */
int sl_cache_batch_place(struct sl_cache_batch *b, const char *sha256, const char *dest,
                         char ret_path[SL_PATH_MAX], struct sl_err *err);
void sl_cache_batch_end(struct sl_cache_batch *b); /* what has no place is gone */
/* sl_cache_find for many, while the caller holds the cache's lock: a file that was written to counts as missing. */
bool sl_cache_has(const struct sl_cache *cache, const char *sha256, char ret_path[SL_PATH_MAX],
                  int64_t *ret_bytes);

/* Makes dest the same file as path: a hard link, across file systems a symbolic link. Folders above
 * dest are made; dest must not exist. */
int sl_cache_place(const char *path, const char *dest, struct sl_err *err);

/* ---- tending: cache_tend.c ------------------------------------------------------------------- */

struct sl_cache_file {
    char sha256[SL_SHA256_HEX + 1];
    int64_t bytes, used_us; /* last asked for, wall clock */
    bool in_use;
};
/* What is whole, used longest ago first. The caller frees *ret_files. */
int sl_cache_list(const struct sl_cache *cache, struct sl_cache_file **ret_files, size_t *ret_n,
                  struct sl_err *err);
struct sl_cache_evicted {
    int64_t files, bytes;           /* that went */
    int64_t left_files, left_bytes; /* that stay, partial ones too */
};
/* Evicts until the cache has at most max_bytes, as far as nothing in use is in the way. max_bytes -1: half
 * of its file system. */
int sl_cache_evict(const struct sl_cache *cache, int64_t max_bytes,
                   struct sl_cache_evicted *ret_evicted, struct sl_err *err);
/* Hashes every file; those whose bytes are not their name's are dropped, and told by dropped (may be
 * NULL). SL_CANCELLED by watch, whose progress counts bytes. */
int sl_cache_verify(const struct sl_cache *cache, const struct sl_watch *watch,
                    void (*dropped)(void *arg, const char *sha256), void *arg, int64_t *ret_files,
                    int64_t *ret_dropped, struct sl_err *err);
/* The cache's lock; shared or exclusive. -1 and no lock when the file cannot be made. Close it. */
int sl_cache_lock(const char *dir, bool exclusive);

#endif
