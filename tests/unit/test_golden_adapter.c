/* The exported PEFT adapter against what PEFT itself wrote and computes: files key for key and byte
 * for byte, next-token logits behind the recorded table.
 *
 * SL_ADAPTER_OUT=DIR keeps the adapters and our logits there for tests/golden/check_adapter.py. */
#include "base/json.h"
#include "engine/decode.h"
#include "engine/format/export.h"
#include "engine/model.h"
#include "tests/golden/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

#define LOGIT_TOLERANCE 1e-3
#define MAX_PROMPTS 16
#define FILE_MAX (1u << 20)

static struct sl_err err;
static const struct sl_ops *ops = &sl_cpu_ops;
static struct sl_backend *be;
static struct sl_model *model;
static char dir[SL_PATH_MAX];
static bool keep_dir;

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static int setup(void **state)
{
    (void)state;
    char path[SL_PATH_MAX];
    struct sl_weights *w;
    const char *out = getenv("SL_ADAPTER_OUT");
    if (out) {
        keep_dir = true;
        ok(sl_path(dir, &err, "%s", out));
        ok(sl_mkdirs(dir, &err));
    } else {
        ok(sl_path(dir, &err, "%s/sl-adapter-XXXXXX",
                   getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp"));
        assert_non_null(mkdtemp(dir));
    }
    golden_path(path, "tiny_llama.gguf");
    ok(ops->open(&(struct sl_backend_opts){.threads = 1}, &be, &err));
    ok(sl_weights_open(path, &w, &err));
    ok(sl_model_new(w, ops, be, &model, &err));
    sl_weights_close(w);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_model_free(model);
    ops->close(be);
    if (!keep_dir)
        ok(sl_rmtree(dir, &err));
    return 0;
}

/* Exports the recorded table as task `name` and returns its virtual tokens. */
static int export_golden(const struct golden *g, const char *name)
{
    const struct sl_arch *a = sl_model_arch(model);
    int64_t n;
    const float *rows = golden_f32(g, "table.0", &n);
    int v = (int)golden_meta_num(g, "virtual_tokens");
    assert_int_equal(n, (int64_t)v * a->hidden);
    float *copy = malloc((size_t)n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, rows, (size_t)n * sizeof *copy);
    json_t *config = json_pack("{s:s, s:s, s:i}", "taskname", name, "prompt_template",
                               "<|VIRTUAL_PROMPT_0|>{context}{answer}", "total_virtual_tokens", v);
    char task[64];
    snprintf(task, sizeof task, "%s", name);
    struct sl_table table = {task, v, a->hidden, copy, config};
    const char *type = golden_meta(g, "encoder_type");
    struct sl_peft peft = {
        .heads = a->heads,
        .layers = a->layers,
        .type = !strcmp(type, "mlp")    ? SL_ENC_MLP
                : !strcmp(type, "lstm") ? SL_ENC_LSTM
                                        : SL_ENC_TABLE,
        .encoder_hidden = (int)golden_meta_num(g, "encoder_hidden"),
        .encoder_layers = (int)golden_meta_num(g, "num_layers"),
    };
    ok(sl_export_peft(dir, &table, &peft, false, &err));
    free(copy);
    json_decref(config);
    return v;
}

/* Every key of ours is PEFT's with its value; PEFT's that ours lacks are those that came after 0.19
 * or only name the version, which every PEFT fills in by itself. */
static void check_config(const struct golden *g, const char *path)
{
    static const char *const later[] = {"peft_version", "modules_to_save", "tokenizer_kwargs"};
    const char *text = golden_meta(g, "adapter_config"), *key;
    json_t *theirs, *ours, *value;
    ok(sl_json_parse(text, strlen(text), "recorded adapter_config.json", &theirs, &err));
    ok(sl_json_read(path, FILE_MAX, &ours, &err));
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (!json_object_get(ours, later[i]))
            json_object_del(theirs, later[i]);
    json_object_foreach(theirs, key, value)
    {
        json_t *own = json_object_get(ours, key);
        if (!own)
            fail_msg("%s: no key %s, which PEFT writes", path, key);
        bool number = json_is_number(own) && json_is_number(value);
        if (number ? json_number_value(own) != json_number_value(value) : !json_equal(own, value))
            fail_msg("%s: another value of %s than PEFT's", path, key);
    }
    json_object_foreach(ours, key, value) if (!json_object_get(theirs, key))
        fail_msg("%s: key %s, which PEFT does not write", path, key);
    json_decref(theirs);
    json_decref(ours);
}

/* Names, shapes, types, offsets and metadata are PEFT's; the data is the table, byte for byte. */
static void check_tensors(const struct golden *g, const char *path)
{
    struct sl_buf file;
    const char *text = golden_meta(g, "adapter_header");
    json_t *theirs, *ours;
    uint64_t len;
    int64_t n;
    const float *table = golden_f32(g, "table.0", &n);
    sl_buf_init(&file, FILE_MAX);
    ok(sl_file_read(path, &file, &err));
    assert_true(file.len > sizeof len);
    memcpy(&len, file.p, sizeof len);
    assert_true(len < file.len - sizeof len);
    ok(sl_json_parse(text, strlen(text), "recorded header", &theirs, &err));
    ok(sl_json_parse(file.p + sizeof len, len, path, &ours, &err));
    if (!json_equal(ours, theirs))
        fail_msg("%s: header %.*s, but PEFT's is %s", path, (int)len, file.p + sizeof len, text);
    assert_int_equal(file.len - sizeof len - len, (size_t)n * sizeof *table);
    assert_memory_equal(file.p + sizeof len + len, table, (size_t)n * sizeof *table);
    json_decref(theirs);
    json_decref(ours);
    sl_buf_release(&file);
}

/* Next-token logits behind each recorded prompt, [prompts, vocab]; the caller frees. */
static float *probe(const struct golden *g, const float *table, int v, int *ret_n)
{
    const struct sl_arch *a = sl_model_arch(model);
    struct sl_row rows[MAX_PROMPTS];
    struct sl_decode *d;
    int64_t n, n_ids;
    const int32_t *ids = golden_i32(g, "probe.ids", &n_ids);
    const int32_t *length = golden_i32(g, "probe.length", &n);
    size_t bytes = (size_t)v * (size_t)a->hidden * sizeof(float);
    float *prompts, *logits = malloc((size_t)n * (size_t)a->vocab * sizeof *logits);
    int32_t *id = calloc((size_t)(n_ids + n * v), sizeof *id), *to = id;
    assert_non_null(logits);
    assert_non_null(id);
    assert_true(n <= MAX_PROMPTS);
    for (int p = 0; p < n; p++) {
        rows[p] = (struct sl_row){0, v + length[p], to, NULL};
        for (int i = 0; i < v; i++)
            *to++ = -(i + 1);
        for (int i = 0; i < length[p]; i++)
            *to++ = *ids++;
    }
    ok(ops->alloc(be, bytes, (void **)&prompts, &err));
    ok(ops->upload(be, prompts, table, bytes, &err));
    ok(sl_decode_new(model, rows, (int)n, &v, 1, prompts, 1, logits, &d, &err));
    sl_decode_free(d);
    ops->free(be, prompts);
    free(id);
    *ret_n = (int)n;
    return logits;
}

static double largest(const float *a, const float *b, int64_t n)
{
    double apart = 0;
    for (int64_t i = 0; i < n; i++)
        apart = golden_worst(apart, fabs((double)a[i] - b[i]));
    return apart;
}

static void check_logits(const struct golden *g, const char *name, int v)
{
    const struct sl_arch *a = sl_model_arch(model);
    int n;
    int64_t n_want;
    char path[SL_PATH_MAX];
    const float *want = golden_f32(g, "probe.logits", &n_want),
                *table = golden_f32(g, "table.0", NULL);
    float *ours = probe(g, table, v, &n);
    assert_int_equal(n_want, (int64_t)n * a->vocab);
    double apart = largest(ours, want, n_want);
    ok(sl_path(path, &err, "%s/%s.f32", dir, name));
    ok(sl_file_write(path, ours, (size_t)n_want * sizeof *ours, &err));
    free(ours);

    /* the comparison must notice a table that is not PEFT's: its first two rows exchanged */
    float *other = malloc((size_t)v * (size_t)a->hidden * sizeof *other);
    assert_non_null(other);
    memcpy(other, table, (size_t)v * (size_t)a->hidden * sizeof *other);
    memcpy(other, table + a->hidden, (size_t)a->hidden * sizeof *other);
    memcpy(other + a->hidden, table, (size_t)a->hidden * sizeof *other);
    ours = probe(g, other, v, &n);
    double wrong = largest(ours, want, n_want);
    free(ours);
    free(other);
    print_message(
        "%s: next-token logits of %d prompts %.1e from PEFT's (%.1e with two rows exchanged)\n",
        name, n, apart, wrong);
    assert_true(apart <= LOGIT_TOLERANCE);
    assert_true(wrong > 10 * LOGIT_TOLERANCE);
}

static void check(const char *name)
{
    struct golden g;
    char file[64], path[SL_PATH_MAX];
    snprintf(file, sizeof file, "train_%s.safetensors", name);
    golden_open(&g, file);
    int v = export_golden(&g, name);
    ok(sl_path(path, &err, "%s/%s/adapter_config.json", dir, name));
    check_config(&g, path);
    ok(sl_path(path, &err, "%s/%s/adapter_model.safetensors", dir, name));
    check_tensors(&g, path);
    check_logits(&g, name, v);
    golden_close(&g);
}

static void test_mlp(void **state)
{
    (void)state;
    check("mlp");
}

static void test_lstm(void **state)
{
    (void)state;
    check("lstm");
}

static void test_prompt_tuning(void **state)
{
    (void)state;
    check("prompt");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_lstm),
        cmocka_unit_test(test_prompt_tuning),
    };
    return cmocka_run_group_tests_name("golden adapter", tests, setup, teardown);
}
