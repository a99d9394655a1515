#include "base/file.h"
#include "base/json.h"
#include "engine/format/dequant.h"
#include "engine/format/nemo.h"
#include "engine/format/safetensors.h"
#include "engine/format/table_forms.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define ADAPTER_CONFIG "adapter_config.json"
#define ADAPTER "adapter_model.safetensors"
#define ADAPTER_BIN "adapter_model.bin"
#define PEFT_TENSOR "prompt_embeddings"
#define NEMO_TENSOR ".prompt_embeddings.weight"
#define NEMO_TABLE "prompt_table."
#define MAX_TABLES 1024
#define NPY_HEADER_MAX 65536

struct import {
    const char *path;
    const char *const *tasks;
    int n_tasks;
    struct sl_tables *t;
    struct sl_err *err;
};

/* Appends a table whose rows, ret_rows, the caller fills. config: stolen; NULL: the template for
 * tables without one. */
static int add_table(struct import *im, const char *task, int64_t v, int64_t hidden,
                     json_t *config_stolen, float **ret_rows)
{
    struct sl_tables *t = im->t;
    struct sl_table *p, one = {.config = config_stolen};

    if (!one.config)
        one.config = json_pack("{s:s, s:s, s:I}", "taskname", task, "prompt_template",
                               SL_TABLES_TEMPLATE, "total_virtual_tokens", (json_int_t)v);
    if (v < 1 || v > SL_ENC_MAX_VIRTUAL || hidden < 1 || hidden > SL_ENC_MAX_WIDTH ||
        t->n == MAX_TABLES) {
        json_decref(one.config);
        return sl_err_set(
            im->err, SL_DATA,
            "the table of task '%.80s' is [%lld, %lld], number %d; up to %d tables of "
            "[%d, %d] are read",
            task, (long long)v, (long long)hidden, t->n + 1, MAX_TABLES, SL_ENC_MAX_VIRTUAL,
            SL_ENC_MAX_WIDTH);
    }
    p = realloc(t->table, ((size_t)t->n + 1) * sizeof *p);
    if (p)
        t->table = p;
    one.task = strdup(task);
    /* NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): both are at least 1 */
    one.rows = malloc((size_t)(v * hidden) * sizeof *one.rows);
    one.virtual_tokens = (int)v;
    one.hidden = (int)hidden;
    if (!p || !one.task || !one.rows || !one.config) {
        free(one.task);
        free(one.rows);
        json_decref(one.config);
        return sl_err_set(im->err, SL_NOMEM, "out of memory for a prompt table");
    }
    t->table[t->n++] = one;
    *ret_rows = one.rows;
    return 0;
}

/* ---- PEFT ---- */

static const char *last_part(const char *path, char ret_name[SL_PATH_MAX])
{
    size_t n = strlen(path);

    while (n > 1 && path[n - 1] == '/')
        n--;
    snprintf(ret_name, SL_PATH_MAX, "%.*s", (int)n, path);
    return strrchr(ret_name, '/') && n > 1 ? strrchr(ret_name, '/') + 1 : ret_name;
}

/* The adapter is one table that goes before the text. */
static int check_adapter(const json_t *config, struct sl_err *err)
{
    const char *type = sl_json_str(config, "peft_type", "missing");

    if (strcmp(type, "PROMPT_TUNING") != 0 && strcmp(type, "P_TUNING") != 0)
        return sl_err_set(err, SL_SPEC,
                          ADAPTER_CONFIG ": peft_type %.40s is not supported (supported: "
                                         "PROMPT_TUNING, P_TUNING)",
                          type);
    if (strcmp(sl_json_str(config, "task_type", "CAUSAL_LM"), "CAUSAL_LM") != 0 ||
        sl_json_int(config, "num_transformer_submodules", 1) != 1)
        return sl_err_set(err, SL_SPEC,
                          ADAPTER_CONFIG ": task_type %.40s with %lld submodules is not supported "
                                         "(supported: CAUSAL_LM with 1)",
                          sl_json_str(config, "task_type", "CAUSAL_LM"),
                          (long long)sl_json_int(config, "num_transformer_submodules", 1));
    return 0;
}

