/* One function an opcode family, under the names of pickletools.py. Every push goes through
 * sl_pickle_push(), every value through sl_pickle_make(), so that the limits hold whatever the text
 * says. */
#include "engine/format/pickle_reader.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROTOCOL_MAX 5
#define STACK_FIRST 256 /* values; it grows */

int (sl_pickle_bad)(struct sl_pickle_reader *r, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return sl_err_set(r->err, SL_DATA, "the pickle at byte %zu: %s", r->op_at, text);
}

/* ---- stack and text ---- */

int sl_pickle_push(struct sl_pickle_reader *r, struct sl_pickle *v)
{
    if (r->n_stack == r->cap_stack) {
        size_t cap = r->cap_stack * 2;
        struct sl_pickle **p;

        if (r->n_stack >= SL_PICKLE_MAX_VALUES)
            return sl_pickle_bad(r, "more than %d values on its stack", SL_PICKLE_MAX_VALUES);
        p = realloc(r->stack, cap * sizeof *p);
        if (!p)
            return sl_pickle_nomem(r);
        r->stack = p;
        r->cap_stack = cap;
    }
    r->stack[r->n_stack++] = v;
    return 0;
}

/* What an opcode finds on the stack ends at the newest mark. */
static size_t bottom(const struct sl_pickle_reader *r)
{
    return r->n_marks ? r->mark[r->n_marks - 1] : 0;
}

int sl_pickle_need(struct sl_pickle_reader *r, size_t n)
{
    if (r->n_stack - bottom(r) < n)
        return sl_pickle_bad(r, "an opcode finds its stack empty");
    return 0;
}

/* Takes the mark away: what lay above it is stack[*ret_from .. n_stack). */
static int pop_mark(struct sl_pickle_reader *r, size_t *ret_from)
{
    if (!r->n_marks)
        return sl_pickle_bad(r, "an opcode finds no mark");
    *ret_from = r->mark[--r->n_marks];
    return 0;
}

static int take(struct sl_pickle_reader *r, size_t n, const unsigned char **ret_p)
{
    if (n > r->len - r->at)
        return sl_pickle_bad(r, "it is cut off");
    *ret_p = r->text + r->at;
    r->at += n;
    return 0;
}

/* A little-endian number of n bytes. */
static int take_number(struct sl_pickle_reader *r, int n, uint64_t *ret_v)
{
    const unsigned char *p = NULL;
    uint64_t v = 0;
    int rc = take(r, (size_t)n, &p);

    if (rc)
        return rc;
    for (int i = n - 1; i >= 0; i--)
        v = v << 8 | p[i];
    *ret_v = v;
    return 0;
}

static int push_text(struct sl_pickle_reader *r, enum sl_pickle_type type, int length_bytes)
{
    const unsigned char *p = NULL;
    struct sl_pickle *v = NULL;
    uint64_t n = 0;
    int rc = take_number(r, length_bytes, &n);

    if (!rc && n > r->len - r->at)
        rc = sl_pickle_bad(r, "a text of %llu bytes is cut off", (unsigned long long)n);
    if (!rc)
        rc = take(r, (size_t)n, &p);
    if (!rc)
        rc = sl_pickle_make(r, type, &v);
    if (rc)
        return rc;
    v->u.text = (const char *)p;
    v->n = (uint32_t)n;
    return sl_pickle_push(r, v);
}

static int push_integer(struct sl_pickle_reader *r, enum sl_pickle_type type, int64_t value)
{
    struct sl_pickle *v = NULL;
    int rc = sl_pickle_make(r, type, &v);

    if (rc)
        return rc;
    v->u.integer = value;
    return sl_pickle_push(r, v);
}

