#include "artifacts/transfer.h"
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

#define REPLY_KEPT_MAX 4096 /* of an error's body */
#define ETAG_MAX 256
#define URL_MAX 4096
#define PAUSE_SLICE_US 50000

/* One request under way. */
struct job {
    const struct sl_transfer *t;
    const char *what, *url;
    bool own; /* the token's server */
    CURL *curl;
    struct sl_buf reply; /* an error's body */
    char etag[ETAG_MAX];
    char curl_msg[CURL_ERROR_SIZE];
    long status;
    struct sl_err err; /* of a callback */
    /* a download */
    struct sl_fill *fill;
    int64_t expected_bytes;
    int64_t range_from; /* what the answer to a Range request begins with; -1: not said */
    /* an upload */
    int fd;
    int64_t sent;
};

static int tries_of(const struct sl_transfer *t)
{
    return t->tries ? t->tries : SL_TRANSFER_TRIES;
}

/* Waits before try number `attempt`. */
static int pause_before(struct job *j, int attempt)
{
    int64_t us = sl_web_pause_us(attempt);
    curl_off_t after_s = 0;
    curl_easy_getinfo(j->curl, CURLINFO_RETRY_AFTER, &after_s);
    if (after_s > SL_TRANSFER_RETRY_AFTER_S)
        after_s = SL_TRANSFER_RETRY_AFTER_S;
    if (after_s * 1000000 > us)
        us = after_s * 1000000;
    for (int64_t until = sl_boot_us() + us; sl_boot_us() < until;) {
        if (sl_watch_stop(&j->t->watch))
            return sl_err_set(&j->err, SL_CANCELLED, "stopped");
        usleep(PAUSE_SLICE_US);
    }
    return 0;
}

static int on_tick(void *arg, curl_off_t dt, curl_off_t dn, curl_off_t ut, curl_off_t un)
{
    struct job *j = arg;
    (void)dt;
    (void)dn;
    (void)ut;
    (void)un;
    if (!sl_watch_stop(&j->t->watch))
        return 0;
    sl_err_set(&j->err, SL_CANCELLED, "stopped");
    return 1;
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    struct job *j = arg;
    size_t len = size * n;
    if (len > 5 && strncasecmp(line, "HTTP/", 5) == 0) { /* a redirect's headers do not count */
        j->etag[0] = 0;
        j->range_from = -1;
    } else if (len > 5 && strncasecmp(line, "ETag:", 5) == 0) {
        const char *p = line + 5, *end = line + len;
        while (p < end && isspace((unsigned char)*p))
            p++;
        while (end > p && isspace((unsigned char)end[-1]))
            end--;
        if ((size_t)(end - p) < sizeof j->etag) {
            memcpy(j->etag, p, (size_t)(end - p));
            j->etag[end - p] = 0;
        }
    } else if (len > 14 && strncasecmp(line, "Content-Range:", 14) == 0) {
        const char *digits = memchr(line, 's', len); /* "bytes 100-..." */
        if (digits && digits[1] == ' ')
            j->range_from = strtoll(digits + 2, NULL, 10);
    }
    return len;
}

static int restart(struct job *j, struct sl_err *err)
{
    sl_watch_progress(&j->t->watch, -j->fill->bytes);
    return sl_fill_restart(j->fill, err);
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct job *j = arg;
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
    sl_watch_progress(&j->t->watch, (int64_t)len);
    return len;
}

static size_t on_read(char *to, size_t size, size_t n, void *arg)
{
    struct job *j = arg;
    ssize_t got = read(j->fd, to, size * n);
    if (got < 0) {
        sl_err_errno(&j->err, "reading what is uploaded");
        return CURL_READFUNC_ABORT;
    }
    j->sent += got;
    sl_watch_progress(&j->t->watch, got);
    return (size_t)got;
}

static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct job *j = arg;
    off_t at = lseek(j->fd, offset, origin);
    if (at < 0)
        return CURL_SEEKFUNC_FAIL;
    sl_watch_progress(&j->t->watch, at - j->sent);
    j->sent = at;
    return CURL_SEEKFUNC_OK;
}

