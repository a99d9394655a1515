/* What a tokenizer is made of. For tokenizer*.c only. */
#ifndef SL_ENGINE_TOKENIZER_PARTS_H
#define SL_ENGINE_TOKENIZER_PARTS_H
#include "engine/text/added.h"
#include "engine/text/merge.h"
#include "engine/text/pretok.h"
#include "engine/text/spm.h"
#include "engine/text/text_set.h"
#include "engine/text/tokenizer.h"

struct sl_tokenizer {
    int n_tokens;
    size_t *start; /* n_tokens + 1 offsets into bytes */
    char *bytes;   /* what each token stands for */
    unsigned char *kind;
    /* Added tokens: those looked for in the text as it is, and those in what the first leave, once
     * it is normalised; the second is NULL where there are none. */
    struct sl_added *added, *added_normalized;
    char *normalized; /* texts of the second kind where normalising changes them */

    /* SentencePiece, else NULL */
    struct sl_spm *spm;
    bool strip_first, strip_all; /* the space of the first piece is not in the text; of all pieces
                                    up to the first with more in it */

    /* byte-level BPE */
    struct sl_pretok *pretok;
    bool nfc, fuse_unknown;
    int32_t byte_id[256]; /* -1: the vocabulary has no token for this byte alone, nor an unknown */
    bool byte_unknown[256];
    struct sl_merges *merges;
    struct sl_text_set words; /* normal tokens; only for pre-tokenizers that ignore merges */

    int32_t bos, eos;
    char digest[SL_SHA256_HEX + 1];
};

struct sl_text sl_token_text(const struct sl_tokenizer *t, int32_t id);
/* Fills added and added_normalized from the tokens and kinds of t; flags as in the spec. */
int sl_tokenizer_build_added(struct sl_tokenizer *t, const unsigned char *flags,
                             struct sl_err *err);

#endif
