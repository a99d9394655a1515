#include "engine/config.h"
#include "base/config_yaml.h"
#include "base/json.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define ERRORS_TEXT_MAX 1800 /* of an error message */

static const char *const style_names[] = {"p-tuning", "prompt-tuning", "no-prompts"};
static const char *const encoder_names[] = {"table", "tpmlp", "mlp", "lstm", "embedding"};
static const char *const metric_names[] = {"accuracy", "bleu", "rouge", "exact_match", "f1"};

const char *sl_style_name(enum sl_style style)
{
    return style_names[style];
}

const char *sl_metric_name(enum sl_metric metric)
{
    return metric_names[metric];
}

double sl_default_lr(enum sl_style style)
{
    return style == SL_STYLE_PROMPT_TUNING ? SL_DEFAULT_LR_PROMPT_TUNING : SL_DEFAULT_LR_P_TUNING;
}

const char *sl_encoder_type_name(enum sl_encoder_type type)
{
    return encoder_names[type];
}

/* The schema has made sure that the name is one of them. Upper case and `_` are
 * the same name. */
static int index_of(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++) {
        const char *a = names[i], *b = name;
        while (*a && (*a == tolower((unsigned char)*b) || (*a == '-' && *b == '_')))
            a++, b++;
        if (!*a && !*b)
            return i;
    }
    return 0;
}

/* Integers may be written 2.0: JSON Schema calls that an integer too. */
static int64_t integer(const json_t *json, const char *path)
{
    return (int64_t)sl_json_num(json, path, 0);
}

/* A string that may be absent. */
static int copy_string(const json_t *json, const char *path, char **ret_s)
{
    const char *s = sl_json_str(json, path, NULL);
    if (!s)
        return 0;
    *ret_s = strdup(s);
    return *ret_s ? 0 : SL_NOMEM;
}

static int copy_strings(const json_t *list, int *ret_n, char ***ret_s)
{
    size_t n = json_array_size(list);
    if (!n)
        return 0;
    *ret_s = calloc(n, sizeof **ret_s);
    if (!*ret_s)
        return SL_NOMEM;
    for (; (size_t)*ret_n < n; ++*ret_n)
        if (!((*ret_s)[*ret_n] = strdup(json_string_value(json_array_get(list, (size_t)*ret_n)))))
            return SL_NOMEM;
    return 0;
}

static void free_strings(int n, char **s)
{
    for (int i = 0; i < n; i++)
        free(s[i]);
    free(s);
}

static int position(const json_t *list, const char *name)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): the schema wants a taskname */
        if (strcmp(json_string_value(json_array_get(list, i)), name) == 0)
            return (int)i;
    return -1;
}

static int fill_task(struct sl_task *t, const json_t *json, const json_t *config)
{
    const json_t *splits = json_object_get(json, "virtual_token_splits");
    const json_t *choices = sl_json_get(config, "inference.choices");
    int rc = 0;

    if ((rc = copy_string(json, "taskname", &t->name)) ||
        (rc = copy_string(json, "prompt_template", &t->prompt_template)) ||
        (rc = copy_string(json, "truncate_field", &t->truncate_field)) ||
        (rc = copy_string(json, "answer_field", &t->answer_field)) ||
        (rc = copy_strings(json_object_get(choices, t->name), &t->n_choices, &t->choice)))
        return rc;
    t->total_virtual_tokens = (int)integer(json, "total_virtual_tokens");
    t->answer_only_loss = sl_json_bool(json, "answer_only_loss", false);
    t->n_splits = splits ? (int)json_array_size(splits) : t->total_virtual_tokens > 0;
    t->split[0] = t->total_virtual_tokens;
    for (int i = 0; splits && i < t->n_splits; i++)
        t->split[i] = (int)json_number_value(json_array_get(splits, (size_t)i));
    return 0;
}

