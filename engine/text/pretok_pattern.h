/* Patterns of the tokenizers library (Oniguruma, Ruby syntax) as PCRE2 patterns with the same
 * matches, Unicode classes included. Pure functions. */
#ifndef SL_ENGINE_PRETOK_PATTERN_H
#define SL_ENGINE_PRETOK_PATTERN_H
#include "base/buf.h"
#include "base/err.h"
#include <stddef.h>

/* Appends the pattern in PCRE2's syntax. What could mean something else there is SL_SPEC and named:
 * only literals, sets, groups, alternatives, look-around, quantifiers, \s \S \r \n \t, \p{L} and
 * \p{N} are taken. */
int sl_pattern_translate(const char *pattern, size_t len, struct sl_buf *out, struct sl_err *err);
/* Appends a pattern for one character that Rust's char::is_numeric holds of. */
int sl_pattern_digit(struct sl_buf *out);
/* Appends a pattern for one word character, \w of Rust's regex crate. */
int sl_pattern_word(struct sl_buf *out);

#endif
