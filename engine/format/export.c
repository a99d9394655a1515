#include "engine/format/export.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/format/safetensors.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TASK_KEY "task." /* + name */
#define UNKNOWN "unknown" /* for a digest, of tables that came from elsewhere */
#define MARKER "<|VIRTUAL_PROMPT_"
#define PEFT_TENSOR "prompt_embeddings"
#define PEFT_MLP_LAYERS                                                                            \
    2 /* what PEFT writes for its MLP, which always has three; it warns of anything else */

/* ---- ours: writing ---- */

static int add_text(json_t *meta, const char *key, const char *value)
{
    return json_object_set_new(meta, key, json_string(value));
}

static int add_json(json_t *meta, const char *key, const json_t *value)
{
    char *text = sl_json_dump(value);
    int bad = !text || add_text(meta, key, text);

    free(text);
    return bad;
}

static int tables_metadata(const struct sl_tables *t, json_t **ret_meta, struct sl_err *err)
{
    json_t *meta = json_object();
    int bad =
        add_text(meta, "format", SL_TABLES_FORMAT) |
        add_text(meta, "model", t->model_digest[0] ? t->model_digest : UNKNOWN) |
        add_text(meta, "tokenizer", t->tokenizer_digest[0] ? t->tokenizer_digest : UNKNOWN) |
        add_text(meta, "softlaunch", SL_VERSION);

    if (t->data)
        bad |= add_json(meta, "data", t->data);
    for (int i = 0; i < t->n && !bad; i++) {
        char key[SL_ST_NAME_MAX + sizeof TASK_KEY];

        snprintf(key, sizeof key, TASK_KEY "%s", t->table[i].task);
        bad |= add_json(meta, key, t->table[i].config);
    }
    if (bad) {
        json_decref(meta);
        return sl_err_set(err, SL_NOMEM, "out of memory, or a text is no UTF-8");
    }
    *ret_meta = meta;
    return 0;
}

static int fetch_table(void *ctx, int index, float *out, struct sl_err *err)
{
    const struct sl_table *t = &((const struct sl_tables *)ctx)->table[index];

    (void)err;
    memcpy(out, t->rows, (size_t)t->virtual_tokens * (size_t)t->hidden * sizeof *out);
    return 0;
}

static int describe(const struct sl_table *t, const char *name, struct sl_st_tensor *ret_tensor,
                    struct sl_err *err)
{
    if (!name[0] || strlen(name) >= sizeof ret_tensor->name)
        return sl_err_set(err, SL_SPEC, "task name of %zu bytes; 1 to %d are possible",
                          strlen(name), SL_ST_NAME_MAX - 1);
    memset(ret_tensor, 0, sizeof *ret_tensor);
    memcpy(ret_tensor->name, name, strlen(name) + 1);
    ret_tensor->n_dims = 2;
    ret_tensor->dim[0] = t->virtual_tokens;
    ret_tensor->dim[1] = t->hidden;
    return 0;
}

int sl_export_tables(const char *path, const struct sl_tables *t, struct sl_err *err)
{
    struct sl_st_tensor *tensor = calloc((size_t)t->n + 1, sizeof *tensor);
    struct sl_tables copy = *t;
    json_t *meta = NULL;
    int rc = 0;

    if (!tensor)
        return sl_err_set(err, SL_NOMEM, "exporting prompt tables: out of memory");
    for (int i = 0; i < t->n && !rc; i++) {
        rc = describe(&t->table[i], t->table[i].task, &tensor[i], err);
        for (int j = 0; j < i && !rc; j++)
            if (!strcmp(tensor[i].name, tensor[j].name))
                rc = sl_err_set(err, SL_SPEC, "two tables for task %s", t->table[i].task);
    }
    if (!rc)
        rc = tables_metadata(t, &meta, err);
    if (!rc)
        rc = sl_safetensors_write(path, tensor, t->n, meta, true, fetch_table, &copy, err);
    json_decref(meta);
    free(tensor);
    return rc ? sl_err_wrap(err, rc, "exporting prompt tables to %s", path) : 0;
}

/* ---- ours: reading ---- */

static int get_digest(const json_t *meta, const char *key, char ret_hex[SL_SHA256_HEX + 1],
                      struct sl_err *err)
{
    const char *text = json_string_value(json_object_get(meta, key));

    if (text && !strcmp(text, UNKNOWN)) {
        ret_hex[0] = '\0';
        return 0;
    }
    if (!text || !sl_sha256_valid(text))
        return sl_err_set(err, SL_DATA, "its metadata has no sha256 for \"%s\"", key);
    memcpy(ret_hex, text, SL_SHA256_HEX + 1);
    return 0;
}

