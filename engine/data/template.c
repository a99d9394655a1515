#include "engine/data/template.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARKER "<|VIRTUAL_PROMPT_"
#define TEMPLATE_MAX_BYTES (64u << 10)

enum part_kind { LITERAL, FIELD, MARK, CONTROL };

struct part {
    enum part_kind kind;
    int index;        /* FIELD: of field[]; MARK: of the split; CONTROL: token id */
    const char *text; /* LITERAL: into the task's template */
    size_t len;
};

struct sl_template {
    const struct sl_task *task;
    const struct sl_tokenizer *tok;
    int n_parts, n_fields;
    struct part part[SL_TEMPLATE_MAX_PARTS];
    char *field[SL_TEMPLATE_MAX_FIELDS];
    int answer, cut; /* index of field[], -1: none */
    bool ends_in_answer;
    int split_start[SL_SPEC_MAX_SPLITS];
};

/* ---- parsing ------------------------------------------------------------------------------- */

static int add_part(struct sl_template *t, enum part_kind kind, int index, const char *text,
                    size_t len, struct sl_err *err)
{
    if (t->n_parts == SL_TEMPLATE_MAX_PARTS)
        return sl_err_set(err, SL_SPEC, "a template has at most %d parts", SL_TEMPLATE_MAX_PARTS);
    t->part[t->n_parts++] = (struct part){kind, index, text, len};
    return 0;
}

/* Bytes of one id; *ret_control: it is a control token. */
static int id_bytes(const struct sl_template *t, int32_t id, struct sl_buf *buf, bool *ret_control,
                    struct sl_err *err)
{
    size_t plain;
    int rc;

    sl_buf_reset(buf);
    rc = sl_detokenize(t->tok, &id, 1, false, buf, err);
    plain = buf->len;
    sl_buf_reset(buf);
    if (!rc)
        rc = sl_detokenize(t->tok, &id, 1, true, buf, err);
    if (!rc)
        *ret_control = !plain && buf->len;
    return rc;
}

/* Adds template text, control tokens written in it as parts of their own. */
static int add_literal(struct sl_template *t, const char *text, size_t len, struct sl_err *err)
{
    struct sl_ids ids = {0};
    struct sl_buf buf;
    size_t start = 0, at = 0;
    bool control;
    int rc;

    sl_buf_init(&buf, TEMPLATE_MAX_BYTES);
    rc = sl_tokenize(t->tok, text, len, true, &ids, err);
    for (int i = 0; !rc && i < ids.n; i++) {
        control = false;
        rc = id_bytes(t, ids.id[i], &buf, &control, err);
        if (!rc && control) {
            if (at + buf.len > len || memcmp(text + at, buf.p, buf.len) != 0)
                break; /* the tokenizer changes the text: leave it as it stands */
            if (at > start)
                rc = add_part(t, LITERAL, 0, text + start, at - start, err);
            if (!rc)
                rc = add_part(t, CONTROL, ids.id[i], NULL, 0, err);
            start = at + buf.len;
        }
        at += buf.len;
    }
    if (!rc && len > start)
        rc = add_part(t, LITERAL, 0, text + start, len - start, err);
    sl_ids_release(&ids);
    sl_buf_release(&buf);
    return rc;
}

static int field_index(const struct sl_template *t, const char *name, size_t len)
{
    for (int i = 0; i < t->n_fields; i++)
        if (!strncmp(t->field[i], name, len) && !t->field[i][len])
            return i;
    return -1;
}

static int add_field(struct sl_template *t, const char *name, size_t len, struct sl_err *err)
{
    int i = field_index(t, name, len);

    if (i < 0) {
        if (t->n_fields == SL_TEMPLATE_MAX_FIELDS)
            return sl_err_set(err, SL_SPEC, "a template has at most %d fields",
                              SL_TEMPLATE_MAX_FIELDS);
        t->field[t->n_fields] = strndup(name, len);
        if (!t->field[t->n_fields])
            return sl_err_set(err, SL_NOMEM, "out of memory");
        i = t->n_fields++;
    }
    return add_part(t, FIELD, i, NULL, 0, err);
}

static size_t field_len(const char *p) /* of the name in "{name}", 0 if it is none */
{
    size_t n = 0;
    if (*p != '{')
        return 0;
    while (isalnum((unsigned char)p[1 + n]) || (p[1 + n] && strchr("_.-", p[1 + n])))
        n++;
    return p[1 + n] == '}' ? n : 0;
}

