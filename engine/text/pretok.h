/* Pre-tokenizers: cutting text into the pieces inside which byte pairs may merge.
 *
 * A pre-tokenizer is a row of stages, applied in turn. A pattern cuts every piece into its matches
 * and what lies between them, as the tokenizers library's Split does with behavior "Isolated".
 * Patterns are written as that library takes them (Oniguruma's syntax); the classes \p{L}, \p{N}
 * and \s are those of its Unicode version, whatever PCRE2's own. Immutable after creation. */
#ifndef SL_ENGINE_PRETOK_H
#define SL_ENGINE_PRETOK_H
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>

#define SL_PRETOK_STAGES_MAX 8
#define SL_PRETOK_PATTERN_MAX 4096 /* bytes */

/* GPT-2's pattern, which the tokenizers library calls ByteLevel. */
#define SL_PRETOK_GPT2                                                                             \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum sl_pretok_kind {
    SL_PRETOK_REGEX,
    SL_PRETOK_TEXT,        /* the pattern is literal text */
    SL_PRETOK_DIGITS,      /* each numeric character by itself */
    SL_PRETOK_DIGIT_RUNS,  /* runs of numeric characters */
    SL_PRETOK_PREFIX_SPACE /* a space goes in front of each piece that has none there */
};
struct sl_pretok_stage {
    enum sl_pretok_kind kind;
    const char *pattern; /* of REGEX and TEXT, else NULL */
    size_t len;          /* bytes */
};

struct sl_pretok;

/* name as GGUF's tokenizer.ggml.pre has it; SL_SPEC with the known names for another one. */
int sl_pretok_new(const char *name, struct sl_pretok **ret_pretok, struct sl_err *err);
/* SL_SPEC for a pattern that uses what is not known to mean the same in both syntaxes, or that can
 * match nothing; the message names it. */
int sl_pretok_from_stages(const struct sl_pretok_stage *stages, int n, bool ignore_merges,
                          struct sl_pretok **ret_pretok, struct sl_err *err);
void sl_pretok_free(struct sl_pretok *p);
/* GGUF's name where the stages are those of a named pre-tokenizer, else the stages themselves:
 * equal names mean equal pieces. */
const char *sl_pretok_name(const struct sl_pretok *p);
/* A piece that is a token as a whole becomes that token without any merging (Llama 3). */
bool sl_pretok_ignore_merges(const struct sl_pretok *p);

typedef int sl_piece_fn(void *arg, const char *piece, size_t len, struct sl_err *err);
/* Calls fn for each piece of text (valid UTF-8) in order; but for added spaces, the pieces cover
 * it. Stops at fn's first error. */
int sl_pretok_split(const struct sl_pretok *p, const char *text, size_t len, sl_piece_fn *fn,
                    void *arg, struct sl_err *err);

#endif
