/* Tokenizers as Hugging Face's files have them: tokenizer.json (the format of the tokenizers
 * library 0.13 to 0.23), and GPT-2's vocab.json with merges.txt. */
#include "engine/text/tokenizer_reader.h"
#include "engine/format/weights_format.h"
#include <string.h>

#define NESTING_MAX 4 /* pre-tokenizer sequences in sequences */

static int bad(const struct sl_reader *r, const char *what)
{
    return sl_err_set(r->err, SL_DATA, "%s: %s", r->file, what);
}

static int unsupported(const struct sl_reader *r, const char *what, const char *name)
{
    char shown[SL_SHOWN_MAX];
    return sl_err_set(r->err, SL_SPEC, "%s: %s '%s' is not supported", r->file, what,
                      sl_shown(name, strlen(name), shown));
}

static const char *type_of(const json_t *json)
{
    return sl_json_str(json, "type", "");
}

/* ---- the parts of a tokenizer.json */

static int read_model(struct sl_reader *r, const json_t *model)
{
    const char *type = type_of(model), *unknown = sl_json_str(model, "unk_token", NULL);
    if (!json_is_object(model))
        return bad(r, "it has no model");
    if (strcmp(type, "BPE") != 0 && (*type || !json_object_get(model, "merges")))
        return unsupported(r, "a model of type", type);
    if (sl_json_num(model, "dropout", 0) != 0)
        return unsupported(r, "the model's", "dropout");
    if (sl_json_bool(model, "byte_fallback", false))
        return unsupported(r, "BPE that is not byte-level:", "byte_fallback");
    if (*sl_json_str(model, "continuing_subword_prefix", ""))
        return unsupported(r, "the model's", "continuing_subword_prefix");
    if (*sl_json_str(model, "end_of_word_suffix", ""))
        return unsupported(r, "the model's", "end_of_word_suffix");
    int rc = sl_reader_vocab(r, json_object_get(model, "vocab"));
    if (rc == 0)
        rc = sl_reader_merges(r, json_object_get(model, "merges"));
    if (rc < 0)
        return rc;
    r->spec.ignore_merges = sl_json_bool(model, "ignore_merges", false);
    r->spec.fuse_unknown = sl_json_bool(model, "fuse_unk", false);
    r->spec.unk_id = unknown ? sl_reader_token(r, unknown) : -1;
    r->spec.unknown_bytes = r->spec.unk_id >= 0;
    return 0;
}

static int read_normalizer(struct sl_reader *r, const json_t *normalizer, int depth)
{
    const char *type = type_of(normalizer);
    size_t i;
    json_t *part;
    int rc = 0;
    if (!normalizer || json_is_null(normalizer))
        return 0;
    if (!strcmp(type, "NFC")) {
        r->spec.nfc = true;
        return 0;
    }
    if (strcmp(type, "Sequence") != 0 || depth == NESTING_MAX)
        return unsupported(r, "the normaliser", type);
    json_array_foreach(json_object_get(normalizer, "normalizers"), i, part)
        if ((rc = read_normalizer(r, part, depth + 1)) < 0)
            break;
    return rc;
}

static int add_stage(struct sl_reader *r, enum sl_pretok_kind kind, const char *pattern, size_t len)
{
    if (r->spec.n_stages == SL_PRETOK_STAGES_MAX)
        return sl_err_set(r->err, SL_SPEC,
                          "tokenizer.json: more than %d pre-tokenizers are not supported",
                          SL_PRETOK_STAGES_MAX);
    r->stage[r->spec.n_stages++] = (struct sl_pretok_stage){kind, pattern, len};
    return 0;
}

static int read_split(struct sl_reader *r, const json_t *split)
{
    const char *behavior = sl_json_str(split, "behavior", "");
    const json_t *regex = sl_json_get(split, "pattern.Regex"),
                 *text = sl_json_get(split, "pattern.String");
    const json_t *pattern = regex ? regex : text;
    if (strcmp(behavior, "Isolated") != 0)
        return unsupported(r, "a Split's behavior", behavior);
    if (sl_json_bool(split, "invert", false))
        return unsupported(r, "a Split's", "invert");
    if (!json_is_string(pattern) || json_string_length(pattern) == 0)
        return bad(r, "a Split has no pattern");
    return add_stage(r, regex ? SL_PRETOK_REGEX : SL_PRETOK_TEXT, json_string_value(pattern),
                     json_string_length(pattern));
}

