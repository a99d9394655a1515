/* Exact match, F1 and accuracy: hand-worked cases, and Python's answers on hard ones. */
#include "base/json.h"
#include "engine/data/metrics.h"
#include "tests/golden/golden.h"
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define F1_TOLERANCE 1e-12

static void normalises_to(const char *text, const char *want)
{
    struct sl_buf b;

    sl_buf_init(&b, 4 * SL_METRIC_TEXT_MAX);
    assert_int_equal(sl_normalize_answer(text, &b, NULL), 0);
    if (strcmp(b.p, want))
        fail_msg("\"%s\" became \"%s\", not \"%s\"", text, b.p, want);
    sl_buf_release(&b);
}

static void normalisation_by_hand(void **state)
{
    (void)state;
    normalises_to("", "");
    normalises_to("The", "");
    normalises_to("  The Cat's  pyjamas!\n", "cats pyjamas");
    normalises_to("a an the A.N. THEN",
                  "then"); /* A.N. loses its points first and is then the article */
    normalises_to("a.n.d", "and");
    normalises_to("U.S.A.", "usa");
    normalises_to("the-end", "theend"); /* punctuation goes before articles are looked for */
    normalises_to("the - end", "end");
    normalises_to("a_b a b", "ab b");
    normalises_to("a2 2a a\xc2\xb2",
                  "a2 2a a\xc2\xb2"); /* digits are word characters, superscripts too */
    normalises_to("\xc3\x80 \xc3\x89t\xc3\xa9 la", "\xc3\xa0 \xc3\xa9t\xc3\xa9 la"); /* À Été la */
    normalises_to("\xe2\x80\x9cthe\xe2\x80\x9d",
                  "\xe2\x80\x9c \xe2\x80\x9d");              /* curly quotes stay */
    normalises_to("x\xc2\xa0y\xe3\x80\x80z", "x y z");       /* no-break and ideographic space */
    normalises_to("x\xe2\x80\x8by", "x\xe2\x80\x8by");       /* zero-width space is none */
    normalises_to("\xffZ\xc3", "\xef\xbf\xbdz\xef\xbf\xbd"); /* invalid bytes */
    normalises_to("\xce\xa3\xce\x91\xce\xa3", "\xcf\x83\xce\xb1\xcf\x82"); /* ΣΑΣ: a final sigma */
}

static struct sl_score score(const char *prediction, const char *r0, const char *r1)
{
    const char *refs[2] = {r0, r1};
    struct sl_score s = {false, -1, false};

    assert_int_equal(sl_score_answer(prediction, refs, r1 ? 2 : 1, &s, NULL), 0);
    return s;
}

static void scores_by_hand(void **state)
{
    struct sl_score s;

    (void)state;
    s = score("the cat sat on a mat", "The cat sat.",
              NULL); /* 2 of {cat sat on mat}, 2 of {cat sat} */
    assert_false(s.exact);
    assert_true(fabs(s.f1 - 2 * 0.5 * 1 / 1.5) < F1_TOLERANCE);
    s = score("to be or not to be", "to be to be to be",
              NULL); /* bags: to 2, be 2: 4 of 6, 4 of 6 */
    assert_true(fabs(s.f1 - 4.0 / 6) < F1_TOLERANCE);
    s = score("dog", "cat", "a dog!");
    assert_true(s.exact && s.f1 == 1 && !s.accurate);
    s = score("blue green", "green", "blue green red"); /* the better of 2/3 and 4/5 */
    assert_true(!s.exact && fabs(s.f1 - 0.8) < F1_TOLERANCE);
    s = score("", "cat", NULL);
    assert_true(!s.exact && s.f1 == 0);
    s = score("the", "a", NULL); /* both empty after normalisation */
    assert_true(s.exact && s.f1 == 1 && !s.accurate);
    s = score("ab c", "a bc", NULL);
    assert_true(!s.exact && s.f1 == 0);
}

