/* Lists of runs, and what people write about them. */
#ifndef SL_CLI_RUNS_LIST_H
#define SL_CLI_RUNS_LIST_H
#include "cli/options.h"
#include "cli/runs_common.h"

struct cli_runs_query { /* "": any */
    const char *state, *queue, *project, *sort, *q;
    const struct cli_list *tags;
    int limit;
};

int cli_list_runs(struct sl_api *api, const struct cli_runs_query *query, bool json, struct sl_err *err);
/* note NULL, or no tags: as they are. One tag of "" stands for none. */
int cli_note_run(struct sl_api *api, const char *text, const char *note, const struct cli_list *tags,
                 bool json, struct sl_err *err);

#endif
