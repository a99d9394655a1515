/* Tokenizers from files: what is refused and how it is said, hostile files, BOS and EOS. That the
 * ids are the reference libraries' is shown by tests/golden/tokenizer_json.sh.
 * Long because each refusal has its case. */
#include "base/file.h"
#include "engine/text/spm_model.h"
#include "engine/text/tokenizer.h"
#include "tests/unit/tiny_tokenizer.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

#ifdef __SANITIZE_ADDRESS__
#define HOSTILE_MAX_US 30000000
#else
#define HOSTILE_MAX_US 8000000 /* on a slow and busy machine; what it guards against takes minutes */
#endif
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define ADDED(id, text, special)                                                                   \
    "{\"id\":" #id ",\"content\":\"" text "\",\"single_word\":false,\"lstrip\":false,"             \
    "\"rstrip\":false,\"normalized\":false,\"special\":" #special "}"

/* Processor time, so that a busy machine does not count. */
static int64_t used_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- a tokenizer.json: token b is byte b, 256 is "ab" */

struct parts {
    const char *normalizer, *pre, *model, *vocab, *merges, *added; /* NULL: the usual */
};

static void put_vocab(struct sl_buf *b, const char *more)
{
    sl_buf_addc(b, '{');
    for (int i = 0; i < 256; i++) {
        char text[2];
        int n = tiny_alphabet(i, text);
        sl_buf_addf(b, "\"%s%.*s\":%d,", *text == '"' || *text == '\\' ? "\\" : "", n, text, i);
    }
    sl_buf_addf(b, "\"ab\":256%s}", more ? more : "");
}

static void make_json(struct sl_buf *b, const struct parts *p)
{
    sl_buf_init(b, 64u << 20);
    sl_buf_addf(b,
                "{\"version\":\"1.0\",\"normalizer\":%s,\"pre_tokenizer\":%s,\"added_tokens\":%s,",
                p->normalizer ? p->normalizer : "null", p->pre ? p->pre : BYTE_LEVEL,
                p->added ? p->added : "[]");
    sl_buf_addf(b, "\"model\":{%s,\"merges\":%s,\"vocab\":",
                p->model ? p->model : "\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null",
                p->merges ? p->merges : "[[\"a\",\"b\"]]");
    put_vocab(b, p->vocab);
    sl_buf_adds(b, "}}");
}

static struct sl_tokenizer *open_parts(const struct parts *p, const struct sl_text_ends *ends)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    struct sl_buf b;
    make_json(&b, p);
    if (sl_tokenizer_from_json(b.p, b.len, ends, &t, &err) < 0)
        fail_msg("%s", err.msg);
    sl_buf_release(&b);
    return t;
}

static void expect_ids(const struct sl_tokenizer *t, const char *text, int n, const int *want)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_ids ids = {0};
    if (sl_tokenize(t, text, strlen(text), true, &ids, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(ids.n, n);
    for (int i = 0; i < n; i++)
        assert_int_equal(ids.id[i], want[i]);
    sl_ids_release(&ids);
}
#define EXPECT(t, text, ...)                                                                       \
    expect_ids(t, text, sizeof((int[]){__VA_ARGS__}) / sizeof(int), (int[]){__VA_ARGS__})

static void refused_text(const char *text, size_t len, int code, const char *why)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    int64_t start = used_us();
    assert_int_equal(sl_tokenizer_from_json(text, len, NULL, &t, &err), code);
    assert_null(t);
    assert_in_range(used_us() - start, 0, HOSTILE_MAX_US);
    if (!strstr(err.msg, why))
        fail_msg("said \"%s\", not \"%s\"", err.msg, why);
}

static void refused(const struct parts *p, int code, const char *why)
{
    struct sl_buf b;
    make_json(&b, p);
    refused_text(b.p, b.len, code, why);
    sl_buf_release(&b);
}

static void test_ids(void **state)
{
    (void)state;
    struct sl_tokenizer *t = open_parts(&(struct parts){0}, NULL);
    EXPECT(t, "abab c", 256, 256, ' ', 'c');
    assert_int_equal(sl_tokenizer_bos(t), -1);
    assert_int_equal(sl_tokenizer_vocab(t), 257);
    sl_tokenizer_free(t);
    t = open_parts(&(struct parts){.merges = "[\"a b\"]", .model = "\"ignore_merges\":false"},
                   NULL);
    EXPECT(t, "ab", 256);
    sl_tokenizer_free(t);
    /* e and U+0301 are one character in form C: C3 A9 */
    t = open_parts(&(struct parts){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":["
                                                 "{\"type\":\"NFC\"}]}"},
                   NULL);
    EXPECT(t, "e\xCC\x81", 0xC3, 0xA9);
    sl_tokenizer_free(t);
}

