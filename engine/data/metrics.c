#include "engine/data/metrics.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/utf8.h"
#include <ctype.h>
#include <locale.h>
#include <pcre2.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

#define TEXT_GROWTH 3 /* one invalid byte becomes the three of U+FFFD */
#define MAX_UTF8 4    /* bytes of a character */
#define CAPITAL_I_DOT 0x130
#define SMALL_I_DOT "i\xcc\x87" /* with U+0307 */
#define FINAL_SIGMA "\xcf\x82"

/* Python's \b(a|an|the)\b: its \w is a letter, a number or _; PCRE2's own \w changed in 10.43. */
static const char article_pattern[] = "(?<![\\p{L}\\p{N}_])(?:a|an|the)(?![\\p{L}\\p{N}_])";
/* Unicode's Final_Sigma: a letter with case before it, none behind it, case-ignorable characters
 * passed over. */
#define IGNORABLE                                                                                  \
    "[\\p{Mn}\\p{Me}\\p{Cf}\\p{Lm}\\p{Sk}'.:\\x{b7}\\x{2018}\\x{2019}\\x{2024}\\x{2027}]*+"
#define CASED "[\\x{aa}\\x{ba}\\p{Lu}\\p{Ll}\\p{Lt}\\x{2160}-\\x{217f}\\x{24b6}-\\x{24e9}]"
static const char final_sigma_pattern[] = CASED IGNORABLE "\\K\\x{3a3}(?!" IGNORABLE CASED ")";

static pthread_once_t once = PTHREAD_ONCE_INIT;
static locale_t unicode; /* (locale_t)0: not available */
static pcre2_code *article, *final_sigma;

static pcre2_code *compile(const char *pattern)
{
    PCRE2_SIZE at;
    int code;

    return pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_NO_UTF_CHECK,
                         &code, &at, NULL);
}

static void set_up(void)
{
    unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    article = compile(article_pattern);
    final_sigma = compile(final_sigma_pattern);
}

/* ---- characters ---- */

static int put(struct sl_buf *b, uint32_t c)
{
    char s[MAX_UTF8];
    size_t n = 0;

    if (c < 0x80)
        return sl_buf_addc(b, (char)c);
    if (c < 0x800) {
        s[n++] = (char)(0xc0 | c >> 6);
    } else {
        if (c < 0x10000) {
            s[n++] = (char)(0xe0 | c >> 12);
        } else {
            s[n++] = (char)(0xf0 | c >> 18);
            s[n++] = (char)(0x80 | (c >> 12 & 0x3f));
        }
        s[n++] = (char)(0x80 | (c >> 6 & 0x3f));
    }
    s[n++] = (char)(0x80 | (c & 0x3f));
    return sl_buf_add(b, s, n);
}

/* ---- normalisation ---- */

/* Every match replaced. */
static int substitute(const pcre2_code *pattern, const struct sl_buf *in, const char *by,
                      struct sl_buf *out)
{
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    size_t at = 0;
    int rc = match ? 0 : SL_NOMEM;

    while (!rc && pcre2_match(pattern, (PCRE2_SPTR)in->p, in->len, at, PCRE2_NO_UTF_CHECK, match,
                              NULL) >= 0) {
        PCRE2_SIZE *span = pcre2_get_ovector_pointer(match);

        rc = sl_buf_add(out, in->p + at, span[0] - at);
        if (!rc)
            rc = sl_buf_adds(out, by);
        at = span[1];
    }
    if (!rc)
        rc = sl_buf_add(out, in->p + at, in->len - at);
    pcre2_match_data_free(match);
    return rc;
}

static int lower_without_punctuation(const struct sl_buf *in, struct sl_buf *out)
{
    int rc = 0, len;

    for (const char *p = in->p; p < in->p + in->len && !rc; p += len) {
        uint32_t c = sl_utf8_decode(p, &len);

        if (c == CAPITAL_I_DOT)
            rc = sl_buf_adds(out, SMALL_I_DOT);
        else if (c >= 0x80 || !ispunct((int)c))
            rc = put(out, (uint32_t)towlower_l((wint_t)c, unicode));
    }
    return rc;
}

