/* Parts of commands about where artifacts come from, and about runs that are made again. */
#ifndef SL_CLI_REGISTRY_H
#define SL_CLI_REGISTRY_H
#include "artifacts/api.h"
#include <stdbool.h>

/* `softlaunch artifact lineage NAME:VERSION`: prints it. */
int cli_lineage(struct sl_api *api, const char *ref, bool json, struct sl_err *err);
/* `softlaunch enqueue --job NAME PARAMETER=VALUE ...`; the reply is as that of a spec. */
int cli_enqueue_job(struct sl_api *api, const char *name, int n, char **given, const char *key,
                    json_t **ret_reply, struct sl_err *err);
/* `softlaunch runs rerun RUN`: prints the new run's id, or with wait, at its end, what differs. */
int cli_rerun(struct sl_api *api, const char *run, const char *key, bool wait, bool json, struct sl_err *err);
int cli_compare_runs(struct sl_api *api, const char *first, const char *second, bool json, struct sl_err *err);
/* `softlaunch runs metrics RUN`: a line for every step, oldest first: CSV with a header, or JSON lines. */
int cli_run_metrics(struct sl_api *api, const char *run, bool csv, struct sl_err *err);
/* As event files under dir/RUN, and prints that. */
int cli_run_tensorboard(struct sl_api *api, const char *run, const char *dir, struct sl_err *err);

#endif
