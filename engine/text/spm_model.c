#include "engine/text/spm_model.h"
#include "engine/format/weights_format.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Fields of sentencepiece_model.proto. */
enum { MODEL_PIECE = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3, MODEL_DENORMALIZER = 5 };
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };
enum {
    TRAINER_TYPE = 3,
    TRAINER_SUFFIX_SPACE = 24,
    TRAINER_BYTE_FALLBACK = 35,
    TRAINER_UNKNOWN_SURFACE = 44
};
enum {
    NORMALIZER_CHARSMAP = 2,
    NORMALIZER_DUMMY_PREFIX = 3,
    NORMALIZER_REMOVE_SPACES = 4,
    NORMALIZER_ESCAPE_SPACES = 5
};
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { TYPE_BPE = 2 };

/* ---- reading */

struct field {
    int number, wire;
    uint64_t value;      /* of a varint */
    struct sl_text text; /* of bytes */
};

static int damaged(struct sl_err *err)
{
    return sl_err_set(err, SL_DATA, "not a SentencePiece model: its fields are damaged");
}

static bool read_varint(struct sl_text *at, uint64_t *ret_value)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && at->len > 0; shift += 7) {
        unsigned char c = (unsigned char)*at->p;
        at->p++;
        at->len--;
        v |= (uint64_t)(c & 0x7F) << shift;
        if (c < 0x80) {
            *ret_value = v;
            return true;
        }
    }
    return false;
}

/* The field at the start of *at, which moves behind it: 1, 0 at the end, or SL_DATA. */
static int next_field(struct sl_text *at, struct field *ret_field, struct sl_err *err)
{
    struct field f = {0};
    uint64_t tag, len = 0;
    if (at->len == 0)
        return 0;
    if (!read_varint(at, &tag) || tag >> 3 == 0 || tag >> 3 > INT32_MAX)
        return damaged(err);
    f.number = (int)(tag >> 3);
    f.wire = (int)(tag & 7);
    if (f.wire == WIRE_VARINT) {
        if (!read_varint(at, &f.value))
            return damaged(err);
    } else if (f.wire == WIRE_BYTES) {
        if (!read_varint(at, &len))
            return damaged(err);
    } else if (f.wire == WIRE_64 || f.wire == WIRE_32) {
        len = f.wire == WIRE_64 ? 8 : 4;
    } else {
        return damaged(err);
    }
    if (len > at->len)
        return damaged(err);
    f.text = (struct sl_text){at->p, (size_t)len};
    at->p += len;
    at->len -= (size_t)len;
    *ret_field = f;
    return 1;
}

static int read_piece(struct sl_spm_model *m, struct sl_text at, int cap, struct sl_err *err)
{
    struct field f = {0};
    struct sl_text text = {"", 0};
    uint64_t kind = SL_TOKEN_NORMAL;
    int rc;
    if (m->n_pieces == cap)
        return damaged(err);
    while ((rc = next_field(&at, &f, err)) > 0) {
        if (f.number == PIECE_TEXT && f.wire == WIRE_BYTES)
            text = f.text;
        else if (f.number == PIECE_TYPE && f.wire == WIRE_VARINT)
            kind = f.value;
    }
    if (rc < 0)
        return rc;
    if (kind < SL_TOKEN_NORMAL || kind > SL_TOKEN_BYTE)
        return sl_err_set(err, SL_SPEC, "piece %d has type %llu, which is not supported",
                          m->n_pieces, (unsigned long long)kind);
    if (text.len == 0 || text.len > SL_TOKEN_BYTES_MAX || memchr(text.p, '\0', text.len))
        return sl_err_set(err, SL_DATA, "piece %d has %zu bytes or a NUL among them", m->n_pieces,
                          text.len);
    m->piece[m->n_pieces] = text;
    m->kind[m->n_pieces++] = (unsigned char)kind;
    return 0;
}

static int read_trainer(struct sl_spm_model *m, struct sl_text at, struct sl_err *err)
{
    struct field f = {0};
    int rc;
    while ((rc = next_field(&at, &f, err)) > 0) {
        if (f.number == TRAINER_SUFFIX_SPACE && f.wire == WIRE_VARINT && f.value)
            return sl_err_set(err, SL_SPEC, "treat_whitespace_as_suffix is not supported");
        if (f.number == TRAINER_UNKNOWN_SURFACE && f.wire == WIRE_BYTES &&
            f.text.len <= SL_TOKEN_BYTES_MAX)
            m->unknown_surface = f.text;
    }
    return rc;
}

