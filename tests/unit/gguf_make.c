#include "tests/unit/gguf_make.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

static void gm_put(struct sl_buf *b, const void *p, size_t n)
{
    if (sl_buf_add(b, p, n) < 0)
        abort();
}

void gm_u32(struct sl_buf *b, uint32_t v)
{
    gm_put(b, &v, sizeof v);
}

void gm_u64(struct sl_buf *b, uint64_t v)
{
    gm_put(b, &v, sizeof v);
}

void gm_str(struct sl_buf *b, const char *s)
{
    gm_u64(b, strlen(s));
    gm_put(b, s, strlen(s));
}

static void gm_init(struct gm *m)
{
    memset(m, 0, sizeof *m);
    m->version = 3;
    sl_buf_init(&m->keys, GM_MAX);
    sl_buf_init(&m->infos, GM_MAX);
    sl_buf_init(&m->data, GM_MAX);
}

static void gm_release(struct gm *m)
{
    sl_buf_release(&m->keys);
    sl_buf_release(&m->infos);
    sl_buf_release(&m->data);
}

void gm_key(struct gm *m, const char *name, uint32_t type)
{
    m->n_keys++;
    gm_str(&m->keys, name);
    gm_u32(&m->keys, type);
}

void gm_key_u32(struct gm *m, const char *name, uint32_t v)
{
    gm_key(m, name, GM_U32);
    gm_u32(&m->keys, v);
}

void gm_key_f32(struct gm *m, const char *name, float v)
{
    gm_key(m, name, GM_F32);
    gm_put(&m->keys, &v, sizeof v);
}

void gm_key_str(struct gm *m, const char *name, const char *v)
{
    gm_key(m, name, GM_STRING);
    gm_str(&m->keys, v);
}

void gm_key_array(struct gm *m, const char *name, uint32_t type, uint64_t n)
{
    gm_key(m, name, GM_ARRAY);
    gm_u32(&m->keys, type);
    gm_u64(&m->keys, n);
}

static void gm_key_strs(struct gm *m, const char *name, int n, const char *const *v)
{
    gm_key_array(m, name, GM_STRING, (uint64_t)n);
    for (int i = 0; i < n; i++)
        gm_str(&m->keys, v[i]);
}

void gm_tensor(struct gm *m, const char *name, uint32_t type, int64_t d0, int64_t d1,
               const void *data, size_t len)
{
    static const char zeros[GM_ALIGN];
    m->n_tensors++;
    gm_str(&m->infos, name);
    gm_u32(&m->infos, d1 ? 2 : 1);
    gm_u64(&m->infos, (uint64_t)d0);
    if (d1)
        gm_u64(&m->infos, (uint64_t)d1);
    gm_u32(&m->infos, type);
    gm_u64(&m->infos, m->data.len);
    gm_put(&m->data, data, len);
    gm_put(&m->data, zeros, -m->data.len & (GM_ALIGN - 1));
}

/* The whole file; the caller releases ret_file. */
static void gm_file(const struct gm *m, struct sl_buf *ret_file)
{
    static const char zeros[GM_ALIGN];
    sl_buf_init(ret_file, GM_MAX);
    gm_put(ret_file, "GGUF", 4);
    gm_u32(ret_file, m->version);
    gm_u64(ret_file, m->n_tensors);
    gm_u64(ret_file, m->n_keys);
    gm_put(ret_file, m->keys.p, m->keys.len);
    gm_put(ret_file, m->infos.p, m->infos.len);
    gm_put(ret_file, zeros, -ret_file->len & (GM_ALIGN - 1));
    gm_put(ret_file, m->data.p, m->data.len);
}

void gm_path_open(struct gm_path *f, const void *data, size_t len)
{
    f->fd = memfd_create("gguf", MFD_CLOEXEC);
    if (f->fd < 0 || pwrite(f->fd, data, len, 0) != (ssize_t)len)
        abort();
    snprintf(f->path, sizeof f->path, "/proc/self/fd/%d", f->fd);
}

void gm_path_close(struct gm_path *f)
{
    close(f->fd);
}

float gm_element(int seed, int row, int col)
{
    return (float)((seed * 31 + row * 7 + col) % 100);
}

