/* A base model on disk: its architecture and its tensors, whatever the file format.
 *
 * Files are mapped, not copied. One format per source file (gguf_model.c, hf.c; .nemo later)
 * fills the same table, under the canonical names below, so that model.c never learns where a
 * weight came from. What an architecture lacks is simply not in the table. Everything read from a
 * file is checked against its length before use: a hostile or truncated file gives SL_DATA and a
 * message with the file's name. What is known but not supported (formats, architectures, tensor
 * types, a tensor with no place in the architecture) is SL_SPEC and named. A model is complete once
 * open: every tensor that its architecture needs is there, in the right shape.
 *
 * Canonical names, [rows, cols] row-major, a linear layer as [out, in]; %d is the layer:
 *   embed                           [vocab, hidden]
 *   pos_embed                       [positions, hidden] (GPT-2)
 *   layers.%d.norm1.weight, .bias   [hidden], before attention
 *   layers.%d.norm2.weight, .bias   [hidden], before the feed-forward part
 *   layers.%d.q, .k, .v             [heads * head_dim or kv_heads * head_dim, hidden], with
 *                                   "layers.%d.q.bias" and so on where the model has them; rows of
 *                                   Q and K in the half-split rotary order of Hugging Face
 *   layers.%d.q_norm, .k_norm       [head_dim] (Qwen3)
 *   layers.%d.o, .o.bias            [hidden, heads * head_dim], [hidden]
 *   layers.%d.gate, .gate.bias      [ffn, hidden], [ffn] (Llama)
 *   layers.%d.up, .up.bias          [ffn, hidden], [ffn]
 *   layers.%d.down, .down.bias      [hidden, ffn], [hidden]
 *   norm.weight, norm.bias          [hidden]
 *   head                            [vocab, hidden] (absent: tied to embed) */
#ifndef SL_ENGINE_WEIGHTS_H
#define SL_ENGINE_WEIGHTS_H
#include "base/digest.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_MAX_LAYERS 512
#define SL_MAX_HIDDEN 65536
#define SL_MAX_VOCAB (1 << 20)
#define SL_MAX_TENSORS 65536

enum sl_family { SL_GPT2, SL_LLAMA };
enum sl_activation { SL_GELU_TANH, SL_GELU_ERF, SL_SWIGLU };
/* The rope_scaling of config.json or the GGUF's rope.scaling keys. */
enum sl_rope_scaling { SL_ROPE_PLAIN, SL_ROPE_LINEAR, SL_ROPE_LLAMA3 };

struct sl_arch {
    enum sl_family family;
    enum sl_activation activation;
    int layers, hidden, heads, kv_heads, head_dim, ffn, vocab, max_positions;
    int sliding_window; /* > 0: the model has more positions than max_positions, but farther ones
                           would see only this many keys, which is not supported */
    int padding_rows;   /* of the stored vocabulary, which no token has: left out of vocab (NeMo) */
    float norm_eps;
    bool rms_norm;    /* RMSNorm, else LayerNorm */
    bool learned_pos; /* pos_embed, else rotary */
    bool tied;        /* output projection is embed */
    bool qk_norm;     /* RMSNorm of each head of Q and K (Qwen3) */
    float rope_base;
    int rope_dims; /* leading dimensions of a head that rotate */
    enum sl_rope_scaling rope_scaling;
    float rope_factor, rope_low_freq, rope_high_freq;
    int rope_original_positions;
    char name[128]; /* general.name or model_type: for people */
};

struct sl_weights;

/* Opens a model file or directory; the format is told by its content. */
int sl_weights_open(const char *path, struct sl_weights **ret_weights, struct sl_err *err);
void sl_weights_close(struct sl_weights *w);
const struct sl_arch *sl_weights_arch(const struct sl_weights *w); /* valid until close */
/* sha256 over the sha256 of each tensor's name, type, shape and bytes (rows in the order above), as hexadecimal texts that
 * end in a zero, in the order of the names: names the base model in prompt tables. Computed at the first call (reads
 * everything, on half the processors) and kept. */
int sl_weights_digest(struct sl_weights *w, char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err);
/* Begins with it on a thread of its own, for which sl_weights_digest then waits: hashing a large model takes longer than
 * loading it. Everything here may be called meanwhile; close gives it up. */
void sl_weights_digest_begin(struct sl_weights *w);

/* Shape of a tensor by canonical name: 1-D tensors have rows = 1. SL_NOTFOUND if the model has
 * none. */
int sl_weights_shape(const struct sl_weights *w, const char *name, int64_t *ret_rows,
                     int64_t *ret_cols, struct sl_err *err);
/* Dequantises rows [row0, row0+n_rows) to out, row-major fp32, using up to all OpenMP threads. */
int sl_weights_read_f32(const struct sl_weights *w, const char *name, int64_t row0, int64_t n_rows,
                        float *out, struct sl_err *err);

/* Where a tensor's bytes lie, when they are plain numbers in one regular grid; false: they are not, or
 * there is no such tensor, and read_f32 has to do. Good until close. */
struct sl_raw;
bool sl_weights_raw(const struct sl_weights *w, const char *name, struct sl_raw *ret_raw);

/* What was read of the files so far no longer counts as memory in use, so that loading takes a
 * model's weights and one layer of its files. */
void sl_weights_forget(const struct sl_weights *w);

/* The tokenizer that the model carries, see tokenizer.h; SL_NOTFOUND if it carries none. Caller
 * frees. */
struct sl_tokenizer;
int sl_weights_tokenizer(const struct sl_weights *w, struct sl_tokenizer **ret_tok,
                         struct sl_err *err);

#endif
