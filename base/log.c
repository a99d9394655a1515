#include "base/log.h"
#include "base/clock.h"
#include "base/err.h"
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_LINE_MAX 4096

static const char *part_name = "softlaunch";
static bool as_json = true;
static enum sl_level least_level = SL_INFO;
static const char *const level_names[] = {"debug", "info", "warn", "error"};

void sl_log_setup(const char *part, bool json, enum sl_level least)
{
    part_name = part;
    as_json = json;
    least_level = least;
}

static void put(const char *line)
{
    char text[LOG_LINE_MAX + 2];
    int n = snprintf(text, sizeof text, "%s\n", line);
    size_t len = n < (int)sizeof text ? (size_t)n : sizeof text - 1;

    text[len - 1] = '\n';
    if (write(STDERR_FILENO, text, len) < 0)
        return; /* nobody reads our log: nothing to say it to */
}

void sl_log(enum sl_level level, const char *run, const char *fmt, ...)
{
    char msg[LOG_LINE_MAX / 2], when[32], line[LOG_LINE_MAX], *text;
    va_list ap;
    json_t *o;

    if (level < least_level)
        return;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    sl_utf8_trim(msg);
    va_end(ap);
    if (!as_json) {
        snprintf(line, sizeof line, "%s: %s%s%s%s", part_name,
                 level == SL_ERROR  ? "error: "
                 : level == SL_WARN ? "warning: "
                                    : "",
                 run ? run : "", run ? ": " : "", msg);
        put(line);
        return;
    }
    sl_format_time(sl_now_us(), when);
    o = json_pack("{s:s, s:s, s:s, s:s*, s:s%}", "time", when, "level", level_names[level], "part",
                  part_name, "run", run, "msg", msg, strlen(msg));
    text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    put(text ? text : msg); /* a message that is not UTF-8 has no JSON form */
    free(text);
    json_decref(o);
}
