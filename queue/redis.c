#include "queue/redis.h"
#include "queue/redis_wire.h"
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- addresses
 * ----------------------------------------------------------------------------------------- */

static int percent_decode(const char *text, size_t len, char *out, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == '%' && i + 2 < len && isxdigit((unsigned char)text[i + 1]) &&
            isxdigit((unsigned char)text[i + 2])) {
            char hex[3] = {text[i + 1], text[i + 2], 0};
            c = (char)strtol(hex, NULL, 16);
            i += 2;
        }
        if (n + 1 >= size)
            return -1;
        out[n++] = c;
    }
    out[n] = 0;
    return 0;
}

static int parse_small_int(const char *text, size_t len, int most, int *ret)
{
    int v = 0;

    if (!len || len > 5)
        return -1;
    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)text[i]))
            return -1;
        v = v * 10 + (text[i] - '0');
    }
    if (v > most)
        return -1;
    *ret = v;
    return 0;
}

static int parse_unix(const char *rest, struct sl_redis_url *u, struct sl_err *err)
{
    const char *query = strchr(rest, '?');
    size_t len = query ? (size_t)(query - rest) : strlen(rest);

    if (rest[0] != '/' || percent_decode(rest, len, u->path, sizeof u->path))
        return sl_err_set(err, SL_SPEC,
                          "Redis URL: unix:// needs an absolute path of at most %zu bytes",
                          sizeof u->path - 1);
    if (query && (strncmp(query, "?db=", 4) != 0 ||
                  parse_small_int(query + 4, strlen(query + 4), 65535, &u->db)))
        return sl_err_set(err, SL_SPEC, "Redis URL: after the path only ?db=N may follow");
    return 0;
}

static int parse_tcp(const char *rest, struct sl_redis_url *u, struct sl_err *err)
{
    const char *slash = strchr(rest, '/');
    const char *end = slash ? slash : rest + strlen(rest);
    const char *at = memrchr(rest, '@', (size_t)(end - rest));
    const char *host = rest, *host_end, *port = NULL;

    if (at) {
        const char *colon = memchr(rest, ':', (size_t)(at - rest));
        if (!colon || percent_decode(rest, (size_t)(colon - rest), u->user, sizeof u->user) ||
            percent_decode(colon + 1, (size_t)(at - colon - 1), u->password, sizeof u->password))
            return sl_err_set(err, SL_SPEC, "Redis URL: expected user:password before the @");
        host = at + 1;
    }
    host_end = end;
    if (*host == '[') {
        const char *close = memchr(host, ']', (size_t)(end - host));
        if (!close)
            return sl_err_set(err, SL_SPEC, "Redis URL: no ] behind the IPv6 address");
        host++;
        host_end = close;
        if (close + 1 < end && close[1] == ':')
            port = close + 2;
    } else {
        const char *colon = memchr(host, ':', (size_t)(end - host));
        if (colon) {
            host_end = colon;
            port = colon + 1;
        }
    }
    u->port = 6379;
    if (host_end == host ||
        percent_decode(host, (size_t)(host_end - host), u->host, sizeof u->host))
        return sl_err_set(err, SL_SPEC, "Redis URL: no host name in it");
    if (port && (parse_small_int(port, (size_t)(end - port), 65535, &u->port) || u->port == 0))
        return sl_err_set(err, SL_SPEC, "Redis URL: the port is not a number from 1 to 65535");
    if (slash && slash[1] && parse_small_int(slash + 1, strlen(slash + 1), 65535, &u->db))
        return sl_err_set(err, SL_SPEC,
                          "Redis URL: behind the host only /DB (a number) may follow");
    return 0;
}

int sl_redis_url_parse(const char *text, struct sl_redis_url *ret_url, struct sl_err *err)
{
    struct sl_redis_url u;
    int rc;

    memset(&u, 0, sizeof u);
    if (!text || !*text)
        return sl_err_set(err, SL_SPEC, "no Redis URL: give redis://host:port or unix:///path");
    if (!strncmp(text, "unix://", 7))
        rc = parse_unix(text + 7, &u, err);
    else if (!strncmp(text, "redis://", 8))
        rc = parse_tcp(text + 8, &u, err);
    else
        return sl_err_set(err, SL_SPEC,
                          "Redis URL: it must begin with redis:// or unix:// "
                          "(TLS, rediss://, is not supported yet)");
    if (!rc)
        *ret_url = u;
    return rc;
}