/* Runs one request; headers_taken are freed. The callback's error, if any, is in j->err. */
static CURLcode perform(struct job *j, struct curl_slist *headers_taken)
{
    CURL *c = j->curl;
    long stall_s = j->fill ? SL_TRANSFER_STALL_S : SL_TRANSFER_SYNC_S;
    if (j->own && j->t->token)
        headers_taken = sl_web_authorize(headers_taken, j->t->token);
    const struct sl_signer *signer = j->own ? NULL : j->t->signer;
    if (signer && signer->sign &&
        signer->sign(signer->arg, "GET", j->url, NULL, &headers_taken, &j->err)) {
        curl_slist_free_all(headers_taken);
        return CURLE_ABORTED_BY_CALLBACK;
    }
    sl_buf_reset(&j->reply);
    j->status = 0;
    j->curl_msg[0] = 0;
    sl_web_set_url(c, j->url);
    if (!j->own && (!signer || !signer->sign || signer->follow)) {
        curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
        curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)SL_WEB_REDIRECTS_MAX);
    }
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers_taken);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, j->curl_msg);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, stall_s);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, j);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, j);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_tick);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, j);
    CURLcode code = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &j->status);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, NULL);
    curl_slist_free_all(headers_taken);
    return code;
}

/* The error that an answer or its absence means; SL_RETRY: another try is worth it. */
static int judge(struct job *j, CURLcode code, struct sl_err *err)
{
    if (j->err.code)
        return sl_err_set(err, j->err.code, "%s (%s): %s", j->what, j->url, j->err.msg);
    if (code != CURLE_OK)
        return sl_err_set(err, sl_web_passing(code) ? SL_RETRY : SL_IO, "%s: %s: %s", j->what,
                          j->url, j->curl_msg[0] ? j->curl_msg : curl_easy_strerror(code));
    char detail[512] = "";
    sl_answer_reason(j->reply.p, j->reply.len, detail + 2, sizeof detail - 2);
    if (detail[2])
        memcpy(detail, ": ", 2);
    long s = j->status;
    if (s == 404 || s == 410)
        return sl_err_set(err, SL_NOTFOUND, "%s is not there: %s answered %ld%s", j->what, j->url,
                          s, detail);
    if (s == 401 || s == 403)
        return sl_err_set(err, SL_DENIED, "%s: %s refused access (%ld)%s", j->what, j->url, s,
                          detail);
    if (s == 507)
        return sl_err_set(err, SL_IO, "%s: the server's disk is full: %s answered 507%s", j->what,
                          j->url, detail);
    return sl_err_set(err,
                      sl_web_passing_status(s) ? SL_RETRY
                      : s == 422               ? SL_DATA
                                               : SL_SPEC,
                      "%s: %s answered %ld%s", j->what, j->url, s, detail);
}

static int job_init(struct job *j, const struct sl_transfer *t, const char *what, const char *url,
                    struct sl_err *err)
{
    *j = (struct job){
        .t = t, .what = what, .url = url, .fd = -1, .range_from = -1, .expected_bytes = -1};
    int rc = sl_web_check_url(url, err);
    if (rc)
        return rc;
    j->own = t->server && sl_web_same_origin(url, t->server);
    j->curl = sl_web_new(err);
    sl_buf_init(&j->reply, REPLY_KEPT_MAX);
    return j->curl ? 0 : SL_NOMEM;
}

static void job_release(struct job *j)
{
    curl_easy_cleanup(j->curl);
    sl_buf_release(&j->reply);
    if (j->fd >= 0)
        close(j->fd);
}

/* Fills j->fill. by_digest: a digest will tell whether the rest belongs to what we have; else an
 * ETag must. etag: of what we have whole ("": nothing); ret_unchanged: the server says that it
 * still holds. */
static int fetch(struct job *j, bool by_digest, const char *etag, bool *ret_unchanged,
                 struct sl_err *err)
{
    char line[ETAG_MAX + 32], part_etag[ETAG_MAX] = "";
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
        CURLcode code = perform(j, headers);
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
        rc = judge(j, code, &fault);
        if (j->fill->bytes > best) {
            best = j->fill->bytes;
            attempt = 1; /* progress: a fresh count */
        }
        if (rc != SL_RETRY || attempt >= tries_of(j->t))
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
        if (pause_before(j, attempt))
            return judge(j, CURLE_OK, err);
    }
}

