#include "engine/utf8.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>
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
