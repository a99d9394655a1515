/* `softlaunch-worker selftest [--device D] [--json]`: whether the device multiplies right.
 *
 * Matrices of small whole numbers, so that every order of summation gives the same product, against plain
 * loops on the host: in fp32 to the bit, in bf16 to the rounding of the result. Also what the device is.
 * Exit status 0: right; 1: wrong, broken or not there; 2: wrong usage. */
#ifndef SL_ENGINE_SELFTEST_H
#define SL_ENGINE_SELFTEST_H

#include "engine/ops.h"

/* The test alone, on an open backend: SL_DEVICE says what is wrong. Blocks for a fraction of a second. */
int sl_selftest(const struct sl_ops *ops, struct sl_backend *be, struct sl_err *err);
int sl_selftest_main(int argc, char **argv);

#endif
