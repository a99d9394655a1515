#include "cli/bar.h"
#include "base/clock.h"
#include "cli/artifact_store.h"
#include <stdio.h>
#include <unistd.h>

#define EVERY_US 200000

static void on_expect(void *arg, int64_t delta_bytes)
{
    struct cli_bar *b = arg;
    b->total += delta_bytes;
}

static void on_progress(void *arg, int64_t delta_bytes)
{
    struct cli_bar *b = arg;
    char done[24], total[24];
    b->done += delta_bytes;
    if (!b->on || sl_boot_us() - b->shown_us < EVERY_US)
        return;
    b->shown_us = sl_boot_us();
    b->shown = true;
    artifact_bytes(b->done, done);
    artifact_bytes(b->total, total);
    fprintf(stderr, "\r%s of %s  \033[K", done, total);
}

struct cli_bar cli_bar_new(void)
{
    return (struct cli_bar){.on = isatty(STDERR_FILENO)};
}

struct sl_watch cli_bar_watch(struct cli_bar *bar)
{
    return (struct sl_watch){bar, on_expect, on_progress, NULL};
}

void cli_bar_end(const struct cli_bar *bar)
{
    if (bar->shown)
        fputs("\r\033[K", stderr);
}
