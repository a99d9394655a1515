#include "engine/data/metrics.h"
#include "engine/text/utf8.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_GROWTH                                                                                \
    16 /* 13a puts two spaces around a character, at most twice; U+FFFD is three bytes */

struct words {
    const char *text; /* the bytes that `from` and `len` speak of */
    struct word {
        size_t from, len;
        int id; /* equal words of both texts have equal ids */
    } * word;
    size_t n;
};

static int check_length(const char *text, struct sl_err *err)
{
    if (strnlen(text, SL_METRIC_TEXT_MAX + 1) > SL_METRIC_TEXT_MAX)
        return sl_err_set(err, SL_SPEC, "a text to score is over the limit of %u bytes",
                          SL_METRIC_TEXT_MAX);
    return 0;
}

/* ---- 13a (mteval-v13a.pl, as sacrebleu's tokenizer_13a.py) ---- */

static int replace(struct sl_buf *b, struct sl_buf *scratch, const char *from, const char *to)
{
    const char *p = b->p, *at;
    struct sl_buf swap;
    int rc = 0;

    if (!memmem(b->p, b->len, from, strlen(from)))
        return 0;
    sl_buf_reset(scratch);
    while (!rc && (at = memmem(p, b->len - (size_t)(p - b->p), from, strlen(from)))) {
        rc = sl_buf_add(scratch, p, (size_t)(at - p));
        if (!rc)
            rc = sl_buf_adds(scratch, to);
        p = at + strlen(from);
    }
    if (!rc)
        rc = sl_buf_add(scratch, p, b->len - (size_t)(p - b->p));
    swap = *b;
    *b = *scratch;
    *scratch = swap;
    return rc;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_symbol(char c)
{
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
           (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

static bool is_point(char c)
{
    return c == '.' || c == ',';
}

/* Passes of regular expressions over two neighbours a and b, which a match consumes; each class
 * that is no ASCII set holds every byte of a longer character, so bytes do for characters. */
enum pass { SYMBOLS, POINT_AFTER, POINT_BEFORE, DASH };

static int run_pass(enum pass pass, struct sl_buf *b, struct sl_buf *out)
{
    struct sl_buf swap;
    int rc = 0;

    sl_buf_reset(out);
    for (size_t i = 0; i < b->len && !rc; i++) {
        char c = b->p[i], d = i + 1 < b->len ? b->p[i + 1] : 0;

        if (pass == SYMBOLS && is_symbol(c)) {
            rc = sl_buf_addf(out, " %c ", c);
        } else if (i + 1 < b->len && ((pass == POINT_AFTER && !is_digit(c) && is_point(d)) ||
                                      (pass == DASH && is_digit(c) && d == '-'))) {
            rc = sl_buf_addc(out, c);
            if (!rc)
                rc = sl_buf_addf(out, " %c ", d);
            i++;
        } else if (i + 1 < b->len && pass == POINT_BEFORE && is_point(c) && !is_digit(d)) {
            rc = sl_buf_addf(out, " %c ", c);
            if (!rc)
                rc = sl_buf_addc(out, d);
            i++;
        } else {
            rc = sl_buf_addc(out, c);
        }
    }
    swap = *b;
    *b = *out;
    *out = swap;
    return rc;
}

/* Length without white space at the end. */
static size_t stripped(const struct sl_buf *b)
{
    size_t end = 0;
    int len;

    for (size_t i = 0; i < b->len; i += (size_t)len)
        if (!sl_utf8_is_space(sl_utf8_decode(b->p + i, &len)))
            end = i + (size_t)len;
    return end;
}

static int tokenize_13a(const char *text, struct sl_buf *out)
{
    static const char *const entities[][2] = {{"<skipped>", ""}, {"-\n", ""},    {"\n", " "},
                                              {"&quot;", "\""},  {"&amp;", "&"}, {"&lt;", "<"},
                                              {"&gt;", ">"}};
    struct sl_buf scratch;
    int rc;

    sl_buf_init(&scratch, TEXT_GROWTH * SL_METRIC_TEXT_MAX);
    rc = sl_utf8_repair(text, strlen(text), out);
    if (!rc) {
        out->len = stripped(out);
        for (size_t i = 0; i < sizeof entities / sizeof *entities && !rc; i++)
            rc = replace(out, &scratch, entities[i][0], entities[i][1]);
    }
    if (!rc) {
        sl_buf_reset(&scratch);
        rc = sl_buf_addc(&scratch, ' ');
    }
    if (!rc)
        rc = sl_buf_add(&scratch, out->p, out->len);
    if (!rc)
        rc = sl_buf_addc(&scratch, ' ');
    if (!rc) {
        struct sl_buf swap = *out;

        *out = scratch;
        scratch = swap;
    }
    for (enum pass pass = SYMBOLS; pass <= DASH && !rc; pass++)
        rc = run_pass(pass, out, &scratch);
    sl_buf_release(&scratch);
    return rc;
}

/* ---- rouge-score's words ---- */

/* Lower case as Python has it; what becomes no a-z or 0-9 parts words. Two characters beyond ASCII
 * have such a letter in their lower case: the Kelvin sign, and a capital I with a dot, of which a
 * combining dot stays. */
static int tokenize_rouge(const char *text, struct sl_buf *out)
{
    int rc = 0;

    for (const char *p = text; *p && !rc; p++) {
        unsigned char c = (unsigned char)*p;

        if (c >= 'A' && c <= 'Z') {
            rc = sl_buf_addc(out, (char)(c - 'A' + 'a'));
        } else if ((c >= 'a' && c <= 'z') || is_digit(*p)) {
            rc = sl_buf_addc(out, *p);
        } else if (!strncmp(p, "\xe2\x84\xaa", 3)) {
            rc = sl_buf_addc(out, 'k');
            p += 2;
        } else if (!strncmp(p, "\xc4\xb0", 2)) {
            rc = sl_buf_adds(out, "i ");
            p++;
        } else {
            rc = sl_buf_addc(out, ' ');
        }
    }
    return rc;
}

/* ---- words ---- */

static int split(const struct sl_buf *b, struct words *w)
{
    bool in_word = false;
    size_t cap = b->len / 2 + 1;
    int len;

    w->text = b->p;
    w->n = 0;
    w->word = malloc(cap * sizeof *w->word);
    if (!w->word)
        return SL_NOMEM;
    for (size_t i = 0; i < b->len; i += (size_t)len) {
        bool space = sl_utf8_is_space(sl_utf8_decode(b->p + i, &len));

        if (!space && !in_word)
            w->word[w->n++] = (struct word){i, 0, -1};
        if (!space)
            w->word[w->n - 1].len = i + (size_t)len - w->word[w->n - 1].from;
        in_word = !space;
    }
    return 0;
}

struct entry {
    const char *p;
    size_t len;
    int *id;
};

static int by_bytes(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int d = memcmp(x->p, y->p, x->len < y->len ? x->len : y->len);

    return d ? d : x->len < y->len ? -1 : x->len > y->len;
}

static int number_words(struct words *a, struct words *b)
{
    size_t n = a->n + b->n;
    struct entry *e = malloc((n ? n : 1) * sizeof *e);

    if (!e)
        return SL_NOMEM;
    for (size_t i = 0; i < n; i++) {
        struct words *w = i < a->n ? a : b;
        struct word *word = &w->word[i < a->n ? i : i - a->n];

        e[i] = (struct entry){w->text + word->from, word->len, &word->id};
    }
    qsort(e, n, sizeof *e, by_bytes);
    for (size_t i = 0, id = 0; i < n; i++) {
        id += i && by_bytes(&e[i - 1], &e[i]);
        *e[i].id = (int)id;
    }
    free(e);
    return 0;
}

struct pair {
    struct sl_buf text[2];
    struct words words[2]; /* of the prediction, of the reference */
};

static void pair_release(struct pair *p)
{
    for (int i = 0; i < 2; i++) {
        free(p->words[i].word);
        sl_buf_release(&p->text[i]);
    }
}

static int pair_init(struct pair *p, const char *prediction, const char *ref,
                     int (*tokenize)(const char *, struct sl_buf *), struct sl_err *err)
{
    const char *const texts[2] = {prediction, ref};
    int rc = check_length(prediction, err);

    *p = (struct pair){0};
    for (int i = 0; i < 2; i++)
        sl_buf_init(&p->text[i], TEXT_GROWTH * SL_METRIC_TEXT_MAX);
    if (!rc)
        rc = check_length(ref, err);
    for (int i = 0; i < 2 && !rc; i++) {
        rc = tokenize(texts[i], &p->text[i]);
        if (!rc)
            rc = split(&p->text[i], &p->words[i]);
    }
    if (!rc)
        rc = number_words(&p->words[0], &p->words[1]);
    if (rc) {
        pair_release(p);
        sl_err_set(err, rc, "scoring: out of memory");
    }
    return rc;
}

/* ---- BLEU ---- */

struct gram {
    int id[SL_BLEU_ORDER];
};

static int by_ids(const void *a, const void *b)
{
    const struct gram *x = a, *y = b;

    for (int i = 0; i < SL_BLEU_ORDER; i++)
        if (x->id[i] != y->id[i])
            return x->id[i] < y->id[i] ? -1 : 1;
    return 0;
}

/* Sorted n-grams of this order into g; returns their number. */
static size_t grams(const struct words *w, size_t order, struct gram *g)
{
    size_t n = w->n < order ? 0 : w->n - order + 1;

    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < SL_BLEU_ORDER; k++)
            g[i].id[k] = k < order ? w->word[i + k].id : -1;
    qsort(g, n, sizeof *g, by_ids);
    return n;
}

int sl_bleu_add(struct sl_bleu *bleu, const char *prediction, const char *ref, struct sl_err *err)
{
    struct gram *g;
    struct pair p;
    int rc = pair_init(&p, prediction, ref, tokenize_13a, err);

    if (rc)
        return rc;
    g = malloc((p.words[0].n + p.words[1].n + 1) * sizeof *g);
    if (!g) {
        pair_release(&p);
        return sl_err_set(err, SL_NOMEM, "scoring: out of memory");
    }
    bleu->words += (int64_t)p.words[0].n;
    bleu->ref_words += (int64_t)p.words[1].n;
    for (size_t order = 1; order <= SL_BLEU_ORDER; order++) {
        size_t n = grams(&p.words[0], order, g), m = grams(&p.words[1], order, g + n);

        bleu->all[order - 1] += (int64_t)n;
        for (size_t i = 0, j = n; i < n && j < n + m;) {
            int d = by_ids(&g[i], &g[j]);

            bleu->same[order - 1] += d == 0;
            i += d <= 0;
            j += d >= 0;
        }
    }
    free(g);
    pair_release(&p);
    return 0;
}

double sl_bleu_score(const struct sl_bleu *b)
{
    double log_sum = 0, smooth = 1, penalty = 1;

    if (!b->same[0]) /* no word is right, so no more of them are */
        return 0;
    if (b->words < b->ref_words)
        penalty = exp(1 - (double)b->ref_words / (double)b->words);
    for (int n = 0; n < SL_BLEU_ORDER; n++) {
        if (!b->all[n])
            return 0; /* no prediction has as many words */
        if (!b->same[n])
            smooth *= 2;
        log_sum += log(100.0 * (b->same[n] ? (double)b->same[n] : 1 / smooth) / (double)b->all[n]);
    }
    return penalty * exp(log_sum / SL_BLEU_ORDER);
}

/* ---- ROUGE-L ---- */

/* Length of the longest common subsequence, in a row of the table. SL_NOMEM. */
static int64_t common(const struct words *a, const struct words *b)
{
    int *row = calloc(b->n + 1, sizeof *row);
    int64_t length;

    if (!row)
        return SL_NOMEM;
    for (size_t i = 0; i < a->n; i++) {
        int diagonal = 0;

        for (size_t j = 1; j <= b->n; j++) {
            int above = row[j];

            if (a->word[i].id == b->word[j - 1].id)
                row[j] = diagonal + 1;
            else if (row[j - 1] > above)
                row[j] = row[j - 1];
            diagonal = above;
        }
    }
    length = row[b->n];
    free(row);
    return length;
}

int sl_rouge_l(const char *prediction, const char *ref, double *ret_f, struct sl_err *err)
{
    double precision, recall, f = 0;
    int64_t same;
    struct pair p;
    int rc = pair_init(&p, prediction, ref, tokenize_rouge, err);

    if (rc)
        return rc;
    same = common(&p.words[0], &p.words[1]);
    if (same > 0) {
        precision = (double)same / (double)p.words[0].n;
        recall = (double)same / (double)p.words[1].n;
        f = 2 * precision * recall / (precision + recall);
    }
    pair_release(&p);
    if (same < 0)
        return sl_err_set(err, SL_NOMEM, "scoring: out of memory");
    *ret_f = f;
    return 0;
}

/* ---- a set of rows ---- */

int sl_metric_corpus(enum sl_metric metric, const char *const *predictions, const char *const *refs,
                     int n_rows, double *ret_score, struct sl_err *err)
{
    struct sl_scores scores = {0};
    struct sl_bleu bleu = {0};
    double rouge_sum = 0;
    int rc = 0;

    for (int i = 0; i < n_rows && !rc; i++) {
        struct sl_score score;
        double f = 0;

        if (metric == SL_METRIC_BLEU) {
            rc = sl_bleu_add(&bleu, predictions[i], refs[i], err);
        } else if (metric == SL_METRIC_ROUGE) {
            rc = sl_rouge_l(predictions[i], refs[i], &f, err);
            rouge_sum += f;
        } else {
            rc = sl_score_answer(predictions[i], &refs[i], 1, &score, err);
            if (!rc)
                sl_scores_add(&scores, &score);
        }
        if (rc)
            return sl_err_wrap(err, rc, "row %d", i + 1);
    }
    *ret_score = metric == SL_METRIC_BLEU          ? sl_bleu_score(&bleu)
                 : metric == SL_METRIC_ROUGE       ? (n_rows ? rouge_sum / n_rows : 0)
                 : metric == SL_METRIC_EXACT_MATCH ? sl_scores_exact(&scores)
                 : metric == SL_METRIC_F1          ? sl_scores_f1(&scores)
                                                   : sl_scores_accuracy(&scores);
    return 0;
}