static int check_shape(const json_t *config, int n_dims, const int64_t *dim, struct sl_err *err)
{
    if (n_dims != 2 || sl_json_int(config, "num_virtual_tokens", dim[0]) != dim[0] ||
        sl_json_int(config, "token_dim", dim[1]) != dim[1])
        return sl_err_set(err, SL_DATA,
                          PEFT_TENSOR " is not [num_virtual_tokens, token_dim] of " ADAPTER_CONFIG);
    return 0;
}

static int read_adapter_safetensors(struct import *im, const char *file, const char *task,
                                    const json_t *config)
{
    static const struct {
        const char *type;
        enum sl_dtype dtype;
    } types[] = {{"F32", SL_DT_F32}, {"F16", SL_DT_F16}, {"BF16", SL_DT_BF16}};
    const struct sl_st_tensor *tensor;
    struct sl_safetensors *st = NULL;
    float *rows = NULL;
    int at = -1, dtype = -1, rc = sl_safetensors_open_model(file, &st, im->err);

    if (!rc && (at = sl_safetensors_find(st, PEFT_TENSOR)) < 0)
        rc = sl_err_set(im->err, SL_DATA, "%s holds no tensor " PEFT_TENSOR, file);
    if (rc) {
        sl_safetensors_close(st);
        return rc;
    }
    tensor = sl_safetensors_at(st, at);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].type, tensor->type))
            dtype = (int)types[i].dtype;
    if (dtype < 0)
        rc = sl_err_set(im->err, SL_SPEC, PEFT_TENSOR " has type %s; F32, F16 and BF16 are read",
                        tensor->type);
    if (!rc)
        rc = check_shape(config, tensor->n_dims, tensor->dim, im->err);
    if (!rc)
        rc = add_table(im, task, tensor->dim[0], tensor->dim[1], NULL, &rows);
    if (!rc)
        sl_dequant_row((enum sl_dtype)dtype, sl_safetensors_bytes(st, at), sl_st_elements(tensor),
                       rows);
    sl_safetensors_close(st);
    return rc;
}

static int read_adapter_bin(struct import *im, const char *file, const char *task,
                            const json_t *config)
{
    const struct sl_torch_tensor *tensor = NULL;
    struct sl_torch *torch = NULL;
    struct sl_map map;
    float *rows = NULL;
    int rc = sl_map_open(file, &map, im->err);

    if (rc)
        return rc;
    rc = sl_torch_open(map.data, map.len, &torch, im->err);
    if (!rc && !(tensor = sl_torch_find(torch, PEFT_TENSOR)))
        rc = sl_err_set(im->err, SL_DATA, "it holds no tensor " PEFT_TENSOR);
    if (!rc)
        rc = check_shape(config, tensor->n_dims, tensor->dim, im->err);
    if (!rc)
        rc = add_table(im, task, tensor->dim[0], tensor->dim[1], NULL, &rows);
    if (!rc)
        rc = sl_torch_floats(tensor, rows, im->err);
    sl_torch_close(torch);
    sl_map_close(&map);
    return rc ? sl_err_wrap(im->err, rc, "%s", file) : 0;
}

static int read_adapter(struct import *im, const char *dir, const char *task)
{
    char file[SL_PATH_MAX];
    json_t *config = NULL;
    int rc = sl_path(file, im->err, "%s/" ADAPTER_CONFIG, dir);

    if (!rc)
        rc = sl_json_read(file, SL_JSON_FILE_MAX, &config, im->err);
    if (!rc)
        rc = check_adapter(config, im->err);
    if (!rc)
        rc = sl_path(file, im->err, "%s/" ADAPTER, dir);
    if (!rc && sl_file_exists(file)) {
        rc = read_adapter_safetensors(im, file, task, config);
    } else if (!rc) {
        rc = sl_path(file, im->err, "%s/" ADAPTER_BIN, dir);
        if (!rc)
            rc = sl_file_exists(file)
                     ? read_adapter_bin(im, file, task, config)
                     : sl_err_set(im->err, SL_NOTFOUND,
                                  "%s has neither " ADAPTER " nor " ADAPTER_BIN, dir);
    }
    json_decref(config);
    return rc;
}

