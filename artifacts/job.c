#include "artifacts/job.h"
#include "artifacts/web.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define BUFFER_BYTES (256u << 10)

int sl_job_tries(const struct sl_transfer *t)
{
    return t->tries ? t->tries : SL_TRANSFER_TRIES;
}

int64_t sl_job_pause_us(struct sl_job *j, int attempt)
{
    int64_t us = sl_web_pause_us(attempt);
    curl_off_t after_s = 0;
    curl_easy_getinfo(j->curl, CURLINFO_RETRY_AFTER, &after_s);
    if (after_s > SL_TRANSFER_RETRY_AFTER_S)
        after_s = SL_TRANSFER_RETRY_AFTER_S;
    return after_s * 1000000 > us ? after_s * 1000000 : us;
}

static int on_tick(void *arg, curl_off_t dt, curl_off_t dn, curl_off_t ut, curl_off_t un)
{
    struct sl_job *j = arg;
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
    struct sl_job *j = arg;
    size_t len = size * n;
    if (len > 5 && strncasecmp(line, "HTTP/", 5) == 0) { /* a redirect's headers do not count */
        j->etag[0] = 0;
        j->range_from = j->range_total = -1;
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
        const char *slash = memchr(line, '/', len);
        if (digits && digits[1] == ' ')
            j->range_from = strtoll(digits + 2, NULL, 10);
        if (slash && isdigit((unsigned char)slash[1]))
            j->range_total = strtoll(slash + 1, NULL, 10);
    }
    return len;
}

int sl_job_prepare(struct sl_job *j, struct curl_slist *headers_taken)
{
    CURL *c = j->curl;
    long stall_s = j->fd < 0 ? SL_TRANSFER_STALL_S : SL_TRANSFER_SYNC_S;
    const struct sl_signer *signer = j->own ? NULL : j->t->signer;
    j->headers = headers_taken;
    if (j->own && j->t->token)
        j->headers = sl_web_authorize(j->headers, j->t->token);
    if (signer && signer->sign &&
        signer->sign(signer->arg, "GET", j->url, NULL, &j->headers, &j->err)) {
        sl_job_done(j);
        return j->err.code;
    }
    sl_buf_reset(&j->reply);
    j->status = 0;
    j->curl_msg[0] = 0;
    sl_web_set_url(c, j->url);
    if (!j->own && (!signer || !signer->sign || signer->follow)) {
        curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
        curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)SL_WEB_REDIRECTS_MAX);
    }
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, j->headers);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, j->curl_msg);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, (long)BUFFER_BYTES);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, stall_s);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, j);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, j->on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, j);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_tick);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, j);
    return 0;
}

void sl_job_done(struct sl_job *j)
{
    curl_easy_setopt(j->curl, CURLOPT_HTTPHEADER, NULL);
    curl_slist_free_all(j->headers);
    j->headers = NULL;
}

CURLcode sl_job_perform(struct sl_job *j, struct curl_slist *headers_taken)
{
    if (sl_job_prepare(j, headers_taken))
        return CURLE_ABORTED_BY_CALLBACK;
    CURLcode code = curl_easy_perform(j->curl);
    curl_easy_getinfo(j->curl, CURLINFO_RESPONSE_CODE, &j->status);
    sl_job_done(j);
    return code;
}

/* The error that an answer or its absence means; SL_RETRY: another try is worth it. */
int sl_job_judge(struct sl_job *j, CURLcode code, struct sl_err *err)
{
    if (j->err.code)
        return sl_err_set(err, j->err.code, "%s (%s): %s", j->what, j->url, j->err.msg);
    if (code != CURLE_OK)
        return sl_err_set(err, sl_web_passing(code) ? SL_RETRY : SL_IO, "%s: %s: %s", j->what,
                          j->url, j->curl_msg[0] ? j->curl_msg : curl_easy_strerror(code));
    char detail[512] = "";
    sl_answer_reason(j->reply.p, j->reply.len, detail + 2, sizeof detail - 2);
    if (detail[2])
        detail[0] = ':', detail[1] = ' ';
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

int sl_job_init(struct sl_job *j, const struct sl_transfer *t, const char *what, const char *url,
                size_t (*on_body)(char *, size_t, size_t, void *), struct sl_err *err)
{
    *j = (struct sl_job){.t = t,
                         .what = what,
                         .url = url,
                         .on_body = on_body,
                         .fd = -1,
                         .range_from = -1,
                         .range_total = -1,
                         .expected_bytes = -1};
    int rc = sl_web_check_url(url, err);
    if (rc)
        return rc;
    j->own = t->server && sl_web_same_origin(url, t->server);
    j->lent = t->curl != NULL;
    j->curl = t->curl ? t->curl : sl_web_new(err);
    sl_buf_init(&j->reply, SL_JOB_REPLY_MAX);
    return j->curl ? 0 : SL_NOMEM;
}

void sl_job_release(struct sl_job *j)
{
    if (!j->lent)
        curl_easy_cleanup(j->curl);
    sl_buf_release(&j->reply);
    if (j->fd >= 0)
        close(j->fd);
}