/* Where llama.cpp's converter puts row r of Q or K: reshape(heads, 2, d/2).swapaxes(1, 2). */
static int converted_row(int r)
{
    int head = r / D, half = r % D / (D / 2), i = r % (D / 2);
    return head * D + i * 2 + half;
}

static void put_matrix(struct gm *m, const struct gm_change *c, const char *name, int seed,
                       int rows, int cols, bool permuted)
{
    static unsigned char raw[4 * FFN * FFN * 3];
    size_t len = 0;
    if (c->without_tensor && !strcmp(name, c->without_tensor))
        return;
    for (int s = 0; s < rows; s++) {
        int row = s;
        for (int r = 0; permuted && r < rows; r++)
            if (converted_row(r) == s)
                row = r;
        for (int col = 0; col < cols; col++) {
            float v = gm_element(seed, row, col);
            if (c->q8 && col % 32 == 0) {
                raw[len++] = 0x00; /* scale 1 in half precision */
                raw[len++] = 0x3C;
            }
            if (c->q8) {
                raw[len++] = (unsigned char)(int)v;
            } else {
                memcpy(raw + len, &v, sizeof v);
                len += sizeof v;
            }
        }
    }
    gm_tensor(m, name, c->q8 ? GM_T_Q8_0 : GM_T_F32, cols, rows, raw, len);
}

static void put_vector(struct gm *m, const struct gm_change *c, const char *name, int seed, int n,
                       bool permuted)
{
    float v[3 * FFN];
    if (c->without_tensor && !strcmp(name, c->without_tensor))
        return;
    for (int i = 0; i < n; i++)
        v[permuted ? converted_row(i) : i] = gm_element(seed, i, 0);
    gm_tensor(m, name, GM_T_F32, n, 0, v, (size_t)n * sizeof *v);
}

static void put_tokenizer(struct gm *m, const struct gm_change *c)
{
    static const char *const tokens[] = {"<s>", "a", "b", "ab", "Ġ", "Ġa", "c",
                                         "<e>", "d", "e", "f",  "g", "h"};
    static const char *const merges[] = {"a b", "Ġ a"};
    gm_key_str(m, "tokenizer.ggml.model", c->tokenizer_model ? c->tokenizer_model : "gpt2");
    if (!c->pre || *c->pre)
        gm_key_str(m, "tokenizer.ggml.pre", c->pre ? c->pre : "smollm");
    int n = c->tokens ? c->tokens : VOCAB;
    gm_key_strs(m, "tokenizer.ggml.tokens", n, tokens);
    gm_key_array(m, "tokenizer.ggml.token_type", GM_I32, (uint64_t)n);
    for (int i = 0; i < n; i++)
        gm_u32(&m->keys, tokens[i][0] == '<' ? 3 : 1);
    gm_key_strs(m, "tokenizer.ggml.merges", 2, merges);
    gm_key_u32(m, "tokenizer.ggml.eos_token_id", 7);
}

static void put_key_u32(struct gm *m, const struct gm_change *c, const char *name, uint32_t v)
{
    if (!c->without_key || strcmp(name, c->without_key))
        gm_key_u32(m, name, v);
}

