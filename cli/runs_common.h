/* What the commands about runs share: finding a run, following it, printing. */
#ifndef SL_CLI_RUNS_COMMON_H
#define SL_CLI_RUNS_COMMON_H
#include "artifacts/api.h"
#include "base/clock.h"
#include <stdbool.h>

#define CLI_RUN_HELP "RUN is its id, the beginning of it, or the name of its newest run."
#define CLI_FOLLOW_AWAY_S 120 /* how long following waits for a server that does not answer, or for outputs */

/* The full id for an id, the beginning of one, or a run's name (its newest).
 * SL_NOTFOUND, SL_CONFLICT: the beginning fits several. */
int cli_find_run(struct sl_api *api, const char *text, char ret_run[SL_ID_HEX + 1],
                 struct sl_err *err);

struct cli_follow {
    bool follow; /* until the run ends; else only what there is */
    bool json;   /* each event as a line of JSON */
    bool logs;   /* the run's log lines only: no states and numbers */
    bool quiet;  /* wait only */
};
/* Prints a run's events from the start. ret_state gets the run's state at the end (32 bytes). */
int cli_follow_run(struct sl_api *api, const char *run, const struct cli_follow *how,
                   char *ret_state, struct sl_err *err);
bool cli_is_final(const char *state);
void cli_print_json(const json_t *json);

#endif
