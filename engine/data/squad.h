/* SQuAD (v1.1 or v2.0, Rajpurkar et al. 2016, 2018) as rows of a data set, as NeMo's preprocessing
 * makes them.
 *
 * A row is {"taskname": "squad", "context", "question", "answer"}, one for each question, in the
 * files' order; answer is the first of a question's answers. Files, each NAME_... in out_dir:
 *
 *     train.jsonl, val.jsonl      questions that have an answer
 *     test.jsonl                  all questions of the test articles, without answers
 *     test_ground_truth.jsonl     the same rows, with the list of all answers (empty: it has none)
 *     short_train.jsonl, short_val.jsonl   with subset N: the first N and the first N/10 rows
 *
 * Validation and test are both of the dev file. Without one they are made of the train file's last
 * articles, so that no article is in two of train, val and test. */
#ifndef SL_ENGINE_SQUAD_H
#define SL_ENGINE_SQUAD_H
#include "base/err.h"
#include <stdbool.h>

#define SL_SQUAD_FILE_MAX (256u << 20) /* bytes of a file read */
#define SL_SQUAD_OUT_MAX (1u << 30)    /* and of one written */

struct sl_squad {
    const char *train, *dev;                /* files; dev may be NULL */
    int validation_articles, test_articles; /* without dev */
    const char *out_dir, *name;
    bool topic; /* rows also hold the article's title */
    int subset; /* rows of short_train; 0: none */
};

enum sl_squad_file {
    SL_SQUAD_TRAIN,
    SL_SQUAD_VAL,
    SL_SQUAD_TEST,
    SL_SQUAD_SHORT_TRAIN,
    SL_SQUAD_SHORT_VAL,
    SL_SQUAD_FILES
};
extern const char *const sl_squad_files[SL_SQUAD_FILES]; /* "train", ... */

/* Writes them; ret_rows: of each. SL_SPEC: too few articles; SL_DATA: not SQuAD's format, with file
 * and place, or over the limits; SL_NOTFOUND, SL_IO, SL_NOMEM. Blocks. */
int sl_squad_write(const struct sl_squad *squad, int ret_rows[SL_SQUAD_FILES], struct sl_err *err);

#endif
