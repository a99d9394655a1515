#include "base/buf.h"
#include "base/err.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char empty[1];

void sl_buf_init(struct sl_buf *b, size_t max_bytes)
{
    b->p = empty;
    b->len = b->cap = 0;
    b->max = max_bytes;
}

void sl_buf_release(struct sl_buf *b)
{
    if (!b)
        return;
    if (b->cap)
        free(b->p);
    sl_buf_init(b, b->max);
}

void sl_buf_reset(struct sl_buf *b)
{
    b->len = 0;
    if (b->cap)
        b->p[0] = '\0';
}

char *sl_buf_reserve(struct sl_buf *b, size_t len)
{
    size_t need, cap;
    char *p;

    if (len > b->max || b->len > b->max - len)
        return NULL;
    need = b->len + len + 1;
    if (need > b->cap) {
        cap = b->cap ? b->cap : 64;
        while (cap < need)
            cap = cap > b->max / 2 ? b->max + 1 : cap * 2;
        p = b->cap ? realloc(b->p, cap) : malloc(cap);
        if (!p)
            return NULL;
        b->p = p;
        b->cap = cap;
        b->p[b->len] = '\0';
    }
    return b->p + b->len;
}

int sl_buf_add(struct sl_buf *b, const void *data, size_t len)
{
    char *to = sl_buf_reserve(b, len);

    if (!to)
        return SL_NOMEM;
    if (len)
        memcpy(to, data, len);
    b->len += len;
    b->p[b->len] = '\0';
    return 0;
}

int sl_buf_adds(struct sl_buf *b, const char *s)
{
    return sl_buf_add(b, s, strlen(s));
}

int sl_buf_addc(struct sl_buf *b, char c)
{
    return sl_buf_add(b, &c, 1);
}

int sl_buf_addv(struct sl_buf *b, const char *fmt, va_list ap)
{
    va_list again;
    char *to;
    int n;

    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    if (n < 0)
        return SL_NOMEM;
    to = sl_buf_reserve(b, (size_t)n);
    if (!to)
        return SL_NOMEM;
    vsnprintf(to, (size_t)n + 1, fmt, ap);
    b->len += (size_t)n;
    return 0;
}

int sl_buf_addf(struct sl_buf *b, const char *fmt, ...)
{
    va_list ap;
    int rc;

    va_start(ap, fmt);
    rc = sl_buf_addv(b, fmt, ap);
    va_end(ap);
    return rc;
}

void sl_buf_consume(struct sl_buf *b, size_t n)
{
    if (!n)
        return;
    if (n > b->len)
        n = b->len;
    memmove(b->p, b->p + n, b->len - n);
    b->len -= n;
    if (b->cap)
        b->p[b->len] = '\0';
}

char *sl_buf_take(struct sl_buf *b)
{
    char *p = b->cap ? b->p : calloc(1, 1);

    if (p)
        sl_buf_init(b, b->max);
    return p;
}
