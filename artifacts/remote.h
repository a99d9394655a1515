/* A store whose blobs lie in a bucket. Records stay on the disk; the disk also has copies of blobs, up to a limit.
 *
 *   blobs/remote/ab/<digest>   says that the bucket has the blob: an empty (sparse) file of the blob's size
 *
 * It is written, durably, after the object is in the bucket, and before the blob counts as there; what is fetched from the bucket is
 * believed by its digest only. The file goes before the object: what a crash leaves in the bucket is overwritten by the next upload of
 * the same bytes, and nothing asks for it. For the store's own files. */
#ifndef SL_ARTIFACTS_REMOTE_H
#define SL_ARTIFACTS_REMOTE_H
#include "artifacts/store_priv.h"
#include "artifacts/target.h"

struct sl_remote {
    struct sl_target *target;
    int64_t local_max, local_bytes; /* of copies on the disk; under the store's blob_mutex */
    json_t *removing;               /* sha256 of objects that are being deleted; the same */
    bool evicting;                  /* the same */
    pthread_cond_t removed;
};

void sl_remote_free(struct sl_remote *remote); /* NULL-safe */
int sl_remote_path(const struct sl_store *store, const char *sha256, char ret_path[SL_PATH_MAX], struct sl_err *err);
/* The blob whose bytes lie at path is in the bucket from now on. Nothing without a bucket. */
int sl_remote_keep(struct sl_store *store, const char *sha256, const char *path, struct sl_err *err);
/* Fetches a blob to where local ones lie, and opens it; *ret_fd -1: another one has fetched it, and it was evicted since.
 * SL_NOTFOUND: the bucket does not have it. */
int sl_remote_fetch(struct sl_store *store, const char *sha256, int *ret_fd, struct sl_err *err);
/* Deletes the object; the local file and the note are gone already, and sl_remote_begin_remove was called with the blob_mutex held. */
void sl_remote_begin_remove(struct sl_store *store, const char *sha256);
int sl_remote_end_remove(struct sl_store *store, const char *sha256, struct sl_err *err);

#endif
