/* How many requests each route has answered, and how long it took. */
#include "base/clock.h"
#include "server/http_priv.h"
#include <stdio.h>

static const double bounds_s[SL_HTTP_COUNT_BOUNDS] = {0.005, 0.01, 0.025, 0.05, 0.1,
                                                      0.25,  0.5,  1,     2.5,  10};

void sl_http_count(struct sl_http_count *count, unsigned status, int64_t began_us)
{
    int64_t took_us = sl_boot_us() - began_us;
    int i = 0;

    if (status < 100 || status > 599)
        return; /* cut before there was an answer */
    atomic_fetch_add(&count->status[status / 100 - 1], 1);
    atomic_fetch_add(&count->took_us, (uint64_t)took_us);
    while (i < SL_HTTP_COUNT_BOUNDS && (double)took_us > bounds_s[i] * 1e6)
        i++;
    atomic_fetch_add(&count->took[i], 1);
}

void sl_http_count_requests(const struct sl_route *route, const struct sl_http_count *count,
                            struct sl_buf *out)
{
    for (int i = 0; i < 5; i++) {
        uint64_t n = atomic_load(&count->status[i]);
        char code[16];
        snprintf(code, sizeof code, "%dxx", i + 1);
        if (n)
            sl_prom_value(out, "softlaunch_http_requests_total", (double)n, "method", route->method,
                          "route", route->pattern, "code", code, NULL);
    }
}

void sl_http_count_took(const struct sl_route *route, const struct sl_http_count *count,
                        struct sl_buf *out)
{
    uint64_t sum_us = atomic_load(&count->took_us), n = 0;

    for (int i = 0; i <= SL_HTTP_COUNT_BOUNDS; i++) {
        char le[16] = "+Inf";
        if (i < SL_HTTP_COUNT_BOUNDS)
            snprintf(le, sizeof le, "%g", bounds_s[i]);
        n += atomic_load(&count->took[i]);
        sl_prom_value(out, "softlaunch_http_request_seconds_bucket", (double)n, "method",
                      route->method, "route", route->pattern, "le", le, NULL);
    }
    sl_prom_value(out, "softlaunch_http_request_seconds_sum", (double)sum_us / 1e6, "method",
                  route->method, "route", route->pattern, NULL);
    sl_prom_value(out, "softlaunch_http_request_seconds_count", (double)n, "method", route->method,
                  "route", route->pattern, NULL);
}
