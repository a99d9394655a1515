/* A test's own folder and its files: dir is made by the test's set-up. */
#ifndef SL_TESTS_UNIT_FILES_H
#define SL_TESTS_UNIT_FILES_H
#include "base/file.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static char dir[64];
static struct sl_err err;

/* Its path, good for four calls. */
static inline char *in_dir(const char *name)
{
    static char paths[4][SL_PATH_MAX];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, SL_PATH_MAX, "%s/%s", dir, name);
    return path;
}

static inline void put_file(const char *name, const char *text)
{
    char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s", in_dir(name));
    char *slash = strrchr(path, '/');
    *slash = 0;
    assert_int_equal(sl_mkdirs(path, &err), 0);
    *slash = '/';
    assert_int_equal(sl_file_write(path, text, strlen(text), &err), 0);
}

static inline void assert_content(const char *name, const char *text)
{
    struct sl_buf buf;
    sl_buf_init(&buf, 1 << 20);
    if (sl_file_read(in_dir(name), &buf, &err))
        fail_msg("%s", err.msg);
    assert_string_equal(buf.p, text);
    sl_buf_release(&buf);
}

/* How many lie in the folder at this path, hidden ones left out. */
static inline int files_at(const char *path)
{
    int n = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

#endif
