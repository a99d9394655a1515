/* Ids of texts, for comparison with another tokenizer.
 *
 * usage: tok_dump FILE.gguf [--no-specials] <texts
 * Texts come as a 32-bit little-endian length and that many bytes; each gives one line of ids. */
#include "engine/gguf.h"
#include "engine/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int dump(const struct sl_tokenizer *t, bool specials, struct sl_err *err)
{
    struct sl_ids ids = {0};
    char *text = malloc(SL_TOKENIZER_TEXT_MAX);
    uint32_t len;
    int rc = text ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    while (rc == 0 && fread(&len, sizeof len, 1, stdin) == 1) {
        if (len > SL_TOKENIZER_TEXT_MAX || fread(text, 1, len, stdin) != len) {
            rc = sl_err_set(err, SL_DATA, "the input ends in the middle of a text");
            break;
        }
        ids.n = 0;
        rc = sl_tokenize(t, text, len, specials, &ids, err);
        for (int i = 0; i < ids.n; i++)
            printf("%s%d", i ? " " : "", ids.id[i]);
        putchar('\n');
    }
    free(text);
    sl_ids_release(&ids);
    return rc;
}

int main(int argc, char **argv)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_gguf *g = NULL;
    struct sl_tokenizer *t = NULL;
    if (argc < 2) {
        fprintf(stderr, "usage: tok_dump FILE.gguf [--no-specials] <texts\n");
        return 2;
    }
    bool specials = argc < 3 || strcmp(argv[2], "--no-specials") != 0;
    int rc = sl_gguf_open(argv[1], &g, &err);
    if (rc == 0)
        rc = sl_gguf_tokenizer(g, &t, &err);
    if (rc == 0)
        rc = dump(t, specials, &err);
    sl_tokenizer_free(t);
    sl_gguf_close(g);
    if (rc < 0)
        fprintf(stderr, "tok_dump: %s: %s\n", argv[1], err.msg);
    return rc < 0;
}