/* The object whose JSON text is metadata `key`; new reference. */
static int get_json(const json_t *meta, const char *key, json_t **ret_json, struct sl_err *err)
{
    const char *text = json_string_value(json_object_get(meta, key));
    json_t *json = NULL;

    if (!text || sl_json_parse(text, strlen(text), key, &json, NULL) || !json_is_object(json)) {
        json_decref(json);
        return sl_err_set(err, SL_DATA, "its metadata \"%s\" is missing or no JSON object", key);
    }
    *ret_json = json;
    return 0;
}

static int read_table(const struct sl_safetensors *st, int index, struct sl_table *t,
                      struct sl_err *err)
{
    const struct sl_st_tensor *tensor = sl_safetensors_at(st, index);
    char key[SL_ST_NAME_MAX + sizeof TASK_KEY];
    int rc;

    if (tensor->n_dims != 2 || tensor->dim[0] > SL_ENC_MAX_VIRTUAL ||
        tensor->dim[1] > SL_ENC_MAX_WIDTH)
        return sl_err_set(err, SL_DATA,
                          "table of task %s is not [1 to %d virtual tokens, 1 to %d hidden]",
                          tensor->name, SL_ENC_MAX_VIRTUAL, SL_ENC_MAX_WIDTH);
    snprintf(key, sizeof key, TASK_KEY "%s", tensor->name);
    rc = get_json(sl_safetensors_metadata(st), key, &t->config, err);
    if (rc)
        return rc;
    if (!json_is_string(json_object_get(t->config, "prompt_template")))
        return sl_err_set(err, SL_DATA, "metadata \"%s\" has no prompt_template", key);
    t->virtual_tokens = (int)tensor->dim[0];
    t->hidden = (int)tensor->dim[1];
    t->task = strdup(tensor->name);
    t->rows = malloc((size_t)sl_st_elements(tensor) * sizeof *t->rows);
    if (!t->task || !t->rows)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    sl_safetensors_read(st, index, t->rows);
    return 0;
}

static int read_tables(const struct sl_safetensors *st, struct sl_tables *t, struct sl_err *err)
{
    const json_t *meta = sl_safetensors_metadata(st);
    const char *format = json_string_value(json_object_get(meta, "format"));
    int n = sl_safetensors_count(st), rc;

    if (!format || strcmp(format, SL_TABLES_FORMAT) != 0)
        return sl_err_set(err, SL_DATA, "its format is %.64s, not " SL_TABLES_FORMAT,
                          format ? format : "not named");
    rc = sl_safetensors_verify(st, err);
    if (!rc)
        rc = get_digest(meta, "model", t->model_digest, err);
    if (!rc)
        rc = get_digest(meta, "tokenizer", t->tokenizer_digest, err);
    if (!rc && json_object_get(meta, "data"))
        rc = get_json(meta, "data", &t->data, err);
    if (rc)
        return rc;
    t->table = calloc((size_t)n + 1, sizeof *t->table);
    if (!t->table)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    for (t->n = 0; t->n < n && !rc; t->n++)
        rc = read_table(st, t->n, &t->table[t->n], err);
    return rc;
}

int sl_tables_read(const char *path, struct sl_tables *ret_tables, struct sl_err *err)
{
    struct sl_safetensors *st = NULL;
    struct sl_tables t = {0};
    char inside[SL_PATH_MAX];
    int rc = sl_path(inside, err, "%s/" SL_TABLES_FILE, path);

    if (!rc)
        rc = sl_safetensors_open(sl_file_exists(inside) ? inside : path, &st, err);
    if (rc)
        return sl_err_wrap(err, rc, "reading prompt tables");
    rc = read_tables(st, &t, err);
    sl_safetensors_close(st);
    if (rc) {
        sl_tables_release(&t);
        return sl_err_wrap(err, rc, "reading prompt tables from %s", path);
    }
    *ret_tables = t;
    return 0;
}

void sl_tables_release(struct sl_tables *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n; i++) {
        free(t->table[i].task);
        free(t->table[i].rows);
        json_decref(t->table[i].config);
    }
    free(t->table);
    json_decref(t->data);
    memset(t, 0, sizeof *t);
}

int sl_tables_find(const struct sl_tables *t, const char *task)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->table[i].task, task))
            return i;
    return -1;
}

/* ---- PEFT ---- */

