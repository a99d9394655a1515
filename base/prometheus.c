#include "base/prometheus.h"
#include "base/clock.h"
#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

void sl_prom_family(struct sl_buf *out, const char *name, const char *type, const char *help)
{
    sl_buf_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static int add_label(struct sl_buf *out, const char *value)
{
    int full = 0;

    for (const char *p = value; *p; p++) {
        if (*p == '"' || *p == '\\' || *p == '\n')
            full |= sl_buf_addc(out, '\\');
        full |= sl_buf_addc(out, *p == '\n' ? 'n' : *p);
    }
    return full;
}

void sl_prom_value(struct sl_buf *out, const char *name, double value, ...)
{
    size_t before = out->len;
    va_list ap;
    int n = 0, full = sl_buf_adds(out, name);

    va_start(ap, value);
    for (const char *label; (label = va_arg(ap, const char *)); n++) {
        full |= sl_buf_addf(out, "%s%s=\"", n ? "," : "{", label);
        full |= add_label(out, va_arg(ap, const char *));
        full |= sl_buf_addc(out, '"');
    }
    va_end(ap);
    if (n)
        full |= sl_buf_addc(out, '}');
    if (isfinite(value))
        full |= sl_buf_addf(out, " %.17g\n", value);
    else
        full |= sl_buf_adds(out, isnan(value) ? " NaN\n" : value > 0 ? " +Inf\n" : " -Inf\n");
    if (full && out->cap) {
        out->len = before;
        out->p[before] = 0;
    }
}

static double resident_bytes(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f && fscanf(f, "%*u %lu", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static int open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n - 3; /* ".", ".." and the folder itself */
}

/* Seconds since 1970. Field 22 of stat: ticks after the system's start, on the boot clock. */
static double started_s(void)
{
    char text[1024];
    unsigned long long ticks = 0;
    FILE *f = fopen("/proc/self/stat", "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    const char *after;

    if (f)
        fclose(f);
    text[n] = 0;
    after = strrchr(text, ')'); /* the name may hold blanks */
    if (!after || sscanf(after + 1,
                         " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                         "%*d %llu",
                         &ticks) != 1)
        return 0;
    return (double)(sl_now_us() - sl_boot_us()) / 1e6 +
           (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

void sl_prom_process(struct sl_buf *out, const char *part)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    sl_prom_family(out, "softlaunch_build_info", "gauge",
                   "1, with the program's part and version.");
    sl_prom_value(out, "softlaunch_build_info", 1, "part", part, "version", SL_VERSION, NULL);
    sl_prom_family(out, "process_cpu_seconds_total", "counter", "CPU time of this process.");
    sl_prom_value(out, "process_cpu_seconds_total",
                  (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                      (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6,
                  NULL);
    sl_prom_family(out, "process_resident_memory_bytes", "gauge", "Resident memory.");
    sl_prom_value(out, "process_resident_memory_bytes", resident_bytes(), NULL);
    sl_prom_family(out, "process_open_fds", "gauge", "Open file descriptors.");
    sl_prom_value(out, "process_open_fds", open_fds(), NULL);
    sl_prom_family(out, "process_start_time_seconds", "gauge", "Start, in seconds since 1970.");
    sl_prom_value(out, "process_start_time_seconds", started_s(), NULL);
}