static int parse(struct sl_template *t, struct sl_err *err)
{
    const char *p = t->task->prompt_template, *start = p;
    size_t n;
    char *end;
    int rc = 0;

    if (strlen(p) > TEMPLATE_MAX_BYTES)
        return sl_err_set(err, SL_SPEC, "a template has at most %u bytes", TEMPLATE_MAX_BYTES);
    while (!rc && *p) {
        bool marker = !strncmp(p, MARKER, strlen(MARKER));
        n = field_len(p);
        if (!marker && !n) {
            p++;
            continue;
        }
        if (p > start)
            rc = add_literal(t, start, (size_t)(p - start), err);
        if (rc)
            break;
        if (marker) {
            p += strlen(MARKER);
            unsigned long k = strtoul(p, &end, 10);
            if (!isdigit((unsigned char)*p) || strncmp(end, "|>", 2) != 0 ||
                k >= (unsigned long)t->task->n_splits)
                return sl_err_set(err, SL_SPEC, "marker %s%.12s has no virtual token split", MARKER,
                                  p);
            rc = add_part(t, MARK, (int)k, NULL, 0, err);
            p = end + 2;
        } else {
            rc = add_field(t, p + 1, n, err);
            p += n + 2;
        }
        start = p;
    }
    if (!rc && p > start)
        rc = add_literal(t, start, (size_t)(p - start), err);
    return rc;
}

static int check_markers(const struct sl_template *t, struct sl_err *err)
{
    int seen[SL_SPEC_MAX_SPLITS] = {0};

    for (int i = 0; i < t->n_parts; i++)
        if (t->part[i].kind == MARK)
            seen[t->part[i].index]++;
    for (int k = 0; k < t->task->n_splits; k++)
        if (seen[k] != 1)
            return sl_err_set(err, SL_SPEC, "marker %s%d|> appears %d times, expected once", MARKER,
                              k, seen[k]);
    return 0;
}

static int find_answer(struct sl_template *t, struct sl_err *err)
{
    const struct part *last = t->n_parts ? &t->part[t->n_parts - 1] : NULL;
    const char *answer = t->task->answer_field, *cut = t->task->truncate_field;

    t->cut = cut ? field_index(t, cut, strlen(cut)) : -1;
    t->answer = answer ? field_index(t, answer, strlen(answer)) : -1;
    if ((cut && t->cut < 0) || (answer && t->answer < 0))
        return sl_err_set(err, SL_SPEC, "the template has no field {%s}",
                          cut && t->cut < 0 ? cut : answer);
    if (!answer && last && last->kind == FIELD && last->index != t->cut)
        t->answer = last->index;
    if (answer && t->answer == t->cut)
        return sl_err_set(err, SL_SPEC, "truncate_field and answer_field are both \"%s\"", answer);
    t->ends_in_answer = last && last->kind == FIELD && last->index == t->answer;
    if (t->task->answer_only_loss && !t->ends_in_answer)
        return sl_err_set(err, SL_SPEC,
                          "answer_only_loss needs a template that ends in the answer field");
    return 0;
}

int sl_template_new(const struct sl_task *task, const struct sl_tokenizer *tok,
                    struct sl_template **ret_template, struct sl_err *err)
{
    struct sl_template *t = calloc(1, sizeof *t);
    int rc, at = 0;

    if (!t)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    t->task = task;
    t->tok = tok;
    for (int i = 0; i < task->n_splits; i++) {
        t->split_start[i] = at;
        at += task->split[i];
    }
    rc = parse(t, err);
    if (!rc)
        rc = check_markers(t, err);
    if (!rc)
        rc = find_answer(t, err);
    if (rc) {
        sl_template_free(t);
        return sl_err_wrap(err, rc, "template of task \"%s\"", task->name);
    }
    *ret_template = t;
    return 0;
}

void sl_template_free(struct sl_template *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n_fields; i++)
        free(t->field[i]);
    free(t);
}

int sl_template_n_fields(const struct sl_template *t)
{
    return t->n_fields;
}

const char *sl_template_field(const struct sl_template *t, int i)
{
    return t->field[i];
}

const char *sl_template_answer(const struct sl_template *t)
{
    return t->answer < 0 ? NULL : t->field[t->answer];
}

/* ---- rendering ----------------------------------------------------------------------------- */

struct value {
    const char *p;
    size_t len;
    char number[40];
};

/* The shortest form that reads back as the same number, as Python prints it. */
static void print_real(double x, char *ret_text, size_t size)
{
    int digits = 15;
    do
        snprintf(ret_text, size, "%.*g", digits, x);
    while (strtod(ret_text, NULL) != x && ++digits <= 17);
    if (!strpbrk(ret_text, ".eni"))
        snprintf(ret_text, size, "%.*g.0", digits, x);
}