int sl_peft_check(const char *task, const char *prompt_template, bool add_bos, struct sl_err *err)
{
    const char *p = prompt_template + strspn(prompt_template, " ");
    long expected = 0;

    if (add_bos)
        return sl_err_set(
            err, SL_SPEC,
            "task %s cannot be a PEFT adapter: add_bos puts a token before the virtual "
            "tokens, PEFT puts them first",
            task);
    while (!strncmp(p, MARKER, strlen(MARKER))) {
        char *end;
        long k = strtol(p + strlen(MARKER), &end, 10);

        if (strncmp(end, "|>", 2) != 0)
            break;
        if (k != expected++)
            return sl_err_set(
                err, SL_SPEC,
                "task %s cannot be a PEFT adapter: its virtual tokens are not in order "
                "(" MARKER "%ld|> stands at place %ld)",
                task, k, expected - 1);
        p = end + 2;
    }
    if (!expected || strstr(p, MARKER))
        return sl_err_set(err, SL_SPEC,
                          "task %s cannot be a PEFT adapter: its virtual tokens are not all at the "
                          "head of the template, where PEFT puts them",
                          task);
    if (!task[0] || task[0] == '.' || strchr(task, '/') || strlen(task) >= SL_ST_NAME_MAX)
        return sl_err_set(err, SL_SPEC,
                          "task %.80s cannot be a PEFT adapter: its name is no folder name", task);
    return 0;
}

/* The keys in alphabetical order, as PEFT writes them. */
static json_t *adapter_config(const struct sl_table *t, const struct sl_peft *p)
{
    bool table = p->type == SL_ENC_TABLE, lstm = p->type == SL_ENC_LSTM;
    json_t *json = json_object();
    int bad = !json;

    bad |= json_object_set_new(json, "auto_mapping", json_null());
    bad |= json_object_set_new(json, "base_model_name_or_path",
                               p->base_model ? json_string(p->base_model) : json_null());
    if (!table) {
        bad |= json_object_set_new(json, "encoder_dropout", json_real(lstm ? p->dropout : 0));
        bad |= json_object_set_new(json, "encoder_hidden_size", json_integer(p->encoder_hidden));
        bad |= json_object_set_new(json, "encoder_num_layers",
                                   json_integer(lstm ? p->encoder_layers : PEFT_MLP_LAYERS));
        bad |= json_object_set_new(json, "encoder_reparameterization_type",
                                   json_string(lstm ? "LSTM" : "MLP"));
    }
    bad |= json_object_set_new(json, "inference_mode", json_true());
    bad |= json_object_set_new(json, "num_attention_heads",
                               p->heads ? json_integer(p->heads) : json_null());
    bad |= json_object_set_new(json, "num_layers",
                               p->layers ? json_integer(p->layers) : json_null());
    bad |= json_object_set_new(json, "num_transformer_submodules", json_integer(1));
    bad |= json_object_set_new(json, "num_virtual_tokens", json_integer(t->virtual_tokens));
    bad |=
        json_object_set_new(json, "peft_type", json_string(table ? "PROMPT_TUNING" : "P_TUNING"));
    if (table) {
        bad |= json_object_set_new(json, "prompt_tuning_init", json_string("RANDOM"));
        bad |= json_object_set_new(json, "prompt_tuning_init_text", json_null());
    }
    bad |= json_object_set_new(json, "revision", json_null());
    bad |= json_object_set_new(json, "task_type", json_string("CAUSAL_LM"));
    bad |= json_object_set_new(json, "token_dim", json_integer(t->hidden));
    if (table)
        bad |= json_object_set_new(json, "tokenizer_name_or_path", json_null());
    if (bad) {
        json_decref(json);
        return NULL;
    }
    return json;
}

static int write_adapter(const char *dir, const struct sl_table *t, const struct sl_peft *p,
                         struct sl_err *err)
{
    struct sl_tables one = {.n = 1, .table = (struct sl_table[]){*t}};
    json_t *meta = json_pack("{s:s}", "format", "pt"), *config = adapter_config(t, p);
    char path[SL_PATH_MAX];
    struct sl_st_tensor tensor;
    int rc = sl_path(path, err, "%s/adapter_model.safetensors", dir);

    if (!rc && (!meta || !config))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc)
        rc = describe(t, PEFT_TENSOR, &tensor, err);
    if (!rc)
        rc = sl_safetensors_write(path, &tensor, 1, meta, false, fetch_table, &one, err);
    if (!rc)
        rc = sl_path(path, err, "%s/adapter_config.json", dir);
    if (!rc)
        rc = sl_json_write(path, config, err);
    json_decref(meta);
    json_decref(config);
    return rc;
}

int sl_export_peft(const char *out_dir, const struct sl_table *table, const struct sl_peft *peft,
                   bool add_bos, struct sl_err *err)
{
    const char *text = json_string_value(json_object_get(table->config, "prompt_template"));
    char dir[SL_PATH_MAX];
    int rc = sl_peft_check(table->task, text ? text : "", add_bos, err);

    if (!rc)
        rc = sl_path(dir, err, "%s/%s", out_dir, table->task);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc)
        rc = write_adapter(dir, table, peft, err);
    return rc ? sl_err_wrap(err, rc, "exporting a PEFT adapter") : 0;
}
