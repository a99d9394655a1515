/* The WordNet data set: what its splits promise, from Debian's wordnet-base; and that SmolLM2's
 * tokenizer makes every prompt a prefix of its row in training (SL_MODEL). From the root of the
 * tree. */
#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/data/dataset.h"
#include "engine/weights.h"
#include "engine/data/wordnet.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define WORDNET "/usr/share/wordnet"

static char dir[] = "/tmp/sl-wordnet-XXXXXX";
static const char *const names[] = {"train", "validation", "test"};

static int set_up(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

static const char *under(const char *name)
{
    static char path[4][SL_PATH_MAX];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], SL_PATH_MAX, "%s/%s", dir, name);
    return path[next];
}

static void need_wordnet(void)
{
    if (!sl_file_exists(WORDNET "/data.noun")) {
        print_message("not run: no " WORDNET "/data.noun (Debian: wordnet-base)\n");
        skip();
    }
}

static void write_set(const char *name, uint64_t seed, const struct sl_wordnet_sizes *sizes)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_wordnet_write(WORDNET, under(name), seed, sizes, &err))
        fail_msg("%s", err.msg);
}

/* All rows of a file, as an array. */
static json_t *rows_of(const char *name)
{
    json_t *rows = json_array();
    char line[4096];
    FILE *f = fopen(under(name), "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        json_array_append_new(rows, row);
    }
    fclose(f);
    return rows;
}

static void count(json_t *counts, const char *key)
{
    json_object_set_new(counts, key,
                        json_integer(json_integer_value(json_object_get(counts, key)) + 1));
}

/* Each class of a task has the same count, and there are so many classes. */
static void equal_counts(const json_t *rows, const char *task, int n_rows, int n_classes)
{
    json_t *counts = json_object(), *row, *n;
    const char *key;
    size_t i;
    json_array_foreach((json_t *)rows, i, row) if (!strcmp(sl_json_str(row, "taskname", ""), task))
        count(counts, sl_json_str(row, "answer", ""));
    assert_int_equal(json_object_size(counts), n_classes);
    json_object_foreach(counts, key, n) assert_int_equal(json_integer_value(n), n_rows / n_classes);
    json_decref(counts);
}

static void splits_share_nothing_and_are_balanced(void **state)
{
    struct sl_wordnet_sizes sizes = SL_WORDNET_SIZES_DEFAULT;
    json_t *synsets = json_object(), *contexts = json_object(), *row;
    size_t i;
    (void)state;

    need_wordnet();
    write_set("set", 1234, &sizes);
    for (int s = 0; s < 3; s++) {
        char name[64];
        snprintf(name, sizeof name, "set/%s.jsonl", names[s]);
        json_t *rows = rows_of(name);
        assert_int_equal(json_array_size(rows), sizes.category[s] + sizes.part_of_speech[s]);
        equal_counts(rows, "category", sizes.category[s], 12);
        equal_counts(rows, "part_of_speech", sizes.part_of_speech[s], 4);
        json_array_foreach(rows, i, row)
        {
            const char *synset = sl_json_str(row, "synset", ""),
                       *context = sl_json_str(row, "context", "");
            assert_int_equal(strlen(synset), 9);
            /* over all files and both tasks */
            assert_null(json_object_get(synsets, synset));
            assert_null(json_object_get(contexts, context));
            json_object_set_new(synsets, synset, json_true());
            json_object_set_new(contexts, context, json_true());
            assert_in_range(strlen(context), 10, 200);
            assert_null(strstr(context, "; \""));
            /* the question lists the labels */
            assert_non_null(
                strstr(sl_json_str(row, "question", ""), sl_json_str(row, "answer", "?")));
        }
        json_decref(rows);
    }
    assert_true(sizes.category[SL_WORDNET_TEST] >= 200 &&
                sizes.part_of_speech[SL_WORDNET_TEST] >= 200);
    json_decref(synsets);
    json_decref(contexts);
}

