/* What `softlaunch transfer` carries out: fetching a run's inputs, pushing its outputs.
 *
 * Fetch plan:
 *   {"server": URL, "cache": dir, "cache_bytes": its limit (optional, -1: sl_cache_evict's), "allow_paths": [dir, ...], "run_dir": dir, "items": [...]}
 * Its items, each to be found at run_dir/dest afterwards (what was there is replaced):
 *   {"ref", "sha256": expected (optional), "dest", "unpack": bool or "tarball"}, where ref is
 *      name, name:v3, name:alias or project/name:alias, each with /file behind it or not
 *      http(s)://..., s3://, gs:// and hf:// as artifacts/source.h has them
 *      /abs/path or file:///abs/path, below one of allow_paths
 *   {"blob": sha256, "dest", "unpack"}
 *   {"manifest": sha256, "dest", "unpack"}: a manifest with "inputs", a checkpoint's, says of which version and sha256 the
 *      items behind it are that have their dests, whatever their aliases point at by now
 * One file becomes a file, several a folder, a local path a symbolic link; with "unpack" a tarball
 * becomes a folder, compared with its manifest's entries; "unpack": "tarball" does so for a file that is
 * called one, and leaves others as they are. Resolved, in the items' order:
 *   [{"ref", "name", "version", "sha256", "bytes", "path"}]
 * sha256 is the file's, of several files their manifest's; name and version: of artifacts only.
 *
 * Push plan:
 *   {"server", "run", "lease", "run_dir", "publish": object (optional),
 *    "items": [{"output", "tar": file name, "dir": below run_dir,
 *               "artifact", "aliases": the last two for publishing,
 *               "inputs": for the manifest (sl_plan_inputs; optional)}]}
 * Each dir becomes a tarball blob and a manifest blob. Result:
 *   {"manifests": [{"output", "sha256", "bytes", "blob"}], "reply": of the publishing}
 * With "publish" it ends in POST /api/v1/runs/{run}/publish
 *   {...publish, "lease", "outputs": [{"output", "artifact", "aliases", "manifest"}]}
 * SL_LEASE: the server says that the lease is lost.
 *
 * SOFTLAUNCH_BANDWIDTH limits both (pace.h). Blocks. token may be NULL. Errors as in transfer.h and pack.h; SL_DENIED: a local path outside of
 * allow_paths. */
#ifndef SL_ARTIFACTS_PLAN_H
#define SL_ARTIFACTS_PLAN_H
#include "artifacts/watch.h"
#include "base/err.h"
#include <jansson.h>

#define SL_PLAN_MAX_BYTES (1u << 20)
#define SL_PLAN_MAX_ITEMS 256
#define SL_PLAN_REF_BYTES 1024
#define SL_PUBLISH_ROUNDS 5 /* of the API client's own tries */

int sl_plan_fetch(const json_t *plan, const char *token, const struct sl_watch *watch,
                  json_t **ret_resolved, struct sl_err *err);
/* What a fetch has resolved, as a checkpoint's manifest keeps it for the attempts that go on from there:
 * [{"path", "sha256", "name" and "version" of an artifact}]. New reference, or NULL: out of memory. */
json_t *sl_plan_inputs(const json_t *resolved);
/* What such a list says of the item with this dest; "ref" becomes one of exactly that version. ref and sha256 stay as they are
 * when it says nothing. ret_text: room for the new reference. SL_DATA: the list is not as it should be. */
int sl_plan_pinned(const json_t *inputs, const char *dest, const char **ref, const char **sha256,
                   char ret_text[SL_PLAN_REF_BYTES], struct sl_err *err);
int sl_plan_push(const json_t *plan, const char *token, const struct sl_watch *watch,
                 json_t **ret_result, struct sl_err *err);

#endif
