/* Who made what from what: runs, the versions that they used, and those that they made.
 *
 * The truth is a store's markers (one for each output that a run has published: see store.h), which hold what the
 * publishing agent said of the run, its facts:
 *   {"name", "project", "spec": sha256, "code": version of softlaunch, "fingerprint": what the bits depend on,
 *    "resumed", "origin", "inputs": [{"role": "model" | "train" | "validation" | "test" | "restore", "ref",
 *    "name" and "version" of an artifact, "sha256", "bytes"}], "inputs_left_out": true when they were too many}
 * The graph's index lives in memory, made of the markers by the first question. All functions block, and may be called
 * from any thread. */
#ifndef SL_ARTIFACTS_LINEAGE_H
#define SL_ARTIFACTS_LINEAGE_H
#include "artifacts/store.h"

#define SL_FACTS_MAX_BYTES (96u << 10) /* as compact JSON */
#define SL_LINEAGE_NODES_MAX 500       /* of one answer */

/* The form that facts must have to be kept. SL_SPEC. */
int sl_facts_check(const json_t *facts, struct sl_err *err);
/* What is known of the run that published this output: its facts, with "artifact" and "version". SL_NOTFOUND. */
int sl_store_facts(struct sl_store *store, const char *run, const char *output, json_t **ret_facts,
                   struct sl_err *err);
/* Everything that a version was made from, and everything that was made from it, nearest first:
 *   {"root": id, "nodes": [{"id", "kind": "artifact", "label": "name:v3", "name", "version"} or
 *                          {"id", "kind": "run", "label", "run", "spec", "code", "fingerprint"} or
 *                          {"id", "kind": "source" (of no store), "label": the reference, "sha256"}],
 *    "edges": [{"from", "to", "role"}], "truncated": true when there are more than SL_LINEAGE_NODES_MAX nodes}
 * role: the input's, or the output's name. A node that was deleted has "deleted": true. SL_NOTFOUND. */
int sl_store_lineage(struct sl_store *store, const char *name, const char *version,
                     json_t **ret_graph, struct sl_err *err);

#endif