void sl_redis_where(const struct sl_redis_url *u, char *ret_text, size_t size)
{
    if (u->host[0])
        snprintf(ret_text, size, "Redis at %s port %d", u->host, u->port);
    else
        snprintf(ret_text, size, "Redis at %s", u->path);
}

/* ---- commands
 * ------------------------------------------------------------------------------------------ */

void sl_cmd_init(struct sl_cmd *c)
{
    memset(c, 0, sizeof *c);
}

void sl_cmd_init_script(struct sl_cmd *c, const struct sl_script *script, const char *key)
{
    sl_cmd_init(c);
    c->script = script;
    sl_cmd_add(c, "EVALSHA");
    sl_cmd_add(c, script->sha1);
    sl_cmd_add(c, "1");
    sl_cmd_add(c, key);
}

void sl_cmd_add_data(struct sl_cmd *c, const void *data, size_t len)
{
    if (c->failed)
        return;
    if (c->argc == c->cap) {
        int cap = c->cap ? c->cap * 2 : 16;
        char **argv = realloc(c->argv, (size_t)cap * sizeof *argv);
        if (argv)
            c->argv = argv;
        size_t *lens = realloc(c->len, (size_t)cap * sizeof *lens);
        if (lens)
            c->len = lens;
        if (!argv || !lens || cap > 2 * SL_REDIS_MAX_ARGS) {
            c->failed = true;
            return;
        }
        c->cap = cap;
    }
    char *p = malloc(len + 1);
    if (!p) {
        c->failed = true;
        return;
    }
    if (len)
        memcpy(p, data, len);
    p[len] = 0;
    c->argv[c->argc] = p;
    c->len[c->argc++] = len;
}

void sl_cmd_add(struct sl_cmd *c, const char *arg)
{
    sl_cmd_add_data(c, arg ? arg : "", arg ? strlen(arg) : 0);
}

void sl_cmd_add_int(struct sl_cmd *c, int64_t v)
{
    char text[32];

    snprintf(text, sizeof text, "%lld", (long long)v);
    sl_cmd_add(c, text);
}

void sl_cmd_release(struct sl_cmd *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->argc; i++)
        free(c->argv[i]);
    free(c->argv);
    free(c->len);
    memset(c, 0, sizeof *c);
}

int sl_redis_format(const struct sl_cmd *c, bool whole_script, char **ret_bytes, size_t *ret_len,
                    struct sl_err *err)
{
    char *bytes = NULL;

    if (c->failed || c->argc == 0)
        return sl_err_set(err, SL_NOMEM, "out of memory for a Redis command");
    if (c->argc > SL_REDIS_MAX_ARGS)
        return sl_err_set(err, SL_SPEC, "a Redis command of more than %d arguments",
                          SL_REDIS_MAX_ARGS);
    const char *argv[SL_REDIS_MAX_ARGS];
    size_t lens[SL_REDIS_MAX_ARGS];
    for (int i = 0; i < c->argc; i++) {
        argv[i] = c->argv[i];
        lens[i] = c->len[i];
    }
    if (c->script && whole_script) {
        argv[0] = "EVAL";
        lens[0] = 4;
        argv[1] = c->script->text;
        lens[1] = c->script->len;
    }
    int n = redisFormatCommandArgv(&bytes, c->argc, argv, lens);
    if (n < 0)
        return sl_err_set(err, SL_NOMEM, "out of memory for a Redis command");
    *ret_bytes = bytes;
    *ret_len = (size_t)n;
    return 0;
}

static bool word_is(const char *text, size_t len, const char *word)
{
    size_t n = strlen(word);

    return len >= n && !memcmp(text, word, n) && (len == n || text[n] == ' ' || text[n] == ':');
}

bool sl_redis_is_noscript(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_ERROR && word_is(reply->str, (size_t)reply->len, "NOSCRIPT");
}

