#include "artifacts/gcloud.h"
#include "artifacts/sigv4.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ENDPOINT "https://storage.googleapis.com"
#define TOKEN_URI "https://oauth2.googleapis.com/token"
#define SCOPE "https://www.googleapis.com/auth/devstorage.read_write"
#define METADATA_HOST "metadata.google.internal"
#define METADATA_PATH "/computeMetadata/v1/instance/service-accounts/default/token"
#define METADATA_S 2
#define METADATA_TRIES 2
#define KEY_FILE_MAX (1u << 20)
#define JWT_MAX 16384
#define JWT_LIFE_S 3600

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static int add_base64url(struct sl_buf *to, const void *data, size_t len)
{
    size_t room = 4 * ((len + 2) / 3);
    char *out = sl_buf_reserve(to, room + 1);
    if (!out)
        return SL_NOMEM;
    EVP_EncodeBlock((unsigned char *)out, data, (int)len);
    while (room && out[room - 1] == '=')
        room--;
    for (size_t i = 0; i < room; i++)
        out[i] = (char)(out[i] == '+' ? '-' : out[i] == '/' ? '_' : out[i]);
    to->len += room;
    to->p[to->len] = 0;
    return 0;
}

/* Appends "." and the RS256 signature of what is there. */
static int add_signature(struct sl_buf *jwt, const char *pem, struct sl_err *err)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    unsigned char signature[1024];
    size_t len = sizeof signature;
    int rc = 0;
    if (!key)
        rc = sl_err_set(err, SL_SPEC, "its private_key is no PEM key");
    else if (!ctx || EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key) != 1 ||
             EVP_DigestSign(ctx, signature, &len, (const unsigned char *)jwt->p, jwt->len) != 1)
        rc = sl_err_set(err, SL_SPEC, "its private_key cannot sign");
    else if (sl_buf_addc(jwt, '.') || add_base64url(jwt, signature, len))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    BIO_free(bio);
    return rc;
}

/* {"access_token", "expires_in"} of either service. */
static int take_token(struct sl_gcloud *g, const struct sl_answer *answer, struct sl_err *err)
{
    json_t *json = NULL;
    int rc = sl_json_parse(answer->body.p, answer->body.len, "the token's answer", &json, err);
    const char *token = sl_json_str(json, "access_token", "");
    if (rc == 0 && (!*token || strlen(token) >= sizeof g->token))
        rc = sl_err_set(err, SL_DATA, "the answer holds no token");
    if (rc == 0) {
        memcpy(g->token, token, strlen(token) + 1);
        g->expires_s = sl_now_us() / 1000000 + sl_json_int(json, "expires_in", JWT_LIFE_S);
        g->anonymous = false;
    }
    json_decref(json);
    return rc;
}

static int ask_token(struct sl_gcloud *g, const struct sl_ask *ask, const char *what,
                     struct sl_err *err)
{
    struct sl_answer answer;
    int rc = sl_ask(ask, g->watch, &answer, err);
    if (rc)
        return rc;
    rc = sl_answer_check(&answer, what, ask->url, err);
    if (rc == 0)
        rc = take_token(g, &answer, err);
    if (answer.body.len)
        OPENSSL_cleanse(answer.body.p, answer.body.len);
    sl_answer_release(&answer);
    return rc;
}

