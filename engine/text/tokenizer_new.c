#include "engine/text/merge.h"
#include "engine/text/nfc.h"
#include "engine/text/tokenizer_parts.h"
#include "engine/format/weights_format.h"
#include <stdlib.h>
#include <string.h>

#define MERGES_MAX (1 << 22)
#define ALPHABET 324 /* code points below this stand for bytes in GPT-2's alphabet */

/* ---- GPT-2's byte alphabet: printable bytes are themselves, the others U+0100 and up */

static void alphabet(int16_t byte_of[ALPHABET], int code_of[256])
{
    int next = 256;
    memset(byte_of, -1, ALPHABET * sizeof *byte_of);
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        code_of[b] = printable ? b : next++;
        byte_of[code_of[b]] = (int16_t)b;
    }
}

/* Writes the bytes that a token's text stands for; text with anything outside the alphabet stands
 * for itself. */
static size_t decode(const struct sl_text *text, const int16_t byte_of[ALPHABET], char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < text->len;) {
        unsigned c = (unsigned char)text->p[i++];
        if (c >= 0xC2 && c <= 0xC5 && i < text->len)
            c = (c & 31) << 6 | ((unsigned char)text->p[i++] & 63);
        if (c >= ALPHABET || byte_of[c] < 0) {
            memcpy(out, text->p, text->len);
            return text->len;
        }
        out[n++] = (char)byte_of[c];
    }
    return n;
}

/* ---- construction */

static struct sl_text spec_text(const void *arg, int32_t id)
{
    const struct sl_tokenizer_spec *spec = arg;
    return (struct sl_text){spec->tokens[id], (size_t)spec->token_len[id]};
}

static struct sl_text token_text(const void *arg, int32_t id)
{
    return sl_token_text(arg, id);
}

static int flags_of(const struct sl_tokenizer_spec *spec, int id)
{
    return spec->flags ? spec->flags[id] : 0;
}

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory for a tokenizer");
}

static bool bad_id(int id, int n)
{
    return id < -1 || id >= n;
}

static int check_spec(const struct sl_tokenizer_spec *spec, struct sl_err *err)
{
    if (spec->n_tokens < 1 || spec->n_tokens > SL_MAX_VOCAB)
        return sl_err_set(err, SL_DATA, "tokenizer has %d tokens; 1 to %d are supported",
                          spec->n_tokens, SL_MAX_VOCAB);
    if (spec->unknown_bytes && spec->unk_id < 0)
        return sl_err_set(err, SL_DATA, "the unknown token is no token of the vocabulary");
    if (spec->n_merges < 0 || spec->n_merges > MERGES_MAX)
        return sl_err_set(err, SL_DATA, "tokenizer has %d merges; at most %d are supported",
                          spec->n_merges, MERGES_MAX);
    for (int i = 0; i < spec->n_tokens; i++)
        if (spec->token_len[i] < 0 || spec->token_len[i] > SL_TOKEN_BYTES_MAX)
            return sl_err_set(err, SL_DATA, "token %d has %d bytes; at most %d are supported", i,
                              spec->token_len[i], SL_TOKEN_BYTES_MAX);
    const int ids[] = {spec->bos_id, spec->eos_id, spec->pad_id, spec->unk_id};
    static const char *const names[] = {"bos", "eos", "pad", "unk"};
    for (int i = 0; i < 4; i++)
        if (bad_id(ids[i], spec->n_tokens))
            return sl_err_set(err, SL_DATA, "%s token is %d, but there are %d tokens", names[i],
                              ids[i], spec->n_tokens);
    return 0;
}

static int kind_of(const struct sl_tokenizer_spec *spec, int id)
{
    return spec->kind ? spec->kind[id] : SL_TOKEN_NORMAL;
}

static bool is_added(int kind)
{
    return kind == SL_TOKEN_CONTROL || kind == SL_TOKEN_USER;
}

