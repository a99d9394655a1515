/* Hugging Face directories: what is read is what was written, in every form that the files may
 * have, and what config.json says is understood. */
#include "base/rng.h"
#include "tests/unit/hf_make.h"
#include <math.h>

static const struct tiny llama = {.layers = 2,
                                  .hidden = 32,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .ffn = 48,
                                  .vocab = 40,
                                  .positions = 32,
                                  .untied = true,
                                  .seed = 1};
static const struct tiny qwen = {.layers = 2,
                                 .hidden = 32,
                                 .heads = 4,
                                 .kv_heads = 1,
                                 .ffn = 40,
                                 .vocab = 37,
                                 .positions = 32,
                                 .qkv_bias = true,
                                 .seed = 2};
static const struct tiny gpt2 = {.gpt2 = true,
                                 .layers = 2,
                                 .hidden = 64,
                                 .heads = 4,
                                 .kv_heads = 4,
                                 .ffn = 80,
                                 .vocab = 40,
                                 .positions = 24,
                                 .seed = 4};

/* A tiny model as GGUF file, and as directory. */
struct pair {
    struct tiny_model tiny;
    struct hm hf;
};

static void pair_open(struct pair *p, const struct tiny *t, const char *model_type,
                      const char *type, bool no_prefix)
{
    tiny_open(t, &p->tiny);
    hm_init(&p->hf, p->tiny.weights, model_type, type, no_prefix);
}

static void pair_close(struct pair *p)
{
    hm_release(&p->hf);
    tiny_close(&p->tiny);
}

static struct sl_weights *open_dir(const struct hm *m)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_weights *w = NULL;
    hm_write(m);
    if (sl_weights_open(m->dir, &w, &err))
        fail_msg("%s", err.msg);
    return w;
}

/* The same weights under the same names, by value, in whole and in pieces; equal digests. */
static void expect_same(struct sl_weights *want, struct sl_weights *got)
{
    char a[SL_SHA256_HEX + 1], b[SL_SHA256_HEX + 1];
    assert_int_equal(got->n_tensors, want->n_tensors);
    for (int i = 0; i < want->n_tensors; i++) {
        const char *name = want->tensors[i].name;
        int64_t rows, cols, rows2, cols2;
        float *x = hm_read(want, name, &rows, &cols), *y = hm_read(got, name, &rows2, &cols2);
        if (!y)
            fail_msg("no weight %s", name);
        assert_int_equal(rows2, rows);
        assert_int_equal(cols2, cols);
        assert_memory_equal(x, y, (size_t)(rows * cols) * sizeof *x);
        for (int64_t r = 0; r < rows; r += 7) {
            int64_t n = rows - r < 37 ? rows - r : 37;
            memset(y, 0, (size_t)(n * cols) * sizeof *y);
            assert_int_equal(sl_weights_read_f32(got, name, r, n, y, NULL), 0);
            assert_memory_equal(x + r * cols, y, (size_t)(n * cols) * sizeof *x);
        }
        free(x);
        free(y);
    }
    assert_int_equal(sl_weights_digest(want, a, NULL), 0);
    assert_int_equal(sl_weights_digest(got, b, NULL), 0);
    assert_string_equal(a, b);
}

static const struct form {
    const struct tiny *tiny;
    const char *model_type;
} forms[] = {{&llama, "llama"}, {&llama, "mistral"}, {&qwen, "qwen2"}, {&gpt2, NULL}};
#define N_FORMS (sizeof forms / sizeof *forms)

