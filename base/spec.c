/* Long because its rules are one list, in the order of a spec. */
#include "base/spec.h"
#include "base/json.h"
#include "base/schema.h"
#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const unsigned char sl_embed_base_job_schema_json[];
extern const unsigned long sl_embed_base_job_schema_json_len;

static struct sl_schema *schema;
static struct sl_err schema_err = SL_ERR_INIT;
static pthread_once_t schema_once = PTHREAD_ONCE_INIT;

static void load_schema(void)
{
    sl_schema_load((const char *)sl_embed_base_job_schema_json, sl_embed_base_job_schema_json_len,
                   &schema, &schema_err);
}

static int get_schema(struct sl_err *err)
{
    pthread_once(&schema_once, load_schema);
    return schema ? 0 : sl_err_set(err, schema_err.code, "%s", schema_err.msg);
}

/* ---- rules beyond the schema ------------------------------------------------------------------
 *
 * They run only when the schema found nothing wrong, so types and ranges can be relied on. */

#define PATH_MAX_BYTES 256

struct rules {
    json_t *errors;
    const json_t *model;
    bool no_prompts;
    bool out_of_memory;
};

/* "broken(r, path, expected, found, message...)": one violation. */
#define broken(r, path, expected, found, ...)                                                      \
    do {                                                                                           \
        if (json_array_size((r)->errors) < SL_SPEC_MAX_ERRORS &&                                   \
            sl_schema_error((r)->errors, path, expected, found, __VA_ARGS__))                      \
            (r)->out_of_memory = true;                                                             \
    } while (0)

static const char *model_path(char buf[PATH_MAX_BYTES], const char *below)
{
    snprintf(buf, PATH_MAX_BYTES, "config.model.%s", below);
    return buf;
}

static int find_string(const json_t *list, const char *s)
{
    size_t i;
    json_t *e;
    json_array_foreach((json_t *)list, i, e) if (!strcmp(json_string_value(e), s)) return (int)i;
    return -1;
}

static const json_t *find_task(const json_t *templates, const char *name)
{
    size_t i;
    json_t *t;
    json_array_foreach((json_t *)templates, i,
                       t) if (!strcmp(sl_json_str(t, "taskname", ""), name)) return t;
    return NULL;
}

static double number(const json_t *object, const char *key, double otherwise)
{
    const json_t *v = json_object_get(object, key);
    return json_is_number(v) ? json_number_value(v) : otherwise;
}

#define MARKER "<|VIRTUAL_PROMPT_"

/* Markers 0..n-1, each once, in any order. */
static void check_markers(struct rules *r, const char *path, const char *text, int n)
{
    int count[SL_SPEC_MAX_SPLITS] = {0}, all = 0;
    const json_t *found = NULL;
    const char *p = text;

    while ((p = strstr(p, MARKER))) {
        char *end = NULL; /* of the number, where one stands */
        p += strlen(MARKER);
        unsigned long k = isdigit((unsigned char)*p) ? strtoul(p, &end, 10) : 0;
        if (!end || strncmp(end, "|>", 2) != 0) {
            broken(r, path, "markers written <|VIRTUAL_PROMPT_0|>", found,
                   "\"%s%.12s\" is no marker; write <|VIRTUAL_PROMPT_0|>", MARKER, p);
            return;
        }
        if (k >= (unsigned long)n) {
            broken(r, path, "a marker for each split", found,
                   "marker <|VIRTUAL_PROMPT_%lu|> has no split: there %s %d, counted from 0", k,
                   n == 1 ? "is" : "are", n);
            return;
        }
        count[k]++;
        all++;
    }
    for (int k = 0; k < n; k++)
        if (count[k] != 1) {
            broken(r, path, "a marker for each split", found,
                   "marker <|VIRTUAL_PROMPT_%d|> appears %d times; each of the %d virtual token "
                   "splits needs its marker once (found %d markers)",
                   k, count[k], n, all);
            return;
        }
}

static bool field_char(char c)
{
    return isalnum((unsigned char)c) || (c && strchr("_.-", c));
}

