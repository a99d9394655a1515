/* YAML: what OmegaConf and Hydra make of hundreds of texts, messages with their lines, limits. */
#include "base/clock.h"
#include "base/json.h"
#include "base/yaml.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HOSTILE_MAX_US 8000000 /* on a slow and busy machine; what it guards against takes minutes */

/* Numbers by value and type, to the last bit but for the sum in base 60. */
static bool same(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;
    size_t i;

    if (json_typeof(a) != json_typeof(b))
        return false;
    if (json_is_real(a))
        return json_real_value(a) == json_real_value(b);
    if (json_is_array(a)) {
        json_array_foreach((json_t *)a, i, v)
            if (i >= json_array_size(b) || !same(v, json_array_get(b, i)))
                return false;
        return json_array_size(a) == json_array_size(b);
    }
    if (json_is_object(a)) {
        json_object_foreach((json_t *)a, key, v)
            if (!json_object_get(b, key) || !same(v, json_object_get(b, key)))
                return false;
        return json_object_size(a) == json_object_size(b);
    }
    return json_equal(a, b);
}

static void check(const char *kind, const char *text, const json_t *want, int rc, json_t *got,
                  const struct sl_err *err)
{
    char *g, *w;

    if (json_is_true(json_object_get(want, "error")) ? rc == SL_SPEC : !rc && same(got, want))
        return;
    g = got ? json_dumps(got, JSON_ENCODE_ANY) : NULL;
    w = json_dumps(want, JSON_ENCODE_ANY);
    fail_msg("%s <%s>: %s instead of %s", kind, text, g ? g : err->msg, w);
}

static void recorded_texts(void **state)
{
    char path[SL_PATH_MAX];
    json_t *golden, *c;
    size_t i;

    (void)state;
    golden_path(path, "yaml.json");
    assert_int_equal(sl_json_read(path, SL_JSON_FILE_MAX, &golden, NULL), 0);
    assert_true(json_array_size(json_object_get(golden, "documents")) > 1500);
    assert_true(json_array_size(json_object_get(golden, "values")) > 80);
    json_array_foreach(json_object_get(golden, "documents"), i, c) {
        const json_t *text = json_array_get(c, 0);
        struct sl_err err = SL_ERR_INIT;
        json_t *got = NULL;
        int rc = sl_yaml_parse(json_string_value(text), json_string_length(text), "x", &got, &err);

        check("document", json_string_value(text), json_array_get(c, 1), rc, got, &err);
        json_decref(got);
    }
    json_array_foreach(json_object_get(golden, "values"), i, c) {
        const char *text = json_string_value(json_array_get(c, 0));
        struct sl_err err = SL_ERR_INIT;
        json_t *got = NULL;
        int rc = sl_yaml_value(text, &got, &err);

        check("value", text, json_array_get(c, 1), rc, got, &err);
        json_decref(got);
    }
    json_decref(golden);
}

static void refused(const char *text, const char *message)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *got = NULL;
    int rc = sl_yaml_parse(text, strlen(text), "conf.yaml", &got, &err);

    if (rc != SL_SPEC || got || !strstr(err.msg, message))
        fail_msg("<%.60s>: %d \"%s\", not \"%s\"", text, rc, err.msg, message);
}

static void mistakes_are_told_with_their_line(void **state)
{
    (void)state;
    refused("a: 1\nb:\n  c: 2\n  c: 3\n", "conf.yaml:4: the key \"c\" is there twice");
    refused("a:\n  - 1\n - 2\n", "conf.yaml:3: ");
    refused("a: !!str 1\n", "conf.yaml:1: tags (tag:yaml.org,2002:str) are not read");
    refused("a: !!python/object/apply:os.system ['true']\n", "conf.yaml:1: tags (");
    refused("a: &x\n  b: *x\n", "conf.yaml:2: *x stands for nothing that is complete before it");
    refused("a: 1\n---\nb: 2\n", "conf.yaml:2: a second document begins here");
    refused("a: 1\nb: 99999999999999999999\n",
            "conf.yaml:2: 99999999999999999999 is too large for an integer");
    refused("a: 1\n? {x: y}\n: 2\n", "conf.yaml:2: a key is a word or a text");
    refused("\n<<: 3\n", "<< takes a mapping or a list of mappings");
    refused("a: b\n\tc: d\n", "conf.yaml:2: ");
    refused("a: \xff\n", "conf.yaml:1: ");
}

