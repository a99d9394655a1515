/* Keys of NeMo's prompt learning YAML that have no meaning here. */
#ifndef SL_BASE_NEMO_KEYS_H
#define SL_BASE_NEMO_KEYS_H
#include "base/buf.h"
#include <jansson.h>

/* Removes them from config, an object whose sections stand at the top. Appends to list, parted by
 * commas, those that are set to anything but null, and to errors (sl_schema_error's form) those
 * that would change the result and are set to anything but null or false. The folders of a run by
 * hand (exp_manager.exp_dir, ...) go without a word. SL_NOMEM. */
int sl_nemo_keys_leave_out(json_t *config, json_t *errors, struct sl_buf *list);

#endif
