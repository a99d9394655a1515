/* gs:// by resumable uploads of the JSON interface of Google Cloud Storage. */
#include "artifacts/gcloud.h"
#include "artifacts/sigv4.h"
#include "artifacts/target.h"
#include "artifacts/web.h"
#include "base/json.h"
#include <stdbool.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define PIECE_BYTES SL_PART_BYTES /* of one request; a multiple of 256 KiB, as the interface wants */
#define CHUNK_BYTES 65536
#define MD5_BASE64 25 /* 24 and a NUL */
#define SESSIONS 3    /* an upload whose session the service has lost begins anew so often */
#define RANGE_START "bytes=0-"

static bool object_failed(const struct sl_target *t, const char *key, struct sl_buf *url)
{
    const struct sl_gcloud *g = t->state;
    return sl_buf_addf(url, "%s/storage/v1/b/%s/o/", g->endpoint, t->ref.bucket) ||
           sl_uri_encode(url, key, strlen(key), "");
}

static int too_long(struct sl_err *err)
{
    return sl_err_set(err, SL_SPEC, "a URL is too long");
}

static int object_url(const struct sl_target *t, const char *key, struct sl_buf *url, struct sl_err *err)
{
    return object_failed(t, key, url) || sl_buf_adds(url, "?alt=media") ? too_long(err) : 0;
}

