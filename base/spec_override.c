#include "base/spec.h"
#include "base/yaml.h"
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

/* value NULL: removes it. */
static int set_member(json_t *at, const char *part, json_t *value, struct sl_err *err)
{
    if (!value)
        return (json_is_array(at) ? json_array_remove(at, (size_t)atoi(part))
                                  : json_object_del(at, part))
                   ? sl_err_set(err, SL_SPEC, "there is no \"%s\" to remove", part)
                   : 0;
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
            if (!value)
                return sl_err_set(err, SL_SPEC, "there is no \"%s\" to remove from", parts[i]);
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

/* Hydra's "+key", "++key" and "~key". Returns where the key begins. */
static const char *skip_prefix(const char *key_value, bool *ret_remove)
{
    *ret_remove = *key_value == '~';
    return key_value + (*key_value == '~'             ? 1
                        : strspn(key_value, "+") <= 2 ? strspn(key_value, "+")
                                                      : 0);
}

static int read_value(const char *text, json_t **ret_value, struct sl_err *err)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);

    if (!value)
        return sl_yaml_value(text, ret_value, err);
    *ret_value = value;
    return 0;
}

/* sections: keys that begin with a section of config are relative to it. */
static int apply(json_t *root, const char *key_value, bool sections, struct sl_err *err)
{
    bool remove;
    const char *start = skip_prefix(key_value, &remove), *equals = strchr(start, '=');
    char *parts[OVERRIDE_MAX_PARTS + 1], *key = NULL;
    json_t *copy = NULL, *value = NULL;
    int n, rc = 0;

    if ((!equals && !remove) || strlen(key_value) > OVERRIDE_MAX_BYTES)
        return sl_err_set(err, SL_SPEC,
                          "override \"%.100s\": write key=value, as model.optim.lr=3e-4",
                          key_value);
    if (!remove)
        rc = read_value(equals + 1, &value, err);
    key = strndup(start, equals ? (size_t)(equals - start) : strlen(start));
    copy = json_deep_copy(root);
    parts[0] = "config";
    if (!key || !copy) {
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    } else if (!rc) {
        n = split_key(key, parts + 1, err);
        if (n <= 0)
            rc = n;
        else
            rc = sections && in_config(parts + 1, n) ? set_path(copy, parts, n + 1, value, err)
                                                     : set_path(copy, parts + 1, n, value, err);
    }
    if (!rc && (json_object_clear(root), json_object_update(root, copy)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(value);
    json_decref(copy);
    free(key);
    return rc ? sl_err_wrap(err, rc, "override \"%.100s\"", key_value) : 0;
}

int sl_spec_apply_override(json_t *spec, const char *key_value, struct sl_err *err)
{
    return apply(spec, key_value, true, err);
}

int sl_config_apply_override(json_t *config, const char *key_value, struct sl_err *err)
{
    return apply(config, key_value, false, err);
}
