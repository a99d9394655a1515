#include "queue/redis_link.h"
#include "base/buf.h"
#include "queue/inner.h"
#include "queue/redis_tls.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READS_PER_STEP 16 /* of 16 kB, then others have their turn */
#define GREETINGS_MAX 4

enum stage { CLOSED, CONNECTING, HANDSHAKE, GREETING, UP };
enum greeting { AUTH, SELECT, PROBE, ROLE, SENTINEL, SUBSCRIBE };

struct sl_link {
    struct sl_redis_url url;
    enum stage stage;
    struct sl_redis_host at;   /* where this connection goes */
    bool at_sentinel;          /* it is one, to be asked for the primary, or to be listened to */
    bool watching;
    struct sl_redis_host sent; /* where we were sent; port 0: nowhere */
    unsigned turn;             /* counts dials of the URL's own hosts */
    int redials;               /* since the last proper reply */
    bool not_now;              /* Redis said that it will answer later */
    int fd;
    struct sl_redis_tls *tls;
    redisReader *reader;
    struct sl_buf out, plain; /* for the socket; out of TLS */
    enum greeting greetings[GREETINGS_MAX];
    int n_greetings, n_greeted;
};

int sl_link_new(const struct sl_redis_url *url, struct sl_link **ret_link, struct sl_err *err)
{
    struct sl_link *l = calloc(1, sizeof *l);

    if (!l)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    l->url = *url;
    l->fd = -1;
    sl_buf_init(&l->out, SL_REDIS_OUT_MAX);
    sl_buf_init(&l->plain, SL_REDIS_OUT_MAX);
    *ret_link = l;
    return 0;
}

int sl_link_new_watch(const struct sl_redis_url *url, struct sl_link **ret_link, struct sl_err *err)
{
    int rc = sl_link_new(url, ret_link, err);

    if (!rc)
        (*ret_link)->watching = true;
    return rc;
}

void sl_link_hang_up(struct sl_link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    sl_redis_tls_free(l->tls);
    l->tls = NULL;
    if (l->reader)
        redisReaderFree(l->reader);
    l->reader = NULL;
    sl_buf_release(&l->out);
    sl_buf_release(&l->plain);
    l->stage = CLOSED;
}

void sl_link_free(struct sl_link *l)
{
    if (!l)
        return;
    sl_link_hang_up(l);
    free(l);
}

bool sl_link_up(const struct sl_link *l)
{
    return l->stage == UP;
}

int sl_link_fd(const struct sl_link *l)
{
    return l->fd;
}

int sl_link_wants(const struct sl_link *l)
{
    if (l->stage == CONNECTING)
        return POLLOUT;
    return l->out.len ? POLLIN | POLLOUT : POLLIN;
}

bool sl_link_again(const struct sl_link *l)
{
    return l->not_now || l->url.n_hosts > 1 || l->url.primary[0];
}

/* ---- messages that say where ---------------------------------------------------------------------------- */

/* Puts "Redis at HOST port N: " before the message. */
static int wrap_where(const struct sl_link *l, struct sl_err *err, int code)
{
    if (l->at.name[0])
        return sl_err_wrap(err, code, "%s at %s port %d", l->at_sentinel ? "Sentinel" : "Redis",
                           l->at.name, l->at.port);
    return sl_err_wrap(err, code, "Redis at %s", l->url.path);
}

int sl_link_late(const struct sl_link *l, struct sl_err *err)
{
    return wrap_where(l, err, sl_err_set(err, SL_RETRY, "no answer in time%s",
                                         l->stage == HANDSHAKE ? " (does the port speak TLS?)" : ""));
}

/* ---- dialling ------------------------------------------------------------------------------------------- */

