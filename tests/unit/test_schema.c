/* The schema interpreter: what it refuses to load, what it finds, how it says so. The case table is
 * shared with tests/system/schema_peer.py, which judges it with another implementation;
 * `test_schema --judge` is our side of that comparison. Runs from the root of the tree. */
#include "base/json.h"
#include "base/schema.h"
#include "base/spec.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

extern const unsigned char sl_embed_base_job_schema_json[];
extern const unsigned long sl_embed_base_job_schema_json_len;

static struct sl_schema *load(const char *text)
{
    struct sl_schema *s = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (sl_schema_load(text, strlen(text), &s, &err))
        fail_msg("%s", err.msg);
    return s;
}

static struct sl_schema *load_job(void)
{
    return load((const char *)sl_embed_base_job_schema_json);
}

/* Validates JSON text; the caller frees the errors. */
static json_t *judge(const struct sl_schema *s, const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL),
           *errors = json_array();
    struct sl_err err = SL_ERR_INIT;

    assert_non_null(value);
    assert_int_equal(sl_schema_validate(s, NULL, "", value, 100, errors, &err), 0);
    json_decref(value);
    return errors;
}

static void expect_valid(const struct sl_schema *s, const char *text)
{
    json_t *errors = judge(s, text);
    if (json_array_size(errors))
        fail_msg("%s: %s", text, sl_json_str(json_array_get(errors, 0), "message", "?"));
    json_decref(errors);
}

/* Exactly one error, at path, whose message holds the words. */
static void expect_error(const struct sl_schema *s, const char *text, const char *path,
                         const char *words)
{
    json_t *errors = judge(s, text);
    const json_t *e = json_array_get(errors, 0);

    assert_int_equal(json_array_size(errors), 1);
    assert_string_equal(sl_json_str(e, "path", "?"), path);
    if (!strstr(sl_json_str(e, "message", ""), words))
        fail_msg("%s: \"%s\" does not say \"%s\"", text, sl_json_str(e, "message", ""), words);
    assert_non_null(sl_json_str(e, "expected", NULL));
    assert_non_null(sl_json_str(e, "found", NULL));
    json_decref(errors);
}

static void refuses_schemas_it_cannot_keep(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"{\"type\":\"object\",\"maxProperties\":1}", "\"maxProperties\" is not implemented"},
        {"{\"properties\":{\"a\":{\"oneOf\":[]}}}", "#/properties/a: keyword \"oneOf\""},
        {"{\"items\":{\"format\":\"uri\"}}", "#/items: keyword \"format\""},
        {"{\"additionalProperties\":{\"not\":{}}}", "#/additionalProperties: keyword \"not\""},
        {"{\"$defs\":{\"x\":{\"if\":{}}}}", "#/$defs/x: keyword \"if\""},
        {"{\"type\":\"text\"}", "\"type\" has a wrong value"},
        {"{\"type\":[\"string\",\"text\"]}", "\"type\" has a wrong value"},
        {"{\"minLength\":-1}", "\"minLength\" has a wrong value"},
        {"{\"pattern\":\"([\"}", "pattern \"([\""},
        {"{\"$ref\":\"#/$defs/gone\"}", "$ref \"#/$defs/gone\" leads nowhere"},
        {"{\"$ref\":\"#/$defs/a\",\"minimum\":1,\"$defs\":{\"a\":{}}}", "beside $ref"},
        {"{\"properties\":{\"x\":{\"$ref\":\"#/$defs/a\"}},\"$defs\":{\"a\":{\"$ref\":\"#/$defs/"
         "a\"}}}",
         "leads nowhere"},
        {"{\"properties\":{\"x\":3}}", "#/properties/x: not an object"},
        {"[]", "not an object"},
        {"{\"type\":", "not valid JSON"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_schema *s = NULL;
        struct sl_err err = SL_ERR_INIT;
        assert_int_equal(sl_schema_load(bad[i].text, strlen(bad[i].text), &s, &err), SL_SPEC);
        assert_null(s);
        if (!strstr(err.msg, bad[i].says))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].text, err.msg, bad[i].says);
    }
}