static void answers_are_wordnets_own(void **state)
{
    /* known entries of WordNet 3.0: a gloss and its lexicographer file, by synset */
    json_t *rows, *row;
    struct sl_wordnet_sizes sizes = SL_WORDNET_SIZES_DEFAULT;
    int checked = 0;
    size_t i;
    (void)state;

    need_wordnet();
    write_set("set", 1234, &sizes);
    rows = rows_of("set/train.jsonl");
    struct sl_buf noun;
    sl_buf_init(&noun, 64u << 20);
    assert_int_equal(sl_file_read(WORDNET "/data.noun", &noun, NULL), 0);
    json_array_foreach(rows, i, row)
    {
        const char *synset = sl_json_str(row, "synset", ""),
                   *context = sl_json_str(row, "context", "");
        char start[16], gloss[256], *line, *bar;
        if (strcmp(sl_json_str(row, "taskname", ""), "category") || checked == 300)
            continue;
        snprintf(start, sizeof start, "\n%s ", synset + 1);
        line = strstr(noun.p, start);
        assert_non_null(line);
        bar = strchr(line + 1, '|');
        snprintf(gloss, sizeof gloss, "| %s", context);
        assert_int_equal(strncmp(bar, gloss, strlen(gloss)), 0);
        static const struct {
            const char *file, *word;
        } files[] = {{"04", "act"},       {"05", "animal"},    {"06", "artifact"},
                     {"07", "attribute"}, {"09", "cognition"}, {"10", "communication"},
                     {"13", "food"},      {"14", "group"},     {"15", "location"},
                     {"18", "person"},    {"20", "plant"},     {"26", "state"},
                     {"27", "substance"}};
        for (size_t k = 0; k < sizeof files / sizeof *files; k++)
            if (!strncmp(line + 10, files[k].file, 2)) {
                assert_string_equal(sl_json_str(row, "answer", ""), files[k].word);
                checked++;
            }
    }
    assert_int_equal(checked, 300);
    sl_buf_release(&noun);
    json_decref(rows);
}

static void same_file(const char *a, const char *b, bool same)
{
    struct sl_buf x, y;
    sl_buf_init(&x, 16u << 20);
    sl_buf_init(&y, 16u << 20);
    assert_int_equal(sl_file_read(under(a), &x, NULL), 0);
    assert_int_equal(sl_file_read(under(b), &y, NULL), 0);
    assert_int_equal(x.len == y.len && !memcmp(x.p, y.p, x.len), same);
    sl_buf_release(&x);
    sl_buf_release(&y);
}

static void the_seed_decides(void **state)
{
    struct sl_wordnet_sizes sizes = {{24, 12, 12}, {8, 4, 4}};
    (void)state;
    need_wordnet();
    write_set("a", 7, &sizes);
    write_set("b", 7, &sizes);
    write_set("c", 8, &sizes);
    same_file("a/train.jsonl", "b/train.jsonl", true);
    same_file("a/test.jsonl", "b/test.jsonl", true);
    same_file("a/train.jsonl", "c/train.jsonl", false);
}

static void refuses_sizes_that_do_not_divide_or_exist(void **state)
{
    struct sl_wordnet_sizes odd = {{25, 12, 12}, {8, 4, 4}}, huge = {{12, 12, 12}, {400000, 4, 4}};
    struct sl_err err = SL_ERR_INIT;
    (void)state;
    need_wordnet();
    assert_int_equal(sl_wordnet_write(WORDNET, under("d"), 1, &odd, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "category: 25 rows do not divide into 12"));
    sl_err_clear(&err);
    assert_int_equal(sl_wordnet_write(WORDNET, under("d"), 1, &huge, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "too few usable glosses of class"));
}

