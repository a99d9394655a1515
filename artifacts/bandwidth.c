#include "artifacts/transfer.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAST 1000 /* bytes a second; below it no transfer would end */

int sl_bandwidth(int64_t *ret_bytes_per_s, struct sl_err *err)
{
    static const char units[] = "kMG";
    const char *text = getenv(SL_BANDWIDTH_ENV);
    char *end = NULL;
    if (!text || !*text) {
        *ret_bytes_per_s = 0;
        return 0;
    }
    errno = 0;
    long long n = *text >= '0' && *text <= '9' ? strtoll(text, &end, 10) : -1, factor = 1;
    const char *unit = n >= 0 && *end ? strchr(units, *end) : NULL;
    for (const char *u = units; unit && u <= unit; u++)
        factor *= 1000;
    if (unit)
        end++;
    if (n < 0 || errno || *end || n > INT64_MAX / 1000000000 || n * factor < LEAST)
        return sl_err_set(err, SL_SPEC,
                          "bandwidth: `%.40s` is not a number of bytes a second, %d or more: write 500k, 20M or 1G",
                          text, LEAST);
    *ret_bytes_per_s = n * factor;
    return 0;
}
