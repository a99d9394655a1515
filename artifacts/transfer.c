/* Long because downloads and uploads share one job, its callbacks and what its answers mean. */
#include "artifacts/transfer.h"
#include "artifacts/job.h"
#include "artifacts/ranges.h"
#include "artifacts/web.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define URL_MAX 4096

static int restart(struct sl_job *j, struct sl_err *err)
{
    sl_watch_progress(&j->t->watch, -j->fill->bytes);
    return sl_fill_restart(j->fill, err);
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct sl_job *j = arg;
    size_t len = size * n;
    long status = 0;
    curl_easy_getinfo(j->curl, CURLINFO_RESPONSE_CODE, &status);
    if (!j->fill || (status != 200 && status != 206)) {
        size_t room = j->reply.max - j->reply.len;
        sl_buf_add(&j->reply, data, len < room ? len : room);
        return len;
    }
    if (status != j->status) { /* the first bytes of this answer */
        j->status = status;
        if (status == 206 && j->range_from != j->fill->bytes) {
            sl_err_set(&j->err, SL_DATA, "the server sent byte %lld where %lld was asked for",
                       (long long)j->range_from, (long long)j->fill->bytes);
            return 0;
        }
        /* no ranges here: from the beginning */
        if (status == 200 && j->fill->bytes > 0 && restart(j, &j->err))
            return 0;
    }
    if (j->expected_bytes >= 0 && j->fill->bytes + (int64_t)len > j->expected_bytes) {
        sl_err_set(&j->err, SL_DATA, "more than the %lld bytes that it should have",
                   (long long)j->expected_bytes);
        return 0;
    }
    if (sl_fill_write(j->fill, data, len, &j->err))
        return 0;
    sl_pace_take(j->t->pace, (int64_t)len, &j->t->watch);
    sl_watch_progress(&j->t->watch, (int64_t)len);
    return len;
}

static size_t on_read(char *to, size_t size, size_t n, void *arg)
{
    struct sl_job *j = arg;
    ssize_t got = read(j->fd, to, size * n);
    if (got < 0) {
        sl_err_errno(&j->err, "reading what is uploaded");
        return CURL_READFUNC_ABORT;
    }
    j->sent += got;
    sl_pace_take(j->t->pace, got, &j->t->watch);
    sl_watch_progress(&j->t->watch, got);
    return (size_t)got;
}

static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct sl_job *j = arg;
    off_t at = lseek(j->fd, offset, origin);
    if (at < 0)
        return CURL_SEEKFUNC_FAIL;
    sl_watch_progress(&j->t->watch, at - j->sent);
    j->sent = at;
    return CURL_SEEKFUNC_OK;
}

/* Fills j->fill. by_digest: a digest will tell whether the rest belongs to what we have; else an
 * ETag must. etag: of what we have whole ("": nothing); ret_unchanged: the server says that it
 * still holds. */