void gm_llama(const struct gm_change *c, struct sl_buf *ret_file)
{
    struct gm m;
    gm_init(&m);
    gm_key_str(&m, "general.architecture", c->arch ? c->arch : "llama");
    gm_key_str(&m, "general.name", "Tiny");
    put_key_u32(&m, c, "llama.block_count", LAYERS);
    put_key_u32(&m, c, "llama.embedding_length", H);
    put_key_u32(&m, c, "llama.feed_forward_length", FFN);
    put_key_u32(&m, c, "llama.attention.head_count", HEADS);
    put_key_u32(&m, c, "llama.attention.head_count_kv", KV);
    put_key_u32(&m, c, "llama.context_length", POSITIONS);
    gm_key_f32(&m, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gm_key_f32(&m, "llama.rope.freq_base", c->rope_base > 0 ? c->rope_base : 10000.0f);
    if (!c->no_tokenizer)
        put_tokenizer(&m, c);
    put_matrix(&m, c, "token_embd.weight", 1, VOCAB, H, false);
    for (int i = 0; i < LAYERS; i++) {
        char name[64];
#define NAME(s) (snprintf(name, sizeof name, "blk.%d.%s", i, s), name)
        put_matrix(&m, c, NAME("attn_q.weight"), 10 + i, HEADS * D, H, true);
        put_matrix(&m, c, NAME("attn_k.weight"), 20 + i, KV * D, H, true);
        put_matrix(&m, c, NAME("attn_v.weight"), 30 + i, KV * D, H, false);
        if (c->bias) {
            put_vector(&m, c, NAME("attn_q.bias"), 11 + i, HEADS * D, true);
            put_vector(&m, c, NAME("attn_k.bias"), 21 + i, KV * D, true);
            put_vector(&m, c, NAME("attn_v.bias"), 31 + i, KV * D, false);
        }
        put_matrix(&m, c, NAME("attn_output.weight"), 40 + i, H, HEADS * D, false);
        put_matrix(&m, c, NAME("ffn_gate.weight"), 50 + i, FFN, H, false);
        put_matrix(&m, c, NAME("ffn_up.weight"), 60 + i, FFN, H, false);
        put_matrix(&m, c, NAME("ffn_down.weight"), 70 + i, H, FFN, false);
        put_vector(&m, c, NAME("attn_norm.weight"), 80 + i, H, false);
        put_vector(&m, c, NAME("ffn_norm.weight"), 90 + i, H, false);
    }
    put_vector(&m, c, "output_norm.weight", 2, H, false);
    if (c->head)
        put_matrix(&m, c, "output.weight", 3, VOCAB, H, false);
    if (c->more)
        c->more(&m);
    gm_file(&m, ret_file);
    gm_release(&m);
}

void gm_gpt2(const struct gm_change *c, struct sl_buf *ret_file)
{
    struct gm m;
    gm_init(&m);
    m.version = 2;
    gm_key_str(&m, "general.architecture", "gpt2");
    gm_key_u32(&m, "gpt2.block_count", LAYERS);
    gm_key_u32(&m, "gpt2.embedding_length", H);
    gm_key_u32(&m, "gpt2.feed_forward_length", FFN);
    gm_key_u32(&m, "gpt2.attention.head_count", HEADS);
    gm_key_u32(&m, "gpt2.context_length", POSITIONS);
    gm_key_f32(&m, "gpt2.attention.layer_norm_epsilon", 1e-5f);
    put_tokenizer(&m, c);
    put_matrix(&m, c, "token_embd.weight", 1, VOCAB, H, false);
    put_matrix(&m, c, "position_embd.weight", 4, POSITIONS, H, false);
    for (int i = 0; i < LAYERS; i++) {
        char name[64];
        put_matrix(&m, c, NAME("attn_qkv.weight"), 10 + i, 3 * H, H, false);
        put_vector(&m, c, NAME("attn_qkv.bias"), 20 + i, 3 * H, false);
        put_matrix(&m, c, NAME("attn_output.weight"), 30 + i, H, H, false);
        put_vector(&m, c, NAME("attn_output.bias"), 40 + i, H, false);
        put_matrix(&m, c, NAME("ffn_up.weight"), 50 + i, FFN, H, false);
        put_vector(&m, c, NAME("ffn_up.bias"), 60 + i, FFN, false);
        put_matrix(&m, c, NAME("ffn_down.weight"), 70 + i, H, FFN, false);
        put_vector(&m, c, NAME("ffn_down.bias"), 80 + i, H, false);
        put_vector(&m, c, NAME("attn_norm.weight"), 90 + i, H, false);
        put_vector(&m, c, NAME("attn_norm.bias"), 91 + i, H, false);
        put_vector(&m, c, NAME("ffn_norm.weight"), 92 + i, H, false);
        put_vector(&m, c, NAME("ffn_norm.bias"), 93 + i, H, false);
    }
    put_vector(&m, c, "output_norm.weight", 2, H, false);
    put_vector(&m, c, "output_norm.bias", 3, H, false);
    gm_file(&m, ret_file);
    gm_release(&m);
}

struct sl_weights *gm_open(const void *data, size_t len)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_weights *w;
    struct gm_path f;
    gm_path_open(&f, data, len);
    if (sl_weights_open(f.path, &w, &err) < 0)
        fail_msg("%s", err.msg);
    gm_path_close(&f);
    return w;
}

struct sl_weights *gm_open_llama(const struct gm_change *c)
{
    struct sl_buf file;
    gm_llama(c, &file);
    struct sl_weights *w = gm_open(file.p, file.len);
    sl_buf_release(&file);
    return w;
}