/* Whether the template holds {field}; ret_last: and ends with it. */
static bool has_field(const char *text, const char *field, bool *ret_last)
{
    size_t n = strlen(field), len = strlen(text);
    bool found = false;

    *ret_last = false;
    for (const char *p = text; (p = strchr(p, '{')); p++)
        if (!strncmp(p + 1, field, n) && p[1 + n] == '}') {
            found = true;
            *ret_last = p + n + 2 == text + len;
        }
    return found;
}

static bool any_field(const char *text)
{
    for (const char *p = text; (p = strchr(p, '{')); p++) {
        const char *q = p + 1;
        while (field_char(*q))
            q++;
        if (q > p + 1 && *q == '}')
            return true;
    }
    return false;
}

static void check_template(struct rules *r, const json_t *t, size_t index)
{
    const char *text = sl_json_str(t, "prompt_template", "");
    const char *answer = sl_json_str(t, "answer_field", NULL);
    const char *cut = sl_json_str(t, "truncate_field", NULL);
    const json_t *splits = json_object_get(t, "virtual_token_splits");
    double total = number(t, "total_virtual_tokens", 0), sum = 0;
    char base[PATH_MAX_BYTES], path[PATH_MAX_BYTES + 64];
    bool last = false;
    size_t i;
    json_t *e;

    snprintf(base, sizeof base, "config.model.task_templates[%zu]", index);
#define AT(key) (snprintf(path, sizeof path, "%s." key, base), path)
    if (r->no_prompts && total > 0)
        broken(r, AT("total_virtual_tokens"), "0", json_object_get(t, "total_virtual_tokens"),
               "virtual_prompt_style no-prompts has no virtual tokens: set it to 0");
    if (r->no_prompts && json_object_get(t, "virtual_prompt_style"))
        broken(r, AT("virtual_prompt_style"), "nothing here",
               json_object_get(t, "virtual_prompt_style"),
               "a run with virtual_prompt_style no-prompts trains no task");
    if (!r->no_prompts && total < 1)
        broken(r, AT("total_virtual_tokens"), "at least 1",
               json_object_get(t, "total_virtual_tokens"),
               "a task needs at least 1 virtual token (none only with no-prompts)");
    json_array_foreach((json_t *)splits, i, e) sum += json_number_value(e);
    if (splits && sum != total)
        broken(r, AT("virtual_token_splits"), "splits that sum to total_virtual_tokens", splits,
               "the splits sum to %.0f, total_virtual_tokens is %.0f", sum, total);
    check_markers(r, AT("prompt_template"), text,
                  splits      ? (int)json_array_size(splits)
                  : total > 0 ? 1
                              : 0);
    if (!any_field(text))
        broken(r, AT("prompt_template"), "at least one {field}", NULL,
               "the template has no {field}: every row would be the same");
    if (cut && !has_field(text, cut, &last))
        broken(r, AT("truncate_field"), "a field of the template",
               json_object_get(t, "truncate_field"), "the template has no field {%s}", cut);
    if (answer && !has_field(text, answer, &last))
        broken(r, AT("answer_field"), "a field of the template", json_object_get(t, "answer_field"),
               "the template has no field {%s}", answer);
    if (answer && cut && !strcmp(answer, cut))
        broken(r, AT("truncate_field"), "another field than answer_field",
               json_object_get(t, "truncate_field"),
               "truncate_field and answer_field are both \"%s\": the answer must never be cut",
               cut);
    if (sl_json_bool(t, "answer_only_loss", false)) {
        if (!answer)
            broken(r, AT("answer_field"), "the field that holds the answer", NULL,
                   "answer_only_loss needs answer_field");
        else if (has_field(text, answer, &last) && !last)
            broken(r, AT("prompt_template"), "a template that ends in the answer field", NULL,
                   "answer_only_loss needs a template that ends in {%s}", answer);
    }
#undef AT
}

