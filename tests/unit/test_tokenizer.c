/* The tokenizer on vocabularies made here. That the ids are the reference library's on real text is
 * shown by tests/golden/tokenizer.sh.
 * Long because it has a vocabulary of its own for each rule. */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

#define MAX_TOKENS 1024
#define CONTROL 3
#define USER 4

/* Ids 0..255 are the bytes; merges and special tokens follow. */
struct vocab {
    struct sl_tokenizer_spec spec;
    char *token[MAX_TOKENS], *merge[MAX_TOKENS];
    int token_len[MAX_TOKENS], merge_len[MAX_TOKENS];
    unsigned char kind[MAX_TOKENS];
};

static int add_token(struct vocab *v, const char *text, unsigned char kind)
{
    int id = v->spec.n_tokens++;
    assert_in_range(id, 0, MAX_TOKENS - 1);
    v->token[id] = strdup(text);
    v->token_len[id] = (int)strlen(text);
    v->kind[id] = kind;
    return id;
}

static int add_merge(struct vocab *v, const char *left, const char *right)
{
    char text[512];
    int rank = v->spec.n_merges++;
    snprintf(text, sizeof text, "%s %s", left, right);
    v->merge[rank] = strdup(text);
    v->merge_len[rank] = (int)strlen(text);
    snprintf(text, sizeof text, "%s%s", left, right);
    return add_token(v, text, 1);
}

static struct vocab *vocab_new(const char *pre)
{
    struct vocab *v = calloc(1, sizeof *v);
    int next = 256;
    v->spec = (struct sl_tokenizer_spec){.tokens = (const char *const *)v->token,
                                         .token_len = v->token_len,
                                         .kind = v->kind,
                                         .merges = (const char *const *)v->merge,
                                         .merge_len = v->merge_len,
                                         .pre = pre,
                                         .bos_id = -1,
                                         .eos_id = -1,
                                         .pad_id = -1,
                                         .unk_id = -1};
    for (int b = 0; b < 256; b++) {
        int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        int c = printable ? b : next++;
        char text[3] = {(char)c, 0, 0};
        if (c >= 128) {
            text[0] = (char)(0xC0 | c >> 6);
            text[1] = (char)(0x80 | (c & 63));
        }
        add_token(v, text, 1);
    }
    return v;
}

static void vocab_free(struct vocab *v)
{
    for (int i = 0; i < v->spec.n_tokens; i++)
        free(v->token[i]);
    for (int i = 0; i < v->spec.n_merges; i++)
        free(v->merge[i]);
    free(v);
}

static struct sl_tokenizer *tokenizer_new(const struct vocab *v)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t;
    if (sl_tokenizer_new(&v->spec, &t, &err) < 0)
        fail_msg("%s", err.msg);
    return t;
}

static void expect_ids(const struct sl_tokenizer *t, const char *text, bool specials, int n,
                       const int *want)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_ids ids = {0};
    if (sl_tokenize(t, text, strlen(text), specials, &ids, &err) < 0)
        fail_msg("%s", err.msg);
    bool same = ids.n == n;
    for (int i = 0; same && i < n; i++)
        same = ids.id[i] == want[i];
    if (!same) {
        print_error("'%s' gave", text);
        for (int i = 0; i < ids.n; i++)
            print_error(" %d", ids.id[i]);
        fail_msg("other ids than expected");
    }
    sl_ids_release(&ids);
}
#define EXPECT(t, text, specials, ...)                                                             \
    expect_ids(t, text, specials, sizeof((int[]){__VA_ARGS__}) / sizeof(int), (int[]){__VA_ARGS__})

static void test_rank_then_place(void **state)
{
    struct vocab *v = vocab_new("gpt-2");
    (void)state;
    int bc = add_merge(v, "b", "c"), ab = add_merge(v, "a", "b"), aa = add_merge(v, "a", "a");
    int abc = add_merge(v, "a", "bc");
    struct sl_tokenizer *t = tokenizer_new(v);
    EXPECT(t, "abc", true, abc); /* bc has the lower rank, so not ab + c */
    EXPECT(t, "abab", true, ab, ab);
    EXPECT(t, "aaa", true, aa, 'a'); /* leftmost first */
    EXPECT(t, "aaaa", true, aa, aa);
    EXPECT(t, "aab", true, 'a', ab); /* ab before aa */
    EXPECT(t, "bcbc", true, bc, bc);
    EXPECT(t, "a b", true, 'a', ' ', 'b');
    expect_ids(t, "", true, 0, NULL);
    sl_tokenizer_free(t);
    vocab_free(v);
}

