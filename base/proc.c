#include "base/proc.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs in the child between fork and exec. Reports failure as errno on fd. */
static void become(const struct sl_spawn *s, pid_t parent, int report_fd)
{
    static char *none[] = {NULL};
    int saved[SL_PROC_MAX_FDS], null_fd, e;
    sigset_t unblocked;

    sigemptyset(&unblocked);
    sigprocmask(SIG_SETMASK, &unblocked, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(127); /* the parent died before the line above */
    /* Move every descriptor above the target range first, so that no dup2 overwrites one still needed. */
    report_fd = fcntl(report_fd, F_DUPFD_CLOEXEC, SL_PROC_MAX_FDS + 1);
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < s->n_fds; i++) {
        int from = s->fds[i] >= 0 ? s->fds[i] : i < 3 ? null_fd : -1;

        saved[i] = from < 0 ? -1 : fcntl(from, F_DUPFD_CLOEXEC, SL_PROC_MAX_FDS + 1);
        if (from >= 0 && saved[i] < 0)
            goto failed;
    }
    for (int i = 0; i < s->n_fds; i++)
        if (saved[i] >= 0 && dup2(saved[i], i) < 0)
            goto failed;
        else if (saved[i] < 0)
            close(i);
    if (fcntl(report_fd, F_SETFD, FD_CLOEXEC))
        goto failed;
    syscall(SYS_close_range, (unsigned)s->n_fds, ~0u, 1u << 2); /* CLOSE_RANGE_CLOEXEC; fine if missing */
    if (s->cwd && chdir(s->cwd))
        goto failed;
    if (s->max_memory_mb) {
        rlim_t bytes = (rlim_t)s->max_memory_mb << 20;

        if (setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes}))
            goto failed;
    }
    if (s->bare_env)
        environ = none;
    for (int i = 0; s->envp && s->envp[i]; i++)
        if (putenv((char *)(uintptr_t)s->envp[i]))
            goto failed;
    execvp(s->argv[0], (char *const *)(uintptr_t)s->argv);
failed:
    e = errno;
    if (write(report_fd, &e, sizeof e) < 0)
        _exit(126);
    _exit(127);
}

int sl_spawn(const struct sl_spawn *s, pid_t *ret_pid, struct sl_err *err)
{
    int report[2], child_errno = 0;
    pid_t pid, parent = getpid();
    ssize_t n;

    if (pipe2(report, O_CLOEXEC))
        return sl_err_errno(err, "making a pipe to start %s", s->argv[0]);
    pid = fork();
    if (pid < 0) {
        int rc = sl_err_errno(err, "forking to start %s", s->argv[0]);

        close(report[0]);
        close(report[1]);
        return rc;
    }
    if (pid == 0)
        become(s, parent, report[1]);
    close(report[1]);
    do
        n = read(report[0], &child_errno, sizeof child_errno);
    while (n < 0 && errno == EINTR);
    close(report[0]);
    if (n > 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        errno = child_errno;
        return sl_err_errno(err, "starting %s", s->argv[0]);
    }
    *ret_pid = pid;
    return 0;
}

void sl_wait_text(int status, char *ret_text)
{
    if (WIFSIGNALED(status))
        snprintf(ret_text, 64, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(ret_text, 64, "exit status %d", WEXITSTATUS(status));
}

int sl_self_dir(char *ret_path, size_t size, struct sl_err *err)
{
    ssize_t n = readlink("/proc/self/exe", ret_path, size - 1);
    char *slash;

    if (n < 0)
        return sl_err_errno(err, "reading /proc/self/exe");
    ret_path[n] = '\0';
    slash = strrchr(ret_path, '/');
    if (slash)
        *slash = '\0';
    return 0;
}
