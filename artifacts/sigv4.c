#include "artifacts/sigv4.h"
#include <ctype.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ALGORITHM "AWS4-HMAC-SHA256"
#define HMAC_BYTES 32
#define SECRET_MAX 512

void sl_sigv4_time(long long unix_s, char ret_time[SL_SIGV4_TIME_MAX])
{
    time_t t = (time_t)unix_s;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(ret_time, SL_SIGV4_TIME_MAX, "%Y%m%dT%H%M%SZ", &tm);
}

static bool unreserved(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_' || c == '~';
}

int sl_uri_encode(struct sl_buf *to, const char *text, size_t len, const char *keep)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (unreserved(c) || (c && strchr(keep, c)))
            rc = sl_buf_addc(to, (char)c);
        else
            rc = sl_buf_addf(to, "%%%02X", c);
    }
    return rc;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Decodes a query's name or value, then encodes it. */
static int recode(struct sl_buf *to, const char *text, size_t len)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < len; i++) {
        char c = text[i];
        if (c == '%' && i + 2 < len && hex_value(text[i + 1]) >= 0 && hex_value(text[i + 2]) >= 0) {
            c = (char)(hex_value(text[i + 1]) * 16 + hex_value(text[i + 2]));
            i += 2;
        }
        rc = sl_uri_encode(to, &c, 1, "");
    }
    return rc;
}

/* ---- the canonical request ------------------------------------------------------------------- */

