#include "server/audit.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOOK_BYTES (2u << 20) /* of lines that one read looks at */

struct sl_audit {
    char dir[SL_PATH_MAX];
    pthread_mutex_t mutex; /* of what follows */
    pthread_mutex_t syncing;
    int number, fd; /* of the newest file */
    int64_t bytes;
    int64_t written, synced; /* lines since the start */
    bool broken;             /* a line is half written: the next one starts behind a new line */
};

static int file_path(const struct sl_audit *a, int number, char ret_path[SL_PATH_MAX],
                     struct sl_err *err)
{
    return sl_path(ret_path, err, "%s/%08d.jsonl", a->dir, number);
}

static int open_file(struct sl_audit *a, int number, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct stat st;
    int rc = file_path(a, number, path, err);
    if (rc)
        return rc;
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || fstat(fd, &st)) {
        rc = sl_err_errno(err, "opening %s", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    if (a->fd >= 0)
        close(a->fd);
    a->fd = fd;
    a->number = number;
    a->bytes = st.st_size;
    return sl_dir_sync(a->dir, err);
}

/* Cuts what stands behind the last whole line. */
static int cut_torn(struct sl_audit *a, struct sl_err *err)
{
    char tail[SL_AUDIT_LINE_MAX];
    int64_t from = a->bytes > (int64_t)sizeof tail ? a->bytes - (int64_t)sizeof tail : 0;
    ssize_t n = pread(a->fd, tail, sizeof tail, from);
    if (n < 0)
        return sl_err_errno(err, "reading the audit log");
    while (n > 0 && tail[n - 1] != '\n')
        n--;
    if (from + n == a->bytes)
        return 0;
    if (ftruncate(a->fd, from + n))
        return sl_err_errno(err, "cutting the torn end of the audit log");
    a->bytes = from + n;
    return 0;
}

int sl_audit_open(const char *data_dir, struct sl_audit **ret_audit, struct sl_err *err)
{
    struct sl_audit *a = calloc(1, sizeof *a);
    if (!a)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    a->fd = -1;
    pthread_mutex_init(&a->mutex, NULL);
    pthread_mutex_init(&a->syncing, NULL);
    int rc = sl_path(a->dir, err, "%s/audit", data_dir), newest = 1;
    if (rc == 0)
        rc = sl_mkdirs(a->dir, err);
    if (rc == 0 && chmod(a->dir, 0700))
        rc = sl_err_errno(err, "closing %s to others", a->dir);
    DIR *d = rc == 0 ? opendir(a->dir) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        int n = atoi(e->d_name);
        newest = n > newest ? n : newest;
    }
    if (d)
        closedir(d);
    if (rc == 0)
        rc = open_file(a, newest, err);
    if (rc == 0)
        rc = cut_torn(a, err);
    if (rc) {
        sl_audit_close(a);
        return sl_err_wrap(err, rc, "audit log");
    }
    *ret_audit = a;
    return 0;
}

void sl_audit_close(struct sl_audit *a)
{
    if (!a)
        return;
    if (a->fd >= 0) {
        fdatasync(a->fd);
        close(a->fd);
    }
    pthread_mutex_destroy(&a->mutex);
    pthread_mutex_destroy(&a->syncing);
    free(a);
}

/* Mutex is held. */
static int append(struct sl_audit *a, const char *line, size_t len, struct sl_err *err)
{
    int rc = 0;
    if (a->bytes >= (int64_t)SL_AUDIT_FILE_BYTES) {
        if (fdatasync(a->fd)) /* later syncs see the new file only */
            return sl_err_errno(err, "syncing the audit log");
        rc = open_file(a, a->number + 1, err);
    }
    if (rc == 0 && a->broken) {
        rc = sl_write_all(a->fd, "\n", 1, err);
        a->bytes += rc == 0;
    }
    if (rc)
        return rc;
    a->broken = true;
    rc = sl_write_all(a->fd, line, len, err);
    if (rc)
        return sl_err_wrap(err, rc, "writing the audit log");
    a->broken = false;
    a->bytes += (int64_t)len;
    a->written++;
    return 0;
}

/* Whoever gets `syncing` syncs for all that were written before; the others find it done. */
static int sync_up_to(struct sl_audit *a, int64_t line, struct sl_err *err)
{
    int rc = 0;
    pthread_mutex_lock(&a->syncing);
    pthread_mutex_lock(&a->mutex);
    bool done = a->synced >= line;
    int64_t written = a->written;
    int fd = done ? -1 : fcntl(a->fd, F_DUPFD_CLOEXEC, 0); /* the file may end meanwhile */
    pthread_mutex_unlock(&a->mutex);
    if (!done && (fd < 0 || fdatasync(fd)))
        rc = sl_err_errno(err, "syncing the audit log");
    if (fd >= 0)
        close(fd);
    if (!done && rc == 0) {
        pthread_mutex_lock(&a->mutex);
        a->synced = written;
        pthread_mutex_unlock(&a->mutex);
    }
    pthread_mutex_unlock(&a->syncing);
    return rc;
}