static bool is_token(const char *token, const char *text, int len)
{
    return (int)strlen(token) == len && !memcmp(token, text, (size_t)len);
}

/* What merging means, by its definition. Part i of the result is text from edge[i] to edge[i + 1].
 */
static int merge_plainly(const struct vocab *v, const char *text, int *edge)
{
    int n = (int)strlen(text);
    for (int i = 0; i <= n; i++)
        edge[i] = i;
    for (;;) {
        int best = -1, best_rank = v->spec.n_merges;
        for (int i = 0; i + 1 < n; i++) {
            char pair[130];
            int len = snprintf(pair, sizeof pair, "%.*s %.*s", edge[i + 1] - edge[i],
                               text + edge[i], edge[i + 2] - edge[i + 1], text + edge[i + 1]);
            for (int r = 0; r < best_rank; r++)
                if (is_token(v->merge[r], pair, len)) {
                    best = i;
                    best_rank = r;
                }
        }
        if (best < 0)
            return n;
        memmove(edge + best + 1, edge + best + 2, (size_t)(n - best - 1) * sizeof *edge);
        n--;
    }
}

static void test_short_and_long_pieces(void **state)
{
    struct vocab *v = vocab_new("gpt-2");
    struct sl_rng rng = sl_rng_new(7, 0);
    (void)state;
    /* Merges of random earlier tokens over three letters, each pair once. */
    while (v->spec.n_merges < 120) {
        char left[64], right[64], whole[128];
        bool known = false;
        int first = v->spec.n_tokens - v->spec.n_merges;
        for (int side = 0; side < 2; side++) {
            int pick = (int)sl_rng_below(&rng, 3 + (uint64_t)v->spec.n_merges);
            snprintf(side ? right : left, 64, "%s",
                     v->token[pick < 3 ? 'a' + pick : first + pick - 3]);
        }
        snprintf(whole, sizeof whole, "%s%s", left, right);
        for (int i = first; i < v->spec.n_tokens; i++)
            known = known || !strcmp(v->token[i], whole);
        if (!known && strlen(whole) < 12)
            add_merge(v, left, right);
    }
    struct sl_tokenizer *t = tokenizer_new(v);
    for (int round = 0; round < 400; round++) {
        char text[201];
        int len = 1 + (int)sl_rng_below(&rng, 200), edge[201], want[200];
        if (round < 100)
            len = 44 + round % 10; /* around where the method changes */
        for (int i = 0; i < len; i++)
            text[i] = (char)('a' + (int)sl_rng_below(&rng, 3));
        text[len] = '\0';
        int n = merge_plainly(v, text, edge);
        for (int i = 0; i < n; i++)
            for (int id = 0; id < v->spec.n_tokens; id++)
                if (is_token(v->token[id], text + edge[i], edge[i + 1] - edge[i]))
                    want[i] = id;
        expect_ids(t, text, true, n, want);
    }
    sl_tokenizer_free(t);
    vocab_free(v);
}

static void test_special_tokens(void **state)
{
    struct vocab *v = vocab_new("gpt-2");
    (void)state;
    int im = add_token(v, "<|im|>", CONTROL), im2 = add_token(v, "<|im|>x", CONTROL);
    int user = add_token(v, "<u>", USER);
    struct sl_tokenizer *t = tokenizer_new(v);
    EXPECT(t, "a<|im|>b", true, 'a', im, 'b');
    EXPECT(t, "<|im|>x<|im|>", true, im2, im); /* the longest */
    EXPECT(t, "<|im|>", false, '<', '|', 'i', 'm', '|', '>');
    EXPECT(t, "<u><|im|", false, user, '<', '|', 'i', 'm', '|');
    EXPECT(t, "<<u>>", true, '<', user, '>');
    sl_tokenizer_free(t);
    vocab_free(v);
}