static void test_ends(void **state)
{
    (void)state;
    const struct parts p = {.added = "[" ADDED(257, "<s>", true) "," ADDED(258, "</s>", true) "]"};
    struct sl_tokenizer *t =
        open_parts(&p, &(struct sl_text_ends){"<s>", NULL, 5, 258}); /* a name goes before an id */
    assert_int_equal(sl_tokenizer_bos(t), 257);
    assert_int_equal(sl_tokenizer_eos(t), 258);
    EXPECT(t, "<s>ab</s>", 257, 256, 258); /* BOS only where the text has it */
    sl_tokenizer_free(t);
    struct sl_err err = SL_ERR_INIT;
    struct sl_buf b;
    make_json(&b, &p);
    assert_int_equal(
        sl_tokenizer_from_json(b.p, b.len, &(struct sl_text_ends){"<x>", NULL, -1, -1}, &t, &err),
        SL_DATA);
    assert_non_null(strstr(err.msg, "BOS token '<x>'"));
    sl_buf_release(&b);
}

static void test_unsupported(void **state)
{
    (void)state;
    static const struct {
        struct parts parts;
        const char *why;
    } cases[] = {
        {{.normalizer = "{\"type\":\"Lowercase\"}"}, "'Lowercase'"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"}]}"}, "'NFKC'"},
        {{.pre = "{\"type\":\"Metaspace\"}"}, "'Metaspace'"},
        {{.pre = "null"}, "pre-tokenizer"},
        {{.pre = "{\"type\":\"Digits\",\"individual_digits\":true}"}, "ByteLevel"},
        {{.pre =
              "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":\"Digits\"}]}"},
         "behind ByteLevel"},
        {{.pre = "{\"type\":\"Split\",\"behavior\":\"Removed\",\"pattern\":{\"String\":\"a\"}}"},
         "'Removed'"},
        {{.pre = "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":true,"
                 "\"pattern\":{\"String\":\"a\"}}"},
         "'invert'"},
        {{.model = "\"type\":\"Unigram\""}, "'Unigram'"},
        {{.model = "\"type\":\"WordPiece\""}, "'WordPiece'"},
        {{.model = "\"type\":\"BPE\",\"dropout\":0.1"}, "'dropout'"},
        {{.model = "\"type\":\"BPE\",\"byte_fallback\":true"}, "'byte_fallback'"},
        {{.model = "\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\""}, "'end_of_word_suffix'"},
        {{.model = "\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\""},
         "'continuing_subword_prefix'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(&cases[i].parts, SL_SPEC, cases[i].why);
}

static void test_patterns(void **state)
{
    (void)state;
    static const char *const unsupported[][2] = {
        {"\\\\p{Lu}+", "'\\p{Lu}'"},
        {"\\\\w+", "'\\w'"},
        {"[^\\\\S\\\\n]+", "'\\S'"},
        {"a.b", "'.'"},
        {"^a", "'^'"},
        {"[a[b]]", "'['"},
        {"[a&&b]", "'&&'"},
        {"(?<name>a)", "'(?<n'"},
        {"(?i)a", "'(?i)'"},
        {"a{,3}", "'{,3}'"},
        {"a{2}+", "'{2}+'"},
        {"\\\\1", "'\\1'"},
        {"\\\\p{L", "'\\p'"},
        {"a*", "match nothing"},
        {"(a", "does not compile"},
        {"(?R)", "'(?R)'"},
        {"(*FAIL)a", "'(*FA'"},
        {"a\\\\", "'\\'"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        char pre[512];
        snprintf(pre, sizeof pre,
                 "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":"
                 "\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}}," BYTE_LEVEL "]}",
                 unsupported[i][0]);
        refused(&(struct parts){.pre = pre}, SL_SPEC, unsupported[i][1]);
    }
    /* a pattern that backtracks for ever gives up in time, with a message */
    struct sl_tokenizer *t = open_parts(
        &(struct parts){.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
                               "\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":"
                               "\"(a+)+(a+)+(a+)+c\"}}," BYTE_LEVEL "]}"},
        NULL);
    struct sl_ids ids = {0};
    struct sl_err err = SL_ERR_INIT;
    char text[2001];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 2, "bc", 2);
    int64_t start = used_us();
    assert_int_equal(sl_tokenize(t, text, sizeof text, true, &ids, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "gave up"));
    assert_in_range(used_us() - start, 0, HOSTILE_MAX_US);
    assert_int_equal(ids.n, 0);
    sl_ids_release(&ids);
    sl_tokenizer_free(t);
}

static void test_wrong(void **state)
{
    (void)state;
    static const struct {
        struct parts parts;
        const char *why;
    } cases[] = {
        {{.vocab = ",\"x y\":256"}, "id 256, which another one has too"},
        {{.vocab = ",\"xx\":-1"}, "id -1"},
        {{.vocab = ",\"xx\":1099511627776"}, "id 1099511627776"},
        {{.vocab = ",\"xx\":\"257\""}, "not an integer"},
        {{.vocab = ",\"ab\":257"}, "duplicate"},
        {{.vocab = ",\"\xFF\":257"}, "not valid JSON"},
        {{.merges = "[[\"a\",\"c\"]]"}, "'ac'"},
        {{.merges = "[\"ab\"]"}, "two parts"},
        {{.merges = "[[\"a\",\"b\",\"c\"]]"}, "merge 0"},
        {{.merges = "[[\"a\",7]]"}, "merge 0"},
        {{.merges = "[null]"}, "merge 0"},
        {{.merges = "7"}, "merges"},
        {{.added = "[" ADDED(300, "<s>", true) "]"}, "id 300, but the next one free is 257"},
        {{.added = "[" ADDED(3, "ab", true) "]"}, "the vocabulary gives it 256"},
        {{.added = "[" ADDED(257, "<s>", true) "," ADDED(257, "<s>", true) "]"}, "comes twice"},
        {{.added = "[{\"id\":257,\"content\":\"<s>\"}]"}, "'lstrip'"},
        {{.added = "[7]"}, "added token"},
        {{.added = "7"}, "added_tokens"},
        {{.pre = "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{}}"}, "pattern"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(&cases[i].parts, SL_DATA, cases[i].why);
    refused_text("", 0, SL_DATA, "not valid JSON");
    refused_text("[]", 2, SL_DATA, "not a JSON object");
    refused_text("{}", 2, SL_DATA, "no model");
}

static void hostile(const char *start, const char *unit, size_t units, const char *why)
{
    size_t head = strlen(start), n = strlen(unit);
    char *text = malloc(head + n * units + 1);
    memcpy(text, start, head + 1);
    for (size_t i = 0; i < units; i++)
        memcpy(text + head + n * i, unit, n);
    refused_text(text, head + n * units, SL_DATA, why);
    free(text);
}

static void test_hostile(void **state)
{
    (void)state;
    hostile("", "[", 60 << 20, "values");
    hostile("", "[", 2 << 20, "deep");
    hostile("{\"model\":", "{\"model\":", 1 << 20, "deep");
    hostile("{\"added_tokens\":[0", ",0", 30 << 20, "values");
    hostile("{\"added_tokens\":[0", ",0", 2000000, "not valid JSON");
    hostile("{\"a\":\"", "x", 60 << 20, "not valid JSON");
    hostile("{\"a\":\"", "\xC3\x28", 1 << 20, "not valid JSON");
    hostile("", "x", 70 << 20, "at most");
    /* sequences in sequences, nearly as deep as JSON may go */
    struct sl_buf pre;
    sl_buf_init(&pre, 1 << 20);
    for (int i = 0; i < 50; i++)
        sl_buf_adds(&pre, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 50; i++)
        sl_buf_adds(&pre, "]}");
    refused(&(struct parts){.pre = pre.p}, SL_SPEC, "'Sequence'");
    sl_buf_release(&pre);
}

/* ---- vocab.json and merges.txt, directories */

static void write_bytes(const char *dir, const char *name, const char *text, size_t len)
{
    char path[SL_PATH_MAX];
    struct sl_err err = SL_ERR_INIT;
    if (sl_path(path, &err, "%s/%s", dir, name) < 0 || sl_file_write(path, text, len, &err) < 0)
        fail_msg("%s", err.msg);
}

static void write_text(const char *dir, const char *name, const char *text)
{
    write_bytes(dir, name, text, strlen(text));
}

static struct sl_tokenizer *open_dir(const char *dir)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    if (sl_tokenizer_from_dir(dir, &t, &err) < 0)
        fail_msg("%s", err.msg);
    return t;
}

static void dir_refused(const char *dir, int code, const char *why)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    assert_int_equal(sl_tokenizer_from_dir(dir, &t, &err), code);
    if (!strstr(err.msg, why))
        fail_msg("said \"%s\", not \"%s\"", err.msg, why);
}

/* A SentencePiece model with a few pieces. */
static void make_pieces(struct sl_buf *model)
{
    static const char *const tokens[] = {"<unk>",
                                         "<s>",
                                         "</s>",
                                         "\xE2\x96\x81",
                                         "a",
                                         "b",
                                         "ab",
                                         "\xE2\x96\x81"
                                         "ab"};
    const int len[] = {5, 3, 4, 3, 1, 1, 2, 5};
    const float score[] = {0, 0, 0, -9, -8, -7, -1, -2};
    const unsigned char kind[] = {2, 3, 3, 1, 1, 1, 1, 1};
    sl_buf_init(model, 1 << 20);
    assert_int_equal(sl_spm_model_write(&(struct sl_scored_vocab){.n_tokens = 8,
                                                                  .tokens = tokens,
                                                                  .token_len = len,
                                                                  .score = score,
                                                                  .kind = kind,
                                                                  .add_space = true},
                                        model),
                     0);
}

static void test_dir(void **state)
{
    (void)state;
    char dir[] = "/tmp/sl-tokenizer-XXXXXX";
    struct sl_buf b, pieces;
    assert_non_null(mkdtemp(dir));
    dir_refused(dir, SL_NOTFOUND, "no tokenizer");

    sl_buf_init(&b, 1 << 20);
    put_vocab(&b, ",\"<|endoftext|>\":257");
    write_text(dir, "vocab.json", b.p);
    write_text(dir, "merges.txt", "#version: 0.2\r\na b\r\n");
    write_text(dir, "config.json", "{\"eos_token_id\":[257,3]}");
    sl_buf_release(&b);
    struct sl_tokenizer *t = open_dir(dir);
    assert_int_equal(sl_tokenizer_bos(t), -1);
    assert_int_equal(sl_tokenizer_eos(t), 257);
    EXPECT(t, "ab<|endoftext|>", 256, 257);
    sl_tokenizer_free(t);
    write_text(dir, "generation_config.json", "{\"bos_token_id\":257,\"eos_token_id\":1}");
    t = open_dir(dir); /* config.json goes before it */
    assert_int_equal(sl_tokenizer_bos(t), 257);
    assert_int_equal(sl_tokenizer_eos(t), 257);
    sl_tokenizer_free(t);
    static const char qwen[] = "{\"tokenizer_class\":\"Qwen2Tokenizer\"}";
    write_text(dir, "tokenizer_config.json", qwen);
    dir_refused(dir, SL_SPEC, "Qwen2Tokenizer");
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"</s>\"}";
    write_text(dir, "tokenizer_config.json", config);

    make_pieces(&pieces); /* goes before vocab.json */
    write_bytes(dir, "tokenizer.model", pieces.p, pieces.len);
    t = open_dir(dir);
    assert_int_equal(sl_tokenizer_bos(t), 1);
    assert_int_equal(sl_tokenizer_eos(t), 2);
    EXPECT(t, "ab</s>ab", 7, 2, 7);
    sl_tokenizer_free(t);
    /* a tokenizer.json of the same model, in a form that is not supported: its pieces are the same
     */
    static const char same[] =
        "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{},\"merges\":[]},"
        "\"added_tokens\":[" ADDED(1, "<s>", true) "]}";
    write_text(dir, "tokenizer.json", same);
    sl_tokenizer_free(open_dir(dir));
    static const char other[] =
        "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{},\"merges\":[]},"
        "\"added_tokens\":[" ADDED(8, "<|im_start|>", true) "]}";
    write_text(dir, "tokenizer.json", other);
    dir_refused(dir, SL_SPEC, "'<|im_start|>' with id 8");

    make_json(&b, &(struct parts){.added = "[" ADDED(257, "<s>", true) "," ADDED(
                                      258, "</s>", true) "]"}); /* goes before all others */
    write_text(dir, "tokenizer.json", b.p);
    sl_buf_release(&b);
    t = open_dir(dir);
    assert_int_equal(sl_tokenizer_bos(t), 257);
    assert_int_equal(sl_tokenizer_eos(t), 258);
    sl_tokenizer_free(t);
    write_text(dir, "tokenizer.json", "{"); /* damaged: nothing else is taken instead */
    dir_refused(dir, SL_DATA, "tokenizer.json is not valid JSON");
    sl_buf_release(&pieces);
    sl_rmtree(dir, NULL);
}

/* ---- SentencePiece */

static void pieces_refused(const void *data, size_t len, int code, const char *why)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    int64_t start = used_us();
    assert_int_equal(sl_tokenizer_from_sentencepiece(data, len, NULL, &t, &err), code);
    assert_in_range(used_us() - start, 0, HOSTILE_MAX_US);
    if (!strstr(err.msg, why))
        fail_msg("said \"%s\", not \"%s\"", err.msg, why);
}

