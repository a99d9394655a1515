#include "base/clock.h"
#include <sys/random.h>
#include <time.h>
#include <stdlib.h>

static int64_t read_us(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t sl_now_us(void)
{
    return read_us(CLOCK_REALTIME);
}

int64_t sl_boot_us(void)
{
    return read_us(CLOCK_BOOTTIME);
}

void sl_random_id(char ret_id[SL_ID_HEX + 1])
{
    unsigned char raw[SL_ID_HEX / 2];

    /* At most 256 bytes never come short; failing means no kernel entropy interface: nothing can be safe then. */
    if (getrandom(raw, sizeof raw, 0) != (ssize_t)sizeof raw)
        abort();
    for (size_t i = 0; i < sizeof raw; i++)
        snprintf(ret_id + 2 * i, 3, "%02x", raw[i]);
}

void sl_format_time(int64_t wall_us, char ret_text[32])
{
    time_t s = (time_t)(wall_us / 1000000);
    int ms = (int)(wall_us / 1000 % 1000);
    struct tm tm;
    size_t n;

    gmtime_r(&s, &tm);
    n = strftime(ret_text, 32, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(ret_text + n, 32 - n, ".%03dZ", ms < 0 ? 0 : ms);
}
