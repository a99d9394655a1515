/* The end of a run: tables exported, the test split answered with and without the prompts, scores.
 */
#ifndef SL_ENGINE_FINISH_H
#define SL_ENGINE_FINISH_H
#include "engine/trainer.h"

#define SL_TOP_K_DIR "top_k"

/* Writes to the folder of every trial (out/ or out/trials/NAME/, run.h) prompt_table.safetensors,
 * top_k/step-N.safetensors (the tables of the save_top_k best validations, in the same form), peft/TASK/
 * where PEFT can express the task (else logs why not), and, with a test split, predictions.jsonl.
 * ret_metrics: {"tasks": [{"name", "rows", "majority", "exact_match", "f1", "choice" (by likelihood,
 * when the task has inference.choices), each of the three as "untuned_..." too, and with
 * report_validation_metric that metric}], "val_loss", ...}, also in the folder's metrics.json; of
 * several trials {"trials": {NAME: these and "state" (trained, stopped, diverged), "msg"}, "best": NAME,
 * "val_loss"}, in out/metrics.json. A diverged trial has metrics only. A run of style no-prompts has no
 * tables, and only the untuned model's answers, as "exact_match" and so on. New reference. SL_CANCELLED
 * when control asks to stop. */
int sl_finish(struct sl_trainer *t, json_t **ret_metrics, struct sl_err *err);

/* finish_tables.c: of all trials but the diverged ones. */
int sl_finish_tables(struct sl_trainer *t, struct sl_err *err);

#endif