static int collapse_spaces(const struct sl_buf *in, struct sl_buf *out)
{
    bool gap = false, any = false;
    int rc = 0, len;

    for (const char *p = in->p; p < in->p + in->len && !rc; p += len) {
        uint32_t c = sl_utf8_decode(p, &len);

        if (sl_utf8_is_space(c)) {
            gap = any;
            continue;
        }
        if (gap)
            rc = sl_buf_addc(out, ' ');
        if (!rc)
            rc = sl_buf_add(out, p, (size_t)len);
        gap = false;
        any = true;
    }
    return rc;
}

int sl_normalize_answer(const char *text, struct sl_buf *buf, struct sl_err *err)
{
    struct sl_buf a, b;
    size_t len = strnlen(text, SL_METRIC_TEXT_MAX + 1);
    int rc;

    pthread_once(&once, set_up);
    if (!article || !final_sigma)
        return sl_err_set(err, SL_NOMEM, "scoring: PCRE2 did not take its patterns");
    if (!unicode)
        return sl_err_set(err, SL_IO,
                          "scoring needs the C library's C.UTF-8 locale, which is missing");
    if (len > SL_METRIC_TEXT_MAX)
        return sl_err_set(err, SL_SPEC, "a text to score is over the limit of %u bytes",
                          SL_METRIC_TEXT_MAX);
    sl_buf_init(&a, TEXT_GROWTH * SL_METRIC_TEXT_MAX);
    sl_buf_init(&b, TEXT_GROWTH * SL_METRIC_TEXT_MAX);
    rc = sl_utf8_repair(text, len, &a);
    if (!rc)
        rc = substitute(final_sigma, &a, FINAL_SIGMA, &b);
    if (!rc) {
        sl_buf_reset(&a);
        rc = lower_without_punctuation(&b, &a);
    }
    if (!rc) {
        sl_buf_reset(&b);
        rc = substitute(article, &a, " ", &b);
    }
    if (!rc)
        rc = collapse_spaces(&b, buf);
    sl_buf_release(&a);
    sl_buf_release(&b);
    return rc ? sl_err_set(err, SL_NOMEM, "normalising an answer: out of memory") : 0;
}

/* ---- scores ---- */

struct word {
    const char *p;
    size_t len;
};

static int by_bytes(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    int d = memcmp(x->p, y->p, x->len < y->len ? x->len : y->len);

    return d ? d : x->len < y->len ? -1 : x->len > y->len;
}

/* The words of a normalised text, sorted; NULL: out of memory. The caller frees them. */
static struct word *split(const struct sl_buf *text, size_t *ret_n)
{
    struct word *w = malloc((text->len / 2 + 1) * sizeof *w);
    size_t n = 0, len;

    if (!w)
        return NULL;
    for (const char *p = text->p; p < text->p + text->len; p += len + 1) {
        len = (size_t)(strchrnul(p, ' ') - p);
        w[n++] = (struct word){p, len};
    }
    qsort(w, n, sizeof *w, by_bytes);
    *ret_n = n;
    return w;
}

static double f1(const struct word *a, size_t n_a, const struct word *b, size_t n_b)
{
    size_t same = 0;
    double precision, recall;

    if (!n_a || !n_b)
        return n_a == n_b;
    for (size_t i = 0, j = 0; i < n_a && j < n_b;) {
        int d = by_bytes(&a[i], &b[j]);

        same += d == 0;
        i += d <= 0;
        j += d >= 0;
    }
    if (!same)
        return 0;
    precision = (double)same / (double)n_a;
    recall = (double)same / (double)n_b;
    return 2 * precision * recall / (precision + recall);
}

