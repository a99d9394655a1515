/* The tokenizers that llama.cpp's GGUF files carry: keys as its convert_hf_to_gguf.py writes them.
 */
#include "engine/format/gguf.h"
#include "engine/text/tokenizer.h"
#include "engine/format/weights_format.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Splits an array of strings into pointers and lengths; *ret_n is 0 without the key. */
static int string_array(const struct sl_gguf *g, const char *name, int *ret_n,
                        const char *const **ret_p, const int **ret_len, struct sl_err *err)
{
    const struct sl_gguf_key *key = sl_gguf_find(g, name);
    if (!key) {
        *ret_n = 0;
        *ret_p = NULL;
        *ret_len = NULL;
        return 0;
    }
    if (key->type != SL_GGUF_ARRAY || key->element != SL_GGUF_STRING)
        return sl_err_set(err, SL_DATA, "key '%s' is not an array of strings", name);
    const char **p = calloc(key->count + 1, sizeof *p);
    int *len = calloc(key->count + 1, sizeof *len);
    if (!p || !len) {
        free(p);
        free(len);
        return sl_err_set(err, SL_NOMEM, "out of memory for key '%s'", name);
    }
    const unsigned char *at = key->value;
    for (uint64_t i = 0; i < key->count; i++) {
        struct sl_gguf_str s = sl_gguf_next_str(&at);
        p[i] = s.p;
        len[i] = (int)s.len; /* at most SL_GGUF_STRING_MAX */
    }
    *ret_n = (int)key->count;
    *ret_p = (const char *const *)p;
    *ret_len = len;
    return 0;
}

static int token_kinds(const struct sl_gguf *g, int n_tokens, unsigned char **ret_kind,
                       struct sl_err *err)
{
    const struct sl_gguf_key *key = sl_gguf_find(g, "tokenizer.ggml.token_type");
    if (!key)
        return 0;
    if (key->type != SL_GGUF_ARRAY || key->count != (uint64_t)n_tokens ||
        (key->element != SL_GGUF_I32 && key->element != SL_GGUF_U32))
        return sl_err_set(err, SL_DATA,
                          "key 'tokenizer.ggml.token_type' is not an array of %d int32", n_tokens);
    unsigned char *kind = malloc((size_t)n_tokens + 1);
    if (!kind)
        return sl_err_set(err, SL_NOMEM, "out of memory for %d tokens", n_tokens);
    for (int i = 0; i < n_tokens; i++) {
        int32_t k;
        memcpy(&k, key->value + 4 * (size_t)i, sizeof k);
        kind[i] = k >= 0 && k <= SL_TOKEN_BYTE ? (unsigned char)k : 0;
    }
    *ret_kind = kind;
    return 0;
}

static int token_id(const struct sl_gguf *g, const char *name, int *ret_id, struct sl_err *err)
{
    int64_t id = -1;
    int rc = sl_gguf_int(g, name, &id, err);
    if (rc < 0)
        return rc;
    if (id < -1 || id > INT_MAX)
        return sl_err_set(err, SL_DATA, "key '%s' is %lld, which is no token", name, (long long)id);
    *ret_id = (int)id;
    return 0;
}

static bool is_text(struct sl_gguf_str s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.p, text, s.len);
}

/* What the pre-tokenizer is called; files of GPT-2 from before the key existed lack it. */
static int pre_name(const struct sl_gguf *g, char ret_name[SL_SHOWN_MAX], struct sl_err *err)
{
    struct sl_gguf_str pre = {"", 0}, arch = {"", 0};
    int rc = sl_gguf_text(g, "tokenizer.ggml.pre", &pre, err);
    if (rc < 0)
        return rc;
    if (rc == 1 && sl_gguf_text(g, "general.architecture", &arch, err) == 0 &&
        is_text(arch, "gpt2"))
        pre = (struct sl_gguf_str){"gpt-2", 5};
    else if (rc == 1)
        return sl_err_set(err, SL_DATA,
                          "key 'tokenizer.ggml.pre' is missing: the file does not "
                          "say which pre-tokenizer its model was trained with");
    sl_shown(pre.p, pre.len, ret_name);
    return 0;
}

static int bpe(const struct sl_gguf *g, struct sl_tokenizer_spec *spec,
               struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    char pre[SL_SHOWN_MAX];
    int rc = pre_name(g, pre, err);
    spec->pre = pre;
    if (rc == 0)
        rc = string_array(g, "tokenizer.ggml.merges", &spec->n_merges, &spec->merges,
                          &spec->merge_len, err);
    if (rc == 0)
        rc = sl_tokenizer_new(spec, ret_tok, err);
    spec->pre = NULL; /* it ends with this call; the tokenizer has its own */
    free((void *)spec->merges);
    free((void *)spec->merge_len);
    return rc;
}

