#include "queue/redis_tls.h"
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdlib.h>

#define PIECE 16384 /* a TLS record's most */

struct sl_redis_tls {
    SSL *ssl;
    BIO *in, *out; /* owned by ssl */
};

static const char *reason(void)
{
    unsigned long e = ERR_get_error();
    const char *text = e ? ERR_reason_error_string(e) : NULL;

    ERR_clear_error();
    return text ? text : "no reason given";
}

static int load_files(SSL_CTX *ctx, const struct sl_redis_url *u, struct sl_err *err)
{
    if (u->ca_file[0] ? SSL_CTX_load_verify_locations(ctx, u->ca_file, NULL) != 1
                      : SSL_CTX_set_default_verify_paths(ctx) != 1)
        return sl_err_set(err, SL_SPEC, "Redis's CA certificates in %s: %s",
                          u->ca_file[0] ? u->ca_file : "the system's folder", reason());
    if (u->cert_file[0] && SSL_CTX_use_certificate_chain_file(ctx, u->cert_file) != 1)
        return sl_err_set(err, SL_SPEC, "our certificate for Redis in %s: %s", u->cert_file,
                          reason());
    if (u->key_file[0] && SSL_CTX_use_PrivateKey_file(ctx, u->key_file, SSL_FILETYPE_PEM) != 1)
        return sl_err_set(err, SL_SPEC, "our key for Redis in %s: %s", u->key_file, reason());
    return 0;
}

/* What the certificate must say: an address or a name. */
static bool expect(SSL *ssl, const char *name)
{
    unsigned char address[16];

    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1)
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1;
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set1_host(ssl, name) == 1 && SSL_set_tlsext_host_name(ssl, name) == 1;
}

static int drain(struct sl_redis_tls *t, struct sl_buf *wire, struct sl_err *err)
{
    char data[PIECE];
    int n;

    while ((n = BIO_read(t->out, data, sizeof data)) > 0)
        if (sl_buf_add(wire, data, (size_t)n))
            return sl_err_set(err, SL_NOMEM, "no room for more Redis commands on this connection");
    return 0;
}

/* What OpenSSL's refusal n of an operation means; 0: it wants more from the socket first. */
static int judge(struct sl_redis_tls *t, int n, struct sl_err *err)
{
    long verdict = SSL_get_verify_result(t->ssl);

    switch (SSL_get_error(t->ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        return sl_err_set(err, SL_RETRY, "Redis closed the connection");
    case SSL_ERROR_SSL:
        if (verdict != X509_V_OK) {
            ERR_clear_error();
            return sl_err_set(err, SL_DENIED,
                              "TLS: Redis's certificate is refused: %s (cacert= and sni= in the URL "
                              "say what is expected)",
                              X509_verify_cert_error_string(verdict));
        }
        return sl_err_set(err, SL_DENIED,
                          "TLS: %s (does the port speak TLS? does it ask for cert= and key=?)",
                          reason());
    default:
        return sl_err_set(err, SL_RETRY, "TLS: the connection to Redis broke: %s", reason());
    }
}

int sl_redis_tls_new(const struct sl_redis_url *url, const char *host, struct sl_buf *wire,
                     struct sl_redis_tls **ret_tls, struct sl_err *err)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    struct sl_redis_tls *t = calloc(1, sizeof *t);
    int rc = 0, n;

    ERR_clear_error();
    if (!t || !ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1)
        rc = sl_err_set(err, SL_NOMEM, "TLS: %s", reason());
    if (!rc)
        rc = load_files(ctx, url, err);
    if (!rc) {
        t->ssl = SSL_new(ctx);
        t->in = BIO_new(BIO_s_mem());
        t->out = BIO_new(BIO_s_mem());
        if (t->ssl && t->in && t->out) {
            SSL_set_bio(t->ssl, t->in, t->out);
        } else {
            BIO_free(t->in);
            BIO_free(t->out);
            rc = sl_err_set(err, SL_NOMEM, "TLS: out of memory");
        }
    }
    if (!rc) {
        SSL_set_verify(t->ssl, SSL_VERIFY_PEER, NULL);
        SSL_set_connect_state(t->ssl);
        if (!expect(t->ssl, url->server_name[0] ? url->server_name : host))
            rc = sl_err_set(err, SL_SPEC, "TLS: %s", reason());
    }
    if (!rc && (n = SSL_do_handshake(t->ssl)) != 1)
        rc = judge(t, n, err);
    if (!rc)
        rc = drain(t, wire, err);
    SSL_CTX_free(ctx); /* the connection holds it */
    if (rc)
        sl_redis_tls_free(t);
    else
        *ret_tls = t;
    return rc;
}

void sl_redis_tls_free(struct sl_redis_tls *t)
{
    if (!t)
        return;
    SSL_free(t->ssl);
    free(t);
}

bool sl_redis_tls_ready(const struct sl_redis_tls *t)
{
    return SSL_is_init_finished(t->ssl);
}

int sl_redis_tls_in(struct sl_redis_tls *t, const char *data, size_t len, struct sl_buf *plain,
                    struct sl_buf *wire, struct sl_err *err)
{
    char piece[PIECE];
    int n, rc = 0;

    ERR_clear_error();
    if (BIO_write(t->in, data, (int)len) != (int)len)
        return sl_err_set(err, SL_NOMEM, "TLS: out of memory");
    if (!SSL_is_init_finished(t->ssl) && (n = SSL_do_handshake(t->ssl)) != 1)
        rc = judge(t, n, err);
    while (!rc && SSL_is_init_finished(t->ssl)) {
        n = SSL_read(t->ssl, piece, sizeof piece);
        if (n <= 0) {
            rc = judge(t, n, err);
            break;
        }
        if (sl_buf_add(plain, piece, (size_t)n))
            rc = sl_err_set(err, SL_NOMEM, "out of memory for a Redis reply");
    }
    return rc ? rc : drain(t, wire, err);
}

int sl_redis_tls_out(struct sl_redis_tls *t, const char *data, size_t len, struct sl_buf *wire,
                     struct sl_err *err)
{
    size_t done;

    ERR_clear_error();
    if (len && SSL_write_ex(t->ssl, data, len, &done) != 1)
        return sl_err_set(err, SL_RETRY, "TLS: the connection to Redis broke: %s", reason());
    return drain(t, wire, err);
}
