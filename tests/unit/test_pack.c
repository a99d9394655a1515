/* Tarballs: equal folders give equal bytes; hostile archives leave nothing behind. */
#include "artifacts/pack.h"
#include "base/json.h"
#include "tests/unit/files.h"
#include <archive.h>
#include <archive_entry.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utime.h>

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/sl-pack-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    sl_err_clear(&err);
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

static void pack_unpack(const char *tar)
{
    struct sl_packed packed;
    json_t *entries;
    char sha[65];
    int64_t bytes;
    put_file("src/b.txt", "bee");
    put_file("src/a/deep/er.txt", "deeper");
    put_file("src/empty", "");
    put_file("src/\xc3\xbc \xe6\xbc\xa2.txt", "unicode");
    assert_int_equal(chmod(in_dir("src/b.txt"), 04755), 0);
    if (sl_pack(in_dir("src"), in_dir(tar), NULL, &packed, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(sl_sha256_file(in_dir(tar), sha, &bytes, &err), 0);
    assert_string_equal(sha, packed.sha256);
    assert_int_equal(bytes, packed.bytes);
    assert_int_equal(json_array_size(packed.entries), 4);
    assert_string_equal(sl_json_str(json_array_get(packed.entries, 0), "path", ""),
                        "a/deep/er.txt");
    if (sl_unpack(in_dir(tar), in_dir("out"), NULL, &entries, &err))
        fail_msg("%s", err.msg);
    assert_true(json_equal(entries, packed.entries));
    assert_content("out/b.txt", "bee");
    assert_content("out/a/deep/er.txt", "deeper");
    assert_content("out/empty", "");
    assert_content("out/\xc3\xbc \xe6\xbc\xa2.txt", "unicode");
    struct stat st;
    assert_int_equal(stat(in_dir("out/b.txt"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0644);
    json_decref(entries);
    json_decref(packed.entries);
}

static void tar_round_trip(void **state)
{
    (void)state;
    pack_unpack("x.tar");
}

static void gzip_round_trip(void **state)
{
    (void)state;
    pack_unpack("x.tar.gz");
}

static void zstd_round_trip(void **state)
{
    (void)state;
    pack_unpack("x.tar.zst");
}

static void equal_folders_give_equal_digests(void **state)
{
    static const char *const tars[] = {"1.tar.zst", "2.tar.zst", "1.tar.gz", "2.tar.gz"};
    struct sl_packed packed[4];
    struct utimbuf long_ago = {1000, 1000};
    (void)state;
    put_file("one/b", "bee");
    put_file("one/a/c", "sea");
    put_file("two/a/c", "sea");
    put_file("two/b", "bee");
    assert_int_equal(utime(in_dir("two/b"), &long_ago), 0);
    assert_int_equal(chmod(in_dir("two/b"), 0600), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(
            sl_pack(in_dir(i % 2 ? "two" : "one"), in_dir(tars[i]), NULL, &packed[i], &err), 0);
    assert_string_equal(packed[0].sha256, packed[1].sha256);
    assert_string_equal(packed[2].sha256, packed[3].sha256);
    put_file("two/b", "boo");
    for (int i = 0; i < 4; i++)
        json_decref(packed[i].entries);
    assert_int_equal(sl_pack(in_dir("two"), in_dir("3.tar.zst"), NULL, &packed[0], &err), 0);
    assert_string_not_equal(packed[0].sha256, packed[1].sha256);
    json_decref(packed[0].entries);
}

static void what_cannot_be_packed_is_named(void **state)
{
    struct sl_packed packed;
    (void)state;
    put_file("src/a", "a");
    assert_int_equal(symlink("/etc/passwd", in_dir("src/link")), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar.zst"), NULL, &packed, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "src/link is a symbolic link"));
    assert_false(sl_file_exists(in_dir("x.tar.zst")));
    assert_int_equal(unlink(in_dir("src/link")), 0);
    assert_int_equal(mkfifo(in_dir("src/pipe"), 0600), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar.zst"), NULL, &packed, NULL), SL_SPEC);
    assert_int_equal(unlink(in_dir("src/pipe")), 0);
    sl_err_clear(&err);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.zip"), NULL, &packed, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, ".tar.zst"));
    assert_int_equal(unlink(in_dir("src/a")), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar"), NULL, &packed, NULL), SL_SPEC);
    assert_int_not_equal(sl_pack(in_dir("gone"), in_dir("x.tar"), NULL, &packed, NULL), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("gone/x.tar"), NULL, &packed, NULL), SL_SPEC);
}

static void full_disk_while_packing(void **state)
{
    struct sl_packed packed;
    (void)state;
    put_file("src/a", "a");
    assert_int_equal(symlink("/dev/full", in_dir("x.tar")), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar"), NULL, &packed, &err), SL_IO);
    assert_non_null(strstr(err.msg, "No space left"));
}

/* ---- hostile archives ------------------------------------------------------------------------ */

static char tar[4 << 20];
static size_t tar_len;

static void tar_entry(char type, const char *path, const char *link, size_t size, const char *data)
{
    char *h = tar + tar_len;
    assert_true(tar_len + 1024 + size < sizeof tar);
    memset(h, 0, 512);
    memcpy(h, path, strlen(path) < 100 ? strlen(path) : 100);
    snprintf(h + 100, 8, "%07o", 04777);
    snprintf(h + 108, 8, "%07o", 0);
    snprintf(h + 116, 8, "%07o", 0);
    snprintf(h + 124, 12, "%011zo", size);
    snprintf(h + 136, 12, "%011o", 0);
    h[156] = type;
    if (link)
        memcpy(h + 157, link, strlen(link));
    memcpy(h + 257, "ustar\00000", 8);
    memset(h + 148, ' ', 8);
    unsigned sum = 0;
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)h[i];
    snprintf(h + 148, 8, "%06o", sum);
    tar_len += 512;
    if (data) {
        memcpy(tar + tar_len, data, size);
        memset(tar + tar_len + size, 0, 512);
        tar_len += (size + 511) / 512 * 512;
    }
}

static void tar_file(const char *path)
{
    tar_entry('0', path, NULL, 3, "bad");
}

static void tar_end(void)
{
    memset(tar + tar_len, 0, 1024);
    tar_len += 1024;
}

typedef int unpack_fn(const char *path, const char *dest, const struct sl_watch *watch, json_t **ret_entries,
                      struct sl_err *err);

/* Unpacks what was built: it must be refused as bad data, saying `why`, and leave nothing. */
static void assert_refused_by(unpack_fn *unpack, const char *what, const char *why)
{
    char path[SL_PATH_MAX], dest[SL_PATH_MAX];
    struct dirent **list;
    json_t *entries = NULL;
    snprintf(path, sizeof path, "%s", in_dir("hostile"));
    snprintf(dest, sizeof dest, "%s", in_dir("dest"));
    assert_int_equal(sl_file_write(path, tar, tar_len, NULL), 0);
    sl_err_clear(&err);
    int rc = unpack(path, dest, NULL, &entries, &err);
    if (rc != SL_DATA)
        fail_msg("%s: code %d: %s", what, rc, err.msg);
    if (!strstr(err.msg, why))
        fail_msg("%s: `%s` does not say `%s`", what, err.msg, why);
    assert_null(entries);
    int n = scandir(dir, &list, NULL, NULL);
    if (n != 4) /* . .. hostile canary */
        fail_msg("%s left something behind", what);
    for (int i = 0; i < n; i++)
        free(list[i]);
    free(list);
    assert_content("canary", "untouched");
    tar_len = 0;
}

static void assert_refused(const char *what, const char *why)
{
    assert_refused_by(sl_unpack, what, why);
}

static void hostile_archives(void **state)
{
    static const struct {
        const char *path, *why;
    } paths[] = {
        {"../canary", "leaves its folder"},
        {"a/../../canary", "leaves its folder"},
        {"/tmp/sl-evil", "absolute path"},
        {"..", "leaves its folder"},
        {"./../canary", "leaves its folder"},
        {"a//b", "leaves its folder"},
        {"a\\b", "not allowed"},
        {"a\nb", "not allowed"},
        {"\xff\xfe", "not allowed"},
        {"1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", "too deep"},
    };
    static const struct {
        char type;
        const char *link, *why;
    } kinds[] = {
        {'1', "../canary", "a hard link"},
        {'2', "../canary", "a symbolic link"},
        {'2', "/etc", "a symbolic link"},
        {'2', "inside", "a symbolic link"},
        {'3', NULL, "a device"},
        {'4', NULL, "a device"},
        {'6', NULL, "a pipe"},
    };
    (void)state;
    put_file("canary", "untouched");
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        tar_file("good");
        tar_file(paths[i].path);
        tar_end();
        assert_refused(paths[i].path, paths[i].why);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        tar_file("inside");
        tar_entry(kinds[i].type, "thing", kinds[i].link, 0, NULL);
        tar_file("thing/below"); /* written through the link, were it made */
        tar_end();
        assert_refused(kinds[i].why, kinds[i].why);
    }
    tar_file("twice");
    tar_file("twice");
    tar_end();
    assert_refused("a path twice", "has already");
    tar_file("a");
    tar_file("a/b");
    tar_end();
    assert_refused("a file as a folder", "has already");
    tar_entry('5', "a", NULL, 0, NULL);
    tar_file("a");
    tar_end();
    assert_refused("a folder as a file", "has already");
    tar_end();
    assert_refused("empty", "holds no file");
    tar_entry('0', "big", NULL, 0, NULL);
    snprintf(tar + 124, 12, "%011llo", 077777777777ull); /* says 8 GiB, has none */
    tar_len = 512;
    tar_entry('0', "cut", NULL, 600, NULL);
    assert_refused("sizes that lie", "");
    tar_entry('0', "cut", NULL, 600, NULL);
    tar_len += 300; /* ends within the data */
    assert_refused("truncated", "");
    memcpy(tar, "this is not an archive at all, but some text", 44);
    tar_len = 44;
    assert_refused("text", "");
    memcpy(tar, "PK\003\004 a zip is not taken either", 30);
    tar_len = 30;
    assert_refused("zip", "");
    tar_len = 0;
    for (int i = 0; i <= SL_UNPACK_MAX_ENTRIES / 4;
         i++) { /* 4 archives' worth would not fit `tar` */
        char name[16];
        snprintf(name, sizeof name, "d%d", i);
        tar_entry('5', name, NULL, 0, NULL);
    }
    tar_end();
    assert_refused("folders only", "holds no file");
}

/* A .tar.gz of one file of zeros. */
static void build_bomb(size_t bytes)
{
    static char zeros[1 << 16];
    struct archive *a = archive_write_new();
    struct archive_entry *e = archive_entry_new();
    archive_write_add_filter_gzip(a);
    archive_write_set_format_ustar(a);
    assert_int_equal(archive_write_open_memory(a, tar, sizeof tar, &tar_len), ARCHIVE_OK);
    archive_entry_set_pathname(e, "zeros");
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_size(e, (la_int64_t)bytes);
    assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
    for (size_t done = 0; done < bytes; done += sizeof zeros)
        assert_int_equal(archive_write_data(a, zeros, sizeof zeros), sizeof zeros);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    archive_entry_free(e);
}

static void bombs_and_cuts(void **state)
{
    struct sl_packed packed;
    (void)state;
    put_file("canary", "untouched");
    build_bomb(192u << 20); /* 1000 to 1 */
    assert_refused("a bomb", "bomb");
    build_bomb(8u << 20); /* the same ratio is fine when it is small */
    assert_int_equal(sl_file_write(in_dir("hostile"), tar, tar_len, NULL), 0);
    assert_int_equal(sl_unpack(in_dir("hostile"), in_dir("dest"), NULL, NULL, &err), 0);
    assert_int_equal(sl_rmtree(in_dir("dest"), NULL), 0);
    tar_len = tar_len / 2; /* a cut gzip stream */
    assert_refused("a cut gzip", "");
    put_file("src/a", "some text that is long enough for a cut to fall into");
    static char random[70 << 20]; /* one file that is no bomb, above SL_UNPACK_RATIO_FROM */
    for (size_t i = 0; i < sizeof random; i++)
        random[i] = (char)(((uint64_t)i * UINT64_C(0x9E3779B97F4A7C15)) >> 29 ^ (i * i) >> 7);
    assert_int_equal(sl_file_write(in_dir("src/large"), random, sizeof random, NULL), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("large.tar.zst"), NULL, &packed, &err), 0);
    json_decref(packed.entries);
    assert_int_equal(sl_unpack(in_dir("large.tar.zst"), in_dir("dest"), NULL, NULL, &err), 0);
    assert_int_equal(sl_rmtree(in_dir("dest"), NULL), 0);
    assert_int_equal(unlink(in_dir("src/large")), 0);
    assert_int_equal(unlink(in_dir("large.tar.zst")), 0);
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar.zst"), NULL, &packed, &err), 0);
    json_decref(packed.entries);
    struct sl_buf buf;
    sl_buf_init(&buf, sizeof tar);
    assert_int_equal(sl_file_read(in_dir("x.tar.zst"), &buf, &err), 0);
    assert_int_equal(sl_rmtree(in_dir("src"), NULL), 0);
    assert_int_equal(unlink(in_dir("x.tar.zst")), 0);
    for (size_t cut = 1; cut < buf.len; cut++) {
        memcpy(tar, buf.p, cut);
        tar_len = cut;
        assert_refused_by(sl_unpack_here, "a cut zstd", ""); /* here: hundreds of children take their time */
    }
    for (size_t at = 0; at < buf.len; at++) { /* never a crash; a lucky flip may pass */
        memcpy(tar, buf.p, buf.len);
        tar[at] ^= 0x55;
        assert_int_equal(sl_file_write(in_dir("hostile"), tar, buf.len, NULL), 0);
        sl_unpack_here(in_dir("hostile"), in_dir("dest"), NULL, NULL, NULL);
        sl_rmtree(in_dir("dest"), NULL);
    }
    sl_buf_release(&buf);
}

static void unpack_replaces_nothing(void **state)
{
    struct sl_packed packed;
    (void)state;
    put_file("src/a", "new");
    put_file("dest/a", "old");
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar.zst"), NULL, &packed, &err), 0);
    json_decref(packed.entries);
    assert_int_equal(sl_unpack(in_dir("x.tar.zst"), in_dir("dest"), NULL, NULL, &err), SL_CONFLICT);
    assert_content("dest/a", "old");
}

static bool stop_now(void *arg)
{
    return ++*(int *)arg > 1;
}

static void stops_when_asked(void **state)
{
    struct sl_packed packed;
    int asked = 0;
    const struct sl_watch watch = {.arg = &asked, .stop = stop_now};
    (void)state;
    put_file("src/a", "1");
    put_file("src/b", "2");
    put_file("src/c", "3");
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar.zst"), &watch, &packed, &err),
                     SL_CANCELLED);
    assert_false(sl_file_exists(in_dir("x.tar.zst")));
    assert_int_equal(sl_pack(in_dir("src"), in_dir("x.tar.zst"), NULL, &packed, NULL), 0);
    json_decref(packed.entries);
    asked = 0;
    assert_int_equal(sl_unpack(in_dir("x.tar.zst"), in_dir("dest"), &watch, NULL, NULL),
                     SL_CANCELLED);
    assert_false(sl_file_exists(in_dir("dest")));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    sl_unpack_main(argc, argv);
    const struct CMUnitTest tests[] = {
        T(tar_round_trip),
        T(gzip_round_trip),
        T(zstd_round_trip),
        T(equal_folders_give_equal_digests),
        T(what_cannot_be_packed_is_named),
        T(full_disk_while_packing),
        T(hostile_archives),
        T(bombs_and_cuts),
        T(unpack_replaces_nothing),
        T(stops_when_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