/* Bytes of every token. */
static int build_tokens(struct sl_tokenizer *t, const struct sl_tokenizer_spec *spec,
                        const int16_t byte_of[ALPHABET], struct sl_err *err)
{
    size_t n = (size_t)spec->n_tokens, total = 1, at = 0;
    for (int i = 0; i < spec->n_tokens; i++)
        total += (size_t)spec->token_len[i];
    t->n_tokens = spec->n_tokens;
    t->start = malloc((n + 1) * sizeof *t->start);
    t->bytes = malloc(total);
    t->kind = malloc(n);
    if (!t->start || !t->bytes || !t->kind)
        return no_memory(err);
    for (int i = 0; i < spec->n_tokens; i++) {
        struct sl_text text = spec_text(spec, i);
        t->start[i] = at;
        t->kind[i] = (unsigned char)kind_of(spec, i);
        if (is_added(t->kind[i])) {
            memcpy(t->bytes + at, text.p, text.len);
            at += text.len;
        } else {
            at += decode(&text, byte_of, t->bytes + at);
        }
    }
    t->start[n] = at;
    return 0;
}

/* The text that an added token is looked for by, in form C when it is looked for after
 * normalising. Those texts go to changed, and moves between calls: so they are offsets first. */
static int added_text(const struct sl_tokenizer *t, int32_t id, bool normal_form,
                      struct sl_buf *changed, struct sl_text *ret_text, struct sl_err *err)
{
    struct sl_text text = sl_token_text(t, id);
    if (!normal_form || sl_nfc_plain(text.p, text.len)) {
        *ret_text = text;
        return 0;
    }
    size_t had = changed->len;
    int rc = sl_nfc(text.p, text.len, changed, err);
    if (rc == 0)
        *ret_text = (struct sl_text){NULL, changed->len - had};
    return rc;
}

static int build_added_set(struct sl_tokenizer *t, const unsigned char *flags, bool normalized,
                           struct sl_added_token *found, struct sl_added **ret_added,
                           struct sl_err *err)
{
    struct sl_buf changed;
    int n = 0, rc = 0;
    sl_buf_init(&changed, SL_TOKENIZER_FILE_MAX);
    for (int32_t i = 0; rc == 0 && i < t->n_tokens; i++) {
        unsigned char f = flags ? flags[i] : 0;
        if (!is_added(t->kind[i]) || t->start[i + 1] == t->start[i] ||
            normalized != ((f & SL_TOKEN_NORMALIZED) != 0))
            continue;
        found[n] =
            (struct sl_added_token){.id = i, .flags = f, .control = t->kind[i] == SL_TOKEN_CONTROL};
        rc = added_text(t, i, normalized && t->nfc, &changed, &found[n++].text, err);
    }
    if (rc == 0 && changed.len > 0 && !(t->normalized = sl_buf_take(&changed)))
        rc = no_memory(err);
    const char *at = t->normalized;
    for (int i = 0; rc == 0 && i < n; i++)
        if (!found[i].text.p) {
            found[i].text.p = at;
            at += found[i].text.len;
        }
    if (rc == 0 && (n > 0 || !normalized))
        rc = sl_added_new(found, n, ret_added, err);
    sl_buf_release(&changed);
    return rc;
}

int sl_tokenizer_build_added(struct sl_tokenizer *t, const unsigned char *flags, struct sl_err *err)
{
    struct sl_added_token *found = calloc((size_t)t->n_tokens + 1, sizeof *found);
    int rc = found ? 0 : no_memory(err);
    if (rc == 0)
        rc = build_added_set(t, flags, false, found, &t->added, err);
    if (rc == 0)
        rc = build_added_set(t, flags, true, found, &t->added_normalized, err);
    free(found);
    return rc;
}