int sl_link_dial(struct sl_link *l, struct sl_err *err)
{
    unsigned turn = 0;

    sl_link_hang_up(l);
    l->not_now = false;
    l->at_sentinel = false;
    if (l->sent.port) {
        l->at = l->sent;
        l->sent.port = 0; /* once: should it be away, the URL's hosts are asked again */
    } else if (l->url.n_hosts) {
        turn = l->turn / (unsigned)l->url.n_hosts;
        l->at = l->url.hosts[l->turn++ % (unsigned)l->url.n_hosts];
        l->at_sentinel = l->url.primary[0] != 0;
    }
    l->fd = l->at.name[0] ? sl_redis_open_tcp(&l->at, turn, err) : sl_redis_open_unix(l->url.path, err);
    if (l->fd < 0) {
        int rc = l->fd;
        l->fd = -1;
        return wrap_where(l, err, rc);
    }
    l->reader = redisReaderCreate();
    if (!l->reader) {
        sl_link_hang_up(l);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    l->stage = CONNECTING;
    return 0;
}

/* ---- bytes out and in ------------------------------------------------------------------------------------ */

static int flush_out(struct sl_link *l, struct sl_err *err)
{
    while (l->out.len) {
        ssize_t n = send(l->fd, l->out.p, l->out.len, MSG_NOSIGNAL);
        if (n > 0)
            sl_buf_consume(&l->out, (size_t)n);
        else if (n < 0 && errno == EINTR)
            continue;
        else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        else
            return sl_err_set(err, SL_RETRY, "the connection to Redis broke: %s", strerror(errno));
    }
    return 0;
}

static int queue_out(struct sl_link *l, const char *bytes, size_t len, struct sl_err *err)
{
    if (l->tls)
        return sl_redis_tls_out(l->tls, bytes, len, &l->out, err);
    if (sl_buf_add(&l->out, bytes, len))
        return sl_err_set(err, SL_NOMEM, "no room for more Redis commands on this connection");
    return 0;
}

int sl_link_send(struct sl_link *l, const char *bytes, size_t len, struct sl_err *err)
{
    int rc = queue_out(l, bytes, len, err);

    return rc ? rc : flush_out(l, err);
}

/* Gives n bytes from the socket to the parser. */
static int take(struct sl_link *l, const char *data, size_t n, struct sl_err *err)
{
    if (l->tls) {
        int rc = sl_redis_tls_in(l->tls, data, n, &l->plain, &l->out, err);
        if (rc)
            return rc;
        data = l->plain.p;
        n = l->plain.len;
    }
    if (n && redisReaderFeed(l->reader, data, n) != REDIS_OK)
        return sl_err_set(err, SL_NOMEM, "out of memory for a Redis reply");
    sl_buf_reset(&l->plain);
    return 0;
}

/* ---- what replies say about the place -------------------------------------------------------------------- */

static int go_to(struct sl_link *l, const char *name, size_t len, int port, struct sl_err *err)
{
    struct sl_redis_host to = {.port = port};

    if (len >= sizeof to.name || port < 1 || port > 65535)
        return sl_err_set(err, SL_RETRY, "an address that nobody can connect to");
    if (++l->redials > SL_LINK_REDIALS_MAX) {
        l->redials = 0;
        l->not_now = true;
        return sl_err_set(err, SL_RETRY, "sent from one node to the next without an end");
    }
    if (len == 0 || (len == 1 && *name == '?')) /* the node does not know its own name: where it is now */
        memcpy(to.name, l->at.name, sizeof to.name);
    else
        memcpy(to.name, name, len);
    l->sent = to;
    return SL_LINK_REDIAL;
}

/* 0: an answer, even if an error. */
static int judge(struct sl_link *l, const redisReply *reply, struct sl_err *err)
{
    static const char *const later[] = {"LOADING",     "READONLY", "MASTERDOWN",
                                        "CLUSTERDOWN", "ASK",      "TRYAGAIN"};

    if (reply->type != REDIS_REPLY_ERROR) {
        if (l->stage == UP)
            l->redials = 0;
        return 0;
    }
    if (sl_redis_error_is(reply, "MOVED")) { /* MOVED slot host:port */
        const char *slot = strchr(reply->str, ' ');
        const char *host = slot ? strchr(slot + 1, ' ') : NULL;
        const char *colon = host ? strrchr(host, ':') : NULL;
        if (!colon)
            return sl_err_set(err, SL_RETRY, "Redis answered: %s", reply->str);
        return go_to(l, host + 1, (size_t)(colon - host - 1), atoi(colon + 1), err);
    }
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (sl_redis_error_is(reply, later[i])) {
            l->not_now = true;
            return sl_err_set(err, SL_RETRY, "Redis says to come back later: %s", reply->str);
        }
    return 0;
}

static int next_reply(struct sl_link *l, redisReply **ret_reply, struct sl_err *err)
{
    void *reply = NULL;
    int rc;

    if (redisReaderGetReply(l->reader, &reply) != REDIS_OK)
        return sl_err_set(err, SL_RETRY, "Redis sent what is not its protocol: %s",
                          l->reader->errstr);
    rc = reply ? judge(l, reply, err) : 0;
    if (rc)
        freeReplyObject(reply);
    else
        *ret_reply = reply;
    return rc;
}

int sl_link_reply(struct sl_link *l, redisReply **ret_reply, struct sl_err *err)
{
    int rc = next_reply(l, ret_reply, err);

    return rc < 0 ? wrap_where(l, err, rc) : rc;
}

/* ---- greeting --------------------------------------------------------------------------------------------- */

static int ask(struct sl_link *l, enum greeting what, struct sl_cmd *c, struct sl_err *err)
{
    char *bytes = NULL;
    size_t len;
    int rc = sl_redis_format(c, false, &bytes, &len, err);

    sl_cmd_release(c);
    if (!rc)
        rc = queue_out(l, bytes, len, err);
    redisFreeCommand(bytes);
    l->greetings[l->n_greetings++] = what;
    return rc;
}

static int greet(struct sl_link *l, struct sl_err *err)
{
    const char *user = l->at_sentinel ? l->url.sentinel_user : l->url.user;
    const char *password = l->at_sentinel ? l->url.sentinel_password : l->url.password;
    struct sl_cmd c;
    int rc = 0;

    l->stage = GREETING;
    l->n_greetings = l->n_greeted = 0;
    sl_cmd_init(&c);
    if (password[0]) {
        sl_cmd_add(&c, "AUTH");
        if (user[0])
            sl_cmd_add(&c, user);
        sl_cmd_add(&c, password);
        rc = ask(l, AUTH, &c, err);
    }
    if (rc)
        return rc;
    if (l->watching) {
        sl_cmd_add(&c, "SUBSCRIBE");
        sl_cmd_add(&c, "+switch-master");
        return ask(l, SUBSCRIBE, &c, err);
    }
    if (l->at_sentinel) {
        sl_cmd_add(&c, "SENTINEL");
        sl_cmd_add(&c, "get-master-addr-by-name");
        sl_cmd_add(&c, l->url.primary);
        return ask(l, SENTINEL, &c, err);
    }
    if (l->url.db) {
        sl_cmd_add(&c, "SELECT");
        sl_cmd_add_int(&c, l->url.db);
        rc = ask(l, SELECT, &c, err);
    }
    if (!rc) { /* loaded? in a Cluster: are our keys here, all of them? (this one never exists: see ASK) */
        sl_cmd_add(&c, "EXISTS");
        sl_cmd_add(&c, SL_QUEUE_TAG);
        rc = ask(l, PROBE, &c, err);
    }
    if (!rc) {
        sl_cmd_add(&c, "ROLE");
        rc = ask(l, ROLE, &c, err);
    }
    return rc;
}

static bool is_word(const redisReply *r, const char *word)
{
    return r->type == REDIS_REPLY_STRING && !strcmp(r->str, word);
}

static int check_role(struct sl_link *l, const redisReply *reply, struct sl_err *err)
{
    const redisReply *role = reply->type == REDIS_REPLY_ARRAY && reply->elements ? reply->element[0] : NULL;

    if (role && is_word(role, "master"))
        return 0;
    if (role && is_word(role, "sentinel"))
        return sl_err_set(err, SL_SPEC, "this is a Sentinel: its URL is redis+sentinel://HOST:PORT/NAME");
    l->not_now = true;
    return sl_err_set(err, SL_RETRY, "not the primary (its role is %s)",
                      role && role->type == REDIS_REPLY_STRING ? role->str : "unknown");
}

static int take_address(struct sl_link *l, const redisReply *reply, struct sl_err *err)
{
    if (reply->type == REDIS_REPLY_NIL) {
        l->not_now = true;
        return sl_err_set(err, SL_RETRY, "it watches no primary of the name %s", l->url.primary);
    }
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING || reply->element[1]->type != REDIS_REPLY_STRING)
        return sl_err_set(err, SL_RETRY, "an answer of unknown form to where the primary is");
    return go_to(l, reply->element[0]->str, (size_t)reply->element[0]->len,
                 atoi(reply->element[1]->str), err);
}

