/* Prompt tables in other tools' forms: what they are, byte for byte where that matters, and that
 * rows come back with their bits. NeMo's and PEFT's own files were made by torch and by PEFT
 * (make_nemo.py, make_peft_tables.py); that torch.load reads ours is checked by
 * tests/golden/check_table_forms.py. */
#include "base/file.h"
#include "base/json.h"
#include "engine/format/nemo.h"
#include "engine/format/table_forms.h"
#include "engine/data/template.h"
#include "tests/golden/golden.h"
#include "tests/unit/tiny_tokenizer.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

#define HEAD "<|VIRTUAL_PROMPT_0|>"
#define MODEL "abababababababababababababababababababababababababababababababab"
#define TOKENIZER "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
#define H 3

static char dir[] = "/tmp/sl-forms-XXXXXX";
static struct sl_err err;
static float rows[] = {0.1f, -0.0f, 1e-45f, 3, 4, 5, 6, 7, -3.4e38f, 9, 10, 11};

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

static const char *in_dir(const char *name)
{
    static char path[4][SL_PATH_MAX];
    static int next;

    next = (next + 1) % 4;
    snprintf(path[next], SL_PATH_MAX, "%s/%s", dir, name);
    return path[next];
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

/* Two tables of unequal V, as a run has them. */
static void make_tables(struct sl_tables *ret)
{
    static struct sl_table two[2];

    two[0] = (struct sl_table){(char *)(uintptr_t) "zwei \"\xc3\xa9\"", 3, H, rows, NULL};
    two[1] = (struct sl_table){(char *)(uintptr_t) "eins", 1, H, rows + 9, NULL};
    two[0].config =
        json_pack("{s:s, s:s, s:i, s:[i,i], s:n, s:b}", "taskname", two[0].task, "prompt_template",
                  HEAD " {a}\n\xe2\x82\xac<|VIRTUAL_PROMPT_1|>{b}", "total_virtual_tokens", 3,
                  "virtual_token_splits", 1, 2, "truncate_field", "answer_only_loss", 1);
    two[1].config =
        json_pack("{s:s, s:s, s:i, s:s}", "taskname", "eins", "prompt_template", HEAD "{x}",
                  "total_virtual_tokens", 1, "virtual_prompt_style", "p-tuning");
    assert_non_null(two[0].config);
    assert_non_null(two[1].config);
    *ret = (struct sl_tables){2, two, MODEL, TOKENIZER, json_pack("{s:b}", "add_bos", 0)};
}

static void release(struct sl_tables *t)
{
    json_decref(t->table[0].config);
    json_decref(t->table[1].config);
    json_decref(t->data);
}

static void assert_rows(const struct sl_tables *got, const char *task, int v, int hidden,
                        const float *want)
{
    int i = sl_tables_find(got, task);

    assert_true(i >= 0);
    assert_int_equal(got->table[i].virtual_tokens, v);
    assert_int_equal(got->table[i].hidden, hidden);
    assert_memory_equal(got->table[i].rows, want, (size_t)(v * hidden) * sizeof *want);
}

static void import(const char *path, struct sl_tables *ret)
{
    sl_err_clear(&err);
    ok(sl_tables_import(path, NULL, 0, ret, &err));
}

static void assert_refused(const char *path, int code, const char *words)
{
    struct sl_tables got = {.n = -5};
    int rc;

    sl_err_clear(&err);
    rc = sl_tables_import(path, NULL, 0, &got, &err);
    if (rc != code || !strstr(err.msg, words) || !strstr(err.msg, path))
        fail_msg("code %d (expected %d), message \"%s\" (expected \"%s\")", rc, code, err.msg,
                 words);
    assert_int_equal(got.n, -5);
}

static void npy_is_what_numpy_reads(void **state)
{
    static const char header[] =
        "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 3), }";
    static const char *const names[] = {"x", "y"};
    struct sl_tables t, got;
    struct sl_buf b;

    (void)state;
    make_tables(&t);
    ok(sl_export_npy(in_dir("t.npy"), &t, &err));
    sl_buf_init(&b, 1u << 20);
    ok(sl_file_read(in_dir("t.npy"), &b, &err));
    assert_int_equal(b.len, 128 + 18 * 4);
    assert_memory_equal(b.p, header, sizeof header - 1);
    assert_int_equal(b.p[127], '\n');
    assert_memory_equal(b.p + 128, rows, 12 * 4); /* three rows and the one of the next */
    for (size_t i = 128 + 12 * 4; i < b.len; i++)
        assert_int_equal(b.p[i], 0);
    import(in_dir("t.npy"), &got);
    assert_int_equal(got.n, 2);
    assert_rows(&got, "task_0", 3, H, rows);
    assert_rows(&got, "task_1", 1, H, rows + 9); /* the padding is gone */
    assert_string_equal(got.model_digest, "");
    sl_tables_release(&got);
    ok(sl_tables_import(in_dir("t.npy"), names, 2, &got, &err));
    assert_rows(&got, "y", 1, H, rows + 9);
    sl_tables_release(&got);
    assert_int_equal(sl_tables_import(in_dir("t.npy"), names, 1, &got, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "2 tables, but 1 names"));

    /* other hidden sizes do not go into one array */
    t.table[1].hidden = 2;
    sl_err_clear(&err);
    assert_int_equal(sl_export_npy(in_dir("u.npy"), &t, &err), SL_SPEC);
    assert_false(sl_file_exists(in_dir("u.npy")));
    sl_buf_release(&b);
    release(&t);
}

static void refuses_other_npy(void **state)
{
    static const struct {
        const char *from, *to;
        int code;
        const char *words;
    } cases[] = {
        {"<f4", "<f8", SL_SPEC, "type <f8"},
        {"<f4", ">f4", SL_SPEC, "type >f4"},
        {"False", "True ", SL_SPEC, "no array of three"},
        {"(2, 3, 3)", "(2, 9, 3)", SL_DATA, "(2, 9, 3) with 72 bytes"},
        {"(2, 3, 3)", "(2, 3333)", SL_SPEC, "three dimensions"},
        {"(2, 3, 3)", "(2,3,3,3)", SL_SPEC, "three dimensions"},
        {"(2, 3, 3)", "(-2,-3,3)", SL_DATA, "shape (-2, -3, 3)"},
        {"(2, 3, 3)", "(2,1e3,3)", SL_SPEC, "three dimensions"},
        {"NUMPY\x01", "NUMPY\x09", SL_DATA, "version 9"},
        {"\x01\x00\x76", "\x01\x00\xf6", SL_DATA, "bytes of data"},
    };
    struct sl_tables t;

    (void)state;
    make_tables(&t);
    ok(sl_export_npy(in_dir("t.npy"), &t, &err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_buf b;
        size_t n = strlen(cases[i].to);
        char *at;

        n = n < 3 ? 3 : n;
        sl_buf_init(&b, 1u << 20);
        ok(sl_file_read(in_dir("t.npy"), &b, &err));
        at = memmem(b.p, b.len, cases[i].from, n);
        assert_non_null(at);
        memcpy(at, cases[i].to, n);
        ok(sl_file_write(in_dir("bad.npy"), b.p, b.len, &err));
        if (i < 9)
            assert_refused(in_dir("bad.npy"), cases[i].code, cases[i].words);
        else
            assert_true(sl_tables_import(in_dir("bad.npy"), NULL, 0, &t, NULL) < 0);
        for (size_t cut = 0; i == 0 && cut < b.len; cut += 3) {
            ok(sl_file_write(in_dir("cut.npy"), b.p, cut, &err));
            assert_true(sl_tables_import(in_dir("cut.npy"), NULL, 0, &t, NULL) < 0);
        }
        sl_buf_release(&b);
    }
    release(&t);
}

static void nemo_comes_back_with_all_it_can_keep(void **state)
{
    struct sl_tables t, got;
    struct sl_tar tar;
    struct sl_torch *torch = NULL;
    const struct sl_torch_tensor *one;
    json_t *config = NULL;
    int64_t last;

    (void)state;
    make_tables(&t);
    sl_err_clear(&err);
    ok(sl_export_nemo(in_dir("t.nemo"), &t, "models/gpt.nemo", &err));
    import(in_dir("t.nemo"), &got);
    assert_int_equal(got.n, 2);
    assert_string_equal(got.table[0].task, t.table[0].task); /* the order of the templates */
    assert_rows(&got, t.table[0].task, 3, H, rows);
    assert_rows(&got, "eins", 1, H, rows + 9);
    assert_true(json_equal(got.table[0].config, t.table[0].config));
    assert_string_equal(sl_json_str(got.table[1].config, "prompt_template", ""), HEAD "{x}");
    assert_string_equal(got.model_digest, MODEL);
    assert_string_equal(got.tokenizer_digest, TOKENIZER);
    sl_tables_release(&got);

    /* what NeMo's load_state_dict and restore look for */
    ok(sl_tar_open(in_dir("t.nemo"), &tar, &err));
    ok(sl_nemo_config(&tar, &config, &err));
    assert_string_equal(sl_json_str(config, "language_model_path", ""), "models/gpt.nemo");
    assert_int_equal(json_array_size(sl_json_get(config, "existing_tasks")), 2);
    assert_int_equal(json_array_size(sl_json_get(config, "new_tasks")), 0);
    assert_int_equal(json_array_size(sl_json_get(config, "task_templates")), 2);
    ok(sl_torch_open(tar.member[1].data, tar.member[1].len, &torch, &err));
    one = sl_torch_find(torch, "prompt_table.prompt_table.eins.prompt_embeddings.weight");
    assert_non_null(one);
    one = sl_torch_find(torch, "prompt_table.prompt_table.zwei \"\xc3\xa9\".indices");
    assert_non_null(one);
    assert_int_equal(one->type, SL_STORAGE_I64);
    memcpy(&last, one->data + 2 * sizeof last, sizeof last);
    assert_int_equal(last, 2);
    sl_torch_close(torch);
    json_decref(config);
    sl_tar_close(&tar);

    t.table[1].task = (char *)(uintptr_t) "v1.2";
    sl_err_clear(&err);
    assert_int_equal(sl_export_nemo(in_dir("u.nemo"), &t, NULL, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "task 'v1.2'"));
    assert_false(sl_file_exists(in_dir("u.nemo")));
    release(&t);
}

static void reads_what_nemo_wrote(void **state)
{
    char path[SL_PATH_MAX];
    struct sl_tables got;
    struct golden g;

    (void)state;
    golden_open(&g, "nemo.safetensors");
    golden_path(path, "nemo_prompts.nemo");
    import(path, &got);
    assert_int_equal(got.n, 2);
    assert_rows(&got, "a", 3, 16, golden_f32(&g, "prompts.a", NULL));
    assert_rows(&got, "b", 5, 16, golden_f32(&g, "prompts.b", NULL));
    assert_string_equal(sl_json_str(got.table[0].config, "truncate_field", ""), "context");
    assert_string_equal(sl_json_str(got.table[1].config, "prompt_template", ""),
                        HEAD " {x} <|VIRTUAL_PROMPT_1|>{y}");
    assert_string_equal(got.model_digest, "");
    sl_tables_release(&got);
    golden_path(path, "nemo_tp1.nemo");
    assert_refused(path, SL_SPEC, "holds no prompt table");
    golden_close(&g);
}

static void reads_what_peft_wrote(void **state)
{
    char path[SL_PATH_MAX], from[SL_PATH_MAX], to[SL_PATH_MAX];
    static const char *const name = "mine";
    struct sl_tables got;
    struct golden g;

    (void)state;
    golden_open(&g, "peft_tables/expected.safetensors");
    golden_path(path, "peft_tables/prompt"); /* bf16 */
    import(path, &got);
    assert_rows(&got, "prompt", 4, 8, golden_f32(&g, "prompt", NULL));
    assert_string_equal(sl_json_str(got.table[0].config, "prompt_template", ""),
                        SL_TABLES_TEMPLATE);
    sl_tables_release(&got);
    golden_path(path, "peft_tables/bin/"); /* a torch zip; the slash is not in the name */
    import(path, &got);
    assert_rows(&got, "bin", 4, 8, golden_f32(&g, "bin", NULL));
    sl_tables_release(&got);
    golden_path(path, "peft_tables/ptuning");
    ok(sl_tables_import(path, &name, 1, &got, &err));
    assert_rows(&got, "mine", 4, 8, golden_f32(&g, "ptuning", NULL));
    sl_tables_release(&got);
    golden_path(path, "peft_tables/lora");
    assert_refused(path, SL_SPEC, "peft_type LORA is not supported");
    golden_path(path, "peft_tables"); /* a folder of adapters: one of them is refused */
    assert_refused(path, SL_SPEC, "LORA");
    assert_refused(dir, SL_DATA, "neither prompt_table.safetensors nor adapter_config.json");
    assert_refused(in_dir("none"), SL_NOTFOUND, "none");

    /* a folder of two */
    ok(sl_mkdirs(in_dir("peft/one"), &err));
    ok(sl_mkdirs(in_dir("peft/two"), &err));
    golden_path(from, "peft_tables/prompt");
    for (int i = 0; i < 4; i++) {
        struct sl_buf b;
        const char *file = i % 2 ? "adapter_config.json" : "adapter_model.safetensors";

        ok(sl_path(path, &err, "%s/%s", from, file));
        ok(sl_path(to, &err, "%s/peft/%s/%s", dir, i < 2 ? "one" : "two", file));
        sl_buf_init(&b, 1u << 20);
        ok(sl_file_read(path, &b, &err));
        ok(sl_file_write(to, b.p, b.len, &err));
        sl_buf_release(&b);
    }
    import(in_dir("peft"), &got);
    assert_int_equal(got.n, 2);
    assert_string_equal(got.table[0].task, "one");
    assert_string_equal(got.table[1].task, "two");

    /* from elsewhere to ours and back: the digests stay unknown, the rows the same */
    ok(sl_export_tables(in_dir("ours.safetensors"), &got, &err));
    sl_tables_release(&got);
    import(in_dir("ours.safetensors"), &got);
    assert_string_equal(got.model_digest, "");
    assert_rows(&got, "two", 4, 8, golden_f32(&g, "prompt", NULL));
    sl_tables_release(&got);
    ok(sl_file_write(in_dir("peft/one/adapter_config.json"),
                     "{\"peft_type\": \"P_TUNING\", "
                     "\"num_virtual_tokens\": 5}",
                     50, &err));
    assert_refused(in_dir("peft"), SL_DATA, "[num_virtual_tokens, token_dim]");
    golden_close(&g);
}

/* The template that an adapter gets puts the whole prompt behind its virtual tokens. */
static void default_template_keeps_the_prompt(void **state)
{
    struct sl_tokenizer *tok = tiny_tokenizer(TINY_BOS, TINY_EOS);
    struct sl_task task = {.name = (char *)(uintptr_t) "t",
                           .prompt_template = (char *)(uintptr_t)SL_TABLES_TEMPLATE,
                           .total_virtual_tokens = 2,
                           .n_splits = 1,
                           .split = {2}};
    struct sl_render how = {.answer = SL_ANSWER_NONE, .max_positions = 100};
    struct sl_template *t = NULL;
    struct sl_rendered r = {0};
    json_t *row = json_pack("{s:s, s:s}", "prompt", "xyz", "answer", "no");

    (void)state;
    sl_err_clear(&err);
    ok(sl_template_new(&task, tok, &t, &err));
    ok(sl_template_render(t, row, &how, &r, &err));
    assert_int_equal(r.ids.n, 5);
    assert_int_equal(r.ids.id[1], -2);
    assert_int_equal(r.ids.id[2], 'x');
    assert_int_equal(r.ids.id[4], 'z');
    sl_rendered_release(&r);
    sl_template_free(t);
    sl_tokenizer_free(tok);
    json_decref(row);
}

/* The command, on files: each form to each. */
static void converts(void **state)
{
    static const char *const chain[] = {"a.safetensors", "b.nemo", "c", "d.npy", "e.safetensors"};
    char *argv[8] = {(char *)(uintptr_t) "convert"};
    struct sl_tables t, got;

    (void)state;
    make_tables(&t);
    json_object_set_new(t.table[0].config, "prompt_template",
                        json_string(HEAD "<|VIRTUAL_PROMPT_1|>{a}"));
    t.table[0].task = (char *)(uintptr_t) "zwei";
    json_object_set_new(t.table[0].config, "taskname", json_string("zwei"));
    ok(sl_export_tables(in_dir("a.safetensors"), &t, &err));
    for (int i = 0; i < 4; i++) {
        char from[SL_PATH_MAX], to[SL_PATH_MAX];

        snprintf(from, sizeof from, "%s/%s", dir, chain[i]);
        snprintf(to, sizeof to, "%s/%s", dir, chain[i + 1]);
        argv[1] = from;
        argv[2] = to;
        argv[3] = NULL;
        optind = 1;
        assert_int_equal(sl_convert_main(3, argv), 0);
    }
    import(in_dir("e.safetensors"), &got);
    assert_rows(&got, "task_0", 1, H, rows + 9); /* PEFT's folders are read by name */
    assert_rows(&got, "task_1", 3, H, rows);
    sl_tables_release(&got);
    release(&t);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(npy_is_what_numpy_reads),
        cmocka_unit_test(refuses_other_npy),
        cmocka_unit_test(nemo_comes_back_with_all_it_can_keep),
        cmocka_unit_test(reads_what_nemo_wrote),
        cmocka_unit_test(reads_what_peft_wrote),
        cmocka_unit_test(default_template_keeps_the_prompt),
        cmocka_unit_test(converts),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
