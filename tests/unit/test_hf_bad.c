/* Hugging Face directories that are refused: by name, quickly, in little memory, and never by
 * reading outside of a file. */
#include "base/clock.h"
#include "engine/format/hf_config.h"
#include "engine/format/safetensors.h"
#include "tests/unit/hf_make.h"
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MEMORY_MAX (64u << 20)
#define TIME_MAX_US 1000000

static const struct tiny llama = {.layers = 2,
                                  .hidden = 16,
                                  .heads = 2,
                                  .kv_heads = 1,
                                  .ffn = 24,
                                  .vocab = 12,
                                  .positions = 16,
                                  .untied = true,
                                  .seed = 1};
static const struct tiny gpt2 = {.gpt2 = true,
                                 .layers = 1,
                                 .hidden = 16,
                                 .heads = 2,
                                 .kv_heads = 2,
                                 .ffn = 24,
                                 .vocab = 12,
                                 .positions = 16,
                                 .seed = 2};
static struct tiny_model llama_tiny, gpt2_tiny;

static int setup(void **state)
{
    (void)state;
    tiny_open(&llama, &llama_tiny);
    tiny_open(&gpt2, &gpt2_tiny);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tiny_close(&llama_tiny);
    tiny_close(&gpt2_tiny);
    return 0;
}

static void begin(struct hm *m, const char *model_type)
{
    hm_init(m, model_type ? llama_tiny.weights : gpt2_tiny.weights, model_type, "F32", false);
}

/* Opens in a process that may take MEMORY_MAX more, but for the sanitizers, which take their own.
 */
static void open_in_child(const char *dir, int to)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_weights *w = NULL;
#if !defined(__SANITIZE_ADDRESS__)
    long pages = 0, data = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%*d %*d %*d %*d %*d %ld", &data) != 1)
        _exit(2);
    fclose(f);
    pages = data * sysconf(_SC_PAGESIZE);
    struct rlimit limit = {(rlim_t)pages + MEMORY_MAX, (rlim_t)pages + MEMORY_MAX};
    if (setrlimit(RLIMIT_DATA, &limit))
        _exit(2);
#endif
    int rc = sl_weights_open(dir, &w, &err);
    if ((rc == 0) != (w != NULL) || write(to, &rc, sizeof rc) != sizeof rc ||
        write(to, err.msg, sizeof err.msg) != sizeof err.msg)
        _exit(2);
    _exit(0);
}

static void expect_refused(const char *dir, int code, const char *says)
{
    char msg[SL_ERR_MSG_MAX];
    int ends[2], rc = 0, status;
    int64_t start = sl_boot_us();
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        open_in_child(dir, ends[1]);
    close(ends[1]);
    bool all =
        read(ends[0], &rc, sizeof rc) == sizeof rc && read(ends[0], msg, sizeof msg) == sizeof msg;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!all || status)
        fail_msg("'%s': the process ended with %d", says, status);
    if (sl_boot_us() - start > TIME_MAX_US)
        fail_msg("refusing '%s' took %.2f s", says, (double)(sl_boot_us() - start) * 1e-6);
    if (rc == 0)
        fail_msg("opened, though '%s' was expected", says);
    if (!strstr(msg, says) || !strstr(msg, dir))
        fail_msg("'%s' does not say '%s' and the directory", msg, says);
    if (code != rc)
        fail_msg("'%s' has code %d instead of %d", msg, rc, code);
}

static void refuse_and_release(struct hm *m, int code, const char *says)
{
    expect_refused(m->dir, code, says);
    hm_release(m);
}

/* start, piece as often as it fits into size bytes, end; returns the length. */
static size_t fill(char *to, size_t size, const char *start, const char *piece, const char *end)
{
    size_t len = strlen(start), n = strlen(piece), last = strlen(end);
    memcpy(to, start, len);
    for (; len + n + last <= size; len += n)
        memcpy(to + len, piece, n);
    memcpy(to + len, end, last);
    return len + last;
}

/* ---- config.json */

