/* Training in the precisions that round the frozen weights, against the recorded fp32 runs of PEFT
 * and torch. This model of tiny random matrices is their worst case: short sums, and nothing learnt
 * that would be stable. What a trained model loses is measured by tests/gpu/precision.py.
 * SL_TEST_CUDA: bf16, int8 and fp8 on a GPU; else int8 on the CPU. */
#include "tests/golden/golden_train.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
/* after the headers that it needs */
#include <cmocka.h>

/* Relative: the last of 20 losses; the first gradient of the prompts (L2). */
static const struct {
    double loss, gradient;
} tolerance[] = {[SL_PRECISION_BF16] = {0.02, 0.06},
                 [SL_PRECISION_INT8] = {0.03, 0.08},
                 [SL_PRECISION_FP8] = {0.05, 0.15}};

static const char *const runs[] = {"train_mlp.safetensors", "train_lstm.safetensors",
                                   "train_tpmlp.safetensors", "train_prompt.safetensors",
                                   "train_two_tables.safetensors"};

static void train(enum sl_precision precision)
{
    char path[SL_PATH_MAX];
    struct golden_model llama;
    golden_path(path, "tiny_llama.gguf");
    golden_model_open_in(&llama, path, precision);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct golden_verdict v = golden_train(&llama, runs[i], true, GOLDEN_NO_FAULT);
        print_message("    last loss %.2e off\n", v.last_loss);
        assert_true(v.last_loss < tolerance[precision].loss);
        assert_true(v.prompt_grad < tolerance[precision].gradient);
        assert_true(v.prompt_grad > GOLDEN_GRAD_TOLERANCE); /* it did round */
    }
    golden_model_close(&llama);
}

static void test_int8(void **state)
{
    (void)state;
    train(SL_PRECISION_INT8);
}

static void test_bf16(void **state)
{
    (void)state;
    if (!getenv("SL_TEST_CUDA"))
        skip(); /* the CPU computes in fp32 */
    train(SL_PRECISION_BF16);
}

static void test_fp8(void **state)
{
    (void)state;
    if (!getenv("SL_TEST_CUDA"))
        skip();
    train(SL_PRECISION_FP8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_int8),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_fp8),
    };
    return cmocka_run_group_tests_name("golden training in other precisions", tests, NULL, NULL);
}
