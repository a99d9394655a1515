/* Prometheus' text format for what a process counts: families of samples, one after the other.
 *
 *   sl_prom_family(&buf, "softlaunch_queue_running", "gauge", "runs that are running");
 *   sl_prom_value(&buf, "softlaunch_queue_running", 3, "queue", name, NULL);
 *
 * All samples of a family follow its line before the next family begins. What does not fit into the
 * buffer any more is left out. */
#ifndef SL_BASE_PROMETHEUS_H
#define SL_BASE_PROMETHEUS_H
#include "base/buf.h"

#define SL_PROM_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define SL_PROM_MAX (8u << 20) /* bytes of a whole answer */

/* type: "counter", "gauge", "histogram". */
void sl_prom_family(struct sl_buf *out, const char *name, const char *type, const char *help);
/* Then pairs of label name and value, and NULL. */
void sl_prom_value(struct sl_buf *out, const char *name, double value, ...)
    __attribute__((sentinel));
/* The families every process has: process_cpu_seconds_total, process_resident_memory_bytes,
 * process_open_fds, process_start_time_seconds, and softlaunch_build_info{part, version}. Reads
 * /proc/self. */
void sl_prom_process(struct sl_buf *out, const char *part);

#endif
