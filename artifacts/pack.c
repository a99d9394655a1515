#include "artifacts/pack.h"
#include "artifacts/names.h"
#include "artifacts/tree.h"
#include "base/clock.h"
#include "base/file.h"
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES (256u << 10)

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

bool sl_is_tarball(const char *path)
{
    return ends_with(path, ".tar.zst") || ends_with(path, ".tar.gz") || ends_with(path, ".tar");
}

static int add_entry(json_t *entries, const char *path, const char *sha256, int64_t bytes,
                     struct sl_err *err)
{
    if (json_array_append_new(entries, json_pack("{s:s, s:s, s:I}", "path", path, "sha256", sha256,
                                                 "bytes", (json_int_t)bytes)))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return 0;
}

/* ---- pack ------------------------------------------------------------------------------------ */

struct out {
    int fd;
    int64_t bytes;
    struct sl_sha256 digest;
    struct sl_err *err;
};

static la_ssize_t write_out(struct archive *a, void *arg, const void *data, size_t len)
{
    struct out *o = arg;
    if (sl_write_all(o->fd, data, len, o->err)) {
        archive_set_error(a, EIO, "writing");
        return -1;
    }
    sl_sha256_update(&o->digest, data, len);
    o->bytes += (int64_t)len;
    return (la_ssize_t)len;
}

static int archive_failed(struct archive *a, const char *what, struct sl_err *err)
{
    const char *why = archive_error_string(a);
    int code = archive_errno(a) == ENOMEM ? SL_NOMEM : SL_DATA;
    return sl_err_set(err, code, "%s: %s", what, why ? why : "unknown fault");
}

static bool all_ascii(const struct sl_tree *tree)
{
    for (size_t i = 0; i < tree->n; i++)
        for (const char *p = tree->files[i].path; *p; p++)
            if ((unsigned char)*p >= 0x80)
                return false;
    return true;
}

static int open_writer(struct archive *a, const char *path, bool ascii, struct out *o,
                       struct sl_err *err)
{
    int ok = ARCHIVE_OK;
    if (ends_with(path, ".tar.zst"))
        ok = archive_write_add_filter_zstd(a);
    else if (ends_with(path, ".tar.gz"))
        ok = archive_write_add_filter_gzip(a);
    else if (!ends_with(path, ".tar"))
        return sl_err_set(err, SL_SPEC, "%s: a tarball's name ends in .tar.zst, .tar.gz or .tar",
                          path);
    if (ok == ARCHIVE_OK)
        ok = archive_write_set_format_pax_restricted(a);
    /* Paths are UTF-8 already; without this the C locale cannot write them. With it GNU tar warns of
     * a keyword it does not know, once a file. */
    if (ok == ARCHIVE_OK && !ascii)
        ok = archive_write_set_options(a, "hdrcharset=BINARY");
    /* gzip stores the time of day otherwise. */
    if (ok == ARCHIVE_OK && ends_with(path, ".tar.gz"))
        ok = archive_write_set_filter_option(a, "gzip", "timestamp", NULL);
    if (ok == ARCHIVE_OK)
        ok = archive_write_set_bytes_in_last_block(a, 1);
    if (ok == ARCHIVE_OK)
        ok = archive_write_open(a, o, NULL, write_out, NULL);
    return ok == ARCHIVE_OK ? 0 : archive_failed(a, path, err);
}

static int pack_file(struct archive *a, const char *dir, const struct sl_tree_file *file,
                     char *chunk, const struct sl_watch *watch, json_t *entries, struct sl_err *err)
{
    char path[SL_PATH_MAX], hex[SL_SHA256_HEX + 1];
    struct sl_sha256 digest = {NULL};
    int rc = sl_path(path, err, "%s/%s", dir, file->path);
    if (rc)
        return rc;
    struct archive_entry *e = archive_entry_new();
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (!e)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    else if (fd < 0)
        rc = sl_err_errno(err, "opening %s", path);
    else
        rc = sl_sha256_init(&digest, err);
    if (rc == 0) {
        archive_entry_set_pathname(e, file->path);
        archive_entry_set_filetype(e, AE_IFREG);
        archive_entry_set_perm(e, 0644);
        archive_entry_set_size(e, file->bytes);
        archive_entry_set_mtime(e, 0, 0);
        if (archive_write_header(a, e) != ARCHIVE_OK)
            rc = archive_failed(a, path, err);
    }
    int64_t done = 0;
    while (rc == 0) {
        ssize_t n = read(fd, chunk, CHUNK_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = sl_err_errno(err, "reading %s", path);
        else if (done + n > file->bytes || (n == 0 && done != file->bytes))
            rc = sl_err_set(err, SL_DATA, "%s changed while it was packed", path);
        else if (n > 0 && sl_watch_stop(watch))
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        else if (n > 0 && archive_write_data(a, chunk, (size_t)n) != n)
            rc = archive_failed(a, path, err);
        if (rc || n == 0)
            break;
        sl_sha256_update(&digest, chunk, (size_t)n);
        sl_watch_progress(watch, n);
        done += n;
    }
    if (rc == 0) {
        sl_sha256_hex(&digest, hex);
        rc = add_entry(entries, file->path, hex, done, err);
    }
    sl_sha256_release(&digest);
    if (fd >= 0)
        close(fd);
    archive_entry_free(e);
    return rc;
}

int sl_pack(const char *dir, const char *path, const struct sl_watch *watch,
            struct sl_packed *ret_packed, struct sl_err *err)
{
    struct sl_tree tree;
    int rc = sl_tree_list(dir, false, &tree, err);
    if (rc)
        return rc;
    struct sl_err io = SL_ERR_INIT; /* of write_out: the cause behind what libarchive says */
    struct out o = {.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), .err = &io};
    struct archive *a = archive_write_new();
    json_t *entries = json_array();
    char *chunk = malloc(CHUNK_BYTES);
    if (o.fd < 0)
        rc = sl_err_errno(err, "creating %s", path);
    else if (!a || !entries || !chunk)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    else
        rc = sl_sha256_init(&o.digest, err);
    struct sl_err fault = SL_ERR_INIT;
    if (rc == 0)
        rc = open_writer(a, path, all_ascii(&tree), &o, &fault);
    for (size_t i = 0; rc == 0 && i < tree.n; i++)
        rc = pack_file(a, dir, &tree.files[i], chunk, watch, entries, &fault);
    if (rc == 0 && archive_write_close(a) != ARCHIVE_OK)
        rc = archive_failed(a, path, &fault);
    if (a)
        archive_write_free(a);
    if (io.code)
        rc = sl_err_set(err, io.code, "%s", io.msg);
    else if (fault.code)
        rc = sl_err_set(err, fault.code, "%s", fault.msg);
    struct sl_packed packed = {.bytes = o.bytes, .entries = entries};
    if (rc == 0)
        sl_sha256_hex(&o.digest, packed.sha256);
    sl_sha256_release(&o.digest);
    if (o.fd >= 0 && close(o.fd) && rc == 0)
        rc = sl_err_errno(err, "closing %s", path);
    free(chunk);
    sl_tree_release(&tree);
    if (rc) {
        json_decref(entries);
        if (o.fd >= 0)
            unlink(path);
        return sl_err_wrap(err, rc, "packing %s into %s", dir, path);
    }
    *ret_packed = packed;
    return 0;
}

