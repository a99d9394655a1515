#include "artifacts/pace.h"
#include "base/clock.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEAST 1000 /* bytes a second; below it no transfer would end */
#define SLICE_US 20000

int sl_pace_init(struct sl_pace *pace, struct sl_err *err)
{
    static const char units[] = "kMG";
    const char *text = getenv(SL_BANDWIDTH_ENV);
    char *end = NULL;
    long long n = 0, factor = 1;
    *pace = (struct sl_pace){.bytes_per_s = 0};
    pthread_mutex_init(&pace->mutex, NULL);
    if (!text || !*text)
        return 0;
    errno = 0;
    n = *text >= '0' && *text <= '9' ? strtoll(text, &end, 10) : -1;
    const char *unit = n >= 0 && *end ? strchr(units, *end) : NULL;
    for (const char *u = units; unit && u <= unit; u++)
        factor *= 1000;
    if (unit)
        end++;
    if (n < 0 || errno || *end || n > INT64_MAX / 1000000000 || n * factor < LEAST)
        return sl_err_set(err, SL_SPEC,
                          "bandwidth: `%.40s` is not a number of bytes a second, %d or more: write 500k, 20M or 1G",
                          text, LEAST);
    pace->bytes_per_s = n * factor;
    return 0;
}

void sl_pace_take(struct sl_pace *pace, int64_t bytes, const struct sl_watch *watch)
{
    if (!pace || pace->bytes_per_s <= 0)
        return;
    pthread_mutex_lock(&pace->mutex);
    int64_t now = sl_boot_us(), from = pace->free_us > now ? pace->free_us : now;
    int64_t until = from + (int64_t)((double)bytes * 1e6 / (double)pace->bytes_per_s);
    pace->free_us = until;
    pthread_mutex_unlock(&pace->mutex);
    while ((now = sl_boot_us()) < until && !sl_watch_stop(watch))
        usleep(until - now < SLICE_US ? (useconds_t)(until - now) : SLICE_US);
}
