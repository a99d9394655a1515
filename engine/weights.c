#include "engine/weights.h"
#include "base/file.h"
#include "engine/text/tokenizer.h"
#include "engine/format/weights_format.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_FFN (1 << 20)
#define MAX_HEAD_DIM 1024
#define MAX_POSITIONS (1 << 24)
#define HEAD_BYTES 512 /* of a file, for telling its format */

/* One format per file plugs in here. */
static const struct sl_format *const formats[] = {&sl_format_gguf, &sl_format_nemo};
#define SUPPORTED "supported: GGUF, Hugging Face directory, NeMo (.nemo)"

/* Formats that are known but not read, by what stands at an offset of the file. */
static const struct {
    size_t at, len;
    const char *magic, *name;
} others[] = {
    {8, 1, "{", "a safetensors file without its config.json (name the directory of both)"},
    {0, 4, "PK\3\4", "a zip archive, such as a PyTorch checkpoint"},
    {0, 4, "\x28\xb5\x2f\xfd", "a zstd file"},
    {0, 2, "\x80\x02", "a Python pickle"},
    {0, 4, "lmgg", "a GGML file from before GGUF"},
    {0, 4, "tjgg", "a GGML file from before GGUF"},
};

const char *sl_shown(const char *text, size_t len, char ret_text[SL_SHOWN_MAX])
{
    size_t n = len < SL_SHOWN_MAX ? len : SL_SHOWN_MAX - 1;
    for (size_t i = 0; i < n; i++)
        ret_text[i] = text[i] >= 32 && text[i] < 127 ? text[i] : '?';
    ret_text[n] = '\0';
    return ret_text;
}

size_t sl_tensor_row_bytes(const struct sl_tensor *t)
{
    const struct sl_dtype_info *info = sl_dtype_info(t->dtype);
    return (size_t)(t->cols / info->block) * (size_t)info->block_bytes;
}

int sl_weights_add(struct sl_weights *w, const struct sl_tensor *tensor, struct sl_err *err)
{
    if (w->n_tensors == w->cap_tensors) {
        int cap = w->cap_tensors * 2 + 64;
        struct sl_tensor *p = realloc(w->tensors, (size_t)cap * sizeof *p);
        if (!p)
            return sl_err_set(err, SL_NOMEM, "out of memory for %d tensors", cap);
        w->tensors = p;
        w->cap_tensors = cap;
    }
    w->tensors[w->n_tensors++] = *tensor;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct sl_tensor *)a)->name, ((const struct sl_tensor *)b)->name);
}

struct sl_tensor *sl_weights_find(const struct sl_weights *w, const char *name)
{
    struct sl_tensor want;
    if (w->n_tensors == 0 || strlen(name) >= sizeof want.name)
        return NULL;
    memcpy(want.name, name, strlen(name) + 1);
    return bsearch(&want, w->tensors, (size_t)w->n_tensors, sizeof want, by_name);
}

/* ---- what must hold of every model, whatever its format */

static bool within(int v, int low, int high)
{
    return v >= low && v <= high;
}

static int check_arch(const struct sl_arch *a, struct sl_err *err)
{
    const struct {
        const char *what;
        int value, low, high;
    } limits[] = {
        {"layers", a->layers, 1, SL_MAX_LAYERS},
        {"hidden size", a->hidden, 1, SL_MAX_HIDDEN},
        {"feed-forward size", a->ffn, 1, MAX_FFN},
        {"vocabulary", a->vocab, 1, SL_MAX_VOCAB},
        {"positions", a->max_positions, 1, MAX_POSITIONS},
        {"heads", a->heads, 1, SL_MAX_HIDDEN},
        {"key-value heads", a->kv_heads, 1, a->heads},
        {"head size", a->head_dim, 1, MAX_HEAD_DIM},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!within(limits[i].value, limits[i].low, limits[i].high))
            return sl_err_set(err, SL_DATA, "%s is %d; %d to %d is supported", limits[i].what,
                              limits[i].value, limits[i].low, limits[i].high);
    if (a->heads % a->kv_heads)
        return sl_err_set(err, SL_DATA, "%d heads cannot share %d key-value heads", a->heads,
                          a->kv_heads);
    if ((int64_t)a->heads * a->head_dim > SL_MAX_HIDDEN)
        return sl_err_set(err, SL_DATA, "%d heads of %d are more than %d", a->heads, a->head_dim,
                          SL_MAX_HIDDEN);
    if (!(a->norm_eps > 0 && a->norm_eps < 1))
        return sl_err_set(err, SL_DATA, "the norm's epsilon is %g", (double)a->norm_eps);
    if (a->learned_pos)
        return 0;
    if (!within(a->rope_dims, 2, a->head_dim) || a->rope_dims % 2 || a->head_dim % 2)
        return sl_err_set(err, SL_DATA, "rotary embedding over %d of %d dimensions", a->rope_dims,
                          a->head_dim);
    if (!(a->rope_base > 1 && isfinite(a->rope_base)))
        return sl_err_set(err, SL_DATA, "the rotary base is %g", (double)a->rope_base);
    if (a->rope_scaling != SL_ROPE_PLAIN && !(a->rope_factor >= 1 && a->rope_factor <= 1e6f))
        return sl_err_set(err, SL_DATA, "the rope scaling factor is %g", (double)a->rope_factor);
    return 0;
}

