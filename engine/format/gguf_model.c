/* What llama.cpp's GGUF files of the llama and gpt2 architectures mean: key and tensor names as its
 * convert_hf_to_gguf.py writes them. */
#include "engine/format/gguf.h"
#include "engine/format/weights_format.h"
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_MAX 96

/* ---- architecture */

struct reader {
    const struct sl_gguf *g;
    char arch[16]; /* prefix of its keys */
    struct sl_err *err;
    int rc; /* first failure */
};

static void key_name(const struct reader *r, const char *name, char ret_key[KEY_MAX])
{
    snprintf(ret_key, KEY_MAX, "%s.%s", r->arch, name);
}

static bool has(const struct reader *r, const char *name)
{
    char key[KEY_MAX];
    key_name(r, name, key);
    return sl_gguf_find(r->g, key) != NULL;
}

/* otherwise < 0: the key must be there. */
static int get_int(struct reader *r, const char *name, int otherwise)
{
    char key[KEY_MAX];
    int64_t v = otherwise;
    if (r->rc < 0)
        return 0;
    key_name(r, name, key);
    const struct sl_gguf_key *found = sl_gguf_find(r->g, key);
    if (found && found->type == SL_GGUF_ARRAY) {
        r->rc =
            sl_err_set(r->err, SL_DATA,
                       "key '%s' is an array: layers that differ in shape are not supported", key);
        return 0;
    }
    int rc = sl_gguf_int(r->g, key, &v, r->err);
    if (rc < 0)
        r->rc = rc;
    else if (rc > 0 && otherwise < 0)
        r->rc = sl_err_set(r->err, SL_DATA, "key '%s' is missing", key);
    else if (v < 0 || v > INT_MAX)
        r->rc = sl_err_set(r->err, SL_DATA, "key '%s' is %lld, which is out of range", key,
                           (long long)v);
    return r->rc < 0 ? 0 : (int)v;
}

static float get_num(struct reader *r, const char *name, float otherwise)
{
    char key[KEY_MAX];
    double v = (double)otherwise;
    if (r->rc < 0)
        return 0;
    key_name(r, name, key);
    int rc = sl_gguf_num(r->g, key, &v, r->err);
    if (rc < 0)
        r->rc = rc;
    else if (rc > 0 && otherwise < 0)
        r->rc = sl_err_set(r->err, SL_DATA, "key '%s' is missing", key);
    return (float)v;
}

static int refuse(struct reader *r, const char *name, const char *why)
{
    char key[KEY_MAX];
    key_name(r, name, key);
    return sl_err_set(r->err, SL_SPEC, "key '%s': %s not supported", key, why);
}

static bool is_text(struct sl_gguf_str s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.p, text, s.len);
}

/* Llama 3.1's scaling comes as a tensor of divisors per frequency instead of its four numbers. They
 * are the published ones of that family with the factor as the largest divisor; anything else is
 * refused. */
static int read_rope_freqs(const struct sl_gguf *g, struct sl_arch *a, struct sl_err *err)
{
    const struct sl_gguf_tensor *t = sl_gguf_tensor(g, "rope_freqs.weight");
    if (!t)
        return 0;
    int n = a->rope_dims / 2;
    if (t->dtype != SL_DT_F32 || t->n_dims != 1 || t->dim[0] != n || n < 1)
        return sl_err_set(err, SL_DATA, "tensor 'rope_freqs.weight' is not F32 [%d]", n);
    const double low = 1, high = 4, original = 8192;
    float factor, divisor;
    memcpy(&factor, t->data + 4 * (size_t)(n - 1), sizeof factor);
    for (int i = 0; i < n; i++) {
        double wavelength = 2 * M_PI * pow((double)a->rope_base, 2.0 * i / a->rope_dims), want;
        double smooth = (original / wavelength - low) / (high - low);
        if (wavelength < original / high)
            want = 1;
        else if (wavelength > original / low)
            want = (double)factor;
        else
            want = 1 / ((1 - smooth) / (double)factor + smooth);
        memcpy(&divisor, t->data + 4 * (size_t)i, sizeof divisor);
        if (!(fabs((double)divisor - want) <= 1e-3 * want))
            return sl_err_set(err, SL_SPEC,
                              "tensor 'rope_freqs.weight' is not the rope scaling of Llama 3 "
                              "(divisor %d is %g, expected %g); not supported",
                              i, (double)divisor, want);
    }
    if (factor == 1.0f)
        return 0;
    a->rope_scaling = SL_ROPE_LLAMA3;
    a->rope_factor = factor;
    a->rope_low_freq = (float)low;
    a->rope_high_freq = (float)high;
    a->rope_original_positions = (int)original;
    return 0;
}