static int read_byte_level(struct sl_reader *r, const json_t *stage)
{
    int rc = 0;
    r->byte_level = true;
    if (sl_json_bool(stage, "add_prefix_space", true))
        rc = add_stage(r, SL_PRETOK_PREFIX_SPACE, NULL, 0);
    if (rc == 0 && sl_json_bool(stage, "use_regex", true))
        rc = add_stage(r, SL_PRETOK_REGEX, SL_PRETOK_GPT2, sizeof SL_PRETOK_GPT2 - 1);
    return rc;
}

static int read_pre_tokenizer(struct sl_reader *r, const json_t *pre, int depth)
{
    const char *type = type_of(pre);
    size_t i;
    json_t *part;
    int rc = 0;
    if (!strcmp(type, "Sequence") && depth < NESTING_MAX) {
        json_array_foreach(json_object_get(pre, "pretokenizers"), i, part)
            if ((rc = read_pre_tokenizer(r, part, depth + 1)) < 0)
                break;
        return rc;
    }
    if (r->byte_level) /* it would see the bytes' stand-ins */
        return unsupported(r, "behind ByteLevel, the pre-tokenizer", type);
    if (!strcmp(type, "Split"))
        return read_split(r, pre);
    if (!strcmp(type, "Digits"))
        return add_stage(r,
                         sl_json_bool(pre, "individual_digits", false) ? SL_PRETOK_DIGITS
                                                                       : SL_PRETOK_DIGIT_RUNS,
                         NULL, 0);
    if (!strcmp(type, "ByteLevel"))
        return read_byte_level(r, pre);
    return unsupported(r, "the pre-tokenizer", type);
}

int sl_tokenizer_from_json(const char *text, size_t len, const struct sl_text_ends *ends,
                           struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    json_t *root = NULL;
    struct sl_reader r;
    int rc = sl_reader_begin(&r, "tokenizer.json", err);
    if (rc == 0)
        rc = sl_reader_parse(text, len, "tokenizer.json", &root, err);
    if (rc == 0)
        rc = read_normalizer(&r, json_object_get(root, "normalizer"), 0);
    if (rc == 0)
        rc = read_model(&r, json_object_get(root, "model"));
    if (rc == 0)
        rc = read_pre_tokenizer(&r, json_object_get(root, "pre_tokenizer"), 0);
    if (rc == 0 && !r.byte_level)
        rc = unsupported(&r, "BPE that is not byte-level: no pre-tokenizer", "ByteLevel");
    if (rc == 0)
        rc = sl_reader_added(&r, json_object_get(root, "added_tokens"));
    if (rc == 0)
        rc = sl_reader_ends(&r, ends);
    if (rc == 0)
        rc = sl_reader_finish(&r, ret_tok);
    sl_reader_end(&r);
    json_decref(root);
    return rc;
}

int sl_tokenizer_from_vocab_merges(const char *vocab_json, size_t vocab_len, const char *merges,
                                   size_t merges_len, const struct sl_text_ends *ends,
                                   struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    json_t *root = NULL;
    struct sl_reader r;
    int rc = sl_reader_begin(&r, "vocab.json", err);
    if (rc == 0)
        rc = sl_reader_parse(vocab_json, vocab_len, "vocab.json", &root, err);
    if (rc == 0)
        rc = sl_reader_vocab(&r, root);
    if (rc == 0)
        rc = sl_reader_merge_lines(&r, merges, merges_len);
    if (rc == 0)
        rc = sl_reader_ends(&r, ends);
    if (rc == 0)
        rc = add_stage(&r, SL_PRETOK_REGEX, SL_PRETOK_GPT2, sizeof SL_PRETOK_GPT2 - 1);
    const int ids[] = {r.spec.bos_id, r.spec.eos_id};
    for (int i = 0; rc == 0 && i < 2; i++)
        if (ids[i] >= 0 && ids[i] < r.spec.n_tokens)
            r.kind[ids[i]] = SL_TOKEN_CONTROL;
    if (rc == 0)
        rc = sl_reader_finish(&r, ret_tok);
    sl_reader_end(&r);
    json_decref(root);
    return rc;
}
