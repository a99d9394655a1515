#include "engine/tokenizer.h"
#include "engine/merge.h"
#include "engine/pretok.h"
#include "engine/text_set.h"
#include "engine/utf8.h"
#include "engine/weights_format.h"
#include <stdlib.h>
#include <string.h>

#define TOKEN_BYTES_MAX (1 << 16)
#define MERGES_MAX (1 << 22)
#define ALPHABET 324 /* code points below this stand for bytes in GPT-2's alphabet */

enum { KIND_NORMAL = 1, KIND_CONTROL = 3, KIND_USER = 4 };

struct sl_tokenizer {
    int n_tokens;
    size_t *start; /* n_tokens + 1 offsets into bytes */
    char *bytes;   /* what each token stands for */
    unsigned char *kind;
    int32_t byte_id[256]; /* -1: the vocabulary has no token for this byte alone */
    struct sl_merges *merges;
    int32_t *special; /* control and user-defined tokens, sorted by their bytes */
    int n_special;
    bool special_first[256]; /* bytes that some special token starts with */
    int32_t
        *word; /* hash set of normal tokens by bytes; only for pre-tokenizers that ignore merges */
    struct sl_text_set words; /* normal tokens; only for pre-tokenizers that ignore merges */
    struct sl_pretok *pretok;
    int32_t bos, eos;
    char digest[SL_SHA256_HEX + 1];
};

/* ---- lists of ids */

static int ids_room(struct sl_ids *ids, size_t more)
{
    if (more <= (size_t)(ids->cap - ids->n))
        return 0;
    size_t cap = (size_t)ids->cap * 2 + 64;
    if (cap < (size_t)ids->n + more)
        cap = (size_t)ids->n + more;
    if (cap > INT32_MAX)
        return SL_NOMEM;
    int32_t *id = realloc(ids->id, cap * sizeof *id);
    if (!id)
        return SL_NOMEM;
    ids->id = id;
    ids->cap = (int)cap;
    return 0;
}

int sl_ids_add(struct sl_ids *ids, int32_t id)
{
    int rc = ids_room(ids, 1);
    if (rc == 0)
        ids->id[ids->n++] = id;
    return rc;
}

void sl_ids_release(struct sl_ids *ids)
{
    if (!ids)
        return;
    free(ids->id);
    *ids = (struct sl_ids){0};
}

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
    const struct sl_tokenizer *t = arg;
    return (struct sl_text){t->bytes + t->start[id], t->start[id + 1] - t->start[id]};
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
    if (spec->n_merges < 0 || spec->n_merges > MERGES_MAX)
        return sl_err_set(err, SL_DATA, "tokenizer has %d merges; at most %d are supported",
                          spec->n_merges, MERGES_MAX);
    for (int i = 0; i < spec->n_tokens; i++)
        if (spec->token_len[i] < 0 || spec->token_len[i] > TOKEN_BYTES_MAX)
            return sl_err_set(err, SL_DATA, "token %d has %d bytes; at most %d are supported", i,
                              spec->token_len[i], TOKEN_BYTES_MAX);
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
    return spec->kind ? spec->kind[id] : KIND_NORMAL;
}

static int by_text(const void *a, const void *b, void *arg)
{
    struct sl_text x = token_text(arg, *(const int32_t *)a),
                   y = token_text(arg, *(const int32_t *)b);
    int c = memcmp(x.p, y.p, x.len < y.len ? x.len : y.len);
    return c ? c : (x.len > y.len) - (x.len < y.len);
}

