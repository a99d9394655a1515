/* Many files at once: the small ones of the own store many in a request, the others each in its own. */
#include "artifacts/crew.h"
#include "artifacts/small.h"
#include <stdlib.h>

struct many {
    const struct sl_transfer *t;
    const struct sl_cache *cache;
    const struct sl_want *wants;
    struct sl_got *gots;
    size_t *left; /* which of wants are still to come */
};

static int get_one(void *arg, const struct sl_crew_hand *hand, size_t k, struct sl_err *err)
{
    const struct many *m = arg;
    size_t i = m->left[k];
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
    bool *done = calloc(n, sizeof *done);
    size_t left = 0;
    m.left = calloc(n, sizeof *m.left);
    int rc = done && m.left ? sl_small_many(t, cache, wants, n, gots, done, err)
                            : sl_err_set(err, SL_NOMEM, "out of memory");
    for (size_t i = 0; rc == 0 && i < n; i++)
        if (!done[i])
            m.left[left++] = i;
    if (rc == 0 && left)
        rc = sl_crew_run(&t->watch, t->signer, left, SL_TRANSFER_AT_ONCE, get_one, &m, err);
    free(m.left);
    free(done);
    return rc;
}
