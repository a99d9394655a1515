/* A web server for tests that answers each request as its script says: cuts, lies, redirects.
 * One thread, one request a connection. */
#ifndef SL_TESTS_HTTP_SCRIPT_H
#define SL_TESTS_HTTP_SCRIPT_H
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SCRIPT_REQUESTS_MAX 64

struct request {
    char text[4096]; /* line and headers */
    long from;       /* of Range, -1: none */
};

struct script {
    /* Writes the whole answer to fd; n counts requests from 0. */
    void (*answer)(struct script *s, int n, const struct request *r, int fd);
    const char *body;
    size_t len;
    const char *other; /* whatever the answer needs */
    int port, listen_fd;
    pthread_t thread;
    atomic_int n;
    struct request requests[SCRIPT_REQUESTS_MAX];
};

static void script_send(int fd, const char *head, const char *body, size_t len)
{
    if (send(fd, head, strlen(head), MSG_NOSIGNAL) < 0)
        return;
    while (len) {
        ssize_t n = send(fd, body, len, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        body += n;
        len -= (size_t)n;
    }
}

/* The body from r->from on (status 206) or whole (200), of which only `most` bytes are sent. */
__attribute__((unused)) static void script_file(struct script *s, const struct request *r, int fd,
                                                const char *headers, size_t most)
{
    char head[512];
    size_t from = r->from > 0 ? (size_t)r->from : 0;
    if (from >= s->len) {
        script_send(fd, "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "", 0);
        return;
    }
    size_t len = s->len - from;
    int n =
        snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n%s",
                 r->from >= 0 ? "206 Part" : "200 OK", len, headers);
    if (r->from >= 0)
        n += snprintf(head + n, sizeof head - (size_t)n, "Content-Range: bytes %zu-%zu/%zu\r\n",
                      from, s->len - 1, s->len);
    snprintf(head + n, sizeof head - (size_t)n, "\r\n");
    script_send(fd, head, s->body + from, len < most ? len : most);
}

static void script_status(int fd, const char *status)
{
    char head[256];
    snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
             status);
    script_send(fd, head, "", 0);
}

static void *script_main(void *arg)
{
    struct script *s = arg;
    for (;;) {
        int fd = accept(s->listen_fd, NULL, NULL);
        if (fd < 0)
            return NULL;
        int n = atomic_load(&s->n);
        struct request *r = &s->requests[n < SCRIPT_REQUESTS_MAX ? n : SCRIPT_REQUESTS_MAX - 1];
        size_t len = 0;
        memset(r, 0, sizeof *r);
        while (len + 1 < sizeof r->text && !strstr(r->text, "\r\n\r\n")) {
            ssize_t got = recv(fd, r->text + len, sizeof r->text - 1 - len, 0);
            if (got <= 0)
                break;
            len += (size_t)got;
        }
        const char *range = strcasestr(r->text, "\r\nRange: bytes=");
        r->from = range ? atol(range + 15) : -1;
        atomic_store(&s->n, n + 1);
        s->answer(s, n, r, fd);
        shutdown(fd, SHUT_WR);
        char rest[1024];
        while (recv(fd, rest, sizeof rest, 0) > 0)
            ;
        close(fd);
    }
}

static int script_start(struct script *s)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    s->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->listen_fd < 0 || bind(s->listen_fd, (struct sockaddr *)&a, sizeof a) ||
        listen(s->listen_fd, 16) || getsockname(s->listen_fd, (struct sockaddr *)&a, &len))
        return -1;
    s->port = ntohs(a.sin_port);
    return pthread_create(&s->thread, NULL, script_main, s);
}

static void script_stop(struct script *s)
{
    shutdown(s->listen_fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->listen_fd);
}

#endif
