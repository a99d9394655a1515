/* Unicode normalisation form C, with the tables of the tokenizers library. Pure functions. */
#ifndef SL_ENGINE_NFC_H
#define SL_ENGINE_NFC_H
#include "base/buf.h"
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>

/* Whether text (valid UTF-8) is known at a glance to be in form C; false says nothing. */
bool sl_nfc_plain(const char *text, size_t len);
/* Appends text (valid UTF-8) in form C; it may grow threefold. SL_NOMEM, also at buf's maximum. */
int sl_nfc(const char *text, size_t len, struct sl_buf *buf, struct sl_err *err);

#endif
