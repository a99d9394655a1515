#include "engine/text/pretok_pattern.h"
#include "engine/format/weights_format.h"
#include <stdbool.h>
#include <string.h>

/* Character classes, written without their brackets. The reference knows Unicode 16 in its patterns
 * and Unicode 17 in its digit test, while PCRE2 knows the version of its own build (14 in 10.42)
 * and counts U+180E as a space, which the reference does not: so what came after Unicode 14 is
 * listed, and spaces are listed in full. tests/golden/tokenizer.py and tokenizer_json.py compare
 * the classes at every code point. */
#define LETTER                                                                                     \
    "\\p{L}\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}"         \
    "\\x{10D4A}-\\x{10D65}\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}"         \
    "\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}" \
    "\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}\\x{11F12}-\\x{11F33}\\x{1342F}"          \
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}\\x{16D40}-\\x{16D6C}"         \
    "\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}"                     \
    "\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}"          \
    "\\x{31350}-\\x{323AF}"
#define NUMBER                                                                                     \
    "\\p{N}\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}"   \
    "\\x{16130}-\\x{16139}\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}"         \
    "\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}"
#define NUMBER_17 "\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}"
#define SPACE                                                                                      \
    "\\x09-\\x0D\\x20\\x85\\xA0\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"   \
    "\\x{3000}"
/* What came after Unicode 14 beside letters and numbers: marks, mostly. */
#define WORD                                                                                       \
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}\\x{897}\\x{CF3}\\x{ECE}\\x{1C89}"        \
    "\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D40}-\\x{10D65}"    \
    "\\x{10D69}-\\x{10D6D}\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{10EFC}-\\x{10EFF}"         \
    "\\x{1123F}-\\x{11241}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}\\x{11390}-\\x{113B5}"          \
    "\\x{113B7}-\\x{113C0}\\x{113C2}\\x{113C5}\\x{113C7}-\\x{113CA}\\x{113CC}-\\x{113D3}"          \
    "\\x{113E1}\\x{113E2}\\x{116D0}-\\x{116E3}\\x{11BC0}-\\x{11BE0}\\x{11BF0}-\\x{11BF9}"          \
    "\\x{11F00}-\\x{11F10}\\x{11F12}-\\x{11F3A}\\x{11F3E}-\\x{11F42}\\x{11F50}-\\x{11F5A}"         \
    "\\x{1342F}\\x{13440}-\\x{13455}\\x{13460}-\\x{143FA}\\x{16100}-\\x{16139}"                    \
    "\\x{16D40}-\\x{16D6C}\\x{16D70}-\\x{16D79}\\x{18CFF}\\x{1B132}\\x{1B155}"                     \
    "\\x{1CCF0}-\\x{1CCF9}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}\\x{1E08F}"                    \
    "\\x{1E4D0}-\\x{1E4F9}\\x{1E5D0}-\\x{1E5FA}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}"                    \
    "\\x{31350}-\\x{323AF}"

int sl_pattern_digit(struct sl_buf *out)
{
    return sl_buf_adds(out, "[" NUMBER NUMBER_17 "]");
}

int sl_pattern_word(struct sl_buf *out)
{
    return sl_buf_adds(out, "[" WORD "]");
}

struct reading {
    const char *p, *at, *end;
    bool in_set; /* between [ and ] */
    struct sl_buf *out;
    struct sl_err *err;
};

static int refuse(const struct reading *r, const char *what, size_t len)
{
    char shown[SL_SHOWN_MAX], pattern[SL_SHOWN_MAX];
    return sl_err_set(r->err, SL_SPEC, "'%s' in the pre-tokenizer's pattern '%s' is not supported",
                      sl_shown(what, len, shown), sl_shown(r->p, (size_t)(r->end - r->p), pattern));
}

static bool next_is(const struct reading *r, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(r->end - r->at) >= n && !memcmp(r->at, text, n);
}

static int put(const struct reading *r, const void *text, size_t len)
{
    return sl_buf_add(r->out, text, len) < 0
               ? sl_err_set(r->err, SL_NOMEM, "a pre-tokenizer's pattern is too long")
               : 0;
}

