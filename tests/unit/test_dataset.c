/* Data sets: reading, every refusal with its place, counts, order. */
#include "base/file.h"
#include "base/json.h"
#include "engine/data/dataset.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/tiny_tokenizer.h"
#include <cmocka.h>

static char dir[] = "/tmp/sl-dataset-XXXXXX";
static char paths[4][SL_PATH_MAX];
static struct sl_tokenizer *tok;
static struct sl_config config;

#define ROW(c, a) "{\"taskname\":\"qa\",\"c\":\"" c "\",\"answer\":\"" a "\"}"
static const char config_text[] =
    "{\"model\":{\"task_templates\":["
    "{\"taskname\":\"qa\",\"prompt_template\":\"<|VIRTUAL_PROMPT_0|>{c} Q: "
    "{answer}\",\"total_virtual_tokens\":2,"
    "\"truncate_field\":\"c\",\"answer_field\":\"answer\",\"answer_only_loss\":true},"
    "{\"taskname\":\"plain\",\"prompt_template\":\"<|VIRTUAL_PROMPT_0|>{text}\",\"total_virtual_"
    "tokens\":2}]}}";

static void configure(const char *text)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *json = json_loads(text, 0, NULL);
    sl_config_release(&config);
    if (sl_config_parse(json, &config, &err))
        fail_msg("%s", err.msg);
    json_decref(json);
}

static int set_up(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 4; i++)
        snprintf(paths[i], SL_PATH_MAX, "%s/f%d.jsonl", dir, i);
    tok = tiny_tokenizer(TINY_BOS, TINY_EOS);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    sl_tokenizer_free(tok);
    sl_config_release(&config);
    return sl_rmtree(dir, NULL);
}

static int plain_config(void **state)
{
    (void)state;
    configure(config_text);
    return 0;
}

static void put(int file, const char *text)
{
    assert_int_equal(sl_file_write(paths[file], text, strlen(text), NULL), 0);
}

static int open_with(int n_files, enum sl_answer answer, int max_positions, struct sl_dataset **ds,
                     struct sl_err *err)
{
    const char *list[4] = {paths[0], paths[1], paths[2], paths[3]};
    struct sl_dataset_options options = {.answer = answer, .max_positions = max_positions};
    return sl_dataset_open(list, n_files, &config, tok, &options, ds, err);
}

static struct sl_dataset *open_files(int n_files, int max_positions)
{
    struct sl_dataset *ds = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (open_with(n_files, SL_ANSWER_ROW, max_positions, &ds, &err))
        fail_msg("%s", err.msg);
    return ds;
}

static void field_is(const struct sl_dataset *ds, int row, const char *field, const char *value)
{
    json_t *json = NULL;
    assert_int_equal(sl_dataset_json(ds, row, &json, NULL), 0);
    assert_string_equal(sl_json_str(json, field, "?"), value);
    json_decref(json);
}

static void reads_lines_lists_and_several_files(void **state)
{
    (void)state;
    put(0,
        ROW("a", "1") "\r\n\n  \n" ROW("b", "2")); /* blank lines, CR LF, no newline at the end */
    put(1, "\xef\xbb\xbf [\n" ROW("c", "3") " ,\n" ROW("\xc3\xa9\xe2\x82\xac",
                                                       "5") ",\n" ROW("d]}", "4") "\n]\n");
    put(2, "");
    put(3, "[]");
    struct sl_dataset *ds = open_files(4, 100);
    struct sl_buf where;
    assert_int_equal(sl_dataset_rows(ds), 5);
    field_is(ds, 0, "c", "a");
    field_is(ds, 1, "answer", "2");
    field_is(ds, 2, "c", "c");
    field_is(ds, 3, "c", "\xc3\xa9\xe2\x82\xac");
    field_is(ds, 4, "c", "d]}");
    sl_buf_init(&where, 4096);
    sl_dataset_where(ds, 1, &where);
    assert_non_null(strstr(where.p, "/f0.jsonl:4"));
    sl_buf_reset(&where);
    sl_dataset_where(ds, 3, &where);
    assert_non_null(strstr(where.p, "/f1.jsonl: row 2"));
    sl_buf_release(&where);
    sl_dataset_free(ds);
}

