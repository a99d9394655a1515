/* Hugging Face directories: config.json with model.safetensors, or with the files that
 * model.safetensors.index.json names. Tensor names as transformers' save_pretrained writes them,
 * for the model with its output layer or without ("model." or "transformer." in front or not).
 * Buffers that older versions stored beside the weights are passed over. */
#include "base/file.h"
#include "base/json.h"
#include "engine/format/hf_config.h"
#include "engine/format/safetensors.h"
#include "engine/text/tokenizer.h"
#include "engine/format/weights_format.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_SHARDS 1024
#define SHARD_NAME_MAX 256
#define INDEX_MAX SL_ST_HEADER_MAX

struct hf {
    char *dir;
    int n_shards;
    size_t n_tensors; /* of all shards */
    struct sl_safetensors *shard[MAX_SHARDS];
    char shard_name[MAX_SHARDS][SHARD_NAME_MAX];
    json_t *index; /* weight_map; NULL: one file */
    unsigned extras;
    bool head;      /* the output layer was there */
    uint32_t *seen; /* [layers + 1] bits of the table's tensors that were there; the last: outside
                       of layers */
};

/* ---- names */

enum kind { PLAIN, CONV1D, FUSED, FUSED_BIAS, IGNORED };
static const struct rename {
    const char *theirs, *ours;
    unsigned extra; /* there with this only */
    enum kind kind;
} llama_model[] =
    {
        {"embed_tokens.weight", "embed", 0, PLAIN},
        {"norm.weight", "norm.weight", 0, PLAIN},
},
  llama_layer[] =
      {
          {"input_layernorm.weight", "norm1.weight", 0, PLAIN},
          {"post_attention_layernorm.weight", "norm2.weight", 0, PLAIN},
          {"self_attn.q_proj.weight", "q", 0, PLAIN},
          {"self_attn.k_proj.weight", "k", 0, PLAIN},
          {"self_attn.v_proj.weight", "v", 0, PLAIN},
          {"self_attn.o_proj.weight", "o", 0, PLAIN},
          {"self_attn.q_proj.bias", "q.bias", SL_HF_QKV_BIAS, PLAIN},
          {"self_attn.k_proj.bias", "k.bias", SL_HF_QKV_BIAS, PLAIN},
          {"self_attn.v_proj.bias", "v.bias", SL_HF_QKV_BIAS, PLAIN},
          {"self_attn.o_proj.bias", "o.bias", SL_HF_O_BIAS, PLAIN},
          {"self_attn.q_norm.weight", "q_norm", SL_HF_QK_NORM, PLAIN},
          {"self_attn.k_norm.weight", "k_norm", SL_HF_QK_NORM, PLAIN},
          {"mlp.gate_proj.weight", "gate", 0, PLAIN},
          {"mlp.up_proj.weight", "up", 0, PLAIN},
          {"mlp.down_proj.weight", "down", 0, PLAIN},
          {"mlp.gate_proj.bias", "gate.bias", SL_HF_MLP_BIAS, PLAIN},
          {"mlp.up_proj.bias", "up.bias", SL_HF_MLP_BIAS, PLAIN},
          {"mlp.down_proj.bias", "down.bias", SL_HF_MLP_BIAS, PLAIN},
          {"self_attn.rotary_emb.inv_freq", NULL, 0, IGNORED},
},
  gpt2_model[] =
      {
          {"wte.weight", "embed", 0, PLAIN},
          {"wpe.weight", "pos_embed", 0, PLAIN},
          {"ln_f.weight", "norm.weight", 0, PLAIN},
          {"ln_f.bias", "norm.bias", 0, PLAIN},
},
  gpt2_layer[] = {
      {"ln_1.weight", "norm1.weight", 0, PLAIN}, {"ln_1.bias", "norm1.bias", 0, PLAIN},
      {"ln_2.weight", "norm2.weight", 0, PLAIN}, {"ln_2.bias", "norm2.bias", 0, PLAIN},
      {"attn.c_attn.weight", NULL, 0, FUSED},    {"attn.c_attn.bias", NULL, 0, FUSED_BIAS},
      {"attn.c_proj.weight", "o", 0, CONV1D},    {"attn.c_proj.bias", "o.bias", 0, PLAIN},
      {"mlp.c_fc.weight", "up", 0, CONV1D},      {"mlp.c_fc.bias", "up.bias", 0, PLAIN},
      {"mlp.c_proj.weight", "down", 0, CONV1D},  {"mlp.c_proj.bias", "down.bias", 0, PLAIN},
      {"attn.bias", NULL, 0, IGNORED},           {"attn.masked_bias", NULL, 0, IGNORED},
};

