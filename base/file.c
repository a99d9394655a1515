#include "base/file.h"
#include "base/clock.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_error(const char *path, struct sl_err *err)
{
    if (errno == ENOENT || errno == ENOTDIR)
        return sl_err_set(err, SL_NOTFOUND, "%s: no such file", path);
    return sl_err_errno(err, "opening %s", path);
}

int sl_file_read(const char *path, struct sl_buf *buf, struct sl_err *err)
{
    size_t before = buf->len;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return open_error(path, err);
    for (;;) {
        size_t room = buf->max - buf->len < 65536 ? buf->max - buf->len : 65536;
        char extra[1], *to = room ? sl_buf_reserve(buf, room) : extra;

        if (!to) {
            rc = sl_err_set(err, SL_NOMEM, "reading %s: out of memory", path);
            break;
        }
        n = read(fd, to, room ? room : 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = sl_err_errno(err, "reading %s", path);
        if (n > 0 && !room)
            rc = sl_err_set(err, SL_SPEC, "%s is larger than the limit of %zu bytes", path, buf->max);
        if (n <= 0 || rc)
            break;
        buf->len += (size_t)n;
        buf->p[buf->len] = '\0';
    }
    if (rc && buf->cap) {
        buf->len = before;
        buf->p[before] = '\0';
    }
    close(fd);
    return rc;
}

int sl_write_all(int fd, const void *data, size_t len, struct sl_err *err)
{
    const char *p = data;

    while (len) {
        ssize_t n = write(fd, p, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_err_errno(err, "writing %zu bytes", len);
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int sl_dir_sync(const char *path, struct sl_err *err)
{
    int rc = 0, fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return open_error(path, err);
    if (fsync(fd))
        rc = sl_err_errno(err, "syncing folder %s", path);
    close(fd);
    return rc;
}

static int sync_parent(const char *path, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    const char *slash = strrchr(path, '/');
    int rc;

    if (!slash)
        return sl_dir_sync(".", err);
    rc = sl_path(dir, err, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return rc ? rc : sl_dir_sync(dir, err);
}

int sl_file_write(const char *path, const void *data, size_t len, struct sl_err *err)
{
    char tmp[SL_PATH_MAX], id[SL_ID_HEX + 1];
    int rc, fd;

    sl_random_id(id);
    rc = sl_path(tmp, err, "%s.%.16s.tmp", path, id);
    if (rc)
        return rc;
    fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return sl_err_errno(err, "creating %s", tmp);
    rc = sl_write_all(fd, data, len, err);
    if (!rc && fsync(fd))
        rc = sl_err_errno(err, "syncing %s", tmp);
    if (close(fd) && !rc)
        rc = sl_err_errno(err, "closing %s", tmp);
    if (!rc && rename(tmp, path))
        rc = sl_err_errno(err, "renaming %s to %s", tmp, path);
    if (rc) {
        unlink(tmp);
        return sl_err_wrap(err, rc, "writing %s", path);
    }
    return sync_parent(path, err);
}

int sl_dir_each(const char *dir, sl_dir_fn *fn, void *arg, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    DIR *d = opendir(dir);
    int rc = 0;

    if (!d && errno == ENOENT)
        return sl_err_set(err, SL_NOTFOUND, "%s: no such folder", dir);
    if (!d)
        return sl_err_errno(err, "reading folder %s", dir);
    for (struct dirent *e; !rc && (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        rc = sl_path(path, err, "%s/%s", dir, e->d_name);
        if (!rc)
            rc = fn(arg, path, e->d_name, err);
    }
    closedir(d);
    return rc;
}

int sl_mkdirs(const char *path, struct sl_err *err)
{
    char part[SL_PATH_MAX];
    int rc = sl_path(part, err, "%s", path);
    struct stat st;

    if (rc)
        return rc;
    for (char *p = part + 1;; p++) {
        char c = *p;

        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(part, 0755) && errno != EEXIST)
            return sl_err_errno(err, "creating folder %s", part);
        *p = c;
        if (!c)
            break;
    }
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return sl_err_set(err, SL_IO, "%s exists and is not a folder", path);
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

int sl_rmtree(const char *path, struct sl_err *err)
{
    if (nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) && errno != ENOENT)
        return sl_err_errno(err, "removing %s", path);
    return 0;
}

int sl_path(char ret_path[SL_PATH_MAX], struct sl_err *err, const char *fmt, ...)
{
    char text[SL_PATH_MAX];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= SL_PATH_MAX)
        return sl_err_set(err, SL_SPEC, "path longer than %d bytes: %.80s...", SL_PATH_MAX - 1, text);
    memcpy(ret_path, text, (size_t)n + 1);
    return 0;
}

bool sl_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int sl_map_open(const char *path, struct sl_map *ret_map, struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *p = NULL;

    if (fd < 0)
        return open_error(path, err);
    if (fstat(fd, &st)) {
        close(fd);
        return sl_err_errno(err, "reading the size of %s", path);
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return sl_err_set(err, SL_SPEC, "%s is not a regular file", path);
    }
    if (st.st_size) {
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            close(fd);
            return sl_err_errno(err, "mapping %s", path);
        }
    }
    close(fd);
    ret_map->data = p;
    ret_map->len = (size_t)st.st_size;
    return 0;
}

void sl_map_forget(const struct sl_map *map)
{
    if (map->data) /* private and never written to, so nothing is lost */
        (void)madvise((void *)(uintptr_t)map->data, map->len, MADV_DONTNEED);
}

void sl_map_close(struct sl_map *map)
{
    if (map && map->data) {
        munmap((void *)(uintptr_t)map->data, map->len);
        map->data = NULL;
        map->len = 0;
    }
}