static void test_same_as_gguf(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FORMS; i++)
        for (int no_prefix = 0; no_prefix < 2; no_prefix++) {
            struct pair p;
            pair_open(&p, forms[i].tiny, forms[i].model_type, "F32", no_prefix);
            struct sl_weights *w = open_dir(&p.hf);
            const struct sl_arch *a = sl_weights_arch(w), *b = sl_weights_arch(p.tiny.weights);
            expect_same(p.tiny.weights, w);
            assert_string_equal(a->name, forms[i].model_type ? forms[i].model_type : "gpt2");
            assert_int_equal(a->head_dim, b->head_dim);
            assert_int_equal(a->max_positions, b->max_positions);
            assert_int_equal(a->tied, b->tied);
            assert_true(a->norm_eps == b->norm_eps && a->rope_base == b->rope_base);
            sl_weights_close(w);
            pair_close(&p);
        }
}

static void test_several_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FORMS; i++) {
        struct pair p;
        pair_open(&p, forms[i].tiny, forms[i].model_type, "F32", false);
        p.hf.n_shards = 3;
        for (int t = 0; t < p.hf.n; t++)
            p.hf.tensor[t].shard = t % 3;
        struct sl_weights *w = open_dir(&p.hf);
        expect_same(p.tiny.weights, w);
        sl_weights_close(w);
        pair_close(&p);
    }
}

/* F16 and BF16 give the value that is stored: fp32 cut to what the type keeps. */
static void test_half_types(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        uint32_t kept;
        double smallest; /* normal number */
    } types[] = {{"BF16", 0xffff0000u, 0}, {"F16", 0xffffe000u, 0x1p-14}};
    for (size_t i = 0; i < N_FORMS; i++)
        for (int k = 0; k < 2; k++) {
            struct pair p;
            pair_open(&p, forms[i].tiny, forms[i].model_type, types[k].type, false);
            struct sl_weights *w = open_dir(&p.hf), *want = p.tiny.weights;
            for (int t = 0; t < want->n_tensors; t++) {
                int64_t rows, cols;
                float *x = hm_read(want, want->tensors[t].name, &rows, &cols),
                      *y = hm_read(w, want->tensors[t].name, &rows, &cols);
                assert_non_null(y);
                for (int64_t e = 0; e < rows * cols; e++) {
                    uint32_t bits;
                    memcpy(&bits, &x[e], sizeof bits);
                    bits &= fabs((double)x[e]) < types[k].smallest ? 0x80000000u : types[k].kept;
                    assert_memory_equal(&bits, &y[e], sizeof bits);
                }
                free(x);
                free(y);
            }
            if (!types[k].smallest) /* fp32 holds every number of it */
                hm_expect_digest(w, types[k].type);
            sl_weights_close(w);
            pair_close(&p);
        }
}

/* Old files carry buffers, and a tied model may carry its output layer: neither changes anything.
 */
static void test_what_is_passed_over(void **state)
{
    (void)state;
    struct pair p;
    pair_open(&p, &gpt2, NULL, "F32", true);
    hm_add(&p.hf, "h.0.attn.bias", "BOOL", json_pack("[i, i, i, i]", 1, 1, 24, 24), 24 * 24);
    hm_add(&p.hf, "h.1.attn.bias", "U8", json_pack("[i, i, i, i]", 1, 1, 24, 24), 24 * 24);
    hm_add(&p.hf, "h.0.attn.masked_bias", "F32", json_array(), 4);
    hm_add(&p.hf, "lm_head.weight", "F32", json_pack("[i, i]", 40, 64), 40 * 64 * 4);
    struct sl_weights *w = open_dir(&p.hf);
    expect_same(p.tiny.weights, w);
    sl_weights_close(w);
    pair_close(&p);

    pair_open(&p, &llama, "llama", "F32", false);
    hm_add(&p.hf, "model.layers.1.self_attn.rotary_emb.inv_freq", "F32", json_pack("[i]", 4), 16);
    hm_set(&p.hf, "rope_scaling", "null");
    hm_set(&p.hf, "pretraining_tp", "2");
    hm_set(&p.hf, "architectures", "[\"LlamaForCausalLM\"]");
    w = open_dir(&p.hf);
    expect_same(p.tiny.weights, w);
    sl_weights_close(w);
    pair_close(&p);
}