/* Finds the tensor, compares its shape and marks it. */
static int expect(struct sl_weights *w, bool required, int64_t rows, int64_t cols, const char *name,
                  struct sl_err *err)
{
    struct sl_tensor *t = sl_weights_find(w, name);
    if (!t && !required)
        return 0;
    if (!t)
        return sl_err_set(err, SL_DATA, "weight '%s' is missing", name);
    if (t->rows != rows || t->cols != cols)
        return sl_err_set(
            err, SL_DATA, "weight '%s' is [%lld, %lld]; the architecture makes it [%lld, %lld]",
            name, (long long)t->rows, (long long)t->cols, (long long)rows, (long long)cols);
    t->expected = true;
    return 0;
}

static int check_layer(struct sl_weights *w, int layer, struct sl_err *err)
{
    const struct sl_arch *a = &w->arch;
    int64_t h = a->hidden, q = (int64_t)a->heads * a->head_dim, f = a->ffn;
    int64_t kv = (int64_t)a->kv_heads * a->head_dim;
    bool gpt2 = a->family == SL_GPT2, gated = a->activation == SL_SWIGLU;
    const struct {
        const char *name;
        bool required;
        int64_t rows, cols;
    } parts[] = {
        {"norm1.weight", true, 1, h},
        {"norm1.bias", gpt2, 1, h},
        {"norm2.weight", true, 1, h},
        {"norm2.bias", gpt2, 1, h},
        {"q", true, q, h},
        {"q.bias", gpt2, 1, q},
        {"k", true, kv, h},
        {"k.bias", gpt2, 1, kv},
        {"v", true, kv, h},
        {"v.bias", gpt2, 1, kv},
        {"q_norm", a->qk_norm, 1, a->head_dim},
        {"k_norm", a->qk_norm, 1, a->head_dim},
        {"o", true, h, q},
        {"o.bias", gpt2, 1, h},
        {"up", true, f, h},
        {"up.bias", gpt2, 1, f},
        {"down", true, h, f},
        {"down.bias", gpt2, 1, h},
        {"gate", gated, f, h},
        {"gate.bias", false, 1, f},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[SL_TENSOR_NAME_MAX];
        snprintf(name, sizeof name, "layers.%d.%s", layer, parts[i].name);
        int rc = expect(w, parts[i].required, parts[i].rows, parts[i].cols, name, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The tensors are those of the architecture, all of them and no others: one that is not understood
 * changes what the model computes. */
static int check_tensors(struct sl_weights *w, struct sl_err *err)
{
    const struct sl_arch *a = &w->arch;
    int rc = expect(w, true, a->vocab, a->hidden, "embed", err);
    if (rc == 0 && a->learned_pos)
        rc = expect(w, true, a->max_positions, a->hidden, "pos_embed", err);
    if (rc == 0)
        rc = expect(w, true, 1, a->hidden, "norm.weight", err);
    if (rc == 0)
        rc = expect(w, !a->rms_norm, 1, a->hidden, "norm.bias", err);
    if (rc == 0)
        rc = expect(w, !a->tied, a->vocab, a->hidden, "head", err);
    for (int i = 0; rc == 0 && i < a->layers; i++)
        rc = check_layer(w, i, err);
    for (int i = 0; rc == 0 && i < w->n_tensors; i++)
        if (!w->tensors[i].expected)
            rc = sl_err_set(err, SL_SPEC, "weight '%s' does not belong to a model of %d layers",
                            w->tensors[i].name, a->layers);
    return rc;
}

/* ---- opening */

static int tell_format(const char *path, const struct sl_format **ret_format, struct sl_err *err)
{
    unsigned char head[HEAD_BYTES] = {0};
    struct stat st;
    if (stat(path, &st) < 0)
        return errno == ENOENT ? sl_err_set(err, SL_NOTFOUND, "no such file")
                               : sl_err_errno(err, "cannot be opened");
    if (S_ISDIR(st.st_mode)) {
        char config[SL_PATH_MAX];
        if (sl_path(config, err, "%s/config.json", path) || !sl_file_exists(config))
            return sl_err_set(err, SL_SPEC,
                              "a directory without config.json is no Hugging Face model (" SUPPORTED
                              ")");
        *ret_format = &sl_format_hf;
        return 0;
    }
    if (!S_ISREG(st.st_mode))
        return sl_err_set(err, SL_SPEC, "not a regular file");
    FILE *f = fopen(path, "rbe");
    if (!f)
        return sl_err_errno(err, "cannot be opened");
    size_t n = fread(head, 1, sizeof head, f);
    bool failed = ferror(f);
    fclose(f);
    if (failed)
        return sl_err_errno(err, "cannot be read");
    for (size_t i = 0; i < sizeof formats / sizeof(void *); i++) {
        if (formats[i]->probe(head, n)) {
            *ret_format = formats[i];
            return 0;
        }
    }
    if (n == 0)
        return sl_err_set(err, SL_DATA, "the file is empty");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!memcmp(head + others[i].at, others[i].magic, others[i].len))
            return sl_err_set(err, SL_SPEC, "%s, which is not supported (" SUPPORTED ")",
                              others[i].name);
    return sl_err_set(err, SL_DATA, "no model format that is known (" SUPPORTED ")");
}

static int open_checked(struct sl_weights *w, const char *path, struct sl_err *err)
{
    int rc = tell_format(path, &w->format, err);
    if (rc == 0)
        rc = w->format->open(w, path, err);
    if (rc == 0)
        rc = check_arch(&w->arch, err);
    if (rc < 0)
        return rc;
    qsort(w->tensors, (size_t)w->n_tensors, sizeof *w->tensors, by_name);
    for (int i = 1; i < w->n_tensors; i++)
        if (!strcmp(w->tensors[i - 1].name, w->tensors[i].name))
            return sl_err_set(err, SL_DATA, "weight '%s' comes twice", w->tensors[i].name);
    return check_tensors(w, err);
}

int sl_weights_open(const char *path, struct sl_weights **ret_weights, struct sl_err *err)
{
    struct sl_weights *w = calloc(1, sizeof *w);
    if (!w || !(w->path = strdup(path))) {
        free(w);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    int rc = open_checked(w, path, err);
    if (rc < 0) {
        sl_weights_close(w);
        return sl_err_wrap(err, rc, "model %s", path);
    }
    *ret_weights = w;
    return 0;
}

void sl_weights_close(struct sl_weights *w)
{
    if (!w)
        return;
    atomic_store(&w->give_up, true);
    if (w->hashing)
        pthread_join(w->hasher, NULL);
    if (w->format)
        w->format->close(w->impl);
    free(w->tensors);
    free(w->path);
    free(w);
}

void sl_weights_forget(const struct sl_weights *w)
{
    w->format->forget(w->impl);
}

const struct sl_arch *sl_weights_arch(const struct sl_weights *w)
{
    return &w->arch;
}

int sl_weights_tokenizer(const struct sl_weights *w, struct sl_tokenizer **ret_tok,
                         struct sl_err *err)
{
    struct sl_tokenizer *t;
    int rc = w->format->tokenizer(w->impl, &t, err);
    if (rc == 0 && sl_tokenizer_vocab(t) > w->arch.vocab) {
        rc = sl_err_set(err, SL_DATA, "the tokenizer has %d tokens, the embedding %d rows",
                        sl_tokenizer_vocab(t), w->arch.vocab);
        sl_tokenizer_free(t);
    }
    if (rc < 0)
        return sl_err_wrap(err, rc, "model %s", w->path);
    *ret_tok = t;
    return 0;
}
