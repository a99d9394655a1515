/* What GPUs are used, from NVIDIA's management library (NVML), which is looked for when the agent starts
 * and may be missing: then nothing is known.
 *
 * A thread of its own asks the driver, once a second for GPUs that somebody watches: a driver that
 * hangs costs the numbers, nothing else. The functions here never block on it. */
#ifndef SL_AGENT_GPUS_H
#define SL_AGENT_GPUS_H
#include "agent/devices.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_GPUS_PERIOD_MS 1000 /* between two looks */

struct sl_gpus;

struct sl_gpu_use {
    double percent;      /* of the time that a kernel ran, the mean since it was last read; -1: not known, as with MIG */
    double memory_bytes; /* in use on the device, by anybody; the most since it was last read */
};

/* Bit i of every set of bits below is device i of d. */
int sl_gpus_start(const struct sl_devices *d, struct sl_gpus **ret_gpus, struct sl_err *err);
void sl_gpus_stop(struct sl_gpus *g); /* waits for nothing; NULL-safe */
void sl_gpus_watch(struct sl_gpus *g, uint64_t bits, bool on); /* NULL-safe */
/* False: nothing is known since the last time. NULL-safe. */
bool sl_gpus_read(struct sl_gpus *g, int device, struct sl_gpu_use *ret_use);

#endif
