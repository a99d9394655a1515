/* Small files of the own store, many in one request (server/blob_batch.h).
 *
 * What comes is checked, written into a folder of its own below partial/, made durable by one syncfs for all of a
 * group, and only then moved to its place: no half file has a final name, whenever this process or the machine ends.
 * Nothing here is final: what does not come this way, for whatever reason (a server without this request, a cut, wrong
 * bytes, a full disk), is left to sl_transfer_want, which tries again and says why. */
#ifndef SL_ARTIFACTS_SMALL_H
#define SL_ARTIFACTS_SMALL_H
#include "artifacts/transfer.h"

#define SL_SMALL_BYTES (64 << 10)        /* a file of at most so many is small */
#define SL_SMALL_MIN 8                   /* fewer of them are not worth a request of their own */
#define SL_SMALL_GROUP_FILES 400         /* made durable at once, */
#define SL_SMALL_GROUP_BYTES (32 << 20)  /* or so many bytes */
#define SL_SMALL_GROUPS 6                /* at once */
#define SL_SMALL_FAILURES 3              /* requests; then no further group is tried */

/* Fills gots[i] and sets done[i] of those that are there then. gots NULL: every want has its dest, and what is in the
 * cache already is left alone. SL_CANCELLED, SL_NOMEM. */
int sl_small_many(const struct sl_transfer *t, const struct sl_cache *cache, const struct sl_want *wants, size_t n,
                  struct sl_got *gots, bool *done, struct sl_err *err);

#endif
