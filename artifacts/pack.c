#include "artifacts/pack_priv.h"
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

#define CHUNK_BYTES SL_PACK_CHUNK_BYTES

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

bool sl_is_tarball(const char *path)
{
    return ends_with(path, ".tar.zst") || ends_with(path, ".tar.gz") || ends_with(path, ".tar");
}

int sl_pack_add_entry(json_t *entries, const char *path, const char *sha256, int64_t bytes,
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

int sl_pack_failed(struct archive *a, const char *what, struct sl_err *err)
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
    return ok == ARCHIVE_OK ? 0 : sl_pack_failed(a, path, err);
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
            rc = sl_pack_failed(a, path, err);
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
            rc = sl_pack_failed(a, path, err);
        if (rc || n == 0)
            break;
        sl_sha256_update(&digest, chunk, (size_t)n);
        sl_watch_progress(watch, n);
        done += n;
    }
    if (rc == 0) {
        sl_sha256_hex(&digest, hex);
        rc = sl_pack_add_entry(entries, file->path, hex, done, err);
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
        rc = sl_pack_failed(a, path, &fault);
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
