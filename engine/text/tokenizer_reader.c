#include "engine/text/tokenizer_reader.h"
#include "engine/format/weights_format.h"
#include <stdlib.h>
#include <string.h>

static int bad(const struct sl_reader *r, const char *what)
{
    return sl_err_set(r->err, SL_DATA, "%s: %s", r->file, what);
}

static int no_memory(const struct sl_reader *r)
{
    return sl_err_set(r->err, SL_NOMEM, "out of memory for a tokenizer");
}

/* ---- JSON within bounds */

/* Whether the text has few enough values for the parser's memory; it need not be JSON. */
static bool few_values(const char *text, size_t len)
{
    size_t n = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == '"')
            in_string = !in_string;
        else if (in_string)
            i += c == '\\';
        else
            n += c == ',' || c == '[' || c == '{';
    }
    return n <= SL_TOKENIZER_VALUES_MAX;
}

int sl_reader_parse(const char *text, size_t len, const char *what, json_t **ret_json,
                    struct sl_err *err)
{
    struct sl_err bad_json = SL_ERR_INIT;
    if (len > SL_TOKENIZER_FILE_MAX)
        return sl_err_set(err, SL_DATA, "%s has %zu bytes; at most %u are supported", what, len,
                          SL_TOKENIZER_FILE_MAX);
    if (!few_values(text, len))
        return sl_err_set(err, SL_DATA, "%s has more than %u values", what,
                          SL_TOKENIZER_VALUES_MAX);
    json_t *json = NULL;
    int rc = sl_json_parse(text, len, what, &json, &bad_json);
    if (rc < 0)
        return sl_err_set(err, rc == SL_NOMEM ? rc : SL_DATA, "%s", bad_json.msg);
    if (!json_is_object(json)) {
        json_decref(json);
        return sl_err_set(err, SL_DATA, "%s is not a JSON object", what);
    }
    *ret_json = json;
    return 0;
}

/* ---- vocabulary */

static int set_token(struct sl_reader *r, const char *text, size_t len, json_int_t id, int kind,
                     int flags)
{
    char shown[SL_SHOWN_MAX];
    if (id < 0 || id >= SL_MAX_VOCAB)
        return sl_err_set(r->err, SL_DATA, "token '%s' has id %lld; 0 to %d are supported",
                          sl_shown(text, len, shown), (long long)id, SL_MAX_VOCAB - 1);
    if (id >= r->cap) {
        size_t cap = 2 * (size_t)id + 1024, n = (size_t)r->cap;
        const char **token = realloc(r->token, cap * sizeof *token);
        r->token = token ? token : r->token;
        int *token_len = realloc(r->token_len, cap * sizeof *token_len);
        r->token_len = token_len ? token_len : r->token_len;
        unsigned char *kinds = realloc(r->kind, cap);
        r->kind = kinds ? kinds : r->kind;
        unsigned char *all = realloc(r->flags, cap);
        r->flags = all ? all : r->flags;
        if (!token || !token_len || !kinds || !all)
            return no_memory(r);
        for (size_t i = n; i < cap; i++) {
            token[i] = "";
            token_len[i] = 0;
        }
        memset(kinds + n, SL_TOKEN_UNUSED, cap - n);
        memset(all + n, 0, cap - n);
        r->cap = (int)cap;
    }
    if (r->kind[id] != SL_TOKEN_UNUSED)
        return sl_err_set(r->err, SL_DATA, "token '%s' has id %lld, which another one has too",
                          sl_shown(text, len, shown), (long long)id);
    if (len > SL_TOKEN_BYTES_MAX)
        return sl_err_set(r->err, SL_DATA, "token '%s' has %zu bytes; at most %d are supported",
                          sl_shown(text, len, shown), len, SL_TOKEN_BYTES_MAX);
    r->token[id] = text;
    r->token_len[id] = (int)len;
    r->kind[id] = (unsigned char)kind;
    r->flags[id] = (unsigned char)flags;
    if (id >= r->spec.n_tokens)
        r->spec.n_tokens = (int)id + 1;
    return 0;
}