static int fill_tasks(struct sl_config *c, const json_t *config)
{
    const json_t *templates = sl_json_get(config, "model.task_templates");
    const json_t *news = sl_json_get(config, "model.new_tasks");
    const json_t *olds = sl_json_get(config, "model.existing_tasks");
    const json_t *methods = sl_json_get(config, "model.prompt_tuning.new_prompt_init_methods");
    const json_t *texts = sl_json_get(config, "model.prompt_tuning.new_prompt_init_text");
    int n = (int)json_array_size(templates), at, rc;

    c->task = calloc((size_t)n, sizeof *c->task);
    if (!c->task)
        return SL_NOMEM;
    for (; c->n_tasks < n; c->n_tasks++) {
        struct sl_task *t = &c->task[c->n_tasks];
        const char *style = sl_json_str(json_array_get(templates, (size_t)c->n_tasks),
                                        "virtual_prompt_style", NULL);
        t->style = style ? (enum sl_style)index_of(style_names, 3, style) : c->style;
        if ((rc = fill_task(t, json_array_get(templates, (size_t)c->n_tasks), config))) {
            c->n_tasks++; /* release what it holds */
            return rc;
        }
        if (position(olds, t->name) >= 0)
            continue;
        t->is_new = true;
        c->new_virtual_tokens = t->total_virtual_tokens;
        at = news ? position(news, t->name)
                  : c->n_new_tasks; /* methods and texts go with new_tasks */
        c->n_new_tasks++;
        const char *method = json_string_value(json_array_get(methods, (size_t)at));
        if (!method || strcmp(method, "text") != 0)
            continue;
        t->init_method = SL_INIT_TEXT;
        t->init_text = strdup(json_string_value(json_array_get(texts, (size_t)at)));
        if (!t->init_text)
            return SL_NOMEM;
    }
    return 0;
}

static enum sl_precision precision_of(const json_t *v)
{
    static const struct {
        const char *name;
        enum sl_precision precision;
    } names[] = {{"bf16", SL_PRECISION_BF16}, {"16", SL_PRECISION_BF16}, {"fp8", SL_PRECISION_FP8}, {"int8", SL_PRECISION_INT8}};
    const char *name = json_string_value(v);

    if (json_number_value(v) == 16)
        return SL_PRECISION_BF16;
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i].name))
            return names[i].precision;
    return SL_PRECISION_FP32;
}

static void fill_trainer(struct sl_config *c, const json_t *config)
{
    const json_t *trainer = json_object_get(config, "trainer"), *v;
    const json_t *exp = json_object_get(config, "exp_manager");

    c->trainer.devices = (int)integer(trainer, "devices");
    c->trainer.precision = precision_of(json_object_get(trainer, "precision"));
    c->trainer.max_epochs = (int)integer(trainer, "max_epochs");
    if (c->trainer.max_epochs < 1)
        c->trainer.max_epochs = -1;
    c->trainer.max_steps = (int)integer(trainer, "max_steps");
    if (c->trainer.max_steps < 1)
        c->trainer.max_steps = -1;
    v = json_object_get(trainer, "val_check_interval");
    if (json_is_integer(v))
        c->trainer.val_check_steps = (int)json_integer_value(v);
    else
        c->trainer.val_check_fraction = json_is_real(v) ? json_real_value(v) : 1.0;
    c->trainer.gradient_clip = sl_json_num(trainer, "gradient_clip_val", 0);
    c->trainer.accumulate_grad_batches = (int)integer(trainer, "accumulate_grad_batches");

    c->exp.resume_if_exists = sl_json_bool(exp, "resume_if_exists", false);
    c->exp.save_top_k = (int)integer(exp, "checkpoint_callback_params.save_top_k");
    c->exp.save_best_model = sl_json_bool(exp, "checkpoint_callback_params.save_best_model", false);
    c->exp.early_stopping = sl_json_bool(exp, "create_early_stopping_callback", false);
    c->exp.min_delta = sl_json_num(exp, "early_stopping_callback_params.min_delta", 0);
    c->exp.patience = (int)integer(exp, "early_stopping_callback_params.patience");
}

