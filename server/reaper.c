/* What the server does by the clock: reaping and promoting, writing what a cut-off publishing left. */
#include "base/clock.h"
#include "base/log.h"
#include "server/runs.h"

#define REPLAY_LOOKS 5        /* with something in the outbox at each: it is not only a publishing under way */
#define REPLAY_AGAIN_LOOKS 30 /* after a fault that may pass, as a full disk */

static void spare_leases(struct sl_reaper *r)
{
    r->spare_until_us = sl_boot_us() + SL_REAPER_GRACE_US;
}

void sl_reap(void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_reaper *r = &runs->reaper;
    struct sl_err err = SL_ERR_INIT;
    struct sl_reaped done = {.more = true};
    int ended = 0, promoted = 0, replayed = 0, rc = 0;

    if (!r->spare_until_us)
        spare_leases(r);
    /* Under a long absence of Redis every lease has ended; their agents get the first word. */
    for (int passes = 0; !rc && done.more && passes < SL_REAPER_PASSES; passes++) {
        rc = sl_queue_reap(runs->queue, sl_boot_us() < r->spare_until_us, &done, &err);
        ended += rc ? 0 : done.ended;
        promoted += rc ? 0 : done.promoted;
    }
    if (rc) {
        if (!r->away)
            sl_log(SL_WARN, NULL, "looking after leases: %s", err.msg);
        r->away = true;
        spare_leases(r);
        return;
    }
    if (r->away) {
        sl_log(SL_INFO, NULL, "Redis is back");
        spare_leases(r);
    }
    if (ended || promoted)
        sl_log(SL_INFO, NULL, "%d leases ended, %d runs are due again", ended, promoted);
    r->unwritten = done.outbox ? r->unwritten + 1 : 0;
    if (r->away || r->unwritten >= REPLAY_LOOKS) {
        r->unwritten = 0;
        if (sl_publish_replay(runs, &replayed, &err)) {
            sl_log(SL_ERROR, NULL, "writing the versions of published results: %s", err.msg);
            r->unwritten = REPLAY_LOOKS - REPLAY_AGAIN_LOOKS;
        } else if (replayed) {
            sl_log(SL_INFO, NULL, "wrote the versions of %d published results", replayed);
        }
    }
    r->away = false;
}
