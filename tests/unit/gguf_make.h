/* Writes small GGUF models in memory, good ones and bad ones, and opens them. */
#ifndef SL_TESTS_GGUF_MAKE_H
#define SL_TESTS_GGUF_MAKE_H
#include "base/buf.h"
#include "engine/weights.h"
#include <stdbool.h>
#include <stdint.h>

#define GM_MAX (8u << 20)
#define GM_ALIGN 32

enum {
    GM_U8 = 0,
    GM_U32 = 4,
    GM_I32 = 5,
    GM_F32 = 6,
    GM_BOOL = 7,
    GM_STRING = 8,
    GM_ARRAY = 9,
    GM_U64 = 10
};
enum { GM_T_F32 = 0, GM_T_F16 = 1, GM_T_Q8_0 = 8 };

struct gm {
    uint32_t version;
    uint64_t n_keys, n_tensors;
    struct sl_buf keys, infos, data;
};

void gm_u32(struct sl_buf *b, uint32_t v);
void gm_u64(struct sl_buf *b, uint64_t v);
void gm_str(struct sl_buf *b, const char *s);
/* Name and type of a key; its value is to be put into m->keys. */
void gm_key(struct gm *m, const char *name, uint32_t type);
void gm_key_u32(struct gm *m, const char *name, uint32_t v);
void gm_key_f32(struct gm *m, const char *name, float v);
void gm_key_str(struct gm *m, const char *name, const char *v);
void gm_key_array(struct gm *m, const char *name, uint32_t type, uint64_t n);
/* Dimensions fastest first, d1 0 for a vector; len bytes of data. */
void gm_tensor(struct gm *m, const char *name, uint32_t type, int64_t d0, int64_t d1,
               const void *data, size_t len);

/* A file in memory with this content, by its path. */
struct gm_path {
    int fd;
    char path[64];
};
void gm_path_open(struct gm_path *f, const void *data, size_t len);
void gm_path_close(struct gm_path *f);

/* The shape of the models below. */
enum { LAYERS = 2, H = 32, HEADS = 4, KV = 2, D = 8, FFN = 64, VOCAB = 12, POSITIONS = 16 };

/* What a test changes in the model that the writers below make. */
struct gm_change {
    const char *arch, *without_tensor, *without_key;
    bool head, bias, q8, no_tokenizer;
    void (*more)(struct gm *m); /* adds keys or tensors */
    const char *pre, *tokenizer_model;
    int tokens;
    float rope_base;
};

/* Element (row, col) of a weight by its Hugging Face order: exact in every type used here. The
 * seeds are in gguf_make.c, beside the names. */
float gm_element(int seed, int row, int col);
/* The caller releases ret_file. */
void gm_llama(const struct gm_change *c, struct sl_buf *ret_file);
void gm_gpt2(const struct gm_change *c, struct sl_buf *ret_file);
/* These fail the test when the model does not open. */
struct sl_weights *gm_open(const void *data, size_t len);
struct sl_weights *gm_open_llama(const struct gm_change *c);

#endif