static int get_value(const json_t *row, const char *field, struct value *v, struct sl_err *err)
{
    const json_t *json = json_object_get(row, field);

    v->p = "";
    v->len = 0;
    if (!json || json_is_null(json))
        return 0;
    if (json_is_string(json)) {
        v->p = json_string_value(json);
        v->len = json_string_length(json);
        return 0;
    }
    if (json_is_integer(json))
        snprintf(v->number, sizeof v->number, "%lld", (long long)json_integer_value(json));
    else if (json_is_real(json))
        print_real(json_real_value(json), v->number, sizeof v->number);
    else if (json_is_boolean(json))
        snprintf(v->number, sizeof v->number, "%s", json_is_true(json) ? "true" : "false");
    else
        return sl_err_set(err, SL_SPEC, "field \"%s\" is %s; a value is a string or a number",
                          field, json_is_array(json) ? "an array" : "an object");
    v->p = v->number;
    v->len = strlen(v->number);
    return 0;
}

/* Tokenises buf's text and empties it. spaces: ends to strip of spaces (1 left, 2 right). */
static int flush(const struct sl_template *t, struct sl_buf *text, int spaces, struct sl_ids *ids,
                 struct sl_err *err)
{
    const char *p = text->p;
    size_t n = text->len;
    int rc;

    while ((spaces & 1) && n && *p == ' ')
        p++, n--;
    while ((spaces & 2) && n && p[n - 1] == ' ')
        n--;
    rc = n ? sl_tokenize(t->tok, p, n, false, ids, err) : 0;
    sl_buf_reset(text);
    return rc;
}

/* One form of the row, without EOS. */
static int build(const struct sl_template *t, const struct value *value,
                 const struct sl_render *how, struct sl_buf *text, struct sl_ids *ids,
                 struct sl_err *err)
{
    int rc = 0, strip = how->strip_around_markers ? 3 : 0, left = 1;

    ids->n = 0;
    sl_buf_reset(text);
    if (how->add_bos)
        rc = sl_ids_add(ids, sl_tokenizer_bos(t->tok));
    for (int i = 0; !rc && i < t->n_parts; i++) {
        const struct part *p = &t->part[i];
        switch (p->kind) {
        case LITERAL:
            rc = sl_buf_add(text, p->text, p->len);
            break;
        case FIELD:
            rc = sl_buf_add(text, value[p->index].p, value[p->index].len);
            break;
        case CONTROL:
            rc = flush(t, text, left, ids, err);
            left = 0;
            if (!rc)
                rc = sl_ids_add(ids, p->index);
            break;
        case MARK:
            if (how->no_virtual)
                break;
            rc = flush(t, text, left | (strip & 2), ids, err);
            left = strip & 1;
            for (int k = 0; !rc && k < t->task->split[p->index]; k++)
                rc = sl_ids_add(ids, -(t->split_start[p->index] + k + 1));
            break;
        }
    }
    if (!rc)
        rc = flush(t, text, left | 2, ids, err);
    return rc ? sl_err_set(err, rc, "out of memory") : 0;
}

/* Bytes at the start of p that end with a whole UTF-8 character. */
static size_t whole_chars(const char *p, size_t n)
{
    size_t back = 0;
    while (back < n && back < 3 && ((unsigned char)p[n - 1 - back] & 0xc0) == 0x80)
        back++;
    if (back == n)
        return n;
    unsigned char lead = (unsigned char)p[n - 1 - back];
    size_t need = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    return need > back ? n - 1 - back : n;
}

/* Cuts the end of truncate_field until the row fits. 1: it cannot. kept holds the cut text. */
static int shorten(const struct sl_template *t, struct value *value, const struct sl_render *how,
                   int room, struct sl_buf *text, struct sl_buf *kept, struct sl_ids *ids,
                   struct sl_err *err)
{
    struct value *v = &value[t->cut];
    struct sl_ids field = {0};
    int rc = sl_tokenize(t->tok, v->p, v->len, false, &field, err), keep = field.n;

    while (!rc && ids->n > room) {
        if (keep == 0) {
            rc = 1;
            break;
        }
        keep -= ids->n - room < keep ? ids->n - room : keep;
        sl_buf_reset(kept);
        rc = sl_detokenize(t->tok, field.id, keep, false, kept, err);
        v->p = kept->p;
        v->len = whole_chars(kept->p, kept->len);
        if (!rc)
            rc = build(t, value, how, text, ids, err);
    }
    sl_ids_release(&field);
    return rc;
}

