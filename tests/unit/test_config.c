/* The run configuration as C values: defaults, spellings, tasks. */
#include "engine/config.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define TASK(name)                                                                                 \
    "{\"taskname\":\"" name                                                                        \
    "\",\"prompt_template\":\"<|VIRTUAL_PROMPT_0|>{c} {a}\",\"total_virtual_tokens\":4}"
#define LEAST "{\"model\":{\"task_templates\":[" TASK("one") "]}}"

static struct sl_config parse(const char *text)
{
    struct sl_config c = {0};
    struct sl_err err = SL_ERR_INIT;
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    if (sl_config_parse(json, &c, &err))
        fail_msg("%s", err.msg);
    json_decref(json);
    return c;
}

static void has_the_documented_defaults(void **state)
{
    struct sl_config c = parse(LEAST);
    (void)state;

    assert_int_equal(c.trainer.devices, 1);
    assert_int_equal(c.trainer.precision, SL_PRECISION_FP32);
    assert_int_equal(c.trainer.max_epochs, 3);
    assert_int_equal(c.trainer.max_steps, -1);
    assert_true(c.trainer.val_check_fraction == 1.0 && c.trainer.val_check_steps == 0);
    assert_true(c.trainer.gradient_clip == 1.0);
    assert_int_equal(c.trainer.accumulate_grad_batches, 1);
    assert_true(c.exp.resume_if_exists && c.exp.save_best_model && c.exp.early_stopping);
    assert_int_equal(c.exp.save_top_k, 2);
    assert_int_equal(c.exp.patience, 10);
    assert_true(c.exp.min_delta == 0.001);
    assert_int_equal(c.seed, 1234);
    assert_int_equal(c.style, SL_STYLE_P_TUNING);
    assert_int_equal(c.global_batch, 8);
    assert_int_equal(c.micro_batch, 4);
    assert_null(c.restore_path);
    assert_int_equal(c.validation_metric, SL_METRIC_ACCURACY);
    assert_int_equal(c.p_tuning.encoder_type, SL_ENC_TPMLP);
    assert_int_equal(c.p_tuning.num_layers, 2);
    assert_int_equal(c.p_tuning.encoder_hidden, 2048);
    assert_true(c.p_tuning.dropout == 0 && c.p_tuning.init_std == 0.023);
    assert_int_equal(c.p_tuning.taskname_rows, SL_TASKNAME_ROWS_AUTO);
    assert_true(c.data.add_eos && !c.data.add_bos && c.data.shuffle);
    assert_false(c.data.strip_space_around_virtual_tokens);
    assert_int_equal(c.data.max_seq_length, 0);
    assert_int_equal(c.data.min_seq_length, 1);
    assert_true(c.optim.lr_is_default && c.optim.lr == SL_DEFAULT_LR_P_TUNING);
    assert_true(c.optim.beta1 == 0.9 && c.optim.beta2 == 0.98);
    assert_true(c.optim.weight_decay == 0.01 && c.optim.eps == 1e-8);
    assert_int_equal(c.optim.warmup_steps, 50);
    assert_int_equal(c.optim.constant_steps, 0);
    assert_true(c.optim.min_lr == 0);
    assert_true(c.inference.greedy && c.inference.top_k == 0 && c.inference.top_p == 1);
    assert_true(c.inference.temperature == 1 && c.inference.repetition_penalty == 1);
    assert_int_equal(c.inference.tokens_to_generate, 32);
    assert_int_equal(c.n_tasks, 1);
    assert_int_equal(c.n_new_tasks, 1);
    assert_int_equal(c.new_virtual_tokens, 4);
    assert_true(c.task[0].is_new && !c.task[0].answer_only_loss);
    assert_int_equal(c.task[0].n_splits, 1);
    assert_int_equal(c.task[0].split[0], 4);
    assert_null(c.task[0].truncate_field);
    sl_config_release(&c);
    sl_config_release(&c); /* released is all zero */
    sl_config_release(NULL);
}

