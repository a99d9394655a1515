/* Pre-tokenizers: cutting text into the pieces inside which byte pairs may merge.
 *
 * A pre-tokenizer is one or two patterns, applied in turn: each cuts every piece into its matches
 * and what lies between them, as the tokenizers library's Split does with behaviour "isolated".
 * Immutable after creation. */
#ifndef SL_ENGINE_PRETOK_H
#define SL_ENGINE_PRETOK_H
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>

struct sl_pretok;

/* name as GGUF's tokenizer.ggml.pre has it; SL_SPEC with the known names for another one. */
int sl_pretok_new(const char *name, struct sl_pretok **ret_pretok, struct sl_err *err);
void sl_pretok_free(struct sl_pretok *p);
const char *sl_pretok_name(const struct sl_pretok *p);
/* A piece that is a token as a whole becomes that token without any merging (Llama 3). */
bool sl_pretok_ignore_merges(const struct sl_pretok *p);

typedef int sl_piece_fn(void *arg, const char *piece, size_t len, struct sl_err *err);
/* Calls fn for each piece of text (valid UTF-8) in order; the pieces cover it. Stops at fn's first
 * error. */
int sl_pretok_split(const struct sl_pretok *p, const char *text, size_t len, sl_piece_fn *fn,
                    void *arg, struct sl_err *err);

#endif
