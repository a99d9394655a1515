/* YAML as JSON values: what OmegaConf (hence NeMo and Hydra) reads from the same text, through
 * libyaml.
 *
 * One document. Plain scalars resolve as PyYAML's safe_load does (YAML 1.1: yes and off are
 * booleans, 010 is 8, 1_000 and 1:30 are integers), with OmegaConf's two changes: 1e-4 is a number,
 * dates are strings. Quoted and block scalars are strings. Not a number and the infinities, which
 * JSON lacks, stay the strings they are written as. Keys become strings as they are written.
 * Aliases are copies; `<<` merges. Tags are refused, and so are duplicate keys, an alias to what is
 * not yet complete, integers beyond 64 bits and everything over the limits. Errors are SL_SPEC and
 * begin with "what:line: ". Nothing here blocks. Thread-safe. */
#ifndef SL_BASE_YAML_H
#define SL_BASE_YAML_H
#include "base/err.h"
#include <jansson.h>
#include <stddef.h>

#define SL_YAML_MAX_BYTES (1u << 20) /* of text */
#define SL_YAML_MAX_DEPTH 64
#define SL_YAML_MAX_COST (16u << 20) /* about the bytes in memory, aliases expanded */

/* New reference; null for an empty document. what names the text in errors. */
int sl_yaml_parse(const char *text, size_t len, const char *what, json_t **ret_json,
                  struct sl_err *err);
/* The same for a file, which may also be JSON. SL_NOTFOUND, SL_IO. */
int sl_yaml_read(const char *path, json_t **ret_json, struct sl_err *err);
/* A value from a command line, as Hydra reads it: an unquoted word is null, true, false (in any
 * case) or a decimal number (3e-4, 1_000), else itself; [a, b], {a: b} and 'quoted' hold such
 * values; what is none of this is a string as it stands. SL_SPEC: not UTF-8, or an integer beyond
 * 64 bits. */
int sl_yaml_value(const char *text, json_t **ret_json, struct sl_err *err);

#endif
