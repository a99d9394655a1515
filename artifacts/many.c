/* Many files at once. */
#include "artifacts/crew.h"
#include "artifacts/transfer.h"

struct many {
    const struct sl_transfer *t;
    const struct sl_cache *cache;
    const struct sl_want *wants;
    struct sl_got *gots;
    int64_t bytes_per_s; /* of one file */
};

static int get_one(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err)
{
    const struct many *m = arg;
    struct sl_transfer t = *m->t;
    t.watch = hand->watch;
    t.signer = hand->signer;
    t.curl = hand->curl;
    t.bytes_per_s = m->bytes_per_s;
    return sl_transfer_want(&t, m->cache, &m->wants[i], &m->gots[i], err);
}

int sl_transfer_many(const struct sl_transfer *t, const struct sl_cache *cache,
                     const struct sl_want *wants, size_t n, struct sl_got *gots, struct sl_err *err)
{
    size_t hands = n < SL_TRANSFER_AT_ONCE ? n : SL_TRANSFER_AT_ONCE;
    struct many m = {.t = t, .cache = cache, .wants = wants, .gots = gots};
    if (n == 0)
        return 0;
    if (n == 1)
        return sl_transfer_want(t, cache, wants, gots, err);
    m.bytes_per_s = t->bytes_per_s > 0 ? t->bytes_per_s / (int64_t)hands + 1 : 0;
    return sl_crew_run(&t->watch, t->signer, n, hands, get_one, &m, err);
}
