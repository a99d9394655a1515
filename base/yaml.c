#include "base/yaml.h"
#include "base/file.h"
#include "base/yaml_scalar.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* About what jansson allocates. */
#define COST_OBJECT 256
#define COST_ARRAY 128
#define COST_SCALAR 48

struct reader {
    yaml_parser_t parser;
    const char *what;
    enum sl_yaml_rules rules; /* what unquoted words stand for */
    int depth;
    size_t cost;
    json_t *anchors; /* name: value */
    struct sl_err *err;
};

static int bad(struct reader *r, yaml_mark_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int bad(struct reader *r, yaml_mark_t at, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return sl_err_set(r->err, SL_SPEC, "%s:%zu: %s", r->what, at.line + 1, text);
}

static int no_memory(struct reader *r)
{
    return sl_err_set(r->err, SL_NOMEM, "%s: out of memory", r->what);
}

/* Every value is paid for before it is made. */
static int pay(struct reader *r, yaml_mark_t at, size_t cost)
{
    if (cost > SL_YAML_MAX_COST - r->cost)
        return bad(r, at,
                   "the document holds too much (aliases count as what they stand for); the limit "
                   "is %u MiB",
                   SL_YAML_MAX_COST >> 20);
    r->cost += cost;
    return 0;
}

static int next(struct reader *r, yaml_event_t *ret_event)
{
    const yaml_parser_t *p = &r->parser;

    if (yaml_parser_parse(&r->parser, ret_event))
        return 0;
    if (p->error == YAML_MEMORY_ERROR)
        return no_memory(r);
    /* While reading characters there is a mark of neither kind yet. */
    return bad(r, p->error == YAML_READER_ERROR ? p->mark : p->problem_mark, "%s%s%s",
               p->problem ? p->problem : "not valid YAML", p->context ? ", " : "",
               p->context ? p->context : "");
}

static int scalar(struct reader *r, const yaml_event_t *e, json_t **ret_json)
{
    const char *s = (const char *)e->data.scalar.value;
    size_t len = e->data.scalar.length;
    struct sl_err why = SL_ERR_INIT;
    json_t *value = NULL;
    int rc = pay(r, e->start_mark, COST_SCALAR + len);

    if (!rc && e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE) {
        rc = sl_yaml_scalar(r->rules, s, len, &value, &why);
        if (rc)
            rc = bad(r, e->start_mark, "%s", why.msg);
    }
    if (!rc && !value)
        value = json_stringn(s, len);
    if (!rc && !value)
        rc = no_memory(r);
    if (!rc)
        *ret_json = value;
    return rc;
}

/* ---- aliases and collections ---- */

static size_t cost_of(const json_t *value)
{
    size_t cost = COST_SCALAR, i;
    const char *key;
    json_t *v;

    if (json_is_string(value))
        return cost + json_string_length(value);
    if (json_is_array(value)) {
        cost = COST_ARRAY;
        json_array_foreach((json_t *)value, i, v)
            cost += cost_of(v);
    } else if (json_is_object(value)) {
        cost = COST_OBJECT;
        json_object_foreach((json_t *)value, key, v)
            cost += COST_SCALAR + strlen(key) + cost_of(v);
    }
    return cost;
}

static int alias(struct reader *r, const yaml_event_t *e, json_t **ret_json)
{
    const char *name = (const char *)e->data.alias.anchor;
    json_t *value = json_object_get(r->anchors, name), *copy;
    int rc;

    if (!value)
        return bad(r, e->start_mark, "*%.80s stands for nothing that is complete before it", name);
    rc = pay(r, e->start_mark, cost_of(value));
    if (rc)
        return rc;
    copy = json_deep_copy(value);
    if (!copy)
        return no_memory(r);
    *ret_json = copy;
    return 0;
}

static int any(struct reader *r, const yaml_event_t *e, json_t **ret_json);

static int sequence(struct reader *r, json_t *array)
{
    for (;;) {
        yaml_event_t e;
        json_t *item = NULL;
        int rc = next(r, &e);

        if (rc)
            return rc;
        if (e.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&e);
            return 0;
        }
        rc = any(r, &e, &item);
        yaml_event_delete(&e);
        if (!rc && json_array_append_new(array, item))
            rc = no_memory(r);
        if (rc)
            return rc;
    }
}