static int read_rope(struct reader *r, struct sl_arch *a)
{
    char key[KEY_MAX];
    struct sl_gguf_str type = {"none", 4};
    a->rope_base = get_num(r, "rope.freq_base", 10000.0f);
    a->rope_dims = get_int(r, "rope.dimension_count", a->head_dim);
    key_name(r, "rope.scaling.type", key);
    int rc = sl_gguf_text(r->g, key, &type, r->err);
    if (rc < 0)
        return rc;
    if (is_text(type, "linear")) {
        a->rope_scaling = SL_ROPE_LINEAR;
        a->rope_factor = get_num(r, "rope.scaling.factor", -1);
    } else if (has(r, "rope.scale_linear")) { /* the same, in files from before 2024 */
        a->rope_scaling = SL_ROPE_LINEAR;
        a->rope_factor = get_num(r, "rope.scale_linear", -1);
    } else if (!is_text(type, "none")) {
        char shown[SL_SHOWN_MAX], why[128];
        snprintf(why, sizeof why, "rope scaling '%s' is", sl_shown(type.p, type.len, shown));
        return refuse(r, "rope.scaling.type", why);
    }
    return r->rc < 0 ? r->rc : read_rope_freqs(r->g, a, r->err);
}

static int read_llama(struct reader *r, struct sl_arch *a)
{
    a->family = SL_LLAMA;
    a->activation = SL_SWIGLU;
    a->rms_norm = true;
    a->norm_eps = get_num(r, "attention.layer_norm_rms_epsilon", -1);
    a->kv_heads = get_int(r, "attention.head_count_kv", a->heads);
    if (r->rc == 0 && a->heads < 1)
        return sl_err_set(r->err, SL_DATA, "key 'llama.attention.head_count' is %d", a->heads);
    int value_dim, experts = get_int(r, "expert_count", 0);
    a->head_dim = get_int(r, "attention.key_length", a->heads ? a->hidden / a->heads : 0);
    value_dim = get_int(r, "attention.value_length", a->head_dim);
    int window = get_int(r, "attention.sliding_window", 0);
    if (r->rc < 0)
        return r->rc;
    if (experts > 0)
        return refuse(r, "expert_count", "a mixture of experts is");
    if (value_dim != a->head_dim)
        return refuse(r, "attention.value_length", "a length other than the keys' is");
    if (window > 0 && window < a->max_positions)
        return refuse(r, "attention.sliding_window", "attention in a sliding window is");
    return read_rope(r, a);
}

static int read_gpt2(struct reader *r, struct sl_arch *a)
{
    a->family = SL_GPT2;
    a->activation = SL_GELU_TANH;
    a->learned_pos = true;
    a->kv_heads = a->heads;
    a->norm_eps = get_num(r, "attention.layer_norm_epsilon", -1);
    if (r->rc == 0 && a->heads < 1)
        return sl_err_set(r->err, SL_DATA, "key 'gpt2.attention.head_count' is %d", a->heads);
    a->head_dim = a->heads ? a->hidden / a->heads : 0;
    return r->rc;
}

