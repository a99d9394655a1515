/* Prompt tables out and in, and the PEFT adapter's form (its numbers: test_golden_adapter.c). */
#include "base/file.h"
#include "base/json.h"
#include "engine/format/export.h"
#include "engine/format/safetensors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HEAD "<|VIRTUAL_PROMPT_0|>"
#define MODEL "abababababababababababababababababababababababababababababababab"
#define TOKENIZER "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
#define HIDDEN 3
#define FILE_MAX (1u << 20)

static char dir[] = "/tmp/sl-export-XXXXXX";
static char path[SL_PATH_MAX];

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(dir) ? sl_path(path, NULL, "%s/" SL_TABLES_FILE, dir) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

static float rows[12] = {0.1f, -0.0f, 1e-45f, 3, 4, 5, 6, 7, 8, 9, 10, -3.4e38f};

static struct sl_table table(const char *task, int v, const char *prompt_template)
{
    struct sl_table t = {(char *)(uintptr_t)task, v, HIDDEN, rows, NULL};

    t.config = json_pack("{s:s, s:s, s:i, s:b}", "taskname", task, "prompt_template",
                         prompt_template, "total_virtual_tokens", v, "answer_only_loss", 1);
    assert_non_null(t.config);
    return t;
}

static void tables_come_back_with_all_they_need(void **state)
{
    struct sl_table two[] = {table("kind \"of\" \xc3\xa9/thing", 4, HEAD "{a}\n\xe2\x82\xac{b}"),
                             table("b", 1, HEAD "{x}")};
    struct sl_tables t = {2, two, MODEL, TOKENIZER,
                          json_pack("{s:b, s:b}", "add_bos", 0, "add_eos", 1)},
                     got;
    struct sl_safetensors *st;
    const json_t *meta;
    int i;

    (void)state;
    two[1].rows = rows + 2;
    assert_int_equal(sl_export_tables(path, &t, NULL), 0);
    assert_int_equal(sl_tables_read(path, &got, NULL), 0);
    assert_int_equal(got.n, 2);
    assert_string_equal(got.model_digest, MODEL);
    assert_string_equal(got.tokenizer_digest, TOKENIZER);
    assert_true(json_equal(got.data, t.data));
    for (int k = 0; k < 2; k++) {
        i = sl_tables_find(&got, two[k].task);
        assert_in_range(i, 0, 1);
        assert_int_equal(got.table[i].virtual_tokens, two[k].virtual_tokens);
        assert_int_equal(got.table[i].hidden, HIDDEN);
        assert_memory_equal(got.table[i].rows, two[k].rows,
                            (size_t)two[k].virtual_tokens * HIDDEN * sizeof(float));
        assert_true(json_equal(got.table[i].config, two[k].config));
    }
    assert_int_equal(sl_tables_find(&got, "c"), -1);

    assert_int_equal(sl_safetensors_open(path, &st, NULL), 0);
    meta = sl_safetensors_metadata(st);
    assert_string_equal(json_string_value(json_object_get(meta, "format")), SL_TABLES_FORMAT);
    assert_true(json_string_length(json_object_get(meta, "softlaunch")) > 0);
    sl_safetensors_close(st);

    /* Written again it is the same file: nothing in it depends on when. */
    {
        struct sl_buf a, b;

        sl_buf_init(&a, FILE_MAX);
        sl_buf_init(&b, FILE_MAX);
        assert_int_equal(sl_file_read(path, &a, NULL), 0);
        json_decref(t.data);
        t.data = json_incref(got.data);
        assert_int_equal(sl_export_tables(path, &got, NULL), 0);
        assert_int_equal(sl_file_read(path, &b, NULL), 0);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.p, b.p, a.len);
        sl_buf_release(&a);
        sl_buf_release(&b);
    }
    sl_tables_release(&got);
    sl_tables_release(&got);
    sl_tables_release(NULL);
    json_decref(t.data);
    json_decref(two[0].config);
    json_decref(two[1].config);
}

static void refused(int code, const char *says)
{
    struct sl_tables got = {.n = -5};
    struct sl_err err = SL_ERR_INIT;

    if (sl_tables_read(path, &got, &err) != code || !strstr(err.msg, says) ||
        !strstr(err.msg, path))
        fail_msg("code %d, message %s: not %d with %s", err.code, err.msg, code, says);
    assert_int_equal(got.n, -5);
}

