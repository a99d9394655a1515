/* Job specs: the rules beyond the schema, overrides from the command line, defaults. From the root
 * of the tree. */
#include "base/json.h"
#include "base/spec.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define T0 "config.model.task_templates[0]."
#define T1 "config.model.task_templates[1]."
#define SETS_MAX 6

static json_t *example;

static int read_example(void **state)
{
    struct sl_err err = SL_ERR_INIT;
    (void)state;
    if (sl_json_read("examples/wordnet.json", SL_JSON_FILE_MAX, &example, &err))
        fail_msg("%s (run from the root of the tree)", err.msg);
    return 0;
}

static int free_example(void **state)
{
    (void)state;
    json_decref(example);
    return 0;
}

static void set(json_t *spec, const char *key_value)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_spec_apply_override(spec, key_value, &err))
        fail_msg("%s", err.msg);
}

static json_t *judge(const json_t *spec)
{
    json_t *errors = NULL;
    struct sl_err err = SL_ERR_INIT;
    if (sl_spec_validate(spec, &errors, &err))
        fail_msg("%s", err.msg);
    return errors;
}

static void the_examples_are_valid(void **state)
{
    json_t *errors = judge(example), *trials = NULL;

    (void)state;
    assert_int_equal(json_array_size(errors), 0);
    json_decref(errors);
    assert_int_equal(sl_json_read("examples/wordnet-trials.json", SL_JSON_FILE_MAX, &trials, NULL), 0);
    errors = judge(trials);
    assert_int_equal(json_array_size(errors), 0);
    json_decref(errors);
    json_decref(trials);
}