static int read_arch(const struct sl_gguf *g, struct sl_arch *a, struct sl_err *err)
{
    struct reader r = {.g = g, .err = err};
    struct sl_gguf_str arch, name = {"", 0};
    char shown[SL_SHOWN_MAX];
    int rc = sl_gguf_text(g, "general.architecture", &arch, err);
    if (rc != 0)
        return rc < 0 ? rc : sl_err_set(err, SL_DATA, "key 'general.architecture' is missing");
    bool llama = is_text(arch, "llama"), gpt2 = is_text(arch, "gpt2");
    if (!llama && !gpt2)
        return sl_err_set(err, SL_SPEC,
                          "architecture '%s' is not supported (supported in GGUF: llama, gpt2)",
                          sl_shown(arch.p, arch.len, shown));
    snprintf(r.arch, sizeof r.arch, "%s", llama ? "llama" : "gpt2");
    a->layers = get_int(&r, "block_count", -1);
    a->hidden = get_int(&r, "embedding_length", -1);
    a->ffn = get_int(&r, "feed_forward_length", -1);
    a->heads = get_int(&r, "attention.head_count", -1);
    a->max_positions = get_int(&r, "context_length", -1);
    const struct sl_gguf_tensor *embed = sl_gguf_tensor(g, "token_embd.weight");
    if (r.rc == 0 && !embed)
        return sl_err_set(err, SL_DATA, "tensor 'token_embd.weight' is missing");
    if (embed && embed->dim[1] > SL_MAX_VOCAB)
        return sl_err_set(err, SL_DATA, "a vocabulary of %lld; at most %d is supported",
                          (long long)embed->dim[1], SL_MAX_VOCAB);
    a->vocab = embed ? (int)embed->dim[1] : 0;
    if (has(&r, "vocab_size") && get_int(&r, "vocab_size", -1) != a->vocab && r.rc == 0)
        return sl_err_set(err, SL_DATA, "key '%s.vocab_size' is not the embedding's %d", r.arch,
                          a->vocab);
    a->tied = !sl_gguf_tensor(g, "output.weight");
    if ((rc = sl_gguf_text(g, "general.name", &name, err)) < 0)
        return rc;
    snprintf(a->name, sizeof a->name, "%s", name.len ? sl_shown(name.p, name.len, shown) : r.arch);
    return r.rc < 0 ? r.rc : llama ? read_llama(&r, a) : read_gpt2(&r, a);
}

/* ---- tensors */

enum rotary { PLAIN, BY_HEADS, BY_KV_HEADS };
static const struct rename {
    const char *ours, *theirs;
    enum rotary rotary;
} model_names[] =
    {
        {"embed", "token_embd.weight", PLAIN},
        {"pos_embed", "position_embd.weight", PLAIN},
        {"norm.weight", "output_norm.weight", PLAIN},
        {"norm.bias", "output_norm.bias", PLAIN},
        {"head", "output.weight", PLAIN},
},
  layer_names[] = {
      {"norm1.weight", "attn_norm.weight", PLAIN},
      {"norm1.bias", "attn_norm.bias", PLAIN},
      {"norm2.weight", "ffn_norm.weight", PLAIN},
      {"norm2.bias", "ffn_norm.bias", PLAIN},
      {"q", "attn_q.weight", BY_HEADS},
      {"q.bias", "attn_q.bias", BY_HEADS},
      {"k", "attn_k.weight", BY_KV_HEADS},
      {"k.bias", "attn_k.bias", BY_KV_HEADS},
      {"v", "attn_v.weight", PLAIN},
      {"v.bias", "attn_v.bias", PLAIN},
      {"o", "attn_output.weight", PLAIN},
      {"o.bias", "attn_output.bias", PLAIN},
      {"gate", "ffn_gate.weight", PLAIN},
      {"gate.bias", "ffn_gate.bias", PLAIN},
      {"up", "ffn_up.weight", PLAIN},
      {"up.bias", "ffn_up.bias", PLAIN},
      {"down", "ffn_down.weight", PLAIN},
      {"down.bias", "ffn_down.bias", PLAIN},
};

static const struct rename *find_name(const struct rename *names, size_t n, const char *theirs)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i].theirs, theirs))
            return &names[i];
    return NULL;
}

