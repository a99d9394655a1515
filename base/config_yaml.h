/* NeMo's prompt learning YAML as a job spec.
 *
 * The file holds what the spec's config holds (trainer, exp_manager, model, inference), at the top.
 * What becomes what:
 *
 *     name                          the spec's name (in lower case, other characters than a-z 0-9 .
 * _ - become -), and outputs.artifact unless the file has outputs model.language_model_path model:
 * a path, an artifact or a URL model.data.train_ds, ...      datasets.train, .validation, .test;
 * one file may stand without a list exp_manager.explicit_log_dir, .exp_dir, .name    the run
 * directory of a run by hand project, queue, priority, resources, retry, outputs, datasets    the
 * same keys of the spec the rest                      config
 *
 * Overrides are applied first (spec.h), then references are resolved (refs.h). A value "???" is one
 * that must be given. null means absent, but for max_epochs (with max_steps: no limit) and
 * gradient_clip_val (none). optim.lr is NeMo's 1e-4 when absent. 16-mixed, bf16-mixed and the like
 * are bf16. Templates of tasks that are in neither new_tasks nor existing_tasks, and prompt_tuning
 * where no task is prompt tuned, are left out. NeMo's keys without a meaning here are left out and
 * listed in a note; those that would change the result when set must be null. */
#ifndef SL_BASE_CONFIG_YAML_H
#define SL_BASE_CONFIG_YAML_H
#include "base/err.h"
#include "base/file.h"
#include <jansson.h>
#include <stdbool.h>

#define SL_NEMO_LR 1e-4
#define SL_NEMO_EXP_DIR "nemo_experiments"

struct sl_config_yaml_options {
    char *const *overrides; /* "key=value" */
    int n_overrides;
    bool allow_unknown; /* unknown keys become notes */
    bool
        config_only; /* spec is the config alone, which keeps model and files; those may be "???" */
};

struct sl_config_yaml {
    json_t *spec;
    json_t *errors; /* as sl_spec_validate's, paths as in the file; empty: spec is valid */
    json_t *notes;  /* strings for a person */
    char run_dir[SL_PATH_MAX]; /* for a run by hand: explicit_log_dir, or exp_dir
                                  (nemo_experiments)/name */
};

/* Reads and judges a file; the caller releases *ret. Blocks. SL_SPEC: no YAML, no mapping, a job
 * spec, a wrong override or reference (what is wrong with keys and values is in errors);
 * SL_NOTFOUND, SL_IO, SL_NOMEM. */
int sl_config_yaml_read(const char *path, const struct sl_config_yaml_options *options,
                        struct sl_config_yaml *ret, struct sl_err *err);
void sl_config_yaml_release(struct sl_config_yaml *c); /* NULL-safe */

#endif
