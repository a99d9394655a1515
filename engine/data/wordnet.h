/* WordNet's glosses as a question-answering data set of two tasks, for demos and tests on real
 * text.
 *
 * Source: the data.noun, data.verb, data.adj and data.adv of WordNet 3.0 (wndb(5WN)). A row is
 * {"taskname", "context", "question", "answer", "synset"}; context is a gloss's definition
 * (examples and what follows them cut off), 10 to 200 bytes of ASCII; question lists the answers.
 *
 * Task category: a noun's gloss. The answer is the lexicographer file it is in, of the 12 with most
 * usable glosses, by WordNet's own word ("animal" for noun.animal); equal counts.
 *
 * Task part_of_speech: any gloss. The answer is noun, verb, adjective or adverb; equal counts.
 *
 * A synset is in at most one row of all files, whatever the task, and no two rows have the same
 * context (a gloss that two synsets share is left out), so nothing of validation or test is seen in
 * training. The same input and seed give the same bytes. */
#ifndef SL_ENGINE_WORDNET_H
#define SL_ENGINE_WORDNET_H
#include "base/err.h"
#include <stdint.h>

#define SL_WORDNET_CATEGORIES 12
#define SL_WORDNET_PARTS 4
#define SL_WORDNET_GLOSS_MIN 10
#define SL_WORDNET_GLOSS_MAX 200

enum sl_wordnet_split {
    SL_WORDNET_TRAIN,
    SL_WORDNET_VALIDATION,
    SL_WORDNET_TEST,
    SL_WORDNET_SPLITS
};

struct sl_wordnet_sizes {
    int category[SL_WORDNET_SPLITS];       /* rows; multiples of SL_WORDNET_CATEGORIES */
    int part_of_speech[SL_WORDNET_SPLITS]; /* rows; multiples of SL_WORDNET_PARTS */
};
/* clang-format off */
#define SL_WORDNET_SIZES_DEFAULT {{2400, 240, 240}, {1200, 200, 200}}
/* clang-format on */

/* Writes out_dir/{train,validation,test}.jsonl, rows of both tasks mixed. SL_NOTFOUND or SL_IO for
 * the files, SL_DATA for what is not WordNet's format (with file and line), SL_SPEC for sizes that
 * do not divide or are not there. */
int sl_wordnet_write(const char *wordnet_dir, const char *out_dir, uint64_t seed,
                     const struct sl_wordnet_sizes *sizes, struct sl_err *err);

#endif