/* GPT-2's fused [3H, H] and its bias [3H] are Q, K and V one after another. */
static int add_fused(struct sl_weights *w, const struct sl_gguf_tensor *from, int layer, bool bias,
                     struct sl_err *err)
{
    int64_t hidden = w->arch.hidden, rows = bias ? 1 : hidden;
    int64_t across = bias ? 1 : from->dim[0], along = bias ? from->dim[0] : from->dim[1];
    if (along != 3 * hidden || (bias && from->dim[1] != 1) ||
        (bias && hidden % sl_dtype_info(from->dtype)->block))
        return sl_err_set(err, SL_DATA, "tensor 'blk.%d.attn_qkv.%s' is not of 3 x %lld rows",
                          layer, bias ? "bias" : "weight", (long long)hidden);
    for (int k = 0; k < 3; k++) {
        struct sl_tensor t = {.dtype = from->dtype, .rows = rows, .cols = bias ? hidden : across};
        snprintf(t.name, sizeof t.name, "layers.%d.%c%s", layer, "qkv"[k], bias ? ".bias" : "");
        t.data = from->data + (size_t)k * (size_t)rows * sl_tensor_row_bytes(&t);
        int rc = sl_weights_add(w, &t, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int add_tensor(struct sl_weights *w, const struct sl_gguf_tensor *from, struct sl_err *err)
{
    struct sl_tensor t = {
        .dtype = from->dtype, .rows = from->dim[1], .cols = from->dim[0], .data = from->data};
    char name[SL_GGUF_NAME_MAX + 1], shown[SL_SHOWN_MAX];
    const struct rename *found;
    int layer, used = 0;
    memcpy(name, from->name.p, from->name.len);
    name[from->name.len] = '\0';
    sl_shown(name, from->name.len, shown);
    if (!strcmp(name, "rope_freqs.weight"))
        return 0; /* read with the architecture */
    if (from->dim[2] != 1 || from->dim[3] != 1)
        return sl_err_set(err, SL_DATA, "tensor '%s' has more than two dimensions", shown);
    if (sscanf(name, "blk.%d.%n", &layer, &used) == 1 && used > 0 && layer >= 0) {
        const char *rest = name + used;
        if (w->arch.family == SL_GPT2 &&
            (!strcmp(rest, "attn_qkv.weight") || !strcmp(rest, "attn_qkv.bias")))
            return add_fused(w, from, layer, !strcmp(rest, "attn_qkv.bias"), err);
        found = find_name(layer_names, sizeof layer_names / sizeof *layer_names, rest);
        if (found)
            snprintf(t.name, sizeof t.name, "layers.%d.%s", layer, found->ours);
    } else {
        found = find_name(model_names, sizeof model_names / sizeof *model_names, name);
        if (found)
            snprintf(t.name, sizeof t.name, "%s", found->ours);
    }
    if (!found || strlen(name) != from->name.len)
        return sl_err_set(err, SL_SPEC, "tensor '%s' belongs to no supported form of %s", shown,
                          w->arch.family == SL_GPT2 ? "gpt2" : "llama");
    if (w->arch.family == SL_LLAMA && found->rotary != PLAIN)
        t.rotary_heads = found->rotary == BY_HEADS ? w->arch.heads : w->arch.kv_heads;
    return sl_weights_add(w, &t, err);
}

static bool probe(const unsigned char *head, size_t len)
{
    return len >= 4 && !memcmp(head, "GGUF", 4);
}

static int open_gguf(struct sl_weights *w, const char *path, struct sl_err *err)
{
    struct sl_gguf *g;
    int rc = sl_gguf_open(path, &g, err);
    if (rc < 0)
        return rc;
    w->impl = g;
    rc = read_arch(g, &w->arch, err);
    for (int i = 0; rc == 0 && i < g->n_tensors; i++)
        rc = add_tensor(w, &g->tensors[i], err);
    return rc;
}

/* ---- the format */

static int tokenizer(const void *impl, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    return sl_gguf_tokenizer(impl, ret_tok, err);
}

static void close_gguf(void *impl)
{
    sl_gguf_close(impl);
}

static void forget(const void *impl)
{
    sl_map_forget(&((const struct sl_gguf *)impl)->map);
}

const struct sl_format sl_format_gguf = {"GGUF", probe, open_gguf, close_gguf, tokenizer, forget};