/* Ids of the two sides and of the whole of merge i, "a b". */
static int parse_merge(const struct sl_tokenizer_spec *spec, int i, const struct sl_text_set *vocab,
                       int32_t ret_ids[3], struct sl_err *err)
{
    const char *text = spec->merges[i];
    size_t len = (size_t)spec->merge_len[i];
    const char *space = memchr(text, ' ', len);
    if (!space || space == text || space + 1 == text + len ||
        memchr(space + 1, ' ', (size_t)(text + len - space - 1)))
        return sl_err_set(err, SL_DATA, "merge %d is not two parts with a space between", i);
    size_t left = (size_t)(space - text), right = len - left - 1;
    char whole[2 * SL_TOKEN_BYTES_MAX];
    if (left > SL_TOKEN_BYTES_MAX || right > SL_TOKEN_BYTES_MAX)
        return sl_err_set(err, SL_DATA, "merge %d is too long", i);
    memcpy(whole, text, left);
    memcpy(whole + left, space + 1, right);
    const struct sl_text part[3] = {{text, left}, {space + 1, right}, {whole, left + right}};
    for (int k = 0; k < 3; k++) {
        ret_ids[k] = sl_text_set_find(vocab, part[k]);
        if (ret_ids[k] < 0) {
            char shown[SL_SHOWN_MAX];
            return sl_err_set(err, SL_DATA, "merge %d makes or takes '%s', which is no token", i,
                              sl_shown(part[k].p, part[k].len, shown));
        }
    }
    return 0;
}

static int build_merges(struct sl_tokenizer *t, const struct sl_tokenizer_spec *spec,
                        const int code_of[256], struct sl_err *err)
{
    struct sl_text_set vocab = {.text_of = spec_text, .arg = spec};
    int rc = sl_text_set_init(&vocab, spec->n_tokens);
    rc = rc < 0 ? no_memory(err) : sl_merges_new(spec->n_merges, &t->merges, err);
    for (int i = 0; rc == 0 && i < spec->n_tokens; i++) {
        if (!(flags_of(spec, i) & SL_TOKEN_OUTSIDE) && spec->token_len[i] > 0)
            rc = sl_text_set_add(&vocab, i);
        if (rc < 0)
            sl_err_set(err, rc, "token %d: the vocabulary defeats hashing", i);
    }
    for (int b = 0; rc == 0 && b < 256; b++) {
        char text[2] = {(char)code_of[b]};
        size_t len = 1;
        if (code_of[b] >= 128) {
            text[0] = (char)(0xC0 | code_of[b] >> 6);
            text[1] = (char)(0x80 | (code_of[b] & 63));
            len = 2;
        }
        t->byte_id[b] = sl_text_set_find(&vocab, (struct sl_text){text, len});
        t->byte_unknown[b] = t->byte_id[b] < 0 && spec->unknown_bytes;
        if (t->byte_unknown[b])
            t->byte_id[b] = spec->unk_id;
    }
    for (int i = 0; rc == 0 && i < spec->n_merges; i++) {
        int32_t ids[3];
        rc = parse_merge(spec, i, &vocab, ids, err);
        if (rc == 0)
            rc = sl_merges_add(t->merges, ids[0], ids[1], (uint32_t)i, ids[2], err);
    }
    sl_text_set_release(&vocab);
    return rc;
}

/* What a token's text is to the vocabulary is what it stands for: not so for the others among
 * added tokens, whose text is taken as it is. */
static bool same_in_alphabet(struct sl_text text)
{
    for (size_t i = 0; i < text.len; i++)
        if (text.p[i] <= ' ' || text.p[i] > '~')
            return false;
    return true;
}

static int build_words(struct sl_tokenizer *t, const struct sl_tokenizer_spec *spec,
                       struct sl_err *err)
{
    t->words.text_of = token_text;
    t->words.arg = t;
    if (sl_text_set_init(&t->words, t->n_tokens) < 0)
        return no_memory(err);
    for (int32_t i = 0; i < t->n_tokens; i++) {
        bool whole = t->kind[i] == SL_TOKEN_NORMAL ||
                     (spec->flags && is_added(t->kind[i]) && same_in_alphabet(sl_token_text(t, i)));
        if (whole && !(flags_of(spec, i) & SL_TOKEN_OUTSIDE) && t->start[i + 1] > t->start[i] &&
            sl_text_set_add(&t->words, i) < 0)
            return sl_err_set(err, SL_DATA, "token %d: the vocabulary defeats hashing", i);
    }
    return 0;
}