static void reads_every_spelling_of_a_style(void **state)
{
    static const char *const spellings[] = {"prompt-tuning", "prompt_tuning", "PROMPT_TUNING",
                                            "PROMPT-TUNING"};
    (void)state;
    for (int i = 0; i < 4; i++) {
        char text[400];
        snprintf(
            text, sizeof text,
            "{\"model\":{\"virtual_prompt_style\":\"%s\",\"task_templates\":[" TASK("one") "]}}",
            spellings[i]);
        struct sl_config c = parse(text);
        assert_int_equal(c.style, SL_STYLE_PROMPT_TUNING);
        assert_int_equal(c.task[0].style, SL_STYLE_PROMPT_TUNING);
        assert_true(c.optim.lr == SL_DEFAULT_LR_PROMPT_TUNING);
        sl_config_release(&c);
    }
    assert_string_equal(sl_style_name(SL_STYLE_NO_PROMPTS), "no-prompts");
    assert_string_equal(sl_encoder_type_name(SL_ENC_LSTM), "lstm");
    assert_string_equal(sl_encoder_type_name(SL_ENC_EMBEDDING), "embedding");
}

static void a_task_may_have_a_style_of_its_own(void **state)
{
    struct sl_config c = parse(
        "{\"model\":{\"task_templates\":["
        "{\"taskname\":\"a\",\"prompt_template\":\"<|VIRTUAL_PROMPT_0|>{x}\",\"total_virtual_tokens\":4,"
        "\"virtual_prompt_style\":\"PROMPT_TUNING\"}," TASK("b") "]}}");
    (void)state;
    assert_int_equal(c.style, SL_STYLE_P_TUNING);
    assert_int_equal(c.task[0].style, SL_STYLE_PROMPT_TUNING);
    assert_int_equal(c.task[1].style, SL_STYLE_P_TUNING);
    sl_config_release(&c);

    struct sl_err err = SL_ERR_INIT;
    json_t *json = json_loads(
        "{\"model\":{\"virtual_prompt_style\":\"no-prompts\",\"task_templates\":["
        "{\"taskname\":\"a\",\"prompt_template\":\"{x}\",\"total_virtual_tokens\":0,"
        "\"virtual_prompt_style\":\"p-tuning\"}]}}", 0, NULL);
    assert_int_equal(sl_config_parse(json, &c, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "config.model.task_templates[0].virtual_prompt_style"));
    json_decref(json);
}

static void reads_stop_strings(void **state)
{
    struct sl_config c = parse("{\"model\":{\"task_templates\":[" TASK("a") "]},"
                               "\"inference\":{\"stop\":[\"\\n\",\"Question:\"]}}");
    (void)state;
    assert_int_equal(c.inference.stop.n, 2);
    assert_string_equal(c.inference.stop.s[0], "\n");
    assert_string_equal(c.inference.stop.s[1], "Question:");
    sl_config_release(&c);
}

static void reads_numbers_in_each_form(void **state)
{
    (void)state;
    struct sl_config c = parse(
        "{\"trainer\":{\"max_steps\":20.0,\"val_check_interval\":0.25,\"precision\":\"bf16\"},"
        "\"model\":{\"task_templates\":[" TASK("one") "],\"optim\":{\"lr\":1}}}");
    assert_int_equal(c.trainer.max_steps, 20);
    assert_true(c.trainer.val_check_fraction == 0.25);
    assert_int_equal(c.trainer.val_check_steps, 0);
    assert_int_equal(c.trainer.precision, SL_PRECISION_BF16);
    assert_true(c.optim.lr == 1.0 && !c.optim.lr_is_default);
    sl_config_release(&c);

    static const struct {
        const char *precision;
        enum sl_precision is;
    } p[] = {{"16", SL_PRECISION_BF16},
             {"\"16\"", SL_PRECISION_BF16},
             {"32", SL_PRECISION_FP32},
             {"\"32\"", SL_PRECISION_FP32},
             {"\"fp32\"", SL_PRECISION_FP32},
             {"\"fp8\"", SL_PRECISION_FP8},
             {"\"int8\"", SL_PRECISION_INT8}};
    for (size_t i = 0; i < sizeof p / sizeof *p; i++) {
        char text[400];
        snprintf(text, sizeof text,
                 "{\"trainer\":{\"precision\":%s,\"val_check_interval\":25},"
                 "\"model\":{\"task_templates\":[" TASK("one") "]}}",
                 p[i].precision);
        c = parse(text);
        assert_int_equal(c.trainer.precision, p[i].is);
        assert_int_equal(c.trainer.val_check_steps, 25);
        assert_true(c.trainer.val_check_fraction == 0);
        sl_config_release(&c);
    }
}