/* ---- unpack ---------------------------------------------------------------------------------- */

struct in {
    struct archive *a;
    const char *root; /* temporary folder */
    char *chunk;
    const struct sl_watch *watch;
    json_t *entries;
    int n_entries;
    int64_t bytes; /* out so far */
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
    int64_t packed = archive_filter_bytes(in->a, -1);
    if (more < 0 || more > SL_UNPACK_MAX_BYTES - in->bytes)
        return sl_err_set(err, SL_DATA, "%s: the archive unpacks to more than %lld bytes", path,
                          (long long)SL_UNPACK_MAX_BYTES);
    if (in->bytes + more > SL_UNPACK_RATIO_FROM &&
        (in->bytes + more) / SL_UNPACK_MAX_RATIO > (packed > 0 ? packed : 1))
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
        la_ssize_t n = archive_read_data(in->a, in->chunk, CHUNK_BYTES);
        if (n == ARCHIVE_RETRY)
            continue;
        if (n < 0)
            rc = archive_failed(in->a, path, err);
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
        rc = add_entry(in->entries, path, hex, done, err);
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

static int unpack_all(struct in *in, const char *path, struct sl_err *err)
{
    struct archive_entry *e;
    int ok = archive_read_support_format_tar(in->a), rc = 0;
    if (ok == ARCHIVE_OK)
        ok = archive_read_support_filter_gzip(in->a);
    if (ok == ARCHIVE_OK)
        ok = archive_read_support_filter_zstd(in->a);
    if (ok == ARCHIVE_OK)
        ok = archive_read_open_filename(in->a, path, CHUNK_BYTES);
    while (ok == ARCHIVE_OK && rc == 0) {
        ok = archive_read_next_header(in->a, &e);
        if (ok == ARCHIVE_OK || ok == ARCHIVE_WARN) {
            ok = ARCHIVE_OK;
            rc = unpack_entry(in, e, err);
        }
    }
    if (rc == 0 && ok != ARCHIVE_EOF)
        rc = archive_failed(in->a, "not a whole .tar, .tar.gz or .tar.zst", err);
    if (rc == 0 && json_array_size(in->entries) == 0)
        rc = sl_err_set(err, SL_DATA, "the archive holds no file");
    return rc;
}

int sl_unpack(const char *path, const char *dest, const struct sl_watch *watch,
              json_t **ret_entries, struct sl_err *err)
{
    char tmp[SL_PATH_MAX], id[SL_ID_HEX + 1];
    sl_random_id(id);
    int rc = sl_path(tmp, err, "%s.%.12s.tmp", dest, id);
    if (rc)
        return rc;
    if (sl_file_exists(dest))
        return sl_err_set(err, SL_CONFLICT, "%s is there already", dest);
    if (mkdir(tmp, 0755))
        return sl_err_errno(err, "making folder %s", tmp);
    struct in in = {.a = archive_read_new(),
                    .root = tmp,
                    .chunk = malloc(CHUNK_BYTES),
                    .watch = watch,
                    .entries = json_array()};
    if (!in.a || !in.chunk || !in.entries)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    else
        rc = unpack_all(&in, path, err);
    if (in.a)
        archive_read_free(in.a);
    free(in.chunk);
    if (rc == 0 && rename(tmp, dest))
        rc = sl_err_errno(err, "renaming %s to %s", tmp, dest);
    if (rc) {
        sl_rmtree(tmp, NULL);
        json_decref(in.entries);
        return sl_err_wrap(err, rc, "unpacking %s", path);
    }
    if (ret_entries)
        *ret_entries = in.entries;
    else
        json_decref(in.entries);
    return 0;
}
