/* An event loop on epoll: descriptors, one-shot timers, signals, children.
 *
 * One thread. Callbacks may add and remove anything, themselves included. Nothing here blocks except
 * sl_loop_run. Handles are small integers >= 0, never reused while live. */
#ifndef SL_BASE_LOOP_H
#define SL_BASE_LOOP_H
#include "base/err.h"
#include <stdint.h>
#include <sys/types.h>

#define SL_LOOP_MAX_WATCHES 4096

struct sl_loop;
typedef void sl_fd_fn(void *arg, int fd, uint32_t epoll_events);
typedef void sl_timer_fn(void *arg);
typedef void sl_signal_fn(void *arg, int signo);
typedef void sl_child_fn(void *arg, pid_t pid, int wait_status);

int sl_loop_new(struct sl_loop **ret_loop, struct sl_err *err);
void sl_loop_free(struct sl_loop *loop);
/* Returns when sl_loop_stop was called (0) or epoll failed. */
int sl_loop_run(struct sl_loop *loop, struct sl_err *err);
void sl_loop_stop(struct sl_loop *loop);

/* Watches fd (not owned) for EPOLLIN and/or EPOLLOUT. */
int sl_loop_fd(struct sl_loop *loop, int fd, uint32_t events, sl_fd_fn *fn, void *arg,
               struct sl_err *err);
int sl_loop_fd_modify(struct sl_loop *loop, int fd, uint32_t events, struct sl_err *err);
void sl_loop_fd_remove(struct sl_loop *loop, int fd);
/* Calls fn once, delay_us from now on the boot-time clock; returns a handle >= 0 or a negative code. */
int sl_loop_timer(struct sl_loop *loop, int64_t delay_us, sl_timer_fn *fn, void *arg,
                  struct sl_err *err);
void sl_loop_timer_cancel(struct sl_loop *loop, int timer); /* a fired or negative handle is fine */
/* Blocks signo in this thread and delivers it here; call before making threads. */
int sl_loop_signal(struct sl_loop *loop, int signo, sl_signal_fn *fn, void *arg, struct sl_err *err);
/* Reaps pid through a pidfd and calls fn once. A loop needs SIGCHLD not to be ignored, and sees to it. */
int sl_loop_child(struct sl_loop *loop, pid_t pid, sl_child_fn *fn, void *arg, struct sl_err *err);

#endif