/* A class, with brackets where it stands outside a set. */
static int put_class(struct reading *r, const char *members, bool negated, size_t used)
{
    if (r->in_set && negated)
        return refuse(r, r->at, used);
    int rc = r->in_set ? 0 : put(r, negated ? "[^" : "[", negated ? 2 : 1);
    if (rc == 0)
        rc = put(r, members, strlen(members));
    if (rc == 0 && !r->in_set)
        rc = put(r, "]", 1);
    r->at += used;
    return rc;
}

static int escape(struct reading *r)
{
    static const struct {
        const char *text, *members;
        bool negated;
    } classes[] = {{"\\p{L}", LETTER, false}, {"\\p{N}", NUMBER, false}, {"\\P{L}", LETTER, true},
                   {"\\P{N}", NUMBER, true},  {"\\s", SPACE, false},     {"\\S", SPACE, true}};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (next_is(r, classes[i].text))
            return put_class(r, classes[i].members, classes[i].negated, strlen(classes[i].text));
    const char *brace = next_is(r, "\\p{") || next_is(r, "\\P{")
                            ? memchr(r->at, '}', (size_t)(r->end - r->at))
                            : NULL;
    if (brace)
        return refuse(r, r->at, (size_t)(brace + 1 - r->at));
    char c = r->at + 1 < r->end ? r->at[1] : '\0';
    if (!c || !strchr("rnt!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~", c))
        return refuse(r, r->at, c ? 2 : 1);
    r->at += 2;
    return put(r, r->at - 2, 2);
}

static int in_set(struct reading *r)
{
    if (*r->at == '[' || next_is(r, "&&")) /* sets in sets, intersections */
        return refuse(r, r->at, *r->at == '[' ? 1 : 2);
    if (*r->at == ']')
        r->in_set = false;
    return put(r, r->at++, 1);
}

static int start_set(struct reading *r)
{
    size_t n = next_is(r, "[^") ? 2 : 1;
    if (r->at + n < r->end && r->at[n] == ']')
        return refuse(r, r->at, n + 1);
    r->in_set = true;
    r->at += n;
    return put(r, r->at - n, n);
}

/* (, or one of the groups that begin with (? and mean the same in both. */
static int group(struct reading *r)
{
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    size_t n = 1;
    if (next_is(r, "(?")) {
        n = 0;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (next_is(r, known[i]))
                n = strlen(known[i]);
    }
    if (n == 0 || next_is(r, "(*"))
        return refuse(r, r->at, r->end - r->at < 4 ? (size_t)(r->end - r->at) : 4);
    r->at += n;
    return put(r, r->at - n, n);
}

/* {n}, {n,} or {n,m}; a + behind one is a second quantifier there and possessive here. */
static int repeat(struct reading *r)
{
    const char *p = r->at + 1;
    size_t digits = strspn(p, "0123456789"), more = 0;
    if (digits && p[digits] == ',')
        more = 1 + strspn(p + digits + 1, "0123456789");
    size_t n = 1 + digits + more + 1;
    if (!digits || r->at + n > r->end || r->at[n - 1] != '}' ||
        (r->at + n < r->end && r->at[n] == '+'))
        return refuse(r, r->at, r->end - r->at < 8 ? (size_t)(r->end - r->at) : 8);
    r->at += n;
    return put(r, r->at - n, n);
}

int sl_pattern_translate(const char *pattern, size_t len, struct sl_buf *out, struct sl_err *err)
{
    struct reading r = {pattern, pattern, pattern + len, false, out, err};
    int rc = 0;
    while (rc == 0 && r.at < r.end) {
        if (*r.at == '\\')
            rc = escape(&r);
        else if (*r.at == '\0')
            rc = refuse(&r, r.at, 1);
        else if (r.in_set)
            rc = in_set(&r);
        else if (*r.at == '[')
            rc = start_set(&r);
        else if (*r.at == '(')
            rc = group(&r);
        else if (*r.at == '{')
            rc = repeat(&r);
        else if (strchr(".^$", *r.at)) /* they differ at line ends */
            rc = refuse(&r, r.at, 1);
        else
            rc = put(&r, r.at++, 1);
    }
    return rc;
}
