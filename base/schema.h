/* A validator for the part of JSON Schema (2020-12) that our schemas use.
 *
 * The schema file is the table that is interpreted; a keyword this code does not know is refused at
 * load, so a schema never promises what is not checked. Known: type, enum, const, properties,
 * required, additionalProperties, minProperties, items, minItems, maxItems, uniqueItems, minLength,
 * maxLength, pattern, minimum, maximum, exclusiveMinimum, exclusiveMaximum, $ref (to "#/$defs/NAME"), $defs,
 * and the annotations $schema, $id, $comment, title, description, default. Patterns are POSIX
 * extended expressions: write only what also means the same in ECMA 262. Immutable after loading;
 * thread-safe. Nothing here blocks. */
#ifndef SL_BASE_SCHEMA_H
#define SL_BASE_SCHEMA_H
#include "base/err.h"
#include <jansson.h>
#include <stddef.h>

#define SL_SCHEMA_MAX_DEPTH 64
#define SL_SCHEMA_MAX_PATTERNS 64
#define SL_SCHEMA_FOUND_MAX 80 /* bytes of a wrong value that are quoted */
#define SL_SCHEMA_PATH_MAX 512 /* bytes of a path; longer ones end in "..." */

struct sl_schema;

/* SL_SPEC for an unknown keyword, a malformed one, or a $ref to nothing; names its place in the
 * schema. */
int sl_schema_load(const char *text, size_t len, struct sl_schema **ret_schema, struct sl_err *err);
void sl_schema_free(struct sl_schema *s);

/* Appends to errors (an array) one object for every violation in value, in document order, until it
 * holds max_errors: {"path", "expected", "found", "message"}, all strings. def names an entry of
 * $defs, or NULL for the whole schema; path is what paths begin with. 0, or SL_NOMEM. */
int sl_schema_validate(const struct sl_schema *s, const char *def, const char *path,
                       const json_t *value, size_t max_errors, json_t *errors, struct sl_err *err);
/* Fills what value lacks with the schema's defaults, recursively; an object that is missing and
 * whose members have defaults is made. value must be valid. */
int sl_schema_fill_defaults(const struct sl_schema *s, const char *def, json_t *value,
                            struct sl_err *err);

/* Appends one error of that form; found may be NULL (the value is missing). For rules beyond a
 * schema. */
int sl_schema_error(json_t *errors, const char *path, const char *expected, const json_t *found,
                    const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* Of n names the one that differs least from key; NULL when key is too long to be a slip. */
const char *sl_schema_nearest(const char *key, const char *const *names, int n);

#endif
