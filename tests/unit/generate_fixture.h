/* The recorded tiny model with random prompt tables of two tasks, configs and mixed rows for it:
 * what the tests of generation and of label scoring share. */
#ifndef SL_TESTS_UNIT_GENERATE_FIXTURE_H
#define SL_TESTS_UNIT_GENERATE_FIXTURE_H
#include "base/json.h"
#include "base/rng.h"
#include "engine/cpu/coretype.h"
#include "engine/decode.h"
#include "engine/generate.h"
#include "engine/weights.h"
#include "tests/golden/golden.h"
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

#define N_ROWS 40
#define N_PROMPTS 8 /* 5 and 3 */

static const struct sl_ops *const ops = &sl_cpu_ops;
static struct sl_err err;
static struct sl_backend *be;
static struct sl_weights *weights;
static struct sl_model *model;
static struct sl_tokenizer *tok;
static float *prompts;
static char folder[256];

static inline void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static inline int setup(void **state)
{
    char path[SL_PATH_MAX];
    struct sl_rng rng = sl_rng_new(3, 0);
    int hidden;
    void *p;

    (void)state;
    snprintf(folder, sizeof folder, "%s/sl-generate-XXXXXX",
             getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    assert_non_null(mkdtemp(folder));
    golden_path(path, "tiny_llama.gguf");
    ok(sl_weights_open(path, &weights, &err));
    ok(sl_weights_tokenizer(weights, &tok, &err));
    ok(ops->open(&(struct sl_backend_opts){.threads = 1}, &be, &err));
    ok(sl_model_new(weights, ops, be, &model, &err));
    hidden = sl_model_arch(model)->hidden;
    ok(ops->alloc(be, (size_t)(N_PROMPTS * hidden) * sizeof(float), &p, &err));
    prompts = p;
    for (int i = 0; i < N_PROMPTS * hidden; i++)
        prompts[i] = (float)(0.4 * sl_rng_normal(&rng));
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    ops->free(be, prompts);
    sl_model_free(model);
    ops->close(be);
    sl_tokenizer_free(tok);
    sl_weights_close(weights);
    sl_rmtree(folder, NULL);
    return 0;
}

/* Two tasks; more: members of "inference", as {...}. */
static inline void make_config(const char *inference, struct sl_config *ret_config)
{
    static const char base[] =
        "{\"model\": {\"seed\": %d, \"restore_path\": \"t\", \"existing_tasks\": [\"one\", "
        "\"two\"], \"new_tasks\": [],"
        " \"task_templates\": [{\"taskname\": \"one\", \"prompt_template\": "
        "\"<|VIRTUAL_PROMPT_0|>{context} = {answer}\", \"total_virtual_tokens\": 5},"
        " {\"taskname\": \"two\", \"prompt_template\": \"say {context}<|VIRTUAL_PROMPT_0|>: "
        "{answer}\","
        " \"total_virtual_tokens\": 3}]}, \"inference\": %s}";
    int seed = strstr(inference, "OTHER_SEED") ? 99 : 7;
    char text[4096];
    json_t *json = NULL;

    snprintf(text, sizeof text, base, seed, inference);
    ok(sl_json_parse(text, strlen(text), "config", &json, &err));
    ok(sl_config_parse(json, ret_config, &err));
    json_decref(json);
}

static inline void word(unsigned seed, char ret[32])
{
    int n = 2 + (int)(seed * 2654435761u >> 27) % 20;

    for (int i = 0; i < n; i++)
        ret[i] = (char)('a' + ((seed = seed * 1664525u + 1013904223u) >> 24) % 20);
    ret[n] = '\0';
}

/* n rows of both tasks, mixed; odd_seed changes every second row. */
static inline struct sl_dataset *rows(const struct sl_config *c, int n, unsigned odd_seed,
                                      bool no_virtual)
{
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE, .no_virtual = no_virtual};
    struct sl_dataset *ds = NULL;
    char path[SL_PATH_MAX], text[32];
    const char *paths[1] = {path};
    FILE *f;

    snprintf(path, sizeof path, "%s/rows.jsonl", folder);
    f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) {
        word((unsigned)i * 31 + (i % 2 ? odd_seed : 0), text);
        fprintf(f, "{\"taskname\": \"%s\", \"context\": \"%s\"}\n", i % 3 ? "one" : "two", text);
    }
    fclose(f);
    ok(sl_prompt_positions(c, sl_model_arch(model)->max_positions, &how.max_positions, &err));
    ok(sl_dataset_open(paths, 1, c, tok, &how, &ds, &err));
    assert_int_equal(sl_dataset_rows(ds), n);
    return ds;
}

#endif
