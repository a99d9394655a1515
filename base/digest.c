#include "base/digest.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int sl_sha256_init(struct sl_sha256 *d, struct sl_err *err)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    if (!ctx || EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(ctx);
        return sl_err_set(err, SL_NOMEM, "no memory for a digest");
    }
    d->ctx = ctx;
    return 0;
}

void sl_sha256_update(struct sl_sha256 *d, const void *data, size_t len)
{
    EVP_DigestUpdate(d->ctx, data, len);
}

void sl_sha256_hex(struct sl_sha256 *d, char ret_hex[SL_SHA256_HEX + 1])
{
    unsigned char raw[EVP_MAX_MD_SIZE] = {0};
    unsigned len = 0;

    EVP_DigestFinal_ex(d->ctx, raw, &len);
    sl_sha256_release(d);
    for (int i = 0; i < SL_SHA256_HEX / 2; i++)
        snprintf(ret_hex + (size_t)i * 2, 3, "%02x", raw[i]);
}

void sl_sha256_release(struct sl_sha256 *d)
{
    if (d) {
        EVP_MD_CTX_free(d->ctx);
        d->ctx = NULL;
    }
}

int sl_sha256_data(const void *data, size_t len, char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err)
{
    struct sl_sha256 d;
    int rc = sl_sha256_init(&d, err);

    if (rc)
        return rc;
    sl_sha256_update(&d, data, len);
    sl_sha256_hex(&d, ret_hex);
    return 0;
}

int sl_sha256_file(const char *path, char ret_hex[SL_SHA256_HEX + 1], int64_t *ret_bytes,
                   struct sl_err *err)
{
    static const size_t chunk = 1 << 16;
    char buf[1 << 16];
    struct sl_sha256 d;
    int64_t total = 0;
    int rc, fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return errno == ENOENT ? sl_err_set(err, SL_NOTFOUND, "%s: no such file", path)
                               : sl_err_errno(err, "opening %s", path);
    rc = sl_sha256_init(&d, err);
    while (!rc && (n = read(fd, buf, chunk)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = sl_err_errno(err, "reading %s", path);
            sl_sha256_release(&d);
            break;
        }
        sl_sha256_update(&d, buf, (size_t)n);
        total += n;
    }
    close(fd);
    if (rc)
        return rc;
    sl_sha256_hex(&d, ret_hex);
    if (ret_bytes)
        *ret_bytes = total;
    return 0;
}

bool sl_sha256_valid(const char *hex)
{
    return hex && strlen(hex) == SL_SHA256_HEX && strspn(hex, "0123456789abcdef") == SL_SHA256_HEX;
}
