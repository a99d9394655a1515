/* GGUF files: keys, tensors, the model they make, its weights and its tokenizer. */
#include "engine/format/gguf.h"
#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/model.h"

static void use_gguf(const struct sl_gguf *g)
{
    struct sl_gguf_str text;
    int64_t i;
    double d;

    for (int k = 0; k < g->n_keys; k++) {
        char *name = fuzz_text(g->keys[k].name.p, g->keys[k].name.len);
        sl_gguf_int(g, name, &i, NULL);
        sl_gguf_num(g, name, &d, NULL);
        if (sl_gguf_text(g, name, &text, NULL) == 0)
            free(fuzz_text(text.p, text.len));
        free(name);
    }
    for (int k = 0; k < g->n_tensors; k++)
        fuzz_check(g->tensors[k].n_dims <= SL_GGUF_MAX_DIMS && g->tensors[k].data >= g->map.data &&
                   g->tensors[k].data <= g->map.data + g->map.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_gguf *g = NULL;
    struct sl_tokenizer *tok = NULL;
    int rc = sl_gguf_open(fuzz_file(data, size), &g, &err);

    if (rc < 0) {
        fuzz_check_error(rc, err);
        return 0;
    }
    use_gguf(g);
    if (sl_gguf_tokenizer(g, &tok, NULL) == 0)
        fuzz_use_tokenizer(tok);
    sl_tokenizer_free(tok);
    sl_gguf_close(g);
    fuzz_use_model(fuzz_file(data, size));
    return 0;
}
