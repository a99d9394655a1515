/* Checking a value against a schema, and its defaults. */
#include "base/schema_impl.h"
#include "base/buf.h"
#include "base/json.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGE_MAX 1024

/* ---- errors -------------------------------------------------------------------------------- */

/* A value as a person would quote it, at most SL_SCHEMA_FOUND_MAX bytes, cut between characters. */
static void quote(const json_t *v, char ret_text[SL_SCHEMA_FOUND_MAX + 1])
{
    char *s = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    size_t n;

    if (!v) {
        snprintf(ret_text, SL_SCHEMA_FOUND_MAX + 1, "nothing");
        return;
    }
    if (json_is_object(v) && json_object_size(v) > 3) {
        snprintf(ret_text, SL_SCHEMA_FOUND_MAX + 1, "an object of %zu keys", json_object_size(v));
    } else if (json_is_array(v) && json_array_size(v) > 8) {
        snprintf(ret_text, SL_SCHEMA_FOUND_MAX + 1, "an array of %zu", json_array_size(v));
    } else if (!s) {
        snprintf(ret_text, SL_SCHEMA_FOUND_MAX + 1, "?");
    } else if ((n = strlen(s)) <= SL_SCHEMA_FOUND_MAX) {
        memcpy(ret_text, s, n + 1);
    } else {
        n = SL_SCHEMA_FOUND_MAX - 3;
        while (n && ((unsigned char)s[n] & 0xc0) == 0x80)
            n--;
        memcpy(ret_text, s, n);
        memcpy(ret_text + n, "...", 4);
    }
    free(s);
}

int sl_schema_error(json_t *errors, const char *path, const char *expected, const json_t *found,
                    const char *fmt, ...)
{
    char text[MESSAGE_MAX], seen[SL_SCHEMA_FOUND_MAX + 1];
    va_list ap;
    json_t *e;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sl_utf8_trim(text);
    quote(found, seen);
    e = json_pack("{s:s, s:s, s:s, s:s}", "path", path, "expected", expected, "found", seen,
                  "message", text);
    return e && !json_array_append_new(errors, e) ? 0 : SL_NOMEM;
}

/* ---- validating ---------------------------------------------------------------------------- */

struct walk {
    const struct sl_schema *s;
    json_t *errors;
    size_t max_errors;
    bool out_of_memory;
};

static void fault(struct walk *w, const char *path, const char *expected, const json_t *found)
{
    char seen[SL_SCHEMA_FOUND_MAX + 1];

    if (json_array_size(w->errors) >= w->max_errors)
        return;
    quote(found, seen);
    if (sl_schema_error(w->errors, path, expected, found, "expected %s, found %s", expected, seen))
        w->out_of_memory = true;
}

/* JSON Schema's view: 2 and 2.0 are the same number, and both are integers. */
static bool equal(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b)) {
        if (json_is_integer(a) && json_is_integer(b))
            return json_integer_value(a) == json_integer_value(b);
        return json_number_value(a) == json_number_value(b);
    }
    return json_equal(a, b);
}

static bool has_type(const json_t *v, const char *type)
{
    switch (type[0]) {
    case 'o':
        return json_is_object(v);
    case 'a':
        return json_is_array(v);
    case 's':
        return json_is_string(v);
    case 'b':
        return json_is_boolean(v);
    case 'i':
        return json_is_integer(v) ||
               (json_is_real(v) && floor(json_real_value(v)) == json_real_value(v));
    default:
        return !strcmp(type, "null") ? json_is_null(v) : json_is_number(v);
    }
}

static const char *article(const char *type)
{
    return !strcmp(type, "null") ? "" : strchr("aio", type[0]) ? "an " : "a ";
}

static bool check_type(struct walk *w, const json_t *type, const json_t *v, const char *path)
{
    char text[128] = "";
    const char *t;
    size_t n = json_is_array(type) ? json_array_size(type) : type ? 1 : 0, used = 0;

    if (!n)
        return true;
    for (size_t i = 0; i < n; i++) {
        t = json_string_value(json_is_array(type) ? json_array_get(type, i) : type);
        if (has_type(v, t))
            return true;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s%s",
                                 !i           ? ""
                                 : i + 1 == n ? " or "
                                              : ", ",
                                 article(t), t);
    }
    fault(w, path, text, v);
    return false;
}