static void what_json_lacks_stays_a_string(void **state)
{
    static const char text[] = "[.inf, -.INF, .nan, 1e999]";
    json_t *got = NULL;

    (void)state;
    assert_int_equal(sl_yaml_parse(text, strlen(text), "x", &got, NULL), 0);
    assert_string_equal(json_string_value(json_array_get(got, 0)), ".inf");
    assert_string_equal(json_string_value(json_array_get(got, 1)), "-.INF");
    assert_string_equal(json_string_value(json_array_get(got, 2)), ".nan");
    assert_string_equal(json_string_value(json_array_get(got, 3)), "1e999");
    json_decref(got);
}

static void an_alias_is_a_copy(void **state)
{
    static const char text[] = "{a: &x {n: 1}, b: *x, c: &x 2, d: *x}";
    json_t *got = NULL;

    (void)state;
    assert_int_equal(sl_yaml_parse(text, strlen(text), "x", &got, NULL), 0);
    assert_int_equal(json_integer_value(json_object_get(got, "d")), 2); /* the anchor before it */
    json_object_set_new(json_object_get(got, "a"), "n", json_integer(7));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(got, "b"), "n")), 1);
    json_decref(got);
}

/* Refused soon, with this message. */
static void hostile(const char *text, const char *message)
{
    int64_t start = sl_boot_us();

    refused(text, message);
    assert_true(sl_boot_us() - start < HOSTILE_MAX_US);
}

static char *repeat(const char *piece, int n, const char *end)
{
    size_t len = strlen(piece);
    char *s = malloc(len * (size_t)n + strlen(end) + 1), *p = s;

    for (int i = 0; i < n; i++, p += len)
        memcpy(p, piece, len);
    memcpy(p, end, strlen(end) + 1);
    return s;
}

static void hostile_texts_are_refused_soon(void **state)
{
    struct sl_buf b;
    char *s;

    (void)state;
    sl_buf_init(&b, SL_YAML_MAX_BYTES + 1);
    sl_buf_adds(&b, "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for (int i = 1; i < 12; i++) {
        sl_buf_addf(&b, "a%d: &a%d [", i, i);
        for (int k = 0; k < 10; k++)
            sl_buf_addf(&b, "%s*a%d", k ? ", " : "", i - 1);
        sl_buf_adds(&b, "]\n");
    }
    hostile(b.p, "aliases count as what they stand for");
    sl_buf_reset(&b);
    sl_buf_adds(&b, "a: &a ");
    while (b.len < SL_YAML_MAX_BYTES / 2)
        sl_buf_adds(&b, "xxxxxxxxxxxxxxxx");
    sl_buf_adds(&b, "\nb: [");
    while (b.len < SL_YAML_MAX_BYTES - 8)
        sl_buf_adds(&b, "*a, ");
    sl_buf_adds(&b, "1]");
    hostile(b.p, "the limit is 16 MiB");
    sl_buf_release(&b);

    s = repeat("[", 100000, "");
    hostile(s, "nested more than 64 deep");
    free(s);
    s = repeat("- ", 100000, "");
    hostile(s, "nested more than 64 deep");
    free(s);
    s = repeat("{a: ", 100, "");
    hostile(s, "nested more than 64 deep");
    free(s);
    s = repeat("? ", 100000, "");
    hostile(s, "a key is a word or a text");
    free(s);
    s = repeat("{},", 300000, "");
    s[0] = '[';
    hostile(s, "");
    free(s);
    s = repeat("x", SL_YAML_MAX_BYTES + 1, "");
    hostile(s, "the limit is 1048576");
    free(s);
}

static void files(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *got = NULL, *spec = NULL;

    (void)state;
    assert_int_equal(sl_yaml_read("no/such/file.yaml", &got, &err), SL_NOTFOUND);
    /* JSON is YAML */
    assert_int_equal(sl_yaml_read("examples/wordnet.json", &got, NULL), 0);
    assert_int_equal(sl_json_read("examples/wordnet.json", SL_JSON_FILE_MAX, &spec, NULL), 0);
    assert_true(json_equal(got, spec));
    json_decref(got);
    json_decref(spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_texts),
        cmocka_unit_test(mistakes_are_told_with_their_line),
        cmocka_unit_test(what_json_lacks_stays_a_string),
        cmocka_unit_test(an_alias_is_a_copy),
        cmocka_unit_test(hostile_texts_are_refused_soon),
        cmocka_unit_test(files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
