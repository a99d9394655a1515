/* The artifact store on a disk folder: blobs by sha256, immutable versions, aliases. The truth.
 *
 *   blobs/sha256/ab/<digest>       any file's bytes; a manifest is a blob too
 *   artifacts/<name>/v0.json       one immutable record a version; a number is never used again
 *   artifacts/<name>/aliases.json  {"candidate": 3}; `latest` is not stored: it is the newest version
 *   artifacts/<name>/v1.gone       what is left of a deleted version: its record, without its files
 *   markers/<run>/<output>.json    which version a run's output became, so that it is published once
 *   pins/<manifest>/<owner>        keeps a manifest and its blobs until its version is there
 *   journal/                       commits under way; the next open finishes them: all or nothing
 *   tmp/                           blobs on their way in; the next open empties it
 *   uploads/<digest>               the beginning of a blob whose upload goes on, maybe after a restart
 *   refunds/<id>.json              what a deleted version gives back to its project's storage
 *   lock                           held (flock) by the one process that writes
 *
 * A manifest, in the form of sl_json_dump (so that equal content has an equal digest):
 *   {"files": [{"path", "sha256", "bytes", "parts": [sha256, ...],
 *               "entries": [{"path", "sha256", "bytes"}]}]}
 * `parts` (optional) are the digests of the file's 16 MiB parts (manifest.h). A checkpoint's has "inputs" beside "files" (plan.h).
 * `entries` (optional) tells what is inside a tarball. A record, as every ret_record here gives it:
 *   {"name", "version": "v3", "number": 3, "manifest": sha256, "created": time,
 *    "created_by", "project" when known, "bytes": sum of the files, "made_by": {"run", "output", "project"} when
 *    from a run,
 *    "aliases": ["latest", ...], "files": [...]}
 *
 * Durable: when a function that writes returns 0, what it wrote survives a power cut. All functions
 * block, and may be called from any thread. Handed-out json is a new reference. */
#ifndef SL_ARTIFACTS_STORE_H
#define SL_ARTIFACTS_STORE_H
#include "artifacts/names.h"
#include "base/digest.h"
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_BLOB_MAX_BYTES (INT64_C(1) << 40)
#define SL_MANIFEST_MAX_BYTES (8u << 20)
#define SL_MANIFEST_MAX_FILES 10000 /* and as many entries in all */
#define SL_STORE_MAX_ALIASES 1000   /* of one artifact */
#define SL_COMMIT_MAX_ALIASES 64    /* set by one commit */
#define SL_STORE_HOLD_S 3600 /* a blob that came, or was said to be there, is left so long by collections */

struct sl_store;

/* Makes the folder where needed, takes the lock (SL_CONFLICT: another process has it), finishes
 * journalled commits, removes leftovers. */
int sl_store_open(const char *dir, struct sl_store **ret_store, struct sl_err *err);
void sl_store_close(struct sl_store *store); /* NULL-safe */
/* From now on blobs lie in a folder of a bucket, "s3://bucket/prefix/" or gs://, and the disk has at most local_max bytes of
 * copies, what was used last; blobs that the disk alone has are sent there now. Before other threads use the store, and at every
 * opening of a store that has been used so. */
int sl_store_use_bucket(struct sl_store *store, const char *ref, int64_t local_max, struct sl_err *err);

/* ---- blobs ----------------------------------------------------------------------------------- */

/* Streams one blob in. Nothing is visible before commit; one writer belongs to one thread at a
 * time. */
#define SL_BLOBS_AT_ONCE 100          /* in one answer; their digests fit into the URLs that proxies take */
#define SL_BLOBS_EACH_MAX (1 << 20)   /* bytes of each of them */

struct sl_blob_writer;
/* expected: the digest it must have, or NULL. */
int sl_blob_begin(struct sl_store *store, const char *expected, struct sl_blob_writer **ret_writer,
                  struct sl_err *err);
int sl_blob_write(struct sl_blob_writer *w, const void *data, size_t len, struct sl_err *err);
/* Frees w in every case. SL_DATA names both digests. ret_sha256 may be NULL. */
int sl_blob_commit(struct sl_blob_writer *w, char ret_sha256[SL_SHA256_HEX + 1],
                   struct sl_err *err);
void sl_blob_abort(struct sl_blob_writer *w); /* NULL-safe */
int sl_blob_put(struct sl_store *store, const void *data, size_t len,
                char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err);
/* The caller closes *ret_fd. SL_NOTFOUND. */
int sl_blob_open(struct sl_store *store, const char *sha256, int *ret_fd, int64_t *ret_bytes,
                 struct sl_err *err);
/* SL_NOTFOUND, or 0 and its size; ret_bytes may be NULL. */
/* Opens one whose file is here, without asking a bucket. SL_NOTFOUND: it is not, or not here. Never waits for more
 * than the disk. */