static int token_by_key(struct sl_gcloud *g, const char *path, struct sl_err *err)
{
    static const char *const headers[] = {"Content-Type: application/x-www-form-urlencoded", NULL};
    static const char head[] = "{\"alg\":\"RS256\",\"typ\":\"JWT\"}";
    static const char grant[] =
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";
    json_t *key = NULL;
    struct sl_buf jwt, form;
    sl_buf_init(&jwt, JWT_MAX);
    sl_buf_init(&form, 2 * JWT_MAX);
    int rc = sl_json_read(path, KEY_FILE_MAX, &key, err);
    const char *email = sl_json_str(key, "client_email", NULL);
    const char *pem = sl_json_str(key, "private_key", NULL);
    const char *uri = sl_json_str(key, "token_uri", TOKEN_URI);
    if (rc == 0 && (strcmp(sl_json_str(key, "type", ""), "service_account") != 0 || !email || !pem))
        rc = sl_err_set(err, SL_SPEC, "it is not the key of a service account");
    int64_t now = sl_now_us() / 1000000;
    json_t *claims =
        rc ? NULL
           : json_pack("{s:s, s:s, s:s, s:I, s:I}", "iss", email, "scope", SCOPE, "aud", uri, "iat",
                       (json_int_t)now, "exp", (json_int_t)now + JWT_LIFE_S);
    char *text = claims ? sl_json_dump(claims) : NULL;
    if (rc == 0 && (!text || add_base64url(&jwt, head, strlen(head)) || sl_buf_addc(&jwt, '.') ||
                    add_base64url(&jwt, text, strlen(text))))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        rc = add_signature(&jwt, pem, err);
    if (rc == 0 && (sl_buf_adds(&form, grant) || sl_buf_adds(&form, jwt.p)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0) {
        const struct sl_ask ask = {.method = "POST",
                                   .url = uri,
                                   .headers = headers,
                                   .body = form.p,
                                   .len = (int64_t)form.len};
        rc = ask_token(g, &ask, "a token for the service account", err);
    }
    free(text);
    json_decref(claims);
    json_decref(key);
    sl_buf_release(&form);
    sl_buf_release(&jwt);
    return rc ? sl_err_wrap(err, rc, "GOOGLE_APPLICATION_CREDENTIALS=%s", path) : 0;
}

static int token_by_metadata(struct sl_gcloud *g, struct sl_err *err)
{
    static const char *const headers[] = {"Metadata-Flavor: Google", NULL};
    const char *host = env("GCE_METADATA_HOST");
    char url[1024];
    snprintf(url, sizeof url, "http://%.400s" METADATA_PATH, host ? host : METADATA_HOST);
    const struct sl_ask ask = {.method = "GET",
                               .url = url,
                               .headers = headers,
                               .timeout_s = METADATA_S,
                               .tries = METADATA_TRIES};
    return ask_token(g, &ask, "the machine's account", err);
}

static int find_token(struct sl_gcloud *g, struct sl_err *err)
{
    const char *key = env("GOOGLE_APPLICATION_CREDENTIALS");
    if (key)
        return token_by_key(g, key, err);
    g->anonymous = true;
    g->expires_s = 0;
    if (env("STORAGE_EMULATOR_HOST") && !env("GCE_METADATA_HOST"))
        return 0;
    struct sl_err fault = SL_ERR_INIT;
    if (token_by_metadata(g, &fault) == SL_CANCELLED)
        return sl_err_set(err, SL_CANCELLED, "stopped");
    return 0; /* not on Google's machines, or without an account */
}

int sl_gcloud_init(struct sl_gcloud *g, const struct sl_watch *watch, struct sl_err *err)
{
    const char *endpoint = env("STORAGE_EMULATOR_HOST");
    *g = (struct sl_gcloud){.watch = watch};
    const char *scheme = endpoint && !strstr(endpoint, "://") ? "http://" : "";
    endpoint = endpoint ? endpoint : ENDPOINT;
    int n = snprintf(g->endpoint, sizeof g->endpoint, "%s%s", scheme, endpoint);
    if (n < 0 || n >= (int)sizeof g->endpoint)
        return sl_err_set(err, SL_SPEC, "STORAGE_EMULATOR_HOST has more than %zu bytes",
                          sizeof g->endpoint - 1);
    while (n && g->endpoint[n - 1] == '/')
        g->endpoint[--n] = 0;
    return find_token(g, err);
}

void sl_gcloud_release(struct sl_gcloud *g)
{
    if (g)
        OPENSSL_cleanse(g, sizeof *g);
}

static int sign(void *arg, const char *method, const char *url, const char *sha256,
                struct curl_slist **headers, struct sl_err *err)
{
    struct sl_gcloud *g = arg;
    (void)method;
    (void)url;
    (void)sha256;
    if (g->expires_s && g->expires_s - SL_GCLOUD_EARLY_S < sl_now_us() / 1000000) {
        int rc = find_token(g, err);
        if (rc)
            return rc;
    }
    return g->anonymous ? 0 : sl_header_add(headers, err, "Authorization: Bearer %s", g->token);
}

struct sl_signer sl_gcloud_signer(struct sl_gcloud *g)
{
    return (struct sl_signer){.arg = g, .sign = sign};
}
