/* The form of a manifest (see store.h): pure checks, used by the server before it takes one and by
 * clients before they believe one. */
#ifndef SL_ARTIFACTS_MANIFEST_H
#define SL_ARTIFACTS_MANIFEST_H
#include "base/err.h"
#include <jansson.h>
#include <stdint.h>

#define SL_PROBLEMS_MAX 50 /* listed; the rest is only counted */

/* Paths valid and unique (no file where another has a folder), digests and sizes well formed, at
 * least one file, limits kept. SL_SPEC: *problems (may be NULL), an array, gets {"path":
 * "/files/3/path", "detail": ...} appended. */
int sl_manifest_check(const json_t *manifest, json_t *problems, struct sl_err *err);
/* Sum of the files' bytes of a checked manifest. */
int64_t sl_manifest_bytes(const json_t *manifest);
/* The file's object (borrowed) or NULL. */
json_t *sl_manifest_file(const json_t *manifest, const char *path);
/* Appends a problem unless there are SL_PROBLEMS_MAX. problems may be NULL. */
void sl_problem_add(json_t *problems, const char *path, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
