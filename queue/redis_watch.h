/* Hears from a Sentinel, on an event loop, that the primary has changed: sooner than a primary that hangs would be
 * noticed. Connects again by itself, to the next Sentinel. Not for other parts. */
#ifndef SL_QUEUE_REDIS_WATCH_H
#define SL_QUEUE_REDIS_WATCH_H
#include "queue/redis.h"

#define SL_REDIS_WATCH_PAUSE_US INT64_C(1000000) /* before the next Sentinel is tried */

struct sl_redis_watch;
typedef void sl_redis_switched_fn(void *arg);
int sl_redis_watch_new(struct sl_loop *loop, const struct sl_redis_url *url, sl_redis_switched_fn *fn, void *arg,
                       struct sl_redis_watch **ret_watch, struct sl_err *err);
void sl_redis_watch_free(struct sl_redis_watch *w); /* NULL-safe; not from within fn */

#endif