static void rows_are_ids_targets_and_tasks(void **state)
{
    static const int32_t ids[] = {-1, -2, 'x', ' ', 'Q', ':', TINY_SP_DOG, TINY_EOS};
    static const unsigned char target[] = {0, 0, 0, 0, 0, 0, 1, 1};
    (void)state;
    put(0, "{\"taskname\":\"plain\",\"text\":\"y\"}\n"
           "{\"taskname\":\"qa\",\"c\":\"x\",\"answer\":\"dog\",\"extra\":[1,{\"deep\":2}]}\n");
    struct sl_dataset *ds = open_files(1, 100);
    struct sl_row row = sl_dataset_row(ds, 1);
    assert_int_equal(row.slot, 0);
    assert_int_equal(row.n, 8);
    assert_memory_equal(row.id, ids, sizeof ids);
    assert_memory_equal(row.target, target, sizeof target);
    assert_int_equal(sl_dataset_row_targets(ds, 1), 2);
    row = sl_dataset_row(ds, 0);
    assert_int_equal(row.slot, 1);
    assert_int_equal(row.n, 4);
    assert_int_equal(row.target[2], 1);
    struct sl_dataset_counts n = sl_dataset_counts(ds);
    assert_int_equal(n.read, 2);
    assert_int_equal(n.rows, 2);
    assert_int_equal(n.positions, 12);
    assert_int_equal(n.targets, 4);
    assert_int_equal(n.truncated + n.too_long + n.too_short + n.split_boundary, 0);
    sl_dataset_free(ds);
}

static void refuses_with_file_line_and_reason(void **state)
{
    static const struct {
        const char *text;
        int code;
        const char *says[3];
    } bad[] = {
        {ROW("a", "1") "\n{\"c\":\"b\",\"answer\":\"2\"}\n",
         SL_SPEC,
         {"/f0.jsonl:2: ", "no \"taskname\"", "\"qa\", \"plain\""}},
        {"{\"taskname\":3}", SL_SPEC, {"/f0.jsonl:1: ", "\"taskname\" is not a string"}},
        {ROW("a", "1") "\n" ROW("a", "1") "\n{\"taskname\":\"squad\"}",
         SL_SPEC,
         {"/f0.jsonl:3: ", "unknown task \"squad\"", "known tasks: \"qa\""}},
        {ROW("a", "1") "\n{\"taskname\":\"qa\",\"c\":\"b\"}",
         SL_SPEC,
         {"/f0.jsonl:2: ", "no \"answer\"", "answer_field"}},
        {ROW("a", "1") "\n{\"taskname\":\"qa\",\"c\":\"b\",\"answer\":null}",
         SL_SPEC,
         {"/f0.jsonl:2: ", "no \"answer\""}},
        {"{\"taskname\":\"qa\",\"context\":\"b\",\"answer\":\"x\"}",
         SL_SPEC,
         {"/f0.jsonl", "has {c}, which none of its 1 rows has",
          "its first row has: taskname, context, answer"}},
        {"{\"taskname\":\"qa\",\"c\":[\"b\"],\"answer\":\"x\"}",
         SL_SPEC,
         {"/f0.jsonl:1: ", "\"c\" is an array"}},
        {ROW("a", "1") "\n{\"taskname\":\"qa\",", SL_DATA, {"/f0.jsonl:2: ", "not valid JSON"}},
        {ROW("a", "1") " " ROW("b", "2"), SL_DATA, {"/f0.jsonl:1: ", "not valid JSON"}},
        {"{\"taskname\":\"qa\",\"taskname\":\"qa\"}", SL_DATA, {"/f0.jsonl:1: ", "duplicate"}},
        {"{\"taskname\":\"q\xff\"}", SL_DATA, {"/f0.jsonl:1: ", "unable to decode byte 0xff"}},
        {ROW("a", "1") "\n\"text\"", SL_DATA, {"/f0.jsonl:2: "}},
        {ROW("a", "1") "\n[1]",
         SL_DATA,
         {"/f0.jsonl:2: ", "a row is a JSON object, this is a list"}},
        {"[" ROW("a", "1") ",", SL_DATA, {"/f0.jsonl: row 2: ", "is the file truncated?"}},
        {"[" ROW("a", "1"), SL_DATA, {"/f0.jsonl: row 1: ", "is the file truncated?"}},
        {"[" ROW("a", "1") ROW("a", "1") "]",
         SL_DATA,
         {"/f0.jsonl: row 1: ", "expected \",\" or \"]\""}},
        {"[" ROW("a", "1") ",3]", SL_DATA, {"/f0.jsonl: row 2: ", "starts with \"3\""}},
        {"[" ROW("a", "1") ",{\"taskname\":\"no\"}]",
         SL_SPEC,
         {"/f0.jsonl: row 2: ", "unknown task \"no\""}},
        {"[" ROW("a", "1") "] x", SL_DATA, {"/f0.jsonl: ", "text behind the list"}},
        {"[] x", SL_DATA, {"/f0.jsonl: ", "text behind the list"}},
        {"", SL_SPEC, {"/f0.jsonl: ", "no row is left of 0"}},
        {"\n\n", SL_SPEC, {"/f0.jsonl: ", "no row is left of 0"}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_dataset *ds = NULL;
        struct sl_err err = SL_ERR_INIT;
        put(0, bad[i].text);
        assert_int_equal(open_with(1, SL_ANSWER_ROW, 100, &ds, &err), bad[i].code);
        assert_null(ds);
        for (int k = 0; k < 3 && bad[i].says[k]; k++)
            if (!strstr(err.msg, bad[i].says[k]))
                fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].text, err.msg, bad[i].says[k]);
    }
}