static int zeros(void *ctx, int index, float *out, struct sl_err *err)
{
    const struct sl_st_tensor *t = ctx;

    (void)err;
    memset(out, 0, (size_t)sl_st_elements(&t[index]) * sizeof *out);
    return 0;
}

static void write_raw(json_t *meta_stolen, bool seal, int n_dims)
{
    struct sl_st_tensor t = {.name = "q", .n_dims = n_dims, .dim = {2, 3}};

    assert_non_null(meta_stolen);
    assert_int_equal(sl_safetensors_write(path, &t, 1, meta_stolen, seal, zeros, &t, NULL), 0);
    json_decref(meta_stolen);
}

static void what_is_no_prompt_table_is_refused(void **state)
{
    static const char good[] = "{\"prompt_template\":\"x\"}";
    struct sl_buf file;

    (void)state;
    remove(path);
    refused(SL_NOTFOUND, "no such file");
    write_raw(json_pack("{s:s}", "format", "pt"), true, 2);
    refused(SL_DATA, "its format is pt, not " SL_TABLES_FORMAT);
    write_raw(json_pack("{s:s}", "format", SL_TABLES_FORMAT), false, 2);
    refused(SL_DATA, "seal");
    write_raw(json_pack("{s:s, s:s}", "format", SL_TABLES_FORMAT, "model", "abc"), true, 2);
    refused(SL_DATA, "\"model\"");
    write_raw(json_pack("{s:s, s:s, s:s}", "format", SL_TABLES_FORMAT, "model", MODEL, "tokenizer",
                        TOKENIZER),
              true, 2);
    refused(SL_DATA, "\"task.q\"");
    write_raw(json_pack("{s:s, s:s, s:s, s:s}", "format", SL_TABLES_FORMAT, "model", MODEL,
                        "tokenizer", TOKENIZER, "task.q", "[]"),
              true, 2);
    refused(SL_DATA, "\"task.q\"");
    write_raw(json_pack("{s:s, s:s, s:s, s:s}", "format", SL_TABLES_FORMAT, "model", MODEL,
                        "tokenizer", TOKENIZER, "task.q", "{}"),
              true, 2);
    refused(SL_DATA, "prompt_template");
    write_raw(json_pack("{s:s, s:s, s:s, s:s}", "format", SL_TABLES_FORMAT, "model", MODEL,
                        "tokenizer", TOKENIZER, "task.q", good),
              true, 1);
    refused(SL_DATA, "virtual tokens");
    write_raw(json_pack("{s:s, s:s, s:s, s:s}", "format", SL_TABLES_FORMAT, "model", MODEL,
                        "tokenizer", TOKENIZER, "task.q", good),
              true, 2);
    sl_buf_init(&file, FILE_MAX);
    assert_int_equal(sl_file_read(path, &file, NULL), 0);
    file.p[file.len - 1] ^= 1;
    assert_int_equal(sl_file_write(path, file.p, file.len, NULL), 0);
    refused(SL_DATA, "damaged");
    sl_buf_release(&file);
}

static void two_tables_of_one_name_are_refused(void **state)
{
    struct sl_table two[] = {table("a", 1, HEAD), table("a", 1, HEAD)};
    struct sl_tables t = {2, two, MODEL, TOKENIZER, NULL};
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    assert_int_equal(sl_export_tables(path, &t, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "two tables for task a"));
    json_decref(two[0].config);
    json_decref(two[1].config);
}

