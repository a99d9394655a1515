/* Runs mirrored to MLflow: those whose spec has tracking.mlflow.uri, and with --mlflow URI all the others.
 *
 * A run becomes one of MLflow's when it starts, in the experiment tracking.mlflow.experiment (else its project's name):
 * its configuration as parameters, its metrics as they come (under the names that base/tfevents.h gives), at its end its
 * state, and what it has published as artifacts where MLflow proxies these. Nothing there is ever read back.
 *
 * What is still to be said is in DATA/mlflow.db before its run may leave Redis, and tried for three days. Saying it twice
 * changes nothing: MLflow's run is found by its tag softlaunch.run, parameters are the same, and a metric's point that
 * is there already is not added. Addresses are guarded as those of webhooks (--webhook-allow); --mlflow's own is not.
 * MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, of the server's environment go to --mlflow's only. */
#ifndef SL_SERVER_MLFLOW_H
#define SL_SERVER_MLFLOW_H
#include "server/serve.h"
#include <jansson.h>

#define SL_MLFLOW_PERIOD_US 2000000              /* between two looks at running runs */
#define SL_MLFLOW_AGE_MS INT64_C(259200000)      /* three days after its end a run is given up */
#define SL_MLFLOW_FIRST_RETRY_MS INT64_C(2000)   /* doubles with every try... */
#define SL_MLFLOW_LAST_RETRY_MS INT64_C(600000)  /* ...up to this */
#define SL_MLFLOW_TIMEOUT_MS 20000L              /* of a call */
#define SL_MLFLOW_UPLOAD_TIMEOUT_MS 600000L      /* of an artifact's file */
#define SL_MLFLOW_UPLOAD_MAX (INT64_C(256) << 20) /* bytes of such a file; larger ones stay here */
#define SL_MLFLOW_ANSWER_MAX (4u << 20)

struct sl_mlflow;

/* Two server parts: the database is open before runs can end, and the thread ends before what it reads is closed. */
int sl_mlflow_part_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_mlflow_part_stop(void *state);
int sl_mlflow_send_start(struct sl_server *server, void **ret_state, struct sl_err *err);
void sl_mlflow_send_stop(void *state);
/* For the archiver: what is to be said of this ended run is durable when it returns 0. m NULL: nothing. */
int sl_mlflow_run_ended(struct sl_mlflow *m, const json_t *record, struct sl_err *err);

#endif