static void a_small_global_batch_is_one_micro_batch(void **state)
{
    struct sl_config c =
        parse("{\"model\":{\"global_batch_size\":2,\"task_templates\":[" TASK("one") "]}}");
    (void)state;
    assert_int_equal(c.global_batch, 2);
    assert_int_equal(c.micro_batch, 2);
    sl_config_release(&c);
}

static void sorts_new_and_existing_tasks(void **state)
{
    (void)state;
    struct sl_config c =
        parse("{\"model\":{\"virtual_prompt_style\":\"prompt-tuning\",\"restore_path\":\"t\","
              "\"existing_tasks\":[\"b\"],"
              "\"new_tasks\":[\"c\",\"a\"],\"prompt_tuning\":{\"new_prompt_init_methods\":["
              "\"text\",\"random\"],"
              "\"new_prompt_init_text\":[\"Hello\",null]},\"task_templates\":[" TASK("a") "," TASK(
                  "b") "," TASK("c") "]},"
                                     "\"inference\":{\"choices\":{\"c\":[\"yes\",\"no\"]}}}");
    assert_int_equal(c.n_tasks, 3);
    assert_int_equal(c.n_new_tasks, 2);
    assert_true(c.task[0].is_new && !c.task[1].is_new && c.task[2].is_new);
    /* methods and texts go with new_tasks, not with the templates */
    assert_int_equal(c.task[2].init_method, SL_INIT_TEXT);
    assert_string_equal(c.task[2].init_text, "Hello");
    assert_int_equal(c.task[0].init_method, SL_INIT_RANDOM);
    assert_null(c.task[0].init_text);
    assert_int_equal(c.task[2].n_choices, 2);
    assert_string_equal(c.task[2].choice[1], "no");
    assert_int_equal(sl_config_task(&c, "b"), 1);
    assert_int_equal(sl_config_task(&c, "d"), -1);
    assert_string_equal(c.restore_path, "t");
    sl_config_release(&c);
}

static void refuses_with_every_error(void **state)
{
    struct sl_config c = {.global_batch = 77};
    struct sl_err err = SL_ERR_INIT;
    json_t *json = json_loads("{\"trainer\":{\"max_step\":1},\"model\":{\"task_templates\":[" TASK(
                                  "one") "],"
                                         "\"optim\":{\"lr\":-1}}}",
                              0, NULL);
    (void)state;
    assert_int_equal(sl_config_parse(json, &c, &err), SL_SPEC);
    assert_int_equal(c.global_batch, 77); /* untouched */
    assert_non_null(strstr(err.msg, "2 errors"));
    assert_non_null(strstr(
        err.msg, "config.trainer.max_step: unknown key; the nearest known key is \"max_steps\""));
    assert_non_null(strstr(err.msg, "config.model.optim.lr: expected a number above 0, found -1"));
    json_decref(json);
}

static void reads_a_config_or_a_spec_from_a_file(void **state)
{
    char path[] = "/tmp/sl-config-XXXXXX";
    int fd = mkstemp(path);
    struct sl_config c = {0};
    struct sl_err err = SL_ERR_INIT;
    (void)state;

    assert_true(fd >= 0);
    assert_true(dprintf(fd, "{\"run\":\"r1\",\"config\":%s}", LEAST) > 0);
    assert_int_equal(sl_config_read(path, &c, &err), 0);
    assert_string_equal(c.task[0].name, "one");
    sl_config_release(&c);
    assert_int_equal(ftruncate(fd, 20), 0);
    assert_int_equal(sl_config_read(path, &c, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, path));
    close(fd);
    unlink(path);
    sl_err_clear(&err);
    assert_int_equal(sl_config_read(path, &c, &err), SL_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_the_documented_defaults),
        cmocka_unit_test(reads_every_spelling_of_a_style),
        cmocka_unit_test(a_task_may_have_a_style_of_its_own),
        cmocka_unit_test(reads_stop_strings),
        cmocka_unit_test(reads_numbers_in_each_form),
        cmocka_unit_test(a_small_global_batch_is_one_micro_batch),
        cmocka_unit_test(sorts_new_and_existing_tasks),
        cmocka_unit_test(refuses_with_every_error),
        cmocka_unit_test(reads_a_config_or_a_spec_from_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