int sl_reader_vocab(struct sl_reader *r, const json_t *vocab)
{
    const char *text;
    json_t *id;
    int rc = 0;
    if (!json_is_object(vocab))
        return bad(r, "the vocabulary is not an object of tokens and ids");
    r->vocab = vocab;
    json_object_foreach((json_t *)vocab, text, id) {
        if (!json_is_integer(id))
            return bad(r, "an id of the vocabulary is not an integer");
        rc = set_token(r, text, strlen(text), json_integer_value(id), SL_TOKEN_NORMAL, 0);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* -1: none */
int sl_reader_token(const struct sl_reader *r, const char *text)
{
    const json_t *id = json_object_get(r->vocab, text);
    if (!id)
        id = json_object_get(r->added, text);
    return id ? (int)json_integer_value(id) : -1;
}

static int added_flags(const struct sl_reader *r, const json_t *token, int *ret_flags,
                       bool *ret_special)
{
    static const struct {
        const char *name;
        int flag;
    } names[] = {{"lstrip", SL_TOKEN_LSTRIP},
                 {"rstrip", SL_TOKEN_RSTRIP},
                 {"single_word", SL_TOKEN_SINGLE_WORD},
                 {"normalized", SL_TOKEN_NORMALIZED},
                 {"special", 0}};
    int flags = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *v = json_object_get(token, names[i].name);
        if (!json_is_boolean(v))
            return sl_err_set(r->err, SL_DATA,
                              "tokenizer.json: an added token's '%s' is not a "
                              "boolean",
                              names[i].name);
        if (json_is_true(v))
            flags |= names[i].flag;
    }
    *ret_flags = flags;
    *ret_special = json_is_true(json_object_get(token, "special"));
    return 0;
}

/* The reference numbers added tokens itself: those that the vocabulary lacks go on behind it. A
 * file that numbers them otherwise would give other ids here than there. */
int sl_reader_added(struct sl_reader *r, const json_t *tokens)
{
    size_t i, next = json_object_size(r->vocab);
    json_t *token;
    char shown[SL_SHOWN_MAX];
    if (!tokens || json_is_null(tokens))
        return 0;
    if (!json_is_array(tokens))
        return bad(r, "added_tokens is not an array");
    json_array_foreach(tokens, i, token) {
        const json_t *content = json_object_get(token, "content"), *id;
        const char *text = json_string_value(content);
        int flags = 0, rc;
        bool special = false;
        id = json_object_get(token, "id");
        if (!text || !json_is_integer(id) || strlen(text) != json_string_length(content))
            return bad(r, "an added token has no content or no id");
        if ((rc = added_flags(r, token, &flags, &special)) < 0)
            return rc;
        if (!*text)
            continue;
        int kind = special ? SL_TOKEN_CONTROL : SL_TOKEN_USER;
        sl_shown(text, strlen(text), shown);
        if (json_object_get(r->added, text))
            return sl_err_set(r->err, SL_DATA, "added token '%s' comes twice", shown);
        const json_t *known = json_object_get(r->vocab, text);
        json_int_t want = known ? json_integer_value(known) : (json_int_t)next++;
        if (json_integer_value(id) != want)
            return sl_err_set(r->err, SL_DATA, "added token '%s' has id %lld, but %s %lld", shown,
                              (long long)json_integer_value(id),
                              known ? "the vocabulary gives it" : "the next one free is",
                              (long long)want);
        if (known) {
            r->kind[want] = (unsigned char)kind;
            r->flags[want] = (unsigned char)flags;
        } else {
            rc = set_token(r, text, strlen(text), want, kind, flags | SL_TOKEN_OUTSIDE);
            if (rc < 0)
                return rc;
        }
        if (json_object_set_new(r->added, text, json_integer(want)) < 0)
            return no_memory(r);
    }
    return 0;
}

/* ---- merges */

static int merges_room(struct sl_reader *r, size_t n)
{
    r->merge = calloc(n + 1, sizeof *r->merge);
    r->merge_len = calloc(n + 1, sizeof *r->merge_len);
    return r->merge && r->merge_len ? 0 : no_memory(r);
}

/* A pair ["a", "b"] becomes "a b" in r->joined; where it stands is known once all are there. */
static int join_merge(struct sl_reader *r, const json_t *pair, size_t i)
{
    size_t had = r->joined.len;
    for (size_t k = 0; k < 2; k++) {
        const json_t *part = json_array_get(pair, k);
        size_t len = json_string_length(part);
        if (!json_is_string(part) || json_array_size(pair) != 2 ||
            memchr(json_string_value(part), ' ', len))
            return sl_err_set(r->err, SL_DATA, "merge %zu is not a pair of tokens without spaces",
                              i);
        if ((k > 0 && sl_buf_addc(&r->joined, ' ') < 0) ||
            sl_buf_add(&r->joined, json_string_value(part), len) < 0)
            return no_memory(r);
    }
    r->merge_len[i] = (int)(r->joined.len - had);
    return 0;
}

int sl_reader_merges(struct sl_reader *r, const json_t *merges)
{
    size_t i, n = json_array_size(merges);
    json_t *merge;
    int rc;
    if (!json_is_array(merges))
        return bad(r, "the merges are not an array");
    if ((rc = merges_room(r, n)) < 0)
        return rc;
    sl_buf_init(&r->joined, 2 * SL_TOKENIZER_FILE_MAX);
    json_array_foreach(merges, i, merge) {
        if (json_is_string(merge) && json_string_length(merge) <= 2 * SL_TOKEN_BYTES_MAX + 1) {
            r->merge[i] = json_string_value(merge);
            r->merge_len[i] = (int)json_string_length(merge);
        } else if ((rc = join_merge(r, merge, i)) < 0) {
            return rc;
        }
    }
    const char *at = r->joined.p;
    for (i = 0; i < n; i++)
        if (!r->merge[i]) {
            r->merge[i] = at;
            at += r->merge_len[i];
        }
    r->spec.n_merges = (int)n;
    return 0;
}

/* merges.txt: a line each, but for the version in front. */
int sl_reader_merge_lines(struct sl_reader *r, const char *text, size_t len)
{
    static const char version[] = "#version";
    size_t lines = 1;
    int n = 0, rc;
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    if (lines > SL_TOKENIZER_VALUES_MAX)
        return sl_err_set(r->err, SL_DATA, "merges.txt has more than %u lines",
                          SL_TOKENIZER_VALUES_MAX);
    if ((rc = merges_room(r, lines)) < 0)
        return rc;
    for (const char *end = text + len, *next; text < end; text = next) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        next = stop ? stop + 1 : end;
        size_t line = (size_t)((stop ? stop : end) - text);
        if (line > 0 && text[line - 1] == '\r')
            line--;
        if (line == 0 || (line >= sizeof version - 1 && !memcmp(text, version, sizeof version - 1)))
            continue;
        if (line > 2 * SL_TOKEN_BYTES_MAX + 1)
            return sl_err_set(r->err, SL_DATA, "merges.txt: merge %d is too long", n);
        r->merge[n] = text;
        r->merge_len[n++] = (int)line;
    }
    r->spec.n_merges = n;
    return 0;
}

