/* model_config.yaml: NeMo's keys of Megatron GPT models (megatron_gpt_config.yaml, 1.0 to 1.23). */
#include "base/yaml.h"
#include "engine/format/nemo.h"
#include "engine/text/tokenizer.h"
#include "engine/format/weights_format.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_PREFIX "nemo:"

int sl_nemo_config(const struct sl_tar *tar, json_t **ret_config, struct sl_err *err)
{
    const struct sl_tar_member *m = sl_tar_find(tar, SL_NEMO_CONFIG);
    json_t *config = NULL;
    int rc;

    if (!m)
        return sl_err_set(err, SL_DATA,
                          "the archive holds no " SL_NEMO_CONFIG ": it is no .nemo file");
    rc = sl_yaml_parse((const char *)m->data, m->len, SL_NEMO_CONFIG, &config, err);
    if (!rc && !json_is_object(config)) {
        json_decref(config);
        rc = sl_err_set(err, SL_DATA, SL_NEMO_CONFIG " is no mapping");
    }
    if (!rc)
        *ret_config = config;
    return rc < 0 ? (err ? err->code = SL_DATA : SL_DATA) : 0;
}

/* A value of the model; "${.x}" and "${model.x}" stand for x beside it. NULL: missing or null. */
static const json_t *value(const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    const char *text = json_string_value(v);
    char name[128];
    int end = 0;

    if (text && ((sscanf(text, "${.%127[^}]}%n", name, &end) == 1 && end > 0) ||
                 (sscanf(text, "${model.%127[^}]}%n", name, &end) == 1 && end > 0)))
        v = json_object_get(config, name);
    return json_is_null(v) ? NULL : v;
}

int sl_nemo_int(const json_t *config, const char *key, int otherwise, int *ret_v,
                struct sl_err *err)
{
    const json_t *v = value(config, key);

    if (!v && otherwise < 0)
        return sl_err_set(err, SL_DATA, SL_NEMO_CONFIG ": key '%s' is missing", key);
    if (v && (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT_MAX))
        return sl_err_set(err, SL_DATA, SL_NEMO_CONFIG ": key '%s' is no number in range", key);
    *ret_v = v ? (int)json_integer_value(v) : otherwise;
    return 0;
}

static bool is_set(const json_t *config, const char *key, bool otherwise)
{
    const json_t *v = value(config, key);

    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

static const char *text_of(const json_t *config, const char *key, const char *otherwise)
{
    const char *text = json_string_value(value(config, key));

    return text ? text : otherwise;
}

static int refuse(struct sl_err *err, const char *key, const char *what)
{
    char shown[SL_SHOWN_MAX];

    return sl_err_set(err, SL_SPEC, SL_NEMO_CONFIG ": %s: %s is not supported", key,
                      sl_shown(what, strlen(what), shown));
}

static int check_target(const json_t *c, struct sl_err *err)
{
    const char *target = text_of(c, "target", "GPT");

    if (strstr(target, "PromptLearning"))
        return sl_err_set(err, SL_SPEC,
                          "a NeMo archive of prompt tables, not of a base model: give it as "
                          "model.restore_path, or to generate as --prompts");
    if (!strstr(target, "GPT"))
        return refuse(err, "target", target);
    return 0;
}

/* What has one supported value. */
static int check_supported(const json_t *c, int heads, struct sl_err *err)
{
    static const struct {
        const char *key, *supported;
    } texts[] = {
        {"position_embedding_type", "learned_absolute"},
        {"activation", "gelu"},
        {"transformer_block_type", "pre_ln"},
        {"attention_type", "multihead"},
    };
    static const struct {
        const char *key;
        bool supported; /* also when the key is missing */
    } flags[] = {
        {"mcore_gpt", false},
        {"bias", true},
        {"normalize_attention_scores", true},
        {"headscale", false},
        {"multi_query_attention", false},
        {"apply_residual_connection_post_layernorm", false},
        {"transformer_engine", false},
    };
    int groups = heads, experts = 1, rc;

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const char *is = text_of(c, texts[i].key, texts[i].supported);

        if (strcmp(is, texts[i].supported) != 0)
            return refuse(err, texts[i].key, is);
    }
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (is_set(c, flags[i].key, flags[i].supported) != flags[i].supported)
            return refuse(err, flags[i].key, flags[i].supported ? "false" : "true");
    rc = sl_nemo_int(c, "num_query_groups", heads, &groups, err);
    if (!rc && groups != heads)
        return refuse(err, "num_query_groups", "sharing keys and values between heads");
    if (!rc)
        rc = sl_nemo_int(c, "num_moe_experts", 1, &experts, err);
    return !rc && experts > 1 ? refuse(err, "num_moe_experts", "a mixture of experts") : rc;
}

