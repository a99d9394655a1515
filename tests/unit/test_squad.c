/* SQuAD preprocessing, on a made-up file of four articles. */
#include "base/file.h"
#include "base/json.h"
#include "engine/data/data.h"
#include "engine/data/squad.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* v1.1: no is_impossible, one answer each */
static const char v1[] =
    "{\"version\": \"1.1\", \"data\": ["
    "{\"title\": \"Teapots\", \"paragraphs\": [{\"context\": \"A teapot is brown.\", \"qas\": ["
    "{\"id\": \"a\", \"question\": \"Colour?\", \"answers\": [{\"text\": \"brown\", "
    "\"answer_start\": 12}]},"
    "{\"id\": \"b\", \"question\": \"What is \\\"it\\\"?\", \"answers\": [{\"text\": \"A teapot\", "
    "\"answer_start\": 0}]}]},"
    "{\"context\": \"Caf\\u00e9 \\u6771\\nline\", \"qas\": ["
    "{\"id\": \"c\", \"question\": \"Where?\", \"answers\": [{\"text\": \"Caf\\u00e9\", "
    "\"answer_start\": 0}]}]}]},"
    "{\"title\": \"Empty\", \"paragraphs\": []}]}";

/* v2.0: several answers, questions without one */
static const char v2[] =
    "{\"version\": \"v2.0\", \"data\": ["
    "{\"title\": \"One\", \"paragraphs\": [{\"context\": \"c1\", \"qas\": ["
    "{\"question\": \"q1\", \"id\": \"1\", \"answers\": [{\"text\": \"x\", \"answer_start\": 0}, "
    "{\"text\": \"y z\", "
    "\"answer_start\": 1}], \"is_impossible\": false},"
    "{\"question\": \"q2\", \"id\": \"2\", \"plausible_answers\": [{\"text\": \"no\", "
    "\"answer_start\": 0}], "
    "\"answers\": [], \"is_impossible\": true}]}]},"
    "{\"title\": \"Two\", \"paragraphs\": [{\"context\": \"c2\", \"qas\": ["
    "{\"question\": \"q3\", \"id\": \"3\", \"answers\": [{\"text\": \" s \", \"answer_start\": "
    "0}], \"is_impossible\": false}]}]},"
    "{\"title\": \"Three\", \"paragraphs\": [{\"context\": \"c3\", \"qas\": ["
    "{\"question\": \"q4\", \"id\": \"4\", \"answers\": [{\"text\": \"t\", \"answer_start\": 0}]},"
    "{\"question\": \"q5\", \"id\": \"5\", \"answers\": []}]}]}]}";

static char dir[] = "/tmp/sl-squad-XXXXXX", path_1[64], path_2[64], out[64];

static void put(const char *path, const char *text)
{
    assert_int_equal(sl_file_write(path, text, strlen(text), NULL), 0);
}

static int make_dir(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path_1, sizeof path_1, "%s/v1.json", dir);
    snprintf(path_2, sizeof path_2, "%s/v2.json", dir);
    snprintf(out, sizeof out, "%s/new/out", dir);
    put(path_1, v1);
    put(path_2, v2);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

static void file_is(const char *name, const char *want)
{
    char path[128];
    struct sl_buf b;

    snprintf(path, sizeof path, "%s/%s.jsonl", out, name);
    sl_buf_init(&b, 1u << 20);
    assert_int_equal(sl_file_read(path, &b, NULL), 0);
    assert_string_equal(b.p, want);
    sl_buf_release(&b);
}

