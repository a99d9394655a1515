/* Files into buckets elsewhere: s3://bucket/prefix/ and gs://bucket/prefix/.
 *
 * An object appears whole or not at all, with the sha256 of its bytes in its metadata. To S3, files of more than one
 * part go in parts, several at once, each under a signature that covers its digest, so that a body altered on its way
 * is refused; what was begun and fails is aborted. To GCS, files go in one resumable upload each, which goes on from
 * what the service has after a break, and their MD5 is checked by the service and by us. What may pass is tried again
 * as ask.h says. Who lets us in: artifacts/aws.h and artifacts/gcloud.h. Blocks.
 *
 * Errors: SL_SPEC, SL_DENIED, SL_NOTFOUND (no such bucket), SL_RETRY (tries used up), SL_DATA (what came there is not
 * what was sent), SL_IO, SL_CANCELLED. */
#ifndef SL_ARTIFACTS_TARGET_H
#define SL_ARTIFACTS_TARGET_H
#include "artifacts/ask.h"
#include "artifacts/crew.h"
#include "artifacts/manifest.h"
#include "artifacts/source.h"

#define SL_TARGET_HANDS 4      /* parts, or small files, at once */
#define SL_TARGET_PARTS_MAX 9000 /* of one object: larger files have larger parts */

struct sl_target;

bool sl_target_knows(const char *ref);
/* watch is copied; pace may be NULL. */
int sl_target_open(const char *ref, const struct sl_watch *watch, struct sl_pace *pace,
                   struct sl_target **ret_target, struct sl_err *err);
void sl_target_close(struct sl_target *target); /* NULL-safe */
/* Ends in a slash, or is a bucket: names are below it. */
bool sl_target_is_folder(const struct sl_target *target);

struct sl_target_file {
    const char *path; /* here */
    const char *name; /* below the target's folder; "" when the target is one object */
    const char *sha256;
};
/* Puts files there, replacing objects of the same name; the first error ends it, after which some may be there. */
int sl_target_put(struct sl_target *target, const struct sl_target_file *files, size_t n,
                  struct sl_err *err);
/* Whether an object is there with these bytes, as its metadata says. SL_NOTFOUND: it is not. */
int sl_target_find(struct sl_target *target, const char *name, const char *sha256, int64_t bytes,
                   struct sl_err *err);
/* Fine when it is not there. */
int sl_target_remove(struct sl_target *target, const char *name, struct sl_err *err);
/* Where to get it, and who lets us in (for artifacts/transfer.h; valid as long as the target). */
int sl_target_url(struct sl_target *target, const char *name, struct sl_buf *url, struct sl_err *err);
const struct sl_signer *sl_target_signer(const struct sl_target *target);

/* ---- for the schemes ------------------------------------------------------------------------- */

/* One file on its way. */
struct sl_sending {
    const struct sl_target *target;
    const char *what; /* how messages call it: its reference */
    const char *key, *sha256;
    int fd;
    int64_t bytes;
};
struct sl_target_scheme {
    /* A file of at most SL_PART_BYTES, by one thread of several. */
    int (*put_small)(const struct sl_sending *s, const struct sl_crew_hand *hand, struct sl_err *err);
    /* A larger one, alone. */
    int (*put_large)(const struct sl_sending *s, struct sl_err *err);
    int (*url)(const struct sl_target *target, const char *key, struct sl_buf *url, struct sl_err *err);
    /* ret_sha256: what its metadata says, or "". */
    int (*stat)(const struct sl_target *target, const char *key, char ret_sha256[SL_SHA256_HEX + 1],
                int64_t *ret_bytes, struct sl_err *err);
};
struct sl_target {
    struct sl_bucket_ref ref;
    const char *scheme_name; /* "s3" */
    const struct sl_target_scheme *scheme;
    void *state;
    void (*free_state)(void *state);
    struct sl_signer signer, own; /* signer: own, one request at a time, for any thread */
    pthread_mutex_t mutex;
    struct sl_watch watch;
    struct sl_pace *pace;
};
int sl_target_s3(struct sl_target *target, struct sl_err *err);
int sl_target_gs(struct sl_target *target, struct sl_err *err);

#define SL_TARGET_URL_MAX 8192 /* bytes */

#endif