/* Every fused GELU of NeMo is the tanh form; F.gelu and the ONNX-safe one are exact. */
static enum sl_activation activation(const json_t *c)
{
    bool fused = is_set(c, "bias_activation_fusion", is_set(c, "bias_gelu_fusion", true));

    return fused || is_set(c, "openai_gelu", false) ? SL_GELU_TANH : SL_GELU_ERF;
}

int sl_nemo_arch(const json_t *c, struct sl_arch *a, struct sl_err *err)
{
    const json_t *eps = value(c, "layernorm_epsilon");
    const char *norm = text_of(c, "normalization", "layernorm");
    int length = 0, rc;

    a->family = SL_GPT2;
    a->activation = activation(c);
    a->learned_pos = true;
    a->norm_eps = json_is_number(eps) ? (float)json_number_value(eps) : 1e-5f;
    rc = check_target(c, err);
    if (!rc)
        rc = sl_nemo_int(c, "num_attention_heads", -1, &a->heads, err);
    if (!rc)
        rc = check_supported(c, a->heads, err);
    if (!rc && strcmp(norm, "layernorm") != 0 && strcmp(norm, "layernorm1p") != 0)
        rc = refuse(err, "normalization", norm);
    if (!rc)
        rc = sl_nemo_int(c, "num_layers", -1, &a->layers, err);
    if (!rc)
        rc = sl_nemo_int(c, "hidden_size", -1, &a->hidden, err);
    if (!rc && (a->heads < 1 || a->hidden > SL_MAX_HIDDEN))
        rc = sl_err_set(err, SL_DATA, SL_NEMO_CONFIG ": hidden_size %d, num_attention_heads %d",
                        a->hidden, a->heads);
    if (!rc)
        rc = sl_nemo_int(c, "ffn_hidden_size", 4 * a->hidden, &a->ffn, err);
    if (!rc)
        rc = sl_nemo_int(c, "kv_channels", a->hidden / a->heads, &a->head_dim, err);
    if (!rc)
        rc = sl_nemo_int(c, "encoder_seq_length", 0, &length, err);
    if (!rc)
        rc = sl_nemo_int(c, "max_position_embeddings", length, &a->max_positions, err);
    a->kv_heads = a->heads;
    snprintf(a->name, sizeof a->name, "NeMo GPT, %d layers of %d", a->layers, a->hidden);
    return rc;
}

/* ---- tokenizer ---- */

/* A file that the configuration names as "nemo:<hash>_<name>". SL_NOTFOUND unless it is inside. */
static int find_file(const struct sl_tar *tar, const json_t *tokenizer, const char *key,
                     const struct sl_tar_member **ret_m, struct sl_err *err)
{
    const char *name = text_of(tokenizer, key, "");
    char shown[SL_SHOWN_MAX];
    const struct sl_tar_member *m = NULL;

    if (!strncmp(name, FILE_PREFIX, strlen(FILE_PREFIX)))
        m = sl_tar_find(tar, name + strlen(FILE_PREFIX));
    if (!m)
        return sl_err_set(err, SL_NOTFOUND,
                          "the tokenizer's %s, '%s', is not in the archive (library '%.40s', type "
                          "'%.80s')",
                          key, sl_shown(name, strlen(name), shown),
                          text_of(tokenizer, "library", ""), text_of(tokenizer, "type", ""));
    *ret_m = m;
    return 0;
}

int sl_nemo_tokenizer(const struct sl_tar *tar, const json_t *config, struct sl_tokenizer **ret_tok,
                      struct sl_err *err)
{
    const json_t *t = json_object_get(config, "tokenizer");
    static const struct sl_text_ends ends = {"<|endoftext|>", "<|endoftext|>", -1, -1};
    const struct sl_tar_member *vocab = NULL, *merges = NULL;
    bool pieces = !strcmp(text_of(t, "library", ""), "sentencepiece");
    const char *model = text_of(t, "model", NULL) ? "model" : "tokenizer_model";
    int rc = find_file(tar, t, pieces ? model : "vocab_file", &vocab, err);

    if (rc || pieces)
        return rc ? rc
                  : sl_tokenizer_from_sentencepiece(vocab->data, vocab->len, NULL, ret_tok, err);
    rc = find_file(tar, t, "merge_file", &merges, err);
    if (rc)
        return rc;
    return sl_tokenizer_from_vocab_merges((const char *)vocab->data, vocab->len,
                                          (const char *)merges->data, merges->len, &ends, ret_tok,
                                          err);
}