int sl_audit_add(struct sl_audit *a, const json_t *entry, bool synced, struct sl_err *err)
{
    char *text = sl_json_dump(entry);
    size_t len = text ? strlen(text) : 0;
    if (!text)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    if (len + 1 > SL_AUDIT_LINE_MAX) {
        free(text);
        return sl_err_set(err, SL_SPEC, "an audit entry has %zu bytes; at most %d", len,
                          SL_AUDIT_LINE_MAX - 1);
    }
    text[len] = '\n'; /* in the NUL's place */
    pthread_mutex_lock(&a->mutex);
    int rc = append(a, text, len + 1, err);
    int64_t line = a->written;
    pthread_mutex_unlock(&a->mutex);
    free(text);
    return rc == 0 && synced ? sync_up_to(a, line, err) : rc;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int parse_cursor(const char *cursor, int *number, int64_t *end, struct sl_err *err)
{
    char *rest;
    errno = 0;
    long n = strtol(cursor, &rest, 10);
    long long at = *rest == '-' ? strtoll(rest + 1, &rest, 10) : -1;
    if (*rest || errno || n < 1 || n > 99999999 || at < 0)
        return sl_err_set(err, SL_SPEC,
                          "cursor: expected what an earlier page gave as next_cursor");
    *number = (int)n;
    *end = at;
    return 0;
}

struct reader {
    json_t *entries;
    const char *user;
    size_t most;
    int64_t looked;
};

/* Takes lines of a file from `end` backwards. *end: where the next call goes on, 0 at the start. */
static int read_back(const char *path, int64_t *end, struct reader *r, struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    char block[SL_AUDIT_LINE_MAX * 4];
    if (fd < 0 && errno == ENOENT) {
        *end = 0; /* moved away by the operator */
        return 0;
    }
    if (fd < 0)
        return sl_err_errno(err, "opening %s", path);
    while (*end > 0 && json_array_size(r->entries) < r->most && r->looked < LOOK_BYTES) {
        int64_t from = *end > (int64_t)sizeof block ? *end - (int64_t)sizeof block : 0;
        ssize_t n = pread(fd, block, (size_t)(*end - from), from);
        if (n < *end - from) {
            rc = n < 0 ? sl_err_errno(err, "reading %s", path)
                       : sl_err_set(err, SL_SPEC, "cursor: behind the end of the log");
            break;
        }
        ssize_t stop = n; /* behind the line that is looked at */
        while (stop > 0 && json_array_size(r->entries) < r->most) {
            ssize_t start = stop - 1;
            while (start > 0 && block[start - 1] != '\n')
                start--;
            if (start == 0 && from > 0) /* its beginning is in the block before */
                break;
            json_t *entry = json_loadb(block + start, (size_t)(stop - start), 0, NULL);
            if (entry && (!r->user || !strcmp(sl_json_str(entry, "user", ""), r->user)))
                json_array_append(r->entries, entry);
            json_decref(entry);
            r->looked += stop - start;
            stop = start;
        }
        if (stop == n) { /* no line is as long as a block: not one of ours */
            rc = sl_err_set(err, SL_DATA, "%s has a line of more than %zu bytes", path,
                            sizeof block);
            break;
        }
        *end = from + stop;
    }
    close(fd);
    return rc;
}

int sl_audit_read(struct sl_audit *a, const char *cursor, int most, const char *user,
                  json_t **ret_entries, char ret_next[40], struct sl_err *err)
{
    struct reader r = {.user = user, .most = (size_t)most};
    char path[SL_PATH_MAX];
    int number, newest;
    int64_t end;
    pthread_mutex_lock(&a->mutex);
    newest = number = a->number;
    end = a->bytes;
    pthread_mutex_unlock(&a->mutex);
    int rc = cursor ? parse_cursor(cursor, &number, &end, err) : 0;
    if (rc == 0 && number > newest)
        rc = sl_err_set(err, SL_SPEC, "cursor: behind the end of the log");
    if (rc)
        return rc;
    if (!(r.entries = json_array()))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    for (;;) {
        rc = file_path(a, number, path, err);
        if (rc == 0)
            rc = read_back(path, &end, &r, err);
        if (rc || end > 0 || number == 1)
            break;
        struct stat st;
        if ((rc = file_path(a, --number, path, err)))
            break;
        end = stat(path, &st) == 0 ? (int64_t)st.st_size : 0;
        if (json_array_size(r.entries) >= r.most || r.looked >= LOOK_BYTES)
            break;
    }
    if (rc) {
        json_decref(r.entries);
        return rc;
    }
    if (end > 0)
        snprintf(ret_next, 40, "%d-%lld", number, (long long)end);
    else
        ret_next[0] = 0;
    *ret_entries = r.entries;
    return 0;
}
