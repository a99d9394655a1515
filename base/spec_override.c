#include "base/spec.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define OVERRIDE_MAX_BYTES 65536
#define OVERRIDE_MAX_PARTS 32

static bool all_digits(const char *s)
{
    return *s && strspn(s, "0123456789") == strlen(s) && strlen(s) < 7;
}

/* Splits key (modified) at dots and brackets. */
static int split_key(char *key, char *ret_parts[OVERRIDE_MAX_PARTS], struct sl_err *err)
{
    int n = 0;
    char *p = key;

    for (;;) {
        size_t len = strcspn(p, ".[");
        char stop = p[len];
        if (n == OVERRIDE_MAX_PARTS)
            return sl_err_set(err, SL_SPEC, "a key has at most %d parts", OVERRIDE_MAX_PARTS);
        if (!len)
            return sl_err_set(err, SL_SPEC, "the key has an empty part");
        ret_parts[n++] = p;
        p[len] = 0;
        p += len;
        while (stop == '[') {
            len = strcspn(++p, "]");
            if (!p[len] || (p[len + 1] && !strchr(".[", p[len + 1])))
                return sl_err_set(err, SL_SPEC, "an index is written key[0] or key.0");
            if (n == OVERRIDE_MAX_PARTS)
                return sl_err_set(err, SL_SPEC, "a key has at most %d parts", OVERRIDE_MAX_PARTS);
            ret_parts[n++] = p;
            p += len;
            *p++ = 0;
            stop = *p;
        }
        if (!stop)
            return n;
        p++;
    }
}

static int set_member(json_t *at, const char *part, json_t *value, struct sl_err *err)
{
    if (json_is_array(at)) {
        size_t i = (size_t)atoi(part);
        int rc =
            i < json_array_size(at) ? json_array_set(at, i, value) : json_array_append(at, value);
        return rc ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
    }
    return json_object_set(at, part, value)
               ? sl_err_set(err, SL_SPEC, "\"%s\" is no valid key", part)
               : 0;
}

static int set_path(json_t *at, char *const *parts, int n, json_t *value, struct sl_err *err)
{
    json_t *next;
    int rc;

    for (int i = 0; i < n; i++) {
        if (json_is_array(at)) {
            if (!all_digits(parts[i]) || (size_t)atoi(parts[i]) > json_array_size(at))
                return sl_err_set(err, SL_SPEC, "\"%s\" is no index of an array of %zu", parts[i],
                                  json_array_size(at));
            next = json_array_get(at, (size_t)atoi(parts[i]));
        } else if (json_is_object(at)) {
            next = json_object_get(at, parts[i]);
        } else {
            return sl_err_set(err, SL_SPEC, "\"%s\" is a value, it has no key \"%s\"",
                              i ? parts[i - 1] : "", parts[i]);
        }
        if (i == n - 1)
            return set_member(at, parts[i], value, err);
        if (!next || json_is_null(next)) {
            next = json_object();
            rc = next ? set_member(at, parts[i], next, err)
                      : sl_err_set(err, SL_NOMEM, "out of memory");
            json_decref(next);
            if (rc)
                return rc;
        }
        at = next;
    }
    return 0;
}

static bool in_config(char *const *parts, int n)
{
    static const char *const sections[] = {"trainer", "exp_manager", "model", "inference"};
    for (int i = 0; i < 4; i++)
        if (n > 1 && !strcmp(parts[0], sections[i]))
            return true;
    return false;
}

int sl_spec_apply_override(json_t *spec, const char *key_value, struct sl_err *err)
{
    const char *equals = strchr(key_value, '=');
    char *parts[OVERRIDE_MAX_PARTS + 1], *key = NULL;
    json_t *copy = NULL, *value = NULL;
    int n, rc;

    if (!equals || strlen(key_value) > OVERRIDE_MAX_BYTES)
        return sl_err_set(err, SL_SPEC,
                          "override \"%.100s\": write key=value, as model.optim.lr=3e-4",
                          key_value);
    value = json_loads(equals + 1, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    if (!value)
        value = json_string(equals + 1);
    key = strndup(key_value, (size_t)(equals - key_value));
    copy = json_deep_copy(spec);
    parts[0] = "config";
    if (!value)
        rc = sl_err_set(err, SL_SPEC, "the value is not UTF-8");
    else if (!key || !copy)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    else if ((n = split_key(key, parts + 1, err)) < 0)
        rc = n;
    else
        rc = in_config(parts + 1, n) ? set_path(copy, parts, n + 1, value, err)
                                     : set_path(copy, parts + 1, n, value, err);
    if (!rc && (json_object_clear(spec), json_object_update(spec, copy)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(value);
    json_decref(copy);
    free(key);
    return rc ? sl_err_wrap(err, rc, "override \"%.100s\"", key_value) : 0;
}
