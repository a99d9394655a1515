/* One HTTP request of a transfer: its options, its tries, what its failure means. For transfer.c
 * and ranges.c. */
#ifndef SL_ARTIFACTS_JOB_H
#define SL_ARTIFACTS_JOB_H
#include "artifacts/transfer.h"
#include "base/buf.h"
#include <curl/curl.h>

#define SL_JOB_REPLY_MAX 4096 /* kept of an error's body */
#define SL_JOB_ETAG_MAX 256

/* One request under way. */
struct sl_job {
    const struct sl_transfer *t;
    const char *what, *url;
    bool own; /* the token's server */
    CURL *curl;
    bool lent; /* curl is of who calls */
    struct curl_slist *headers;
    size_t (*on_body)(char *, size_t, size_t, void *);
    struct sl_buf reply; /* an error's body */
    char etag[SL_JOB_ETAG_MAX];
    char curl_msg[CURL_ERROR_SIZE];
    long status;
    struct sl_err err; /* of a callback */
    /* a download */
    struct sl_fill *fill;
    int64_t expected_bytes;
    int64_t range_from;  /* what the answer to a Range request begins with; -1: not said */
    int64_t range_total; /* how much there is, by the same header; -1: not said */
    /* an upload */
    int fd;
    int64_t sent;
};

/* on_body: where the answer's bytes go, called with the job. */
int sl_job_init(struct sl_job *j, const struct sl_transfer *t, const char *what, const char *url,
                size_t (*on_body)(char *, size_t, size_t, void *), struct sl_err *err);
void sl_job_release(struct sl_job *j);
/* Sets all options but those of the method; the headers, freed by sl_job_done, are headers_taken
 * and what lets the request in. SL_...: of the signer, then in j->err too. */
int sl_job_prepare(struct sl_job *j, struct curl_slist *headers_taken);
void sl_job_done(struct sl_job *j);
/* Both, and the request between them. The callback's error, if any, is in j->err. */
CURLcode sl_job_perform(struct sl_job *j, struct curl_slist *headers_taken);
/* The error that an answer or its absence means; SL_RETRY: another try is worth it. */
int sl_job_judge(struct sl_job *j, CURLcode code, struct sl_err *err);
int sl_job_tries(const struct sl_transfer *t);
/* How long to wait before try number `attempt`: longer each time, or as the server said. */
int64_t sl_job_pause_us(struct sl_job *j, int attempt);

#endif