/* ---- what a URL without a digest gave last --------------------------------------------------- */

struct known {
    char path[SL_PATH_MAX]; /* of the record */
    char etag[ETAG_MAX], sha256[SL_SHA256_HEX + 1];
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
    if (sl_json_read(k.path, REPLY_KEPT_MAX * 2, &j, NULL) == 0 &&
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

int sl_transfer_get(const struct sl_transfer *t, const struct sl_cache *cache, const char *what,
                    const char *url, const char *sha256, int64_t bytes, struct sl_got *ret_got,
                    struct sl_err *err)
{
    struct job j;
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
        rc = job_init(&j, t, what, url, err);
    if (rc) {
        sl_fill_abort(&fill);
        return sl_err_wrap(err, rc, "%s", what);
    }
    j.fill = &fill;
    j.expected_bytes = bytes;
    bool resumed = fill.bytes > 0;
    sl_watch_progress(&t->watch, fill.bytes);
    if (!(resumed && fill.bytes == bytes)) /* else only the rename is missing */
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
            job_release(&j);
            return sl_transfer_get(t, cache, what, url, sha256, bytes, ret_got, err);
        }
        if (rc)
            sl_err_set(err, rc, "%s (%s): %s", what, url, fault.msg);
        else if (!sha256 && j.etag[0])
            rc = write_known(&known, url, j.etag, got.sha256, err);
    } else {
        sl_fill_abort(&fill);
    }
    job_release(&j);
    if (rc == 0)
        *ret_got = got;
    return rc;
}

/* ---- uploads --------------------------------------------------------------------------------- */

int sl_transfer_put(const struct sl_transfer *t, const char *what, const char *path,
                    const char *sha256, struct sl_err *err)
{
    char url[URL_MAX];
    struct job j = {.fd = -1};
    struct stat st = {0};
    if (snprintf(url, sizeof url, "%s/api/v1/blobs/%s", t->server, sha256) >= (int)sizeof url)
        return sl_err_set(err, SL_SPEC, "the server's URL is too long");
    int rc = job_init(&j, t, what, url, err);
    if (rc)
        return rc;
    j.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (j.fd < 0 || fstat(j.fd, &st))
        rc = sl_err_errno(err, "opening %s", path);
    for (int attempt = 1; rc == 0; attempt++) {
        sl_web_reset(j.curl);
        curl_easy_setopt(j.curl, CURLOPT_NOBODY, 1L);
        CURLcode code = perform(&j, NULL);
        if (code == CURLE_OK && j.status == 200) {
            sl_watch_progress(&t->watch, st.st_size - j.sent);
            break;
        }
        if (code == CURLE_OK && j.status == 404) {
            sl_web_reset(j.curl);
            curl_easy_setopt(j.curl, CURLOPT_UPLOAD, 1L);
            curl_easy_setopt(j.curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)st.st_size);
            curl_easy_setopt(j.curl, CURLOPT_READFUNCTION, on_read);
            curl_easy_setopt(j.curl, CURLOPT_READDATA, &j);
            curl_easy_setopt(j.curl, CURLOPT_SEEKFUNCTION, on_seek);
            curl_easy_setopt(j.curl, CURLOPT_SEEKDATA, &j);
            on_seek(&j, 0, SEEK_SET);
            code = perform(&j, NULL);
            if (code == CURLE_OK && (j.status == 200 || j.status == 201))
                break;
        }
        struct sl_err fault = SL_ERR_INIT;
        int cause = judge(&j, code, &fault);
        if (cause == SL_RETRY && attempt < tries_of(t)) {
            if (pause_before(&j, attempt) == 0)
                continue;
            cause = SL_CANCELLED;
        }
        rc =
            sl_err_set(err, cause, "%s%s", fault.msg,
                       cause == SL_RETRY ? ": gave up after several tries; is the server up?" : "");
    }
    job_release(&j);
    return rc;
}
