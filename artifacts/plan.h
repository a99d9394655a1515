/* What `softlaunch transfer` carries out: fetching a run's inputs, pushing its outputs.
 *
 * Fetch plan: {"server": URL, "cache": dir, "allow_paths": [dir, ...], "run_dir": dir, "items": [...]}; items:
 *   {"ref": "name", "name:v3", "name:alias", each with /file | "http(s)://..." | "/abs/path" | "file:///...",
 *    "sha256": expected (optional), "dest": path below run_dir, "unpack": bool}
 *   {"blob": sha256, "dest", "unpack"} | {"manifest": sha256, "dest", "unpack"}
 * Each ends up at run_dir/dest (what was there is replaced): one file as a file, several as a folder, a local path
 * as a symbolic link; with "unpack" one tarball as a folder, compared with its manifest's entries.
 * Resolved: [{"ref", "name", "version", "sha256", "bytes", "path"}], in the items' order; sha256 is the file's, of
 * several files their manifest's; name and version are there for artifacts only.
 *
 * Push plan: {"server", "run", "lease", "run_dir", "items": [{"output", "tar": file name, "dir": below run_dir,
 *   "artifact", "aliases" (the last two for publishing)}], "publish": object (optional)}
 * Each dir becomes a tarball blob and a manifest blob. Result: {"manifests": [{"output", "sha256", "bytes", "blob"}],
 *   "reply": the server's answer to the publishing}.
 * With "publish": POST /api/v1/runs/{run}/publish {...publish, "lease", "outputs": [{"output", "artifact",
 *   "aliases", "manifest"}]}; SL_LEASE when the server says that the lease is lost.
 *
 * Blocks. token may be NULL. Errors as in transfer.h and pack.h; SL_DENIED: a local path outside of allow_paths. */
#ifndef SL_ARTIFACTS_PLAN_H
#define SL_ARTIFACTS_PLAN_H
#include "artifacts/watch.h"
#include "base/err.h"
#include <jansson.h>

#define SL_PLAN_MAX_BYTES (1u << 20)
#define SL_PLAN_MAX_ITEMS 256
#define SL_PUBLISH_ROUNDS 5 /* of the API client's own tries */

int sl_plan_fetch(const json_t *plan, const char *token, const struct sl_watch *watch,
                  json_t **ret_resolved, struct sl_err *err);
int sl_plan_push(const json_t *plan, const char *token, const struct sl_watch *watch,
                 json_t **ret_result, struct sl_err *err);

#endif
