#include "tests/fuzz/model.h"
#include "engine/format/weights_format.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

enum { ROW_MAX = 1 << 18 }; /* elements; longer rows are not read */

void fuzz_use_tokenizer(const struct sl_tokenizer *tok)
{
    static const char text[] = "The  dog's 1234 <|im_end|></s>\n\n \t don't caf\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87 "
                               "\xf0\x9f\x98\x80 \xff\xc3 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa {}";
    struct sl_ids ids = {0};
    struct sl_buf out;

    sl_buf_init(&out, 1u << 20);
    for (int specials = 0; specials < 2; specials++)
        if (sl_tokenize(tok, text, sizeof text - 1, specials, &ids, NULL) == 0) {
            for (int i = 0; i < ids.n; i++)
                fuzz_check(ids.id[i] >= 0 && ids.id[i] < sl_tokenizer_vocab(tok));
            sl_detokenize(tok, ids.id, ids.n, specials, &out, NULL);
        }
    fuzz_check(strlen(sl_tokenizer_digest(tok)) == SL_SHA256_HEX);
    fuzz_check(sl_tokenizer_eos(tok) < sl_tokenizer_vocab(tok));
    fuzz_check(sl_tokenizer_bos(tok) < sl_tokenizer_vocab(tok));
    sl_ids_release(&ids);
    sl_buf_release(&out);
}

void fuzz_use_model(const char *path)
{
    static float row[ROW_MAX];
    struct sl_err err = SL_ERR_INIT;
    struct sl_weights *w = NULL;
    struct sl_tokenizer *tok = NULL;
    char digest[SL_SHA256_HEX + 1];
    int rc = sl_weights_open(path, &w, &err);

    if (rc < 0) {
        fuzz_check_error(rc, err);
        return;
    }
    for (int i = 0; i < w->n_tensors; i++) {
        int64_t rows = 0, cols = 0;
        fuzz_check(sl_weights_shape(w, w->tensors[i].name, &rows, &cols, NULL) == 0 && rows > 0 && cols > 0);
        if (cols > ROW_MAX)
            continue;
        fuzz_check(sl_weights_read_f32(w, w->tensors[i].name, 0, 1, row, NULL) == 0);
        fuzz_check(sl_weights_read_f32(w, w->tensors[i].name, rows - 1, 1, row, NULL) == 0);
        fuzz_check(sl_weights_read_f32(w, w->tensors[i].name, rows, 1, row, NULL) < 0);
    }
    fuzz_check(sl_weights_digest(w, digest, NULL) == 0);
    if (sl_weights_tokenizer(w, &tok, NULL) == 0)
        fuzz_use_tokenizer(tok);
    sl_tokenizer_free(tok);
    sl_weights_close(w);
}
