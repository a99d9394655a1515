/* A byte-level tokenizer small enough to reason about: token b is byte b for b < 256, then one
 * token a merge, then three control tokens. */
#ifndef SL_TESTS_TINY_TOKENIZER_H
#define SL_TESTS_TINY_TOKENIZER_H
#include "engine/text/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TINY_MERGES 6
enum {
    TINY_DO = 256, /* "do" */
    TINY_DOG,      /* "dog" */
    TINY_SP_DOG,   /* " dog" */
    TINY_COLONS,   /* "::" */
    TINY_AA,       /* "aa" */
    TINY_AAAA,     /* "aaaa" */
    TINY_BOS,
    TINY_EOS,
    TINY_MARK, /* "<|im_start|>" */
    TINY_VOCAB
};

/* GPT-2's printable stand-in for a byte, as UTF-8. */
static inline int tiny_alphabet(int byte, char *out)
{
    static int table[256];
    static int ready;
    if (!ready) {
        int next = 256;
        for (int b = 0; b < 256; b++)
            table[b] = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : next++;
        ready = 1;
    }
    int c = table[byte];
    if (c < 128) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | (c >> 6));
    out[1] = (char)(0x80 | (c & 63));
    return 2;
}

static inline struct sl_tokenizer *tiny_tokenizer(int bos_id, int eos_id)
{
    static char bytes[256][2];
    static const char *const merged[] = {"do",
                                         "dog",
                                         "\xc4\xa0"
                                         "dog",
                                         "::",
                                         "aa",
                                         "aaaa",
                                         "<|bos|>",
                                         "<|eos|>",
                                         "<|im_start|>"};
    static const char *const merges[TINY_MERGES] = {"d o", "do g", "\xc4\xa0 dog",
                                                    ": :", "a a",  "aa aa"};
    const char *tokens[TINY_VOCAB];
    unsigned char kind[TINY_VOCAB];
    int token_len[TINY_VOCAB], merge_len[TINY_MERGES];
    struct sl_tokenizer *tok = NULL;
    struct sl_err err = SL_ERR_INIT;

    for (int i = 0; i < TINY_VOCAB; i++) {
        if (i < 256) {
            token_len[i] = tiny_alphabet(i, bytes[i]);
            tokens[i] = bytes[i];
        } else {
            tokens[i] = merged[i - 256];
            token_len[i] = (int)strlen(tokens[i]);
        }
        kind[i] = i >= TINY_BOS ? 3 : 1;
    }
    for (int i = 0; i < TINY_MERGES; i++)
        merge_len[i] = (int)strlen(merges[i]);
    struct sl_tokenizer_spec spec = {.n_tokens = TINY_VOCAB,
                                     .tokens = tokens,
                                     .token_len = token_len,
                                     .kind = kind,
                                     .n_merges = TINY_MERGES,
                                     .merges = merges,
                                     .merge_len = merge_len,
                                     .pre = "gpt-2",
                                     .bos_id = bos_id,
                                     .eos_id = eos_id,
                                     .pad_id = -1,
                                     .unk_id = -1};
    if (sl_tokenizer_new(&spec, &tok, &err)) {
        fprintf(stderr, "tiny tokenizer: %s\n", err.msg);
        abort();
    }
    return tok;
}

#endif
