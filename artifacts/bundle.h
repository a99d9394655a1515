/* A tarball of files with their digests: what `softlaunch project export` writes and `import` reads.
 *
 * The last file in it, SHA256SUMS, has a line for each of the others, as sha256sum(1) writes and checks them. A tarball
 * appears under its name whole or not at all. Reading believes nothing: plain files of valid names only, each digest compared.
 * Blocks. SL_DATA: damaged, cut off, or not one. */
#ifndef SL_ARTIFACTS_BUNDLE_H
#define SL_ARTIFACTS_BUNDLE_H
#include "artifacts/watch.h"
#include "base/digest.h"
#include "base/err.h"
#include <stdint.h>

#define SL_BUNDLE_SUMS "SHA256SUMS"
#define SL_BUNDLE_FILES_MAX 10000000

struct sl_bundle;
int sl_bundle_create(const char *path, struct sl_bundle **ret_bundle, struct sl_err *err);
/* sha256: what the file must have. */
int sl_bundle_add(struct sl_bundle *bundle, const char *name, const char *path, const char *sha256, struct sl_err *err);
int sl_bundle_add_text(struct sl_bundle *bundle, const char *name, const char *text, struct sl_err *err);
/* Frees the bundle in every case. */
int sl_bundle_finish(struct sl_bundle *bundle, struct sl_err *err);
void sl_bundle_abort(struct sl_bundle *bundle); /* NULL-safe */

/* Calls fn with each file, which lies at path until fn returns, below dir, which is there. SHA256SUMS comes last: fn is not
 * called with it, and files that only it can vouch for are to be used after sl_bundle_read has returned 0. */
typedef int sl_bundle_fn(void *arg, const char *name, const char *path, int64_t bytes, const char *sha256, struct sl_err *err);
int sl_bundle_read(const char *path, const char *dir, const struct sl_watch *watch, sl_bundle_fn *fn, void *arg,
                   struct sl_err *err);

#endif
