/* Preloaded into a program, says in the file SL_FSYNC_FILE what a power cut would leave of its
 * files: one line for each fsync that has come back, "SIZE START_S SECONDS PATH". SIZE is the
 * file's when it began: what is written while it runs may not be on the disk. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int out = -1;

__attribute__((constructor)) static void open_file(void)
{
    const char *path = getenv("SL_FSYNC_FILE");

    if (path)
        out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static double now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int synced(long call, int fd)
{
    char link[64], path[512], line[640];
    double start_s = now(CLOCK_REALTIME), from_s = now(CLOCK_MONOTONIC);
    struct stat st;
    int known = out >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode), rc = (int)syscall(call, fd);
    ssize_t n;

    if (rc || !known)
        return rc;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        abort(); /* a test that knows half of it proves nothing */
    path[n] = 0;
    n = snprintf(line, sizeof line, "%lld %.6f %.6f %s\n", (long long)st.st_size, start_s,
                 now(CLOCK_MONOTONIC) - from_s, path);
    if (write(out, line, (size_t)n) != n)
        abort();
    return 0;
}

int fsync(int fd)
{
    return synced(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return synced(SYS_fdatasync, fd);
}
