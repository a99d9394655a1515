/* A growable byte string with a hard maximum.
 *
 * Invariant after init: p is never NULL and p[len] is NUL (the empty string is shared and read-only until the
 * first append). Appending beyond max, or failing to allocate, returns SL_NOMEM and leaves the content as it was. */
#ifndef SL_BASE_BUF_H
#define SL_BASE_BUF_H
#include <stdarg.h>
#include <stddef.h>

struct sl_buf {
    char *p;
    size_t len, cap, max;
};

void sl_buf_init(struct sl_buf *b, size_t max_bytes);
void sl_buf_release(struct sl_buf *b); /* NULL-safe; b is empty and usable again afterwards */
void sl_buf_reset(struct sl_buf *b);   /* keeps the memory */
int sl_buf_add(struct sl_buf *b, const void *data, size_t len);
int sl_buf_adds(struct sl_buf *b, const char *s);
int sl_buf_addc(struct sl_buf *b, char c);
int sl_buf_addf(struct sl_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int sl_buf_addv(struct sl_buf *b, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
/* Makes room for len more bytes and returns where they go (NULL: over max or no memory); set len yourself. */
char *sl_buf_reserve(struct sl_buf *b, size_t len);
/* Removes the first n bytes. */
void sl_buf_consume(struct sl_buf *b, size_t n);
/* The string, heap-allocated; the caller frees it. b is empty afterwards. NULL when out of memory. */
char *sl_buf_take(struct sl_buf *b);

#endif