static void test_unsupported(void **state)
{
    (void)state;
    static const struct {
        const char *type, *key, *value;
        int code;
        const char *says;
    } cases[] = {
        {"gemma2", NULL, NULL, SL_SPEC,
         "model_type 'gemma2' is not supported (supported: gpt2, llama, mistral, qwen2, qwen3)"},
        {"mixtral", NULL, NULL, SL_SPEC, "model_type 'mixtral'"},
        {"qwen2_moe", NULL, NULL, SL_SPEC, "model_type 'qwen2_moe'"},
        {"llama", "model_type", "null", SL_DATA, "model_type is missing"},
        {"llama", "model_type", "7", SL_DATA, "model_type is no text"},
        {"llama", "quantization_config", "{\"quant_method\": \"gptq\", \"bits\": 4}", SL_SPEC,
         "quantization_config of method 'gptq', which is not supported"},
        {"llama", "hidden_act", "\"gelu\"", SL_SPEC, "hidden_act 'gelu', which is not supported"},
        {"llama", "rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0}", SL_SPEC,
         "rope_scaling of type 'yarn', which is not supported"},
        {"llama", "rope_scaling", "{\"type\": \"dynamic\", \"factor\": 4.0}", SL_SPEC,
         "rope_scaling of type 'dynamic'"},
        {"llama", "rope_parameters", "{\"rope_type\": \"longrope\", \"rope_theta\": 1e4}", SL_SPEC,
         "rope_parameters of type 'longrope'"},
        {"llama", "rope_parameters",
         "{\"full_attention\": {\"rope_type\": \"default\"}, \"sliding_attention\": {}}", SL_SPEC,
         "rope_parameters of its own for full_attention"},
        {"llama", "rope_scaling", "{\"type\": \"linear\"}", SL_DATA,
         "rope_scaling.factor is missing"},
        {"llama", "rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8}", SL_DATA,
         "rope_scaling.low_freq_factor is missing"},
        {"llama", "rope_scaling",
         "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4}",
         SL_DATA, "high_freq_factor is not above low_freq_factor"},
        {"llama", "rope_scaling", "[1]", SL_DATA, "rope_scaling is no object"},
        {"llama", "rope_theta", "0", SL_DATA, "the rotary base is 0"},
        {"llama", "partial_rotary_factor", "0.5", SL_SPEC, "partial_rotary_factor 0.5"},
        {"llama", "rope_parameters", "{\"partial_rotary_factor\": 0.5}", SL_SPEC,
         "partial_rotary_factor 0.5"},
        {"qwen3", "layer_types", "[\"linear_attention\"]", SL_SPEC,
         "a layer of type 'linear_attention', which is not supported"},
        {"llama", "num_hidden_layers", "1000000000", SL_DATA, "1000000000 layers"},
        {"llama", "num_hidden_layers", "3", SL_DATA,
         "'model.layers.2.input_layernorm.weight' is missing"},
        {"llama", "num_hidden_layers", "1", SL_SPEC,
         "'model.layers.1.input_layernorm.weight' has no place"},
        {"llama", "num_hidden_layers", "-1", SL_DATA, "num_hidden_layers is out of range"},
        {"llama", "num_hidden_layers", "2.0", SL_DATA, "num_hidden_layers is no whole number"},
        {"llama", "num_hidden_layers", "null", SL_DATA, "num_hidden_layers is missing"},
        {"llama", "hidden_size", "1000000000", SL_DATA, "hidden size is 1000000000"},
        {"llama", "hidden_size", "32", SL_DATA, "the architecture makes it"},
        {"llama", "vocab_size", "13", SL_DATA, "'embed' is [12, 16]"},
        {"llama", "num_attention_heads", "0", SL_DATA, "num_attention_heads is 0"},
        {"llama", "max_position_embeddings", "2000000000", SL_DATA, "positions is 2000000000"},
        {"mistral", "num_key_value_heads", "null", SL_DATA, "the architecture makes it"},
        {"llama", "attention_bias", "true", SL_DATA,
         "'model.layers.0.self_attn.q_proj.bias' is missing"},
        {"llama", "attention_bias", "\"yes\"", SL_DATA, "attention_bias is neither true nor false"},
        {"llama", "mlp_bias", "true", SL_DATA, "'model.layers.0.mlp.gate_proj.bias' is missing"},
        {"qwen2", NULL, NULL, SL_DATA, "'model.layers.0.self_attn.q_proj.bias' is missing"},
        {"qwen3", "head_dim", "8", SL_DATA, "'model.layers.0.self_attn.q_norm.weight' is missing"},
        {NULL, "activation_function", "\"relu\"", SL_SPEC, "activation_function 'relu'"},
        {NULL, "scale_attn_weights", "false", SL_SPEC, "scale_attn_weights false"},
        {NULL, "scale_attn_by_inverse_layer_idx", "true", SL_SPEC,
         "scale_attn_by_inverse_layer_idx true"},
        {NULL, "add_cross_attention", "true", SL_SPEC, "add_cross_attention true"},
        {NULL, "n_head", "3", SL_DATA, "n_head does not divide n_embd"},
        {NULL, "n_embd", "1000000000", SL_DATA, "n_embd is out of range"},
        {NULL, "tie_word_embeddings", "false", SL_DATA, "'lm_head.weight' is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hm m;
        begin(&m, cases[i].type);
        if (cases[i].key)
            hm_set(&m, cases[i].key, cases[i].value);
        hm_write(&m);
        refuse_and_release(&m, cases[i].code, cases[i].says);
    }
}

static void test_bad_config_files(void **state)
{
    (void)state;
    struct hm m;
    char path[SL_PATH_MAX], *deep = malloc(200000), *wide = malloc(SL_ST_HEADER_MAX);
    assert_non_null(deep);
    assert_non_null(wide);
    memset(deep, '[', 200000);
    begin(&m, "llama");
    hm_write(&m);
    hm_put_file(m.dir, "config.json", "", 0);
    expect_refused(m.dir, SL_DATA, "config.json is not valid JSON");
    hm_put_file(m.dir, "config.json", "[1, 2]", 6);
    expect_refused(m.dir, SL_DATA, "config.json is no JSON object");
    hm_put_file(m.dir, "config.json", "{\"a\": 1, \"a\": 2}", 16);
    expect_refused(m.dir, SL_DATA, "duplicate");
    hm_put_file(m.dir, "config.json", deep, 200000);
    expect_refused(m.dir, SL_DATA, "config.json is nested more than");
    size_t len = fill(wide, SL_ST_HEADER_MAX, "{\"a\":[", "{},", "1]}");
    hm_put_file(m.dir, "config.json", wide, len);
    expect_refused(m.dir, SL_DATA, "is larger than the limit");
    len = fill(wide, SL_HF_CONFIG_MAX, "{\"a\":[", "{},", "1]}");
    hm_put_file(m.dir, "config.json", wide, len);
    expect_refused(m.dir, SL_DATA, "model_type is missing");
    assert_int_equal(sl_path(path, NULL, "%s/config.json", m.dir), 0);
    assert_int_equal(unlink(path), 0);
    expect_refused(m.dir, SL_SPEC, "a directory without config.json");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_refused(m.dir, SL_SPEC, "config.json is no regular file");
    hm_release(&m);
    free(deep);
    free(wide);
}

/* ---- the weights */

static void test_missing_files(void **state)
{
    (void)state;
    struct hm m;
    char path[SL_PATH_MAX];
    begin(&m, "llama");
    hm_write(&m);
    assert_int_equal(sl_path(path, NULL, "%s/model.safetensors", m.dir), 0);
    assert_int_equal(unlink(path), 0);
    expect_refused(m.dir, SL_NOTFOUND,
                   "neither model.safetensors nor model.safetensors.index.json");
    hm_put_file(m.dir, "pytorch_model.bin", "PK", 2);
    expect_refused(m.dir, SL_SPEC, "the weights are in pytorch_model.bin, which is not supported");
    assert_int_equal(mkfifo(path, 0600), 0); /* never waited for */
    expect_refused(m.dir, SL_SPEC, "pytorch_model.bin");
    hm_release(&m);
}

static void test_bad_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *type, *tensor, *rename, *dtype, *shape;
        int code;
        const char *says;
    } cases[] = {
        {"llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up.weight", NULL, NULL,
         SL_SPEC, "'model.layers.1.mlp.up.weight' has no place in a model of type llama"},
        {"llama", "model.layers.1.mlp.up_proj.weight", "model.layers.01.mlp.up_proj.weight", NULL,
         NULL, SL_SPEC, "'model.layers.01.mlp.up_proj.weight' has no place"},
        {"llama", "model.layers.1.mlp.up_proj.weight", "model.layers.+1.mlp.up_proj.weight", NULL,
         NULL, SL_SPEC, "has no place"},
        {"llama", "model.layers.1.mlp.up_proj.weight",
         "model.layers.99999999999999999999.mlp.up_proj.weight", NULL, NULL, SL_SPEC,
         "has no place"},
        {"llama", "model.layers.1.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight", NULL, NULL,
         SL_DATA, "'model.layers.1.mlp.up_proj.weight' is missing"},
        {"llama", "model.layers.1.mlp.up_proj.weight", "layers.1.mlp.gate_proj.weight", NULL, NULL,
         SL_DATA, "'model.layers.1.mlp.up_proj.weight' is missing"},
        {"llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias", NULL,
         NULL, SL_SPEC, "'model.layers.1.self_attn.q_proj.bias' has no place"},
        {"llama", "model.layers.1.mlp.up_proj.weight", "score.weight", NULL, NULL, SL_SPEC,
         "'score.weight' has no place"},
        {"llama", "model.norm.weight", "bad\nname\xc3\xa9", NULL, NULL, SL_SPEC,
         "'bad?name?\?' has no place"},
        {"llama", "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", NULL, NULL,
         SL_DATA, "'lm_head.weight' is missing, and config.json does not tie it"},
        {"llama", "model.norm.weight", NULL, "F64", "[8]", SL_SPEC,
         "'model.norm.weight' has type F64, which is not supported (supported: F32, F16, BF16)"},
        {"llama", "model.norm.weight", NULL, "F8_E4M3", "[64]", SL_SPEC, "type F8_E4M3"},
        {"llama", "model.norm.weight", NULL, "F4", "[128]", SL_DATA, "type F4, which is unknown"},
        {"llama", "model.norm.weight", NULL, NULL, "[8]", SL_DATA, "64 bytes, but its shape"},
        {"llama", "model.norm.weight", NULL, NULL, "[4, 4]", SL_DATA, "'norm.weight' is [4, 4]"},
        {"llama", "model.norm.weight", NULL, NULL, "[4, 2, 2]", SL_DATA, "has 3 dimensions"},
        {"llama", "model.norm.weight", NULL, NULL, "[1000000000, 1000000000]", SL_DATA,
         "is no number in range"},
        {"llama", "model.norm.weight", NULL, NULL, "[1000000000]", SL_DATA, "64 bytes, but"},
        {"llama", "model.norm.weight", NULL, NULL, "[-16]", SL_DATA, "is no number in range"},
        {"llama", "model.norm.weight", NULL, NULL, "[16, 0]", SL_DATA, "is no number in range"},
        {"llama", "model.norm.weight", NULL, NULL, "[1,1,1,1,16]", SL_DATA, "no list of 0 to 4"},
        {"llama", "model.norm.weight", NULL, NULL, "[16.0]", SL_DATA, "is no number in range"},
        {"llama", "model.norm.weight", NULL, NULL, "{}", SL_DATA, "no list of 0 to 4"},
        {NULL, "transformer.h.0.attn.c_attn.weight", NULL, NULL, "[48, 16]", SL_DATA,
         "asks for 48 columns"},
        {NULL, "transformer.h.0.attn.c_attn.weight", NULL, NULL, "[768]", SL_DATA,
         "asks for 48 columns"},
        {NULL, "transformer.h.0.attn.c_attn.bias", NULL, NULL, "[3, 16]", SL_DATA,
         "asks for 48 columns"},
        {NULL, "transformer.h.0.attn.c_proj.weight", NULL, NULL, "[256]", SL_DATA,
         "has 1 dimensions"},
        {NULL, "transformer.h.0.mlp.c_fc.weight", NULL, NULL, "[24, 16]", SL_DATA,
         "'layers.0.up' is [16, 24]"},
        {NULL, "transformer.h.0.ln_1.bias", "transformer.h.0.crossattention.c_attn.bias", NULL,
         NULL, SL_SPEC, "has no place in a model of type gpt2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hm m;
        begin(&m, cases[i].type);
        struct hm_tensor *t = hm_find(&m, cases[i].tensor);
        if (cases[i].rename)
            snprintf(t->name, sizeof t->name, "%s", cases[i].rename);
        if (cases[i].dtype)
            t->type = cases[i].dtype;
        if (cases[i].shape) {
            json_decref(t->shape);
            t->shape = json_loads(cases[i].shape, 0, NULL);
            assert_non_null(t->shape);
        }
        hm_write(&m);
        refuse_and_release(&m, cases[i].code, cases[i].says);
    }
}

