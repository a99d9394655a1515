/* The safetensors reader and writer: round trips, the seal, and files that are not what they should
 * be. */
#include "base/buf.h"
#include "base/file.h"
#include "engine/format/safetensors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/sl-safetensors-XXXXXX";
static char path[SL_PATH_MAX];

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/t.safetensors", dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return sl_rmtree(dir, NULL);
}

/* Without sl_file_write's fsyncs: these tests write thousands. */
static void put_file(const void *data, size_t len)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static const float numbers[12] = {0, -0.0f, 1, 1e-45f, -3.4e38f, 0.1f, 6, 7, 8, 9, 10, 11};

/* Tensor i begins at the i-th number. */
static int fetch(void *ctx, int index, float *out, struct sl_err *err)
{
    const struct sl_st_tensor *t = (const struct sl_st_tensor *)ctx + index;

    if (!strcmp(t->name, "broken"))
        return sl_err_set(err, SL_DEVICE, "the device is gone");
    memcpy(out, numbers + index, (size_t)sl_st_elements(t) * sizeof *out);
    return 0;
}

static struct sl_st_tensor tensors[] = {
    {.name = "b.weight", .n_dims = 2, .dim = {2, 3}},
    {.name = "a \"quoted\" \xc3\xa9", .n_dims = 1, .dim = {5}},
    {.name = "c", .n_dims = 3, .dim = {1, 2, 2}},
};

static int write_three(bool seal, struct sl_err *err)
{
    json_t *meta = json_pack("{s:s, s:s}", "format", "pt", "text", "\"seal\":\"no\" {x}\n");
    int rc = sl_safetensors_write(path, tensors, 3, meta, seal, fetch, tensors, err);

    json_decref(meta);
    return rc;
}

static void what_is_written_is_read(void **state)
{
    struct sl_safetensors *st = NULL;
    struct stat info;
    float got[6];
    int i;

    (void)state;
    for (int seal = 0; seal < 2; seal++) {
        assert_int_equal(write_three(seal, NULL), 0);
        assert_int_equal(sl_safetensors_open(path, &st, NULL), 0);
        assert_int_equal(sl_safetensors_count(st), 3);
        i = sl_safetensors_find(st, "a \"quoted\" \xc3\xa9");
        assert_int_equal(i, 1);
        assert_int_equal(sl_safetensors_at(st, i)->n_dims, 1);
        assert_int_equal(sl_st_elements(sl_safetensors_at(st, i)), 5);
        sl_safetensors_read(st, i, got);
        assert_memory_equal(got, numbers + 1, 5 * sizeof *got);
        sl_safetensors_read(st, 0, got);
        assert_memory_equal(got, numbers, 6 * sizeof *got);
        assert_int_equal(sl_safetensors_find(st, "b"), -1);
        assert_string_equal(json_string_value(json_object_get(sl_safetensors_metadata(st), "text")),
                            "\"seal\":\"no\" {x}\n");
        assert_int_equal(sl_safetensors_verify(st, NULL), seal ? 0 : SL_DATA);
        sl_safetensors_close(st);
    }
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size % 4, 0);
    snprintf(path + strlen(path), 5, ".tmp");
    assert_false(sl_file_exists(path));
    path[strlen(path) - 4] = '\0';
    sl_safetensors_close(NULL);
}

static void a_failed_write_leaves_the_old_file(void **state)
{
    struct sl_st_tensor bad[] = {tensors[0], {.name = "broken", .n_dims = 1, .dim = {2}}};
    struct sl_err err = SL_ERR_INIT;
    struct sl_safetensors *st = NULL;
    char missing[SL_PATH_MAX + 16], tmp[SL_PATH_MAX + 8];

    (void)state;
    assert_int_equal(write_three(true, NULL), 0);
    assert_int_equal(sl_safetensors_write(path, bad, 2, NULL, true, fetch, bad, &err), SL_DEVICE);
    assert_non_null(strstr(err.msg, "tensor broken: the device is gone"));
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_false(sl_file_exists(tmp));
    assert_int_equal(sl_safetensors_open(path, &st, NULL), 0);
    assert_int_equal(sl_safetensors_verify(st, NULL), 0);
    sl_safetensors_close(st);

    sl_err_clear(&err);
    snprintf(missing, sizeof missing, "%s/none/t", dir);
    assert_int_equal(sl_safetensors_write(missing, bad, 1, NULL, true, fetch, bad, &err), SL_IO);
    assert_non_null(strstr(err.msg, missing));
    bad[0].dim[0] = 0;
    assert_int_equal(sl_safetensors_write(path, bad, 1, NULL, true, fetch, bad, NULL), SL_SPEC);
    bad[0].dim[0] = SL_ST_MAX_ELEMENTS;
    assert_int_equal(sl_safetensors_write(path, bad, 1, NULL, true, fetch, bad, NULL), SL_SPEC);
    strcpy(bad[0].name, "__metadata__");
    assert_int_equal(sl_safetensors_write(path, bad, 1, NULL, true, fetch, bad, NULL), SL_SPEC);
}

