/* The GPUs that this agent's workers may use, and which of them a run gets.
 *
 * Known without CUDA: what CUDA_VISIBLE_DEVICES names, in its order, or else one for each
 * /dev/nvidiaN. A worker sees its own GPUs only. Plain data; nothing here blocks. */
#ifndef SL_AGENT_DEVICES_H
#define SL_AGENT_DEVICES_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>

#define SL_DEVICES_MAX 64
#define SL_DEVICE_ID_MAX 64 /* a number, or GPU-... and a UUID */
#define SL_DEVICES_TEXT_MAX (SL_DEVICES_MAX * (SL_DEVICE_ID_MAX + 1))

struct sl_devices {
    int n;
    char id[SL_DEVICES_MAX][SL_DEVICE_ID_MAX];
};

/* visible: CUDA_VISIBLE_DEVICES' value (as CUDA reads it, the list ends before what cannot be a
 * device), or NULL; dev: the folder "/dev". */
void sl_devices_find(const char *visible, const char *dev, struct sl_devices *ret_devices);
/* The first n that are not busy (a bit each), as bits. SL_RETRY when there are not so many free. */
int sl_devices_pick(const struct sl_devices *d, uint64_t busy, int n, uint64_t *ret_taken, struct sl_err *err);
/* The names of some, with commas between: what CUDA_VISIBLE_DEVICES is for a run that has them. */
void sl_devices_names(const struct sl_devices *d, uint64_t bits, char ret_names[SL_DEVICES_TEXT_MAX]);

#endif
