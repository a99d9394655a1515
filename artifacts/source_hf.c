/* hf:// by the Hub's published interface: /api/models/REPO/revision/REV?blobs=true tells commit,
 * files, sizes and digests; /REPO/resolve/COMMIT/PATH gives a file, large ones by a redirect to
 * another host. */
#include "artifacts/sigv4.h"
#include "artifacts/source.h"
#include "artifacts/web.h"
#include "base/file.h"
#include "base/json.h"
#include <stdlib.h>
#include <string.h>

#define ENDPOINT "https://huggingface.co"
#define PART_MAX 128
#define URL_MAX_BYTES 8192
#define TOKEN_MAX 1024

struct hub {
    char endpoint[512], token[TOKEN_MAX];
};

struct hf_ref {
    char repo[2 * PART_MAX + 2]; /* "org/name" */
    char revision[PART_MAX];
    char file[SL_ENTRY_PATH_MAX + 1]; /* "": all */
    bool dataset;
};

static bool part_valid(const char *p, size_t len)
{
    if (len == 0 || len >= PART_MAX || p[0] == '.' || p[0] == '-')
        return false;
    for (size_t i = 0; i < len; i++)
        if (!((p[i] >= 'a' && p[i] <= 'z') || (p[i] >= 'A' && p[i] <= 'Z') ||
              (p[i] >= '0' && p[i] <= '9') || strchr("._-", p[i])))
            return false;
    return true;
}

/* The revision as the Hub has it: %2F is a slash. */
static bool take_revision(const char *p, size_t len, char ret[PART_MAX])
{
    size_t n = 0;
    if (len == 0)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = p[i];
        if (c == '%' && i + 2 < len && p[i + 1] == '2' && (p[i + 2] == 'F' || p[i + 2] == 'f')) {
            c = '/';
            i += 2;
        } else if (!part_valid(&c, 1) && !strchr("._-", c)) {
            return false;
        }
        if (n + 1 >= PART_MAX)
            return false;
        ret[n++] = c;
    }
    ret[n] = 0;
    return !strstr(ret, "..") && ret[0] != '/';
}

static int parse(const char *ref, struct hf_ref *ret, struct sl_err *err)
{
    struct hf_ref r = {.revision = "main"};
    const char *p = ref + strlen("hf://");
    if (strncmp(p, "datasets/", strlen("datasets/")) == 0) {
        r.dataset = true;
        p += strlen("datasets/");
    }
    size_t org = strcspn(p, "/"), name = p[org] ? strcspn(p + org + 1, "/@") : 0;
    bool ok = part_valid(p, org) && part_valid(p + org + 1, name);
    if (ok) {
        snprintf(r.repo, sizeof r.repo, "%.*s", (int)(org + 1 + name), p);
        p += org + 1 + name;
        if (*p == '@') {
            size_t len = strcspn(p + 1, "/");
            ok = take_revision(p + 1, len, r.revision);
            p += 1 + len;
        }
    }
    if (ok && *p == '/' && p[1]) {
        ok = sl_entry_path_valid(p + 1);
        if (ok)
            memcpy(r.file, p + 1, strlen(p + 1) + 1);
    }
    if (!ok)
        return sl_err_set(err, SL_SPEC,
                          "`%.200s` is not of the form hf://ORG/NAME[@REVISION][/FILE]", ref);
    *ret = r;
    return 0;
}

static int read_token(struct hub *hub, struct sl_err *err)
{
    const char *token = getenv("HF_TOKEN"), *at = getenv("HF_TOKEN_PATH"), *home = getenv("HOME");
    char path[SL_PATH_MAX];
    struct sl_buf text;
    int rc = 0;
    sl_buf_init(&text, TOKEN_MAX);
    if (!token || !*token) {
        rc = at && *at ? sl_path(path, err, "%s", at)
                       : sl_path(path, err, "%s/.cache/huggingface/token", home ? home : "");
        token = rc == 0 && sl_file_read(path, &text, NULL) == 0 ? text.p : "";
    }
    size_t len = strcspn(token, " \r\n");
    if (rc == 0 && len >= sizeof hub->token)
        rc = sl_err_set(err, SL_SPEC, "HF_TOKEN has more than %zu bytes", sizeof hub->token - 1);
    if (rc == 0) {
        memcpy(hub->token, token, len);
        hub->token[len] = 0;
    }
    sl_buf_release(&text);
    return rc;
}

/* The token is for the Hub alone, and only travels encrypted, or on this machine. */
static int sign(void *arg, const char *method, const char *url, const char *sha256,
                struct curl_slist **headers, struct sl_err *err)
{
    const struct hub *hub = arg;
    (void)method;
    (void)sha256;
    if (!hub->token[0] || !sl_web_same_origin(url, hub->endpoint))
        return 0;
    return sl_header_add(headers, err, "Authorization: Bearer %s", hub->token);
}