static bool has_file(const char *dir, const char *name)
{
    char file[SL_PATH_MAX];

    return !sl_path(file, NULL, "%s/%s", dir, name) && sl_file_exists(file);
}

static int by_task(const void *a, const void *b)
{
    return strcmp(((const struct sl_table *)a)->task, ((const struct sl_table *)b)->task);
}

/* A folder of adapters, such as a run's out/peft: each folder's name is its task's. */
static int read_adapters(struct import *im)
{
    DIR *dir = opendir(im->path);
    struct dirent *entry;
    int rc = 0;

    if (!dir)
        return sl_err_errno(im->err, "opening %s", im->path);
    while (!rc && (entry = readdir(dir))) {
        char sub[SL_PATH_MAX];

        if (entry->d_name[0] == '.' || sl_path(sub, NULL, "%s/%s", im->path, entry->d_name) ||
            !has_file(sub, ADAPTER_CONFIG))
            continue;
        rc = read_adapter(im, sub, entry->d_name);
    }
    closedir(dir);
    if (!rc && !im->t->n)
        rc = sl_err_set(im->err, SL_DATA,
                        "a folder with neither " SL_TABLES_FILE " nor " ADAPTER_CONFIG
                        ", and none in its folders");
    if (!rc)
        qsort(im->t->table, (size_t)im->t->n, sizeof *im->t->table, by_task);
    return rc;
}

static int read_peft(struct import *im)
{
    char name[SL_PATH_MAX];

    if (!has_file(im->path, ADAPTER_CONFIG))
        return read_adapters(im);
    return read_adapter(im, im->path, im->n_tasks ? im->tasks[0] : last_part(im->path, name));
}

/* ---- NeMo ---- */

/* The task's template as our configuration takes it: the keys that it knows. New reference; NULL:
 * the archive has none. */
static json_t *template_of(const json_t *config, const char *task, int64_t v)
{
    static const char *const keys[] = {"prompt_template", "virtual_token_splits", "truncate_field",
                                       "answer_only_loss", "answer_field"};
    const json_t *list = sl_json_get(config, "task_templates");
    json_t *copy;

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *from = json_array_get(list, i);

        if (strcmp(sl_json_str(from, "taskname", ""), task) != 0 ||
            !json_is_string(json_object_get(from, "prompt_template")))
            continue;
        copy = json_pack("{s:s, s:I}", "taskname", task, "total_virtual_tokens", (json_int_t)v);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            if (json_object_get(from, keys[k]))
                json_object_set(copy, keys[k], json_object_get(from, keys[k]));
        return copy;
    }
    return NULL;
}

/* "prompt_table.prompt_table.TASK.prompt_embeddings.weight", or with one prefix: the task, or
 * false.
 */
static bool task_of(const char *name, char ret_task[SL_TORCH_NAME_MAX])
{
    size_t n = strlen(name), tail = strlen(NEMO_TENSOR);

    if (n <= tail || strcmp(name + n - tail, NEMO_TENSOR) != 0 ||
        strncmp(name, NEMO_TABLE, strlen(NEMO_TABLE)) != 0)
        return false;
    for (int i = 0; i < 2 && !strncmp(name, NEMO_TABLE, strlen(NEMO_TABLE)); i++) {
        name += strlen(NEMO_TABLE);
        n -= strlen(NEMO_TABLE);
    }
    if (n <= tail)
        return false;
    snprintf(ret_task, SL_TORCH_NAME_MAX, "%.*s", (int)(n - tail), name);
    return true;
}

/* Order of the archive's templates; a table that none names stays behind them. */
static void order_by_templates(struct sl_tables *t, const json_t *config)
{
    const json_t *list = sl_json_get(config, "task_templates");
    int at = 0;

    for (size_t i = 0; i < json_array_size(list); i++)
        for (int k = at; k < t->n; k++)
            if (!strcmp(sl_json_str(json_array_get(list, i), "taskname", ""), t->table[k].task)) {
                struct sl_table one = t->table[k];

                memmove(&t->table[at + 1], &t->table[at], (size_t)(k - at) * sizeof one);
                t->table[at++] = one;
                break;
            }
}

