#include "base/refs.h"
#include "base/buf.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COST_LOOKUP 64

struct refs {
    const json_t *root;
    size_t cost;
    int depth;
    struct sl_err *err;
};

/* Where a string stands, for messages and relative keys. */
struct place {
    char path[SL_REFS_KEY_MAX];
};

static int bad(struct refs *r, const struct place *at, const char *ref, const char *what)
{
    return sl_err_set(r->err, SL_SPEC, "%s: %.200s %s", at->path, ref, what);
}

static int no_memory(struct refs *r)
{
    return sl_err_set(r->err, SL_NOMEM, "references: out of memory");
}

static int pay(struct refs *r, const struct place *at, size_t cost)
{
    if (cost > SL_REFS_MAX_COST - r->cost)
        return bad(r, at, "its references", "grow without end");
    r->cost += cost;
    return 0;
}

/* false: too long. */
static bool below(struct place *ret, const struct place *at, const char *key)
{
    return snprintf(ret->path, sizeof ret->path, "%s%s%s", at->path, *at->path ? "." : "", key) <
           (int)sizeof ret->path;
}

/* ---- keys ---- */

/* The key of a reference, relative ones made whole; list elements are parts of their own. */
static int whole_key(struct refs *r, const struct place *at, const char *ref, const char *key,
                     struct place *ret)
{
    size_t n = 0, len = 0;

    ret->path[0] = 0;
    if (*key == '.') { /* one dot: the mapping around the string */
        memcpy(ret, at, sizeof *ret);
        for (; *key == '.'; key++) {
            char *dot = strrchr(ret->path, '.');

            if (!*ret->path)
                return bad(r, at, ref, "has too many dots in front");
            *(dot ? dot : ret->path) = 0;
        }
        len = strlen(ret->path);
        if (len)
            ret->path[len++] = '.';
    }
    n = strlen(key);
    if (!n || n >= sizeof ret->path - len)
        return bad(r, at, ref, n ? "is too long" : "names no key");
    for (; *key; key++)
        if (*key == '[')
            ret->path[len++] = '.';
        else if (*key != ']')
            ret->path[len++] = *key;
    ret->path[len] = 0;
    return 0;
}

static const json_t *find(const json_t *json, const char *key)
{
    char part[SL_REFS_KEY_MAX];

    while (json && *key) {
        size_t n = strcspn(key, ".");

        memcpy(part, key, n);
        part[n] = 0;
        if (json_is_array(json))
            json = n && strspn(part, "0123456789") == n && n < 7
                       ? json_array_get(json, (size_t)atoi(part))
                       : NULL;
        else
            json = json_object_get(json, part);
        key += n + (key[n] == '.');
    }
    return json;
}

/* ---- values ---- */

static int copy(struct refs *r, const struct place *at, const json_t *from, json_t **ret);

/* Python's str(). */
static int print(struct refs *r, const struct place *at, const char *ref, const json_t *v,
                 struct sl_buf *out)
{
    char text[32];
    int rc = 0;

    if (json_is_object(v) || json_is_array(v))
        return bad(r, at, ref, "is a list or a mapping, which a text cannot hold");
    if (json_is_string(v)) {
        rc = sl_buf_add(out, json_string_value(v), json_string_length(v));
    } else if (json_is_real(v)) {
        for (int digits = 15; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, json_real_value(v));
            if (strtod(text, NULL) == json_real_value(v))
                break;
        }
        rc = sl_buf_addf(out, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
    } else if (json_is_integer(v)) {
        rc = sl_buf_addf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    } else {
        rc = sl_buf_adds(out, json_is_true(v) ? "True" : json_is_false(v) ? "False" : "None");
    }
    return rc ? no_memory(r) : 0;
}

/* The '}' that closes the "${" at s, or NULL. */
static const char *closing(const char *s)
{
    int open = 0;

    for (; *s; s++) {
        if (s[0] == '$' && s[1] == '{') {
            open++;
            s++;
        } else if (*s == '}' && !--open) {
            return s;
        }
    }
    return NULL;
}

static int text_of(struct refs *r, const struct place *at, const char *s, size_t len, json_t **ret);