static int build_digest(struct sl_tokenizer *t, const struct sl_tokenizer_spec *spec,
                        struct sl_err *err)
{
    struct sl_sha256 d;
    int rc = sl_sha256_init(&d, err);
    if (rc < 0)
        return rc;
    const char *pre = sl_pretok_name(t->pretok);
    const int32_t head[] = {spec->n_tokens, spec->n_merges, spec->bos_id,
                            spec->eos_id,   spec->pad_id,   spec->unk_id};
    sl_sha256_update(&d, pre, strlen(pre) + 1);
    sl_sha256_update(&d, head, sizeof head);
    for (int i = 0; i < spec->n_tokens; i++) {
        const int32_t token[] = {spec->token_len[i], kind_of(spec, i)};
        sl_sha256_update(&d, token, sizeof token);
        sl_sha256_update(&d, spec->tokens[i], (size_t)spec->token_len[i]);
    }
    for (int i = 0; i < spec->n_merges; i++) {
        const int32_t len = spec->merge_len[i];
        sl_sha256_update(&d, &len, sizeof len);
        sl_sha256_update(&d, spec->merges[i], (size_t)spec->merge_len[i]);
    }
    const unsigned char more[] = {spec->nfc, spec->unknown_bytes, spec->fuse_unknown};
    bool plain = !spec->nfc && !spec->unknown_bytes;
    for (int i = 0; plain && i < spec->n_tokens; i++)
        plain = (flags_of(spec, i) & ~SL_TOKEN_OUTSIDE) == 0;
    if (!plain) { /* equal to GGUF's form of the same tokenizer otherwise */
        sl_sha256_update(&d, more, sizeof more);
        if (spec->flags)
            sl_sha256_update(&d, spec->flags, (size_t)spec->n_tokens);
    }
    sl_sha256_hex(&d, t->digest);
    return 0;
}

int sl_tokenizer_new(const struct sl_tokenizer_spec *spec, struct sl_tokenizer **ret_tok,
                     struct sl_err *err)
{
    int16_t byte_of[ALPHABET];
    int code_of[256];
    int rc = check_spec(spec, err);
    if (rc < 0)
        return rc;
    struct sl_tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return no_memory(err);
    t->bos = spec->bos_id;
    t->eos = spec->eos_id;
    alphabet(byte_of, code_of);
    t->nfc = spec->nfc;
    t->fuse_unknown = spec->fuse_unknown;
    rc = spec->pre ? sl_pretok_new(spec->pre, &t->pretok, err)
                   : sl_pretok_from_stages(spec->stages, spec->n_stages, spec->ignore_merges,
                                           &t->pretok, err);
    if (rc == 0)
        rc = build_tokens(t, spec, byte_of, err);
    if (rc == 0)
        rc = sl_tokenizer_build_added(t, spec->flags, err);
    if (rc == 0)
        rc = build_merges(t, spec, code_of, err);
    if (rc == 0 && sl_pretok_ignore_merges(t->pretok))
        rc = build_words(t, spec, err);
    if (rc == 0)
        rc = build_digest(t, spec, err);
    if (rc < 0) {
        sl_tokenizer_free(t);
        return rc;
    }
    *ret_tok = t;
    return 0;
}

void sl_tokenizer_free(struct sl_tokenizer *t)
{
    if (!t)
        return;
    free(t->start);
    free(t->bytes);
    free(t->kind);
    free(t->normalized);
    sl_added_free(t->added);
    sl_added_free(t->added_normalized);
    sl_spm_free(t->spm);
    sl_text_set_release(&t->words);
    sl_merges_free(t->merges);
    sl_pretok_free(t->pretok);
    free(t);
}