static void train_and_dev(void **state)
{
    struct sl_squad squad = {.train = path_1, .dev = path_2, .out_dir = out, .name = "squad"};
    int rows[SL_SQUAD_FILES];

    (void)state;
    assert_int_equal(sl_squad_write(&squad, rows, NULL), 0);
    file_is("squad_train", "{\"taskname\": \"squad\", \"context\": \"A teapot is brown.\", "
                           "\"question\": \"Colour?\", \"answer\": \"brown\"}\n"
                           "{\"taskname\": \"squad\", \"context\": \"A teapot is brown.\", "
                           "\"question\": \"What is \\\"it\\\"?\", "
                           "\"answer\": \"A teapot\"}\n"
                           "{\"taskname\": \"squad\", \"context\": \"Caf\xc3\xa9 "
                           "\xe6\x9d\xb1\\nline\", \"question\": \"Where?\", "
                           "\"answer\": \"Caf\xc3\xa9\"}\n");
    file_is(
        "squad_val",
        "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q1\", \"answer\": \"x\"}\n"
        "{\"taskname\": \"squad\", \"context\": \"c2\", \"question\": \"q3\", \"answer\": \" s "
        "\"}\n"
        "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q4\", \"answer\": "
        "\"t\"}\n");
    file_is("squad_test", "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q1\"}\n"
                          "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q2\"}\n"
                          "{\"taskname\": \"squad\", \"context\": \"c2\", \"question\": \"q3\"}\n"
                          "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q4\"}\n"
                          "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q5\"}\n");
    file_is(
        "squad_test_ground_truth",
        "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q1\", \"answer\": [\"x\", "
        "\"y z\"]}\n"
        "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q2\", \"answer\": []}\n"
        "{\"taskname\": \"squad\", \"context\": \"c2\", \"question\": \"q3\", \"answer\": [\" s "
        "\"]}\n"
        "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q4\", \"answer\": "
        "[\"t\"]}\n"
        "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q5\", \"answer\": []}\n");
    assert_true(rows[SL_SQUAD_TRAIN] == 3 && rows[SL_SQUAD_VAL] == 3 && rows[SL_SQUAD_TEST] == 5 &&
                rows[SL_SQUAD_SHORT_TRAIN] == 0);
}

static void one_file_is_split_by_article(void **state)
{
    struct sl_squad squad = {.train = path_2,
                             .validation_articles = 1,
                             .test_articles = 1,
                             .out_dir = out,
                             .name = "s2",
                             .topic = true,
                             .subset = 1};
    int rows[SL_SQUAD_FILES];
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    assert_int_equal(sl_squad_write(&squad, rows, NULL), 0);
    file_is(
        "s2_train",
        "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q1\", \"answer\": \"x\", "
        "\"topic\": \"One\"}\n");
    file_is(
        "s2_val",
        "{\"taskname\": \"squad\", \"context\": \"c2\", \"question\": \"q3\", \"answer\": \" s \", "
        "\"topic\": \"Two\"}\n");
    file_is("s2_test", "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q4\", "
                       "\"topic\": \"Three\"}\n"
                       "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q5\", "
                       "\"topic\": \"Three\"}\n");
    assert_int_equal(rows[SL_SQUAD_SHORT_TRAIN], 1);
    squad.test_articles = 2;
    assert_int_equal(sl_squad_write(&squad, rows, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "has 3 articles: 1 for validation and 2 for test leave none"));
}

static void a_subset_is_the_first_rows(void **state)
{
    struct sl_squad squad = {
        .train = path_1, .dev = path_2, .out_dir = out, .name = "n", .subset = 2};
    int rows[SL_SQUAD_FILES];

    (void)state;
    assert_int_equal(sl_squad_write(&squad, rows, NULL), 0);
    file_is("n_short_train", "{\"taskname\": \"squad\", \"context\": \"A teapot is brown.\", "
                             "\"question\": \"Colour?\", \"answer\": \"brown\"}\n"
                             "{\"taskname\": \"squad\", \"context\": \"A teapot is brown.\", "
                             "\"question\": \"What is \\\"it\\\"?\", "
                             "\"answer\": \"A teapot\"}\n");
    squad.subset = 25; /* more than there are; a tenth of them for validation */
    assert_int_equal(sl_squad_write(&squad, rows, NULL), 0);
    assert_true(rows[SL_SQUAD_SHORT_TRAIN] == 3 && rows[SL_SQUAD_SHORT_VAL] == 2);
}

static void refused(const char *text, int code, const char *message)
{
    struct sl_squad squad = {.train = path_1, .dev = path_2, .out_dir = out, .name = "bad"};
    int rows[SL_SQUAD_FILES] = {7};
    struct sl_err err = SL_ERR_INIT;
    int rc;

    put(path_2, text);
    rc = sl_squad_write(&squad, rows, &err);
    if (rc != code || err.code != code || rows[0] != 7 || !strstr(err.msg, message) ||
        !strstr(err.msg, path_2))
        fail_msg("<%.40s>: %d \"%s\", not \"%s\"", text, rc, err.msg, message);
    put(path_2, v2);
}