/* A family's tables. */
static const struct family {
    const char *prefix, *layers;
    const struct rename *model, *layer;
    size_t n_model, n_layer;
} llama = {"model.",
           "layers.",
           llama_model,
           llama_layer,
           sizeof llama_model / sizeof *llama_model,
           sizeof llama_layer / sizeof *llama_layer},
  gpt2 = {"transformer.",
          "h.",
          gpt2_model,
          gpt2_layer,
          sizeof gpt2_model / sizeof *gpt2_model,
          sizeof gpt2_layer / sizeof *gpt2_layer};

static const struct family *family_of(const struct sl_weights *w)
{
    return w->arch.family == SL_GPT2 ? &gpt2 : &llama;
}

/* The entry for a tensor without the family's prefix. *ret_layer is the number of layers for a
 * tensor outside of them. NULL: none. */
static const struct rename *find_name(const struct sl_weights *w, const char *name, int *ret_layer)
{
    const struct family *f = family_of(w);
    const struct rename *names = f->model;
    size_t n = f->n_model, in_layers = strlen(f->layers);
    int layer = w->arch.layers;
    if (!strncmp(name, f->layers, in_layers)) {
        char *end;
        long number = strtol(name + in_layers, &end, 10);
        char plain[16];
        snprintf(plain, sizeof plain, "%ld.", number);
        /* as printed: "01" and "+1" are no second names of layer 1 */
        if (*end != '.' || number < 0 || number >= w->arch.layers ||
            strncmp(name + in_layers, plain, strlen(plain)) != 0)
            return NULL;
        layer = (int)number;
        name = end + 1;
        names = f->layer;
        n = f->n_layer;
    }
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i].theirs, name)) {
            *ret_layer = layer;
            return &names[i];
        }
    return NULL;
}

/* ---- tensors */

static int data_type(const char *name, const char *type, enum sl_dtype *ret_dtype,
                     struct sl_err *err)
{
    static const enum sl_dtype known[] = {SL_DT_F32, SL_DT_F16, SL_DT_BF16};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(sl_dtype_info(known[i])->name, type)) {
            *ret_dtype = known[i];
            return 0;
        }
    return sl_err_set(err, SL_SPEC,
                      "tensor '%s' has type %s, which is not supported (supported: F32, F16, BF16)",
                      name, type);
}

/* A stored matrix [in, out] as ours [out, in], or `cols` columns of it from column `first`. */
static struct sl_tensor by_columns(enum sl_dtype dtype, const unsigned char *data, int64_t in,
                                   int64_t out, int64_t first, int64_t cols)
{
    size_t bytes = (size_t)sl_dtype_info(dtype)->block_bytes;
    return (struct sl_tensor){.dtype = dtype,
                              .rows = cols,
                              .cols = in,
                              .data = data + (size_t)first * bytes,
                              .column_bytes = (size_t)out * bytes};
}

static int add_tensor(struct sl_weights *w, const struct rename *name, int layer,
                      const struct sl_st_tensor *from, const unsigned char *data,
                      struct sl_err *err)
{
    bool vector = from->n_dims == 1;
    int64_t hidden = w->arch.hidden, rows = vector ? 1 : from->dim[0],
            cols = from->dim[vector ? 0 : 1];
    enum sl_dtype dtype = SL_DT_F32;
    char shown[SL_SHOWN_MAX];
    sl_shown(from->name, strlen(from->name), shown);
    int rc = data_type(shown, from->type, &dtype, err);
    if (rc < 0)
        return rc;
    if (from->n_dims < 1 || from->n_dims > 2 || (name->kind == CONV1D && vector))
        return sl_err_set(err, SL_DATA, "tensor '%s' has %d dimensions", shown, from->n_dims);
    if ((name->kind == FUSED && (vector || rows != hidden || cols != 3 * hidden)) ||
        (name->kind == FUSED_BIAS && (!vector || cols != 3 * hidden)))
        return sl_err_set(
            err, SL_DATA,
            "tensor '%s' is [%lld, %lld]; a hidden size of %lld asks for %lld columns", shown,
            (long long)rows, (long long)cols, (long long)hidden, (long long)(3 * hidden));
    struct sl_tensor t = {.dtype = dtype, .rows = rows, .cols = cols, .data = data};
    if (name->kind == CONV1D)
        t = by_columns(dtype, data, rows, cols, 0, cols);
    if (name->kind == PLAIN || name->kind == CONV1D) {
        if (layer < w->arch.layers)
            snprintf(t.name, sizeof t.name, "layers.%d.%s", layer, name->ours);
        else
            snprintf(t.name, sizeof t.name, "%s", name->ours);
        return sl_weights_add(w, &t, err);
    }
    for (int k = 0; k < 3 && rc == 0; k++) { /* Q, K and V one beside the other */
        t = by_columns(dtype, data, rows, cols, k * hidden, hidden);
        if (name->kind == FUSED_BIAS) {
            t.rows = 1;
            t.cols = hidden;
            t.column_bytes = 0;
        }
        snprintf(t.name, sizeof t.name, "layers.%d.%c%s", layer, "qkv"[k],
                 name -> kind == FUSED_BIAS ? ".bias" : "");
        rc = sl_weights_add(w, &t, err);
    }
    return rc;
}