/* ---- begin and end */

static int find_end(const struct sl_reader *r, const char *what, const char *name, int otherwise,
                    int *ret_id)
{
    char shown[SL_SHOWN_MAX];
    int id = name ? sl_reader_token(r, name) : otherwise;
    if (name && id < 0)
        return sl_err_set(r->err, SL_DATA, "the %s token '%s' is not in the vocabulary", what,
                          sl_shown(name, strlen(name), shown));
    *ret_id = id;
    return 0;
}

int sl_reader_ends(struct sl_reader *r, const struct sl_text_ends *ends)
{
    int rc = 0;
    if (!ends)
        return 0;
    rc = find_end(r, "BOS", ends->bos, ends->bos_id, &r->spec.bos_id);
    return rc < 0 ? rc : find_end(r, "EOS", ends->eos, ends->eos_id, &r->spec.eos_id);
}

int sl_reader_begin(struct sl_reader *r, const char *file, struct sl_err *err)
{
    *r = (struct sl_reader){.err = err, .file = file, .added = json_object()};
    r->spec.bos_id = r->spec.eos_id = r->spec.pad_id = r->spec.unk_id = -1;
    sl_buf_init(&r->joined, 1);
    return r->added ? 0 : no_memory(r);
}

int sl_reader_finish(struct sl_reader *r, struct sl_tokenizer **ret_tok)
{
    r->spec.tokens = r->token;
    r->spec.token_len = r->token_len;
    r->spec.kind = r->kind;
    r->spec.flags = r->flags;
    r->spec.merges = r->merge;
    r->spec.merge_len = r->merge_len;
    r->spec.stages = r->stage;
    return sl_tokenizer_new(&r->spec, ret_tok, r->err);
}

void sl_reader_end(struct sl_reader *r)
{
    json_decref(r->added);
    free(r->token);
    free(r->token_len);
    free(r->kind);
    free(r->flags);
    free(r->merge);
    free(r->merge_len);
    sl_buf_release(&r->joined);
}
