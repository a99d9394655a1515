/* What the checkpoint*.c files share; not for others. */
#ifndef SL_ENGINE_CHECKPOINT_PARTS_H
#define SL_ENGINE_CHECKPOINT_PARTS_H
#include "engine/checkpoint.h"
#include <jansson.h>

/* SL_DATA for a number that is not finite, a member that is missing or of another type. New reference. */
int sl_state_to_json(const struct sl_train_state *s, json_t **ret_json, struct sl_err *err);
int sl_state_from_json(const json_t *json, struct sl_train_state *ret_state, struct sl_err *err);
/* A sentence when they differ, else "". */
void sl_fingerprint_compare(const struct sl_fingerprint *then, const struct sl_fingerprint *now,
                            char ret_warning[SL_CHECKPOINT_WARNING_MAX]);

#endif