static int take_tensor(struct sl_weights *w, struct hf *h, int shard, int i, struct sl_err *err)
{
    const struct sl_st_tensor *from = sl_safetensors_at(h->shard[shard], i);
    const struct family *f = family_of(w);
    const unsigned char *data = sl_safetensors_bytes(h->shard[shard], i);
    const char *name = from->name,
               *listed = json_string_value(json_object_get(h->index, from->name));
    char shown[SL_SHOWN_MAX];
    int layer;
    sl_shown(from->name, strlen(from->name), shown);
    if (h->index && (!listed || strcmp(listed, h->shard_name[shard]) != 0))
        return sl_err_set(err, SL_DATA, "tensor '%s' is in %s, but not by the index", shown,
                          h->shard_name[shard]);
    if (!strcmp(name, "lm_head.weight")) {
        static const struct rename head = {"lm_head.weight", "head", 0, PLAIN};
        h->head = true;
        return w->arch.tied ? 0 /* transformers takes the embedding too */
                            : add_tensor(w, &head, w->arch.layers, from, data, err);
    }
    if (!strncmp(name, f->prefix, strlen(f->prefix)))
        name += strlen(f->prefix);
    const struct rename *found = find_name(w, name, &layer);
    if (!found || (found->extra & ~h->extras))
        return sl_err_set(
            err, SL_SPEC,
            "tensor '%s' has no place in a model of type %s with %d layers as config.json "
            "describes it",
            shown, w->arch.name, w->arch.layers);
    if (found->kind == IGNORED)
        return 0;
    const struct rename *first = layer < w->arch.layers ? f->layer : f->model;
    h->seen[layer] |= 1u << (found - first);
    return add_tensor(w, found, layer, from, data, err);
}

/* Of the tensors outside and inside of layers, the first that the files lack. */
static int check_seen(const struct sl_weights *w, const struct hf *h, struct sl_err *err)
{
    const struct family *f = family_of(w);
    if (!w->arch.tied && !h->head)
        return sl_err_set(err, SL_DATA,
                          "tensor 'lm_head.weight' is missing, and config.json does not tie it");
    for (int layer = 0; layer <= w->arch.layers; layer++) {
        bool inside = layer < w->arch.layers;
        const struct rename *names = inside ? f->layer : f->model;
        for (size_t i = 0; i < (inside ? f->n_layer : f->n_model); i++) {
            if (names[i].kind == IGNORED || (names[i].extra & ~h->extras) ||
                h->seen[layer] >> i & 1)
                continue;
            char number[16] = "";
            if (inside)
                snprintf(number, sizeof number, "%d.", layer);
            return sl_err_set(err, SL_DATA, "tensor '%s%s%s%s' is missing", f->prefix,
                              inside ? f->layers : "", number, names[i].theirs);
        }
    }
    return 0;
}

/* ---- files */

/* A file that is not there is SL_NOTFOUND; what is no regular file is never opened, since that may
 * block. */
static int regular(const char *dir, const char *name, char ret_path[SL_PATH_MAX],
                   struct sl_err *err)
{
    struct stat st;
    int rc = sl_path(ret_path, err, "%s/%s", dir, name);
    if (rc)
        return rc;
    if (stat(ret_path, &st))
        return sl_err_set(err, SL_NOTFOUND, "%s is missing", name);
    return S_ISREG(st.st_mode) ? 0 : sl_err_set(err, SL_SPEC, "%s is no regular file", name);
}

static int open_shard(struct hf *h, const char *name, struct sl_err *err)
{
    char path[SL_PATH_MAX], shown[SL_SHOWN_MAX];
    if (!name[0] || strchr(name, '/') || strlen(name) >= SHARD_NAME_MAX)
        return sl_err_set(err, SL_DATA,
                          "the index names a file '%s'; only names of files beside it may be there",
                          sl_shown(name, strlen(name), shown));
    for (int i = 0; i < h->n_shards; i++)
        if (!strcmp(h->shard_name[i], name))
            return 0;
    if (h->n_shards == MAX_SHARDS)
        return sl_err_set(err, SL_SPEC, "the index names more than %d files", MAX_SHARDS);
    int rc = regular(h->dir, name, path, err);
    if (!rc)
        rc = sl_safetensors_open_model(path, &h->shard[h->n_shards], err);
    if (rc)
        return rc;
    h->n_tensors += (size_t)sl_safetensors_count(h->shard[h->n_shards]);
    snprintf(h->shard_name[h->n_shards++], SHARD_NAME_MAX, "%s", name);
    if (h->index && h->n_tensors > json_object_size(h->index))
        return sl_err_set(err, SL_DATA, "the files have more tensors than the index lists");
    return 0;
}