static int read_nemo_tables(struct import *im, const struct sl_torch *torch, const json_t *config)
{
    const char *digest;
    int rc = 0;

    for (int i = 0; i < sl_torch_count(torch) && !rc; i++) {
        const struct sl_torch_tensor *tensor = sl_torch_at(torch, i);
        char task[SL_TORCH_NAME_MAX];
        float *rows = NULL;

        if (!task_of(tensor->name, task))
            continue;
        if (tensor->n_dims != 2)
            return sl_err_set(im->err, SL_DATA, "tensor '%s' has %d dimensions, not 2",
                              tensor->name, tensor->n_dims);
        rc = add_table(im, task, tensor->dim[0], tensor->dim[1],
                       template_of(config, task, tensor->dim[0]), &rows);
        if (!rc)
            rc = sl_torch_floats(tensor, rows, im->err);
    }
    if (!rc && !im->t->n)
        return sl_err_set(im->err, SL_SPEC,
                          "the archive holds no prompt table as NeMo 1.16 saves it "
                          "(prompt_table.TASK" NEMO_TENSOR ")%s%s",
                          sl_torch_count(torch) ? "; its first tensor is " : "",
                          sl_torch_count(torch) ? sl_torch_at(torch, 0)->name : "");
    if (rc)
        return rc;
    order_by_templates(im->t, config);
    digest = sl_json_str(config, "softlaunch.model", "");
    if (sl_sha256_valid(digest))
        memcpy(im->t->model_digest, digest, sizeof im->t->model_digest);
    digest = sl_json_str(config, "softlaunch.tokenizer", "");
    if (sl_sha256_valid(digest))
        memcpy(im->t->tokenizer_digest, digest, sizeof im->t->tokenizer_digest);
    return 0;
}

static int read_nemo(struct import *im)
{
    const struct sl_tar_member *weights = NULL;
    struct sl_torch *torch = NULL;
    struct sl_tar tar = {0};
    json_t *config = NULL;
    int rc = sl_tar_open(im->path, &tar, im->err);

    if (!rc)
        rc = sl_nemo_config(&tar, &config, im->err);
    if (!rc && !(weights = sl_tar_find(&tar, SL_NEMO_WEIGHTS)))
        rc = sl_err_set(im->err, SL_DATA, "the archive holds no " SL_NEMO_WEIGHTS);
    if (!rc)
        rc = sl_torch_open(weights->data, weights->len, &torch, im->err);
    if (!rc)
        rc = read_nemo_tables(im, torch, config);
    sl_torch_close(torch);
    json_decref(config);
    sl_tar_close(&tar);
    return rc;
}

/* ---- .npy ---- */

/* Where the array begins; its shape is checked against the file's length. */
static int read_npy_header(const struct sl_map *map, int64_t dim[3], size_t *ret_at,
                           struct sl_err *err)
{
    char header[512], descr[16], order[8];
    const unsigned char *p = map->data;
    size_t at = 10, len;
    long long d[3];
    int end = 0;

    if (map->len < 12)
        return sl_err_set(err, SL_DATA, "an .npy that is cut off");
    len = (size_t)p[8] | (size_t)p[9] << 8;
    if (p[6] > 1) {
        len |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
        at = 12;
    }
    if (p[6] < 1 || p[6] > 3 || len > NPY_HEADER_MAX || len > map->len - at)
        return sl_err_set(err, SL_DATA, "an .npy with a header of %zu bytes, version %d", len,
                          p[6]);
    snprintf(header, sizeof header, "%.*s", (int)len, (const char *)p + at);
    if (sscanf(header,
               "{'descr': '%15[^']', 'fortran_order': %7[A-Za-z], 'shape': (%lld, %lld, %lld%n",
               descr, order, &d[0], &d[1], &d[2], &end) != 5 ||
        !end || strspn(header + end, ",) }\n") != strlen(header + end))
        return sl_err_set(err, SL_SPEC,
                          "an .npy that is no array of three dimensions [tasks, V, hidden]: %.100s",
                          header);
    if (strcmp(descr, "<f4") != 0 || strcmp(order, "False") != 0)
        return sl_err_set(err, SL_SPEC,
                          "an .npy of type %s, fortran_order %s; <f4 and False are supported",
                          descr, order);
    if (d[0] < 1 || d[0] > MAX_TABLES || d[1] < 1 || d[1] > SL_ENC_MAX_VIRTUAL || d[2] < 1 ||
        d[2] > SL_ENC_MAX_WIDTH || (uint64_t)(d[0] * d[1] * d[2]) * 4 != map->len - at - len)
        return sl_err_set(err, SL_DATA,
                          "an .npy of shape (%lld, %lld, %lld) with %zu bytes of data", d[0], d[1],
                          d[2], map->len - at - len);
    for (int i = 0; i < 3; i++)
        dim[i] = d[i];
    *ret_at = at + len;
    return 0;
}

