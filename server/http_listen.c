/* What the server needs from outside before it starts: an address, a token. */
#include "base/file.h"
#include "server/http_priv.h"
#include <errno.h>
#include <netdb.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTEN_BACKLOG 256
#define PEM_MAX (1u << 20)

int sl_http_listen(const char *address, int *ret_fd, int *ret_port, struct sl_err *err)
{
    char host[256];
    const char *colon = strrchr(address, ':');
    size_t len = colon ? (size_t)(colon - address) : 0;
    if (len > 1 && address[0] == '[' && address[len - 1] == ']')
        address++, len -= 2;
    if (!colon || len == 0 || len >= sizeof host || !colon[1])
        return sl_err_set(err, SL_SPEC,
                          "%.200s: expected HOST:PORT, such as 127.0.0.1:8080", address);
    memcpy(host, address, len);
    host[len] = 0;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list;
    int rc = getaddrinfo(host, colon + 1, &hints, &list);
    if (rc)
        return sl_err_set(err, SL_SPEC, "cannot listen on %s:%s: %s", host, colon + 1,
                          gai_strerror(rc));
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_storage bound;
    socklen_t bound_len = sizeof bound;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, LISTEN_BACKLOG) ||
        getsockname(fd, (struct sockaddr *)&bound, &bound_len)) {
        rc = sl_err_errno(err, "cannot listen on %s:%s", host, colon + 1);
        if (fd >= 0)
            close(fd);
        freeaddrinfo(list);
        return rc;
    }
    freeaddrinfo(list);
    char port[16];
    getnameinfo((struct sockaddr *)&bound, bound_len, NULL, 0, port, sizeof port, NI_NUMERICSERV);
    *ret_fd = fd;
    *ret_port = atoi(port);
    return 0;
}

int sl_http_listen_unix(const char *path, int *ret_fd, struct sl_err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof sa.sun_path)
        return sl_err_set(err, SL_SPEC, "--listen-unix: a path has at most %zu bytes",
                          sizeof sa.sun_path - 1);
    memcpy(sa.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return sl_err_errno(err, "making a unix socket");
    if (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0) {
        close(fd);
        return sl_err_set(err, SL_CONFLICT, "another server answers on %s", path);
    }
    if (errno == ECONNREFUSED)
        unlink(path); /* of a server that was killed */
    close(fd);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* Closed to all but its owner and group before anybody can connect. */
    if (fd < 0 || fchmod(fd, 0660) || bind(fd, (struct sockaddr *)&sa, sizeof sa) ||
        chmod(path, 0660) || listen(fd, LISTEN_BACKLOG)) {
        int rc = sl_err_errno(err, "cannot listen on %s", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    *ret_fd = fd;
    return 0;
}

int sl_http_read_pem(const char *path, char **ret_text, struct sl_err *err)
{
    struct sl_buf buf;
    sl_buf_init(&buf, PEM_MAX);
    int rc = sl_file_read(path, &buf, err);
    if (rc == 0 && (!buf.len || !strstr(buf.p, "-----BEGIN ")))
        rc = sl_err_set(err, SL_SPEC, "%s is not a PEM file", path);
    char *text = rc ? NULL : strdup(buf.p);
    if (rc == 0 && !text)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    OPENSSL_cleanse(buf.p, buf.len);
    sl_buf_release(&buf);
    if (rc == 0)
        *ret_text = text;
    return rc;
}

int sl_http_read_token(const char *path, char **ret_token, struct sl_err *err)
{
    struct sl_buf buf;
    sl_buf_init(&buf, SL_HTTP_TOKEN_MAX + 16);
    int rc = sl_file_read(path, &buf, err);
    if (rc) {
        sl_buf_release(&buf);
        return sl_err_wrap(err, rc, "token file");
    }
    char *text = buf.p + strspn(buf.p, " \t\r\n");
    size_t len = strcspn(text, " \t\r\n");
    if (len < SL_HTTP_TOKEN_MIN || len > SL_HTTP_TOKEN_MAX ||
        text[len + strspn(text + len, " \t\r\n")])
        rc = sl_err_set(err, SL_SPEC,
                        "token file %s: expected one word of %d to %d characters; make one with "
                        "`openssl rand -hex 16 > %s`",
                        path, SL_HTTP_TOKEN_MIN, SL_HTTP_TOKEN_MAX, path);
    char *token = rc ? NULL : strndup(text, len);
    OPENSSL_cleanse(buf.p, buf.len);
    sl_buf_release(&buf);
    if (rc == 0 && !token)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        *ret_token = token;
    return rc;
}
