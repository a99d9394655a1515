/* BLEU and ROUGE-L: hand-worked cases, and what sacrebleu and rouge-score say of hard ones. */
#include "base/json.h"
#include "engine/data/metrics.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TOLERANCE 1e-9
#define ROWS_MAX 8

static double corpus(enum sl_metric metric, const char *const *predictions, const char *const *refs,
                     int n)
{
    struct sl_err err = SL_ERR_INIT;
    double score = -1;

    if (sl_metric_corpus(metric, predictions, refs, n, &score, &err))
        fail_msg("%s", err.msg);
    return score;
}

static double one(enum sl_metric metric, const char *prediction, const char *ref)
{
    return corpus(metric, &prediction, &ref, 1);
}

static void close_to(double got, double want)
{
    if (!(fabs(got - want) < TOLERANCE))
        fail_msg("%.12g instead of %.12g", got, want);
}

static void bleu_by_hand(void **state)
{
    (void)state;
    close_to(one(SL_METRIC_BLEU, "a b c d", "a b c d"), 100);
    close_to(one(SL_METRIC_BLEU, "a b c", "a b c"), 0); /* no four words in a row */
    /* 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours */
    close_to(one(SL_METRIC_BLEU, "a b c d x", "a b c d e"),
             100 * pow(0.8 * 0.75 * (2.0 / 3) * 0.5, 0.25));
    /* half as long: exp(1 - 2) */
    close_to(one(SL_METRIC_BLEU, "a b c d", "a b c d e f g h"), 100 * exp(-1));
    /* a word counts as often as the reference has it: 2 of 4, then smoothing: 1/2 of 3, 1/4 of 2,
     * 1/8 of 1 */
    close_to(one(SL_METRIC_BLEU, "the the the the", "the x the y"),
             100 * pow(0.5 * (0.5 / 3) * (0.25 / 2) * 0.125, 0.25));
    /* the point is a word of its own behind a letter, not inside a number; case counts */
    close_to(one(SL_METRIC_BLEU, "it is 3.14.", "it is 3.14 ."), 100);
    close_to(one(SL_METRIC_BLEU, "A B C D", "a b c d"), 0);
}

static void bleu_is_of_the_corpus(void **state)
{
    const char *predictions[] = {"a b c d", "x"}, *refs[] = {"a b c d", "y"};

    (void)state;
    /* 4 of 5 words; the second row has no pairs */
    close_to(corpus(SL_METRIC_BLEU, predictions, refs, 2), 100 * pow(0.8, 0.25));
}

static void rouge_by_hand(void **state)
{
    const char *predictions[] = {"police kill the gunman", "none"},
               *refs[] = {"police killed the gunman", "some"};

    (void)state;
    close_to(one(SL_METRIC_ROUGE, predictions[0], refs[0]), 0.75); /* 3 of 4, 3 of 4 */
    close_to(one(SL_METRIC_ROUGE, "a x b y c", "a b c"), 2 * 0.6 * 1 / 1.6);
    close_to(one(SL_METRIC_ROUGE, "c b a", "a b c"), 1.0 / 3);
    close_to(one(SL_METRIC_ROUGE, "The-CAT!", "the cat"), 1);
    close_to(one(SL_METRIC_ROUGE, "", ""), 0);
    close_to(one(SL_METRIC_ROUGE, "\xd0\xb4\xd0\xb0", "\xd0\xb4\xd0\xb0"), 0); /* no word in a-z */
    close_to(corpus(SL_METRIC_ROUGE, predictions, refs, 2), 0.375);
}

static void recorded_cases(void **state)
{
    char path[SL_PATH_MAX];
    json_t *cases, *c;
    size_t i;

    (void)state;
    golden_path(path, "text_metrics.json");
    assert_int_equal(sl_json_read(path, SL_JSON_FILE_MAX, &cases, NULL), 0);
    assert_true(json_array_size(cases) >= 300);
    json_array_foreach(cases, i, c) {
        const json_t *rows = json_array_get(c, 0);
        const char *predictions[ROWS_MAX], *refs[ROWS_MAX];
        int n = (int)json_array_size(rows);
        double bleu, rouge;

        assert_in_range(n, 1, ROWS_MAX);
        for (int k = 0; k < n; k++) {
            predictions[k] = json_string_value(json_array_get(json_array_get(rows, (size_t)k), 0));
            refs[k] = json_string_value(json_array_get(json_array_get(rows, (size_t)k), 1));
        }
        bleu = corpus(SL_METRIC_BLEU, predictions, refs, n);
        rouge = corpus(SL_METRIC_ROUGE, predictions, refs, n);
        if (!(fabs(bleu - json_number_value(json_array_get(c, 1))) < TOLERANCE) ||
            !(fabs(rouge - json_number_value(json_array_get(c, 2))) < TOLERANCE))
            fail_msg(
                "case %zu, \"%s\": BLEU %.10g instead of %.10g, ROUGE-L %.10g instead of %.10g", i,
                predictions[0], bleu, json_number_value(json_array_get(c, 1)), rouge,
                json_number_value(json_array_get(c, 2)));
    }
    json_decref(cases);
}

static void the_others_are_means(void **state)
{
    const char *predictions[] = {"the cat", "b c", "d"}, *refs[] = {"cat", "b", "d"};

    (void)state;
    close_to(corpus(SL_METRIC_EXACT_MATCH, predictions, refs, 3), 2.0 / 3);
    close_to(corpus(SL_METRIC_F1, predictions, refs, 3), (1 + 2.0 / 3 + 1) / 3);
    close_to(corpus(SL_METRIC_ACCURACY, predictions, refs, 3), 1.0 / 3);
    for (enum sl_metric m = SL_METRIC_ACCURACY; m <= SL_METRIC_F1; m++)
        close_to(corpus(m, predictions, refs, 0), 0);
}

static void limits_are_told(void **state)
{
    char *big = malloc(SL_METRIC_TEXT_MAX + 2);
    const char *predictions[] = {"x", big}, *refs[] = {"x", "x"};
    struct sl_err err = SL_ERR_INIT;
    double score = -7;

    (void)state;
    memset(big, '$', SL_METRIC_TEXT_MAX + 1); /* three characters each, after tokenisation */
    big[SL_METRIC_TEXT_MAX + 1] = '\0';
    assert_int_equal(sl_metric_corpus(SL_METRIC_BLEU, predictions, refs, 2, &score, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "row 2: "));
    assert_non_null(strstr(err.msg, "limit"));
    assert_true(score == -7);
    big[SL_METRIC_TEXT_MAX] = '\0';
    assert_int_equal(sl_metric_corpus(SL_METRIC_BLEU, predictions, refs, 2, &score, NULL), 0);
    memset(big, '\xff', SL_METRIC_TEXT_MAX);
    assert_int_equal(sl_metric_corpus(SL_METRIC_BLEU, predictions, refs, 2, &score, NULL), 0);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bleu_by_hand),         cmocka_unit_test(bleu_is_of_the_corpus),
        cmocka_unit_test(rouge_by_hand),        cmocka_unit_test(recorded_cases),
        cmocka_unit_test(the_others_are_means), cmocka_unit_test(limits_are_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
