/* Threads that each take the next piece of one work; the first error ends all.
 *
 * They share a watch and a signer, each used by one thread at a time; every thread has a handle of its own, which
 * keeps its connections. */
#ifndef SL_ARTIFACTS_CREW_H
#define SL_ARTIFACTS_CREW_H
#include "artifacts/ask.h"
#include "artifacts/watch.h"
#include "base/err.h"
#include <stddef.h>

/* What a thread works with. */
struct sl_crew_hand {
    struct sl_watch watch; /* its stop says true after another thread's error, too */
    const struct sl_signer *signer;
    void *curl; /* may be NULL: out of memory, then requests make their own */
};

/* Calls work for each i below n, from up to `hands` threads (this one alone when none can be started). signer may be
 * NULL. Blocks. */
int sl_crew_run(const struct sl_watch *watch, const struct sl_signer *signer, size_t n, size_t hands,
                int (*work)(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err),
                void *arg, struct sl_err *err);

#define SL_CREW_MAX 16 /* hands */

#endif