int sl_blob_open_here(struct sl_store *store, const char *sha256, int *ret_fd, int64_t *ret_bytes,
                      struct sl_err *err);
int sl_blob_size_here(struct sl_store *store, const char *sha256, int64_t *ret_bytes, struct sl_err *err);
int sl_blob_stat(struct sl_store *store, const char *sha256, int64_t *ret_bytes,
                 struct sl_err *err);

/* As stat, and collections leave it for SL_STORE_HOLD_S: for who is told that an upload is needless. */
int sl_blob_hold(struct sl_store *store, const char *sha256, int64_t *ret_bytes,
                 struct sl_err *err);

/* Uploads in pieces, one behind the other; they survive a restart of the server. */
struct sl_upload;
/* How many bytes of the blob have come so far; 0 when none. */
int sl_upload_offset(struct sl_store *store, const char *sha256, int64_t *ret_offset,
                     struct sl_err *err);
/* The next piece of a blob of `total` bytes begins at offset, which must be what has come so far, or
 * 0 to begin anew: else SL_CONFLICT. Who was writing to it before can write no more. */
int sl_upload_begin(struct sl_store *store, const char *sha256, int64_t offset, int64_t total,
                    struct sl_upload **ret_upload, struct sl_err *err);
/* SL_CONFLICT: another piece was begun meanwhile. SL_SPEC: more than total. */
int sl_upload_write(struct sl_upload *u, const void *data, size_t len, struct sl_err *err);
/* Frees u. *ret_offset: what has come; with all of it *ret_done, and it is a blob, durably. SL_DATA:
 * its digest is another one, and nothing is left of it. */
int sl_upload_end(struct sl_upload *u, bool *ret_done, int64_t *ret_offset, struct sl_err *err);
void sl_upload_abort(struct sl_upload *u); /* keeps what has come; NULL-safe */

/* ---- manifests ------------------------------------------------------------------------------- */

/* Reads a manifest blob, checks its form, and that every file's blob is there with the size it
 * names; collections leave all of them for SL_STORE_HOLD_S. ret_problems (may be NULL) gets [{"path": "/files/3", "detail"}, ...] when the answer is
 * SL_SPEC: an exception to "outputs untouched". SL_NOTFOUND: no such blob. */
int sl_store_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                      json_t **ret_problems, struct sl_err *err);
/* owner: a run's id or another name. Pinning twice is fine; so is unpinning what is not pinned. */
int sl_store_pin(struct sl_store *store, const char *sha256, const char *owner, struct sl_err *err);
int sl_store_unpin(struct sl_store *store, const char *sha256, const char *owner,
                   struct sl_err *err);

/* ---- versions -------------------------------------------------------------------------------- */

/* Publishing from a run goes: manifest, pin, allocate, [the queue's script: lease held, not
 * cancelled], commit, unpin; release instead of commit when the script refuses. A replay after a
 * crash starts at commit, with the version that the script recorded.
 *
 * allocate gives the number that a commit of this manifest would get: the marker's when (run,
 * output) was published before, the newest version's when that has the same manifest, else a new
 * number which stays reserved until commit or release (or until this process ends). run and output
 * may both be NULL. aliases (may be NULL) are those of the commit: SL_CONFLICT when the artifact would
 * have more than SL_STORE_MAX_ALIASES. */
int sl_store_allocate(struct sl_store *store, const char *name, const char *manifest,
                      const char *run, const char *output, const json_t *aliases, int *ret_number,
                      struct sl_err *err);
void sl_store_release(struct sl_store *store, const char *name, int number);

struct sl_commit {
    const char *name;
    const char *manifest; /* its blobs are verified again */
    int number;           /* from allocate; -1: as allocate would say */
    const char *run;      /* with output: the marker; both or neither */
    const char *output;
    const json_t *aliases; /* list of names to point at this version; may be NULL */
    const char *created_by; /* may be NULL */
    const char *project;    /* whose the artifact becomes with its first version, later ones inherit; and the run's,
                             * whose storage it counts for */
    const json_t *facts;   /* of the run (artifacts/lineage.h), kept with its marker; may be NULL */
};
/* Creates the version, or finds that it is there: by marker (then neither aliases nor anything else
 * changes, whatever the manifest says: a run's output is published once), or because the newest
 * version has the same manifest (then the aliases move to it and the marker is written). A number
 * that is taken by other content (a reservation lost in a crash) is not overwritten: the next free
 * one is used, so the record tells the version, not the argument. ret_created (may be NULL): a new
 * version. Too many aliases are SL_CONFLICT, but not of a run's output: that was promised. */
int sl_store_commit(struct sl_store *store, const struct sl_commit *c, json_t **ret_record,
                    bool *ret_created, struct sl_err *err);