static void check_tasks(struct rules *r)
{
    const json_t *templates = json_object_get(r->model, "task_templates");
    const json_t *news = json_object_get(r->model, "new_tasks");
    const json_t *olds = json_object_get(r->model, "existing_tasks"), *t;
    const char *first_name = NULL, *name;
    char path[PATH_MAX_BYTES], key[64];
    double first_v = 0, v;
    bool is_old;
    size_t i;
    json_t *e;

    json_array_foreach((json_t *)templates, i, e)
    {
        check_template(r, e, i);
        snprintf(key, sizeof key, "task_templates[%zu].taskname", i);
        name = sl_json_str(e, "taskname", "");
        if (find_task(templates, name) != e)
            broken(r, model_path(path, key), "a name of its own", json_object_get(e, "taskname"),
                   "an earlier template has this taskname too");
        is_old = find_string(olds, name) >= 0;
        if (is_old && find_string(news, name) >= 0)
            broken(r, model_path(path, "new_tasks"), "tasks that are not existing ones", news,
                   "task \"%.80s\" is in existing_tasks too", name);
        if (news && !is_old && find_string(news, name) < 0)
            broken(r, model_path(path, key), "a task of new_tasks or existing_tasks",
                   json_object_get(e, "taskname"), "task \"%.80s\" is in neither of them", name);
        v = number(e, "total_virtual_tokens", 0);
        if (is_old)
            continue;
        if (first_name && v != first_v) {
            snprintf(key, sizeof key, "task_templates[%zu].total_virtual_tokens", i);
            broken(r, model_path(path, key), "the same number in all new tasks",
                   json_object_get(e, "total_virtual_tokens"),
                   "new tasks share total_virtual_tokens: \"%.80s\" has %.0f, \"%.80s\" %.0f",
                   first_name, first_v, name, v);
        }
        if (!first_name) {
            first_name = name;
            first_v = v;
        }
    }
    json_array_foreach((json_t *)news, i, e)
    {
        t = find_task(templates, json_string_value(e));
        snprintf(key, sizeof key, "new_tasks[%zu]", i);
        if (!t)
            broken(r, model_path(path, key), "the taskname of a template", e,
                   "no task template has taskname \"%.80s\"", json_string_value(e));
    }
    json_array_foreach((json_t *)olds, i, e)
    {
        snprintf(key, sizeof key, "existing_tasks[%zu]", i);
        if (!find_task(templates, json_string_value(e)))
            broken(r, model_path(path, key), "the taskname of a template", e,
                   "no task template has taskname \"%.80s\"", json_string_value(e));
    }
    if (json_array_size(olds) && !sl_json_str(r->model, "restore_path", NULL))
        broken(r, model_path(path, "restore_path"),
               "the prompt table that holds the existing tasks", NULL,
               "existing_tasks needs restore_path");
}

static void check_prompt_init(struct rules *r)
{
    const json_t *tuning = json_object_get(r->model, "prompt_tuning");
    const json_t *methods = json_object_get(tuning, "new_prompt_init_methods");
    const json_t *texts = json_object_get(tuning, "new_prompt_init_text");
    const json_t *news = json_object_get(r->model, "new_tasks");
    const json_t *olds = json_object_get(r->model, "existing_tasks");
    size_t n =
        news ? json_array_size(news)
             : json_array_size(json_object_get(r->model, "task_templates")) - json_array_size(olds);
    char path[PATH_MAX_BYTES], key[64];

    if (methods && json_array_size(methods) != n)
        broken(r, model_path(path, "prompt_tuning.new_prompt_init_methods"),
               "one for each new task", methods, "%zu methods for %zu new tasks",
               json_array_size(methods), n);
    if (texts && json_array_size(texts) != n)
        broken(r, model_path(path, "prompt_tuning.new_prompt_init_text"), "one for each new task",
               texts, "%zu texts for %zu new tasks", json_array_size(texts), n);
    for (size_t i = 0; i < json_array_size(methods); i++) {
        if (strcmp(json_string_value(json_array_get(methods, i)), "text") != 0 ||
            json_is_string(json_array_get(texts, i)))
            continue;
        snprintf(key, sizeof key, "prompt_tuning.new_prompt_init_text[%zu]", i);
        broken(r, model_path(path, key), "a text", json_array_get(texts, i),
               "method \"text\" needs the text to start from");
    }
}

