/* Writes small Hugging Face directories: the weights of a tiny GGUF model under the names of
 * transformers, whole or in several files, with whatever a test changes. Header only; everything
 * static, and what fails ends the test. */
#ifndef SL_TESTS_HF_MAKE_H
#define SL_TESTS_HF_MAKE_H
#include "base/file.h"
#include "base/json.h"
#include "engine/format/weights_format.h"
#include "tests/unit/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define HM_MAX 96
#define HM_MAX_SHARDS 4

struct hm_tensor {
    char name[128];
    const char *type;
    json_t *shape;
    unsigned char *data;
    size_t len;
    int shard;
    bool unlisted, only_listed; /* left out of the index; of the files */
};

/* What is written; a test may change everything before hm_write. */
struct hm {
    json_t *config;
    struct hm_tensor tensor[HM_MAX];
    int n, n_shards; /* 0: model.safetensors */
    bool no_prefix;  /* names without "model." or "transformer." */
    char dir[64];
};

static inline void hm_put_file(const char *dir, const char *name, const void *data, size_t len)
{
    char path[SL_PATH_MAX];
    assert_int_equal(sl_path(path, NULL, "%s/%s", dir, name), 0);
    unlink(path); /* a file written over may be flushed to disk when it is closed */
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static inline void hm_set(struct hm *m, const char *key, const char *json)
{
    json_t *v = json_loads(json, JSON_DECODE_ANY, NULL);
    if (!v)
        fail_msg("%s is no JSON", json);
    assert_int_equal(json_object_set_new(m->config, key, v), 0);
}

static inline struct hm_tensor *hm_find(struct hm *m, const char *name)
{
    for (int i = 0; i < m->n; i++)
        if (!strcmp(m->tensor[i].name, name))
            return &m->tensor[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

/* An element of a type; fp32 values that fit lose nothing. */
static inline void hm_element(const char *type, float value, unsigned char *to)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (!strcmp(type, "F32"))
        memcpy(to, &bits, 4);
    else if (!strcmp(type, "BF16"))
        memcpy(to, (const unsigned char *)&bits + 2, 2);
    else { /* F16, normal numbers only */
        int exponent = (int)(bits >> 23 & 255) - 127 + 15;
        uint16_t half = (uint16_t)((bits >> 16 & 0x8000u) | (bits >> 13 & 0x3ffu));
        half |= (uint16_t)(exponent > 0 && exponent < 31 ? exponent << 10 : 0);
        if (exponent <= 0)
            half &= 0x8000u;
        memcpy(to, &half, 2);
    }
}

static inline struct hm_tensor *hm_add(struct hm *m, const char *name, const char *type,
                                       json_t *shape, size_t len)
{
    assert_true(m->n < HM_MAX);
    struct hm_tensor *t = &m->tensor[m->n++];
    *t = (struct hm_tensor){.type = type, .shape = shape, .len = len};
    snprintf(t->name, sizeof t->name, "%s", name);
    t->data = calloc(len + 1, 1);
    assert_non_null(t->data);
    return t;
}

static inline float *hm_read(const struct sl_weights *w, const char *name, int64_t *ret_rows,
                             int64_t *ret_cols)
{
    if (sl_weights_shape(w, name, ret_rows, ret_cols, NULL))
        return NULL;
    float *x = malloc((size_t)(*ret_rows * *ret_cols) * sizeof *x);
    assert_non_null(x);
    assert_int_equal(sl_weights_read_f32(w, name, 0, *ret_rows, x, NULL), 0);
    return x;
}

/* Weight `ours` as tensor `theirs`; transposed: [in, out]. Does nothing without that weight. */
static inline void hm_take(struct hm *m, const struct sl_weights *w, const char *ours,
                           const char *theirs, const char *type, bool transposed)
{
    int64_t rows, cols;
    float *x = hm_read(w, ours, &rows, &cols);
    size_t bytes = strcmp(type, "F32") ? 2 : 4;
    if (!x)
        return;
    json_t *shape = rows == 1 && !strstr(ours, "embed") ? json_pack("[I]", (json_int_t)cols)
                    : transposed ? json_pack("[I, I]", (json_int_t)cols, (json_int_t)rows)
                                 : json_pack("[I, I]", (json_int_t)rows, (json_int_t)cols);
    struct hm_tensor *t = hm_add(m, theirs, type, shape, (size_t)(rows * cols) * bytes);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < cols; c++)
            hm_element(type, x[i * cols + c],
                       t->data + (size_t)(transposed ? c * rows + i : i * cols + c) * bytes);
    free(x);
}

/* GPT-2's fused tensor of Q, K and V: [hidden, 3 hidden], or its bias. */
static inline void hm_take_fused(struct hm *m, const struct sl_weights *w, int layer, bool bias,
                                 const char *type, const char *theirs)
{
    int64_t h = sl_weights_arch(w)->hidden, rows, cols;
    size_t bytes = strcmp(type, "F32") ? 2 : 4;
    json_t *shape = bias ? json_pack("[I]", (json_int_t)(3 * h))
                         : json_pack("[I, I]", (json_int_t)h, (json_int_t)(3 * h));
    struct hm_tensor *t = hm_add(m, theirs, type, shape, (size_t)(3 * h * (bias ? 1 : h)) * bytes);
    for (int k = 0; k < 3; k++) {
        char name[64];
        snprintf(name, sizeof name, "layers.%d.%c%s", layer, "qkv"[k], bias ? ".bias" : "");
        float *x = hm_read(w, name, &rows, &cols);
        assert_non_null(x);
        for (int64_t o = 0; o < h; o++)
            for (int64_t i = 0; i < (bias ? 1 : h); i++)
                hm_element(type, x[bias ? o : o * h + i],
                           t->data + (size_t)(i * 3 * h + k * h + o) * bytes);
        free(x);
    }
}

static const char *const hm_llama_names[][2] = {
    {"norm1.weight", "input_layernorm.weight"},
    {"norm2.weight", "post_attention_layernorm.weight"},
    {"q", "self_attn.q_proj.weight"},
    {"q.bias", "self_attn.q_proj.bias"},
    {"k", "self_attn.k_proj.weight"},
    {"k.bias", "self_attn.k_proj.bias"},
    {"v", "self_attn.v_proj.weight"},
    {"v.bias", "self_attn.v_proj.bias"},
    {"o", "self_attn.o_proj.weight"},
    {"gate", "mlp.gate_proj.weight"},
    {"up", "mlp.up_proj.weight"},
    {"down", "mlp.down_proj.weight"},
};
static const char *const hm_gpt2_names[][2] = {
    {"norm1.weight", "ln_1.weight"},  {"norm1.bias", "ln_1.bias"},  {"norm2.weight", "ln_2.weight"},
    {"norm2.bias", "ln_2.bias"},      {"o", "attn.c_proj.weight"},  {"o.bias", "attn.c_proj.bias"},
    {"up", "mlp.c_fc.weight"},        {"up.bias", "mlp.c_fc.bias"}, {"down", "mlp.c_proj.weight"},
    {"down.bias", "mlp.c_proj.bias"},
};

/* The directory of the tiny model's weights w; model_type NULL: gpt2. The caller calls hm_release.
 */
static inline void hm_init(struct hm *m, const struct sl_weights *w, const char *model_type,
                           const char *type, bool no_prefix)
{
    const struct sl_arch *a = sl_weights_arch(w);
    bool gpt2 = !model_type;
    const char *prefix = no_prefix ? "" : gpt2 ? "transformer." : "model.";
    const char *const(*names)[2] = gpt2 ? hm_gpt2_names : hm_llama_names;
    size_t n = gpt2 ? sizeof hm_gpt2_names / sizeof *hm_gpt2_names
                    : sizeof hm_llama_names / sizeof *hm_llama_names;
    char theirs[128], ours[64];
    *m = (struct hm){.no_prefix = no_prefix, .dir = "/tmp/sl-hf-XXXXXX"};
    assert_non_null(mkdtemp(m->dir));
    m->config =
        gpt2 ? json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:f}", "model_type", "gpt2", "n_embd",
                         a->hidden, "n_layer", a->layers, "n_head", a->heads, "n_positions",
                         a->max_positions, "n_inner", a->ffn, "layer_norm_epsilon", 1e-5)
             : json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:f}", "model_type", model_type,
                         "hidden_size", a->hidden, "num_hidden_layers", a->layers,
                         "num_attention_heads", a->heads, "num_key_value_heads", a->kv_heads,
                         "max_position_embeddings", a->max_positions, "intermediate_size", a->ffn,
                         "rms_norm_eps", 1e-5);
    assert_non_null(m->config);
    json_object_set_new(m->config, "vocab_size", json_integer(a->vocab));
    json_object_set_new(m->config, "tie_word_embeddings", json_boolean(a->tied));
