/* Ids of texts, for comparison with another tokenizer.
 *
 * usage: tok_dump FILE.gguf|FILE.model|DIRECTORY [--no-specials|--decode] <texts
 * Texts come as a 32-bit little-endian length and that many bytes; each gives one line of ids. With
 * --decode each gives the text of its ids, in the form that texts come in. */
#include "base/file.h"
#include "engine/format/gguf.h"
#include "engine/text/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int dump(const struct sl_tokenizer *t, bool specials, bool decode, struct sl_err *err)
{
    struct sl_ids ids = {0};
    struct sl_buf back;
    char *text = malloc(SL_TOKENIZER_TEXT_MAX);
    uint32_t len;
    int rc = text ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    sl_buf_init(&back, 4 * SL_TOKENIZER_TEXT_MAX);
    while (rc == 0 && fread(&len, sizeof len, 1, stdin) == 1) {
        if (len > SL_TOKENIZER_TEXT_MAX || fread(text, 1, len, stdin) != len) {
            rc = sl_err_set(err, SL_DATA, "the input ends in the middle of a text");
            break;
        }
        ids.n = 0;
        rc = sl_tokenize(t, text, len, specials, &ids, err);
        if (rc == 0 && decode) {
            sl_buf_reset(&back);
            rc = sl_detokenize(t, ids.id, ids.n, false, &back, err);
            len = (uint32_t)back.len;
            fwrite(&len, sizeof len, 1, stdout);
            fwrite(back.p, 1, back.len, stdout);
            continue;
        }
        for (int i = 0; i < ids.n; i++)
            printf("%s%d", i ? " " : "", ids.id[i]);
        putchar('\n');
    }
    free(text);
    sl_buf_release(&back);
    sl_ids_release(&ids);
    return rc;
}

static int open_gguf(const char *path, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_gguf *g = NULL;
    int rc = sl_gguf_open(path, &g, err);
    if (rc == 0)
        rc = sl_gguf_tokenizer(g, ret_tok, err);
    sl_gguf_close(g);
    return rc;
}

static int open_model(const char *path, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    struct sl_map map = {0};
    int rc = sl_map_open(path, &map, err);
    if (rc == 0)
        rc = sl_tokenizer_from_sentencepiece(map.data, map.len, NULL, ret_tok, err);
    sl_map_close(&map);
    return rc;
}

int main(int argc, char **argv)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    struct stat st;
    if (argc < 2) {
        fprintf(stderr, "usage: tok_dump FILE.gguf|FILE.model|DIRECTORY "
                        "[--no-specials|--decode] <texts\n");
        return 2;
    }
    const char *path = argv[1], *dot = strrchr(path, '.'), *how = argc > 2 ? argv[2] : "";
    int rc;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        rc = sl_tokenizer_from_dir(path, &t, &err);
    else if (dot && !strcmp(dot, ".model"))
        rc = open_model(path, &t, &err);
    else
        rc = open_gguf(path, &t, &err);
    if (rc == 0)
        rc = dump(t, strcmp(how, "--no-specials") != 0, !strcmp(how, "--decode"), &err);
    sl_tokenizer_free(t);
    if (rc < 0)
        fprintf(stderr, "tok_dump: %s: %s\n", path, err.msg);
    return rc < 0;
}