static void a_bad_line_417_is_named(void **state)
{
    struct sl_buf text;
    struct sl_dataset *ds = NULL;
    struct sl_err err = SL_ERR_INIT;
    (void)state;
    sl_buf_init(&text, 1u << 20);
    for (int line = 1; line <= 1000; line++)
        sl_buf_adds(&text, line == 417 ? "{\"taskname\": \"qa\", oops}\n" : ROW("a", "1") "\n");
    put(0, text.p);
    assert_int_equal(open_with(1, SL_ANSWER_ROW, 100, &ds, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "/f0.jsonl:417: not valid JSON"));
    sl_buf_release(&text);
}

static void a_missing_file_and_a_long_line(void **state)
{
    struct sl_dataset *ds = NULL;
    struct sl_err err = SL_ERR_INIT;
    size_t n = SL_DATASET_LINE_MAX + 100;
    char *big = malloc(n + 1);
    (void)state;
    sl_rmtree(paths[0], NULL);
    assert_int_equal(open_with(1, SL_ANSWER_ROW, 100, &ds, &err), SL_NOTFOUND);
    assert_non_null(strstr(err.msg, "/f0.jsonl"));
    assert_non_null(big);
    for (int list = 0; list < 2; list++) {
        memset(big, 'x', n);
        memcpy(big, list ? "[{\"c\":\"" : "{ \"c\":\"", 7);
        strcpy(big + n - 3, list ? "\"}]" : "\"} ");
        put(0, big);
        sl_err_clear(&err);
        assert_int_equal(open_with(1, SL_ANSWER_ROW, 100, &ds, &err), SL_DATA);
        if (!strstr(err.msg, list ? "row 1: the row has over 4194304 bytes" : ":1: the line has"))
            fail_msg("%s", err.msg);
    }
    free(big);
}

