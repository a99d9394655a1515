/* Generation's inner half: rows with a key/value cache, one token each per call. Several tasks in
 * one batch are several slots. Sampling is the caller's (generate.c). */
#ifndef SL_ENGINE_DECODE_H
#define SL_ENGINE_DECODE_H
#include "engine/model.h"

#define SL_DECODE_MAX_ROWS 1024

struct sl_decode;

/* Runs the rows' prompts (no targets needed; slots and virtual tokens as in batch.h; prefixes
 * shared) and leaves a cache with room for max_new more tokens a row. host_logits [n_rows, vocab]:
 * after each row's last token. What else is in the batch does not matter to a row's logits beyond
 * rounding. */
int sl_decode_new(struct sl_model *m, const struct sl_row *rows, int n_rows, const int *slot_v,
                  int n_slots, const float *prompts, int max_new, float *host_logits,
                  struct sl_decode **ret_decode, struct sl_err *err);
/* Appends one token to each of the n named rows (distinct; finished rows are simply not named any
 * more): host_logits [n, vocab] in the same order. */
int sl_decode_step(struct sl_decode *d, const int *row, const int32_t *token, int n,
                   float *host_logits, struct sl_err *err);
void sl_decode_free(struct sl_decode *d);

#endif
