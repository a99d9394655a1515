/* Choosing tokens: order of the rules, ties, and the frequencies that a draw must have. */
#include "engine/sample.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DRAWS 20000
#define SIGMAS 5 /* a frequency this many standard deviations off is wrong */

static struct sl_sampling plain(void)
{
    return (struct sl_sampling){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .eos_id = -1, .seed = 3};
}

static struct sl_sampler *make(const struct sl_sampling *s, int vocab)
{
    struct sl_sampler *sampler = NULL;
    struct sl_err err = SL_ERR_INIT;

    if (sl_sampler_new(s, vocab, &sampler, &err))
        fail_msg("%s", err.msg);
    return sampler;
}

static int32_t one(const struct sl_sampling *s, const float *logits, int vocab,
                   const int32_t *context, int n_context, int64_t row, int64_t step)
{
    struct sl_sampler *sampler = make(s, vocab);
    float copy[64];
    int32_t token = -1;

    memcpy(copy, logits, (size_t)vocab * sizeof *copy);
    assert_int_equal(sl_sample(sampler, copy, context, n_context, row, step, &token, NULL), 0);
    sl_sampler_free(sampler);
    return token;
}

static void greedy_takes_the_lowest_of_the_largest(void **state)
{
    const float logits[] = {1, 5, 5, 5, NAN, 4}, low[] = {-INFINITY, NAN, -3e38f, -3e38f};
    struct sl_sampling s = plain();

    (void)state;
    s.greedy = true;
    assert_int_equal(one(&s, logits, 6, NULL, 0, 0, 0), 1);
    assert_int_equal(one(&s, low, 4, NULL, 0, 0, 0), 2);
}

static void the_penalty_counts_a_token_once_and_by_its_sign(void **state)
{
    const float logits[] = {4, 3, -1, -1.5f};
    const int32_t context[] = {0, 0, 0, -7, 99}, both[] = {0, 1, 2};
    struct sl_sampling s = plain();

    (void)state;
    s.greedy = true;
    s.repetition_penalty = 1.3; /* 4 / 1.3 = 3.08 > 3; twice it would be 2.4 */
    assert_int_equal(one(&s, logits, 4, context, 5, 0, 0), 0);
    s.repetition_penalty = 1.4; /* 2.86 < 3 */
    assert_int_equal(one(&s, logits, 4, context, 5, 0, 0), 1);
    assert_int_equal(one(&s, logits + 1, 3, both + 1, 1, 0, 0), 0);
    s.repetition_penalty = 2; /* -1 becomes -2, below -1.5 */
    assert_int_equal(one(&s, logits + 2, 2, both, 1, 0, 0), 1);
}

static void eos_waits_for_min_tokens(void **state)
{
    const float logits[] = {1, 9, 2};
    struct sl_sampling s = plain();

    (void)state;
    s.greedy = true;
    s.eos_id = 1;
    s.min_tokens = 3;
    assert_int_equal(one(&s, logits, 3, NULL, 0, 0, 0), 2);
    assert_int_equal(one(&s, logits, 3, NULL, 0, 0, 2), 2);
    assert_int_equal(one(&s, logits, 3, NULL, 0, 0, 3), 1);
}

/* Draws DRAWS times and compares each token's frequency with p (not normalised). */
static void frequencies(const struct sl_sampling *s, const float *logits, int vocab,
                        const double *p)
{
    struct sl_sampler *sampler = make(s, vocab);
    double total = 0;
    int count[64] = {0};
    float copy[64];

    for (int i = 0; i < vocab; i++)
        total += p[i];
    for (int64_t d = 0; d < DRAWS; d++) {
        int32_t token;

        memcpy(copy, logits, (size_t)vocab * sizeof *copy);
        assert_int_equal(sl_sample(sampler, copy, NULL, 0, d / 100, d % 100, &token, NULL), 0);
        assert_in_range(token, 0, vocab - 1);
        count[token]++;
    }
    for (int i = 0; i < vocab; i++) {
        double want = p[i] / total, sigma = sqrt(want * (1 - want) / DRAWS);

        if (!(fabs((double)count[i] / DRAWS - want) <= SIGMAS * sigma))
            fail_msg("token %d came in %g of the draws, not in %g", i, (double)count[i] / DRAWS,
                     want);
    }
    sl_sampler_free(sampler);
}

