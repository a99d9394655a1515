/* s3:// by PutObject and multipart uploads. */
#include "artifacts/aws.h"
#include "artifacts/sigv4.h"
#include "artifacts/target.h"
#include "artifacts/web.h"
#include "artifacts/xml.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ETAG_MAX 256
#define UPLOAD_ID_MAX 1024
#define META "x-amz-meta-sha256" /* lower case: it is signed */
#define CHUNK_BYTES 65536
#define COMPLETE_BYTES_MAX (4u << 20)
#define COMPLETE_TRIES 4
#define ABORT_TRIES 3
#define ABORT_S 15
#define MIB (INT64_C(1) << 20)

static int object_url(const struct sl_target *t, const char *key, struct sl_buf *url, struct sl_err *err)
{
    const struct sl_aws *aws = t->state;
    return sl_s3_url(aws->region, t->ref.bucket, key, url, err);
}

/* An answer's error, and what to do about missing keys. */
static int check(const struct sl_sending *s, const struct sl_answer *answer, const char *url,
                 struct sl_err *err)
{
    const struct sl_aws *aws = s->target->state;
    int rc = sl_answer_check(answer, s->what, url, err);
    if (rc == SL_DENIED && aws->anonymous)
        return sl_err_wrap(err, rc,
                           "without keys, since none were found (set AWS_ACCESS_KEY_ID and "
                           "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)");
    return rc;
}

static int put_small(const struct sl_sending *s, const struct sl_crew_hand *hand, struct sl_err *err)
{
    char meta[sizeof META + SL_SHA256_HEX + 4];
    const char *const headers[] = {meta, NULL};
    struct sl_buf url;
    struct sl_answer answer;
    snprintf(meta, sizeof meta, META ": %s", s->sha256);
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    int rc = object_url(s->target, s->key, &url, err);
    if (rc == 0) {
        const struct sl_ask ask = {.method = "PUT",
                                   .url = url.p,
                                   .signer = hand->signer,
                                   .headers = headers,
                                   .fd = s->fd,
                                   .len = s->bytes,
                                   .sha256 = s->sha256,
                                   .curl = hand->curl,
                                   .pace = s->target->pace};
        rc = sl_ask(&ask, &hand->watch, &answer, err);
    }
    if (rc == 0) {
        rc = check(s, &answer, url.p, err);
        sl_answer_release(&answer);
    }
    sl_buf_release(&url);
    return rc;
}

/* ---- multipart ------------------------------------------------------------------------------- */

struct multipart {
    const struct sl_sending *s;
    char id[UPLOAD_ID_MAX]; /* "": not begun */
    char error[128];        /* the code in an answer of status 200 that is an error all the same */
    int64_t part_bytes;
    size_t n;
    char (*etags)[ETAG_MAX];
};

static int on_begun(void *arg, const char *path, const char *text)
{
    struct multipart *m = arg;
    if (strcmp(path, "InitiateMultipartUploadResult/UploadId") == 0 && strlen(text) < sizeof m->id)
        memcpy(m->id, text, strlen(text) + 1);
    return 0;
}

static int begin(struct multipart *m, struct sl_err *err)
{
    const struct sl_sending *s = m->s;
    char meta[sizeof META + SL_SHA256_HEX + 4];
    const char *const headers[] = {meta, NULL};
    struct sl_buf url;
    struct sl_answer answer;
    snprintf(meta, sizeof meta, META ": %s", s->sha256);
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    int rc = object_url(s->target, s->key, &url, err);
    if (rc == 0 && sl_buf_adds(&url, "?uploads="))
        rc = sl_err_set(err, SL_SPEC, "an S3 URL is too long");
    if (rc == 0) {
        const struct sl_ask ask = {.method = "POST", .url = url.p, .signer = &s->target->signer, .headers = headers};
        rc = sl_ask(&ask, &s->target->watch, &answer, err);
    }
    if (rc == 0) {
        rc = check(s, &answer, url.p, err);
        if (rc == 0)
            rc = sl_xml_each(answer.body.p, answer.body.len, s->what, on_begun, m, err);
        if (rc == 0 && !m->id[0])
            rc = sl_err_set(err, SL_DATA, "%s: the service began no upload", s->what);
        sl_answer_release(&answer);
    }
    sl_buf_release(&url);
    return rc;
}

static int upload_url(const struct multipart *m, const char *query, struct sl_buf *url, struct sl_err *err)
{
    int rc = object_url(m->s->target, m->s->key, url, err);
    if (rc == 0 && (sl_buf_adds(url, query) || sl_buf_adds(url, "uploadId=") ||
                    sl_uri_encode(url, m->id, strlen(m->id), "")))
        rc = sl_err_set(err, SL_SPEC, "an S3 URL is too long");
    return rc;
}