static void refuses_what_a_schema_cannot_see(void **state)
{
    static const struct {
        const char *set[SETS_MAX];
        const char *path, *says;
    } bad[] = {
        {{"api=softlaunch/v2"}, "api", "newer than this program"},
        {{"api=softlaunch/v2", "name=!", "config=3"}, "api", "upgrade softlaunch"},
        {{T0 "virtual_token_splits=[8,9]"},
         T0 "virtual_token_splits",
         "sum to 17, total_virtual_tokens is 16"},
        {{T0 "virtual_token_splits=[8,8]"},
         T0 "prompt_template",
         "<|VIRTUAL_PROMPT_1|> appears 0 times"},
        {{T0 "prompt_template={context}{answer}"}, T0 "prompt_template", "appears 0 times"},
        {{T0 "prompt_template=<|VIRTUAL_PROMPT_0|>{context}<|VIRTUAL_PROMPT_0|>{answer}"},
         T0 "prompt_template",
         "appears 2 times"},
        {{T0 "prompt_template=<|VIRTUAL_PROMPT_0|><|VIRTUAL_PROMPT_1|>{context}{answer}"},
         T0 "prompt_template",
         "<|VIRTUAL_PROMPT_1|> has no split"},
        {{T0 "prompt_template=<|VIRTUAL_PROMPT_X|>{context}{answer}"},
         T0 "prompt_template",
         "is no marker"},
        {{T0 "prompt_template=<|VIRTUAL_PROMPT_0>{context}{answer}"},
         T0 "prompt_template",
         "is no marker"},
        {{T0 "truncate_field=answer", T0 "answer_only_loss=false"},
         T0 "truncate_field",
         "are both \"answer\""},
        {{T0 "truncate_field=story"}, T0 "truncate_field", "no field {story}"},
        {{T0 "answer_field=reply"}, T0 "answer_field", "no field {reply}"},
        {{T0 "answer_field=null"}, T0 "answer_field", "answer_only_loss needs answer_field"},
        {{T0 "prompt_template=<|VIRTUAL_PROMPT_0|>{context} {answer}."},
         T0 "prompt_template",
         "template that ends in {answer}"},
        {{T1 "total_virtual_tokens=12"},
         T1 "total_virtual_tokens",
         "new tasks share total_virtual_tokens: \"category\" has 16, \"part_of_speech\" 12"},
        {{T0 "total_virtual_tokens=0", T1 "total_virtual_tokens=0",
          T0 "prompt_template={context}{answer}", T1 "prompt_template={context}{answer}"},
         T0 "total_virtual_tokens",
         "at least 1 virtual token"},
        {{T1 "taskname=category"}, T1 "taskname", "an earlier template has this taskname"},
        {{"model.new_tasks=[\"category\",\"sentiment\"]",
          "model.existing_tasks=[\"part_of_speech\"]", "model.restore_path=t"},
         "config.model.new_tasks[1]",
         "no task template has taskname \"sentiment\""},
        {{"model.new_tasks=[\"category\"]"}, T1 "taskname", "in neither of them"},
        {{"model.existing_tasks=[\"part_of_speech\"]"},
         "config.model.restore_path",
         "existing_tasks needs restore_path"},
        {{"model.existing_tasks=[\"gone\"]", "model.restore_path=t"},
         "config.model.existing_tasks[0]",
         "no task template has taskname \"gone\""},
        {{"model.existing_tasks=[\"category\"]",
          "model.new_tasks=[\"category\",\"part_of_speech\"]", "model.restore_path=t"},
         "config.model.new_tasks",
         "\"category\" is in existing_tasks too"},
        {{"model.prompt_tuning.new_prompt_init_methods=[\"random\"]"},
         "config.model.prompt_tuning.new_prompt_init_methods",
         "1 methods for 2 new tasks"},
        {{"model.prompt_tuning.new_prompt_init_methods=[\"text\",\"random\"]"},
         "config.model.prompt_tuning.new_prompt_init_text[0]",
         "needs the text to start from"},
        {{"trainer.max_steps=-1"}, "config.trainer.max_epochs", "nothing would be trained"},
        {{"trainer.val_check_interval=1.5"},
         "config.trainer.val_check_interval",
         "a part of an epoch"},
        {{"model.micro_batch_size=17"},
         "config.model.micro_batch_size",
         "over global_batch_size 16"},
        {{"model.p_tuning.dropout=0.1"}, "config.model.p_tuning.dropout", "only the lstm encoder"},
        {{"model.p_tuning.encoder_type=mlp", "model.p_tuning.num_layers=1"},
         "config.model.p_tuning.num_layers",
         "at least 2 layers"},
        {{"model.data.min_seq_length=500"},
         "config.model.data.min_seq_length",
         "over max_seq_length 192"},
        {{"model.optim.lr=1e-3", "model.optim.sched.min_lr=1"}, "config.model.optim.sched.min_lr", "over lr 0.001"},
        {{"inference.choices.colour=[\"red\",\"blue\"]"},
         "config.inference.choices.colour",
         "no task template"},
        {{"inference.min_tokens=9"}, "config.inference.min_tokens", "over tokens_to_generate"},
        {{"model.data.train_ds=[\"x.jsonl\"]"},
         "config.model.data.train_ds",
         "names its rows in datasets.train"},
        {{"datasets={\"test\":[\"x\"]}"}, "datasets.train", "training needs rows"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *spec = json_deep_copy(example), *errors;
        const json_t *e = NULL;
        for (int k = 0; k < SETS_MAX && bad[i].set[k]; k++)
            set(spec, bad[i].set[k]);
        errors = judge(spec);
        for (size_t k = 0; k < json_array_size(errors); k++)
            if (!strcmp(sl_json_str(json_array_get(errors, k), "path", "?"), bad[i].path))
                e = json_array_get(errors, k);
        if (!e)
            fail_msg("%s: no error at %s, but %zu others", bad[i].set[0], bad[i].path,
                     json_array_size(errors));
        if (!strstr(sl_json_str(e, "message", ""), bad[i].says))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].set[0], sl_json_str(e, "message", ""),
                     bad[i].says);
        json_decref(errors);
        json_decref(spec);
    }
}

/* A list of trials beside the example; path and says: its first error, NULL: it is valid. */
static void trials_judged(const char *trials, const char *path, const char *says)
{
    json_t *spec = json_deep_copy(example), *errors, *first;

    json_object_set_new(spec, "trials", json_loads(trials, 0, NULL));
    errors = judge(spec);
    first = json_array_get(errors, 0);
    if (!path && first)
        fail_msg("%s: %s: %s", trials, sl_json_str(first, "path", ""), sl_json_str(first, "message", ""));
    if (path && (strcmp(sl_json_str(first, "path", "none"), path) != 0 ||
                 !strstr(sl_json_str(first, "message", ""), says)))
        fail_msg("%s: %s: %s", trials, sl_json_str(first, "path", "no error"),
                 sl_json_str(first, "message", ""));
    json_decref(errors);
    json_decref(spec);
}