static void check_enum(struct walk *w, const json_t *list, const json_t *v, const char *path)
{
    char text[400] = "one of ", *s;
    size_t used = strlen(text), i;
    json_t *e;

    json_array_foreach((json_t *)list, i, e) if (equal(e, v)) return;
    json_array_foreach((json_t *)list, i, e)
    {
        s = json_dumps(e, JSON_ENCODE_ANY | JSON_COMPACT);
        if (s && used < sizeof text - 1)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i ? ", " : "", s);
        free(s);
    }
    fault(w, path, text, v);
}

static void check_number(struct walk *w, const json_t *schema, const json_t *v, const char *path)
{
    static const struct {
        const char *key, *text;
        int strict, sign;
    } bounds[] = {{"minimum", "at least", 0, 1},
                  {"maximum", "at most", 0, -1},
                  {"exclusiveMinimum", "a number above", 1, 1},
                  {"exclusiveMaximum", "a number below", 1, -1}};
    char text[96];
    double x = json_number_value(v), b, d;

    for (size_t i = 0; i < 4; i++) {
        const json_t *bound = json_object_get(schema, bounds[i].key);
        if (!bound)
            continue;
        b = json_number_value(bound);
        d = (x - b) * bounds[i].sign;
        if (d > 0 || (d == 0 && !bounds[i].strict))
            continue;
        snprintf(text, sizeof text, "%s %.10g", bounds[i].text, b);
        fault(w, path, text, v);
    }
}

static size_t code_points(const json_t *v)
{
    const char *s = json_string_value(v);
    size_t n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void check_count(struct walk *w, const json_t *schema, const char *least_key,
                        const char *most_key, size_t n, const char *unit, const json_t *v,
                        const char *path)
{
    const json_t *least = json_object_get(schema, least_key),
                 *most = json_object_get(schema, most_key);
    char text[96];

    if (least && (json_int_t)n < json_integer_value(least)) {
        snprintf(text, sizeof text, "at least %lld %s", (long long)json_integer_value(least), unit);
        fault(w, path, text, v);
    }
    if (most && (json_int_t)n > json_integer_value(most)) {
        snprintf(text, sizeof text, "at most %lld %s", (long long)json_integer_value(most), unit);
        fault(w, path, text, v);
    }
}

static void check_string(struct walk *w, const json_t *schema, const json_t *v, const char *path)
{
    const json_t *pattern = json_object_get(schema, "pattern");
    const char *text = json_string_value(v);
    char expected[256];

    if (strlen(text) != json_string_length(v)) {
        fault(w, path, "a string without NUL characters", v);
        return;
    }
    check_count(w, schema, "minLength", "maxLength", code_points(v), "characters", v, path);
    for (int i = 0; pattern && i < w->s->n_patterns; i++) {
        if (w->s->pattern[i].text != pattern)
            continue;
        if (!regexec(&w->s->pattern[i].re, text, 0, NULL, 0))
            return;
        snprintf(expected, sizeof expected, "a string that matches %s", json_string_value(pattern));
        fault(w, path, expected, v);
    }
}

/* Levenshtein distance of two names, both at most NAME_MAX_BYTES long. */
#define NAME_MAX_BYTES 64
static int distance(const char *a, const char *b)
{
    int row[NAME_MAX_BYTES + 1], left, diagonal, best;
    int n = (int)strlen(b);

    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 0; a[i]; i++) {
        diagonal = row[0];
        row[0] = left = i + 1;
        for (int j = 0; j < n; j++) {
            best = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            if (left + 1 < best)
                best = left + 1;
            if (row[j + 1] + 1 < best)
                best = row[j + 1] + 1;
            row[j + 1] = left = best;
        }
    }
    return row[n];
}