static int fetch(struct sl_job *j, bool by_digest, const char *etag, bool *ret_unchanged,
                 struct sl_err *err)
{
    char line[SL_JOB_ETAG_MAX + 32], part_etag[SL_JOB_ETAG_MAX] = "";
    bool old_part = j->fill->bytes > 0; /* left by an earlier process */
    int64_t best = j->fill->bytes;
    int rc;
    for (int attempt = 1;; attempt++) {
        struct curl_slist *headers = NULL;
        int64_t before = j->fill->bytes;
        sl_web_reset(j->curl);
        if (before > 0) {
            snprintf(line, sizeof line, "%lld-", (long long)before);
            curl_easy_setopt(j->curl, CURLOPT_RANGE, line);
            snprintf(line, sizeof line, "If-Range: %s", part_etag);
            if (!by_digest)
                headers = curl_slist_append(NULL, line);
        } else if (etag[0]) {
            snprintf(line, sizeof line, "If-None-Match: %s", etag);
            headers = curl_slist_append(NULL, line);
        }
        CURLcode code = sl_job_perform(j, headers);
        if (code == CURLE_OK && !j->err.code) {
            if (j->status == 304 && etag[0]) {
                *ret_unchanged = true;
                return 0;
            }
            if (j->status == 200 || j->status == 206) {
                if (j->fill->bytes >= j->expected_bytes)
                    return 0;
                code = CURLE_PARTIAL_FILE;
                snprintf(j->curl_msg, sizeof j->curl_msg,
                         "the answer has %lld bytes instead of %lld", (long long)j->fill->bytes,
                         (long long)j->expected_bytes);
            }
        }
        if (before > 0 && (j->status == 416 || (j->err.code == SL_DATA && old_part))) {
            sl_err_clear(&j->err); /* what we had is not a beginning of it */
            old_part = false;
            rc = restart(j, err);
            if (rc)
                return rc;
            continue;
        }
        struct sl_err fault = SL_ERR_INIT;
        rc = sl_job_judge(j, code, &fault);
        if (j->fill->bytes > best) {
            best = j->fill->bytes;
            attempt = 1; /* progress: a fresh count */
        }
        if (rc != SL_RETRY || attempt >= sl_job_tries(j->t))
            return sl_err_set(err, rc, "%s%s", fault.msg,
                              rc == SL_RETRY ? ": gave up after several tries; is the server up?"
                                             : "");
        if (j->etag[0] == '"') /* a strong one */
            memcpy(part_etag, j->etag, sizeof part_etag);
        if (!by_digest && !part_etag[0]) {
            rc = restart(j, err);
            if (rc)
                return rc;
        }
        if (sl_ask_pause(sl_job_pause_us(j, attempt), &j->t->watch, &j->err))
            return sl_job_judge(j, CURLE_OK, err);
    }
}

/* ---- what a URL without a digest gave last --------------------------------------------------- */

struct known {
    char path[SL_PATH_MAX]; /* of the record */
    char etag[SL_JOB_ETAG_MAX], sha256[SL_SHA256_HEX + 1];
};

static int read_known(const struct sl_cache *cache, const char *url, const char *url_sha256,
                      struct known *ret_known, struct sl_err *err)
{
    struct known k = {.etag = ""};
    char path[SL_PATH_MAX];
    json_t *j = NULL;
    int rc = sl_path(k.path, err, "%s/urls/%s", cache->dir, url_sha256);
    if (rc)
        return rc;
    if (sl_json_read(k.path, SL_JOB_REPLY_MAX * 2, &j, NULL) == 0 &&
        strcmp(sl_json_str(j, "url", ""), url) == 0) {
        snprintf(k.etag, sizeof k.etag, "%s", sl_json_str(j, "etag", ""));
        snprintf(k.sha256, sizeof k.sha256, "%s", sl_json_str(j, "sha256", ""));
        if (!sl_sha256_valid(k.sha256) || sl_cache_find(cache, k.sha256, path, NULL, NULL))
            k.etag[0] = 0;
    }
    json_decref(j);
    *ret_known = k;
    return 0;
}

