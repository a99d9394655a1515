#include "tests/unit/tiny_model.h"
#include "base/buf.h"
#include "base/rng.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY_FILE_MAX (64u << 20)
#define GGUF_ALIGN 32

/* GGUF's numbers for the types of keys */
enum { KEY_U32 = 4, KEY_F32 = 6, KEY_STRING = 8 };

static void die(const char *what)
{
    fprintf(stderr, "tiny model: %s\n", what);
    exit(2);
}

struct writer {
    struct sl_buf keys, infos, data;
    int n_keys, n_tensors;
    const struct tiny *t;
    struct sl_rng rng;
};

static void add(struct sl_buf *b, const void *p, size_t n)
{
    if (sl_buf_add(b, p, n))
        die("out of memory");
}

static void add_u32(struct sl_buf *b, uint32_t v)
{
    add(b, &v, sizeof v);
}

static void add_u64(struct sl_buf *b, uint64_t v)
{
    add(b, &v, sizeof v);
}

static void add_string(struct sl_buf *b, const char *s)
{
    add_u64(b, strlen(s));
    add(b, s, strlen(s));
}

static void key(struct writer *w, const char *name, uint32_t type)
{
    char full[96];
    snprintf(full, sizeof full, "%s%s", name[0] == '.' ? (w->t->gpt2 ? "gpt2" : "llama") : "",
             name);
    add_string(&w->keys, full);
    add_u32(&w->keys, type);
    w->n_keys++;
}

static void key_u32(struct writer *w, const char *name, int v)
{
    key(w, name, KEY_U32);
    add_u32(&w->keys, (uint32_t)v);
}

static void key_f32(struct writer *w, const char *name, float v)
{
    key(w, name, KEY_F32);
    add(&w->keys, &v, sizeof v);
}

static void key_string(struct writer *w, const char *name, const char *v)
{
    key(w, name, KEY_STRING);
    add_string(&w->keys, v);
}

static void align(struct writer *w)
{
    static const char zeros[GGUF_ALIGN];
    add(&w->data, zeros, (GGUF_ALIGN - w->data.len % GGUF_ALIGN) % GGUF_ALIGN);
}

/* Random values; the random stream does not depend on which tensor is left out. */
static void tensor(struct writer *w, const char *name, int64_t rows, int64_t cols, double mean,
                   double std)
{
    bool skip = w->t->without && !strcmp(w->t->without, name);
    if (!skip) {
        add_string(&w->infos, name);
        add_u32(&w->infos, cols ? 2 : 1);
        if (cols)
            add_u64(&w->infos, (uint64_t)cols);
        add_u64(&w->infos, (uint64_t)rows);
        add_u32(&w->infos, 0); /* F32 */
        add_u64(&w->infos, w->data.len);
        w->n_tensors++;
    }
    for (int64_t i = 0; i < rows * (cols ? cols : 1); i++) {
        float v = (float)(mean + std * sl_rng_normal(&w->rng));
        if (!skip)
            add(&w->data, &v, sizeof v);
    }
    align(w);
}

/* Llama 3's scaling comes as divisors of the frequencies, as llama.cpp's converter computes them.
 */
static void rope_divisors(struct writer *w)
{
    int dims = w->t->hidden / w->t->heads;
    add_string(&w->infos, "rope_freqs.weight");
    add_u32(&w->infos, 1);
    add_u64(&w->infos, (uint64_t)dims / 2);
    add_u32(&w->infos, 0); /* F32 */
    add_u64(&w->infos, w->data.len);
    w->n_tensors++;
    for (int i = 0; i < dims / 2; i++) {
        double wavelength = 2 * M_PI * pow(500000, 2.0 * i / dims),
               smooth = (8192 / wavelength - 1) / 3;
        float divisor = (float)(wavelength < 2048   ? 1
                                : wavelength > 8192 ? 32
                                                    : 1 / ((1 - smooth) / 32 + smooth));
        add(&w->data, &divisor, sizeof divisor);
    }
    align(w);
}

static void layer(struct writer *w, int l)
{
    const struct tiny *t = w->t;
    int64_t h = t->hidden, kv = h / t->heads * t->kv_heads;
    double std = 1 / sqrt((double)h), std_ffn = 1 / sqrt((double)t->ffn);
    char name[64];
#define NAME(part) (snprintf(name, sizeof name, "blk.%d.%s", l, part), name)
    tensor(w, NAME("attn_norm.weight"), h, 0, 1, .2);
    tensor(w, NAME("ffn_norm.weight"), h, 0, 1, .2);
    if (t->gpt2) {
        tensor(w, NAME("attn_norm.bias"), h, 0, 0, .2);
        tensor(w, NAME("ffn_norm.bias"), h, 0, 0, .2);
        tensor(w, NAME("attn_qkv.weight"), h + 2 * kv, h, 0, std * 1.5);
        tensor(w, NAME("attn_qkv.bias"), h + 2 * kv, 0, 0, .2);
        tensor(w, NAME("attn_output.bias"), h, 0, 0, .1);
        tensor(w, NAME("ffn_up.bias"), t->ffn, 0, 0, .2);
        tensor(w, NAME("ffn_down.bias"), h, 0, 0, .1);
    } else {
        tensor(w, NAME("attn_q.weight"), h, h, 0, std * 1.5);
        tensor(w, NAME("attn_k.weight"), kv, h, 0, std * 1.5);
        tensor(w, NAME("attn_v.weight"), kv, h, 0, std * 1.5);
        tensor(w, NAME("ffn_gate.weight"), t->ffn, h, 0, std);
    }
    if (t->qkv_bias) {
        tensor(w, NAME("attn_q.bias"), h, 0, 0, .3);
        tensor(w, NAME("attn_k.bias"), kv, 0, 0, .3);
        tensor(w, NAME("attn_v.bias"), kv, 0, 0, .3);
    }
    tensor(w, NAME("attn_output.weight"), h, h, 0, std);
    tensor(w, NAME("ffn_up.weight"), t->ffn, h, 0, std);
    tensor(w, NAME("ffn_down.weight"), h, t->ffn, 0, std_ffn);
#undef NAME
}

