#include "engine/format/hf_config.h"
#include "base/json.h"
#include "engine/format/weights_format.h"
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SUPPORTED_TYPES "gpt2, llama, mistral, qwen2, qwen3"
/* of the classes in transformers, for keys that are not there at all */
#define DEFAULT_WINDOW 4096
#define DEFAULT_WINDOW_LAYERS 28
#define QWEN3_HEAD_DIM 128

struct reader {
    const json_t *config;
    const char *where; /* "rope_scaling." for keys in it */
    struct sl_err *err;
    int rc; /* first failure */
};

static bool is(const char *a, const char *b)
{
    return !strcmp(a, b);
}

__attribute__((format(printf, 2, 3))) static void refuse(struct reader *r, const char *fmt, ...)
{
    char what[256];
    va_list ap;
    if (r->rc < 0)
        return;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    r->rc = sl_err_set(r->err, SL_SPEC, "config.json: %s, which is not supported", what);
}

/* NULL when it is missing or null. */
static const json_t *get(const struct reader *r, const char *name)
{
    const json_t *v = json_object_get(r->config, name);
    return json_is_null(v) ? NULL : v;
}

static void wrong(struct reader *r, const char *name, const char *what)
{
    if (r->rc == 0)
        r->rc = sl_err_set(r->err, SL_DATA, "config.json: %s%s %s", r->where, name, what);
}

/* otherwise < 0: the key must be there. */
static int get_int(struct reader *r, const char *name, int otherwise)
{
    const json_t *v = get(r, name);
    json_int_t n = json_integer_value(v);
    if (!v && otherwise < 0)
        wrong(r, name, "is missing");
    else if (v && !json_is_integer(v))
        wrong(r, name, "is no whole number");
    else if (v && (n < 0 || n > INT_MAX))
        wrong(r, name, "is out of range");
    return r->rc < 0 ? 0 : v ? (int)n : otherwise;
}

static float get_num(struct reader *r, const char *name, float otherwise)
{
    const json_t *v = get(r, name);
    if (!v && otherwise < 0)
        wrong(r, name, "is missing");
    else if (v && !json_is_number(v))
        wrong(r, name, "is no number");
    else if (v && !(fabs(json_number_value(v)) <= 1e30))
        wrong(r, name, "is out of range");
    return r->rc < 0 ? 0 : v ? (float)json_number_value(v) : otherwise;
}

static bool get_bool(struct reader *r, const char *name, bool otherwise)
{
    const json_t *v = get(r, name);
    if (v && !json_is_boolean(v))
        wrong(r, name, "is neither true nor false");
    return v ? json_is_true(v) : otherwise;
}

/* Made fit for messages, so that what is compared is what is shown. */
static const char *get_text(struct reader *r, const char *name, const char *otherwise,
                            char ret_text[SL_SHOWN_MAX])
{
    const json_t *v = get(r, name);
    if (v && !json_is_string(v))
        wrong(r, name, "is no text");
    const char *text = json_is_string(v) ? json_string_value(v) : otherwise;
    return sl_shown(text, strlen(text), ret_text);
}

static void must_be(struct reader *r, const char *name, bool value)
{
    if (get_bool(r, name, value) != value)
        refuse(r, "%s %s", name, value ? "false" : "true");
}

/* ---- Llama and its relatives */

/* transformers 4 has rope_theta and rope_scaling beside each other, 5 has both in rope_parameters;
 * where a file has both, it takes rope_scaling. */