static int fill_model(struct sl_config *c, const json_t *m)
{
    const json_t *rows = sl_json_get(m, "p_tuning.taskname_rows");
    int rc;

    c->seed = (uint64_t)integer(m, "seed");
    c->style = (enum sl_style)index_of(style_names, 3, sl_json_str(m, "virtual_prompt_style", ""));
    c->global_batch = (int)integer(m, "global_batch_size");
    c->micro_batch = (int)integer(m, "micro_batch_size");
    if (c->micro_batch > c->global_batch)
        c->micro_batch = c->global_batch;
    c->report_validation_metric = sl_json_bool(m, "report_validation_metric", false);
    c->validation_metric =
        (enum sl_metric)index_of(metric_names, 5, sl_json_str(m, "validation_metric", ""));
    if ((rc = copy_string(m, "restore_path", &c->restore_path)) ||
        (rc = copy_string(m, "language_model_path", &c->language_model_path)) ||
        (rc = copy_string(m, "nemo_path", &c->nemo_path)))
        return rc;

    c->p_tuning.encoder_type = (enum sl_encoder_type)index_of(
        encoder_names, 5, sl_json_str(m, "p_tuning.encoder_type", ""));
    c->p_tuning.dropout = sl_json_num(m, "p_tuning.dropout", 0);
    c->p_tuning.num_layers = (int)integer(m, "p_tuning.num_layers");
    c->p_tuning.encoder_hidden = (int)integer(m, "p_tuning.encoder_hidden");
    c->p_tuning.init_std = sl_json_num(m, "p_tuning.init_std", 0);
    c->p_tuning.taskname_rows = json_is_true(rows)    ? SL_TASKNAME_ROWS_ON
                                : json_is_false(rows) ? SL_TASKNAME_ROWS_OFF
                                                      : SL_TASKNAME_ROWS_AUTO;
    return 0;
}

static int fill_data(struct sl_config *c, const json_t *d)
{
    int rc;

    c->data.add_bos = sl_json_bool(d, "add_bos", false);
    c->data.add_eos = sl_json_bool(d, "add_eos", false);
    c->data.shuffle = sl_json_bool(d, "shuffle", false);
    c->data.strip_space_around_virtual_tokens =
        sl_json_bool(d, "strip_space_around_virtual_tokens", false);
    c->data.max_seq_length = (int)integer(d, "max_seq_length");
    c->data.min_seq_length = (int)integer(d, "min_seq_length");
    if ((rc = copy_strings(json_object_get(d, "train_ds"), &c->data.train.n, &c->data.train.s)) ||
        (rc = copy_strings(json_object_get(d, "validation_ds"), &c->data.validation.n,
                           &c->data.validation.s)))
        return rc;
    return copy_strings(json_object_get(d, "test_ds"), &c->data.test.n, &c->data.test.s);
}

static void fill_optim(struct sl_config *c, const json_t *o)
{
    c->optim.lr_is_default = !sl_json_get(o, "lr");
    c->optim.lr = sl_json_num(o, "lr", sl_default_lr(c->style));
    c->optim.beta1 = json_number_value(json_array_get(json_object_get(o, "betas"), 0));
    c->optim.beta2 = json_number_value(json_array_get(json_object_get(o, "betas"), 1));
    c->optim.weight_decay = sl_json_num(o, "weight_decay", 0);
    c->optim.eps = sl_json_num(o, "eps", 0);
    c->optim.warmup_steps = (int)integer(o, "sched.warmup_steps");
    c->optim.constant_steps = (int)integer(o, "sched.constant_steps");
    c->optim.min_lr = sl_json_num(o, "sched.min_lr", 0);
}

static int fill_inference(struct sl_config *c, const json_t *i)
{
    c->inference.greedy = sl_json_bool(i, "greedy", true);
    c->inference.top_k = (int)integer(i, "top_k");
    c->inference.top_p = sl_json_num(i, "top_p", 1);
    c->inference.temperature = sl_json_num(i, "temperature", 1);
    c->inference.repetition_penalty = sl_json_num(i, "repetition_penalty", 1);
    c->inference.tokens_to_generate = (int)integer(i, "tokens_to_generate");
    c->inference.min_tokens = (int)integer(i, "min_tokens");
    return copy_strings(json_object_get(i, "stop"), &c->inference.stop.n, &c->inference.stop.s);
}