static void judges_trials(void **state)
{
    (void)state;
    trials_judged("[{\"name\": \"a\"}, {\"name\": \"b\", \"overrides\": {\"model.optim.lr\": 0.1, "
                  "\"model.task_templates[0].total_virtual_tokens\": 4, "
                  "\"model.task_templates.1.total_virtual_tokens\": 4}},"
                  " {\"name\": \"c\", \"tasks\": [\"part_of_speech\"]}]",
                  NULL, NULL);
    trials_judged("[]", "trials", "at least 1");
    trials_judged("[{\"name\": \"../a\"}]", "trials[0].name", "");
    trials_judged("[{\"name\": \"a\"}, {\"name\": \"a\"}]", "trials[1].name", "an earlier trial");
    trials_judged("[{\"name\": \"a\", \"override\": {}}]", "trials[0].override",
                  "nearest known key is \"overrides\"");
    trials_judged("[{\"name\": \"a\", \"overrides\": {\"model.optim.lrr\": 1}}]",
                  "trials[0].overrides.model.optim.lrr", "the nearest is \"model.optim.lr\"");
    trials_judged("[{\"name\": \"a\", \"overrides\": {\"optim.sched.min_lr\": 1}}]",
                  "trials[0].overrides.optim.sched.min_lr", "the nearest is \"model.optim.sched.min_lr\"");
    trials_judged("[{\"name\": \"a\", \"overrides\": {\"trainer.max_steps\": 5}}]",
                  "trials[0].overrides.trainer.max_steps", "trials share the model, the rows and the steps");
    trials_judged("[{\"name\": \"a\", \"overrides\": {\"model.optim.lr=3\": 5}}]",
                  "trials[0].overrides.model.optim.lr=3", "no key that a trial may set");
    trials_judged("[{\"name\": \"a\"}, {\"name\": \"b\", \"overrides\": {\"model.optim.lr\": -1}}]",
                  "trials[1].config.model.optim.lr", "above 0");
    trials_judged("[{\"name\": \"a\", \"overrides\": {\"model.task_templates.0.total_virtual_tokens\": 4}}]",
                  "trials[0].config.model.task_templates[1].total_virtual_tokens", "share total_virtual_tokens");
    trials_judged("[{\"name\": \"a\", \"overrides\": {\"model.virtual_prompt_style\": \"no-prompts\"}}]",
                  "trials[0].config.model.task_templates[0].total_virtual_tokens", "no virtual tokens");
    trials_judged("[{\"name\": \"a\", \"tasks\": [\"sentiment\"]}]", "trials[0].tasks[0]", "no task template");
}

/* Cut to its tasks, the lists beside the templates with them. */
static void a_trial_has_a_config_of_its_own(void **state)
{
    json_t *config = json_deep_copy(json_object_get(example, "config")), *own = NULL, *errors = NULL;
    json_t *trial = json_loads("{\"name\": \"a\", \"tasks\": [\"part_of_speech\"],"
                               " \"overrides\": {\"model.optim.lr\": 0.5, \"model.seed\": 9}}",
                               0, NULL);

    (void)state;
    assert_int_equal(
        sl_config_apply_override(
            config,
            "model.prompt_tuning={\"new_prompt_init_methods\": [\"random\", \"text\"],"
            " \"new_prompt_init_text\": [null, \"is it so\"]}",
            NULL),
        0);
    assert_int_equal(sl_spec_trial_config(config, trial, &own, NULL), 0);
    assert_int_equal(sl_spec_validate_config(own, &errors, NULL), 0);
    assert_int_equal(json_array_size(errors), 0);
    assert_true(sl_json_num(own, "model.optim.lr", 0) == 0.5);
    assert_int_equal(sl_json_int(own, "model.seed", 0), 9);
    assert_int_equal(json_array_size(sl_json_get(own, "model.task_templates")), 1);
    assert_string_equal(sl_json_str(json_array_get(sl_json_get(own, "model.task_templates"), 0), "taskname", ""),
                        "part_of_speech");
    assert_int_equal(json_array_size(sl_json_get(own, "model.prompt_tuning.new_prompt_init_text")), 1);
    assert_string_equal(
        json_string_value(json_array_get(sl_json_get(own, "model.prompt_tuning.new_prompt_init_text"), 0)),
        "is it so");
    assert_null(sl_json_get(own, "inference.choices.category"));
    assert_non_null(sl_json_get(own, "inference.choices.part_of_speech"));
    /* the original is as it was */
    assert_int_equal(json_array_size(sl_json_get(config, "model.task_templates")), 2);
    assert_true(sl_json_num(config, "model.optim.lr", 0) != 0.5);
    json_decref(errors);
    json_decref(own);
    json_decref(trial);
    json_decref(config);
}

