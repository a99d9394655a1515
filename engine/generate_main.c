#include "engine/generate_main.h"
#include "engine/backend.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/format/export.h"
#include "engine/generate.h"
#include "engine/format/table_forms.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: softlaunch generate --model FILE --prompts FILE --input FILE [options] [inference.key=value ...]\n"
    "  --model FILE     the base model\n"
    "  --prompts FILE   prompt_table.safetensors of a run or a folder with one; a PEFT adapter; NeMo's .nemo\n"
    "  --input FILE     JSONL rows; each names its task, or --task does\n"
    "  --task NAME      answer every row as this task\n"
    "  --output FILE    the prediction table as JSONL (default predictions.jsonl)\n"
    "  --untuned        without the virtual tokens, for comparison\n"
    "  --device D       auto (a GPU if there is one), cpu, cuda or cuda:N; default: SOFTLAUNCH_DEVICE, or auto\n"
    "  --precision P    fp32, or what a GPU computes in otherwise: bf16, fp8, int8 (default: fp32)\n"
    "  --threads N      CPU threads (default: all)\n"
    "inference keys: greedy, temperature, top_k, top_p, repetition_penalty, tokens_to_generate, min_tokens,\n"
    "  stop='[\"...\"]', choices='{\"TASK\": [\"...\"]}' (a column of likeliest labels); and seed=N.\n"
    "Rows of several tasks may be mixed; the table keeps their order.\n";

struct args {
    const char *model, *prompts, *input, *task, *output;
    bool untuned;
    const char *device, *precision;
    int threads;
    char **overrides;
    int n_overrides;
};

/* The config that the tables were trained with, as far as rendering needs it. */
static int config_of(const struct sl_tables *tables, const struct args *a, struct sl_config *ret_config,
                     struct sl_err *err)
{
    json_t *templates = json_array(), *names = json_array(), *spec, *config;
    int rc = 0;

    for (int i = 0; i < tables->n; i++) {
        json_array_append(templates, tables->table[i].config);
        json_array_append_new(names, json_string(tables->table[i].task));
    }
    config = json_pack("{s:{s:s, s:o, s:o, s:[], s:s, s:O*}}", "model", "virtual_prompt_style",
                       "prompt-tuning", "task_templates", templates, "existing_tasks", names, "new_tasks",
                       "restore_path", a->prompts, "data", tables->data);
    spec = json_pack("{s:o}", "config", config);
    if (!spec)
        return sl_err_set(err, SL_NOMEM, "no memory for the configuration");
    if (a->precision)
        json_object_set_new(json_object_get(spec, "config"), "trainer", json_pack("{s:s}", "precision", a->precision));
    for (int i = 0; i < a->n_overrides && !rc; i++) {
        char *full = NULL;

        if (asprintf(&full, "%s%s", strncmp(a->overrides[i], "seed=", 5) ? "" : "model.",
                     a->overrides[i]) < 0)
            rc = sl_err_set(err, SL_NOMEM, "no memory for %s", a->overrides[i]);
        else
            rc = sl_spec_apply_override(spec, full, err);
        free(full);
    }
    if (!rc)
        rc = sl_config_parse(json_object_get(spec, "config"), ret_config, err);
    json_decref(spec);
    return rc;
}

/* The input with every row's taskname set to --task, as a file of its own beside the output. */
static int with_task(const struct args *a, char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    FILE *in, *out;
    char *line = NULL;
    size_t cap = 0, number = 0;
    ssize_t n;
    int rc = sl_path(ret_path, err, "%s.%s.input", a->output, a->task);

    if (rc)
        return rc;
    in = fopen(a->input, "re");
    if (!in)
        return sl_err_errno(err, "opening %s", a->input);
    out = fopen(ret_path, "we");
    if (!out) {
        rc = sl_err_errno(err, "writing %s", ret_path);
        fclose(in);
        return rc;
    }
    while (!rc && (n = getline(&line, &cap, in)) >= 0) {
        json_t *row = NULL;
        char what[SL_PATH_MAX + 32], *text;

        number++;
        if (strspn(line, " \t\r\n") == (size_t)n)
            continue;
        snprintf(what, sizeof what, "%s:%zu", a->input, number);
        rc = sl_json_parse(line, (size_t)n, what, &row, err);
        if (!rc && !json_is_object(row))
            rc = sl_err_set(err, SL_SPEC, "%s: a row should be an object", what);
        if (!rc) {
            json_object_set_new(row, "taskname", json_string(a->task));
            text = sl_json_dump(row);
            if (!text || fprintf(out, "%s\n", text) < 0)
                rc = sl_err_errno(err, "writing %s", ret_path);
            free(text);
        }
        json_decref(row);
    }
    free(line);
    fclose(in);
    if (fclose(out) && !rc)
        rc = sl_err_errno(err, "writing %s", ret_path);
    if (rc)
        remove(ret_path);
    return rc;
}

static int upload_tables(const struct sl_tables *tables, const struct sl_ops *ops, struct sl_backend *be,
                         int hidden, float **ret_prompts, struct sl_err *err)
{
    size_t rows = 0, at = 0;
    void *p;
    int rc;

    for (int i = 0; i < tables->n; i++) {
        if (tables->table[i].hidden != hidden)
            return sl_err_set(err, SL_SPEC,
                              "the prompt table of '%s' has hidden size %d, the model %d: it was trained "
                              "for another model",
                              tables->table[i].task, tables->table[i].hidden, hidden);
        rows += (size_t)tables->table[i].virtual_tokens;
    }
    rc = ops->alloc(be, rows * (size_t)hidden * sizeof(float), &p, err);
    for (int i = 0; i < tables->n && !rc; i++) {
        size_t n = (size_t)tables->table[i].virtual_tokens * (size_t)hidden;

        rc = ops->upload(be, (float *)p + at, tables->table[i].rows, n * sizeof(float), err);
        at += n;
    }
    if (!rc)
        *ret_prompts = p;
    return rc;
}

