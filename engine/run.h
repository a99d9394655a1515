/* A run directory, as the agent (or `softlaunch train --spec`) prepares it:
 *   run.json      what to do: {"run", "attempt", "model", "datasets": {"train": [...], "validation": [...],
 *                 "test": [...]}, "config": {...}}; paths, model.restore_path too, are relative to the directory
 *                 or absolute. With "trials" (base/spec.h) these are trained together, else the config alone
 *   checkpoint/   the newest complete checkpoint, if there is one (checkpoint.h)
 *   out/          what the run leaves: prompt_table.safetensors, .npy and .nemo (table_forms.h), peft/TASK/,
 *                 predictions.jsonl, metrics.json; the same in out/trials/NAME/ for each of several trials */
#ifndef SL_ENGINE_RUN_H
#define SL_ENGINE_RUN_H
#include "base/config_yaml.h"
#include "base/file.h"
#include "engine/config.h"

#define SL_RUN_MAX_FILES 256 /* of one split */

struct sl_run_trial {
    char name[SL_SPEC_TRIAL_NAME_MAX]; /* "": the run is no list of trials */
    char out[SL_PATH_MAX];             /* its results: DIR/out, DIR/out/trials/NAME */
    json_t *json;                      /* its whole config */
    struct sl_config config;
    char config_digest[65]; /* sha256 of json: a checkpoint of another config is refused */
};

struct sl_run {
    char dir[SL_PATH_MAX];
    char id[128]; /* "" by hand */
    char *model;  /* absolute or relative to the working directory: dir is already in front */
    struct sl_strings train, validation, test;
    struct sl_strings tasks; /* of all templates: a trial may train some of them */
    int n_trials; /* at least one; they agree in every key that a trial may not set */
    struct sl_run_trial *trial;
};

/* Reads dir/run.json. SL_SPEC names the key that is wrong or missing; SL_NOTFOUND the file. */
int sl_run_open(const char *dir, struct sl_run *ret_run, struct sl_err *err);
void sl_run_release(struct sl_run *run); /* NULL-safe */
/* Writes dir/run.json from a job spec whose model and datasets are file paths, after applying "key=value"
 * overrides. SL_SPEC lists every error of the spec. */
int sl_run_prepare(const char *dir, const char *spec_path, char *const *overrides, int n_overrides,
                   struct sl_err *err);
/* The same from a YAML configuration that was read from config_path (for messages). */
int sl_run_prepare_yaml(const char *dir, const char *config_path, const struct sl_config_yaml *config,
                        struct sl_err *err);

#endif
