#include "queue/redis_link.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int sl_redis_open_unix(const char *path, struct sl_err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return sl_err_errno(err, "socket");
    memcpy(a.sun_path, path, strlen(path) + 1);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        int e = errno;
        close(fd);
        return sl_err_set(err, SL_RETRY, "%s", strerror(e));
    }
    return fd;
}

int sl_redis_open_tcp(const struct sl_redis_host *h, unsigned turn, struct sl_err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL, *a;
    char port[16];
    unsigned n = 1;
    int one = 1, rc, fd;

    snprintf(port, sizeof port, "%d", h->port);
    rc = getaddrinfo(h->name, port, &hints, &list);
    if (rc || !list)
        return sl_err_set(err, SL_RETRY, "%s", gai_strerror(rc));
    for (a = list->ai_next; a; a = a->ai_next)
        n++;
    for (a = list, turn %= n; turn; turn--)
        a = a->ai_next;
    fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    rc = fd < 0 ? -1 : connect(fd, a->ai_addr, a->ai_addrlen);
    int e = errno;
    freeaddrinfo(list);
    if (rc < 0 && e != EINPROGRESS) {
        if (fd >= 0)
            close(fd);
        return sl_err_set(err, SL_RETRY, "%s", strerror(e));
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    return fd;
}
