/* Checkpoints of torch.save and what hostile ones do: pickles that want something run, archives and
 * numbers that promise more than they hold. Each gets a clear error, in under a second of this
 * process's time and under 64 MiB. Long because every lie that a pickle or an archive can tell is a
 * row of bytes here. */
#include "engine/format/tar.h"
#include "engine/format/torch_zip.h"
#include "tests/golden/golden.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
/* after the headers that it needs */
#include <cmocka.h>

#define MEMORY_MAX_KIB (64 * 1024)
#define SECONDS_MAX 1.0
#define BIG (64u << 20)

static struct sl_err err;

static double cpu_s(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static void ok(int rc)
{
    if (rc)
        fail_msg("%s", err.msg);
}

/* ---- pickles ---- */

static void assert_pickle_refused(const void *text, size_t len, int code, const char *words)
{
    struct sl_pickle_doc *doc = NULL;
    double start = cpu_s();
    int rc;

    sl_err_clear(&err);
    rc = sl_pickle_read(text, len, &doc, &err);
    if (rc != code || !strstr(err.msg, words))
        fail_msg("code %d (expected %d), message \"%s\" (expected \"%s\")", rc, code, err.msg,
                 words);
    assert_null(doc);
    assert_true(cpu_s() - start < SECONDS_MAX);
}
#define REFUSED(text, code, words) assert_pickle_refused(text, sizeof(text) - 1, code, words)

static void refuses_imports_by_name(void **state)
{
    (void)state;
    REFUSED("\x80\x02"
            "cposix\nsystem\nX\x04\0\0\0true\x85R.",
            SL_SPEC, "'posix.system'");
    /* by strings, as protocol 4 does; never called */
    REFUSED("\x80\x04\x8c\x08"
            "builtins\x8c\x04"
            "eval\x93"
            "0N.",
            SL_SPEC, "'builtins.eval'");
    REFUSED("\x80\x02"
            "ctorch\nload\n.",
            SL_SPEC, "'torch.load'");
    REFUSED("\x80\x02"
            "ctorch._utils\n_rebuild_tensor\n.",
            SL_SPEC, "'torch._utils._rebuild_tensor'");
    REFUSED("\x80\x02"
            "comegaconf.dictconfig\nDictConfig\n.",
            SL_SPEC, "'omegaconf.dictconfig.DictConfig'");
    REFUSED("\x80\x02"
            "c__builtin__\nfloat\n.",
            SL_SPEC, "nothing is run");
    /* names are shown as plain text */
    REFUSED("\x80\x02"
            "ca\x1b[2J\nb\n.",
            SL_SPEC, "'a?[2J.b'");
    /* instances, extensions, old text opcodes */
    REFUSED("\x80\x02(iposix\nsystem\n.", SL_SPEC, "opcode 0x69");
    REFUSED("\x80\x02"
            "ccollections\nOrderedDict\n)\x81.",
            SL_SPEC, "opcode 0x81");
    REFUSED("\x80\x02\x82\x01.", SL_SPEC, "opcode 0x82");
    REFUSED("I1\n.", SL_SPEC, "opcode 0x49");
    REFUSED("\x80\x09.", SL_SPEC, "protocol 9");
}

static void refuses_what_is_no_pickle(void **state)
{
    (void)state;
    REFUSED("", SL_DATA, "ends without its stop");
    REFUSED(".", SL_DATA, "0 values");
    REFUSED("NN.", SL_DATA, "2 values");
    REFUSED("(N.", SL_DATA, "stops");
    REFUSED("\x85.", SL_DATA, "stack empty");
    REFUSED("N(0.", SL_DATA, "stack empty"); /* what lies below a mark is not this opcode's */
    REFUSED("t.", SL_DATA, "no mark");
    REFUSED("]Na", SL_DATA, "ends without");
    REFUSED("NNa.", SL_DATA, "takes none");
    REFUSED("}(Nu.", SL_DATA, "takes none"); /* a key without a value */
    REFUSED("h\x07.", SL_DATA, "memo entry 7");
    REFUSED("Nr\xff\xff\xff\xff.", SL_DATA, "memo entry 4294967295");
    REFUSED("X\xff\xff\xff\x7f"
            "abc.",
            SL_DATA, "cut off");
    REFUSED("\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
            "abc.",
            SL_DATA, "cut off");
    REFUSED("\x8b\x00\x00\x00\x40.", SL_DATA, "integer of 1073741824 bytes");
    REFUSED("NNR.", SL_DATA, "no function");
    REFUSED("NNb.", SL_DATA, "attributes");
    REFUSED("NQ.", SL_DATA, "no torch storage");
    REFUSED("ca", SL_DATA, "does not end");
}

/* Everything that grows is bounded, whatever the opcode. */
static void bounds_what_pickles_make(void **state)
{
    static const struct {
        const char *unit;
        size_t n;
        const char *words;
    } cases[] = {
        {"(", 1, "nested"},         {"]", 1, "values"},     {"N", 1, "values"},
        {"]q\0", 3, "values"},      {"}2", 2, "opcode"},    {"\x88", 1, "values"},
        {"X\0\0\0\0", 5, "values"}, {"N\x94", 2, "values"},
    };
    char *text = malloc(SL_PICKLE_MAX_BYTES + 1);

    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = SL_PICKLE_MAX_BYTES / cases[i].n;

        for (size_t k = 0; k < n; k++)
            memcpy(text + k * cases[i].n, cases[i].unit, cases[i].n);
        assert_pickle_refused(text, n * cases[i].n, i == 4 ? SL_SPEC : SL_DATA, cases[i].words);
    }
    /* one value from the memo, again and again: on the stack, and into a list */
    memcpy(text, "Nq\0", 3);
    for (size_t k = 3; k + 2 <= SL_PICKLE_MAX_BYTES; k += 2)
        memcpy(text + k, "h\0", 2);
    assert_pickle_refused(text, SL_PICKLE_MAX_BYTES - 1, SL_DATA, "on its stack");
    memcpy(text, "Nq\0]", 4);
    for (size_t k = 4; k + 3 <= SL_PICKLE_MAX_BYTES; k += 3)
        memcpy(text + k, "h\0a", 3);
    assert_pickle_refused(text, SL_PICKLE_MAX_BYTES - 2, SL_DATA, "MiB");
    assert_pickle_refused(text, SL_PICKLE_MAX_BYTES + 1, SL_DATA, "the limit is");
    free(text);
}

