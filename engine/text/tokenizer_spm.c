/* Tokenizers that are SentencePiece models. */
#include "engine/text/spm_model.h"
#include "engine/text/tokenizer_parts.h"
#include "engine/format/weights_format.h"
#include <stdlib.h>
#include <string.h>

#define SPACE_MARK "\xE2\x96\x81" /* U+2581, which stands for a space in pieces */
#define SPACE_MARK_LEN 3

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory for a SentencePiece model");
}

/* "<0x0A>", as byte pieces are written; -1 for anything else. */
static int byte_of(struct sl_text piece)
{
    static const char digits[16] = "0123456789ABCDEF"; /* without a zero */
    if (piece.len != 6 || memcmp(piece.p, "<0x", 3) != 0 || piece.p[5] != '>')
        return -1;
    const char *high = memchr(digits, piece.p[3], sizeof digits),
               *low = memchr(digits, piece.p[4], sizeof digits);
    return high && low ? (int)(16 * (high - digits) + (low - digits)) : -1;
}

/* What the piece reads as; out has room for its bytes or those of the unknown surface. */
static int decode(const struct sl_spm_model *m, int id, char *out, size_t *ret_len,
                  struct sl_err *err)
{
    struct sl_text piece = m->piece[id];
    size_t n = 0;
    if (m->kind[id] == SL_TOKEN_BYTE) {
        int byte = byte_of(piece);
        if (byte < 0)
            return sl_err_set(err, SL_DATA, "piece %d is of type byte and names none", id);
        out[n++] = (char)byte;
    } else if (m->kind[id] == SL_TOKEN_UNKNOWN) {
        n = m->unknown_surface.len;
        memcpy(out, m->unknown_surface.p, n);
    } else if (m->kind[id] == SL_TOKEN_CONTROL) {
        n = piece.len;
        memcpy(out, piece.p, n);
    } else {
        for (size_t i = 0; i < piece.len;) {
            bool space =
                piece.len - i >= SPACE_MARK_LEN && !memcmp(piece.p + i, SPACE_MARK, SPACE_MARK_LEN);
            out[n++] = space ? ' ' : piece.p[i];
            i += space ? SPACE_MARK_LEN : 1;
        }
    }
    *ret_len = n;
    return 0;
}

static int build_tokens(struct sl_tokenizer *t, const struct sl_spm_model *m, struct sl_err *err)
{
    size_t n = (size_t)m->n_pieces, total = 1, at = 0, len = 0;
    for (size_t i = 0; i < n; i++)
        total += m->kind[i] == SL_TOKEN_UNKNOWN ? m->unknown_surface.len : m->piece[i].len;
    t->n_tokens = m->n_pieces;
    t->start = malloc((n + 1) * sizeof *t->start);
    t->bytes = malloc(total);
    t->kind = malloc(n);
    if (!t->start || !t->bytes || !t->kind)
        return no_memory(err);
    memcpy(t->kind, m->kind, n);
    for (int i = 0; i < m->n_pieces; i++) {
        int rc = decode(m, i, t->bytes + at, &len, err);
        if (rc < 0)
            return rc;
        t->start[i] = at;
        at += len;
        if (t->kind[i] == SL_TOKEN_USER) /* the library finds them */
            t->kind[i] = SL_TOKEN_NORMAL;
    }
    t->start[n] = at;
    return 0;
}

static int find_end(const struct sl_spm_model *m, const char *what, const char *name, int otherwise,
                    int *ret_id, struct sl_err *err)
{
    char shown[SL_SHOWN_MAX];
    int id = otherwise;
    for (int i = 0; name && i <= m->n_pieces; i++) {
        if (i == m->n_pieces)
            return sl_err_set(err, SL_DATA, "the %s token '%s' is no piece of the model", what,
                              sl_shown(name, strlen(name), shown));
        if (m->piece[i].len == strlen(name) && !memcmp(m->piece[i].p, name, strlen(name))) {
            id = i;
            break;
        }
    }
    if (id < -1 || id >= m->n_pieces)
        return sl_err_set(err, SL_DATA, "the %s token is %d, but there are %d pieces", what, id,
                          m->n_pieces);
    *ret_id = id;
    return 0;
}

static int build_digest(struct sl_tokenizer *t, const void *data, size_t len, struct sl_err *err)
{
    struct sl_sha256 d;
    const int32_t ends[] = {t->bos, t->eos};
    int rc = sl_sha256_init(&d, err);
    if (rc < 0)
        return rc;
    sl_sha256_update(&d, ends, sizeof ends);
    sl_sha256_update(&d, data, len);
    sl_sha256_hex(&d, t->digest);
    return 0;
}

int sl_tokenizer_from_sentencepiece(const void *data, size_t len, const struct sl_text_ends *ends,
                                    struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_spm_model m = {0};
    if (len > SL_TOKENIZER_FILE_MAX)
        return sl_err_set(err, SL_DATA,
                          "a SentencePiece model of %zu bytes; at most %u are "
                          "supported",
                          len, SL_TOKENIZER_FILE_MAX);
    struct sl_tokenizer *t = calloc(1, sizeof *t);
    int rc = t ? sl_spm_model_read(data, len, &m, err) : no_memory(err);
    if (rc == 0)
        rc = sl_spm_new(data, len, &t->spm, err);
    if (rc == 0)
        rc = build_tokens(t, &m, err);
    if (rc == 0)
        rc = sl_tokenizer_build_added(t, NULL, err);
    if (rc == 0) {
        t->strip_all = m.remove_extra_spaces;
        t->strip_first = m.dummy_prefix;
        rc = find_end(&m, "BOS", ends ? ends->bos : NULL, ends ? ends->bos_id : sl_spm_bos(t->spm),
                      &t->bos, err);
    }
    if (rc == 0)
        rc = find_end(&m, "EOS", ends ? ends->eos : NULL, ends ? ends->eos_id : sl_spm_eos(t->spm),
                      &t->eos, err);
    if (rc == 0)
        rc = build_digest(t, data, len, err);
    sl_spm_model_release(&m);
    if (rc < 0) {
        sl_tokenizer_free(t);
        return rc;
    }
    *ret_tok = t;
    return 0;
}

int sl_tokenizer_from_scores(const struct sl_scored_vocab *vocab, const struct sl_text_ends *ends,
                             struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_buf model;
    int rc = 0;
    sl_buf_init(&model, SL_TOKENIZER_FILE_MAX);
    for (int i = 0; rc == 0 && i < vocab->n_tokens; i++)
        if (vocab->token_len[i] > SL_TOKEN_BYTES_MAX)
            rc = sl_err_set(err, SL_DATA, "token %d has %d bytes; at most %d are supported", i,
                            vocab->token_len[i], SL_TOKEN_BYTES_MAX);
    if (rc == 0 && sl_spm_model_write(vocab, &model) < 0)
        rc = no_memory(err);
    if (rc == 0)
        rc = sl_tokenizer_from_sentencepiece(model.p, model.len, ends, ret_tok, err);
    sl_buf_release(&model);
    return rc;
}
