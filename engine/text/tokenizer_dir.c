/* The tokenizer of a Hugging Face model's directory. */
#include "base/file.h"
#include "base/json.h"
#include "engine/text/spm_model.h"
#include "engine/text/tokenizer.h"
#include "engine/format/weights_format.h"
#include <string.h>

static bool has_file(const char *dir, const char *name)
{
    char path[SL_PATH_MAX];
    return sl_path(path, NULL, "%s/%s", dir, name) == 0 && sl_file_exists(path);
}

static int read_file(const char *dir, const char *name, struct sl_buf *buf, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/%s", dir, name);
    return rc < 0 ? rc : sl_file_read(path, buf, err);
}

/* NULL for a file that is not there. */
static int read_json(const char *dir, const char *name, size_t max_bytes, json_t **ret_json,
                     struct sl_err *err)
{
    char path[SL_PATH_MAX];
    if (!has_file(dir, name)) {
        *ret_json = NULL;
        return 0;
    }
    int rc = sl_path(path, err, "%s/%s", dir, name);
    return rc < 0 ? rc : sl_json_read(path, max_bytes, ret_json, err);
}

/* ---- BOS and EOS */

struct configs {
    json_t *tokenizer, *model, *generation;
};

static const char *end_name(const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

static int end_id(const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_array(v))
        v = json_array_get(v, 0);
    return json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < SL_MAX_VOCAB
               ? (int)json_integer_value(v)
               : -1;
}

static void find_ends(const struct configs *c, struct sl_text_ends *ends)
{
    *ends = (struct sl_text_ends){
        .bos = end_name(c->tokenizer, "bos_token"),
        .eos = end_name(c->tokenizer, "eos_token"),
        .bos_id = end_id(c->model, "bos_token_id"),
        .eos_id = end_id(c->model, "eos_token_id"),
    };
    if (ends->bos_id < 0)
        ends->bos_id = end_id(c->generation, "bos_token_id");
    if (ends->eos_id < 0)
        ends->eos_id = end_id(c->generation, "eos_token_id");
}

/* ---- SentencePiece */

/* Tokens that were added to a SentencePiece model in other files, with other ids than the model's,
 * are not supported: ids would not be the reference's. */
static int check_added(const struct sl_spm_model *m, const char *text, json_int_t id,
                       struct sl_err *err)
{
    char shown[SL_SHOWN_MAX];
    if (id >= 0 && id < m->n_pieces && m->piece[id].len == strlen(text) &&
        !memcmp(m->piece[id].p, text, strlen(text)))
        return 0;
    return sl_err_set(
        err, SL_SPEC,
        "added token '%s' with id %lld is no piece of tokenizer.model; tokens added to "
        "a SentencePiece model are not supported",
        sl_shown(text, strlen(text), shown), (long long)id);
}

static int check_all_added(const struct sl_buf *model, const char *dir, struct sl_err *err)
{
    json_t *added = NULL, *whole = NULL, *token;
    struct sl_spm_model m = {0};
    const char *text;
    size_t i;
    int rc = sl_spm_model_read(model->p, model->len, &m, err);
    if (rc == 0)
        rc = read_json(dir, "added_tokens.json", SL_JSON_FILE_MAX, &added, err);
    if (rc == 0)
        rc = read_json(dir, "tokenizer.json", SL_TOKENIZER_FILE_MAX, &whole, err);
    json_object_foreach(added, text, token)
        if (rc == 0)
            rc = check_added(&m, text, json_integer_value(token), err);
    json_array_foreach(json_object_get(whole, "added_tokens"), i, token)
        if (rc == 0)
            rc = check_added(&m, sl_json_str(token, "content", ""), sl_json_int(token, "id", -1),
                             err);
    json_decref(added);
    json_decref(whole);
    sl_spm_model_release(&m);
    return rc;
}