const char *sl_schema_nearest(const char *key, const char *const *names, int n)
{
    const char *nearest = NULL;
    int best = 0;

    if (strlen(key) > NAME_MAX_BYTES)
        return NULL;
    for (int i = 0; i < n; i++) {
        int d = strlen(names[i]) > NAME_MAX_BYTES ? NAME_MAX_BYTES : distance(key, names[i]);

        if (!nearest || d < best) {
            nearest = names[i];
            best = d;
        }
    }
    return nearest;
}

static void unknown_key(struct walk *w, const json_t *properties, const char *key, const json_t *v,
                        const char *path)
{
    const char *name, *nearest = NULL;
    char expected[160] = "no such key";
    int best = 0, d;
    json_t *child;

    if (json_array_size(w->errors) >= w->max_errors)
        return;
    if (strlen(key) <= NAME_MAX_BYTES)
        json_object_foreach((json_t *)properties, name, child)
        {
            if (strlen(name) > NAME_MAX_BYTES)
                continue;
            d = distance(key, name);
            if (!nearest || d < best) {
                nearest = name;
                best = d;
            }
        }
    if (nearest)
        snprintf(expected, sizeof expected, "a known key, the nearest is \"%.100s\"", nearest);
    if (sl_schema_error(
            w->errors, path, expected, v,
            nearest ? "unknown key; the nearest known key is \"%.100s\"" : "unknown key", nearest))
        w->out_of_memory = true;
}

static void check(struct walk *w, const json_t *schema, const json_t *v, const char *path,
                  int depth);

static void join(char ret_path[SL_SCHEMA_PATH_MAX], const char *path, const char *key)
{
    int n = snprintf(ret_path, SL_SCHEMA_PATH_MAX, "%s%s%s", path, *path ? "." : "", key);
    if (n >= SL_SCHEMA_PATH_MAX) {
        ret_path[SL_SCHEMA_PATH_MAX - 4] = 0;
        sl_utf8_trim(ret_path);
        memcpy(ret_path + strlen(ret_path), "...", 4);
    }
}

static void check_object(struct walk *w, const json_t *schema, const json_t *v, const char *path,
                         int depth)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *others = json_object_get(schema, "additionalProperties"), *known;
    char below[SL_SCHEMA_PATH_MAX], text[256];
    const char *key;
    json_t *child;
    size_t i;

    check_count(w, schema, "minProperties", "maxProperties", json_object_size(v), "keys", v, path);
    json_array_foreach(json_object_get(schema, "required"), i, child)
    {
        key = json_string_value(child);
        if (json_object_get(v, key))
            continue;
        const char *what =
            json_string_value(json_object_get(json_object_get(properties, key), "description"));
        join(below, path, key);
        snprintf(text, sizeof text, "a value%s%.200s", what ? ": " : "", what ? what : "");
        sl_utf8_trim(text);
        if (json_array_size(w->errors) < w->max_errors &&
            sl_schema_error(w->errors, below, text, NULL, "missing; expected %s", text))
            w->out_of_memory = true;
    }
    json_object_foreach((json_t *)v, key, child)
    {
        join(below, path, key);
        known = json_object_get(properties, key);
        if (known)
            check(w, known, child, below, depth + 1);
        else if (json_is_false(others))
            unknown_key(w, properties, key, child, below);
        else if (json_is_object(others))
            check(w, others, child, below, depth + 1);
    }
}

static void check_array(struct walk *w, const json_t *schema, const json_t *v, const char *path,
                        int depth)
{
    const json_t *items = json_object_get(schema, "items");
    char below[SL_SCHEMA_PATH_MAX];
    size_t n = json_array_size(v);

    check_count(w, schema, "minItems", "maxItems", n, "elements", v, path);
    for (size_t i = 0; items && i < n; i++) {
        snprintf(below, sizeof below, "%.480s[%zu]", path, i);
        check(w, items, json_array_get(v, i), below, depth + 1);
    }
    if (!json_is_true(json_object_get(schema, "uniqueItems")))
        return;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            if (equal(json_array_get(v, i), json_array_get(v, j))) {
                snprintf(below, sizeof below, "%.480s[%zu]", path, i);
                fault(w, below, "an element that is not there already", json_array_get(v, i));
                break;
            }
}