static void read_rope(struct reader *r, struct sl_arch *a)
{
    const json_t *scaling = get(r, "rope_scaling");
    bool empty = json_is_object(scaling) && json_object_size(scaling) == 0;
    const json_t *all = scaling && !empty ? scaling : get(r, "rope_parameters");
    const char *where = all == scaling ? "rope_scaling" : "rope_parameters", *key;
    struct reader in = {all, all == scaling ? "rope_scaling." : "rope_parameters.", r->err, 0};
    char type[SL_SHOWN_MAX];
    json_t *v;
    a->rope_dims = a->head_dim;
    a->rope_base = get_num(r, "rope_theta", 10000.0f);
    float part = get_num(r, "partial_rotary_factor", 1.0f);
    if (!all || r->rc < 0) {
        if (part != 1.0f)
            refuse(r, "partial_rotary_factor %g", (double)part);
        return;
    }
    if (!json_is_object(all)) {
        wrong(r, where, "is no object");
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)all, key, v) {
        char shown[SL_SHOWN_MAX];
        if (json_is_object(v)) {
            refuse(r, "%s of its own for %s", where, sl_shown(key, strlen(key), shown));
            return;
        }
    }
    get_text(&in, "rope_type", "", type);
    if (!type[0])
        get_text(&in, "type", "default", type);
    a->rope_base = get_num(&in, "rope_theta", a->rope_base);
    part = get_num(&in, "partial_rotary_factor", part);
    if (in.rc == 0 && !is(type, "default")) {
        a->rope_scaling = is(type, "linear") ? SL_ROPE_LINEAR : SL_ROPE_LLAMA3;
        if (!is(type, "linear") && !is(type, "llama3"))
            refuse(r, "%s of type '%s'", where, type);
        a->rope_factor = get_num(&in, "factor", -1);
    }
    if (in.rc == 0 && is(type, "llama3")) {
        a->rope_low_freq = get_num(&in, "low_freq_factor", -1);
        a->rope_high_freq = get_num(&in, "high_freq_factor", -1);
        a->rope_original_positions =
            get_int(&in, "original_max_position_embeddings", a->max_positions);
        if (in.rc == 0 && !(a->rope_low_freq > 0 && a->rope_high_freq > a->rope_low_freq))
            wrong(&in, "high_freq_factor", "is not above low_freq_factor");
    }
    if (in.rc == 0 && part != 1.0f)
        refuse(r, "partial_rotary_factor %g", (double)part);
    if (r->rc == 0)
        r->rc = in.rc;
}

/* A window that no position leaves changes nothing. Some layers' window is taken for all: it only
 * bounds the positions. */
static void read_window(struct reader *r, const char *type, struct sl_arch *a)
{
    const json_t *layers = get(r, "layer_types"), *layer;
    size_t i;
    bool qwen = is(type, "qwen2") || is(type, "qwen3"), sliding = is(type, "mistral");
    int window = 0;
    if (qwen) {
        sliding = get_bool(r, "use_sliding_window", false) &&
                  get_int(r, "max_window_layers", DEFAULT_WINDOW_LAYERS) < a->layers;
        if (layers)
            sliding = false; /* they say it themselves */
    }
    if (layers && !json_is_array(layers))
        wrong(r, "layer_types", "is no list");
    json_array_foreach((json_t *)(uintptr_t)layers, i, layer) {
        char shown[SL_SHOWN_MAX];
        const char *kind = json_is_string(layer) ? json_string_value(layer) : "?";
        if (is(kind, "sliding_attention"))
            sliding = sliding || qwen;
        else if (!is(kind, "full_attention"))
            refuse(r, "a layer of type '%s'", sl_shown(kind, strlen(kind), shown));
    }
    if (!sliding)
        return;
    if (json_object_get(r->config, "sliding_window"))
        window = get_int(r, "sliding_window", 0);
    else
        window = DEFAULT_WINDOW;
    if (window > 0 && window < a->max_positions)
        a->max_positions = a->sliding_window = window;
}

static void read_llama(struct reader *r, const char *type, struct sl_arch *a, unsigned *extras)
{
    char act[SL_SHOWN_MAX];
    bool qwen3 = is(type, "qwen3");
    a->family = SL_LLAMA;
    a->activation = SL_SWIGLU;
    a->rms_norm = true;
    a->hidden = get_int(r, "hidden_size", -1);
    a->ffn = get_int(r, "intermediate_size", -1);
    a->layers = get_int(r, "num_hidden_layers", -1);
    a->heads = get_int(r, "num_attention_heads", -1);
    a->max_positions = get_int(r, "max_position_embeddings", -1);
    a->norm_eps = get_num(r, "rms_norm_eps", 1e-6f);
    bool named = json_object_get(r->config, "num_key_value_heads") || is(type, "llama");
    a->kv_heads = get_int(r, "num_key_value_heads", named ? a->heads : -1);
    if (r->rc == 0 && a->heads < 1)
        wrong(r, "num_attention_heads", "is 0");
    a->head_dim = get_int(r, "head_dim",
                          r->rc < 0 ? 0
                          : qwen3   ? QWEN3_HEAD_DIM
                                    : a->hidden / a->heads);
    a->tied = get_bool(r, "tie_word_embeddings", false);
    if (!is(get_text(r, "hidden_act", "silu", act), "silu") && !is(act, "swish"))
        refuse(r, "hidden_act '%s'", act);
    a->qk_norm = qwen3;
    if (qwen3)
        *extras |= SL_HF_QK_NORM;
    if (is(type, "qwen2"))
        *extras |= SL_HF_QKV_BIAS;
    if ((is(type, "llama") || qwen3) && get_bool(r, "attention_bias", false))
        *extras |= SL_HF_QKV_BIAS | SL_HF_O_BIAS;
    if (is(type, "llama") && get_bool(r, "mlp_bias", false))
        *extras |= SL_HF_MLP_BIAS;
    read_rope(r, a);
    read_window(r, type, a);
}

