/* Which variables of its environment a spec may set. */
#include "base/spec.h"
#include <string.h>

#define ENV_NAME_MAX 100

bool sl_spec_env_name(const char *name)
{
    static const char *const starts[] = {"LD_", "SOFTLAUNCH_", "GCONV_", "GLIBC_", "MALLOC_"};
    static const char *const names[] = {"PATH", "HOME", "SHELL", "IFS", "TMPDIR", "CUDA_VISIBLE_DEVICES"};

    if (!name || !*name || strlen(name) > ENV_NAME_MAX || (*name >= '0' && *name <= '9') || *name == '_' ||
        name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")])
        return false;
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
        if (!strncmp(name, starts[i], strlen(starts[i])))
            return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return false;
    return true;
}
