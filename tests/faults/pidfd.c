/* Preloaded under a valgrind that does not know pidfd_open (before 3.21): a pipe that a thread
 * makes readable when the process has ended, without reaping it. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct watch {
    pid_t pid;
    int fd;
};

static void *watch(void *arg)
{
    struct watch w = *(struct watch *)arg;
    siginfo_t info;

    free(arg);
    while (waitid(P_PID, (id_t)w.pid, &info, WEXITED | WNOWAIT) && errno == EINTR)
        ;
    if (write(w.fd, "", 1) != 1)
        abort();
    close(w.fd);
    return NULL;
}

static long open_pid(pid_t pid)
{
    struct watch *w = malloc(sizeof *w);
    pthread_t thread;
    int fds[2];

    if (!w || pipe2(fds, O_CLOEXEC))
        abort();
    *w = (struct watch){pid, fds[1]};
    if (pthread_create(&thread, NULL, watch, w) || pthread_detach(thread))
        abort();
    return fds[0];
}

long syscall(long number, ...)
{
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall"), a[6], rc;
    va_list ap;

    va_start(ap, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(ap, long);
    va_end(ap);
    rc = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    return rc < 0 && errno == ENOSYS && number == SYS_pidfd_open ? open_pid((pid_t)a[0]) : rc;
}
