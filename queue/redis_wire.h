/* What the blocking and the event-loop form of the Redis transport share. Not for other parts. */
#ifndef SL_QUEUE_REDIS_WIRE_H
#define SL_QUEUE_REDIS_WIRE_H
#include "queue/redis.h"

/* "Redis at HOST port N" or "Redis at PATH". */
void sl_redis_where(const struct sl_redis_url *u, char *ret_text, size_t size);
/* c on the wire, with the script's text in place of its digest when whole_script. Free with
 * redisFreeCommand. */
int sl_redis_format(const struct sl_cmd *c, bool whole_script, char **ret_bytes, size_t *ret_len,
                    struct sl_err *err);
bool sl_redis_is_noscript(const redisReply *reply);
/* A non-blocking socket, connected or on its way (then wait until it is writable and ask for the
 * result). turn chooses among several addresses of a host. Returns the descriptor or a negative
 * code. */
int sl_redis_socket(const struct sl_redis_url *u, unsigned turn, struct sl_err *err);
int sl_redis_socket_result(const struct sl_redis_url *u, int fd, struct sl_err *err);
/* AUTH and SELECT as the address wants them; returns how many. The caller releases them. */
int sl_redis_greeting(const struct sl_redis_url *u, struct sl_cmd cmds[2]);

#endif