static void a_full_disk_leaves_the_old_file(void **state)
{
    struct sl_st_tensor t[] = {{.name = "b", .n_dims = 1, .dim = {8}}};
    struct sl_err err = SL_ERR_INIT;
    char tmp[SL_PATH_MAX + 8];

    (void)state;
    snprintf(path, sizeof path, "%s/full", dir);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_int_equal(symlink("/dev/full", tmp), 0); /* stands in for a disk without room */
    assert_int_equal(sl_safetensors_write(path, t, 1, NULL, true, fetch, t, &err), SL_IO);
    assert_non_null(strstr(err.msg, "No space left"));
    assert_false(sl_file_exists(path));
    snprintf(path, sizeof path, "%s/t.safetensors", dir);
}

static void every_flipped_bit_breaks_the_seal(void **state)
{
    struct sl_buf file;

    (void)state;
    sl_buf_init(&file, 1 << 20);
    assert_int_equal(write_three(true, NULL), 0);
    assert_int_equal(sl_file_read(path, &file, NULL), 0);
    for (size_t i = 0; i < file.len; i++) {
        struct sl_safetensors *st = NULL;
        int rc;

        file.p[i] = (char)(file.p[i] ^ 1 << i % 8);
        put_file(file.p, file.len);
        rc = sl_safetensors_open(path, &st, NULL);
        if (!rc)
            rc = sl_safetensors_verify(st, NULL);
        if (rc != SL_DATA)
            fail_msg("a bit flipped in byte %zu of %zu gave %d", i, file.len, rc);
        sl_safetensors_close(st);
        file.p[i] = (char)(file.p[i] ^ 1 << i % 8);
    }
    sl_buf_release(&file);
}

static void every_truncation_is_refused(void **state)
{
    struct sl_buf file;

    (void)state;
    sl_buf_init(&file, 1 << 20);
    assert_int_equal(write_three(false, NULL), 0);
    assert_int_equal(sl_file_read(path, &file, NULL), 0);
    for (size_t n = 0; n < file.len; n += n < 16 ? 1 : 7) {
        struct sl_safetensors *st = NULL;
        struct sl_err err = SL_ERR_INIT;

        put_file(file.p, n);
        assert_int_equal(sl_safetensors_open(path, &st, &err), SL_DATA);
        assert_non_null(strstr(err.msg, path));
    }
    sl_buf_release(&file);
}

/* Writes header (its length in front) and n zero bytes of data, and opens it. */
static int open_with(const char *header, uint64_t length, size_t n, struct sl_err *err)
{
    struct sl_safetensors *st = NULL;
    struct sl_buf b;
    int rc;

    sl_buf_init(&b, 1 << 20);
    for (int i = 0; i < 8; i++)
        sl_buf_addc(&b, (char)(length >> 8 * i));
    sl_buf_adds(&b, header);
    for (size_t i = 0; i < n; i++)
        sl_buf_addc(&b, '\0');
    put_file(b.p, b.len);
    sl_buf_release(&b);
    rc = sl_safetensors_open(path, &st, err);
    sl_safetensors_close(st);
    return rc;
}

static void hostile_headers_are_refused_with_their_reason(void **state)
{
    static const struct {
        const char *header;
        size_t n;
        const char *says;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "type F16"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "needs 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "behind the last"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "truncated"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "gap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 8, "lies at"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,4]}}", 8, "lies at"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "but the one before it ends"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4,
         "dimension 1"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "two numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "exactly"},
        {"{\"a\":7}", 0, "exactly"},
        {"{\"__metadata__\":[]}", 0, "no object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "no string"},
        {"[]", 0, "begin with {"},
        {"{\"a\":", 0, "JSON"},
        {"{} x", 0, "JSON"},
    };
    struct sl_err err = SL_ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sl_err_clear(&err);
        if (open_with(cases[i].header, strlen(cases[i].header), cases[i].n, &err) != SL_DATA ||
            !strstr(err.msg, cases[i].says) || !strstr(err.msg, path))
            fail_msg("%s gave: %s", cases[i].header, err.msg);
    }
    sl_err_clear(&err);
    assert_int_equal(open_with("{}", UINT64_MAX, 0, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "limit"));
    sl_err_clear(&err);
    assert_int_equal(open_with("{}", 100, 0, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "truncated"));
    assert_int_equal(open_with("", 0, 0, NULL), SL_DATA);
    assert_int_equal(open_with("{}      ", 8, 0, NULL), 0); /* no tensors is a file */
    assert_int_equal(
        open_with("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 54, 4, NULL),
        0); /* data that is not aligned */
    unlink(path);
    sl_err_clear(&err);
    {
        struct sl_safetensors *st = NULL;

        assert_int_equal(sl_safetensors_open(path, &st, &err), SL_NOTFOUND);
        assert_null(st);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(a_failed_write_leaves_the_old_file),
        cmocka_unit_test(a_full_disk_leaves_the_old_file),
        cmocka_unit_test(every_flipped_bit_breaks_the_seal),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(hostile_headers_are_refused_with_their_reason),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