static void reads_plain_values(void **state)
{
    static const char text[] = "\x80\x04\x95\0\0\0\0\0\0\0\0"
                               "}(X\1\0\0\0aJ\xfe\xff\xff\xffX\1\0\0\0b\x8a\3\0\0\1X\1\0\0\0c"
                               "G\x3f\xf8\0\0\0\0\0\0X\1\0\0\0d]\x94(\x88NK\7eX\1\0\0\0eh\0"
                               "X\1\0\0\0f(\x89M\1\1\x8a\1\xfftu.";
    struct sl_pickle_doc *doc = NULL;
    const struct sl_pickle *root, *v;

    (void)state;
    sl_err_clear(&err);
    ok(sl_pickle_read(text, sizeof text - 1, &doc, &err));
    root = sl_pickle_root(doc);
    assert_int_equal(root->type, SL_PK_DICT);
    assert_int_equal(root->n, 12);
    assert_int_equal(root->u.item[1]->u.integer, -2);
    assert_int_equal(root->u.item[3]->u.integer, 65536);
    assert_true(root->u.item[5]->u.real == 1.5);
    v = root->u.item[7];
    assert_int_equal(v->type, SL_PK_LIST);
    assert_int_equal(v->n, 3);
    assert_int_equal(v->u.item[0]->type, SL_PK_BOOL);
    assert_int_equal(v->u.item[1]->type, SL_PK_NONE);
    assert_int_equal(v->u.item[2]->u.integer, 7);
    assert_ptr_equal(root->u.item[9], v);
    v = root->u.item[11];
    assert_int_equal(v->type, SL_PK_TUPLE);
    assert_int_equal(v->u.item[1]->u.integer, 257);
    assert_int_equal(v->u.item[2]->u.integer, -1);
    sl_pickle_free(doc);
    sl_pickle_free(NULL);
    for (size_t cut = 0; cut < sizeof text - 1; cut++)
        assert_int_equal(sl_pickle_read(text, cut, &doc, NULL), SL_DATA);
}

