/* Starting one program: exec'd, in a session of its own, only the named descriptors open. */
#ifndef SL_BASE_PROC_H
#define SL_BASE_PROC_H
#include "base/err.h"
#include <stdbool.h>
#include <sys/types.h>

#define SL_PROC_MAX_FDS 8

struct sl_spawn {
    const char *const *argv; /* argv[0] is a path or found on PATH; NULL-terminated */
    const char *const *envp; /* "K=V" added to ours, "K" taken away; NULL-terminated; may be NULL */
    bool bare_env;           /* the child's environment is envp alone */
    const char *cwd;         /* may be NULL */
    int fds[SL_PROC_MAX_FDS]; /* fds[i] becomes descriptor i in the child; -1: /dev/null for 0..2, else closed */
    int n_fds;               /* at least 3 */
    unsigned max_memory_mb;  /* RLIMIT_AS; 0: none */
};

/* Returns when exec has happened; an exec failure is reported here, not as an exit status. SIGTERM is sent to
 * the child when our thread dies (PR_SET_PDEATHSIG). */
int sl_spawn(const struct sl_spawn *s, pid_t *ret_pid, struct sl_err *err);
/* "exit status 3", "signal 9 (Killed)". text holds at least 64 bytes. */
void sl_wait_text(int wait_status, char *ret_text);
/* Folder of the running executable, without a slash at its end. */
int sl_self_dir(char *ret_path, size_t size, struct sl_err *err);

#endif
