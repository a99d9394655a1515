/* Scores of generated answers: exact match and F1 as SQuAD v1.1's evaluation script counts them,
 * accuracy, BLEU (Papineni et al. 2002) and ROUGE-L (Lin 2004).
 *
 * SQuAD's normalisation, in this order: Unicode lower case, the 32 ASCII punctuation marks removed (no
 * others, as string.punctuation), the words a, an and the replaced by a space (a word's edge is
 * where Python's \b is), white space (str.split's) collapsed to single spaces and stripped. Texts
 * are UTF-8; invalid bytes count as U+FFFD. Pure functions; they do not depend on the process's
 * locale. */
#ifndef SL_ENGINE_METRICS_H
#define SL_ENGINE_METRICS_H
#include "base/buf.h"
#include "base/err.h"
#include "engine/config.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_METRIC_TEXT_MAX (1u << 20) /* bytes of one prediction or reference */
#define SL_METRIC_MAX_REFS 64

/* Appends the normalised text. SL_SPEC: too long; SL_NOMEM; SL_IO: the C library lacks the C.UTF-8
 * locale. */
int sl_normalize_answer(const char *text, struct sl_buf *buf, struct sl_err *err);

struct sl_score {
    bool exact; /* normalised prediction equals a normalised reference */
    double
        f1;        /* of the bags of words; the best over the references. Where both are empty after
                    * normalisation it     is 1, where one is 0 (v2.0's script; v1.1's gives 0 for both) */
    bool accurate; /* equals a reference byte for byte, ASCII white space at both ends aside */
};
/* refs: 1 to SL_METRIC_MAX_REFS reference answers. */
int sl_score_answer(const char *prediction, const char *const *refs, int n_refs,
                    struct sl_score *ret_score, struct sl_err *err);

/* The same against a list of strings, a question's right answers as `data squad` lists them. An
 * empty list: the question has none, and only a prediction that is empty after normalisation is right. */
int sl_score_answers(const char *prediction, const json_t *answers, struct sl_score *ret_score,
                     struct sl_err *err);

/* Means over rows; init with {0}. */
struct sl_scores {
    int64_t rows, exact, accurate;
    double f1_sum;
};
void sl_scores_add(struct sl_scores *s, const struct sl_score *score);
/* In [0, 1]; 0 without rows. */
double sl_scores_exact(const struct sl_scores *s);
double sl_scores_f1(const struct sl_scores *s);
double sl_scores_accuracy(const struct sl_scores *s);

/* Corpus BLEU with one reference a row, as sacrebleu computes it by default: 13a tokens, up to 4
 * words, exponential smoothing, case kept. Init with {0}. */
#define SL_BLEU_ORDER 4
struct sl_bleu {
    int64_t same[SL_BLEU_ORDER], all[SL_BLEU_ORDER]; /* n-grams of the predictions */
    int64_t words, ref_words;
};
/* SL_SPEC: a text is over SL_METRIC_TEXT_MAX; SL_NOMEM. */
int sl_bleu_add(struct sl_bleu *bleu, const char *prediction, const char *ref, struct sl_err *err);
/* In [0, 100]. */
double sl_bleu_score(const struct sl_bleu *bleu);

/* The F-measure of rougeL of the rouge-score package, without stemming, in [0, 1]: words are runs
 * of a-z and 0-9 in the lower-case text. Time is the product of the numbers of words. */
int sl_rouge_l(const char *prediction, const char *ref, double *ret_f, struct sl_err *err);

/* One number for a set of rows with one reference each, the mean but for BLEU: in [0, 1], BLEU in
 * [0, 100]. 0 without rows. */
int sl_metric_corpus(enum sl_metric metric, const char *const *predictions, const char *const *refs,
                     int n_rows, double *ret_score, struct sl_err *err);

#endif
