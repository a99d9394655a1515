/* Redis over unix, TCP and TLS sockets: our own small transport. hiredis only formats requests and
 * parses replies.
 *
 * Two forms of it. `sl_redis` blocks, and belongs to one thread at a time (the server keeps a pool
 * of them). `sl_redis_async` lives on an event loop, pipelines, and connects again by itself with
 * growing, jittered pauses; it never blocks except for the name lookup of a TCP host.
 *
 * Both are connected only when the server at the other end has loaded its data, is a primary and
 * holds our namespace's slot: a Sentinel is asked where the primary is, a Cluster's MOVED is
 * followed, a replica is refused. A Cluster's ASK is not followed, but waited out: while a slot moves
 * its keys lie on two nodes, and a script would see half of them.
 *
 * A script is called by its digest (EVALSHA) and sent whole once when the server does not know it.
 * Replies are hiredis's redisReply. An error reply becomes an sl_err: the first word tells the
 * code, see sl_redis_error. */
#ifndef SL_QUEUE_REDIS_H
#define SL_QUEUE_REDIS_H
#include "base/err.h"
#include "base/loop.h"
#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_REDIS_TIMEOUT_US                                                                        \
    INT64_C(5000000) /* connecting, and a reply to a command that does not wait */
#define SL_REDIS_BACKOFF_MIN_US INT64_C(50000)
#define SL_REDIS_BACKOFF_MAX_US INT64_C(2000000)
#define SL_REDIS_MAX_ARGS 1024
#define SL_REDIS_OUT_MAX (64u << 20) /* bytes waiting to be sent on one connection */
#define SL_REDIS_MAX_PENDING 1024    /* replies awaited on one connection */

#define SL_REDIS_HOSTS_MAX 8
#define SL_REDIS_NAME_MAX 256 /* bytes of a host name, a user name, a file's path */
#define SL_REDIS_PASSWORD_MAX 2048 /* an access token may stand there */

struct sl_redis_host {
    char name[SL_REDIS_NAME_MAX]; /* empty: the unix socket */
    int port;
};
/* unix://[USER:PASSWORD@]/PATH
 * redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB]     hosts are tried in turn; a Cluster's nodes too
 * redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,...]/NAME[/DB]  Sentinels, and what they call the primary
 * rediss://, rediss+sentinel://                                the same over TLS
 * and behind them ?KEY=VALUE&...: db; sentinel_user, sentinel_password; cacert, cert, key (PEM files) and
 * sni (the name that the certificate must have, when it is not the host's). %XX stands for any byte. */
struct sl_redis_url {
    struct sl_redis_host hosts[SL_REDIS_HOSTS_MAX];
    int n_hosts; /* 0: unix socket */
    bool tls;
    char path[108];
    char primary[SL_REDIS_NAME_MAX]; /* Sentinel's name for it; empty: the hosts are Redis itself */
    int db;
    char user[SL_REDIS_NAME_MAX], password[SL_REDIS_PASSWORD_MAX];
    char sentinel_user[SL_REDIS_NAME_MAX], sentinel_password[SL_REDIS_PASSWORD_MAX];
    char ca_file[SL_REDIS_NAME_MAX]; /* empty: the system's */
    char cert_file[SL_REDIS_NAME_MAX], key_file[SL_REDIS_NAME_MAX], server_name[SL_REDIS_NAME_MAX];
};
/* SL_SPEC says what is wrong; no message shows a password. */
int sl_redis_url_parse(const char *text, struct sl_redis_url *ret_url, struct sl_err *err);

/* One Lua script: the text that Redis gets and its SHA-1. Static, made by scripts.c. */
struct sl_script {
    const char *name;
    const char *text;
    size_t len;
    char sha1[41];
};

/* One command's arguments. After a failed append `failed` is set and sending it gives SL_NOMEM. */
struct sl_cmd {
    const struct sl_script *script; /* NULL: a plain command */
    int argc, cap;
    char **argv;
    size_t *len;
    bool failed;
};
void sl_cmd_init(struct sl_cmd *c);
/* EVALSHA of script with the one key `key`; the arguments follow. */
void sl_cmd_init_script(struct sl_cmd *c, const struct sl_script *script, const char *key);
void sl_cmd_add(struct sl_cmd *c, const char *arg); /* NULL: the empty string */
void sl_cmd_add_data(struct sl_cmd *c, const void *data, size_t len);
void sl_cmd_add_int(struct sl_cmd *c, int64_t v);
void sl_cmd_release(struct sl_cmd *c); /* NULL-safe */

/* 0 when reply is no error; else the code for its first word: LEASE, NOTFOUND, CONFLICT, CANCELLED
 * (ours), NOAUTH, WRONGPASS, NOPERM (denied), BUSY, OOM, MISCONF, NOREPLICAS (retry),
 * anything else SL_DATA. */
int sl_redis_error(const redisReply *reply, struct sl_err *err);

/* ---- blocking
 * ------------------------------------------------------------------------------------------ */

struct sl_redis;
/* Does not connect yet. */
int sl_redis_new(const struct sl_redis_url *url, struct sl_redis **ret_redis, struct sl_err *err);
void sl_redis_free(struct sl_redis *r); /* NULL-safe */
/* Sends c and waits for its reply, wait_us longer than usual for a command that waits itself.
 * Connects when needed. A connection that breaks is tried once more, and a deployment that says that it
 * will answer soon (loading, failing over, moving a slot) until SL_REDIS_TIMEOUT_US is over: so c must be
 * one that may run twice. The caller frees *ret_reply with freeReplyObject; an error reply is an error
 * here. */
int sl_redis_call(struct sl_redis *r, const struct sl_cmd *c, int64_t wait_us,
                  redisReply **ret_reply, struct sl_err *err);
/* The same, then WAIT: *ret_synced is how many replicas have what c wrote, up to wait_ms later; at least
 * `replicas` of them, or the time is over. */
int sl_redis_call_synced(struct sl_redis *r, const struct sl_cmd *c, int replicas, int64_t wait_ms,
                         redisReply **ret_reply, int *ret_synced, struct sl_err *err);

/* ---- on an event loop
 * ---------------------------------------------------------------------------------- */

struct sl_redis_async;
/* Called once per command. reply is NULL when the connection broke (err: SL_RETRY; the command may
 * or may not have run) or for an error reply (err tells). sl_redis_async_free breaks the
 * connection. */
typedef void sl_redis_reply_fn(void *arg, const redisReply *reply, const struct sl_err *err);
/* up: ready for commands. Down: err tells why; every pending command has had its callback. */
typedef void sl_redis_state_fn(void *arg, bool up, const struct sl_err *err);

/* Starts connecting from the loop. */
int sl_redis_async_new(struct sl_loop *loop, const struct sl_redis_url *url, sl_redis_state_fn *fn,
                       void *arg, struct sl_redis_async **ret_redis, struct sl_err *err);
/* Every pending command has its callback first. NULL-safe; not from within a callback of r. */
void sl_redis_async_free(struct sl_redis_async *r);
bool sl_redis_async_up(const struct sl_redis_async *r);
/* Queues c (copied; release it yourself). SL_RETRY when not connected: fn is then not called. */
int sl_redis_async_call(struct sl_redis_async *r, const struct sl_cmd *c, int64_t wait_us,
                        sl_redis_reply_fn *fn, void *arg, struct sl_err *err);

#endif
