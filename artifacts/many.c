/* Many files at once. */
#include "artifacts/crew.h"
#include "artifacts/transfer.h"

struct many {
    const struct sl_transfer *t;
    const struct sl_cache *cache;
    const struct sl_want *wants;
    struct sl_got *gots;
};

static int get_one(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err)
{
    const struct many *m = arg;
    struct sl_transfer t = *m->t;
    t.watch = hand->watch;
    t.signer = hand->signer;
    t.curl = hand->curl;
    return sl_transfer_want(&t, m->cache, &m->wants[i], &m->gots[i], err);
}

int sl_transfer_many(const struct sl_transfer *t, const struct sl_cache *cache,
                     const struct sl_want *wants, size_t n, struct sl_got *gots, struct sl_err *err)
{
    struct many m = {.t = t, .cache = cache, .wants = wants, .gots = gots};
    if (n == 0)
        return 0;
    if (n == 1)
        return sl_transfer_want(t, cache, wants, gots, err);
    return sl_crew_run(&t->watch, t->signer, n, SL_TRANSFER_AT_ONCE, get_one, &m, err);
}
