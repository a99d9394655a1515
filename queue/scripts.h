/* The Lua scripts, embedded at build time; each file's top says its arguments, reply and checks. */
#ifndef SL_QUEUE_SCRIPTS_H
#define SL_QUEUE_SCRIPTS_H
#include "queue/redis.h"

enum sl_script_id {
    SL_SCRIPT_ENQUEUE,
    SL_SCRIPT_CLAIM,
    SL_SCRIPT_RENEW,
    SL_SCRIPT_APPEND,
    SL_SCRIPT_CHECKPOINT,
    SL_SCRIPT_RELEASE,
    SL_SCRIPT_FAIL,
    SL_SCRIPT_FINISH,
    SL_SCRIPT_ACK,
    SL_SCRIPT_CANCEL,
    SL_SCRIPT_MOVE,
    SL_SCRIPT_REAP,
    SL_SCRIPT_HEARTBEAT,
    SL_SCRIPT_AGENTS,
    SL_SCRIPT_SET_AGENT,
    SL_SCRIPT_NAMES,
    SL_SCRIPT_SET_NAMES,
    SL_SCRIPT_LIST,
    SL_SCRIPT_SHOW,
    SL_SCRIPT_CHANGES,
    SL_SCRIPT_WAITING,
    SL_SCRIPT_EVENTS,
    SL_SCRIPT_ENDED,
    SL_SCRIPT_FORGET,
    SL_SCRIPT_NUMBER,
    SL_SCRIPT_REFUND,
    SL_SCRIPT_SYNC,
    SL_SCRIPT_TRIM,
    SL_SCRIPT_COUNT
};

/* Static storage; thread-safe. NULL only when out of memory at the first call. */
const struct sl_script *sl_script_get(enum sl_script_id id);

#endif
