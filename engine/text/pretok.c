#include "engine/text/pretok.h"
#include "base/buf.h"
#include "engine/text/pretok_pattern.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define COMPILED_MAX (16 * SL_PRETOK_PATTERN_MAX) /* bytes; classes are written out */
#define NAME_MAX_BYTES (2 * SL_PRETOK_STAGES_MAX * SL_PRETOK_PATTERN_MAX)

/* Llama 3 and Qwen2 differ in how many digits go together. */
#define CL100K(digits)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits                     \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define REGEX(text)                                                                                \
    {                                                                                              \
        SL_PRETOK_REGEX, text, sizeof(text) - 1                                                    \
    }

static const struct kind {
    const char *name;
    struct sl_pretok_stage stage[2];
    int n;
    bool ignore_merges;
} kinds[] = {
    {"smollm", {{SL_PRETOK_DIGITS, NULL, 0}, REGEX(SL_PRETOK_GPT2)}, 2, false},
    {"gpt-2", {REGEX(SL_PRETOK_GPT2)}, 1, false},
    {"llama-bpe", {REGEX(CL100K("{1,3}"))}, 1, true},
    {"qwen2", {REGEX(CL100K(""))}, 1, false},
};
#define N_KINDS (sizeof kinds / sizeof kinds[0])

struct sl_pretok {
    char *name;
    bool ignore_merges;
    int n;
    pcre2_code *stage[SL_PRETOK_STAGES_MAX]; /* NULL: a space in front */
};

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory for a pre-tokenizer");
}

static int pattern_of(const struct sl_pretok_stage *s, struct sl_buf *out, struct sl_err *err)
{
    switch (s->kind) {
    case SL_PRETOK_REGEX:
        return sl_pattern_translate(s->pattern, s->len, out, err);
    case SL_PRETOK_TEXT:
        return sl_buf_add(out, s->pattern, s->len) < 0 ? no_memory(err) : 0;
    case SL_PRETOK_DIGITS:
    case SL_PRETOK_DIGIT_RUNS:
        if (sl_pattern_digit(out) < 0 ||
            (s->kind == SL_PRETOK_DIGIT_RUNS && sl_buf_addc(out, '+') < 0))
            return no_memory(err);
        break;
    case SL_PRETOK_PREFIX_SPACE:
        break;
    }
    return 0;
}

static int compile(const struct sl_pretok_stage *s, pcre2_code **ret_code, struct sl_err *err)
{
    struct sl_buf text;
    PCRE2_UCHAR msg[128];
    PCRE2_SIZE at;
    int code;
    if (s->kind == SL_PRETOK_PREFIX_SPACE)
        return 0;
    if (s->len > SL_PRETOK_PATTERN_MAX)
        return sl_err_set(err, SL_SPEC,
                          "a pre-tokenizer's pattern has %zu bytes; at most %d are "
                          "supported",
                          s->len, SL_PRETOK_PATTERN_MAX);
    sl_buf_init(&text, COMPILED_MAX);
    int rc = pattern_of(s, &text, err);
    if (rc == 0) {
        uint32_t how = s->kind == SL_PRETOK_TEXT ? PCRE2_LITERAL : PCRE2_UCP, empty = 1;
        pcre2_code *c =
            pcre2_compile((PCRE2_SPTR)text.p, text.len, PCRE2_UTF | how, &code, &at, NULL);
        if (!c) {
            pcre2_get_error_message(code, msg, sizeof msg);
            rc = sl_err_set(err, SL_SPEC, "a pre-tokenizer's pattern does not compile: %s",
                            (const char *)msg);
        } else if (pcre2_pattern_info(c, PCRE2_INFO_MATCHEMPTY, &empty) < 0 || empty) {
            pcre2_code_free(c);
            rc = sl_err_set(err, SL_SPEC,
                            "a pre-tokenizer's pattern that can match nothing is not "
                            "supported");
        } else {
            /* Without a JIT (a machine that forbids writable code) the interpreter gives the same
             * matches. */
            pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);
            *ret_code = c;
        }
    }
    sl_buf_release(&text);
    return rc;
}