/* ---- archives ---- */

static const float numbers[6] = {1, 2, 3, 4, 5, 6};
static const int64_t indices[2] = {0, 1};

static void write_archive(struct sl_buf *b)
{
    static const struct sl_torch_item items[] = {
        {"first.weight", SL_STORAGE_F32, 2, {2, 3}, numbers},
        {"second", SL_STORAGE_I64, 1, {2, 0}, indices},
    };

    sl_buf_init(b, BIG);
    sl_err_clear(&err);
    ok(sl_torch_write("table", items, 2, b, &err));
}

static void reads_what_it_writes(void **state)
{
    struct sl_torch *t = NULL;
    const struct sl_torch_tensor *one;
    float out[6];
    struct sl_buf b;

    (void)state;
    write_archive(&b);
    ok(sl_torch_open(b.p, b.len, &t, &err));
    assert_int_equal(sl_torch_count(t), 2);
    one = sl_torch_find(t, "table.first.weight");
    assert_non_null(one);
    assert_int_equal(one->n_dims, 2);
    assert_int_equal(one->dim[1], 3);
    assert_true(one->contiguous);
    assert_int_equal((one->data - (unsigned char *)b.p) % 64, 0);
    ok(sl_torch_floats(one, out, &err));
    assert_memory_equal(out, numbers, sizeof numbers);
    one = sl_torch_find(t, "table.second");
    assert_int_equal(one->type, SL_STORAGE_I64);
    assert_int_equal(sl_torch_floats(one, out, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "LongStorage"));
    assert_null(sl_torch_find(t, "table"));
    sl_torch_close(t);
    sl_torch_close(NULL);
    sl_buf_release(&b);
}

/* The bytes that torch.load has read (tests/golden/check_table_forms.py, which also writes them).
 */
static void writes_what_torch_reads(void **state)
{
    struct sl_buf b, recorded;
    char file[SL_PATH_MAX];
    const char *out = getenv("SL_CHECKPOINT_OUT");

    (void)state;
    write_archive(&b);
    sl_buf_init(&recorded, 1u << 20);
    golden_path(file, "torch_written.ckpt");
    ok(sl_file_read(file, &recorded, &err));
    if (out)
        ok(sl_file_write(out, b.p, b.len, &err));
    if (b.len != recorded.len || memcmp(b.p, recorded.p, b.len) != 0)
        fail_msg("what we write has changed: run check_table_forms.py again");
    sl_buf_release(&b);
    sl_buf_release(&recorded);
}

static void assert_archive_refused(const void *data, size_t len, int code, const char *words)
{
    struct sl_torch *t = NULL;
    double start = cpu_s();
    int rc;

    sl_err_clear(&err);
    rc = sl_torch_open(data, len, &t, &err);
    if (rc != code || !strstr(err.msg, words))
        fail_msg("code %d (expected %d), message \"%s\" (expected \"%s\")", rc, code, err.msg,
                 words);
    assert_null(t);
    assert_true(cpu_s() - start < SECONDS_MAX);
}

/* The n-th record of the archive's directory; -1: the end record. */
static unsigned char *record(struct sl_buf *b, int n)
{
    const char *want = n < 0 ? "PK\5\6" : "PK\1\2";
    unsigned char *p = memmem(b->p, b->len, want, 4);

    for (; n > 0; n--)
        p = memmem(p + 1, b->len - (size_t)((char *)p + 1 - b->p), want, 4);
    assert_non_null(p);
    return p;
}

