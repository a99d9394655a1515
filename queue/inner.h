/* What the queue's C files share. Not for other parts. */
#ifndef SL_QUEUE_INNER_H
#define SL_QUEUE_INNER_H
#include "queue/queue.h"
#include "queue/scripts.h"

/* Keys that C code names itself; see queue/scripts/common.lua for all of them. */
#define SL_QUEUE_TAG "{" SL_QUEUE_NAMESPACE "}"
#define SL_QUEUE_KEY_MAX 256

/* Begins a call of a script on our namespace. */
void sl_queue_cmd(struct sl_cmd *c, enum sl_script_id id);
/* Sends c on a connection of the pool and releases it. */
int sl_queue_call(struct sl_queue *q, struct sl_cmd *c, int64_t wait_us, redisReply **ret_reply,
                  struct sl_err *err);
/* A connection of the pool, for those that need it twice; give it back. */
struct sl_redis *sl_queue_take(struct sl_queue *q);
void sl_queue_give(struct sl_queue *q, struct sl_redis *r);
/* Frees reply. */
int sl_queue_odd_reply(const char *what, redisReply *reply, struct sl_err *err);
bool sl_queue_is_text(const redisReply *r);
/* An array of n texts or more (n -1: any number). */
bool sl_queue_is_texts(const redisReply *r, int n);
bool sl_queue_run_valid(const char *run); /* only such get into a key */
bool sl_queue_name_valid(const char *name);
int sl_queue_no_run(const char *run, struct sl_err *err);
json_t *sl_queue_parsed(const char *text); /* null when it is no JSON */
/* For a script whose reply is of no interest; releases c. */
int sl_queue_do(struct sl_queue *q, struct sl_cmd *c, struct sl_err *err);

#endif