static void an_empty_answer_without_eos_teaches_nothing(void **state)
{
    struct sl_dataset *ds = NULL;
    struct sl_err err = SL_ERR_INIT;
    (void)state;
    put(0, ROW("a", "1") "\n" ROW("a", ""));
    ds = open_files(1, 100); /* EOS alone counts */
    assert_int_equal(sl_dataset_row_targets(ds, 1), 1);
    sl_dataset_free(ds);
    ds = NULL;
    config.data.add_eos = false;
    assert_int_equal(open_with(1, SL_ANSWER_ROW, 100, &ds, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, ":2: nothing in the row counts in the loss"));
}

static void a_field_that_only_some_rows_have_is_fine(void **state)
{
    (void)state;
    put(0, ROW("a", "1") "\n{\"taskname\":\"qa\",\"answer\":\"2\"}");
    struct sl_dataset *ds = open_files(1, 100);
    assert_int_equal(sl_dataset_rows(ds), 2);
    sl_dataset_free(ds);
}

static void cuts_skips_and_counts(void **state)
{
    (void)state;
    /* positions: 2 virtual, context, " Q:" 3, " 1" 2, EOS */
    put(0,
        ROW("abcdefgh", "1") "\n" ROW("ab", "1") "\n" ROW("a", "1234567") "\n" ROW("", "1") "\n");
    struct sl_dataset *ds = open_files(1, 10);
    struct sl_dataset_counts n = sl_dataset_counts(ds);
    assert_int_equal(n.read, 4);
    assert_int_equal(n.rows, 3);
    assert_int_equal(n.truncated, 1);
    assert_int_equal(n.too_long, 1);
    assert_int_equal(sl_dataset_row(ds, 0).n, 10);
    assert_false(sl_dataset_mostly_skipped(ds));
    sl_dataset_free(ds);

    config.data.min_seq_length = 9;
    ds = open_files(1, 10);
    n = sl_dataset_counts(ds);
    assert_int_equal(n.rows, 2);
    assert_int_equal(n.too_short, 1);
    assert_int_equal(n.too_long, 1);
    assert_false(sl_dataset_mostly_skipped(ds)); /* half is not more than half */
    sl_dataset_free(ds);

    put(1, ROW("", "1") "\n");
    ds = open_files(2, 10);
    assert_true(sl_dataset_mostly_skipped(ds));
    sl_dataset_free(ds);

    struct sl_err err = SL_ERR_INIT;
    config.data.min_seq_length = 11;
    assert_int_equal(open_with(1, SL_ANSWER_ROW, 10, &ds, &err), SL_SPEC);
    assert_non_null(
        strstr(err.msg, "no row is left of 4: 1 are longer than 10 positions, 3 shorter"));
}

static void prompts_need_no_answer(void **state)
{
    static const int32_t ids[] = {-1, -2, 'x', ' ', 'Q', ':'};
    struct sl_dataset *ds = NULL;
    struct sl_rendered r = {0};
    (void)state;
    put(0, "{\"taskname\":\"qa\",\"c\":\"x\"}\n" ROW("x", "dog"));
    assert_int_equal(open_with(1, SL_ANSWER_NONE, 100, &ds, NULL), 0);
    for (int i = 0; i < 2; i++) {
        struct sl_row row = sl_dataset_row(ds, i);
        assert_int_equal(row.n, 6);
        assert_memory_equal(row.id, ids, sizeof ids);
        assert_int_equal(sl_dataset_row_targets(ds, i), 0);
    }
    field_is(ds, 1, "answer", "dog");
    /* a label to score */
    assert_int_equal(sl_dataset_render(ds, 0, SL_ANSWER_GIVEN, "dog", &r, NULL), 0);
    assert_int_equal(r.ids.n, 8);
    assert_int_equal(r.ids.id[6], TINY_SP_DOG);
    assert_int_equal(r.ids.id[7], TINY_EOS);
    assert_int_equal(r.n_targets, 2);
    sl_rendered_release(&r);
    sl_dataset_free(ds);
}