static void check_training(struct rules *r, const json_t *config)
{
    const json_t *trainer = json_object_get(config, "trainer");
    const json_t *p = json_object_get(r->model, "p_tuning"),
                 *data = json_object_get(r->model, "data");
    const json_t *optim = json_object_get(r->model, "optim");
    const json_t *interval = json_object_get(trainer, "val_check_interval");
    const char *type = sl_json_str(p, "encoder_type", "tpmlp");
    char path[PATH_MAX_BYTES];
    double x, y;

    if (number(trainer, "max_epochs", 3) < 1 && number(trainer, "max_steps", -1) < 1)
        broken(r, "config.trainer.max_epochs", "at least 1 epoch or max_steps",
               json_object_get(trainer, "max_epochs"),
               "nothing would be trained: set max_epochs or max_steps");
    if (json_is_real(interval) && json_real_value(interval) > 1)
        broken(r, "config.trainer.val_check_interval",
               "a part of an epoch up to 1.0, or whole steps", interval,
               "a number with a decimal point is a part of an epoch, at most 1.0");
    x = number(r->model, "global_batch_size", 8);
    y = number(r->model, "micro_batch_size", x < 4 ? x : 4);
    if (y > x)
        broken(r, model_path(path, "micro_batch_size"), "at most global_batch_size",
               json_object_get(r->model, "micro_batch_size"), "%.0f is over global_batch_size %.0f",
               y, x);
    if (number(p, "dropout", 0) > 0 && strcmp(type, "lstm") != 0)
        broken(r, model_path(path, "p_tuning.dropout"), "0 unless encoder_type is lstm",
               json_object_get(p, "dropout"), "only the lstm encoder has dropout");
    if (!strcmp(type, "mlp") && number(p, "num_layers", 2) < 2)
        broken(r, model_path(path, "p_tuning.num_layers"), "at least 2 for mlp",
               json_object_get(p, "num_layers"), "an mlp encoder has at least 2 layers");
    x = number(data, "max_seq_length", 0);
    if (x > 0 && number(data, "min_seq_length", 1) > x)
        broken(r, model_path(path, "data.min_seq_length"), "at most max_seq_length",
               json_object_get(data, "min_seq_length"), "it is over max_seq_length %.0f", x);
    x = number(optim, "lr", 0);
    y = number(json_object_get(optim, "sched"), "min_lr", 0);
    if (x > 0 && y > x)
        broken(r, model_path(path, "optim.sched.min_lr"), "at most lr",
               sl_json_get(optim, "sched.min_lr"), "%g is over lr %g", y, x);
}

static void check_inference(struct rules *r, const json_t *inference)
{
    const json_t *templates = json_object_get(r->model, "task_templates");
    char path[PATH_MAX_BYTES];
    const char *name;
    json_t *list;

    json_object_foreach(json_object_get(inference, "choices"), name, list)
    {
        snprintf(path, sizeof path, "config.inference.choices.%.160s", name);
        if (!find_task(templates, name))
            broken(r, path, "the taskname of a template", NULL,
                   "no task template has this taskname");
    }
    if (number(inference, "min_tokens", 0) > number(inference, "tokens_to_generate", 32))
        broken(r, "config.inference.min_tokens", "at most tokens_to_generate",
               json_object_get(inference, "min_tokens"), "it is over tokens_to_generate");
}

static void check_config(struct rules *r, const json_t *config)
{
    const char *style;

    r->model = json_object_get(config, "model");
    style = sl_json_str(r->model, "virtual_prompt_style", "p-tuning");
    r->no_prompts = *style == 'n' || *style == 'N';
    check_tasks(r);
    check_prompt_init(r);
    check_training(r, config);
    check_inference(r, json_object_get(config, "inference"));
}

static void check_datasets(struct rules *r, const json_t *spec)
{
    static const char *const names[] = {"train", "validation", "test"};
    const json_t *datasets = json_object_get(spec, "datasets"), *in_config;
    char path[PATH_MAX_BYTES], key[64];

    if (!r->no_prompts && !json_object_get(datasets, "train"))
        broken(r, "datasets.train", "at least one file", NULL, "missing; training needs rows");
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "data.%s_ds", names[i]);
        in_config = json_object_get(json_object_get(r->model, "data"), key + 5);
        if (json_array_size(in_config))
            broken(r, model_path(path, key), "no files here", in_config,
                   "a job names its rows in datasets.%s", names[i]);
    }
}