/* The version that (run, output) became. SL_NOTFOUND. */
int sl_store_published(struct sl_store *store, const char *run, const char *output,
                       json_t **ret_record, struct sl_err *err);

/* version: "v3", "latest", an alias, or, where the artifact has none of that name, a stage of the registered model
 * `name` (registry.h). SL_NOTFOUND names what is missing. */
int sl_store_resolve(struct sl_store *store, const char *name, const char *version,
                     json_t **ret_record, struct sl_err *err);
/* [{"name", "latest": "v3", "versions": 4, "aliases": {"candidate": "v3"}, "project" when it has one}, ...] by name. */
int sl_store_list(struct sl_store *store, json_t **ret_list, struct sl_err *err);
/* {"name", "latest", "aliases": {...}, "versions": [records without files, newest first]}.
 * SL_NOTFOUND. */
int sl_store_artifact(struct sl_store *store, const char *name, json_t **ret_artifact,
                      struct sl_err *err);
/* version as in resolve. The name must not be `latest` or look like a version. */
int sl_store_alias(struct sl_store *store, const char *name, const char *alias, const char *version,
                   struct sl_err *err);
/* The same; by: who asked. {"candidate": {"version": "v3", "created_by", "created": time}} in
 * sl_store_artifact's "alias_moves" tells of each alias who moved it last. */
int sl_store_alias_by(struct sl_store *store, const char *by, const char *name, const char *alias,
                      const char *version, struct sl_err *err);
/* Whose an artifact is: "" when everybody's. SL_NOTFOUND. */
int sl_store_project(struct sl_store *store, const char *name, char *ret_project, size_t size,
                     struct sl_err *err);
/* SL_NOTFOUND. */
int sl_store_unalias(struct sl_store *store, const char *name, const char *alias,
                     struct sl_err *err);
/* Calls fn for every version's record, as in sl_store_artifact (with aliases, without files), until it
 * fails. A read model is built of this. */
int sl_store_each(struct sl_store *store,
                  int (*fn)(void *arg, const json_t *record, struct sl_err *err), void *arg,
                  struct sl_err *err);

/* ---- deleting -------------------------------------------------------------------------------- */

/* Says whether a version is in use: SL_CONFLICT with who uses it, or 0. It must not change versions. */
typedef int sl_store_guard_fn(void *arg, const char *name, int number, struct sl_err *err);
/* Every guard is asked before a version is deleted. Before other threads use the store. */
int sl_store_add_guard(struct sl_store *store, sl_store_guard_fn *fn, void *arg,
                       struct sl_err *err);
/* Deletes a version. Its number is never used again, and its blobs go with the next collection unless others
 * have them too. SL_CONFLICT: an alias points at it, a
 * registered model holds it, or a guard says that it is in use. *ret_gone: what is
 * left, with "deleted". */
int sl_store_delete(struct sl_store *store, const char *name, const char *version,
                    json_t **ret_gone, struct sl_err *err);
/* [{"id", "project", "bytes"}, ...] of deleted versions that runs had made, and that were not settled yet. */
int sl_store_refunds(struct sl_store *store, json_t **ret_refunds, struct sl_err *err);
int sl_store_refund_done(struct sl_store *store, const char *id, struct sl_err *err);

/* ---- collecting and verifying ---------------------------------------------------------------- */

struct sl_collect {
    int64_t grace_us;   /* blobs that came, or were asked for by an upload, in this time are left */
    int64_t pin_max_us; /* pins older than this are dropped; 0: none */
    /* Adds digests of manifests that are in use besides versions and pins; asked only when something
     * would be removed, after the store was looked through. May be NULL. */
    int (*live)(void *arg, json_t *manifests, struct sl_err *err);
    void *arg;
};
/* Removes the blobs that no version, pin or live manifest has, and leftovers of uploads. Safe beside
 * everything else: it may be killed, and a version that is made meanwhile keeps its blobs. A damaged
 * store is not collected (SL_DATA says what is damaged). SL_CONFLICT: another one is under way. *ret_report:
 * {"blobs", "bytes": what stays, "removed_blobs", "removed_bytes"}. */
int sl_store_collect(struct sl_store *store, const struct sl_collect *how, json_t **ret_report,
                     struct sl_err *err);
/* Looks whether versions, aliases and markers fit each other and every blob of a version is there, with its
 * size; hash: with its bytes too. *ret_report: {"versions", "blobs", "bytes", "problems": [text, ...]},
 * at most SL_VERIFY_PROBLEMS_MAX of them, "problems_total". stop (may be NULL) ends it with SL_CANCELLED. */
#define SL_VERIFY_PROBLEMS_MAX 100
int sl_store_verify(struct sl_store *store, bool hash, bool (*stop)(void *arg), void *arg,
                    json_t **ret_report, struct sl_err *err);

#endif