static void the_untuned_model_sees_no_virtual_tokens(void **state)
{
    const char *list[] = {paths[0]};
    struct sl_dataset_options options = {
        .answer = SL_ANSWER_NONE, .no_virtual = true, .max_positions = 100};
    struct sl_dataset *ds = NULL;
    (void)state;
    put(0, ROW("x", "dog"));
    assert_int_equal(sl_dataset_open(list, 1, &config, tok, &options, &ds, NULL), 0);
    struct sl_row row = sl_dataset_row(ds, 0);
    assert_int_equal(row.n, 4);
    for (int i = 0; i < row.n; i++)
        assert_true(row.id[i] >= 0);
    sl_dataset_free(ds);
}

static void the_order_is_a_function_of_seed_and_epoch(void **state)
{
    enum { N = 1000 };
    static int a[N], b[N], seen[N];
    struct sl_buf text;
    int moved = 0, same = 0;
    (void)state;

    sl_buf_init(&text, 1u << 20);
    for (int i = 0; i < N; i++)
        sl_buf_adds(&text, ROW("a", "1") "\n");
    put(0, text.p);
    sl_buf_release(&text);
    struct sl_dataset *ds = open_files(1, 100);

    sl_dataset_order(ds, 1234, 0, false, a);
    for (int i = 0; i < N; i++)
        assert_int_equal(a[i], i);
    sl_dataset_order(ds, 1234, 0, true, a);
    sl_dataset_order(ds, 1234, 0, true, b);
    assert_memory_equal(a, b, sizeof a);
    for (int i = 0; i < N; i++) {
        assert_in_range(a[i], 0, N - 1);
        seen[a[i]]++;
        moved += a[i] != i;
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(seen[i], 1);
    assert_true(moved > N - 20);
    sl_dataset_order(ds, 1234, 1, true, b);
    for (int i = 0; i < N; i++)
        same += a[i] == b[i];
    assert_true(same < 20);
    sl_dataset_order(ds, 1235, 0, true, b);
    for (int i = same = 0; i < N; i++)
        same += a[i] == b[i];
    assert_true(same < 20);
    sl_dataset_free(ds);
}

/* Resuming and other machines depend on these very numbers. */
static void the_order_never_changes_between_versions(void **state)
{
    int order[8];
    (void)state;
    put(0, ROW("a", "1") "\n" ROW("a", "1") "\n" ROW("a", "1") "\n" ROW("a", "1") "\n" ROW(
               "a", "1") "\n" ROW("a", "1") "\n" ROW("a", "1") "\n" ROW("a", "1") "\n");
    struct sl_dataset *ds = open_files(1, 100);
    sl_dataset_order(ds, 1234, 3, true, order);
    const int expected[8] = {3, 4, 2, 5, 1, 7, 6, 0};
    assert_memory_equal(order, expected, sizeof order);
    sl_dataset_free(ds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(reads_lines_lists_and_several_files, plain_config),
        cmocka_unit_test_setup(rows_are_ids_targets_and_tasks, plain_config),
        cmocka_unit_test_setup(refuses_with_file_line_and_reason, plain_config),
        cmocka_unit_test_setup(a_bad_line_417_is_named, plain_config),
        cmocka_unit_test_setup(a_missing_file_and_a_long_line, plain_config),
        cmocka_unit_test_setup(an_empty_answer_without_eos_teaches_nothing, plain_config),
        cmocka_unit_test_setup(a_field_that_only_some_rows_have_is_fine, plain_config),
        cmocka_unit_test_setup(cuts_skips_and_counts, plain_config),
        cmocka_unit_test_setup(prompts_need_no_answer, plain_config),
        cmocka_unit_test_setup(the_untuned_model_sees_no_virtual_tokens, plain_config),
        cmocka_unit_test_setup(the_order_is_a_function_of_seed_and_epoch, plain_config),
        cmocka_unit_test_setup(the_order_never_changes_between_versions, plain_config),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