/* The value of one reference, "${...}" of len bytes. */
static int value_of(struct refs *r, const struct place *at, const char *s, size_t len, json_t **ret)
{
    char ref[SL_REFS_KEY_MAX];
    const json_t *target;
    json_t *key = NULL;
    struct place place;
    int rc;

    snprintf(ref, sizeof ref, "%.*s", len < sizeof ref ? (int)len : (int)sizeof ref - 1, s);
    if (r->depth == SL_REFS_MAX_DEPTH)
        return bad(r, at, ref, "refers to itself, or through too many others");
    r->depth++;
    rc = pay(r, at, COST_LOOKUP + len);
    if (!rc)
        rc = text_of(r, at, s + 2, len - 3, &key);
    if (!rc && !json_is_string(key))
        rc = bad(r, at, ref, "names no key");
    if (!rc && strchr(json_string_value(key), ':'))
        rc = bad(r, at, ref,
                 "asks for what is outside of the file (environment, time); write the value, or "
                 "give it as key=value");
    if (!rc)
        rc = whole_key(r, at, ref, json_string_value(key), &place);
    json_decref(key);
    if (!rc) {
        target = find(r->root, place.path);
        if (!target)
            rc = bad(r, at, ref, "refers to a key that is not there");
        else if (json_is_string(target) && !strcmp(json_string_value(target), SL_REFS_MISSING))
            rc = bad(r, at, ref,
                     "refers to a value that is still to be given (" SL_REFS_MISSING ")");
        else
            rc = copy(r, &place, target, ret);
    }
    r->depth--;
    return rc;
}

/* A text with its references replaced; the value itself where the text is just one. */
static int text_of(struct refs *r, const struct place *at, const char *s, size_t len, json_t **ret)
{
    char *text = strndup(s, len);
    struct sl_buf out;
    json_t *v = NULL;
    const char *p = text, *end;
    int rc;

    if (!text)
        return no_memory(r);
    rc = pay(r, at, len);
    sl_buf_init(&out, SL_REFS_MAX_COST);
    if (!rc && !strncmp(p, "${", 2) && (end = closing(p)) && !end[1]) {
        rc = value_of(r, at, p, len, &v);
        p = end + 1;
    }
    while (!rc && !v && *p) {
        if (!strncmp(p, "\\${", 3)) {
            rc = sl_buf_adds(&out, "${") ? no_memory(r) : 0;
            p += 3;
        } else if (!strncmp(p, "${", 2)) {
            json_t *part = NULL;
            char ref[SL_REFS_KEY_MAX];

            end = closing(p);
            snprintf(ref, sizeof ref, "%.*s", end ? (int)(end - p < 200 ? end - p + 1 : 200) : 200,
                     p);
            rc = end ? value_of(r, at, p, (size_t)(end - p) + 1, &part)
                     : bad(r, at, ref, "lacks its }");
            if (!rc)
                rc = print(r, at, ref, part, &out);
            json_decref(part);
            p = end ? end + 1 : p;
        } else {
            rc = sl_buf_addc(&out, *p++) ? no_memory(r) : 0;
        }
    }
    if (!rc && !v)
        rc = pay(r, at, out.len);
    if (!rc && !v && !(v = json_stringn(out.p, out.len)))
        rc = no_memory(r);
    sl_buf_release(&out);
    free(text);
    if (rc)
        json_decref(v);
    else
        *ret = v;
    return rc;
}

static bool has_reference(const json_t *v)
{
    return json_is_string(v) && strstr(json_string_value(v), "${") &&
           strlen(json_string_value(v)) == json_string_length(v);
}

/* A new value: from, with its references replaced. */
static int copy(struct refs *r, const struct place *at, const json_t *from, json_t **ret)
{
    struct place place;
    char index[24];
    const char *key;
    json_t *v, *out = NULL;
    size_t i;
    int rc = pay(r, at, COST_LOOKUP + (json_is_string(from) ? json_string_length(from) : 0));

    if (rc)
        return rc;
    if (has_reference(from))
        return text_of(r, at, json_string_value(from), json_string_length(from), ret);
    out = json_is_array(from)    ? json_array()
          : json_is_object(from) ? json_object()
                                 : json_copy((json_t *)from);
    if (!out)
        return no_memory(r);
    if (json_is_array(from)) {
        json_array_foreach((json_t *)from, i, v) {
            json_t *child = NULL;

            snprintf(index, sizeof index, "%zu", i);
            if (!rc && !below(&place, at, index))
                rc = bad(r, at, "a key", "is too long");
            if (!rc)
                rc = copy(r, &place, v, &child);
            if (!rc && json_array_append_new(out, child))
                rc = no_memory(r);
        }
    } else if (json_is_object(from)) {
        json_object_foreach((json_t *)from, key, v) {
            json_t *child = NULL;

            if (!rc && !below(&place, at, key))
                rc = bad(r, at, "a key", "is too long");
            if (!rc)
                rc = copy(r, &place, v, &child);
            if (!rc && json_object_set_new(out, key, child))
                rc = no_memory(r);
        }
    }
    if (rc)
        json_decref(out);
    else
        *ret = out;
    return rc;
}

int sl_refs_resolve(json_t *value, const json_t *root, struct sl_err *err)
{
    struct refs r = {.root = root, .err = err};
    struct place top = {""};
    json_t *resolved = NULL;
    int rc = copy(&r, &top, value, &resolved);

    if (!rc && (json_object_clear(value), json_object_update(value, resolved)))
        rc = no_memory(&r);
    json_decref(resolved);
    return rc;
}
