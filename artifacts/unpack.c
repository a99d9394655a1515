/* What comes out of a tarball that may come from anybody: each entry is checked before it is made. Runs in the
 * child that unpack_child.c starts. */
#include "artifacts/names.h"
#include "artifacts/pack_priv.h"
#include "base/file.h"
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

struct in {
    struct archive *a;
    const char *root; /* temporary folder */
    char *chunk;
    const struct sl_watch *watch;
    json_t *entries;
    int n_entries;
    int64_t bytes;  /* out so far */
    int64_t packed; /* of the whole archive */
};

static int refuse(const char *path, const char *why, struct sl_err *err)
{
    return sl_err_set(err, SL_DATA, "the archive holds %s, %s: refused", path, why);
}

/* The entry's path without "./" in front or "/" behind; "" for the top folder itself. */
static int clean_path(const char *given, char ret_path[SL_ENTRY_PATH_MAX + 1], struct sl_err *err)
{
    if (!given)
        return refuse("a name that is not text", "which cannot be a path", err);
    const char *path = given;
    while (path[0] == '.' && path[1] == '/')
        path += 2;
    size_t len = strlen(path);
    if (len > 0 && path[len - 1] == '/' && len > 1)
        len--;
    if (len == 0 || (len == 1 && path[0] == '.')) {
        ret_path[0] = 0;
        return 0;
    }
    char shown[80], clean[SL_ENTRY_PATH_MAX + 1];
    snprintf(shown, sizeof shown, "`%.70s`", given);
    if (len > SL_ENTRY_PATH_MAX)
        return refuse(shown, "a path that is too long", err);
    memcpy(clean, path, len);
    clean[len] = 0;
    if (!sl_entry_path_valid(clean))
        return refuse(shown,
                      clean[0] == '/' ? "an absolute path"
                                      : "a path that leaves its folder, is too deep, or has "
                                        "characters that are not allowed",
                      err);
    memcpy(ret_path, clean, len + 1);
    return 0;
}

static int check_limits(struct in *in, int64_t more, const char *path, struct sl_err *err)
{
    if (more < 0 || more > SL_UNPACK_MAX_BYTES - in->bytes)
        return sl_err_set(err, SL_DATA, "%s: the archive unpacks to more than %lld bytes", path,
                          (long long)SL_UNPACK_MAX_BYTES);
    if (in->bytes + more > SL_UNPACK_RATIO_FROM &&
        (in->bytes + more) / SL_UNPACK_MAX_RATIO > in->packed)
        return sl_err_set(err, SL_DATA,
                          "%s: the archive unpacks to over %d times its size: refused as a bomb",
                          path, SL_UNPACK_MAX_RATIO);
    return 0;
}

/* Makes the folders above path, inside root. */
static int make_parents(const struct in *in, const char *path, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    for (const char *p = strchr(path, '/'); p; p = strchr(p + 1, '/')) {
        int rc = sl_path(dir, err, "%s/%.*s", in->root, (int)(p - path), path);
        if (rc)
            return rc;
        if (mkdir(dir, 0755) && errno != EEXIST)
            return sl_err_errno(err, "making folder %s", dir);
    }
    return 0;
}

static int unpack_file(struct in *in, const char *path, int64_t size, struct sl_err *err)
{
    char full[SL_PATH_MAX], hex[SL_SHA256_HEX + 1];
    struct sl_sha256 digest = {NULL};
    int rc = check_limits(in, size, path, err);
    if (rc == 0)
        rc = make_parents(in, path, err);
    if (rc == 0)
        rc = sl_path(full, err, "%s/%s", in->root, path);
    if (rc)
        return rc;
    int fd = open(full, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0 && (errno == EEXIST || errno == ENOTDIR || errno == EISDIR))
        return refuse(path, "a path that it has already", err);
    if (fd < 0)
        return sl_err_errno(err, "creating %s", full);
    rc = sl_sha256_init(&digest, err);
    int64_t done = 0;
    while (rc == 0) {
        la_ssize_t n = archive_read_data(in->a, in->chunk, SL_PACK_CHUNK_BYTES);
        if (n == ARCHIVE_RETRY)
            continue;
        if (n < 0)
            rc = sl_pack_failed(in->a, path, err);
        else if (sl_watch_stop(in->watch))
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        else if (n > 0)
            rc = check_limits(in, n, path, err);
        if (rc == 0 && n > 0)
            rc = sl_write_all(fd, in->chunk, (size_t)n, err);
        if (rc || n == 0)
            break;
        sl_sha256_update(&digest, in->chunk, (size_t)n);
        sl_watch_progress(in->watch, n);
        done += n;
        in->bytes += n;
    }
    if (close(fd) && rc == 0)
        rc = sl_err_errno(err, "closing %s", full);
    if (rc == 0 && done != size)
        rc = sl_err_set(err, SL_DATA, "%s: the archive ends in the middle of it", path);
    if (rc == 0) {
        sl_sha256_hex(&digest, hex);
        rc = sl_pack_add_entry(in->entries, path, hex, done, err);
    }
    sl_sha256_release(&digest);
    return rc;
}

