#include "artifacts/ask.h"
#include "artifacts/web.h"
#include "base/clock.h"
#include "base/json.h"
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define PAUSE_SLICE_US 50000
#define HEADER_MAX 8192
#define RETRY_AFTER_S 30 /* the most that a Retry-After is heeded */

struct asking {
    const struct sl_ask *a;
    const struct sl_watch *watch;
    struct sl_answer *answer;
    int64_t sent;
    bool too_large, unreadable, stopped;
};

int sl_header_add(struct curl_slist **headers, struct sl_err *err, const char *fmt, ...)
{
    char text[HEADER_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= (int)sizeof text)
        return sl_err_set(err, SL_SPEC, "a header of a request has more than %d bytes",
                          HEADER_MAX - 1);
    if (strpbrk(text, "\r\n"))
        return sl_err_set(err, SL_SPEC, "a line break in a header of a request");
    struct curl_slist *longer = curl_slist_append(*headers, text);
    if (!longer)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    *headers = longer;
    return 0;
}

int sl_ask_pause(int64_t us, const struct sl_watch *watch, struct sl_err *err)
{
    for (int64_t until = sl_boot_us() + us; sl_boot_us() < until;) {
        if (sl_watch_stop(watch))
            return sl_err_set(err, SL_CANCELLED, "stopped");
        usleep(PAUSE_SLICE_US);
    }
    return 0;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct asking *q = arg;
    if (sl_buf_add(&q->answer->body, data, size * n) == 0)
        return size * n;
    q->too_large = true;
    return 0;
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    struct asking *q = arg;
    size_t len = size * n, name = q->a->keep ? strlen(q->a->keep) : 0;
    if (len > 5 && strncasecmp(line, "HTTP/", 5) == 0)
        q->answer->kept[0] = 0;
    if (!name || len <= name + 1 || line[name] != ':' || strncasecmp(line, q->a->keep, name) != 0)
        return len;
    const char *p = line + name + 1, *end = line + len;
    while (p < end && isspace((unsigned char)*p))
        p++;
    while (end > p && isspace((unsigned char)end[-1]))
        end--;
    if ((size_t)(end - p) < sizeof q->answer->kept) {
        memcpy(q->answer->kept, p, (size_t)(end - p));
        q->answer->kept[end - p] = 0;
    }
    return len;
}

static size_t on_read(char *to, size_t size, size_t n, void *arg)
{
    struct asking *q = arg;
    int64_t left = q->a->len - q->sent;
    size_t want = size * n;
    if ((int64_t)want > left)
        want = (size_t)left;
    if (q->a->fd <= 0) {
        memcpy(to, (const char *)q->a->body + q->sent, want);
    } else if (want) {
        ssize_t got = pread(q->a->fd, to, want, q->a->from + q->sent);
        if (got <= 0) { /* a file that became shorter meanwhile */
            q->unreadable = true;
            return CURL_READFUNC_ABORT;
        }
        want = (size_t)got;
        sl_pace_take(q->a->pace, got, q->watch);
        sl_watch_progress(q->watch, (int64_t)want);
    }
    q->sent += (int64_t)want;
    return want;
}

static void rewind_to(struct asking *q, int64_t at)
{
    if (q->a->fd > 0)
        sl_watch_progress(q->watch, at - q->sent);
    q->sent = at;
}

static int on_seek(void *arg, curl_off_t offset, int origin)
{
    if (origin != SEEK_SET)
        return CURL_SEEKFUNC_CANTSEEK;
    rewind_to(arg, offset);
    return CURL_SEEKFUNC_OK;
}

static int on_tick(void *arg, curl_off_t dt, curl_off_t dn, curl_off_t ut, curl_off_t un)
{
    struct asking *q = arg;
    (void)dt;
    (void)dn;
    (void)ut;
    (void)un;
    q->stopped = sl_watch_stop(q->watch);
    return q->stopped;
}

static int make_headers(const struct sl_ask *a, struct curl_slist **headers, struct sl_err *err)
{
    int rc = sl_header_add(headers, err, "Expect:");
    for (int i = 0; rc == 0 && a->headers && a->headers[i]; i++)
        rc = sl_header_add(headers, err, "%s", a->headers[i]);
    if (rc == 0 && a->signer)
        rc = a->signer->sign(a->signer->arg, a->method, a->url, a->sha256, headers, err);
    return rc;
}

static CURLcode perform(CURL *c, struct asking *q, struct curl_slist *headers, char *curl_msg)
{
    const struct sl_ask *a = q->a;
    bool body = strcmp(a->method, "PUT") == 0 || strcmp(a->method, "POST") == 0;
    sl_web_reset(c);
    sl_web_set_url(c, a->url);
    if (body) {
        curl_easy_setopt(c, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(c, CURLOPT_INFILESIZE_LARGE, (curl_off_t)a->len);
        curl_easy_setopt(c, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(c, CURLOPT_READDATA, q);
        curl_easy_setopt(c, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(c, CURLOPT_SEEKDATA, q);
    }
    if (strcmp(a->method, "HEAD") == 0)
        curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
    else
        curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, a->method);
    if (a->fd > 0) {
        curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)SL_ASK_STALL_S);
    } else {
        curl_easy_setopt(c, CURLOPT_TIMEOUT, a->timeout_s ? (long)a->timeout_s : SL_ASK_TIMEOUT_S);
        if (a->timeout_s)
            curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)a->timeout_s);
    }
    if (a->signer && a->signer->follow) {
        curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
        curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)SL_WEB_REDIRECTS_MAX);
    }
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, curl_msg);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, q);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, q);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_tick);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, q);
    CURLcode code = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &q->answer->status);
    return code;
}