static void draws_have_the_softmaxs_frequencies(void **state)
{
    const float logits[] = {0, 1, 2, -INFINITY, 1.5f, NAN};
    const double p[] = {1, exp(1), exp(2), 0, exp(1.5), 0};
    const double half[] = {1, exp(2), exp(4), 0, exp(3), 0};
    struct sl_sampling s = plain();

    (void)state;
    frequencies(&s, logits, 6, p);
    s.temperature = 0.5;
    frequencies(&s, logits, 6, half);
}

static void top_k_keeps_the_lowest_ids_of_a_tie(void **state)
{
    const float logits[] = {1, 2, 1, 3, 1, 1};
    const double three[] = {exp(1), exp(2), 0, exp(3), 0, 0},
                 four[] = {exp(1), exp(2), exp(1), exp(3), 0, 0};
    const double all[] = {exp(1), exp(2), exp(1), exp(3), exp(1), exp(1)};
    struct sl_sampling s = plain();

    (void)state;
    s.top_k = 3;
    frequencies(&s, logits, 6, three);
    s.top_k = 4;
    frequencies(&s, logits, 6, four);
    s.top_k = 6;
    frequencies(&s, logits, 6, all);
    s.top_k = 1000;
    frequencies(&s, logits, 6, all);
    s.top_k = 1;
    assert_int_equal(one(&s, logits, 6, NULL, 0, 8, 8), 3);
}

static void top_p_keeps_the_smallest_set_that_reaches_it(void **state)
{
    /* probabilities .4 .3 .1 .1 .1 */
    const float logits[] = {logf(.1f), logf(.4f), logf(.1f), logf(.3f), logf(.1f)};
    const double first[] = {0, 1, 0, 0, 0}, two[] = {0, .4, 0, .3, 0}, three[] = {.1, .4, 0, .3, 0};
    const double four[] = {.1, .4, .1, .3, 0}, all[] = {.1, .4, .1, .3, .1};
    struct sl_sampling s = plain();

    (void)state;
    s.top_p = 0.39;
    frequencies(&s, logits, 5, first);
    s.top_p = 0.41;
    frequencies(&s, logits, 5, two);
    s.top_p = 0.69;
    frequencies(&s, logits, 5, two);
    s.top_p = 0.71;
    frequencies(&s, logits, 5, three);
    s.top_p = 0.89;
    frequencies(&s, logits, 5, four);
    s.top_p = 0.99;
    frequencies(&s, logits, 5, all);
    s.top_p = 1e-9;
    frequencies(&s, logits, 5, first);
    s.top_k = 4; /* then .4 .3 .1 .1 of .9: two of them hold .78 */
    s.top_p = 0.77;
    frequencies(&s, logits, 5, two);
}

/* A large vocabulary, against a straightforward sort of everything. */
static void large_vocabularies_agree_with_a_plain_sort(void **state)
{
    enum { VOCAB = 5000 };
    static float logits[VOCAB], copy[VOCAB];
    struct sl_sampling s = plain();
    unsigned x = 1;

    (void)state;
    for (int i = 0; i < VOCAB; i++) {
        x = x * 1103515245u + 12345u;
        logits[i] = (float)(x >> 16 & 0xff) / 64; /* many ties */
    }
    for (int k = 1; k < VOCAB; k = k * 3 + 1) {
        struct sl_sampler *sampler;
        int32_t token;

        s.top_k = k;
        sampler = make(&s, VOCAB);
        for (int64_t d = 0; d < 50; d++) {
            int better = 0;

            memcpy(copy, logits, sizeof copy);
            assert_int_equal(sl_sample(sampler, copy, NULL, 0, d, k, &token, NULL), 0);
            for (int i = 0; i < VOCAB; i++)
                better += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
            assert_in_range(better, 0, k - 1);
        }
        sl_sampler_free(sampler);
    }
}

