/* NeMo YAML as a job spec: the example with every key, what becomes what, messages.
 * From the root of the tree. */
#include "base/config_yaml.h"
#include "base/json.h"
#include "base/spec.h"
#include "base/yaml.h"
#include "engine/config.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define EXAMPLE "examples/megatron_gpt_prompt_learning.yaml"
#define GIVEN "model.language_model_path=smollm2:latest"
#define SETS_MAX 8

/* As NeMo publishes it, with more tasks than are trained. */
static const char nemo[] =
    "name: Megatron Virtual_Prompt.GPT\n"
    "trainer:\n"
    "  devices: 1\n"
    "  accelerator: gpu\n"
    "  num_nodes: 1\n"
    "  precision: bf16-mixed\n"
    "  logger: False # logger provided by exp_manager\n"
    "  enable_checkpointing: False\n"
    "  use_distributed_sampler: False\n"
    "  max_epochs: null\n"
    "  max_steps: 100\n"
    "  log_every_n_steps: 10\n"
    "  val_check_interval: 0.5\n"
    "  gradient_clip_val: null\n"
    "  resume_from_checkpoint: null\n"
    "  benchmark: False\n"
    "exp_manager:\n"
    "  explicit_log_dir: null\n"
    "  exp_dir: /exp\n"
    "  name: ${name}\n"
    "  create_wandb_logger: False\n"
    "  wandb_logger_kwargs:\n"
    "    project: ${oc.env:USER}\n"
    "  resume_if_exists: True\n"
    "  checkpoint_callback_params:\n"
    "    save_top_k: 2\n"
    "    filename: 'tune--{val_loss:.3f}-{step}'\n"
    "    model_parallel_size: ${model.tensor_model_parallel_size}\n"
    "model:\n"
    "  seed: 1234\n"
    "  nemo_path: ${name}.nemo\n"
    "  virtual_prompt_style: 'p-tuning'\n"
    "  tensor_model_parallel_size: 1\n"
    "  global_batch_size: 8\n"
    "  micro_batch_size: ${model.global_batch_size}\n"
    "  restore_path: null\n"
    "  language_model_path: models/gpt.nemo\n"
    "  existing_tasks: []\n"
    "  new_tasks: ['rte']\n"
    "  task_templates:\n"
    "  - taskname: \"boolq\"\n"
    "    prompt_template: \"<|VIRTUAL_PROMPT_0|> {passage} <|VIRTUAL_PROMPT_1|> \\nAnswer: "
    "{answer}\"\n"
    "    total_virtual_tokens: 30\n"
    "    virtual_token_splits: [20, 10]\n"
    "    truncate_field: \"passage\"\n"
    "    answer_only_loss: True\n"
    "    answer_field: \"answer\"\n"
    "  - taskname: \"rte\"\n"
    "    prompt_template: \"<|VIRTUAL_PROMPT_0|>{premise}\\n{hypothesis}\\nAnswer: {answer}\"\n"
    "    total_virtual_tokens: 9\n"
    "    virtual_token_splits: [9]\n"
    "    truncate_field: null\n"
    "    answer_only_loss: True\n"
    "    answer_field: \"answer\"\n"
    "  prompt_tuning:\n"
    "    new_prompt_init_methods: ['text', 'text']\n"
    "    new_prompt_init_text: ['some init text goes here']\n"
    "  p_tuning:\n"
    "    dropout: 0.0\n"
    "    num_layers: 2\n"
    "  data:\n"
    "    train_ds: [data/rte_train.jsonl,]\n"
    "    validation_ds: data/rte_val.jsonl\n"
    "    add_eos: True\n"
    "    num_workers: 8\n"
    "  optim:\n"
    "    name: fused_adam\n"
    "    sched:\n"
    "      name: CosineAnnealing\n"
    "      monitor: val_loss\n"
    "      reduce_on_plateau: false\n";

static char dir[] = "/tmp/sl-config-yaml-XXXXXX", path[64];

