/* The end of a run: tables exported, the test split answered with and without the prompts, scores. */
#ifndef SL_ENGINE_FINISH_H
#define SL_ENGINE_FINISH_H
#include "engine/trainer.h"

/* Writes out/prompt_table.safetensors, out/peft/TASK/ where PEFT can express the task (else logs why not), and, with a test
 * split, out/predictions.jsonl. ret_metrics: {"tasks": [{"name", "rows", "exact_match", "f1", "untuned_exact_match",
 * "untuned_f1", "untuned_choice" (by likelihood, when the task has inference.choices), "majority"}], "val_loss", ...},
 * also in out/metrics.json. New reference. SL_CANCELLED when control asks to stop. */
int sl_finish(struct sl_trainer *t, json_t **ret_metrics, struct sl_err *err);

#endif
