/* Scores of generated answers, as SQuAD v1.1's evaluation script counts them.
 *
 * Normalisation, in this order: Unicode lower case, the 32 ASCII punctuation marks removed (no
 * others, as string.punctuation), the words a, an and the replaced by a space (a word's edge is
 * where Python's \b is), white space (str.split's) collapsed to single spaces and stripped. Texts
 * are UTF-8; invalid bytes count as U+FFFD. Pure functions; they do not depend on the process's
 * locale. */
#ifndef SL_ENGINE_METRICS_H
#define SL_ENGINE_METRICS_H
#include "base/buf.h"
#include "base/err.h"
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

#endif
