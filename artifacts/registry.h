/* Registered models: a name for a line of versions, and its stages, such as `candidate` and `production`.
 *
 *   registry/<model>.json   {"model", "created", "project" (none: everybody's), "versions": [{"artifact", "version", "linked", "run", "by",
 *                            "made_by", "put_by"}],
 *                            "stages": {"production": {"artifact", "version", "since", "by"}},
 *                            "history": [{"stage", "artifact", "version" (null: taken away), "time", "by"}]}
 * run: the run that linked it, none when a person did; made_by: the run whose output it is; put_by: who brought it when no run did.
 * versions are in the order in which they were linked; a version in a registry is not deleted, unless it is unlinked first. Names of models, and of
 * stages, are names as artifacts have (artifacts/names.h). Durable and atomic: one file a model. All functions block,
 * and may be called from any thread. by (who asked) and run may be NULL. */
#ifndef SL_ARTIFACTS_REGISTRY_H
#define SL_ARTIFACTS_REGISTRY_H
#include "artifacts/store.h"

#define SL_REGISTRY_VERSIONS_MAX 10000 /* of one model */
#define SL_REGISTRY_STAGES_MAX 64
#define SL_REGISTRY_HISTORY_MAX 1000 /* the oldest moves are forgotten */
#define SL_STAGE_CANDIDATE "candidate" /* where `outputs.register` puts a run's output */

struct sl_registry_link {
    const char *artifact, *version; /* version: "v3", "latest" or an alias: resolved now */
    const char *stage;              /* moved to it; NULL: none */
    const char *run, *by;
    const char *project; /* whose a new model is; NULL: whose the artifact is */
};
/* Makes the model if it is new. Linking what is linked moves the stage only. SL_NOTFOUND: no such version. SL_CONFLICT:
 * too many. ret_model (may be NULL) as in show. */
int sl_registry_link(struct sl_store *store, const char *model, const struct sl_registry_link *link,
                     json_t **ret_model, struct sl_err *err);
/* version: "v3". SL_NOTFOUND: it is not linked. SL_CONFLICT: a stage is at it. */
int sl_registry_unlink(struct sl_store *store, const char *model, const char *artifact, const char *version,
                       json_t **ret_model, struct sl_err *err);
/* Takes in what a model has elsewhere (the file, as export gives it): adds versions and stages that are not here, and the history
 * to a model that is new. *kept: text of a stage that stays, heap, or as it was. SL_SPEC, SL_NOTFOUND: a version of it is not in
 * the store. */
int sl_registry_import(struct sl_store *store, const json_t *model, bool *ret_changed, char **kept,
                       struct sl_err *err);
/* SL_NOTFOUND: it has no such stage. */
int sl_registry_unstage(struct sl_store *store, const char *model, const char *stage, const char *by,
                        json_t **ret_model, struct sl_err *err);
/* The file. SL_NOTFOUND. */
int sl_registry_show(struct sl_store *store, const char *model, json_t **ret_model,
                     struct sl_err *err);
/* As sl_store_project. */
int sl_registry_project(struct sl_store *store, const char *model, char *ret_project, size_t size,
                        struct sl_err *err);
/* [{"model", "created", "project" when it has one, "versions": 4, "stages": {...}}, ...] by name. */
int sl_registry_list(struct sl_store *store, json_t **ret_list, struct sl_err *err);
/* *ret_model: a model that holds this version, heap; NULL: none does. For whoever deletes. */
int sl_registry_holder(struct sl_store *store, const char *artifact, int number, char **ret_model,
                       struct sl_err *err);

#endif