#define PLACE(ours_, gpt2_, llama_)                                                                \
    do {                                                                                           \
        snprintf(theirs, sizeof theirs, "%s%s", prefix, gpt2 ? (gpt2_) : (llama_));                \
        hm_take(m, w, ours_, theirs, type, false);                                                 \
    } while (0)
    PLACE("embed", "wte.weight", "embed_tokens.weight");
    PLACE("pos_embed", "wpe.weight", "");
    for (int l = 0; l < a->layers; l++) {
        for (size_t i = 0; i < n; i++) {
            snprintf(ours, sizeof ours, "layers.%d.%s", l, names[i][0]);
            snprintf(theirs, sizeof theirs, "%s%s.%d.%s", prefix, gpt2 ? "h" : "layers", l,
                     names[i][1]);
            hm_take(m, w, ours, theirs, type,
                    gpt2 && !strstr(ours, "norm") && !strstr(ours, "bias"));
        }
        for (int bias = 0; gpt2 && bias < 2; bias++) {
            snprintf(theirs, sizeof theirs, "%sh.%d.attn.c_attn.%s", prefix, l,
                     bias ? "bias" : "weight");
            hm_take_fused(m, w, l, bias, type, theirs);
        }
    }
    PLACE("norm.weight", "ln_f.weight", "norm.weight");
    PLACE("norm.bias", "ln_f.bias", "");
