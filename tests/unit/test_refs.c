/* References in configurations: types, nesting, relative keys, what leads nowhere. */
#include "base/json.h"
#include "base/refs.h"
#include "base/yaml.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static json_t *resolved(const char *yaml, int want, struct sl_err *err)
{
    json_t *doc = NULL, *work;

    assert_int_equal(sl_yaml_parse(yaml, strlen(yaml), "x", &doc, err), 0);
    work = json_deep_copy(doc);
    assert_int_equal(sl_refs_resolve(work, doc, err), want);
    json_decref(doc);
    return work;
}

static void references_have_their_values_type(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *v;

    (void)state;
    v = resolved(
        "i: 3\nf: 1e-4\nb: yes\nn: null\ns: txt\nlist: [a, {k: 5}]\nmap: {x: '${i}', y: '${.x}'}\n"
        "key: map\nto_i: ${i}\nto_f: ${f}\nto_b: ${b}\nto_n: ${n}\nto_list: ${list}\nto_map: "
        "${map}\n"
        "in: '<${i} ${f} ${b} ${n} ${s} ${to_f}>'\nelement: ${list[1].k}\ndotted: ${list.0}\n"
        "nested: ${${key}.x}\ns2: x\ndeeper: '${map.${s2}}!'\nescaped: \\${i} $ {i} $x\n"
        "sub:\n  up: ${..i}\n  beside: ${.up}\n  list: ['${..up}', '${...s}']\nwhole: 1.0\nw: "
        "'v${whole}'\n"
        "chain: ${to_map}\n",
        0, &err);
    assert_int_equal(sl_json_int(v, "to_i", 0), 3);
    assert_true(json_is_real(json_object_get(v, "to_f")) && sl_json_num(v, "to_f", 0) == 1e-4);
    assert_true(json_is_true(json_object_get(v, "to_b")) &&
                json_is_null(json_object_get(v, "to_n")));
    assert_int_equal(json_array_size(json_object_get(v, "to_list")), 2);
    assert_int_equal(sl_json_int(v, "to_map.x", 0), 3);
    assert_int_equal(sl_json_int(v, "to_map.y", 0), 3);
    assert_int_equal(sl_json_int(v, "chain.y", 0), 3);
    assert_string_equal(sl_json_str(v, "in", ""), "<3 0.0001 True None txt 0.0001>");
    assert_int_equal(sl_json_int(v, "element", 0), 5);
    assert_string_equal(sl_json_str(v, "dotted", ""), "a");
    assert_int_equal(sl_json_int(v, "nested", 0), 3);
    assert_string_equal(sl_json_str(v, "deeper", ""), "3!");
    assert_string_equal(sl_json_str(v, "escaped", ""), "${i} $ {i} $x");
    assert_int_equal(sl_json_int(v, "sub.up", 0), 3);
    assert_int_equal(sl_json_int(v, "sub.beside", 0), 3);
    assert_int_equal(json_integer_value(json_array_get(sl_json_get(v, "sub.list"), 0)), 3);
    assert_string_equal(json_string_value(json_array_get(sl_json_get(v, "sub.list"), 1)), "txt");
    assert_string_equal(sl_json_str(v, "w", ""), "v1.0");
    json_decref(v);
}

static void references_that_lead_nowhere(void **state)
{
    static const char *const cases[][2] = {
        {"a: ${b.c}\nb: {d: 1}\n", "a: ${b.c} refers to a key that is not there"},
        {"a: ${m.${.s}}\ns: t\nm: {x: 1}\n", "a: ${m.${.s}} refers to a key that is not there"},
        {"a: {x: '${a.x}'}\n", "refers to itself, or through too many others"},
        {"a: ${b}\nb: ${a}\n", "refers to itself, or through too many others"},
        {"a: ${a}\n", "refers to itself"},
        {"m: {n: '${m}'}\n", "refers to itself"},
        {"a: x${b}\nb: [1]\n", "a: ${b} is a list or a mapping, which a text cannot hold"},
        {"a: ${b}\nb: ?\?\?\n", "a: ${b} refers to a value that is still to be given"},
        {"a: ${oc.env:HOME}\n", "a: ${oc.env:HOME} asks for what is outside of the file"},
        {"a: ${env:X}\n", "asks for what is outside"},
        {"a: ${now:%Y}\n", "asks for what is outside"},
        {"a: x ${b\nb: 1\n", "lacks its }"},
        {"a: ${b\nb: 1\n", "lacks its }"},
        {"a: ${}\n", "names no key"},
        {"a: ${.....b}\nb: 1\n", "has too many dots in front"},
        {"a: [1]\nb: ${a.1}\n", "refers to a key that is not there"},
        {"a: [1]\nb: ${a.x}\n", "refers to a key that is not there"},
        {"a: 1\nb: ${a.x}\n", "refers to a key that is not there"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_err err = SL_ERR_INIT;

        json_decref(resolved(cases[i][0], SL_SPEC, &err));
        if (!strstr(err.msg, cases[i][1]))
            fail_msg("<%s>: \"%s\", not \"%s\"", cases[i][0], err.msg, cases[i][1]);
    }
}

/* Each line doubles the one before it: text or list. */
static void references_do_not_grow_without_end(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_buf b;

    (void)state;
    for (int list = 0; list < 2; list++) {
        sl_buf_init(&b, 65536);
        sl_buf_adds(&b, "a0: xxxxxxxx\n");
        for (int i = 1; i < 31; i++)
            sl_buf_addf(&b, list ? "a%d: ['${a%d}', '${a%d}']\n" : "a%d: '${a%d}${a%d}'\n", i,
                        i - 1, i - 1);
        err = (struct sl_err)SL_ERR_INIT;
        json_decref(resolved(b.p, SL_SPEC, &err));
        assert_non_null(strstr(err.msg, "grow without end"));
        sl_buf_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(references_have_their_values_type),
        cmocka_unit_test(references_that_lead_nowhere),
        cmocka_unit_test(references_do_not_grow_without_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
