/* Prompt tables as NeMo 1.16 saves them (megatron_gpt_prompt_learning_model.py, prompt_table.py).
 */
#include "base/json.h"
#include "engine/format/nemo.h"
#include "engine/format/table_forms.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TARGET                                                                                     \
    "nemo.collections.nlp.models.language_modeling.megatron_gpt_prompt_learning_model."            \
    "MegatronGPTPromptLearningModel"

/* NeMo's template has these keys; a virtual_prompt_style of a task is ours alone. */
static json_t *nemo_template(const struct sl_table *t)
{
    json_t *copy = json_deep_copy(t->config);

    if (copy) {
        json_object_del(copy, "virtual_prompt_style");
        json_object_set_new(copy, "taskname", json_string(t->task));
        json_object_set_new(copy, "total_virtual_tokens", json_integer(t->virtual_tokens));
        if (!json_is_array(json_object_get(copy, "virtual_token_splits")))
            json_object_set_new(copy, "virtual_token_splits", json_pack("[i]", t->virtual_tokens));
        if (!json_object_get(copy, "truncate_field"))
            json_object_set_new(copy, "truncate_field", json_null());
    }
    return copy;
}

/* JSON is YAML: NeMo's OmegaConf reads it as it is. */
static char *config_text(const struct sl_tables *t, const char *language_model_path)
{
    json_t *tasks = json_array(), *templates = json_array(), *config;
    char *text = NULL;

    for (int i = 0; i < t->n; i++) {
        json_array_append_new(tasks, json_string(t->table[i].task));
        json_array_append_new(templates, nemo_template(&t->table[i]));
    }
    config = json_pack(
        "{s:s, s:s, s:o, s:[], s:o, s:{s:[], s:[]}, s:O?, s:i, s:i, s:s, s:s, s:{s:s, s:s}}",
        "virtual_prompt_style", "prompt-tuning", "language_model_path",
        language_model_path ? language_model_path : "", "existing_tasks", tasks, "new_tasks",
        "task_templates", templates, "prompt_tuning", "new_prompt_init_methods",
        "new_prompt_init_text", "data", t->data, "tensor_model_parallel_size", 1,
        "pipeline_model_parallel_size", 1, "target", TARGET, "nemo_version", "1.16.0", "softlaunch",
        "model", t->model_digest, "tokenizer", t->tokenizer_digest);
    if (config && json_array_size(templates) == (size_t)t->n)
        text = json_dumps(config, JSON_INDENT(2));
    json_decref(config);
    return text;
}

/* Two items a task: the rows, and NeMo's buffer of their indices. */
static int make_items(const struct sl_tables *t, struct sl_torch_item *items, char **names,
                      int64_t *indices, struct sl_err *err)
{
    for (int i = 0; i < t->n; i++) {
        const struct sl_table *one = &t->table[i];

        if (!one->task[0] || strchr(one->task, '.'))
            return sl_err_set(err, SL_SPEC,
                              "task '%s' cannot be in a NeMo archive: torch's module names hold no "
                              "dot",
                              one->task);
        if (asprintf(&names[2 * i], "prompt_table.%s.prompt_embeddings.weight", one->task) < 0 ||
            asprintf(&names[2 * i + 1], "prompt_table.%s.indices", one->task) < 0)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        items[2 * i] = (struct sl_torch_item){
            names[2 * i], SL_STORAGE_F32, 2, {one->virtual_tokens, one->hidden}, one->rows};
        items[2 * i + 1] = (struct sl_torch_item){
            names[2 * i + 1], SL_STORAGE_I64, 1, {one->virtual_tokens, 0}, indices};
    }
    return 0;
}

static int write_weights(const struct sl_tables *t, struct sl_buf *out, struct sl_err *err)
{
    size_t n = (size_t)t->n;
    struct sl_torch_item *items = calloc(2 * n + 1, sizeof *items);
    char **names = calloc(2 * n + 1, sizeof *names);
    int64_t *indices;
    int most = 1, rc = 0;

    for (int i = 0; i < t->n; i++)
        most = t->table[i].virtual_tokens > most ? t->table[i].virtual_tokens : most;
    indices = calloc((size_t)most, sizeof *indices);
    for (int i = 0; indices && i < most; i++)
        indices[i] = i;
    if (!items || !names || !indices)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc)
        rc = make_items(t, items, names, indices, err);
    if (!rc)
        rc = sl_torch_write("prompt_table", items, 2 * t->n, out, err);
    for (size_t i = 0; names && i < 2 * n; i++)
        free(names[i]);
    free(names);
    free(items);
    free(indices);
    return rc;
}

int sl_export_nemo(const char *path, const struct sl_tables *t, const char *language_model_path,
                   struct sl_err *err)
{
    struct sl_buf weights;
    char *config = config_text(t, language_model_path);
    int rc = config ? 0 : sl_err_set(err, SL_NOMEM, "out of memory, or a text is no UTF-8");

    sl_buf_init(&weights, SL_TABLES_MAX_BYTES);
    if (!rc)
        rc = write_weights(t, &weights, err);
    if (!rc) {
        struct sl_tar_member members[] = {
            {(char *)(uintptr_t)SL_NEMO_CONFIG, (unsigned char *)config, strlen(config)},
            {(char *)(uintptr_t)SL_NEMO_WEIGHTS, (unsigned char *)weights.p, weights.len}};

        rc = sl_tar_write(path, members, 2, err);
    }
    free(config);
    sl_buf_release(&weights);
    return rc ? sl_err_wrap(err, rc, "writing %s", path) : 0;
}