/* Resolves ".", ".." and empty parts. */
static int add_normal_path(struct sl_buf *to, const char *path)
{
    struct sl_buf flat;
    sl_buf_init(&flat, SL_SIGV4_MAX_BYTES);
    int rc = 0;
    const char *p = path;
    bool folder = true; /* ends in a slash */
    while (rc == 0 && *p) {
        size_t len = strcspn(p, "/");
        folder = p[len] == '/' || (len == 1 && p[0] == '.') || (len == 2 && !strncmp(p, "..", 2));
        if (len == 2 && !strncmp(p, "..", 2)) {
            char *slash = flat.len ? strrchr(flat.p, '/') : NULL;
            if (slash) {
                flat.len = (size_t)(slash - flat.p);
                *slash = 0;
            }
        } else if (len && !(len == 1 && p[0] == '.')) {
            rc = sl_buf_addc(&flat, '/');
            if (rc == 0)
                rc = sl_buf_add(&flat, p, len);
        }
        p += len + (p[len] == '/');
    }
    if (rc == 0 && folder)
        rc = sl_buf_addc(&flat, '/');
    if (rc == 0)
        rc = sl_uri_encode(to, flat.p, flat.len, "/");
    sl_buf_release(&flat);
    return rc;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Each parameter as "name\1value", so that comparing the whole text compares the name first. */
static int add_query(struct sl_buf *to, const char *query, struct sl_err *err)
{
    char *params[SL_SIGV4_MAX_QUERY];
    int n = 0, rc = 0;
    for (const char *p = query ? query : ""; rc == 0 && *p;) {
        size_t len = strcspn(p, "&"), name = strcspn(p, "=&");
        struct sl_buf one;
        sl_buf_init(&one, SL_SIGV4_MAX_BYTES);
        if (n == SL_SIGV4_MAX_QUERY)
            rc = sl_err_set(err, SL_SPEC, "more than %d parameters in a query", SL_SIGV4_MAX_QUERY);
        if (rc == 0 && len) {
            rc = recode(&one, p, name);
            if (rc == 0)
                rc = sl_buf_addc(&one, '\1');
            if (rc == 0 && name < len)
                rc = recode(&one, p + name + 1, len - name - 1);
            params[n] = rc ? NULL : sl_buf_take(&one);
            if (params[n])
                n++;
            else
                rc = SL_NOMEM;
        }
        sl_buf_release(&one);
        p += len + (p[len] == '&');
    }
    if (n)
        qsort(params, (size_t)n, sizeof *params, by_text);
    for (int i = 0; i < n; i++) {
        *strchr(params[i], '\1') = '=';
        if (rc == 0 && i)
            rc = sl_buf_addc(to, '&');
        if (rc == 0)
            rc = sl_buf_adds(to, params[i]);
        free(params[i]);
    }
    return rc;
}

/* Trimmed, runs of blanks made one. */
static int add_value(struct sl_buf *to, const char *value)
{
    int rc = 0;
    bool gap = false;
    for (const char *p = value + strspn(value, " \t\r\n"); rc == 0 && *p; p++) {
        if (strchr(" \t\r\n", *p)) {
            gap = true;
            continue;
        }
        if (gap)
            rc = sl_buf_addc(to, ' ');
        gap = false;
        if (rc == 0)
            rc = sl_buf_addc(to, *p);
    }
    return rc;
}

static int add_lower(struct sl_buf *to, const char *name)
{
    int rc = 0;
    for (; rc == 0 && *name; name++)
        rc = sl_buf_addc(to, (char)tolower((unsigned char)*name));
    return rc;
}

static int add_headers(const struct sl_sigv4_request *r, struct sl_buf *to, struct sl_buf *names,
                       struct sl_err *err)
{
    const struct sl_sigv4_header *sorted[SL_SIGV4_MAX_HEADERS];
    if (r->n_headers > SL_SIGV4_MAX_HEADERS)
        return sl_err_set(err, SL_SPEC, "more than %d headers to sign", SL_SIGV4_MAX_HEADERS);
    /* By insertion: equal names keep their order. */
    for (int i = 0; i < r->n_headers; i++) {
        int at = i;
        for (; at > 0 && strcasecmp(sorted[at - 1]->name, r->headers[i].name) > 0; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = &r->headers[i];
    }
    int rc = 0;
    for (int i = 0; rc == 0 && i < r->n_headers; i++) {
        bool again = i && strcasecmp(sorted[i]->name, sorted[i - 1]->name) == 0;
        if (again) {
            rc = sl_buf_addc(to, ',');
        } else {
            rc = i ? sl_buf_adds(to, "\n") : 0;
            if (rc == 0 && i)
                rc = sl_buf_addc(names, ';');
            if (rc == 0)
                rc = add_lower(names, sorted[i]->name);
            if (rc == 0)
                rc = add_lower(to, sorted[i]->name);
            if (rc == 0)
                rc = sl_buf_addc(to, ':');
        }
        if (rc == 0)
            rc = add_value(to, sorted[i]->value);
    }
    return rc ? rc : sl_buf_addc(to, '\n');
}

int sl_sigv4_canonical(const struct sl_sigv4 *s, const struct sl_sigv4_request *r,
                       struct sl_buf *canonical, struct sl_buf *signed_names, struct sl_err *err)
{
    int rc = sl_buf_addf(canonical, "%s\n", r->method);
    if (rc == 0)
        rc = s->normalize ? add_normal_path(canonical, r->path)
                          : sl_uri_encode(canonical, r->path, strlen(r->path), "/%");
    if (rc == 0)
        rc = sl_buf_addc(canonical, '\n');
    if (rc == 0)
        rc = add_query(canonical, r->query, err);
    if (rc == 0)
        rc = sl_buf_addc(canonical, '\n');
    if (rc == 0)
        rc = add_headers(r, canonical, signed_names, err);
    if (rc == 0)
        rc = sl_buf_addf(canonical, "\n%s\n%s", signed_names->p, r->sha256);
    return rc ? sl_err_set(err, rc, "signing a request: it is too large, or out of memory") : 0;
}

/* ---- the signature --------------------------------------------------------------------------- */

static int add_scope(const struct sl_sigv4 *s, struct sl_buf *to)
{
    return sl_buf_addf(to, "%.8s/%s/%s/aws4_request", s->time, s->region, s->service);
}

int sl_sigv4_to_sign(const struct sl_sigv4 *s, const char *canonical, struct sl_buf *to_sign,
                     struct sl_err *err)
{
    char hex[SL_SHA256_HEX + 1];
    int rc = sl_sha256_data(canonical, strlen(canonical), hex, err);
    if (rc)
        return rc;
    rc = sl_buf_addf(to_sign, ALGORITHM "\n%s\n", s->time);
    if (rc == 0)
        rc = add_scope(s, to_sign);
    if (rc == 0)
        rc = sl_buf_addf(to_sign, "\n%s", hex);
    return rc ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
}

static bool hmac(const void *key, size_t key_len, const char *text, size_t len,
                 unsigned char ret[HMAC_BYTES])
{
    unsigned n = HMAC_BYTES;
    return HMAC(EVP_sha256(), key, (int)key_len, (const unsigned char *)text, len, ret, &n) != NULL;
}

int sl_sigv4_signature(const struct sl_sigv4 *s, const char *to_sign,
                       char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err)
{
    char first[SECRET_MAX];
    unsigned char key[HMAC_BYTES], next[HMAC_BYTES];
    int len = snprintf(first, sizeof first, "AWS4%s", s->secret);
    if (len < 0 || len >= (int)sizeof first)
        return sl_err_set(err, SL_SPEC, "a secret access key has at most %d bytes", SECRET_MAX - 5);
    bool ok = hmac(first, (size_t)len, s->time, 8, key) &&
              hmac(key, sizeof key, s->region, strlen(s->region), next) &&
              hmac(next, sizeof next, s->service, strlen(s->service), key) &&
              hmac(key, sizeof key, "aws4_request", strlen("aws4_request"), next) &&
              hmac(next, sizeof next, to_sign, strlen(to_sign), key);
    OPENSSL_cleanse(first, sizeof first);
    OPENSSL_cleanse(next, sizeof next);
    if (!ok)
        return sl_err_set(err, SL_NOMEM, "no memory for a signature");
    for (size_t i = 0; i < sizeof key; i++)
        snprintf(ret_hex + i * 2, 3, "%02x", key[i]);
    return 0;
}

int sl_sigv4_authorization(const struct sl_sigv4 *s, const struct sl_sigv4_request *r,
                           struct sl_buf *authorization, struct sl_err *err)
{
    struct sl_buf canonical, names, to_sign;
    char hex[SL_SHA256_HEX + 1];
    sl_buf_init(&canonical, SL_SIGV4_MAX_BYTES);
    sl_buf_init(&names, SL_SIGV4_MAX_BYTES);
    sl_buf_init(&to_sign, SL_SIGV4_MAX_BYTES);
    int rc = sl_sigv4_canonical(s, r, &canonical, &names, err);
    if (rc == 0)
        rc = sl_sigv4_to_sign(s, canonical.p, &to_sign, err);
    if (rc == 0)
        rc = sl_sigv4_signature(s, to_sign.p, hex, err);
    if (rc == 0) {
        rc = sl_buf_addf(authorization, ALGORITHM " Credential=%s/", s->key_id);
        if (rc == 0)
            rc = add_scope(s, authorization);
        if (rc == 0)
            rc = sl_buf_addf(authorization, ", SignedHeaders=%s, Signature=%s", names.p, hex);
        if (rc)
            sl_err_set(err, SL_NOMEM, "out of memory");
    }
    sl_buf_release(&canonical);
    sl_buf_release(&names);
    sl_buf_release(&to_sign);
    return rc;
}
