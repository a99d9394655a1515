#include "artifacts/aws.h"
#include "artifacts/sigv4.h"
#include "artifacts/web.h"
#include "artifacts/xml.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define FILE_MAX (1u << 20)
#define METADATA "http://169.254.169.254"
#define METADATA_S 2 /* it is near, or not there */
#define METADATA_TRIES 2
#define OWN_HEADERS_BYTES 4096
#define HOST_MAX 300
#define EMPTY_SHA256 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

const char *sl_aws_endpoint(const char *service)
{
    const char *own =
        env(strcmp(service, "s3") == 0 ? "AWS_ENDPOINT_URL_S3" : "AWS_ENDPOINT_URL_STS");
    return own ? own : env("AWS_ENDPOINT_URL");
}

static int keep(char *to, size_t max, const char *value, const char *what, struct sl_err *err)
{
    if (strlen(value) >= max)
        return sl_err_set(err, SL_SPEC, "%s has more than %zu bytes", what, max - 1);
    for (const char *p = value; *p; p++)
        if (*p <= ' ' || *p > '~')
            return sl_err_set(err, SL_SPEC,
                              "%s has a blank or another character that cannot be sent", what);
    memcpy(to, value, strlen(value) + 1);
    return 0;
}

static int keep_keys(struct sl_aws *aws, const char *id, const char *secret, const char *token,
                     const char *from, struct sl_err *err)
{
    int rc = keep(aws->id, sizeof aws->id, id, "the access key id", err);
    if (rc == 0)
        rc = keep(aws->secret, sizeof aws->secret, secret, "the secret access key", err);
    if (rc == 0)
        rc = keep(aws->token, sizeof aws->token, token ? token : "", "the session token", err);
    aws->anonymous = false;
    return rc ? sl_err_wrap(err, rc, "AWS keys from %s", from) : 0;
}

/* "2026-01-02T03:04:05Z", also with parts of a second; 0 when it is none. */
static int64_t parse_time(const char *text)
{
    struct tm tm = {0};
    return text && strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) ? (int64_t)timegm(&tm) : 0;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* The value of key in [section] of an ini file; false when there is none. */
static bool ini_value(const char *text, const char *section, const char *key, char *ret_value,
                      size_t max)
{
    bool here = false, found = false;
    for (const char *line = text; *line;) {
        size_t len = strcspn(line, "\n");
        const char *p = line + strspn(line, " \t"), *end = line + len;
        while (end > p && strchr(" \t\r", end[-1]))
            end--;
        const char *equal = p < end ? memchr(p, '=', (size_t)(end - p)) : NULL;
        if (p < end && *p == '[') {
            const char *name = p + 1 + strspn(p + 1, " \t");
            size_t n = strlen(section);
            here = (size_t)(end - name) > n && strncmp(name, section, n) == 0 &&
                   name[n + strspn(name + n, " \t")] == ']';
        } else if (here && equal && *p != '#' && *p != ';') {
            const char *value = equal + 1 + strspn(equal + 1, " \t");
            while (equal > p && strchr(" \t", equal[-1]))
                equal--;
            if (value <= end && (size_t)(equal - p) == strlen(key) &&
                strncmp(p, key, strlen(key)) == 0 && (size_t)(end - value) < max) {
                memcpy(ret_value, value, (size_t)(end - value));
                ret_value[end - value] = 0;
                found = true;
            }
        }
        line += len + (line[len] == '\n');
    }
    return found;
}

/* A file below ~/.aws, or the one that variable names. SL_NOTFOUND: there is none. */
static int read_file(const char *variable, const char *name, struct sl_buf *text,
                     char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    const char *given = env(variable), *home = env("HOME");
    int rc = given ? sl_path(ret_path, err, "%s", given)
                   : sl_path(ret_path, err, "%s/.aws/%s", home ? home : "", name);
    return rc ? rc : sl_file_read(ret_path, text, err);
}