static void accepts_what_only_looks_wrong(void **state)
{
    static const char *const good[][SETS_MAX] = {
        {T0 "virtual_token_splits=[10,6]", T0 "prompt_template=<|VIRTUAL_PROMPT_1|>{context}<|"
                                              "VIRTUAL_PROMPT_0|>{\"json\": {}} {answer}"},
        {"model.existing_tasks=[\"part_of_speech\"]", "model.new_tasks=[\"category\"]",
         "model.restore_path=table", T1 "total_virtual_tokens=4"}, /* existing tasks keep theirs */
        {"model.virtual_prompt_style=NO_PROMPTS", T0 "total_virtual_tokens=0",
         T1 "total_virtual_tokens=0", T0 "prompt_template={context}\nAnswer: {answer}",
         T1 "prompt_template={context}\nAnswer: {answer}", "datasets={\"test\":[\"x\"]}"},
        {"model.p_tuning.encoder_type=lstm", "model.p_tuning.dropout=0.1",
         "model.p_tuning.num_layers=1"},
        {"model.global_batch_size=2", "model.micro_batch_size=2"},
        {T0 "answer_field=null", T0 "answer_only_loss=false"},
        {"trainer.val_check_interval=1"},
        {"model.prompt_tuning.new_prompt_init_methods=[\"random\",\"text\"]",
         "model.prompt_tuning.new_prompt_init_text=[null,\"Name the part of speech.\"]"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        json_t *spec = json_deep_copy(example), *errors;
        for (int k = 0; k < SETS_MAX && good[i][k]; k++)
            set(spec, good[i][k]);
        errors = judge(spec);
        if (json_array_size(errors))
            fail_msg("%s: %s: %s", good[i][0], sl_json_str(json_array_get(errors, 0), "path", ""),
                     sl_json_str(json_array_get(errors, 0), "message", ""));
        json_decref(errors);
        json_decref(spec);
    }
}

static void reports_every_error_at_once(void **state)
{
    json_t *spec = json_deep_copy(example), *errors;
    struct sl_buf text;
    (void)state;

    set(spec, T0 "virtual_token_splits=[3]");
    set(spec, T1 "answer_field=reply");
    set(spec, "trainer.max_steps=0");
    set(spec, "model.optim.lr=1e-3");
    set(spec, "model.optim.sched.min_lr=2");
    errors = judge(spec);
    assert_int_equal(json_array_size(errors), 4);
    sl_buf_init(&text, 4096);
    assert_int_equal(sl_spec_errors_text(errors, &text), 0);
    assert_non_null(strstr(text.p, "  " T0 "virtual_token_splits: the splits sum to 3"));
    assert_non_null(strstr(text.p, "  config.model.optim.sched.min_lr: 2 is over lr 0.001\n"));
    sl_buf_release(&text);
    json_decref(errors);
    json_decref(spec);
}

static void judges_a_config_alone(void **state)
{
    json_t *config = json_deep_copy(json_object_get(example, "config")), *errors = NULL;
    (void)state;

    assert_int_equal(sl_spec_validate_config(config, &errors, NULL), 0);
    assert_int_equal(json_array_size(errors), 0);
    json_decref(errors);
    /* by hand, a config names its files itself */
    json_object_set_new(json_object_get(json_object_get(config, "model"), "data"), "train_ds",
                        json_pack("[s]", "a.jsonl"));
    assert_int_equal(sl_spec_validate_config(config, &errors, NULL), 0);
    assert_int_equal(json_array_size(errors), 0);
    json_decref(errors);
    json_object_set_new(config, "modle", json_true());
    assert_int_equal(sl_spec_validate_config(config, &errors, NULL), 0);
    assert_int_equal(json_array_size(errors), 1);
    assert_string_equal(sl_json_str(json_array_get(errors, 0), "path", ""), "config.modle");
    assert_non_null(strstr(sl_json_str(json_array_get(errors, 0), "message", ""), "\"model\""));
    json_decref(errors);
    json_decref(config);
}

static void overrides_set_one_key(void **state)
{
    json_t *spec = json_deep_copy(example);
    (void)state;

    set(spec, "model.optim.lr=3e-4");
    assert_true(sl_json_num(spec, "config.model.optim.lr", 0) == 3e-4);
    set(spec, "config.model.optim.lr=0.5");
    assert_true(sl_json_num(spec, "config.model.optim.lr", 0) == 0.5);
    set(spec, "model=other:v3");
    assert_string_equal(sl_json_str(spec, "model", ""), "other:v3");
    set(spec, "name=a=b");
    assert_string_equal(sl_json_str(spec, "name", ""), "a=b");
    set(spec, "name=");
    assert_string_equal(sl_json_str(spec, "name", "x"), "");
    set(spec, "name=\"17\"");
    assert_string_equal(sl_json_str(spec, "name", "x"), "17");
    set(spec, "trainer.precision=bf16");
    assert_string_equal(sl_json_str(spec, "config.trainer.precision", ""), "bf16");
    set(spec, "exp_manager.early_stopping_callback_params.patience=3"); /* made on the way */
    assert_int_equal(
        sl_json_int(spec, "config.exp_manager.early_stopping_callback_params.patience", 0), 3);
    set(spec, "datasets.train.1=http://h/x.jsonl"); /* one past the end */
    assert_int_equal(json_array_size(sl_json_get(spec, "datasets.train")), 2);
    set(spec, "model.task_templates[1].answer_only_loss=false");
    set(spec, "model.task_templates.0.taskname=kind");
    const json_t *templates = sl_json_get(spec, "config.model.task_templates");
    assert_false(sl_json_bool(json_array_get(templates, 1), "answer_only_loss", true));
    assert_string_equal(sl_json_str(json_array_get(templates, 0), "taskname", ""), "kind");
    json_decref(spec);
}

static void overrides_that_make_no_sense_change_nothing(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"model.optim.lr", "write key=value"},
        {"=3", "empty part"},
        {"model..lr=3", "empty part"},
        {"name.first=x", "\"name\" is a value, it has no key \"first\""},
        {"datasets.train.9=x", "\"9\" is no index of an array of 1"},
        {"datasets.train.x=y", "\"x\" is no index"},
        {"datasets.train[0=y", "an index is written"},
        {"datasets.train[0]x=y", "an index is written"},
        {"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.a.b.c.d.e.f.g=1", "at most 32 parts"},
        {"name=\xff", "not UTF-8"},
    };
    json_t *spec = json_deep_copy(example);
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_err err = SL_ERR_INIT;
        assert_int_equal(sl_spec_apply_override(spec, bad[i].text, &err), SL_SPEC);
        if (!strstr(err.msg, bad[i].says))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].text, err.msg, bad[i].says);
        assert_true(json_equal(spec, example));
    }
    json_decref(spec);
}

