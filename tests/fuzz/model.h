/* Uses of a model's file and of a tokenizer, shared by the targets of model formats. */
#ifndef SL_TESTS_FUZZ_MODEL_H
#define SL_TESTS_FUZZ_MODEL_H
#include "engine/text/tokenizer.h"
#include "engine/weights.h"

/* Opens it; if that works, reads of every weight the first and the last row, takes its digest, and uses its
 * tokenizer. */
void fuzz_use_model(const char *path);
/* Tokenises a text of everything, and back. */
void fuzz_use_tokenizer(const struct sl_tokenizer *tok);

#endif