static void refuses_what_is_no_wordnet(void **state)
{
    static const char licence[] = "  1 This software and database is being provided\n";
    struct sl_wordnet_sizes sizes = {{0, 0, 0}, {4, 0, 0}};
    struct sl_err err = SL_ERR_INIT;
    char text[500];
    (void)state;

    assert_int_equal(sl_wordnet_write(under("nowhere"), under("e"), 1, &sizes, &err), SL_NOTFOUND);
    assert_non_null(strstr(err.msg, "wordnet-base"));
    assert_int_equal(sl_mkdirs(under("w"), NULL), 0);
    static const char *const files[] = {"w/data.noun", "w/data.verb", "w/data.adj", "w/data.adv"};
    for (int i = 0; i < 4; i++) {
        snprintf(
            text, sizeof text,
            "%s0000174%d 03 n 01 thing 0 000 | definition number %d of all; \"an example\"  \n",
            licence, i, i);
        assert_int_equal(sl_file_write(under(files[i]), text, strlen(text), NULL), 0);
    }
    sl_err_clear(&err);
    if (sl_wordnet_write(under("w"), under("e"), 1, &sizes, &err))
        fail_msg("%s", err.msg);
    json_t *rows = rows_of("e/train.jsonl");
    assert_int_equal(json_array_size(rows), 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(strlen(sl_json_str(json_array_get(rows, i), "context", "")),
                         strlen("definition number 1 of all"));
    json_decref(rows);

    /* a gloss that two synsets share is no question: neither is used */
    snprintf(text, sizeof text, "%s00001742 03 n 01 thing 0 000 | definition number 1 of all  \n",
             licence);
    assert_int_equal(sl_file_write(under(files[0]), text, strlen(text), NULL), 0);
    sl_err_clear(&err);
    assert_int_equal(sl_wordnet_write(under("w"), under("e"), 1, &sizes, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "too few usable glosses of class noun"));

    snprintf(text, sizeof text, "%snot a synset at all | gloss\n", licence);
    assert_int_equal(sl_file_write(under(files[2]), text, strlen(text), NULL), 0);
    sl_err_clear(&err);
    sl_err_clear(&err);
    assert_int_equal(sl_wordnet_write(under("w"), under("e"), 1, &sizes, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "data.adj:2: not a line"));
    snprintf(text, sizeof text, "%s00001740 03 n 01 thing 0 000 | cut of", licence);
    assert_int_equal(sl_file_write(under(files[2]), text, strlen(text), NULL), 0);
    sl_err_clear(&err);
    assert_int_equal(sl_wordnet_write(under("w"), under("e"), 1, &sizes, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "data.adj:2: the last line does not end"));
}

static void every_prompt_is_a_prefix_of_its_row(void **state)
{
    struct sl_wordnet_sizes sizes = SL_WORDNET_SIZES_DEFAULT;
    struct sl_dataset_options options = {.answer = SL_ANSWER_ROW, .max_positions = 192};
    struct sl_err err = SL_ERR_INIT;
    struct sl_config config = {0};
    struct sl_weights *weights = NULL;
    struct sl_tokenizer *tok = NULL;
    struct sl_dataset *rows = NULL, *prompts = NULL;
    const char *model = getenv("SL_MODEL"), *path[1];
    (void)state;

    need_wordnet();
    if (!model) {
        print_message("not run: set SL_MODEL to SmolLM2's GGUF\n");
        skip();
    }
    write_set("set", 1234, &sizes);
    path[0] = under("set/train.jsonl");
    if (sl_config_read("examples/wordnet.json", &config, &err) ||
        sl_weights_open(model, &weights, &err) || sl_weights_tokenizer(weights, &tok, &err) ||
        sl_dataset_open(path, 1, &config, tok, &options, &rows, &err))
        fail_msg("%s", err.msg);
    options.answer = SL_ANSWER_NONE;
    if (sl_dataset_open(path, 1, &config, tok, &options, &prompts, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(sl_dataset_rows(rows), 3600);
    assert_int_equal(sl_dataset_rows(prompts), 3600);
    assert_int_equal(sl_dataset_counts(rows).split_boundary, 0);
    for (int i = 0; i < 3600; i++) {
        struct sl_row row = sl_dataset_row(rows, i), prompt = sl_dataset_row(prompts, i);
        int counted = sl_dataset_row_targets(rows, i);
        assert_int_equal(row.slot, prompt.slot);
        assert_int_equal(prompt.n + counted, row.n);
        assert_memory_equal(row.id, prompt.id, sizeof *row.id * (size_t)prompt.n);
        assert_in_range(counted, 2, 4); /* the answer and EOS */
        assert_int_equal(row.id[row.n - 1], sl_tokenizer_eos(tok));
    }
    sl_dataset_free(rows);
    sl_dataset_free(prompts);
    sl_tokenizer_free(tok);
    sl_weights_close(weights);
    sl_config_release(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splits_share_nothing_and_are_balanced),
        cmocka_unit_test(answers_are_wordnets_own),
        cmocka_unit_test(the_seed_decides),
        cmocka_unit_test(refuses_sizes_that_do_not_divide_or_exist),
        cmocka_unit_test(refuses_what_is_no_wordnet),
        cmocka_unit_test(every_prompt_is_a_prefix_of_its_row),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
