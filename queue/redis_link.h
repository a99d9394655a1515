/* One connection to a Redis deployment, for both forms of the transport: finds the primary, connects,
 * does TLS, logs in, checks what is there, and says when commands may go. Never blocks, except for the
 * lookup of a host's name; it neither waits nor sets timers: its user does, on sl_link_fd. Not for other
 * parts.
 *
 *     sl_link_dial ... { wait for sl_link_wants; sl_link_step } ... sl_link_up
 *     sl_link_send ... { wait; sl_link_step; sl_link_reply until it gives NULL }
 *
 * Where a result can be SL_LINK_REDIAL, the primary is elsewhere (a Sentinel or a Cluster node said where): call
 * sl_link_dial, which goes there. After a negative one the link is of no use until it is dialled anew. */
#ifndef SL_QUEUE_REDIS_LINK_H
#define SL_QUEUE_REDIS_LINK_H
#include "queue/redis.h"

#define SL_LINK_REDIAL 1
#define SL_LINK_REDIALS_MAX 8 /* in a row, before it counts as a failure */

struct sl_link;
int sl_link_new(const struct sl_redis_url *url, struct sl_link **ret_link, struct sl_err *err);
/* A link that stays with a Sentinel, up when it is subscribed to +switch-master: sl_link_reply gives its messages.
 * For a URL of Sentinels only. */
int sl_link_new_watch(const struct sl_redis_url *url, struct sl_link **ret_link, struct sl_err *err);
/* A message of a watching link, that says that the primary which url means is another one now. */
bool sl_link_switched(const struct sl_link *l, const redisReply *message);
void sl_link_free(struct sl_link *l); /* NULL-safe */
/* Hangs up, and begins to connect: to where we were sent, else to the next host of the URL. */
int sl_link_dial(struct sl_link *l, struct sl_err *err);
void sl_link_hang_up(struct sl_link *l);
bool sl_link_up(const struct sl_link *l);
int sl_link_fd(const struct sl_link *l);    /* -1: none. Another one after each dial. */
int sl_link_wants(const struct sl_link *l); /* POLLIN and POLLOUT, which are EPOLLIN and EPOLLOUT */
/* After a failure: whether trying again soon makes sense, since Redis itself said so or there are other hosts. */
bool sl_link_again(const struct sl_link *l);
/* The socket is ready: does what it can. 0 or SL_LINK_REDIAL. */
int sl_link_step(struct sl_link *l, struct sl_err *err);
/* Queues bytes (when up) and sends what goes. */
int sl_link_send(struct sl_link *l, const char *bytes, size_t len, struct sl_err *err);
/* The next reply of those read, or NULL. Replies that say that this is not the place, or not the time, are
 * none: SL_LINK_REDIAL or SL_RETRY; no command has run that was answered so. */
int sl_link_reply(struct sl_link *l, redisReply **ret_reply, struct sl_err *err);
/* SL_RETRY: no answer in time. */
int sl_link_late(const struct sl_link *l, struct sl_err *err);

/* Non-blocking sockets, connected or on their way. Of a host's addresses one per call, the next one each turn, so that
 * retries go through all of them. The descriptor or a negative code. */
int sl_redis_open_unix(const char *path, struct sl_err *err);
int sl_redis_open_tcp(const struct sl_redis_host *h, unsigned turn, struct sl_err *err);

/* c on the wire, with the script's text in place of its digest when whole_script. Free with
 * redisFreeCommand. */
int sl_redis_format(const struct sl_cmd *c, bool whole_script, char **ret_bytes, size_t *ret_len,
                    struct sl_err *err);
/* The reply is an error whose first word this is. */
bool sl_redis_error_is(const redisReply *reply, const char *word);

#endif
