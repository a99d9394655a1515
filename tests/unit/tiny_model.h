/* Tiny random models for tests: written as a GGUF file, opened as any model is; and the same model
 * computed in double precision, row by row, by code that shares nothing with the engine but the
 * file reader. */
#ifndef SL_TESTS_TINY_MODEL_H
#define SL_TESTS_TINY_MODEL_H
#include "engine/model.h"

struct tiny {
    bool gpt2;
    int layers, hidden, heads, kv_heads, ffn, vocab, positions;
    bool untied, qkv_bias;    /* Llama type only */
    const char *rope_scaling; /* NULL, "linear" (factor 4) or "llama3" (factor 32, base 500000) */
    uint64_t seed;
    const char *without; /* a GGUF tensor to leave out, or NULL */
};

/* Writes the model to a new file under TMPDIR. ret_path holds at least 256 bytes; the caller
 * unlinks it. Ends the program when it cannot. */
void tiny_write(const struct tiny *t, char ret_path[256]);

/* An opened tiny model with its backend, its weights and its file (removed by tiny_close). */
struct tiny_model {
    struct sl_backend *be;
    struct sl_weights *weights;
    struct sl_model *model;
    char path[256];
};
void tiny_open(const struct tiny *t, struct tiny_model *ret_model);
void tiny_close(struct tiny_model *t);

struct reference;
struct reference *reference_new(const struct sl_weights *w);
void reference_free(struct reference *r);
/* Loss of each counted token in row order (losses, may be NULL), and the sum over them. prompts
 * [all virtual tokens, hidden], slot_prompts as in struct sl_batch. */
double reference_loss(const struct reference *r, const struct sl_row *rows, int n_rows,
                      const int *slot_prompts, const double *prompts, double *losses);
/* Logits [vocab] after the row's last token. */
void reference_logits(const struct reference *r, const struct sl_row *row, const int *slot_prompts,
                      const double *prompts, double *logits);

#endif