static void what_is_no_squad_is_refused(void **state)
{
    struct sl_squad squad = {.train = "no/such.json", .dev = path_2, .out_dir = out, .name = "bad"};
    int rows[SL_SQUAD_FILES];
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    refused("{", SL_DATA, "line 1");
    refused("[]", SL_DATA, "data should be a list");
    refused("{\"data\": {}}", SL_DATA, "data should be a list");
    refused("{\"data\": [1]}", SL_DATA, "data[0].title should be a text");
    refused("{\"data\": [{\"title\": \"t\"}]}", SL_DATA, "data[0].paragraphs should be a list");
    refused("{\"data\": [{\"title\": \"t\", \"paragraphs\": [{\"context\": 3}]}]}", SL_DATA,
            "data[0].paragraphs[0].context should be a text");
    refused("{\"data\": [{\"title\": \"t\", \"paragraphs\": [{\"context\": \"c\"}]}]}", SL_DATA,
            "data[0].paragraphs[0].qas should be a list");
    refused(
        "{\"data\": [{\"title\": \"t\", \"paragraphs\": [{\"context\": \"c\", \"qas\": [{}]}]}]}",
        SL_DATA, "data[0].paragraphs[0].qas[0].question should be a text");
    refused("{\"data\": [{\"title\": \"t\", \"paragraphs\": [{\"context\": \"c\", \"qas\": "
            "[{\"question\": \"q\"}]}]}]}",
            SL_DATA, "data[0].paragraphs[0].qas[0].answers should be a list");
    refused("{\"data\": [{\"title\": \"t\", \"paragraphs\": [{\"context\": \"c\", \"qas\": "
            "[{\"question\": \"q\", "
            "\"answers\": [\"x\"]}]}]}]}",
            SL_DATA, "data[0].paragraphs[0].qas[0].text should be a text");
    assert_int_equal(sl_squad_write(&squad, rows, &err), SL_NOTFOUND);
}

static int command(char *a, char *b, char *c, char *d, char *e, char *f, char *g, char *h)
{
    char *argv[] = {"squad", a, b, c, d, e, f, g, h, NULL};
    int argc = 0;

    while (argv[argc])
        argc++;
    return sl_data_squad(argc, argv);
}

static void the_command(void **state)
{
    (void)state;
    assert_int_equal(command("--train", path_1, "--dev", path_2, "--out", out, "--name", "cmd"), 0);
    file_is(
        "cmd_val",
        "{\"taskname\": \"squad\", \"context\": \"c1\", \"question\": \"q1\", \"answer\": \"x\"}\n"
        "{\"taskname\": \"squad\", \"context\": \"c2\", \"question\": \"q3\", \"answer\": \" s "
        "\"}\n"
        "{\"taskname\": \"squad\", \"context\": \"c3\", \"question\": \"q4\", \"answer\": "
        "\"t\"}\n");
    assert_int_equal(command("--train", path_2, "--articles", "1,1", "--out", out, "--subset", "2"),
                     0);
    assert_int_equal(command("--train", path_2, "--articles", "1", "--out", out, NULL, NULL), 2);
    assert_int_equal(command("--train", path_2, "--articles", "1,-1", "--out", out, NULL, NULL), 2);
    assert_int_equal(command("--train", path_2, "--out", out, NULL, NULL, NULL, NULL), 2);
    assert_int_equal(command("--train", path_2, "--dev", path_2, "--out", out, "--articles", "1,1"),
                     2);
    assert_int_equal(command("--train", path_1, "--dev", path_2, "--out", out, "--subset", "0"), 2);
    assert_int_equal(command("--dev", path_2, "--out", out, NULL, NULL, NULL, NULL), 2);
    assert_int_equal(command("--train", out, "--dev", path_2, "--out", out, NULL, NULL), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(train_and_dev),
        cmocka_unit_test(one_file_is_split_by_article),
        cmocka_unit_test(a_subset_is_the_first_rows),
        cmocka_unit_test(what_is_no_squad_is_refused),
        cmocka_unit_test(the_command),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
