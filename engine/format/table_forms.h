/* Prompt tables in the forms of other tools, in and out. Ours and PEFT's out: engine/format/export.h.
 *
 * What each form keeps, beside the rows: ours everything; NeMo the templates, data settings and
 * digests; PEFT the task's name (its folder's); TensorRT-LLM nothing, not even how many of its rows
 * are padding. Tables whose origin is unknown have "" as digests. Everything here blocks. */
#ifndef SL_ENGINE_TABLE_FORMS_H
#define SL_ENGINE_TABLE_FORMS_H
#include "engine/format/export.h"

#define SL_NPY_FILE "prompt_table.npy"
#define SL_NEMO_FILE "prompt_table.nemo"
/* The template of a table that comes without one: for rows with a field "prompt". The field that
 * ends a template is its answer's, which generation leaves empty. */
#define SL_TABLES_TEMPLATE "<|VIRTUAL_PROMPT_0|>{prompt}{answer}"
#define SL_TABLES_MAX_BYTES (1u << 30) /* of one table, or of an .npy */

/* TensorRT-LLM's prompt table: .npy, little-endian fp32 [tasks, the greatest V, hidden], row-major,
 * zeros behind a shorter table. Tasks in the order of t. SL_SPEC for tables of unequal hidden size.
 */
int sl_export_npy(const char *path, const struct sl_tables *t, struct sl_err *err);
/* What NeMo 1.16 saves after prompt learning: a tar of model_config.yaml and model_weights.ckpt, in
 * it {"prompt_table": {"prompt_table.TASK.prompt_embeddings.weight": fp32 [V, hidden],
 * "prompt_table.TASK.indices": int64 [V]}}. language_model_path: the base model, as NeMo should
 * find it; NULL: "". */
int sl_export_nemo(const char *path, const struct sl_tables *t, const char *language_model_path,
                   struct sl_err *err);

/* Reads any form, told by content: our file or a folder with it; a PEFT adapter's folder, or a
 * folder of such (prompt tuning and p-tuning; adapter_model.safetensors or .bin); a .nemo archive
 * of prompt tables; an .npy. tasks (n_tasks of them, may be NULL) name the tables of an .npy in
 * order, or the one of a PEFT adapter; an .npy without names has task_0 and so on, and its zero
 * rows at the end are padding. The caller releases *ret_tables. SL_NOTFOUND, SL_DATA, SL_SPEC (what
 * is known and not supported, such as a LoRA adapter), SL_NOMEM; names the path. */
int sl_tables_import(const char *path, const char *const *tasks, int n_tasks,
                     struct sl_tables *ret_tables, struct sl_err *err);

/* `softlaunch artifact convert FROM TO`. */
int sl_convert_main(int argc, char **argv);

#endif
