/* One large file over several connections, by ranges: for transfer.c.
 *
 * Parts come in any order into the partial file; beside it `<partial>.parts` lists the numbers
 * (32-bit) of those that are whole, so that the next process goes on from them. What it lists need
 * not have reached the disk: the digest decides. The file's digest follows the bytes that are there
 * without a gap, in a thread of its own. */
#ifndef SL_ARTIFACTS_RANGES_H
#define SL_ARTIFACTS_RANGES_H
#include "artifacts/job.h"

#define SL_RANGES_ROUNDS 3 /* of fetching wrong parts again */

/* Fills fill, whose digest and bytes are those of the whole file then. *ret_ranges false with 0:
 * the server has no ranges, or there is nothing to gain: fill is empty, or as it was. *resumed is
 * set when a part was left by an earlier process. */
int sl_ranges_fill(const struct sl_transfer *t, struct sl_fill *fill, const struct sl_want *want,
                   bool *resumed, char ret_etag[SL_JOB_ETAG_MAX], bool *ret_ranges,
                   struct sl_err *err);

#endif