static uint32_t unit_at(const char *units, size_t i)
{
    uint32_t u;
    memcpy(&u, units + 4 * i, sizeof u);
    return u;
}

/* A precompiled map is a double array (Darts-clone: 32-bit units, bit 8 has-leaf, bit 9 wide
 * offset, bits 10 and up offset, bit 31 set in values) and the replacements, NUL-terminated. The
 * library follows it without looking: every step must stay inside, every value must be a
 * replacement. */
static int check_charsmap(struct sl_text map, struct sl_err *err)
{
    uint32_t size;
    if (map.len == 0)
        return 0;
    if (map.len < 4)
        return damaged(err);
    memcpy(&size, map.p, sizeof size);
    const char *units = map.p + 4;
    size_t n = size / 4, texts_len = map.len - 4 - size;
    if (size > map.len - 4 || size % 4 || n == 0 || texts_len == 0 || map.p[map.len - 1])
        return sl_err_set(err, SL_DATA, "the normalisation map's sizes do not fit together");
    for (size_t i = 0; i < n; i++) {
        uint32_t u = unit_at(units, i);
        if (u >> 31 && i > 0)
            continue;
        size_t to = i ^ ((size_t)(u >> 10) << ((u & 0x200) >> 6));
        bool leaf = u >> 8 & 1;
        if ((to | 0xFF) >= n || (leaf && (unit_at(units, to) & 0x7FFFFFFF) >= texts_len))
            return sl_err_set(err, SL_DATA, "the normalisation map leads outside itself (unit %zu)",
                              i);
    }
    return 0;
}

static int read_normalizer(struct sl_spm_model *m, struct sl_text at, struct sl_err *err)
{
    struct field f = {0};
    int rc;
    while ((rc = next_field(&at, &f, err)) > 0) {
        if (f.number == NORMALIZER_CHARSMAP && f.wire == WIRE_BYTES) {
            if ((rc = check_charsmap(f.text, err)) < 0)
                return rc;
        } else if (f.number == NORMALIZER_DUMMY_PREFIX && f.wire == WIRE_VARINT) {
            m->dummy_prefix = f.value != 0;
        } else if (f.number == NORMALIZER_REMOVE_SPACES && f.wire == WIRE_VARINT) {
            m->remove_extra_spaces = f.value != 0;
        } else if (f.number == NORMALIZER_ESCAPE_SPACES && f.wire == WIRE_VARINT && !f.value) {
            return sl_err_set(err, SL_SPEC, "escape_whitespaces = false is not supported");
        }
    }
    return rc;
}

static int read_denormalizer(struct sl_text at, struct sl_err *err)
{
    struct field f = {0};
    int rc;
    while ((rc = next_field(&at, &f, err)) > 0)
        if (f.number == NORMALIZER_CHARSMAP && f.wire == WIRE_BYTES && f.text.len > 0)
            return sl_err_set(err, SL_SPEC, "a denormaliser is not supported");
    return rc;
}

static int count_pieces(struct sl_text at, int *ret_n, struct sl_err *err)
{
    struct field f = {0};
    int n = 0, rc;
    while ((rc = next_field(&at, &f, err)) > 0)
        if (f.number == MODEL_PIECE && ++n > SL_MAX_VOCAB)
            return sl_err_set(err, SL_DATA, "more than %d pieces are not supported", SL_MAX_VOCAB);
    if (rc == 0 && n == 0)
        rc = sl_err_set(err, SL_DATA, "not a SentencePiece model: it has no pieces");
    if (rc == 0)
        *ret_n = n;
    return rc;
}

