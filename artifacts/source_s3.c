/* s3:// by ListObjectsV2 and GetObject. */
#include "artifacts/aws.h"
#include "artifacts/sigv4.h"
#include "artifacts/source.h"
#include "artifacts/xml.h"
#include <stdlib.h>
#include <string.h>

#define URL_MAX_BYTES 8192
#define TOKEN_MAX 2048
#define PAGES_MAX 64 /* of at most 1000 names */

int sl_s3_url(const char *region, const char *bucket, const char *key, struct sl_buf *url,
              struct sl_err *err)
{
    const char *endpoint = sl_aws_endpoint("s3");
    size_t len = endpoint ? strlen(endpoint) : 0;
    int rc;
    while (len && endpoint[len - 1] == '/')
        len--;
    if (endpoint)
        rc = sl_buf_addf(url, "%.*s/%s/", (int)len, endpoint, bucket);
    else if (strchr(bucket, '.')) /* its certificates hold for one more label only */
        rc = sl_buf_addf(url, "https://s3.%s.amazonaws.com/%s/", region, bucket);
    else
        rc = sl_buf_addf(url, "https://%s.s3.%s.amazonaws.com/", bucket, region);
    if (rc == 0)
        rc = sl_uri_encode(url, key, strlen(key), "/");
    return rc ? sl_err_set(err, SL_SPEC, "an S3 URL is too long") : 0;
}

struct listing {
    struct sl_aws *aws;
    const struct sl_bucket_ref *ref;
    struct sl_source *source;
    struct sl_err *err;
    char key[SL_ENTRY_PATH_MAX + 2], next[TOKEN_MAX];
    int64_t bytes;
    bool more;
    bool is_listing; /* the page was one */
};

static int add_object(struct listing *l)
{
    size_t prefix = strlen(l->ref->key), len = strlen(l->key);
    if (len <= prefix || strncmp(l->key, l->ref->key, prefix) != 0)
        return 0; /* the marker that some tools make for a folder */
    if (l->key[len - 1] == '/')
        return 0;
    struct sl_buf url;
    sl_buf_init(&url, URL_MAX_BYTES);
    int rc = sl_s3_url(l->aws->region, l->ref->bucket, l->key, &url, l->err);
    if (rc == 0)
        rc = sl_source_add(l->source, l->key + prefix, url.p, l->bytes, NULL, l->err);
    sl_buf_release(&url);
    return rc;
}

static int on_element(void *arg, const char *path, const char *text)
{
    struct listing *l = arg;
    static const char root[] = "ListBucketResult/";
    l->is_listing |= strcmp(path, "ListBucketResult") == 0;
    if (strncmp(path, root, sizeof root - 1) != 0)
        return 0;
    const char *name = path + sizeof root - 1;
    if (strcmp(name, "Contents/Key") == 0) {
        if (strlen(text) >= sizeof l->key)
            return sl_err_set(l->err, SL_DATA, "a name of more than %d bytes: %.100s...",
                              SL_ENTRY_PATH_MAX, text);
        memcpy(l->key, text, strlen(text) + 1);
    } else if (strcmp(name, "Contents/Size") == 0) {
        char *end;
        l->bytes = strtoll(text, &end, 10);
        if (end == text || *end || l->bytes < 0)
            return sl_err_set(l->err, SL_DATA, "not a size: %.40s", text);
    } else if (strcmp(name, "Contents") == 0) {
        int rc = add_object(l);
        l->key[0] = 0;
        l->bytes = -1;
        return rc;
    } else if (strcmp(name, "IsTruncated") == 0) {
        l->more = strcmp(text, "true") == 0;
    } else if (strcmp(name, "NextContinuationToken") == 0) {
        snprintf(l->next, sizeof l->next, "%s", text);
    }
    return 0;
}

static int list_page(struct listing *l, const char *token, const struct sl_watch *watch)
{
    struct sl_buf url;
    struct sl_answer answer;
    sl_buf_init(&url, URL_MAX_BYTES);
    int rc = sl_s3_url(l->aws->region, l->ref->bucket, "", &url, l->err);
    if (rc == 0 && (sl_buf_adds(&url, "?list-type=2&prefix=") ||
                    sl_uri_encode(&url, l->ref->key, strlen(l->ref->key), "") ||
                    (*token && (sl_buf_adds(&url, "&continuation-token=") ||
                                sl_uri_encode(&url, token, strlen(token), "")))))
        rc = sl_err_set(l->err, SL_SPEC, "an S3 URL is too long");
    if (rc == 0) {
        const struct sl_ask ask = {.method = "GET", .url = url.p, .signer = &l->source->signer};
        rc = sl_ask(&ask, watch, &answer, l->err);
        if (rc == 0) {
            rc = sl_answer_check(&answer, "its listing", url.p, l->err);
            l->is_listing = false;
            if (rc == 0)
                rc = sl_xml_each(answer.body.p, answer.body.len, "its listing", on_element, l,
                                 l->err);
            if (rc == 0 && !l->is_listing) /* a portal's page; as one of many it would leave files out */
                rc = sl_err_set(l->err, SL_DATA, "its listing: %.300s did not answer with a ListBucketResult", url.p);
            sl_answer_release(&answer);
        }
    }
    sl_buf_release(&url);
    return rc;
}

static void free_state(void *state)
{
    sl_aws_release(state);
    free(state);
}

int sl_source_s3(const char *ref, const struct sl_watch *watch, struct sl_source *source,
                 struct sl_err *err)
{
    struct sl_bucket_ref r;
    int rc = sl_bucket_ref_parse(ref, &r, err);
    if (rc)
        return rc;
    struct sl_aws *aws = calloc(1, sizeof *aws);
    if (!aws)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    source->state = aws;
    source->free_state = free_state;
    rc = sl_aws_init(aws, watch, err);
    source->signer = sl_aws_signer(aws);
    source->folder = r.folder;
    if (rc == 0 && !r.folder) {
        struct sl_buf url;
        sl_buf_init(&url, URL_MAX_BYTES);
        rc = sl_s3_url(aws->region, r.bucket, r.key, &url, err);
        if (rc == 0)
            rc = sl_source_add(source, sl_source_base(r.key), url.p, -1, NULL, err);
        sl_buf_release(&url);
        return rc;
    }
    struct listing l = {
        .aws = aws, .ref = &r, .source = source, .err = err, .bytes = -1, .more = true};
    char token[TOKEN_MAX] = "";
    for (int page = 0; rc == 0 && l.more; page++) {
        if (page == PAGES_MAX)
            return sl_err_set(err, SL_DATA, "its listing has more than %d pages", PAGES_MAX);
        l.more = false;
        l.next[0] = 0;
        rc = list_page(&l, token, watch);
        if (rc == 0 && l.more && !l.next[0])
            rc = sl_err_set(err, SL_DATA, "its listing goes on, but does not say where");
        memcpy(token, l.next, sizeof token);
    }
    if (rc == SL_DENIED && aws->anonymous)
        return sl_err_wrap(err, rc,
                           "without keys, since none were found (set AWS_ACCESS_KEY_ID and "
                           "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)");
    return rc;
}
