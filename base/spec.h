/* Job specs: one validator for the command line, the server and (the config part) the worker.
 *
 * A spec is JSON by base/job.schema.json plus rules that no schema can say: sums, counts, names
 * that must agree. All of it needs neither data nor model. Nothing here blocks. Thread-safe. */
#ifndef SL_BASE_SPEC_H
#define SL_BASE_SPEC_H
#include "base/buf.h"
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>

#define SL_SPEC_API "softlaunch/v1"
#define SL_SPEC_API_VERSION 1
#define SL_SPEC_FILE_MAX (1u << 20) /* bytes; for whoever reads one */
#define SL_SPEC_MAX_ERRORS 100      /* reported at once */
#define SL_SPEC_MAX_SPLITS 16       /* virtual_token_splits of one task */
#define SL_SPEC_MAX_TRIALS 32       /* of one run */
#define SL_SPEC_TRIAL_NAME_MAX 64   /* bytes, NUL included */

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

/* Whether a run may be given a variable of this name: capitals, digits and `_`, and none that changes how programs are
 * found, loaded or led (PATH, LD_..., SOFTLAUNCH_...). NULL is not. */
bool sl_spec_env_name(const char *name);

/* A copy of a valid spec (or of a config) with the schema's defaults filled in. New reference. */
int sl_spec_with_defaults(const json_t *spec, json_t **ret_spec, struct sl_err *err);
int sl_spec_config_with_defaults(const json_t *config, json_t **ret_config, struct sl_err *err);

/* ---- trials: a run whose spec has "trials" trains all of them at once over its one model, each as a
 * run of its own: {"name": "lr-3e-4", "overrides": {"model.optim.lr": 3e-4}, "tasks": ["category"]}.
 * overrides change keys of the config, and may name those that sl_spec_trial_keys lists ("#" stands
 * for an index); tasks (all, when left out) are the templates that the trial trains. */

/* The config of one trial: a copy of the run's, cut to the trial's tasks, then changed by its
 * overrides. Validates nothing but the keys' form. SL_SPEC, SL_NOMEM. New reference. */
int sl_spec_trial_config(const json_t *config, const json_t *trial, json_t **ret_config,
                         struct sl_err *err);
/* Appends to errors (an array) what is wrong with a list of trials beside a valid config: names, keys,
 * and each trial's whole config; paths begin with "trials". SL_NOMEM. */
int sl_spec_check_trials(const json_t *config, const json_t *trials, json_t *errors,
                         struct sl_err *err);
const char *const *sl_spec_trial_keys(int *ret_n);

#endif
