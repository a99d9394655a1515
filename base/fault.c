#include "base/fault.h"
#ifdef SL_FAULT_POINTS
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
    int signo;

    if (struck || !wanted || strncmp(wanted, name, len) != 0 || wanted[len] != ':')
        return;
    struck = true;
    signo = strcmp(wanted + len, ":kill") == 0 ? SIGKILL : SIGSTOP;
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
