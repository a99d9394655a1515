/* A thread that does something once in a while. */
#ifndef SL_SERVER_TICKER_H
#define SL_SERVER_TICKER_H
#include "base/err.h"
#include <stdint.h>

struct sl_ticker;
/* Calls fn at once and then period_us after each call's end. fn may block. */
int sl_ticker_start(void (*fn)(void *arg), void *arg, int64_t period_us,
                    struct sl_ticker **ret_ticker, struct sl_err *err);
/* Waits for a call under way. NULL-safe. */
void sl_ticker_stop(struct sl_ticker *t);

#endif