int sl_spm_model_read(const void *data, size_t len, struct sl_spm_model *ret_model,
                      struct sl_err *err)
{
    struct sl_spm_model m = {.unknown_surface = {" \xE2\x81\x87 ", 5}, /* the default */
                             .dummy_prefix = true,
                             .remove_extra_spaces = true};
    struct sl_text at = {data, len};
    struct field f = {0};
    int n = 0, rc = count_pieces(at, &n, err);
    if (rc < 0)
        return rc;
    m.piece = malloc((size_t)n * sizeof *m.piece);
    m.kind = malloc((size_t)n);
    if (!m.piece || !m.kind)
        rc = sl_err_set(err, SL_NOMEM, "out of memory for %d pieces", n);
    while (rc == 0 && (rc = next_field(&at, &f, err)) > 0) {
        rc = 0;
        if (f.number < MODEL_PIECE || f.number > MODEL_DENORMALIZER)
            continue;
        if (f.wire != WIRE_BYTES)
            rc = damaged(err);
        else if (f.number == MODEL_PIECE)
            rc = read_piece(&m, f.text, n, err);
        else if (f.number == MODEL_TRAINER)
            rc = read_trainer(&m, f.text, err);
        else if (f.number == MODEL_NORMALIZER)
            rc = read_normalizer(&m, f.text, err);
        else if (f.number == MODEL_DENORMALIZER)
            rc = read_denormalizer(f.text, err);
    }
    if (rc < 0)
        sl_spm_model_release(&m);
    else
        *ret_model = m;
    return rc;
}

void sl_spm_model_release(struct sl_spm_model *m)
{
    if (!m)
        return;
    free(m->piece);
    free(m->kind);
    *m = (struct sl_spm_model){0};
}

/* ---- writing */

static size_t varint(uint64_t v, unsigned char out[10])
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        out[n++] = (unsigned char)(v | 0x80);
    out[n++] = (unsigned char)v;
    return n;
}

static int put_varint(struct sl_buf *buf, int number, uint64_t v)
{
    unsigned char out[20];
    size_t n = varint((uint64_t)number << 3 | WIRE_VARINT, out);
    n += varint(v, out + n);
    return sl_buf_add(buf, out, n);
}

static int put_bytes(struct sl_buf *buf, int number, const void *p, size_t len)
{
    unsigned char out[20];
    size_t n = varint((uint64_t)number << 3 | WIRE_BYTES, out);
    n += varint(len, out + n);
    int rc = sl_buf_add(buf, out, n);
    return rc < 0 ? rc : sl_buf_add(buf, p, len);
}

static int put_piece(struct sl_buf *buf, struct sl_buf *piece, const struct sl_scored_vocab *v,
                     int i)
{
    unsigned char score[5] = {PIECE_SCORE << 3 | WIRE_32};
    memcpy(score + 1, &v->score[i], 4);
    sl_buf_reset(piece);
    int rc = put_bytes(piece, PIECE_TEXT, v->tokens[i], (size_t)v->token_len[i]);
    if (rc == 0)
        rc = sl_buf_add(piece, score, sizeof score);
    if (rc == 0)
        rc = put_varint(piece, PIECE_TYPE, v->kind[i]);
    return rc < 0 ? rc : put_bytes(buf, MODEL_PIECE, piece->p, piece->len);
}

int sl_spm_model_write(const struct sl_scored_vocab *vocab, struct sl_buf *buf)
{
    struct sl_buf part;
    bool bytes = false;
    int rc = 0;
    sl_buf_init(&part, SL_TOKEN_BYTES_MAX + 64);
    for (int i = 0; rc == 0 && i < vocab->n_tokens; i++) {
        bytes |= vocab->kind[i] == SL_TOKEN_BYTE;
        rc = put_piece(buf, &part, vocab, i);
    }
    sl_buf_reset(&part);
    if (rc == 0)
        rc = put_varint(&part, TRAINER_TYPE, TYPE_BPE);
    if (rc == 0)
        rc = put_varint(&part, TRAINER_BYTE_FALLBACK, bytes);
    if (rc == 0)
        rc = put_bytes(buf, MODEL_TRAINER, part.p, part.len);
    sl_buf_reset(&part);
    if (rc == 0)
        rc = put_varint(&part, NORMALIZER_DUMMY_PREFIX, vocab->add_space);
    if (rc == 0)
        rc = put_varint(&part, NORMALIZER_REMOVE_SPACES, vocab->remove_extra_spaces);
    if (rc == 0)
        rc = put_bytes(buf, MODEL_NORMALIZER, part.p, part.len);
    sl_buf_release(&part);
    return rc;
}
