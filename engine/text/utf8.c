#include "engine/text/utf8.h"
#include "base/err.h"
#include <string.h>

/* Length of the character at p, or minus the length of the longest prefix of one (at least 1 byte).
 */
static int char_len(const unsigned char *p, size_t len)
{
    unsigned char lead = p[0], low = 0x80, high = 0xBF;
    int want;
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead <= 0xDF)
        want = 2;
    else if (lead >= 0xE0 && lead <= 0xEF)
        want = 3;
    else if (lead >= 0xF0 && lead <= 0xF4)
        want = 4;
    else
        return -1;
    /* The second byte's range rules out overlong forms, surrogates and what lies beyond U+10FFFF.
     */
    if (lead == 0xE0)
        low = 0xA0;
    else if (lead == 0xED)
        high = 0x9F;
    else if (lead == 0xF0)
        low = 0x90;
    else if (lead == 0xF4)
        high = 0x8F;
    for (int i = 1; i < want; i++) {
        if ((size_t)i >= len || p[i] < low || p[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
    }
    return want;
}

size_t sl_utf8_valid(const char *text, size_t len)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t i = 0;
    while (i < len) {
        uint64_t word;
        if (i + sizeof word <= len) {
            memcpy(&word, p + i, sizeof word);
            if (!(word & UINT64_C(0x8080808080808080))) {
                i += sizeof word;
                continue;
            }
        }
        int n = char_len(p + i, len - i);
        if (n < 0)
            return i;
        i += (size_t)n;
    }
    return i;
}

int sl_utf8_repair(const char *text, size_t len, struct sl_buf *buf)
{
    while (len > 0) {
        size_t good = sl_utf8_valid(text, len);
        int rc = sl_buf_add(buf, text, good);
        if (rc < 0)
            return rc;
        text += good;
        len -= good;
        if (len == 0)
            break;
        size_t bad = (size_t)-char_len((const unsigned char *)text, len);
        rc = sl_buf_add(buf, "\xEF\xBF\xBD", 3);
        if (rc < 0)
            return rc;
        text += bad;
        len -= bad;
    }
    return 0;
}

uint32_t sl_utf8_decode(const char *p, int *ret_len)
{
    const unsigned char *s = (const unsigned char *)p;

    *ret_len = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    switch (*ret_len) {
    case 1:
        return s[0];
    case 2:
        return (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
    case 3:
        return (s[0] & 0xfu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
    default:
        return (s[0] & 7u) << 18 | (s[1] & 0x3fu) << 12 | (s[2] & 0x3fu) << 6 | (s[3] & 0x3fu);
    }
}

bool sl_utf8_is_space(uint32_t c)
{
    return (c >= 0x9 && c <= 0xd) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}
