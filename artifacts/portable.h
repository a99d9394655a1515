/* A project's records as entries that another store takes in: what `softlaunch project export` and `import` carry.
 *
 *   {"kind": "version", "record": as stored}                        a version; its blobs travel beside
 *   {"kind": "gone", "name", "number", "left": what is left of a deleted version}
 *   {"kind": "marker", "run", "output", "marker": {"name", "number", "facts"}}   who made it of what (lineage.h)
 *   {"kind": "aliases", "name", "aliases": {"candidate": 3}, "moves": {...}}
 *   {"kind": "model", "model": a registered model, cut to the versions above}
 *
 * In this order, so that each finds what it is about. Versions of everybody's artifacts that the project's runs used come along,
 * without aliases. Taking in what is there already changes nothing; what is there is never changed: an alias or a stage that
 * points elsewhere stays, and a version of that number with other content is SL_CONFLICT. Blocks; any thread. */
#ifndef SL_ARTIFACTS_PORTABLE_H
#define SL_ARTIFACTS_PORTABLE_H
#include "artifacts/store.h"

typedef int sl_portable_fn(void *arg, const json_t *entry, struct sl_err *err);
/* Calls fn with each entry. */
int sl_store_export(struct sl_store *store, const char *project, sl_portable_fn *fn, void *arg,
                    struct sl_err *err);
/* *ret_changed: something was new. *ret_kept (may be NULL): text of what stays as it is here although the entry has it otherwise,
 * heap, or NULL. SL_SPEC: no such entry, or of another project; SL_NOTFOUND: a blob is missing. */
int sl_store_import(struct sl_store *store, const char *project, const json_t *entry, bool *ret_changed,
                    char **ret_kept, struct sl_err *err);

#endif
