/* Job specs: one validator for the command line, the server and (the config part) the worker.
 *
 * A spec is JSON by base/job.schema.json plus rules that no schema can say: sums, counts, names
 * that must agree. All of it needs neither data nor model. Nothing here blocks. Thread-safe. */
#ifndef SL_BASE_SPEC_H
#define SL_BASE_SPEC_H
#include "base/buf.h"
#include "base/err.h"
#include <jansson.h>

#define SL_SPEC_API "softlaunch/v1"
#define SL_SPEC_API_VERSION 1
#define SL_SPEC_FILE_MAX (1u << 20) /* bytes; for whoever reads one */
#define SL_SPEC_MAX_ERRORS 100      /* reported at once */
#define SL_SPEC_MAX_SPLITS 16       /* virtual_token_splits of one task */

/* Judges a whole spec. Returns 0 whenever it could judge; *ret_errors is then a new array, empty
 * when the spec is valid, else of objects of four strings:
 *
 *     {"path": "config.model.optim.lr", "expected": "a number above 0", "found": "\"fast\"",
 *      "message": "expected a number above 0, found \"fast\""}
 *
 * path is "" for the spec itself; array elements are "[2]". message says it all in one line,
 * without the path; an unknown key's message names the nearest known key. SL_NOMEM. */
int sl_spec_validate(const json_t *spec, json_t **ret_errors, struct sl_err *err);
/* The same for the config alone; paths begin with "config". */
int sl_spec_validate_config(const json_t *config, json_t **ret_errors, struct sl_err *err);
/* Appends one line an error: "  config.model.optim.lr: message". */
int sl_spec_errors_text(const json_t *errors, struct sl_buf *text);

/* Sets one key from the command line: "key=value". The key is a dotted path, array elements as ".0"
 * or "[0]"; one that starts with a section of config ("model.", "trainer.", "exp_manager.",
 * "inference.") is relative to config; "model=..." alone is the spec's model. Missing objects on
 * the way are made; an index may be one past the end. The value is JSON, or else what
 * sl_yaml_value (base/yaml.h) makes of it: [a, b], True, a string as it stands. Hydra's "+key=value"
 * and "++key=value" are the same, "~key" removes. Validates nothing. SL_SPEC, SL_NOMEM; spec is then
 * as it was. */
int sl_spec_apply_override(json_t *spec, const char *key_value, struct sl_err *err);
/* The same where the sections stand at the top. */
int sl_config_apply_override(json_t *config, const char *key_value, struct sl_err *err);

/* A copy of a valid spec (or of a config) with the schema's defaults filled in. New reference. */
int sl_spec_with_defaults(const json_t *spec, json_t **ret_spec, struct sl_err *err);
int sl_spec_config_with_defaults(const json_t *config, json_t **ret_config, struct sl_err *err);

#endif