static int keys_from_file(struct sl_aws *aws, bool *ret_found, struct sl_err *err)
{
    const char *profile = env("AWS_PROFILE") ? env("AWS_PROFILE") : "default";
    char path[SL_PATH_MAX], id[SL_AWS_KEY_MAX] = "", secret[SL_AWS_KEY_MAX] = "";
    char token[SL_AWS_TOKEN_MAX] = "";
    struct sl_buf text;
    struct sl_err fault = SL_ERR_INIT;
    sl_buf_init(&text, FILE_MAX);
    int rc = read_file("AWS_SHARED_CREDENTIALS_FILE", "credentials", &text, path, &fault);
    if (rc == SL_NOTFOUND && !env("AWS_PROFILE")) {
        rc = 0;
    } else if (rc) {
        sl_err_set(err, rc, "AWS keys: %s", fault.msg);
    } else if (ini_value(text.p, profile, "aws_access_key_id", id, sizeof id) &&
               ini_value(text.p, profile, "aws_secret_access_key", secret, sizeof secret)) {
        ini_value(text.p, profile, "aws_session_token", token, sizeof token);
        rc = keep_keys(aws, id, secret, token, path, err);
        *ret_found = rc == 0;
    } else if (env("AWS_PROFILE")) {
        rc = sl_err_set(err, SL_SPEC, "%s has no keys of the profile %s", path, profile);
    }
    OPENSSL_cleanse(text.p, text.len);
    OPENSSL_cleanse(secret, sizeof secret);
    sl_buf_release(&text);
    return rc;
}

static bool region_from_file(struct sl_aws *aws)
{
    const char *profile = env("AWS_PROFILE");
    char path[SL_PATH_MAX], section[160] = "default";
    struct sl_buf text;
    sl_buf_init(&text, FILE_MAX);
    if (profile && strcmp(profile, "default") != 0)
        snprintf(section, sizeof section, "profile %.128s", profile);
    bool found = read_file("AWS_CONFIG_FILE", "config", &text, path, NULL) == 0 &&
                 ini_value(text.p, section, "region", aws->region, sizeof aws->region);
    sl_buf_release(&text);
    return found;
}

/* ---- services that give keys ----------------------------------------------------------------- */

struct assumed {
    char id[SL_AWS_KEY_MAX], secret[SL_AWS_KEY_MAX], token[SL_AWS_TOKEN_MAX], expires[64];
};

static int on_assumed(void *arg, const char *path, const char *text)
{
    struct assumed *k = arg;
    const char *name = strstr(path, "/Credentials/");
    if (!name)
        return 0;
    name += strlen("/Credentials/");
    if (strcmp(name, "AccessKeyId") == 0)
        snprintf(k->id, sizeof k->id, "%s", text);
    else if (strcmp(name, "SecretAccessKey") == 0)
        snprintf(k->secret, sizeof k->secret, "%s", text);
    else if (strcmp(name, "SessionToken") == 0)
        snprintf(k->token, sizeof k->token, "%s", text);
    else if (strcmp(name, "Expiration") == 0)
        snprintf(k->expires, sizeof k->expires, "%s", text);
    return 0;
}

