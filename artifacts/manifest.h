/* The form of a manifest (see store.h): pure checks, used by the server before it takes one and by
 * clients before they believe one. */
#ifndef SL_ARTIFACTS_MANIFEST_H
#define SL_ARTIFACTS_MANIFEST_H
#include "base/digest.h"
#include "base/err.h"
#include <jansson.h>
#include <stdint.h>

#define SL_PART_BYTES (INT64_C(16) << 20)
#define SL_PROBLEMS_MAX 50 /* listed; the rest is only counted */

/* Paths valid and unique (no file where another has a folder), digests and sizes well formed, at
 * least one file, limits kept. SL_SPEC: *problems (may be NULL), an array, gets {"path":
 * "/files/3/path", "detail": ...} appended. */
int sl_manifest_check(const json_t *manifest, json_t *problems, struct sl_err *err);
/* Sum of the files' bytes of a checked manifest. */
int64_t sl_manifest_bytes(const json_t *manifest);
/* A file's digest and, when it has more than one part of SL_PART_BYTES, the list of its parts'
 * digests
 * ("parts" of a manifest's file; else NULL), in one reading. ret_bytes may be NULL. Blocks. */
int sl_manifest_digests(const char *path, char ret_sha256[SL_SHA256_HEX + 1], int64_t *ret_bytes,
                        json_t **ret_parts, struct sl_err *err);
/* The file's object (borrowed) or NULL. */
json_t *sl_manifest_file(const json_t *manifest, const char *path);
/* Appends a problem unless there are SL_PROBLEMS_MAX. problems may be NULL. */
void sl_problem_add(json_t *problems, const char *path, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