/* One field of the archive changed at a time. Record 1 is byteorder, 2 and 3 are storages. */
static void refuses_archives_that_lie(void **state)
{
    static const struct {
        int record;
        size_t at;
        const char *bytes;
        size_t n;
        const char *words;
    } cases[] = {
        {-1, 8, "\xff\xff\xff\xff", 4, "directory says 65535 entries"},
        {-1, 4, "\1\0", 2, "several parts"},
        {-1, 16, "\xff\xff\xff\x7f", 4, "outside of the file"},
        {-1, 12, "\xff\xff\xff\x7f", 4, "outside of the file"},
        {0, 10, "\x08\0", 2, "compressed"},
        {2, 8, "\1\0", 2, "encrypted"},
        {2, 20, "\xff\xff\xff\x7f\xff\xff\xff\x7f", 8, "reaches beyond the file"},
        {2, 20, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "reaches beyond the file"},
        {2, 20, "\x40\0\0\0\x40\0\0\0", 8, "overlaps"},
        {2, 42, "\xff\xff\xff\x7f", 4, "not where the directory says"},
        {2, 42, "\x01\0\0\0", 4, "not where the directory says"},
        {2, 28, "\xff\xff", 2, "directory is damaged"},
        {2, 46, "x", 1, "another name"},
        {3, 42, NULL, 0, "another name"}, /* where record 2 lies */
        {1, 20, "\5\0\0\0\5\0\0\0", 8, "not little-endian"},
        {2, 20, "\x08\0\0\0\x08\0\0\0", 8, "8 bytes, not 6 elements of 4"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_buf b;

        write_archive(&b);
        if (cases[i].bytes)
            memcpy(record(&b, cases[i].record) + cases[i].at, cases[i].bytes, cases[i].n);
        else
            memcpy(record(&b, 3) + 42, record(&b, 2) + 42, 4);
        assert_archive_refused(b.p, b.len, SL_DATA, cases[i].words);
        sl_buf_release(&b);
    }
    assert_archive_refused("PK\3\4", 4, SL_DATA, "no zip archive");
    assert_archive_refused("\x80\x02\x8a\x0alP\xf9 j\xa8P\x19.", 13, SL_DATA, "no zip archive");
    assert_archive_refused("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.", 14, SL_SPEC,
                           "before 1.6");
}

/* Numbers of the pickle changed in place: it is stored uncompressed, and no checksum is asked. */
static void refuses_tensors_that_lie(void **state)
{
    static const struct {
        const char *from, *to; /* of the same length */
        size_t n;
        const char *words;
    } cases[] = {
        /* elements of the storage */
        {"cpuJ\6\0\0\0t", "cpuJ\xff\xff\xff\x7ft", 9, "24 bytes, not 2147483647 elements"},
        {"cpuJ\6\0\0\0t", "cpuJ\xff\xff\xff\xfft", 9, "no torch storage"},
        /* sizes and strides */
        {"(J\2\0\0\0J\3\0\0\0t", "(J\2\0\0\0J\4\0\0\0t", 12, "beyond its storage"},
        {"(J\2\0\0\0J\3\0\0\0t", "(J\0\xca\x9a\x3bJ\0\xca\x9a\x3bt", 12, "more than"},
        {"(J\2\0\0\0J\3\0\0\0t", "(J\xff\xff\xff\xffJ\3\0\0\0t", 12, "no size"},
        {"(J\3\0\0\0J\1\0\0\0t", "(J\xff\xff\xff\x7fJ\1\0\0\0t", 12, "beyond its storage"},
        {"(J\3\0\0\0J\1\0\0\0t", "(J\0\0\0\0J\1\0\0\0t\0", 12, NULL}, /* rows that are one row */
        {"QK\0(J", "QK\7(J", 5, "beyond its storage"},
        {"X\1\0\0\0"
         "0X",
         "X\1\0\0\0"
         "7X",
         7, "data/7"},
        {"X\7\0\0\0storage", "X\7\0\0\0storagE", 12, "no torch storage"},
        {"ctorch\nFloatStorage", "ctorch\nTypedStorage", 19, "'torch.TypedStorage'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_torch *t = NULL;
        struct sl_buf b;
        char *at;

        write_archive(&b);
        at = memmem(b.p, b.len, cases[i].from, cases[i].n);
        if (!at)
            fail_msg("case %zu is not in the archive", i);
        memcpy(at, cases[i].to, cases[i].n);
        if (cases[i].words) {
            assert_archive_refused(b.p, b.len, strstr(cases[i].words, "Typed") ? SL_SPEC : SL_DATA,
                                   cases[i].words);
        } else { /* a view with stride 0 reads the stored row twice: no more than is there */
            float out[6];

            ok(sl_torch_open(b.p, b.len, &t, &err));
            ok(sl_torch_floats(sl_torch_find(t, "table.first.weight"), out, &err));
            assert_memory_equal(out, out + 3, 3 * sizeof *out);
            sl_torch_close(t);
        }
        sl_buf_release(&b);
    }
}

/* An archive whose data.pkl is this text. */
static void archive_of(const void *pickle, size_t len, struct sl_buf *b)
{
    static const char local[] = "PK\3\4\0\0\0\0\0\0\0\0\0\0", name[] = "a/data.pkl";
    unsigned char central[46] = "PK\1\2", end[22] = "PK\5\6";
    uint32_t n = (uint32_t)len, at;

    sl_buf_init(b, BIG);
    sl_buf_add(b, local, 14);
    sl_buf_add(b, "\0\0\0\0", 4);
    sl_buf_add(b, &n, 4);
    sl_buf_add(b, &n, 4);
    sl_buf_add(b, "\x0a\0\0\0", 4);
    sl_buf_adds(b, name);
    sl_buf_add(b, pickle, len);
    at = (uint32_t)b->len;
    memcpy(central + 20, &n, 4);
    memcpy(central + 24, &n, 4);
    central[28] = 10;
    sl_buf_add(b, central, sizeof central);
    sl_buf_adds(b, name);
    end[8] = end[10] = 1;
    end[12] = sizeof central + 10;
    memcpy(end + 16, &at, 4);
    sl_buf_add(b, end, sizeof end);
}

static void bounds_the_walk(void **state)
{
    struct sl_buf b, text;

    (void)state;
    archive_of("}q\0X\1\0\0\0ah\0s.", 13, &b); /* a dict that holds itself */
    assert_archive_refused(b.p, b.len, SL_DATA, "deep");
    sl_buf_release(&b);
    /* 200 names for the dict below, six times over: 200^6 ways through */
    sl_buf_init(&text, 1u << 20);
    sl_buf_add(&text, "}q\0", 3);
    for (int level = 1; level < 7; level++) {
        sl_buf_addf(&text, "0}q%c(", level);
        for (int i = 0; i < 200; i++) {
            sl_buf_add(&text, "X\3\0\0\0", 5);
            sl_buf_addf(&text, "%03d", i);
            sl_buf_addc(&text, 'h');
            sl_buf_addc(&text, (char)(level - 1));
        }
        sl_buf_addc(&text, 'u');
    }
    sl_buf_addc(&text, '.');
    archive_of(text.p, text.len, &b);
    assert_archive_refused(b.p, b.len, SL_DATA, "too many values");
    sl_buf_release(&b);
    sl_buf_release(&text);
    archive_of("]N0.", 4, &b); /* no tensors: nothing to find, no error */
    struct sl_torch *t = NULL;

    ok(sl_torch_open(b.p, b.len, &t, &err));
    assert_int_equal(sl_torch_count(t), 0);
    sl_torch_close(t);
    sl_buf_release(&b);
}

/* ---- tar ---- */

static char path[64];

static void put_file(const void *data, size_t len)
{
    FILE *f;

    snprintf(path, sizeof path, "/tmp/sl-tar-%d", (int)getpid());
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static void assert_tar_refused(const char *words)
{
    struct sl_tar t;
    double start = cpu_s();
    int rc;

    sl_err_clear(&err);
    rc = sl_tar_open(path, &t, &err);
    if (rc != SL_DATA || !strstr(err.msg, words))
        fail_msg("code %d, message \"%s\" (expected \"%s\")", rc, err.msg, words);
    assert_true(cpu_s() - start < SECONDS_MAX);
}

static void set_sum(unsigned char *h)
{
    unsigned sum = 0;

    memset(h + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += h[i];
    snprintf((char *)h + 148, 8, "%06o", sum);
}

static void refuses_tars_that_lie(void **state)
{
    struct sl_tar_member m[] = {{(char *)(uintptr_t) "a", (const unsigned char *)"hello", 5},
                                {(char *)(uintptr_t) "b", (const unsigned char *)"x", 1}};
    struct sl_buf b;
    unsigned char *h;
    struct sl_tar t;

    (void)state;
    put_file("", 0);
    sl_err_clear(&err);
    ok(sl_tar_write(path, m, 2, &err));
    ok(sl_tar_open(path, &t, &err));
    assert_int_equal(t.n, 2);
    assert_memory_equal(sl_tar_find(&t, "a")->data, "hello", 5);
    assert_null(sl_tar_find(&t, "c"));
    sl_tar_close(&t);
    sl_buf_init(&b, 1u << 20);
    ok(sl_file_read(path, &b, &err));
    h = (unsigned char *)b.p;
    h[0] ^= 1;
    put_file(b.p, b.len);
    assert_tar_refused("header at byte 0 is damaged");
    h[0] = 'b';
    set_sum(h);
    put_file(b.p, b.len);
    assert_tar_refused("'b' comes twice");
    h[0] = 'a';
    memcpy(h + 124, "77777777777", 11);
    set_sum(h);
    put_file(b.p, b.len);
    assert_tar_refused("'a' of 8589934591 bytes reaches beyond the file");
    memcpy(h + 124, "\x80\0\0\0\0\xff\xff\xff\xff\xff\xff\xff", 12);
    set_sum(h);
    put_file(b.p, b.len);
    assert_tar_refused("reaches beyond the file");
    memcpy(h + 124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12);
    set_sum(h);
    put_file(b.p, b.len);
    assert_tar_refused("has no size");
    memset(b.p, 0, b.len);
    put_file(b.p, b.len);
    assert_tar_refused("without files");
    sl_buf_release(&b);
    unlink(path);
}

/* 100 MB of zeros in 100 kB: stopped long before its end. */
static void stops_gzip_bombs(void **state)
{
    gzFile z;
    char *zeros = calloc(1, 1u << 20);

    (void)state;
    assert_non_null(zeros);
    snprintf(path, sizeof path, "/tmp/sl-tar-%d", (int)getpid());
    z = gzopen(path, "wb9");
    assert_non_null(z);
    for (int i = 0; i < 100; i++)
        assert_int_equal(gzwrite(z, zeros, 1u << 20), 1 << 20);
    assert_int_equal(gzclose(z), Z_OK);
    assert_tar_refused("more than 64 times its size");
    put_file("\x1f\x8b\x08\0\0\0\0\0\0\3\x4b", 11);
    assert_tar_refused("cut off");
    put_file("\x1f\x8b\x08\0\0\0\0\0\0\3\xff\xff\xff\xff", 14);
    assert_tar_refused("damaged");
    unlink(path);
    free(zeros);
}

/* The peak of this program's own memory: getrusage counts that of whoever started it. */
static void stayed_small(void **state)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long peak_kib = 0;

    (void)state;
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        sscanf(line, "VmHWM: %ld", &peak_kib);
    fclose(f);
    print_message("# %ld KiB at most\n", peak_kib);
#if !defined(__SANITIZE_ADDRESS__)
    assert_in_range(peak_kib, 1, MEMORY_MAX_KIB);
#endif
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_imports_by_name),   cmocka_unit_test(refuses_what_is_no_pickle),
        cmocka_unit_test(bounds_what_pickles_make),  cmocka_unit_test(reads_plain_values),
        cmocka_unit_test(reads_what_it_writes),      cmocka_unit_test(writes_what_torch_reads),
        cmocka_unit_test(refuses_archives_that_lie), cmocka_unit_test(refuses_tensors_that_lie),
        cmocka_unit_test(bounds_the_walk),           cmocka_unit_test(refuses_tars_that_lie),
        cmocka_unit_test(stops_gzip_bombs),          cmocka_unit_test(stayed_small),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