/* Bytes of every token, and the list of special ones. */
static int build_tokens(struct sl_tokenizer *t, const struct sl_tokenizer_spec *spec,
                        const int16_t byte_of[ALPHABET], struct sl_err *err)
{
    size_t n = (size_t)spec->n_tokens, total = 1, at = 0, n_special = 0;
    for (int i = 0; i < spec->n_tokens; i++) {
        total += (size_t)spec->token_len[i];
        n_special += kind_of(spec, i) == KIND_CONTROL || kind_of(spec, i) == KIND_USER;
    }
    t->n_tokens = spec->n_tokens;
    t->start = malloc((n + 1) * sizeof *t->start);
    t->bytes = malloc(total);
    t->kind = malloc(n);
    t->special = malloc((n_special + 1) * sizeof *t->special);
    if (!t->start || !t->bytes || !t->kind || !t->special)
        return no_memory(err);
    for (int i = 0; i < spec->n_tokens; i++) {
        struct sl_text text = spec_text(spec, i);
        t->start[i] = at;
        t->kind[i] = (unsigned char)kind_of(spec, i);
        if (t->kind[i] == KIND_CONTROL || t->kind[i] == KIND_USER) {
            memcpy(t->bytes + at, text.p, text.len);
            at += text.len;
            if (text.len > 0)
                t->special[t->n_special++] = i;
        } else {
            at += decode(&text, byte_of, t->bytes + at);
        }
    }
    t->start[n] = at;
    for (int i = 0; i < t->n_special; i++)
        t->special_first[(unsigned char)*token_text(t, t->special[i]).p] = true;
    qsort_r(t->special, (size_t)t->n_special, sizeof *t->special, by_text, t);
    return 0;
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
    char whole[2 * TOKEN_BYTES_MAX];
    if (left > TOKEN_BYTES_MAX || right > TOKEN_BYTES_MAX)
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

static int build_words(struct sl_tokenizer *t, struct sl_err *err)
{
    t->words.text_of = token_text;
    t->words.arg = t;
    if (sl_text_set_init(&t->words, t->n_tokens) < 0)
        return no_memory(err);
    for (int32_t i = 0; i < t->n_tokens; i++)
        if (t->kind[i] == KIND_NORMAL && sl_text_set_add(&t->words, i) < 0)
            return sl_err_set(err, SL_DATA, "token %d: the vocabulary defeats hashing", i);
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
    rc = sl_pretok_new(spec->pre, &t->pretok, err);
    if (rc == 0)
        rc = build_tokens(t, spec, byte_of, err);
    if (rc == 0)
        rc = build_merges(t, spec, code_of, err);
    if (rc == 0 && sl_pretok_ignore_merges(t->pretok))
        rc = build_words(t, err);
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
    free(t->special);
    sl_text_set_release(&t->words);
    sl_merges_free(t->merges);
    sl_pretok_free(t->pretok);
    free(t);
}

int sl_tokenizer_vocab(const struct sl_tokenizer *t)
{
    return t->n_tokens;
}

int32_t sl_tokenizer_bos(const struct sl_tokenizer *t)
{
    return t->bos;
}

int32_t sl_tokenizer_eos(const struct sl_tokenizer *t)
{
    return t->eos;
}

const char *sl_tokenizer_digest(const struct sl_tokenizer *t)
{
    return t->digest;
}

/* ---- text to ids */

struct work {
    const struct sl_tokenizer *t;
    struct sl_merge_scratch scratch;
    struct sl_ids *ids;
};

static int add_piece(void *arg, const char *piece, size_t len, struct sl_err *err)
{
    struct work *w = arg;
    const struct sl_tokenizer *t = w->t;
    if (t->words.slot) {
        int32_t whole = sl_text_set_find(&t->words, (struct sl_text){piece, len});
        if (whole >= 0)
            return sl_ids_add(w->ids, whole) < 0 ? no_memory(err) : 0;
    }
    if (ids_room(w->ids, len) < 0)
        return no_memory(err);
    int32_t *id = w->ids->id + w->ids->n;
    int n = 0;
    /* As in the reference without an unknown token, bytes that the vocabulary lacks leave no trace.
     */
    for (size_t i = 0; i < len; i++)
        if (t->byte_id[(unsigned char)piece[i]] >= 0)
            id[n++] = t->byte_id[(unsigned char)piece[i]];
    n = sl_merge(t->merges, id, n, &w->scratch);
    if (n < 0)
        return no_memory(err);
    w->ids->n += n;
    return 0;
}

/* The longest special token that text starts with, or -1: narrows the sorted list byte by byte. */
static int32_t special_at(const struct sl_tokenizer *t, const char *text, size_t len)
{
    int low = 0, high = t->n_special;
    int32_t found = -1;
    for (size_t depth = 0; low < high && depth < len; depth++) {
        unsigned char want = (unsigned char)text[depth];
        int edge[2]; /* first special whose byte at depth is >= want, and > want */
        for (int k = 0; k < 2; k++) {
            int a = low, b = high;
            while (a < b) {
                int mid = a + (b - a) / 2;
                struct sl_text s = token_text(t, t->special[mid]);
                int byte = depth < s.len ? (unsigned char)s.p[depth] : -1;
                if (byte < want + k)
                    a = mid + 1;
                else
                    b = mid;
            }
            edge[k] = a;
        }
        low = edge[0];
        high = edge[1];
        /* Sorted: a special that ends here comes first. */
        if (low < high && token_text(t, t->special[low]).len == depth + 1)
            found = t->special[low];
    }
    return found;
}

static int add_text(struct work *w, const char *text, size_t len, bool specials, struct sl_err *err)
{
    const struct sl_tokenizer *t = w->t;
    size_t start = 0, at = 0;
    int rc;
    while (at < len) {
        int32_t id = -1;
        if (t->special_first[(unsigned char)text[at]])
            id = special_at(t, text + at, len - at);
        if (id < 0) {
            at++;
            continue;
        }
        size_t id_len = t->start[id + 1] - t->start[id];
        if (specials || t->kind[id] == KIND_USER) {
            if (at > start &&
                (rc = sl_pretok_split(t->pretok, text + start, at - start, add_piece, w, err)) < 0)
                return rc;
            if (sl_ids_add(w->ids, id) < 0)
                return no_memory(err);
            start = at + id_len;
        }
        at += id_len;
    }
    return len > start ? sl_pretok_split(t->pretok, text + start, len - start, add_piece, w, err)
                       : 0;
}

int sl_tokenize(const struct sl_tokenizer *t, const char *text, size_t len, bool specials,
                struct sl_ids *ids, struct sl_err *err)
{
    if (len > SL_TOKENIZER_TEXT_MAX)
        return sl_err_set(err, SL_DATA, "a text of %zu bytes; at most %u can be tokenized", len,
                          SL_TOKENIZER_TEXT_MAX);
    struct work w = {.t = t, .ids = ids};
    struct sl_buf fixed;
    int had = ids->n, rc = 0;
    sl_buf_init(&fixed, 3 * (size_t)SL_TOKENIZER_TEXT_MAX);
    if (sl_utf8_valid(text, len) < len) {
        if (sl_utf8_repair(text, len, &fixed) < 0)
            rc = no_memory(err);
        text = fixed.p;
        len = fixed.len;
    }
    if (rc == 0)
        rc = add_text(&w, text, len, specials, err);
    if (rc < 0)
        ids->n = had;
    sl_merge_scratch_release(&w.scratch);
    sl_buf_release(&fixed);
    return rc;
}

/* ---- and back */

static void cut(struct sl_buf *text, size_t len)
{
    text->len = len;
    if (text->cap)
        text->p[len] = '\0';
}

int sl_detokenize(const struct sl_tokenizer *t, const int32_t *ids, int n, bool specials,
                  struct sl_buf *text, struct sl_err *err)
{
    size_t had = text->len;
    for (int i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->n_tokens) {
            cut(text, had);
            return sl_err_set(err, SL_DATA, "token id %d is outside the vocabulary of %d", ids[i],
                              t->n_tokens);
        }
        if (t->kind[ids[i]] == KIND_CONTROL && !specials)
            continue;
        struct sl_text s = token_text(t, ids[i]);
        int rc = sl_buf_add(text, s.p, s.len);
        if (rc < 0) {
            cut(text, had);
            return sl_err_set(err, rc, "no room for the text of %d tokens", n);
        }
    }
    return 0;
}
