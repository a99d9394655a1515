/* Hugging Face's tokenizer files on their way into a struct sl_tokenizer_spec. For tokenizer_json.c
 * only. */
#ifndef SL_ENGINE_TOKENIZER_READER_H
#define SL_ENGINE_TOKENIZER_READER_H
#include "base/json.h"
#include "engine/text/tokenizer.h"

#define SL_TOKENIZER_VALUES_MAX (2u << 20) /* values of one file: Llama 3 has about a million */

struct sl_reader {
    struct sl_tokenizer_spec spec;
    struct sl_err *err;
    const char *file;    /* its name in messages */
    const json_t *vocab; /* text -> id */
    json_t *added;       /* text -> id, of added tokens that vocab lacks */
    int cap;
    const char **token;
    int *token_len;
    unsigned char *kind, *flags;
    const char **merge;
    int *merge_len;
    struct sl_buf joined; /* merges that come as pairs */
    struct sl_pretok_stage stage[SL_PRETOK_STAGES_MAX];
    bool byte_level; /* the last stage was ByteLevel */
};

/* Parses an object, within bounds of size; SL_DATA. New reference. */
int sl_reader_parse(const char *text, size_t len, const char *what, json_t **ret_json,
                    struct sl_err *err);
int sl_reader_begin(struct sl_reader *r, const char *file, struct sl_err *err);
/* The JSON that it is given has to live until sl_reader_end. */
int sl_reader_vocab(struct sl_reader *r, const json_t *vocab);
int sl_reader_token(const struct sl_reader *r, const char *text); /* its id, or -1 */
int sl_reader_merges(struct sl_reader *r, const json_t *merges);
int sl_reader_added(struct sl_reader *r, const json_t *tokens);
/* The text of a merges.txt: a merge a line, but for the version in front. */
int sl_reader_merge_lines(struct sl_reader *r, const char *text, size_t len);
int sl_reader_ends(struct sl_reader *r, const struct sl_text_ends *ends);
int sl_reader_finish(struct sl_reader *r, struct sl_tokenizer **ret_tok);
void sl_reader_end(struct sl_reader *r);

#endif