static int write_known(const struct known *k, const char *url, const char *etag, const char *sha256,
                       struct sl_err *err)
{
    json_t *j = json_pack("{s:s, s:s, s:s}", "url", url, "etag", etag, "sha256", sha256);
    int rc = j ? sl_json_write(k->path, j, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(j);
    return rc;
}

void sl_transfer_forget(const struct sl_cache *cache, const char *url)
{
    char path[SL_PATH_MAX], url_sha256[SL_SHA256_HEX + 1];
    if (sl_sha256_data(url, strlen(url), url_sha256, NULL) == 0 &&
        sl_path(path, NULL, "%s/urls/%s", cache->dir, url_sha256) == 0)
        unlink(path);
}

static int found_in_cache(const struct sl_transfer *t, const struct sl_cache *cache,
                          const char *sha256, struct sl_got *ret_got, struct sl_err *err)
{
    struct sl_got got = {.cached = true};
    int rc = sl_cache_find(cache, sha256, got.path, &got.bytes, err);
    if (rc)
        return rc;
    memcpy(got.sha256, sha256, SL_SHA256_HEX);
    sl_watch_progress(&t->watch, got.bytes);
    *ret_got = got;
    return 0;
}

int sl_transfer_want(const struct sl_transfer *t, const struct sl_cache *cache,
                     const struct sl_want *want, struct sl_got *ret_got, struct sl_err *err)
{
    const char *what = want->what, *url = want->url, *sha256 = want->sha256;
    const int64_t bytes = want->bytes;
    struct sl_job j;
    struct sl_fill fill;
    struct sl_got got = {.bytes = 0};
    struct known known = {.etag = ""};
    char url_sha256[SL_SHA256_HEX + 1];
    bool there = false, unchanged = false;
    if (sha256 && !sl_sha256_valid(sha256))
        return sl_err_set(err, SL_SPEC, "%s: not a sha256 (64 lower-case hex digits): %.80s", what,
                          sha256);
    if (sha256 && found_in_cache(t, cache, sha256, ret_got, NULL) == 0)
        return 0;
    if (strlen(url) > URL_MAX)
        return sl_err_set(err, SL_SPEC, "%s: the URL has more than %d bytes", what, URL_MAX);
    int rc = sl_sha256_data(url, strlen(url), url_sha256, err);
    if (rc == 0)
        rc = sl_fill_begin(cache, sha256 ? sha256 : url_sha256, sha256, &t->watch, &fill, &there,
                           err);
    if (rc)
        return sl_err_wrap(err, rc, "%s", what);
    if (sha256 && there)
        return found_in_cache(t, cache, sha256, ret_got, err);
    if (!sha256)
        rc = read_known(cache, url, url_sha256, &known, err);
    if (rc == 0)
        rc = sl_job_init(&j, t, what, url, on_body, err);
    if (rc) {
        sl_fill_abort(&fill);
        return sl_err_wrap(err, rc, "%s", what);
    }
    j.fill = &fill;
    j.expected_bytes = bytes;
    bool resumed = fill.bytes > 0;
    bool ranges = false;
    if (bytes >= SL_RANGES_MIN_BYTES && !known.etag[0])
        rc = sl_ranges_fill(t, &fill, want, &resumed, j.etag, &ranges, err);
    if (rc == 0 && !ranges)
        sl_watch_progress(&t->watch, fill.bytes);
    if (rc == 0 && !ranges &&
        !(resumed && fill.bytes == bytes)) /* else only the rename is missing */
        rc = fetch(&j, sha256 != NULL, known.etag, &unchanged, err);
    if (rc == 0 && unchanged) {
        unlink(fill.path);
        rc = found_in_cache(t, cache, known.sha256, &got, err);
        sl_fill_abort(&fill);
    } else if (rc == 0) {
        got.bytes = fill.bytes;
        struct sl_err fault = SL_ERR_INIT;
        rc = sl_fill_commit(&fill, sha256, got.sha256, got.path, &fault);
        if (rc == SL_DATA &&
            resumed) { /* the part that was left is gone now: once more, from nothing */
            sl_watch_progress(&t->watch, -got.bytes);
            sl_job_release(&j);
            return sl_transfer_want(t, cache, want, ret_got, err);
        }
        if (rc)
            sl_err_set(err, rc, "%s (%s): %s", what, url, fault.msg);
        else if (!sha256 && j.etag[0])
            rc = write_known(&known, url, j.etag, got.sha256, err);
    } else {
        sl_fill_abort(&fill);
    }
    sl_job_release(&j);
    if (rc == 0)
        *ret_got = got;
    return rc;
}

int sl_transfer_get(const struct sl_transfer *t, const struct sl_cache *cache, const char *what,
                    const char *url, const char *sha256, int64_t bytes, struct sl_got *ret_got,
                    struct sl_err *err)
{
    const struct sl_want want = {.what = what, .url = url, .sha256 = sha256, .bytes = bytes};
    return sl_transfer_want(t, cache, &want, ret_got, err);
}

/* ---- uploads --------------------------------------------------------------------------------- */

/* What the server has of the blob from an upload that broke off; 0 when it does not say. */
static int64_t came_so_far(struct sl_job *j, const char *sha256)
{
    char url[URL_MAX];
    const char *blob_url = j->url;
    struct curl_header *said;
    int64_t offset = 0;
    if (snprintf(url, sizeof url, "%s/api/v1/blobs/%s/upload", j->t->server, sha256) >=
        (int)sizeof url)
        return 0;
    j->url = url;
    sl_web_reset(j->curl);
    curl_easy_setopt(j->curl, CURLOPT_NOBODY, 1L);
    if (sl_job_perform(j, NULL) == CURLE_OK && j->status == 200 &&
        curl_easy_header(j->curl, "Upload-Offset", 0, CURLH_HEADER, -1, &said) == CURLHE_OK)
        offset = strtoll(said->value, NULL, 10);
    j->url = blob_url;
    return offset;
}

/* Sends the file from where the server has it; a small one whole. */
static CURLcode send_file(struct sl_job *j, const char *sha256, int64_t bytes, int64_t *ret_offset)
{
    char url[URL_MAX];
    const char *blob_url = j->url;
    int64_t offset = 0;
    bool piece = bytes >= SL_TRANSFER_PIECES_FROM;
    if (piece)
        offset = came_so_far(j, sha256);
    if (offset < 0 || offset > bytes)
        offset = 0;
    sl_web_reset(j->curl);
    if (piece && snprintf(url, sizeof url, "%s/api/v1/blobs/%s/upload?offset=%lld&bytes=%lld",
                          j->t->server, sha256, (long long)offset, (long long)bytes) <
                     (int)sizeof url) {
        j->url = url;
        curl_easy_setopt(j->curl, CURLOPT_CUSTOMREQUEST, "PATCH");
    }
    curl_easy_setopt(j->curl, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(j->curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)(bytes - offset));
    curl_easy_setopt(j->curl, CURLOPT_READFUNCTION, on_read);
    curl_easy_setopt(j->curl, CURLOPT_READDATA, j);
    curl_easy_setopt(j->curl, CURLOPT_SEEKFUNCTION, piece ? NULL : on_seek);
    curl_easy_setopt(j->curl, CURLOPT_SEEKDATA, j);
    on_seek(j, offset, SEEK_SET);
    CURLcode code = sl_job_perform(j, NULL);
    j->url = blob_url;
    *ret_offset = offset;
    return code;
}

static bool changed(const char *path, const char *sha256)
{
    char now[SL_SHA256_HEX + 1];
    return sl_sha256_file(path, now, NULL, NULL) == 0 && strcmp(now, sha256) != 0;
}

int sl_transfer_put(const struct sl_transfer *t, const char *what, const char *path,
                    const char *sha256, struct sl_err *err)
{
    char url[URL_MAX];
    struct sl_job j = {.fd = -1};
    struct stat st = {0};
    int64_t offset = 0, furthest = 0;
    if (snprintf(url, sizeof url, "%s/api/v1/blobs/%s", t->server, sha256) >= (int)sizeof url)
        return sl_err_set(err, SL_SPEC, "the server's URL is too long");
    int rc = sl_job_init(&j, t, what, url, on_body, err);
    if (rc)
        return rc;
    j.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (j.fd < 0 || fstat(j.fd, &st))
        rc = sl_err_errno(err, "opening %s", path);
    for (int attempt = 1; rc == 0; attempt++) {
        sl_web_reset(j.curl);
        curl_easy_setopt(j.curl, CURLOPT_NOBODY, 1L);
        CURLcode code = sl_job_perform(&j, NULL);
        if (code == CURLE_OK && j.status == 200) {
            sl_watch_progress(&t->watch, st.st_size - j.sent);
            break;
        }
        if (code == CURLE_OK && j.status == 404) {
            code = send_file(&j, sha256, st.st_size, &offset);
            if (code == CURLE_OK && (j.status == 200 || j.status == 201))
                break;
            if (offset > furthest) { /* the try before got further */
                furthest = offset;
                attempt = 1;
            }
        }
        struct sl_err fault = SL_ERR_INIT;
        int cause = sl_job_judge(&j, code, &fault);
        if (code == CURLE_OK && (j.status == 409 || j.status == 202))
            cause = SL_RETRY; /* somebody else sends the same; or more is to come */
        if (cause == SL_RETRY && attempt < sl_job_tries(t)) {
            if (sl_ask_pause(sl_job_pause_us(&j, attempt), &t->watch, &j.err) == 0)
                continue;
            cause = SL_CANCELLED;
        }
        if (cause == SL_DATA && changed(path, sha256))
            rc = sl_err_set(err, SL_DATA, "%s changed while it was sent: put it again when nothing writes to it", what);
        else
            rc = sl_err_set(err, cause, "%s%s", fault.msg,
                            cause == SL_RETRY ? ": gave up after several tries; is the server up?" : "");
    }
    sl_job_release(&j);
    return rc;
}