static void test_bad_index(void **state)
{
    (void)state;
    static const struct {
        const char *index;
        int code;
        const char *says;
    } indexes[] = {
        {"{\"weight_map\": {}}", SL_DATA, "has no weight_map"},
        {"{\"weight_map\": [1]}", SL_DATA, "has no weight_map"},
        {"[]", SL_DATA, "has no weight_map"},
        {"{\"weight_map\": {\"a\": 7}}", SL_DATA, "gives no file for 'a'"},
        {"{\"weight_map\": {\"a\": \"../model.safetensors\"}}", SL_DATA, "names of files beside"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", SL_DATA, "names of files beside"},
        {"{\"weight_map\": {\"a\": \"\"}}", SL_DATA, "names of files beside"},
        {"{\"weight_map\": {\"a\": \"..\"}}", SL_SPEC, ".. is no regular file"},
        {"{\"weight_map\": {\"a\": \"b.safetensors\"}}", SL_NOTFOUND, "b.safetensors is missing"},
        {"{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}", SL_DATA,
         "more tensors than the index lists"},
        {"{\"weight_map\": ", SL_DATA, "is not valid JSON"},
    };
    struct hm m;
    begin(&m, "llama");
    m.n_shards = 2;
    for (int i = 0; i < m.n; i++)
        m.tensor[i].shard = i % 2;
    hm_write(&m);
    for (size_t i = 0; i < sizeof indexes / sizeof *indexes; i++) {
        hm_put_file(m.dir, "model.safetensors.index.json", indexes[i].index,
                    strlen(indexes[i].index));
        expect_refused(m.dir, indexes[i].code, indexes[i].says);
    }
    m.tensor[3].only_listed = true;
    hm_write(&m);
    expect_refused(m.dir, SL_DATA, "where the index has it");
    m.tensor[3].only_listed = false;
    m.tensor[4].unlisted = true;
    hm_write(&m);
    expect_refused(m.dir, SL_DATA, "more tensors than the index lists");
    m.tensor[3].only_listed = true; /* the numbers agree again */
    hm_write(&m);
    expect_refused(m.dir, SL_DATA, "but not by the index");
    hm_release(&m);
}

/* Headers that want memory, time or a read behind the end. */
static void test_hostile_headers(void **state)
{
    (void)state;
    static const char one[] = "\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":";
    char text[4][256], *big = malloc(SL_ST_HEADER_MAX + 1);
    struct hm m;
    struct sl_buf data;
    assert_non_null(big);
    begin(&m, "llama");
    hm_write(&m);
    sl_buf_init(&data, 4096);
    for (int i = 0; i < 32; i++)
        assert_int_equal(sl_buf_addc(&data, 'x'), 0);
    snprintf(text[0], sizeof text[0], "{\"a\":{%s[0,16]},\"b\":{%s[8,24]}}", one, one);
    snprintf(text[1], sizeof text[1], "{\"a\":{%s[0,16]},\"a\":{%s[16,32]}}", one, one);
    snprintf(text[2], sizeof text[2], "{\"a\":{%s[9223372036854775800,9223372036854775807]}}", one);
    snprintf(text[3], sizeof text[3], "{\"a\":{%s[24,8]},\"b\":{%s[-16,0]}}", one, one);
    static const char *const says[] = {"but the one before it ends at", "duplicate",
                                       "truncated or damaged", "truncated or damaged"};
    for (int i = 0; i < 4; i++) {
        hm_put_safetensors(m.dir, "model.safetensors", text[i], strlen(text[i]), &data);
        expect_refused(m.dir, SL_DATA, says[i]);
    }
    static const struct {
        const char *start, *piece, *end, *says;
    } fills[] = {
        {"{\"a\":", "[", "", "nested more than"},
        {"{\"a\":", "{\"a\":", "", "nested more than"},
        /* whole, so that it is parsed to the end */
        {"{\"a\":[", "{},", "1]}", "not exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"shape\":[", "[],", "1]}}", "not exactly dtype, shape and data_offsets"},
        {"{\"a\":[", "1,", "1]}", "not exactly dtype, shape and data_offsets"},
        {"{\"__metadata__\":[", "\"\",", "1]}", "__metadata__ is no object"},
    };
    for (size_t i = 0; i < sizeof fills / sizeof *fills; i++) {
        size_t len = fill(big, SL_ST_HEADER_MAX, fills[i].start, fills[i].piece, fills[i].end);
        hm_put_safetensors(m.dir, "model.safetensors", big, len, NULL);
        expect_refused(m.dir, SL_DATA, fills[i].says);
    }
    memset(big, ' ', SL_ST_HEADER_MAX + 1);
    big[0] = '{';
    hm_put_safetensors(m.dir, "model.safetensors", big, SL_ST_HEADER_MAX + 1, NULL);
    expect_refused(m.dir, SL_DATA, "over the limit");
    hm_put_file(m.dir, "model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
    expect_refused(m.dir, SL_DATA, "over the limit");
    hm_put_file(m.dir, "model.safetensors", "\x40\0\0\0\0\0\0\0{}", 10);
    expect_refused(m.dir, SL_DATA, "truncated");
    hm_put_file(m.dir, "model.safetensors", "", 0);
    expect_refused(m.dir, SL_DATA, "too few");
    hm_release(&m);
    sl_buf_release(&data);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unsupported),   cmocka_unit_test(test_bad_config_files),
        cmocka_unit_test(test_missing_files), cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_bad_index),     cmocka_unit_test(test_hostile_headers),

    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
