#include "engine/text/tokenizer.h"
#include "engine/text/nfc.h"
#include "engine/text/tokenizer_parts.h"
#include "engine/text/utf8.h"
#include <stdlib.h>
#include <string.h>

#define NORMAL_GROWTH 3 /* form C of UTF-8 text */

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

struct sl_text sl_token_text(const struct sl_tokenizer *t, int32_t id)
{
    return (struct sl_text){t->bytes + t->start[id], t->start[id + 1] - t->start[id]};
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
    bool specials;
    struct sl_merge_scratch scratch;
    struct sl_ids *ids;
};

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory for a text's tokens");
}

/* One piece of the pre-tokenizer's. */
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
    bool unknown = false; /* the byte before was unknown */
    for (size_t i = 0; i < len; i++) {
        unsigned char b = (unsigned char)piece[i];
        if (t->byte_id[b] >= 0 && !(unknown && t->byte_unknown[b] && t->fuse_unknown))
            id[n++] = t->byte_id[b];
        unknown = t->byte_unknown[b];
    }
    n = sl_merge(t->merges, id, n, &w->scratch);
    if (n < 0)
        return no_memory(err);
    w->ids->n += n;
    return 0;
}

static int add_ids(void *arg, const int *ids, size_t n)
{
    struct work *w = arg;
    if (ids_room(w->ids, n) < 0)
        return SL_NOMEM;
    for (size_t i = 0; i < n; i++)
        w->ids->id[w->ids->n++] = ids[i];
    return 0;
}

/* What lies between added tokens, in its final form. */
static int add_normalized_part(void *arg, int32_t id, const char *text, size_t len,
                               struct sl_err *err)
{
    struct work *w = arg;
    if (id >= 0)
        return sl_ids_add(w->ids, id) < 0 ? no_memory(err) : 0;
    return sl_pretok_split(w->t->pretok, text, len, add_piece, w, err);
}

/* What lies between the added tokens that are looked for before normalising. */
static int add_part(void *arg, int32_t id, const char *text, size_t len, struct sl_err *err)
{
    struct work *w = arg;
    const struct sl_tokenizer *t = w->t;
    struct sl_buf normal;
    int rc = 0;
    if (id >= 0)
        return sl_ids_add(w->ids, id) < 0 ? no_memory(err) : 0;
    if (t->spm) {
        rc = sl_spm_encode(t->spm, text, len, add_ids, w, err);
        return rc == SL_NOMEM ? no_memory(err) : rc;
    }
    sl_buf_init(&normal, NORMAL_GROWTH * 3 * (size_t)SL_TOKENIZER_TEXT_MAX);
    if (t->nfc && !sl_nfc_plain(text, len)) {
        rc = sl_nfc(text, len, &normal, err);
        text = normal.p;
        len = normal.len;
    }
    if (rc == 0 && t->added_normalized)
        rc = sl_added_split(t->added_normalized, text, len, w->specials, add_normalized_part, w,
                            err);
    else if (rc == 0)
        rc = add_normalized_part(w, -1, text, len, err);
    sl_buf_release(&normal);
    return rc;
}

int sl_tokenize(const struct sl_tokenizer *t, const char *text, size_t len, bool specials,
                struct sl_ids *ids, struct sl_err *err)
{
    if (len > SL_TOKENIZER_TEXT_MAX)
        return sl_err_set(err, SL_DATA, "a text of %zu bytes; at most %u can be tokenized", len,
                          SL_TOKENIZER_TEXT_MAX);
    struct work w = {.t = t, .specials = specials, .ids = ids};
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
        rc = sl_added_split(t->added, text, len, specials, add_part, &w, err);
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
    bool at_start = t->spm && had == 0 && (t->strip_first || t->strip_all);
    for (int i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->n_tokens) {
            cut(text, had);
            return sl_err_set(err, SL_DATA, "token id %d is outside the vocabulary of %d", ids[i],
                              t->n_tokens);
        }
        if (t->kind[ids[i]] == SL_TOKEN_CONTROL && !specials)
            continue;
        struct sl_text s = sl_token_text(t, ids[i]);
        if (at_start && t->kind[ids[i]] == SL_TOKEN_NORMAL && s.len > 0 && *s.p == ' ') {
            s.p++;
            s.len--;
            at_start = t->strip_all && s.len == 0;
        } else {
            at_start = at_start && t->kind[ids[i]] == SL_TOKEN_CONTROL;
        }
        int rc = sl_buf_add(text, s.p, s.len);
        if (rc < 0) {
            cut(text, had);
            return sl_err_set(err, rc, "no room for the text of %d tokens", n);
        }
    }
    return 0;
}