static void check(struct walk *w, const json_t *schema, const json_t *v, const char *path,
                  int depth)
{
    const json_t *constant, *list;
    char *s;

    if (json_array_size(w->errors) >= w->max_errors)
        return;
    if (depth > SL_SCHEMA_MAX_DEPTH) {
        fault(w, path, "a value that is nested less deeply", v);
        return;
    }
    schema = sl_schema_follow(w->s, schema);
    if (!check_type(w, json_object_get(schema, "type"), v, path))
        return;
    constant = json_object_get(schema, "const");
    if (constant && !equal(constant, v)) {
        s = json_dumps(constant, JSON_ENCODE_ANY | JSON_COMPACT);
        fault(w, path, s ? s : "another value", v);
        free(s);
    }
    list = json_object_get(schema, "enum");
    if (list)
        check_enum(w, list, v, path);
    if (json_is_number(v))
        check_number(w, schema, v, path);
    else if (json_is_string(v))
        check_string(w, schema, v, path);
    else if (json_is_object(v))
        check_object(w, schema, v, path, depth);
    else if (json_is_array(v))
        check_array(w, schema, v, path, depth);
}

static int start(const struct sl_schema *s, const char *def, const json_t **ret_schema,
                 struct sl_err *err)
{
    const json_t *schema = def ? sl_schema_def(s, def) : s->root;
    if (!schema)
        return sl_err_set(err, SL_SPEC, "schema has no $defs/%s", def);
    *ret_schema = schema;
    return 0;
}

int sl_schema_validate(const struct sl_schema *s, const char *def, const char *path,
                       const json_t *value, size_t max_errors, json_t *errors, struct sl_err *err)
{
    struct walk w = {s, errors, max_errors, false};
    const json_t *schema = NULL;
    int rc = start(s, def, &schema, err);

    if (rc)
        return rc;
    check(&w, schema, value, path, 0);
    return w.out_of_memory ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
}

/* ---- defaults ------------------------------------------------------------------------------ */

static json_t *default_of(const struct sl_schema *s, const json_t *schema)
{
    json_t *d = json_object_get(schema, "default");
    return d ? d : json_object_get(sl_schema_follow(s, schema), "default");
}

static int fill(const struct sl_schema *s, const json_t *schema, json_t *v, int depth)
{
    const json_t *properties, *sub, *items, *type;
    json_t *child, *made;
    const char *key;
    size_t i;
    int rc = 0;

    if (depth > SL_SCHEMA_MAX_DEPTH)
        return 0;
    schema = sl_schema_follow(s, schema);
    items = json_object_get(schema, "items");
    if (json_is_array(v) && items)
        json_array_foreach(v, i, child) if ((rc = fill(s, items, child, depth + 1))) return rc;
    properties = json_object_get(schema, "properties");
    if (!json_is_object(v) || !properties)
        return 0;
    json_object_foreach((json_t *)properties, key, sub)
    {
        child = json_object_get(v, key);
        if (child) {
            rc = fill(s, sub, child, depth + 1);
        } else if ((made = default_of(s, sub))) {
            made = json_deep_copy(made);
            rc = made && !json_object_set_new(v, key, made) ? 0 : SL_NOMEM;
        } else {
            type = json_object_get(sl_schema_follow(s, sub), "type");
            if (!json_is_string(type) || strcmp(json_string_value(type), "object") != 0)
                continue;
            made = json_object();
            rc = made ? fill(s, sub, made, depth + 1) : SL_NOMEM;
            if (!rc && json_object_size(made))
                rc = json_object_set(v, key, made) ? SL_NOMEM : 0;
            json_decref(made);
        }
        if (rc)
            return rc;
    }
    return 0;
}

int sl_schema_fill_defaults(const struct sl_schema *s, const char *def, json_t *value,
                            struct sl_err *err)
{
    const json_t *schema = NULL;
    int rc = start(s, def, &schema, err);

    if (rc)
        return rc;
    return fill(s, schema, value, 0) ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
}