static void a_draw_depends_on_seed_row_and_step_alone(void **state)
{
    float logits[64] = {0};
    struct sl_sampling s = plain();
    int same_row = 0, same_step = 0, same_seed = 0;

    (void)state;
    for (int64_t i = 0; i < 40; i++) {
        int32_t t = one(&s, logits, 64, NULL, 0, i, 5);

        assert_int_equal(one(&s, logits, 64, NULL, 0, i, 5), t);
        same_row += one(&s, logits, 64, NULL, 0, i + 1, 5) == t;
        same_step += one(&s, logits, 64, NULL, 0, i, 6) == t;
        s.seed++;
        same_seed += one(&s, logits, 64, NULL, 0, i, 5) == t;
        s.seed--;
    }
    assert_true(same_row < 8 && same_step < 8 && same_seed < 8); /* 40/64 expected */
}

static void nothing_to_choose_is_an_error(void **state)
{
    float logits[] = {NAN, -INFINITY}, eos[] = {-INFINITY, 3}, inf[] = {1, INFINITY, 2};
    struct sl_sampling s = plain();
    struct sl_sampler *sampler = make(&s, 2);
    struct sl_err err = SL_ERR_INIT;
    int32_t token = 77;

    (void)state;
    assert_int_equal(sl_sample(sampler, logits, NULL, 0, 12, 3, &token, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "row 12, token 3"));
    assert_int_equal(token, 77);
    sl_sampler_free(sampler);
    s.eos_id = 1;
    s.min_tokens = 1;
    sampler = make(&s, 2);
    assert_int_equal(sl_sample(sampler, eos, NULL, 0, 0, 0, &token, NULL), SL_DATA);
    sl_sampler_free(sampler);
    s = plain();
    assert_int_equal(one(&s, inf, 3, NULL, 0, 0, 0), 1);
    sl_sampler_free(NULL);
}

static void refused(struct sl_sampling s, const char *what)
{
    struct sl_sampler *sampler = NULL;
    struct sl_err err = SL_ERR_INIT;

    assert_int_equal(sl_sampler_new(&s, 10, &sampler, &err), SL_SPEC);
    assert_null(sampler);
    assert_non_null(strstr(err.msg, what));
}

static void settings_out_of_range_are_named(void **state)
{
    struct sl_sampling s = plain();

    (void)state;
    s.temperature = 0;
    refused(s, "temperature");
    s.temperature = NAN;
    refused(s, "temperature");
    s = plain();
    s.top_p = 0;
    refused(s, "top_p");
    s.top_p = 1.01;
    refused(s, "top_p");
    s = plain();
    s.top_k = -1;
    refused(s, "top_k");
    s = plain();
    s.repetition_penalty = 0;
    refused(s, "repetition_penalty");
    s = plain();
    s.min_tokens = -1;
    refused(s, "min_tokens");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_of_the_largest),
        cmocka_unit_test(the_penalty_counts_a_token_once_and_by_its_sign),
        cmocka_unit_test(eos_waits_for_min_tokens),
        cmocka_unit_test(draws_have_the_softmaxs_frequencies),
        cmocka_unit_test(top_k_keeps_the_lowest_ids_of_a_tie),
        cmocka_unit_test(top_p_keeps_the_smallest_set_that_reaches_it),
        cmocka_unit_test(large_vocabularies_agree_with_a_plain_sort),
        cmocka_unit_test(a_draw_depends_on_seed_row_and_step_alone),
        cmocka_unit_test(nothing_to_choose_is_an_error),
        cmocka_unit_test(settings_out_of_range_are_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