#undef PLACE
    hm_take(m, w, "head", "lm_head.weight", type, false);
}

static inline void hm_release(struct hm *m)
{
    for (int i = 0; i < m->n; i++) {
        free(m->tensor[i].data);
        json_decref(m->tensor[i].shape);
    }
    json_decref(m->config);
    assert_int_equal(sl_rmtree(m->dir, NULL), 0);
}

/* A safetensors file from its header's text and data. */
static inline void hm_put_safetensors(const char *dir, const char *name, const char *header,
                                      size_t header_len, const struct sl_buf *data)
{
    struct sl_buf file;
    uint64_t len = header_len;
    sl_buf_init(&file, 64u << 20);
    assert_int_equal(sl_buf_add(&file, &len, sizeof len), 0);
    assert_int_equal(sl_buf_add(&file, header, header_len), 0);
    if (data && data->len)
        assert_int_equal(sl_buf_add(&file, data->p, data->len), 0);
    hm_put_file(dir, name, file.p, file.len);
    sl_buf_release(&file);
}

static inline void hm_shard_name(const struct hm *m, int shard, char ret_name[64])
{
    if (m->n_shards == 0)
        snprintf(ret_name, 64, "model.safetensors");
    else
        snprintf(ret_name, 64, "model-%05d-of-%05d.safetensors", shard + 1, m->n_shards);
}

static inline void hm_write_shard(const struct hm *m, int shard)
{
    json_t *header = json_object();
    struct sl_buf data;
    char name[64];
    sl_buf_init(&data, 64u << 20);
    for (int i = 0; i < m->n; i++) {
        const struct hm_tensor *t = &m->tensor[i];
        if (t->shard != shard || t->only_listed)
            continue;
        json_object_set_new(header, t->name,
                            json_pack("{s:s, s:O, s:[I, I]}", "dtype", t->type, "shape", t->shape,
                                      "data_offsets", (json_int_t)data.len,
                                      (json_int_t)(data.len + t->len)));
        assert_int_equal(sl_buf_add(&data, t->data, t->len), 0);
    }
    char *text = json_dumps(header, JSON_COMPACT);
    assert_non_null(text);
    hm_shard_name(m, shard, name);
    hm_put_safetensors(m->dir, name, text, strlen(text), &data);
    free(text);
    json_decref(header);
    sl_buf_release(&data);
}

static inline void hm_write(const struct hm *m)
{
    char *text = json_dumps(m->config, 0), name[64];
    assert_non_null(text);
    hm_put_file(m->dir, "config.json", text, strlen(text));
    free(text);
    for (int s = 0; s < (m->n_shards ? m->n_shards : 1); s++)
        hm_write_shard(m, s);
    if (m->n_shards == 0)
        return;
    json_t *map = json_object(),
           *root = json_pack("{s:{s:i}, s:o}", "metadata", "total_size", 1, "weight_map", map);
    for (int i = 0; i < m->n; i++) {
        hm_shard_name(m, m->tensor[i].shard, name);
        if (!m->tensor[i].unlisted)
            json_object_set_new(map, m->tensor[i].name, json_string(name));
    }
    text = json_dumps(root, 0);
    assert_non_null(text);
    hm_put_file(m->dir, "model.safetensors.index.json", text, strlen(text));
    free(text);
    json_decref(root);
}

/* The digest as weights.h has it, from the values that are read; type: of two bytes. */
static inline void hm_expect_digest(struct sl_weights *w, const char *type)
{
    char want[SL_SHA256_HEX + 1], got[SL_SHA256_HEX + 1], one[SL_SHA256_HEX + 1];
    struct sl_buf each, all;
    sl_buf_init(&each, 1 << 20);
    sl_buf_init(&all, 1 << 20);
    for (int i = 0; i < w->n_tensors; i++) {
        const struct sl_tensor *t = &w->tensors[i];
        const char *name = sl_dtype_info(t->dtype)->name;
        int64_t shape[2];
        unsigned char element[4];
        float *x = hm_read(w, t->name, &shape[0], &shape[1]);
        sl_buf_reset(&each);
        sl_buf_add(&each, t->name, strlen(t->name) + 1);
        sl_buf_add(&each, name, strlen(name) + 1);
        sl_buf_add(&each, shape, sizeof shape);
        for (int64_t e = 0; e < shape[0] * shape[1]; e++) {
            hm_element(type, x[e], element);
            sl_buf_add(&each, element, 2);
        }
        free(x);
        assert_int_equal(sl_sha256_data(each.p, each.len, one, NULL), 0);
        sl_buf_add(&all, one, sizeof one);
    }
    assert_int_equal(sl_sha256_data(all.p, all.len, want, NULL), 0);
    assert_int_equal(sl_weights_digest(w, got, NULL), 0);
    assert_string_equal(got, want);
    sl_buf_release(&each);
    sl_buf_release(&all);
}

#endif