/* LONG1 and LONG4: two's complement of that many bytes; beyond 64 bits nothing here needs. */
static int push_long(struct sl_pickle_reader *r, int length_bytes)
{
    const unsigned char *p = NULL;
    uint64_t n = 0, v = 0;
    int rc = take_number(r, length_bytes, &n);

    if (!rc && n > 8)
        rc =
            sl_pickle_bad(r, "an integer of %llu bytes; at most 8 are read", (unsigned long long)n);
    if (!rc)
        rc = take(r, (size_t)n, &p);
    if (rc)
        return rc;
    if (n && p[n - 1] & 0x80)
        v = UINT64_MAX;
    for (int i = (int)n - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return push_integer(r, SL_PK_INT, (int64_t)v);
}

static int push_float(struct sl_pickle_reader *r)
{
    const unsigned char *p = NULL;
    struct sl_pickle *v = NULL;
    uint64_t bits = 0;
    int rc = take(r, 8, &p);

    if (!rc)
        rc = sl_pickle_make(r, SL_PK_FLOAT, &v);
    if (rc)
        return rc;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | p[i];
    memcpy(&v->u.real, &bits, sizeof bits);
    return sl_pickle_push(r, v);
}

/* ---- memo ---- */

static int memo_put(struct sl_pickle_reader *r, uint64_t index)
{
    int rc = sl_pickle_need(r, 1);

    if (rc)
        return rc;
    if (index >= SL_PICKLE_MAX_MEMO)
        return sl_pickle_bad(r, "memo entry %llu; the limit is %u", (unsigned long long)index,
                             SL_PICKLE_MAX_MEMO);
    if (index >= r->cap_memo) {
        size_t cap = r->cap_memo ? r->cap_memo * 2 : 256;
        struct sl_pickle **p;

        while (cap <= index)
            cap *= 2;
        p = realloc(r->memo, cap * sizeof *p);
        if (!p)
            return sl_pickle_nomem(r);
        memset(p + r->cap_memo, 0, (cap - r->cap_memo) * sizeof *p);
        r->memo = p;
        r->cap_memo = cap;
    }
    r->memo[index] = r->stack[r->n_stack - 1];
    return 0;
}

static int memo_get(struct sl_pickle_reader *r, int length_bytes)
{
    uint64_t index = 0;
    int rc = take_number(r, length_bytes, &index);

    if (rc)
        return rc;
    if (index >= r->cap_memo || !r->memo[index])
        return sl_pickle_bad(r, "memo entry %llu is not there", (unsigned long long)index);
    return sl_pickle_push(r, r->memo[index]);
}

static int memo_put_at(struct sl_pickle_reader *r, int length_bytes)
{
    uint64_t index = 0;
    int rc = take_number(r, length_bytes, &index);

    return rc ? rc : memo_put(r, index);
}

/* ---- lists, tuples, dicts ---- */

/* The n values on top become the items of a new value. */
static int gather(struct sl_pickle_reader *r, enum sl_pickle_type type, size_t n)
{
    struct sl_pickle *v = NULL;
    int rc = sl_pickle_need(r, n);

    if (!rc)
        rc = sl_pickle_make(r, type, &v);
    if (!rc)
        rc = sl_pickle_add_items(r, v, n ? r->stack + r->n_stack - n : NULL, n);
    if (rc)
        return rc;
    r->n_stack -= n;
    return sl_pickle_push(r, v);
}

static int tuple_to_mark(struct sl_pickle_reader *r)
{
    size_t from = 0;
    int rc = pop_mark(r, &from);

    return rc ? rc : gather(r, SL_PK_TUPLE, r->n_stack - from);
}

/* The n values on top go into the list or dict below them. */
static int append(struct sl_pickle_reader *r, enum sl_pickle_type type, size_t n)
{
    struct sl_pickle *into;
    int rc = sl_pickle_need(r, n + 1);

    if (rc)
        return rc;
    into = r->stack[r->n_stack - n - 1];
    if (into->type != type || (type == SL_PK_DICT && n % 2))
        return sl_pickle_bad(r, "items are added to what takes none");
    rc = sl_pickle_add_items(r, into, r->stack + r->n_stack - n, n);
    r->n_stack -= n;
    return rc;
}

static int append_to_mark(struct sl_pickle_reader *r, enum sl_pickle_type type)
{
    size_t from = 0;
    int rc = pop_mark(r, &from);

    return rc ? rc : append(r, type, r->n_stack - from);
}

/* ---- the machine ---- */

/* BUILD hands an object its __dict__: of an OrderedDict that is _metadata, which nobody needs. */
static int build(struct sl_pickle_reader *r)
{
    int rc = sl_pickle_need(r, 2);

    if (rc)
        return rc;
    r->n_stack--;
    if (r->stack[r->n_stack - 1]->type != SL_PK_DICT)
        return sl_pickle_bad(r, "it sets attributes of what has none");
    return 0;
}

static int pop(struct sl_pickle_reader *r)
{
    int rc = sl_pickle_need(r, 1);

    if (!rc)
        r->n_stack--;
    return rc;
}

static int set_mark(struct sl_pickle_reader *r)
{
    if (r->n_marks == SL_PICKLE_MAX_MARKS)
        return sl_pickle_bad(r, "more than %d nested lists and dicts", SL_PICKLE_MAX_MARKS);
    r->mark[r->n_marks++] = r->n_stack;
    return 0;
}

static int push_signed32(struct sl_pickle_reader *r)
{
    uint64_t v = 0;
    int rc = take_number(r, 4, &v);

    return rc ? rc : push_integer(r, SL_PK_INT, (int32_t)(uint32_t)v);
}

static int push_unsigned(struct sl_pickle_reader *r, int bytes)
{
    uint64_t v = 0;
    int rc = take_number(r, bytes, &v);

    return rc ? rc : push_integer(r, SL_PK_INT, (int64_t)v);
}

static int protocol(struct sl_pickle_reader *r)
{
    uint64_t v = 0;
    int rc = take_number(r, 1, &v);

    if (!rc && v > PROTOCOL_MAX)
        rc = sl_err_set(r->err, SL_SPEC, "a pickle of protocol %llu; up to %d are read",
                        (unsigned long long)v, PROTOCOL_MAX);
    return rc;
}

static int frame(struct sl_pickle_reader *r)
{
    uint64_t length;

    return take_number(r, 8, &length); /* frames only help whoever reads from a stream */
}

/* clang-format off */
static int step(struct sl_pickle_reader *r, unsigned char op)
{
    switch (op) {
    case 0x80: return protocol(r);
    case 0x95: return frame(r);
    case '(': return set_mark(r);
    case '0': return pop(r);
    case 'N': return push_integer(r, SL_PK_NONE, 0);
    case 0x88: return push_integer(r, SL_PK_BOOL, 1);
    case 0x89: return push_integer(r, SL_PK_BOOL, 0);
    case 'J': return push_signed32(r);
    case 'K': return push_unsigned(r, 1);
    case 'M': return push_unsigned(r, 2);
    case 0x8a: return push_long(r, 1);
    case 0x8b: return push_long(r, 4);
    case 'G': return push_float(r);
    case 0x8c: return push_text(r, SL_PK_STRING, 1);
    case 'X': return push_text(r, SL_PK_STRING, 4);
    case 0x8d: return push_text(r, SL_PK_STRING, 8);
    case 'C': return push_text(r, SL_PK_BYTES, 1);
    case 'B': return push_text(r, SL_PK_BYTES, 4);
    case 0x8e: return push_text(r, SL_PK_BYTES, 8);
    case ']': return gather(r, SL_PK_LIST, 0);
    case '}': return gather(r, SL_PK_DICT, 0);
    case ')': return gather(r, SL_PK_TUPLE, 0);
    case 0x85: return gather(r, SL_PK_TUPLE, 1);
    case 0x86: return gather(r, SL_PK_TUPLE, 2);
    case 0x87: return gather(r, SL_PK_TUPLE, 3);
    case 't': return tuple_to_mark(r);
    case 'a': return append(r, SL_PK_LIST, 1);
    case 'e': return append_to_mark(r, SL_PK_LIST);
    case 's': return append(r, SL_PK_DICT, 2);
    case 'u': return append_to_mark(r, SL_PK_DICT);
    case 'q': return memo_put_at(r, 1);
    case 'r': return memo_put_at(r, 4);
    case 0x94: return memo_put(r, r->n_memo++);
    case 'h': return memo_get(r, 1);
    case 'j': return memo_get(r, 4);
    case 'c': return sl_pickle_global(r);
    case 0x93: return sl_pickle_stack_global(r);
    case 'R': return sl_pickle_reduce(r);
    case 'b': return build(r);
    case 'Q': return sl_pickle_storage(r);
    default:
        return sl_err_set(r->err, SL_SPEC, "the pickle at byte %zu: opcode 0x%02x is not supported",
                          r->op_at, op);
    }
}
/* clang-format on */

static int run(struct sl_pickle_reader *r)
{
    int rc = 0;

    while (!rc) {
        r->op_at = r->at;
        if (r->at == r->len)
            return sl_pickle_bad(r, "it ends without its stop");
        if (r->text[r->at] == '.')
            break;
        rc = step(r, r->text[r->at++]);
    }
    if (!rc && (r->n_marks || r->n_stack != 1))
        rc = sl_pickle_bad(r, "it stops with %zu values on its stack", r->n_stack);
    if (!rc)
        r->doc->root = r->stack[0];
    return rc;
}

int sl_pickle_read(const void *text, size_t len, struct sl_pickle_doc **ret_doc, struct sl_err *err)
{
    struct sl_pickle_reader *r;
    int rc;

    if (len > SL_PICKLE_MAX_BYTES)
        return sl_err_set(err, SL_DATA, "a pickle of %zu bytes; the limit is %u", len,
                          SL_PICKLE_MAX_BYTES);
    r = calloc(1, sizeof *r);
    if (!r)
        return sl_err_set(err, SL_NOMEM, "out of memory for a pickle");
    r->text = text;
    r->len = len;
    r->err = err;
    r->doc = calloc(1, sizeof *r->doc);
    r->stack = calloc(STACK_FIRST, sizeof *r->stack);
    r->cap_stack = STACK_FIRST;
    rc = r->doc && r->stack ? run(r) : sl_pickle_nomem(r);
    if (rc)
        sl_pickle_free(r->doc);
    else
        *ret_doc = r->doc;
    free(r->stack);
    free(r->memo);
    free(r);
    return rc;
}
