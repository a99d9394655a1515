/* tokenizer.json; and, when there is a NUL in the input, vocab.json before it and merges.txt behind. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/model.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct sl_text_ends ends = {.bos = "<s>", .eos = "<e>", .bos_id = -1, .eos_id = -1};
    const uint8_t *nul = memchr(data, '\0', size);
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *tok = NULL;
    int rc;

    if (nul)
        rc = sl_tokenizer_from_vocab_merges((const char *)data, (size_t)(nul - data), (const char *)nul + 1,
                                            size - (size_t)(nul - data) - 1, NULL, &tok, &err);
    else
        rc = sl_tokenizer_from_json((const char *)data, size, size % 2 ? &ends : NULL, &tok, &err);
    if (rc == 0)
        fuzz_use_tokenizer(tok);
    else
        fuzz_check_error(rc, err);
    sl_tokenizer_free(tok);
    return 0;
}
