/* SentencePiece models, which its library gets only after they were checked. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *tok = NULL;
    int rc = sl_tokenizer_from_sentencepiece(data, size, NULL, &tok, &err);

    if (rc == 0)
        fuzz_use_tokenizer(tok);
    else
        fuzz_check_error(rc, err);
    sl_tokenizer_free(tok);
    return 0;
}
