/* The worker's self-test (engine/selftest.h) in a child process: whether a device multiplies right, and what it is. */
#ifndef SL_AGENT_DEVICE_TEST_H
#define SL_AGENT_DEVICE_TEST_H
#include "base/err.h"
#include <jansson.h>

#define SL_DEVICE_TEST_MS 60000 /* CUDA starts slowly on large machines; a device that hangs is a broken one */

/* worker: its path. device: as its --device, NULL: its default. visible: CUDA_VISIBLE_DEVICES for it, NULL: ours.
 * Blocks, at most SL_DEVICE_TEST_MS. *ret_about: {"ok", "device", "kernel", "memory_bytes", "code", "msg"} of a test
 * that was made, whatever it found. SL_IO: the worker could not be started; SL_DEVICE: it gave no answer. */
int sl_device_test(const char *worker, const char *device, const char *visible, json_t **ret_about, struct sl_err *err);

#endif
