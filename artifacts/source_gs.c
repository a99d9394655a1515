/* gs:// by the JSON interface of Google Cloud Storage. */
#include "artifacts/gcloud.h"
#include "artifacts/sigv4.h"
#include "artifacts/source.h"
#include "base/json.h"
#include <stdlib.h>
#include <string.h>

#define URL_MAX_BYTES 8192
#define TOKEN_MAX 2048
#define PAGES_MAX 64 /* of at most 1000 names */

/* size: a decimal number in a string, as the interface has 64-bit numbers. */
static int64_t size_of(const json_t *item)
{
    const char *text = sl_json_str(item, "size", "");
    char *end;
    long long n = strtoll(text, &end, 10);
    return end == text || *end || n < 0 ? -1 : n;
}

static int object_url(const struct sl_gcloud *g, const char *bucket, const char *name,
                      struct sl_buf *url, struct sl_err *err)
{
    if (sl_buf_addf(url, "%s/storage/v1/b/%s/o/", g->endpoint, bucket) ||
        sl_uri_encode(url, name, strlen(name), "") || sl_buf_adds(url, "?alt=media"))
        return sl_err_set(err, SL_SPEC, "a URL is too long");
    return 0;
}

static int add_objects(struct sl_source *source, const struct sl_gcloud *g,
                       const struct sl_bucket_ref *r, const json_t *json, struct sl_err *err)
{
    size_t i, prefix = strlen(r->key);
    json_t *item;
    int rc = 0;
    json_array_foreach(json_object_get(json, "items"), i, item) {
        const char *name = sl_json_str(item, "name", "");
        size_t len = strlen(name);
        if (len <= prefix || strncmp(name, r->key, prefix) != 0 || name[len - 1] == '/')
            continue;
        struct sl_buf url;
        sl_buf_init(&url, URL_MAX_BYTES);
        rc = object_url(g, r->bucket, name, &url, err);
        if (rc == 0)
            rc = sl_source_add(source, name + prefix, url.p, size_of(item), NULL, err);
        sl_buf_release(&url);
        if (rc)
            return rc;
    }
    return 0;
}

static int list_page(struct sl_source *source, const struct sl_gcloud *g,
                     const struct sl_bucket_ref *r, const struct sl_watch *watch,
                     char token[TOKEN_MAX], struct sl_err *err)
{
    struct sl_buf url;
    struct sl_answer answer;
    json_t *json = NULL;
    int rc = 0;
    sl_buf_init(&url, URL_MAX_BYTES);
    if (sl_buf_addf(&url, "%s/storage/v1/b/%s/o?prefix=", g->endpoint, r->bucket) ||
        sl_uri_encode(&url, r->key, strlen(r->key), "") ||
        (*token &&
         (sl_buf_adds(&url, "&pageToken=") || sl_uri_encode(&url, token, strlen(token), ""))))
        rc = sl_err_set(err, SL_SPEC, "a URL is too long");
    if (rc == 0) {
        const struct sl_ask ask = {.method = "GET", .url = url.p, .signer = &source->signer};
        rc = sl_ask(&ask, watch, &answer, err);
    }
    if (rc == 0) {
        rc = sl_answer_check(&answer, "its listing", url.p, err);
        if (rc == 0)
            rc = sl_json_parse(answer.body.p, answer.body.len, "its listing", &json, err);
        if (rc == 0)
            rc = add_objects(source, g, r, json, err);
        if (rc == 0)
            snprintf(token, TOKEN_MAX, "%s", sl_json_str(json, "nextPageToken", ""));
        json_decref(json);
        sl_answer_release(&answer);
    }
    sl_buf_release(&url);
    return rc;
}

static void free_state(void *state)
{
    sl_gcloud_release(state);
    free(state);
}

int sl_source_gs(const char *ref, const struct sl_watch *watch, struct sl_source *source,
                 struct sl_err *err)
{
    struct sl_bucket_ref r;
    int rc = sl_bucket_ref_parse(ref, &r, err);
    struct sl_gcloud *g = rc ? NULL : calloc(1, sizeof *g);
    if (!g)
        return rc ? rc : sl_err_set(err, SL_NOMEM, "out of memory");
    source->state = g;
    source->free_state = free_state;
    source->folder = r.folder;
    source->signer = sl_gcloud_signer(g);
    rc = sl_gcloud_init(g, watch, err);
    if (rc == 0 && !r.folder) {
        struct sl_buf url;
        sl_buf_init(&url, URL_MAX_BYTES);
        rc = object_url(g, r.bucket, r.key, &url, err);
        if (rc == 0)
            rc = sl_source_add(source, sl_source_base(r.key), url.p, -1, NULL, err);
        sl_buf_release(&url);
        return rc;
    }
    char token[TOKEN_MAX] = "";
    for (int page = 0; rc == 0 && (page == 0 || *token); page++)
        rc = page == PAGES_MAX
                 ? sl_err_set(err, SL_DATA, "its listing has more than %d pages", PAGES_MAX)
                 : list_page(source, g, &r, watch, token, err);
    if (rc == SL_DENIED && g->anonymous)
        return sl_err_wrap(err, rc,
                           "without a token, since none was found (set "
                           "GOOGLE_APPLICATION_CREDENTIALS to a service account's key)");
    return rc;
}