static int open_index(struct hf *h, const char *path, struct sl_err *err)
{
    struct sl_err why = SL_ERR_INIT;
    json_t *root, *file;
    const char *tensor;
    int rc = sl_json_read(path, INDEX_MAX, &root, &why);
    if (rc)
        return sl_err_set(err, rc == SL_SPEC ? SL_DATA : rc, "%s", why.msg);
    h->index = json_incref(json_object_get(root, "weight_map"));
    json_decref(root);
    if (!json_is_object(h->index) || !json_object_size(h->index))
        return sl_err_set(err, SL_DATA, "model.safetensors.index.json has no weight_map");
    json_object_foreach(h->index, tensor, file) {
        char shown[SL_SHOWN_MAX];
        if (!json_is_string(file))
            return sl_err_set(err, SL_DATA, "the index gives no file for '%s'",
                              sl_shown(tensor, strlen(tensor), shown));
        rc = open_shard(h, json_string_value(file), err);
        if (rc)
            return rc;
    }
    return 0;
}

static int open_files(struct hf *h, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    if (!regular(h->dir, "model.safetensors", path, NULL))
        return open_shard(h, "model.safetensors", err);
    if (!regular(h->dir, "model.safetensors.index.json", path, NULL))
        return open_index(h, path, err);
    if (!regular(h->dir, "pytorch_model.bin", path, NULL) ||
        !regular(h->dir, "pytorch_model.bin.index.json", path, NULL))
        return sl_err_set(
            err, SL_SPEC,
            "the weights are in pytorch_model.bin, which is not supported; save the model again "
            "as safetensors (save_pretrained of a recent transformers)");
    return sl_err_set(err, SL_NOTFOUND,
                      "there is neither model.safetensors nor model.safetensors.index.json");
}

/* What the index lists is there: a tensor that it alone knows is missing. */
static int check_index(const struct hf *h, struct sl_err *err)
{
    const char *tensor;
    json_t *file;
    char shown[SL_SHOWN_MAX];
    if (!h->index || h->n_tensors == json_object_size(h->index))
        return 0;
    json_object_foreach(h->index, tensor, file) {
        bool there = false;
        for (int s = 0; s < h->n_shards && !there; s++)
            there = !strcmp(h->shard_name[s], json_string_value(file)) &&
                    sl_safetensors_find(h->shard[s], tensor) >= 0;
        if (!there)
            return sl_err_set(err, SL_DATA, "tensor '%s' is not in %.100s, where the index has it",
                              sl_shown(tensor, strlen(tensor), shown), json_string_value(file));
    }
    return 0;
}

static int read_dir(struct sl_weights *w, struct hf *h, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = regular(h->dir, "config.json", path, err);
    if (!rc)
        rc = sl_hf_read_config(path, &w->arch, &h->extras, err);
    if (!rc && (w->arch.layers < 1 || w->arch.layers > SL_MAX_LAYERS))
        rc = sl_err_set(err, SL_DATA, "config.json: %d layers; 1 to %d are supported",
                        w->arch.layers, SL_MAX_LAYERS);
    if (!rc && !(h->seen = calloc((size_t)w->arch.layers + 1, sizeof *h->seen)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc)
        rc = open_files(h, err);
    for (int s = 0; !rc && s < h->n_shards; s++)
        for (int i = 0; !rc && i < sl_safetensors_count(h->shard[s]); i++)
            rc = take_tensor(w, h, s, i, err);
    if (!rc)
        rc = check_index(h, err);
    return rc ? rc : check_seen(w, h, err);
}

static int open_hf(struct sl_weights *w, const char *path, struct sl_err *err)
{
    struct hf *h = calloc(1, sizeof *h);
    w->impl = h;
    if (!h || !(h->dir = strdup(path)))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return read_dir(w, h, err);
}

static void close_hf(void *impl)
{
    struct hf *h = impl;
    if (!h)
        return;
    for (int s = 0; s < h->n_shards; s++)
        sl_safetensors_close(h->shard[s]);
    json_decref(h->index);
    free(h->seen);
    free(h->dir);
    free(h);
}

static int tokenizer(const void *impl, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    return sl_tokenizer_from_dir(((const struct hf *)impl)->dir, ret_tok, err);
}

static void forget(const void *impl)
{
    const struct hf *h = impl;
    for (int s = 0; s < h->n_shards; s++)
        sl_safetensors_forget(h->shard[s]);
}

const struct sl_format sl_format_hf = {
    "Hugging Face directory", NULL, open_hf, close_hf, tokenizer, forget};