/* `<<`: a mapping, or a list of them, whose keys are added where the mapping has none. */
static int merge(struct reader *r, yaml_mark_t at, json_t *object, const json_t *from)
{
    size_t i;
    json_t *v;

    if (json_is_object(from))
        return json_object_update_missing(object, (json_t *)from) ? no_memory(r) : 0;
    json_array_foreach((json_t *)from, i, v) {
        if (!json_is_object(v))
            return bad(r, at, "<< takes a mapping or a list of mappings");
        if (json_object_update_missing(object, v))
            return no_memory(r);
    }
    return json_is_array(from) ? 0 : bad(r, at, "<< takes a mapping or a list of mappings");
}

/* Reads the value of key; *merged takes that of `<<`. */
static int member(struct reader *r, const yaml_event_t *key, json_t *object, json_t **merged)
{
    const char *name = (const char *)key->data.scalar.value;
    bool is_merge = key->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && !strcmp(name, "<<");
    yaml_event_t e;
    json_t *value = NULL;
    int rc;

    if (strlen(name) != key->data.scalar.length)
        return bad(r, key->start_mark, "a key holds a zero byte");
    if (is_merge ? *merged != NULL : json_object_get(object, name) != NULL)
        return bad(r, key->start_mark, "the key \"%.100s\" is there twice", name);
    rc = pay(r, key->start_mark, COST_SCALAR + key->data.scalar.length);
    if (!rc)
        rc = next(r, &e);
    if (rc)
        return rc;
    rc = any(r, &e, &value);
    yaml_event_delete(&e);
    if (rc)
        return rc;
    if (is_merge)
        *merged = value;
    else if (json_object_set_new(object, name, value))
        return no_memory(r);
    return 0;
}

static int mapping(struct reader *r, json_t *object)
{
    json_t *merged = NULL;
    yaml_mark_t end = {0};
    int rc = 0;

    for (bool done = false; !rc && !done;) {
        yaml_event_t e;

        rc = next(r, &e);
        if (rc)
            break;
        end = e.start_mark;
        if (e.type == YAML_MAPPING_END_EVENT)
            done = true;
        else if (e.type != YAML_SCALAR_EVENT)
            rc = bad(r, e.start_mark, "a key is a word or a text");
        else if (e.data.scalar.tag || e.data.scalar.anchor)
            rc = bad(r, e.start_mark, "a key has no tag or anchor");
        else
            rc = member(r, &e, object, &merged);
        yaml_event_delete(&e);
    }
    if (!rc && merged)
        rc = merge(r, end, object, merged);
    json_decref(merged);
    return rc;
}

static int collection(struct reader *r, const yaml_event_t *e, json_t **ret_json)
{
    bool map = e->type == YAML_MAPPING_START_EVENT;
    json_t *value;
    int rc = pay(r, e->start_mark, map ? COST_OBJECT : COST_ARRAY);

    if (!rc && r->depth == SL_YAML_MAX_DEPTH)
        rc = bad(r, e->start_mark, "nested more than %d deep", SL_YAML_MAX_DEPTH);
    if (rc)
        return rc;
    value = map ? json_object() : json_array();
    if (!value)
        return no_memory(r);
    r->depth++;
    rc = map ? mapping(r, value) : sequence(r, value);
    r->depth--;
    if (rc)
        json_decref(value);
    else
        *ret_json = value;
    return rc;
}

