/* Loading a schema: every keyword is known and well formed, every pattern compiled, every $ref leads somewhere. */
#include "base/schema_impl.h"
#include "base/buf.h"
#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum keyword_kind {
    K_ANY,
    K_STRING,
    K_SCHEMA,
    K_SCHEMAS,
    K_SCHEMA_OR_BOOL,
    K_ARRAY,
    K_COUNT,
    K_NUMBER,
    K_BOOL,
    K_TYPE
};

static const struct {
    const char *name;
    enum keyword_kind kind;
} keywords[] = {
    {"$schema", K_STRING},
    {"$id", K_STRING},
    {"$comment", K_STRING},
    {"title", K_STRING},
    {"description", K_STRING},
    {"default", K_ANY},
    {"$ref", K_STRING},
    {"$defs", K_SCHEMAS},
    {"type", K_TYPE},
    {"enum", K_ARRAY},
    {"const", K_ANY},
    {"properties", K_SCHEMAS},
    {"required", K_ARRAY},
    {"additionalProperties", K_SCHEMA_OR_BOOL},
    {"items", K_SCHEMA},
    {"minProperties", K_COUNT},
    {"minItems", K_COUNT},
    {"maxItems", K_COUNT},
    {"uniqueItems", K_BOOL},
    {"minLength", K_COUNT},
    {"maxLength", K_COUNT},
    {"pattern", K_STRING},
    {"minimum", K_NUMBER},
    {"maximum", K_NUMBER},
    {"exclusiveMinimum", K_NUMBER},
    {"exclusiveMaximum", K_NUMBER},
};

static const char *const type_names[] = {"object", "array",   "string", "integer",
                                         "number", "boolean", "null"};

static bool known_type(const json_t *t)
{
    const char *s = json_string_value(t);
    for (size_t i = 0; s && i < sizeof type_names / sizeof *type_names; i++)
        if (!strcmp(s, type_names[i]))
            return true;
    return false;
}

static bool kind_fits(enum keyword_kind kind, const json_t *v)
{
    size_t i;
    json_t *e;
    switch (kind) {
    case K_ANY:
        return true;
    case K_STRING:
        return json_is_string(v);
    case K_SCHEMA:
    case K_SCHEMAS:
        return json_is_object(v);
    case K_SCHEMA_OR_BOOL:
        return json_is_object(v) || json_is_boolean(v);
    case K_ARRAY:
        return json_is_array(v);
    case K_COUNT:
        return json_is_integer(v) && json_integer_value(v) >= 0;
    case K_NUMBER:
        return json_is_number(v);
    case K_BOOL:
        return json_is_boolean(v);
    case K_TYPE:
        if (!json_is_array(v))
            return known_type(v);
        json_array_foreach((json_t *)v, i, e) if (!known_type(e)) return false;
        return json_array_size(v) > 0;
    }
    return false;
}

const json_t *sl_schema_def(const struct sl_schema *s, const char *name)
{
    return json_object_get(json_object_get(s->root, "$defs"), name);
}

const json_t *sl_schema_follow(const struct sl_schema *s, const json_t *schema)
{
    const char *ref;
    for (int i = 0; i < SL_SCHEMA_MAX_DEPTH; i++) {
        ref = json_string_value(json_object_get(schema, "$ref"));
        if (!ref)
            return schema;
        schema = strncmp(ref, "#/$defs/", 8) ? NULL : sl_schema_def(s, ref + 8);
        if (!schema)
            return NULL;
    }
    return NULL; /* refers to itself */
}

static int load_pattern(struct sl_schema *s, const json_t *text, const char *where,
                        struct sl_err *err)
{
    char why[128];
    int rc;

    if (s->n_patterns == SL_SCHEMA_MAX_PATTERNS)
        return sl_err_set(err, SL_SPEC, "schema %s: more than %d patterns", where,
                          SL_SCHEMA_MAX_PATTERNS);
    struct sl_schema_pattern *p = &s->pattern[s->n_patterns];
    rc = regcomp(&p->re, json_string_value(text), REG_EXTENDED | REG_NOSUB);
    if (rc) {
        regerror(rc, &p->re, why, sizeof why);
        return sl_err_set(err, SL_SPEC, "schema %s: pattern \"%s\": %s", where,
                          json_string_value(text), why);
    }
    p->text = text;
    s->n_patterns++;
    return 0;
}

static int load_node(struct sl_schema *s, const json_t *node, const char *where, int depth,
                     struct sl_err *err)
{
    char below[SL_SCHEMA_PATH_MAX];
    const char *key, *name;
    json_t *v, *child;
    size_t k;
    int rc;

    if (depth > SL_SCHEMA_MAX_DEPTH)
        return sl_err_set(err, SL_SPEC, "schema %s: deeper than %d", where, SL_SCHEMA_MAX_DEPTH);
    if (!json_is_object(node))
        return sl_err_set(err, SL_SPEC, "schema %s: not an object", where);
    json_object_foreach((json_t *)node, key, v)
    {
        for (k = 0; k < sizeof keywords / sizeof *keywords; k++)
            if (!strcmp(key, keywords[k].name))
                break;
        if (k == sizeof keywords / sizeof *keywords)
            return sl_err_set(err, SL_SPEC, "schema %s: keyword \"%s\" is not implemented", where,
                              key);
        if (!kind_fits(keywords[k].kind, v))
            return sl_err_set(err, SL_SPEC, "schema %s: keyword \"%s\" has a wrong value", where,
                              key);
        if (!strcmp(key, "pattern") && (rc = load_pattern(s, v, where, err)))
            return rc;
        if (keywords[k].kind == K_SCHEMA ||
            (keywords[k].kind == K_SCHEMA_OR_BOOL && json_is_object(v))) {
            snprintf(below, sizeof below, "%.300s/%s", where, key);
            if ((rc = load_node(s, v, below, depth + 1, err)))
                return rc;
        }
        if (keywords[k].kind == K_SCHEMAS)
            json_object_foreach(v, name, child)
            {
                snprintf(below, sizeof below, "%.300s/%s/%.100s", where, key, name);
                if ((rc = load_node(s, child, below, depth + 1, err)))
                    return rc;
            }
    }
    /* clang-format off */
    if (json_object_get(node, "$ref"))
        json_object_foreach((json_t *)node, key, v)
            if (strcmp(key, "$ref") != 0 && strcmp(key, "default") != 0 && strcmp(key, "description") != 0)
                return sl_err_set(err, SL_SPEC, "schema %s: \"%s\" beside $ref is not implemented", where, key);
    /* clang-format on */
    if (!sl_schema_follow(s, node))
        return sl_err_set(err, SL_SPEC, "schema %s: $ref \"%s\" leads nowhere", where,
                          json_string_value(json_object_get(node, "$ref")));
    return 0;
}

int sl_schema_load(const char *text, size_t len, struct sl_schema **ret_schema, struct sl_err *err)
{
    struct sl_schema *s = calloc(1, sizeof *s);
    int rc;

    if (!s)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    rc = sl_json_parse(text, len, "schema", &s->root, err);
    if (!rc)
        rc = load_node(s, s->root, "#", 0, err);
    if (rc) {
        sl_schema_free(s);
        return rc;
    }
    *ret_schema = s;
    return 0;
}

void sl_schema_free(struct sl_schema *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_patterns; i++)
        regfree(&s->pattern[i].re);
    json_decref(s->root);
    free(s);
}