static int add_file(struct sl_source *source, const struct hub *hub, const struct hf_ref *r,
                    const json_t *item, struct sl_err *err)
{
    const char *path = sl_json_str(item, "rfilename", "");
    const char *sha256 = sl_json_str(item, "lfs.sha256", sl_json_str(item, "lfs.oid", ""));
    const char *git = sl_json_str(item, "blobId", "");
    struct sl_source_file *file;
    struct sl_buf url;
    if (r->file[0] && strcmp(r->file, path) != 0)
        return 0;
    if (strncmp(sha256, "sha256:", 7) == 0)
        sha256 += 7;
    sl_buf_init(&url, URL_MAX_BYTES);
    int rc = sl_buf_addf(&url, "%s/%s%s/resolve/%s/", hub->endpoint, r->dataset ? "datasets/" : "",
                         r->repo, source->revision);
    if (rc == 0)
        rc = sl_uri_encode(&url, path, strlen(path), "/");
    if (rc)
        sl_err_set(err, SL_SPEC, "a URL is too long");
    if (rc == 0)
        rc =
            sl_source_add(source, r->file[0] ? sl_source_base(path) : path, url.p,
                          sl_json_int(item, "lfs.size", sl_json_int(item, "size", -1)), &file, err);
    sl_buf_release(&url);
    if (rc)
        return rc;
    if (*sha256 && !sl_sha256_valid(sha256))
        return sl_err_set(err, SL_DATA, "%s: the Hub's digest is no sha256: %.80s", path, sha256);
    if (*sha256)
        memcpy(file->sha256, sha256, SL_SHA256_HEX + 1);
    else if (strlen(git) == SL_GIT_SHA1_HEX && strspn(git, "0123456789abcdef") == SL_GIT_SHA1_HEX)
        memcpy(file->git_sha1, git, SL_GIT_SHA1_HEX + 1);
    return 0;
}

static int read_listing(struct sl_source *source, const struct hub *hub, const struct hf_ref *r,
                        const struct sl_answer *answer, struct sl_err *err)
{
    json_t *json = NULL, *item;
    size_t i;
    int rc = sl_json_parse(answer->body.p, answer->body.len, "the Hub's answer", &json, err);
    const char *commit = sl_json_str(json, "sha", "");
    if (rc == 0 && (strlen(commit) != SL_GIT_SHA1_HEX ||
                    strspn(commit, "0123456789abcdef") != SL_GIT_SHA1_HEX))
        rc = sl_err_set(err, SL_DATA, "the Hub names no commit: %.80s", commit);
    if (rc == 0)
        memcpy(source->revision, commit, SL_GIT_SHA1_HEX + 1);
    json_array_foreach(rc ? NULL : json_object_get(json, "siblings"), i, item) {
        rc = add_file(source, hub, r, item, err);
        if (rc)
            break;
    }
    json_decref(json);
    if (rc == 0 && source->n == 0)
        rc = r->file[0] ? sl_err_set(err, SL_NOTFOUND, "there is no file %s at revision %s",
                                     r->file, r->revision)
                        : 0;
    return rc;
}

int sl_source_hf(const char *ref, const struct sl_watch *watch, struct sl_source *source,
                 struct sl_err *err)
{
    const char *endpoint = getenv("HF_ENDPOINT");
    struct hf_ref r;
    struct sl_answer answer;
    struct sl_buf url;
    int rc = parse(ref, &r, err);
    struct hub *hub = rc ? NULL : calloc(1, sizeof *hub);
    if (!hub)
        return rc ? rc : sl_err_set(err, SL_NOMEM, "out of memory");
    source->state = hub;
    source->free_state = free;
    source->signer = (struct sl_signer){.arg = hub, .sign = sign, .follow = true};
    source->folder = !r.file[0];
    endpoint = endpoint && *endpoint ? endpoint : ENDPOINT;
    size_t len = strlen(endpoint);
    while (len && endpoint[len - 1] == '/')
        len--;
    if (len >= sizeof hub->endpoint)
        return sl_err_set(err, SL_SPEC, "HF_ENDPOINT has more than %zu bytes",
                          sizeof hub->endpoint - 1);
    snprintf(hub->endpoint, sizeof hub->endpoint, "%.*s", (int)len, endpoint);
    rc = read_token(hub, err);
    sl_buf_init(&url, URL_MAX_BYTES);
    if (rc == 0 && (sl_buf_addf(&url, "%s/api/%s/%s/revision/", hub->endpoint,
                                r.dataset ? "datasets" : "models", r.repo) ||
                    sl_uri_encode(&url, r.revision, strlen(r.revision), "") ||
                    sl_buf_adds(&url, "?blobs=true")))
        rc = sl_err_set(err, SL_SPEC, "a URL is too long");
    if (rc == 0) {
        const struct sl_ask ask = {.method = "GET", .url = url.p, .signer = &source->signer};
        rc = sl_ask(&ask, watch, &answer, err);
        if (rc == 0) {
            rc = sl_answer_check(&answer, "the repository", url.p, err);
            if (rc == SL_DENIED && !hub->token[0])
                sl_err_wrap(err, rc, "without a token (set HF_TOKEN)");
            if (rc == 0)
                rc = read_listing(source, hub, &r, &answer, err);
            sl_answer_release(&answer);
        }
    }
    sl_buf_release(&url);
    return rc;
}