/* AssumeRoleWithWebIdentity: the token itself is what lets us in. */
static int keys_from_web_identity(struct sl_aws *aws, const char *token_file, const char *role,
                                  struct sl_err *err)
{
    static const char *const headers[] = {"Content-Type: application/x-www-form-urlencoded", NULL};
    const char *session = env("AWS_ROLE_SESSION_NAME"), *endpoint = sl_aws_endpoint("sts");
    char url[SL_PATH_MAX];
    struct sl_buf token, form;
    struct sl_answer answer = {.status = 0};
    struct assumed keys = {.id = ""};
    sl_buf_init(&token, FILE_MAX);
    sl_buf_init(&form, 4 * FILE_MAX);
    int rc = endpoint ? sl_path(url, err, "%s/", endpoint)
                      : sl_path(url, err, "https://sts.%s.amazonaws.com/", aws->region);
    if (rc == 0)
        rc = sl_file_read(token_file, &token, err);
    while (rc == 0 && token.len && strchr(" \r\n", token.p[token.len - 1]))
        token.len--;
    if (rc == 0)
        rc = sl_buf_adds(&form, "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=");
    if (rc == 0)
        rc = sl_uri_encode(&form, role, strlen(role), "");
    if (rc == 0)
        rc = sl_buf_adds(&form, "&RoleSessionName=");
    if (rc == 0)
        rc = sl_uri_encode(&form, session ? session : "softlaunch",
                           strlen(session ? session : "softlaunch"), "");
    if (rc == 0)
        rc = sl_buf_adds(&form, "&WebIdentityToken=");
    if (rc == 0)
        rc = sl_uri_encode(&form, token.p, token.len, "");
    if (rc == 0) {
        const struct sl_ask ask = {.method = "POST",
                                   .url = url,
                                   .headers = headers,
                                   .body = form.p,
                                   .len = (int64_t)form.len};
        rc = sl_ask(&ask, aws->watch, &answer, err);
        if (rc == 0)
            rc = sl_answer_check(&answer, "the role of the web identity", url, err);
        if (rc == 0)
            rc = sl_xml_each(answer.body.p, answer.body.len, "STS", on_assumed, &keys, err);
    }
    if (rc == 0 && (!keys.id[0] || !keys.secret[0]))
        rc = sl_err_set(err, SL_DATA, "%s answered without keys", url);
    if (rc == 0)
        rc = keep_keys(aws, keys.id, keys.secret, keys.token, "STS", err);
    if (rc == 0)
        aws->expires_s = parse_time(keys.expires);
    OPENSSL_cleanse(&keys, sizeof keys);
    if (answer.status && answer.body.len)
        OPENSSL_cleanse(answer.body.p, answer.body.len);
    sl_answer_release(&answer);
    sl_buf_release(&form);
    sl_buf_release(&token);
    return rc ? sl_err_wrap(err, rc, "AWS keys by AWS_WEB_IDENTITY_TOKEN_FILE") : 0;
}

static int metadata(struct sl_aws *aws, const char *method, const char *path, const char *header,
                    struct sl_answer *ret_answer, struct sl_err *err)
{
    const char *origin = env("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    const char *const headers[] = {header, NULL};
    char url[SL_PATH_MAX];
    int rc = sl_path(url, err, "%s%s", origin ? origin : METADATA, path);
    const struct sl_ask ask = {.method = method,
                               .url = url,
                               .headers = headers,
                               .body = "",
                               .timeout_s = METADATA_S,
                               .tries = METADATA_TRIES};
    if (rc == 0)
        rc = sl_ask(&ask, aws->watch, ret_answer, err);
    if (rc)
        return rc;
    rc = sl_answer_check(ret_answer, "the machine's metadata service", url, err);
    if (rc)
        sl_answer_release(ret_answer);
    return rc;
}

static int keys_from_metadata(struct sl_aws *aws, struct sl_err *err)
{
    static const char roles[] = "/latest/meta-data/iam/security-credentials/";
    char header[1100], path[512];
    struct sl_answer answer;
    json_t *json = NULL;
    int rc = metadata(aws, "PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 300",
                      &answer, err);
    if (rc)
        return rc;
    snprintf(header, sizeof header, "X-aws-ec2-metadata-token: %.1024s", answer.body.p);
    sl_answer_release(&answer);
    rc = metadata(aws, "GET", roles, header, &answer, err);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "%s%.*s", roles, (int)strcspn(answer.body.p, "\r\n"),
             answer.body.p);
    sl_answer_release(&answer);
    rc = metadata(aws, "GET", path, header, &answer, err);
    if (rc)
        return rc;
    rc = sl_json_parse(answer.body.p, answer.body.len, "the metadata service's answer", &json, err);
    if (rc == 0)
        rc = keep_keys(aws, sl_json_str(json, "AccessKeyId", ""),
                       sl_json_str(json, "SecretAccessKey", ""), sl_json_str(json, "Token", ""),
                       "the metadata service", err);
    if (rc == 0 && (!aws->id[0] || !aws->secret[0]))
        rc = sl_err_set(err, SL_DATA, "the metadata service gave no keys");
    if (rc == 0)
        aws->expires_s = parse_time(sl_json_str(json, "Expiration", ""));
    json_decref(json);
    sl_answer_release(&answer);
    if (rc == 0 && !aws->region[0] &&
        metadata(aws, "GET", "/latest/meta-data/placement/region", header, &answer, NULL) == 0) {
        snprintf(aws->region, sizeof aws->region, "%.*s", (int)strcspn(answer.body.p, "\r\n"),
                 answer.body.p);
        sl_answer_release(&answer);
    }
    return rc;
}

