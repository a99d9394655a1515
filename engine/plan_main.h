/* `train --plan`: what a run takes in memory, without a GPU and without its weights. */
#ifndef SL_ENGINE_PLAN_MAIN_H
#define SL_ENGINE_PLAN_MAIN_H
#include "engine/trainer.h"

/* Plans the run of a prepared folder for options' device and memory, and prints a table or JSON on
 * standard output. Without memory_bytes it is that of the device if it is here. Returns the exit
 * status: 1 when it does not fit, with what would on standard error. */
int sl_plan_run(const char *run_dir, const struct sl_trainer_options *options, bool json);

#endif