int sl_redis_error(const redisReply *reply, struct sl_err *err)
{
    static const struct {
        const char *word;
        int code;
        bool ours;
    } table[] = {
        {"LEASE", SL_LEASE, true},       {"NOTFOUND", SL_NOTFOUND, true},
        {"CONFLICT", SL_CONFLICT, true}, {"CANCELLED", SL_CANCELLED, true},
        {"SPEC", SL_SPEC, true},         {"NOAUTH", SL_DENIED, false},
        {"WRONGPASS", SL_DENIED, false}, {"NOPERM", SL_DENIED, false},
        {"LOADING", SL_RETRY, false},    {"BUSY", SL_RETRY, false},
        {"READONLY", SL_RETRY, false},   {"OOM", SL_RETRY, false},
        {"MASTERDOWN", SL_RETRY, false}, {"TRYAGAIN", SL_RETRY, false},
        {"MISCONF", SL_RETRY, false},    {"CLUSTERDOWN", SL_RETRY, false},
        {"NOREPLICAS", SL_RETRY, false}, {"MOVED", SL_RETRY, false},
    };

    if (reply->type != REDIS_REPLY_ERROR)
        return 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        size_t n = strlen(table[i].word);
        if (!word_is(reply->str, (size_t)reply->len, table[i].word))
            continue;
        if (table[i].ours)
            return sl_err_set(err, table[i].code, "%s", reply->str + n + ((size_t)reply->len > n));
        return sl_err_set(err, table[i].code, "Redis refused: %s", reply->str);
    }
    return sl_err_set(err, SL_DATA, "Redis answered: %s", reply->str);
}

/* ---- sockets
 * ------------------------------------------------------------------------------------------- */

static int open_unix(const struct sl_redis_url *u, struct sl_err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return sl_err_errno(err, "socket");
    memcpy(a.sun_path, u->path, strlen(u->path) + 1);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        int e = errno;
        close(fd);
        return sl_err_set(err, SL_RETRY, "Redis at %s: %s", u->path, strerror(e));
    }
    return fd;
}

/* One address per call, the next one each time, so that the caller's retries go through all of
 * them. */
static int open_tcp(const struct sl_redis_url *u, unsigned turn, struct sl_err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL, *a;
    char port[16];
    unsigned n = 1;
    int one = 1, rc, fd;

    snprintf(port, sizeof port, "%d", u->port);
    rc = getaddrinfo(u->host, port, &hints, &list);
    if (rc || !list)
        return sl_err_set(err, SL_RETRY, "Redis host %s: %s", u->host, gai_strerror(rc));
    for (a = list->ai_next; a; a = a->ai_next)
        n++;
    for (a = list, turn %= n; turn; turn--)
        a = a->ai_next;
    fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    rc = fd < 0 ? -1 : connect(fd, a->ai_addr, a->ai_addrlen);
    if (fd >= 0 && rc < 0 && errno != EINPROGRESS) {
        int e = errno;
        close(fd);
        fd = -1;
        errno = e;
    }
    int e = errno;
    freeaddrinfo(list);
    if (fd < 0)
        return sl_err_set(err, SL_RETRY, "Redis at %s port %d: %s", u->host, u->port, strerror(e));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    return fd;
}

int sl_redis_socket(const struct sl_redis_url *u, unsigned turn, struct sl_err *err)
{
    return u->host[0] ? open_tcp(u, turn, err) : open_unix(u, err);
}

int sl_redis_socket_result(const struct sl_redis_url *u, int fd, struct sl_err *err)
{
    char where[400];
    int e = 0;
    socklen_t len = sizeof e;

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
        e = errno;
    if (!e)
        return 0;
    sl_redis_where(u, where, sizeof where);
    return sl_err_set(err, SL_RETRY, "%s: %s", where, strerror(e));
}

int sl_redis_greeting(const struct sl_redis_url *u, struct sl_cmd cmds[2])
{
    int n = 0;

    if (u->password[0]) {
        sl_cmd_init(&cmds[n]);
        sl_cmd_add(&cmds[n], "AUTH");
        if (u->user[0])
            sl_cmd_add(&cmds[n], u->user);
        sl_cmd_add(&cmds[n++], u->password);
    }
    if (u->db) {
        sl_cmd_init(&cmds[n]);
        sl_cmd_add(&cmds[n], "SELECT");
        sl_cmd_add_int(&cmds[n++], u->db);
    }
    return n;
}