/* Finds where the answer starts by rendering the row without it. */
static int find_start(const struct sl_template *t, struct value *value, const struct sl_render *how,
                      struct sl_buf *text, struct sl_rendered *out, struct sl_err *err)
{
    struct sl_ids prompt = {0};
    struct value whole;
    int rc, n = 0;

    out->answer_start = out->ids.n;
    out->split_boundary = false;
    if (t->answer < 0 || how->answer == SL_ANSWER_NONE || !value[t->answer].len)
        return 0;
    whole = value[t->answer];
    value[t->answer].len = 0;
    rc = build(t, value, how, text, &prompt, err);
    value[t->answer].len = whole.len;
    while (!rc && n < prompt.n && n < out->ids.n && prompt.id[n] == out->ids.id[n])
        n++;
    if (!rc) {
        out->answer_start = n;
        out->split_boundary = t->ends_in_answer && n < prompt.n;
    }
    sl_ids_release(&prompt);
    return rc;
}

static int mark_targets(const struct sl_template *t, const struct sl_render *how,
                        struct sl_rendered *out, struct sl_err *err)
{
    int n = out->ids.n, first = how->answer == SL_ANSWER_NONE ? n : 1;

    if (how->answer == SL_ANSWER_GIVEN ||
        (how->answer == SL_ANSWER_ROW && t->task->answer_only_loss))
        first = out->answer_start > 1 ? out->answer_start : 1;
    if (n > out->cap_targets) {
        /* NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): n is above a capacity, so above 0 */
        uint8_t *p = realloc(out->target, (size_t)n);
        if (!p)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        out->target = p;
        out->cap_targets = n;
    }
    out->n_targets = 0;
    for (int i = 0; i < n; i++) {
        out->target[i] = i >= first && out->ids.id[i] >= 0;
        out->n_targets += out->target[i];
    }
    return 0;
}

int sl_template_render(const struct sl_template *t, const json_t *row, const struct sl_render *how,
                       struct sl_rendered *out, struct sl_err *err)
{
    struct value value[SL_TEMPLATE_MAX_FIELDS];
    struct sl_buf text, kept;
    bool eos = how->add_eos && how->answer != SL_ANSWER_NONE;
    int room = how->max_positions - eos, rc = 0;
    size_t bytes = 0;

    if ((how->add_bos && sl_tokenizer_bos(t->tok) < 0) || (eos && sl_tokenizer_eos(t->tok) < 0))
        return sl_err_set(err, SL_SPEC,
                          "the model's tokenizer has no %s token: set model.data.add_%s=false",
                          eos && sl_tokenizer_eos(t->tok) < 0 ? "EOS" : "BOS",
                          eos && sl_tokenizer_eos(t->tok) < 0 ? "eos" : "bos");
    for (int i = 0; !rc && i < t->n_fields; i++) {
        if (i == t->answer && how->answer != SL_ANSWER_ROW) {
            value[i].p = how->answer == SL_ANSWER_GIVEN ? how->given : "";
            value[i].len = strlen(value[i].p);
        } else {
            rc = get_value(row, t->field[i], &value[i], err);
        }
    }
    if (rc)
        return rc;
    for (int i = 0; i < t->n_parts; i++)
        bytes += t->part[i].kind == FIELD ? value[t->part[i].index].len : t->part[i].len;
    if (bytes > SL_RENDER_TEXT_MAX)
        return sl_err_set(err, SL_SPEC, "the row's text has %zu bytes, the limit is %u", bytes,
                          SL_RENDER_TEXT_MAX);
    sl_buf_init(&text, SL_RENDER_TEXT_MAX);
    sl_buf_init(&kept, SL_RENDER_TEXT_MAX);
    out->truncated = false;
    rc = build(t, value, how, &text, &out->ids, err);
    if (!rc && out->ids.n > room) {
        out->truncated = true;
        rc = t->cut < 0 ? 1 : shorten(t, value, how, room, &text, &kept, &out->ids, err);
    }
    if (!rc)
        rc = find_start(t, value, how, &text, out, err);
    if (!rc && eos && (rc = sl_ids_add(&out->ids, sl_tokenizer_eos(t->tok))))
        sl_err_set(err, rc, "out of memory");
    if (!rc)
        rc = mark_targets(t, how, out, err);
    sl_buf_release(&text);
    sl_buf_release(&kept);
    return rc;
}

void sl_rendered_release(struct sl_rendered *r)
{
    if (!r)
        return;
    sl_ids_release(&r->ids);
    free(r->target);
    memset(r, 0, sizeof *r);
}
