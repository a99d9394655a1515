/* Prompt tables on disk: our own file (written and read) and PEFT's adapter directory (written).
 *
 * Ours is one safetensors file with a tensor [V, hidden] fp32 per task, named after the task.
 * Metadata: "format" (SL_TABLES_FORMAT), "model" and "tokenizer" (sha256 of the base model and of
 * its tokenizer), "softlaunch" (version), "data" (JSON: the config's model.data keys that rendering
 * needs, such as add_bos) and for each task "task.NAME" (JSON: its entry of task_templates), so
 * that a table is enough to generate. Sealed. Everything here blocks. */
#ifndef SL_ENGINE_EXPORT_H
#define SL_ENGINE_EXPORT_H
#include "base/digest.h"
#include "base/err.h"
#include "engine/encoder.h"
#include <jansson.h>
#include <stdbool.h>

#define SL_TABLES_FORMAT "softlaunch-prompt-table/1"
#define SL_TABLES_FILE "prompt_table.safetensors"

struct sl_table {
    char *task;
    int virtual_tokens, hidden;
    float *rows;    /* host [virtual_tokens, hidden] */
    json_t *config; /* the task's entry of task_templates, with "prompt_template"; an object */
};
struct sl_tables {
    int n;
    struct sl_table *table;
    char model_digest[SL_SHA256_HEX + 1], tokenizer_digest[SL_SHA256_HEX + 1]; /* "": unknown */
    json_t *data; /* an object; may be NULL */
};

/* Writes path durably and atomically; t is only read. SL_SPEC: two tables of one name, or a name
 * too long. */
int sl_export_tables(const char *path, const struct sl_tables *t, struct sl_err *err);
/* path: the file, or a folder that holds SL_TABLES_FILE. The caller releases *ret_tables. SL_NOTFOUND; SL_DATA for what is no sealed prompt table, naming
 * file and reason. */
int sl_tables_read(const char *path, struct sl_tables *ret_tables, struct sl_err *err);
void sl_tables_release(
    struct sl_tables *t); /* what sl_tables_read made; NULL-safe; all zero afterwards */
int sl_tables_find(const struct sl_tables *t, const char *task); /* index, or -1 */

/* What adapter_config.json says about the model and the training. */
struct sl_peft {
    const char *base_model;    /* base_model_name_or_path; NULL: null */
    int heads, layers;         /* the base model's; 0: unknown, which PEFT takes */
    enum sl_encoder_type type; /* SL_ENC_TABLE: PROMPT_TUNING, else P_TUNING */
    int encoder_hidden, encoder_layers;
    double dropout;
};
/* 0 if PEFT, which puts the table before everything else, can express the task; else SL_SPEC with
 * the reason: virtual tokens that are not all at the head or not in order, add_bos, or a name that
 * is no folder name. */
int sl_peft_check(const char *task, const char *prompt_template, bool add_bos, struct sl_err *err);
/* Writes out_dir/TASK/adapter_model.safetensors and adapter_config.json as PEFT 0.19 does.
 * sl_peft_check first. */
int sl_export_peft(const char *out_dir, const struct sl_table *table, const struct sl_peft *peft,
                   bool add_bos, struct sl_err *err);

#endif