static void test_pieces(void **state)
{
    (void)state;
    static const struct {
        const char *pre;
        bool digits_merge, case_matters;
    } cases[] = {{"smollm", false, true},
                 {"gpt-2", true, true},
                 {"llama-bpe", true, false},
                 {"qwen2", false, false}};
    for (int i = 0; i < 4; i++) {
        struct vocab *v = vocab_new(cases[i].pre);
        int d12 = add_merge(v, "1", "2"), sa = add_merge(v, "Ġ", "a"), apo = add_merge(v, "S", "a");
        struct sl_tokenizer *t = tokenizer_new(v);
        if (cases[i].digits_merge)
            EXPECT(t, "12", true, d12);
        else
            EXPECT(t, "12", true, '1', '2');
        EXPECT(t, " a", true, sa);
        EXPECT(t, "  a", true, ' ', sa); /* the last space belongs to the word */
        if (cases[i].case_matters)
            EXPECT(t, "'Sa", true, '\'', apo);
        else
            EXPECT(t, "'Sa", true, '\'', 'S', 'a');
        sl_tokenizer_free(t);
        vocab_free(v);
    }
}

/* Llama 3: a piece that is a token needs no merges to get there. */
static void test_ignore_merges(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct vocab *v = vocab_new(i ? "llama-bpe" : "gpt-2");
        int word = add_token(v, "xyz", 1);
        struct sl_tokenizer *t = tokenizer_new(v);
        if (i)
            EXPECT(t, "xyz", true, word);
        else
            EXPECT(t, "xyz", true, 'x', 'y', 'z');
        EXPECT(t, "xyzz", true, 'x', 'y', 'z', 'z');
        sl_tokenizer_free(t);
        vocab_free(v);
    }
}

static void test_detokenize(void **state)
{
    struct vocab *v = vocab_new("gpt-2");
    struct sl_err err = SL_ERR_INIT;
    struct sl_ids ids = {0};
    struct sl_buf text;
    const char given[] = "caf\xC3\xA9 \xE4\xBD\xA0\n\x01\xF0\x9F\x98\x80 end";
    (void)state;
    int end = add_token(v, "<end>", CONTROL), user = add_token(v, "<u>", USER);
    struct sl_tokenizer *t = tokenizer_new(v);
    sl_buf_init(&text, 64);
    assert_int_equal(sl_tokenize(t, given, strlen(given), true, &ids, &err), 0);
    assert_int_equal(sl_ids_add(&ids, end), 0);
    assert_int_equal(sl_ids_add(&ids, user), 0);
    assert_int_equal(sl_detokenize(t, ids.id, ids.n, false, &text, &err), 0);
    assert_int_equal(text.len, strlen(given) + 3);
    assert_memory_equal(text.p, given, strlen(given));
    sl_buf_reset(&text);
    assert_int_equal(sl_detokenize(t, ids.id, ids.n, true, &text, &err), 0);
    assert_string_equal(text.p + strlen(given), "<end><u>");
    /* Failures leave the text as it was. */
    const int32_t wrong[] = {'a', v->spec.n_tokens};
    sl_buf_reset(&text);
    assert_int_equal(sl_buf_adds(&text, "kept"), 0);
    assert_int_equal(sl_detokenize(t, wrong, 2, true, &text, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "outside the vocabulary"));
    assert_string_equal(text.p, "kept");
    sl_err_clear(&err);
    for (int i = 0; i < 4; i++)
        assert_int_equal(sl_detokenize(t, ids.id, ids.n - 2, true, &text, &err),
                         i < 3 ? 0 : SL_NOMEM);
    assert_int_equal(text.len, 4 + 3 * strlen(given));
    sl_buf_release(&text);
    sl_ids_release(&ids);
    sl_tokenizer_free(t);
    vocab_free(v);
}