/* Biases of attention and of the feed-forward part where config.json says so, norms of heads. */
static void test_extras(void **state)
{
    (void)state;
    static const char *const bias[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                       "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                       "mlp.down_proj"};
    static const int sizes[] = {32, 16, 16, 32, 48, 48, 32};
    struct sl_err err = SL_ERR_INIT;
    struct sl_model *model;
    struct pair p;
    char name[128];
    pair_open(&p, &llama, "llama", "F32", false);
    hm_set(&p.hf, "attention_bias", "true");
    hm_set(&p.hf, "mlp_bias", "true");
    for (int l = 0; l < 2; l++)
        for (int b = 0; b < 7; b++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.bias", l, bias[b]);
            hm_add(&p.hf, name, "F32", json_pack("[i]", sizes[b]), (size_t)sizes[b] * 4);
        }
    struct sl_weights *w = open_dir(&p.hf);
    assert_int_equal(w->n_tensors, p.tiny.weights->n_tensors + 14);
    assert_int_equal(sl_model_new(w, &sl_cpu_ops, p.tiny.be, &model, &err), 0);
    sl_model_free(model);
    sl_weights_close(w);
    pair_close(&p);

    pair_open(&p, &llama, "qwen3", "F32", false);
    hm_set(&p.hf, "head_dim", "8");
    for (int l = 0; l < 2; l++)
        for (int k = 0; k < 2; k++) {
            snprintf(name, sizeof name, "model.layers.%d.self_attn.%c_norm.weight", l, "qk"[k]);
            hm_add(&p.hf, name, "F32", json_pack("[i]", 8), 32);
        }
    w = open_dir(&p.hf);
    assert_true(sl_weights_arch(w)->qk_norm);
    assert_int_equal(sl_model_new(w, &sl_cpu_ops, p.tiny.be, &model, &err), 0);
    sl_model_free(model);
    sl_weights_close(w);
    pair_close(&p);
}

/* ---- config.json */

struct said {
    const char *model_type, *key, *value, *key2, *value2;
    struct sl_arch want; /* what differs from the plain model, else 0 */
};

static void test_config(void **state)
{
    (void)state;
    static const char scaling4[] = "{\"rope_type\": \"llama3\", \"factor\": 8.0, "
                                   "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
                                   "\"original_max_position_embeddings\": 16}";
    static const char scaling5[] =
        "{\"rope_theta\": 500000.0, \"rope_type\": \"llama3\", \"factor\": 8.0, "
        "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
        "\"original_max_position_embeddings\": 16}";
    const struct sl_arch llama3 = {.rope_base = 500000,
                                   .rope_scaling = SL_ROPE_LLAMA3,
                                   .rope_factor = 8,
                                   .rope_low_freq = 1,
                                   .rope_high_freq = 4,
                                   .rope_original_positions = 16};
    const struct said cases[] = {
        {"llama", "rope_theta", "500000", "rope_scaling", scaling4, llama3},
        {"llama", "rope_parameters", scaling5, NULL, NULL, llama3},
        /* rope_scaling goes before rope_parameters, as in transformers */
        {"llama",
         "rope_parameters",
         scaling5,
         "rope_scaling",
         "{\"type\": \"linear\", \"factor\": 2}",
         {.rope_scaling = SL_ROPE_LINEAR, .rope_factor = 2}},
        {"llama", "rope_parameters", scaling5, "rope_scaling", "null", llama3},
        {"llama",
         "rope_parameters",
         "{\"rope_type\": \"default\", \"rope_theta\": 1000000}",
         "rope_theta",
         "10000.0",
         {.rope_base = 1e6f}},
        {"llama", "rope_scaling", "{\"type\": \"default\"}", NULL, NULL, {0}},
        {"llama", "head_dim", "null", "num_key_value_heads", "2", {0}},
        {"llama", "hidden_act", "\"swish\"", "partial_rotary_factor", "1.0", {0}},
        /* only a window that a position can leave bounds the positions */
        {"mistral", "sliding_window", "null", NULL, NULL, {0}},
        {"mistral", "sliding_window", "32", NULL, NULL, {0}},
        {"mistral",
         "sliding_window",
         "20",
         NULL,
         NULL,
         {.max_positions = 20, .sliding_window = 20}},
        {"mistral",
         "max_position_embeddings",
         "32768",
         NULL,
         NULL,
         {.max_positions = 4096, .sliding_window = 4096}},
        {"llama", "sliding_window", "20", NULL, NULL, {0}},
        {"llama", "layer_types", "[\"full_attention\", \"full_attention\"]", NULL, NULL, {0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct said *c = &cases[i];
        struct pair p;
        pair_open(&p, &llama, c->model_type, "F32", false);
        hm_set(&p.hf, c->key, c->value);
        if (c->key2)
            hm_set(&p.hf, c->key2, c->value2);
        struct sl_weights *w = open_dir(&p.hf);
        const struct sl_arch *a = sl_weights_arch(w), *plain = sl_weights_arch(p.tiny.weights);
        struct sl_arch want = *plain;
        memcpy(want.name, a->name, sizeof want.name);
        if (c->want.rope_base > 0)
            want.rope_base = c->want.rope_base;
        want.rope_scaling = c->want.rope_scaling;
        want.rope_factor = c->want.rope_factor;
        want.rope_low_freq = c->want.rope_low_freq;
        want.rope_high_freq = c->want.rope_high_freq;
        want.rope_original_positions = c->want.rope_original_positions;
        if (c->want.max_positions)
            want.max_positions = c->want.max_positions;
        want.sliding_window = c->want.sliding_window;
        if (memcmp(&want, a, sizeof want))
            fail_msg("case %d: %s %s is read otherwise", (int)i, c->key, c->value);
        sl_weights_close(w);
        pair_close(&p);
    }
}

/* Qwen's window is on only where two keys say so. */
static void test_qwen_windows(void **state)
{
    (void)state;
    static const struct {
        const char *use, *from_layer, *types;
        int positions;
    } cases[] = {
        {"false", "0", NULL, 32},
        {"true", "2", NULL, 32},
        {"true", "1", NULL, 20},
        {"true", "0", "[\"full_attention\", \"full_attention\"]", 32},
        {"true", "2", "[\"full_attention\", \"sliding_attention\"]", 20},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pair p;
        pair_open(&p, &qwen, "qwen2", "F32", false);
        hm_set(&p.hf, "sliding_window", "20");
        hm_set(&p.hf, "use_sliding_window", cases[i].use);
        hm_set(&p.hf, "max_window_layers", cases[i].from_layer);
        if (cases[i].types)
            hm_set(&p.hf, "layer_types", cases[i].types);
        struct sl_weights *w = open_dir(&p.hf);
        assert_int_equal(sl_weights_arch(w)->max_positions, cases[i].positions);
        sl_weights_close(w);
        pair_close(&p);
    }
}

static void test_gpt2_activations(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum sl_activation want;
    } cases[] = {{"\"gelu_new\"", SL_GELU_TANH},
                 {"\"gelu_pytorch_tanh\"", SL_GELU_TANH},
                 {"\"gelu\"", SL_GELU_ERF}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pair p;
        pair_open(&p, &gpt2, NULL, "F32", false);
        hm_set(&p.hf, "activation_function", cases[i].name);
        struct sl_weights *w = open_dir(&p.hf);
        assert_int_equal(sl_weights_arch(w)->activation, cases[i].want);
        sl_weights_close(w);
        pair_close(&p);
    }
}

/* ---- damage */

/* A file cut anywhere. */
static void test_truncated(void **state)
{
    (void)state;
    struct tiny_model t;
    struct hm m;
    struct sl_buf file;
    char path[SL_PATH_MAX];
    struct sl_err err;
    tiny_open(&llama, &t);
    hm_init(&m, t.weights, "llama", "F32", false);
    hm_write(&m);
    sl_buf_init(&file, 1 << 20);
    assert_int_equal(sl_path(path, NULL, "%s/model.safetensors", m.dir), 0);
    assert_int_equal(sl_file_read(path, &file, NULL), 0);
    for (size_t len = 0; len < file.len; len += len < 4096 ? 31 : 4999) {
        struct sl_weights *w = NULL;
        err = (struct sl_err)SL_ERR_INIT;
        hm_put_file(m.dir, "model.safetensors", file.p, len);
        assert_int_equal(sl_weights_open(m.dir, &w, &err), SL_DATA);
        assert_null(w);
    }
    sl_buf_release(&file);
    hm_release(&m);
    tiny_close(&t);
}

/* Random damage of header and config: refused or opened, never a read outside of the file (the
 * sanitizers would tell). */
static void test_damaged(void **state)
{
    (void)state;
    struct sl_rng rng = sl_rng_new(6, 0);
    int opened = 0, rounds = 3000;
    for (int kind = 0; kind < 2; kind++) {
        struct tiny_model t;
        struct hm m;
        struct sl_buf file[2];
        static const char *const names[] = {"model.safetensors", "config.json"};
        tiny_open(kind ? &llama : &gpt2, &t);
        hm_init(&m, t.weights, kind ? "llama" : NULL, "F32", false);
        hm_write(&m);
        for (int f = 0; f < 2; f++) {
            char path[SL_PATH_MAX];
            sl_buf_init(&file[f], 1 << 20);
            assert_int_equal(sl_path(path, NULL, "%s/%s", m.dir, names[f]), 0);
            assert_int_equal(sl_file_read(path, &file[f], NULL), 0);
        }
        uint64_t header;
        memcpy(&header, file[0].p, sizeof header);
        for (int round = 0; round < rounds; round++) {
            struct sl_weights *w = NULL;
            struct sl_err err = SL_ERR_INIT;
            int f = (int)sl_rng_below(&rng, 2);
            size_t head = f ? file[1].len : (size_t)header + 8;
            char *p = malloc(file[f].len);
            assert_non_null(p);
            memcpy(p, file[f].p, file[f].len);
            for (uint64_t n = 1 + sl_rng_below(&rng, 2); n > 0; n--) {
                size_t at = sl_rng_below(&rng, head);
                p[at] = sl_rng_below(&rng, 2) ? (char)(p[at] ^ 1)
                                              : "0123456789[]{},\""[sl_rng_below(&rng, 16)];
            }
            hm_put_file(m.dir, names[f], p, file[f].len);
            int rc = sl_weights_open(m.dir, &w, &err);
            assert_true(rc == 0 || err.msg[0]);
            if (rc == 0) {
                char hex[SL_SHA256_HEX + 1];
                opened++;
                for (int i = 0; i < w->n_tensors; i += 5) {
                    int64_t rows, cols;
                    free(hm_read(w, w->tensors[i].name, &rows, &cols));
                }
                assert_int_equal(sl_weights_digest(w, hex, NULL), 0);
                sl_weights_close(w);
            }
            hm_put_file(m.dir, names[f], file[f].p, file[f].len);
            free(p);
        }
        for (int f = 0; f < 2; f++)
            sl_buf_release(&file[f]);
        hm_release(&m);
        tiny_close(&t);
    }
    assert_in_range(opened, 20, 2 * rounds - 1000); /* both happened */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_gguf), cmocka_unit_test(test_several_files),
        cmocka_unit_test(test_half_types),   cmocka_unit_test(test_what_is_passed_over),
        cmocka_unit_test(test_extras),       cmocka_unit_test(test_config),
        cmocka_unit_test(test_qwen_windows), cmocka_unit_test(test_gpt2_activations),
        cmocka_unit_test(test_truncated),    cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