static int make_dir(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/c.yaml", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

static void put(const char *text)
{
    assert_int_equal(sl_file_write(path, text, strlen(text), NULL), 0);
}

static struct sl_config_yaml_options options(char *const *sets)
{
    struct sl_config_yaml_options o = {.overrides = sets};

    while (sets && sets[o.n_overrides])
        o.n_overrides++;
    return o;
}

static struct sl_config_yaml read_with(const char *file, struct sl_config_yaml_options o)
{
    struct sl_config_yaml c = {0};
    struct sl_err err = SL_ERR_INIT;

    if (sl_config_yaml_read(file, &o, &c, &err))
        fail_msg("%s", err.msg);
    return c;
}

static void has_note(const struct sl_config_yaml *c, const char *text)
{
    size_t i;
    json_t *v;

    json_array_foreach(c->notes, i, v)
        if (!strcmp(json_string_value(v), text))
            return;
    fail_msg("no note \"%s\"", text);
}

static const char *note(const struct sl_config_yaml *c, size_t i)
{
    const char *s = json_string_value(json_array_get(c->notes, i));

    return s ? s : "";
}

static void print_errors(const struct sl_config_yaml *c)
{
    char *text = json_dumps(c->errors, JSON_INDENT(1));

    print_message("%s\n", text);
    free(text);
}

static void valid(const struct sl_config_yaml *c)
{
    if (!json_array_size(c->errors))
        return;
    print_errors(c);
    fail_msg("%zu errors", json_array_size(c->errors));
}

static void has_error(const struct sl_config_yaml *c, const char *at, const char *message)
{
    size_t i;
    json_t *e;

    json_array_foreach(c->errors, i, e)
        if (!strcmp(sl_json_str(e, "path", ""), at) &&
            strstr(sl_json_str(e, "message", ""), message))
            return;
    print_errors(c);
    fail_msg("no error \"%s\" at %s", message, at);
}

/* ---- the example ---- */

static const json_t *resolve(const json_t *root, const json_t *schema)
{
    const char *ref = json_string_value(json_object_get(schema, "$ref"));

    return ref ? json_object_get(json_object_get(root, "$defs"), strrchr(ref, '/') + 1) : schema;
}

/* Every property of schema is a key of value, itself or in every element of a list. */
static int covered(const json_t *root, const json_t *schema, const json_t *value, const char *at)
{
    char below[512];
    const char *key;
    json_t *child;
    int n = 0;

    schema = resolve(root, schema);
    if (json_object_get(schema, "items") && json_is_array(value) &&
        json_object_get(resolve(root, json_object_get(schema, "items")), "properties"))
        return covered(root, json_object_get(schema, "items"), json_array_get(value, 0), at);
    json_object_foreach(json_object_get(schema, "properties"), key, child) {
        snprintf(below, sizeof below, "%s.%s", at, key);
        if (!json_object_get(value, key))
            fail_msg("%s lacks the key %s", EXAMPLE, below);
        const json_t *otherwise = json_object_get(child, "default"),
                     *v = json_object_get(value, key);

        if (otherwise && !strstr(" answer_only_loss train_ds validation_ds max_seq_length ", key) &&
            !json_equal(otherwise, v) && json_number_value(otherwise) != json_number_value(v))
            fail_msg("%s says that its value of %s is the default", EXAMPLE, below);
        n += 1 + covered(root, child, json_object_get(value, key), below);
    }
    return n;
}

static void the_example_has_every_key_and_is_valid(void **state)
{
    struct sl_config_yaml c;
    struct sl_config config = {0};
    struct sl_err err = SL_ERR_INIT;
    json_t *yaml = NULL, *schema = NULL;
    const json_t *spec_keys;
    char *sets[] = {GIVEN, NULL};
    const char *key;
    json_t *child;
    int n = 0;

    (void)state;
    assert_int_equal(sl_yaml_read(EXAMPLE, &yaml, NULL), 0);
    assert_int_equal(sl_json_read("base/job.schema.json", SL_JSON_FILE_MAX, &schema, NULL), 0);
    n = covered(schema, sl_json_get(schema, "$defs.config"), yaml, "");
    assert_true(n > 70);
    spec_keys = json_object_get(schema, "properties");
    json_object_foreach((json_t *)spec_keys, key, child)
        if (!strstr(" api config datasets model origin trials ", key)) {
            if (!json_object_get(yaml, key))
                fail_msg("%s lacks the key %s", EXAMPLE, key);
            covered(schema, child, json_object_get(yaml, key), key);
        }

    c = read_with(EXAMPLE, options(sets));
    valid(&c);
    assert_int_equal(json_array_size(c.notes), 0); /* nothing in it is ignored */
    assert_int_equal(sl_config_parse(json_object_get(c.spec, "config"), &config, &err), 0);
    assert_true(config.optim.lr == 1e-4 && config.global_batch == 8 &&
                config.new_virtual_tokens == 15);
    assert_string_equal(config.nemo_path, "squad-ptuning.nemo");
    sl_config_release(&config);

    json_decref(yaml);
    json_decref(schema);
    sl_config_yaml_release(&c);
}

static void the_example_demands_a_model(void **state)
{
    struct sl_config_yaml c = read_with(EXAMPLE, options(NULL));

    (void)state;
    assert_int_equal(json_array_size(c.errors), 1);
    has_error(&c, "model.language_model_path", "it has to be given: model.language_model_path=...");
    sl_config_yaml_release(&c);
}

/* ---- NeMo's own ---- */

static void what_becomes_what(void **state)
{
    struct sl_config_yaml c;
    const json_t *model;

    (void)state;
    put(nemo);
    c = read_with(path, options(NULL));
    valid(&c);
    assert_string_equal(sl_json_str(c.spec, "name", ""), "megatron-virtual_prompt.gpt");
    assert_string_equal(sl_json_str(c.spec, "outputs.artifact", ""), "megatron-virtual_prompt.gpt");
    assert_string_equal(sl_json_str(c.spec, "model", ""), "models/gpt.nemo");
    assert_string_equal(json_string_value(json_array_get(sl_json_get(c.spec, "datasets.train"), 0)),
                        "data/rte_train.jsonl");
    assert_string_equal(
        json_string_value(json_array_get(sl_json_get(c.spec, "datasets.validation"), 0)),
        "data/rte_val.jsonl");
    assert_null(sl_json_get(c.spec, "datasets.test"));
    assert_string_equal(c.run_dir, "/exp/Megatron Virtual_Prompt.GPT");
    model = sl_json_get(c.spec, "config.model");
    assert_string_equal(sl_json_str(model, "nemo_path", ""), "Megatron Virtual_Prompt.GPT.nemo");
    assert_int_equal(sl_json_int(model, "micro_batch_size", 0), 8); /* an integer, not "8" */
    assert_true(sl_json_num(model, "optim.lr", 0) == SL_NEMO_LR);
    assert_int_equal(json_array_size(json_object_get(model, "task_templates")), 1);
    assert_null(json_object_get(model, "prompt_tuning"));
    assert_int_equal(sl_json_int(c.spec, "config.trainer.max_epochs", 0), -1);
    assert_true(sl_json_num(c.spec, "config.trainer.gradient_clip_val", 7) == 0);
    assert_string_equal(sl_json_str(c.spec, "config.trainer.precision", ""), "bf16");
    assert_int_equal(json_array_size(c.notes), 2);
    assert_string_equal(
        note(&c, 0),
        "ignored, since they mean nothing here: trainer.accelerator, trainer.num_nodes, "
        "trainer.logger, "
        "trainer.enable_checkpointing, trainer.use_distributed_sampler, trainer.log_every_n_steps, "
        "trainer.benchmark, exp_manager.create_wandb_logger, exp_manager.wandb_logger_kwargs, "
        "exp_manager.checkpoint_callback_params.filename, "
        "exp_manager.checkpoint_callback_params.model_parallel_size, "
        "model.tensor_model_parallel_size, "
        "model.data.num_workers, model.optim.sched.monitor");
    assert_non_null(strstr(note(&c, 1), "the template of task \"boolq\" is left out"));
    sl_config_yaml_release(&c);
}

static void overrides_have_types(void **state)
{
    char *sets[] = {"model.optim.lr=3e-4",
                    "model.new_tasks=[rte, boolq]",
                    "++trainer.max_steps=1_000",
                    "+trainer.max_epochs=2",
                    "~model.data.num_workers",
                    "model.data.add_eos=False",
                    "priority=high",
                    NULL};
    struct sl_config_yaml c;

    (void)state;
    put(nemo);
    c = read_with(path, options(sets));
    assert_true(sl_json_num(c.spec, "config.model.optim.lr", 0) == 3e-4);
    assert_int_equal(sl_json_int(c.spec, "config.trainer.max_steps", 0), 1000);
    assert_int_equal(sl_json_int(c.spec, "config.trainer.max_epochs", 0), 2);
    assert_false(sl_json_bool(c.spec, "config.model.data.add_eos", true));
    assert_string_equal(sl_json_str(c.spec, "priority", ""), "high");
    assert_null(strstr(note(&c, 0), "num_workers"));
    /* both templates are there now, and their numbers of virtual tokens differ */
    has_error(&c, "model.task_templates[1].total_virtual_tokens",
              "new tasks share total_virtual_tokens");
    assert_int_equal(json_array_size(c.errors), 1);
    sl_config_yaml_release(&c);
}

static void mistakes_are_named(void **state)
{
    char *sets[] = {"model.optim.lrr=1",
                    "trainer.max_steps=many",
                    "model.data.train_ds=[7]",
                    "trainer.limit_val_batches=5",
                    "model.restore_path=a.nemo",
                    "trainr.devices=2",
                    "queue=A B",
                    NULL};
    struct sl_config_yaml c;

    (void)state;
    put(nemo);
    c = read_with(path, options(sets));
    has_error(&c, "model.optim.lrr", "unknown key; the nearest known key is \"lr\"");
    has_error(&c, "trainer.max_steps", "expected an integer, found \"many\"");
    has_error(&c, "model.data.train_ds[0]", "expected a string or an object, found 7");
    has_error(&c, "trainer.limit_val_batches", "softlaunch has nothing like it");
    has_error(&c, "trainr", "unknown key; the nearest known key is \"trainer\"");
    has_error(&c, "queue", "");
    sl_config_yaml_release(&c);
}

static void unknown_keys_can_be_allowed(void **state)
{
    char *sets[] = {"model.optim.lrr=1", "model.task_templates.1.colour=red", "nonsense.a.b=[1]",
                    NULL};
    struct sl_config_yaml_options o = options(sets);
    struct sl_config_yaml c;

    (void)state;
    put(nemo);
    o.allow_unknown = true;
    c = read_with(path, o);
    valid(&c);
    assert_int_equal(json_array_size(c.notes), 5);
    has_note(&c, "model.optim.lrr is ignored: unknown key; the nearest known key is \"lr\"");
    has_note(&c, "model.task_templates[0].colour is ignored: unknown key; the nearest known key is "
                 "\"taskname\"");
    has_note(&c, "nonsense is ignored: unknown key; the nearest known key is \"inference\"");
    assert_null(sl_json_get(c.spec, "config.nonsense"));
    sl_config_yaml_release(&c);
}

static void a_config_alone_may_lack_model_and_files(void **state)
{
    char *sets[] = {"model.data.train_ds=?\?\?", "model.data.validation_ds=[v.jsonl]", NULL};
    struct sl_config_yaml_options o = options(sets);
    struct sl_config_yaml c;

    (void)state;
    o.config_only = true;
    c = read_with(EXAMPLE, o);
    valid(&c);
    assert_null(json_object_get(c.spec, "api"));
    assert_null(sl_json_get(c.spec, "model.data.train_ds"));
    assert_int_equal(json_array_size(sl_json_get(c.spec, "model.data.validation_ds")), 1);
    sl_config_yaml_release(&c);
}

static void the_engine_reads_it(void **state)
{
    struct sl_config c = {0};
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    put(nemo);
    if (sl_config_read(path, &c, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(c.trainer.max_steps, 100);
    assert_int_equal(c.data.train.n, 1);
    assert_string_equal(c.language_model_path, "models/gpt.nemo");
    sl_config_release(&c);
    put("model: {task_templates: []}\n");
    assert_int_equal(sl_config_read(path, &c, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "model.task_templates: "));
}

static void refused(const char *text, char *const *sets, const char *message)
{
    struct sl_config_yaml_options o = options(sets);
    struct sl_config_yaml c = {0};
    struct sl_err err = SL_ERR_INIT;

    put(text);
    if (sl_config_yaml_read(path, &o, &c, &err) != SL_SPEC || !strstr(err.msg, message) ||
        !strstr(err.msg, path))
        fail_msg("\"%s\", not \"%s\"", err.msg, message);
}

static void files_that_are_none(void **state)
{
    char *env[] = {"model.nemo_path=${oc.env:HOME}", NULL};
    struct sl_err err = SL_ERR_INIT;
    struct sl_config_yaml_options o = {0};
    struct sl_config_yaml c = {0};

    (void)state;
    refused("", NULL, "it has no section \"model:\"");
    refused("- a\n", NULL, "it has no section \"model:\"");
    refused("model: x\n", NULL, "it has no section \"model:\"");
    refused("api: softlaunch/v1\nconfig: {}\n", NULL, "is a job spec");
    refused("model:\n  a: 1\n  a: 2\n", NULL, ":3: the key \"a\" is there twice");
    refused(nemo, env, "model.nemo_path: ${oc.env:HOME} asks for what is outside of the file");
    assert_int_equal(sl_config_yaml_read("no/such.yaml", &o, &c, &err), SL_NOTFOUND);
}

static void wrong_overrides(void **state)
{
    static char *const wrong[][2] = {{"model.seed", "write key=value"},
                                     {"~model.nothing", "there is no \"nothing\" to remove"},
                                     {"model.seed.x=1", "\"seed\" is a value"},
                                     {"model.new_tasks.7=x", "is no index"}};
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char *sets[] = {wrong[i][0], NULL};
        struct sl_config_yaml_options o = options(sets);
        struct sl_config_yaml c = {0};

        err = (struct sl_err)SL_ERR_INIT;
        put(nemo);
        if (sl_config_yaml_read(path, &o, &c, &err) != SL_SPEC || !strstr(err.msg, wrong[i][1]) ||
            !strstr(err.msg, wrong[i][0]))
            fail_msg("%s: \"%s\"", wrong[i][0], err.msg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_has_every_key_and_is_valid),
        cmocka_unit_test(the_example_demands_a_model),
        cmocka_unit_test(what_becomes_what),
        cmocka_unit_test(overrides_have_types),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(unknown_keys_can_be_allowed),
        cmocka_unit_test(a_config_alone_may_lack_model_and_files),
        cmocka_unit_test(the_engine_reads_it),
        cmocka_unit_test(files_that_are_none),
        cmocka_unit_test(wrong_overrides),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