static int find_keys(struct sl_aws *aws, struct sl_err *err)
{
    const char *id = env("AWS_ACCESS_KEY_ID"), *secret = env("AWS_SECRET_ACCESS_KEY");
    const char *token_file = env("AWS_WEB_IDENTITY_TOKEN_FILE"), *role = env("AWS_ROLE_ARN");
    const char *disabled = env("AWS_EC2_METADATA_DISABLED");
    bool found = false;
    aws->expires_s = 0;
    if (id && secret)
        return keep_keys(aws, id, secret, env("AWS_SESSION_TOKEN"), "the environment", err);
    if (id || secret)
        return sl_err_set(err, SL_SPEC, "AWS keys: %s is set, but %s is not",
                          id ? "AWS_ACCESS_KEY_ID" : "AWS_SECRET_ACCESS_KEY",
                          id ? "AWS_SECRET_ACCESS_KEY" : "AWS_ACCESS_KEY_ID");
    if (token_file && role)
        return keys_from_web_identity(aws, token_file, role, err);
    int rc = keys_from_file(aws, &found, err);
    if (rc || found)
        return rc;
    aws->anonymous = true;
    if (disabled && strcasecmp(disabled, "true") == 0)
        return 0;
    struct sl_err fault = SL_ERR_INIT;
    rc = keys_from_metadata(aws, &fault);
    if (rc == SL_CANCELLED)
        return sl_err_set(err, rc, "stopped");
    return 0; /* not on such a machine, or it has no role */
}

int sl_aws_init(struct sl_aws *aws, const struct sl_watch *watch, struct sl_err *err)
{
    const char *region = env("AWS_REGION") ? env("AWS_REGION") : env("AWS_DEFAULT_REGION");
    *aws = (struct sl_aws){.watch = watch};
    int rc = region ? keep(aws->region, sizeof aws->region, region, "AWS_REGION", err) : 0;
    if (rc == 0 && !region && !region_from_file(aws) && env("AWS_WEB_IDENTITY_TOKEN_FILE"))
        snprintf(aws->region, sizeof aws->region, "us-east-1");
    if (rc == 0)
        rc = find_keys(aws, err);
    if (rc == 0 && !aws->region[0])
        snprintf(aws->region, sizeof aws->region, "us-east-1");
    if (rc)
        sl_aws_release(aws);
    return rc;
}

void sl_aws_release(struct sl_aws *aws)
{
    if (aws)
        OPENSSL_cleanse(aws, sizeof *aws);
}

/* ---- signing --------------------------------------------------------------------------------- */

/* Parts of a URL as libcurl will send them. The caller frees path and query with curl_free. */
struct url_parts {
    char host[HOST_MAX];
    char *path, *query;
};

