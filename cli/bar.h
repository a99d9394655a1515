/* How far a transfer is, on a terminal's last line; elsewhere nothing. */
#ifndef SL_CLI_BAR_H
#define SL_CLI_BAR_H
#include "artifacts/watch.h"

struct cli_bar {
    int64_t done, total, shown_us;
    bool on, shown;
};

struct cli_bar cli_bar_new(void);
struct sl_watch cli_bar_watch(struct cli_bar *bar); /* bar must outlive it */
void cli_bar_end(const struct cli_bar *bar);        /* takes the line away */

#endif
