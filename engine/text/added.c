#include "engine/text/added.h"
#include "engine/text/pretok_pattern.h"
#include "engine/text/tokenizer.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define WORD_PATTERN_MAX 4096

struct sl_added {
    struct sl_added_token *token; /* sorted by text */
    int n;
    bool first[256];  /* bytes that some token starts with */
    pcre2_code *word; /* one word character; only with a SINGLE_WORD token */
};

static int by_text(const void *a, const void *b)
{
    const struct sl_added_token *x = a, *y = b;
    size_t n = x->text.len < y->text.len ? x->text.len : y->text.len;
    int c = memcmp(x->text.p, y->text.p, n);
    if (c == 0)
        c = (x->text.len > y->text.len) - (x->text.len < y->text.len);
    return c ? c : (x->id > y->id) - (x->id < y->id);
}

static int compile_word(struct sl_added *a, struct sl_err *err)
{
    struct sl_buf text;
    int code;
    PCRE2_SIZE at;
    sl_buf_init(&text, WORD_PATTERN_MAX);
    if (sl_pattern_word(&text) == 0)
        a->word =
            pcre2_compile((PCRE2_SPTR)text.p, text.len, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    sl_buf_release(&text);
    return a->word ? 0 : sl_err_set(err, SL_NOMEM, "word characters: PCRE2 cannot compile them");
}

int sl_added_new(const struct sl_added_token *tokens, int n, struct sl_added **ret_added,
                 struct sl_err *err)
{
    struct sl_added *a = calloc(1, sizeof *a);
    struct sl_added_token *copy = malloc(((size_t)n + 1) * sizeof *copy);
    if (!a || !copy) {
        free(a);
        free(copy);
        return sl_err_set(err, SL_NOMEM, "out of memory for %d added tokens", n);
    }
    a->token = copy;
    a->n = n;
    if (n > 0)
        memcpy(copy, tokens, (size_t)n * sizeof *copy);
    qsort(copy, (size_t)n, sizeof *copy, by_text);
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        a->first[(unsigned char)*copy[i].text.p] = true;
        if ((copy[i].flags & SL_TOKEN_SINGLE_WORD) && !a->word)
            rc = compile_word(a, err);
    }
    if (rc < 0) {
        sl_added_free(a);
        return rc;
    }
    *ret_added = a;
    return 0;
}

void sl_added_free(struct sl_added *a)
{
    if (!a)
        return;
    pcre2_code_free(a->word);
    free(a->token);
    free(a);
}

/* The longest token that text starts with, or NULL: narrows the sorted list byte by byte. */
static const struct sl_added_token *longest_at(const struct sl_added *a, const char *text,
                                               size_t len)
{
    int low = 0, high = a->n;
    const struct sl_added_token *found = NULL;
    for (size_t depth = 0; low < high && depth < len; depth++) {
        unsigned char want = (unsigned char)text[depth];
        int edge[2]; /* first token whose byte at depth is >= want, and > want */
        for (int k = 0; k < 2; k++) {
            int from = low, to = high;
            while (from < to) {
                int mid = from + (to - from) / 2;
                struct sl_text s = a->token[mid].text;
                int byte = depth < s.len ? (unsigned char)s.p[depth] : -1;
                if (byte < want + k)
                    from = mid + 1;
                else
                    to = mid;
            }
            edge[k] = from;
        }
        low = edge[0];
        high = edge[1];
        /* Sorted: a token that ends here comes first. */
        if (low < high && a->token[low].text.len == depth + 1)
            found = &a->token[low];
    }
    return found;
}

static size_t char_start(const char *text, size_t end)
{
    do
        end--;
    while (end > 0 && ((unsigned char)text[end] & 0xC0) == 0x80);
    return end;
}

static size_t char_end(const char *text, size_t len, size_t at)
{
    do
        at++;
    while (at < len && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

static bool is_space(const char *p, size_t len)
{
    static const char *const wide[] = {
        "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
        "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80",
    };
    if (len == 1)
        return *p == ' ' || (*p >= '\t' && *p <= '\r');
    if (len == 3 && !memcmp(p, "\xE2\x80", 2) && (unsigned char)p[2] <= 0x8A)
        return true; /* U+2000 to U+200A */
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (strlen(wide[i]) == len && !memcmp(p, wide[i], len))
            return true;
    return false;
}

/* 1, 0, or SL_NOMEM. */
static int is_word(const struct sl_added *a, const char *p, size_t len)
{
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match)
        return SL_NOMEM;
    int rc = pcre2_match(a->word, (PCRE2_SPTR)p, len, 0, PCRE2_NO_UTF_CHECK, match, NULL);
    pcre2_match_data_free(match);
    return rc > 0;
}

/* Whether a word character stands before from or behind to: 1, 0 or SL_NOMEM. */
static int inside_word(const struct sl_added *a, const char *text, size_t len, size_t from,
                       size_t to)
{
    int rc = 0;
    if (from > 0) {
        size_t start = char_start(text, from);
        rc = is_word(a, text + start, from - start);
    }
    if (rc == 0 && to < len)
        rc = is_word(a, text + to, char_end(text, len, to) - to);
    return rc;
}

int sl_added_split(const struct sl_added *a, const char *text, size_t len, bool specials,
                   sl_part_fn *fn, void *arg, struct sl_err *err)
{
    size_t start = 0, at = 0;
    int rc;
    while (at < len) {
        const struct sl_added_token *found = NULL;
        if (a->first[(unsigned char)text[at]])
            found = longest_at(a, text + at, len - at);
        if (!found) {
            at++;
            continue;
        }
        size_t from = at, to = at + found->text.len;
        at = to; /* the search goes on behind the token, whatever it strips */
        if (found->control && !specials)
            continue;
        if (found->flags & SL_TOKEN_SINGLE_WORD) {
            rc = inside_word(a, text, len, from, to);
            if (rc < 0)
                return sl_err_set(err, rc, "out of memory for an added token");
            if (rc > 0)
                continue;
        }
        if (found->flags & SL_TOKEN_LSTRIP) {
            size_t before = from;
            while (before > 0 &&
                   is_space(text + char_start(text, before), before - char_start(text, before)))
                before = char_start(text, before);
            from = before > start ? before : start;
        }
        if (found->flags & SL_TOKEN_RSTRIP)
            while (to < len && is_space(text + to, char_end(text, len, to) - to))
                to = char_end(text, len, to);
        if (from > start && (rc = fn(arg, -1, text + start, from - start, err)) < 0)
            return rc;
        /* Taken along whole by the token before: it leaves nothing, as in the reference. */
        if (from < to && (rc = fn(arg, found->id, text + from, 0, err)) < 0)
            return rc;
        start = to;
    }
    return len > start ? fn(arg, -1, text + start, len - start, err) : 0;
}
