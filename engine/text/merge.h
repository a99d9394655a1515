/* Byte-pair merging: the table of merges by rank, and the merging of one piece.
 *
 * The merge of lowest rank goes first, leftmost among equals, until none applies (Sennrich et al.
 * 2016, and the BPE model of the tokenizers library). Short pieces are scanned, long ones use a
 * heap: O(n log n). The table is immutable once built; each thread brings its own scratch. */
#ifndef SL_ENGINE_MERGE_H
#define SL_ENGINE_MERGE_H
#include "base/err.h"
#include <stdint.h>

struct sl_merges;

int sl_merges_new(int n_merges, struct sl_merges **ret_merges, struct sl_err *err);
void sl_merges_free(struct sl_merges *m);
/* left right -> whole at rank. A pair that comes again takes the later rank, as in the reference.
 * At most n_merges times. SL_DATA if the pairs were chosen to collide. */
int sl_merges_add(struct sl_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t whole,
                  struct sl_err *err);

/* Memory kept between calls; init with {0}. */
struct sl_merge_scratch {
    void *p;
    int cap; /* symbols */
};
void sl_merge_scratch_release(struct sl_merge_scratch *s);
/* Merges id[0..n) in place; returns the number of ids left, or SL_NOMEM. */
int sl_merge(const struct sl_merges *m, int32_t *id, int n, struct sl_merge_scratch *s);

#endif
