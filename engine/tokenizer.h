/* Text to token ids and back.
 *
 * Byte-level BPE with the model's own vocabulary, merges, pre-tokenizer pattern and special tokens;
 * ids are those of the reference tokenizers library on any UTF-8 (invalid bytes are replaced by
 * U+FFFD first, as it does with lossy decoding). Bytes that the vocabulary has no token for leave
 * no trace, as there. Not done: the NFC normalisation that Qwen2's own tokenizer.json asks for, so
 * decomposed accents differ there.
 *
 * Immutable after creation: many threads may use one tokenizer. About 30 MB/s; a text of one
 * endless word takes n log n. */
#ifndef SL_ENGINE_TOKENIZER_H
#define SL_ENGINE_TOKENIZER_H
#include "base/buf.h"
#include "base/digest.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_TOKENIZER_TEXT_MAX (4u << 20) /* bytes of one text */

struct sl_tokenizer;

/* A growable list of ids; init with {0}. */
struct sl_ids {
    int32_t *id;
    int n, cap;
};
int sl_ids_add(struct sl_ids *ids, int32_t id); /* SL_NOMEM */
void sl_ids_release(struct sl_ids *ids);

/* What a loader found in the model's files; all pointers are borrowed for the call. */
struct sl_tokenizer_spec {
    int n_tokens;
    const char *const *tokens; /* byte-level alphabet of GPT-2 ("Ġthe"), as UTF-8 */
    const int *token_len;      /* bytes */
    /* GGUF's token types: 1 normal, 3 control, 4 user defined; may be NULL */
    const unsigned char *kind;
    int n_merges;
    const char *const *merges; /* "a b" */
    const int *merge_len;
    const char *pre; /* GGUF's name of the pre-tokenizer: "smollm", "gpt-2", "llama-bpe", "qwen2" */
    int bos_id, eos_id, pad_id, unk_id; /* -1: none */
};
int sl_tokenizer_new(const struct sl_tokenizer_spec *spec, struct sl_tokenizer **ret_tok,
                     struct sl_err *err);
void sl_tokenizer_free(struct sl_tokenizer *t);

/* Appends the ids of text; SL_DATA for one longer than SL_TOKENIZER_TEXT_MAX. With specials,
 * control tokens written in the text ("<|im_end|>") become their ids; user-defined tokens always
 * do. On failure ids has what it had. */
int sl_tokenize(const struct sl_tokenizer *t, const char *text, size_t len, bool specials,
                struct sl_ids *ids, struct sl_err *err);
/* Appends the bytes of the ids; control tokens are left out unless specials. Bytes may be a partial
 * character. */
int sl_detokenize(const struct sl_tokenizer *t, const int32_t *ids, int n, bool specials,
                  struct sl_buf *text, struct sl_err *err);

int sl_tokenizer_vocab(const struct sl_tokenizer *t);
int32_t sl_tokenizer_bos(const struct sl_tokenizer *t); /* -1: none; likewise below */
int32_t sl_tokenizer_eos(const struct sl_tokenizer *t);
/* sha256 over vocabulary, merges, pattern and special ids. Valid for the tokenizer's life. */
const char *sl_tokenizer_digest(const struct sl_tokenizer *t);

#endif