/* In base64, as the interface has it. */
static int md5_of(const struct sl_sending *s, char ret_md5[MD5_BASE64], struct sl_err *err)
{
    char chunk[CHUNK_BYTES];
    unsigned char raw[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int rc = ctx && EVP_DigestInit_ex(ctx, EVP_md5(), NULL) == 1
                 ? 0
                 : sl_err_set(err, SL_NOMEM, "no memory for a digest");
    for (int64_t at = 0; rc == 0 && at < s->bytes;) {
        ssize_t n = pread(s->fd, chunk, sizeof chunk, at);
        if (n <= 0)
            rc = n < 0 ? sl_err_errno(err, "reading what is uploaded")
                       : sl_err_set(err, SL_IO, "what is uploaded became shorter");
        else
            EVP_DigestUpdate(ctx, chunk, (size_t)n);
        at += n;
    }
    if (rc == 0) {
        EVP_DigestFinal_ex(ctx, raw, NULL);
        EVP_EncodeBlock((unsigned char *)ret_md5, raw, 16);
    }
    EVP_MD_CTX_free(ctx);
    return rc;
}

struct session {
    const struct sl_sending *s;
    const struct sl_signer *signer;
    const struct sl_watch *watch;
    void *curl;
    char url[SL_ASK_KEPT_MAX];
    char md5[MD5_BASE64];
    int64_t at, best; /* what the service has; and had at most */
    bool done, lost;  /* lost: the service does not know the session any more */
};

static int begin(struct session *u, struct sl_err *err)
{
    static const char *const headers[] = {"Content-Type: application/json; charset=UTF-8", NULL};
    const struct sl_sending *s = u->s;
    const struct sl_gcloud *g = s->target->state;
    struct sl_buf url;
    struct sl_answer answer;
    json_t *about = json_pack("{s:s, s:s, s:s, s:{s:s}}", "name", s->key, "contentType", "application/octet-stream",
                              "md5Hash", u->md5, "metadata", "sha256", s->sha256);
    char *text = about ? sl_json_dump(about) : NULL;
    int rc = text ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    if (rc == 0 && (sl_buf_addf(&url, "%s/upload/storage/v1/b/%s/o?uploadType=resumable&name=", g->endpoint,
                                s->target->ref.bucket) ||
                    sl_uri_encode(&url, s->key, strlen(s->key), "")))
        rc = too_long(err);
    if (rc == 0) {
        const struct sl_ask ask = {.method = "POST",
                                   .url = url.p,
                                   .signer = u->signer,
                                   .headers = headers,
                                   .body = text,
                                   .len = (int64_t)strlen(text),
                                   .keep = "Location",
                                   .curl = u->curl};
        rc = sl_ask(&ask, u->watch, &answer, err);
    }
    if (rc == 0) {
        rc = sl_answer_check(&answer, s->what, url.p, err);
        if (rc == SL_DENIED && g->anonymous)
            sl_err_wrap(err, rc,
                        "without a token, since none was found (set GOOGLE_APPLICATION_CREDENTIALS to a "
                        "service account's key)");
        /* The token goes along: never to another host. */
        if (rc == 0 && (!answer.kept[0] || !sl_web_same_origin(answer.kept, g->endpoint)))
            rc = sl_err_set(err, SL_DATA, "%s: the service named no place to upload to at %s", s->what, g->endpoint);
        if (rc == 0)
            memcpy(u->url, answer.kept, sizeof u->url);
        sl_answer_release(&answer);
    }
    u->at = 0;
    u->lost = false;
    sl_buf_release(&url);
    free(text);
    json_decref(about);
    return rc;
}

/* What the service has answered to a piece, or to the question how far it is. */
static int take_answer(struct session *u, const struct sl_answer *a, struct sl_err *err)
{
    const struct sl_sending *s = u->s;
    json_t *json = NULL;
    if (a->status == 308) {
        int64_t at = 0;
        if (strncasecmp(a->kept, RANGE_START, sizeof RANGE_START - 1) == 0)
            at = strtoll(a->kept + sizeof RANGE_START - 1, NULL, 10) + 1;
        if (at < 0 || at > s->bytes)
            return sl_err_set(err, SL_DATA, "%s: the service says that it has byte %lld of %lld", s->what,
                              (long long)at, (long long)s->bytes);
        u->at = at;
        return 0;
    }
    u->lost = a->status == 404 || a->status == 410;
    int rc = sl_answer_check(a, s->what, u->url, err);
    if (rc)
        return rc;
    rc = sl_json_parse(a->body.p, a->body.len, "the service's answer", &json, err);
    const char *md5 = sl_json_str(json, "md5Hash", "");
    if (rc == 0 && (strtoll(sl_json_str(json, "size", "-1"), NULL, 10) != s->bytes ||
                    (*md5 && strcmp(md5, u->md5) != 0)))
        rc = sl_err_set(err, SL_DATA, "%s: wrong content came there: %s bytes of md5 %s instead of %lld of %s",
                        s->what, sl_json_str(json, "size", "?"), md5, (long long)s->bytes, u->md5);
    json_decref(json);
    u->done = rc == 0;
    return rc;
}

/* len 0: asks how far it is (or, for an empty file, ends it). SL_RETRY: once more. */
static int send_piece(struct session *u, int64_t len, bool question, struct sl_err *err)
{
    const struct sl_sending *s = u->s;
    char range[96];
    const char *const headers[] = {range, NULL};
    struct sl_answer answer;
    const struct sl_watch watch = {.arg = u->watch->arg, .stop = u->watch->stop};
    if (question || len == 0)
        snprintf(range, sizeof range, "Content-Range: bytes */%lld", (long long)s->bytes);
    else
        snprintf(range, sizeof range, "Content-Range: bytes %lld-%lld/%lld", (long long)u->at,
                 (long long)(u->at + len - 1), (long long)s->bytes);
    const struct sl_ask ask = {.method = "PUT",
                               .url = u->url,
                               .signer = u->signer,
                               .headers = headers,
                               .fd = question ? 0 : s->fd,
                               .from = u->at,
                               .len = question ? 0 : len,
                               .keep = "Range",
                               .tries = 1,
                               .curl = u->curl,
                               .pace = s->target->pace};
    int rc = sl_ask(&ask, &watch, &answer, err);
    if (rc)
        return rc;
    rc = take_answer(u, &answer, err);
    sl_answer_release(&answer);
    return rc;
}

/* One session to its end. SL_NOTFOUND with u->lost: begin another. */
static int run_session(struct session *u, struct sl_err *err)
{
    const struct sl_sending *s = u->s;
    bool question = false;
    for (int failures = 0; !u->done;) {
        struct sl_err fault = SL_ERR_INIT;
        int64_t left = s->bytes - u->at;
        int rc = send_piece(u, left < PIECE_BYTES ? left : PIECE_BYTES, question, &fault);
        if (rc == 0) {
            int64_t has = u->done ? s->bytes : u->at;
            if (has > u->best) {
                sl_watch_progress(u->watch, has - u->best);
                u->best = has;
                failures = 0;
            } else if (!question && ++failures >= SL_ASK_TRIES) {
                return sl_err_set(err, SL_RETRY, "%s: the service takes no more", s->what);
            }
            question = false;
            continue;
        }
        if (rc != SL_RETRY || ++failures >= SL_ASK_TRIES)
            return sl_err_set(err, rc, "%s", fault.msg);
        rc = sl_ask_pause(sl_web_pause_us(failures), u->watch, err);
        if (rc)
            return rc;
        question = true; /* it may have got some of it */
    }
    return 0;
}

static int send_file(const struct sl_sending *s, const struct sl_crew_hand *hand, struct sl_err *err)
{
    struct session u = {.s = s, .signer = hand->signer, .watch = &hand->watch, .curl = hand->curl};
    int rc = md5_of(s, u.md5, err);
    for (int i = 1; rc == 0 && !u.done; i++) {
        rc = begin(&u, err);
        if (rc == 0)
            rc = run_session(&u, err);
        if (rc == SL_NOTFOUND && u.lost && i < SESSIONS) {
            sl_err_clear(err);
            rc = 0;
        }
    }
    return rc;
}

static int send_large(const struct sl_sending *s, struct sl_err *err)
{
    const struct sl_crew_hand alone = {.watch = s->target->watch, .signer = &s->target->signer};
    return send_file(s, &alone, err);
}

static int stat_object(const struct sl_target *t, const char *key, char ret_sha256[SL_SHA256_HEX + 1],
                       int64_t *ret_bytes, struct sl_err *err)
{
    struct sl_buf url;
    struct sl_answer answer;
    json_t *json = NULL;
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    int rc = object_failed(t, key, &url) ? too_long(err) : 0;
    if (rc == 0) {
        const struct sl_ask ask = {.method = "GET", .url = url.p, .signer = &t->signer};
        rc = sl_ask(&ask, &t->watch, &answer, err);
    }
    if (rc == 0) {
        rc = sl_answer_check(&answer, "looking whether it is there", url.p, err);
        if (rc == 0)
            rc = sl_json_parse(answer.body.p, answer.body.len, "the service's answer", &json, err);
        sl_answer_release(&answer);
    }
    if (rc == 0) {
        snprintf(ret_sha256, SL_SHA256_HEX + 1, "%.64s", sl_json_str(json, "metadata.sha256", ""));
        *ret_bytes = strtoll(sl_json_str(json, "size", "-1"), NULL, 10);
    }
    json_decref(json);
    sl_buf_release(&url);
    return rc;
}

static void free_state(void *state)
{
    sl_gcloud_release(state);
    free(state);
}

int sl_target_gs(struct sl_target *t, struct sl_err *err)
{
    static const struct sl_target_scheme scheme = {send_file, send_large, object_url, stat_object};
    struct sl_gcloud *g = calloc(1, sizeof *g);
    if (!g)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    t->scheme = &scheme;
    t->state = g;
    t->free_state = free_state;
    t->signer = sl_gcloud_signer(g);
    return sl_gcloud_init(g, &t->watch, err);
}
