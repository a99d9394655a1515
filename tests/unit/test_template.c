/* Prompt templates: what a row becomes, token for token. The tokenizer is byte-level with a few
 * merges (tiny_tokenizer.h), so the expected rows can be written down as text: virtual position k
 * as "<vK>", control tokens by name, a counted token in brackets. */
#include "engine/data/template.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/tiny_tokenizer.h"
#include <cmocka.h>

#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

static struct sl_tokenizer *tok, *bare; /* bare: without BOS and EOS */

static int make_tokenizers(void **state)
{
    (void)state;
    tok = tiny_tokenizer(TINY_BOS, TINY_EOS);
    bare = tiny_tokenizer(-1, -1);
    return 0;
}

static int free_tokenizers(void **state)
{
    (void)state;
    sl_tokenizer_free(tok);
    sl_tokenizer_free(bare);
    return 0;
}

static void show(const struct sl_rendered *r, char *out)
{
    static const char *const names[] = {"[do",   "[dog", "[_dog", "[::", "[aa",
                                        "[aaaa", "BOS",  "EOS",   "MARK"};
    for (int i = 0; i < r->ids.n; i++) {
        int id = r->ids.id[i];
        const char *open = r->target[i] ? "[" : "", *close = r->target[i] ? "]" : "";
        if (id < 0)
            out += sprintf(out, "%s<v%d>%s", open, -id - 1, close);
        else if (id < 256)
            out += sprintf(out, "%s%c%s", open, id, close);
        else if (id < TINY_BOS)
            out += sprintf(out, "%s{%s}%s", open, names[id - 256] + 1, close);
        else
            out += sprintf(out, "%s<%s>%s", open, names[id - 256], close);
    }
    *out = 0;
}

struct how {
    const char *prompt_template, *row;
    int v, split0, split1; /* split0 0: one split of v */
    const char *answer_field, *truncate_field;
    bool answer_only;
    struct sl_render render;
};

/* Renders; returns what sl_template_render returned. */
static int render_with(const struct sl_tokenizer *t, const struct how *h, struct sl_rendered *r,
                       struct sl_err *err)
{
    struct sl_task task = {.name = (char *)"task",
                           .prompt_template = (char *)h->prompt_template,
                           .total_virtual_tokens = h->v,
                           .n_splits = h->v ? 1 : 0,
                           .split = {h->v},
                           .answer_field = (char *)h->answer_field,
                           .truncate_field = (char *)h->truncate_field,
                           .answer_only_loss = h->answer_only};
    struct sl_template *template = NULL;
    json_t *row = json_loads(h->row, JSON_ALLOW_NUL, NULL);
    struct sl_render how = h->render;
    int rc;

    if (h->split0) {
        task.n_splits = 2;
        task.split[0] = h->split0;
        task.split[1] = h->split1;
    }
    if (!how.max_positions)
        how.max_positions = 1000;
    assert_non_null(row);
    rc = sl_template_new(&task, t, &template, err);
    if (!rc)
        rc = sl_template_render(template, row, &how, r, err);
    sl_template_free(template);
    json_decref(row);
    return rc;
}

static void expect(const struct how *h, const char *text)
{
    struct sl_rendered r = {0};
    struct sl_err err = SL_ERR_INIT;
    char seen[4096];

    if (render_with(tok, h, &r, &err))
        fail_msg("%s: %s", h->prompt_template, err.msg);
    show(&r, seen);
    assert_string_equal(seen, text);
    int n = 0;
    for (int i = 0; i < r.ids.n; i++)
        n += r.target[i];
    assert_int_equal(n, r.n_targets);
    sl_rendered_release(&r);
}

static void expect_refusal(const struct how *h, int code, const char *says)
{
    struct sl_rendered r = {0};
    struct sl_err err = SL_ERR_INIT;
    assert_int_equal(render_with(bare, h, &r, &err), code);
    if (!strstr(err.msg, says))
        fail_msg("\"%s\" does not say \"%s\"", err.msg, says);
    sl_rendered_release(&r);
}

#define QA "<|VIRTUAL_PROMPT_0|>{c} Q: {answer}"
#define QA_TASK .v = 2, .answer_field = "answer", .answer_only = true