static bool same_label(const char *a, const char *b)
{
    static const char space[] = " \t\n\v\f\r";
    size_t n_a, n_b;

    a += strspn(a, space);
    b += strspn(b, space);
    for (n_a = strlen(a); n_a && strchr(space, a[n_a - 1]); n_a--)
        ;
    for (n_b = strlen(b); n_b && strchr(space, b[n_b - 1]); n_b--)
        ;
    return n_a == n_b && !memcmp(a, b, n_a);
}

static int score_ref(const struct sl_buf *pred, const struct word *words, size_t n_words,
                     const char *ref, struct sl_score *s, struct sl_err *err)
{
    struct sl_buf text;
    struct word *w = NULL;
    size_t n = 0;
    int rc;

    sl_buf_init(&text, TEXT_GROWTH * SL_METRIC_TEXT_MAX);
    rc = sl_normalize_answer(ref, &text, err);
    if (!rc) {
        w = split(&text, &n);
        rc = w ? 0 : sl_err_set(err, SL_NOMEM, "scoring: out of memory");
    }
    if (!rc) {
        double f = f1(words, n_words, w, n);

        s->exact |= text.len == pred->len && !memcmp(text.p, pred->p, text.len);
        s->f1 = f > s->f1 ? f : s->f1;
    }
    free(w);
    sl_buf_release(&text);
    return rc;
}

int sl_score_answer(const char *prediction, const char *const *refs, int n_refs,
                    struct sl_score *ret_score, struct sl_err *err)
{
    struct sl_score s = {false, 0, false};
    struct sl_buf pred;
    struct word *words = NULL;
    size_t n_words = 0;
    int rc;

    if (n_refs < 1 || n_refs > SL_METRIC_MAX_REFS)
        return sl_err_set(err, SL_SPEC, "%d reference answers; 1 to %d are possible", n_refs,
                          SL_METRIC_MAX_REFS);
    sl_buf_init(&pred, TEXT_GROWTH * SL_METRIC_TEXT_MAX);
    rc = sl_normalize_answer(prediction, &pred, err);
    if (!rc) {
        words = split(&pred, &n_words);
        rc = words ? 0 : sl_err_set(err, SL_NOMEM, "scoring: out of memory");
    }
    for (int i = 0; i < n_refs && !rc; i++) {
        s.accurate |= same_label(prediction, refs[i]);
        rc = score_ref(&pred, words, n_words, refs[i], &s, err);
    }
    free(words);
    sl_buf_release(&pred);
    if (!rc)
        *ret_score = s;
    return rc;
}

int sl_score_answers(const char *prediction, const json_t *answers, struct sl_score *ret_score,
                     struct sl_err *err)
{
    const char *refs[SL_METRIC_MAX_REFS] = {""};
    size_t n = json_array_size(answers);

    if (n > SL_METRIC_MAX_REFS)
        return sl_err_set(err, SL_SPEC, "a row has %zu answers; up to %d are possible", n,
                          SL_METRIC_MAX_REFS);
    for (size_t i = 0; i < n; i++) {
        refs[i] = json_string_value(json_array_get(answers, i));
        if (!refs[i])
            return sl_err_set(err, SL_SPEC, "a row's list of answers holds what is no text");
    }
    return sl_score_answer(prediction, refs, n ? (int)n : 1, ret_score, err);
}

void sl_scores_add(struct sl_scores *s, const struct sl_score *score)
{
    s->rows++;
    s->exact += score->exact;
    s->accurate += score->accurate;
    s->f1_sum += score->f1;
}

double sl_scores_exact(const struct sl_scores *s)
{
    return s->rows ? (double)s->exact / (double)s->rows : 0;
}

double sl_scores_f1(const struct sl_scores *s)
{
    return s->rows ? s->f1_sum / (double)s->rows : 0;
}

double sl_scores_accuracy(const struct sl_scores *s)
{
    return s->rows ? (double)s->accurate / (double)s->rows : 0;
}