static int digest_of(int fd, int64_t from, int64_t len, char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err)
{
    char chunk[CHUNK_BYTES];
    struct sl_sha256 d;
    int rc = sl_sha256_init(&d, err);
    while (rc == 0 && len > 0) {
        ssize_t got = pread(fd, chunk, len < CHUNK_BYTES ? (size_t)len : CHUNK_BYTES, from);
        if (got <= 0) {
            rc = got < 0 ? sl_err_errno(err, "reading what is uploaded")
                         : sl_err_set(err, SL_IO, "what is uploaded became shorter");
            sl_sha256_release(&d);
            return rc;
        }
        sl_sha256_update(&d, chunk, (size_t)got);
        from += got;
        len -= got;
    }
    if (rc == 0)
        sl_sha256_hex(&d, ret_hex);
    return rc;
}

/* What may stand in the list of parts as it is. */
static bool etag_fits(const char *etag)
{
    return *etag && strlen(etag) < ETAG_MAX && !strpbrk(etag, "<>&");
}

static int put_part(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err)
{
    struct multipart *m = arg;
    const struct sl_sending *s = m->s;
    const int64_t from = (int64_t)i * m->part_bytes, left = s->bytes - from;
    const int64_t len = left < m->part_bytes ? left : m->part_bytes;
    char sha256[SL_SHA256_HEX + 1], query[64];
    struct sl_buf url;
    struct sl_answer answer;
    snprintf(query, sizeof query, "?partNumber=%zu&", i + 1);
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    int rc = upload_url(m, query, &url, err);
    if (rc == 0)
        rc = digest_of(s->fd, from, len, sha256, err);
    if (rc == 0) {
        const struct sl_ask ask = {.method = "PUT",
                                   .url = url.p,
                                   .signer = hand->signer,
                                   .fd = s->fd,
                                   .from = from,
                                   .len = len,
                                   .sha256 = sha256,
                                   .keep = "ETag",
                                   .curl = hand->curl,
                                   .pace = s->target->pace};
        rc = sl_ask(&ask, &hand->watch, &answer, err);
    }
    if (rc == 0) {
        rc = check(s, &answer, url.p, err);
        if (rc == 0 && !etag_fits(answer.kept))
            rc = sl_err_set(err, SL_DATA, "%s: the service gave part %zu no ETag", s->what, i + 1);
        if (rc == 0)
            memcpy(m->etags[i], answer.kept, strlen(answer.kept) + 1);
        sl_answer_release(&answer);
    }
    sl_buf_release(&url);
    return rc;
}

/* Best effort, also when we are to stop: parts without an object would be paid for. */
static void abort_upload(const struct multipart *m)
{
    struct sl_buf url;
    struct sl_answer answer;
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    if (upload_url(m, "?", &url, NULL) == 0) {
        const struct sl_ask ask = {.method = "DELETE",
                                   .url = url.p,
                                   .signer = &m->s->target->signer,
                                   .timeout_s = ABORT_S,
                                   .tries = ABORT_TRIES};
        if (sl_ask(&ask, NULL, &answer, NULL) == 0)
            sl_answer_release(&answer);
    }
    sl_buf_release(&url);
}

static int on_completed(void *arg, const char *path, const char *text)
{
    struct multipart *m = arg;
    if (strcmp(path, "Error/Code") == 0)
        snprintf(m->error, sizeof m->error, "%s", text);
    return 0;
}

static int stat_object(const struct sl_target *t, const char *key, char ret_sha256[SL_SHA256_HEX + 1],
                       int64_t *ret_bytes, struct sl_err *err);

/* An earlier try, whose answer was lost, has done it: the upload is gone and the object there. */
static bool done_before(const struct sl_sending *s)
{
    char sha256[SL_SHA256_HEX + 1] = "";
    int64_t bytes = -1;
    return stat_object(s->target, s->key, sha256, &bytes, NULL) == 0 && bytes == s->bytes &&
           strcmp(sha256, s->sha256) == 0;
}

static int complete_once(struct multipart *m, const struct sl_buf *body, const char *sha256, const char *url,
                         struct sl_err *err)
{
    const struct sl_sending *s = m->s;
    static const char *const headers[] = {"Content-Type: application/xml", NULL};
    struct sl_answer answer;
    const struct sl_ask ask = {.method = "POST",
                               .url = url,
                               .signer = &s->target->signer,
                               .headers = headers,
                               .body = body->p,
                               .len = (int64_t)body->len,
                               .sha256 = sha256};
    int rc = sl_ask(&ask, &s->target->watch, &answer, err);
    if (rc)
        return rc;
    m->error[0] = 0;
    rc = check(s, &answer, url, err);
    if (rc == 0 && answer.body.len)
        rc = sl_xml_each(answer.body.p, answer.body.len, s->what, on_completed, m, err);
    if (rc == 0 && m->error[0])
        rc = sl_err_set(err, SL_RETRY, "%s: the service could not put the parts together: %s", s->what,
                        m->error);
    sl_answer_release(&answer);
    return rc;
}