static int split(const char *url, struct url_parts *ret, struct sl_err *err)
{
    CURLU *u = curl_url();
    char *port = NULL, *host = NULL;
    struct url_parts p = {.host = ""};
    bool ok = u && !curl_url_set(u, CURLUPART_URL, url, CURLU_PATH_AS_IS) &&
              !curl_url_get(u, CURLUPART_HOST, &host, 0) &&
              !curl_url_get(u, CURLUPART_PATH, &p.path, 0);
    if (ok) {
        curl_url_get(u, CURLUPART_PORT, &port, CURLU_NO_DEFAULT_PORT);
        curl_url_get(u, CURLUPART_QUERY, &p.query, 0);
        snprintf(p.host, sizeof p.host, "%s%s%s", host, port ? ":" : "", port ? port : "");
    }
    curl_url_cleanup(u);
    curl_free(port);
    curl_free(host);
    if (!ok) {
        curl_free(p.path);
        curl_free(p.query);
        return sl_err_set(err, SL_SPEC, "`%.300s` is not a URL", url);
    }
    *ret = p;
    return 0;
}

/* The request's own x-amz-... headers, which S3 wants signed as well; names and values are copied to text. */
static int own_headers(const struct curl_slist *list, struct sl_sigv4_header *headers, int *n,
                       char *text, size_t room, struct sl_err *err)
{
    for (; list; list = list->next) {
        const char *colon = strchr(list->data, ':');
        size_t len = strlen(list->data) + 1;
        if (!colon || strncmp(list->data, "x-amz-", 6) != 0)
            continue;
        if (*n == SL_SIGV4_MAX_HEADERS || len > room)
            return sl_err_set(err, SL_SPEC, "too many headers to sign");
        memcpy(text, list->data, len);
        text[colon - list->data] = 0;
        const char *value = text + (colon - list->data) + 1;
        headers[(*n)++] = (struct sl_sigv4_header){text, value + strspn(value, " ")};
        text += len;
        room -= len;
    }
    return 0;
}

static int sign(void *arg, const char *method, const char *url, const char *sha256,
                struct curl_slist **headers, struct sl_err *err)
{
    struct sl_aws *aws = arg;
    char own[OWN_HEADERS_BYTES];
    int n = 0;
    char time[SL_SIGV4_TIME_MAX];
    struct url_parts parts;
    struct sl_buf value;
    int rc = 0;
    if (aws->expires_s && aws->expires_s - SL_AWS_EARLY_S < sl_now_us() / 1000000)
        rc = find_keys(aws, err);
    if (rc || aws->anonymous)
        return rc;
    rc = split(url, &parts, err);
    if (rc)
        return rc;
    sl_sigv4_time(sl_now_us() / 1000000, time);
    const char *body = sha256 ? sha256 : EMPTY_SHA256;
    struct sl_sigv4_header signed_headers[SL_SIGV4_MAX_HEADERS] = {{"host", parts.host},
                                                                   {"x-amz-content-sha256", body},
                                                                   {"x-amz-date", time}};
    n = 3;
    if (aws->token[0])
        signed_headers[n++] = (struct sl_sigv4_header){"x-amz-security-token", aws->token};
    rc = own_headers(*headers, signed_headers, &n, own, sizeof own, err);
    const struct sl_sigv4 s = {.key_id = aws->id,
                               .secret = aws->secret,
                               .region = aws->region,
                               .service = "s3",
                               .time = time};
    const struct sl_sigv4_request r = {
        method, parts.path, parts.query, signed_headers, n, body};
    sl_buf_init(&value, SL_SIGV4_MAX_BYTES);
    if (rc == 0)
        rc = sl_sigv4_authorization(&s, &r, &value, err);
    if (rc == 0)
        rc = sl_header_add(headers, err, "x-amz-content-sha256: %s", body);
    if (rc == 0)
        rc = sl_header_add(headers, err, "x-amz-date: %s", time);
    if (rc == 0 && aws->token[0])
        rc = sl_header_add(headers, err, "x-amz-security-token: %s", aws->token);
    if (rc == 0)
        rc = sl_header_add(headers, err, "Authorization: %s", value.p);
    sl_buf_release(&value);
    curl_free(parts.path);
    curl_free(parts.query);
    return rc;
}

struct sl_signer sl_aws_signer(struct sl_aws *aws)
{
    return (struct sl_signer){.arg = aws, .sign = sign};
}