static void judges_each_keyword(void **state)
{
    struct sl_schema *s;
    (void)state;

    s = load("{\"type\":\"integer\",\"minimum\":2,\"exclusiveMaximum\":5}");
    expect_valid(s, "2");
    expect_valid(s, "4.0");
    expect_error(s, "1", "", "expected at least 2, found 1");
    expect_error(s, "5", "", "a number below 5");
    expect_error(s, "3.5", "", "an integer");
    expect_error(s, "true", "", "expected an integer, found true");
    sl_schema_free(s);

    s = load("{\"type\":[\"string\",\"null\"],\"minLength\":2,\"maxLength\":3,\"pattern\":\"^[a-"
             "z\xc3\xa9]*$\"}");
    expect_valid(s, "null");
    expect_valid(s, "\"\xc3\xa9\xc3\xa9\xc3\xa9\""); /* characters, not bytes */
    expect_error(s, "\"a\"", "", "at least 2 characters");
    expect_error(s, "\"aaaa\"", "", "at most 3 characters");
    expect_error(s, "\"A1\"", "", "matches ^[a-z");
    expect_error(s, "\"ab\\u0000/\"", "", "without NUL");
    expect_error(s, "1", "", "a string or null");
    sl_schema_free(s);

    s = load("{\"enum\":[\"a\",16,null]}");
    expect_valid(s, "16.0");
    expect_valid(s, "null");
    expect_error(s, "\"b\"", "", "one of \"a\", 16, null");
    sl_schema_free(s);

    s = load("{\"const\":{\"a\":1}}");
    expect_valid(s, "{\"a\":1}");
    expect_error(s, "{\"a\":2}", "", "expected {\"a\":1}");
    sl_schema_free(s);

    s = load("{\"type\":\"object\",\"minProperties\":1}");
    expect_valid(s, "{\"a\":1}");
    expect_error(s, "{}", "", "at least 1 keys");
    sl_schema_free(s);

    s = load("{\"type\":\"array\",\"items\":{\"type\":\"number\"},\"minItems\":1,\"maxItems\":2,"
             "\"uniqueItems\":true}");
    expect_valid(s, "[1,2]");
    expect_error(s, "[]", "", "at least 1 elements");
    expect_error(s, "[1,2,3]", "", "at most 2 elements");
    expect_error(s, "[1,1.0]", "[1]", "not there already");
    expect_error(s, "[1,\"x\"]", "[1]", "a number");
    sl_schema_free(s);

    s = load(
        "{\"required\":[\"a\"],\"properties\":{\"a\":{\"$ref\":\"#/$defs/n\",\"description\":\"a "
        "count\"}},"
        "\"additionalProperties\":{\"type\":\"boolean\"},\"$defs\":{\"n\":{\"type\":\"number\"}}}");
    expect_valid(s, "{\"a\":1,\"b\":true}");
    expect_error(s, "{\"b\":true}", "a", "missing; expected a value: a count");
    expect_error(s, "{\"a\":\"x\"}", "a", "a number");
    expect_error(s, "{\"a\":1,\"b\":1}", "b", "a boolean");
    sl_schema_free(s);
}

static void names_the_nearest_key(void **state)
{
    struct sl_schema *s = load("{\"properties\":{\"warmup_steps\":{},\"min_lr\":{},\"lr\":{}},"
                               "\"additionalProperties\":false}");
    (void)state;
    expect_error(s, "{\"warmup_step\":1}", "warmup_step", "nearest known key is \"warmup_steps\"");
    expect_error(s, "{\"minlr\":1}", "minlr", "nearest known key is \"min_lr\"");
    expect_error(s, "{\"rl\":1}", "rl", "nearest known key is \"lr\"");
    sl_schema_free(s);
    s = load("{\"additionalProperties\":false}");
    expect_error(s, "{\"a\":1}", "a", "unknown key");
    sl_schema_free(s);
}

