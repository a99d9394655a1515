#include "artifacts/bundle.h"
#include "artifacts/names.h"
#include "base/buf.h"
#include "base/file.h"
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES 65536
#define SUMS_BYTES_MAX (1u << 30)

struct sl_bundle {
    struct archive *a;
    struct sl_buf sums;
    int fd;
    char path[SL_PATH_MAX], part[SL_PATH_MAX];
};

static int failed(struct archive *a, const char *what, struct sl_err *err)
{
    const char *why = archive_error_string(a);
    int number = archive_errno(a);
    return sl_err_set(err, number == ENOMEM ? SL_NOMEM : number == ENOSPC || number == EIO ? SL_IO : SL_DATA, "%s: %s", what,
                      why ? why : "unknown fault");
}

int sl_bundle_create(const char *path, struct sl_bundle **ret_bundle, struct sl_err *err)
{
    struct sl_bundle *b = calloc(1, sizeof *b);
    if (!b)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    b->fd = -1;
    sl_buf_init(&b->sums, SUMS_BYTES_MAX);
    int rc = sl_path(b->path, err, "%s", path);
    if (rc == 0)
        rc = sl_path(b->part, err, "%s.part", path);
    if (rc == 0) {
        b->fd = open(b->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        b->a = b->fd < 0 ? NULL : archive_write_new();
        if (b->fd < 0)
            rc = sl_err_errno(err, "creating %s", b->part);
        else if (!b->a)
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        else if (archive_write_set_format_pax_restricted(b->a) != ARCHIVE_OK || archive_write_open_fd(b->a, b->fd) != ARCHIVE_OK)
            rc = failed(b->a, path, err);
    }
    if (rc) {
        sl_bundle_abort(b);
        return rc;
    }
    *ret_bundle = b;
    return 0;
}

static int begin(struct sl_bundle *b, const char *name, int64_t bytes, struct sl_err *err)
{
    struct archive_entry *e = archive_entry_new();
    if (!e)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_size(e, bytes);
    archive_entry_set_mtime(e, 0, 0);
    int rc = archive_write_header(b->a, e) == ARCHIVE_OK ? 0 : failed(b->a, b->part, err);
    archive_entry_free(e);
    return rc;
}

static int add_line(struct sl_bundle *b, const char *name, const char *sha256, struct sl_err *err)
{
    return sl_buf_addf(&b->sums, "%s  %s\n", sha256, name) ? sl_err_set(err, SL_NOMEM, "too many files") : 0;
}

int sl_bundle_add(struct sl_bundle *b, const char *name, const char *path, const char *sha256, struct sl_err *err)
{
    char chunk[CHUNK_BYTES], found[SL_SHA256_HEX + 1];
    struct sl_sha256 d = {NULL};
    struct stat st;
    int64_t done = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 || fstat(fd, &st) ? sl_err_errno(err, "opening %s", path) : sl_sha256_init(&d, err);
    if (rc == 0)
        rc = begin(b, name, st.st_size, err);
    for (ssize_t n = 1; rc == 0 && n > 0; done += n) {
        n = read(fd, chunk, sizeof chunk);
        if (n < 0)
            rc = sl_err_errno(err, "reading %s", path);
        else if (n > 0 && archive_write_data(b->a, chunk, (size_t)n) != n)
            rc = failed(b->a, b->part, err);
        else
            sl_sha256_update(&d, chunk, (size_t)n);
    }
    if (rc == 0) {
        sl_sha256_hex(&d, found);
        if (strcmp(found, sha256) != 0)
            rc = sl_err_set(err, SL_DATA, "%s: wrong sha256: expected %s, found %s", name, sha256, found);
    }
    sl_sha256_release(&d);
    if (fd >= 0)
        close(fd);
    return rc ? rc : add_line(b, name, sha256, err);
}

int sl_bundle_add_text(struct sl_bundle *b, const char *name, const char *text, struct sl_err *err)
{
    char sha256[SL_SHA256_HEX + 1];
    size_t len = strlen(text);
    int rc = sl_sha256_data(text, len, sha256, err);
    if (rc == 0)
        rc = begin(b, name, (int64_t)len, err);
    if (rc == 0 && archive_write_data(b->a, text, len) != (la_ssize_t)len)
        rc = failed(b->a, b->part, err);
    return rc ? rc : add_line(b, name, sha256, err);
}

int sl_bundle_finish(struct sl_bundle *b, struct sl_err *err)
{
    char *sums = sl_buf_take(&b->sums);
    int rc = sums ? sl_bundle_add_text(b, SL_BUNDLE_SUMS, sums, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    free(sums);
    if (rc == 0 && archive_write_close(b->a) != ARCHIVE_OK)
        rc = failed(b->a, b->part, err);
    if (rc == 0 && fsync(b->fd))
        rc = sl_err_errno(err, "syncing %s", b->part);
    if (rc == 0 && rename(b->part, b->path))
        rc = sl_err_errno(err, "renaming %s to %s", b->part, b->path);
    if (rc == 0)
        b->part[0] = 0;
    sl_bundle_abort(b);
    return rc;
}

void sl_bundle_abort(struct sl_bundle *b)
{
    if (!b)
        return;
    if (b->a)
        archive_write_free(b->a);
    if (b->fd >= 0)
        close(b->fd);
    if (b->fd >= 0 && b->part[0])
        unlink(b->part);
    sl_buf_release(&b->sums);
    free(b);
}

/* ---- reading --------------------------------------------------------------------------------- */

struct reading {
    struct archive *a;
    const char *path;
    char file[SL_PATH_MAX]; /* where each lies for a while */
    json_t *found;          /* name -> sha256 */
    const struct sl_watch *watch;
};

static int take_out(struct reading *r, const char *name, int64_t *ret_bytes, char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err)
{
    char chunk[CHUNK_BYTES];
    struct sl_sha256 d;
    int rc = sl_sha256_init(&d, err);
    if (rc)
        return rc;
    int fd = open(r->file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int64_t bytes = 0;
    if (fd < 0)
        rc = sl_err_errno(err, "creating %s", r->file);
    while (rc == 0) {
        la_ssize_t n = archive_read_data(r->a, chunk, sizeof chunk);
        if (n == 0)
            break;
        if (n < 0)
            rc = failed(r->a, name, err);
        else if (sl_watch_stop(r->watch))
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        else
            rc = sl_write_all(fd, chunk, (size_t)n, err);
        if (rc == 0)
            sl_sha256_update(&d, chunk, (size_t)n);
        bytes += n;
    }
    if (fd >= 0)
        close(fd);
    if (rc == 0) {
        sl_sha256_hex(&d, ret_sha256);
        *ret_bytes = bytes;
    }
    sl_sha256_release(&d);
    return rc;
}

/* Compares the lines of SHA256SUMS with what came: the same files, with the same digests. */
static int check_sums(struct reading *r, struct sl_err *err)
{
    size_t lines = 0, size = 0, n;
    char *line = NULL;
    int rc = 0;
    FILE *f = fopen(r->file, "re");
    if (!f)
        return sl_err_errno(err, "opening %s", r->file);
    for (ssize_t len; rc == 0 && (len = getline(&line, &size, f)) > 0; lines++) {
        n = (size_t)len;
        if (line[n - 1] == '\n')
            line[--n] = 0;
        const char *name = n > SL_SHA256_HEX + 2 ? line + SL_SHA256_HEX + 2 : "";
        const char *found = json_string_value(json_object_get(r->found, name));
        if (!found || strncmp(line, found, SL_SHA256_HEX) != 0 || line[SL_SHA256_HEX] != ' ')
            rc = sl_err_set(err, SL_DATA, "%s: " SL_BUNDLE_SUMS " and what is in it differ at %.200s", r->path, *name ? name : line);
    }
    if (rc == 0 && lines != json_object_size(r->found))
        rc = sl_err_set(err, SL_DATA, "%s: " SL_BUNDLE_SUMS " does not name all that is in it", r->path);
    free(line);
    fclose(f);
    return rc;
}

static int read_entries(struct reading *r, sl_bundle_fn *fn, void *arg, struct sl_err *err)
{
    struct archive_entry *e;
    char sha256[SL_SHA256_HEX + 1];
    int64_t bytes = 0;
    for (size_t n = 0;; n++) {
        int ok = archive_read_next_header(r->a, &e);
        if (ok == ARCHIVE_EOF)
            return sl_err_set(err, SL_DATA, "%s ends early: it has no " SL_BUNDLE_SUMS, r->path);
        if (ok != ARCHIVE_OK)
            return failed(r->a, r->path, err);
        const char *name = archive_entry_pathname(e);
        if (!sl_entry_path_valid(name) || archive_entry_filetype(e) != AE_IFREG || archive_entry_hardlink(e) ||
            n == SL_BUNDLE_FILES_MAX || json_object_get(r->found, name))
            return sl_err_set(err, SL_DATA, "%s: %.200s cannot stand in it", r->path, name ? name : "a name that cannot be read");
        int rc = take_out(r, name, &bytes, sha256, err);
        if (rc == 0 && strcmp(name, SL_BUNDLE_SUMS) == 0)
            return check_sums(r, err);
        if (rc == 0 && json_object_set_new(r->found, name, json_string(sha256)))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        if (rc == 0)
            rc = fn(arg, name, r->file, bytes, sha256, err);
        if (rc)
            return rc;
    }
}

int sl_bundle_read(const char *path, const char *dir, const struct sl_watch *watch, sl_bundle_fn *fn, void *arg, struct sl_err *err)
{
    struct reading r = {archive_read_new(), path, "", json_object(), watch};
    int rc = sl_path(r.file, err, "%s/bundle-file", dir);
    if (rc == 0 && (!r.a || !r.found))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0 && (archive_read_support_format_tar(r.a) != ARCHIVE_OK ||
                    archive_read_open_filename(r.a, path, CHUNK_BYTES) != ARCHIVE_OK))
        rc = failed(r.a, path, err);
    if (rc == 0)
        rc = read_entries(&r, fn, arg, err);
    if (r.file[0])
        unlink(r.file);
    archive_read_free(r.a);
    json_decref(r.found);
    return rc;
}