/* ---- GPT-2 */

static void read_gpt2(struct reader *r, struct sl_arch *a)
{
    char act[SL_SHOWN_MAX];
    a->family = SL_GPT2;
    a->learned_pos = true;
    a->hidden = get_int(r, "n_embd", -1);
    a->layers = get_int(r, "n_layer", -1);
    a->heads = a->kv_heads = get_int(r, "n_head", -1);
    a->max_positions = get_int(r, "n_positions", -1);
    a->norm_eps = get_num(r, "layer_norm_epsilon", 1e-5f);
    a->tied = get_bool(r, "tie_word_embeddings", true);
    if (r->rc == 0 && (a->heads < 1 || a->hidden % a->heads))
        wrong(r, "n_head", "does not divide n_embd");
    if (r->rc == 0 && a->hidden > SL_MAX_HIDDEN)
        wrong(r, "n_embd", "is out of range");
    a->head_dim = r->rc < 0 ? 0 : a->hidden / a->heads;
    a->ffn = get_int(r, "n_inner", r->rc < 0 ? 0 : 4 * a->hidden);
    get_text(r, "activation_function", "gelu_new", act);
    if (is(act, "gelu"))
        a->activation = SL_GELU_ERF;
    else if (is(act, "gelu_new") || is(act, "gelu_pytorch_tanh") || is(act, "gelu_fast"))
        a->activation = SL_GELU_TANH;
    else
        refuse(r, "activation_function '%s'", act);
    must_be(r, "scale_attn_weights", true);
    must_be(r, "scale_attn_by_inverse_layer_idx", false);
    must_be(r, "add_cross_attention", false);
}

static int read_config(const json_t *config, struct sl_arch *a, unsigned *ret_extras,
                       struct sl_err *err)
{
    struct reader r = {config, "", err, 0};
    char type[SL_SHOWN_MAX], method[SL_SHOWN_MAX];
    unsigned extras = 0;
    if (!json_is_object(config))
        return sl_err_set(err, SL_DATA, "config.json is no JSON object");
    get_text(&r, "model_type", "", type);
    if (r.rc == 0 && !type[0])
        wrong(&r, "model_type", "is missing");
    snprintf(a->name, sizeof a->name, "%s", type);
    const json_t *quantised = get(&r, "quantization_config");
    if (quantised) {
        struct reader in = {quantised, "quantization_config.", err, 0};
        refuse(&r, "quantization_config of method '%s'",
               get_text(&in, "quant_method", "?", method));
    }
    if (r.rc == 0 && is(type, "gpt2"))
        read_gpt2(&r, a);
    else if (r.rc == 0 &&
             (is(type, "llama") || is(type, "mistral") || is(type, "qwen2") || is(type, "qwen3")))
        read_llama(&r, type, a, &extras);
    else if (r.rc == 0)
        r.rc = sl_err_set(
            err, SL_SPEC,
            "config.json: model_type '%s' is not supported (supported: " SUPPORTED_TYPES ")", type);
    a->vocab = get_int(&r, "vocab_size", -1);
    if (r.rc == 0)
        *ret_extras = extras;
    return r.rc;
}

int sl_hf_read_config(const char *path, struct sl_arch *arch, unsigned *ret_extras,
                      struct sl_err *err)
{
    struct sl_err why = SL_ERR_INIT;
    json_t *config;
    int rc = sl_json_read(path, SL_HF_CONFIG_MAX, &config, &why);
    if (rc)
        return sl_err_set(err, rc == SL_SPEC ? SL_DATA : rc, "%s", why.msg);
    rc = read_config(config, arch, ret_extras, err);
    json_decref(config);
    return rc;
}
