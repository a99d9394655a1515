#include "base/fault.h"
#ifdef SL_FAULT_POINTS
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void strike(const char *name, bool parent_too)
{
    static bool struck;
    const char *wanted = getenv("SL_FAULT_POINT");
    size_t len = strlen(name);
    const char *mark;
    int signo, fd;

    if (struck || !wanted || strncmp(wanted, name, len) != 0 || wanted[len] != ':')
        return;
    struck = true;
    mark = strchr(wanted + len + 1, ':');
    fd = mark ? open(mark + 1, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    if (mark && fd < 0)
        return;
    signo = strncmp(wanted + len, ":kill", 5) == 0 ? SIGKILL : SIGSTOP;
    if (parent_too)
        kill(getppid(), signo);
    raise(signo);
}

void sl_fault_point(const char *name)
{
    strike(name, false);
}

void sl_fault_point_in_child(const char *name)
{
    strike(name, true);
}
#endif
