/* Keeping a token of some projects inside them, where a route cannot tell by its path alone.
 *
 * An artifact belongs to the project of its first version; one without a project is everybody's to
 * read, and for who sees all projects to change. What lies outside of a scope is answered as if it
 * were not there. */
#ifndef SL_SERVER_SCOPE_H
#define SL_SERVER_SCOPE_H
#include "artifacts/store.h"
#include "server/http.h"

/* The project that a list or something new is about: *project when it is inside the scope, else,
 * when none is named, the only one there is. NULL stays NULL for who sees all. False: it has
 * answered. */
bool sl_scope_project(struct sl_http_req *req, const char **project);
/* Whether the caller may add a version to an artifact, there or new; asked: the project of a new
 * one, may be NULL. *ret_project: that, NULL for a shared one. False: it has answered. */
bool sl_scope_artifact(struct sl_http_req *req, struct sl_store *store, const char *name,
                       const char *asked, const char **ret_project);
/* Whether a spec only reads what who asks may read and writes where they may write. SL_NOTFOUND,
 * SL_DENIED, with the spec's key in front. */
int sl_scope_spec(const struct sl_identity *who, struct sl_store *store, const json_t *spec,
                  struct sl_err *err);
/* The project of a version that may be read: "" for everybody's. SL_NOTFOUND. */
int sl_scope_version(const struct sl_identity *who, struct sl_store *store, const char *name, const char *version,
                     char ret_project[SL_HTTP_PROJECT_MAX + 1], struct sl_err *err);
/* Whether a version of this project may be linked to a registered model, there or new. *ret_project: whose a new one
 * is, NULL: as sl_registry_link says. It may point to artifact_project. SL_DENIED. */
int sl_scope_model(const struct sl_identity *who, struct sl_store *store, const char *model,
                   const char *artifact_project, const char **ret_project, struct sl_err *err);
/* Takes out of a graph (artifacts/lineage.h) what is not seen, and what hung on it alone; "hidden": true then.
 * SL_NOTFOUND: its root is not seen. */
int sl_scope_lineage(const struct sl_identity *who, struct sl_store *store, json_t *graph, struct sl_err *err);
/* For sl_http_set_scope; arg is the store. */
int sl_scope_project_of_model(void *store, const char *name, char ret_project[SL_HTTP_PROJECT_MAX + 1],
                              struct sl_err *err);
int sl_scope_project_of_artifact(void *store, const char *name,
                                 char ret_project[SL_HTTP_PROJECT_MAX + 1], struct sl_err *err);

#endif