static int flag(const struct sl_gguf *g, const char *name, bool *ret_flag, struct sl_err *err)
{
    const struct sl_gguf_key *key = sl_gguf_find(g, name);
    if (key && key->type != SL_GGUF_BOOL)
        return sl_err_set(err, SL_DATA, "key '%s' is not a bool", name);
    if (key)
        *ret_flag = *key->value != 0;
    return 0;
}

/* SentencePiece's BPE: tokens with scores. */
static int scored(const struct sl_gguf *g, const struct sl_tokenizer_spec *spec,
                  struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    const struct sl_gguf_key *score = sl_gguf_find(g, "tokenizer.ggml.scores");
    struct sl_scored_vocab vocab = {.n_tokens = spec->n_tokens,
                                    .tokens = spec->tokens,
                                    .token_len = spec->token_len,
                                    .kind = spec->kind,
                                    .add_space = true};
    const struct sl_text_ends ends = {.bos_id = spec->bos_id, .eos_id = spec->eos_id};
    if (!score || score->type != SL_GGUF_ARRAY || score->element != SL_GGUF_F32 ||
        score->count != (uint64_t)spec->n_tokens)
        return sl_err_set(err, SL_DATA, "key 'tokenizer.ggml.scores' is not an array of %d float32",
                          spec->n_tokens);
    if (!spec->kind)
        return sl_err_set(err, SL_DATA, "key 'tokenizer.ggml.token_type' is missing");
    if (sl_gguf_find(g, "tokenizer.ggml.precompiled_charsmap"))
        return sl_err_set(err, SL_SPEC,
                          "key 'tokenizer.ggml.precompiled_charsmap' is not supported");
    int rc = flag(g, "tokenizer.ggml.add_space_prefix", &vocab.add_space, err);
    if (rc == 0)
        rc = flag(g, "tokenizer.ggml.remove_extra_whitespaces", &vocab.remove_extra_spaces, err);
    if (rc < 0)
        return rc;
    float *copy = malloc(((size_t)spec->n_tokens + 1) * sizeof *copy); /* for its alignment */
    if (!copy)
        return sl_err_set(err, SL_NOMEM, "out of memory for %d tokens", spec->n_tokens);
    memcpy(copy, score->value, (size_t)spec->n_tokens * sizeof *copy);
    vocab.score = copy;
    rc = sl_tokenizer_from_scores(&vocab, &ends, ret_tok, err);
    free(copy);
    return rc;
}

int sl_gguf_tokenizer(const struct sl_gguf *g, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_tokenizer_spec spec = {0};
    struct sl_gguf_str model = {"", 0};
    unsigned char *kind = NULL;
    char shown[SL_SHOWN_MAX];
    int rc = sl_gguf_text(g, "tokenizer.ggml.model", &model, err);
    if (rc != 0 || !sl_gguf_find(g, "tokenizer.ggml.tokens"))
        return rc < 0 ? rc : sl_err_set(err, SL_NOTFOUND, "the model carries no tokenizer");
    bool scores = is_text(model, "llama");
    if (!scores && !is_text(model, "gpt2"))
        return sl_err_set(err, SL_SPEC,
                          "tokenizer model '%s' is not supported (supported: gpt2, which is "
                          "byte-level BPE, and llama, which is SentencePiece's BPE)",
                          sl_shown(model.p, model.len, shown));
    rc = string_array(g, "tokenizer.ggml.tokens", &spec.n_tokens, &spec.tokens, &spec.token_len,
                      err);
    if (rc == 0)
        rc = token_kinds(g, spec.n_tokens, &kind, err);
    spec.kind = kind;
    if (rc == 0)
        rc = token_id(g, "tokenizer.ggml.bos_token_id", &spec.bos_id, err);
    if (rc == 0)
        rc = token_id(g, "tokenizer.ggml.eos_token_id", &spec.eos_id, err);
    if (rc == 0)
        rc = token_id(g, "tokenizer.ggml.padding_token_id", &spec.pad_id, err);
    if (rc == 0)
        rc = token_id(g, "tokenizer.ggml.unknown_token_id", &spec.unk_id, err);
    if (rc == 0)
        rc = scores ? scored(g, &spec, ret_tok, err) : bpe(g, &spec, ret_tok, err);
    free((void *)spec.tokens);
    free((void *)spec.token_len);
    free(kind);
    return rc;
}