static const char *kind_of(struct archive_entry *e)
{
    if (archive_entry_hardlink(e))
        return "a hard link";
    switch (archive_entry_filetype(e)) {
    case AE_IFLNK:
        return "a symbolic link";
    case AE_IFCHR:
    case AE_IFBLK:
        return "a device";
    case AE_IFIFO:
        return "a pipe";
    case AE_IFSOCK:
        return "a socket";
    default:
        return "not a file";
    }
}

static int unpack_entry(struct in *in, struct archive_entry *e, struct sl_err *err)
{
    char path[SL_ENTRY_PATH_MAX + 1] = "", full[SL_PATH_MAX];
    if (++in->n_entries > SL_UNPACK_MAX_ENTRIES)
        return sl_err_set(err, SL_DATA, "the archive has more than %d entries",
                          SL_UNPACK_MAX_ENTRIES);
    /* UTF-8 by its header, else the bytes as they are, which then must be UTF-8 too. */
    const char *given = archive_entry_pathname_utf8(e);
    int rc = clean_path(given ? given : archive_entry_pathname(e), path, err);
    if (rc)
        return rc;
    mode_t type = archive_entry_filetype(e);
    if (archive_entry_hardlink(e) || (type != AE_IFREG && type != AE_IFDIR))
        return refuse(path[0] ? path : ".", kind_of(e), err);
    if (type == AE_IFREG) {
        if (!path[0])
            return refuse(".", "which is not a folder", err);
        return unpack_file(in, path, archive_entry_size(e), err);
    }
    rc = make_parents(in, path, err);
    if (rc == 0)
        rc = sl_path(full, err, "%s/%s", in->root, path);
    if (rc == 0 && path[0] && mkdir(full, 0755) && errno != EEXIST)
        rc = sl_err_errno(err, "making folder %s", full);
    return rc;
}

/* libarchive does not look at the check sums of gzip: all of it is read once more. */
static int check_gzip(const struct in *in, int fd, struct sl_err *err)
{
    int copy = lseek(fd, 0, SEEK_SET) == 0 ? dup(fd) : -1, n, status = 0;
    gzFile f = copy >= 0 ? gzdopen(copy, "rb") : NULL;
    if (!f) {
        if (copy >= 0)
            close(copy);
        return sl_err_errno(err, "reading the archive again");
    }
    do {
        n = gzread(f, in->chunk, SL_PACK_CHUNK_BYTES);
    } while (n > 0);
    gzerror(f, &status);
    gzclose(f);
    return n < 0 || status != Z_OK
               ? sl_err_set(err, SL_DATA, "its gzip check sum is wrong: it is damaged")
               : 0;
}

static int unpack_all(struct in *in, int fd, struct sl_err *err)
{
    struct archive_entry *e;
    int ok = archive_read_support_format_tar(in->a), rc = 0;
    if (ok == ARCHIVE_OK)
        ok = archive_read_support_filter_gzip(in->a);
    if (ok == ARCHIVE_OK)
        ok = archive_read_support_filter_zstd(in->a);
    if (ok == ARCHIVE_OK)
        ok = archive_read_open_fd(in->a, fd, SL_PACK_CHUNK_BYTES);
    while (ok == ARCHIVE_OK && rc == 0) {
        ok = archive_read_next_header(in->a, &e);
        if (ok == ARCHIVE_OK || ok == ARCHIVE_WARN) {
            ok = ARCHIVE_OK;
            rc = archive_filter_count(in->a) > 2
                     ? sl_err_set(err, SL_DATA, "the archive is compressed more than once: refused")
                     : unpack_entry(in, e, err);
        }
    }
    if (rc == 0 && ok != ARCHIVE_EOF)
        rc = sl_pack_failed(in->a, "not a whole .tar, .tar.gz or .tar.zst", err);
    if (rc == 0 && json_array_size(in->entries) == 0)
        rc = sl_err_set(err, SL_DATA, "the archive holds no file");
    if (rc == 0 && archive_filter_code(in->a, 0) == ARCHIVE_FILTER_GZIP)
        rc = check_gzip(in, fd, err);
    return rc;
}

int sl_unpack_into(int fd, const char *root, const struct sl_watch *watch, json_t **ret_entries,
                   struct sl_err *err)
{
    struct in in = {.a = archive_read_new(),
                    .root = root,
                    .chunk = malloc(SL_PACK_CHUNK_BYTES),
                    .watch = watch,
                    .entries = json_array()};
    struct stat st;
    /* Of the whole file: at a large entry's header next to nothing of it has been read. */
    in.packed = fstat(fd, &st) == 0 ? st.st_size : 0;
    int rc = in.a && in.chunk && in.entries ? unpack_all(&in, fd, err)
                                            : sl_err_set(err, SL_NOMEM, "out of memory");
    if (in.a)
        archive_read_free(in.a);
    free(in.chunk);
    if (rc == 0)
        *ret_entries = json_incref(in.entries);
    json_decref(in.entries);
    return rc;
}
