/* Text to token ids and back.
 *
 * Byte-level BPE with the model's own vocabulary, merges, pre-tokenizer, NFC normaliser and added
 * tokens, from GGUF, tokenizer.json or vocab.json and merges.txt: ids are those of the tokenizers
 * library on any UTF-8. SentencePiece models (unigram and BPE) through its own library: ids are
 * those of the sentencepiece package. Invalid bytes are replaced by U+FFFD first, as lossy decoding
 * does. Bytes that a byte-level vocabulary has no token for become its unknown token, or leave no
 * trace where it names none, as there.
 *
 * Nothing is put in front or behind: the post-processor of a tokenizer.json, which may add BOS or
 * EOS, is not applied, nor are its truncation and padding; add_bos and add_eos of a run do that.
 *
 * Immutable after creation: many threads may use one tokenizer. About 30 MB/s, 5 MB/s for
 * SentencePiece; a text of one endless word takes n log n. Where two segmentations of a unigram
 * model score the same, the library decides: its versions to 0.2.1 agree. */
#ifndef SL_ENGINE_TOKENIZER_H
#define SL_ENGINE_TOKENIZER_H
#include "base/buf.h"
#include "base/digest.h"
#include "base/err.h"
#include "engine/text/pretok.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_TOKENIZER_TEXT_MAX (4u << 20)  /* bytes of one text */
#define SL_TOKENIZER_FILE_MAX (64u << 20) /* bytes of a tokenizer's file */
#define SL_TOKEN_BYTES_MAX (1 << 16)

struct sl_tokenizer;

/* A growable list of ids; init with {0}. */
struct sl_ids {
    int32_t *id;
    int n, cap;
};
int sl_ids_add(struct sl_ids *ids, int32_t id); /* SL_NOMEM */
void sl_ids_release(struct sl_ids *ids);

/* ---- from a model's files */

/* The tokens that begin and end a text: by name, else by id (-1: none). What a tokenizer's file
 * does not say by itself. */
struct sl_text_ends {
    const char *bos, *eos; /* as in the vocabulary, "<|endoftext|>"; NULL: by id */
    int bos_id, eos_id;
};

/* A tokenizer.json. Byte-level BPE only: normaliser none or NFC, pre-tokenizer ByteLevel or a
 * Sequence of Split, Digits and ByteLevel. SL_SPEC names what is not supported, SL_DATA what is
 * wrong. ends may be NULL: none. */
int sl_tokenizer_from_json(const char *text, size_t len, const struct sl_text_ends *ends,
                           struct sl_tokenizer **ret_tok, struct sl_err *err);
/* GPT-2's pair of files. Those that ends names are control tokens. */
int sl_tokenizer_from_vocab_merges(const char *vocab_json, size_t vocab_len, const char *merges,
                                   size_t merges_len, const struct sl_text_ends *ends,
                                   struct sl_tokenizer **ret_tok, struct sl_err *err);
/* A serialised SentencePiece model (tokenizer.model, spiece.model). ends NULL: as the model says.
 */
int sl_tokenizer_from_sentencepiece(const void *data, size_t len, const struct sl_text_ends *ends,
                                    struct sl_tokenizer **ret_tok, struct sl_err *err);
/* A Hugging Face model's directory: tokenizer.json; where it has none, or one that is no byte-level
 * BPE, tokenizer.model; else vocab.json and merges.txt. BOS and EOS are those of
 * tokenizer_config.json, else of config.json, else of generation_config.json (the first of a list).
 * SL_NOTFOUND for a directory without a tokenizer. */
int sl_tokenizer_from_dir(const char *dir, struct sl_tokenizer **ret_tok, struct sl_err *err);

/* ---- from parts, for the loaders */

/* How an added token is found; those of spec->flags. */
enum {
    SL_TOKEN_LSTRIP = 1,      /* takes the white space before it along */
    SL_TOKEN_RSTRIP = 2,      /* and behind it */
    SL_TOKEN_SINGLE_WORD = 4, /* only with no word character on either side */
    SL_TOKEN_NORMALIZED = 8,  /* looked for after normalising, in what the others leave */
    SL_TOKEN_OUTSIDE = 16     /* no part of the vocabulary that merges make */
};
/* GGUF's and SentencePiece's types of tokens. */
enum {
    SL_TOKEN_NORMAL = 1,
    SL_TOKEN_UNKNOWN = 2,
    SL_TOKEN_CONTROL = 3, /* "special" in a tokenizer.json */
    SL_TOKEN_USER = 4,
    SL_TOKEN_UNUSED = 5,
    SL_TOKEN_BYTE = 6
};

/* What a loader found in the model's files; all pointers are borrowed for the call. */
struct sl_tokenizer_spec {
    int n_tokens;
    const char *const *tokens;  /* byte-level alphabet of GPT-2 ("Ġthe"), as UTF-8 */
    const int *token_len;       /* bytes */
    const unsigned char *kind;  /* SL_TOKEN_NORMAL and so on; NULL: all normal */
    const unsigned char *flags; /* SL_TOKEN_LSTRIP and so on; NULL: none */
    int n_merges;
    const char *const *merges; /* "a b" */
    const int *merge_len;
    /* The pre-tokenizer: GGUF's name ("smollm", "gpt-2", "llama-bpe", "qwen2"), or stages. */
    const char *pre;
    const struct sl_pretok_stage *stages;
    int n_stages;
    bool ignore_merges; /* with stages */
    bool nfc;
    bool unknown_bytes;                 /* bytes without a token become unk_id */
    bool fuse_unknown;                  /* and those in a row only one */
    int bos_id, eos_id, pad_id, unk_id; /* -1: none */
};
int sl_tokenizer_new(const struct sl_tokenizer_spec *spec, struct sl_tokenizer **ret_tok,
                     struct sl_err *err);
void sl_tokenizer_free(struct sl_tokenizer *t);

/* A vocabulary with scores, as GGUF has those of SentencePiece ("llama"). */
struct sl_scored_vocab {
    int n_tokens;
    const char *const *tokens; /* "▁the" */
    const int *token_len;      /* bytes */
    const float *score;
    const unsigned char *kind;
    bool add_space, remove_extra_spaces; /* add_dummy_prefix and remove_extra_whitespaces */
};
int sl_tokenizer_from_scores(const struct sl_scored_vocab *vocab, const struct sl_text_ends *ends,
                             struct sl_tokenizer **ret_tok, struct sl_err *err);

/* ---- use */

/* Appends the ids of text; SL_DATA for one longer than SL_TOKENIZER_TEXT_MAX. With specials,
 * control tokens written in the text ("<|im_end|>") become their ids; user-defined tokens always
 * do. On failure ids has what it had. */
int sl_tokenize(const struct sl_tokenizer *t, const char *text, size_t len, bool specials,
                struct sl_ids *ids, struct sl_err *err);
/* Appends the bytes of the ids; control tokens are left out unless specials. Bytes may be a partial
 * character. The space that a SentencePiece model puts before a text is left out where text was
 * empty. */
int sl_detokenize(const struct sl_tokenizer *t, const int32_t *ids, int n, bool specials,
                  struct sl_buf *text, struct sl_err *err);

int sl_tokenizer_vocab(const struct sl_tokenizer *t);
int32_t sl_tokenizer_bos(const struct sl_tokenizer *t); /* -1: none; likewise below */
int32_t sl_tokenizer_eos(const struct sl_tokenizer *t);
/* sha256 over vocabulary, merges, pattern and special ids. Valid for the tokenizer's life. */
const char *sl_tokenizer_digest(const struct sl_tokenizer *t);

#endif
