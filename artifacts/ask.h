/* One small request to a web service and its answer, tried again while that may help: listings,
 * tokens, parts of an upload. Blocks; watch may stop it (SL_CANCELLED). */
#ifndef SL_ARTIFACTS_ASK_H
#define SL_ARTIFACTS_ASK_H
#include "artifacts/pace.h"
#include "artifacts/watch.h"
#include "base/buf.h"
#include "base/err.h"
#include <curl/curl.h>
#include <stdint.h>

#define SL_ASK_TIMEOUT_S 60 /* a request whose body is in memory */
#define SL_ASK_STALL_S 60   /* without a byte for so long, an upload counts as cut */
#define SL_ASK_TRIES 6
#define SL_ASK_ANSWER_MAX (64u << 20)
#define SL_ASK_KEPT_MAX 2048 /* bytes of the one header that is kept */

/* What lets a request in: puts a signature or a token onto its headers, anew for each try.
 * Such headers are for the URL's own host: what follows a redirect must not take them along. */
struct sl_signer {
    void *arg;
    /* sha256: of the body in hex; NULL: there is none. *headers is replaced by the longer list. */
    int (*sign)(void *arg, const char *method, const char *url, const char *sha256,
                struct curl_slist **headers, struct sl_err *err);
    bool follow; /* redirects are followed: all that sign adds is one Authorization header */
};

struct sl_ask {
    const char *method, *url;
    const struct sl_signer *signer;
    const char *const *headers; /* "Name: value", then NULL; may be NULL */
    const void *body;           /* or, with fd > 0, len bytes of a file from offset `from` on */
    int fd;
    int64_t from, len;
    const char *sha256; /* of the body, for the signer */
    const char *keep;   /* the name of a header of the answer */
    int timeout_s;      /* 0: SL_ASK_TIMEOUT_S */
    int tries;          /* 0: SL_ASK_TRIES */
    void *curl;         /* a handle (sl_web_new) to use, which keeps its connections; may be NULL */
    struct sl_pace *pace; /* how fast its body may go; may be NULL */
};

struct sl_answer {
    long status;
    struct sl_buf body;
    char kept[SL_ASK_KEPT_MAX]; /* "" when there was none, or too long */
};

/* Any answer that would not change when asked again is a success; release it. SL_RETRY: none, after
 * all tries. */
int sl_ask(const struct sl_ask *a, const struct sl_watch *watch, struct sl_answer *ret_answer,
           struct sl_err *err);
void sl_answer_release(struct sl_answer *answer);
/* 0 for 2xx, else the error that the answer means: SL_NOTFOUND (404, 410), SL_DENIED (401, 403),
 * SL_RETRY (429, 5xx), SL_SPEC. what: how messages call the thing asked for. */
int sl_answer_check(const struct sl_answer *answer, const char *what, const char *url,
                    struct sl_err *err);
/* What a service's answer says of its fault: S3's XML, Google's and Hugging Face's JSON. "" when it
 * says nothing that is understood. */
void sl_answer_reason(const char *text, size_t len, char *ret_reason, size_t max);

/* Waits us microseconds in small pieces. SL_CANCELLED. */
int sl_ask_pause(int64_t us, const struct sl_watch *watch, struct sl_err *err);
/* Adds one header; SL_NOMEM frees nothing. */
int sl_header_add(struct curl_slist **headers, struct sl_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