static int complete(struct multipart *m, struct sl_err *err)
{
    const struct sl_sending *s = m->s;
    char sha256[SL_SHA256_HEX + 1];
    struct sl_buf url, body;
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    sl_buf_init(&body, COMPLETE_BYTES_MAX);
    int rc = upload_url(m, "?", &url, err);
    if (rc == 0 && sl_buf_adds(&body, "<CompleteMultipartUpload>"))
        rc = SL_NOMEM;
    for (size_t i = 0; rc == 0 && i < m->n; i++)
        if (sl_buf_addf(&body, "<Part><PartNumber>%zu</PartNumber><ETag>%s</ETag></Part>", i + 1, m->etags[i]))
            rc = SL_NOMEM;
    if (rc == 0 && sl_buf_adds(&body, "</CompleteMultipartUpload>"))
        rc = SL_NOMEM;
    if (rc == SL_NOMEM)
        sl_err_set(err, rc, "out of memory");
    if (rc == 0)
        rc = sl_sha256_data(body.p, body.len, sha256, err);
    for (int attempt = 1; rc == 0; attempt++) {
        struct sl_err fault = SL_ERR_INIT;
        int one = complete_once(m, &body, sha256, url.p, &fault);
        if (one == 0 || (one == SL_NOTFOUND && done_before(s)))
            break;
        if (one != SL_RETRY || attempt == COMPLETE_TRIES)
            rc = sl_err_set(err, one, "%s", fault.msg);
        else
            rc = sl_ask_pause(sl_web_pause_us(attempt), &s->target->watch, err);
    }
    sl_buf_release(&body);
    sl_buf_release(&url);
    return rc;
}

static int put_large(const struct sl_sending *s, struct sl_err *err)
{
    struct multipart m = {.s = s, .part_bytes = SL_PART_BYTES};
    int64_t least = (s->bytes + SL_TARGET_PARTS_MAX - 1) / SL_TARGET_PARTS_MAX;
    if (least > m.part_bytes)
        m.part_bytes = (least + MIB - 1) / MIB * MIB;
    m.n = (size_t)((s->bytes + m.part_bytes - 1) / m.part_bytes);
    m.etags = calloc(m.n, sizeof *m.etags);
    if (!m.etags)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    int rc = begin(&m, err);
    if (rc == 0)
        rc = sl_crew_run(&s->target->watch, &s->target->signer, m.n, SL_TARGET_HANDS, put_part, &m, err);
    if (rc == 0)
        rc = complete(&m, err);
    if (rc && m.id[0])
        abort_upload(&m);
    free(m.etags);
    return rc;
}

/* ---- looking --------------------------------------------------------------------------------- */

static int head(const struct sl_target *t, const char *url, const char *keep, struct sl_answer *ret_answer,
                struct sl_err *err)
{
    const struct sl_ask ask = {.method = "HEAD", .url = url, .signer = &t->signer, .keep = keep};
    int rc = sl_ask(&ask, &t->watch, ret_answer, err);
    if (rc)
        return rc;
    rc = sl_answer_check(ret_answer, "looking whether it is there", url, err);
    if (rc)
        sl_answer_release(ret_answer);
    return rc;
}

static int stat_object(const struct sl_target *t, const char *key, char ret_sha256[SL_SHA256_HEX + 1],
                       int64_t *ret_bytes, struct sl_err *err)
{
    struct sl_buf url;
    struct sl_answer answer;
    char sha256[SL_SHA256_HEX + 1] = "";
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    int rc = object_url(t, key, &url, err);
    if (rc == 0)
        rc = head(t, url.p, META, &answer, err);
    if (rc == 0) {
        snprintf(sha256, sizeof sha256, "%.64s", answer.kept);
        sl_answer_release(&answer);
        rc = head(t, url.p, "Content-Length", &answer, err);
    }
    if (rc == 0) {
        memcpy(ret_sha256, sha256, sizeof sha256);
        *ret_bytes = answer.kept[0] ? strtoll(answer.kept, NULL, 10) : -1;
        sl_answer_release(&answer);
    }
    sl_buf_release(&url);
    return rc;
}

static void free_state(void *state)
{
    sl_aws_release(state);
    free(state);
}

int sl_target_s3(struct sl_target *t, struct sl_err *err)
{
    static const struct sl_target_scheme scheme = {put_small, put_large, object_url, stat_object};
    struct sl_aws *aws = calloc(1, sizeof *aws);
    if (!aws)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    t->scheme = &scheme;
    t->state = aws;
    t->free_state = free_state;
    t->signer = sl_aws_signer(aws);
    return sl_aws_init(aws, &t->watch, err);
}