static void quotes_little_of_a_wrong_value(void **state)
{
    struct sl_schema *s = load("{\"type\":\"null\"}");
    char text[2000] = "\"";
    json_t *errors;

    (void)state;
    for (int i = 0; i < 500; i++)
        strcat(text, "\xc3\xa9");
    strcat(text, "\"");
    errors = judge(s, text);
    const char *found = sl_json_str(json_array_get(errors, 0), "found", "");
    assert_true(strlen(found) <= SL_SCHEMA_FOUND_MAX);
    assert_non_null(strstr(found, "..."));
    json_decref(errors);
    sl_schema_free(s);
}

static void stops_at_the_limit_of_errors(void **state)
{
    struct sl_schema *s = load("{\"items\":{\"type\":\"string\"}}");
    json_t *value = json_array(), *errors = json_array();

    (void)state;
    for (int i = 0; i < 50; i++)
        json_array_append_new(value, json_integer(i));
    assert_int_equal(sl_schema_validate(s, NULL, "x", value, 7, errors, NULL), 0);
    assert_int_equal(json_array_size(errors), 7);
    assert_string_equal(sl_json_str(json_array_get(errors, 6), "path", ""), "x[6]");
    json_decref(value);
    json_decref(errors);
    sl_schema_free(s);
}

static void survives_deep_values_and_long_paths(void **state)
{
    struct sl_schema *s = load(
        "{\"properties\":{\"a\":{\"$ref\":\"#/$defs/n\"}},\"additionalProperties\":false,"
        "\"$defs\":{\"n\":{\"properties\":{\"a\":{\"$ref\":\"#/$defs/n\"}},"
        "\"additionalProperties\":{\"$ref\":\"#/$defs/n\"},\"items\":{\"$ref\":\"#/$defs/n\"}}}}");
    json_t *value = json_integer(1), *errors = json_array(), *outer;
    char key[300];

    (void)state;
    memset(key, 'k', sizeof key - 1);
    key[sizeof key - 1] = 0;
    for (int i = 0; i < 500; i++) {
        outer = i % 2 ? json_pack("{s:o}", key, value) : json_pack("[o]", value);
        value = outer;
    }
    value = json_pack("{s:o}", "a", value);
    assert_int_equal(sl_schema_validate(s, NULL, "", value, 10, errors, NULL), 0);
    assert_int_equal(json_array_size(errors), 1);
    assert_non_null(strstr(sl_json_str(json_array_get(errors, 0), "message", ""), "less deeply"));
    json_decref(value);
    json_decref(errors);
    sl_schema_free(s);
}

static void fills_defaults(void **state)
{
    struct sl_schema *s = load("{\"type\":\"object\",\"properties\":{"
                               "\"a\":{\"default\":1},\"b\":{\"type\":\"object\",\"properties\":{"
                               "\"c\":{\"default\":[2]}}},"
                               "\"d\":{\"type\":\"object\",\"properties\":{\"e\":{}}},"
                               "\"f\":{\"$ref\":\"#/$defs/n\",\"default\":5},"
                               "\"g\":{\"type\":\"array\",\"items\":{\"type\":\"object\","
                               "\"properties\":{\"h\":{\"default\":6}}}}},"
                               "\"$defs\":{\"n\":{\"default\":4}}}");
    json_t *value = json_loads("{\"a\":9,\"g\":[{},{\"h\":7}]}", 0, NULL);
    char *text;

    (void)state;
    assert_int_equal(sl_schema_fill_defaults(s, NULL, value, NULL), 0);
    text = sl_json_dump(value);
    assert_string_equal(text, "{\"a\":9,\"b\":{\"c\":[2]},\"f\":5,\"g\":[{\"h\":6},{\"h\":7}]}");
    free(text);
    json_decref(value);
    sl_schema_free(s);
}

/* ---- the case table ------------------------------------------------------------------------ */

static json_t *read_json(const char *path)
{
    json_t *json = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (sl_json_read(path, SL_JSON_FILE_MAX, &json, &err))
        fail_msg("%s (run from the root of the tree)", err.msg);
    return json;
}