static void fills_fields_and_counts_the_answer(void **state)
{
    (void)state;
    expect(&(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", QA_TASK}, "<v0><v1>x Q:[{_dog}]");
    expect(
        &(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", QA_TASK, .render = {.add_eos = true}},
        "<v0><v1>x Q:[{_dog}][<EOS>]");
    expect(&(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", QA_TASK,
                         .render = {.add_eos = true, .add_bos = true}},
           "<BOS><v0><v1>x Q:[{_dog}][<EOS>]");
    /* the whole text counts without answer_only_loss; virtual tokens and position 0 never do */
    expect(
        &(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", .v = 1, .render = {.add_eos = true}},
        "<v0>[x][ ][Q][:][{_dog}][<EOS>]");
    expect(
        &(struct how){"{c}<|VIRTUAL_PROMPT_0|>{answer}", "{\"c\":\"xy\",\"answer\":\"z\"}", .v = 1},
        "x[y]<v0>[z]");
    expect(&(struct how){"{c}", "{\"c\":\"xy\"}", .render = {.add_bos = true}}, "<BOS>[x][y]");
}

static void without_an_answer_ends_before_it(void **state)
{
    (void)state;
    const struct sl_render none = {.answer = SL_ANSWER_NONE, .add_eos = true, .add_bos = true};
    expect(&(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", QA_TASK, .render = none},
           "<BOS><v0><v1>x Q:");
    expect(&(struct how){QA, "{\"c\":\"x\"}", QA_TASK, .render = none}, "<BOS><v0><v1>x Q:");
    /* no answer_field: the field that ends the template, unless it is the one to cut */
    expect(&(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", .v = 2, .render = none},
           "<BOS><v0><v1>x Q:");
    expect(&(struct how){"a {c}", "{\"c\":\"x\"}", .truncate_field = "c", .render = none},
           "<BOS>a x");
    /* a missing field is empty; only the ends are stripped */
    expect(&(struct how){" {c}  {d} Q:", "{\"d\":\"y\"}", .render = {.answer = SL_ANSWER_NONE}},
           "y Q:");
    expect(&(struct how){"x {c} Q: ", "{}", .render = {.answer = SL_ANSWER_NONE}}, "x  Q:");
}

static void the_prompt_is_a_prefix_of_the_row(void **state)
{
    static const char *const answers[] = {"dog", "do",  " dog",     "::", "aaaaaa",
                                          "1",   "\\n", "\xc3\xa9", "x y"};
    (void)state;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        char row[100];
        struct sl_rendered full = {0}, prompt = {0};
        snprintf(row, sizeof row, "{\"c\":\"a do\",\"answer\":\"%s\"}", answers[i]);
        struct how h = {QA, row, QA_TASK, .render = {.add_eos = true}};
        assert_int_equal(render_with(tok, &h, &full, NULL), 0);
        h.render.answer = SL_ANSWER_NONE;
        assert_int_equal(render_with(tok, &h, &prompt, NULL), 0);
        assert_false(full.split_boundary);
        assert_int_equal(full.answer_start, prompt.ids.n);
        assert_memory_equal(full.ids.id, prompt.ids.id, sizeof(int32_t) * (size_t)prompt.ids.n);
        assert_int_equal(full.n_targets, full.ids.n - prompt.ids.n);
        sl_rendered_release(&full);
        sl_rendered_release(&prompt);
    }
}

static void a_token_across_the_boundary_is_told(void **state)
{
    struct how h = {"<|VIRTUAL_PROMPT_0|>{c}:{answer}", "{\"c\":\"x\",\"answer\":\":)\"}", QA_TASK};
    struct sl_rendered r = {0};
    (void)state;
    assert_int_equal(render_with(tok, &h, &r, NULL), 0);
    assert_true(r.split_boundary);
    sl_rendered_release(&r);
    expect(&h, "<v0><v1>x[{::}][)]");
}

static void values_are_inserted_once(void **state)
{
    (void)state;
    expect(&(struct how){"{c} {d}", "{\"c\":\"{d}\",\"d\":\"y\"}"}, "{[d][}][ ][y]");
    expect(&(struct how){"{c}", "{\"c\":\"<|VIRTUAL_PROMPT_0|>\"}"},
           "<[|][V][I][R][T][U][A][L][_][P][R][O][M][P][T][_][0][|][>]");
    /* control tokens are the template's alone */
    expect(&(struct how){"<|im_start|>{c}<|im_start|>", "{\"c\":\"<|eos|>\"}"},
           "<MARK>[<][|][e][o][s][|][>][<MARK>]");
    expect(&(struct how){"{\"a\": {c}} {} {c", "{\"c\":\"x\"}"},
           "{[\"][a][\"][:][ ][x][}][ ][{][}][ ][{][c]");
}

static void numbers_are_printed(void **state)
{
    (void)state;
    expect(&(struct how){"{a},{b},{c},{d},{e},{f}",
                         "{\"a\":3,\"b\":-0.1,\"c\":2.0,\"d\":true,\"e\":null,\"f\":1e22}"},
           "3[,][-][0][.][1][,][2][.][0][,][t][r][u][e][,][,][1][e][+][2][2]");
    expect(&(struct how){"x{a}y", "{\"a\":\"p\\u0000q\"}"}, (char[]){'x', '[', 'p', ']', '[', 0});
    expect_refusal(&(struct how){"{a}", "{\"a\":[1]}"}, SL_SPEC, "field \"a\" is an array");
    expect_refusal(&(struct how){"{a}", "{\"a\":{}}"}, SL_SPEC, "field \"a\" is an object");
}

static void markers_number_on_across_splits(void **state)
{
    (void)state;
    expect(&(struct how){"<|VIRTUAL_PROMPT_0|>{c}<|VIRTUAL_PROMPT_1|>{d}",
                         "{\"c\":\"x\",\"d\":\"y\"}", .v = 3, .split0 = 2, .split1 = 1},
           "<v0><v1>[x]<v2>[y]");
    expect(&(struct how){"<|VIRTUAL_PROMPT_1|>{c}<|VIRTUAL_PROMPT_0|>", "{\"c\":\"x\"}", .v = 3,
                         .split0 = 2, .split1 = 1},
           "<v2>[x]<v0><v1>");
    expect_refusal(&(struct how){"<|VIRTUAL_PROMPT_1|>{c}", "{}", .v = 3}, SL_SPEC,
                   "has no virtual token split");
}

static void text_around_a_marker_is_tokenised_as_it_stands(void **state)
{
    (void)state;
    expect(&(struct how){"do<|VIRTUAL_PROMPT_0|>g{c}", "{\"c\":\"\"}", .v = 1}, "{do}<v0>[g]");
    expect(&(struct how){" a <|VIRTUAL_PROMPT_0|> dog {c} ", "{\"c\":\"\"}", .v = 1},
           "a[ ]<v0>[{_dog}]");
    expect(&(struct how){" a <|VIRTUAL_PROMPT_0|> dog {c} ", "{\"c\":\"\"}", .v = 1,
                         .render = {.strip_around_markers = true}},
           "a<v0>[{dog}]");
    /* the untuned model sees the text joined */
    expect(&(struct how){"<|VIRTUAL_PROMPT_0|> do<|VIRTUAL_PROMPT_1|>g{c}", "{\"c\":\"\"}", .v = 2,
                         .split0 = 1, .split1 = 1, .render = {.no_virtual = true}},
           "{dog}");
}

static void scores_a_given_label(void **state)
{
    (void)state;
    const struct sl_render given = {.answer = SL_ANSWER_GIVEN, .given = "do", .add_eos = true};
    expect(&(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", QA_TASK, .render = given},
           "<v0><v1>x Q:[ ][{do}][<EOS>]");
    expect(&(struct how){QA, "{\"c\":\"x\",\"answer\":\"dog\"}", .v = 2, .render = given},
           "<v0><v1>x Q:[ ][{do}][<EOS>]");
}

#define CUT QA, "{\"c\":\"abcdefgh\",\"answer\":\"dog\"}", QA_TASK, .truncate_field = "c"

static void cuts_the_end_of_the_field(void **state)
{
    struct sl_rendered r = {0};
    (void)state;
    /* 2 virtual, 8 + " Q:" + " dog" + EOS = 15 */
    expect(&(struct how){CUT, .render = {.add_eos = true, .max_positions = 15}},
           "<v0><v1>abcdefgh Q:[{_dog}][<EOS>]");
    expect(&(struct how){CUT, .render = {.add_eos = true, .max_positions = 12}},
           "<v0><v1>abcde Q:[{_dog}][<EOS>]");
    expect(&(struct how){CUT, .render = {.add_eos = true, .add_bos = true, .max_positions = 9}},
           "<BOS><v0><v1>a Q:[{_dog}][<EOS>]");
    expect(&(struct how){CUT, .render = {.add_eos = true, .max_positions = 7}},
           "<v0><v1> Q:[{_dog}][<EOS>]");
    struct how h = {CUT, .render = {.add_eos = true, .max_positions = 12}};
    assert_int_equal(render_with(tok, &h, &r, NULL), 0);
    assert_true(r.truncated);
    h.render.max_positions = 6; /* cut to nothing it is still too long */
    assert_int_equal(render_with(tok, &h, &r, NULL), 1);
    h.truncate_field = NULL;
    h.render.max_positions = 14;
    assert_int_equal(render_with(tok, &h, &r, NULL), 1);
    sl_rendered_release(&r);
}

static void cutting_never_leaves_half_a_character(void **state)
{
    (void)state;
    /* four two-byte characters, a token a byte: room for 5 bytes leaves 2 characters */
    struct how h = {"{c}.", "{\"c\":\"\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\"}", .truncate_field = "c",
                    .render = {.max_positions = 6}};
    expect(&h, "\xc3[\xa9][\xc3][\xa9][.]");
}

static void cutting_goes_on_until_it_fits(void **state)
{
    struct sl_rendered r = {0};
    (void)state;
    /* "aaaa" is one token, what is left of it may be several: cutting by the excess once is not
     * enough */
    struct how h = {"{c}aaa", NULL, .truncate_field = "c"};
    char row[100];
    for (int n = 1; n <= 12; n++)
        for (int max = 2; max <= 6; max++) {
            snprintf(row, sizeof row, "{\"c\":\"%.*s\"}", n, "aaaaaaaaaaaa");
            h.row = row;
            h.render.max_positions = max;
            assert_int_equal(render_with(tok, &h, &r, NULL), 0);
            assert_true(r.ids.n <= max);
            assert_int_equal(r.ids.id[r.ids.n - 1] == 'a' || r.ids.id[r.ids.n - 1] >= 256, 1);
        }
    sl_rendered_release(&r);
}

static void refuses_what_it_cannot_render(void **state)
{
    char *big = malloc(SL_RENDER_TEXT_MAX + 100);
    (void)state;
    expect_refusal(&(struct how){"{c}", "{\"c\":\"x\"}", .render = {.add_bos = true}}, SL_SPEC,
                   "no BOS token: set model.data.add_bos=false");
    expect_refusal(&(struct how){"{c}", "{\"c\":\"x\"}", .render = {.add_eos = true}}, SL_SPEC,
                   "no EOS token: set model.data.add_eos=false");
    expect_refusal(&(struct how){"{c}", "{}", .truncate_field = "d"}, SL_SPEC, "no field {d}");
    expect_refusal(&(struct how){"{c}", "{}", .truncate_field = "c", .answer_field = "c"}, SL_SPEC,
                   "are both \"c\"");
    expect_refusal(&(struct how){"{c}.", "{}", .answer_field = "c", .answer_only = true}, SL_SPEC,
                   "ends in the answer field");
    assert_non_null(big);
    memset(big, 'x', SL_RENDER_TEXT_MAX + 50);
    memcpy(big, "{\"c\":\"", 6);
    strcpy(big + SL_RENDER_TEXT_MAX + 50, "\"}");
    expect_refusal(&(struct how){"{c}", big}, SL_SPEC, "the limit is");
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_fields_and_counts_the_answer),
        cmocka_unit_test(without_an_answer_ends_before_it),
        cmocka_unit_test(the_prompt_is_a_prefix_of_the_row),
        cmocka_unit_test(a_token_across_the_boundary_is_told),
        cmocka_unit_test(values_are_inserted_once),
        cmocka_unit_test(numbers_are_printed),
        cmocka_unit_test(markers_number_on_across_splits),
        cmocka_unit_test(text_around_a_marker_is_tokenised_as_it_stands),
        cmocka_unit_test(scores_a_given_label),
        cmocka_unit_test(cuts_the_end_of_the_field),
        cmocka_unit_test(cutting_never_leaves_half_a_character),
        cmocka_unit_test(cutting_goes_on_until_it_fits),
        cmocka_unit_test(refuses_what_it_cannot_render),
    };
    return cmocka_run_group_tests(tests, make_tokenizers, free_tokenizers);
}