static void keys(struct writer *w)
{
    const struct tiny *t = w->t;
    key_string(w, "general.architecture", t->gpt2 ? "gpt2" : "llama");
    key_string(w, "general.name", "tiny random model");
    key_u32(w, ".block_count", t->layers);
    key_u32(w, ".embedding_length", t->hidden);
    key_u32(w, ".feed_forward_length", t->ffn);
    key_u32(w, ".context_length", t->positions);
    key_u32(w, ".attention.head_count", t->heads);
    if (t->gpt2) {
        key_f32(w, ".attention.layer_norm_epsilon", 1e-5f);
        return;
    }
    key_u32(w, ".vocab_size", t->vocab);
    key_u32(w, ".attention.head_count_kv", t->kv_heads);
    key_f32(w, ".attention.layer_norm_rms_epsilon", 1e-5f);
    key_u32(w, ".rope.dimension_count", t->hidden / t->heads);
    bool llama3 = t->rope_scaling && !strcmp(t->rope_scaling, "llama3");
    key_f32(w, ".rope.freq_base", llama3 ? 500000 : 10000);
    if (t->rope_scaling && !llama3) {
        key_string(w, ".rope.scaling.type", t->rope_scaling);
        key_f32(w, ".rope.scaling.factor", 4);
    }
}

void tiny_write(const struct tiny *t, char ret_path[256])
{
    struct writer w = {.t = t, .rng = sl_rng_new(t->seed, 0)};
    struct sl_buf file;
    sl_buf_init(&w.keys, TINY_FILE_MAX);
    sl_buf_init(&w.infos, TINY_FILE_MAX);
    sl_buf_init(&w.data, TINY_FILE_MAX);
    sl_buf_init(&file, TINY_FILE_MAX);
    keys(&w);
    tensor(&w, "token_embd.weight", t->vocab, t->hidden, 0, .5);
    if (t->gpt2)
        tensor(&w, "position_embd.weight", t->positions, t->hidden, 0, .3);
    if (t->rope_scaling && !strcmp(t->rope_scaling, "llama3"))
        rope_divisors(&w);
    for (int l = 0; l < t->layers; l++)
        layer(&w, l);
    tensor(&w, "output_norm.weight", t->hidden, 0, 1, .2);
    if (t->gpt2)
        tensor(&w, "output_norm.bias", t->hidden, 0, 0, .2);
    if (t->untied)
        tensor(&w, "output.weight", t->vocab, t->hidden, 0, .5);

    add(&file, "GGUF", 4);
    add_u32(&file, 3);
    add_u64(&file, (uint64_t)w.n_tensors);
    add_u64(&file, (uint64_t)w.n_keys);
    add(&file, w.keys.p, w.keys.len);
    add(&file, w.infos.p, w.infos.len);
    while (file.len % GGUF_ALIGN)
        add(&file, "", 1);
    add(&file, w.data.p, w.data.len);

    const char *dir = getenv("TMPDIR");
    snprintf(ret_path, 256, "%s/tiny-model-XXXXXX", dir ? dir : "/tmp");
    int fd = mkstemp(ret_path);
    if (fd < 0 || write(fd, file.p, file.len) != (ssize_t)file.len || close(fd))
        die("cannot write the model file");
    sl_buf_release(&w.keys);
    sl_buf_release(&w.infos);
    sl_buf_release(&w.data);
    sl_buf_release(&file);
}

void tiny_open(const struct tiny *t, struct tiny_model *ret_model)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend_opts opts = {.threads = 2};
    struct tiny_model m = {0};
    tiny_write(t, m.path);
    if (sl_weights_open(m.path, &m.weights, &err) || sl_cpu_ops.open(&opts, &m.be, &err) ||
        sl_model_new(m.weights, &sl_cpu_ops, m.be, &m.model, &err))
        die(err.msg);
    *ret_model = m;
}

void tiny_close(struct tiny_model *t)
{
    sl_model_free(t->model);
    sl_cpu_ops.close(t->be);
    sl_weights_close(t->weights);
    unlink(t->path);
}