/* The model with one more field behind it. */
static void field_refused(int number, const void *field, size_t len, int code, const char *why)
{
    struct sl_buf model;
    make_pieces(&model);
    sl_buf_addc(&model, (char)(number << 3 | 2));
    sl_buf_addc(&model, (char)((len & 127) | 128));
    sl_buf_addc(&model, (char)(len >> 7));
    sl_buf_add(&model, field, len);
    pieces_refused(model.p, model.len, code, why);
    sl_buf_release(&model);
}

#define CHARSMAP 1040 /* bytes: size, 256 units, three replacements */
static void charsmap_refused(size_t unit, uint32_t value, char last, const char *why)
{
    unsigned char field[3 + CHARSMAP] = {2 << 3 | 2, (CHARSMAP & 127) | 128, CHARSMAP >> 7};
    uint32_t size = 1024;
    memcpy(field + 3, &size, 4);
    memcpy(field + 7 + 4 * unit, &value, 4);
    field[sizeof field - 1] = (unsigned char)last;
    field_refused(3, field, sizeof field, SL_DATA, why);
}

static void test_pieces(void **state)
{
    (void)state;
    struct sl_err err = SL_ERR_INIT;
    struct sl_tokenizer *t = NULL;
    struct sl_buf model, text;
    make_pieces(&model);
    sl_buf_init(&text, 100);
    assert_int_equal(sl_tokenizer_from_sentencepiece(model.p, model.len, NULL, &t, &err), 0);
    EXPECT(t, "ab a", 7, 3, 4);
    EXPECT(t, "\xC3\xA9", 3, 0);
    assert_int_equal(sl_tokenizer_bos(t), 1);
    const int32_t ids[] = {1, 7, 3, 4, 0, 7, 2};
    assert_int_equal(sl_detokenize(t, ids, 7, false, &text, &err), 0);
    assert_string_equal(text.p, "ab a \xE2\x81\x87  ab");
    assert_int_equal(sl_detokenize(t, ids + 1, 1, false, &text, &err), 0); /* goes on: space kept */
    assert_string_equal(text.p, "ab a \xE2\x81\x87  ab ab");
    sl_tokenizer_free(t);
    sl_buf_release(&text);

    for (size_t len = 0; len < model.len; len++) { /* no prefix crashes; most are refused */
        t = NULL;
        if (sl_tokenizer_from_sentencepiece(model.p, len, NULL, &t, NULL) == 0)
            sl_tokenizer_free(t);
    }
    sl_buf_release(&model);
}

