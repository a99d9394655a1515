/* Added tokens: texts that become one id before any pre-tokenizing, as the AddedVocabulary of the
 * tokenizers library finds them: leftmost, the longest of those that start there. Immutable after
 * creation. */
#ifndef SL_ENGINE_ADDED_H
#define SL_ENGINE_ADDED_H
#include "base/err.h"
#include "engine/text/text_set.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sl_added_token {
    struct sl_text text; /* not empty */
    int32_t id;
    unsigned char flags; /* SL_TOKEN_LSTRIP and so on, tokenizer.h */
    bool control;        /* counts only where special tokens are asked for */
};

struct sl_added;
/* Copies the array; the texts are borrowed. Of two with the same text the first counts. */
int sl_added_new(const struct sl_added_token *tokens, int n, struct sl_added **ret_added,
                 struct sl_err *err);
void sl_added_free(struct sl_added *a);

/* One part of a text: an added token's id, or text (not empty) with id -1. */
typedef int sl_part_fn(void *arg, int32_t id, const char *text, size_t len, struct sl_err *err);
/* Calls fn for each part of text (valid UTF-8) in order. Stops at fn's first error. */
int sl_added_split(const struct sl_added *a, const char *text, size_t len, bool specials,
                   sl_part_fn *fn, void *arg, struct sl_err *err);

#endif