/* How long to wait before the next try: what the server said, or our own doubling pause. */
static int64_t pause_us(CURL *c, int attempt)
{
    curl_off_t after_s = 0;
    int64_t us = sl_web_pause_us(attempt);
    curl_easy_getinfo(c, CURLINFO_RETRY_AFTER, &after_s);
    if (after_s > RETRY_AFTER_S)
        after_s = RETRY_AFTER_S;
    return after_s * 1000000 > us ? after_s * 1000000 : us;
}

int sl_ask(const struct sl_ask *a, const struct sl_watch *watch, struct sl_answer *ret_answer,
           struct sl_err *err)
{
    struct sl_answer answer = {.status = 0};
    struct asking q = {.a = a, .watch = watch, .answer = &answer};
    char curl_msg[CURL_ERROR_SIZE] = "";
    int tries = a->tries ? a->tries : SL_ASK_TRIES, rc = sl_web_check_url(a->url, err);
    CURL *c = rc ? NULL : a->curl ? a->curl : sl_web_new(err);
    if (!c)
        return rc ? rc : SL_NOMEM;
    sl_buf_init(&answer.body, SL_ASK_ANSWER_MAX);
    for (int attempt = 1;; attempt++) {
        struct curl_slist *headers = NULL;
        sl_buf_reset(&answer.body);
        answer.status = 0;
        answer.kept[0] = 0;
        curl_msg[0] = 0;
        rewind_to(&q, 0);
        rc = make_headers(a, &headers, err);
        CURLcode code = rc ? CURLE_OK : perform(c, &q, headers, curl_msg);
        curl_slist_free_all(headers);
        if (rc == 0 && q.stopped)
            rc = sl_err_set(err, SL_CANCELLED, "stopped");
        else if (rc == 0 && q.too_large)
            rc = sl_err_set(err, SL_DATA, "%s: the answer has more than %u bytes", a->url,
                            SL_ASK_ANSWER_MAX);
        else if (rc == 0 && q.unreadable)
            rc = sl_err_set(err, SL_IO, "%s: the file to upload cannot be read to its end: %s",
                            a->url, errno ? strerror(errno) : "it became shorter");
        bool again = code != CURLE_OK ? sl_web_passing(code) : sl_web_passing_status(answer.status);
        if (rc || (code == CURLE_OK && !again) || (code == CURLE_OK && attempt >= tries))
            break;
        if (!again || attempt >= tries) {
            rc = sl_err_set(err, again ? SL_RETRY : SL_IO, "no answer from %s: %s", a->url,
                            curl_msg[0] ? curl_msg : curl_easy_strerror(code));
            break;
        }
        rc = sl_ask_pause(pause_us(c, attempt), watch, err);
        if (rc)
            break;
    }
    if (!a->curl)
        curl_easy_cleanup(c);
    else
        sl_web_reset(c); /* nothing of ours is pointed at any more */
    if (rc)
        sl_answer_release(&answer);
    else
        *ret_answer = answer;
    return rc;
}

void sl_answer_release(struct sl_answer *answer)
{
    if (answer)
        sl_buf_release(&answer->body);
}

void sl_answer_reason(const char *text, size_t len, char *ret_reason, size_t max)
{
    static const char open[] = "<Message>";
    const char *found = len ? memmem(text, len, open, sizeof open - 1) : NULL;
    json_t *json = NULL;
    ret_reason[0] = 0;
    if (found) {
        found += sizeof open - 1;
        const char *end = memchr(found, '<', (size_t)(text + len - found));
        if (end)
            snprintf(ret_reason, max, "%.*s", (int)(end - found), found);
    } else if (len && sl_json_parse(text, len, "answer", &json, NULL) == 0) {
        const char *keys[] = {"detail", "error.message", "error_description", "error", "message"};
        for (size_t i = 0; !ret_reason[0] && i < sizeof keys / sizeof *keys; i++)
            snprintf(ret_reason, max, "%s", sl_json_str(json, keys[i], ""));
        json_decref(json);
    }
    for (char *p = ret_reason; *p; p++)
        if ((unsigned char)*p < ' ')
            *p = ' ';
    sl_utf8_trim(ret_reason);
}

int sl_answer_check(const struct sl_answer *answer, const char *what, const char *url,
                    struct sl_err *err)
{
    char reason[400];
    long s = answer->status;
    if (s >= 200 && s < 300)
        return 0;
    sl_answer_reason(answer->body.p, answer->body.len, reason, sizeof reason);
    int code = s == 404 || s == 410       ? SL_NOTFOUND
               : s == 401 || s == 403     ? SL_DENIED
               : sl_web_passing_status(s) ? SL_RETRY
                                          : SL_SPEC;
    return sl_err_set(err, code, "%s: %s answered %ld%s%s", what, url, s, *reason ? ": " : "",
                      reason);
}
