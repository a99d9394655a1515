/* UTF-8 validation and repair. Pure functions. */
#ifndef SL_ENGINE_UTF8_H
#define SL_ENGINE_UTF8_H
#include "base/buf.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes at the start of text that are valid UTF-8 (len when all of it is). */
size_t sl_utf8_valid(const char *text, size_t len);
/* Appends text with each invalid sequence as one U+FFFD per maximal subpart (Unicode 15,
 * section 3.9, and what Python's bytes.decode('utf-8', 'replace') does). SL_NOMEM, also when buf's
 * max is reached. */
int sl_utf8_repair(const char *text, size_t len, struct sl_buf *buf);
/* The character at p, where valid UTF-8 begins; sets its length. */
uint32_t sl_utf8_decode(const char *p, int *ret_len);
/* White space as Python's str.split and str.strip see it. */
bool sl_utf8_is_space(uint32_t c);

#endif
