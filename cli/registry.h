/* Parts of commands about where artifacts come from and what they are for. */
#ifndef SL_CLI_REGISTRY_H
#define SL_CLI_REGISTRY_H
#include "artifacts/api.h"
#include <stdbool.h>

/* `softlaunch artifact lineage NAME:VERSION`: prints it. */
int cli_lineage(struct sl_api *api, const char *ref, bool json, struct sl_err *err);

#endif
