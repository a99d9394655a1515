/* What `softlaunch artifact get` does with the files of a version. */
#ifndef SL_CLI_ARTIFACT_GET_H
#define SL_CLI_ARTIFACT_GET_H
#include "artifacts/transfer.h"
#include <jansson.h>

/* Downloads the files of a record, or the one called `only` (""), below dir, by way of part, which lies on the same file
 * system. SL_CONFLICT, before anything comes: a file is there with other content; with the same it stays. */
int artifact_get_files(const struct sl_transfer *t, const struct sl_cache *part, const json_t *record,
                       const char *only, const char *dir, struct sl_err *err);

#endif