static void check_env(struct rules *r, const json_t *spec)
{
    char path[PATH_MAX_BYTES];
    const char *name;
    json_t *value;
    size_t i;

    json_object_foreach(json_object_get(spec, "secrets"), name, value)
    {
        snprintf(path, sizeof path, "secrets.%.100s", name);
        if (!sl_spec_env_name(name))
            broken(r, path, "a variable that a run may be given", value, "not one that a run may be given");
    }
    json_array_foreach(json_object_get(spec, "env"), i, value)
    {
        snprintf(path, sizeof path, "env[%zu]", i);
        if (!sl_spec_env_name(json_string_value(value)))
            broken(r, path, "a variable that a run may be given", value, "not one that a run may be given");
    }
}

/* A spec for a newer program: nothing else about it can be judged. */
static bool newer_api(struct rules *r, const json_t *spec)
{
    const json_t *api = json_object_get(spec, "api");
    int version, used = 0;

    if (!json_is_string(api) ||
        sscanf(json_string_value(api), "softlaunch/v%9d%n", &version, &used) != 1 ||
        json_string_value(api)[used] || version <= SL_SPEC_API_VERSION)
        return false;
    broken(r, "api", "\"" SL_SPEC_API "\"", api,
           "this spec is newer than this program, which knows up to " SL_SPEC_API
           ": upgrade softlaunch, or write the spec for " SL_SPEC_API);
    return true;
}

static int judge(const json_t *value, bool whole, json_t **ret_errors, struct sl_err *err)
{
    struct rules r = {json_array(), NULL, false, false};
    int rc = get_schema(err);

    if (!rc && !r.errors)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc && !(whole && newer_api(&r, value)))
        rc = sl_schema_validate(schema, whole ? NULL : "config", whole ? "" : "config", value,
                                SL_SPEC_MAX_ERRORS, r.errors, err);
    if (!rc && !json_array_size(r.errors)) {
        check_config(&r, whole ? json_object_get(value, "config") : value);
        if (whole)
            check_datasets(&r, value);
        if (whole)
            check_env(&r, value);
        if (whole && !json_array_size(r.errors) && json_object_get(value, "trials"))
            rc = sl_spec_check_trials(json_object_get(value, "config"),
                                      json_object_get(value, "trials"), r.errors, err);
    }
    if (!rc && r.out_of_memory)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc)
        json_decref(r.errors);
    else
        *ret_errors = r.errors;
    return rc;
}

int sl_spec_validate(const json_t *spec, json_t **ret_errors, struct sl_err *err)
{
    return judge(spec, true, ret_errors, err);
}

int sl_spec_validate_config(const json_t *config, json_t **ret_errors, struct sl_err *err)
{
    return judge(config, false, ret_errors, err);
}

int sl_spec_errors_text(const json_t *errors, struct sl_buf *text)
{
    const char *path;
    size_t i;
    json_t *e;
    int rc = 0;

    json_array_foreach((json_t *)errors, i, e)
    {
        path = sl_json_str(e, "path", "");
        if (!rc)
            rc = sl_buf_addf(text, "  %s: %s\n", *path ? path : "(the spec)",
                             sl_json_str(e, "message", ""));
    }
    return rc;
}

/* ---- defaults ------------------------------------------------------------------------------- */

static int with_defaults(const json_t *value, const char *def, json_t **ret_value,
                         struct sl_err *err)
{
    json_t *copy;
    int rc = get_schema(err);

    if (rc)
        return rc;
    copy = json_deep_copy(value);
    if (!copy)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    rc = sl_schema_fill_defaults(schema, def, copy, err);
    if (rc)
        json_decref(copy);
    else
        *ret_value = copy;
    return rc;
}

int sl_spec_with_defaults(const json_t *spec, json_t **ret_spec, struct sl_err *err)
{
    return with_defaults(spec, NULL, ret_spec, err);
}

int sl_spec_config_with_defaults(const json_t *config, json_t **ret_config, struct sl_err *err)
{
    return with_defaults(config, "config", ret_config, err);
}
