#include "base/json.h"
#include "base/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INTEGER_REAL_MAX 0x1p53 /* beyond it a real does not tell one integer from the next */

/* Brackets count only outside of strings; whether they match is the parser's affair. */
static bool too_deep(const char *text, size_t len)
{
    int depth = 0;
    bool quoted = false;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (c == '"')
            quoted = !quoted;
        else if (quoted)
            i += c == '\\';
        else if (c == '[' || c == '{')
            depth++;
        else if (c == ']' || c == '}')
            depth--;
        if (depth > SL_JSON_DEPTH_MAX)
            return true;
    }
    return false;
}

int sl_json_parse(const char *text, size_t len, const char *what, json_t **ret_json,
                  struct sl_err *err)
{
    json_error_t e;
    json_t *json;

    if (too_deep(text, len))
        return sl_err_set(err, SL_SPEC, "%s is nested more than %d deep", what, SL_JSON_DEPTH_MAX);
    json = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!json)
        return sl_err_set(err, SL_SPEC, "%s is not valid JSON: line %d, column %d: %s", what, e.line,
                          e.column, e.text);
    *ret_json = json;
    return 0;
}

int sl_json_read(const char *path, size_t max_bytes, json_t **ret_json, struct sl_err *err)
{
    struct sl_buf buf;
    int rc;

    sl_buf_init(&buf, max_bytes);
    rc = sl_file_read(path, &buf, err);
    if (!rc)
        rc = sl_json_parse(buf.p, buf.len, path, ret_json, err);
    sl_buf_release(&buf);
    return rc;
}

int sl_json_write(const char *path, const json_t *json, struct sl_err *err)
{
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    int rc;

    if (!text)
        return sl_err_set(err, SL_NOMEM, "writing %s: out of memory", path);
    rc = sl_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

char *sl_json_dump(const json_t *json)
{
    return json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
}

const json_t *sl_json_get(const json_t *json, const char *path)
{
    char key[128];

    while (json && *path) {
        size_t n = strcspn(path, ".");

        if (n >= sizeof key)
            return NULL;
        memcpy(key, path, n);
        key[n] = '\0';
        json = json_object_get(json, key);
        path += n + (path[n] == '.');
    }
    return json_is_null(json) ? NULL : json;
}

const char *sl_json_str(const json_t *json, const char *path, const char *otherwise)
{
    const char *s = json_string_value(sl_json_get(json, path));

    return s ? s : otherwise;
}

int64_t sl_json_int(const json_t *json, const char *path, int64_t otherwise)
{
    const json_t *v = sl_json_get(json, path);
    double real = json_real_value(v);

    if (json_is_integer(v))
        return json_integer_value(v);
    return json_is_real(v) && real == rint(real) && fabs(real) <= INTEGER_REAL_MAX ? (int64_t)real
                                                                                  : otherwise;
}

double sl_json_num(const json_t *json, const char *path, double otherwise)
{
    const json_t *v = sl_json_get(json, path);

    return json_is_number(v) ? json_number_value(v) : otherwise;
}

bool sl_json_bool(const json_t *json, const char *path, bool otherwise)
{
    const json_t *v = sl_json_get(json, path);

    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}