static void test_hostile_pieces(void **state)
{
    (void)state;
    size_t many = 30 << 20;
    char *empty = malloc(2 * many); /* pieces without a text */
    for (size_t i = 0; i < many; i++)
        memcpy(empty + 2 * i, "\x0A\x00", 2);
    pieces_refused(empty, 2 * many, SL_DATA, "pieces are not supported");
    pieces_refused(empty, 2000, SL_DATA, "piece 0 has 0 bytes");
    free(empty);
    pieces_refused("", 0, SL_DATA, "no pieces");
    pieces_refused("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11, SL_DATA, "damaged");
    field_refused(1, "\x0A\x02zz\x18\x09", 6, SL_SPEC, "type 9");
    field_refused(1, "\x0A\x02zz\x18\x02", 6, SL_DATA, "SentencePiece refuses"); /* two unknowns */
    field_refused(1,
                  "\x0A\x02"
                  "ab",
                  4, SL_DATA, "SentencePiece refuses"); /* a piece that is there already */
    field_refused(2, "\xC0\x01\x01", 3, SL_SPEC, "treat_whitespace_as_suffix");
    field_refused(3, "\x28\x00", 2, SL_SPEC, "escape_whitespaces");
    field_refused(5, "\x12\x01x", 3, SL_SPEC, "denormaliser");
    field_refused(3, "\x12\x05\xFF\xFF\xFF\x7Fx", 7, SL_DATA, "do not fit");
    charsmap_refused(0, 0, 'x', "do not fit");              /* the last text does not end */
    charsmap_refused(7, 1u << 10 << 8, 0, "leads outside"); /* to unit 256 and up */
    charsmap_refused(0, 0xFFFFFFFF, 0, "leads outside");    /* the root, though marked */
    charsmap_refused(9, 1u << 8, 0, "leads outside");       /* its value, itself, is 256 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_wrong),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_dir),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_hostile_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