static int from_sentencepiece(const char *dir, const struct sl_text_ends *ends,
                              struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_buf model;
    struct sl_tokenizer *t = NULL;
    bool said = ends->bos || ends->eos || ends->bos_id >= 0 || ends->eos_id >= 0;
    sl_buf_init(&model, SL_TOKENIZER_FILE_MAX);
    int rc = read_file(dir, "tokenizer.model", &model, err);
    if (rc == 0)
        rc = sl_tokenizer_from_sentencepiece(model.p, model.len, said ? ends : NULL, &t, err);
    if (rc == 0)
        rc = check_all_added(&model, dir, err);
    sl_buf_release(&model);
    if (rc < 0) {
        sl_tokenizer_free(t);
        return rc;
    }
    *ret_tok = t;
    return 0;
}

/* ---- the others */

static int from_json(const char *dir, const struct sl_text_ends *ends,
                     struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_buf text;
    sl_buf_init(&text, SL_TOKENIZER_FILE_MAX);
    int rc = read_file(dir, "tokenizer.json", &text, err);
    if (rc == 0)
        rc = sl_tokenizer_from_json(text.p, text.len, ends, ret_tok, err);
    sl_buf_release(&text);
    return rc;
}

static int from_vocab_merges(const char *dir, const json_t *config, const struct sl_text_ends *ends,
                             struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    const char *class = sl_json_str(config, "tokenizer_class", "GPT2Tokenizer");
    char shown[SL_SHOWN_MAX];
    struct sl_buf vocab, merges;
    if (strncmp(class, "GPT2Tokenizer", 13) != 0)
        return sl_err_set(err, SL_SPEC,
                          "vocab.json and merges.txt of a %s are not supported, GPT-2's only: save "
                          "the tokenizer with transformers, which writes a tokenizer.json",
                          sl_shown(class, strlen(class), shown));
    sl_buf_init(&vocab, SL_TOKENIZER_FILE_MAX);
    sl_buf_init(&merges, SL_TOKENIZER_FILE_MAX);
    int rc = read_file(dir, "vocab.json", &vocab, err);
    if (rc == 0)
        rc = read_file(dir, "merges.txt", &merges, err);
    if (rc == 0)
        rc = sl_tokenizer_from_vocab_merges(vocab.p, vocab.len, merges.p, merges.len, ends, ret_tok,
                                            err);
    sl_buf_release(&vocab);
    sl_buf_release(&merges);
    return rc;
}

static int from_files(const char *dir, const struct configs *c, struct sl_tokenizer **ret_tok,
                      struct sl_err *err)
{
    struct sl_text_ends ends;
    struct sl_err why = SL_ERR_INIT;
    bool model = has_file(dir, "tokenizer.model");
    find_ends(c, &ends);
    if (has_file(dir, "tokenizer.json")) {
        int rc = from_json(dir, &ends, ret_tok, &why);
        if (rc == 0)
            return 0;
        if (rc != SL_SPEC || !model)
            return sl_err_set(err, rc, "%s", why.msg);
    }
    if (model)
        return from_sentencepiece(dir, &ends, ret_tok, err);
    if (has_file(dir, "vocab.json") && has_file(dir, "merges.txt"))
        return from_vocab_merges(dir, c->tokenizer, &ends, ret_tok, err);
    return sl_err_set(err, SL_NOTFOUND,
                      "no tokenizer: neither tokenizer.json, tokenizer.model nor vocab.json with "
                      "merges.txt is there");
}

int sl_tokenizer_from_dir(const char *dir, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct configs c = {0};
    int rc = read_json(dir, "tokenizer_config.json", SL_JSON_FILE_MAX, &c.tokenizer, err);
    if (rc == 0)
        rc = read_json(dir, "config.json", SL_JSON_FILE_MAX, &c.model, err);
    if (rc == 0)
        rc = read_json(dir, "generation_config.json", SL_JSON_FILE_MAX, &c.generation, err);
    if (rc == 0)
        rc = from_files(dir, &c, ret_tok, err);
    json_decref(c.tokenizer);
    json_decref(c.model);
    json_decref(c.generation);
    return rc < 0 ? sl_err_wrap(err, rc, "%s", dir) : 0;
}
