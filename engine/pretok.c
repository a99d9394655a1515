#include "engine/pretok.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* Character classes, written without their brackets. The reference knows Unicode 16 in its patterns
 * and Unicode 17 in its digit test, while PCRE2 knows the version of its own build (14 in 10.42)
 * and counts U+180E as a space, which the reference does not: so what came after Unicode 14 is
 * listed, and spaces are listed in full. tests/golden/tokenizer.py compares the classes at every
 * code point. */
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

#define DIGITS "[" NUMBER NUMBER_17 "]"
#define TRAILING_SPACE "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" SPACE LETTER NUMBER             \
    "]+|" TRAILING_SPACE
/* Llama 3 and Qwen2 differ in how many digits go together. */
#define CL100K(digits)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n" LETTER NUMBER "]?[" LETTER "]+|[" NUMBER "]" digits    \
    "| ?[^" SPACE LETTER NUMBER "]+[\\r\\n]*|[" SPACE "]*[\\r\\n]+|" TRAILING_SPACE

#define MAX_STAGES 2

static const struct kind {
    const char *name;
    const char *stage[MAX_STAGES];
    bool ignore_merges;
} kinds[] = {
    {"smollm", {DIGITS, GPT2}, false},
    {"gpt-2", {GPT2, NULL}, false},
    {"llama-bpe", {CL100K("{1,3}"), NULL}, true},
    {"qwen2", {CL100K(""), NULL}, false},
};
#define N_KINDS (sizeof kinds / sizeof kinds[0])

struct sl_pretok {
    const struct kind *kind;
    pcre2_code *stage[MAX_STAGES];
};

int sl_pretok_new(const char *name, struct sl_pretok **ret_pretok, struct sl_err *err)
{
    const struct kind *kind = NULL;
    for (size_t i = 0; i < N_KINDS; i++)
        if (!strcmp(kinds[i].name, name))
            kind = &kinds[i];
    if (!kind)
        return sl_err_set(err, SL_SPEC,
                          "pre-tokenizer '%.64s' is not supported (supported: %s, %s, %s, %s)",
                          name, kinds[0].name, kinds[1].name, kinds[2].name, kinds[3].name);
    struct sl_pretok *p = calloc(1, sizeof *p);
    if (!p)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    p->kind = kind;
    for (int i = 0; i < MAX_STAGES && kind->stage[i]; i++) {
        int code;
        PCRE2_SIZE at;
        p->stage[i] = pcre2_compile((PCRE2_SPTR)kind->stage[i], PCRE2_ZERO_TERMINATED,
                                    PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
        if (!p->stage[i]) {
            PCRE2_UCHAR text[128];
            pcre2_get_error_message(code, text, sizeof text);
            sl_pretok_free(p);
            return sl_err_set(err, SL_SPEC, "pre-tokenizer '%s': %s at %zu", name,
                              (const char *)text, (size_t)at);
        }
        /* Without a JIT (a machine that forbids writable code) the interpreter gives the same
         * matches. */
        pcre2_jit_compile(p->stage[i], PCRE2_JIT_COMPLETE);
    }
    *ret_pretok = p;
    return 0;
}

void sl_pretok_free(struct sl_pretok *p)
{
    if (!p)
        return;
    for (int i = 0; i < MAX_STAGES; i++)
        pcre2_code_free(p->stage[i]);
    free(p);
}

const char *sl_pretok_name(const struct sl_pretok *p)
{
    return p->kind->name;
}

bool sl_pretok_ignore_merges(const struct sl_pretok *p)
{
    return p->kind->ignore_merges;
}

struct split {
    const struct sl_pretok *pretok;
    pcre2_match_data *match;
    sl_piece_fn *fn;
    void *arg;
};

static int split_from(const struct split *s, int stage, const char *text, size_t len,
                      struct sl_err *err)
{
    if (stage == MAX_STAGES || !s->pretok->stage[stage])
        return s->fn(s->arg, text, len, err);
    for (size_t at = 0; at < len;) {
        size_t start = len, end = len;
        int rc = pcre2_match(s->pretok->stage[stage], (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK,
                             s->match, NULL);
        if (rc > 0) {
            const PCRE2_SIZE *span = pcre2_get_ovector_pointer(s->match);
            start = span[0];
            end = span[1];
        } else if (rc != PCRE2_ERROR_NOMATCH) {
            PCRE2_UCHAR msg[128];
            pcre2_get_error_message(rc, msg, sizeof msg);
            return sl_err_set(err, SL_DATA, "pre-tokenizer '%s' gave up at byte %zu: %s",
                              s->pretok->kind->name, at, (const char *)msg);
        }
        if (start > at && (rc = split_from(s, stage + 1, text + at, start - at, err)) < 0)
            return rc;
        if (end > start && (rc = split_from(s, stage + 1, text + start, end - start, err)) < 0)
            return rc;
        at = end; /* no pattern here matches nothing, so this moves on */
    }
    return 0;
}

int sl_pretok_split(const struct sl_pretok *p, const char *text, size_t len, sl_piece_fn *fn,
                    void *arg, struct sl_err *err)
{
    struct split s = {p, pcre2_match_data_create(1, NULL), fn, arg};
    if (!s.match)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    int rc = split_from(&s, 0, text, len, err);
    pcre2_match_data_free(s.match);
    return rc;
}
