#include "artifacts/source.h"
#include "base/file.h"
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES 65536

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

bool sl_source_knows(const char *ref)
{
    return starts_with(ref, "s3://") || starts_with(ref, "gs://") || starts_with(ref, "hf://") ||
           starts_with(ref, "http://") || starts_with(ref, "https://");
}

const char *sl_source_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int sl_source_add(struct sl_source *source, const char *path, const char *url, int64_t bytes,
                  struct sl_source_file **ret_file, struct sl_err *err)
{
    if (!sl_entry_path_valid(path))
        return sl_err_set(err, SL_DATA,
                          "the source has a file that cannot be called so here: %.200s (relative, "
                          "without empty, `.` or `..` parts, at most %d bytes and %d deep)",
                          path, SL_ENTRY_PATH_MAX, SL_ENTRY_DEPTH_MAX);
    if (source->n == SL_SOURCE_FILES_MAX)
        return sl_err_set(err, SL_SPEC, "the source has more than %d files", SL_SOURCE_FILES_MAX);
    if ((source->n & (source->n - 1)) == 0) { /* 0 or a power of two: full */
        size_t room = source->n ? 2 * source->n : 1;
        struct sl_source_file *more = realloc(source->files, room * sizeof *more);
        if (!more)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        source->files = more;
    }
    struct sl_source_file file = {.path = strdup(path), .url = strdup(url), .bytes = bytes};
    if (!file.path || !file.url) {
        free(file.path);
        free(file.url);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    source->files[source->n] = file;
    if (ret_file)
        *ret_file = &source->files[source->n];
    source->n++;
    return 0;
}

int sl_bucket_ref_parse(const char *ref, struct sl_bucket_ref *ret, struct sl_err *err)
{
    struct sl_bucket_ref r = {.bucket = ""};
    char plain[SL_ENTRY_PATH_MAX + 2];
    const char *p = strstr(ref, "://");
    p = p ? p + 3 : "";
    size_t len = strcspn(p, "/");
    if (len < 3 || len >= sizeof r.bucket ||
        strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789.-_") < len)
        return sl_err_set(err, SL_SPEC, "`%.200s` does not name a bucket: write %.5sBUCKET/NAME",
                          ref, ref);
    memcpy(r.bucket, p, len);
    const char *key = p[len] ? p + len + 1 : "";
    size_t n = strlen(key);
    r.folder = n == 0 || key[n - 1] == '/';
    if (n >= sizeof r.key)
        return sl_err_set(err, SL_SPEC, "`%.200s...`: a name in a bucket may have %d bytes here",
                          ref, SL_ENTRY_PATH_MAX);
    memcpy(r.key, key, n + 1);
    memcpy(plain, key, n + 1);
    if (n && r.folder)
        plain[n - 1] = 0;
    if (n && !sl_entry_path_valid(plain))
        return sl_err_set(err, SL_SPEC, "`%.300s` has empty, `.` or `..` parts in its name", ref);
    *ret = r;
    return 0;
}

int sl_source_open(const char *ref, const struct sl_watch *watch, struct sl_source *ret_source,
                   struct sl_err *err)
{
    struct sl_source s = {.n = 0};
    int rc;
    if (starts_with(ref, "s3://"))
        rc = sl_source_s3(ref, watch, &s, err);
    else if (starts_with(ref, "gs://"))
        rc = sl_source_gs(ref, watch, &s, err);
    else if (starts_with(ref, "hf://"))
        rc = sl_source_hf(ref, watch, &s, err);
    else
        rc = sl_source_add(&s, "file", ref, -1, NULL, err);
    if (rc == 0 && s.n == 0)
        rc = sl_err_set(err, SL_NOTFOUND, "there is nothing below it");
    if (rc) {
        sl_source_release(&s);
        return sl_err_wrap(err, rc, "%s", ref);
    }
    *ret_source = s;
    return 0;
}

int sl_source_check(const struct sl_source_file *file, const char *path, struct sl_err *err)
{
    char chunk[CHUNK_BYTES], head[64], hex[SL_GIT_SHA1_HEX + 1];
    unsigned char raw[EVP_MAX_MD_SIZE] = {0};
    struct stat st;
    if (!file->git_sha1[0])
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (fd < 0 || fstat(fd, &st))
        rc = sl_err_errno(err, "opening %s", path);
    else if (!ctx || EVP_DigestInit_ex(ctx, EVP_sha1(), NULL) != 1)
        rc = sl_err_set(err, SL_NOMEM, "no memory for a digest");
    if (rc == 0) { /* git hashes "blob SIZE", a NUL and the bytes */
        int n = snprintf(head, sizeof head, "blob %lld", (long long)st.st_size);
        EVP_DigestUpdate(ctx, head, (size_t)n + 1);
    }
    for (ssize_t n = 1; rc == 0 && n > 0;) {
        n = read(fd, chunk, sizeof chunk);
        if (n < 0)
            rc = sl_err_errno(err, "reading %s", path);
        else
            EVP_DigestUpdate(ctx, chunk, (size_t)n);
    }
    if (rc == 0) {
        EVP_DigestFinal_ex(ctx, raw, NULL);
        for (size_t i = 0; i < SL_GIT_SHA1_HEX / 2; i++)
            snprintf(hex + 2 * i, 3, "%02x", raw[i]);
        if (strcmp(hex, file->git_sha1) != 0)
            rc = sl_err_set(err, SL_DATA, "%s: wrong content: git's blob is %s, what came %s",
                            file->path, file->git_sha1, hex);
    }
    EVP_MD_CTX_free(ctx);
    if (fd >= 0)
        close(fd);
    return rc;
}

void sl_source_release(struct sl_source *source)
{
    if (!source)
        return;
    for (size_t i = 0; i < source->n; i++) {
        free(source->files[i].path);
        free(source->files[i].url);
    }
    free(source->files);
    if (source->free_state)
        source->free_state(source->state);
    *source = (struct sl_source){.n = 0};
}