static int refuse(const json_t *errors, struct sl_err *err)
{
    struct sl_buf text;
    size_t n = json_array_size(errors);
    int rc;

    sl_buf_init(&text, ERRORS_TEXT_MAX); /* what does not fit is left out, whole
                                            lines at a time */
    sl_spec_errors_text(errors, &text);
    rc = sl_err_set(err, SL_SPEC, "the configuration has %zu error%s:\n%s", n, n == 1 ? "" : "s",
                    text.p);
    sl_buf_release(&text);
    return rc;
}

int sl_config_parse(const json_t *config, struct sl_config *ret_config, struct sl_err *err)
{
    struct sl_config c = {0};
    json_t *errors = NULL, *full = NULL;
    int rc = sl_spec_validate_config(config, &errors, err);

    if (!rc && json_array_size(errors))
        rc = refuse(errors, err);
    if (!rc)
        rc = sl_spec_config_with_defaults(config, &full, err);
    if (!rc) {
        const json_t *model = json_object_get(full, "model");
        fill_trainer(&c, full);
        rc = fill_model(&c, model);
        if (!rc)
            rc = fill_data(&c, json_object_get(model, "data"));
        if (!rc)
            rc = fill_tasks(&c, full);
        if (!rc)
            rc = fill_inference(&c, json_object_get(full, "inference"));
        fill_optim(&c, json_object_get(model, "optim"));
        if (rc)
            sl_err_set(err, rc, "out of memory");
    }
    json_decref(errors);
    json_decref(full);
    if (rc)
        sl_config_release(&c);
    else
        *ret_config = c;
    return rc;
}

static bool is_yaml(const char *path)
{
    size_t n = strlen(path);

    return (n > 5 && !strcmp(path + n - 5, ".yaml")) || (n > 4 && !strcmp(path + n - 4, ".yml"));
}

static int read_yaml(const char *path, struct sl_config *ret_config, struct sl_err *err)
{
    const struct sl_config_yaml_options options = {.config_only = true};
    struct sl_config_yaml yaml = {0};
    int rc = sl_config_yaml_read(path, &options, &yaml, err);

    if (rc)
        return rc;
    rc = json_array_size(yaml.errors) ? refuse(yaml.errors, err)
                                      : sl_config_parse(yaml.spec, ret_config, err);
    sl_config_yaml_release(&yaml);
    return rc ? sl_err_wrap(err, rc, "%s", path) : 0;
}

int sl_config_read(const char *path, struct sl_config *ret_config, struct sl_err *err)
{
    json_t *json = NULL;
    const json_t *config;
    int rc;

    if (is_yaml(path))
        return read_yaml(path, ret_config, err);
    rc = sl_json_read(path, SL_SPEC_FILE_MAX, &json, err);
    if (rc)
        return rc;
    config = json_object_get(json, "config");
    rc = sl_config_parse(config ? config : json, ret_config, err);
    json_decref(json);
    return rc ? sl_err_wrap(err, rc, "%s", path) : 0;
}

void sl_config_release(struct sl_config *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_tasks; i++) {
        struct sl_task *t = &c->task[i];
        free(t->name);
        free(t->prompt_template);
        free(t->truncate_field);
        free(t->answer_field);
        free(t->init_text);
        free_strings(t->n_choices, t->choice);
    }
    free(c->task);
    free(c->restore_path);
    free(c->language_model_path);
    free(c->nemo_path);
    free_strings(c->data.train.n, c->data.train.s);
    free_strings(c->data.validation.n, c->data.validation.s);
    free_strings(c->data.test.n, c->data.test.s);
    free_strings(c->inference.stop.n, c->inference.stop.s);
    memset(c, 0, sizeof *c);
}

bool sl_strings_have(const struct sl_strings *s, const char *text)
{
    for (int i = 0; s && i < s->n; i++)
        if (!strcmp(s->s[i], text))
            return true;
    return false;
}

int sl_config_task(const struct sl_config *c, const char *name)
{
    for (int i = 0; i < c->n_tasks; i++)
        if (!strcmp(c->task[i].name, name))
            return i;
    return -1;
}