/* Worked by hand from the evaluation script: what is left of both texts, then the shared words. */
static void squad_by_hand(void **state)
{
    static const struct {
        const char *prediction, *answers; /* a JSON list */
        bool exact;
        double f1;
    } table[] = {
        {"Denver Broncos", "[\"Denver Broncos\", \"The Denver Broncos\"]", true, 1},
        {"the Broncos.", "[\"Denver Broncos\"]", false, 2.0 / 3}, /* 1 of 1, 1 of 2 */
        {"February 7, 2016", "[\"7 February 2016\"]", false, 1},  /* the same words in another order */
        {"U.S.", "[\"US\"]", true, 1},
        {"3.5", "[\"35\"]", true, 1}, /* the point is punctuation */
        {"$1,200", "[\"1200\"]", true, 1},
        {"twenty-one", "[\"twenty one\"]", false, 0}, /* twentyone */
        {"a an the", "[\"An\"]", true, 1},            /* nothing is left of either */
        {"a", "[\"cat\"]", false, 0},
        {"cat cat cat", "[\"cat\"]", false, 0.5}, /* 1 of 3, 1 of 1 */
        {"cat", "[\"cat cat cat\"]", false, 0.5},
        {"big big cat", "[\"big cat cat\"]", false, 2.0 / 3}, /* big once, cat once */
        {"in the 10th and 11th centuries", "[\"10th and 11th centuries\"]", false, 2 * 0.8 / 1.8},
        {"France in Europe", "[\"Spain\", \"Europe\", \"in Europe\"]", false, 0.8}, /* the best of 0, 1/2, 4/5 */
        {"FRANCE", "[\"france\"]", true, 1},
        {"\tFrance \n", "[\"France\"]", true, 1},
        {"theatre", "[\"atre\"]", false, 0}, /* an article is a word */
        {"Th\u00e9a the", "[\"th\u00e9a\"]", true, 1},
        {"caf\u00e9", "[\"cafe\"]", false, 0},
        {"\u201cquoted\u201d", "[\"quoted\"]", false, 0}, /* curly quotes are no ASCII punctuation */
        {"\"quoted\"", "[\"quoted\"]", true, 1},
        {"2\u20133", "[\"23\"]", false, 0}, /* nor is a dash */
        {"2-3", "[\"23\"]", true, 1},
        {"x\u00a0y", "[\"x y\"]", true, 1}, /* a no-break space parts words */
        {"", "[]", true, 1},                /* no answer is right */
        {"The.", "[]", true, 1},
        {"France", "[]", false, 0},
        {"", "[\"France\"]", false, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_t *answers = json_loads(table[i].answers, 0, NULL);
        struct sl_score s;

        assert_non_null(answers);
        assert_int_equal(sl_score_answers(table[i].prediction, answers, &s, NULL), 0);
        if (s.exact != table[i].exact || !(fabs(s.f1 - table[i].f1) < F1_TOLERANCE))
            fail_msg("\"%s\" against %s: %d, %g", table[i].prediction, table[i].answers, s.exact,
                     s.f1);
        json_decref(answers);
    }
}

static void accuracy_is_about_bytes(void **state)
{
    (void)state;
    assert_true(score(" animal\n", "animal", NULL).accurate);
    assert_true(score("animal", "plant", "\tanimal ").accurate);
    assert_false(score("Animal", "animal", NULL).accurate);
    assert_false(score("animal.", "animal", NULL).accurate);
    assert_false(score("", "animal", NULL).accurate);
    assert_true(score(" \t", "", NULL).accurate);
}

static void hard_cases_have_pythons_scores(void **state)
{
    char path[SL_PATH_MAX];
    json_t *cases, *c;
    size_t i;

    (void)state;
    golden_path(path, "metrics.json");
    assert_int_equal(sl_json_read(path, SL_JSON_FILE_MAX, &cases, NULL), 0);
    assert_true(json_array_size(cases) >= 400);
    json_array_foreach(cases, i, c)
    {
        const char *prediction = json_string_value(json_array_get(c, 0)), *refs[8];
        const json_t *list = json_array_get(c, 1);
        double want = json_number_value(json_array_get(c, 4));
        int n = (int)json_array_size(list);
        struct sl_score s;

        for (int k = 0; k < n; k++)
            refs[k] = json_string_value(json_array_get(list, (size_t)k));
        normalises_to(prediction, json_string_value(json_array_get(c, 2)));
        assert_int_equal(sl_score_answer(prediction, refs, n, &s, NULL), 0);
        if (s.exact != json_is_true(json_array_get(c, 3)) || !(fabs(s.f1 - want) < F1_TOLERANCE))
            fail_msg("case %zu, \"%s\": exact %d, F1 %g instead of %g", i, prediction, s.exact,
                     s.f1, want);
    }
    json_decref(cases);
}

static void the_processs_locale_does_not_matter(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        setlocale(LC_ALL, i ? "C.UTF-8" : "C");
        normalises_to("\xc3\x89T\xc3\x89, the", "\xc3\xa9t\xc3\xa9");
    }
    setlocale(LC_ALL, "C");
}

static void limits_are_told(void **state)
{
    char *big = malloc(SL_METRIC_TEXT_MAX + 2);
    const char *refs[SL_METRIC_MAX_REFS + 1];
    struct sl_err err = SL_ERR_INIT;
    struct sl_score s;

    (void)state;
    memset(big, 'x', SL_METRIC_TEXT_MAX + 1);
    big[SL_METRIC_TEXT_MAX + 1] = '\0';
    for (int i = 0; i <= SL_METRIC_MAX_REFS; i++)
        refs[i] = "x";
    assert_int_equal(sl_score_answer(big, refs, 1, &s, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "limit"));
    assert_int_equal(sl_score_answer("x", refs, 0, &s, NULL), SL_SPEC);
    assert_int_equal(sl_score_answer("x", refs, SL_METRIC_MAX_REFS + 1, &s, NULL), SL_SPEC);
    memset(big, '\xff', SL_METRIC_TEXT_MAX); /* grows threefold */
    big[SL_METRIC_TEXT_MAX] = '\0';
    assert_int_equal(sl_score_answer(big, refs, 1, &s, NULL), 0);
    free(big);
}

static void means_are_over_rows(void **state)
{
    struct sl_scores all = {0};
    struct sl_score a = {true, 1, false}, b = {false, 0.5, true};

    (void)state;
    assert_true(sl_scores_exact(&all) == 0 && sl_scores_f1(&all) == 0 &&
                sl_scores_accuracy(&all) == 0);
    sl_scores_add(&all, &a);
    sl_scores_add(&all, &b);
    sl_scores_add(&all, &b);
    sl_scores_add(&all, &b);
    assert_true(sl_scores_exact(&all) == 0.25 && sl_scores_f1(&all) == 0.625 &&
                sl_scores_accuracy(&all) == 0.75);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(normalisation_by_hand),
        cmocka_unit_test(scores_by_hand),
        cmocka_unit_test(squad_by_hand),
        cmocka_unit_test(accuracy_is_about_bytes),
        cmocka_unit_test(hard_cases_have_pythons_scores),
        cmocka_unit_test(the_processs_locale_does_not_matter),
        cmocka_unit_test(limits_are_told),
        cmocka_unit_test(means_are_over_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
