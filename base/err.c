/* Stands alone: the CUDA backend links this file without the rest of base. */
#define SL_ERR_IMPLEMENTATION
#include "base/err.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const code_names[] = {
    "ok", "retry",    "lease_lost", "spec",   "device_lost", "out_of_memory",
    "io", "not_found", "conflict",   "denied", "data",   "cancelled", "device_fault"};

void sl_utf8_trim(char *s)
{
    size_t n = strlen(s), back = 0;

    while (back < 3 && back < n && ((unsigned char)s[n - 1 - back] & 0xc0) == 0x80)
        back++;
    if (back >= n)
        return;
    unsigned char lead = (unsigned char)s[n - 1 - back];
    size_t need = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    if (need > back)
        s[n - 1 - back] = '\0';
}

static void set_msg(struct sl_err *err, int code, const char *fmt, va_list ap)
{
    if (!err || err->code)
        return;
    err->code = code;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    sl_utf8_trim(err->msg);
}

int sl_err_set(struct sl_err *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set_msg(err, code, fmt, ap);
    va_end(ap);
    return code;
}

int sl_err_errno(struct sl_err *err, const char *fmt, ...)
{
    int saved = errno, code = saved == ENOMEM ? SL_NOMEM : SL_IO;
    size_t len;
    va_list ap;

    if (err && !err->code) {
        va_start(ap, fmt);
        set_msg(err, code, fmt, ap);
        va_end(ap);
        len = strlen(err->msg);
        snprintf(err->msg + len, sizeof err->msg - len, ": %s", strerror(saved));
        sl_utf8_trim(err->msg);
    }
    return code;
}

int sl_err_wrap(struct sl_err *err, int code, const char *fmt, ...)
{
    char inner[SL_ERR_MSG_MAX];
    size_t len;
    va_list ap;

    if (err) {
        memcpy(inner, err->msg, sizeof inner);
        va_start(ap, fmt);
        vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
        len = strlen(err->msg);
        snprintf(err->msg + len, sizeof err->msg - len, ": %s", inner);
        sl_utf8_trim(err->msg);
        if (!err->code)
            err->code = code;
    }
    return code;
}

void sl_err_clear(struct sl_err *err)
{
    if (err) {
        err->code = 0;
        err->msg[0] = '\0';
    }
}

const char *sl_code_name(int code)
{
    unsigned i = (unsigned)-code;

    return i < sizeof code_names / sizeof *code_names ? code_names[i] : "unknown";
}

int sl_code_from_name(const char *name)
{
    for (unsigned i = 0; name && i < sizeof code_names / sizeof *code_names; i++)
        if (!strcmp(name, code_names[i]))
            return -(int)i;
    return SL_IO;
}