static int any(struct reader *r, const yaml_event_t *e, json_t **ret_json)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;
    json_t *value = NULL;
    int rc;

    if (e->type == YAML_ALIAS_EVENT)
        return alias(r, e, ret_json);
    if (e->type == YAML_SCALAR_EVENT) {
        anchor = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
    } else if (e->type == YAML_MAPPING_START_EVENT) {
        anchor = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
    } else {
        anchor = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
    }
    if (tag)
        return bad(r, e->start_mark, "tags (%.80s) are not read; quote the value if it is a text",
                   (const char *)tag);
    rc = e->type == YAML_SCALAR_EVENT ? scalar(r, e, &value) : collection(r, e, &value);
    if (!rc && anchor) {
        /* The anchor keeps what stands here now, whatever becomes of the value. */
        rc = pay(r, e->start_mark, cost_of(value));
        if (!rc && json_object_set_new(r->anchors, (const char *)anchor, json_deep_copy(value)))
            rc = no_memory(r);
    }
    if (rc)
        json_decref(value);
    else
        *ret_json = value;
    return rc;
}

/* ---- documents ---- */

/* Takes the next event, which has to be of this type. */
static int expect(struct reader *r, yaml_event_type_t type, const char *otherwise)
{
    yaml_event_t e;
    int rc = next(r, &e);

    if (rc)
        return rc;
    if (e.type != type)
        rc = bad(r, e.start_mark, "%s", otherwise);
    yaml_event_delete(&e);
    return rc;
}

static int document(struct reader *r, json_t **ret_json)
{
    json_t *value = NULL;
    yaml_event_t e;
    int rc = expect(r, YAML_STREAM_START_EVENT, "not YAML");

    if (!rc)
        rc = next(r, &e);
    if (rc)
        return rc;
    if (e.type == YAML_STREAM_END_EVENT) {
        yaml_event_delete(&e);
        *ret_json = json_null();
        return 0;
    }
    yaml_event_delete(&e); /* the start of the document */
    rc = next(r, &e);
    if (rc)
        return rc;
    rc = any(r, &e, &value);
    yaml_event_delete(&e);
    if (!rc)
        rc = expect(r, YAML_DOCUMENT_END_EVENT, "not YAML");
    if (!rc)
        rc = expect(r, YAML_STREAM_END_EVENT, "a second document begins here; only one is read");
    if (rc)
        json_decref(value);
    else
        *ret_json = value;
    return rc;
}

static int parse(const char *text, size_t len, const char *what, enum sl_yaml_rules rules,
                 json_t **ret_json, struct sl_err *err)
{
    struct reader r = {.what = what, .rules = rules, .err = err};
    int rc;

    if (len > SL_YAML_MAX_BYTES)
        return sl_err_set(err, SL_SPEC, "%s: %zu bytes of YAML; the limit is %u", what, len,
                          SL_YAML_MAX_BYTES);
    if (!yaml_parser_initialize(&r.parser))
        return no_memory(&r);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    r.anchors = json_object();
    rc = r.anchors ? document(&r, ret_json) : no_memory(&r);
    json_decref(r.anchors);
    yaml_parser_delete(&r.parser);
    return rc;
}

int sl_yaml_parse(const char *text, size_t len, const char *what, json_t **ret_json,
                  struct sl_err *err)
{
    return parse(text, len, what, SL_YAML_RULES, ret_json, err);
}

int sl_yaml_read(const char *path, json_t **ret_json, struct sl_err *err)
{
    struct sl_buf buf;
    int rc;

    sl_buf_init(&buf, SL_YAML_MAX_BYTES);
    rc = sl_file_read(path, &buf, err);
    if (!rc)
        rc = sl_yaml_parse(buf.p, buf.len, path, ret_json, err);
    sl_buf_release(&buf);
    return rc;
}

int sl_yaml_value(const char *text, json_t **ret_json, struct sl_err *err)
{
    json_t *value = NULL;
    int rc = 0;

    if (*text && strchr("[{'\"", *text))
        parse(text, strlen(text), "", SL_HYDRA_RULES, &value, NULL);
    else if (*text)
        rc = sl_yaml_scalar(SL_HYDRA_RULES, text, strlen(text), &value, err);
    if (json_is_object(value) && *text != '{') { /* "a": b */
        json_decref(value);
        value = NULL;
    }
    if (!rc && !value)
        value = json_string(text);
    if (!rc && !value)
        rc = sl_err_set(err, SL_SPEC, "the value is not UTF-8");
    if (!rc)
        *ret_json = value;
    return rc;
}
