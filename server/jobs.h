/* Jobs: a finished run's spec, with its inputs pinned to their digests, and parameters that whoever enqueues it may set.
 *
 *   jobs/<name>/v<N>.json   one version, never changed; durable; the newest is what is enqueued
 *   {"job", "version": N, "created", "from": run, "code": version of softlaunch, "inputs": as in artifacts/lineage.h,
 *    "spec": a job spec, "parameters": {"lr": {"path": "model.optim.lr", "type": "number", "minimum", "maximum",
 *                                              "default", "description"}}}
 * type: number, integer (both: minimum and maximum required), choice ("choices": texts), text ("max_length"). path: a key
 * of the spec as on enqueue's command line. default: what the spec says. Functions block; may be called from any thread. */
#ifndef SL_SERVER_JOBS_H
#define SL_SERVER_JOBS_H
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>

#define SL_JOB_MAX_BYTES (1u << 20)
#define SL_JOB_PARAMETERS_MAX 64
#define SL_JOB_CHOICES_MAX 100
#define SL_JOB_TEXT_MAX 4096 /* characters of a text parameter */
#define SL_JOBS_MAX 10000

struct sl_jobs;
int sl_jobs_open(const char *data_dir, struct sl_jobs **ret_jobs, struct sl_err *err);
void sl_jobs_close(struct sl_jobs *jobs); /* NULL-safe */

/* A new version of the job in `content` (without job, version, created), unless the newest has the same content.
 * ret_job: as it is stored. */
int sl_jobs_put(struct sl_jobs *jobs, const char *name, const json_t *content, json_t **ret_job,
                struct sl_err *err);
/* Takes in one version of a job as another server has stored it, unless it is here. SL_CONFLICT: that number is here with other
 * content. SL_SPEC: not a job. */
int sl_jobs_import(struct sl_jobs *jobs, const json_t *job, bool *ret_changed, struct sl_err *err);
/* version -1: the newest. SL_NOTFOUND. */
int sl_jobs_show(struct sl_jobs *jobs, const char *name, int version, json_t **ret_job,
                 struct sl_err *err);
/* Whose a job is: the project of its spec. Borrowed. */
const char *sl_job_project(const json_t *job);
/* The newest of each, without spec and inputs but with "project", by name. */
int sl_jobs_list(struct sl_jobs *jobs, json_t **ret_list, struct sl_err *err);

/* Judges parameters beside their spec, and gives each its default: *ret_parameters. Appends {"path", "detail"} to errors
 * for what is wrong. SL_NOMEM. */
int sl_job_parameters(const json_t *parameters, const json_t *spec, json_t **ret_parameters,
                      json_t *errors, struct sl_err *err);
/* lr, max_steps and seed, bounded around what the spec says: for a job that is given none. New reference. */
json_t *sl_job_usual_parameters(const json_t *spec);
/* The job's spec with these values ({"lr": 1e-3}) in it and its origin. As sl_job_parameters for what is wrong: an unknown
 * parameter, another type, a value out of bounds. */
int sl_job_spec(const json_t *job, const json_t *values, json_t **ret_spec, json_t *errors,
                struct sl_err *err);

#endif