/* {"message", "+switch-master", "NAME OLD-IP OLD-PORT NEW-IP NEW-PORT"} */
bool sl_link_switched(const struct sl_link *l, const redisReply *message)
{
    size_t n = strlen(l->url.primary);

    return message->type == REDIS_REPLY_ARRAY && message->elements == 3 &&
           is_word(message->element[0], "message") &&
           message->element[2]->type == REDIS_REPLY_STRING &&
           !strncmp(message->element[2]->str, l->url.primary, n) &&
           message->element[2]->str[n] == ' ';
}

static int greeted(struct sl_link *l, const redisReply *reply, struct sl_err *err)
{
    enum greeting what;
    int rc;

    if (l->n_greeted == l->n_greetings)
        return sl_err_set(err, SL_RETRY, "Redis sent a reply that nobody asked for");
    what = l->greetings[l->n_greeted++];
    if (what == AUTH && reply->type == REDIS_REPLY_ERROR) /* some errors quote the command: no text of it */
        return sl_err_set(err, SL_DENIED, "it does not accept our user name and password (%.*s)",
                          (int)strcspn(reply->str, " "), reply->str);
    if (what == PROBE && sl_redis_error_is(reply, "ERR"))
        return 0; /* a Sentinel does not know the command: its role tells */
    rc = sl_redis_error(reply, err);
    if (rc)
        return rc;
    if (what == SENTINEL)
        return take_address(l, reply, err);
    if (what == SUBSCRIBE)
        l->stage = UP;
    if (what != ROLE)
        return 0;
    rc = check_role(l, reply, err);
    if (!rc)
        l->stage = UP;
    return rc;
}

