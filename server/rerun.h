/* The same run again: its spec with every input pinned to what it was, and what two runs have in common. */
#ifndef SL_SERVER_RERUN_H
#define SL_SERVER_RERUN_H
#include "base/err.h"
#include <jansson.h>

#define SL_RERUN_OUTPUT "prompts" /* the output that holds the prompt tables */

/* A copy of a spec whose references name the versions and digests that were used (facts.inputs). It moves no alias, has
 * no schedule and no dedupe key. SL_CONFLICT: facts and spec do not fit. */
int sl_rerun_pin(const json_t *spec, const json_t *facts, json_t **ret_spec, struct sl_err *err);

/* What two results have in common. Each facts as sl_store_facts, record as sl_store_resolve give them:
 *   {"same": every prompt table has the same bytes, "tables": [{"path", "was", "is"} (sha256; null: not there)],
 *    "differences": [{"what": "threads", "was", "is"}]} of what the bits depend on: fingerprint, spec, inputs, resumed. */
json_t *sl_rerun_compare(const json_t *facts, const json_t *record, const json_t *other_facts,
                         const json_t *other_record);

#endif
