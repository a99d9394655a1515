/* Files that lie elsewhere, by reference: what they are called, where to get each, how to be let
 * in.
 *
 *   s3://bucket/key                a file         s3://bucket/prefix/    all below it, as a folder
 *   gs://bucket/name               a file         gs://bucket/prefix/    all below it, as a folder
 *   hf://org/name[@revision]       a model repository of Hugging Face as a folder; with /path
 * behind it one file; hf://datasets/org/name[@revision] a data set. A slash in a revision is
 * written %2F. Without one: main. http(s)://...                  a file
 *
 * Who lets us in: artifacts/aws.h for S3, artifacts/gcloud.h for GCS, for Hugging Face HF_TOKEN (or
 * the file HF_TOKEN_PATH, or ~/.cache/huggingface/token) and HF_ENDPOINT. Blocks. */
#ifndef SL_ARTIFACTS_SOURCE_H
#define SL_ARTIFACTS_SOURCE_H
#include "artifacts/ask.h"
#include "artifacts/names.h"
#include "artifacts/watch.h"
#include "base/digest.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_SOURCE_FILES_MAX 10000
#define SL_GIT_SHA1_HEX 40

struct sl_source_file {
    char *path, *url;                   /* path: below the reference; of a single file its name */
    char sha256[SL_SHA256_HEX + 1];     /* "": the source does not say */
    char git_sha1[SL_GIT_SHA1_HEX + 1]; /* the name of git's blob; "": the source does not say */
    int64_t bytes;                      /* -1: the source does not say */
};

struct sl_source {
    struct sl_signer signer; /* its arg belongs to the source; sign may be NULL */
    struct sl_source_file *files;
    size_t n;
    bool folder;
    char revision[SL_SHA256_HEX + 1]; /* the commit of a Hugging Face repository; else "" */
    void *state;                      /* of the scheme */
    void (*free_state)(void *state);
};

/* Has a scheme of the list above. */
bool sl_source_knows(const char *ref);
/* Finds what is there. SL_SPEC: not a reference; SL_NOTFOUND: there is nothing; SL_DENIED,
 * SL_RETRY, SL_DATA: what the service answered. */
int sl_source_open(const char *ref, const struct sl_watch *watch, struct sl_source *ret_source,
                   struct sl_err *err);
void sl_source_release(struct sl_source *source); /* NULL-safe */

/* A file that was fetched is git's blob of that name, where the source says so. SL_DATA. */
int sl_source_check(const struct sl_source_file *file, const char *path, struct sl_err *err);

/* ---- for the schemes ------------------------------------------------------------------------- */

int sl_source_s3(const char *ref, const struct sl_watch *watch, struct sl_source *source,
                 struct sl_err *err);
int sl_source_gs(const char *ref, const struct sl_watch *watch, struct sl_source *source,
                 struct sl_err *err);
int sl_source_hf(const char *ref, const struct sl_watch *watch, struct sl_source *source,
                 struct sl_err *err);
/* Appends a file, both texts copied, and checks its path. *ret_file may be NULL. */
int sl_source_add(struct sl_source *source, const char *path, const char *url, int64_t bytes,
                  struct sl_source_file **ret_file, struct sl_err *err);
/* "scheme://BUCKET/KEY": both checked; a key that ends in a slash, or none, means a folder. */
struct sl_bucket_ref {
    char bucket[256];
    char key[SL_ENTRY_PATH_MAX + 2];
    bool folder;
};
int sl_bucket_ref_parse(const char *ref, struct sl_bucket_ref *ret, struct sl_err *err);
/* The last part of a path: the name of a single file. */
const char *sl_source_base(const char *path);

/* URLs of S3 objects, in the bucket's host or below the endpoint's. key "" and a query: the
 * bucket's.
 */
int sl_s3_url(const char *region, const char *bucket, const char *key, struct sl_buf *url,
              struct sl_err *err);

#endif