static void remove_path(json_t *spec, const char *path)
{
    const char *last = strrchr(path, '.');
    char *parent = last ? strndup(path, (size_t)(last - path)) : NULL;
    json_t *at = parent ? (json_t *)sl_json_get(spec, parent) : spec;
    assert_int_equal(json_object_del(at, last ? last + 1 : path), 0);
    free(parent);
}

static json_t *changed(const json_t *example, const json_t *c)
{
    json_t *spec = json_deep_copy(example), *pair, *path;
    struct sl_err err = SL_ERR_INIT;
    size_t i;

    json_array_foreach(json_object_get(c, "set"), i, pair)
    {
        const char *key = json_string_value(json_array_get(pair, 0));
        char *value = json_dumps(json_array_get(pair, 1), JSON_ENCODE_ANY), *text = NULL;
        if (!*key) {
            json_decref(spec);
            spec = json_deep_copy(json_array_get(pair, 1));
        } else {
            assert_true(asprintf(&text, "%s=%s", key, value) > 0);
            if (sl_spec_apply_override(spec, text, &err))
                fail_msg("%s", err.msg);
        }
        free(text);
        free(value);
    }
    json_array_foreach(json_object_get(c, "remove"), i, path)
        remove_path(spec, json_string_value(path));
    return spec;
}

static bool has_path(const json_t *errors, const char *path)
{
    size_t i;
    json_t *e;
    json_array_foreach((json_t *)errors, i,
                       e) if (!strcmp(sl_json_str(e, "path", "?"), path)) return true;
    return false;
}

static void finds_exactly_the_errors_of_the_table(void **state)
{
    struct sl_schema *s = load_job();
    json_t *cases = read_json("tests/system/schema_cases.json"), *c, *p;
    json_t *example = read_json("examples/wordnet.json");
    size_t i, k;

    (void)state;
    assert_true(json_array_size(cases) >= 60);
    json_array_foreach(cases, i, c)
    {
        json_t *spec = changed(example, c), *errors = json_array();
        const json_t *expected = json_object_get(c, "errors");
        assert_int_equal(sl_schema_validate(s, NULL, "", spec, 100, errors, NULL), 0);
        if (json_array_size(errors) != json_array_size(expected))
            fail_msg("%s: %zu errors, not %zu; the first: %s: %s", sl_json_str(c, "name", ""),
                     json_array_size(errors), json_array_size(expected),
                     sl_json_str(json_array_get(errors, 0), "path", "-"),
                     sl_json_str(json_array_get(errors, 0), "message", "-"));
        json_array_foreach((json_t *)expected, k, p) if (!has_path(errors, json_string_value(p)))
            fail_msg("%s: no error at %s", sl_json_str(c, "name", ""), json_string_value(p));
        json_decref(errors);
        json_decref(spec);
    }
    json_decref(cases);
    json_decref(example);
    sl_schema_free(s);
}

static int judge_lines(void)
{
    struct sl_schema *s = NULL;
    char *line = NULL;
    size_t cap = 0;

    if (sl_schema_load((const char *)sl_embed_base_job_schema_json,
                       sl_embed_base_job_schema_json_len, &s, NULL))
        return 1;
    while (getline(&line, &cap, stdin) > 0) {
        json_t *spec = json_loads(line, JSON_DECODE_ANY, NULL), *errors = json_array();
        if (!spec || sl_schema_validate(s, NULL, "", spec, 1, errors, NULL))
            return 1;
        puts(json_array_size(errors) ? "invalid" : "valid");
        json_decref(errors);
        json_decref(spec);
    }
    free(line);
    sl_schema_free(s);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_schemas_it_cannot_keep),
        cmocka_unit_test(judges_each_keyword),
        cmocka_unit_test(names_the_nearest_key),
        cmocka_unit_test(quotes_little_of_a_wrong_value),
        cmocka_unit_test(stops_at_the_limit_of_errors),
        cmocka_unit_test(survives_deep_values_and_long_paths),
        cmocka_unit_test(fills_defaults),
        cmocka_unit_test(finds_exactly_the_errors_of_the_table),
    };
    if (argc == 2 && !strcmp(argv[1], "--judge"))
        return judge_lines();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
