/* What a run takes of its machine, beside its other metrics: named system/..., SL_AGENT_USAGE_US apart.
 *
 *   system/cpu_percent       of one core, the worker's mean since the last time
 *   system/memory_bytes      resident memory of the worker
 *   system/steps_per_s       the run's steps since the last time
 *   system/gpu_percent       agent/gpus.h; of several GPUs one is system/gpuN_percent, from 0 in the run's order
 *   system/gpu_memory_bytes */
#include "agent/agent_inner.h"
#include "base/clock.h"
#include "base/json.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Ticks that a process has computed for; -1: it is gone. */
static int64_t ticks_of(pid_t pid)
{
    unsigned long long user, kernel;
    char path[64], text[1024], *at;
    FILE *f;
    size_t n;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return -1;
    n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    at = strrchr(text, ')'); /* the name before it may have anything in it */
    if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &kernel) != 2)
        return -1;
    return (int64_t)(user + kernel);
}

/* -1: it is gone. */
static double resident_bytes(pid_t pid)
{
    unsigned long long pages = 0;
    char path[64];
    FILE *f;
    int n;

    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return -1;
    n = fscanf(f, "%*u %llu", &pages);
    fclose(f);
    return n == 1 ? (double)pages * (double)sysconf(_SC_PAGESIZE) : -1;
}

static void add_gpus(struct sl_slot *s, json_t *event)
{
    bool several = s->work.gpus & (s->work.gpus - 1);
    struct sl_gpu_use use;
    char which[16] = "", name[64];
    int n = 0;

    for (int i = 0; i < s->agent->devices.n; i++) {
        if (!(s->work.gpus >> i & 1))
            continue;
        if (several)
            snprintf(which, sizeof which, "%d", n++);
        if (!sl_gpus_read(s->agent->gpus, i, &use))
            continue;
        snprintf(name, sizeof name, "system/gpu%s_memory_bytes", which);
        json_object_set_new(event, name, json_real(use.memory_bytes));
        snprintf(name, sizeof name, "system/gpu%s_percent", which);
        if (use.percent >= 0)
            json_object_set_new(event, name, json_real(use.percent));
    }
}

static void tell(struct sl_slot *s)
{
    struct sl_usage *u = &s->usage;
    pid_t pid = sl_child_pid(s->main.child);
    int64_t now_us = sl_boot_us(), ticks = ticks_of(pid), step = sl_report_step(s->work.report);
    double bytes = resident_bytes(pid), seconds = (double)(now_us - u->since_us) / 1e6;
    json_t *event;

    if (ticks < 0 || bytes < 0 || step < 0 || seconds <= 0) /* -1: it has not started training yet */
        return;
    event = json_pack("{s:s, s:I, s:f, s:f}", "ev", "metric", "step", (json_int_t)step, "system/cpu_percent",
                      100 * (double)(ticks - u->ticks) / (double)sysconf(_SC_CLK_TCK) / seconds,
                      "system/memory_bytes", bytes);
    if (u->step >= 0)
        json_object_set_new(event, "system/steps_per_s", json_real((double)(step - u->step) / seconds));
    add_gpus(s, event);
    sl_report_event(s->work.report, event);
    json_decref(event);
    u->since_us = now_us;
    u->ticks = ticks;
    u->step = step;
}

static void due(void *arg)
{
    struct sl_slot *s = arg;

    s->usage.timer = -1;
    if (s->state != ST_TRAINING || !s->main.child || s->work.lost)
        return; /* a new worker starts it anew */
    tell(s);
    sl_slot_timer(s, &s->usage.timer, SL_AGENT_USAGE_US, due);
}

void sl_slot_usage_start(struct sl_slot *s)
{
    s->usage.since_us = sl_boot_us();
    s->usage.ticks = 0;
    s->usage.step = -1;
    sl_gpus_watch(s->agent->gpus, s->work.gpus, true);
    sl_slot_timer(s, &s->usage.timer, SL_AGENT_USAGE_FIRST_US, due);
}

void sl_slot_usage_stop(struct sl_slot *s)
{
    sl_gpus_watch(s->agent->gpus, s->work.gpus, false);
    sl_loop_timer_cancel(s->agent->loop, s->usage.timer);
    s->usage.timer = -1;
}