/* As Python's bytes.decode('utf-8', 'replace'). */
static void test_repair(void **state)
{
#define S(s) s, sizeof s - 1
    static const struct {
        const char *in;
        size_t in_len;
        const char *out;
        size_t out_len;
    } cases[] = {
        {S("abc"), S("abc")},
        {S("\xff"), S("\xef\xbf\xbd")},
        {S("\xc0\x80"), S("\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\xe2\x82"), S("\xef\xbf\xbd")},
        {S("\xe2\x82\x61"), S("\xef\xbf\xbd\x61")},
        {S("\xf0\x90\x80"), S("\xef\xbf\xbd")},
        {S("\xf0\x80\x80\x80"), S("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\xed\xa0\x80"), S("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\xf4\x90\x80\x80"), S("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\x61\x80\x62"), S("\x61\xef\xbf\xbd\x62")},
        {S("\xf1\x80\x80\xe1\x80\xc2\x62\x80\xc2"),
         S("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\x62\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\xe0\x9f\xbf"), S("\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")},
        {S("\xef\xbf\xbd"), S("\xef\xbf\xbd")},
        {S("\xf0\x9f\x98\x80\xf0\x9f\x98"), S("\xf0\x9f\x98\x80\xef\xbf\xbd")},
        {S("12345678\x80"), S("12345678\xef\xbf\xbd")},
        {S("a\0b\xff"), S("a\0b\xef\xbf\xbd")},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_buf b;
        bool valid = cases[i].in_len == cases[i].out_len;
        sl_buf_init(&b, 100);
        assert_int_equal(sl_utf8_repair(cases[i].in, cases[i].in_len, &b), 0);
        assert_int_equal(b.len, cases[i].out_len);
        assert_memory_equal(b.p, cases[i].out, b.len);
        assert_int_equal(sl_utf8_valid(cases[i].in, cases[i].in_len) == cases[i].in_len,
                         valid && !memcmp(cases[i].in, cases[i].out, b.len));
        assert_int_equal(sl_utf8_valid(b.p, b.len), b.len);
        sl_buf_release(&b);
    }
}

/* A byte without a token of its own leaves no trace, and its neighbours may merge. */
static void test_missing_byte(void **state)
{
    struct vocab *v = vocab_new("gpt-2");
    (void)state;
    int ab = add_merge(v, "a", "b");
    strcpy(v->token['_'], "\"");
    struct sl_tokenizer *t = tokenizer_new(v);
    EXPECT(t, "a_", true, 'a');
    expect_ids(t, "___", true, 0, NULL);
    sl_tokenizer_free(t);
    /* Letters, so that they share a piece. */
    free(v->token['z']);
    v->token['z'] = strdup("\"");
    t = tokenizer_new(v);
    EXPECT(t, "azb", true, ab);
    sl_tokenizer_free(t);
    vocab_free(v);
}

static void test_long_texts(void **state)
{
    static const char *const patterns[] = {"a",    "ab", " ",   "\n", "=",        " a",
                                           "\xff", "<",  "<|e", "1",  "\xc3\xa9", "'s"};
    const size_t len = SL_TOKENIZER_TEXT_MAX / 4;
    char *text = malloc(SL_TOKENIZER_TEXT_MAX + 1);
    struct sl_err err = SL_ERR_INIT;
    struct sl_ids ids = {0};
    (void)state;
    struct vocab *v = vocab_new("smollm");
    add_token(v, "<|end|>", CONTROL);
    add_token(v, "<<<<<<<<<|", CONTROL);
    add_merge(v, "a", "a");
    add_merge(v, "aa", "aa");
    add_merge(v, "aaaa", "aaaa");
    add_merge(v, "Ġ", "Ġ");
    struct sl_tokenizer *t = tokenizer_new(v);
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        size_t step = strlen(patterns[i]);
        for (size_t k = 0; k < len; k++)
            text[k] = patterns[i][k % step];
        ids.n = 0;
        int64_t start = sl_boot_us();
        if (sl_tokenize(t, text, len, true, &ids, &err) < 0)
            fail_msg("%s", err.msg);
        if (sl_boot_us() - start > 20 * 1000000)
            fail_msg("'%s' repeated to %zu bytes took %.1f s", patterns[i], len,
                     (double)(sl_boot_us() - start) * 1e-6);
        if (i == 0)
            assert_int_equal(ids.n, len / 8);
    }
    /* One byte too many is refused and changes nothing. */
    memset(text, 'a', SL_TOKENIZER_TEXT_MAX + 1);
    int had = ids.n;
    assert_int_equal(sl_tokenize(t, text, SL_TOKENIZER_TEXT_MAX + 1, true, &ids, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "4194305 bytes"));
    assert_int_equal(ids.n, had);
    sl_ids_release(&ids);
    sl_tokenizer_free(t);
    vocab_free(v);
    free(text);
}