/* ---- the socket is ready ---------------------------------------------------------------------------------- */

static int connected(struct sl_link *l, struct sl_err *err)
{
    int e = 0;
    socklen_t len = sizeof e;

    if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
        e = errno;
    if (e)
        return sl_err_set(err, SL_RETRY, "%s", strerror(e));
    if (!l->url.tls)
        return greet(l, err);
    l->stage = HANDSHAKE;
    return sl_redis_tls_new(&l->url, l->at.name, &l->out, &l->tls, err);
}

static int step(struct sl_link *l, struct sl_err *err)
{
    char data[16384];
    int rc = l->stage == CONNECTING ? connected(l, err) : 0;

    for (int i = 0; !rc && i < READS_PER_STEP; i++) {
        ssize_t n = recv(l->fd, data, sizeof data, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (n <= 0)
            return sl_err_set(err, SL_RETRY, n ? "the connection to Redis broke: %s" : "Redis closed the connection",
                              strerror(errno));
        rc = take(l, data, (size_t)n, err);
        if (!rc && l->stage == HANDSHAKE && sl_redis_tls_ready(l->tls))
            rc = greet(l, err);
        while (!rc && l->stage == GREETING) {
            redisReply *reply = NULL;
            rc = next_reply(l, &reply, err);
            if (!rc && !reply)
                break;
            if (!rc)
                rc = greeted(l, reply, err);
            if (reply)
                freeReplyObject(reply);
        }
    }
    return rc ? rc : flush_out(l, err); /* read first: a broken connection's last words tell why */
}

int sl_link_step(struct sl_link *l, struct sl_err *err)
{
    int rc = step(l, err);

    return rc < 0 ? wrap_where(l, err, rc) : rc;
}
