/* SentencePiece's model files (sentencepiece_model.proto, protobuf's wire format), as far as we
 * read and write them ourselves: the pieces, and what has to hold before its library may have a
 * file that nobody vouches for. */
#ifndef SL_ENGINE_SPM_MODEL_H
#define SL_ENGINE_SPM_MODEL_H
#include "base/buf.h"
#include "base/err.h"
#include "engine/text/text_set.h"
#include "engine/text/tokenizer.h"
#include <stdbool.h>
#include <stddef.h>

struct sl_spm_model {
    int n_pieces;
    struct sl_text *piece;          /* into the data */
    unsigned char *kind;            /* SL_TOKEN_NORMAL and so on */
    struct sl_text unknown_surface; /* what the unknown piece reads as */
    bool dummy_prefix, remove_extra_spaces;
};

/* SL_DATA for what is no model or would make the library read outside its tables; SL_SPEC for
 * features that are not supported. On success release frees it. */
int sl_spm_model_read(const void *data, size_t len, struct sl_spm_model *ret_model,
                      struct sl_err *err);
void sl_spm_model_release(struct sl_spm_model *m); /* NULL-safe, {0} too */

/* Appends the model of a vocabulary with scores: BPE, no normalisation. SL_NOMEM. */
int sl_spm_model_write(const struct sl_scored_vocab *vocab, struct sl_buf *buf);

#endif