static void test_threads(void **state)
{
    struct vocab *v = vocab_new("smollm");
    static char text[20000];
    struct sl_ids want = {0};
    struct sl_rng rng = sl_rng_new(3, 0);
    int wrong = 0;
    (void)state;
    add_merge(v, "a", "b");
    add_merge(v, "ab", "c");
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "abc 1."[sl_rng_below(&rng, 6)];
    struct sl_tokenizer *t = tokenizer_new(v);
    assert_int_equal(sl_tokenize(t, text, sizeof text, true, &want, NULL), 0);
#pragma omp parallel for num_threads(4) reduction(+ : wrong)
    for (int i = 0; i < 40; i++) {
        struct sl_ids ids = {0};
        if (sl_tokenize(t, text, sizeof text, true, &ids, NULL) < 0 || ids.n != want.n ||
            memcmp(ids.id, want.id, (size_t)ids.n * sizeof *ids.id))
            wrong++;
        sl_ids_release(&ids);
    }
    assert_int_equal(wrong, 0);
    sl_ids_release(&want);
    sl_tokenizer_free(t);
    vocab_free(v);
}

static void test_digest(void **state)
{
    char seen[6][SL_SHA256_HEX + 1];
    (void)state;
    for (int i = 0; i < 6; i++) {
        struct vocab *v = vocab_new(i == 1 ? "smollm" : "gpt-2");
        add_merge(v, "a", "b");
        if (i == 2)
            add_merge(v, "b", "c");
        if (i == 3)
            v->spec.eos_id = 5;
        if (i == 4)
            v->kind[7] = CONTROL;
        struct sl_tokenizer *t = tokenizer_new(v);
        snprintf(seen[i], sizeof seen[i], "%s", sl_tokenizer_digest(t));
        assert_true(sl_sha256_valid(seen[i]));
        for (int k = 0; k < i; k++) /* the last is the first again */
            assert_int_equal(!strcmp(seen[i], seen[k]), i == 5 && k == 0);
        sl_tokenizer_free(t);
        vocab_free(v);
    }
}

static void refused(const struct vocab *v, int code, const char *says)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    assert_int_equal(sl_tokenizer_new(&v->spec, &t, &err), code);
    assert_null(t);
    if (!strstr(err.msg, says))
        fail_msg("'%s' does not say '%s'", err.msg, says);
}

static void test_bad_specs(void **state)
{
    struct vocab *v = vocab_new("gpt-2");
    (void)state;
    v->spec.pre = "tekken";
    refused(v, SL_SPEC, "'tekken' is not supported (supported: smollm, gpt-2, llama-bpe, qwen2)");
    v->spec.pre = "gpt-2";
    v->spec.eos_id = 256;
    refused(v, SL_DATA, "eos token is 256, but there are 256 tokens");
    v->spec.eos_id = -1;
    static const char *const merges[] = {"ab", "a b c", " ab", "ab ", "a b", "a ä"};
    static const char *const says[] = {
        "two parts",        "two parts", "two parts", "two parts", "'ab', which is no token",
        "which is no token"};
    v->spec.n_merges = 1;
    for (int i = 0; i < 6; i++) {
        v->merge[0] = (char *)merges[i];
        v->merge_len[0] = (int)strlen(merges[i]);
        refused(v, SL_DATA, says[i]);
    }
    v->spec.n_merges = 0;
    v->token_len[3] = -1;
    refused(v, SL_DATA, "token 3");
    v->token_len[3] = 1;
    int n = v->spec.n_tokens;
    v->spec.n_tokens = 0;
    refused(v, SL_DATA, "0 tokens");
    v->spec.n_tokens = n;
    vocab_free(v);
    sl_tokenizer_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_then_place), cmocka_unit_test(test_short_and_long_pieces),
        cmocka_unit_test(test_special_tokens),  cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_ignore_merges),   cmocka_unit_test(test_detokenize),
        cmocka_unit_test(test_repair),          cmocka_unit_test(test_missing_byte),
        cmocka_unit_test(test_long_texts),      cmocka_unit_test(test_threads),
        cmocka_unit_test(test_digest),          cmocka_unit_test(test_bad_specs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
