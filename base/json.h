/* jansson with our errors and limits. */
#ifndef SL_BASE_JSON_H
#define SL_BASE_JSON_H
#include "base/buf.h"
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_JSON_FILE_MAX (16u << 20)
#define SL_JSON_DEPTH_MAX 128 /* of nesting: what walks a value recurses on a thread's small stack */

/* Parses a whole text; names `what` and the line in errors. Duplicate keys and deeper nesting than
 * SL_JSON_DEPTH_MAX are refused. New reference. */
int sl_json_parse(const char *text, size_t len, const char *what, json_t **ret_json,
                  struct sl_err *err);
int sl_json_read(const char *path, size_t max_bytes, json_t **ret_json, struct sl_err *err);
/* Durable (sl_file_write), indented. */
int sl_json_write(const char *path, const json_t *json, struct sl_err *err);
/* Compact, keys sorted: the form that is hashed and sent. Heap string, caller frees; NULL when out of memory. */
char *sl_json_dump(const json_t *json);

/* Lookups by dotted path ("model.optim.lr"); a missing or null value, or another type, gives the default. 2.0 is an
 * integer too, as JSON Schema has it. */
const json_t *sl_json_get(const json_t *json, const char *path);
const char *sl_json_str(const json_t *json, const char *path, const char *otherwise);
int64_t sl_json_int(const json_t *json, const char *path, int64_t otherwise);
double sl_json_num(const json_t *json, const char *path, double otherwise);
bool sl_json_bool(const json_t *json, const char *path, bool otherwise);

#endif