static void peft_wants_virtual_tokens_at_the_head(void **state)
{
    static const struct {
        const char *task, *text, *says;
        bool bos;
    } cases[] = {
        {"t", HEAD "{a}", NULL, false},
        {"t", "  " HEAD "{a}", NULL, false}, /* stripped when rendered */
        {"t", HEAD "<|VIRTUAL_PROMPT_1|><|VIRTUAL_PROMPT_2|> x", NULL, false},
        {"t", HEAD, NULL, false},
        {"t", HEAD "{a}", "add_bos", true},
        {"t", "Hi " HEAD "{a}", "not all at the head", false},
        {"t", HEAD "{a}<|VIRTUAL_PROMPT_1|>", "not all at the head", false},
        {"t", HEAD " <|VIRTUAL_PROMPT_1|>", "not all at the head", false},
        {"t", "<|VIRTUAL_PROMPT_1|>" HEAD "x", "not in order", false},
        {"t", "{a}", "not all at the head", false},
        {"../t", HEAD, "no folder name", false},
        {".", HEAD, "no folder name", false},
        {"", HEAD, "no folder name", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_err err = SL_ERR_INIT;
        int rc = sl_peft_check(cases[i].task, cases[i].text, cases[i].bos, &err);

        if (rc != (cases[i].says ? SL_SPEC : 0) || (rc && !strstr(err.msg, cases[i].says)))
            fail_msg("%s: %d %s", cases[i].text, rc, err.msg);
    }
}

static void file_is(const char *name, const char *want, size_t skip, size_t len)
{
    char p[SL_PATH_MAX];
    struct sl_buf b;

    sl_buf_init(&b, FILE_MAX);
    assert_int_equal(sl_path(p, NULL, "%s/%s", dir, name), 0);
    assert_int_equal(sl_file_read(p, &b, NULL), 0);
    if (b.len < skip + len || strncmp(b.p + skip, want, len))
        fail_msg("%s is %s", name, b.p + skip);
    sl_buf_release(&b);
}

static void adapters_have_pefts_form(void **state)
{
    static const char p_tuning[] = "{\n"
                                   "  \"auto_mapping\": null,\n"
                                   "  \"base_model_name_or_path\": null,\n"
                                   "  \"encoder_dropout\": 0.0,\n"
                                   "  \"encoder_hidden_size\": 24,\n"
                                   "  \"encoder_num_layers\": 3,\n"
                                   "  \"encoder_reparameterization_type\": \"LSTM\",\n"
                                   "  \"inference_mode\": true,\n"
                                   "  \"num_attention_heads\": 4,\n"
                                   "  \"num_layers\": 5,\n"
                                   "  \"num_transformer_submodules\": 1,\n"
                                   "  \"num_virtual_tokens\": 2,\n"
                                   "  \"peft_type\": \"P_TUNING\",\n"
                                   "  \"revision\": null,\n"
                                   "  \"task_type\": \"CAUSAL_LM\",\n"
                                   "  \"token_dim\": 3\n"
                                   "}";
    static const char prompt_tuning[] = "{\n"
                                        "  \"auto_mapping\": null,\n"
                                        "  \"base_model_name_or_path\": \"org/model\",\n"
                                        "  \"inference_mode\": true,\n"
                                        "  \"num_attention_heads\": 4,\n"
                                        "  \"num_layers\": 5,\n"
                                        "  \"num_transformer_submodules\": 1,\n"
                                        "  \"num_virtual_tokens\": 2,\n"
                                        "  \"peft_type\": \"PROMPT_TUNING\",\n"
                                        "  \"prompt_tuning_init\": \"RANDOM\",\n"
                                        "  \"prompt_tuning_init_text\": null,\n"
                                        "  \"revision\": null,\n"
                                        "  \"task_type\": \"CAUSAL_LM\",\n"
                                        "  \"token_dim\": 3,\n"
                                        "  \"tokenizer_name_or_path\": null\n"
                                        "}";
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"prompt_embeddings\":{\"dtype\":\"F32\","
        "\"shape\":[2,3],\"data_offsets\":[0,24]}}";
    struct sl_peft peft = {NULL, 4, 5, SL_ENC_LSTM, 24, 3, 0};
    struct sl_table t = table("squad", 2, HEAD "{q}"), bad = table("squad2", 2, "{q}" HEAD);
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    assert_int_equal(sl_export_peft(dir, &t, &peft, false, NULL), 0);
    file_is("squad/adapter_config.json", p_tuning, 0, strlen(p_tuning));
    file_is("squad/adapter_model.safetensors", header, 8, strlen(header));
    peft.type = SL_ENC_TABLE;
    peft.base_model = "org/model";
    assert_int_equal(sl_export_peft(dir, &t, &peft, false, NULL), 0);
    file_is("squad/adapter_config.json", prompt_tuning, 0, strlen(prompt_tuning));
    assert_int_equal(sl_export_peft(dir, &bad, &peft, false, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "task squad2 cannot be a PEFT adapter"));
    assert_int_equal(sl_path(path, NULL, "%s/squad2", dir), 0);
    assert_false(sl_file_exists(path));
    assert_int_equal(sl_path(path, NULL, "%s/" SL_TABLES_FILE, dir), 0);
    json_decref(t.config);
    json_decref(bad.config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_come_back_with_all_they_need),
        cmocka_unit_test(what_is_no_prompt_table_is_refused),
        cmocka_unit_test(two_tables_of_one_name_are_refused),
        cmocka_unit_test(peft_wants_virtual_tokens_at_the_head),
        cmocka_unit_test(adapters_have_pefts_form),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
