/* Log lines: one JSON object each on standard error. Only main functions and the agent's, server's and
 * worker's loops log; library code returns errors. Secrets never reach a log. */
#ifndef SL_BASE_LOG_H
#define SL_BASE_LOG_H
#include <stdbool.h>

enum sl_level { SL_DEBUG, SL_INFO, SL_WARN, SL_ERROR };

void sl_log_setup(const char *part, bool json, enum sl_level least); /* json false: plain text for a terminal */
/* run may be NULL. */
void sl_log(enum sl_level level, const char *run, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