static bool same_stages(const struct kind *k, const struct sl_pretok_stage *s, int n, bool ignore)
{
    bool same = k->n == n && k->ignore_merges == ignore;
    for (int i = 0; same && i < n; i++)
        same = k->stage[i].kind == s[i].kind && k->stage[i].len == s[i].len &&
               (s[i].len == 0 || !memcmp(k->stage[i].pattern, s[i].pattern, s[i].len));
    return same;
}

static char *name_of(const struct sl_pretok_stage *s, int n, bool ignore_merges)
{
    struct sl_buf name;
    char *text = NULL;
    int rc = 0;
    for (size_t i = 0; i < N_KINDS; i++)
        if (same_stages(&kinds[i], s, n, ignore_merges))
            return strdup(kinds[i].name);
    sl_buf_init(&name, NAME_MAX_BYTES);
    rc = sl_buf_adds(&name, ignore_merges ? "whole words" : "");
    for (int i = 0; rc == 0 && i < n; i++) {
        rc = sl_buf_addf(&name, "\n%d %zu ", (int)s[i].kind, s[i].len);
        if (rc == 0 && s[i].len > 0)
            rc = sl_buf_add(&name, s[i].pattern, s[i].len);
    }
    if (rc == 0)
        text = sl_buf_take(&name);
    sl_buf_release(&name);
    return text;
}

int sl_pretok_from_stages(const struct sl_pretok_stage *stages, int n, bool ignore_merges,
                          struct sl_pretok **ret_pretok, struct sl_err *err)
{
    if (n > SL_PRETOK_STAGES_MAX)
        return sl_err_set(err, SL_SPEC, "a pre-tokenizer of %d stages; at most %d are supported", n,
                          SL_PRETOK_STAGES_MAX);
    struct sl_pretok *p = calloc(1, sizeof *p);
    if (!p)
        return no_memory(err);
    p->ignore_merges = ignore_merges;
    p->n = n;
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++)
        rc = compile(&stages[i], &p->stage[i], err);
    if (rc == 0 && !(p->name = name_of(stages, n, ignore_merges)))
        rc = no_memory(err);
    if (rc < 0) {
        sl_pretok_free(p);
        return rc;
    }
    *ret_pretok = p;
    return 0;
}

int sl_pretok_new(const char *name, struct sl_pretok **ret_pretok, struct sl_err *err)
{
    for (size_t i = 0; i < N_KINDS; i++)
        if (!strcmp(kinds[i].name, name))
            return sl_pretok_from_stages(kinds[i].stage, kinds[i].n, kinds[i].ignore_merges,
                                         ret_pretok, err);
    return sl_err_set(err, SL_SPEC,
                      "pre-tokenizer '%.64s' is not supported (supported: %s, %s, %s, %s)", name,
                      kinds[0].name, kinds[1].name, kinds[2].name, kinds[3].name);
}

void sl_pretok_free(struct sl_pretok *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n; i++)
        pcre2_code_free(p->stage[i]);
    free(p->name);
    free(p);
}

const char *sl_pretok_name(const struct sl_pretok *p)
{
    return p->name;
}

bool sl_pretok_ignore_merges(const struct sl_pretok *p)
{
    return p->ignore_merges;
}

struct split {
    const struct sl_pretok *pretok;
    pcre2_match_data *match;
    sl_piece_fn *fn;
    void *arg;
};

static int split_from(const struct split *s, int stage, const char *text, size_t len,
                      struct sl_err *err);

static int prefix_space(const struct split *s, int stage, const char *text, size_t len,
                        struct sl_err *err)
{
    if (text[0] == ' ')
        return split_from(s, stage, text, len, err);
    char *copy = malloc(len + 1);
    if (!copy)
        return no_memory(err);
    copy[0] = ' ';
    memcpy(copy + 1, text, len);
    int rc = split_from(s, stage, copy, len + 1, err);
    free(copy);
    return rc;
}

static int split_from(const struct split *s, int stage, const char *text, size_t len,
                      struct sl_err *err)
{
    if (stage == s->pretok->n)
        return s->fn(s->arg, text, len, err);
    if (!s->pretok->stage[stage])
        return prefix_space(s, stage + 1, text, len, err);
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
            return sl_err_set(err, SL_DATA, "the pre-tokenizer gave up at byte %zu: %s", at,
                              (const char *)msg);
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
        return no_memory(err);
    int rc = split_from(&s, 0, text, len, err);
    pcre2_match_data_free(s.match);
    return rc;
}