static int generate(const struct args *a, struct sl_err *err)
{
    const struct sl_ops *ops = NULL;
    struct sl_tables tables = {0};
    struct sl_config config = {0};
    struct sl_weights *weights = NULL;
    struct sl_backend *be = NULL;
    struct sl_tokenizer *tok = NULL;
    struct sl_dataset *ds = NULL;
    struct sl_generator g = {.config = &config, .tuned = !a->untuned, .phase = "answering"};
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE, .no_virtual = a->untuned};
    struct sl_emitter report;
    char digest[SL_SHA256_HEX + 1] = "", input[SL_PATH_MAX] = "";
    const char *file = a->input;
    float *prompts = NULL;
    char **texts = NULL;
    const char **choice = NULL;
    struct sl_predictions table;
    int n = 0, rc = sl_tables_import(a->prompts, NULL, 0, &tables, err);

    sl_emit_init(&report, -1);
    g.report = &report;
    if (!rc)
        rc = config_of(&tables, a, &config, err);
    if (!rc && a->task && sl_config_task(&config, a->task) < 0)
        rc = sl_err_set(err, SL_SPEC, "%s holds no task '%s'", a->prompts, a->task);
    if (!rc && a->task) {
        rc = with_task(a, input, err);
        file = input;
    }
    if (!rc)
        rc = sl_weights_open(a->model, &weights, err);
    if (!rc && tables.model_digest[0])
        sl_weights_digest_begin(weights);
    if (!rc)
        rc = sl_weights_tokenizer(weights, &tok, err);
    if (!rc)
        rc = sl_prompt_positions(&config, sl_weights_arch(weights)->max_positions, &how.max_positions, err);
    if (!rc)
        rc = sl_dataset_open(&file, 1, &config, tok, &how, &ds, err);
    if (!rc && sl_dataset_counts(ds).read > sl_dataset_rows(ds))
        sl_emit_log(&report, SL_WARN, "warning: %lld of %lld rows do not fit and are not in the table",
                      (long long)(sl_dataset_counts(ds).read - sl_dataset_rows(ds)),
                      (long long)sl_dataset_counts(ds).read);
    if (!rc)
        rc = sl_backend_open(a->device, config.trainer.precision, a->threads, &ops, &be,
                             err);
    if (!rc)
        rc = sl_model_new(weights, ops, be, &g.model, err);
    if (!rc && tables.model_digest[0])
        rc = sl_weights_digest(weights, digest, err);
    if (!rc && digest[0] && strcmp(digest, tables.model_digest) != 0)
        sl_emit_log(&report, SL_WARN, "warning: these prompts were trained on another model (or "
                                        "another quantisation of it) than %s", a->model);
    if (!rc)
        rc = upload_tables(&tables, ops, be, sl_model_arch(g.model)->hidden, &prompts, err);
    g.tok = tok;
    g.prompts = prompts;
    if (!rc)
        rc = sl_generate(&g, ds, &texts, err);
    g.phase = "scoring labels";
    if (!rc && sl_any_choices(&config))
        rc = sl_choose(&g, ds, &choice, err);
    n = ds ? sl_dataset_rows(ds) : 0;
    table = (struct sl_predictions){.ds = ds, .text = texts, .choice = choice};
    if (!rc)
        rc = sl_write_predictions(a->output, &table, err);
    if (!rc) {
        sl_print_predictions(&table);
        printf("%d predictions in %s\n", n, a->output);
    }
    if (input[0])
        remove(input);
    sl_texts_free(texts, n);
    free(choice);
    if (be)
        ops->free(be, prompts);
    sl_model_free(g.model);
    if (be)
        ops->close(be);
    sl_dataset_free(ds);
    sl_tokenizer_free(tok);
    sl_weights_close(weights);
    sl_config_release(&config);
    sl_tables_release(&tables);
    return rc;
}

int sl_generate_main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"model", required_argument, NULL, 'm'},  {"prompts", required_argument, NULL, 'p'},
        {"input", required_argument, NULL, 'i'},  {"task", required_argument, NULL, 't'},
        {"output", required_argument, NULL, 'o'}, {"untuned", no_argument, NULL, 'u'},
        {"threads", required_argument, NULL, 'n'}, {"device", required_argument, NULL, 'd'},
        {"precision", required_argument, NULL, 'r'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    struct args a = {.output = "predictions.jsonl"};
    struct sl_err err = SL_ERR_INIT;
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 'm')
            a.model = optarg;
        else if (c == 'p')
            a.prompts = optarg;
        else if (c == 'i')
            a.input = optarg;
        else if (c == 't')
            a.task = optarg;
        else if (c == 'o')
            a.output = optarg;
        else if (c == 'u')
            a.untuned = true;
        else if (c == 'n')
            a.threads = atoi(optarg);
        else if (c == 'd')
            a.device = optarg;
        else if (c == 'r')
            a.precision = optarg;
        else {
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (!a.model || !a.prompts || !a.input) {
        fputs(usage, stderr);
        return 2;
    }
    a.overrides = argv + optind;
    a.n_overrides = argc - optind;
    if (generate(&a, &err)) {
        fprintf(stderr, "softlaunch generate: %s\n", err.msg);
        return 1;
    }
    return 0;
}
