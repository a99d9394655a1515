/* How much memory this process may have: the machine's, or less where a control group says so
 * (cgroups(7): version 2's memory.max and memory.current, version 1's memory.limit_in_bytes and
 * memory.usage_in_bytes; a group's limits hold for those below it). Files in memory that could be
 * read again do not count as used. */
#include "base/file.h"
#include "engine/cpu/cpu.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX ((size_t)64 << 10)

/* The number that follows key in the file's text, times scale; without a key the file's first. -1:
 * there is none. */
static int64_t number_in(const char *root, const char *path, const char *key, int64_t scale)
{
    char full[SL_PATH_MAX];
    struct sl_buf text;
    const char *at;
    char *end;
    int64_t n = -1;

    sl_buf_init(&text, TEXT_MAX);
    if (!sl_path(full, NULL, "%s%s", root, path) && !sl_file_read(full, &text, NULL)) {
        at = key ? strstr(text.p, key) : text.p;
        if (at) {
            at += key ? strlen(key) : 0;
            n = strtoll(at, &end, 10);
            n = end == at || n < 0 || n > INT64_MAX / scale ? -1
                                                            : n * scale; /* "max" is no number */
        }
    }
    sl_buf_release(&text);
    return n;
}

/* What the groups from `group` up leave, at most `most`. */
static int64_t within(const char *root, const char *mount, const char *group, const char *limit,
                      const char *usage, const char *file_key, int64_t most)
{
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];

    if (sl_path(dir, NULL, "%s", group))
        return most;
    for (;;) {
        char *slash = strrchr(dir, '/');
        int64_t max = -1, used = -1, files = 0;

        if (!sl_path(path, NULL, "%s%s/%s", mount, dir, limit))
            max = number_in(root, path, NULL, 1);
        if (max > 0 && !sl_path(path, NULL, "%s%s/%s", mount, dir, usage))
            used = number_in(root, path, NULL, 1);
        if (used >= 0 && !sl_path(path, NULL, "%s%s/memory.stat", mount, dir))
            files = number_in(root, path, file_key, 1);
        if (used >= 0) {
            int64_t left = max - used + (files > 0 ? files : 0);
            most = left < most ? left : most;
        }
        if (!slash)
            return most > 0 ? most : 1;
        *slash = '\0';
    }
}

int64_t sl_cpu_memory(const char *root)
{
    int64_t most = number_in(root, "/proc/meminfo", "MemAvailable:", 1024);
    char full[SL_PATH_MAX], *line, *rest;
    struct sl_buf text;

    if (most < 0)
        return 0;
    sl_buf_init(&text, TEXT_MAX);
    if (!sl_path(full, NULL, "%s/proc/self/cgroup", root) && !sl_file_read(full, &text, NULL)) {
        for (line = strtok_r(text.p, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;

            if (!group)
                continue;
            *group++ = '\0';
            if (!strcmp(group, "/"))
                group++;
            if (!names[1])
                most = within(root, "/sys/fs/cgroup", group, "memory.max", "memory.current",
                              "\ninactive_file ", most);
            else if (!strcmp(names + 1, "memory"))
                most = within(root, "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes",
                              "memory.usage_in_bytes", "\ntotal_inactive_file ", most);
        }
    }
    sl_buf_release(&text);
    return most;
}