static void fills_defaults_that_are_valid(void **state)
{
    json_t *spec = json_deep_copy(example), *full = NULL, *again = NULL, *errors;
    (void)state;

    json_object_del(spec, "priority");
    json_object_del(spec, "retry");
    json_object_del(json_object_get(spec, "config"), "trainer");
    json_object_del(json_object_get(json_object_get(spec, "config"), "model"), "optim");
    assert_int_equal(sl_spec_with_defaults(spec, &full, NULL), 0);
    assert_string_equal(sl_json_str(full, "priority", ""), "medium");
    assert_int_equal(sl_json_int(full, "retry.max_attempts", 0), 3);
    assert_true(sl_json_num(full, "config.trainer.gradient_clip_val", 0) == 1.0);
    assert_int_equal(sl_json_int(full, "config.model.optim.sched.warmup_steps", 0), 50);
    assert_int_equal(
        sl_json_int(full, "config.exp_manager.early_stopping_callback_params.patience", 0), 10);
    assert_null(
        sl_json_get(full, "config.model.optim.lr")); /* depends on the style: engine/config.h */
    assert_null(sl_json_get(spec, "priority"));      /* the original is as it was */
    errors = judge(full);
    assert_int_equal(json_array_size(errors), 0);
    assert_int_equal(sl_spec_with_defaults(full, &again, NULL), 0);
    assert_true(json_equal(full, again));
    json_decref(errors);
    json_decref(again);
    json_decref(full);
    json_decref(spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_examples_are_valid),
        cmocka_unit_test(refuses_what_a_schema_cannot_see),
        cmocka_unit_test(judges_trials),
        cmocka_unit_test(a_trial_has_a_config_of_its_own),
        cmocka_unit_test(accepts_what_only_looks_wrong),
        cmocka_unit_test(reports_every_error_at_once),
        cmocka_unit_test(judges_a_config_alone),
        cmocka_unit_test(overrides_set_one_key),
        cmocka_unit_test(overrides_that_make_no_sense_change_nothing),
        cmocka_unit_test(fills_defaults_that_are_valid),
    };
    return cmocka_run_group_tests(tests, read_example, free_example);
}
