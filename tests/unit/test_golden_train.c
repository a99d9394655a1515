/* Training against the recorded runs of PEFT (mlp, lstm, prompt) and plain torch (tpmlp, two tables
 * of different V, two tasks of one encoder); see golden_train.h. */
#include "tests/golden/golden_train.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
/* after the headers that it needs */
#include <cmocka.h>

static struct golden_model llama;

static int setup(void **state)
{
    (void)state;
    char path[SL_PATH_MAX];
    golden_path(path, "tiny_llama.gguf");
    golden_model_open(&llama, path);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    golden_model_close(&llama);
    return 0;
}

static struct golden_verdict train(const char *name, bool share, enum golden_fault fault)
{
    char file[64];
    snprintf(file, sizeof file, "train_%s.safetensors", name);
    return golden_train(&llama, file, share, fault);
}

/* ---- tests */
static void check(const char *name)
{
    struct golden_verdict shared = train(name, true, GOLDEN_NO_FAULT),
                          plain = train(name, false, GOLDEN_NO_FAULT);
    assert_true(golden_passes(&shared));
    assert_true(golden_passes(&plain));
}

static void test_mlp(void **state)
{
    (void)state;
    check("mlp");
}
static void test_lstm(void **state)
{
    (void)state;
    check("lstm");
}
static void test_tpmlp(void **state)
{
    (void)state;
    check("tpmlp");
}
static void test_prompt_tuning(void **state)
{
    (void)state;
    check("prompt");
}
static void test_two_tables_of_different_length(void **state)
{
    (void)state;
    check("two_tables");
}

static void test_two_tasks_of_one_encoder(void **state)
{
    (void)state;
    check("two_tasks");
}

static const char *const cases[] = {"mlp", "lstm", "tpmlp", "prompt", "two_tables", "two_tasks"};
#define N_CASES (sizeof cases / sizeof *cases)

static void test_larger_gradient_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct golden_verdict v = train(cases[i], true, GOLDEN_GRADIENT_TENTH_MORE);
        assert_false(golden_passes(&v));
        assert_true(v.grad > 0.09 && v.grad < 0.11 && v.prompt_grad > 0.09 && v.prompt_grad < 0.11);
        assert_true(v.norm > 0.09 && v.norm < 0.11);
    }
}

static void test_shifted_label_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct golden_verdict v = train(cases[i], true, GOLDEN_LABEL_SHIFTED);
        assert_false(golden_passes(&v));
        assert_true(v.loss > 100 * GOLDEN_LOSS_TOLERANCE &&
                    v.prompt_grad > 100 * GOLDEN_GRAD_TOLERANCE);
    }
}

static void test_missing_prefix_dk_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        struct golden_verdict v = train(cases[i], true, GOLDEN_PREFIX_DK_LEFT_OUT);
        assert_false(golden_passes(&v));
        assert_true(v.prompt_grad > 100 * GOLDEN_GRAD_TOLERANCE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_lstm),
        cmocka_unit_test(test_tpmlp),
        cmocka_unit_test(test_prompt_tuning),
        cmocka_unit_test(test_two_tables_of_different_length),
        cmocka_unit_test(test_two_tasks_of_one_encoder),
        cmocka_unit_test(test_larger_gradient_is_caught),
        cmocka_unit_test(test_shifted_label_is_caught),
        cmocka_unit_test(test_missing_prefix_dk_is_caught),
    };
    return cmocka_run_group_tests_name("golden training", tests, setup, teardown);
}
