#include "engine/text/nfc.h"
#include <stdint.h>
#include <stdlib.h>
#include <utf8proc.h>

struct range {
    uint32_t first, last;
};

/* Characters that never change, whatever stands beside them in these ranges. */
static const struct range plain[] = {
    {0x0, 0x2FF},     {0x3A3, 0x482},   {0x2010, 0x206F},   {0x3001, 0x3029},
    {0x3030, 0x3096}, {0x30A0, 0x30FF}, {0x3400, 0x4DBF},   {0x4E00, 0x9FFB},
    {0xAC00, 0xD7A3}, {0xFF00, 0xFFEF}, {0x1F300, 0x1FAFF},
};

/* Combining marks, compositions and their first parts that are younger than the reference's tables:
 * to it they are characters like any other, so that nothing is reordered or composed across them.
 * tests/golden/tokenizer_json.py compares at every code point. */
static const struct range unknown[] = {
    {0x5C8, 0x5C9},     {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},
    {0x9FE, 0x9FE},     {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},
    {0x1715, 0x1715},   {0x1ABF, 0x1AF0},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},
    {0x105C9, 0x105C9}, {0x105D2, 0x105D2}, {0x105DA, 0x105DA}, {0x105E4, 0x105E4},
    {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10ECB, 0x10ECF},
    {0x10EF0, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070},
    {0x1133B, 0x1133B}, {0x11382, 0x11385}, {0x1138B, 0x11391}, {0x113C2, 0x113C8},
    {0x113CE, 0x113D0}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11935, 0x11938},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x1611E, 0x1612F}, {0x16D63, 0x16D6A}, {0x16FF0, 0x16FF1},
    {0x1D127, 0x1D128}, {0x1D250, 0x1D281}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
    {0x1E6E3, 0x1E6E6}, {0x1E6EE, 0x1E6F5},
};

static bool within(const struct range *ranges, size_t n, uint32_t c)
{
    size_t low = 0;
    while (low < n) {
        size_t mid = low + (n - low) / 2;
        if (c > ranges[mid].last)
            low = mid + 1;
        else if (c < ranges[mid].first)
            n = mid;
        else
            return true;
    }
    return false;
}
#define WITHIN(ranges, c) within(ranges, sizeof(ranges) / sizeof *(ranges), c)

/* The character at p, which is valid; *ret_len its bytes. */
static uint32_t char_at(const char *p, size_t *ret_len)
{
    const unsigned char *u = (const unsigned char *)p;
    uint32_t c = u[0];
    size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (n > 1)
        c &= 0x7Fu >> n;
    for (size_t i = 1; i < n; i++)
        c = c << 6 | (u[i] & 63);
    *ret_len = n;
    return c;
}

bool sl_nfc_plain(const char *text, size_t len)
{
    size_t n;
    for (size_t i = 0; i < len; i += n) {
        n = 1;
        if ((unsigned char)text[i] >= 0xCC && !WITHIN(plain, char_at(text + i, &n)))
            return false;
    }
    return true;
}

static int compose(const char *text, size_t len, struct sl_buf *buf, struct sl_err *err)
{
    utf8proc_uint8_t *out = NULL;
    if (len == 0)
        return 0;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len, &out,
                                      (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    int rc = n < 0 ? SL_NOMEM : sl_buf_add(buf, out, (size_t)n);
    free(out);
    return rc < 0 ? sl_err_set(err, SL_NOMEM, "out of memory for a text in normal form") : 0;
}

int sl_nfc(const char *text, size_t len, struct sl_buf *buf, struct sl_err *err)
{
    size_t start = 0, n;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < len; i += n) {
        n = 1;
        if ((unsigned char)text[i] < 0xCC || !WITHIN(unknown, char_at(text + i, &n)))
            continue;
        rc = compose(text + start, i - start, buf, err);
        if (rc == 0 && sl_buf_add(buf, text + i, n) < 0)
            rc = sl_err_set(err, SL_NOMEM, "out of memory for a text in normal form");
        start = i + n;
    }
    return rc < 0 ? rc : compose(text + start, len - start, buf, err);
}
