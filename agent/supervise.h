/* One child process of the agent: a worker, a fetch or an upload. Spawned with pipes for events and
 * control (base/wire.h), its output read as log lines, reaped through the loop.
 *
 * The child has a session of its own: killing it kills what it started too. When the agent dies,
 * the control pipe closes and the child ends by itself. Nothing here blocks. */
#ifndef SL_AGENT_SUPERVISE_H
#define SL_AGENT_SUPERVISE_H
#include "base/err.h"
#include "base/loop.h"
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#define SL_CHILD_OUTPUT_LINE_MAX 4096 /* longer lines of its output are cut */

struct sl_child;

struct sl_child_owner {
    /* event is borrowed. */
    void (*event)(void *arg, struct sl_child *child, const json_t *event);
    /* A line that it printed on standard output or error. */
    void (*output)(void *arg, struct sl_child *child, char *line); /* line may be changed */
    /* It has ended and everything it said has been delivered; child is freed when this returns. */
    void (*exited)(void *arg, struct sl_child *child, int wait_status);
    void *arg;
};

/* argv[0] is the program. The child gets --events-fd 3 --control-fd 4 behind argv. envp as in
 * sl_spawn. */
int sl_child_start(struct sl_loop *loop, const char *const *argv, const char *const *envp,
                   const char *cwd, const struct sl_child_owner *owner, struct sl_child **ret_child,
                   struct sl_err *err);
pid_t sl_child_pid(const struct sl_child *child); /* 0: reaped */
/* Sends a command of the wire; NULL-safe. A child that is gone or does not read is no error: it
 * will be reaped. */
void sl_child_deadline(struct sl_child *child, int64_t boot_us);
void sl_child_command(struct sl_child *child, const char *cmd);
/* SIGKILL to it and all that it started; exited follows. NULL-safe. */
void sl_child_kill(struct sl_child *child);
/* Kills and reaps it without a word to the owner, for the agent's own end: the loop must not run
 * again. NULL-safe. */
void sl_child_free(struct sl_child *child);

#endif