/* Rows up to the last that is not all zero, which is padding; at least one. */
static int64_t used_rows(const unsigned char *rows, int64_t v, int64_t hidden)
{
    size_t bytes = (size_t)hidden * sizeof(float);

    for (; v > 1; v--)
        for (size_t i = 0; i < bytes; i++)
            if (rows[(size_t)(v - 1) * bytes + i])
                return v;
    return v;
}

static int read_npy(struct import *im)
{
    struct sl_map map;
    int64_t dim[3] = {0};
    size_t at = 0;
    int rc = sl_map_open(im->path, &map, im->err);

    if (rc)
        return rc;
    rc = read_npy_header(&map, dim, &at, im->err);
    if (!rc && im->n_tasks && im->n_tasks != dim[0])
        rc = sl_err_set(im->err, SL_SPEC, "%lld tables, but %d names for them", (long long)dim[0],
                        im->n_tasks);
    for (int64_t i = 0; i < dim[0] && !rc; i++) {
        const unsigned char *from = map.data + at + (size_t)(i * dim[1] * dim[2]) * sizeof(float);
        int64_t v = used_rows(from, dim[1], dim[2]);
        char name[32];
        float *rows = NULL;

        snprintf(name, sizeof name, "task_%d", (int)i);
        rc = add_table(im, im->n_tasks ? im->tasks[i] : name, v, dim[2], NULL, &rows);
        if (!rc)
            memcpy(rows, from, (size_t)(v * dim[2]) * sizeof *rows);
    }
    sl_map_close(&map);
    return rc;
}

/* ---- any ---- */

static int read_any(struct import *im)
{
    unsigned char head[512] = {0};
    struct stat st;
    size_t n;
    FILE *f;

    if (!stat(im->path, &st) && S_ISDIR(st.st_mode))
        return has_file(im->path, SL_TABLES_FILE) ? sl_tables_read(im->path, im->t, im->err)
                                                  : read_peft(im);
    f = fopen(im->path, "rbe");
    if (!f)
        return sl_tables_read(im->path, im->t, im->err); /* says why */
    n = fread(head, 1, sizeof head, f);
    fclose(f);
    if ((n > 262 && !memcmp(head + 257, "ustar", 5)) || (head[0] == 0x1f && head[1] == 0x8b))
        return read_nemo(im);
    if (!memcmp(head, "\x93NUMPY", 6))
        return read_npy(im);
    return sl_tables_read(im->path, im->t, im->err);
}

int sl_tables_import(const char *path, const char *const *tasks, int n_tasks,
                     struct sl_tables *ret_tables, struct sl_err *err)
{
    struct sl_tables t = {0};
    struct import im = {path, tasks, n_tasks, &t, err};
    int rc = read_any(&im);

    for (int i = 0; i < t.n && !rc; i++)
        for (int k = 0; k < i; k++)
            if (!strcmp(t.table[i].task, t.table[k].task))
                rc = sl_err_set(err, SL_DATA, "two tables for task '%.80s'", t.table[i].task);
    if (rc) {
        sl_tables_release(&t);
        return err && strstr(err->msg, path) ? rc : sl_err_wrap(err, rc, "prompt tables %s", path);
    }
    *ret_tables = t;
    return 0;
}
